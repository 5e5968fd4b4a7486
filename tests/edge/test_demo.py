"""`insitu demo` end to end on a real study, its folder, and its processes."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from dicom.requestor import Destination
from dicom.send import Sender, read_file_meta
from edge.demo import KINDS, run
from edge.demo_process import DemoProcess, environment, run_insitu
from edge.demo_study import DemoError
from tests.dicom.test_send import data_set_of, study
from tests.material import needs_material, unpack


@pytest.mark.slow
@needs_material
def test_a_real_study_comes_back_as_report_segmentation_and_picture(tmp_path: Path) -> None:
    unpack("mr_t1_mni152", tmp_path / "mine")
    out = tmp_path / "out"
    outcome = run(tmp_path / "mine", out, tmp_path / "cache")
    assert outcome.missing == ()
    volumes = {row["of"]: row["value"] for row in outcome.volumes}
    assert volumes["White matter"] == pytest.approx(647, abs=7)  # the model's card
    assert volumes["Grey matter"] == pytest.approx(1075, abs=11)
    written = json.loads((out / "summary.json").read_text())
    assert written["state"] == "delivered"
    kinds = [KINDS[read_file_meta(path).sop_class_uid] for path in (out / "received").iterdir()]
    assert sorted(kinds) == ["SC", "SEG", "SR"]
    with Image.open(out / "overlay.png") as picture:
        assert picture.mode == "RGB"
        assert min(picture.size) > 400
    assert not list((tmp_path / "cache").glob("*"))  # its own study needs no template


def test_a_folder_that_is_not_of_a_demo_is_left_as_it_is(tmp_path: Path) -> None:
    kept = tmp_path / "state"
    kept.write_text("mine")
    with pytest.raises(DemoError, match="not empty and not of a demo"):
        run(None, tmp_path, tmp_path)
    assert kept.read_text() == "mine"
    (tmp_path / "insitu.toml").write_text("[node]\n")
    with pytest.raises(DemoError, match="not empty and not of a demo"):
        run(None, tmp_path, tmp_path)
    assert (tmp_path / "insitu.toml").read_text() == "[node]\n"


def test_a_folder_without_dicom_files_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("no DICOM")
    with pytest.raises(DemoError, match="no DICOM file in it"):
        run(tmp_path / "mine", tmp_path / "out", tmp_path)
    with pytest.raises(DemoError, match="no DICOM file in it"):  # and its own leavings do not stop it
        run(tmp_path / "mine", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out" / "received").exists()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[DemoProcess]:
    received = str(tmp_path / "received")
    with DemoProcess("the node", "edge.demo_peer", [received, "DEMO"], tmp_path / "log") as process:
        yield process


def test_the_receiving_node_keeps_what_it_is_sent_as_it_came(tmp_path: Path, node: DemoProcess) -> None:
    files = study(tmp_path, 3)
    destination = Destination("demo", "DEMO", "127.0.0.1", int(node.ready_line(30)))
    with Sender(destination, "TEST") as sender:
        assert [receipt.status for receipt in sender.send([*files, files[0]])] == [0, 0, 0, 0]
    kept = {read_file_meta(path).sop_instance_uid: path for path in (tmp_path / "received").iterdir()}
    assert len(kept) == 3
    for path in files:
        assert data_set_of(kept[read_file_meta(path).sop_instance_uid]) == data_set_of(path)


def test_a_process_ends_with_the_block_and_with_the_demo(tmp_path: Path) -> None:
    code = (
        "import sys, os\n"
        "from pathlib import Path\n"
        "from edge.demo_process import DemoProcess\n"
        f"received, log = {str(tmp_path / 'received')!r}, Path({str(tmp_path / 'log')!r})\n"
        "with DemoProcess('node', 'edge.demo_peer', [received, 'DEMO'], log) as p:\n"
        "    p.ready_line(30)\n"
        "    print(p._running().pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    demo = subprocess.Popen(
        [sys.executable, "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert demo.stdout is not None
    child = int(demo.stdout.readline())
    watch = os.pidfd_open(child)
    demo.send_signal(signal.SIGKILL)
    demo.communicate()
    try:
        poll = select.poll()
        poll.register(watch, select.POLLIN)  # readable when the process has ended
        assert poll.poll(10_000), "the child outlived the demo"
    finally:
        os.close(watch)


def test_a_process_that_does_not_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with DemoProcess("the daemon", "edge.no_such_module", [], tmp_path / "log") as process:
        with pytest.raises(DemoError, match=r"(?s)the daemon did not start.*No module named"):
            process.ready_line(30)
        assert process.ended(10)


def test_a_verb_that_fails_is_said_with_its_message(tmp_path: Path) -> None:
    config = tmp_path / "insitu.toml"
    config.write_text("[node]\nport = 'x'\n")
    with pytest.raises(DemoError, match=r"(?s)insitu config check ended with status 3:.*node.port"):
        run_insitu(config, "config", "check")


def test_children_get_no_other_configuration_and_send_no_telemetry() -> None:
    assert environment({"INSITU_CONFIG": "/x", "HOME": "/h"}) == {"HOME": "/h", "ORT_DISABLE_TELEMETRY": "1"}


@pytest.mark.parametrize("inner", ["", "study"])
def test_a_study_in_the_output_folder_is_refused_before_anything_is_emptied(
    tmp_path: Path, inner: str
) -> None:
    kept = tmp_path / inner / "slice.dcm"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(DemoError, match="lie in each other"):
        run(kept.parent, tmp_path, tmp_path)
    with pytest.raises(DemoError, match="there is no such folder"):
        run(tmp_path / "mistyped", tmp_path / "out", tmp_path)
    assert kept.read_text() == "mine"

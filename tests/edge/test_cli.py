"""The command line: what it prints, where, and how it ends."""

import errno
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from dicom.errors import PeerError
from edge.cli import config_first, run
from edge.commands.ending import explained
from edge.exit_codes import CommandError, ExitCode
from edge.journal import Journal
from edge.presence import ROLES, Presence
from edge.records import Decision, ResultRow
from edge.study import Outcome, Stage
from edge.version import VERSION
from tests.edge.records_fixture import NOW, claimed, key_of, new_item, received
from tests.fakes.pacs import Behaviour, ScriptedPacs, StoreScp, free_port, needs_dcmtk
from tests.onnx_models import npz, write_package
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("pydicom", "pynetdicom", "highdicom", "onnxruntime", "onnx", "numpy", "scipy", "cv2", "imagecodecs")
VERBS = (
    ["run"], ["demo"], ["send"], ["echo"], ["status"], ["version"],
    ["study"], ["study", "list"], ["study", "show"], ["study", "retry"], ["study", "release"],
    ["model"], ["model", "list"], ["model", "show"], ["model", "import"], ["model", "activate"],
    ["model", "rollback"], ["model", "deactivate"],
    ["config"], ["config", "check"], ["config", "show"], ["config", "example"],
)  # fmt: skip


@dataclass
class Box:
    """An appliance's directories and configuration, and calls of `insitu` on them."""

    directory: Path
    capture: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""

    @property
    def config(self) -> Path:
        return self.directory / "insitu.toml"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def runtime(self) -> Path:
        return self.directory / "run"

    def configure(self, more: str = "") -> None:
        self.config.write_text(
            f'[directories]\nstate = "{self.state}"\ncache = "{self.directory}/cache"\n'
            f'runtime = "{self.runtime}"\n{more}'
        )

    def call(self, *words: str | Path) -> int:
        """Run one command line in this process; its output is kept."""
        self.capture.readouterr()
        code = run(["--config", str(self.config), *map(str, words)])
        self.out, self.err = self.capture.readouterr()
        return code

    def data(self, *words: str | Path, code: int = 0) -> Any:  # noqa: ANN401 - JSON
        """The JSON that a call prints."""
        assert self.call(*words, "--json") == code, self.err
        return json.loads(self.out)


@pytest.fixture
def box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Box:
    found = Box(tmp_path, capsys)
    found.configure()
    return found


@pytest.fixture
def worked(box: Box) -> Iterator[Box]:
    """A box with one study of two images: one model's result waits at a destination, another's is held."""
    box.state.mkdir()
    journal = Journal.open(box.state / "journal.db")
    journal.enter([received(1), received(2)])
    key = key_of("1.2.3")
    journal.close_study(key, "quiet", NOW)
    item = claimed(journal.claim([Stage.ASSEMBLE], NOW))
    decisions = [
        Decision("1.2.3.4", "brain 1.0.0", "d" * 64, "i" * 64, True, "matches input t1"),
        Decision("1.2.3.4", "chest 2.0.0", "e" * 64, "i" * 64, False, "modality is MR, must be CR or DX"),
    ]
    journal.assembled(
        item, decisions, [new_item("item-a", ("k",)), new_item("item-b", ("k",), "f" * 64)], NOW
    )
    first = claimed(journal.claim([Stage.INFER], NOW))
    journal.advance(first, Outcome.DONE, NOW)
    row = ResultRow("SR", "1.2.840.10008.5.1.4.1.1.88.34", "2.25.1", "2.25.2", 100)
    journal.produced(claimed(journal.claim([Stage.PRODUCE], NOW)), [row], ["PACS"], NOW)
    second = claimed(journal.claim([Stage.INFER], NOW))
    journal.advance(second, Outcome.HOLD, NOW, "the worker died 3 times")
    journal.close()
    yield box


def insitu(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`insitu` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "edge", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "COLUMNS": "80", **environment},
        check=False,
    )


# --- help, usage, exit statuses


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_every_verb_has_a_help_that_says_what_it_does(box: Box, words: list[str]) -> None:
    assert box.call(*words, "--help") == 0
    usage, _, said, *_ = [line.strip() for line in box.out.splitlines()]
    assert usage.startswith(f"Usage: insitu {' '.join(words)}")
    assert said.endswith(".")
    assert "..." not in box.out.partition("Commands:")[2], "a verb's first sentence does not fit its line"
    assert box.err == ""


def test_the_help_names_every_verb_and_every_exit_status(box: Box) -> None:
    box.call("--help")
    for word in {words[0] for words in VERBS}:
        assert re.search(rf"(?m)^  {word} ", box.out), word
    listed = re.findall(r"(?m)^ +(\d+)  \S", box.out)
    assert [int(code) for code in listed] == [code.value for code in ExitCode]
    assert max(map(len, box.out.splitlines())) <= 80


@pytest.mark.parametrize(
    "words",
    [
        ["frob"],
        ["run", "--role", "federate"],
        ["study", "list", "--limit", "0"],
        ["study", "list", "--state", "lost"],
        ["send", "a", "b"],
        ["send", "to", "pacs:104:A"],
        ["send", "a", "into", "pacs:104:A"],
        ["send", ".", "to", "pacs:104"],
        ["send", ".", "to", "pacs:104:A", "--calling", "A\\B"],
        ["echo"],
        ["echo", "pacs:0:A"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_ends_with_2_and_a_message_on_standard_error(box: Box, words: list[str]) -> None:
    assert box.call(*words) == ExitCode.USAGE
    assert box.out == ""
    assert "Usage: insitu" in box.err


def test_no_verb_at_all_shows_the_help_and_ends_with_2(box: Box) -> None:
    assert run([]) == ExitCode.USAGE
    shown = box.capture.readouterr()
    assert "Exit status:" in shown.out + shown.err


def test_the_version_is_printed_by_verb_and_by_option(box: Box) -> None:
    assert box.data("version") == {"version": VERSION}
    assert box.call("version") == 0
    assert box.out == f"insitu  {VERSION}\n"
    assert box.call("--version") == 0
    assert box.out == f"insitu {VERSION}\n"


def test_config_may_stand_anywhere_before_a_double_dash() -> None:
    assert config_first(["status", "--config", "f", "--json"]) == ["--config", "f", "status", "--json"]
    assert config_first(["status", "--config=f"]) == ["--config=f", "status"]
    assert config_first(["send", "--", "--config", "f"]) == ["send", "--", "--config", "f"]
    assert config_first(["status", "--config"]) == ["status", "--config"]
    assert config_first([]) == []


# --- errors


def test_a_wrong_configuration_ends_with_3_and_every_problem(box: Box) -> None:
    box.configure("[node]\nport = 70000\nwibble = 1\n")
    assert box.call("status") == ExitCode.CONFIGURATION
    assert box.out == ""
    assert [line for line in box.err.splitlines() if line.startswith("insitu:")] == [
        f"insitu: {box.config}: node.port: got 70000, allowed a whole number, 0 to 65535",
        f"insitu: {box.config}: node.wibble: no such option; there are ae_title, host, port",
    ]


def test_what_is_expected_ends_in_words_and_the_traceback_only_on_request(tmp_path: Path) -> None:
    call = insitu("--config", tmp_path / "none", "status")
    assert call.returncode == ExitCode.CONFIGURATION
    assert "named by --config, but there is no such file" in call.stderr
    assert "Traceback" not in call.stderr
    call = insitu("--config", tmp_path / "none", "status", INSITU_DEBUG="1")
    assert "Traceback" in call.stderr


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CommandError(ExitCode.NOT_FOUND, "no study"), ExitCode.NOT_FOUND, "no study"),
        (PeerError("pacs: refused"), ExitCode.PEER, "pacs: refused"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            ExitCode.FAILED,
            "/x: Permission denied (for this user)",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.FAILED, "No space left on device"),
        (KeyError("x\ny"), ExitCode.DEFECT, "unexpected KeyError: 'x\\ny'"),
        (ZeroDivisionError(), ExitCode.DEFECT, "unexpected ZeroDivisionError"),
    ],
)
def test_an_error_ends_in_its_status_and_one_message(error: Exception, code: int, message: str) -> None:
    ended = explained(error)
    assert (ended.code, ended.message) == (code, message)


def test_an_unexpected_error_says_how_to_report_it() -> None:
    assert "INSITU_DEBUG=1" in explained(ZeroDivisionError()).hint


def test_another_package_named_dicom_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "__init__.py").write_text("raise SystemExit('the wrong one ran')")
    call = subprocess.run(
        [sys.executable, "-m", "edge", "version"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )
    assert call.returncode == ExitCode.FAILED
    assert f"package `dicom` is taken from {tmp_path / 'dicom'}, must be {ROOT / 'dicom'}" in call.stderr
    assert "Traceback" not in call.stderr


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    call = subprocess.run(
        ["/bin/sh", "-c", '"$0" -I -m edge config example | true', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert call.stderr == ""


# --- light and quick


@pytest.mark.parametrize(
    "words", [["--help"], ["status"], ["version"], ["study", "list"], ["model", "list"], ["config", "check"]],
    ids=" ".join,
)  # fmt: skip
def test_a_verb_that_only_looks_imports_no_heavy_library(worked: Box, words: list[str]) -> None:
    _keep(worked, tiny_model(worked.directory / "package"))
    code = (
        "import sys; from edge.__main__ import main; main();"
        f"sys.stderr.write('heavy: ' + ' '.join(sorted(set({HEAVY!r}) & set(sys.modules))) + '.')"
    )
    call = subprocess.run(
        [sys.executable, "-I", "-c", code, "--config", str(worked.config), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert call.stderr.endswith("heavy: ."), call.stderr


def _keep(box: Box, package: Path) -> None:
    """A package in the store, without running it."""
    from model_store.store import ModelStore

    store = ModelStore(box.state / "models")
    store.activate(store.import_package(package).digest, who="test", now=NOW)


# --- status


def test_status_says_that_nothing_runs_and_ends_with_6(box: Box) -> None:
    data = box.data("status", code=ExitCode.NOT_RUNNING)
    assert data["roles"] == {role: {"runs": False, "pid": None} for role in ROLES}
    assert data["studies"] is None
    assert data["models"] == []
    assert data["disk"]["free_bytes"] > 0
    assert "the daemon does not run" in box.err
    assert not box.state.exists(), "looking must not make anything"


def test_status_of_a_box_that_runs_ends_with_0(worked: Box) -> None:
    worked.runtime.mkdir()
    held = [Presence(worked.runtime, role) for role in ROLES]
    try:
        assert worked.call("status") == 0
        assert worked.out.count(f"runs, process {os.getpid()}") == len(ROLES)
        assert re.search(r"(?m)^studies +1 held$", worked.out)
        held.pop().leave()
        assert worked.call("status") == ExitCode.NOT_RUNNING
        assert f"not running: {ROLES[-1]}" in worked.err
    finally:
        for presence in held:
            presence.leave()


# --- studies


def test_study_list_shows_studies_and_no_patient(worked: Box) -> None:
    assert worked.call("study", "list") == 0
    header, line = worked.out.splitlines()
    assert header.split() == [
        "study",
        "state",
        "modality",
        "images",
        "received",
        "from",
        "reason",
    ]
    key = key_of("1.2.3")
    assert line.startswith(f"{key[:12]}  held ")
    assert line.endswith("SCANNER  the worker died 3 times")
    (study,) = worked.data("study", "list")["studies"]
    assert (study["study_key"], study["state"], study["instances"]) == (key, "held", 2)
    assert worked.data("study", "list", "--state", "open") == {"studies": []}


def test_study_show_finds_a_study_by_key_beginning_or_uid(worked: Box) -> None:
    key = key_of("1.2.3")
    for name in (key, key[:6], "1.2.3"):
        assert worked.data("study", "show", name)["study"]["study_key"] == key
    assert worked.call("study", "show", key) == 0
    for expected in (
        "modality is MR, must be CR or DX",
        "the worker died 3 times",
        "2.25.1",
        "PACS",
        "closed",
    ):
        assert expected in worked.out


def test_a_study_that_is_not_there_ends_with_4(worked: Box) -> None:
    assert worked.call("study", "show", "zzz") == ExitCode.NOT_FOUND
    assert "no study 'zzz'" in worked.err
    assert worked.call("study", "retry", "zzz") == ExitCode.NOT_FOUND


def test_without_a_journal_there_are_no_studies_and_it_ends_with_4(box: Box) -> None:
    assert box.call("study", "list") == ExitCode.NOT_FOUND
    assert "there is no journal yet" in box.err
    assert not box.state.exists()


@pytest.mark.parametrize("verb", ["retry", "release"])
def test_what_is_held_is_put_back_and_nothing_the_second_time(worked: Box, verb: str) -> None:
    key = key_of("1.2.3")
    assert worked.data("study", verb, key) == {"study_key": key, "items": 1, "daemon_runs": False}
    stages = {item["item_key"]: item["stage"] for item in worked.data("study", "show", key)["items"]}
    assert sorted(stages.values()) == ["deliver", "delivered", "infer"]
    assert worked.call("study", verb, key) == 0
    assert worked.out == f"study {key[:12]}: 0 items put back\n"
    assert "nothing of it is held" in worked.err


# --- models


def test_a_model_is_imported_activated_replaced_rolled_back_and_switched_off(box: Box) -> None:
    for version in ("1.0.0", "2.0.0"):
        package = tiny_model(box.directory / version, version, threshold=0.5)
        made = box.data("model", "import", package)
        assert (made["name"], made["version"]) == ("tiny-threshold", version)
        (case,) = made["golden"]
        assert (case["file"], case["label_share"]) == ("golden.npz", 0)
        assert case["max_abs_difference"] <= 1e-4
        shutil.rmtree(package)
    models = box.data("model", "list")["models"]
    assert [(model["version"], model["state"]) for model in models] == [
        ("1.0.0", "stored"),
        ("2.0.0", "stored"),
    ]
    old, new = (model["digest"] for model in models)
    assert box.call("model", "activate", "tiny-threshold") == ExitCode.NOT_FOUND  # which of the two?
    assert box.data("model", "activate", "tiny-threshold", "1.0.0")["active"] == old
    line = box.data("model", "activate", new[:8])
    assert (line["name"], line["active"], line["previous"]) == ("tiny-threshold", new, old)
    assert box.data("status", code=ExitCode.NOT_RUNNING)["models"] == [
        {"name": "tiny-threshold", "version": "2.0.0", "digest": new}
    ]
    assert box.data("model", "rollback", "tiny-threshold")["active"] == old
    assert box.data("model", "deactivate", "tiny-threshold")["active"] is None
    shown = box.data("model", "show", "tiny-threshold", "1.0.0")
    assert [move["move"] for move in shown["history"]] == ["activate", "activate", "rollback", "deactivate"]
    assert shown["manifest"]["intended_use"] == "Tests of the appliance."
    assert box.call("model", "show", "tiny-threshold", "2.0.0") == 0
    assert "intended use       Tests of the appliance." in box.out


def test_a_model_whose_golden_case_disagrees_is_refused_with_7_and_not_kept(box: Box) -> None:
    golden = npz(in__x=np.zeros((1, 4), np.float32), out__y=np.full((1, 4), 1.5, np.float32))
    package = write_package(box.directory / "package", case=golden)
    assert box.call("model", "import", package) == ExitCode.REFUSED
    assert "golden case golden/case.npz: differs by 0.5, allowed 1e-05" in box.err
    assert box.data("model", "list") == {"models": []}


def test_a_package_that_is_not_there_or_none_is_refused(box: Box) -> None:
    assert box.call("model", "import", box.directory / "none") == ExitCode.NOT_FOUND
    (box.directory / "empty").mkdir()
    assert box.call("model", "import", box.directory / "empty") == ExitCode.REFUSED
    assert not box.state.exists()


@pytest.mark.parametrize("words", [["show", "x"], ["activate", "x"], ["rollback", "x"], ["deactivate", "x"]])
def test_a_model_that_is_not_there_ends_with_4(box: Box, words: list[str]) -> None:
    assert box.call("model", *words) == ExitCode.NOT_FOUND
    assert "no model in the store" in box.err
    _keep(box, tiny_model(box.directory / "package"))
    assert box.call("model", *words) == ExitCode.NOT_FOUND
    assert "tiny-threshold" in box.err


# --- configuration


def test_config_check_warns_and_names_the_file(box: Box) -> None:
    assert box.call("config", "check") == 0
    assert box.out == f"{box.config}: no problem\n"
    assert box.err.count("warning: no [[peer]]") == 2
    data = box.data("config", "check")
    assert (data["ok"], data["file"], data["problems"], len(data["warnings"])) == (
        True,
        str(box.config),
        [],
        2,
    )
    box.configure("[nodes]\n")
    data = box.data("config", "check", code=ExitCode.CONFIGURATION)
    assert (data["ok"], data["problems"]) == (
        False,
        [f"{box.config}: nodes: no such section; did you mean node?"],
    )


def test_config_show_prints_a_file_that_reads_as_the_same_settings(box: Box) -> None:
    box.configure(
        '[[peer]]\nname = "A"\nae_title = "A\\"B"\nhost = "h"\nport = 1\naccept_from = ["10.0.0.1"]\n'
    )
    everything = box.data("config", "show", "--effective")
    some = box.data("config", "show")
    assert set(some) == {"directories", "peer"}
    assert everything["limits"]["max_associations"] == 64
    for words in (["--effective"], []):
        assert box.call("config", "show", *words) == 0
        box.config.write_text(box.out)
        assert box.data("config", "show", "--effective") == everything


def test_config_example_is_a_configuration(box: Box) -> None:
    assert box.call("config", "example") == 0
    box.config.write_text(box.out)
    assert box.call("config", "show") == 0
    assert box.out == "# every option has its default\n"


# --- the network


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """A folder with two DICOM files, a text, an empty file, a DICOMDIR and a folder below."""
    folder = tmp_path / "scans"
    (folder / "below").mkdir(parents=True)
    shutil.copy(str(get_testdata_file("CT_small.dcm")), folder / "b.dcm")
    shutil.copy(str(get_testdata_file("MR_small.dcm")), folder / "below" / "c")
    shutil.copy(str(get_testdata_file("DICOMDIR")), folder / "DICOMDIR")
    (folder / "a.txt").write_text("not DICOM")
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    return folder


@needs_dcmtk
def test_send_walks_folders_and_leaves_out_what_is_not_dicom(box: Box, scans: Path) -> None:
    with StoreScp(box.directory / "scp") as pacs:
        where = f"127.0.0.1:{pacs.destination.port}:{pacs.destination.ae_title}"
        data = box.data("send", scans, "to", where)
        assert (data["sent"], data["failed"]) == (2, [])
        assert {Path(item["file"]).name for item in data["skipped"]} == {"a.txt", "empty", "DICOMDIR"}
        assert len(pacs.files()) == 2
        assert box.call("send", scans / "b.dcm", scans / "below", "to", where, "--calling", "SCANNER") == 0
        assert box.out.startswith(f"sent     2 of 2 to {pacs.destination.ae_title} (")
        assert box.call("echo", where) == 0
        assert "answered in" in box.out


def test_send_and_echo_know_the_peers_of_the_configuration(box: Box, scans: Path) -> None:
    with ScriptedPacs() as pacs:
        box.configure(
            f'[[peer]]\nname = "archive"\nae_title = "SCRIPTED"\nhost = "127.0.0.1"\n'
            f"port = {pacs.destination.port}\n"
        )
        assert box.data("send", scans / "b.dcm", "to", "archive")["destination"].startswith(
            "archive (SCRIPTED"
        )
        assert box.call("echo", "archiv") == ExitCode.NOT_FOUND
        assert "'archiv' is no peer (archive)" in box.err


def test_an_echo_that_fails_is_data_too(box: Box) -> None:
    answer = box.data("echo", f"127.0.0.1:{free_port()}:NOBODY", code=ExitCode.PEER)
    assert answer["ok"] is False
    assert "NOBODY" in answer["reason"]


def test_a_port_that_is_taken_is_named_with_what_to_do(box: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        box.configure(f'[node]\nhost = "127.0.0.1"\nport = {port}\n')
        done = insitu("--config", box.config, "run")
    assert done.returncode == ExitCode.FAILED
    said = f"node.host = 127.0.0.1, node.port = {port}: cannot listen there: Address already in use"
    assert said in " ".join(done.stderr.split())
    assert "free it, or set another" in done.stderr


def test_a_file_that_the_destination_refuses_is_named_and_it_ends_with_1(box: Box, scans: Path) -> None:
    with ScriptedPacs(Behaviour(statuses=(0xA700,))) as pacs:
        where = f"127.0.0.1:{pacs.destination.port}:SCRIPTED"
        data = box.data("send", scans, "to", where, code=ExitCode.FAILED)
    assert data["sent"] == 1
    (failed,) = data["failed"]
    assert failed["file"] == str(scans / "b.dcm")
    assert failed["reason"]


def test_a_destination_that_goes_away_leaves_the_rest_unsent_and_it_ends_with_5(
    box: Box, scans: Path
) -> None:
    with ScriptedPacs(Behaviour(vanish_after=1)) as pacs:
        where = f"127.0.0.1:{pacs.destination.port}:SCRIPTED"
        data = box.data("send", scans, "to", where, code=ExitCode.PEER)
    assert data["sent"] == 1
    assert data["failed"][0]["reason"].startswith("not sent: ")


def test_a_destination_that_is_not_there_ends_with_5_and_the_next_step(box: Box, scans: Path) -> None:
    where = f"127.0.0.1:{free_port()}:NOBODY"
    assert box.call("echo", where) == ExitCode.PEER
    assert "Connection refused" in box.err
    assert box.call("send", scans, "to", where) == ExitCode.PEER
    assert f"see whether it answers: insitu echo {where}" in box.err


def test_nothing_to_send_ends_with_4(box: Box, scans: Path) -> None:
    where = f"127.0.0.1:{free_port()}:NOBODY"
    assert box.call("send", scans / "a.txt", "to", where) == ExitCode.NOT_FOUND
    assert "skipped:" in box.err
    assert box.call("send", scans / "none", "to", where) == ExitCode.NOT_FOUND
    assert f"{scans / 'none'}: no such file or directory" in box.err


# --- JSON keys and the terminal


def _keys(label: str) -> set[str]:
    """The keys that docs/cli.md gives for a row of its tables."""
    for line in (ROOT / "docs" / "cli.md").read_text().splitlines():
        cells = line.split(" | ")
        if line.startswith("| ") and label in cells[0]:
            return set(re.findall(r"`(\w+)`", cells[1]))
    raise AssertionError(f"docs/cli.md has no row for {label}")


def test_the_keys_of_the_json_are_those_of_the_document(worked: Box, scans: Path) -> None:
    key = key_of("1.2.3")
    package = tiny_model(worked.directory / "package")
    with ScriptedPacs(Behaviour(statuses=(0xA700,))) as pacs:
        where = f"127.0.0.1:{pacs.destination.port}:SCRIPTED"
        sent = worked.data("send", scans, "to", where, code=1)
        answers = {"`send`": sent, "`echo`": worked.data("echo", where)}
    answers["`model import`"] = worked.data("model", "import", package)
    name = "tiny-threshold"
    for verb, argument in {
        "version": (),
        "study list": (),
        "study show": (key,),
        "study retry": (key,),
        "model list": (),
        "model activate": (name,),
        "model show": (name,),
        "config check": (),
    }.items():
        answers[f"`{verb}`"] = worked.data(*verb.split(), *argument)
    answers["`status`"] = worked.data("status", code=6)
    for label, answer in answers.items():
        assert set(answer) == _keys(label), label
    detail = answers["`study show`"]
    item = next(item for item in detail["items"] if item["results"])
    for label, part in {
        "a study": answers["`study list`"]["studies"][0],
        "a decision": detail["decisions"][0],
        "an item": item,
        "a result object": item["results"][0],
        "a delivery": item["deliveries"][0],
        "an event": detail["events"][0],
        "a model, in `model list`": answers["`model list`"]["models"][0],
        "a model, in `status`": answers["`status`"]["models"][0],
        "a file": sent["failed"][0],
    }.items():
        assert set(part) == _keys(label), label


def _on_a_terminal(words: Sequence[str | Path], **environment: str) -> str:
    """What a person sees: standard output and error on a terminal of 80 columns."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-I", "-m", "edge", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=follower,
        stderr=follower,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "80", **environment},
    )
    os.close(follower)
    seen = b""
    try:
        while chunk := _read(leader):
            seen += chunk
    finally:
        process.wait(60)
        os.close(leader)
    return seen.decode()


def _read(leader: int) -> bytes:
    try:
        return os.read(leader, 65536)
    except OSError:  # EIO: the other end is closed
        return b""


def test_a_table_is_drawn_on_a_terminal_and_colour_can_be_taken_away(worked: Box) -> None:
    words: list[str | Path] = ["--config", worked.config, "study", "list"]
    assert "\x1b[" in _on_a_terminal(words)
    plain = _on_a_terminal(words, NO_COLOR="1")
    assert "────" in plain
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)
    assert "\x1b" not in insitu(*words).stdout


def test_a_bar_is_drawn_on_a_terminal_only(box: Box, scans: Path) -> None:
    with ScriptedPacs() as pacs:
        words: list[str | Path] = [
            "--config",
            box.config,
            "send",
            scans,
            "to",
            f"127.0.0.1:{pacs.destination.port}:SCRIPTED",
        ]
        assert "2/2" in _on_a_terminal(words)
        call = insitu(*words)
    assert call.returncode == 0, call.stderr
    assert "2/2" not in call.stderr + call.stdout


def test_control_characters_of_others_never_reach_the_terminal(worked: Box) -> None:
    journal = Journal.open(worked.state / "journal.db")
    with journal.transaction() as write:
        write.execute("UPDATE study SET calling_ae_title = ?", ("\x1b[2JEVIL\r\n[red]x",))
    journal.close()
    assert worked.call("study", "list") == 0
    assert "\\x1b[2JEVIL\\r\\n[red]x" in worked.out
    assert "\x1b[2J" not in _on_a_terminal(["--config", worked.config, "study", "list"])

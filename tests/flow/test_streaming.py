"""Streaming end to end: the same findings in any order and without it; many studies leave nothing behind."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread

from dicom.readback import read_report, read_segmentation
from edge.closing import Sign
from scripts.benchmarks.soak import Sample, grown, soak
from tests.edge.stages_fixture import shuffled
from tests.fakes.pacs import Orthanc, StoreScp, free_port, needs_dcmtk, needs_orthanc
from tests.flow.appliance import BRAIN, Appliance
from tests.material import MATERIAL, needs_material, unpack
from tests.packages import cxr_packages
from tests.tiny import tiny_model, tiny_study

pytestmark = needs_dcmtk

Found = tuple[str, NDArray[np.uint8], list[float]]
"""UID of the segmentation, its labels, the measured values."""


def found(tmp_path: Path, name: str, files: list[Path], *, streaming: bool, model: Path = BRAIN) -> Found:
    """Send files to an appliance of their own."""
    options = f"[assemble]\nstreaming = {'true' if streaming else 'false'}\n"
    with (
        StoreScp(tmp_path / f"pacs-{name}") as pacs,
        Appliance(tmp_path / name, [pacs.destination], [model], options) as box,
    ):
        assert box.send(files) == 0
        [detail] = box.wait_for("delivered")
        objects = {str(dcmread(path).Modality): path for path in pacs.files()}
    assert detail.study.closed_by == Sign.COMPLETE_VOLUME
    assert detail.study.closed
    values = [each.value for each in read_report(objects["SR"]).measurements]
    return str(dcmread(objects["SEG"]).SOPInstanceUID), read_segmentation(objects["SEG"]).labels, values


def same(one: Found, other: Found) -> bool:
    return one[0] == other[0] and np.array_equal(one[1], other[1]) and one[2] == other[2]


def test_in_any_order_streamed_or_not_the_same_labels_and_values_come_out(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    files = tiny_study(tmp_path / "study", slices=10)
    plain = found(tmp_path, "plain", files, streaming=False, model=model)
    assert same(found(tmp_path, "streamed", files, streaming=True, model=model), plain)
    assert same(found(tmp_path, "shuffled", shuffled(files, 5), streaming=True, model=model), plain)


@needs_material
@pytest.mark.slow
def test_a_brain_that_comes_shuffled_is_segmented_as_one_that_is_prepared_whole(tmp_path: Path) -> None:
    files = unpack("mr_t1_mni152", tmp_path / "study")
    plain = found(tmp_path, "plain", files, streaming=False)
    assert same(found(tmp_path, "shuffled", shuffled(files, 5), streaming=True), plain)


@needs_material
def test_an_image_is_judged_while_its_study_is_open(tmp_path: Path) -> None:
    [package, *_] = cxr_packages(tmp_path)
    with (
        StoreScp(tmp_path / "pacs") as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [package], "[assemble]\nquiet_s = 3600\n") as box,
    ):
        assert box.send([MATERIAL / "dicom" / "cxr" / "IM-0109-0001.dcm"], "STORESCU", "-xy") == 0
        [detail] = box.wait(lambda studies: any(i.stage == "delivered" for s in studies for i in s.items))
        assert detail.study.state == "open"
        assert len(pacs.files()) == 2


@needs_orthanc
def test_the_number_of_images_that_orthanc_names_closes_a_study(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    port = free_port()
    with Orthanc(tmp_path / "orthanc", {"insitu": ("INSITU", port)}) as orthanc:
        for path in files:
            orthanc.post("/instances", path.read_bytes())
        options = (
            "[assemble]\nquiet_s = 3600\nclose_on_complete_volume = false\n"
            f'ask_count_of = "{orthanc.destination.name}"\n'
        )
        model = tiny_model(tmp_path / "model")
        with Appliance(tmp_path / "box", [orthanc.destination], [model], options, port=port) as box:
            assert box.send(files[:5]) == 0
            assert box.send(files[5:]) == 0
            [detail] = box.wait_for("delivered")
    assert detail.study.closed_by == Sign.ASKED
    assert detail.study.revision == 1


@pytest.mark.slow
def test_twenty_studies_in_a_row_are_each_delivered_once_and_leave_nothing_behind(tmp_path: Path) -> None:
    samples, problems = soak(tmp_path, 20)
    # after five studies the daemon's allocator still fills its arenas: that is for `scripts/soak` to judge
    assert [problem for problem in problems if not problem.startswith("rss_mib ")] == []
    assert len(samples) == 20


def test_a_leak_fails_the_soak() -> None:
    flat = [Sample(n, 200.0, 80.0, 30, 20) for n in range(1, 21)]
    assert grown(flat, 20) == []
    leaking = [Sample(n, 200.0 + 3 * n, 80.0, 30 + n, 20 + n) for n in range(1, 21)]
    assert [problem.split()[0] for problem in grown(leaking, 20)] == ["rss_mib", "descriptors", "threads"]

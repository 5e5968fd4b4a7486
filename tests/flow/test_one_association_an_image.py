"""A sender that opens an association for each image: one result, of all of them."""

from pathlib import Path

from tests.fakes.pacs import ScriptedPacs, needs_dcmtk
from tests.flow.appliance import Appliance
from tests.tiny import tiny_model, tiny_study


@needs_dcmtk
def test_a_study_sent_image_by_image_gives_one_result_of_the_whole(tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study")
    with (
        ScriptedPacs() as pacs,
        Appliance(
            tmp_path / "box",
            [pacs.destination],
            [tiny_model(tmp_path / "model")],
            "[assemble]\nquiet_s = 3.0\n",
        ) as box,
    ):
        for path in files:
            assert box.send([path]) == 0
        [study] = box.wait_for("delivered")
    assert study.study.revision == 1
    assert study.study.closed_by == "quiet timer"
    assert len(pacs.seen.objects) == 3

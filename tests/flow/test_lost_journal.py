"""The journal is lost, the files are not: the destination gets the same objects, byte for byte."""

from pathlib import Path

from tests.fakes.pacs import StoreScp, needs_dcmtk
from tests.flow.appliance import Appliance
from tests.tiny import tiny_model, tiny_study

pytestmark = needs_dcmtk


def test_after_the_journal_is_lost_the_same_bytes_are_sent_again(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study", announced=8)
    with StoreScp(tmp_path / "pacs") as pacs:
        box = Appliance(tmp_path / "box", [pacs.destination], models=[tiny_model(tmp_path / "tiny")])
        with box:
            assert box.send(study) == 0
            box.wait_for("delivered")
        before = {path.name: path.read_bytes() for path in pacs.files()}
        kept = {path: path.read_bytes() for path in (box.state / "results").rglob("*.dcm")}
        assert len(before) == len(kept) == 3
        for path in pacs.files():
            path.unlink()
        for path in box.state.glob("journal.db*"):
            path.unlink()
        with box:
            if not box.studies():
                assert box.send(study) == 0
            box.wait_for("delivered")
        assert {path.name: path.read_bytes() for path in pacs.files()} == before
        assert {path: path.read_bytes() for path in kept} == kept

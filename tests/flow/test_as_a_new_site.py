"""What a new site meets first: no model yet, an image that was cut short on its way."""

from datetime import UTC, datetime
from pathlib import Path

from model_store.store import ModelStore
from tests.fakes.pacs import ScriptedPacs, needs_dcmtk
from tests.flow.appliance import Appliance
from tests.tiny import tiny_model, tiny_study

pytestmark = needs_dcmtk


def test_a_study_that_came_before_any_model_is_held_and_runs_once_a_model_serves(tmp_path: Path) -> None:
    package = tiny_model(tmp_path / "model")
    with (
        ScriptedPacs() as pacs,
        Appliance(tmp_path / "box", [pacs.destination], [], "[assemble]\nquiet_s = 0.3\n") as box,
    ):
        assert box.send(tiny_study(tmp_path / "study")) == 0
        [study] = box.wait_for("held")
        assert "no model serves: import and activate one" in study.study.reason
        store = ModelStore(box.state / "models")
        store.activate(store.import_package(package).digest, who="test", now=datetime.now(UTC))
        box.restart()
        assert box.insitu("study", "retry", study.study.study_key) == 0
        [study] = box.wait_for("delivered")
        assert study.study.reason == ""
        assert len(pacs.seen.objects) == 3

"""The model's run: what it is given, what is beside it, and what ends an item."""

from pathlib import Path

import pytest
from pydicom import dcmread

from dicom.layout import DecodeLimits
from edge.instances import instance_key
from edge.study import Stage
from tests.edge.records_fixture import NOW
from tests.edge.stages_fixture import Stages
from tests.tiny import tiny_model, tiny_study


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def assembled(box: Stages, files: list[Path]) -> None:
    box.receive(files)
    box.assembler.poll()
    box.idle()
    box.step(Stage.ASSEMBLE)


def item(box: Stages) -> tuple[Stage, str]:
    """Stage and reason of the model's only item."""
    [found] = [each for each in box.study().items if each.model]
    return Stage(found.stage), found.reason


@pytest.mark.parametrize("streaming", [True, False])
def test_findings_and_their_volume_wait_for_produce_with_what_made_them(
    tmp_path: Path, model: Path, streaming: bool
) -> None:
    with Stages(tmp_path, [model], streaming=streaming) as box:
        assembled(box, tiny_study(tmp_path / "study"))
        box.step(Stage.INFER)
        assert item(box)[0] is Stage.PRODUCE
        [shown] = [each for each in box.study().items if each.model]
        inferred = box.inferred.get(shown.item_key)
        assert inferred is not None
        assert inferred.findings.labels is not None
        assert inferred.findings.labels.sum() == 4 * 36  # the cube of tiny_study
        assert inferred.parameters["decoder"] == "native"
        assert inferred.parameters["preprocessing_sha256"] == box.serving.active()[0].pipeline.digest


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_an_instance_file_that_is_damaged_holds_the_item_and_is_named(
    tmp_path: Path, model: Path, streaming: bool, damage: str
) -> None:
    files = tiny_study(tmp_path / "study")
    uid = str(dcmread(files[3]).SOPInstanceUID)
    with Stages(tmp_path / "box", [model], streaming=streaming) as box:
        box.receive(files)
        box.assembler.poll()
        box.idle()
        path = box.instances.path(box.study().study.study_key, instance_key(uid))
        if damage == "cut":
            path.write_bytes(path.read_bytes()[:-200])
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(bytes(len(path.read_bytes())))
        box.slices.drop_all("")
        box.begun.drop_all("")
        box.step()
        stage, reason = item(box)
        assert stage is Stage.HELD
        assert (instance_key(uid) if damage == "gone" else uid) in reason
        assert box.results() == {}


@pytest.mark.parametrize("streaming", [True, False])
def test_a_volume_beyond_the_configured_bytes_is_declined_before_it_is_made(
    tmp_path: Path, model: Path, streaming: bool
) -> None:
    limits = DecodeLimits(max_bytes=8 * 16 * 16 * 4 - 1)
    with Stages(tmp_path, [model], streaming=streaming, limits=limits) as box:
        assembled(box, tiny_study(tmp_path / "study"))
        box.step(Stage.INFER)
        stage, reason = item(box)
        assert stage is Stage.DECLINED
        assert f"allowed {limits.max_bytes}" in reason


def test_a_model_that_was_switched_off_since_still_runs_for_the_study_that_it_began(
    tmp_path: Path, model: Path
) -> None:
    with Stages(tmp_path, [model]) as box:
        assembled(box, tiny_study(tmp_path / "study"))
        [name] = [each.manifest.name for each in box.serving.active()]
        box.store.deactivate(name, who="test", now=NOW)
        for _ in range(3):
            box.serving.warm(box.journal.awaited_models())
        box.step(Stage.INFER)
        assert item(box)[0] is Stage.PRODUCE


def test_findings_larger_than_the_shelf_still_reach_produce(tmp_path: Path, model: Path) -> None:
    with Stages(tmp_path, [model]) as box:
        box.inferred._capacity = 1
        assembled(box, tiny_study(tmp_path / "study"))
        box.step()
        assert item(box)[0] is Stage.DELIVER

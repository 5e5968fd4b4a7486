"""kill -9 at every durable step: whatever was begun is finished after the restart, once.

Each case runs the appliance with a small study and kills it before its n-th fsync, rename, link,
unlink or COMMIT. The modality then sends again what was not acknowledged, as modalities do. In the
end the destination must hold exactly the objects of an undisturbed run, each with the same bytes
however often it was sent.
"""

import contextlib
import hashlib
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.pacs import ScriptedPacs, needs_dcmtk
from tests.flow.appliance import REPOSITORY, Appliance
from tests.tiny import tiny_model, tiny_study

KILLED = REPOSITORY / "tests" / "crash" / "killed.py"
SLICES = 4
QUIET_S = 30
"""Longer than a case takes: the study closes by its announced count and by nothing else."""


@dataclass
class KilledAppliance(Appliance):
    """An appliance whose next start ends at a durable step."""

    step: int = 0

    def command(self) -> list[str]:
        """`insitu run`, under the counter of steps."""
        command = super().command()
        return [*command[:2], str(KILLED), str(self.step), *command[4:]] if self.step >= 0 else command


def appliance(tmp_path: Path, pacs: ScriptedPacs, step: int) -> KilledAppliance:
    return KilledAppliance(
        tmp_path / "box",
        destinations=[pacs.destination],
        models=[tiny_model(tmp_path / "model")],
        options=f"[assemble]\nquiet_s = {QUIET_S}\n",
        environment={"CRASH_STEPS": str(tmp_path / "steps")},
        step=step,
    )


def objects(pacs: ScriptedPacs) -> dict[str, set[str]]:
    """SOP Instance UID to the digests of all data sets that came under it."""
    found: dict[str, set[str]] = {}
    for uid, _, data in pacs.seen.objects:
        found.setdefault(uid, set()).add(hashlib.sha256(data).hexdigest())
    return found


def undisturbed(tmp_path: Path) -> tuple[set[str], list[str]]:
    """UIDs of the results, and the durable steps, of a run that nothing disturbs."""
    study = tiny_study(tmp_path / "study", slices=SLICES, announced=SLICES)
    with ScriptedPacs() as pacs:
        with appliance(tmp_path, pacs, step=0) as box:
            assert box.send(study) == 0
            box.wait_for("delivered")
        return set(objects(pacs)), (tmp_path / "steps").read_text().split("\n")


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], list[str]]:
    """See `undisturbed`; run once."""
    return undisturbed(tmp_path_factory.mktemp("undisturbed"))


def kills(count: int) -> Sequence[int]:
    """Numbers of the steps at which cases kill: all of them, to a margin beyond the last one seen."""
    return range(1, count + 1)


@needs_dcmtk
@pytest.mark.slow
@pytest.mark.parametrize("step", kills(80))
def test_a_kill_before_any_durable_step_loses_nothing_and_doubles_nothing(
    tmp_path: Path, expected: tuple[set[str], list[str]], step: int
) -> None:
    uids, steps = expected
    if step > len(steps):
        pytest.skip(f"a run has {len(steps)} durable steps")
    study = tiny_study(tmp_path / "study", slices=SLICES, announced=SLICES)
    with ScriptedPacs() as pacs:
        box = appliance(tmp_path, pacs, step)
        try:
            box.start()
        except AssertionError:
            sent = False  # killed while it started
        else:
            sent = box.send(study) == 0
            assert box.process is not None
            with contextlib.suppress(subprocess.TimeoutExpired):  # timing moved: this run has fewer steps
                box.process.wait(10 if step < len(steps) - 4 else 2)
        box.kill()
        box.step = -1
        with box:
            if not sent:
                assert box.send(study) == 0
            box.wait_for("delivered")
    found = objects(pacs)
    assert set(found) == uids
    assert {uid: len(digests) for uid, digests in found.items()} == dict.fromkeys(uids, 1)


@needs_dcmtk
def test_the_count_of_steps_covers_every_kind_and_every_stage(expected: tuple[set[str], list[str]]) -> None:
    uids, steps = expected
    assert len(uids) == 3  # a segmentation, a report, a picture
    assert len(steps) <= len(kills(80))
    assert {"fsync", "commit"} <= set(steps)
    assert {"rename", "link", "replace"} & set(steps)

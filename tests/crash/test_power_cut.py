"""A power cut at any moment loses nothing that was acknowledged (docs/adr/0008-how-a-power-cut-is-tested.md).

The appliance runs on an ext4 whose disk remembers every write and flush (`recorded_disk`). Then the
power is cut at moments of the past: right after an acknowledgement the disk holds what flushes
covered, and of the rest any part. What the sender was told is stored must be there.
"""

import hashlib
import random
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.crash.parts import Part, Sent, acknowledged, recovered, send_all, studies
from tests.crash.posix import TRACE, Model, calls
from tests.crash.recorded_disk import RecordedDisk, run, why_no_disks
from tests.fakes.pacs import ScriptedPacs
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_disks()), reason=f"no disk to cut off: {why_no_disks()}"),
]

STRACE = Path("/usr/bin/strace")
needs_strace = pytest.mark.skipif(not STRACE.is_file(), reason="strace is not installed")
DISK_LIES = [
    *(str(STRACE), "-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"),
    *("-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:retval=0"),
]
"""Runs a program whose every fsync returns success at once, and does nothing."""
STUDIES = 4
SLICES = 12
IMAGE_BYTES = 40_000
CUTS = 16


@dataclass
class Recording:
    """A session of sending on a recorded disk."""

    disk: RecordedDisk
    sent: Sent
    acknowledged: dict[str, int]

    def moments(self, count: int) -> list[int]:
        """Seeded moments right after an acknowledgement, the last one among them."""
        every = sorted(self.acknowledged.values())
        return sorted({every[-1], *random.Random(7).sample(every, min(count, len(every)))})

    def lost(self, moment: int, seed: int | None) -> set[str]:
        """Cut the power at `moment`: what had been acknowledged and is not there whole."""
        promised = {uid for uid, when in self.acknowledged.items() if when <= moment}
        with self.disk.after_power_cut(moment, seed) as root:
            return promised - recovered(root / "box" / "state" / "instances", self.sent)


def record(tmp_path: Path, options: str = "", under: tuple[str, ...] = ()) -> Recording:
    """Receive four studies on four associations at once."""
    directories, sent = studies(tmp_path / "studies", STUDIES, SLICES, IMAGE_BYTES)
    disk = RecordedDisk(tmp_path / "disk")
    log = tmp_path / "acknowledged"
    with disk.mounted() as root:
        box = Part(root / "box", models=(), options=options, roles=("receive",), under=under)
        with box:
            run("sync", "--file-system", str(root))  # what the installation wrote has been there for long
            send_all(box.port, log, directories)
    taken = acknowledged(log)
    assert set(taken) == set(sent.datasets)
    return Recording(disk, sent, taken)


def test_what_was_acknowledged_survives_a_power_cut_right_after_it(tmp_path: Path) -> None:
    recording = record(tmp_path)
    for seed, moment in enumerate(recording.moments(CUTS)):
        assert not recording.lost(moment, seed or None)


def test_a_power_cut_at_any_flush_leaves_nothing_half_written(tmp_path: Path) -> None:
    recording = record(tmp_path)
    flushes = recording.disk.history.flushes
    for seed, moment in enumerate(random.Random(11).sample(flushes, min(CUTS, len(flushes)))):
        assert not recording.lost(moment - 1, seed)


def test_without_durability_the_same_power_cut_loses_what_was_acknowledged(tmp_path: Path) -> None:
    recording = record(tmp_path, "[receive]\ndurable = false\n")
    moment = recording.moments(1)[-1]
    assert len(recording.lost(moment, None)) > STUDIES * SLICES / 2


@needs_strace
def test_an_fsync_that_does_nothing_loses_what_was_acknowledged(tmp_path: Path) -> None:
    recording = record(tmp_path, under=tuple(DISK_LIES))
    moment = recording.moments(1)[-1]
    assert len(recording.lost(moment, None)) > STUDIES * SLICES / 2


@needs_strace
def test_posix_promises_enough_for_what_was_acknowledged_and_not_without_the_directories(
    tmp_path: Path,
) -> None:
    directories, sent = studies(tmp_path / "studies", STUDIES, SLICES, IMAGE_BYTES)
    log, trace = tmp_path / "acknowledged", tmp_path / "trace"
    options = ("-D", "-f", "--seccomp-bpf", "-ttt", "-y", "-qq", "-s", "4", "-e", f"trace={TRACE}")
    under = (str(STRACE), *options, "-o", str(trace))
    box = Part(tmp_path / "box", models=(), roles=("receive",), under=under)
    with box:
        send_all(box.port, log, directories)
    wall_ns = time.time_ns() - time.monotonic_ns()
    taken = sorted((when + wall_ns, uid) for uid, when in acknowledged(log).items())
    instances = box.state / "instances"
    lost = {}
    for directories_lie in (False, True):
        model = Model(instances, directories_lie)
        waiting = list(taken)
        lost[directories_lie] = 0
        for at, name, arguments in [*calls(trace), (taken[-1][0] + 1, "", "")]:
            while waiting and waiting[0][0] < at:
                lost[directories_lie] += not model.holds(instances / sent.places[waiting.pop(0)[1]])
            model.take(name, arguments)
    assert lost[False] == 0
    assert lost[True] > STUDIES * SLICES / 2


def test_the_whole_appliance_finishes_every_study_after_a_power_cut_at_any_moment(tmp_path: Path) -> None:
    directories, sent = studies(tmp_path / "studies", STUDIES)
    disk = RecordedDisk(tmp_path / "disk", 128)  # room for a model, too
    log = tmp_path / "acknowledged"
    with ScriptedPacs() as pacs:
        pacs.seen.objects = arrived = Timed()
        with disk.mounted() as root:
            box = Part(root / "box", [pacs.destination], [tiny_model(tmp_path / "model")])
            with box:
                run("sync", "--file-system", str(root))
                began = time.monotonic_ns()
                send_all(box.port, log, directories)
                box.wait_for(*["delivered"] * STUDIES)
                ended = time.monotonic_ns()
        expected = set(digests(arrived))
        before = list(zip(arrived.times, arrived, strict=True))
        assert len(expected) == 3 * STUDIES
        taken = acknowledged(log)
        flushes = [flush for flush in disk.history.flushes if began < flush < ended]
        for seed, part in enumerate((0.25, 0.6, 0.9)):
            moment = flushes[int(len(flushes) * part)] - 1
            arrived[:] = [each for when, each in before if when <= moment]
            rest = tmp_path / f"rest-{seed}"
            for uid in sent.datasets:
                if taken[uid] > moment:
                    rest.mkdir(exist_ok=True)
                    shutil.copy(sent.files[uid], rest)
            with disk.after_power_cut(moment, seed), box:
                if rest.exists():
                    send_all(box.port, tmp_path / f"again-{seed}", [rest])
                box.wait_for(*["delivered"] * STUDIES)
            assert set(digests(arrived)) == expected
            assert {len(each) for each in digests(arrived).values()} == {1}


class Timed(list[tuple[str, str, bytes]]):
    """What came to a PACS, with the times (monotonic, ns)."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[int] = []

    def append(self, each: tuple[str, str, bytes]) -> None:
        self.times.append(time.monotonic_ns())
        super().append(each)


def digests(arrived: Iterable[tuple[str, str, bytes]]) -> dict[str, set[str]]:
    """SOP Instance UID to the digests of all data sets that came under it."""
    found: dict[str, set[str]] = {}
    for uid, _, data in arrived:
        found.setdefault(uid, set()).add(hashlib.sha256(data).hexdigest())
    return found

"""A disk that is full, without inodes, read-only, or slow: the right status, nothing torn, and on again.

A small ext4 on a loop device is the disk of the state directory. A modality goes on sending what was
refused (sender.py), as modalities do; when there is room again everything must be taken and delivered.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from dicom.requestor import Destination
from dicom.send import Sender
from tests.crash.parts import (
    Part,
    Sent,
    acknowledged,
    permit,
    recovered,
    refused,
    send_all,
    sending,
    studies,
    visible,
    wait_until,
)
from tests.crash.recorded_disk import RecordedDisk, make_ext4, mounted, run, why_no_disks
from tests.fakes.pacs import ScriptedPacs
from tests.tiny import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_no_disks()), reason=f"no disk to fill: {why_no_disks()}"),
]

DISK_MIB = 112
"""Room for a model's import, which wants 64 MiB, and little more."""
STUDIES = 3
SLICES = 8
IMAGE_BYTES = 250_000
ENDED = {"delivered", "held", "declined"}
QUIET = "[assemble]\nquiet_s = 120\n"
"""Longer than a test: a study that is refused in the middle waits for the rest, and makes no revision."""
WAIT_S = 8
"""Longer than the three attempts that an item has which fails for another reason."""
REFUSALS = 8
"""So many must have been answered before there is room again."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """The root of an empty file system of some 90 MiB."""
    (tmp_path / "disk").mkdir()
    make_ext4(tmp_path / "image", DISK_MIB, "-m", "0", "-N", "4096")
    with mounted(tmp_path / "image", tmp_path / "disk", "errors=remount-ro") as root:
        yield root


def appliance(disk: Path, pacs: ScriptedPacs, tmp_path: Path, min_free_bytes: int, *roles: str) -> Part:
    box = Part(disk / "box", [pacs.destination], [tiny_model(tmp_path / "model")], QUIET, roles=roles)
    text = box.configuration.read_text()
    box.configuration.write_text(text.replace("= 1048576", f"= {min_free_bytes}"))
    return box


def fill(disk: Path, leave_bytes: int) -> Path:
    """A file that leaves so much free."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while (left := free_bytes(disk) - leave_bytes) > 0 or not leave_bytes:
            file.write(bytes(max(min(left, 1 << 20), 512)))
            os.fsync(file.fileno())
    return ballast


def free_bytes(disk: Path) -> int:
    """What `df` says."""
    free = os.statvfs(disk)
    return free.f_bavail * free.f_frsize


def fill_inodes(disk: Path, leave: int) -> list[Path]:
    """Empty files that leave so many inodes free; a new directory needs an inode, too."""
    many = disk / "many"
    many.mkdir()
    made: list[Path] = []
    while os.statvfs(disk).f_favail > leave:
        made.append(many / f"{len(made)}")
        made[-1].touch()
    return made


def whole_so_far(box: Part, sent: Sent, log: Path) -> None:
    """What is visible is whole, and what was acknowledged is visible."""
    seen = visible(box.state / "instances")
    assert {sent.places[uid] for uid in acknowledged(log)} <= set(seen)
    whole = {sent.places[uid]: dataset for uid, dataset in sent.datasets.items()}
    assert all(dataset == whole[name] for name, dataset in seen.items())


def audit_is_whole(box: Part) -> bool:
    journal = box.journal()
    try:
        return journal.read("PRAGMA integrity_check")[0][0] == "ok" and journal.broken_audit() is None
    finally:
        journal.close()


@pytest.mark.parametrize("min_free_bytes", [0, 2_000_000], ids=["to the last byte", "to the watermark"])
def test_a_full_disk_refuses_keeps_what_it_took_and_goes_on(
    disk: Path, tmp_path: Path, min_free_bytes: int
) -> None:
    directories, sent = studies(tmp_path / "studies", STUDIES, SLICES, IMAGE_BYTES)
    log = tmp_path / "acknowledged"
    with ScriptedPacs() as pacs, appliance(disk, pacs, tmp_path, min_free_bytes) as box:
        ballast = fill(disk, 3_500_000)
        with sending(box.port, log, directories) as modality:
            permit(modality)
            wait_until(lambda: len(refused(log)) >= REFUSALS, modality)
            assert acknowledged(log)
            whole_so_far(box, sent, log)
            # three associations may each have begun an instance, and some hundred bytes are the journal's
            assert free_bytes(disk) > min_free_bytes - STUDIES * 2 * IMAGE_BYTES
            ballast.unlink()
            assert modality.wait(60) == 0
        box.wait_for(*["delivered"] * STUDIES)
        assert audit_is_whole(box)
        box.stop()
        assert set(refused(log)) == {"A700"}
        assert recovered(box.state / "instances", sent) == set(sent.datasets)
        box.start()
    # more, where a study was closed by release and geometry before its refused images came: a revision
    assert len({uid for uid, _, _ in pacs.seen.objects}) >= 3 * STUDIES


def test_no_inodes_refuses_keeps_what_it_took_and_goes_on(disk: Path, tmp_path: Path) -> None:
    directories, sent = studies(tmp_path / "studies", STUDIES, SLICES)
    log = tmp_path / "acknowledged"
    with ScriptedPacs() as pacs, appliance(disk, pacs, tmp_path, 0) as box:
        made = fill_inodes(disk, 1024 + 16)
        with sending(box.port, log, directories) as modality:
            permit(modality)
            wait_until(lambda: len(refused(log)) >= REFUSALS, modality)
            whole_so_far(box, sent, log)
            for path in made:
                path.unlink()
            assert modality.wait(60) == 0
        box.wait_for(*["delivered"] * STUDIES)
        assert set(refused(log)) == {"A700"}
        assert audit_is_whole(box)
        box.stop()
        assert recovered(box.state / "instances", sent) == set(sent.datasets)
        box.start()


@pytest.mark.parametrize("what", ["inodes", "bytes"])
def test_results_that_find_no_room_wait_for_it_and_are_delivered(
    disk: Path, tmp_path: Path, what: str
) -> None:
    directories, sent = studies(tmp_path / "studies", 1, SLICES)
    with ScriptedPacs() as pacs:
        box = appliance(disk, pacs, tmp_path, 0, "receive")
        with box, box.other("work") as work, box.other("deliver"):
            assert work.process is not None
            work.process.send_signal(signal.SIGSTOP)
            send_all(box.port, tmp_path / "acknowledged", directories)
            made = fill_inodes(disk, 0) if what == "inodes" else [fill(disk, 0)]
            work.process.send_signal(signal.SIGCONT)
            began = time.monotonic()
            if what == "inodes":  # of bytes there are none for the log either
                wait_until_logged(work, "space left")
            with pytest.raises(AssertionError):
                box.wait(lambda found: any(each.study.state in ENDED for each in found), WAIT_S)
            assert time.monotonic() - began > WAIT_S
            for path in made:
                path.unlink()
            box.wait_for("delivered")
            assert audit_is_whole(box)
        assert recovered(box.state / "instances", sent) == set(sent.datasets)
    assert len(pacs.seen.objects) == 3


def wait_until_logged(box: Part, text: str) -> None:
    """Wait until its log has `text`."""
    assert box.process is not None
    wait_until(lambda: text in box.log.read_text(), box.process)


def test_a_read_only_file_system_refuses_and_loses_nothing(disk: Path, tmp_path: Path) -> None:
    directories, sent = studies(tmp_path / "studies", STUDIES, SLICES, IMAGE_BYTES)
    log = tmp_path / "acknowledged"
    device = run("findmnt", "--noheadings", "--output", "SOURCE", str(disk)).strip().removeprefix("/dev/")
    with ScriptedPacs() as pacs:
        box = appliance(disk, pacs, tmp_path, 0)
        box.start()
        with sending(box.port, log, directories) as modality:
            permit(modality, SLICES)
            wait_until(lambda: len(acknowledged(log)) >= SLICES, modality)
            Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("a test")  # as a damaged disk does
            permit(modality)
            wait_until(lambda: len(refused(log)) >= REFUSALS, modality)
            whole_so_far(box, sent, log)
            box.kill()
            run("umount", str(disk))
            run("fsck.ext4", "-p", f"/dev/{device}", allowed=1)  # errors corrected
            run("mount", "-t", "ext4", f"/dev/{device}", str(disk))
            with box:
                whole_so_far(box, sent, log)  # names that the disk had not yet are there again
                assert modality.wait(60) == 0
                box.wait_for(*["delivered"] * STUDIES)
                assert audit_is_whole(box)
        assert set(refused(log)) == {"A700"}
        assert recovered(box.state / "instances", sent) == set(sent.datasets)


def test_a_slow_disk_makes_success_late_and_nothing_else(tmp_path: Path) -> None:
    directories, sent = studies(tmp_path / "studies", 4, 3)
    slow = RecordedDisk(tmp_path / "disk", flush_s=0.15)
    log = tmp_path / "acknowledged"
    with slow.mounted() as root:
        box = Part(root / "box", models=(), roles=("receive",))
        with box, sending(box.port, log, directories) as modality:
            permit(modality)
            wait_until(lambda: bool(acknowledged(log)), modality)
            began = time.monotonic()
            with Sender(Destination("insitu", "INSITU", "127.0.0.1", box.port), "STORESCU") as other:
                other.echo()
            assert time.monotonic() - began < 1.0
            assert modality.wait(60) == 0
    assert not refused(log)
    with slow.after_power_cut(max(acknowledged(log).values())) as root:
        assert recovered(root / "box" / "state" / "instances", sent) == set(sent.datasets)

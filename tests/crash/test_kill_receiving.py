"""kill -9 while four associations send, again and again: nothing acknowledged is lost, nothing done twice.

`receive` alone is killed; `work` and `deliver` go on, as separate processes, so that their view of what
arrived must survive its deaths. Every kill is at a seeded moment: so many instances after the last one,
and a fraction of an instance later.
"""

import hashlib
import io
import random
import subprocess
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from dicom.errors import PeerError
from dicom.requestor import Association, Destination, Timeouts
from dicom.send import read_file_meta
from tests.crash.parts import (
    ForkedPart,
    acknowledged,
    has_acknowledged,
    permit,
    recovered,
    sending,
    studies,
    visible,
    wait_until,
)
from tests.fakes.pacs import ScriptedPacs
from tests.tiny import tiny_model

pytestmark = pytest.mark.slow

KILLS = 32
ASSOCIATIONS = 4
STUDIES = 44
SLICES = 8
IMAGE_BYTES = 60_000
IN_FLIGHT = 10
"""What the sender may send between two kills, so that it does not end before they do."""
QUIET_S = 120
"""Longer than the test: each study closes by its announced count, after however many kills."""


def test_kills_in_mid_association_lose_nothing_and_every_study_is_delivered_once(tmp_path: Path) -> None:
    groups, sent = studies(tmp_path / "studies", STUDIES, SLICES, IMAGE_BYTES, ASSOCIATIONS)
    log = tmp_path / "acknowledged"
    chance = random.Random(42)
    with ScriptedPacs() as pacs:
        box = ForkedPart(
            tmp_path / "box",
            [pacs.destination],
            [tiny_model(tmp_path / "model")],
            f"[assemble]\nquiet_s = {QUIET_S}\n",
            roles=("receive",),
        )
        with box.other("work"), box.other("deliver"), box.served():
            box.start()
            with sending(box.port, log, groups) as modality:
                for _ in range(KILLS):
                    permit(modality, IN_FLIGHT)
                    enough = len(acknowledged(log)) + chance.randint(1, 6)
                    wait_until(partial(has_acknowledged, log, enough), modality)
                    with suppress(subprocess.TimeoutExpired):
                        modality.wait(chance.uniform(0, 0.01))
                    box.kill()
                    promised = set(acknowledged(log))
                    box.start()
                    there = set(visible(box.state / "instances"))
                    assert {sent.places[uid] for uid in promised} <= there
                kill_in_the_middle_of(next(iter(sent.files.values())), box)
                box.start()
                permit(modality)
                assert modality.wait(90) == 0
            details = box.wait_for(*["delivered"] * STUDIES)
            box.stop()
        assert "half received" in box.log.read_text()
        assert not [path for path in (box.state / "instances" / "incoming").iterdir() if path.stat().st_size]
    assert {detail.study.revision for detail in details} == {1}
    assert recovered(box.state / "instances", sent) == set(sent.datasets) == set(acknowledged(log))
    uids = [uid for uid, _, _ in pacs.seen.objects]
    assert len(uids) == len(set(uids)) == 3 * STUDIES
    assert len({hashlib.sha256(data).digest() for _, _, data in pacs.seen.objects}) == 3 * STUDIES


def kill_in_the_middle_of(path: Path, box: ForkedPart) -> None:
    """Send one instance, and kill the receiver when half of it has arrived."""
    meta = read_file_meta(path)
    half = path.read_bytes()[meta.data_set_offset :][: meta.data_set_bytes // 2]

    class Half(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(size) or self._killed()

        def _killed(self) -> bytes:
            slots = box.state / "instances" / "incoming"
            until = time.monotonic() + 10
            while not any(slot.stat().st_size for slot in slots.iterdir()):
                assert time.monotonic() < until
            box.kill()
            return b""

    insitu = Destination("insitu", "INSITU", "127.0.0.1", box.port)
    association = Association(insitu, "STORESCU", [meta.syntax], Timeouts())
    with pytest.raises((PeerError, OSError)):
        association.store(meta.syntax, meta.sop_instance_uid, Half(half), meta.data_set_bytes)

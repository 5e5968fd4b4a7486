"""The roles as processes of their own, as systemd runs them: together, and each killed while studies flow."""

import hashlib
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.crash.parts import (
    Part,
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

ROLES = ("receive", "work", "deliver")
STUDIES = 18
QUIET_S = 120
"""Longer than the test: each study closes by its announced count, whoever died meanwhile."""


@pytest.mark.parametrize("victims", [(), ROLES], ids=["undisturbed", "each killed twice"])
def test_three_processes_make_one_appliance(tmp_path: Path, victims: tuple[str, ...]) -> None:
    groups, sent = studies(tmp_path / "studies", STUDIES, slices=8, groups=3)
    log = tmp_path / "acknowledged"
    with ScriptedPacs() as pacs, ExitStack() as running:
        box = Part(
            tmp_path / "box",
            [pacs.destination],
            [tiny_model(tmp_path / "model")],
            f"[assemble]\nquiet_s = {QUIET_S}\n",
        )
        parts = {role: box.other(role) for role in ROLES}
        for part in parts.values():
            running.enter_context(part)
        with sending(box.port, log, groups) as modality:
            for role in victims * 2:
                enough = len(acknowledged(log)) + 6
                permit(modality, 12)
                wait_until(partial(has_acknowledged, log, enough), modality)
                parts[role].kill()
                parts[role].start()
            permit(modality)
            assert modality.wait(90) == 0
        details = box.wait_for(*["delivered"] * STUDIES)
    assert {detail.study.revision for detail in details} == {1}
    assert len(visible(box.state / "instances")) == len(sent.datasets)
    assert recovered(box.state / "instances", sent) == set(sent.datasets)
    found: dict[str, list[bytes]] = {}
    for uid, _, data in pacs.seen.objects:
        found.setdefault(uid, []).append(hashlib.sha256(data).digest())
    assert len(found) == 3 * STUDIES
    assert {len(set(digests)) for digests in found.values()} == {1}
    # What was sent and not yet entered as sent when `deliver` died is sent again: three objects a death.
    assert len(pacs.seen.objects) - len(found) <= (3 * 2 if victims else 0)

"""The stages of a study's work and the table of moves between them.

Rules only: facts in, decision out, no IO. A *work item* is one stage's unit of work:
ASSEMBLE of one revision of a study; INFER, PRODUCE and DELIVER of one model on one
input. Its life ends in a named state, and never silently.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final


class Stage(StrEnum):
    """Where a work item is."""

    ASSEMBLE = "assemble"
    INFER = "infer"
    PRODUCE = "produce"
    DELIVER = "deliver"
    DELIVERED = "delivered"
    DECLINED = "declined"
    HELD = "held"


class Outcome(StrEnum):
    """What one attempt at a stage came to."""

    DONE = "done"
    RETRY = "retry"
    REDO = "redo"
    DECLINE = "decline"
    HOLD = "hold"


END_STAGES: Final = frozenset({Stage.DELIVERED, Stage.DECLINED, Stage.HELD})

NEXT_STAGE: Final[Mapping[tuple[Stage, Outcome], Stage]] = {
    (Stage.ASSEMBLE, Outcome.DONE): Stage.DELIVERED,  # its models' own items now carry the study
    (Stage.ASSEMBLE, Outcome.RETRY): Stage.ASSEMBLE,  # the cause may pass: disk busy
    (Stage.ASSEMBLE, Outcome.DECLINE): Stage.DECLINED,  # no model wants any of its series
    (Stage.ASSEMBLE, Outcome.HOLD): Stage.HELD,
    (Stage.INFER, Outcome.DONE): Stage.PRODUCE,
    (Stage.INFER, Outcome.RETRY): Stage.INFER,  # the cause may pass: the worker died
    (
        Stage.INFER,
        Outcome.DECLINE,
    ): Stage.DECLINED,  # out of the model's scope, said with the reason
    (Stage.INFER, Outcome.HOLD): Stage.HELD,  # it will not pass: a person must look
    (Stage.PRODUCE, Outcome.DONE): Stage.DELIVER,
    (Stage.PRODUCE, Outcome.RETRY): Stage.PRODUCE,
    (Stage.PRODUCE, Outcome.DECLINE): Stage.DECLINED,  # a later revision's results were made first
    (Stage.PRODUCE, Outcome.REDO): Stage.INFER,  # the findings were in memory, and the process ended
    (Stage.PRODUCE, Outcome.HOLD): Stage.HELD,
    (Stage.DELIVER, Outcome.DONE): Stage.DELIVERED,
    (Stage.DELIVER, Outcome.RETRY): Stage.DELIVER,
    (Stage.DELIVER, Outcome.HOLD): Stage.HELD,  # parked: the destination stayed dead
}  # a pair that is not here is our bug, and raises


def next_stage(stage: Stage, outcome: Outcome) -> Stage:
    """The stage that follows.

    Raises:
        RuntimeError: the table has no such move (our bug).
    """
    try:
        return NEXT_STAGE[stage, outcome]
    except KeyError:
        raise RuntimeError(f"no move from {stage} on {outcome}") from None


MAX_ATTEMPTS: Final[Mapping[Stage, int]] = {
    Stage.ASSEMBLE: 3,
    Stage.INFER: 2,  # the second on a fresh worker; a model that fails twice will fail again
    Stage.PRODUCE: 3,
}
"""Attempts at one stage before the item is held. DELIVER counts in each delivery (`edge.deliveries`)."""

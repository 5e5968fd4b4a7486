"""The table of moves: every pair, and every pair that is not in it."""

from itertools import product

import pytest

from edge.study import END_STAGES, MAX_ATTEMPTS, NEXT_STAGE, Outcome, Stage, next_stage


@pytest.mark.parametrize(("stage", "outcome"), list(product(Stage, Outcome)))
def test_a_pair_moves_as_the_table_says_and_a_pair_that_is_absent_raises(
    stage: Stage, outcome: Outcome
) -> None:
    if (stage, outcome) in NEXT_STAGE:
        assert next_stage(stage, outcome) is NEXT_STAGE[stage, outcome]
    else:
        with pytest.raises(RuntimeError, match=f"no move from {stage} on {outcome}"):
            next_stage(stage, outcome)


def test_an_end_is_never_left_by_the_table() -> None:
    assert not [pair for pair in NEXT_STAGE if pair[0] in END_STAGES]


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in END_STAGES])
def test_from_every_stage_an_item_can_be_held_and_can_be_delivered(stage: Stage) -> None:
    assert next_stage(stage, Outcome.HOLD) is Stage.HELD
    seen, todo = set(), {stage}
    while todo:
        seen |= todo
        todo = {new for (old, _), new in NEXT_STAGE.items() if old in todo} - seen
    assert Stage.DELIVERED in seen


def test_every_stage_that_a_lane_runs_has_a_limit_of_attempts() -> None:
    assert set(MAX_ATTEMPTS) == {Stage.ASSEMBLE, Stage.INFER, Stage.PRODUCE}
    assert all(limit >= 2 for limit in MAX_ATTEMPTS.values())

"""When a study closes, and by which sign."""

from dataclasses import replace

import pytest

from edge.closing import OPEN_ASSOCIATION_FACTOR, OpenStudy, Sign, closing_sign

WHOLE = OpenStudy(
    instances=20,
    announced=None,
    associations_open=0,
    released=True,
    quiet_s=0.0,
    volumes={"1.2": True},
    images=0,
)
QUIET_S = 5.0


def test_a_complete_volume_and_the_release_close_a_study_at_once() -> None:
    assert closing_sign(WHOLE, QUIET_S, on_complete_volume=True) is Sign.COMPLETE_VOLUME


@pytest.mark.parametrize(
    "missing",
    [
        {"associations_open": 1},
        {"released": False},
        {"volumes": {}},
        {"volumes": {"1.2": True, "1.3": False}},
        {"images": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_without_any_one_of_the_facts_it_waits_for_the_quiet_timer(missing: dict[str, object]) -> None:
    study = replace(WHOLE, **missing)  # type: ignore[arg-type]  # one field of OpenStudy each
    assert closing_sign(study, QUIET_S, on_complete_volume=True) is None
    patience_s = QUIET_S * (OPEN_ASSOCIATION_FACTOR if study.associations_open else 1)
    assert closing_sign(replace(study, quiet_s=patience_s - 0.01), QUIET_S, on_complete_volume=True) is None
    assert closing_sign(replace(study, quiet_s=patience_s), QUIET_S, on_complete_volume=True) is Sign.QUIET


def test_the_option_turns_the_sign_of_the_complete_volume_off() -> None:
    assert closing_sign(WHOLE, QUIET_S, on_complete_volume=False) is None


@pytest.mark.parametrize(("announced", "sign"), [(20, Sign.COUNT), (19, Sign.COUNT), (21, None), (0, None)])
def test_the_announced_count_closes_while_the_association_is_still_open(
    announced: int, sign: Sign | None
) -> None:
    study = replace(WHOLE, announced=announced, associations_open=1, released=False)
    assert closing_sign(study, QUIET_S, on_complete_volume=True) is sign

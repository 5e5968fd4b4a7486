"""When a study closes, and by which sign."""

from dataclasses import replace

import pytest

from dicom.header import InstanceHeader
from edge.closing import (
    OPEN_ASSOCIATION_FACTOR,
    OpenStudy,
    Sign,
    acquisitions_complete,
    announced_count,
    closing_sign,
)
from edge.pending import Pending
from tests.edge.records_fixture import header, key_of

WHOLE = OpenStudy(
    instances=20,
    announced=None,
    associations_open=0,
    released=True,
    quiet_s=0.0,
    volumes={"1.2": True},
    at_once=True,
    images=0,
)
QUIET_S = 5.0


def test_a_complete_volume_and_the_release_close_a_study_at_once() -> None:
    assert closing_sign(WHOLE, QUIET_S, on_complete_volume=True) is Sign.COMPLETE_VOLUME


@pytest.mark.parametrize(
    "missing",
    [
        {"associations_open": 1},
        {"at_once": False},
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


@pytest.mark.parametrize(
    ("facts", "sign"),
    [
        ({"committed": True, "associations_open": 1, "released": False}, Sign.COMMITMENT),
        ({"asked": 20, "released": False}, Sign.ASKED),
        ({"asked": 20, "associations_open": 1}, None),
        ({"asked": 21, "released": False}, None),  # one is still on its way to us
        ({"asked": 19, "released": False}, None),  # or to the PACS
        ({"acquisitions": True, "volumes": {}, "images": 1}, Sign.ACQUISITION),
        ({"acquisitions": True, "volumes": {}, "released": False}, None),
        ({"acquisitions": True, "volumes": {}, "associations_open": 1}, None),
        ({"acquisitions": True, "volumes": {"1.2": False}}, None),
    ],
)
def test_every_positive_sign_closes_and_none_while_more_may_come(
    facts: dict[str, object], sign: Sign | None
) -> None:
    study = replace(WHOLE, **facts)  # type: ignore[arg-type]  # fields of OpenStudy
    assert closing_sign(study, QUIET_S, on_complete_volume=True) is sign


def images(*announced: int | None, acquisition: int = 1) -> list[InstanceHeader]:
    return [
        replace(header(number), images_in_acquisition=count, acquisition_number=acquisition)
        for number, count in enumerate(announced)
    ]


@pytest.mark.parametrize(
    ("headers", "complete"),
    [
        (images(3, 3, 3), True),
        (images(3, 3), False),
        (images(3, 3, None), False),
        (images(0), False),
        ([], False),
        ([*images(2, 2), *images(1, acquisition=2)], True),
        ([*images(2, 2), *images(2, acquisition=2)], False),
    ],
)
def test_acquisitions_are_complete_when_each_has_the_images_that_each_of_its_images_announces(
    headers: list[InstanceHeader], complete: bool
) -> None:
    assert acquisitions_complete(headers) is complete


def test_the_announced_count_is_the_greatest_that_an_image_names() -> None:
    named = [replace(header(n), number_of_study_related_instances=n or None) for n in (0, 7, 3)]
    assert announced_count(named) == 7
    assert announced_count([header(1)]) is None


def test_one_association_an_image_waits_for_the_quiet_timer_and_one_for_all_does_not() -> None:
    headers = {key_of(str(number)): header(number) for number in range(3)}
    pending = Pending("1.2.3", dict(headers), volumes={"1.2.3.4": True})
    pending.brought["1.2.3.4", "a"] = 3
    assert pending.facts_now([pending], None, 0.0).at_once
    pending.brought["1.2.3.4", "a"] = 2
    pending.brought["1.2.3.4", "b"] = 1
    assert not pending.facts_now([pending], None, 0.0).at_once

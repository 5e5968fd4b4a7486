"""When a study closes: the rule, and the facts that it looks at. No IO.

A study closes on the earliest positive sign that it is whole; the quiet timer is the
last resort. The sign is kept with the study. An image that comes later makes a revision.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

OPEN_ASSOCIATION_FACTOR: Final = 6.0
"""While its association stays open a study may be silent this many times longer: a sender
that keeps its association for hours must not keep its studies open as long."""


class Sign(StrEnum):
    """What closed a study."""

    COUNT = "the number of images that its header names"
    COMPLETE_VOLUME = "complete volume and release of the association"
    QUIET = "quiet timer"
    ROOM = "more studies open than max_open_studies"


@dataclass(frozen=True, slots=True)
class OpenStudy:
    """What is known of an open study at one moment."""

    instances: int
    announced: int | None
    """NumberOfStudyRelatedInstances (0020,1208), if its images carry it."""
    associations_open: int
    released: bool
    """At least one association that sent it ended by A-RELEASE, and none by abort or loss."""
    quiet_s: float
    """Since the last image came or the last association ended."""
    volumes: Mapping[str, bool]
    """Series that a model wants as a volume: is it geometrically complete?"""
    images: int
    """Series that a model wants image by image: no sign tells when these are whole."""


def closing_sign(study: OpenStudy, quiet_s: float, *, on_complete_volume: bool) -> Sign | None:
    """The sign on which `study` closes now, or None."""
    if study.announced is not None and study.instances >= study.announced > 0:
        return Sign.COUNT
    if (
        on_complete_volume
        and study.released
        and study.associations_open == 0
        and study.images == 0
        and study.volumes
        and all(study.volumes.values())
    ):
        return Sign.COMPLETE_VOLUME
    patience_s = quiet_s * (OPEN_ASSOCIATION_FACTOR if study.associations_open else 1.0)
    return Sign.QUIET if study.quiet_s >= patience_s else None

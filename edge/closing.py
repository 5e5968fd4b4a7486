"""When a study closes: the rule, and the facts that it looks at. No IO.

A study closes on the earliest positive sign that it is whole; the quiet timer is the
last resort. The sign is kept with the study. An image that comes later makes a revision.

A sign that looks at what came, and not at what was announced for the whole study, counts only
while no association is open that brought some of it: on that one more may come.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from dicom.header import InstanceHeader

OPEN_ASSOCIATION_FACTOR: Final = 6.0
"""While its association stays open a study may be silent this many times longer: a sender
that keeps its association for hours must not keep its studies open as long."""


class Sign(StrEnum):
    """What closed a study."""

    COUNT = "the number of images that its header names"
    COMMITMENT = "storage commitment asked for all of its images"
    ASKED = "the number of images that the PACS names"
    COMPLETE_VOLUME = "complete volume and release of the association"
    ACQUISITION = "the images in each acquisition that its header names, and release of the association"
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
    at_once: bool
    """Each of these series came in one association, from its first image to its last."""
    images: int
    """Series that a model wants image by image: no geometry tells when these are whole."""
    committed: bool = False
    """Requests for storage commitment name every image that is here, and none that is not; and no
    association but theirs is open (PS3.4 Annex J)."""
    asked: int | None = None
    """What the PACS said when it was asked after the last image came."""
    acquisitions: bool = False
    """Each image says how many its acquisition has, and all of those are here."""


def closing_sign(study: OpenStudy, quiet_s: float, *, on_complete_volume: bool) -> Sign | None:
    """The sign on which `study` closes now, or None."""
    if study.announced is not None and study.instances >= study.announced > 0:
        return Sign.COUNT
    if study.committed:
        return Sign.COMMITMENT
    if study.associations_open == 0:
        # More than ours: still on their way to us, or our own results. Fewer: still on their way there.
        if study.asked == study.instances:
            return Sign.ASKED
        more_announced = study.announced is not None and study.instances < study.announced
        if study.released and on_complete_volume and not more_announced:
            whole = study.images == 0 and study.volumes and all(study.volumes.values())
            if whole and study.at_once:
                return Sign.COMPLETE_VOLUME
            if study.acquisitions and all(study.volumes.values()):
                return Sign.ACQUISITION
    patience_s = quiet_s * (OPEN_ASSOCIATION_FACTOR if study.associations_open else 1.0)
    return Sign.QUIET if study.quiet_s >= patience_s else None


def announced_count(headers: Iterable[InstanceHeader]) -> int | None:
    """The greatest NumberOfStudyRelatedInstances (0020,1208) of the images, if any has it."""
    return max(
        (count for header in headers if (count := header.number_of_study_related_instances)), default=None
    )


def acquisitions_complete(headers: Iterable[InstanceHeader]) -> bool:
    """Whether every image says how many its acquisition has (0020,1002), and all of those are here."""
    here: dict[tuple[str, int | None], int] = {}
    wanted: dict[tuple[str, int | None], int] = {}
    for header in headers:
        if not header.images_in_acquisition or header.images_in_acquisition < 1:
            return False
        acquisition = header.series_instance_uid, header.acquisition_number
        here[acquisition] = here.get(acquisition, 0) + 1
        wanted[acquisition] = max(wanted.get(acquisition, 0), header.images_in_acquisition)
    return bool(here) and all(here[each] >= count for each, count in wanted.items())

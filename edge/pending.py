"""One open study in memory: what came, by which associations, and what is known of it so far.

Facts only: it reads no file and no journal, and decides nothing. When it closes is
`edge.closing`'s rule, who asks that is `edge.assemble`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from dicom.header import InstanceHeader
from edge.arrivals import AssociationEnded, CommitmentAsked
from edge.closing import OpenStudy, acquisitions_complete, announced_count
from edge.matching import SeriesFacts, facts, match
from edge.serving import ServedModel

MAX_REQUESTS: Final = 32
"""Requests for commitment kept of one open study: some modalities ask once for each image."""


@dataclass
class Pending:
    """One open study; belongs to the thread that polls."""

    uid: str
    """Its Study Instance UID."""
    headers: dict[str, InstanceHeader] = field(default_factory=dict)
    """Instance key to header."""
    associations: set[str] = field(default_factory=set)
    """Open ones that brought some of it."""
    brought: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many new images of a series (Series Instance UID) an association brought."""
    released: bool = False
    cut_off: bool = False
    changed: float = 0.0
    """Monotonic seconds of the last arrival or end of an association."""
    looked_at: int = 0
    """Number of instances when its series were last matched."""
    volumes: dict[str, bool] = field(default_factory=dict)
    images: int = 0
    facts: dict[str, SeriesFacts] = field(default_factory=dict)
    """Of its series, when they were last matched; their instances in the order of `by_series`."""
    requests: list[CommitmentAsked] = field(default_factory=list)
    flaws: int = 0
    """Arrivals that could not be entered."""

    def ended(self, entry: AssociationEnded, now: float) -> None:
        """An association is over; `now` in monotonic seconds."""
        if entry.association in self.associations:
            self.associations.discard(entry.association)
            self.changed = now
            self.released |= entry.how == "released"
            self.cut_off |= entry.how != "released"

    def requested(self, entry: CommitmentAsked) -> None:
        """Storage commitment was asked for some instances; those of other studies may be among them."""
        if not self.headers.keys().isdisjoint(entry.instance_keys):
            self.requests = [*self.requests[-MAX_REQUESTS + 1 :], entry]

    def look(self, models: Sequence[ServedModel]) -> None:
        """Match the series: which a model wants as a volume, and whether it is whole; which by image."""
        self.volumes, self.images, self.facts = {}, 0, {}
        for uid, members in by_series(self.headers).items():
            headers = list(members.values())
            series = self.facts[uid] = facts(headers)
            announced = max((header.images_in_acquisition or 0 for header in headers), default=0)
            for model in models:
                wants = model.manifest.inputs[0]
                verdict = match(wants, series)
                if wants.kind == "image":
                    self.images += verdict.accepted
                elif verdict.accepted or verdict.only_geometry:
                    # Slices sent in order look whole at every moment: what they announce counts, too.
                    self.volumes[uid] = verdict.accepted and len(headers) >= announced

    def facts_now(self, open_studies: Iterable["Pending"], asked: int | None, now: float) -> OpenStudy:
        """What the rule of closing looks at.

        Args:
            open_studies: all of them: a request for commitment may name images of several.
            asked: what the PACS said of the images that are here now.
            now: monotonic seconds.
        """
        return OpenStudy(
            instances=len(self.headers),
            announced=announced_count(self.headers.values()),
            associations_open=len(self.associations),
            released=self.released and not self.cut_off,
            quiet_s=now - self.changed,
            volumes=self.volumes,
            at_once=self._came_at_once(),
            images=self.images,
            committed=self._is_committed(open_studies),
            asked=asked,
            acquisitions=not self.associations and acquisitions_complete(self.headers.values()),
        )

    def _came_at_once(self) -> bool:
        """Whether each series that a model wants as a volume came whole in one association.

        Of a sender that opens an association for each image, every release looks like the last.
        """
        sizes = Counter(header.series_instance_uid for header in self.headers.values())
        most: dict[str, int] = {}
        for (uid, _), count in self.brought.items():
            most[uid] = max(most.get(uid, 0), count)
        return all(most.get(uid, 0) == sizes[uid] for uid in self.volumes)

    def _is_committed(self, open_studies: Iterable["Pending"]) -> bool:
        """Whether requests for commitment name all that is here, and nothing that is not."""
        if not self.requests or self.associations - {each.association for each in self.requests}:
            return False
        named = {key for each in self.requests for key in each.instance_keys}
        if not named.issuperset(self.headers):
            return False
        missing = named.difference(self.headers)
        for other in open_studies if missing else ():
            missing.difference_update(other.headers)
        return not missing


def by_series(headers: Mapping[str, InstanceHeader]) -> dict[str, dict[str, InstanceHeader]]:
    """The instances of each series, in the order of their keys: the same whatever came first."""
    series: dict[str, dict[str, InstanceHeader]] = {}
    for key in sorted(headers):
        series.setdefault(headers[key].series_instance_uid, {})[key] = headers[key]
    return series

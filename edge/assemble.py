"""assemble: one picture of each open study; closes it; says which model runs on what, and why.

Owns the reading of the arrival log, the journal's rows of what arrived, the open studies,
and the ASSEMBLE items. Slices are decoded ahead while their study still arrives. Does not
build volumes (`edge.infer`) and does not judge a model's output.

*Diagnostics*: logs each close with its sign, and instances whose file is gone.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from dicom.errors import DicomError
from dicom.header import InstanceHeader
from dicom.volume import read_slice
from edge.arrivals import Arrival, ArrivalReader, AssociationEnded, Position
from edge.closing import OpenStudy, Sign, closing_sign
from edge.handover import Slices
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.matching import SeriesFacts, Verdict, facts, match
from edge.options import Assemble
from edge.records import Decision, Item, NewItem, Received
from edge.serving import ServedModel, Serving
from model_store.errors import ModelStoreError

log = logging.getLogger(__name__)

BATCH: Final = 512
"""Arrivals entered in one transaction: bounds how long it holds the journal (about 30 ms)."""


@dataclass
class _Pending:
    """One open study, in memory."""

    headers: dict[str, InstanceHeader] = field(default_factory=dict)
    associations: set[str] = field(default_factory=set)
    released: bool = False
    cut_off: bool = False
    changed: float = 0.0
    """Monotonic seconds of the last arrival or end of an association."""
    looked_at: int = 0
    """Number of instances when its series were last matched."""
    volumes: dict[str, bool] = field(default_factory=dict)
    images: int = 0


class Assembler:
    """The open studies, and the stage ASSEMBLE. `poll` and `handle` may run in different threads."""

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        arrivals: ArrivalReader,
        serving: Serving,
        settings: Assemble,
        slices: Slices,
        decoders: Executor,
        clock: Callable[[], datetime],
    ) -> None:
        self._journal = journal
        self._instances = instances
        self._arrivals = arrivals
        self._serving = serving
        self._settings = settings
        self._slices = slices
        self._decoders = decoders
        self._clock = clock
        self._position = Position.parse(journal.fact("arrivals"))
        self._open: dict[str, _Pending] = {}

    def reconcile(self) -> None:
        """Bring journal and files together at start: the files are the truth.

        Enters instances that the journal does not know (a crash after their fsync, a lost
        journal) and forgets those whose file is gone. Open studies then wait for the quiet
        timer: which associations were open is not known any more.
        """
        known = self._journal.known_instances()
        unknown = [_received(arrival) for arrival in self._instances.scan(skip=known)]
        if unknown:
            self._journal.enter(unknown)
            log.warning("%d instances were on disk and not in the journal: entered", len(unknown))
        on_disk = self._instances.stored_keys()
        gone = known - set(on_disk)
        if gone:
            self._journal.forget_instances(sorted(gone))
            log.error("%d instances are in the journal and not on disk: forgotten", len(gone))
        for row in self._journal.open_studies():
            key = row["study_key"]
            self._open[key] = _Pending(self._journal.headers(key), changed=time.monotonic())

    def poll(self) -> bool:
        """Enter what arrived since the last call, and close the studies that are whole; did one close?"""
        while True:
            read_up_to = self._position
            entries, position = self._arrivals.read(read_up_to, BATCH)
            if not entries:
                break
            self._enter(entries, position)
            if position.file != read_up_to.file:
                self._arrivals.drop_before(position)
        closed = [key for key in list(self._open) if self._close_if_whole(key)]
        while len(self._open) > self._settings.max_open_studies:
            closed.append(min(self._open, key=lambda key: self._open[key].changed))
            self._close(closed[-1], Sign.ROOM)
        return bool(closed)

    def _enter(self, entries: Sequence[Arrival | AssociationEnded], position: Position) -> None:
        received = [
            _received(entry)
            for entry in entries
            if isinstance(entry, Arrival) and self._path(entry).exists()  # else deleted since
        ]
        new = {(each.study_key, each.instance_key) for each in self._journal.enter(received, str(position))}
        self._position = position
        now = time.monotonic()
        for entry in entries:
            if isinstance(entry, Arrival):
                if (entry.study_key, entry.instance_key) in new:
                    self._add(entry)
                if pending := self._open.get(entry.study_key):  # sent again is a sign of life, too
                    pending.associations.add(entry.association)
                    pending.changed = now
                continue
            for pending in self._open.values():
                if entry.association in pending.associations:
                    pending.associations.discard(entry.association)
                    pending.changed = now
                    pending.released |= entry.how == "released"
                    pending.cut_off |= entry.how != "released"

    def _add(self, arrival: Arrival) -> None:
        pending = self._open.get(arrival.study_key)
        if pending is None:
            pending = _Pending(self._journal.headers(arrival.study_key))
            self._open[arrival.study_key] = pending
        pending.headers[arrival.instance_key] = arrival.header
        self._decode_ahead(arrival)

    def _path(self, arrival: Arrival) -> Path:
        return self._instances.path(arrival.study_key, arrival.instance_key)

    def _decode_ahead(self, arrival: Arrival) -> None:
        wanted = {
            modality
            for model in self._serving.active()
            for each in model.manifest.inputs
            if each.kind == "volume"
            for modality in each.modality
        }
        if arrival.header.modality in wanted and arrival.header.number_of_frames == 1:
            self._decoders.submit(self._decode, arrival)

    def _decode(self, arrival: Arrival) -> None:
        try:
            pixels = read_slice(self._path(arrival), arrival.header).pixels
        except (DicomError, OSError) as error:
            # said again, and acted upon, when the model that wants it runs
            log.info("instance %s cannot be decoded ahead: %s", arrival.instance_key[:12], error)
            return
        self._slices.put(f"{arrival.study_key}/{arrival.instance_key}", pixels, pixels.nbytes)

    def _close_if_whole(self, key: str) -> bool:
        pending = self._open[key]
        if pending.looked_at != len(pending.headers) and not pending.associations:
            pending.looked_at = len(pending.headers)
            pending.volumes, pending.images = self._wanted(pending.headers)
        announced = [header.number_of_study_related_instances for header in pending.headers.values()]
        state = OpenStudy(
            instances=len(pending.headers),
            announced=max((count for count in announced if count), default=None),
            associations_open=len(pending.associations),
            released=pending.released and not pending.cut_off,
            quiet_s=time.monotonic() - pending.changed,
            volumes=pending.volumes,
            images=pending.images,
        )
        sign = closing_sign(
            state, self._settings.quiet_s, on_complete_volume=self._settings.close_on_complete_volume
        )
        if sign is None:
            return False
        self._close(key, sign)
        return True

    def _close(self, key: str, sign: Sign) -> None:
        self._journal.close_study(key, sign, self._clock())
        count = len(self._open.pop(key).headers)
        log.info("study %s closed with %d instances by %s", key[:12], count, sign)

    def _wanted(self, headers: Mapping[str, InstanceHeader]) -> tuple[dict[str, bool], int]:
        """Series that some model wants as a volume (and whether it is complete); series by image."""
        volumes: dict[str, bool] = {}
        images = 0
        for uid, members in _by_series(headers).items():
            series = facts(list(members.values()))
            for model in self._serving.active():
                wants = model.manifest.inputs[0]
                verdict = match(wants, series)
                if wants.kind == "image":
                    images += verdict.accepted
                elif verdict.accepted or verdict.only_geometry:
                    volumes[uid] = verdict.accepted
        return volumes, images

    def handle(self, item: Item) -> None:
        """Decide for every series and every model, and enter the models' items."""
        headers = self._journal.headers(item.study_key)
        before = self._journal.decisions(item.study_key, item.revision - 1)
        decisions: list[Decision] = []
        items: list[NewItem] = []
        for uid, members in _by_series(headers).items():
            series = facts(list(members.values()))
            inputs_digest = _digest(sorted(members))
            earlier = [each for each in before if each.series_instance_uid == uid]
            for model in self._models_for(earlier, inputs_digest):
                verdict, inputs = _judge(model, series, members)
                decisions.append(
                    Decision(uid, model.label, model.digest, inputs_digest, verdict.accepted, verdict.reason)
                )
                items += [
                    NewItem(
                        _digest([item.study_key, model.digest, *sorted(keys)])[:32],
                        model.manifest.name,
                        model.digest,
                        uid,
                        keys,
                    )
                    for keys in inputs
                ]
        if not decisions:
            reason = "no model serves: import and activate one, then `insitu study retry`"
            decisions = [Decision(uid, "", "", "", False, reason) for uid in _by_series(headers)]
        self._journal.assembled(item, decisions, items, self._clock())

    def _models_for(self, earlier: Sequence[Decision], inputs_digest: str) -> Iterable[ServedModel]:
        """The models that serve now; for a series that a revision left as it was, those it began with."""
        if not earlier or any(each.inputs_digest != inputs_digest for each in earlier):
            return self._serving.active()
        try:
            return [self._serving.model(digest) for digest in dict.fromkeys(e.model_digest for e in earlier)]
        except ModelStoreError:
            return self._serving.active()  # that version has left the store


def _judge(
    model: ServedModel, series: SeriesFacts, members: Mapping[str, InstanceHeader]
) -> tuple[Verdict, Sequence[tuple[str, ...]]]:
    """The verdict on a series, and the instance keys of each input that it gives."""
    wants = model.manifest.inputs[0]
    verdict = match(wants, series)
    if wants.kind == "image":
        each = [(key,) for key, header in members.items() if match(wants, facts([header])).accepted]
        return verdict, each
    if not verdict.accepted or series.geometry is None:
        return verdict, []
    keys = list(members)
    return verdict, [tuple(keys[index] for index in series.geometry.order)]


def _by_series(headers: Mapping[str, InstanceHeader]) -> dict[str, dict[str, InstanceHeader]]:
    series: dict[str, dict[str, InstanceHeader]] = {}
    for key in sorted(headers):
        series.setdefault(headers[key].series_instance_uid, {})[key] = headers[key]
    return series


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _received(arrival: Arrival) -> Received:
    return Received(
        arrival.study_key,
        arrival.instance_key,
        arrival.header,
        arrival.size_bytes,
        arrival.received,
        arrival.calling_ae_title,
    )

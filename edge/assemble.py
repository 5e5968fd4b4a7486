"""assemble: one picture of each open study; closes it; says which model runs on what, and why.

Owns the reading of the arrival log, the journal's rows of what arrived, the open studies,
and the ASSEMBLE items. What can be done to a slice when it arrives is begun here and done by
`edge.streaming`; a model that judges image by image gets its item when the image arrives. Does not
build volumes (`edge.infer`) and does not judge a model's output.

An arrival that cannot be entered stops no other: it is logged, it stands in the history of its
study, and that study is held when it closes.

*Diagnostics*: logs each close with its sign, instances whose file is gone, arrivals not entered.
"""

import hashlib
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final

from dicom.header import InstanceHeader
from edge.arrivals import Arrival, ArrivalReader, AssociationEnded, Entry, Position
from edge.closing import Sign, closing_sign
from edge.counting import Counter
from edge.handover import Headers
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.matching import SeriesFacts, Verdict, facts, match
from edge.options import Assemble
from edge.pending import Pending, by_series
from edge.records import Decision, Item, NewItem, Received
from edge.serving import ServedModel, Serving
from edge.streaming import Streaming
from edge.study import Outcome
from model_store.errors import ModelStoreError

log = logging.getLogger(__name__)

BATCH: Final = 512
"""Arrivals entered in one transaction: bounds how long it holds the journal (about 30 ms)."""
GATHER_S: Final = 0.1
"""Arrivals that nothing waits for are entered together: a commit for each would sync the disk as often as
`receive` does. What is not entered is read from the log again after a crash."""
GATHER: Final = 64
"""Arrivals that are entered at once however soon they came."""
ROUNDS: Final = 8
"""Batches that are read before the open studies are looked at again: arrivals never stop on a busy day."""


class Assembler:
    """The open studies, and the stage ASSEMBLE. `poll` and `handle` may run in different threads.

    The open studies belong to the thread that polls; `handle` knows the journal only.
    """

    def __init__(
        self,
        journal: Journal,
        instances: InstanceStore,
        arrivals: ArrivalReader,
        serving: Serving,
        settings: Assemble,
        headers: Headers,
        clock: Callable[[], datetime],
        *,
        streaming: Streaming | None = None,
        counter: Counter | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            journal: what is known.
            instances: the files.
            arrivals: the log.
            serving: the models.
            settings: when a study closes.
            headers: headers of what came lately.
            clock: aware, UTC.
            streaming: where slices are begun; None: nothing is done before the close.
            counter: who asks the PACS for the number of images; None: nobody does.
        """
        self._journal = journal
        self._instances = instances
        self._arrivals = arrivals
        self._serving = serving
        self._settings = settings
        self._headers = headers
        self._clock = clock
        self._streaming = streaming
        self._counter = counter
        self._position = Position.parse(journal.fact("arrivals"))
        """Up to here arrivals are entered; beyond, they are in `_gathered`."""
        self._read_to = self._position
        self._gathered: list[Entry] = []
        self._gathered_since = 0.0
        self._open: dict[str, Pending] = {}
        self._facts: dict[str, dict[str, SeriesFacts]] = {}
        """Of studies that closed, until `handle` comes to them."""

    def reconcile(self) -> None:
        """Bring journal and files together at start: the files are the truth.

        Enters instances that the journal does not know (a crash after their fsync, a lost
        journal) and forgets those whose file is gone. Open studies then wait for the quiet
        timer: which associations were open is not known any more.
        """
        known = self._journal.known_instances()
        unknown = list(self._instances.scan(skip=known))
        if unknown:
            self._enter_each(unknown, None)
            log.warning("%d instances were on disk and not in the journal: entered", len(unknown))
        gone = known - set(self._instances.stored_keys())
        if gone:
            self._journal.forget_instances(sorted(gone))
            log.error("%d instances are in the journal and not on disk: forgotten", len(gone))
        for row in self._journal.open_studies():
            key = row["study_key"]
            self._open[key] = Pending(
                row["study_instance_uid"], self._journal.headers(key), changed=time.monotonic()
            )

    def poll(self) -> bool:
        """Take what arrived since the last call, and close the studies that are whole.

        Returns whether another stage has something to do, or there is more to take.
        """
        began = False
        for _ in range(ROUNDS):
            entries, read_to = self._arrivals.read(self._read_to, BATCH)
            self._read_to = read_to
            if not entries:
                break
            began |= self._take(entries)
        else:
            began = True
        if self._gathered and time.monotonic() - self._gathered_since >= GATHER_S:
            began |= self._enter()
        closed = [key for key in list(self._open) if self._close_if_whole(key)]
        while len(self._open) > self._settings.max_open_studies:
            closed.append(min(self._open, key=lambda key: self._open[key].changed))
            self._close(closed[-1], Sign.ROOM)
        return began or bool(closed)

    def _take(self, entries: Sequence[Entry]) -> bool:
        """Begin what can be begun, and enter the entries now if something waits for them."""
        if not self._gathered:
            self._gathered_since = time.monotonic()
        self._gathered += entries
        urgent = len(self._gathered) >= GATHER
        for entry in entries:
            if not isinstance(entry, Arrival):
                urgent = True
                continue
            try:
                if self._streaming is not None:
                    self._streaming.arrived(entry)
                urgent |= bool(self._image_models(entry.header))
            except Exception:  # whatever it is, it is said again when the study is judged
                log.exception("instance %s cannot be judged", entry.instance_key[:12])
        if not urgent:
            urgent = any(self._is_last(entry) for entry in entries if isinstance(entry, Arrival))
        return self._enter() if urgent else False

    def _is_last(self, arrival: Arrival) -> bool:
        """Whether, by the count that its header names, no more images of the study are to come."""
        announced = arrival.header.number_of_study_related_instances or 0
        pending = self._open.get(arrival.study_key)
        here = len(pending.headers) if pending else 0
        here += sum(
            isinstance(each, Arrival) and each.study_key == arrival.study_key for each in self._gathered
        )
        return 0 < announced <= here

    def _enter(self) -> bool:
        """Enter what was gathered; did models' items begin?"""
        entries, self._gathered = self._gathered, []
        try:
            began = self._enter_all(entries)
        except BaseException:
            # Nothing of it is lost: it is read again, from where the journal's own position stands.
            self._position = self._read_to = Position.parse(self._journal.fact("arrivals"))
            raise
        if self._read_to.file != self._position.file:
            self._arrivals.drop_before(self._read_to)
        self._position = self._read_to
        return began

    def _enter_all(self, entries: Sequence[Entry]) -> bool:
        arrived = [entry for entry in entries if isinstance(entry, Arrival) and self._is_here(entry)]
        new = {(each.study_key, each.instance_key) for each in self._enter_each(arrived, str(self._read_to))}
        now = time.monotonic()
        began = False
        for entry in entries:
            if isinstance(entry, Arrival):
                key = entry.study_key, entry.instance_key
                if key in new:
                    new.discard(key)  # the same one twice in a batch
                    began |= self._add(entry)
                if pending := self._open.get(entry.study_key):  # sent again is a sign of life, too
                    pending.associations.add(entry.association)
                    pending.changed = now
            elif isinstance(entry, AssociationEnded):
                for pending in self._open.values():
                    pending.ended(entry, now)
            else:
                for pending in self._open.values():
                    pending.requested(entry)
        return began

    def _enter_each(self, arrived: Sequence[Arrival], position: str | None) -> Sequence[Received]:
        """Enter instances and the position together; one that cannot be entered stops no other."""
        received = [_received(arrival) for arrival in arrived]
        try:
            return self._journal.enter(received, position)
        except (sqlite3.OperationalError, OSError):
            raise  # the disk, not one of them
        except Exception:
            log.exception("%d arrivals cannot be entered together: one by one", len(received))
        entered: list[Received] = []
        for each in received:
            try:
                entered += self._journal.enter([each])
            except (sqlite3.OperationalError, OSError):
                raise
            except Exception as error:
                log.exception("instance %s cannot be entered", each.instance_key[:12])
                self._flawed(each, f"{type(error).__name__}: {error}")
        if position is not None:
            self._journal.set_fact("arrivals", position)
        return entered

    def _flawed(self, received: Received, reason: str) -> None:
        try:
            self._journal.flaw(received, reason)
        except (sqlite3.OperationalError, OSError):
            raise
        except Exception:
            log.exception("instance %s: not even its study can be named", received.instance_key[:12])
            return
        self._pending(received.study_key, received.header.study_instance_uid).flaws += 1

    def _is_here(self, arrival: Arrival) -> bool:
        try:
            return self._instances.path(
                arrival.study_key, arrival.instance_key
            ).exists()  # else deleted since
        except ValueError:
            log.error("arrival log: an entry whose keys are none was passed over")
            return False

    def _pending(self, study_key: str, uid: str) -> Pending:
        pending = self._open.get(study_key)
        if pending is None:
            pending = Pending(uid, self._journal.headers(study_key), changed=time.monotonic())
            self._open[study_key] = pending
        return pending

    def _add(self, arrival: Arrival) -> bool:
        pending = self._pending(arrival.study_key, arrival.header.study_instance_uid)
        pending.headers[arrival.instance_key] = arrival.header
        pending.brought[arrival.header.series_instance_uid, arrival.association] += 1
        self._headers.put(arrival.study_key, arrival.instance_key, arrival.header)
        try:
            models = self._image_models(arrival.header)
        except Exception:
            log.exception("instance %s cannot be judged", arrival.instance_key[:12])
            return False
        if not models:
            return False
        row = self._journal.read("SELECT revision FROM study WHERE study_key = ?", arrival.study_key)[0]
        models = self._begun_with(arrival.study_key, row["revision"], models)
        uid = arrival.header.series_instance_uid
        items = [_new_item(model, arrival.study_key, uid, (arrival.instance_key,)) for model in models]
        self._journal.begin(arrival.study_key, items, self._clock())
        return True

    def _image_models(self, header: InstanceHeader) -> list[ServedModel]:
        """The models that judge this image by itself: they need not wait for the others."""
        return [
            model
            for model in self._serving.active()
            if (wants := model.manifest.inputs[0]).kind == "image" and match(wants, facts([header])).accepted
        ]

    def _begun_with(self, study_key: str, revision: int, models: Iterable[ServedModel]) -> list[ServedModel]:
        """`models`, each in the version that has begun with this revision: a switch does not touch it."""
        begun = self._journal.begun(study_key, revision)
        found = []
        for model in models:
            digest = begun.get(model.manifest.name, model.digest)
            try:
                found.append(model if digest == model.digest else self._serving.model(digest))
            except ModelStoreError:
                found.append(model)  # that version has left the store
        return found

    def _close_if_whole(self, key: str) -> bool:
        pending = self._open[key]
        count = len(pending.headers)
        if pending.looked_at != count and not pending.associations:
            pending.looked_at = count
            try:
                pending.look(self._serving.active())
            except Exception:
                # It closes by the timer, and `handle` says then what is wrong: that holds this study alone.
                log.exception("study %s: its series cannot be judged", key[:12])
        asked = None
        if self._counter is not None and not pending.associations:
            asked = self._counter.answer(key, count)
            self._counter.ask(key, pending.uid, count)
        state = pending.facts_now(self._open.values(), asked, time.monotonic())
        sign = closing_sign(
            state, self._settings.quiet_s, on_complete_volume=self._settings.close_on_complete_volume
        )
        if sign is None:
            return False
        self._close(key, sign)
        return True

    def _close(self, key: str, sign: Sign) -> None:
        pending = self._open[key]
        held = ""
        if pending.flaws:
            held = (
                f"{pending.flaws} instances could not be entered, see the history; "
                "insitu study release goes on without them"
            )
        if len(self._facts) < self._settings.max_open_studies:
            self._facts[key] = pending.facts
        self._journal.close_study(key, sign, self._clock(), held)
        del self._open[key]
        if self._counter is not None:
            self._counter.forget(key)
        log.info("study %s closed with %d instances by %s", key[:12], len(pending.headers), sign)

    def handle(self, item: Item) -> None:
        """Decide for every series and every model, and enter the models' items."""
        headers = self._headers.of_study(item.study_key)
        known = self._facts.pop(item.study_key, {})
        before = self._journal.decisions(item.study_key, item.revision - 1)
        decisions: list[Decision] = []
        items: list[NewItem] = []
        for uid, members in by_series(headers).items():
            series = known.get(uid)
            if series is None or series.count != len(members):
                series = facts(list(members.values()))
            inputs_digest = _digest(sorted(members))
            earlier = [each for each in before if each.series_instance_uid == uid]
            for model in self._models_for(item, earlier, inputs_digest):
                verdict, inputs = _judge(model, series, members)
                decisions.append(
                    Decision(uid, model.label, model.digest, inputs_digest, verdict.accepted, verdict.reason)
                )
                items += [_new_item(model, item.study_key, uid, keys) for keys in inputs]
        if headers and not decisions:
            reason = "no model serves: import and activate one, then insitu study retry"
            self._journal.advance(item, Outcome.HOLD, self._clock(), reason)
            return
        self._journal.assembled(item, decisions, items, self._clock())
        if not items and self._streaming is not None:
            self._streaming.drop(item.study_key)

    def _models_for(
        self, item: Item, earlier: Sequence[Decision], inputs_digest: str
    ) -> Iterable[ServedModel]:
        """The models that serve now; for a series that a revision left as it was, those it began with."""
        if earlier and all(each.inputs_digest == inputs_digest for each in earlier):
            try:
                return [self._serving.model(each) for each in dict.fromkeys(e.model_digest for e in earlier)]
            except ModelStoreError:
                pass  # that version has left the store
        return self._begun_with(item.study_key, item.revision, self._serving.active())


def _new_item(model: ServedModel, study_key: str, series_instance_uid: str, keys: Sequence[str]) -> NewItem:
    """A model's run on one input; its key is the same whenever it is entered."""
    return NewItem(
        _digest([study_key, model.digest, *sorted(keys)])[:32],
        model.manifest.name,
        model.digest,
        series_instance_uid,
        tuple(keys),
    )


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

"""How many images a study has, asked of the PACS while it arrives.

Owns the thread that asks, so that a slow or dead archive keeps nobody waiting, and the answers until
they are fetched. How it is asked is a `CountSource`'s: C-FIND (`dicom.query`) or QIDO-RS. What the
answer means is `edge.closing`'s.

*Diagnostics*: logs each question that fails; the study then closes by another sign.
*Security*: off unless the configuration names a peer. It is then the one thing in `work` that calls
out: to that peer and nobody else; a `work` that is confined without a network gets no answer.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, Protocol

from dicom.query import StudyQuery, find_studies
from dicom.requestor import Destination, Timeouts

log = logging.getLogger(__name__)

ANSWER_S: Final = 5.0
"""The longest wait for an answer; the quiet timer would close the study by then."""
MAX_STUDIES: Final = 1024
"""Questions and answers kept; far above `assemble.max_open_studies`' default. The oldest go first."""


class CountSource(Protocol):
    """Who knows how many instances a study has."""

    def count(self, study_instance_uid: str) -> int | None:
        """Number of Study Related Instances (0020,1208); None where it does not know the study.

        It ends within a limit of its own, and raises what it likes.
        """


class PeerCount:
    """A `CountSource` that asks a peer by C-FIND at study level (PS3.4 §C.4.1)."""

    def __init__(self, destination: Destination, calling_ae_title: str, timeouts: Timeouts) -> None:
        self._destination = destination
        self._calling_ae_title = calling_ae_title
        self._timeouts = timeouts

    def count(self, study_instance_uid: str) -> int | None:
        """Number of Study Related Instances; None where the peer does not have the study.

        Raises:
            PeerError: it cannot be reached, or fails.
        """
        query = StudyQuery(study_instance_uid=study_instance_uid)
        for found in find_studies(self._destination, self._calling_ae_title, query, self._timeouts):
            if found.study_instance_uid == study_instance_uid:
                return found.instances
        return None


class Counter(threading.Thread):
    """Asks a `CountSource`, one study after the other."""

    def __init__(self, source: CountSource, answered: Callable[[], None]) -> None:
        """Does not run yet.

        Args:
            source: who is asked.
            answered: called after each answer.
        """
        super().__init__(name="count-asker", daemon=True)
        self._source = source
        self._answered = answered
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._asked: OrderedDict[str, int] = OrderedDict()
        self._answers: OrderedDict[str, tuple[int, int | None]] = OrderedDict()
        self._stopping = False

    def ask(self, study_key: str, study_instance_uid: str, instances: int) -> None:
        """Ask for a study of which `instances` are here, unless that was asked already."""
        with self._changed:
            if self._asked.get(study_key) == instances:
                return
            self._asked[study_key] = instances
            self._waiting[study_key] = (study_instance_uid, instances)
            for kept in (self._asked, self._waiting):
                while len(kept) > MAX_STUDIES:
                    kept.popitem(last=False)
            self._changed.notify()

    def answer(self, study_key: str, instances: int) -> int | None:
        """What was said when `instances` were here; None where it was not asked then, or not known."""
        with self._changed:
            found = self._answers.get(study_key)
        return found[1] if found is not None and found[0] == instances else None

    def forget(self, study_key: str) -> None:
        """The study is closed."""
        with self._changed:
            for kept in (self._waiting, self._asked, self._answers):
                kept.pop(study_key, None)

    def run(self) -> None:
        """Ask until `stop`."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or bool(self._waiting))
                if self._stopping:
                    return
                study_key, (uid, instances) = self._waiting.popitem(last=False)
            try:
                count = self._source.count(uid)
            except Exception as error:  # noqa: BLE001 (any archive, any failure: another sign closes the study)
                log.warning("study %s: its number of images could not be asked: %s", study_key[:12], error)
                count = None
            with self._changed:
                if study_key not in self._asked:
                    continue  # closed meanwhile
                self._answers[study_key] = (instances, count)
                while len(self._answers) > MAX_STUDIES:
                    self._answers.popitem(last=False)
            if count is not None:
                self._answered()

    def stop(self) -> None:
        """Ask no more; `join` waits for the question that is under way."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

"""What became of the instances that were received, and how long the disk took: counts, no IO."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final

from edge.incoming import Fate

BUCKETS_S: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
"""Upper ends: a commit on an SSD takes 1 to 5 ms, on a disk 10 to 50; beyond 1 s a disk is sick."""


@dataclass(frozen=True, slots=True)
class IntakeCounts:
    """The counts at one moment."""

    fates: Mapping[Fate, int]
    commits: tuple[int, ...]
    """By bucket, the last one without an upper end: how many commits took so long (not cumulative)."""
    commit_s: float
    """All commits together."""


class IntakeStats:
    """Counts that the threads of all associations add to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._fates: Counter[Fate] = Counter()
        self._commits = [0] * (len(BUCKETS_S) + 1)
        self._commit_s = 0.0

    def committed(self, fate: Fate, seconds: float) -> None:
        """An instance was made durable."""
        with self._lock:
            self._fates[fate] += 1
            self._commits[bisect_left(BUCKETS_S, seconds)] += 1
            self._commit_s += seconds

    def counts(self) -> IntakeCounts:
        """The counts now."""
        with self._lock:
            return IntakeCounts(
                {fate: self._fates[fate] for fate in Fate}, tuple(self._commits), self._commit_s
            )

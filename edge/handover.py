"""What the stages of `work` hand to each other in memory, bounded.

Nothing here is needed to finish a study: slices are decoded again from their files, and
`produce` sends an item back to `infer` when its findings are gone (the process ended, or
other studies took the room). The oldest go first.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dicom.header import InstanceHeader
from dicom.results import Findings
from dicom.volume import Image, Volume
from edge.journal import Journal

Kept = TypeVar("Kept")

SLICES_BYTES: Final = 1 << 30
"""Decoded slices ahead of their study's close: three studies of 384 slices of 384 x 384 float32."""
BEGUN_BYTES: Final = 512 << 20
"""The same slices after the models' slice-wise steps, which mostly make them smaller."""
HEADERS: Final = 20_000
"""Headers of instances: 20 studies of 1,000 images, some 30 MB."""
FINDINGS_BYTES: Final = 1 << 30
"""Volumes and label maps between `infer` and `produce`; one large CT (1,000 slices) and half of another."""


class Shelf(Generic[Kept]):
    """A dictionary of at most `capacity_bytes`; the oldest entries leave. Thread-safe."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._held = 0
        self._entries: OrderedDict[str, tuple[Kept, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: str, value: Kept, size_bytes: int) -> None:
        """Keep `value`; one that alone is larger than the shelf is its only entry.

        Were it refused, `produce` would send its item back to `infer` for ever.
        """
        with self._lock:
            self._remove(key)
            self._entries[key] = (value, size_bytes)
            self._held += size_bytes
            while self._held > self._capacity and len(self._entries) > 1:
                self._remove(next(iter(self._entries)))

    def get(self, key: str) -> Kept | None:
        """The value, if it is still here."""
        with self._lock:
            entry = self._entries.get(key)
            return entry[0] if entry else None

    def drop(self, key: str) -> None:
        """Forget `key`."""
        with self._lock:
            self._remove(key)

    def drop_all(self, prefix: str) -> None:
        """Forget every key that begins with `prefix`."""
        with self._lock:
            for key in [key for key in self._entries if key.startswith(prefix)]:
                self._remove(key)

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry:
            self._held -= entry[1]


Slices = Shelf[NDArray[np.float32]]
"""`study key/instance key` to decoded slice (rows, columns), modality units."""


class Headers:
    """The headers of instances that came lately, so that no stage parses them out of the journal again."""

    def __init__(self, journal: Journal, capacity: int = HEADERS) -> None:
        self._journal = journal
        self._shelf: Shelf[InstanceHeader] = Shelf(capacity)

    def put(self, study_key: str, instance_key: str, header: InstanceHeader) -> None:
        """Keep the header of an instance that arrived; it replaces that of an earlier one of its name."""
        self._shelf.put(f"{study_key}/{instance_key}", header, 1)

    def drop(self, study_key: str) -> None:
        """Forget a study's headers: nobody asks for them soon."""
        self._shelf.drop_all(f"{study_key}/")

    def of_study(self, study_key: str) -> dict[str, InstanceHeader]:
        """Instance key to header, for all instances of a study, as `Journal.headers`."""
        keys = self._journal.instance_keys(study_key)
        return dict(zip(keys, self.of(study_key, keys), strict=True))

    def of(self, study_key: str, instance_keys: Sequence[str]) -> list[InstanceHeader]:
        """The headers of some instances of a study.

        Raises:
            KeyError: the journal does not know one of them.
        """
        found = {key: self._shelf.get(f"{study_key}/{key}") for key in instance_keys}
        if None in found.values():
            entered = self._journal.headers(study_key)
            for key in instance_keys:
                found[key] = entered[key]
                self.put(study_key, key, entered[key])
        return [header for key in instance_keys if (header := found[key]) is not None]


@dataclass(frozen=True)
class Inferred:
    """What `infer` hands to `produce`."""

    pixels: Volume | Image
    findings: Findings
    parameters: dict[str, str]
    """Runtime, provider, decoder, preprocessing digest…: goes into the result (TID 4019)."""

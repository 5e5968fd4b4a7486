"""What the stages of `work` hand to each other in memory, bounded in bytes.

Nothing here is needed to finish a study: slices are decoded again from their files, and
`produce` sends an item back to `infer` when its findings are gone (the process ended, or
other studies took the room). The oldest go first.
"""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dicom.results import Findings
from dicom.volume import Image, Volume

Kept = TypeVar("Kept")

SLICES_BYTES: Final = 1 << 30
"""Decoded slices ahead of their study's close: three studies of 384 slices of 384 x 384 float32."""
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
        """Keep `value`, unless it alone is larger than the shelf."""
        with self._lock:
            self._remove(key)
            if size_bytes > self._capacity:
                return
            self._entries[key] = (value, size_bytes)
            self._held += size_bytes
            while self._held > self._capacity:
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

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry:
            self._held -= entry[1]


Slices = Shelf[NDArray[np.float32]]
"""`study key/instance key` to decoded slice (rows, columns), modality units."""


@dataclass(frozen=True)
class Inferred:
    """What `infer` hands to `produce`."""

    pixels: Volume | Image
    findings: Findings
    parameters: dict[str, str]
    """Runtime, provider, decoder, preprocessing digest…: goes into the result (TID 4019)."""

"""What an engine and its worker share: one piece of memory for tensors, and short messages.

Both sides import it, so it stays light: NumPy and the standard library. It owns the layout of
tensors in the memory, the memory itself (a memfd, sealed so that neither side can pull it away
under the other) and the framing of messages (JSON over SEQPACKET, bounded; never pickle).
"""

import fcntl
import json
import math
import mmap
import os
import socket
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_MESSAGE_BYTES: Final = 64 << 10
"""A message names at most 32 tensors of a name of 128 characters and six sizes each: below 16 KiB."""
ALIGNMENT_BYTES: Final = 64
"""Tensors begin at a cache line, which is also the widest vector register."""
DTYPES: Final = {name: np.dtype(name) for name in ("float32", "float16", "uint8", "int8", "int32", "int64")}
"""The element types that a manifest may name."""

_ENCODE: Final = json.JSONEncoder(separators=(",", ":")).encode
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Slot:
    """Where one tensor lies in the memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def end(self) -> int:
        """The first aligned byte behind it."""
        return -(-(self.offset + self.size_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def to_json(self) -> list[Any]:
        """As a message carries it."""
        return [self.name, self.dtype, self.shape, self.offset]

    @classmethod
    def from_json(cls, data: Any) -> "Slot":  # noqa: ANN401 (just decoded)
        """The slot that a message carries.

        Raises:
            ValueError: it is none.
        """
        match data:
            case [str(name), str(dtype), [*shape], int(offset)] if dtype in DTYPES and offset >= 0:
                if len(shape) <= 8 and all(type(size) is int and 0 <= size < 1 << 40 for size in shape):
                    return cls(name, dtype, tuple(shape), offset)
        raise ValueError(f"not a tensor's place: {data!r:.100}")


class TensorMemory:
    """Memory that both processes map; it never changes its size (larger: a new one)."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        """Map `descriptor`, which stays the caller's to close.

        Raises:
            OSError: it cannot be mapped, or is not sealed at this size.
        """
        if os.fstat(descriptor).st_size != size_bytes or fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) != _SEALS:
            raise OSError(f"the shared memory is not sealed at {size_bytes} bytes")
        self.size_bytes = size_bytes
        self._map = mmap.mmap(descriptor, size_bytes)

    def view(self, slot: Slot) -> NDArray[Any]:
        """The tensor at `slot`, not a copy; let go of it before `close`.

        Raises:
            ValueError: the slot lies outside of the memory.
        """
        if slot.offset + slot.size_bytes > self.size_bytes:
            raise ValueError(f"tensor {slot.name!r:.80} ends behind the shared memory of {self.size_bytes}")
        count = math.prod(slot.shape)
        if count == 0:
            return np.empty(slot.shape, DTYPES[slot.dtype])
        return np.frombuffer(self._map, DTYPES[slot.dtype], count, slot.offset).reshape(slot.shape)

    def close(self) -> None:
        """Unmap it.

        Raises:
            BufferError: a view is still held.
        """
        self._map.close()


def make_descriptor(size_bytes: int) -> int:
    """A new memfd of this size, sealed against shrinking and growing; the caller closes it.

    Without the seals the other side could cut it off, and touching it would be a SIGBUS.

    Raises:
        OSError: no memory, or no descriptor.
    """
    descriptor = os.memfd_create("insitu-tensors", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def send(sock: socket.socket, message: dict[str, Any], descriptor: int | None = None) -> None:
    """Send one message, with a descriptor if there is one.

    Raises:
        OSError: the other side is gone, or takes nothing within the socket's timeout.
        ValueError: the message is too long.
    """
    raw = _ENCODE(message).encode()
    if len(raw) > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {len(raw)} bytes, allowed {MAX_MESSAGE_BYTES}")
    if descriptor is None:
        sock.send(raw)
    else:
        socket.send_fds(sock, [raw], [descriptor])


def receive(sock: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message and the descriptor that came with it, which the caller closes.

    Raises:
        EOFError: the other side is gone.
        TimeoutError: the socket's timeout has passed.
        ValueError: it is not a message.
        OSError: anything else of the socket.
    """
    raw, descriptors, flags, _ = socket.recv_fds(sock, MAX_MESSAGE_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    try:
        if not raw:
            raise EOFError("the other side is gone")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a message that is too long, or carries too many descriptors")
        message = json.loads(raw)
        if not isinstance(message, dict):
            raise ValueError("a message that is no object")
    except RecursionError as error:
        _close(descriptors)
        raise ValueError("a message that is nested too deep") from error
    except BaseException:
        _close(descriptors)
        raise
    return message, descriptors[0] if descriptors else None


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)

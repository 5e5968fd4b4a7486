"""Bodies of many parts: `multipart/related` read as it arrives, and written part by part.

Owns the media type with its parameters (PS3.18 §8.7.3, RFC 2045 §5.1), the cutting of a body
into parts (PS3.18 §8.6.1, RFC 2046 §5.1, RFC 2387), and the delimiters of a body that we send. The
search for delimiters is python-multipart's; the preamble, the limits and the end are checked
here. Bytes in, pieces of parts out: no IO, and no more than a part's headers is ever kept.

Security: every byte is the peer's. What comes before the first delimiter, the headers of a part, the
number of parts and the body as a whole are bounded; a part that has no end never ends.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from dicom.errors import ProtocolError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks  # a type only: not there at run time

MAX_PREAMBLE_BYTES: Final = 4096
"""What may stand before the first delimiter; a sentence for mail readers is below 1 KiB."""
MAX_HEADER_BYTES: Final = 4096
"""One header line of a part; those of DICOMweb are below 300 bytes."""
MAX_HEADERS: Final = 16
"""Header lines of a part; DICOMweb has three."""
MAX_MEDIA_TYPE_CHARACTERS: Final = 1024
"""A Content-Type or one alternative of Accept; those of DICOMweb have 150."""
MAX_BOUNDARY: Final = 200
"""Characters. Off-spec: RFC 2046 §5.1.1 allows 70, and Orthanc sends 73."""

_BOUNDARY_CHARACTERS: Final = frozenset(
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'()+_,-./:=? "
)


class MultipartError(ProtocolError):
    """A body, or its media type, is not what RFC 2046 and PS3.18 §8.6 say."""


class MultipartTooLargeError(MultipartError):
    """A body is larger, or has more parts, than is taken."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type in lower case, and its parameters as they are written."""

    name: str
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


class PartHandler(Protocol):
    """What is done with the parts; the calls come in this order for each of them."""

    def part_begins(self, headers: Mapping[str, str]) -> None:
        """The headers of the next part, names in lower case."""
        ...

    def part_data(self, data: memoryview) -> None:
        """A piece of its content; the view is valid during the call."""
        ...

    def part_ends(self) -> None:
        """It is whole."""
        ...


class MultipartReader:
    """Cuts a body into parts as it arrives; one that raised is of no further use."""

    def __init__(self, boundary: str, handler: PartHandler, max_parts: int, max_body_bytes: int) -> None:
        """Keeps the arguments.

        Args:
            boundary: as of `boundary_of`.
            handler: is given the parts.
            max_parts: the most parts that are taken.
            max_body_bytes: the most bytes that are taken, delimiters included.
        """
        self.parts = 0
        """How many have begun."""
        self._handler = handler
        self._max_parts = max_parts
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._delimiter = f"--{boundary}".encode("ascii")
        self._preamble: bytes | None = b""
        self._is_ended = False
        self._headers: dict[str, str] = {}
        self._name = bytearray()
        self._value = bytearray()
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin,
            "on_part_data": self._data,
            "on_part_end": self._end_of_part,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header,
            "on_headers_finished": self._headers_end,
            "on_end": self._end,
        }
        self._parser = MultipartParser(
            boundary.encode("ascii"),
            callbacks,
            max_header_count=MAX_HEADERS,
            max_header_size=MAX_HEADER_BYTES,
        )

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            MultipartError: they cannot be a part of one, or go beyond a limit.
        """
        self._body_bytes += len(data)
        if self._body_bytes > self._max_body_bytes:
            raise MultipartTooLargeError(
                f"body: longer than {self._max_body_bytes} bytes, which is the most taken"
            )
        if self._preamble is not None:
            data = self._after_preamble(self._preamble + data)
            if not data:
                return
        try:
            self._parser.write(data)
        except FormParserError as error:
            # its words may hold what the peer sent
            raise MultipartError(f"body: not multipart (RFC 2046 §5.1), in part {self.parts}") from error

    def finish(self) -> None:
        """The body is over.

        Raises:
            MultipartError: its closing delimiter has not come: it is cut short.
        """
        if not self._is_ended:
            where = f"in part {self.parts}" if self.parts else "before its first part"
            raise MultipartError(f"body: ends {where}, its closing delimiter is missing (RFC 2046 §5.1.1)")

    def _after_preamble(self, data: bytes) -> bytes:
        """What follows the preamble, which means nothing; b"" while it has not ended."""
        if data.startswith(self._delimiter):
            self._preamble = None
            return data
        found = data.find(b"\r\n" + self._delimiter)
        if found >= 0:
            self._preamble = None
            return data[found + 2 :]
        if len(data) > MAX_PREAMBLE_BYTES:
            raise MultipartError(
                f"body: no delimiter of its boundary in the first {MAX_PREAMBLE_BYTES} bytes"
            )
        self._preamble = data
        return b""

    # --- python-multipart calls ---

    def _begin(self) -> None:
        if self.parts >= self._max_parts:
            raise MultipartTooLargeError(f"body: more than {self._max_parts} parts, which is the most taken")
        self.parts += 1
        self._headers = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        name = self._name.decode("ascii", "replace").lower()
        if name in self._headers:
            raise MultipartError(f"body: part {self.parts} has a header line twice")
        self._headers[name] = self._value.decode("latin-1").strip(" \t")
        self._name.clear()
        self._value.clear()

    def _headers_end(self) -> None:
        self._handler.part_begins(self._headers)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._handler.part_data(memoryview(data)[start:end])

    def _end_of_part(self) -> None:
        self._handler.part_ends()

    def _end(self) -> None:
        self._is_ended = True


def media_type(text: str) -> MediaType:
    """A Content-Type, or one alternative of an Accept header (RFC 2045 §5.1, RFC 9110 §8.3.1).

    Raises:
        MultipartError: it is none.
    """
    if len(text) > MAX_MEDIA_TYPE_CHARACTERS:
        raise MultipartError(f"media type: {len(text)} characters, allowed {MAX_MEDIA_TYPE_CHARACTERS}")
    name, *rest = split_quoted(text, ";")
    kind, slash, subtype = name.strip().lower().partition("/")
    if not (slash and kind and subtype) or not (kind + subtype).isascii() or " " in kind + subtype:
        raise MultipartError("media type: must be TYPE/SUBTYPE and parameters")
    parameters = {}
    for part in rest:
        if not part.strip():
            continue
        key, equals, value = part.partition("=")
        key, value = key.strip().lower(), value.strip()
        if not equals or not key or key in parameters:
            raise MultipartError("media type: a parameter without a value, or twice")
        if value.startswith('"'):
            if len(value) < 2 or not value.endswith('"'):
                raise MultipartError("media type: a quotation mark is not closed")
            value = value[1:-1].replace("\\", "")
        parameters[key] = value
    return MediaType(f"{kind}/{subtype}", MappingProxyType(parameters))


def boundary_of(found: MediaType) -> str:
    """The boundary of a multipart body (RFC 2046 §5.1.1).

    Raises:
        MultipartError: it has none, or one that cannot be.
    """
    boundary = found.parameters.get("boundary", "")
    is_whole = 1 <= len(boundary) <= MAX_BOUNDARY and not boundary.endswith(" ")
    if not is_whole or not set(boundary) <= _BOUNDARY_CHARACTERS:
        raise MultipartError(
            f"Content-Type: the parameter boundary is missing, or not 1 to {MAX_BOUNDARY} characters"
            " of RFC 2046 §5.1.1"
        )
    return boundary


def split_quoted(text: str, separator: str) -> list[str]:
    """`text` cut at each `separator` that is not within quotation marks."""
    parts, begin, quoted = [], 0, False
    for index, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]


def new_boundary() -> str:
    """A boundary that no content holds, but for a chance of 1 in 2^128."""
    return secrets.token_hex(16)


def body_of(parts: Iterable[tuple[str, Iterable[bytes]]], boundary: str) -> Iterator[bytes]:
    """A body as it is sent: each part has a media type and its content in pieces."""
    delimiter = f"--{boundary}\r\n"
    for content_type, content in parts:
        yield f"{delimiter}Content-Type: {content_type}\r\n\r\n".encode("ascii")
        yield from content
        delimiter = f"\r\n--{boundary}\r\n"
    yield f"\r\n--{boundary}--\r\n".encode("ascii")

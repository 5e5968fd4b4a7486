"""`multipart/related` as it arrives: whole, byte by byte, cut at every length, and hostile."""

from collections.abc import Iterable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom.multipart import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    MAX_PREAMBLE_BYTES,
    MediaType,
    MultipartError,
    MultipartReader,
    body_of,
    boundary_of,
    media_type,
    split_quoted,
)


class Kept:
    """Keeps what comes; a part counts when its end was said."""

    def __init__(self) -> None:
        self.whole: list[tuple[dict[str, str], bytes]] = []
        self.open: tuple[dict[str, str], bytearray] | None = None

    def part_begins(self, headers: Mapping[str, str]) -> None:
        assert self.open is None
        self.open = (dict(headers), bytearray())

    def part_data(self, data: memoryview) -> None:
        assert self.open is not None
        self.open[1].extend(data)

    def part_ends(self) -> None:
        assert self.open is not None
        self.whole.append((self.open[0], bytes(self.open[1])))
        self.open = None


def read(pieces: Iterable[bytes], boundary: str = "b", max_parts: int = 10, max_bytes: int = 1 << 20) -> Kept:
    kept = Kept()
    reader = MultipartReader(boundary, kept, max_parts, max_bytes)
    for piece in pieces:
        reader.feed(piece)
    reader.finish()
    return kept


CONTENTS = [b"one", b"", b"\r\n--", b"\r\n-", b"--b\r\n", b"\r", b"\r\n\r\n", b"\r\r\n--a", bytes(range(256))]


def test_parts_come_whole_whatever_stands_in_them_and_however_the_body_is_cut() -> None:
    expected = [({"content-type": "application/dicom"}, content) for content in CONTENTS]
    body = b"".join(body_of([("application/dicom", [content]) for content in CONTENTS], "b"))
    assert read([body]).whole == expected
    assert read([bytes([byte]) for byte in body]).whole == expected
    for cut in range(len(body)):
        assert read([body[:cut], body[cut:]]).whole == expected, cut


def test_a_body_that_is_cut_short_is_an_error_at_every_length_and_no_part_of_it_is_whole_too_early() -> None:
    body = b"".join(body_of([("application/dicom", [b"first"]), ("application/dicom", [b"second"])], "b"))
    first_whole = body.index(b"\r\n--b\r\nContent-Type", 10) + len(b"\r\n--b\r\n")
    for length in range(len(body) - 2):  # the line end after the closing delimiter is not needed
        kept = Kept()
        reader = MultipartReader("b", kept, 10, 1000)
        reader.feed(body[:length])
        with pytest.raises(MultipartError, match="closing delimiter is missing"):
            reader.finish()
        assert len(kept.whole) == (length >= first_whole), length


@given(
    contents=st.lists(st.binary(max_size=60), max_size=4),
    cuts=st.lists(st.integers(min_value=0, max_value=400), max_size=8),
)
@settings(max_examples=200, deadline=None)
def test_any_content_that_does_not_hold_the_delimiter_comes_back(
    contents: list[bytes], cuts: list[int]
) -> None:
    boundary = "0123456789abcdef"
    body = b"".join(body_of([("a/b", [content]) for content in contents], boundary))
    places = sorted({0, len(body), *[cut for cut in cuts if cut < len(body)]})
    pieces = [body[begin:end] for begin, end in pairwise(places)]
    if contents:
        assert [content for _, content in read(pieces, boundary).whole] == contents
    else:
        assert read(pieces, boundary).whole == []


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_garbage_is_an_error_or_parts_and_never_anything_else(garbage: bytes) -> None:
    for body in (garbage, b"--b\r\n" + garbage):
        try:
            read([body[:7], body[7:]])
        except MultipartError:
            continue


def test_a_preamble_and_an_epilogue_mean_nothing() -> None:
    body = b"for mail readers\r\n--b\r\nContent-Type: a/b\r\n\r\nx\r\n--b--\r\nthe end"
    assert [content for _, content in read([body]).whole] == [b"x"]
    assert [content for _, content in read([bytes([byte]) for byte in body]).whole] == [b"x"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"x" * (MAX_PREAMBLE_BYTES + 1), "no delimiter"),
        (b"--other\r\n\r\n" + b"x" * MAX_PREAMBLE_BYTES, "no delimiter"),
        (b"--b\r\n" + b"N" * (MAX_HEADER_BYTES + 1), "not multipart"),
        (b"--b\r\nName: " + b"v" * (MAX_HEADER_BYTES + 1), "not multipart"),
        (b"--b\r\n" + b"".join(b"N%d: v\r\n" % n for n in range(MAX_HEADERS + 1)), "not multipart"),
        (b"--b\r\nContent-Type: a/b\r\nCONTENT-TYPE: c/d\r\n\r\n", "twice"),
        (b"--b\r\nbad name: x\r\n\r\n", "not multipart"),
        (b"--b\r\n: x\r\n\r\n", "not multipart"),
        (b"--b\r\nName: x\rY", "not multipart"),
        (b"--b\r\n\r\nx\r\n" * 4, "more than 3 parts"),
        (b"--b\r\n\r\n" + b"x" * 20_000, "longer than 10000 bytes"),
    ],
)
def test_what_is_beyond_a_limit_or_broken_is_said_in_words_without_what_the_peer_sent(
    body: bytes, said: str
) -> None:
    with pytest.raises(MultipartError, match=said) as caught:
        read([body], max_parts=3, max_bytes=10_000)
    assert "bad name" not in str(caught.value)


def test_media_types_are_read_with_their_parameters() -> None:
    found = media_type('Multipart/Related; type="application/dicom"; Boundary="a;b=c"; start=x')
    assert found.name == "multipart/related"
    assert dict(found.parameters) == {"type": "application/dicom", "boundary": "a;b=c", "start": "x"}
    assert split_quoted('a;q="x,y", b', ",") == ['a;q="x,y"', " b"]
    assert boundary_of(media_type("multipart/related; boundary=b")) == "b"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dicom",
        "application/",
        "a b/c",
        'a/b; boundary="x',
        "a/b; boundary",
        "a/b; x=1; x=2",
        "a/b;" + "x" * 2000,
        "é/b",
    ],
)
def test_what_is_no_media_type_is_refused(text: str) -> None:
    with pytest.raises(MultipartError, match="media type"):
        media_type(text)


@pytest.mark.parametrize("boundary", ["", "x" * 201, "\u00e9", "a\nb", "a ", '"'])
def test_a_boundary_that_cannot_be_is_refused(boundary: str) -> None:
    with pytest.raises(MultipartError, match="boundary"):
        boundary_of(MediaType("multipart/related", {"boundary": boundary}))

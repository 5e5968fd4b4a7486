"""Text in the character sets of the Standard (PS3.5 §6.1, PS3.3 §C.12.1.1.2).

Owns the decoding of one value; it never raises, for a description that cannot be
read is no reason to refuse an image. Encoding is pydicom's.
"""

from collections.abc import Mapping
from typing import Final

_CODECS: Final[Mapping[str, str]] = {  # Defined Terms without what tells code extensions apart
    "": "latin_1",
    "6": "latin_1",
    "13": "shift_jis",
    "58": "gb2312",
    "87": "iso2022_jp",
    "100": "latin_1",
    "101": "iso8859_2",
    "109": "iso8859_3",
    "110": "iso8859_4",
    "126": "iso8859_7",
    "127": "iso8859_6",
    "138": "iso8859_8",
    "144": "iso8859_5",
    "148": "iso8859_9",
    "149": "euc_kr",
    "159": "iso2022_jp_2",
    "166": "tis_620",
    "192": "utf_8",
    "203": "iso8859_15",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
_ESCAPES: Final[Mapping[bytes, str]] = {  # PS3.3 Tables C.12-3 and C.12-4
    b"(B": "latin_1",
    b"-A": "latin_1",
    b"-B": "iso8859_2",
    b"-C": "iso8859_3",
    b"-D": "iso8859_4",
    b"-F": "iso8859_7",
    b"-G": "iso8859_6",
    b"-H": "iso8859_8",
    b"-L": "iso8859_5",
    b"-M": "iso8859_9",
    b"-T": "tis_620",
    b"-b": "iso8859_15",
    b")I": "shift_jis",
    b"(J": "shift_jis",
    b"$)A": "gb2312",
    b"$)C": "euc_kr",
    b"$B": "iso2022_jp",
    b"$(D": "iso2022_jp_2",
}


def decode_text(raw: bytes, charset: bytes) -> str:
    """`raw` as text without the padding and spaces around it; what is not printable becomes U+FFFD.

    Args:
        raw: the value of an element of VR LO, SH, ST, LT, UC or UT.
        charset: the value of (0008,0005) Specific Character Set, empty where it is absent.
    """
    if raw.isascii() and b"\x1b" not in raw:
        text = raw.decode("ascii")
    else:
        first = charset.decode("latin_1").split("\\")[0].strip(" \0")
        number = first.removeprefix("ISO_IR ").removeprefix("ISO 2022 IR ").removeprefix("ISO 2022 ")
        before, *fragments = raw.split(b"\x1b")
        text = before.decode(_CODECS.get(number, "latin_1"), "replace")
        text += "".join(_after_escape(fragment) for fragment in fragments)
    text = text.strip(" \0")
    if not text.isprintable():
        text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text


def _after_escape(fragment: bytes) -> str:
    for length in (2, 3):
        codec = _ESCAPES.get(fragment[:length])
        if codec is not None and codec.startswith("iso2022"):
            return (b"\x1b" + fragment).decode(codec, "replace")  # this codec reads the escape itself
        if codec is not None:
            return fragment[length:].decode(codec, "replace")
    return "\N{REPLACEMENT CHARACTER}" + fragment.decode("latin_1")

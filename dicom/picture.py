"""The findings as a picture: an RGB Secondary Capture that every viewer shows (PS3.3 §A.8.1, §C.8.6).

Owns the layout: key slices with the segments drawn on them, or the one image, beside a panel with
the algorithm, the source series, the warnings, the values. "NOT FOR DIAGNOSIS" is burned in, and no patient
data is. It repeats what report and segmentation say for those who cannot show them, and is never alone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dicom import drawing
from dicom.composite import KINDS, encode_object, local_time, lossy_compression, references
from dicom.drawing import Colour, Picture
from dicom.element import Encoder, date_of, pixel_data, time_of
from dicom.panel import TEXT, panel_lines
from dicom.provenance import NOT_FOR_DIAGNOSIS, NOT_FOR_DIAGNOSIS_MARK
from dicom.results import Findings, ResultContext, ResultObject
from dicom.source import SourceSeries
from dicom.volume import Image, Volume

MAX_SOURCE_IMAGES: Final = 1024
"""Entries of the Source Image Sequence; longer stacks are named by their report."""

_WIDTH: Final = (
    980  # of the images; with the panel a picture fills a screen of 1366 by 768 or a quarter of a 2K one
)
_HEIGHT: Final = 860
_PANEL: Final = 360
_MARGIN: Final = 16
_GAP: Final = 6
_LINE: Final = 22
_BANNER: Final = 34
_TILES: Final = 12

_PANEL_BACKGROUND: Final[Colour] = (22, 24, 28)
_BANNER_BACKGROUND: Final[Colour] = (140, 20, 20)
_MARK: Final[Colour] = (255, 221, 87)


def encode_picture(
    source: SourceSeries, findings: Findings, context: ResultContext, pixels: Volume | Image
) -> ResultObject:
    """The rendered findings as a Secondary Capture, one frame, RGB, uncompressed.

    Raises:
        ValueError: the pixels do not fit the findings, or the context is of another study.
    """
    picture = render(pixels, findings, context)
    created = local_time(source, context.created)

    def body(encode: Encoder) -> list[bytes]:
        rows, columns, samples = picture.shape
        return [
            encode("ImageType", "DERIVED", "SECONDARY"),
            encode("ConversionType", "WSD"),
            encode("DateOfSecondaryCapture", date_of(created)),
            encode("TimeOfSecondaryCapture", time_of(created)),
            encode("PatientOrientation"),  # the letters are burned in; tiles and panel have no common one
            encode("BurnedInAnnotation", "YES"),
            encode("DerivationDescription", f"{NOT_FOR_DIAGNOSIS}: rendered by {context.algorithm.name}"),
            encode("SourceImageSequence", *references(encode, context.inputs[:MAX_SOURCE_IMAGES])),
            encode("SamplesPerPixel", samples),
            encode("PhotometricInterpretation", "RGB"),
            encode("PlanarConfiguration", 0),
            encode("Rows", rows),
            encode("Columns", columns),
            encode("BitsAllocated", 8),
            encode("BitsStored", 8),
            encode("HighBit", 7),
            encode("PixelRepresentation", 0),
            *lossy_compression(encode, source, context.inputs),
            *_anatomy(encode, source, context.inputs[0].laterality),
        ]

    return encode_object(source, context, KINDS["SC"], body, tail=pixel_data([picture.tobytes()]))


def render(pixels: Volume | Image, findings: Findings, context: ResultContext) -> Picture:
    """The picture itself.

    Args:
        pixels: the volume of `context.inputs`, or the image of the one input.
        findings: a label map, if there is one, has the volume's shape.
        context: names the algorithm; its inputs give window and numbers of the slices.

    Returns:
        Shape (rows, columns, 3), RGB, both sizes even.

    Raises:
        ValueError: the label map or the inputs do not fit the pixels.
    """
    picture = np.zeros((_BANNER + _HEIGHT, _WIDTH + _PANEL, 3), np.uint8)
    if isinstance(pixels, Image):
        _draw_single(picture[_BANNER:, :_WIDTH], pixels, context)
    else:
        _draw_montage(picture[_BANNER:, :_WIDTH], pixels, findings, context)
    _draw_panel(picture[_BANNER:, _WIDTH:], findings, context)
    banner = picture[:_BANNER]
    banner[:] = _BANNER_BACKGROUND
    notice = f"{NOT_FOR_DIAGNOSIS_MARK} - RESEARCH USE ONLY"
    left = (banner.shape[1] - drawing.width_of(notice, 15, bold=True)) // 2
    drawing.write(banner, notice, (left, _BANNER - 11), (255, 255, 255), 15, bold=True)
    return picture


def warm_up() -> None:
    """Pay what the first picture of a process costs: fonts and tables of OpenCV."""
    ink = np.zeros((64, 256, 3), np.uint8)
    drawing.write(ink, "0", (8, 40), TEXT)
    drawing.write(ink, "0", (60, 40), TEXT, bold=True)
    drawing.tile(np.zeros((32, 32), np.uint8), None, (), (48, 48))


def _anatomy(encode: Encoder, source: SourceSeries, laterality: str) -> list[bytes]:
    """Body part and side as the source has them (PS3.3 §C.7.3.1): empty where the side may matter unknown."""
    elements = source.copy_if_present(encode, "BodyPartExamined")
    if laterality in {"L", "R"}:
        elements.append(encode("Laterality", laterality))
    elif not elements:
        elements.append(encode("Laterality"))
    return elements


@dataclass(frozen=True)
class _Grid:
    columns: int
    rows: int
    tile: tuple[int, int]


def _draw_montage(canvas: Picture, volume: Volume, findings: Findings, context: ResultContext) -> None:
    """Key slices of a volume in reading order, each with its number and the patient's sides."""
    voxels, labels = volume.voxels, findings.labels
    if volume.sop_instance_uids != tuple(header.sop_instance_uid for header in context.inputs):
        raise ValueError("picture: the slices of the volume are not the inputs, in their order")
    if labels is not None and labels.shape != voxels.shape:
        raise ValueError(f"picture: labels {labels.shape}, must be as the voxels {voxels.shape}")
    view = drawing.view_of(volume.affine)
    chosen = key_slices(_present(volume, labels))
    header = context.inputs[chosen[0]]
    planes = voxels[chosen]
    inverted = header.photometric_interpretation == "MONOCHROME1"
    levels = drawing.grey(planes, drawing.window_of(planes, header, (1.0, 99.7)), inverted=inverted)
    marks = None if labels is None else labels[chosen]
    rows, columns = drawing.foreground(levels, marks)
    levels = levels[:, rows, columns]
    marks = None if marks is None else marks[:, rows, columns]
    grid = _grid(len(chosen), _extent_mm(volume.affine, view, levels.shape[1:]))
    cell_height = (_HEIGHT - _GAP) // grid.rows
    cell_width = (_WIDTH - _GAP) // grid.columns
    for position, index in enumerate(chosen):
        mark = None if marks is None else view.turn(marks[position])
        tile = drawing.tile(view.turn(levels[position]), mark, findings.segments, grid.tile)
        row, column = divmod(position, grid.columns)
        y = row * cell_height + _GAP + (cell_height - _GAP - tile.shape[0]) // 2
        x = column * cell_width + _GAP + (cell_width - _GAP - tile.shape[1]) // 2
        canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
        cell = canvas[
            row * cell_height + _GAP : (row + 1) * cell_height,
            column * cell_width + _GAP : (column + 1) * cell_width,
        ]
        number = context.inputs[index].instance_number
        _annotate(cell, view, f"Im {index + 1 if number is None else number}")


def key_slices(present: NDArray[np.bool_]) -> list[int]:
    """At most twelve slices, evenly over the extent of those that are `present`; of all if none is."""
    indices = np.flatnonzero(present)
    low, high = (int(indices[0]), int(indices[-1])) if indices.size else (0, len(present) - 1)
    count = min(_TILES, high - low + 1)
    step = (high - low + 1) / count
    return [low + int(step * (i + 0.5)) for i in range(count)]


def _present(volume: Volume, labels: NDArray[np.uint8] | None) -> NDArray[np.bool_]:
    """The slices with a labelled voxel; where nothing is labelled, those that are not mostly air."""
    if labels is not None:
        labelled: NDArray[np.bool_] = labels.reshape(len(labels), -1).max(axis=1) > 0  # faster than any()
        if labelled.any():
            return labelled
    coarse = volume.voxels[:, ::8, ::8]
    tissue: NDArray[np.bool_] = (coarse > coarse.mean()).mean(axis=(1, 2)) > 0.05
    return tissue


def _draw_single(canvas: Picture, image: Image, context: ResultContext) -> None:
    """The one image, as large as fits, darkest where least was absorbed as on film."""
    header = next((h for h in context.inputs if h.sop_instance_uid == image.sop_instance_uid), None)
    if header is None:
        raise ValueError(f"picture: SOP Instance {image.sop_instance_uid} is not among the inputs")
    inverted = image.photometric_interpretation == "MONOCHROME1"
    window = drawing.window_of(image.pixels, header, (0.5, 99.5))
    level = drawing.grey(image.pixels, window, inverted=inverted)
    spacing = header.pixel_spacing_mm or (1.0, 1.0)
    extent = (image.pixels.shape[0] * spacing[0], image.pixels.shape[1] * spacing[1])
    tile = drawing.tile(level, None, (), _fitted(extent, (_HEIGHT - 2 * _GAP, _WIDTH - 2 * _GAP)))
    y, x = (_HEIGHT - tile.shape[0]) // 2, (_WIDTH - tile.shape[1]) // 2
    canvas[y : y + tile.shape[0], x : x + tile.shape[1]] = tile


def _extent_mm(
    affine: NDArray[np.float64], view: drawing.View, shape: tuple[int, ...]
) -> tuple[float, float]:
    """Height and width of a turned slice in mm."""
    height = float(np.linalg.norm(affine[:3, 1])) * shape[0]
    width = float(np.linalg.norm(affine[:3, 2])) * shape[1]
    return (width, height) if view.transposed else (height, width)


def _grid(count: int, extent_mm: tuple[float, float]) -> _Grid:
    """The arrangement that shows the tiles largest."""
    best = _Grid(1, 1, (1, 1))
    for columns in range(1, count + 1):
        rows = -(-count // columns)
        room = ((_HEIGHT - _GAP) // rows - _GAP, (_WIDTH - _GAP) // columns - _GAP)
        tile = _fitted(extent_mm, room)
        if tile[0] * tile[1] > best.tile[0] * best.tile[1]:
            best = _Grid(columns, rows, tile)
    return best


def _fitted(extent_mm: tuple[float, float], room: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width in pixels of this aspect within the room."""
    height, width = (value if np.isfinite(value) and value > 0 else 1.0 for value in extent_mm)
    scale = min(room[0] / height, room[1] / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _annotate(cell: Picture, view: drawing.View, number: str) -> None:
    height, width = cell.shape[:2]
    drawing.write(cell, number, (6, height - 8), TEXT, 12, shadow=True)
    drawing.write(cell, view.left, (5, height // 2 + 5), _MARK, 12, shadow=True)
    right = width - 5 - drawing.width_of(view.right, 12)
    drawing.write(cell, view.right, (right, height // 2 + 5), _MARK, 12, shadow=True)
    top = (width - drawing.width_of(view.top, 12)) // 2
    drawing.write(cell, view.top, (top, 16), _MARK, 12, shadow=True)


def _draw_panel(panel: Picture, findings: Findings, context: ResultContext) -> None:
    """The lines of `panel_lines`, each in its place."""
    panel[:] = _PANEL_BACKGROUND
    y = _MARGIN + 16
    for line in panel_lines(findings, context):
        x = _MARGIN + line.indent
        if line.swatch is not None:
            panel[y - 13 : y + 1, _MARGIN : _MARGIN + 14] = line.swatch
        right = _PANEL - _MARGIN
        if line.value:
            right -= drawing.width_of(line.value, line.height, bold=True)
            drawing.write(panel, line.value, (right, y), line.colour, line.height, bold=True)
            right -= _GAP
        text = drawing.fitting(line.text, right - x, line.height, bold=line.bold)
        drawing.write(panel, text, (x, y), line.colour, line.height, bold=line.bold)
        y += _LINE

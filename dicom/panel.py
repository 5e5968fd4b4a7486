"""The words of the picture's panel: which lines, in which order, and what is cut when there are too many.

Owns the layout of text in lines of one width; `dicom.picture` draws them, and the sentences
are from `dicom.statements`.
"""

import unicodedata
from dataclasses import dataclass, replace
from typing import Final

from dicom import drawing
from dicom.drawing import Colour
from dicom.element import decimal
from dicom.results import Findings, Measurement, ResultContext
from dicom.statements import REMARK, Statements, statements

MAX_LINES: Final = 37
"""Of 22 pixels, in a panel of 860 with its margins; what is cut off is said."""
INNER_WIDTH: Final = 328
"""Of a line in pixels: a panel of 360 without its margins."""
GAP: Final = 6
"""Pixels between a name and its value."""
TEXT: Final[Colour] = (226, 228, 232)

_FAINT: Final[Colour] = (150, 155, 164)
_AMBER: Final[Colour] = (255, 190, 60)
_LEAST_VALUES: Final = 5  # lines, whatever the sentences: the answer and what says that there is more
_MAX_SENTENCE: Final = 1024  # characters of one sentence that are laid out; six lines hold a third


@dataclass(frozen=True)
class PanelLine:
    """One line of the panel."""

    text: str
    colour: Colour = TEXT
    height: int = 14
    bold: bool = False
    swatch: Colour | None = None
    value: str = ""
    """Set against the right edge."""
    indent: int = 0


def panel_lines(findings: Findings, context: ResultContext) -> list[PanelLine]:
    """What the panel says, at most `MAX_LINES` lines, in the order of what a reader must not miss.

    First what made it of what, then "not for diagnosis", warnings, a negative result, what was not seen;
    answers and values last. The values are what is cut, and how many are left out is said.
    """
    said = statements(findings, context)
    head = _head(context, said.source)
    words = _words(said, MAX_LINES - len(head) - _LEAST_VALUES)
    room = MAX_LINES - len(head) - len(words) - 1
    entries = _entries(findings)
    kept: list[PanelLine] = []
    for index, entry in enumerate(entries):
        is_last = index == len(entries) - 1
        if len(kept) + len(entry) > room - (0 if is_last else 1):
            kept.append(PanelLine(f"... and {len(entries) - index} more, see the report", _AMBER))
            break
        kept += entry
    return [*head, *words, *([PanelLine("")] if kept else []), *kept]


def _head(context: ResultContext, source: str) -> list[PanelLine]:
    """The algorithm, its input and the time: eight lines at most."""
    algorithm = context.algorithm
    names = _at_most(2, drawing.wrapped(_plain(algorithm.name), INNER_WIDTH, 17, bold=True), 17, bold=True)
    return [
        *(PanelLine(text, height=17, bold=True) for text in names),
        PanelLine(_plain(f"version {algorithm.version}"), _FAINT),
        PanelLine(_plain(algorithm.manufacturer), _FAINT),
        PanelLine(f"model {algorithm.model_digest[:16]}", _FAINT, 12),
        *(PanelLine(text, _FAINT) for text in _at_most(2, drawing.wrapped(_plain(source), INNER_WIDTH))),
        PanelLine(context.created.strftime("%Y-%m-%d %H:%M %Z").strip(), _FAINT, 12),
        PanelLine(""),
    ]


def _words(said: Statements, room: int) -> list[PanelLine]:
    """The sentences, each cut to as many lines as all of them leave it."""
    unlabelled = ""
    if said.unlabelled and not said.negative:
        more = f" (and {len(said.unlabelled) - 1} more)" if len(said.unlabelled) > 1 else ""
        unlabelled = f"{said.unlabelled[0]}{more}"
    sentences = [
        (REMARK, TEXT),
        *((text, _AMBER) for text in said.warnings[:MAX_LINES]),
        (said.negative, _AMBER),
        (said.coverage, TEXT),
        *((text, TEXT) for text in said.answers[:MAX_LINES]),
        (unlabelled, _FAINT),
    ]
    whole = [
        [PanelLine(line, colour) for line in drawing.wrapped(_plain(text)[:_MAX_SENTENCE], INNER_WIDTH)]
        for text, colour in sentences
        if text
    ]
    for cap in range(6, 0, -1):
        lines = [line for part in whole for line in _capped(part, cap)]
        if len(lines) <= room:
            return lines
    left = len(lines) - room + 1
    return [*lines[: room - 1], PanelLine(f"... {left} more statements in the report", _AMBER)]


def _capped(lines: list[PanelLine], most: int) -> list[PanelLine]:
    if len(lines) <= most:
        return lines
    last = drawing.fitting(f"{lines[most - 1].text} ...", INNER_WIDTH)
    return [*lines[: most - 1], PanelLine(last, lines[0].colour)]


def _entries(findings: Findings) -> list[list[PanelLine]]:
    """Answers, values of the whole, then each segment with its values; a value says what it is of."""
    whole = findings.finding.meaning
    entries = [_entry(item.name.meaning, item.value.meaning, bold=True) for item in findings.evaluations]
    for item in findings.measurements:
        if item.label_value is None:
            name = item.name.meaning
            of_itself = whole.casefold() in name.casefold()
            entries.append(_entry(name if of_itself else f"{whole}, whole: {name}", _value(item)))
    for segment in findings.segments:
        values = [item for item in findings.measurements if item.label_value == segment.label_value]
        if not values:
            entries.append(_entry(segment.label, "", swatch=segment.rgb))
        entries += [
            _entry(f"{segment.label}: {item.name.meaning}", _value(item), swatch=segment.rgb)
            for item in values
        ]
    return entries


def _entry(text: str, value: str, *, bold: bool = False, swatch: Colour | None = None) -> list[PanelLine]:
    """One value in one to three lines: a long name is wrapped, the value stays whole."""
    indent = 0 if swatch is None else 22
    text, value = _plain(text), _plain(value)
    width = INNER_WIDTH - indent
    beside = width - drawing.width_of(value, bold=True) - GAP
    names = [text] if not value and drawing.width_of(text, bold=bold) <= width else []
    if not names:
        is_short = drawing.width_of(text, bold=bold) <= beside
        names = [text] if is_short else _at_most(2, drawing.wrapped(text, width, bold=bold), bold=bold)
    if value and drawing.width_of(names[-1], bold=bold) > beside:
        names.append("")
    lines = [PanelLine(name, bold=bold, indent=indent) for name in names]
    lines[-1] = replace(lines[-1], value=value)
    lines[0] = replace(lines[0], swatch=swatch)
    return lines


def _at_most(most: int, lines: list[str], height: int = 14, *, bold: bool = False) -> list[str]:
    """The lines, the last of them shortened in its middle where there are more."""
    if len(lines) <= most:
        return lines
    rest = drawing.fitting(" ".join(lines[most - 1 :]), INNER_WIDTH, height, bold=bold)
    return [*lines[: most - 1], rest]


def _plain(text: str) -> str:
    """What the fonts of OpenCV can draw: ASCII, letters without their marks."""
    parts = unicodedata.normalize("NFKD", text)
    return (
        "".join(c for c in parts if not unicodedata.combining(c)).encode("ascii", "replace").decode("ascii")
    )


def _value(item: Measurement) -> str:
    """The number as the report has it, with its unit."""
    text = decimal(item.value) if item.value - item.value == 0 else str(item.value)
    unit = "" if item.unit.value == "1" else f" {item.unit.value.strip('{}')}"
    return f"{text}{unit}"

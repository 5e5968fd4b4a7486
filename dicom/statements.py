"""What a result says in words, the same in report and picture.

Owns the sentences: warnings, what the model did not see, the threshold behind an answer, a negative
result, the source series; and the rule of what counts as negative. Where they stand is in
`dicom.report` and `dicom.picture`. The description of the source series is free text that people
typed: it goes into objects of the same study, and never into a log.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dicom import codes
from dicom.header import InstanceHeader
from dicom.provenance import NOT_FOR_DIAGNOSIS
from dicom.results import Code, Evaluation, Findings, ResultContext
from dicom.validity import printable

SEEN_WHOLE: Final = 0.995
"""Share of the imaged volume from which on nothing is said: less than this is a border of half a voxel."""
REMARK: Final = f"{NOT_FOR_DIAGNOSIS}."
MAX_DESCRIPTION: Final = 64
"""Characters of a Series Description (LO, PS3.5 §6.2); what a peer sent may be longer."""

_NEGATIVE: Final = frozenset({("2667000", "SCT"), ("260385009", "SCT")})
"""Answers that say no: Absent, Negative."""
_NORMAL: Final = frozenset({("85756007", "SCT"), ("123037004", "SCT"), ("91723000", "SCT")})
"""Categories of normal anatomy (tissue, body structure, anatomical structure): everyone has a brain,
so one that was not found is not called absent."""
_DIGITS: Final = (3, 4, 6, 9, 17)


@dataclass(frozen=True)
class Statements:
    """The sentences of one result, and what they rest on."""

    warnings: tuple[str, ...]
    coverage: str
    """What the model did not see, or empty."""
    answers: tuple[str, ...]
    """For each evaluation with a threshold, why it is answered so."""
    unlabelled: tuple[str, ...]
    negative: str
    """That nothing was found, or empty."""
    source: str
    """Which series was looked at, or empty."""
    missing: frozenset[int]
    """Label values of the segments without a voxel; empty where there is no label map."""
    is_negative: bool

    def texts(self) -> tuple[str, ...]:
        """All of them as the report has them; the last says that it is research."""
        said = (*self.warnings, self.coverage, *self.answers, *self.unlabelled, self.negative, self.source)
        return (*(text for text in said if text), REMARK)


def statements(findings: Findings, context: ResultContext) -> Statements:
    """What is to be said of these findings."""
    missing = _missing(findings)
    empty = findings.labels is not None and len(missing) == len(findings.segments)
    coverage = _coverage(findings, context.inputs)
    where = " in the part that the model saw" if coverage else ""
    negative = ""
    if empty:
        negative = f"Negative result{where}: the segmentation is empty."
    elif findings.labels is None and not findings.measurements and not findings.evaluations:
        negative = f"Negative result{where}: the algorithm ran to its end and reported no finding."
    denied = bool(findings.evaluations) and all(_denies(item) for item in findings.evaluations)
    return Statements(
        warnings=tuple(f"Warning: {warning}" for warning in findings.warnings),
        coverage=coverage,
        answers=tuple(_answer(item) for item in findings.evaluations if item.threshold is not None),
        unlabelled=tuple(
            f"No voxel was labelled as {segment.label}{where}."
            for segment in findings.segments
            if segment.label_value in missing
        ),
        negative=negative,
        source=source_series(context.inputs[0]),
        missing=missing,
        is_negative=(bool(negative) or (denied and findings.labels is None))
        and (denied or not findings.evaluations),
    )


def source_series(header: InstanceHeader) -> str:
    """The series by its number and description, as one sentence; empty where it has neither."""
    number = "" if header.series_number is None else f"series {header.series_number}"
    parts = [part for part in (number, description(header)) if part]
    return f"Source: {', '.join(parts)}." if parts else ""


def description(header: InstanceHeader) -> str:
    """The source's Series Description, made fit to be shown; may be empty."""
    return " ".join(printable(header.series_description).replace("\\", "/").split())[
        :MAX_DESCRIPTION
    ].rstrip()


def is_normal(category: Code) -> bool:
    """Whether this category of segments is anatomy that everyone has."""
    return (category.value, category.scheme) in _NORMAL


def absence(findings: Findings) -> Evaluation | None:
    """What a negative result answers in code; None when an answer is there, or it would make no sense."""
    normal = bool(findings.segments) and all(is_normal(segment.category) for segment in findings.segments)
    return None if findings.evaluations or normal else Evaluation(findings.finding, codes.ABSENT)


def _denies(item: Evaluation) -> bool:
    return (item.value.value, item.value.scheme) in _NEGATIVE


def _missing(findings: Findings) -> frozenset[int]:
    labels = findings.labels
    if labels is None:
        return frozenset()
    return frozenset(
        segment.label_value
        for segment in findings.segments
        if not any((plane == segment.label_value).any() for plane in labels)
    )


def _answer(item: Evaluation) -> str:
    said = f"{item.name.meaning}: {item.value.meaning}."
    if item.score is None or item.threshold is None:
        return said
    above = item.score >= item.threshold
    # As few digits as still lie on the right side: 0.4999 must not be shown as 0.5 and "below 0.5".
    shown = (f"{item.score:.{digits}g}" for digits in _DIGITS)
    score = next((text for text in shown if (float(text) >= item.threshold) == above), f"{item.score!r}")
    relation = "at or above" if above else "below"
    return f"{said} The value {score} is {relation} the threshold {item.threshold:g}."


def _coverage(findings: Findings, inputs: Sequence[InstanceHeader]) -> str:
    share = findings.coverage
    if share is None or share >= SEEN_WHOLE:
        return ""
    percent = "less than 1" if share < 0.01 else f"{int(share * 100 + 1e-9)}"
    unseen = _slices(findings.unseen_slices, inputs)
    return f"The model saw {percent} % of the imaged volume{unseen}."


def _slices(ranges: Sequence[tuple[int, int]], inputs: Sequence[InstanceHeader]) -> str:
    """The ranges by Instance Number, as viewers and the picture show them; else by position from 1."""
    if not ranges:
        return ""
    by_number, by_position = [], []
    for first, last in ranges:
        by_position.append((first + 1, last + 1))
        numbers = sorted(h.instance_number for h in inputs[first : last + 1] if h.instance_number is not None)
        if numbers and len(numbers) == last - first + 1 == numbers[-1] - numbers[0] + 1:
            by_number.append((numbers[0], numbers[-1]))
    is_numbered = len(by_number) == len(ranges)
    shown = sorted(by_number if is_numbered else by_position)
    texts = [f"{first}" if first == last else f"{first} to {last}" for first, last in shown]
    noun = "slice" if len(shown) == 1 and shown[0][0] == shown[0][1] else "slices"
    joined = " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
    return f"; it did not see {noun} {joined}{'' if is_numbered else ' in order of position'}"

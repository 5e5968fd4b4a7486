"""What a reader is told beside the values: where it came from, what was not seen, what is not there."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta, timezone
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom import drawing
from dicom.composite import KINDS, local_time
from dicom.panel import panel_lines
from dicom.readback import read_report
from dicom.report import encode_report
from dicom.results import Code, Evaluation, Findings, Measurement, ResultContext, ResultObject, Segment
from dicom.segmentation import encode_segmentation
from dicom.source import SourceSeries, read_source
from dicom.statements import statements
from tests.dicom.results_fixture import (
    ABSENT,
    ALGORITHM,
    CREATED,
    MILLILITRE,
    PNEUMONIA,
    PRESENT,
    RATIO,
    TISSUE,
    VOLUME,
    WHITE_MATTER,
    Pairs,
    ball,
    brain_findings,
    chest_findings,
    context_of,
    grid,
    source_file,
    written,
)
from tests.judges import dciodvfy, dsrdump, needs_dciodvfy, needs_dsrdump

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPE = (20, 6, 5)
PAIRS = grid(SHAPE)
LESION = Code("52988006", "SCT", "Lesion")
ABNORMAL = Code("49755003", "SCT", "Morphologically abnormal structure")
REMARK = "Research result, not for diagnosis."


def lesion_findings(**changes: object) -> Findings:
    """A model that looks for lesions and found none."""
    findings = Findings(
        finding=LESION,
        finding_site=None,
        segments=(Segment(1, "Lesion", ABNORMAL, LESION, (255, 80, 80)),),
        labels=np.zeros(SHAPE, np.uint8),
        measurements=(Measurement(VOLUME, 0.0, MILLILITRE, 1),),
    )
    return replace(findings, **changes)  # type: ignore[arg-type]  # names are checked by replace itself


def named(number: int | None = 3, description: str = "t1_mprage_sag", count: int = SHAPE[0]) -> Pairs:
    return [
        (path, replace(header, series_number=number, series_description=description))
        for path, header in PAIRS[:count]
    ]


def source_of(folder: Path, pairs: Pairs = PAIRS, **values: bytes) -> SourceSeries:
    return read_source(source_file(folder, pairs, **values))


def report(folder: Path, findings: Findings, pairs: Pairs = PAIRS, **values: bytes) -> ResultObject:
    source, context = source_of(folder, pairs, **values), context_of(pairs)
    return encode_report(source, findings, context, encode_segmentation(source, findings, context))


def parsed(result: ResultObject) -> Dataset:
    return dcmread(BytesIO(result.data))


def panel(findings: Findings, context: ResultContext) -> list[str]:
    return [f"{line.text} {line.value}".strip() for line in panel_lines(findings, context)]


def judged(result: ResultObject, folder: Path) -> str:
    path = written(folder, "object.dcm", result.data)
    verdict = dciodvfy(path)
    assert (verdict.errors, verdict.questions) == ((), ())
    return dsrdump(path)


def many_segments(count: int) -> Findings:
    segments = tuple(
        Segment(value, f"Structure {value}", TISSUE, WHITE_MATTER, (value, 90, 90))
        for value in range(1, count + 1)
    )
    labels = np.zeros(SHAPE, np.uint8)
    labels.flat[:count] = range(1, count + 1)
    values = tuple(Measurement(VOLUME, 10.0 * value, MILLILITRE, value) for value in range(1, count + 1))
    return brain_findings(labels, segments=segments, measurements=values, warnings=("confidence is low",))


# The panel of the picture


@pytest.mark.parametrize("count", [26, 40, 255])
def test_of_many_segments_the_values_are_cut_and_never_what_warns(count: int) -> None:
    lines = panel(many_segments(count), context_of(named()))
    shown = sum(line.startswith("Structure") for line in lines)
    assert len(lines) <= 37
    assert REMARK in lines
    assert "Warning: confidence is low" in lines
    assert lines.index(REMARK) < lines.index("Warning: confidence is low")
    assert any("2026-03-04" in line for line in lines)
    first = next(index for index, line in enumerate(lines) if line.startswith("Structure"))
    assert first > max(i for i, line in enumerate(lines) if line.startswith(("Warning", REMARK)))
    if shown < count:
        assert lines[-1] == f"... and {count - shown} more, see the report"
    assert shown >= 20


def test_warnings_without_end_leave_room_for_the_remark_and_say_what_is_left_out() -> None:
    findings = many_segments(26)
    findings = replace(findings, warnings=tuple(f"number {i} " + "word " * 60 for i in range(60)))
    lines = panel(findings, context_of(named()))
    assert len(lines) <= 37
    assert REMARK in lines
    assert any(line.startswith("Warning: number 0") for line in lines)
    assert any("more statements in the report" in line for line in lines)


def test_a_negative_result_and_what_was_not_seen_come_before_the_values() -> None:
    lines = panel(lesion_findings(coverage=0.4, unseen_slices=((8, 19),)), context_of(PAIRS))
    text = " ".join(lines)
    assert "Negative result in the part that the model saw: the segmentation is empty." in text
    assert "The model saw 40 % of the imaged volume; it did not see slices 9 to 20." in text
    assert text.index("Negative result") < text.index("Lesion: Volume")


@pytest.mark.parametrize(
    ("value", "shown"),
    [(525.0, "525 mL"), (647.25, "647.25 mL"), (0.1 + 0.2, "0.30000000000000 mL"), (1e-30, "1e-30 mL")],
)
def test_the_picture_shows_the_number_of_the_report(value: float, shown: str, tmp_path: Path) -> None:
    findings = brain_findings(None, measurements=(Measurement(VOLUME, value, MILLILITRE, 1),))
    (line,) = [line for line in panel(findings, context_of(PAIRS)) if line.startswith("White matter")]
    number = line.split()[-2]
    said = parsed(report(tmp_path, findings))
    texts = [str(e.value) for e in said.iterall() if e.keyword == "NumericValue"]
    assert texts == [number]
    assert float(shown.split(maxsplit=1)[0]) == pytest.approx(float(number), rel=1e-12)


def test_a_value_says_what_it_is_of() -> None:
    findings = brain_findings(
        None,
        measurements=(Measurement(VOLUME, 2.0, MILLILITRE, 1), Measurement(VOLUME, 7.5, MILLILITRE)),
    )
    lines = panel(findings, context_of(PAIRS))
    assert "White matter: Volume 2 mL" in lines
    assert "Brain, whole: Volume 7.5 mL" in lines


def test_long_names_are_wrapped_or_shortened_in_the_middle_and_their_values_stay_whole() -> None:
    name = Code("P", "99INSITU", "Probability of consolidation, right lower lobe, posterior segment X")
    findings = Findings(PNEUMONIA, None, measurements=(Measurement(name, 0.123456, RATIO),))
    lines = panel(findings, context_of(PAIRS))
    text = " ".join(lines)
    assert "0.123456" in text
    assert "Probability of consolidation" in text
    assert "segment X" in text
    assert drawing.fitting("Probability of pneumonia, left", 150).startswith("Prob")
    assert drawing.fitting("Probability of pneumonia, left", 150).endswith("left")
    assert drawing.width_of(drawing.fitting("Probability of pneumonia, left", 150)) <= 150


def test_an_edge_is_enlarged_without_halos() -> None:
    level = np.full((8, 8), 60, np.uint8)
    level[:, 4:] = 180
    tile = drawing.tile(level, None, (), (80, 80))
    assert (int(tile.min()), int(tile.max())) == (60, 180)


# Which series, which model, when


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_source_series_and_the_whole_version_are_in_the_series_description(
    kind: str, tmp_path: Path
) -> None:
    algorithm = replace(ALGORITHM, name="Brain tissue on T1 (demonstration)", version="1.10.23-rc.1")
    findings = brain_findings(ball(SHAPE))
    pairs = named()
    source, context = source_of(tmp_path, pairs), context_of(pairs, algorithm=algorithm)
    text = described(kind, source, findings, context)
    assert len(text) <= 64
    assert " 1.10.23-rc.1 " in text
    assert "Brain" in text
    assert " of 3" in text
    assert text.endswith(" - NOT FOR DIAGNOSIS")


def described(kind: str, source: SourceSeries, findings: Findings, context: ResultContext) -> str:
    from dicom.picture import encode_picture
    from tests.dicom.test_picture import noise, volume_of

    pairs = [(Path("absent"), header) for header in context.inputs]
    made: ResultObject | None
    if kind == "SEG":
        made = encode_segmentation(source, findings, context)
    elif kind == "SR":
        made = encode_report(source, findings, context, None)
    else:
        made = encode_picture(source, findings, context, volume_of(pairs, noise(SHAPE)))
    assert made is not None
    return str(parsed(made).SeriesDescription)


@pytest.mark.parametrize("name", ["x", "n" * 64])
@pytest.mark.parametrize("version", ["1.0.0", "1.0.0-" + "a" * 32])
@pytest.mark.parametrize("description", ["", "d", "MPRAGE " * 9])
@pytest.mark.parametrize("number", [None, 7, 123456789])
def test_whatever_the_names_are_the_version_is_whole(
    name: str, version: str, description: str, number: int | None, tmp_path: Path
) -> None:
    pairs = named(number, description)
    algorithm = replace(ALGORITHM, name=name, version=version)
    context = context_of(pairs, algorithm=algorithm)
    text = described("SEG", source_of(tmp_path, pairs), brain_findings(ball(SHAPE)), context)
    assert len(text) <= 64
    assert f" {version} " in text
    assert text.endswith(" - NOT FOR DIAGNOSIS")


@needs_dciodvfy
@needs_dsrdump
def test_report_and_panel_name_the_source_series(tmp_path: Path) -> None:
    pairs = named(3, "t1\x07mprage\\sag ")
    text = judged(report(tmp_path, brain_findings(ball(SHAPE)), pairs), tmp_path)
    assert "Source: series 3, t1 mprage/sag" in text
    assert "Source: series 3, t1 mprage/sag." in panel(brain_findings(None), context_of(pairs))


def test_a_description_in_other_letters_does_not_change_how_the_patient_is_written(tmp_path: Path) -> None:
    pairs = named(3, "頭部 T1")
    values = {"SpecificCharacterSet": b"ISO_IR 100", "PatientName": "Müller^Eva".encode("latin-1")}
    ds = parsed(report(tmp_path, brain_findings(ball(SHAPE)), pairs, **values))
    assert ds.SpecificCharacterSet == "ISO_IR 100"
    assert str(ds.PatientName) == "Müller^Eva"
    assert "T1" in ds.SeriesDescription


def test_results_of_two_series_or_two_models_have_other_series_numbers(tmp_path: Path) -> None:
    source = source_of(tmp_path)
    numbers = set()
    for series in range(5):
        for model in range(5):
            context = context_of(PAIRS, identity=("study", f"model {model}", f"item {series}"))
            segmentation = encode_segmentation(source, brain_findings(ball(SHAPE)), context)
            assert segmentation is not None
            written_report = encode_report(source, brain_findings(ball(SHAPE)), context, segmentation)
            found = [int(parsed(each).SeriesNumber) for each in (segmentation, written_report)]
            assert found[1] == found[0] + 1
            assert all(900_000 < number < 1_000_000 for number in found)
            numbers |= set(found)
    assert len(numbers) == 50


def test_times_are_in_the_zone_of_the_source_or_else_of_the_box(tmp_path: Path) -> None:
    east = timezone(timedelta(hours=9))
    (tmp_path / "zoned").mkdir()
    plain = source_of(tmp_path)
    zoned = source_of(tmp_path / "zoned", TimezoneOffsetFromUTC=b"-0330")
    assert local_time(plain, CREATED, east).strftime("%H%M") == "1406"
    assert local_time(zoned, CREATED, east).strftime("%H%M") == "0136"


def test_a_result_does_not_sort_before_its_images_east_of_greenwich(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from tests.dicom.test_result_texts import *\n"
        "ds = parsed(report(Path(sys.argv[2]), brain_findings(None)))\n"
        "print(ds.ContentDate, ds.ContentTime, ds.SeriesDate, ds.SeriesTime,"
        " ds.InstanceCreationDate, ds.InstanceCreationTime, 'TimezoneOffsetFromUTC' in ds)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(REPOSITORY), str(tmp_path)],
        env={**os.environ, "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    moment = "20260304 140607.890000"
    assert done.stdout.split() == f"{moment} {moment} {moment} False".split()


# What is not there


@needs_dciodvfy
@needs_dsrdump
def test_a_lesion_that_was_not_found_is_absent_and_not_a_finding(tmp_path: Path) -> None:
    result = report(tmp_path, lesion_findings())
    judged(result, tmp_path)
    summary = read_report(result.data)
    assert summary.findings == ()
    assert summary.evaluations == (Evaluation(LESION, ABSENT), Evaluation(LESION, ABSENT))
    assert summary.measurements[0].value == 0


def test_normal_anatomy_that_was_not_found_is_not_called_absent(tmp_path: Path) -> None:
    result = report(tmp_path, brain_findings(np.zeros(SHAPE, np.uint8), measurements=()))
    summary = read_report(result.data)
    assert (summary.findings, summary.evaluations) == ((), ())
    assert "Negative result: the segmentation is empty." in summary.comments


@needs_dciodvfy
@needs_dsrdump
@pytest.mark.parametrize(("probability", "answer"), [(0.02, ABSENT), (0.93, PRESENT)])
def test_only_a_finding_that_is_present_is_asserted(probability: float, answer: Code, tmp_path: Path) -> None:
    result = report(tmp_path, chest_findings(probability))
    judged(result, tmp_path)
    summary = read_report(result.data)
    assert summary.findings == ((PNEUMONIA,) if answer == PRESENT else ())
    assert summary.evaluations == (Evaluation(PNEUMONIA, answer),)


def test_highdicom_reads_a_report_without_a_finding(tmp_path: Path) -> None:
    from highdicom.sr import srread

    labels = ball(SHAPE)
    labels[labels == 1] = 2
    for findings in (lesion_findings(), brain_findings(labels)):
        content = srread(BytesIO(report(tmp_path, findings).data)).content
        groups = [
            *content.get_volumetric_roi_measurement_groups(),
            *content.get_image_measurement_groups(),
        ]
        assert len(groups) >= 2
        assert {group.tracking_identifier for group in groups} >= {findings.finding.meaning}


@pytest.mark.parametrize(
    ("score", "threshold", "said"),
    [
        (0.0213456, 0.5, "Pneumonia: Absent. The value 0.0213 is below the threshold 0.5."),
        (0.93, 0.5, "Pneumonia: Present. The value 0.93 is at or above the threshold 0.5."),
        (0.49999, 0.5, "Pneumonia: Absent. The value 0.49999 is below the threshold 0.5."),
        (0.5, 0.5, "Pneumonia: Present. The value 0.5 is at or above the threshold 0.5."),
    ],
)
def test_the_threshold_behind_an_answer_is_said(
    score: float, threshold: float, said: str, tmp_path: Path
) -> None:
    answer = PRESENT if score >= threshold else ABSENT
    findings = Findings(PNEUMONIA, None, evaluations=(Evaluation(PNEUMONIA, answer, score, threshold),))
    assert said in read_report(report(tmp_path, findings).data).comments
    assert said in " ".join(panel(findings, context_of(PAIRS)))


# What was not seen


@pytest.mark.parametrize(
    ("coverage", "unseen", "said"),
    [
        (0.4, ((8, 19),), ("The model saw 40 % of the imaged volume; it did not see slices 9 to 20.",)),
        (0.7, ((0, 2), (19, 19)), (
            "The model saw 70 % of the imaged volume; it did not see slices 1 to 3 and 20.",
        )),
        (0.994, (), ("The model saw 99 % of the imaged volume.",)),
        (0.001, ((0, 0),), ("The model saw less than 1 % of the imaged volume; it did not see slice 1.",)),
        (0.995, (), ()),
        (1.0, (), ()),
        (None, (), ()),
    ],
)  # fmt: skip
def test_what_the_model_did_not_see_is_said(
    coverage: float | None, unseen: Sequence[tuple[int, int]], said: tuple[str, ...]
) -> None:
    findings = brain_findings(ball(SHAPE), coverage=coverage, unseen_slices=tuple(unseen), warnings=())
    assert statements(findings, context_of(PAIRS)).texts() == (*said, REMARK)


def test_slices_are_named_by_their_instance_numbers_where_these_follow_each_other() -> None:
    findings = lesion_findings(coverage=0.8, unseen_slices=((0, 3),))
    turned = [(p, replace(h, instance_number=100 - i)) for i, (p, h) in enumerate(PAIRS)]
    assert "did not see slices 97 to 100." in statements(findings, context_of(turned)).coverage
    odd = [(p, replace(h, instance_number=3 * i)) for i, (p, h) in enumerate(PAIRS)]
    assert "did not see slices 1 to 4 in order of position." in statements(findings, context_of(odd)).coverage
    none = [(p, replace(h, instance_number=None)) for p, h in PAIRS]
    assert "in order of position." in statements(findings, context_of(none)).coverage

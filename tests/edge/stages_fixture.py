"""The stages of `work` on real directories, stepped by hand: no port, no lanes, a clock that stands."""

import random
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from dicom.header import InstanceHeader, scan_file
from dicom.layout import DecodeLimits
from edge import journal_view
from edge.arrivals import Arrival, ArrivalReader, ArrivalWriter, AssociationEnded
from edge.assemble import Assembler
from edge.bell import Wake
from edge.counting import Counter
from edge.engine import Engine, WorkerLimits
from edge.handover import Headers, Inferred, Shelf
from edge.infer import Infer
from edge.instances import InstanceStore, instance_key, study_key
from edge.journal import Journal
from edge.journal_view import StudyDetail
from edge.options import Assemble
from edge.produce import Produce
from edge.runner import Busy, Lane, StageWork
from edge.serving import Serving
from edge.streaming import BegunSlice, Streaming
from edge.study import Stage
from model_store.store import ModelStore
from tests.edge.records_fixture import NOW

WAIT_S = 20.0


class Stages:
    """`assemble`, `infer` and `produce` below `directory`; use it as a context manager."""

    def __init__(
        self,
        directory: Path,
        models: Sequence[Path],
        *,
        streaming: bool = True,
        options: dict[str, Any] | None = None,
        counter: Callable[[], Counter] | None = None,
        limits: DecodeLimits | None = None,
    ) -> None:
        self.directory = directory
        for name in ("instances", "arrivals", "results", "models"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        self.journal = Journal.open(directory / "journal.db")
        self.instances = InstanceStore(directory / "instances")
        self.log = ArrivalWriter(directory / "arrivals", clock=self.now)
        self.store = ModelStore(directory / "models")
        for path in models:
            self.store.activate(self.store.import_package(path).digest, who="test", now=NOW)
        self.serving = Serving(self.store, lambda package: Engine.start(package, WorkerLimits(threads=1)))
        self.serving.begin(NOW)
        self.executor = ThreadPoolExecutor(1)
        self.slices: Shelf[Any] = Shelf(1 << 28)
        self.begun: Shelf[BegunSlice] = Shelf(1 << 28)
        self.inferred: Shelf[Inferred] = Shelf(1 << 28)
        self.headers = Headers(self.journal)
        limits = limits or DecodeLimits()
        self.streaming = None
        if streaming:
            self.streaming = Streaming(
                self.instances, self.serving, self.slices, self.begun, self.executor, limits
            )
        self.counter = counter() if counter is not None else None
        self.assembler = Assembler(
            self.journal,
            self.instances,
            ArrivalReader(directory / "arrivals"),
            self.serving,
            Assemble(**{"quiet_s": 3600.0, **(options or {})}),
            self.headers,
            self.now,
            streaming=self.streaming,
            counter=self.counter,
        )
        self.works: dict[Stage, StageWork] = {
            Stage.ASSEMBLE: self.assembler,
            Stage.INFER: Infer(
                self.journal,
                self.instances,
                self.serving,
                self.headers,
                self.inferred,
                limits,
                self.now,
                self.streaming,
            ),
            Stage.PRODUCE: Produce(
                self.journal,
                self.instances,
                self.serving,
                self.headers,
                self.inferred,
                directory / "results",
                ["pacs"],
                self.now,
            ),
        }
        busy = Busy()
        self.lanes = {
            stage: Lane(stage, work, self.journal, Wake(), busy, self.now)
            for stage, work in self.works.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.serving.close()
        self.log.close()
        self.journal.close()

    @staticmethod
    def now() -> datetime:
        """Always the same: results depend on when their item was entered."""
        return NOW

    def store_file(self, path: Path) -> InstanceHeader:
        """Put a file where `receive` would have put it; its header."""
        header, _ = scan_file(path)
        target = self.instances.path(
            study_key(header.study_instance_uid), instance_key(header.sop_instance_uid)
        )
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        return header

    def arrival(self, header: InstanceHeader, association: str = "1-1", **changes: Any) -> Arrival:  # noqa: ANN401 (any field)
        """The entry for an instance."""
        entry = Arrival(
            study_key(header.study_instance_uid),
            instance_key(header.sop_instance_uid),
            1000,
            None,
            header,
            "SCANNER",
            association,
            NOW,
        )
        return replace(entry, **changes)

    def receive(
        self, files: Sequence[Path], association: str = "1-1", *, ended: str | None = "released"
    ) -> None:
        """What `receive` does with files that come on one association."""
        for path in files:
            self.log.append(self.arrival(self.store_file(path), association))
        if ended is not None:
            self.end(association, ended)

    def end(self, association: str = "1-1", how: str = "released") -> None:
        """An association is over."""
        self.log.append(AssociationEnded(association, "SCANNER", how, NOW))

    def idle(self) -> None:
        """Return when nothing is being begun."""
        done = threading.Event()
        self.executor.submit(done.set)
        assert done.wait(WAIT_S)

    def step(self, *stages: Stage) -> None:
        """Work off all that is due in these stages (all of them if none is named)."""
        while any(self.lanes[stage].step() for stage in stages or tuple(self.lanes)):
            pass

    def study(self) -> StudyDetail:
        """The only study."""
        [row] = journal_view.studies(self.journal)
        detail = journal_view.study(self.journal, row.study_key)
        assert detail is not None
        return detail

    def results(self) -> dict[str, bytes]:
        """Path below the results directory to content, of every result object."""
        root = self.directory / "results"
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.dcm"))}


def shuffled(files: Sequence[Path], seed: int) -> list[Path]:
    """The files in another order."""
    found = list(files)
    random.Random(seed).shuffle(found)
    return found


__all__ = ["NOW", "Stages", "shuffled"]

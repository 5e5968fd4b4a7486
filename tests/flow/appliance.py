"""The appliance as a process, for flow and crash tests: configured, started, watched, killed."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from dicom.requestor import Destination
from edge import journal_view
from edge.journal import Journal
from edge.journal_view import StudyDetail
from model_store.store import ModelStore
from tests.fakes.pacs import free_port

REPOSITORY: Final = Path(__file__).resolve().parents[2]
BRAIN: Final = REPOSITORY / "models" / "brain_t1_small"
STORESCU: Final = "/usr/bin/storescu"  # the venv holds pynetdicom's program of the same name
START_LIMIT_S: Final = 60.0
STUDY_LIMIT_S: Final = 120.0


@dataclass
class Appliance:
    """One appliance on directories below `directory`; use it as a context manager, or start and stop it."""

    directory: Path
    destinations: Sequence[Destination] = ()
    models: Sequence[Path] = (BRAIN,)
    options: str = ""
    """More of the configuration file, as TOML."""
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    process: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.port = self.port or free_port()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.configuration = self.directory / "insitu.toml"
        self.state = self.directory / "state"
        self.log = self.directory / "insitu.log"
        peers = '[[peer]]\nname = "scanner"\nae_title = "STORESCU"\nhost = "127.0.0.1"\nport = 104\n'
        for peer in self.destinations:
            peers += (
                f'[[peer]]\nname = "{peer.name}"\nae_title = "{peer.ae_title}"\nhost = "{peer.host}"\n'
                f"port = {peer.port}\nmay_send = false\nreceives_results = true\n"
            )
        self.configuration.write_text(
            f'[node]\nhost = "127.0.0.1"\nport = {self.port}\n'
            f'[directories]\nstate = "{self.state}"\ncache = "{self.directory}/cache"\n'
            f'runtime = "{self.directory}/run"\n[limits]\nmin_free_disk_bytes = 1048576\n'
            f"{self.options}\n{peers}"
        )
        store = ModelStore(self.state / "models")
        for path in self.models:
            digest = store.import_package(path).digest
            store.activate(digest, who="test", now=datetime.now(UTC))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill() if kind else self.stop()

    def command(self) -> list[str]:
        """`insitu run` with the configuration of this appliance."""
        return [sys.executable, "-I", "-m", "edge", "--config", str(self.configuration), "run"]

    def start(self) -> None:
        """Start it, and return when it says that it runs."""
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1", **self.environment},
            )
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], START_LIMIT_S)[0] or not (
            self.process.stdout.readline()
        ):
            self.kill()
            raise AssertionError(f"insitu run did not start:\n{self.log.read_text()[-3000:]}")

    def stop(self) -> None:
        """SIGTERM; it must end by itself, and well."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._gone()
        assert code == 0, f"insitu run ended with {code}:\n{self.log.read_text()[-3000:]}"

    def restart(self) -> None:
        """Stop it, and start it again."""
        self.stop()
        self.start()

    def insitu(self, *arguments: str) -> int:
        """Another verb of the command line, with this appliance's configuration; its exit status."""
        command = [*self.command()[:-1], *arguments]
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self._gone()

    def _gone(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process = None

    def journal(self) -> Journal:
        """The journal, for reading."""
        return Journal.open(self.state / "journal.db", readonly=True)

    def studies(self) -> list[StudyDetail]:
        """All studies, oldest first."""
        if not (self.state / "journal.db").exists():
            return []
        journal = self.journal()
        try:
            rows = journal_view.studies(journal, limit=1000)
            found = [journal_view.study(journal, row.study_key) for row in reversed(rows)]
            return [detail for detail in found if detail is not None]
        finally:
            journal.close()

    def wait(
        self, what: Callable[[list[StudyDetail]], bool], limit_s: float = STUDY_LIMIT_S
    ) -> list[StudyDetail]:
        """The studies, as soon as `what` is true of them."""
        deadline = time.monotonic() + limit_s
        while not what(studies := self.studies()):
            dead = self.process is not None and self.process.poll() is not None
            if dead or time.monotonic() > deadline:
                raise AssertionError(
                    f"not reached: {[(d.study.state, d.study.reason, d.items) for d in studies]}\n"
                    f"{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.05)  # another process's journal: there is no event to wait for
        return studies

    def wait_for(self, *states: str, limit_s: float = STUDY_LIMIT_S) -> list[StudyDetail]:
        """The studies, once their states are `states`, in the order of their arrival."""
        return self.wait(lambda found: tuple(each.study.state for each in found) == states, limit_s)

    def send(self, files: Sequence[Path], calling: str = "STORESCU", *more: str) -> int:
        """Send `files` with dcmtk's storescu; its exit status."""
        command = [STORESCU, "-aet", calling, "-aec", "INSITU", *more, "127.0.0.1", str(self.port)]
        done = subprocess.run(
            [*command, *map(str, files)],
            env={**os.environ, "TCP_NODELAY": "1"},
            capture_output=True,
            timeout=120,
            check=False,
        )
        return done.returncode

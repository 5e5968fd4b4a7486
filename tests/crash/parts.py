"""The appliance in parts, each role a process of its own; and what was stored, against what was sent."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from dicom.errors import HeaderError
from dicom.part10 import MAX_META_BYTES, read_meta
from dicom.uid import derive
from edge.instances import InstanceStore, instance_key, study_key
from tests.flow.appliance import REPOSITORY, Appliance
from tests.tiny import tiny_study

SENDER: Final = REPOSITORY / "tests" / "crash" / "sender.py"


@dataclass
class Part(Appliance):
    """`insitu run --role …`: some roles of an appliance; parts of one appliance share its directory."""

    roles: Sequence[str] = ()
    under: Sequence[str] = ()
    """A command that runs it, in front of its own."""
    name: str = "insitu"
    """Of its log."""

    def __post_init__(self) -> None:
        """Write the configuration, and import the models."""
        super().__post_init__()
        self.log = self.directory / f"{self.name}.log"

    def command(self) -> list[str]:
        """`insitu run` with the roles."""
        return [*self.under, *super().command(), *(part for role in self.roles for part in ("--role", role))]

    def other(self, *roles: str) -> "Part":
        """Another part of the same appliance, on the same configuration."""
        part = Part(self.directory, self.destinations, (), self.options, port=self.port, roles=roles)
        part.log = self.directory / f"{'-'.join(roles)}.log"
        return part


@dataclass
class ForkedPart(Part):
    """A part that starts in no time, to be killed often; see fork_server.py. Use `served` around it all."""

    server: subprocess.Popen[str] | None = None
    pid: int = 0

    @contextmanager
    def served(self) -> Iterator[None]:
        """Run the fork server; in the end nothing is left running."""
        with self.log.open("a") as log:
            self.server = subprocess.Popen(
                [sys.executable, "-I", str(REPOSITORY / "tests" / "crash" / "fork_server.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
            )
        with self.server:
            try:
                yield
            finally:
                self.kill()
                assert self.server.stdin is not None
                self.server.stdin.close()
                self.server.wait(10)

    def start(self) -> None:
        """Start it, and return when it says that it runs."""
        assert self.server is not None
        assert self.server.stdin is not None
        arguments = self.command()
        self.server.stdin.write(json.dumps(arguments[arguments.index("edge") + 1 :]) + "\n")
        self.server.stdin.flush()
        self.pid = int(self._line("pid "))
        self._line("INSITU runs ")

    def stop(self) -> None:
        """SIGTERM; it must end by itself, and well."""
        os.kill(self.pid, signal.SIGTERM)
        self.pid = 0
        assert self._line("ended ") == "0"

    def kill(self) -> None:
        """SIGKILL."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self.pid = 0
            self._line("ended ")

    def _line(self, begin: str) -> str:
        assert self.server is not None
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        if begin == "INSITU runs " and line.startswith("ended "):
            self.pid = 0
        assert line.startswith(begin), f"{line!r}: {self.log.read_text()[-3000:]}"
        return line[len(begin) :].strip()


@dataclass(frozen=True)
class Sent:
    """What a modality has: SOP Instance UID to data set, and where each belongs."""

    datasets: dict[str, bytes]
    places: dict[str, str]
    """SOP Instance UID to `<study key>/<instance key>.dcm`."""
    files: dict[str, Path]


def studies(
    directory: Path, count: int, slices: int = 8, extra_bytes: int = 0, groups: int = 0
) -> tuple[list[Path], Sent]:
    """`count` small studies in `groups` directories (or one each), closed by their announced number."""
    more: dict[str, Any] = {"ICCProfile": bytes(range(256)) * (extra_bytes // 256)} if extra_bytes else {}
    datasets, places, paths, directories = {}, {}, {}, []
    for number in range(count):
        group = directory / f"{number % groups if groups else number:03d}"
        if group not in directories:
            directories.append(group)
        files = tiny_study(group, f"study-{number:03d}", slices, announced=slices, **more)
        for image, path in enumerate(files):
            uid = derive(f"study-{number:03d}", "1", str(image))
            paths[uid] = path
            datasets[uid] = dataset_of(path.read_bytes())
            places[uid] = f"{study_key(derive(f'study-{number:03d}'))}/{instance_key(uid)}.dcm"
    return directories, Sent(datasets, places, paths)


def dataset_of(raw: bytes) -> bytes:
    """The data set of a file; the file itself where it is none."""
    try:
        return raw[read_meta(raw[:MAX_META_BYTES]).dataset_offset :]
    except HeaderError:
        return raw


@contextmanager
def sending(port: int, log: Path, directories: Iterable[Path]) -> Iterator[subprocess.Popen[bytes]]:
    """Run the sender (sender.py), which waits for `permit`; it is gone afterwards."""
    log.touch()
    command = [sys.executable, "-I", str(SENDER), f"127.0.0.1:{port}", str(log), *map(str, directories)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def permit(process: subprocess.Popen[bytes], instances: int | None = None) -> None:
    """Let the sender send so many more instances; None: all."""
    assert process.stdin is not None
    if instances is None:
        process.stdin.close()
    else:
        process.stdin.write(f"{instances}\n".encode())
        process.stdin.flush()


def send_all(port: int, log: Path, directories: Iterable[Path]) -> None:
    """Run the sender until all has been taken."""
    with sending(port, log, directories) as process:
        permit(process)
        assert process.wait(90) == 0


def acknowledged(log: Path) -> dict[str, int]:
    """SOP Instance UID to the time (monotonic, ns) at which the sender had the success."""
    found: dict[str, int] = {}
    for line in log.read_text().splitlines(keepends=True):
        parts = line.split()
        if line.endswith("\n") and len(parts) == 2:
            found.setdefault(parts[1], int(parts[0]))
    return found


def has_acknowledged(log: Path, count: int) -> bool:
    """Whether so many have been acknowledged."""
    return len(acknowledged(log)) >= count


def refused(log: Path) -> list[str]:
    """The statuses other than success that the sender had, in hex."""
    return [parts[2] for line in log.read_text().splitlines() if len(parts := line.split()) > 2]


def wait_until(what: Callable[[], bool], process: subprocess.Popen[Any], limit_s: float = 60) -> None:
    """Wait for what another process writes, as long as `process` lives and the limit has not passed."""
    until = time.monotonic() + limit_s
    while not what():
        assert time.monotonic() < until, "not reached"
        with suppress(subprocess.TimeoutExpired):
            code = process.wait(0.002)
            assert what(), f"the sender ended with {code} before"


def visible(instances: Path) -> dict[str, bytes]:
    """`<study key>/<instance key>.dcm` to data set, for all that has a lasting name; torn ones as found."""
    found = {}
    for path in instances.glob("*/*.dcm"):
        if path.parent.name not in {"incoming", "incidents"}:
            found[f"{path.parent.name}/{path.name}"] = dataset_of(path.read_bytes())
    return found


def recovered(instances: Path, sent: Sent) -> set[str]:
    """Recover the store as `receive` does at its start; the UIDs that are there, whole.

    Nothing half-written may be seen, before or after.
    """
    whole = {sent.places[uid]: dataset for uid, dataset in sent.datasets.items()}
    for name, dataset in visible(instances).items():
        assert dataset == whole[name], f"{name} is visible and not whole before recovery"
    store = InstanceStore(instances)
    store.recover()
    after = visible(instances)
    for name, dataset in after.items():
        assert dataset == whole[name], f"{name} is visible and not whole after recovery"
    assert not list((instances / "incoming").iterdir())
    assert not list((instances / "incidents").iterdir())
    assert {f"{each.study_key}/{each.instance_key}.dcm" for each in store.scan()} == set(after)
    return {uid for uid, name in sent.places.items() if name in after}

"""Every error has one meaning, and every row of the table refers to something that exists."""

import errno
import importlib
import inspect
import sqlite3
from types import ModuleType

import pytest

import dicom.errors
import edge.errors
import model_store.errors
from dicom.errors import (
    DecodeError,
    GeometryError,
    HeaderError,
    PeerError,
    ProtocolError,
    StoreRefusedError,
    UnsupportedError,
)
from edge.errors import (
    DeadlineError,
    ModelOutOfServiceError,
    RunError,
    TensorError,
    WorkerDiedError,
    WorkerStartError,
)
from edge.exit_codes import CommandError, ExitCode
from edge.failures import OF_ERRNO, OF_NAME, OF_TYPE, Verdict, verdict_of
from edge.incoming import DiskError, MismatchError
from edge.study import Outcome
from model_store.errors import GraphError, ManifestError, StoreError

CASES = [
    (HeaderError("x"), Outcome.HOLD, 0xC000, ExitCode.FAILED),
    (DecodeError("x"), Outcome.HOLD, 0xC000, ExitCode.FAILED),
    (UnsupportedError("x"), Outcome.DECLINE, 0xC000, ExitCode.FAILED),
    (GeometryError("x"), Outcome.DECLINE, 0xA900, ExitCode.FAILED),
    (PeerError("x"), Outcome.RETRY, 0x0110, ExitCode.PEER),
    (ProtocolError("x"), Outcome.RETRY, 0x0110, ExitCode.PEER),
    (StoreRefusedError(0xA700, "disk"), Outcome.HOLD, 0xA700, ExitCode.FAILED),
    (ManifestError("m", ["a"]), Outcome.HOLD, 0x0110, ExitCode.REFUSED),
    (GraphError("x"), Outcome.HOLD, 0x0110, ExitCode.REFUSED),
    (StoreError("x"), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (OSError(errno.ENOSPC, "No space left on device"), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (OSError(errno.EROFS, "Read-only file system"), Outcome.HOLD, 0xA700, ExitCode.FAILED),
    (PermissionError(errno.EACCES, "Permission denied"), Outcome.HOLD, 0xA700, ExitCode.FAILED),
    (FileNotFoundError(errno.ENOENT, "No such file"), Outcome.HOLD, 0x0110, ExitCode.NOT_FOUND),
    (OSError("no errno"), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (MemoryError(), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (sqlite3.OperationalError("database is locked"), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (sqlite3.DatabaseError("malformed"), Outcome.HOLD, 0xA700, ExitCode.FAILED),
    (sqlite3.IntegrityError("UNIQUE"), Outcome.HOLD, 0x0110, ExitCode.DEFECT),
    (CommandError(ExitCode.NOT_FOUND, "x", "look"), Outcome.HOLD, 0x0110, ExitCode.NOT_FOUND),
    (WorkerDiedError("x"), Outcome.RETRY, 0x0110, ExitCode.FAILED),
    (DeadlineError("x"), Outcome.RETRY, 0x0110, ExitCode.FAILED),
    (RunError("x"), Outcome.HOLD, 0x0110, ExitCode.FAILED),
    (ModelOutOfServiceError("x"), Outcome.HOLD, 0x0110, ExitCode.FAILED),
    (WorkerStartError("x"), Outcome.RETRY, 0x0110, ExitCode.FAILED),
    (TensorError("x"), Outcome.HOLD, 0x0110, ExitCode.DEFECT),
    (DiskError("x"), Outcome.RETRY, 0xA700, ExitCode.FAILED),
    (MismatchError("x"), Outcome.HOLD, 0xA900, ExitCode.FAILED),
    (KeyError("x"), Outcome.HOLD, 0x0110, ExitCode.DEFECT),
]


@pytest.mark.parametrize(
    ("error", "outcome", "status", "exit_code"), CASES, ids=lambda value: repr(value)[:40]
)
def test_an_error_has_its_meaning(
    error: Exception, outcome: Outcome, status: int, exit_code: ExitCode
) -> None:
    verdict = verdict_of(error)
    assert (verdict.outcome, verdict.dimse_status, verdict.exit_code) == (outcome, status, exit_code)


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("x"), sqlite3.IntegrityError("x"), AssertionError()]
)
def test_what_no_row_names_is_held_and_logged_as_our_defect(error: Exception) -> None:
    verdict = verdict_of(error)
    assert verdict.outcome is Outcome.HOLD
    assert not verdict.expected
    assert "defect of Insitu" in verdict.next_step


@pytest.mark.parametrize("module", [dicom.errors, edge.errors, model_store.errors])
def test_every_error_of_the_packages_is_expected(module: ModuleType) -> None:
    kinds = [
        kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__
    ]
    assert len(kinds) > 4
    for kind in kinds:
        assert any(base in OF_TYPE for base in kind.__mro__), kind


@pytest.mark.parametrize("name", OF_NAME)
def test_every_error_that_is_named_exists(name: str) -> None:
    module, _, kind = name.rpartition(".")
    found = getattr(importlib.import_module(module), kind)
    assert issubclass(found, Exception)
    assert f"{found.__module__}.{found.__qualname__}" == name


def test_every_row_says_the_next_step_in_one_sentence_and_has_a_failure_status() -> None:
    rows: list[Verdict] = [*OF_TYPE.values(), *OF_NAME.values(), *OF_ERRNO.values()]
    for row in rows:
        assert row.next_step
        assert row.next_step[0].islower()
        assert not row.next_step.endswith(".")
        assert row.exit_code is not ExitCode.OK
        assert row.outcome in {Outcome.RETRY, Outcome.DECLINE, Outcome.HOLD}
        assert row.dimse_status in {0x0110, 0xA700, 0xA900, 0xC000}


def test_a_new_kind_of_error_means_what_its_parent_means() -> None:
    class NewPeerError(PeerError):
        pass

    assert verdict_of(NewPeerError("x")) == verdict_of(PeerError("x"))

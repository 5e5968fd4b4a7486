"""What an error means: try again, decline, or hold; which DIMSE status; which exit status; what to do next.

THE one table: nothing else in the appliance decides this. Types are looked up from the most
particular to the most general, so that a new kind of error means what its parent means until it has
a row of its own; what no row names is a defect of ours, and is held.

The operator reads the message of the error, then `next_step`; the peer sees the status only
(PS3.7 §9.1.1.1.9, PS3.4 Table B.2-1).
"""

import errno
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from dicom.errors import (
    DecodeError,
    DicomError,
    GeometryError,
    HeaderError,
    InstanceError,
    PeerError,
    StoreRefusedError,
    UnsupportedError,
)
from edge.config import ConfigError
from edge.database import JournalError
from edge.errors import (
    DeadlineError,
    EngineError,
    ModelOutOfServiceError,
    RunError,
    TensorError,
    WorkerDiedError,
    WorkerStartError,
)
from edge.exit_codes import CommandError, ExitCode
from edge.incoming import DiskError, InstanceStoreError, MismatchError
from edge.presence import AlreadyRunningError, PortError
from edge.study import Outcome
from edge.tls import TlsFileError
from model_store.errors import (
    GraphError,
    ManifestError,
    ModelStoreError,
    PackageError,
    StoreError,
    UnknownModelError,
)

OUT_OF_RESOURCES: Final = 0xA700
DATA_SET_DOES_NOT_MATCH: Final = 0xA900
CANNOT_UNDERSTAND: Final = 0xC000
PROCESSING_FAILURE: Final = 0x0110


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an error means."""

    outcome: Outcome
    """Of the work item in hand: RETRY, DECLINE or HOLD."""
    dimse_status: int
    """Answered to a C-STORE request that met it."""
    exit_code: ExitCode
    """Of the verb that met it."""
    next_step: str
    """For the operator: one sentence that follows the error's message."""
    expected: bool = True
    """Whether it can happen without a defect of ours: then it is logged without a traceback."""
    waits: bool = False
    """Of RETRY: for as long as it takes. The cause ends when somebody makes room, not by trying."""


_BUG: Final = Verdict(
    Outcome.HOLD,
    PROCESSING_FAILURE,
    ExitCode.DEFECT,
    "this is a defect of Insitu: report it with the log; insitu study retry tries again",
    expected=False,
)
_DISK_FULL: Final = Verdict(
    Outcome.RETRY,
    OUT_OF_RESOURCES,
    ExitCode.FAILED,
    "free space on the disk of the state directory; work goes on by itself",
    waits=True,
)
_EXHAUSTED: Final = Verdict(
    Outcome.RETRY,
    OUT_OF_RESOURCES,
    ExitCode.FAILED,
    "the machine is short of memory or open files: see what uses them; work goes on by itself",
)
_NOT_OURS_TO_WRITE: Final = Verdict(
    Outcome.HOLD,
    OUT_OF_RESOURCES,
    ExitCode.FAILED,
    "see the owner and the mount of the state directory, run as the daemon's user, then insitu study retry",
)
_DISK_FAILS: Final = Verdict(
    Outcome.HOLD,
    OUT_OF_RESOURCES,
    ExitCode.FAILED,
    "the disk fails: see the kernel's log, replace it, then insitu study retry",
)
_OTHER_OS: Final = Verdict(
    Outcome.RETRY, OUT_OF_RESOURCES, ExitCode.FAILED, "see the system's log; it is tried again by itself"
)

# By what the system says, before the type: ENOSPC is an OSError like any other.
OF_ERRNO: Final[Mapping[int, Verdict]] = MappingProxyType(
    {
        errno.ENOSPC: _DISK_FULL,
        errno.EDQUOT: _DISK_FULL,
        errno.ENOMEM: _EXHAUSTED,
        errno.EMFILE: _EXHAUSTED,
        errno.ENFILE: _EXHAUSTED,
        errno.EROFS: _NOT_OURS_TO_WRITE,
        errno.EACCES: _NOT_OURS_TO_WRITE,
        errno.EPERM: _NOT_OURS_TO_WRITE,
        errno.EIO: _DISK_FAILS,
        errno.ENOENT: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.NOT_FOUND,
            "a file is gone: send the study again, or restore the state directory, then insitu study retry",
        ),
    }
)

OF_TYPE: Final[Mapping[type[BaseException], Verdict]] = MappingProxyType(
    {
        # --- dicom: the instance, the series, the other node
        HeaderError: Verdict(
            Outcome.HOLD,
            CANNOT_UNDERSTAND,
            ExitCode.FAILED,
            "have the sender mend and send the instance again, then insitu study retry",
        ),
        DecodeError: Verdict(
            Outcome.HOLD,
            CANNOT_UNDERSTAND,
            ExitCode.FAILED,
            "its pixel data came damaged, and stands as it came: have the sender mend it and send it"
            " under a new SOP Instance UID, then insitu study retry",
        ),
        UnsupportedError: Verdict(
            Outcome.DECLINE,
            CANNOT_UNDERSTAND,
            ExitCode.FAILED,
            "have the sender use a transfer syntax of the conformance statement",
        ),
        InstanceError: Verdict(
            Outcome.HOLD, CANNOT_UNDERSTAND, ExitCode.FAILED, "look at the instance, then insitu study retry"
        ),
        GeometryError: Verdict(
            Outcome.DECLINE,
            DATA_SET_DOES_NOT_MATCH,
            ExitCode.FAILED,
            "nothing to do, unless slices are missing: then have the series sent again",
        ),
        StoreRefusedError: Verdict(  # the status is the error's own
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "see the reason; the sender has been told"
        ),
        PeerError: Verdict(
            Outcome.RETRY,
            PROCESSING_FAILURE,
            ExitCode.PEER,
            "see that the node runs, and that it knows our AE title: insitu echo",
        ),
        DicomError: Verdict(
            Outcome.HOLD, CANNOT_UNDERSTAND, ExitCode.FAILED, "look at the study, then insitu study retry"
        ),
        # --- model_store: the vendor, or our own disk
        ManifestError: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.REFUSED,
            "nothing was changed; give these lines to the model's vendor",
        ),
        GraphError: Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.REFUSED, "nothing was changed; ask the model's vendor"
        ),
        PackageError: Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.REFUSED, "nothing was changed; ask the model's vendor"
        ),
        UnknownModelError: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.NOT_FOUND,
            "insitu model list shows what there is; import the model again, then insitu study retry",
        ),
        StoreError: Verdict(
            Outcome.RETRY,
            OUT_OF_RESOURCES,
            ExitCode.FAILED,
            "see the disk and the owner of the state directory",
        ),
        ModelStoreError: Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "insitu model list shows what there is"
        ),
        # --- edge: running a model
        TensorError: _BUG,
        WorkerStartError: Verdict(
            Outcome.RETRY,
            PROCESSING_FAILURE,
            ExitCode.FAILED,
            "see the log for why the worker does not start, and whether the machine has the memory",
        ),
        WorkerDiedError: Verdict(
            Outcome.RETRY,
            PROCESSING_FAILURE,
            ExitCode.FAILED,
            "it is tried once more on a fresh worker; if it dies again, report it to the model's vendor",
        ),
        DeadlineError: Verdict(
            Outcome.RETRY,
            PROCESSING_FAILURE,
            ExitCode.FAILED,
            "the machine may be busy or too small for the model: see its deadline in insitu model show",
        ),
        RunError: Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "report it to the model's vendor"
        ),
        ModelOutOfServiceError: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.FAILED,
            "its worker keeps failing: see the log, activate another version, then insitu study retry",
        ),
        EngineError: Verdict(
            Outcome.RETRY,
            PROCESSING_FAILURE,
            ExitCode.FAILED,
            "see the log; activate another version of the model, then insitu study retry",
        ),
        # --- edge: the instances on disk
        MismatchError: Verdict(
            Outcome.HOLD,
            DATA_SET_DOES_NOT_MATCH,
            ExitCode.FAILED,
            "the sender contradicts itself: have it mended and the instance sent again",
        ),
        DiskError: _DISK_FULL,
        InstanceStoreError: _DISK_FULL,
        # --- edge: the configuration, the journal
        ConfigError: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.CONFIGURATION,
            "every option: docs/configuration.md; insitu config check",
        ),
        TlsFileError: Verdict(
            Outcome.HOLD,
            PROCESSING_FAILURE,
            ExitCode.CONFIGURATION,
            "mend the files that [tls] names; insitu config check looks at them",
        ),
        JournalError: Verdict(
            Outcome.HOLD,
            OUT_OF_RESOURCES,
            ExitCode.FAILED,
            "see the disk and the owner of the state directory",
        ),
        PortError: Verdict(
            Outcome.HOLD,
            OUT_OF_RESOURCES,
            ExitCode.FAILED,
            "free it, or set another; a port below 1024 needs the right to listen there",
        ),
        AlreadyRunningError: Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "insitu status shows what runs"
        ),
        # --- the runtime
        sqlite3.OperationalError: Verdict(  # locked, full, read-only: the cause may pass
            Outcome.RETRY,
            OUT_OF_RESOURCES,
            ExitCode.FAILED,
            "the journal cannot be used now: see the disk and the owner of the state directory",
        ),
        sqlite3.IntegrityError: _BUG,
        sqlite3.ProgrammingError: _BUG,
        sqlite3.InterfaceError: _BUG,
        sqlite3.DataError: _BUG,
        sqlite3.DatabaseError: Verdict(
            Outcome.HOLD,
            OUT_OF_RESOURCES,
            ExitCode.FAILED,
            "the journal is damaged: stop the daemon, move journal.db aside; it is rebuilt from the files",
        ),
        MemoryError: _EXHAUSTED,
        OSError: _OTHER_OS,
    }
)

# Named, not imported: `insitu status` must not pay for NumPy. tests/edge/test_failures.py resolves each.
OF_NAME: Final[Mapping[str, Verdict]] = MappingProxyType(
    {
        "edge.steps.sample.OutOfScopeError": Verdict(
            Outcome.DECLINE,
            DATA_SET_DOES_NOT_MATCH,
            ExitCode.FAILED,
            "nothing to do: the model is not made for this study",
        ),
        "edge.steps.sample.ModelOutputError": Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "report it to the model's vendor"
        ),
        "edge.demo_study.DemoError": Verdict(
            Outcome.HOLD, PROCESSING_FAILURE, ExitCode.FAILED, "insitu demo --help shows the choices"
        ),
    }
)


def store_http_status(stored: int, failures: Sequence[int]) -> int:
    """The status of a STOW-RS response (PS3.18 Table 10.5.3-1).

    Args:
        stored: how many instances are stored.
        failures: the failure reasons of the others, as C-STORE statuses.
    """
    if not failures:
        return 200 if stored else 400  # a request without an instance asks for nothing
    if stored:
        return 202
    return 503 if all(status >> 8 == OUT_OF_RESOURCES >> 8 for status in failures) else 409


def retrieve_http_status(error: BaseException) -> int:
    """The status of a WADO-RS response that met `error` (PS3.18 Table 10.4.3-1)."""
    if isinstance(error, FileNotFoundError):
        return 404  # retention has taken it meanwhile
    if isinstance(error, UnsupportedError):
        return 406  # it cannot be given in this form
    return 500


def verdict_of(error: BaseException) -> Verdict:
    """What `error` means; an error that no row names is a defect of ours, and is held."""
    if isinstance(error, OSError) and (of_errno := OF_ERRNO.get(error.errno or 0)) is not None:
        return of_errno
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
        return _DISK_FULL
    if isinstance(error, CommandError):
        return replace(_BUG, exit_code=error.code, next_step=error.hint, expected=True)
    for kind in type(error).__mro__:
        verdict = OF_TYPE.get(kind) or OF_NAME.get(f"{kind.__module__}.{kind.__qualname__}")
        if verdict is not None:
            return (
                replace(verdict, dimse_status=error.status)
                if isinstance(error, StoreRefusedError)
                else verdict
            )
    return _BUG

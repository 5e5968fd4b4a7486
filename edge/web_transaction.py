"""One STOW-RS request as instances of the store: its parts, their durable steps, and its answer.

Owns what becomes of each part (PS3.18 §10.5): found sound, it goes the way of every instance
(`edge.receive`); else it is named with its failure reason. Parts are written in the order in which they
come, and committed side by side: a file system makes one journal commit for several that wait for it.

Security: the parts are hostile. Nothing of a part is kept beyond its File Meta Information; preamble
and meta information are dropped and written anew. What is not whole leaves nothing.
"""

import logging
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from dicom.errors import HeaderError, StoreRefusedError
from dicom.multipart import MultipartError, media_type
from dicom.part10 import MAX_META_BYTES, FileMeta, read_meta
from dicom.services import STORABLE_TRANSFER_SYNTAXES, is_storage
from dicom.store_handler import AssociationInfo, Incoming, StoreRequest
from dicom.uid import is_valid
from edge.failures import CANNOT_UNDERSTAND, verdict_of
from edge.receive import ReceiveStage

log = logging.getLogger(__name__)

SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
TRANSFER_SYNTAX_NOT_SUPPORTED: Final = 0xC122
"""PS3.18 Annex I, Failure Reason: Referenced Transfer Syntax not supported."""
MAX_COMMITS: Final = 16
"""Instances of one request that wait for the disk at a time: what one journal commit may hold together."""

_ELEMENT_HEAD_BYTES: Final = 8
_MAX_LOGGED: Final = 10  # refusals of one request that are logged one by one; the others are counted


@dataclass(frozen=True, slots=True)
class PartLimits:
    """What a part may be."""

    max_object_bytes: int
    accept_unknown_storage: bool


@dataclass
class _Part:
    """What is known of one part, and at last what became of it."""

    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    status: int | None = None
    """0 when it is stored."""
    head: bytearray = field(default_factory=bytearray)
    size_bytes: int = 0
    incoming: Incoming | None = None


class Transaction:
    """Takes the parts of one request, in one thread; a `dicom.multipart.PartHandler`."""

    def __init__(
        self,
        stage: ReceiveStage,
        association: AssociationInfo,
        study_instance_uid: str,
        limits: PartLimits,
        pool: ThreadPoolExecutor,
    ) -> None:
        """Keeps the arguments.

        Args:
            stage: where instances go.
            association: whose they are.
            study_instance_uid: the study that the path names; empty: any.
            limits: of one part.
            pool: commits instances.
        """
        self._stage = stage
        self._association = association
        self._study_instance_uid = study_instance_uid
        self._limits = limits
        self._pool = pool
        self._parts: list[_Part] = []
        self._commits: deque[tuple[_Part, Future[int]]] = deque()
        self._refused = 0

    def part_begins(self, headers: Mapping[str, str]) -> None:
        """The next part; one that is no instance is refused and its content dropped."""
        part = _Part()
        self._parts.append(part)
        try:
            name = media_type(headers.get("content-type", "application/dicom")).name
        except MultipartError:
            name = ""
        if name != "application/dicom":
            self._refuse(part, CANNOT_UNDERSTAND, "its Content-Type is not application/dicom")
        elif headers.get("content-transfer-encoding", "binary").lower() not in {"binary", "8bit"}:
            self._refuse(part, CANNOT_UNDERSTAND, "it has a Content-Transfer-Encoding (PS3.18 §8.6.1)")

    def part_data(self, data: memoryview) -> None:
        """A piece of it."""
        part = self._parts[-1]
        if part.status is not None:
            return
        part.size_bytes += len(data)
        if part.size_bytes > self._limits.max_object_bytes + MAX_META_BYTES:
            self._drop(part)
            self._refuse(part, CANNOT_UNDERSTAND, f"longer than {self._limits.max_object_bytes} bytes")
        elif part.incoming is not None:
            self._write(part, data)
        elif not part.head and (meta := _whole_meta(data[:MAX_META_BYTES])) is not None:
            self._begin(part, meta, data)  # nearly always: nothing is copied
        else:
            part.head += data
            if (meta := _whole_meta(memoryview(part.head)[:MAX_META_BYTES])) is not None:
                self._begin(part, meta, memoryview(bytes(part.head)))
            elif len(part.head) >= MAX_META_BYTES:
                self._begin_at_last(part)

    def part_ends(self) -> None:
        """It is whole: commit it, beside those before."""
        part = self._parts[-1]
        if part.status is None and part.incoming is None:
            self._begin_at_last(part)
        if part.status is not None or part.incoming is None:
            return
        incoming, part.incoming = part.incoming, None
        self._commits.append((part, self._pool.submit(_commit, incoming)))
        while len(self._commits) > MAX_COMMITS:
            self._settle_one()

    def discard(self) -> None:
        """The part in hand will not become whole; those before stay, and are waited for."""
        if self._parts:
            self._drop(self._parts[-1])
            if self._parts[-1].status is None and not any(p is self._parts[-1] for p, _ in self._commits):
                self._parts.pop()
        self.settle()

    def settle(self) -> None:
        """Wait until every instance is durable, or refused."""
        while self._commits:
            self._settle_one()
        if self._refused > _MAX_LOGGED:
            log.warning("association %d: %d instances refused", self._association.number, self._refused)

    @property
    def stored(self) -> int:
        """How many instances are durable."""
        return sum(part.status == 0 for part in self._parts)

    @property
    def failures(self) -> list[int]:
        """The failure reasons of the others."""
        return [part.status for part in self._parts if part.status]

    def answer(self) -> dict[str, Any]:
        """The Store Instances Response Module as DICOM JSON (PS3.18 §10.5.3, Annex I)."""
        stored = [_reference(part) for part in self._parts if part.status == 0]
        named = [part for part in self._parts if part.status and part.sop_instance_uid]
        unnamed = [part for part in self._parts if part.status and not part.sop_instance_uid]
        answer: dict[str, Any] = {"00081190": {"vr": "UR"}}  # Retrieve URL: type 2
        for tag, items in (
            ("00081198", [_reference(part) | _reason(part) for part in named]),  # Failed SOP Sequence
            ("00081199", [item | {"00081190": {"vr": "UR"}} for item in stored]),  # Referenced SOP Sequence
            ("0008119A", [_reason(part) for part in unnamed]),  # Other Failures Sequence
        ):
            if items:
                answer[tag] = {"vr": "SQ", "Value": items}
        return answer

    def _begin_at_last(self, part: _Part) -> None:
        """No more will come that could tell: take the meta information as it is."""
        try:
            meta = read_meta(bytes(part.head[:MAX_META_BYTES]))
        except HeaderError as error:
            self._refuse(part, CANNOT_UNDERSTAND, str(error))
            return
        self._begin(part, meta, memoryview(bytes(part.head)))

    def _begin(self, part: _Part, meta: FileMeta, data: memoryview) -> None:
        part.head.clear()
        part.sop_class_uid = meta.media_storage_sop_class_uid
        part.sop_instance_uid = meta.media_storage_sop_instance_uid
        if not is_valid(part.sop_class_uid) or not is_valid(part.sop_instance_uid):
            part.sop_class_uid = part.sop_instance_uid = ""
            self._refuse(
                part, CANNOT_UNDERSTAND, "(0002,0002) or (0002,0003) Media Storage SOP UID is missing"
            )
            return
        if not is_storage(part.sop_class_uid, accept_unknown=self._limits.accept_unknown_storage):
            self._refuse(part, SOP_CLASS_NOT_SUPPORTED, f"SOP Class {part.sop_class_uid} is not stored")
            return
        if meta.transfer_syntax_uid not in STORABLE_TRANSFER_SYNTAXES:
            said = f"transfer syntax {meta.transfer_syntax_uid} is not stored"
            self._refuse(part, TRANSFER_SYNTAX_NOT_SUPPORTED, said)
            return
        request = StoreRequest(
            self._association,
            part.sop_class_uid,
            part.sop_instance_uid,
            meta.transfer_syntax_uid,
            self._study_instance_uid,
        )
        try:
            part.incoming = self._stage.begin(request)
        except StoreRefusedError as error:
            part.status = error.status  # the stage has logged it
            return
        self._write(part, data[meta.dataset_offset :])

    def _write(self, part: _Part, data: memoryview) -> None:
        assert part.incoming is not None
        try:
            part.incoming.write([data])
        except StoreRefusedError as error:
            part.status = error.status
            part.incoming = None  # a write that fails leaves nothing

    def _settle_one(self) -> None:
        part, commit = self._commits.popleft()
        part.status = commit.result()

    def _drop(self, part: _Part) -> None:
        incoming, part.incoming = part.incoming, None
        if incoming is not None:
            incoming.discard()

    def _refuse(self, part: _Part, status: int, reason: str) -> None:
        part.status = status
        part.head.clear()
        self._refused += 1
        if self._refused <= _MAX_LOGGED:
            number, where = self._association.number, len(self._parts)
            log.warning("association %d: part %d refused with 0x%04X: %s", number, where, status, reason)


def _commit(incoming: Incoming) -> int:
    """The failure reason, or 0 when the instance is durable."""
    try:
        return incoming.commit()
    except StoreRefusedError as error:
        return error.status
    except Exception as error:  # a defect of ours must not lose the answers of the others
        log.exception("an instance was not stored by a defect")
        return verdict_of(error).dimse_status
    finally:
        incoming.discard()


def _whole_meta(data: memoryview) -> FileMeta | None:
    """The File Meta Information, if `data` reaches into the data set behind it."""
    try:
        meta = read_meta(bytes(data))
    except HeaderError:
        return None  # broken, or cut: known when no more comes
    return meta if len(data) >= meta.dataset_offset + _ELEMENT_HEAD_BYTES else None


def _reference(part: _Part) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [part.sop_class_uid]},
        "00081155": {"vr": "UI", "Value": [part.sop_instance_uid]},
    }


def _reason(part: _Part) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [part.status]}}


def refused_reasons(transaction: Transaction) -> Sequence[str]:
    """The failure reasons as the Standard writes them, for the log."""
    return [f"0x{status:04X}" for status in sorted(set(transaction.failures))]

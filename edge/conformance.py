"""The tables of `docs/conformance-statement.md` (PS3.2), printed from what the code does."""

import ast
import inspect
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Final

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.uid import UID

from dicom import composite, content, picture, provenance, report, segmentation
from dicom.association import State
from dicom.commitment import (
    INVALID_ARGUMENT,
    RESOURCE_LIMITATION,
    STORAGE_COMMITMENT_PUSH_MODEL,
    TRANSFER_SYNTAXES,
    FailureReason,
)
from dicom.commitment_service import NO_SUCH_ACTION, NO_SUCH_SOP_INSTANCE
from dicom.composite import KINDS
from dicom.element import EXPLICIT_VR_LITTLE_ENDIAN
from dicom.pdu import AbortReason, Rejection
from dicom.query import STUDY_ROOT_FIND, STUDY_ROOT_MOVE
from dicom.requestor import IMPLICIT_VR_LITTLE_ENDIAN
from dicom.services import (
    NEWER_TRANSFER_SYNTAXES,
    STORABLE_TRANSFER_SYNTAXES,
    STORAGE_SOP_CLASSES,
    UNCOMPRESSED,
    VERIFICATION,
)
from dicom.uid import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from dicom.validity import RULES
from dicom.walk import MAX_INFLATED_BYTES, MAX_VALUE_BYTES
from edge.options import Limits, Settings
from edge.reference import told, toml_value, unit
from edge.tls import TLS_1_2_CIPHERS

STORE_STATUSES: Final[Mapping[int, str]] = {
    0x0000: "success: the instance is durable, or was here already with the same data set",
    0x0110: "processing failure: a defect of ours; the log has it",
    0x0111: "duplicate SOP instance: another data set of this SOP Instance UID is here, and stays",
    0x0117: "invalid SOP instance: the SOP Instance UID is not a UID",
    0x0122: "SOP class not supported: not that of the presentation context",
    0x0211: "unrecognized operation: a DIMSE service that we do not perform",
    0xA700: "out of resources: the disk is full, below its watermark, or fails; try again later",
    0xA900: "data set does not match SOP class: it names another instance or class than the command",
    0xC000: "cannot understand: the data set cannot be read, or is longer than limits.max_object_bytes",
}
ACTION_STATUSES: Final[Mapping[int, str]] = {
    0x0000: "success: the request is durable; a report will follow",
    0x0110: "processing failure: our disk does not take the request",
    NO_SUCH_SOP_INSTANCE: "no such SOP instance: not the well-known instance 1.2.840.10008.1.20.1.1",
    INVALID_ARGUMENT: "invalid argument value: the Action Information cannot be read, or names nothing",
    0x0122: "SOP class not supported: not that of the presentation context",
    NO_SUCH_ACTION: "no such action type: not 1",
    RESOURCE_LIMITATION: "resource limitation: more instances than limits.max_commitment_references, more "
    "requests than limits.max_commitments, or the disk is below its watermark",
}
FAILURE_REASONS: Final[Mapping[int, str]] = {
    FailureReason.PROCESSING_FAILURE: "the file is here, and is damaged or cannot be read",
    FailureReason.NO_SUCH_OBJECT_INSTANCE: "not here: never received, or deleted since",
    FailureReason.CLASS_INSTANCE_CONFLICT: "here, of another SOP class than was asked for",
    FailureReason.DUPLICATE_TRANSACTION_UID: "the Transaction UID is in use for other instances",
}
FIXED_LIMITS: Final[Sequence[tuple[str, int, str]]] = (
    ("bytes of one value that is looked at", MAX_VALUE_BYTES, "none that we read may be half as long"),
    (
        "bytes inflated in search of Pixel Data",
        MAX_INFLATED_BYTES,
        "32 peers that send bombs at once must fit in memory",
    ),
    ("presentation contexts that we propose", 128, "PS3.8 §9.3.2.2: the odd numbers of a byte"),
)
CODE_ITEM: Final = ("CodeValue", "LongCodeValue", "CodingSchemeDesignator", "CodeMeaning")
"""Attributes of every item of a code sequence (`dicom.element.Encoder.code`)."""
_MODULES: Final[Sequence[tuple[str, ModuleType]]] = (
    ("all", composite),
    ("all", provenance),
    ("SEG", segmentation),
    ("SR", report),
    ("SR", content),
    ("SC", picture),
)


def conformance_markdown() -> str:
    """What stands between the marks of `docs/conformance-statement.md`."""
    parts = [
        ("Implementation", _implementation()),
        ("SOP classes and roles", _services()),
        ("Storage SOP classes received", _names(STORAGE_SOP_CLASSES)),
        ("Transfer syntaxes received", _names(STORABLE_TRANSFER_SYNTAXES)),
        ("Association policy", _policy()),
        ("Limits", _limits()),
        ("Status of a C-STORE response", _statuses(STORE_STATUSES)),
        ("Status of an N-ACTION response", _statuses(ACTION_STATUSES)),
        ("Failure Reason in a storage commitment report", _statuses(FAILURE_REASONS)),
        ("Result objects", _results()),
        ("Attributes of the result objects", _attributes()),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)


def attributes_of(module: ModuleType) -> list[str]:
    """The keywords of the attributes that a module of result objects writes, nested ones included."""
    found = {
        call.args[0].value
        for call in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(call, ast.Call)
        and _name(call.func) in {"encode", "copied"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and tag_for_keyword(call.args[0].value) is not None
    }
    return sorted(found, key=lambda keyword: tag_for_keyword(keyword) or 0)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _implementation() -> str:
    return _table(
        ("attribute", "value"),
        [
            ("Implementation Class UID", f"`{IMPLEMENTATION_CLASS_UID}`"),
            ("Implementation Version Name", f"`{IMPLEMENTATION_VERSION_NAME}`"),
            ("Application context", "`1.2.840.10008.3.1.1.1`"),
        ],
    )


def _services() -> str:
    both = ", ".join(UID(uid).name for uid in TRANSFER_SYNTAXES)
    default = UID(IMPLICIT_VR_LITTLE_ENDIAN).name
    rows = [
        (
            VERIFICATION,
            "SCP",
            ", ".join(UID(uid).name for uid in UNCOMPRESSED),
            "who may associate may C-ECHO",
        ),
        (VERIFICATION, "SCU", default, "`insitu echo`"),
        (STORAGE_COMMITMENT_PUSH_MODEL, "SCP", both, "`receive.storage_commitment`; reports both ways"),
        (STUDY_ROOT_FIND, "SCU", default, "`[[pull]]`, `insitu pull`"),
        (STUDY_ROOT_MOVE, "SCU", default, "`[[pull]]`, `insitu pull`"),
        *[
            (kind.sop_class_uid, "SCU", UID(EXPLICIT_VR_LITTLE_ENDIAN).name, "results")
            for kind in KINDS.values()
        ],
    ]
    lines = [(UID(uid).name, f"`{uid}`", role, syntaxes, note) for uid, role, syntaxes, note in rows]
    lines.append(("every storage SOP class below", "", "SCP", "every transfer syntax below", "C-STORE"))
    lines.append(("every SOP class", "", "SCU", "the file's own", "`insitu send`: files go as they are"))
    return _table(("SOP class", "UID", "role", "transfer syntaxes", "remark"), lines)


def _names(uids: Iterable[str]) -> str:
    names = {uid: NEWER_TRANSFER_SYNTAXES.get(uid) or UID(uid).name for uid in uids}
    return _table(("name", "UID"), sorted((names[uid], f"`{uid}`") for uid in uids))


def _policy() -> str:
    settings = Settings()
    rejections = ", ".join(f"{each.name.lower().replace('_', ' ')}" for each in Rejection)
    aborts = ", ".join(each.name.lower().replace("_", " ") for each in AbortReason)
    return _table(
        ("what", "how"),
        [
            ("called AE title", "must be `node.ae_title`"),
            ("calling AE title", "must be that of a `[[peer]]` with `may_send`"),
            ("address", "must be `host` or in `accept_from` of that peer, unless `address_check = false`"),
            ("TLS certificate", "must be `certificate_sha256` of that peer, where that is given"),
            ("transfer syntax", "of each context the first that the requestor names and that we accept"),
            ("roles", "we are SCP of what is proposed to us; as SCP of a report we propose that role"),
            ("asynchronous operations", "window of 1"),
            ("user identity, extended negotiation", "not used, and not answered"),
            ("default ports", f"{settings.node.port}; by TLS none, 2762 is registered"),
            ("states", f"{len(State)} of PS3.8 Table 9-1 to 9-5; a table, tested pair by pair"),
            ("A-ASSOCIATE-RJ", rejections),
            ("A-ABORT of the provider", aborts),
            ("TLS", f"1.3, and 1.2 with {', '.join(TLS_1_2_CIPHERS)}"),
        ],
    )


def _limits() -> str:
    rows = []
    for name, field in Limits.model_fields.items():
        option = told(field)
        value = f"{toml_value(field.default)} {unit(name)}".strip()
        rows.append((option.text, value, f"`limits.{name}`", option.reason))
    rows += [(what, str(number), "fixed", why) for what, number, why in FIXED_LIMITS]
    return _table(("limit", "number", "setting", "reason"), rows)


def _statuses(meanings: Mapping[int, str]) -> str:
    return _table(
        ("status", "meaning"), [(f"0x{status:04X}", words) for status, words in sorted(meanings.items())]
    )


def _results() -> str:
    return _table(
        ("kind", "SOP class", "UID", "Modality", "Series Number"),
        [
            (
                kind.name,
                UID(kind.sop_class_uid).name,
                f"`{kind.sop_class_uid}`",
                kind.modality,
                f"{kind.series_numbers[0]} to {kind.series_numbers[-1]}, in tens",
            )
            for kind in KINDS.values()
        ],
    )


def _attributes() -> str:
    written: dict[str, set[str]] = {"copied from the source": set(RULES), "items of codes": set(CODE_ITEM)}
    for name, module in _MODULES:
        written.setdefault(name, set()).update(attributes_of(module))
    keywords = sorted(
        {each for found in written.values() for each in found}, key=lambda word: tag_for_keyword(word) or 0
    )
    rows = []
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        assert tag is not None
        used = ", ".join(name for name in written if keyword in written[name])
        rows.append((f"({tag >> 16:04X},{tag & 0xFFFF:04X})", keyword, dictionary_VR(tag), used))
    return _table(("tag", "attribute", "VR", "written in"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)

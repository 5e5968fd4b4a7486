"""The receive stage: who may send, what each request is answered, and what `work` is told."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from dicom.errors import HeaderError, StoreRefusedError
from dicom.header import scan, scan_file
from dicom.part10 import file_meta, open_instance
from dicom.receive import AssociationInfo, End, Incoming, Rejection, StoreHandler, StoreRequest
from dicom.requestor import Destination
from dicom.send import Sender
from edge.arrivals import Arrival, ArrivalReader, ArrivalWriter, AssociationEnded, Entry, Position
from edge.instances import InstanceStore, instance_key, study_key
from edge.options import Directories, Limits, Node, Peer, Settings
from edge.receive import Receiver, ReceiveStage
from tests.edge.test_instances import CT, EXPLICIT, REPOSITORY, data_of, dataset, files
from tests.fakes.pacs import StoreScp, needs_dcmtk
from tests.material import MATERIAL, needs_material

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
STORESCU = "/usr/bin/storescu"
ECHOSCU = "/usr/bin/echoscu"
PROPOSAL = {  # transfer syntax to the option with which dcmtk's storescu proposes it
    "1.2.840.10008.1.2": "-xi",
    "1.2.840.10008.1.2.1": "-xe",
    "1.2.840.10008.1.2.2": "-xb",
    "1.2.840.10008.1.2.1.99": "-xd",
    "1.2.840.10008.1.2.4.50": "-xy",
    "1.2.840.10008.1.2.4.51": "-xx",
    "1.2.840.10008.1.2.4.70": "-xs",
    "1.2.840.10008.1.2.4.80": "-xt",
    "1.2.840.10008.1.2.4.81": "-xu",
    "1.2.840.10008.1.2.4.90": "-xv",
    "1.2.840.10008.1.2.4.91": "-xw",
    "1.2.840.10008.1.2.5": "-xr",
}

NOT_SENT_BY_DCMTK = {"explicit_VR-UN.dcm"}  # whoever receives it: it is sent by our own sender below


class Box:
    """A store, an arrival log and what is done with them, below one directory."""

    def __init__(self, directory: Path, min_free_bytes: int = 0) -> None:
        self.log = directory / "arrivals"
        self.log.mkdir(parents=True)
        self.store = InstanceStore(directory / "instances", min_free_bytes)
        self.store.recover()
        self.writer = ArrivalWriter(self.log, lambda: NOW)
        self.rung: list[int] = []
        self.first = threading.Event()
        self.ended = threading.Event()
        self.checkpoints: list[str] = []
        self.stage = ReceiveStage(
            self.store,
            self.writer,
            ae_title="INSITU",
            callers={"CT1": lambda address: address == "10.0.0.1", "CT2": lambda _: True},
            ring=self.ring,
            clock=lambda: NOW,
            checkpoint=self.checkpoints.append,
        )

    def ring(self) -> None:
        entries = self.entries()
        self.rung.append(len(entries))
        self.first.set()
        if entries and isinstance(entries[-1], AssociationEnded):
            self.ended.set()

    def entries(self) -> list[Entry]:
        return ArrivalReader(self.log).read(Position(), 100_000)[0]

    def arrivals(self) -> list[Arrival]:
        return [entry for entry in self.entries() if isinstance(entry, Arrival)]


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    box = Box(tmp_path / "box")
    yield box
    box.writer.close()


def association(number: int = 1, caller: str = "CT1") -> AssociationInfo:
    return AssociationInfo(number, caller, "INSITU", "10.0.0.1", 4711, NOW)


def request(sop: str = "1.2.3.4", sop_class: str = CT, number: int = 1) -> StoreRequest:
    return StoreRequest(association(number), sop_class, sop, EXPLICIT)


def send(box: Box, data: bytes, what: StoreRequest | None = None) -> int:
    """The status that the request is answered with, as the acceptor makes it."""
    incoming: Incoming | None = None
    try:
        incoming = box.stage.begin(what or request())
        incoming.write([memoryview(data)[:7], memoryview(data)[7:]])
        return incoming.commit()
    except StoreRefusedError as error:
        if incoming is not None:
            incoming.discard()
        return error.status


def test_the_stage_is_what_the_acceptor_asks_for(box: Box) -> None:
    handler: StoreHandler = box.stage
    assert handler is box.stage


@pytest.mark.parametrize(
    ("calling", "called", "address", "rejection"),
    [
        ("CT1", "INSITU", "10.0.0.1", None),
        ("CT2", "INSITU", "10.9.9.9", None),
        ("CT1 ", " INSITU ", "10.0.0.1", None),
        ("CT1", "INSITU", "10.0.0.2", Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED),
        ("CT3", "INSITU", "10.0.0.1", Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED),
        ("ct1", "INSITU", "10.0.0.1", Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED),
        ("", "INSITU", "10.0.0.1", Rejection.CALLING_AE_TITLE_NOT_RECOGNIZED),
        ("CT1", "OTHER", "10.0.0.1", Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED),
        ("CT1", "ANY-SCP", "10.0.0.1", Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED),
        ("CT3", "insitu", "10.0.0.1", Rejection.CALLED_AE_TITLE_NOT_RECOGNIZED),
    ],
)
def test_only_a_known_caller_from_its_address_for_our_ae_title_is_admitted(
    box: Box,
    calling: str,
    called: str,
    address: str,
    rejection: Rejection | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert box.stage.admit(calling, called, address, None) == rejection
    assert bool(caplog.records) == (rejection is not None)


def test_what_is_stored_is_announced_then_the_bell_rings_then_success_is_answered(box: Box) -> None:
    data = dataset()
    assert send(box, data) == 0x0000
    assert box.rung == [1]
    assert box.checkpoints == ["logged"]
    (arrival,) = box.arrivals()
    stored = box.store.path(study_key("1.2.3"), instance_key("1.2.3.4"))
    assert arrival == Arrival(
        study_key=study_key("1.2.3"),
        instance_key=instance_key("1.2.3.4"),
        size_bytes=stored.stat().st_size,
        checksum=zlib.crc32(data),
        header=scan(data, EXPLICIT),
        calling_ae_title="CT1",
        association=f"{box.writer.run}-1",
        received=NOW,
    )
    assert data_of(stored) == data


def test_the_same_again_is_answered_with_success_and_announced_again(box: Box) -> None:
    # a crash may have kept the first announcement; who reads them takes each instance once
    assert [send(box, dataset()) for _ in range(3)] == [0x0000] * 3
    assert len({arrival.instance_key for arrival in box.arrivals()}) == 1
    assert len(box.arrivals()) == 3
    assert len(list(box.store.stored_keys())) == 1


@pytest.mark.parametrize(
    ("data", "what", "status"),
    [
        (b"", request(), 0xC000),
        (b"no data set at all", request(), 0xC000),
        (dataset()[:50], request(), 0xC000),
        (dataset(study="1.2/3"), request(), 0xC000),
        (dataset(), request(sop="1.2.3.5"), 0xA900),
        (dataset(), request(sop_class="1.2.840.10008.5.1.4.1.1.4"), 0xA900),
    ],
)
def test_what_cannot_be_kept_is_answered_with_its_status_and_leaves_nothing(
    box: Box, data: bytes, what: StoreRequest, status: int
) -> None:
    assert send(box, data, what) == status
    assert files(box.store) == {}
    assert (box.entries(), box.rung) == ([], [])


def test_another_data_set_of_a_stored_name_is_answered_with_0111_and_the_first_stands(box: Box) -> None:
    assert send(box, dataset()) == 0x0000
    assert send(box, dataset(pixels=b"\7\7")) == 0x0111
    assert len(box.arrivals()) == 1
    assert data_of(box.store.path(study_key("1.2.3"), instance_key("1.2.3.4"))) == dataset()
    assert len(list(box.store.incidents.glob("*.dcm"))) == 1


def test_below_the_watermark_every_instance_is_answered_with_a700(tmp_path: Path) -> None:
    box = Box(tmp_path / "box", min_free_bytes=2**62)
    assert send(box, dataset()) == 0xA700
    assert files(box.store) == {}
    box.writer.close()


def test_while_the_arrival_log_cannot_be_written_nothing_more_is_taken(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from tests.edge.test_receive import *\n"
        "box = Box(Path(sys.argv[1])); limit = resource.RLIMIT_FSIZE\n"
        "hard = resource.getrlimit(limit)[1]\n"
        "def put(n): return send(box, dataset(sop=f'1.2.{n}', pixels=b''), request(f'1.2.{n}'))\n"
        "resource.setrlimit(limit, (1500, hard))\n"  # a file system that is full, but for small files
        "first = [put(n) for n in range(8)]\n"
        "resource.setrlimit(limit, (hard, hard))\n"
        "print([hex(status) for status in first + [put(8)]], len(box.arrivals()), len(files(box.store)))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "box")],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    match = re.fullmatch(r"(\[.*\]) (\d+) (\d+)\n", run.stdout)
    assert match is not None
    statuses = re.findall("0x[0-9a-f]+", match[1])
    assert "0xa700" in statuses
    assert statuses[-1] == "0x0"
    assert statuses == [*sorted(statuses[:-1]), "0x0"]  # from the first refusal on, all until there is room
    assert int(match[2]) == int(match[3]) == statuses.count("0x0")  # what was acknowledged was announced


def test_the_end_of_an_association_that_brought_something_is_announced_once(box: Box) -> None:
    send(box, dataset())
    box.stage.ended(association(2), End.RELEASED)  # an echo
    box.stage.ended(association(1), End.ABORTED)
    box.stage.ended(association(1), End.ABORTED)
    assert box.entries()[1:] == [AssociationEnded(f"{box.writer.run}-1", "CT1", "aborted", NOW)]
    assert box.rung == [1, 2]


@pytest.mark.parametrize("how", list(End))
def test_every_end_is_told_apart(box: Box, how: End) -> None:
    send(box, dataset())
    box.stage.ended(association(1), how)
    last = box.entries()[-1]
    assert isinstance(last, AssociationEnded)
    assert last.how == how.value


def test_association_numbers_are_unique_across_restarts(tmp_path: Path) -> None:
    names = set()
    for number in range(3):
        log = ArrivalWriter(tmp_path, lambda: NOW)
        names.add(f"{log.run}-1")
        log.close()
        assert len(names) == number + 1


def test_the_log_of_a_refusal_says_which_instance_and_why_and_nothing_of_the_patient(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    patient = b"\x10\x00\x10\x00PN\x0a\x00Doe^Secret"
    data = dataset().replace(b"\x20\x00\x0d\x00", patient + b"\x20\x00\x0d\x00")
    with caplog.at_level(logging.DEBUG):
        assert send(box, data, request("1.2.9")) == 0xA900
        assert send(box, data[: data.index(b"\x20\x00\x0d\x00") + 6]) == 0xC000
        assert send(box, data) == 0x0000
    assert "0xA900: SOP Instance 1.2.9: (0008,0018) SOP Instance UID is 1.2.3.4" in caplog.text
    assert "0xC000: SOP Instance 1.2.3.4: data set: the element at byte" in caplog.text
    assert "Secret" not in caplog.text


# --- with real peers ---


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[tuple[Receiver, Box, Destination]]:
    box = Box(tmp_path / "box")
    settings = Settings(
        node=Node(ae_title="INSITU", host="127.0.0.1", port=0),
        peer=(  # type: ignore[call-arg]
            Peer(name="scanner", ae_title="STORESCU", host="127.0.0.1", port=104),
            Peer(name="ours", ae_title="SENDER", host="127.0.0.1", port=104),
            Peer(name="elsewhere", ae_title="FARAWAY", host="10.1.2.3", port=104),
            Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=104, may_send=False),
        ),
        directories=Directories(state=tmp_path / "s", cache=tmp_path / "c", runtime=tmp_path / "r"),
        limits=Limits(min_free_disk_bytes=0),
    )
    receiver = Receiver(settings, box.store, box.writer, box.ring)
    receiver.start()
    host, port = receiver.address
    yield receiver, box, Destination("insitu", "INSITU", host, port)
    assert receiver.stop(10) == 0
    box.writer.close()


def dcmtk(program: str, to: Destination, *arguments: str | Path, caller: str = "STORESCU") -> int:
    return subprocess.run(
        [
            program,
            "-aet",
            caller,
            "-aec",
            to.ae_title,
            *arguments[:-1],
            to.host,
            str(to.port),
            *arguments[-1:],
        ]
        if program == STORESCU
        else [program, "-aet", caller, "-aec", to.ae_title, to.host, str(to.port)],
        env={**os.environ, "TCP_NODELAY": "1"},
        capture_output=True,
        timeout=60,
        check=False,
    ).returncode


def sendable() -> list[Path]:
    """The material's files that name a study; one of each SOP Instance UID and transfer syntax."""
    found = {}
    for path in sorted((MATERIAL / "dicom" / "transfer_syntaxes").glob("*.dcm")):
        try:
            header, _ = scan_file(path)
        except HeaderError:
            continue
        found[header.sop_instance_uid, header.transfer_syntax_uid] = path
    return list(found.values())


@needs_material
@needs_dcmtk
def test_what_storescu_sends_in_every_transfer_syntax_is_stored_as_storescp_stores_it(
    receiver: tuple[Receiver, Box, Destination], tmp_path: Path
) -> None:
    _, box, insitu = receiver
    syntaxes = set()
    with StoreScp(tmp_path / "dcmtk") as reference:
        for path in sendable():
            meta = open_instance(path).meta
            if meta.transfer_syntax_uid not in PROPOSAL:
                continue
            option = PROPOSAL[meta.transfer_syntax_uid]
            sent = dcmtk(STORESCU, reference.destination, option, path) == 0
            assert sent is (path.name not in NOT_SENT_BY_DCMTK), path.name
            if not sent:
                continue
            assert dcmtk(STORESCU, insitu, option, path) == 0
            (theirs,) = reference.files()
            header, _ = scan_file(path)
            key = study_key(header.study_instance_uid), instance_key(header.sop_instance_uid)
            ours = box.store.path(*key)
            assert data_of(ours) == data_of(theirs), path.name
            assert open_instance(ours).meta.transfer_syntax_uid == meta.transfer_syntax_uid
            assert open_instance(ours).meta.source_ae_title == "STORESCU"
            syntaxes.add(meta.transfer_syntax_uid)
            theirs.unlink()
            box.store.delete_instances(key[0], [key[1]])  # the next has the same UID in another syntax
    assert syntaxes == set(PROPOSAL)


@needs_material
def test_every_file_of_the_material_arrives_bit_for_bit(receiver: tuple[Receiver, Box, Destination]) -> None:
    _, box, insitu = receiver
    syntaxes = set()
    for path in sendable():
        with Sender(insitu, "SENDER") as sender:
            (receipt,) = sender.send([path])
        assert receipt.status == 0, f"{path.name}: {receipt.reason}"
        header, _ = scan_file(path)
        key = study_key(header.study_instance_uid), instance_key(header.sop_instance_uid)
        assert data_of(box.store.path(*key)) == data_of(path)
        syntaxes.add(header.transfer_syntax_uid)
        box.store.delete_instances(key[0], [key[1]])
    assert len(syntaxes) >= 15


@needs_dcmtk
@pytest.mark.parametrize(
    ("caller", "admitted"), [("STORESCU", True), ("FARAWAY", False), ("PACS", False), ("X", False)]
)
def test_only_peers_that_may_send_reach_the_port(
    receiver: tuple[Receiver, Box, Destination], caller: str, admitted: bool, tmp_path: Path
) -> None:
    _, box, insitu = receiver
    assert (dcmtk(ECHOSCU, insitu, caller=caller) == 0) is admitted
    path = instance_file(tmp_path, "1.2.3.4")
    assert (dcmtk(STORESCU, insitu, path, caller=caller) == 0) is admitted
    assert len(list(box.store.stored_keys())) == admitted
    assert not box.rung or admitted


@needs_dcmtk
def test_a_call_for_another_ae_title_is_rejected(
    receiver: tuple[Receiver, Box, Destination], tmp_path: Path
) -> None:
    _, box, insitu = receiver
    other = Destination("other", "OTHER", insitu.host, insitu.port)
    assert dcmtk(STORESCU, other, instance_file(tmp_path, "1.2.3.4")) != 0
    assert files(box.store) == {}


def instance_file(directory: Path, uid: str, data: bytes | None = None) -> Path:
    path = directory / f"{uid}.dcm"
    path.write_bytes(file_meta(CT, uid, EXPLICIT, "MAKER") + (data or dataset(sop=uid)))
    return path


@needs_dcmtk
def test_four_associations_at_once_lose_nothing_and_each_end_comes_after_its_arrivals(
    receiver: tuple[Receiver, Box, Destination], tmp_path: Path
) -> None:
    _, box, insitu = receiver
    folders = []
    for sender in range(4):
        folder = tmp_path / f"sender{sender}"
        folder.mkdir()
        for number in range(12):
            uid = f"1.2.3.{sender}.{number}"
            instance_file(folder, uid, dataset(sop=uid, study=f"1.2.{number % 2}", pixels=bytes(20_000)))
        folders.append(folder)
    processes = [
        subprocess.Popen([STORESCU, "+sd", "-aec", "INSITU", insitu.host, str(insitu.port), folder])
        for folder in folders
    ]
    assert [process.wait(60) for process in processes] == [0] * 4
    wait_for_ends(box, 4)
    assert len(list(box.store.stored_keys())) == 48
    entries = box.entries()
    assert len(entries) == 48 + 4
    seen: dict[str, int] = {}
    for entry in entries:
        if isinstance(entry, Arrival):
            seen[entry.association] = seen.get(entry.association, 0) + 1
        else:
            assert isinstance(entry, AssociationEnded)
            assert entry.how == "released"
            assert seen.pop(entry.association) == 12
    assert seen == {}


def wait_for_ends(box: Box, count: int) -> None:
    """Wait until the ends of `count` associations are announced."""
    for _ in range(count):
        if sum(isinstance(entry, AssociationEnded) for entry in box.entries()) >= count:
            return
        box.ended.clear()
        if sum(isinstance(entry, AssociationEnded) for entry in box.entries()) < count:
            assert box.ended.wait(20)


@needs_dcmtk
def test_a_sender_that_is_killed_leaves_what_was_acknowledged_and_nothing_half(
    receiver: tuple[Receiver, Box, Destination], tmp_path: Path
) -> None:
    _, box, insitu = receiver
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(400):
        uid = f"1.2.3.{number}"
        instance_file(folder, uid, dataset(sop=uid, pixels=bytes(60_000)))
    process = subprocess.Popen([STORESCU, "+sd", "-aec", "INSITU", insitu.host, str(insitu.port), folder])
    assert box.first.wait(20)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert box.ended.wait(20)
    last = box.entries()[-1]
    assert isinstance(last, AssociationEnded)
    assert last.how in {"lost", "released"}
    keys = {key for _, key in box.store.stored_keys()}
    assert keys == {arrival.instance_key for arrival in box.arrivals()}
    for found in box.store.scan():
        path = box.store.path(found.study_key, found.instance_key)
        assert data_of(path) == dataset(sop=found.header.sop_instance_uid, pixels=bytes(60_000))
    box.store.settle()
    assert [path for path in box.store.incoming.iterdir() if path.stat().st_size] == []

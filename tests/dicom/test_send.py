"""The SCU, against dcmtk, Orthanc, and a peer that misbehaves on order."""

import os
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from dicom.errors import HeaderError, PeerError
from dicom.requestor import Association
from dicom.send import Destination, FileMeta, Receipt, Sender, Timeouts, read_file_meta
from tests.fakes.pacs import (
    Behaviour,
    Orthanc,
    ScriptedPacs,
    StoreScp,
    free_port,
    needs_dcmtk,
    needs_orthanc,
    response_pdu,
)

MR = "1.2.840.10008.5.1.4.1.1.4"
SC = "1.2.840.10008.5.1.4.1.1.7"
EXPLICIT = "1.2.840.10008.1.2.1"
J2K = "1.2.840.10008.1.2.4.90"
SHORT = Timeouts(connect_s=5, associate_s=0.3, response_s=0.3, release_s=0.3)
PATIENT_NAME = "Nobody^Named"


def element(group: int, number: int, vr: bytes, value: bytes) -> bytes:
    value += (b"\0" if vr in {b"UI", b"OB", b"OW"} else b" ") * (len(value) % 2)
    if vr in {b"OB", b"OW"}:
        return struct.pack("<HH2sHI", group, number, vr, 0, len(value)) + value
    return struct.pack("<HH2sH", group, number, vr, len(value)) + value


def data_set(number: int, sop_class: str, size: int) -> bytes:
    return (
        element(0x0008, 0x0016, b"UI", sop_class.encode())
        + element(0x0008, 0x0018, b"UI", f"1.2.3.{number}".encode())
        + element(0x0008, 0x0020, b"DA", b"")
        + element(0x0008, 0x0060, b"CS", b"MR")
        + element(0x0010, 0x0010, b"PN", PATIENT_NAME.encode())
        + element(0x0010, 0x0020, b"LO", b"id")
        + element(0x0020, 0x000D, b"UI", b"1.2.3")
        + element(0x0020, 0x000E, b"UI", b"1.2.3.4")
        + element(0x7FE0, 0x0010, b"OW", os.urandom(size // 2 * 2))
    )


def write(path: Path, number: int, sop_class: str = MR, syntax: str = EXPLICIT, size: int = 1000) -> Path:
    meta = (
        element(2, 1, b"OB", b"\0\1")
        + element(2, 2, b"UI", sop_class.encode())
        + element(2, 3, b"UI", f"1.2.3.{number}".encode())
        + element(2, 0x10, b"UI", syntax.encode())
    )
    head = element(2, 0, b"UL", struct.pack("<I", len(meta)))
    path.write_bytes(bytes(128) + b"DICM" + head + meta + data_set(number, sop_class, size))
    return path


def study(directory: Path, count: int = 3, size: int = 1000) -> list[Path]:
    return [write(directory / f"{number}.dcm", number, size=size) for number in range(count)]


def data_set_of(path: Path) -> bytes:
    return path.read_bytes()[read_file_meta(path).data_set_offset :]


def sender_to(pacs: ScriptedPacs, timeouts: Timeouts = SHORT) -> Sender:
    return Sender(pacs.destination, "INSITU", timeouts)


def send(pacs: ScriptedPacs, files: Sequence[Path]) -> list[Receipt]:
    with sender_to(pacs) as sender:
        return sender.send(files)


def uids(receipts: Sequence[Receipt]) -> list[str]:
    return [receipt.sop_instance_uid for receipt in receipts]


# --- real peers


@needs_dcmtk
def test_dcmtk_stores_every_object_bit_for_bit_over_one_kept_association(tmp_path: Path) -> None:
    files = study(tmp_path, 5, size=300_001)
    with StoreScp(tmp_path / "scp") as peer:
        sender = Sender(peer.destination, "INSITU")
        receipts = sender.send(files)
        assert [receipt.status for receipt in receipts] == [0] * 5
        again = sender.send(files[:1])
        assert again[0].ok
        sender.echo()
        sender.close()
        stored = {read_file_meta(path).sop_instance_uid: data_set_of(path) for path in peer.files()}
    assert stored == {f"1.2.3.{number}": data_set_of(path) for number, path in enumerate(files)}


@needs_orthanc
def test_orthanc_answers_c_echo_and_stores_what_was_sent(tmp_path: Path) -> None:
    files = study(tmp_path, 2)
    with Orthanc(tmp_path / "orthanc") as pacs:
        sender = Sender(pacs.destination, "INSITU")
        sender.echo()
        assert [receipt.ok for receipt in sender.send(files)] == [True, True]
        sender.close()
        assert set(pacs.sop_instance_uids("1.2.3")) == {"1.2.3.0", "1.2.3.1"}


# --- one association, the contexts it needs


def test_one_association_proposes_just_the_pairs_that_the_files_need(tmp_path: Path) -> None:
    files = [*study(tmp_path, 2), write(tmp_path / "sc.dcm", 9, SC, J2K)]
    with ScriptedPacs() as pacs:
        sender = sender_to(pacs)
        assert uids(sender.send(files)) == ["1.2.3.0", "1.2.3.1", "1.2.3.9"]
        assert sender.connected
        sender.close()
        pacs.wait_until_all_ended()
    assert pacs.seen.associations == [[(MR, EXPLICIT), (SC, J2K)]]
    assert pacs.seen.calling_ae_titles == ["INSITU"]
    assert pacs.seen.released == 1
    assert [(uid, syntax) for uid, syntax, _ in pacs.seen.objects][-1] == ("1.2.3.9", J2K)
    assert [data for _, _, data in pacs.seen.objects] == [data_set_of(path) for path in files]


def test_a_kept_association_is_used_again_and_replaced_when_it_lacks_a_context(tmp_path: Path) -> None:
    (mr,) = study(tmp_path, 1)
    sc = write(tmp_path / "sc.dcm", 9, SC)
    with ScriptedPacs() as pacs:
        sender = sender_to(pacs)
        sender.send([mr])
        sender.send([mr])
        sender.send([sc])
        sender.send([mr, sc])
        sender.close()
    assert pacs.seen.associations == [[(MR, EXPLICIT)], [(SC, EXPLICIT), (MR, EXPLICIT)]]


def test_more_pairs_than_an_association_can_hold_take_two(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{number}", number, f"1.2.840.99.{number}", size=10) for number in range(130)]
    with ScriptedPacs() as pacs:
        receipts = send(pacs, files)
    assert uids(receipts) == [f"1.2.3.{number}" for number in range(130)]
    assert all(receipt.ok for receipt in receipts)
    assert [len(pairs) for pairs in pacs.seen.associations] == [128, 2]


def test_an_object_whose_context_is_refused_is_a_failure_and_the_others_go_out(tmp_path: Path) -> None:
    files = [write(tmp_path / "sc.dcm", 9, SC), *study(tmp_path, 1)]
    with ScriptedPacs(Behaviour(refuse_sop_classes=frozenset({SC}))) as pacs:
        refused, stored = send(pacs, files)
    assert refused.failure
    assert refused.status == 0x0122
    assert refused.reason == (
        f"no presentation context for SOP class {SC} in transfer syntax {EXPLICIT}:"
        " abstract syntax not supported"
    )
    assert stored.ok
    assert [uid for uid, _, _ in pacs.seen.objects] == ["1.2.3.0"]


def test_a_peer_that_closed_the_kept_association_is_called_again(tmp_path: Path) -> None:
    files = study(tmp_path, 2)
    with ScriptedPacs(Behaviour(release_when_idle=True)) as pacs:
        sender = sender_to(pacs)
        assert sender.send(files[:1])[0].ok
        assert pacs.release_asked.wait(10)
        assert sender.send(files[1:])[0].ok
        sender.close()
    assert len(pacs.seen.associations) == 2
    # The release may cross the next object on the way: then that is sent again, with the same UID.
    assert list(dict.fromkeys(uid for uid, _, _ in pacs.seen.objects)) == ["1.2.3.0", "1.2.3.1"]


def test_a_kept_association_that_broke_unseen_is_replaced_once(tmp_path: Path) -> None:
    files = study(tmp_path, 2)
    with ScriptedPacs(Behaviour(vanish_after=1, vanish_associations=1)) as pacs:
        sender = sender_to(pacs)
        assert sender.send(files[:1])[0].ok
        assert sender.send(files[1:])[0].ok
        sender.close()
    assert len(pacs.seen.associations) == 2
    assert [uid for uid, _, _ in pacs.seen.objects] == ["1.2.3.0", "1.2.3.1"]


def test_receipts_before_the_break_are_handed_out(tmp_path: Path) -> None:
    files = study(tmp_path, 3)
    with ScriptedPacs(Behaviour(vanish_after=2)) as pacs:
        sender = sender_to(pacs)
        each = sender.send_each(files)
        assert uids([next(each), next(each)]) == ["1.2.3.0", "1.2.3.1"]
        with pytest.raises(PeerError, match="closed the connection"):
            next(each)
        assert not sender.connected


# --- statuses


@pytest.mark.parametrize(
    ("status", "ok", "reason"),
    [
        (0x0000, True, ""),
        (0xB000, True, "status 0xB000: coercion of data elements"),
        (0xB007, True, "status 0xB007: data set does not match SOP class"),
        (0x0111, False, "status 0x0111: duplicate SOP instance"),
        (0xA700, False, "status 0xA700: out of resources"),
        (0xA7FF, False, "status 0xA7FF: out of resources"),
        (0xA900, False, "status 0xA900: data set does not match SOP class"),
        (0xC123, False, "status 0xC123: cannot understand"),
        (0x0122, False, "status 0x0122: SOP class not supported"),
        (0x0124, False, "status 0x0124: not authorized"),
        (0xFE00, False, "status 0xFE00: unknown status"),
        (0xFF00, False, "status 0xFF00: unknown status"),
    ],
)
def test_a_status_is_success_warning_or_failure_and_said_in_words(
    tmp_path: Path, status: int, ok: bool, reason: str
) -> None:
    files = study(tmp_path, 2)
    with ScriptedPacs(Behaviour(statuses=(status,))) as pacs:
        first, second = send(pacs, files)
    assert (first.status, first.ok, first.failure, first.reason) == (status, ok, not ok, reason)
    assert second.ok


# --- rejection, abort, silence, garbage

REJECTIONS = [
    ((1, 1, 1), "rejected permanently by the service user: no reason given"),
    ((1, 1, 2), "rejected permanently by the service user: application context not supported"),
    ((1, 1, 3), "rejected permanently by the service user: calling AE title not recognized"),
    ((1, 1, 7), "rejected permanently by the service user: called AE title not recognized"),
    ((1, 2, 2), r"rejected permanently by the service provider \(ACSE\): protocol version not supported"),
    ((2, 3, 1), r"rejected for now by the service provider \(presentation\): temporary congestion"),
    ((2, 3, 2), r"rejected for now by the service provider \(presentation\): local limit exceeded"),
    ((9, 9, 9), r"rejected \(result 9\) by the source 9: reason 9"),
]


@pytest.mark.parametrize(("reject", "words"), REJECTIONS)
def test_a_rejection_is_said_in_words(tmp_path: Path, reject: tuple[int, int, int], words: str) -> None:
    with ScriptedPacs(Behaviour(reject=reject)) as pacs, pytest.raises(PeerError, match=words):
        send(pacs, study(tmp_path, 1))


@pytest.mark.parametrize(
    ("abort", "words"),
    [
        ((0, 0), "aborted by the service user"),
        ((2, 0), "aborted by the service provider: no reason given"),
        ((2, 2), "aborted by the service provider: unexpected PDU"),
        ((2, 77), "aborted by the service provider: reason 77"),
    ],
)
def test_an_abort_is_said_in_words(tmp_path: Path, abort: tuple[int, int], words: str) -> None:
    with ScriptedPacs(Behaviour(abort=abort)) as pacs, pytest.raises(PeerError, match=words):
        send(pacs, study(tmp_path, 1))


def test_nobody_listening_is_a_peer_error_that_names_the_destination(tmp_path: Path) -> None:
    destination = Destination("archive", "PACS", "127.0.0.1", free_port())
    with pytest.raises(
        PeerError, match=r"^destination archive \(PACS at 127.0.0.1:\d+\): no connection: Conn"
    ):
        Sender(destination, "INSITU").send(study(tmp_path, 1))


def test_a_peer_that_says_nothing_ends_within_the_time_limit(tmp_path: Path) -> None:
    with (
        ScriptedPacs(Behaviour(silent=True)) as pacs,
        pytest.raises(PeerError, match="within the time limit"),
    ):
        send(pacs, study(tmp_path, 1))


def test_a_peer_that_stops_reading_ends_within_the_time_limit(tmp_path: Path) -> None:
    files = [write(tmp_path / "large.dcm", 1, size=32 << 20)]
    behaviour = Behaviour(stop_reading_at=100_000)
    with ScriptedPacs(behaviour) as pacs, pytest.raises(PeerError, match="stopped taking data"):
        send(pacs, files)


def test_a_peer_that_trickles_its_answer_cannot_stretch_the_time_limit() -> None:
    stop = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def trickle() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\x02\x00\x00\x00\x10\x00")
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"\0")
                except OSError:
                    return

    thread = threading.Thread(target=trickle)
    thread.start()
    try:
        destination = Destination("slow", "SLOW", "127.0.0.1", listener.getsockname()[1])
        with pytest.raises(PeerError, match="within the time limit"):
            Association(destination, "INSITU", [(MR, EXPLICIT)], SHORT)
    finally:
        stop.set()
        thread.join(10)
        listener.close()


GARBAGE = {
    "another command": lambda number: response_pdu(number, command_field=0x8030),
    "another message": lambda number: response_pdu(number + 1),
    "no PDU": lambda number: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a PDU of 4 GB": lambda number: b"\x04\x00\xff\xff\xff\xff",
    "a release": lambda number: struct.pack(">BxI4x", 5, 4),
    "an association request": lambda number: b"\x01\x00\x00\x00\x00\x02\0\0",
    "a data set": lambda number: struct.pack(">BxIIBB", 4, 8, 4, 1, 2) + b"\0\0",
    "a fragment longer than its PDU": lambda number: struct.pack(">BxIIBB", 4, 6, 99, 1, 3),
    "a command cut off": lambda number: struct.pack(">BxIIBB", 4, 9, 5, 1, 3) + b"\0\0\0",
    "a command without end": lambda number: (
        (struct.pack(">BxIIBB", 4, 60_006, 60_002, 1, 1) + bytes(60_000)) * 2
    ),
    "no status": lambda number: response_pdu(number).replace(
        b"\x00\x09\x02\x00\x00\x00", b"\x01\x09\x02\0\0\0"
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_instead_of_an_answer_is_a_peer_error_and_ends_the_association(
    tmp_path: Path, name: str
) -> None:
    with ScriptedPacs(Behaviour(raw_answer=GARBAGE[name])) as pacs:
        sender = sender_to(pacs)
        with pytest.raises(PeerError, match="destination scripted"):
            sender.send(study(tmp_path, 1))
        assert not sender.connected


@pytest.mark.parametrize("length", range(0, 160, 7))
def test_an_accept_that_is_cut_anywhere_accepts_nothing_it_does_not_say(tmp_path: Path, length: int) -> None:
    body = (bytes(68) + bytes(92))[:length]
    answer = struct.pack(">BxI", 2, len(body)) + body
    with ScriptedPacs(Behaviour(accept_bytes=answer)) as pacs:
        (receipt,) = send(pacs, study(tmp_path, 1))
    assert receipt.failure
    assert pacs.seen.objects == []


def test_a_peer_whose_pdus_are_too_small_is_refused(tmp_path: Path) -> None:
    behaviour = Behaviour(max_pdu_bytes=20)
    with (
        ScriptedPacs(behaviour) as pacs,
        pytest.raises(PeerError, match="maximum PDU length is 20, at least 64"),
    ):
        send(pacs, study(tmp_path, 1))


@pytest.mark.parametrize("max_pdu_bytes", [64, 65, 1000, 16384, 1 << 20, 1 << 31, 0])
@pytest.mark.parametrize("size", [0, 2, 100_000])
def test_no_pdu_is_longer_than_the_peer_allows(tmp_path: Path, max_pdu_bytes: int, size: int) -> None:
    (path,) = study(tmp_path, 1, size=size)
    with ScriptedPacs(Behaviour(max_pdu_bytes=max_pdu_bytes)) as pacs:
        assert send(pacs, [path])[0].ok
    assert pacs.seen.objects[0][2] == data_set_of(path)
    assert pacs.seen.largest_pdu_bytes <= (max_pdu_bytes or 1 << 20)


def test_messages_and_errors_name_no_patient(tmp_path: Path) -> None:
    with ScriptedPacs(Behaviour(statuses=(0xC000,))) as pacs:
        (receipt,) = send(pacs, study(tmp_path, 1))
    assert PATIENT_NAME not in repr(receipt)


# --- echo, files, arguments


def test_echo_is_refused_as_a_peer_error(tmp_path: Path) -> None:
    behaviour = Behaviour(refuse_sop_classes=frozenset({"1.2.840.10008.1.1"}))
    refused = pytest.raises(PeerError, match="does not accept the Verification SOP Class")
    with ScriptedPacs(behaviour) as pacs, refused, sender_to(pacs) as sender:
        sender.echo()
    assert pacs.seen.echoes == 0


def test_echo_keeps_the_association_for_the_next_one() -> None:
    with ScriptedPacs() as pacs:
        sender = sender_to(pacs)
        sender.echo()
        sender.echo()
        sender.close()
    assert (pacs.seen.echoes, len(pacs.seen.associations)) == (2, 1)


@pytest.mark.parametrize("length", [0, 100, 132, 140, 150, 200])
def test_a_file_that_is_cut_is_a_header_error_and_nothing_is_sent(tmp_path: Path, length: int) -> None:
    good, bad = study(tmp_path, 2)
    bad.write_bytes(bad.read_bytes()[:length])
    with ScriptedPacs() as pacs, pytest.raises(HeaderError, match=r"^1\.dcm: "):
        send(pacs, [good, bad])
    assert pacs.seen.associations == []


def test_file_meta_information_gives_the_pair_and_the_place_of_the_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", 7, SC, J2K)
    meta = read_file_meta(path)
    assert meta == FileMeta(SC, "1.2.3.7", J2K, meta.data_set_offset, len(data_set_of(path)))
    assert path.read_bytes()[meta.data_set_offset :][:4] == b"\x08\x00\x16\x00"


def test_a_file_that_names_no_uid_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", 7)
    path.write_bytes(path.read_bytes().replace(b"1.2.3.7\0", b"1..3.7\0\0"))
    with pytest.raises(HeaderError, match=r"\(0002,0003\) .* is '1\.\.3\.7', not a UID"):
        read_file_meta(path)


@pytest.mark.parametrize("title", ["", " ", "A" * 17, "Ä", "A\n"])
def test_an_ae_title_that_cannot_be_sent_is_our_mistake(title: str) -> None:
    destination = Destination("x", "PACS", "127.0.0.1", free_port())
    with pytest.raises(ValueError, match="AE title"):
        Association(destination, title, [(MR, EXPLICIT)], SHORT)


@pytest.mark.parametrize("count", [0, 129])
def test_no_contexts_or_too_many_are_our_mistake(count: int) -> None:
    destination = Destination("x", "PACS", "127.0.0.1", free_port())
    with pytest.raises(ValueError, match="presentation contexts"):
        Association(destination, "INSITU", [(MR, EXPLICIT)] * count, SHORT)


@needs_dcmtk
def test_memory_does_not_grow_with_the_object(tmp_path: Path) -> None:
    path = write(tmp_path / "large.dcm", 1, size=10)
    whole = path.read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00OW\0\0") + 8
    size = 512 << 20
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<I", size))
        file.truncate(at + 4 + size)  # sparse: 512 MiB of nothing
    with StoreScp(tmp_path / "scp", "--accept-all", "--ignore") as peer:
        before = peak_kib()
        with Sender(peer.destination, "INSITU") as sender:
            assert sender.send([path])[0].ok
        assert peak_kib() - before < 32 << 10


def peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])

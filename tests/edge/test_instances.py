"""The instance store: what it promised is there, whole, and what it did not promise leaves nothing."""

import errno
import logging
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pydicom
import pytest

from dicom.errors import HeaderError
from dicom.header import scan
from dicom.part10 import file_meta, open_instance, read_meta
from dicom.walk import DEFLATED
from edge import incoming
from edge.incoming import Named, key_of
from edge.instances import (
    Committed,
    DiskError,
    Fate,
    InstanceStore,
    MismatchError,
    instance_key,
    study_key,
)
from edge.slots import MAX_NAMED, MAX_SLOTS
from tests.material import MATERIAL, needs_material

CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
STRACE = shutil.which("strace")
REPOSITORY = Path(__file__).resolve().parents[2]


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    head = tag.to_bytes(4, "big")
    head = head[1::-1] + head[:1:-1]
    if vr == b"OW":
        return head + vr + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + vr + len(value).to_bytes(2, "little") + value


def dataset(sop: str = "1.2.3.4", study: str = "1.2.3", pixels: bytes = b"\1\2" * 100) -> bytes:
    return (
        element(0x00080016, b"UI", CT.encode())
        + element(0x00080018, b"UI", sop.encode())
        + element(0x0020000D, b"UI", study.encode())
        + element(0x0020000E, b"UI", b"1.2.5")
        + element(0x7FE00010, b"OW", pixels)
    )


def named(sop: str = "1.2.3.4", sop_class: str = CT, syntax: str = EXPLICIT, caller: str = "CT1") -> Named:
    return Named(sop_class, sop, syntax, caller)


def put(store: InstanceStore, data: bytes, what: Named | None = None, part: int = 65_536) -> Committed:
    instance = store.begin(what or named())
    view = memoryview(data)
    for begin in range(0, len(data), part):
        instance.write([view[begin : begin + part // 2], view[begin + part // 2 : begin + part]])
    return instance.commit()


def files(store: InstanceStore) -> dict[str, bytes]:
    """Every file below the store's root, by relative path; free slots, which are empty, left out."""
    store.settle()
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in sorted(store.root.rglob("*"))
        if path.is_file() and (path.parent != store.incoming or path.stat().st_size)
    }


def half_received(store: InstanceStore) -> list[Path]:
    """Slots that something is in."""
    store.settle()
    return [path for path in store.incoming.iterdir() if path.stat().st_size]


def sealed_meta(data: bytes, what: Named) -> bytes:
    seal = struct.pack("<QI", len(data), zlib.crc32(data))
    return file_meta(
        what.sop_class_uid, what.sop_instance_uid, what.transfer_syntax_uid, what.calling_ae_title, seal
    )


def data_of(path: Path) -> bytes:
    return b"".join(open_instance(path).chunks())


@pytest.fixture
def store(tmp_path: Path) -> InstanceStore:
    store = InstanceStore(tmp_path / "instances")
    store.recover()
    return store


# --- storing ---


def test_an_instance_is_stored_bit_for_bit_below_keys(store: InstanceStore) -> None:
    data = dataset()
    committed = put(store, data, part=10)
    path = store.path(study_key("1.2.3"), instance_key("1.2.3.4"))
    assert files(store) == {f"{key_of('1.2.3')}/{key_of('1.2.3.4')}.dcm": path.read_bytes()}
    assert path.read_bytes() == sealed_meta(data, named()) + data
    assert committed == Committed(
        Fate.STORED,
        key_of("1.2.3"),
        key_of("1.2.3.4"),
        path.stat().st_size,
        zlib.crc32(data),
        scan(data, EXPLICIT),
    )
    assert pydicom.dcmread(path).StudyInstanceUID == "1.2.3"
    assert path.stat().st_mode & 0o777 == 0o640


@needs_material
def test_every_real_file_is_stored_with_its_data_set_unchanged(store: InstanceStore) -> None:
    kept = 0
    for path in sorted((MATERIAL / "dicom" / "transfer_syntaxes").glob("*.dcm")):
        source = open_instance(path)
        what = Named(
            source.meta.media_storage_sop_class_uid,
            source.meta.media_storage_sop_instance_uid,
            source.meta.transfer_syntax_uid,
            "TESTS",
        )
        try:
            committed = put(store, data_of(path), what)
        except HeaderError as error:
            assert "study_instance_uid is missing" in str(error)
            continue
        if committed.fate is Fate.STORED:
            stored = store.path(committed.study_key, committed.instance_key)
            assert data_of(stored) == data_of(path)
            assert open_instance(stored).meta.transfer_syntax_uid == source.meta.transfer_syntax_uid
            assert (committed.header.pixel_data_offset is None) == (what.transfer_syntax_uid in DEFLATED)
            kept += 1
    assert kept >= 20
    assert half_received(store) == []


def test_an_instance_longer_than_its_first_read_is_known_by_its_header_too(store: InstanceStore) -> None:
    private = element(0x00090010, b"LO", b"ACME") + element(0x7FE00008, b"OW", bytes(300_000))
    data = dataset()
    at = data.index(b"\xe0\x7f")
    committed = put(store, data[:at] + private[12:] + data[at:])
    assert committed.fate is Fate.STORED
    assert committed.header.pixel_data_offset is not None
    assert committed.header.pixel_data_offset > 300_000


def test_a_thousand_parts_in_one_write_are_taken(store: InstanceStore) -> None:
    data = dataset(pixels=bytes(range(256)) * 20)
    instance = store.begin(named())
    view = memoryview(data)
    instance.write([view[at : at + 1] for at in range(len(data))])
    assert len(data) > 2 * 1024
    instance.commit()
    assert data_of(store.path(study_key("1.2.3"), instance_key("1.2.3.4"))) == data


def test_what_is_received_is_never_visible_before_it_is_committed(store: InstanceStore) -> None:
    instance = store.begin(named())
    instance.write([memoryview(dataset())])
    assert list(store.stored_keys()) == []
    instance.discard()
    instance.discard()
    assert files(store) == {}


@pytest.mark.parametrize("data", [b"", b"\x08", b"garbage" * 100, dataset()[:60]])
def test_what_cannot_be_read_is_refused_and_leaves_nothing(store: InstanceStore, data: bytes) -> None:
    with pytest.raises(HeaderError):
        put(store, data)
    assert files(store) == {}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (named(sop="1.2.3.9"), r"\(0008,0018\) SOP Instance UID is 1\.2\.3\.4, the command says 1\.2\.3\.9"),
        (named(sop_class="1.2.840.10008.5.1.4.1.1.4"), r"\(0008,0016\) SOP Class UID is"),
    ],
)
def test_a_data_set_that_is_not_what_the_command_named_is_refused(
    store: InstanceStore, what: Named, message: str
) -> None:
    with pytest.raises(MismatchError, match=message):
        put(store, dataset(), what)
    assert files(store) == {}


def test_a_path_is_made_of_keys_and_of_nothing_else(store: InstanceStore) -> None:
    key = key_of("1.2.3")
    assert re.fullmatch("[0-9a-f]{32}", key)
    assert store.path(key, key).parent.parent == store.root
    for bad in ("", "..", "1.2.3", key.upper(), key + "0", f"../{key}", key + "\n"):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            store.path(bad, key)
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            store.path(key, bad)


def test_without_durability_the_same_files_are_there(tmp_path: Path, store: InstanceStore) -> None:
    fast = InstanceStore(tmp_path / "fast", durable=False)
    fast.recover()
    for each in (fast, store):
        assert put(each, dataset()).fate is Fate.STORED
        assert put(each, dataset()).fate is Fate.DUPLICATE
    assert files(fast) == files(store)


# --- a second time ---


def test_the_same_again_is_a_duplicate_and_one_copy(store: InstanceStore) -> None:
    first = put(store, dataset())
    before = files(store)
    again = put(store, dataset(), named(caller="OTHER AE"))
    assert again.fate is Fate.DUPLICATE
    assert (again.study_key, again.instance_key) == (first.study_key, first.instance_key)
    assert files(store) == before


@pytest.mark.parametrize(
    ("other", "what"),
    [
        (dataset(pixels=b"\1\2" * 99 + b"\1\3"), named()),
        (dataset(pixels=b"\1\2" * 101), named()),
        (dataset(), named(syntax="1.2.840.10008.1.2.4.50")),
    ],
)
def test_another_data_set_of_the_same_name_is_kept_as_an_incident_and_the_first_stands(
    store: InstanceStore, other: bytes, what: Named, caplog: pytest.LogCaptureFixture
) -> None:
    first = put(store, dataset())
    before = files(store)
    conflict = put(store, other, what)
    assert conflict.fate is Fate.CONFLICT
    after = files(store)
    assert {name: after[name] for name in before} == before
    kept = sorted(set(after) - set(before))
    assert len(kept) == 2
    assert data_of(store.root / kept[0]) == other
    assert b"another data set of the same SOP Instance UID" in after[kept[1]]
    assert f"{first.study_key}/{first.instance_key}.dcm".encode() in after[kept[1]]
    assert first.instance_key in caplog.text
    assert put(store, other, what).fate is Fate.CONFLICT
    assert files(store) == after  # sent again, it is kept once
    assert put(store, dataset()).fate is Fate.DUPLICATE


def test_when_the_stored_copy_is_damaged_the_one_sent_again_is_kept_as_an_incident(
    store: InstanceStore,
) -> None:
    one = put(store, dataset())
    path = store.path(one.study_key, one.instance_key)
    for damage in (b"damaged", path.read_bytes()[:-4]):
        path.write_bytes(damage)
        assert put(store, dataset()).fate is Fate.CONFLICT
        assert path.read_bytes() == damage
    (kept,) = store.incidents.glob("*.dcm")
    assert data_of(kept) == dataset()


def test_the_number_of_incidents_is_bounded(store: InstanceStore, caplog: pytest.LogCaptureFixture) -> None:
    put(store, dataset())
    for number in range(2 * incoming.MAX_INCIDENTS):
        (store.incidents / f"{number}").touch()
    before = files(store)
    assert put(store, dataset(pixels=b"\0\0")).fate is Fate.CONFLICT
    assert files(store) == before
    assert "not kept" in caplog.text


def together(actions: Sequence[Callable[[], Committed]]) -> list[Committed]:
    """What each action gave, all having begun at the same time."""
    barrier = threading.Barrier(len(actions))
    results: list[Committed] = []

    def run(action: Callable[[], Committed]) -> None:
        barrier.wait(30)
        results.append(action())

    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == len(actions)
    return results


def test_of_many_that_send_the_same_name_at_once_one_is_stored(tmp_path: Path) -> None:
    for number in range(10):
        stores = [InstanceStore(tmp_path / str(number)) for _ in range(2)]  # as two processes would have
        stores[0].recover()
        datas = [dataset(), dataset(), dataset(pixels=b"\3\4"), dataset(pixels=b"\3\4")]
        instances = [stores[at % 2].begin(named()) for at in range(4)] if number % 2 else []
        if instances:  # all bytes are there: only the commits race
            for instance, data in zip(instances, datas, strict=True):
                instance.write([memoryview(data)])
            results = together([instance.commit for instance in instances])
        else:
            results = together([partial(put, stores[0], data) for data in datas])
        fates = sorted(str(result.fate) for result in results)
        assert fates == ["conflict", "conflict", "duplicate", "stored"]
        stored = data_of(stores[0].path(study_key("1.2.3"), instance_key("1.2.3.4")))
        winner = next(result for result in results if result.fate is Fate.STORED)
        assert zlib.crc32(stored) == winner.checksum
        stores[1].settle()
        assert half_received(stores[0]) == []


def test_many_instances_of_a_new_study_at_once_are_all_stored(store: InstanceStore) -> None:
    uids = [f"1.2.3.{number}" for number in range(16)]
    actions = [partial(put, store, dataset(sop=uid), named(sop=uid)) for uid in uids]
    assert {result.fate for result in together(actions)} == {Fate.STORED}
    assert list(store.stored_keys()) == sorted((study_key("1.2.3"), instance_key(uid)) for uid in uids)


# --- the disk ---


def test_below_the_watermark_nothing_is_received(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path / "instances", min_free_bytes=2**62)
    store.recover()
    with pytest.raises(DiskError, match=r"has \d+ bytes free, must have 4611686018427387904"):
        store.begin(named())
    assert files(store) == {}


def test_a_missing_directory_is_a_disk_error(tmp_path: Path) -> None:
    store = InstanceStore(tmp_path / "instances")
    with pytest.raises(DiskError, match="ENOENT"):
        store.begin(named())
    store.recover()
    store.incoming.rmdir()
    with pytest.raises(DiskError, match=r"SOP Instance 1\.2\.3\.4: our disk does not take it: ENOENT"):
        store.begin(named())


def in_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    preamble = (
        "import os, resource, signal, sys; from pathlib import Path\n"
        "from edge.instances import *; from tests.edge.test_instances import *\n"
    )
    return subprocess.run(
        [sys.executable, "-c", preamble + code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_write_that_the_system_refuses_is_a_disk_error_and_leaves_nothing(store: InstanceStore) -> None:
    code = (
        "store = InstanceStore(Path(sys.argv[1]))\n"
        "hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))\n"
        "try: put(store, dataset(pixels=bytes(50_000)))\n"
        "except DiskError as error: print(error)\n"
        "print(files(store)); print(put(store, dataset()).fate)\n"
    )
    run = in_child(code, store.root)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "does not take it: EFBIG" in lines[0]
    assert lines[1:] == ["{}", "stored"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=3000", "tmpfs", path],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("a file system cannot be mounted here (it takes root)")
    yield path
    subprocess.run(["umount", path], check=True)


def test_on_a_full_disk_nothing_half_written_is_visible_and_what_was_stored_stays(small_disk: Path) -> None:
    store = InstanceStore(small_disk)
    store.recover()
    stored = 0
    with pytest.raises(DiskError, match="ENOSPC"):
        for number in range(100):
            uid = f"1.2.3.{number}"
            put(store, dataset(sop=uid, pixels=bytes(100_000)), named(sop=uid))
            stored += 1
    assert stored >= 5
    assert len(list(store.stored_keys())) == stored
    assert len(list(store.scan())) == stored
    assert half_received(store) == []
    store.delete_study(study_key("1.2.3"))
    assert put(store, dataset(pixels=bytes(100_000))).fate is Fate.STORED


def test_without_free_inodes_nothing_is_received(small_disk: Path) -> None:
    store = InstanceStore(small_disk)
    store.recover()
    assert put(store, dataset()).fate is Fate.STORED
    for number in range(2000):
        (store.incidents / str(number)).touch()
    with pytest.raises(DiskError, match="inodes free, must have 1024"):
        store.begin(named())


def test_during_a_long_instance_the_disk_is_looked_at_again(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    asked: list[int] = []

    class Watched(InstanceStore):
        def check_room(self) -> None:
            asked.append(1)
            if len(asked) > 1:
                raise DiskError("full by now")

    store = Watched(tmp_path / "instances")
    store.recover()
    instance = store.begin(named())
    block = memoryview(bytes(8 * 1024 * 1024))
    with pytest.raises(DiskError, match="full by now"):
        for _ in range(9):
            instance.write([block])
    assert len(asked) == 2
    assert files(store) == {}
    assert free > 0


# --- crashes ---


def test_recover_removes_what_was_half_received_and_nothing_else(store: InstanceStore) -> None:
    put(store, dataset())
    put(store, dataset(pixels=b"\0\0"))
    before = files(store)
    (store.incoming / "4711-0").write_bytes(b"half")
    assert store.recover() == 1
    assert files(store) == before
    assert store.recover() == 0


POINTS = ("received", "synced", "named")


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_durable_step_an_instance_is_there_whole_or_not_at_all(
    store: InstanceStore, point: str
) -> None:
    code = (
        "def kill(name):\n"
        "    if name == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store = InstanceStore(Path(sys.argv[1]), checkpoint=kill)\n"
        "put(store, dataset())\n"
    )
    assert in_child(code, store.root, point).returncode == -signal.SIGKILL
    assert len(list(store.stored_keys())) == (point == "named")
    is_durable = point != "received"
    assert store.recover() == (not is_durable)
    assert list(store.incoming.iterdir()) == []
    assert len(list(store.stored_keys())) == is_durable
    if is_durable:
        assert data_of(store.path(study_key("1.2.3"), instance_key("1.2.3.4"))) == dataset()
        assert [arrival.header.sop_instance_uid for arrival in store.scan()] == ["1.2.3.4"]
    # the sender had no answer, and sends again
    assert put(store, dataset()).fate is (Fate.DUPLICATE if is_durable else Fate.STORED)
    assert len(files(store)) == 1


def test_the_checkpoints_come_in_their_order(tmp_path: Path) -> None:
    seen: list[str] = []
    store = InstanceStore(tmp_path / "instances", checkpoint=seen.append)
    store.recover()
    put(store, dataset())
    assert seen == list(POINTS)


def lose_lasting_names(store: InstanceStore) -> None:
    """What a power cut may do before `settle`: slots are durable, names in the studies are not."""
    for study in {key for key, _ in store.stored_keys()}:
        shutil.rmtree(store.root / study)


def test_what_was_promised_is_there_after_a_power_cut_that_took_its_lasting_name(
    store: InstanceStore,
) -> None:
    uids = [f"1.2.3.{number}" for number in range(9)]
    for uid in uids:
        put(store, dataset(sop=uid), named(uid))
    before = {path.name: path.read_bytes() for path in store.root.glob("*/*.dcm")}
    assert len(before) == len(uids)
    lose_lasting_names(store)
    again = InstanceStore(store.root)
    assert again.recover() == 0
    assert {path.name: path.read_bytes() for path in store.root.glob("*/*.dcm")} == before
    assert list(store.incoming.iterdir()) == []
    assert put(again, dataset(sop=uids[0]), named(uids[0])).fate is Fate.DUPLICATE


def test_scan_finds_what_a_power_cut_left_in_a_slot_and_takes_nothing_from_the_receiver(
    store: InstanceStore,
) -> None:
    put(store, dataset())
    lose_lasting_names(store)
    half = store.begin(named("1.2.3.5"))
    half.write([memoryview(dataset("1.2.3.5"))])
    work = InstanceStore(store.root)  # another process
    assert [arrival.header.sop_instance_uid for arrival in work.scan()] == ["1.2.3.4"]
    assert half.commit().fate is Fate.STORED
    assert sorted(arrival.header.sop_instance_uid for arrival in work.scan()) == ["1.2.3.4", "1.2.3.5"]
    assert half_received(store) == []


def test_of_a_slot_that_a_power_cut_left_half_written_nothing_is_kept(store: InstanceStore) -> None:
    put(store, dataset())
    (whole,) = [path.read_bytes() for path in store.incoming.iterdir() if path.stat().st_size]
    files(store)
    lose_lasting_names(store)
    start = whole.index(b"DICM") - 128
    at = open_instance_offset(whole)
    torn = {
        "cut in the data set": whole[: at + 10],
        "cut in the meta information": whole[:200],
        "nothing but zeros": bytes(len(whole)),
        "zeros where a page was not written": whole[: at + 8] + bytes(len(whole) - at - 8),
        "not sealed": whole[: at - 12] + bytes(12) + whole[at:],
        "a bit changed": whole[:-1] + bytes([whole[-1] ^ 1]),
        "too long": whole + b"\0",
    }
    assert start == 0
    for name, data in torn.items():
        (store.incoming / "1-1").write_bytes(data)
        assert list(store.scan()) == [], name
        assert InstanceStore(store.root).recover() == 1, name
        assert list(store.stored_keys()) == [], name
        assert list(store.incoming.iterdir()) == [], name
    (store.incoming / "1-1").write_bytes(whole)
    assert InstanceStore(store.root).recover() == 0
    assert data_of(store.path(study_key("1.2.3"), instance_key("1.2.3.4"))) == dataset()


def open_instance_offset(data: bytes) -> int:
    return read_meta(data).dataset_offset


def test_a_second_version_that_a_crash_left_in_a_slot_is_kept_as_an_incident(store: InstanceStore) -> None:
    put(store, dataset(pixels=b"\7\7"))
    (other,) = [path.read_bytes() for path in store.incoming.iterdir() if path.stat().st_size]
    files(store)
    lose_lasting_names(store)
    put(store, dataset())
    (store.incoming / "1-1").write_bytes(other)
    assert InstanceStore(store.root).recover() == 0
    (kept,) = store.incidents.glob("*.dcm")
    assert data_of(kept) == dataset(pixels=b"\7\7")
    assert data_of(store.path(study_key("1.2.3"), instance_key("1.2.3.4"))) == dataset()


def names_of(store: InstanceStore) -> list[int]:
    return sorted(path.stat().st_nlink for path in store.root.glob("*/*.dcm"))


def test_settled_instances_have_one_name_and_nobody_needs_to_ask_for_it(store: InstanceStore) -> None:
    for number in range(MAX_NAMED + 6):
        put(store, dataset(sop=f"1.2.3.{number}"), named(f"1.2.3.{number}"))
    assert names_of(store) == [1] * MAX_NAMED + [2] * 6
    store.settle()
    assert names_of(store) == [1] * (MAX_NAMED + 6)


def test_a_keeper_makes_slots_ahead_and_is_rung_for(tmp_path: Path) -> None:
    rings: list[int] = []
    store = InstanceStore(tmp_path / "instances", ring=lambda: rings.append(1))
    store.recover()
    store.keep()
    assert list(store.incoming.iterdir()) == []  # nobody sends
    for number in range(2 * MAX_SLOTS):
        begun = len(rings)
        put(store, dataset(sop=f"1.2.3.{number}"), named(f"1.2.3.{number}"))
        if len(rings) > begun:
            store.keep()
            assert set(names_of(store)) == {1}
        assert len(list(store.incoming.iterdir())) <= 3 * MAX_SLOTS
    assert 3 <= len(rings) <= 16
    made = {path.name for path in store.incoming.iterdir()}
    instance = store.begin(named("1.2.4"))
    assert {path.name for path in store.incoming.iterdir()} == made  # it was made ahead
    instance.discard()


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
@pytest.mark.parametrize("durable", [True, False])
def test_the_system_calls_make_slots_durable_then_files_then_their_names(
    store: InstanceStore, tmp_path: Path, durable: bool
) -> None:
    trace = tmp_path / "trace"
    code = (
        "import sys; from pathlib import Path; from edge.instances import *;"
        "from tests.edge.test_instances import *;"
        "store = InstanceStore(Path(sys.argv[1]), durable=sys.argv[2] == 'True');"
        "put(store, dataset()); put(store, dataset('1.2.3.5'), named('1.2.3.5')); put(store, dataset());"
        "store.settle(); put(store, dataset('1.2.3.6'), named('1.2.3.6')); store.settle()"
    )
    strace = [str(STRACE), "-f", "-y", "-e", "trace=fsync,linkat,link,unlink", "-o", str(trace)]
    subprocess.run(
        [*strace, sys.executable, "-c", code, str(store.root), str(durable)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=120,
        check=True,
    )
    study = f"/{study_key('1.2.3')}>"
    steps = []
    for line in trace.read_text().splitlines():
        if str(store.root) not in line:
            continue
        if "fsync(" in line:
            kinds = {"/incoming/": "slot", "/incoming>": "slots", ".dcm>": "stored", study: "study"}
            steps.append("sync " + next((kind for part, kind in kinds.items() if part in line), "root"))
        elif "unlink" in line:
            steps.append("unlink")
        else:
            steps.append("taken" if " = -1 EEXIST" in line else "again" if " = -1 ENOENT" in line else "link")
    if durable:
        first = ["sync slots", "sync slot", "again", "link"]
        second = ["sync slot", "link"]
        again = ["sync slot", "taken", "sync stored", "unlink"]
        settled = ["sync study", "sync root", "unlink", "unlink"]
        third = ["sync slot", "link", "sync study", "unlink"]
        assert steps == [*first, *second, *again, *settled, *third]
    else:
        settled = ["unlink", "unlink"]
        assert steps == ["again", "link", "link", "taken", "unlink", *settled, "link", "unlink"]


# --- finding and removing ---


def test_scan_gives_every_instance_as_it_arrived(store: InstanceStore) -> None:
    begun = datetime.now(UTC).timestamp()
    committed = [
        put(store, dataset(sop=f"1.2.3.{n}", study=f"1.2.{n % 2}"), named(sop=f"1.2.3.{n}", caller=f"AE{n}"))
        for n in range(6)
    ]
    incident = put(store, dataset(sop="1.2.3.0", study="1.2.0", pixels=b""), named(sop="1.2.3.0"))
    assert incident.fate is Fate.CONFLICT  # which is no instance
    (store.root / "notes.txt").touch()
    (store.root / study_key("1.2.0") / "notes.txt").touch()
    found = {arrival.instance_key: arrival for arrival in store.scan()}
    assert set(found) == {each.instance_key for each in committed}
    for number, each in enumerate(committed):
        arrival = found[each.instance_key]
        assert (arrival.study_key, arrival.header) == (each.study_key, each.header)
        assert (arrival.size_bytes, arrival.checksum) == (each.size_bytes, None)
        assert (arrival.calling_ae_title, arrival.association) == (f"AE{number}", "")
        assert begun - 1 <= arrival.received.timestamp() <= datetime.now(UTC).timestamp() + 1
    assert list(store.stored_keys()) == sorted((each.study_key, each.instance_key) for each in committed)


def test_scan_opens_nothing_that_is_known(store: InstanceStore, caplog: pytest.LogCaptureFixture) -> None:
    one = put(store, dataset())
    two = put(store, dataset(sop="1.2.3.5"), named(sop="1.2.3.5"))
    store.path(one.study_key, one.instance_key).write_bytes(b"damaged")
    found = [arrival.instance_key for arrival in store.scan(skip={(one.study_key, one.instance_key)})]
    assert found == [two.instance_key]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "damage", [b"", b"damaged", file_meta(CT, "1.2", EXPLICIT, "A") + dataset(sop="1.2.9")]
)
def test_a_damaged_or_exchanged_file_is_logged_and_left_out(
    store: InstanceStore, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    one = put(store, dataset())
    two = put(store, dataset(sop="1.2.3.5"), named(sop="1.2.3.5"))
    store.path(one.study_key, one.instance_key).write_bytes(damage)
    with caplog.at_level(logging.ERROR):
        assert [arrival.instance_key for arrival in store.scan()] == [two.instance_key]
    assert one.instance_key in caplog.text
    assert len(list(store.stored_keys())) == 2


def test_a_stored_symbolic_link_is_not_followed(store: InstanceStore, tmp_path: Path) -> None:
    one = put(store, dataset())
    path = store.path(one.study_key, one.instance_key)
    path.rename(tmp_path / "elsewhere.dcm")
    path.symlink_to(tmp_path / "elsewhere.dcm")
    assert list(store.scan()) == []


def test_deleted_instances_are_gone_and_the_others_stay(store: InstanceStore) -> None:
    keys = []
    for number in range(4):
        uid = f"1.2.3.{number}"
        keys.append(put(store, dataset(sop=uid), named(sop=uid)).instance_key)
    other = put(store, dataset(sop="1.9", study="1.9.9"), named(sop="1.9"))
    study = study_key("1.2.3")
    store.delete_instances(study, keys[:2])
    assert {key for _, key in store.stored_keys()} == {*keys[2:], other.instance_key}
    store.delete_instances(study, keys)  # begun before, cut off, and begun again
    assert [key for _, key in store.stored_keys()] == [other.instance_key]
    assert not (store.root / study).exists()
    store.delete_instances(study, keys)
    assert store.delete_study(other.study_key) == 1
    assert store.delete_study(other.study_key) == 0
    assert files(store) == {}


def test_delete_takes_keys_and_no_paths(store: InstanceStore, tmp_path: Path) -> None:
    (tmp_path / "precious.dcm").touch()
    for study, instances in (("..", ["precious"]), (study_key("1"), ["../../precious"]), ("incoming", ["x"])):
        with pytest.raises(ValueError, match="32 hexadecimal digits"):
            store.delete_instances(study, instances)
    with pytest.raises(ValueError, match="32 hexadecimal digits"):
        store.delete_study("..")
    assert (tmp_path / "precious.dcm").exists()


def test_a_study_deleted_and_sent_again_is_stored_again(store: InstanceStore) -> None:
    for _ in range(3):
        assert put(store, dataset()).fate is Fate.STORED
        other = InstanceStore(store.root)  # retention runs in another process
        assert other.delete_study(study_key("1.2.3")) == 1
    assert files(store) == {}


def test_instances_that_arrive_while_their_study_is_deleted_are_not_lost(store: InstanceStore) -> None:
    stop = threading.Event()
    retention = InstanceStore(store.root)
    study = study_key("1.2.3")
    old = instance_key("1.2.3.0")

    def delete() -> None:
        while not stop.is_set():
            retention.delete_instances(study, [old])

    thread = threading.Thread(target=delete)
    thread.start()
    kept = []
    try:
        for number in range(1, 60):
            put(store, dataset(sop="1.2.3.0"), named(sop="1.2.3.0"))
            if number % 3 == 0:
                uid = f"1.2.3.{number}"
                kept.append(put(store, dataset(sop=uid), named(sop=uid)).instance_key)
                assert store.path(study, kept[-1]).exists()
                retention.delete_instances(study, [kept.pop(0)])
    finally:
        stop.set()
        thread.join(30)
    assert {key for _, key in store.stored_keys()} - {old} == set(kept)


def test_errno_names_are_in_the_message(store: InstanceStore) -> None:
    with pytest.raises(DiskError, match="EIO") as caught, incoming.disk_errors("the disk"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert isinstance(caught.value.__cause__, OSError)
    assert files(store) == {}

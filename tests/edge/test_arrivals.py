"""The arrival log: everything that was appended is read once, whatever happened to the files."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom.header import InstanceHeader
from edge import arrivals
from edge.arrival_entry import from_line, to_line
from edge.arrivals import (
    MAX_NAMED_INSTANCES,
    READ_BYTES,
    Arrival,
    ArrivalReader,
    ArrivalWriter,
    AssociationEnded,
    CommitmentAsked,
    Entry,
    Position,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
START = int(NOW.timestamp())
REPOSITORY = Path(__file__).resolve().parents[2]

FULL = InstanceHeader(
    sop_class_uid="1.2.840.10008.5.1.4.1.1.4",
    sop_instance_uid="1.2.3.4",
    study_instance_uid="1.2.3",
    series_instance_uid="1.2.3.5",
    transfer_syntax_uid="1.2.840.10008.1.2.1",
    modality="MR",
    body_part_examined="BRAIN",
    view_position="AP",
    laterality="L",
    image_type=("ORIGINAL", "PRIMARY"),
    series_description='T1 "Schädel" \\ 頭部',
    protocol_name="p",
    scanning_sequence=("GR", "IR"),
    contrast_agent="Gd",
    patient_key="0123456789abcdef",
    patient_orientation=("L", "F"),
    series_number=1,
    instance_number=-2,
    acquisition_number=0,
    temporal_position=4,
    echo_time_ms=2.98,
    images_in_acquisition=189,
    number_of_study_related_instances=190,
    frame_of_reference_uid="1.2.9",
    image_position_mm=(1.5, -2.0, 1e-9),
    image_orientation=(1.0, 0.0, 0.0, 0.0, 0.6, -0.8),
    pixel_spacing_mm=(0.1, 0.2),
    slice_thickness_mm=1.0,
    spacing_between_slices_mm=1.0,
    gantry_tilt_deg=-16.5,
    rows=512,
    columns=256,
    number_of_frames=3,
    samples_per_pixel=3,
    photometric_interpretation="RGB",
    bits_allocated=8,
    bits_stored=8,
    high_bit=7,
    pixel_representation=1,
    planar_configuration=1,
    modality_lut=1,
    rescale_slope=2.0,
    rescale_intercept=-1024.0,
    window_center=40.0,
    window_width=400.0,
    pixel_data_offset=1234,
    pixel_data_length=5678,
)
BARE = InstanceHeader("1.2", "1.3", "1.4", "1.5", "1.2.840.10008.1.2")


def arrival(number: int = 0, header: InstanceHeader = FULL) -> Arrival:
    return Arrival(
        f"{number:032x}", f"{number + 1:032x}", 1000 + number, number, header, "CT1", f"7-{number}", NOW
    )


def ended(number: int = 0) -> AssociationEnded:
    return AssociationEnded(f"7-{number}", "CT1", "released", NOW)


def writer(directory: Path, rotate_bytes: int = arrivals.ROTATE_BYTES) -> ArrivalWriter:
    return ArrivalWriter(directory, lambda: NOW, rotate_bytes)


def read_all(
    directory: Path, position: Position | None = None, limit: int = 3
) -> tuple[list[Entry], Position, ArrivalReader]:
    """Read as `work` does, in small steps, each with a reader of its own that is given a stored position."""
    reader = ArrivalReader(directory)
    at = position or Position()
    found: list[Entry] = []
    while True:
        entries, at = reader.read(Position.parse(str(at)), limit)
        if not entries:
            return found, at, reader
        assert len(entries) <= limit
        found += entries


def test_the_full_header_of_these_tests_has_no_default_value() -> None:
    assert [each.name for each in fields(FULL) if getattr(FULL, each.name) == each.default] == []


@pytest.mark.parametrize(
    "entry",
    [arrival(), arrival(header=BARE), replace(arrival(), checksum=None, association=""), ended()],
)
def test_an_entry_is_read_back_as_it_was_written(entry: Entry) -> None:
    line = to_line(entry)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == entry


@given(
    st.text(max_size=64),
    st.lists(st.text(max_size=16), max_size=4),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(2**31), 2**31),
)
def test_any_header_is_read_back_as_it_was_written(
    text: str, texts: Sequence[str], decimal: float, number: int
) -> None:
    header = replace(
        BARE,
        series_description=text,
        image_type=tuple(texts),
        echo_time_ms=decimal,
        pixel_spacing_mm=(decimal, decimal),
        series_number=number,
    )
    entry = arrival(header=header)
    line = to_line(entry)
    assert line.count(b"\n") == 1
    assert from_line(line) == entry


def test_a_line_carries_no_more_than_what_is_not_default() -> None:
    written = json.loads(to_line(arrival(header=BARE)))["header"]
    assert set(written) == {each.name for each in fields(BARE) if each.name.endswith("_uid")} - {
        "frame_of_reference_uid"
    }


def changed(path: str, value: object) -> bytes:
    entry = json.loads(to_line(arrival()))
    place, _, name = path.rpartition(".")
    (entry[place] if place else entry)[name] = value
    return json.dumps(entry).encode()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"not json",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"entry": "other"}',
        to_line(arrival())[:-20],
        changed("study_key", 7),
        changed("size_bytes", "7"),
        changed("size_bytes", True),
        changed("checksum", 1.5),
        changed("received", "2026-01-02T03:04:05"),
        changed("received", "yesterday"),
        changed("study_key", "../../etc"),
        changed("study_key", "A" * 32),
        changed("study_key", "0" * 31),
        changed("study_key", "0" * 32 + "\n"),
        changed("instance_key", ""),
        changed("instance_key", "/etc/passwd"),
        changed("size_bytes", -1),
        changed("size_bytes", 2**70),
        changed("checksum", -1),
        changed("association", "a" * 257),
        changed("calling_ae_title", "a" * 100_000),
        changed("header.slice_thickness_mm", float("nan")),
        changed("header.pixel_spacing_mm", [1.0, float("inf")]),
        changed("header.rows", 2**70),
        changed("header", [1]),
        changed("header", {}),
        changed("header.rows", "512"),
        changed("header.rows", None),
        changed("header.unknown", 1),
        changed("header.image_position_mm", [1.0, 2.0]),
        changed("header.image_position_mm", [1.0, 2.0, "3"]),
        changed("header.image_type", "ORIGINAL"),
        changed("header.slice_thickness_mm", False),
    ],
)
def test_what_is_no_entry_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        from_line(line)


def test_entries_come_back_in_order_and_once(tmp_path: Path) -> None:
    log = writer(tmp_path)
    written: list[Entry] = []
    position = Position()
    for number in range(10):
        batch: list[Entry] = [arrival(number), ended(number)]
        assert all(log.append(entry) for entry in batch)
        found, position, _ = read_all(tmp_path, position)
        assert found == batch
        written += batch
    log.close()
    assert read_all(tmp_path)[0] == written
    assert read_all(tmp_path, position)[0] == []


def test_an_empty_directory_has_nothing_and_stays_at_the_beginning(tmp_path: Path) -> None:
    assert ArrivalReader(tmp_path).read(Position(), 10) == ([], Position())


def test_a_line_is_read_when_its_end_has_come_and_not_before(tmp_path: Path) -> None:
    line = to_line(arrival(1))
    path = tmp_path / "5.log"
    position = Position()
    reader = ArrivalReader(tmp_path)
    for end in range(1, len(line)):
        path.write_bytes(line[:end])
        entries, position = reader.read(position, 10)
        assert (entries, position) == ([], Position(5, 0))
    path.write_bytes(line)
    assert reader.read(position, 10) == ([arrival(1)], Position(5, len(line)))
    assert reader.garbage_lines == 0


def test_a_torn_tail_is_passed_over_once_its_writer_is_gone(tmp_path: Path) -> None:
    line = to_line(arrival(1))
    (tmp_path / "5.log").write_bytes(line + line[:40])
    log = writer(tmp_path)
    log.append(arrival(2))
    found, position, reader = read_all(tmp_path)
    assert found == [arrival(1), arrival(2)]
    assert reader.garbage_lines == 1
    assert position.file == START
    log.close()


def test_garbage_lines_are_counted_and_cost_no_entry(tmp_path: Path) -> None:
    one, two = to_line(arrival(1)), to_line(arrival(2))
    (tmp_path / "5.log").write_bytes(b"\n" + one + b"garbage\n" + b"{}\n" + two + b"\0\0\0\n")
    found, _, reader = read_all(tmp_path)
    assert found == [arrival(1), arrival(2)]
    assert reader.garbage_lines == 4


def test_a_line_without_end_is_given_up_and_memory_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "5.log").write_bytes(b"x" * (3 * arrivals.READ_BYTES) + b"\n" + to_line(arrival(1)))
    found, _, reader = read_all(tmp_path)
    assert found == [arrival(1)]
    assert reader.garbage_lines == 4  # three pieces, and what was left of the line


def test_more_than_one_read_holds_is_read_whole(tmp_path: Path) -> None:
    lines = b"".join(to_line(arrival(number)) for number in range(1500))
    assert len(lines) > arrivals.READ_BYTES
    (tmp_path / "5.log").write_bytes(lines)
    found, position, reader = read_all(tmp_path, limit=10_000)
    assert found == [arrival(number) for number in range(1500)]
    assert (position, reader.garbage_lines) == (Position(5, len(lines)), 0)


def test_files_rotate_and_the_reader_follows(tmp_path: Path) -> None:
    log = writer(tmp_path, rotate_bytes=3 * len(to_line(arrival())))
    for number in range(10):
        log.append(arrival(number))
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{START + n}.log" for n in range(4)]
    found, position, reader = read_all(tmp_path)
    assert found == [arrival(number) for number in range(10)]
    assert position.file == START + 3
    assert reader.garbage_lines == 0


def test_every_start_begins_a_new_file_with_a_number_of_its_own(tmp_path: Path) -> None:
    runs = []
    for number in range(3):
        log = writer(tmp_path)
        runs.append(log.run)
        log.append(arrival(number))
        log.close()
    assert runs == [START, START + 1, START + 2]
    assert read_all(tmp_path)[0] == [arrival(0), arrival(1), arrival(2)]


def test_numbers_do_not_come_twice_when_the_files_are_lost(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.append(arrival(1))
    position = read_all(tmp_path)[1]
    log.close()
    (tmp_path / f"{log.run}.log").unlink()  # as a power cut may
    later = datetime.fromtimestamp(START + 30, UTC)
    restarted = ArrivalWriter(tmp_path, lambda: later)
    restarted.append(arrival(2))
    assert restarted.run == START + 30
    assert read_all(tmp_path, position)[0] == [arrival(2)]
    restarted.close()


def test_a_position_beyond_a_file_that_a_power_cut_shortened_goes_on_with_the_next(tmp_path: Path) -> None:
    (tmp_path / "5.log").write_bytes(to_line(arrival(1)))
    position = Position(5, 100_000)
    assert read_all(tmp_path, position)[0] == []
    (tmp_path / "6.log").write_bytes(to_line(arrival(2)))
    assert read_all(tmp_path, position)[0] == [arrival(2)]


def test_drop_before_removes_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    for number in (3, 4, 5):
        (tmp_path / f"{number}.log").write_bytes(to_line(arrival(number)))
    (tmp_path / "notes.txt").write_text("not ours")
    reader = ArrivalReader(tmp_path)
    _, position = reader.read(Position(), 2)
    assert position.file == 4
    assert reader.drop_before(position) == 1
    assert reader.drop_before(position) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.log", "5.log", "notes.txt"]
    assert read_all(tmp_path, position)[0] == [arrival(5)]
    assert read_all(tmp_path)[0] == [arrival(4), arrival(5)]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    log = writer(tmp_path, rotate_bytes=20_000)
    together = threading.Barrier(4)

    def write(first: int) -> None:
        together.wait(10)
        for number in range(first, first + 50):
            assert log.append(arrival(number))

    threads = [threading.Thread(target=write, args=(first,)) for first in (0, 100, 200, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    log.close()
    found, _, reader = read_all(tmp_path)
    numbers = sorted(entry.size_bytes - 1000 for entry in found if isinstance(entry, Arrival))
    assert numbers == sorted(first + number for first in (0, 100, 200, 300) for number in range(50))
    assert reader.garbage_lines == 0


def in_child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_was_appended_is_there_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from edge.arrivals import ArrivalWriter;"
        "from tests.edge.test_arrivals import arrival;"
        "log = ArrivalWriter(Path(sys.argv[1])); [log.append(arrival(n)) for n in range(5)];"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert in_child(code, tmp_path).returncode == -signal.SIGKILL
    assert read_all(tmp_path)[0] == [arrival(number) for number in range(5)]


def test_what_a_full_disk_refused_comes_first_when_there_is_room_again(tmp_path: Path) -> None:
    # A limit on the file's size stands for the full disk: it too cuts a write short in mid-line.
    code = (
        "import resource, sys; from pathlib import Path; from edge.arrivals import ArrivalWriter;"
        "from edge.arrival_entry import to_line; from tests.edge.test_arrivals import arrival;"
        "size = len(to_line(arrival())); limit = resource.RLIMIT_FSIZE;"
        "log = ArrivalWriter(Path(sys.argv[1])); hard = resource.getrlimit(limit)[1];"
        "resource.setrlimit(limit, (2 * size + size // 2, hard));"
        "assert [log.append(arrival(n)) for n in range(4)] == [True, True, False, False];"
        "assert not log.flush();"
        "resource.setrlimit(limit, (hard, hard));"
        "assert log.flush(); assert log.append(arrival(4)); log.close()"
    )
    run = in_child(code, tmp_path)
    assert run.returncode == 0, run.stderr
    found, _, reader = read_all(tmp_path)
    assert found == [arrival(number) for number in range(5)]
    assert reader.garbage_lines == 1  # the line that was cut short


def test_a_closed_log_takes_nothing_and_says_so(tmp_path: Path) -> None:
    log = writer(tmp_path)
    log.close()
    assert not log.append(arrival(1))
    assert read_all(tmp_path)[0] == []


@pytest.mark.parametrize(
    ("text", "position"), [(None, Position()), ("0:0", Position()), ("7:12", Position(7, 12))]
)
def test_a_position_is_parsed(text: str | None, position: Position) -> None:
    assert Position.parse(text) == position
    assert Position.parse(str(position)) == position


@pytest.mark.parametrize("text", ["", "7", "7:", ":7", "-1:0", "7:1.5", "a:b", "1:2:3", "9" * 50 + ":1"])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be FILE:OFFSET"):
        Position.parse(text)


def test_positions_order_as_the_log_does() -> None:
    assert Position(1, 9) < Position(2, 0) < Position(2, 1)


def test_a_request_for_commitment_is_read_as_it_was_written_and_the_largest_is_one_line(
    tmp_path: Path,
) -> None:
    keys = tuple(f"{number:032x}" for number in range(MAX_NAMED_INSTANCES))
    asked = CommitmentAsked("7-3", "CT1", keys, NOW)
    assert from_line(to_line(asked)) == asked
    assert len(to_line(asked)) < READ_BYTES
    writer = ArrivalWriter(tmp_path, clock=lambda: NOW)
    writer.append(asked)
    assert ArrivalReader(tmp_path).read(Position(), 10)[0] == [asked]
    writer.close()


@pytest.mark.parametrize(
    "line",
    [
        b'{"entry":"commitment","association":"a","calling_ae_title":"b","at":"2026-01-01T00:00:00+00:00"}',
        (
            b'{"entry":"commitment","association":"a","calling_ae_title":"b","instance_keys":[1],'
            b'"at":"2026-01-01T00:00:00+00:00"}'
        ),
    ],
)
def test_a_request_without_its_names_is_no_entry(line: bytes) -> None:
    with pytest.raises(ValueError, match="no entry"):
        from_line(line)

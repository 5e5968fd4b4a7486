"""Bells, presence, shelves and tickers: the small machinery between threads and processes."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge.bell import Bell, Wake, ring
from edge.handover import Shelf
from edge.presence import AlreadyRunningError, Presence, running
from edge.ticker import Ticker

SOON_S = 10.0


def test_a_ring_from_another_process_ends_a_wait(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)  # longer than a socket's path may be
    deep.mkdir()
    wake = Wake()
    bell = Bell(deep, "work", wake)
    try:
        seen = wake.count
        code = "import sys; from pathlib import Path; from edge.bell import ring\n"
        code += "ring(Path(sys.argv[1]), 'work')"
        subprocess.run([sys.executable, "-I", "-c", code, str(deep)], check=True)
        wake.wait(seen, SOON_S)
        assert wake.count == seen + 1
    finally:
        bell.close()
    assert not (deep / "work.bell").exists()


def test_a_ring_before_the_wait_is_not_lost_and_a_role_that_is_away_is_no_error(tmp_path: Path) -> None:
    wake = Wake()
    seen = wake.count
    wake.ring()
    wake.wait(seen, SOON_S)
    ring(tmp_path, "work")
    ring(tmp_path / "nowhere", "work")


def test_a_bell_that_a_killed_process_left_behind_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "work.bell").write_bytes(b"")
    wake = Wake()
    bell = Bell(tmp_path, "work", wake)
    seen = wake.count
    ring(tmp_path, "work")
    wake.wait(seen, SOON_S)
    bell.close()
    assert wake.count == seen + 1


def test_a_role_runs_once_on_its_directories_and_its_end_frees_it(tmp_path: Path) -> None:
    presence = Presence(tmp_path, "work")
    assert list(running(tmp_path)) == ["work"]
    with pytest.raises(AlreadyRunningError, match="role work already runs as process"):
        Presence(tmp_path, "work")
    presence.leave()
    assert running(tmp_path) == {}
    Presence(tmp_path, "work").leave()


def test_a_shelf_holds_its_bytes_and_the_oldest_leave_first() -> None:
    shelf: Shelf[str] = Shelf(100)
    for key in "abc":
        shelf.put(key, key.upper(), 40)
    assert [shelf.get(key) for key in "abc"] == [None, "B", "C"]
    shelf.put("b", "new", 60)
    assert [shelf.get(key) for key in "bc"] == ["new", "C"]
    shelf.drop("c")
    shelf.drop("c")
    shelf.put("d", "D", 40)
    assert [shelf.get(key) for key in "bcd"] == ["new", None, "D"]


def test_an_entry_larger_than_the_shelf_is_its_only_one() -> None:
    shelf: Shelf[str] = Shelf(100)
    shelf.put("a", "A", 40)
    shelf.put("huge", "H", 101)
    assert [shelf.get(key) for key in ("huge", "a")] == ["H", None]
    shelf.put("b", "B", 40)
    assert [shelf.get(key) for key in ("huge", "b")] == [None, "B"]


def test_a_ticker_goes_on_after_an_error_and_stops_when_told(caplog: pytest.LogCaptureFixture) -> None:
    wake, twice, calls = Wake(), threading.Event(), []

    def work() -> bool:
        calls.append(1)
        if len(calls) == 1:
            raise OSError("no room")
        twice.set()
        return False

    ticker = Ticker("test", 0.01, work, wake)
    ticker.start()
    assert twice.wait(SOON_S)
    ticker.stop()
    ticker.join(SOON_S)
    assert not ticker.is_alive()
    assert "test failed, trying again" in caplog.text

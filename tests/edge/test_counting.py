"""Asking the PACS how many images a study has keeps nobody waiting."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edge.counting import Counter

WAIT_S = 20.0


class Archive:
    """Answers 40 for every study, or raises; each question waits for `open`."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.open = threading.Event()
        self.fails = False

    def count(self, study_instance_uid: str) -> int | None:
        self.asked.append(study_instance_uid)
        assert self.open.wait(WAIT_S)
        if self.fails:
            raise OSError("connection refused")
        return 40


@contextmanager
def counting(archive: Archive, answered: threading.Semaphore) -> Iterator[Counter]:
    counter = Counter(archive, answered.release)
    counter.start()
    try:
        yield counter
    finally:
        counter.stop()
        archive.open.set()
        counter.join(WAIT_S)
        assert not counter.is_alive()


def test_an_answer_counts_for_the_images_that_were_here_when_it_was_asked() -> None:
    archive, answered = Archive(), threading.Semaphore(0)
    with counting(archive, answered) as counter:
        counter.ask("key", "1.2.3", 39)
        assert counter.answer("key", 39) is None  # nobody waits for it
        archive.open.set()
        assert answered.acquire(timeout=WAIT_S)
        assert counter.answer("key", 39) == 40
        assert counter.answer("key", 40) is None
        counter.ask("key", "1.2.3", 39)
        counter.ask("key", "1.2.3", 40)
        assert answered.acquire(timeout=WAIT_S)
        assert counter.answer("key", 40) == 40
        assert archive.asked == ["1.2.3"] * 2  # once for each number of images


def test_a_closed_study_is_forgotten_even_while_it_is_asked_for() -> None:
    archive, answered = Archive(), threading.Semaphore(0)
    with counting(archive, answered) as counter:
        counter.ask("closed", "1.2.3", 39)
        counter.ask("open", "1.2.4", 1)
        counter.forget("closed")
        archive.open.set()
        assert answered.acquire(timeout=WAIT_S)
        assert counter.answer("closed", 39) is None
        assert counter.answer("open", 1) == 40


def test_an_archive_that_fails_is_no_answer_and_the_next_study_is_asked() -> None:
    archive, answered = Archive(), threading.Semaphore(0)
    archive.fails = True
    with counting(archive, answered) as counter:
        counter.ask("one", "1.2.3", 1)
        counter.ask("two", "1.2.4", 1)
        archive.open.set()
        counter.stop()
        counter.join(WAIT_S)
        assert counter.answer("one", 1) is None

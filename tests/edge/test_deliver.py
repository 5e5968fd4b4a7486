"""The stage DELIVER: what is sent, what is tried again, what is parked; and associations kept between."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom.errors import HeaderError, PeerError
from dicom.send import Destination, Timeouts
from edge.bell import Wake
from edge.deliver import DeliveryLane, DeliveryOutcome, SenderPool, deliver, next_attempt
from edge.deliveries import Deliveries
from edge.journal import Journal
from edge.options import Deliver, Peer, Settings
from edge.records import ResultRow
from edge.study import Outcome, Stage
from tests.dicom.test_send import MR, SC, study, write
from tests.edge.records_fixture import NOW, claimed, new_item, received
from tests.fakes.pacs import Behaviour, ScriptedPacs, StoreScp, free_port, needs_dcmtk

SHORT = Timeouts(connect_s=5, associate_s=0.3, response_s=0.3, release_s=0.3)


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> Iterator[SenderPool]:
    pool = SenderPool("INSITU", 20.0, SHORT, clock)
    yield pool
    pool.close()


# --- one attempt


def test_an_items_objects_go_out_over_one_association_in_order(tmp_path: Path, pool: SenderPool) -> None:
    objects = study(tmp_path, 3)
    with ScriptedPacs() as pacs:
        outcome = deliver(objects, pacs.destination, pool)
    assert outcome.delivered
    assert outcome.reason == ""
    assert [receipt.sop_instance_uid for receipt in outcome.receipts] == ["1.2.3.0", "1.2.3.1", "1.2.3.2"]
    assert len(pacs.seen.associations) == 1


@needs_dcmtk
def test_dcmtk_has_the_objects_after_a_delivery(tmp_path: Path, pool: SenderPool) -> None:
    with StoreScp(tmp_path / "scp") as peer:
        assert deliver(study(tmp_path, 3), peer.destination, pool).delivered
        assert len(peer.files()) == 3
        pool.close()


@pytest.mark.parametrize("status", [0xB000, 0xB006, 0xB007, 0x0111])
def test_a_warning_or_a_duplicate_is_delivered_and_told(
    tmp_path: Path, pool: SenderPool, status: int
) -> None:
    with ScriptedPacs(Behaviour(statuses=(status,))) as pacs:
        outcome = deliver(study(tmp_path, 2), pacs.destination, pool)
    assert outcome.delivered
    assert [f"0x{status:04X}" in warning for warning in outcome.warnings] == [True]


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC000, 0x0122, 0x0110])
def test_one_failure_is_not_delivered_and_the_other_objects_are_still_sent(
    tmp_path: Path, pool: SenderPool, status: int
) -> None:
    with ScriptedPacs(Behaviour(statuses=(status,))) as pacs:
        outcome = deliver(study(tmp_path, 2), pacs.destination, pool)
    assert not outcome.delivered
    assert f"did not take SOP Instance 1.2.3.0: status 0x{status:04X}" in outcome.reason
    assert "1.2.3.1" not in outcome.reason
    assert [uid for uid, _, _ in pacs.seen.objects] == ["1.2.3.0", "1.2.3.1"]


def test_a_refused_sop_class_is_not_delivered(tmp_path: Path, pool: SenderPool) -> None:
    objects = [*study(tmp_path, 1), write(tmp_path / "sc.dcm", 9, SC)]
    with ScriptedPacs(Behaviour(refuse_sop_classes=frozenset({SC}))) as pacs:
        outcome = deliver(objects, pacs.destination, pool)
    assert not outcome.delivered
    assert "abstract syntax not supported" in outcome.reason


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(reject=(1, 1, 3)), "calling AE title not recognized"),
        (Behaviour(reject=(2, 3, 1)), "temporary congestion"),
        (Behaviour(vanish_after=1), "closed the connection"),
        (Behaviour(abort=(2, 0)), "aborted by the service provider"),
        (Behaviour(silent=True), "within the time limit"),
    ],
)
def test_what_a_peer_does_is_in_the_outcome_and_no_broken_association_is_kept(
    tmp_path: Path, pool: SenderPool, behaviour: Behaviour, words: str
) -> None:
    with ScriptedPacs(behaviour) as pacs:
        outcome = deliver(study(tmp_path, 2), pacs.destination, pool)
        pacs.wait_until_all_ended()
    assert not outcome.delivered
    assert words in outcome.reason


def test_a_dead_destination_is_in_the_outcome(tmp_path: Path, pool: SenderPool) -> None:
    destination = Destination("archive", "PACS", "127.0.0.1", free_port())
    outcome = deliver(study(tmp_path, 1), destination, pool)
    assert outcome == DeliveryOutcome((), outcome.reason)
    assert "archive (PACS at 127.0.0.1:" in outcome.reason
    assert "Connection refused" in outcome.reason


def test_a_flaky_destination_has_every_object_after_the_second_attempt(
    tmp_path: Path, pool: SenderPool
) -> None:
    objects = study(tmp_path, 3)
    with ScriptedPacs(Behaviour(vanish_after=2, vanish_associations=1)) as pacs:
        first = deliver(objects, pacs.destination, pool)
        second = deliver(objects, pacs.destination, pool)
    assert (first.delivered, len(first.receipts), second.delivered) == (False, 2, True)
    assert {uid for uid, _, _ in pacs.seen.objects} == {"1.2.3.0", "1.2.3.1", "1.2.3.2"}


def test_a_result_file_that_is_damaged_is_our_fault_and_rises(tmp_path: Path, pool: SenderPool) -> None:
    objects = study(tmp_path, 2)
    objects[1].write_bytes(b"")
    with ScriptedPacs() as pacs, pytest.raises(HeaderError, match=r"1\.dcm"):
        deliver(objects, pacs.destination, pool)
    assert pacs.seen.objects == []


# --- associations kept between deliveries


def test_a_kept_association_serves_the_next_study(tmp_path: Path, pool: SenderPool, clock: Clock) -> None:
    objects = study(tmp_path, 2)
    with ScriptedPacs() as pacs:
        deliver(objects[:1], pacs.destination, pool)
        clock.now_s = 19.0
        pool.close_idle()
        deliver(objects[1:], pacs.destination, pool)
        pool.close()
    assert pacs.seen.associations == [[(MR, "1.2.840.10008.1.2.1")]]


def test_an_idle_association_is_released_after_its_time(
    tmp_path: Path, pool: SenderPool, clock: Clock
) -> None:
    with ScriptedPacs() as pacs:
        deliver(study(tmp_path, 1), pacs.destination, pool)
        clock.now_s = 20.0
        pool.close_idle()
        pacs.wait_until_all_ended()
        assert pacs.seen.released == 1


def test_nothing_is_kept_where_the_time_is_zero(tmp_path: Path) -> None:
    pool = SenderPool("INSITU", 0.0, SHORT)
    with ScriptedPacs() as pacs:
        deliver(study(tmp_path, 1), pacs.destination, pool)
        pacs.wait_until_all_ended()
        assert pacs.seen.released == 1


def test_two_threads_never_share_an_association(tmp_path: Path, pool: SenderPool) -> None:
    path = study(tmp_path, 1, size=100_000)
    both = threading.Barrier(2, timeout=10)
    outcomes: list[bool] = []

    def work() -> None:
        with pool.lend(pacs.destination) as sender:
            both.wait()
            outcomes.extend(receipt.ok for receipt in sender.send(path * 20))
            both.wait()

    with ScriptedPacs() as pacs:
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        pool.close()
    assert outcomes == [True] * 40
    assert len(pacs.seen.associations) == 2


def test_a_borrower_that_fails_leaves_no_association_behind(tmp_path: Path, pool: SenderPool) -> None:
    def fail() -> None:
        with pool.lend(pacs.destination) as sender:
            sender.echo()
            raise PeerError("mine")

    with ScriptedPacs() as pacs:
        with pytest.raises(PeerError, match="mine"):
            fail()
        pacs.wait_until_all_ended()


# --- the lane: what the journal says afterwards


class Bench:
    """A journal with one item that is to be delivered to a destination, and the lane that does it."""

    def __init__(self, directory: Path, destination: Destination, **values: float) -> None:
        self.now = NOW
        self.journal = Journal.open(directory / "journal.db")
        self.deliveries = Deliveries(self.journal)
        arrival = received(0)
        self.study_key = arrival.study_key
        self.journal.enter([arrival])
        self.journal.close_study(self.study_key, "test", NOW)
        assemble = claimed(self.journal.claim((Stage.ASSEMBLE,), NOW))
        self.journal.assembled(assemble, [], [new_item("item", (arrival.instance_key,))], NOW)
        infer = claimed(self.journal.claim((Stage.INFER,), NOW))
        self.journal.advance(infer, Outcome.DONE, NOW)
        produce = claimed(self.journal.claim((Stage.PRODUCE,), NOW))
        self.results = directory / "results" / self.study_key / "item"
        self.results.mkdir(parents=True)
        rows = []
        for number, kind in enumerate(("SC", "SEG", "SR")):
            write(self.results / f"{kind}.dcm", number)
            rows.append(ResultRow(kind, MR, f"1.2.3.{number}", "1.2.3.4", 1000))
        self.journal.produced(produce, rows, [destination.name], NOW)
        peer = Peer(
            name=destination.name,
            ae_title=destination.ae_title,
            host=destination.host,
            port=destination.port,
            receives_results=True,
        )
        settings = Settings(peers=(peer,), deliver=options(response_timeout_s=1.0, **values))
        self.wake = Wake()
        self.lane = DeliveryLane(
            peer, settings, self.journal, self.deliveries, directory / "results", self.wake, lambda: self.now
        )

    def state(self) -> tuple[str, str]:
        """The item's stage, and why."""
        (row,) = self.journal.read("SELECT stage, reason FROM item WHERE item_key = 'item'")
        return row["stage"], row["reason"]

    def step_until_parked(self, limit: int) -> int:
        """Take each attempt as it falls due; how many there were."""
        for count in range(1, limit + 1):
            assert self.lane.step()
            due = self.deliveries.next_due("scripted")
            if due is None:
                return count
            self.now = due
        raise AssertionError(f"not parked after {limit} attempts")


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(destination: Destination, **values: float) -> Bench:
        made.append(Bench(tmp_path, destination, keep_association_s=0.0, **values))
        return made[-1]

    yield make
    for bench in made:
        bench.journal.close()


def test_a_delivered_item_is_delivered_once_segmentation_first(peers: Callable[..., Bench]) -> None:
    with ScriptedPacs() as pacs:
        bench = peers(pacs.destination)
        assert bench.lane.step()
        assert not bench.lane.step()
    assert bench.state() == ("delivered", "")
    assert [uid for uid, _, _ in pacs.seen.objects] == ["1.2.3.1", "1.2.3.2", "1.2.3.0"]


def test_a_failed_attempt_waits_for_its_time_and_then_delivers(peers: Callable[..., Bench]) -> None:
    with ScriptedPacs(Behaviour(reject=(2, 3, 1), reject_first=1)) as pacs:
        bench = peers(pacs.destination)
        assert bench.lane.step()
        assert bench.state()[0] == "deliver"
        due = bench.deliveries.next_due("scripted")
        assert due is not None
        bench.now = due
        assert bench.lane.step()
    assert bench.state() == ("delivered", "")
    assert len(pacs.seen.objects) == 3


def test_a_dead_destination_is_parked_with_the_reason_and_revived(peers: Callable[..., Bench]) -> None:
    destination = Destination("scripted", "SCRIPTED", "127.0.0.1", free_port())
    bench = peers(destination, attempts=4)
    assert bench.step_until_parked(10) == 4
    stage, reason = bench.state()
    assert stage == "held"
    assert "Connection refused" in reason
    assert "given up after 4 attempts" in reason
    assert "insitu study retry" in reason
    assert not bench.lane.step()
    with ScriptedPacs(port=destination.port) as pacs:
        assert bench.journal.release(bench.study_key, "test", bench.now) == 1
        assert bench.lane.step()
    assert bench.state() == ("delivered", "")
    assert len(pacs.seen.objects) == 3


def test_a_destination_that_stays_dead_is_parked_when_the_time_is_up(peers: Callable[..., Bench]) -> None:
    destination = Destination("scripted", "SCRIPTED", "127.0.0.1", free_port())
    bench = peers(destination, park_after_s=30.0, backoff_max_s=8.0)
    assert bench.step_until_parked(300) > 2
    assert bench.state()[0] == "held"
    assert bench.now == NOW + timedelta(seconds=30)


def test_a_result_file_that_is_gone_is_parked_at_once(peers: Callable[..., Bench]) -> None:
    with ScriptedPacs() as pacs:
        bench = peers(pacs.destination)
        (bench.results / "SR.dcm").unlink()
        assert bench.lane.step()
    stage, reason = bench.state()
    assert stage == "held"
    assert "a file is gone" in reason
    assert pacs.seen.objects == []


def test_attempts_in_which_the_process_died_are_counted(peers: Callable[..., Bench]) -> None:
    with ScriptedPacs() as pacs:
        bench = peers(pacs.destination, attempts=2)
        for _ in range(2):
            assert bench.deliveries.claim("scripted", NOW) is not None
            assert bench.deliveries.unclaim() == 1
        assert bench.lane.step()
    assert bench.state() == ("held", "2 attempts, and the process died in the last")
    assert pacs.seen.objects == []


def test_the_lane_delivers_when_the_bell_rings_and_stops_when_told(peers: Callable[..., Bench]) -> None:
    with ScriptedPacs() as pacs:
        bench = peers(pacs.destination)
        bench.lane.start()
        seen = 0
        deadline = time.monotonic() + 10
        while bench.state()[0] != "delivered":
            assert time.monotonic() < deadline
            bench.wake.wait(seen, 0.5)
            seen = bench.wake.count
        bench.lane.stop()
        bench.lane.join(10)
        assert not bench.lane.is_alive()
        pacs.wait_until_all_ended()


# --- when to try again


class Highest(random.Random):
    """Draws the greatest value."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


def options(**values: float) -> Deliver:
    return Deliver.model_validate({"backoff_base_s": 2.0, "backoff_max_s": 600.0, **values}, by_name=True)


def test_the_longest_pause_doubles_up_to_the_cap() -> None:
    longest = [
        (due - NOW).total_seconds()
        for attempt in range(1, 13)
        if (due := next_attempt(attempt, NOW, NOW, options(), Highest())) is not None
    ]
    assert longest == [2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600]


def test_pauses_are_spread_over_the_whole_range() -> None:
    rng = random.Random(1)
    pauses = [
        (due - NOW).total_seconds()
        for _ in range(1000)
        if (due := next_attempt(4, NOW, NOW, options(), rng)) is not None
    ]
    assert len(pauses) == 1000
    assert min(pauses) < 0.5
    assert max(pauses) > 15.5
    assert 7 < sum(pauses) / 1000 < 9


def test_the_last_attempt_is_made_when_the_time_is_up_and_then_it_is_parked() -> None:
    first = NOW - timedelta(seconds=86_390)
    assert next_attempt(50, first, NOW, options(), Highest()) == NOW + timedelta(seconds=10)
    assert next_attempt(51, first, NOW + timedelta(seconds=10), options(), Highest()) is None


def test_the_number_of_attempts_is_a_limit_too() -> None:
    assert next_attempt(options().attempts - 1, NOW, NOW, options(), Highest()) is not None
    assert next_attempt(options().attempts, NOW, NOW, options(), Highest()) is None


@given(
    attempt=st.integers(1, 10_000),
    age_s=st.floats(0, 1e7),
    seed=st.integers(0, 1 << 30),
    park_after_s=st.floats(1, 2_592_000),
)
def test_a_further_attempt_is_never_in_the_past_nor_after_giving_up(
    attempt: int, age_s: float, seed: int, park_after_s: float
) -> None:
    first = NOW - timedelta(seconds=age_s)
    given_options = options(park_after_s=park_after_s, attempts=10_000)
    due = next_attempt(attempt, first, NOW, given_options, random.Random(seed))
    give_up = first + timedelta(seconds=park_after_s)
    if due is None:
        assert attempt >= 10_000 or give_up <= NOW
    else:
        assert NOW <= due <= give_up
        assert (due - NOW).total_seconds() <= 600.0

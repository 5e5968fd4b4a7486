"""Storage commitment, with pynetdicom as the one who asks: both ways of the report, and what is not kept."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pynetdicom import AE, build_role, evt

from dicom.commitment import CommitmentReport, CommitmentRequest, FailureReason, Reference
from edge.arrivals import CommitmentAsked
from edge.cli import run
from edge.commitment import Commitments
from edge.commitment_check import check
from edge.commitment_lane import CommitmentReporter
from edge.commitment_spool import Asked, CommitmentSpool, Report
from edge.exit_codes import ExitCode
from edge.instances import instance_key
from edge.options import Deliver, Directories, Limits, Node, Peer, Settings
from edge.receive import Receiver
from tests.edge.test_instances import CT, dataset, put
from tests.edge.test_instances import named as named_instance
from tests.edge.test_receive import NOW, Box
from tests.fakes.pacs import free_port

COMMITMENT = "1.2.840.10008.1.20.1"
WELL_KNOWN = "1.2.840.10008.1.20.1.1"
DEADLINE_S = 30.0
MR = "1.2.840.10008.5.1.4.1.1.4"


class Requester:
    """pynetdicom as the one who asks: on associations of its own, and listening for reports."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reports: list[tuple[int, Dataset]] = []
        self.status = 0x0000
        self.changed = threading.Condition()
        self._ae = AE(ae_title="MODALITY")
        self._ae.add_requested_context(COMMITMENT)
        self._ae.add_supported_context(COMMITMENT, scu_role=False, scp_role=True)
        self._handlers: Any = [(evt.EVT_N_EVENT_REPORT, self._reported)]
        self._server: Any = None

    def listen(self) -> None:
        self._server = self._ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=self._handlers
        )

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()

    def associate(self, port: int) -> Any:  # noqa: ANN401 - pynetdicom is not typed
        assoc = self._ae.associate("127.0.0.1", port, ae_title="INSITU", evt_handlers=self._handlers)
        assert assoc.is_established
        return assoc

    def wait(self, count: int = 1) -> list[tuple[int, Dataset]]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.reports) >= count, DEADLINE_S)
            return self.reports

    def _reported(self, event: Any) -> tuple[int, Dataset | None]:  # noqa: ANN401 - pynetdicom is not typed
        with self.changed:
            self.reports.append((event.event_type, event.event_information))
            self.changed.notify_all()
        return self.status, None


class Site:
    """The intake with storage commitment, and what `deliver` does of it, in this process."""

    def __init__(self, directory: Path, peer_port: int) -> None:
        self.box = Box(directory / "box")
        self.settings = Settings(
            node=Node(ae_title="INSITU", host="127.0.0.1", port=0),
            peer=(  # type: ignore[call-arg]
                Peer(name="modality", ae_title="MODALITY", host="127.0.0.1", port=peer_port),
            ),
            directories=Directories(state=directory / "s", cache=directory / "c", runtime=directory / "r"),
            limits=Limits(min_free_disk_bytes=0, max_commitments=3, max_commitment_references=1000),
            deliver=Deliver(attempts=2, backoff_base_s=0.01, connect_timeout_s=5, response_timeout_s=5),
        )
        self.now = NOW
        self.spool = CommitmentSpool(directory / "commitments")
        self.spool.make()
        self.handed_over = threading.Event()
        self.commitments = self.handler()
        self.receiver = Receiver(
            self.settings, self.box.store, self.box.writer, self.box.ring, commitments=self.commitments
        )
        self.reporter = CommitmentReporter(self.settings, self.spool, lambda: self.now)

    def handler(self) -> Commitments:
        return Commitments(
            self.spool,
            self.box.store.root,
            self.box.writer,
            max_waiting=self.settings.limits.max_commitments,
            check_room=self.box.store.check_room,
            ring_work=self.box.ring,
            ring_deliver=self.handed_over.set,
            clock=lambda: self.now,
        )

    def start(self) -> int:
        self.commitments.start()
        self.receiver.start()
        return self.receiver.address[1]

    def stop(self) -> None:
        self.receiver.stop(10)
        self.commitments.stop()
        if self.commitments.ident is not None:
            self.commitments.join(10)
        self.box.writer.close()


@pytest.fixture
def requester() -> Iterator[Requester]:
    requester = Requester(free_port())
    yield requester
    requester.stop()


@pytest.fixture
def site(tmp_path: Path, requester: Requester) -> Iterator[Site]:
    site = Site(tmp_path, requester.port)
    yield site
    site.stop()


def asking(*references: tuple[str, str], transaction: str = "1.2.9") -> Dataset:
    ds = Dataset()
    ds.TransactionUID = transaction
    items = []
    for sop_class, instance in references:
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, instance
        items.append(item)
    ds.ReferencedSOPSequence = Sequence(items)
    return ds


def ask(assoc: Any, ds: Dataset, action: int = 1, instance: str = WELL_KNOWN) -> int:  # noqa: ANN401
    status, _ = assoc.send_n_action(ds, action, COMMITMENT, instance)
    return int(status.Status)


def failures(ds: Dataset) -> dict[str, int]:
    return {each.ReferencedSOPInstanceUID: each.FailureReason for each in ds.get("FailedSOPSequence", [])}


def wait_until(what: Callable[[], bool]) -> None:
    """Of files, which give no event."""
    deadline = time.monotonic() + DEADLINE_S
    tick = threading.Event()
    while not what():
        assert time.monotonic() < deadline
        tick.wait(0.01)


def test_the_report_comes_on_the_association_that_stays_open(site: Site, requester: Requester) -> None:
    put(site.box.store, dataset("1.2.3.4"))
    put(site.box.store, dataset("1.2.3.5"), named_instance("1.2.3.5"))
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.4"), (CT, "1.2.3.5"))) == 0x0000
    ((event, ds),) = requester.wait()
    assert (event, ds.TransactionUID, len(ds.ReferencedSOPSequence)) == (1, "1.2.9", 2)
    wait_until(lambda: site.spool.count() == 0)
    assoc.release()
    assert not site.handed_over.is_set()
    (entry,) = [each for each in site.box.entries() if isinstance(each, CommitmentAsked)]
    assert entry.instance_keys == (instance_key("1.2.3.4"), instance_key("1.2.3.5"))
    assert entry.association.endswith("-1")


def test_the_report_comes_on_an_association_of_ours_when_the_peer_has_released_its_own(
    site: Site, requester: Requester
) -> None:
    put(site.box.store, dataset("1.2.3.4"))
    requester.listen()
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0000
    assoc.release()
    assert site.handed_over.wait(DEADLINE_S)
    assert requester.reports == []
    site.reporter.report_due()
    ((event, ds),) = requester.wait()
    assert (event, ds.ReferencedSOPSequence[0].ReferencedSOPInstanceUID) == (1, "1.2.3.4")
    assert site.spool.count() == 0


def test_what_is_not_here_whole_and_of_its_class_is_not_committed_to(
    site: Site, requester: Requester
) -> None:
    kept = put(site.box.store, dataset("1.2.3.4"))
    damaged = put(site.box.store, dataset("1.2.3.5"), named_instance("1.2.3.5"))
    cut = put(site.box.store, dataset("1.2.3.6"), named_instance("1.2.3.6"))
    path = site.box.store.path(damaged.study_key, damaged.instance_key)
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))  # one bit of the last pixel
    path = site.box.store.path(cut.study_key, cut.instance_key)
    os.truncate(path, path.stat().st_size - 2)
    assoc = requester.associate(site.start())
    names = [(CT, "1.2.3.4"), (CT, "1.2.3.5"), (CT, "1.2.3.6"), (CT, "1.2.3.7"), (MR, "1.2.3.4")]
    assert ask(assoc, asking(*names[:-1])) == 0x0000
    ((event, ds),) = requester.wait()
    assert event == 2
    assert [each.ReferencedSOPInstanceUID for each in ds.ReferencedSOPSequence] == ["1.2.3.4"]
    assert failures(ds) == {"1.2.3.5": 0x0110, "1.2.3.6": 0x0110, "1.2.3.7": 0x0112}
    assert ask(assoc, asking(names[-1], transaction="1.2.10")) == 0x0000
    assert failures(requester.wait(2)[1][1]) == {"1.2.3.4": 0x0119}
    assoc.release()
    assert kept.instance_key == instance_key("1.2.3.4")


def test_a_report_that_no_peer_takes_is_tried_again_then_parked_then_revived(
    site: Site, requester: Requester
) -> None:
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0000
    assoc.release()
    assert site.handed_over.wait(DEADLINE_S)
    site.reporter.report_due()  # nobody listens
    (report,) = site.spool.reports()
    assert (report.attempt, report.is_parked) == (1, False)
    assert "no connection" in report.reason
    site.now += timedelta(seconds=1)
    site.reporter.report_due()
    (report,) = site.spool.reports()
    assert (report.attempt, report.is_parked) == (2, True)
    assert site.spool.states() == {"asked": 0, "waiting": 0, "parked": 1}
    site.now += timedelta(days=1)
    requester.listen()
    site.reporter.report_due()
    assert requester.reports == []
    assert site.spool.revive() == 1
    site.reporter.report_due()
    assert failures(requester.wait()[0][1]) == {"1.2.3.4": 0x0112}
    assert site.spool.count() == 0


def test_a_report_answered_with_a_failure_is_tried_again_on_an_association_of_ours(
    site: Site, requester: Requester
) -> None:
    requester.status = 0x0110
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0000
    requester.wait()
    assert site.handed_over.wait(DEADLINE_S)
    assoc.release()
    requester.listen()
    site.reporter.report_due()
    (report,) = site.spool.reports()
    assert "0x0110" in report.reason
    requester.status = 0x0000
    site.now += timedelta(seconds=1)
    site.reporter.report_due()
    assert len(requester.wait(3)) == 3
    assert site.spool.count() == 0


def test_a_request_that_a_crash_cut_off_is_looked_after_at_the_next_start(
    site: Site, requester: Requester
) -> None:
    put(site.box.store, dataset("1.2.3.4"))
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    site.spool.ask(Asked("MODALITY", request, is_duplicate=False, at=NOW))
    site.start()
    assert site.handed_over.wait(DEADLINE_S)
    (report,) = site.spool.reports()
    assert report.content == CommitmentReport("1.2.9", request.references, ())
    assert list(site.spool.asked()) == []


def test_a_transaction_uid_in_use_for_other_instances_fails_them_and_a_repeat_does_not(
    site: Site, requester: Requester
) -> None:
    put(site.box.store, dataset("1.2.3.4"))
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    site.spool.hand_over(
        Asked("MODALITY", request, is_duplicate=False, at=NOW),
        CommitmentReport("1.2.9", request.references, ()),
    )
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.9"))) == 0x0000
    assert failures(requester.wait()[0][1]) == {"1.2.3.9": 0x0131}
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0000
    assert requester.wait(2)[1][0] == 1
    assoc.release()


@pytest.mark.parametrize(
    ("ds", "action", "instance", "status"),
    [
        (asking((CT, "1.2.3.4")), 2, WELL_KNOWN, 0x0123),
        (asking((CT, "1.2.3.4")), 1, "1.2.3", 0x0112),
        (asking(), 1, WELL_KNOWN, 0x0115),
        (asking(*((CT, f"1.2.{n}") for n in range(1001))), 1, WELL_KNOWN, 0x0213),
        (asking(*((CT, f"1.2.{n}." + "9" * 55) for n in range(6000))), 1, WELL_KNOWN, 0x0213),
    ],
)
def test_a_request_that_is_none_of_ours_is_refused_and_nothing_is_kept(
    site: Site, requester: Requester, ds: Dataset, action: int, instance: str, status: int
) -> None:
    assoc = requester.associate(site.start())
    assert ask(assoc, ds, action, instance) == status
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0000  # the association goes on
    assoc.release()


def test_more_requests_than_may_wait_are_a_resource_limitation(site: Site, requester: Requester) -> None:
    for number in range(3):
        request = CommitmentRequest(f"1.{number}", (Reference(CT, "1.2.3.4"),))
        content = CommitmentReport(request.transaction_uid, (), ((request.references[0], 0x0112),))
        site.spool.hand_over(Asked("OTHER", request, is_duplicate=False, at=NOW), content)
    assoc = requester.associate(site.start())
    assert ask(assoc, asking((CT, "1.2.3.4"))) == 0x0213
    assoc.release()
    assert site.spool.count() == 3


def test_the_peer_of_a_report_that_left_the_configuration_parks_it(site: Site) -> None:
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    content = CommitmentReport("1.2.9", (), ((request.references[0], FailureReason.PROCESSING_FAILURE),))
    site.spool.hand_over(Asked("GONE", request, is_duplicate=False, at=NOW), content)
    site.reporter.report_due()
    (report,) = site.spool.reports()
    assert report.is_parked
    assert "GONE" in report.reason


def test_a_damaged_file_of_the_spool_stays_and_stops_no_other(site: Site, tmp_path: Path) -> None:
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    site.spool.ask(Asked("MODALITY", request, is_duplicate=False, at=NOW))
    (tmp_path / "commitments" / "asked" / f"{'0' * 32}-0.json").write_bytes(b'{"at": 3}')
    assert [asked.request for asked in site.spool.asked()] == [request]


def test_the_check_looks_at_many_studies_and_reads_only_what_is_asked(tmp_path: Path) -> None:
    box = Box(tmp_path / "box")
    for study in range(5):
        name = f"1.9.{study}"
        put(box.store, dataset(name, f"1.8.{study}"), named_instance(name))
    request = CommitmentRequest("1.1", tuple(Reference(CT, f"1.9.{n}") for n in (4, 0, 7)))
    report = check(box.store.root, request)
    assert [each.sop_instance_uid for each in report.committed] == ["1.9.4", "1.9.0"]
    assert report.failed == ((Reference(CT, "1.9.7"), 0x0112),)
    box.writer.close()


def test_the_command_line_lists_and_retries_parked_reports_and_names_no_instance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "insitu.toml"
    config.write_text("".join(
        f'{"[directories]" if name == "state" else ""}\n{name} = "{tmp_path}/{name}"'
        for name in ("state", "cache", "runtime")
    ))  # fmt: skip
    spool = CommitmentSpool(tmp_path / "state" / "commitments")
    spool.make()
    (tmp_path / "runtime").mkdir()
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    content = CommitmentReport("1.2.9", (), ((request.references[0], 0x0112),))
    asked = Asked("MODALITY", request, is_duplicate=False, at=NOW)
    spool.keep(Report(asked.key, "MODALITY", content, NOW, attempt=9, is_parked=True, reason="no connection"))

    def answered(*words: str) -> Any:  # noqa: ANN401 - JSON
        capsys.readouterr()
        status = run(["--config", str(config), *words, "--json"])
        out = capsys.readouterr().out
        assert "1.2.3.4" not in out
        assert status in {ExitCode.OK, ExitCode.NOT_RUNNING}
        return json.loads(out)

    assert answered("status")["commitments"] == {"asked": 0, "waiting": 0, "parked": 1}
    (report,) = answered("commitment", "list")["reports"]
    assert (report["state"], report["attempt"], report["reason"]) == ("parked", 9, "no connection")
    assert answered("commitment", "retry") == {"retried": 1}
    assert answered("commitment", "retry") == {"retried": 0}
    (report,) = answered("commitment", "list")["reports"]
    assert (report["state"], report["attempt"], report["failed"]) == ("waiting", 0, 1)


def test_the_role_that_we_propose_is_that_of_the_scp(site: Site, requester: Requester) -> None:
    seen = []
    requester._handlers.append((evt.EVT_REQUESTED, lambda event: seen.append(event.assoc.requestor)))
    requester.listen()
    request = CommitmentRequest("1.2.9", (Reference(CT, "1.2.3.4"),))
    site.spool.hand_over(
        Asked("MODALITY", request, is_duplicate=False, at=datetime.now(UTC)),
        CommitmentReport("1.2.9", request.references, ()),
    )
    site.reporter.report_due()
    requester.wait()
    role = seen[0].role_selection[COMMITMENT]
    expected = build_role(COMMITMENT, scp_role=True)
    assert (role.scu_role, role.scp_role) == (False, expected.scp_role)

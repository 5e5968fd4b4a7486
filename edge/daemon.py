"""What runs, in what order it starts, and in what order it stops.

    receive   the acceptor on the DICOM port (threads, one an association)
    work      the assembler, one lane for each of ASSEMBLE, INFER, PRODUCE, and a warm
              process for each model; retention
    deliver   one lane for each destination; the rules that fetch earlier studies
    api       QIDO-RS and WADO-RS

STOW-RS listens in `receive`. With no role named all of them run in this process. Roles
meet in the arrival log, the journal, the result files, and nowhere else; a bell ends
waits early.

Start: directories, lock, journal, what a crash left, models, lanes, and the port last.
Stop: the port first; then what is claimed is finished or put back, within a deadline.

*Diagnostics*: one line for each start and stop of a role. *Security*: only `receive` and
`api` listen on the network; who may associate, store and read is in the configuration. The
web's packages are imported only where a port of it is configured.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from dicom.requestor import Destination, Timeouts
from dicom.walk import WalkLimits
from edge import bell, retention
from edge.arrivals import ArrivalReader, ArrivalWriter
from edge.bell import Bell, Wake
from edge.commitment import Commitments
from edge.commitment_lane import CommitmentReporter
from edge.commitment_spool import CommitmentSpool
from edge.counting import ANSWER_S, Counter, PeerCount
from edge.deliver import DeliveryLane
from edge.deliveries import Deliveries
from edge.instances import InstanceStore
from edge.intake_stats import IntakeStats
from edge.journal import Journal
from edge.options import Settings
from edge.places import Places
from edge.presence import ROLES, PortError, Presence
from edge.pull import PullRules
from edge.receive import Receiver, ReceiveStage
from edge.runner import Busy, Lane, StageWork, join_all, utc_now
from edge.seal import fast_crc32
from edge.study import Stage
from edge.ticker import Ticker

if TYPE_CHECKING:
    from edge.metrics import Metrics

log = logging.getLogger(__name__)

STOP_S: Final = 20.0
"""What is claimed may take so long to finish at a stop; systemd kills after 90 s."""
DECODERS: Final = 1
"""Threads that begin slices on arrival: decoding keeps up with a network on one core; the others are the
models' and the associations'."""
ARRIVALS_S: Final = 0.25
"""The quiet timer is looked at so often: 5 % of its default."""
MODELS_S: Final = 2.0
"""A change of the serving table is seen so soon; `insitu model activate` rings no bell."""
RELEASED_S: Final = 5.0
"""What was held for want of a destination, and released, goes out so soon."""
SLOTS_S: Final = 1.0
"""What was received has two names no longer than this; at full speed it is settled by number."""
COMMITMENTS_S: Final = 1.0
"""A report is tried again so soon after it is due; a ring brings a new one at once."""
PULL_S: Final = 2.0
"""A rule sees a study so soon after its first image; it is asked for while the rest arrives."""
RETENTION_S: Final = 3600.0
"""Retention counts in days; once an hour spreads the deleting."""


def run(settings: Settings, roles: Sequence[str] = ROLES, ready: Callable[[str], None] = log.info) -> None:
    """Run `roles` until SIGTERM or SIGINT; return when all has stopped.

    Raises:
        AlreadyRunningError: a role already runs on these directories.
        JournalError: the journal is damaged, or newer than this version.
        OSError: a directory or the port cannot be had.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with started(settings, roles) as addresses:
        where = ", ".join(f"{host}:{port}" for host, port in addresses)
        ready(
            f"{settings.node.ae_title} runs {', '.join(roles)}" + (f", listens on {where}" if where else "")
        )
        stop.wait()
        log.info("stopping")
    log.info("stopped")


@contextlib.contextmanager
def started(settings: Settings, roles: Sequence[str] = ROLES) -> Iterator[list[tuple[str, int]]]:
    """Run `roles` for the length of a `with`; yields the addresses listened on."""
    places = Places(settings.directories)
    places.make()
    addresses: list[tuple[str, int]] = []
    with contextlib.ExitStack() as stack:
        for role in roles:
            stack.callback(Presence(places.runtime, role).leave)
        metrics = stack.enter_context(_metrics(settings, places, roles))
        wake = Wake()
        for role in set(roles) & {"work", "deliver"}:
            stack.callback(Bell(places.runtime, role, wake).close)
        if "deliver" in roles:
            stack.enter_context(_deliver(settings, places, wake))
        if "work" in roles:
            stack.enter_context(_work(settings, places, wake))
        if "receive" in roles:
            addresses += stack.enter_context(_receive(settings, places, metrics))
        if "api" in roles and settings.web.port:
            addresses.append(stack.enter_context(_api(settings, places)))
        yield addresses


@contextlib.contextmanager
def _metrics(settings: Settings, places: Places, roles: Sequence[str]) -> "Iterator[Metrics | None]":
    if not settings.metrics.port:
        yield None
        return
    from edge.metrics import Metrics, MetricsServer, journal_source, port_of  # noqa: PLC0415 (where it is on)

    metrics = Metrics(roles)
    destinations = [peer.name for peer in settings.peers if peer.receives_results]
    metrics.add(journal_source(places.journal, roles, destinations))
    server = MetricsServer(metrics, settings.metrics.host, port_of(settings, roles))
    try:
        yield metrics
    finally:
        server.stop()


@contextlib.contextmanager
def _receive(
    settings: Settings, places: Places, metrics: "Metrics | None"
) -> Iterator[list[tuple[str, int]]]:
    slots_due = Wake()
    instances = InstanceStore(
        places.instances,
        settings.limits.min_free_disk_bytes,
        durable=settings.receive.durable,
        crc32=fast_crc32(),
        walk_limits=WalkLimits(settings.limits.max_elements, settings.limits.max_sequence_depth),
        ring=slots_due.ring,
    )
    instances.recover()
    keeping = Ticker("slots", SLOTS_S, instances.keep, slots_due)
    arrivals = ArrivalWriter(places.arrivals)
    spool = CommitmentSpool(places.commitments)
    spool.make()
    commitments = Commitments(
        spool,
        places.instances,
        arrivals,
        max_waiting=settings.limits.max_commitments,
        check_room=instances.check_room,
        ring_work=lambda: bell.ring(places.runtime, "work"),
        ring_deliver=lambda: bell.ring(places.runtime, "deliver"),
        clock=utc_now,
    )
    stats = IntakeStats()
    receiver = Receiver(
        settings,
        instances,
        arrivals,
        ring=lambda: bell.ring(places.runtime, "work"),
        commitments=commitments if settings.receive.storage_commitment else None,
        stats=stats,
    )
    if metrics is not None:
        from edge.metrics import intake_source  # noqa: PLC0415 (where it is on)

        metrics.add(intake_source(settings, places, receiver.stats, stats.counts))
        metrics.add_commits(stats.counts)
    with contextlib.ExitStack() as stack:
        stack.callback(arrivals.close)
        stack.callback(instances.settle)
        keeping.start()
        stack.callback(join_all, [keeping], STOP_S)
        stack.callback(keeping.stop)
        if settings.web.store_port:
            stack.enter_context(_store_by_web(settings, places, instances, arrivals, stats))
        commitments.start()
        stack.callback(join_all, [commitments], STOP_S)
        stack.callback(commitments.stop)
        try:
            receiver.start()
        except OSError as error:
            at = f"node.host = {settings.node.host}, node.port = {settings.node.port}"
            raise PortError(f"{at}: cannot listen there: {error.strerror or error}") from error
        stack.callback(receiver.stop, STOP_S)
        yield [receiver.address, *([receiver.tls_address] if receiver.tls_address else [])]


@contextlib.contextmanager
def _store_by_web(
    settings: Settings,
    places: Places,
    instances: InstanceStore,
    arrivals: ArrivalWriter,
    stats: IntakeStats,
) -> Iterator[None]:
    from edge.web_server import WebServer  # noqa: PLC0415 (a second of imports, where STOW-RS is on)
    from edge.web_store import store_app  # noqa: PLC0415

    stage = ReceiveStage(
        instances,
        arrivals,
        ae_title=settings.node.ae_title,
        callers={},
        ring=lambda: bell.ring(places.runtime, "work"),
        stats=stats,
    )
    server = WebServer(store_app(stage, settings), "STOW-RS", settings.web.store_port, settings)
    server.start()
    try:
        yield
    finally:
        server.stop(STOP_S)


@contextlib.contextmanager
def _api(settings: Settings, places: Places) -> Iterator[tuple[str, int]]:
    from edge.web_read import read_app  # noqa: PLC0415 (as above)
    from edge.web_server import WebServer  # noqa: PLC0415

    server = WebServer(read_app(places, settings), "QIDO-RS and WADO-RS", settings.web.port, settings)
    server.start()
    try:
        yield server.address
    finally:
        server.stop(STOP_S)


@contextlib.contextmanager
def _work(settings: Settings, places: Places, wake: Wake) -> Iterator[None]:
    # Decoders, image and model libraries: `receive` alone, which parses what anybody sends, never has them.
    from dicom.layout import DecodeLimits  # noqa: PLC0415
    from dicom.picture import warm_up  # noqa: PLC0415
    from edge.assemble import Assembler  # noqa: PLC0415
    from edge.engine import Engine, WorkerLimits  # noqa: PLC0415
    from edge.handover import BEGUN_BYTES, FINDINGS_BYTES, SLICES_BYTES, Headers, Inferred, Shelf, Slices  # noqa: PLC0415
    from edge.infer import Infer  # noqa: PLC0415
    from edge.produce import Produce  # noqa: PLC0415
    from edge.serving import Serving  # noqa: PLC0415
    from edge.streaming import Begun, Streaming  # noqa: PLC0415
    from model_store.package import Package  # noqa: PLC0415
    from model_store.store import ModelStore  # noqa: PLC0415

    journal = Journal.open(places.journal)
    instances = InstanceStore(places.instances)
    limits = WorkerLimits(
        threads=settings.infer.threads, start_timeout_s=settings.infer.worker_start_timeout_s
    )

    def start_engine(package: Package) -> Engine:
        return Engine.start(package, limits)

    serving = Serving(ModelStore(places.models), start_engine)
    headers = Headers(journal)
    inferred: Shelf[Inferred] = Shelf(FINDINGS_BYTES)
    decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode-ahead")
    decode_limits = DecodeLimits(max_bytes=settings.limits.max_decoded_bytes)
    slices: Slices = Shelf(SLICES_BYTES)
    begun: Begun = Shelf(BEGUN_BYTES)
    streaming = None
    if settings.assemble.streaming:
        streaming = Streaming(instances, serving, slices, begun, decoders, decode_limits)
    destinations = [peer.name for peer in settings.peers if peer.receives_results]
    counter = _counter(settings, wake)
    assembler = Assembler(
        journal,
        instances,
        ArrivalReader(places.arrivals),
        serving,
        settings.assemble,
        headers,
        utc_now,
        streaming=streaming,
        counter=counter,
    )
    works: dict[Stage, StageWork] = {
        Stage.ASSEMBLE: assembler,
        Stage.INFER: Infer(journal, instances, serving, headers, inferred, decode_limits, utc_now, streaming),
        Stage.PRODUCE: Produce(
            journal, instances, serving, headers, inferred, places.results, destinations, utc_now
        ),
    }
    serving.begin(utc_now())
    put_back = journal.unclaim(list(works))
    if put_back:
        log.warning("%d work items were claimed when the process ended: put back", put_back)
    assembler.reconcile()
    busy = Busy()
    lanes = [Lane(stage, work, journal, wake, busy) for stage, work in works.items()]
    days = settings.retention.days_after_delivery

    def delete_old() -> bool:
        return bool(retention.sweep(journal, instances.delete_instances, places.results, days, utc_now()))

    def keep_warm() -> bool:
        warm_up()
        serving.warm(journal.awaited_models())
        return False

    tickers = [
        Ticker("arrivals", ARRIVALS_S, assembler.poll, wake),
        Ticker("models", MODELS_S, keep_warm, Wake()),
        Ticker("retention", RETENTION_S, delete_old, Wake()),
    ]
    threads: list[Lane | Ticker | Counter] = [*tickers, *lanes]
    if counter is not None:
        threads.append(counter)
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        cut_off = join_all(threads, STOP_S)
        decoders.shutdown(wait=True, cancel_futures=True)
        serving.close()
        journal.close()
        if cut_off:
            log.warning("cut off while working, taken up at the next start: %s", ", ".join(cut_off))


def _counter(settings: Settings, wake: Wake) -> Counter | None:
    """Who asks the configured peer for the number of images; the configuration knows that it is there."""
    for peer in settings.peers:
        if peer.name == settings.assemble.ask_count_of:
            destination = Destination(peer.name, peer.ae_title, peer.host, peer.port)
            timeouts = Timeouts(ANSWER_S, ANSWER_S, ANSWER_S)
            return Counter(PeerCount(destination, settings.node.ae_title, timeouts), wake.ring)
    return None


@contextlib.contextmanager
def _deliver(settings: Settings, places: Places, wake: Wake) -> Iterator[None]:
    journal = Journal.open(places.journal)
    deliveries = Deliveries(journal)
    deliveries.unclaim()
    peers = [peer for peer in settings.peers if peer.receives_results]

    def take_up_released() -> bool:
        return deliveries.enter_missing([peer.name for peer in peers], utc_now()) > 0

    ticker = Ticker("released", RELEASED_S, take_up_released, Wake())
    lanes = [
        DeliveryLane(peer, settings, journal, deliveries, places.results, wake, utc_now) for peer in peers
    ]
    threads: list[DeliveryLane | Ticker] = [ticker, *lanes]
    reporter = CommitmentReporter(settings, CommitmentSpool(places.commitments), utc_now)
    threads.append(Ticker("commitment-reports", COMMITMENTS_S, reporter.report_due, wake))
    if settings.pulls:
        threads.append(Ticker("pull", PULL_S, PullRules(settings, journal, utc_now).poll, Wake()))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        join_all(threads, STOP_S)
        journal.close()

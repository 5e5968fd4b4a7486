"""What runs, in what order it starts, and in what order it stops.

    receive   the acceptor on the DICOM port (threads, one an association)
    work      the assembler, one lane for each of ASSEMBLE, INFER, PRODUCE, and a warm
              process for each model; retention
    deliver   one lane for each destination

With no role named all three run in this process. Roles meet in the arrival log, the
journal, the result files, and nowhere else; a bell ends waits early.

Start: directories, lock, journal, what a crash left, models, lanes, and the port last.
Stop: the port first; then what is claimed is finished or put back, within a deadline.

*Diagnostics*: one line for each start and stop of a role. *Security*: only `receive`
listens on the network; who may associate is in the configuration.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from dicom.picture import warm_up
from edge import bell, retention
from edge.arrivals import ArrivalReader, ArrivalWriter
from edge.assemble import Assembler
from edge.bell import Bell, Wake
from edge.deliver import DeliveryLane
from edge.deliveries import Deliveries
from edge.engine import Engine, WorkerLimits
from edge.handover import FINDINGS_BYTES, SLICES_BYTES, Inferred, Shelf, Slices
from edge.infer import Infer
from edge.instances import InstanceStore
from edge.journal import Journal
from edge.options import Settings
from edge.places import Places
from edge.presence import ROLES, Presence
from edge.produce import Produce
from edge.receive import Receiver
from edge.runner import Busy, Lane, StageWork, join_all, utc_now
from edge.serving import Serving
from edge.study import Stage
from edge.ticker import Ticker
from model_store.package import Package
from model_store.store import ModelStore

log = logging.getLogger(__name__)

STOP_S: Final = 20.0
"""What is claimed may take so long to finish at a stop; systemd kills after 90 s."""
ARRIVALS_S: Final = 0.25
"""The quiet timer is looked at so often: 5 % of its default."""
MODELS_S: Final = 2.0
"""A change of the serving table is seen so soon; `insitu model activate` rings no bell."""
RELEASED_S: Final = 5.0
"""What was held for want of a destination, and released, goes out so soon."""
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
        wake = Wake()
        for role in set(roles) - {"receive"}:
            stack.callback(Bell(places.runtime, role, wake).close)
        if "deliver" in roles:
            stack.enter_context(_deliver(settings, places, wake))
        if "work" in roles:
            stack.enter_context(_work(settings, places, wake))
        if "receive" in roles:
            addresses.append(stack.enter_context(_receive(settings, places)))
        yield addresses


@contextlib.contextmanager
def _receive(settings: Settings, places: Places) -> Iterator[tuple[str, int]]:
    instances = InstanceStore(
        places.instances, settings.limits.min_free_disk_bytes, durable=settings.receive.durable
    )
    instances.recover()
    arrivals = ArrivalWriter(places.arrivals)
    receiver = Receiver(settings, instances, arrivals, ring=lambda: bell.ring(places.runtime, "work"))
    receiver.start()
    try:
        yield receiver.address
    finally:
        receiver.stop(STOP_S)
        arrivals.close()


@contextlib.contextmanager
def _work(settings: Settings, places: Places, wake: Wake) -> Iterator[None]:
    journal = Journal.open(places.journal)
    instances = InstanceStore(places.instances)
    limits = WorkerLimits(
        threads=settings.infer.threads, start_timeout_s=settings.infer.worker_start_timeout_s
    )

    def start_engine(package: Package) -> Engine:
        return Engine.start(package, limits)

    serving = Serving(ModelStore(places.models), start_engine)
    slices: Slices = Shelf(SLICES_BYTES)
    inferred: Shelf[Inferred] = Shelf(FINDINGS_BYTES)
    decoders = ThreadPoolExecutor(1, thread_name_prefix="decode-ahead")
    destinations = [peer.name for peer in settings.peers if peer.receives_results]
    assembler = Assembler(
        journal,
        instances,
        ArrivalReader(places.arrivals),
        serving,
        settings.assemble,
        slices,
        decoders,
        utc_now,
    )
    works: dict[Stage, StageWork] = {
        Stage.ASSEMBLE: assembler,
        Stage.INFER: Infer(journal, instances, serving, slices, inferred, utc_now),
        Stage.PRODUCE: Produce(journal, instances, serving, inferred, places.results, destinations, utc_now),
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
        serving.warm()
        return False

    tickers = [
        Ticker("arrivals", ARRIVALS_S, assembler.poll, wake),
        Ticker("models", MODELS_S, keep_warm, Wake()),
        Ticker("retention", RETENTION_S, delete_old, Wake()),
    ]
    threads: list[Lane | Ticker] = [*tickers, *lanes]
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
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for thread in threads:
            thread.stop()
        join_all(threads, STOP_S)
        journal.close()

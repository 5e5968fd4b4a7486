"""Counts and gauges for a monitoring system, in the text format of Prometheus (`[metrics]`).

Owns the list of metrics, how each role's numbers get into them at the moment they are asked for, and the
small HTTP server of each process. Nothing is counted here: acceptor, store, journal and spool count.

*Security*: no patient data: labels are our own words and the names of configured peers. Whoever reaches
the port may read; it listens on the loopback unless the configuration says otherwise.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dicom.acceptor_stats import AcceptorStats
from edge.commitment_spool import CommitmentSpool
from edge.intake_stats import BUCKETS_S, IntakeCounts
from edge.journal import Journal
from edge.journal_view import STATES, waiting
from edge.options import Settings
from edge.places import Places
from edge.presence import ROLES
from edge.study import Stage
from edge.tls import TlsFileError, validity_of
from edge.version import VERSION

log = logging.getLogger(__name__)

Values = Mapping[tuple[str, ...], float]
"""By the values of a metric's labels."""

DELIVERY_STATES: Final = ("waiting", "delivered", "parked")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; a counter's name ends in `_total`, a unit stands before that (Prometheus naming)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    role: str
    """The role in whose process it is served."""
    help: str


METRICS: Final = (
    Metric("insitu_role_info", "gauge", ("role", "version"), "each", "1 for each role of this process"),
    Metric("insitu_connections_total", "counter", (), "receive", "TCP connections to the DICOM ports"),
    Metric(
        "insitu_connections_dropped_total",
        "counter",
        ("reason",),
        "receive",
        "connections closed before an association: evicted (too many pending), rate (their address opens too "
        "many in a second), tls (the handshake failed)",
    ),
    Metric("insitu_connections_pending", "gauge", (), "receive", "open connections without an association"),
    Metric("insitu_associations_open", "gauge", (), "receive", "associations that are open now"),
    Metric("insitu_associations_accepted_total", "counter", (), "receive", "associations accepted"),
    Metric(
        "insitu_associations_rejected_total",
        "counter",
        ("reason",),
        "receive",
        "associations rejected, by the reason of PS3.8 §9.3.4",
    ),
    Metric(
        "insitu_associations_ended_total",
        "counter",
        ("how",),
        "receive",
        "associations that ended: released, aborted, lost, timed out",
    ),
    Metric(
        "insitu_aborts_sent_total",
        "counter",
        ("cause",),
        "receive",
        "A-ABORTs that we sent; a refused PDU is the cause `invalid PDU` or `unexpected PDU`",
    ),
    Metric("insitu_instances_accepted_total", "counter", (), "receive", "C-STOREs answered with success"),
    Metric(
        "insitu_instances_refused_total",
        "counter",
        ("status",),
        "receive",
        "C-STORE requests answered with a failure, by status",
    ),
    Metric(
        "insitu_instances_kept_total",
        "counter",
        ("fate",),
        "receive",
        "instances made durable, by C-STORE and STOW-RS: stored, duplicate (it was here already), "
        "conflict (another one of its UID was here: see incidents/)",
    ),
    Metric("insitu_received_bytes_total", "counter", (), "receive", "bytes of data sets received by C-STORE"),
    Metric("insitu_commit_seconds", "histogram", (), "receive", "time to make an instance durable"),
    Metric("insitu_disk_free_bytes", "gauge", (), "receive", "free space of the state directory's disk"),
    Metric(
        "insitu_disk_watermark_bytes", "gauge", (), "receive", "free space below which 0xA700 is answered"
    ),
    Metric(
        "insitu_commitments",
        "gauge",
        ("state",),
        "receive",
        "requests for storage commitment: asked (not looked after yet), waiting (the report is to be "
        "brought), parked (the peer did not take it: insitu commitment retry)",
    ),
    Metric(
        "insitu_tls_certificate_expiry_seconds",
        "gauge",
        (),
        "receive",
        "when the certificate of [tls] expires, in seconds since 1970; absent without TLS",
    ),
    Metric("insitu_studies", "gauge", ("state",), "work", "studies by state (insitu study list)"),
    Metric("insitu_items", "gauge", ("stage",), "work", "work items by stage"),
    Metric("insitu_deliveries", "gauge", ("destination", "state"), "deliver", "deliveries of results"),
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}

Source = Callable[[], Iterable[tuple[str, Values]]]
"""Gives the names of metrics and their values at this moment."""


def intake_source(
    settings: Settings,
    places: Places,
    stats: Callable[[], AcceptorStats],
    counts: Callable[[], IntakeCounts],
) -> Source:
    """The numbers of role `receive`, but for the histogram (`commit_histogram`)."""
    spool = CommitmentSpool(places.commitments)

    def source() -> Iterator[tuple[str, Values]]:
        seen, kept = stats(), counts()
        disk = os.statvfs(places.instances)
        yield "insitu_connections_total", {(): seen.connections_accepted}
        yield (
            "insitu_connections_dropped_total",
            {
                ("evicted",): seen.connections_evicted,
                ("rate",): seen.connections_refused,
                ("tls",): seen.handshakes_failed,
            },
        )
        yield "insitu_connections_pending", {(): seen.connections_pending}
        yield "insitu_associations_open", {(): seen.associations_open}
        yield "insitu_associations_accepted_total", {(): seen.associations_accepted}
        yield (
            "insitu_associations_rejected_total",
            {(reason.name.lower(),): count for reason, count in seen.associations_rejected.items()},
        )
        yield (
            "insitu_associations_ended_total",
            {(str(how),): count for how, count in seen.associations_ended.items()},
        )
        yield "insitu_aborts_sent_total", {(cause,): count for cause, count in seen.aborts_sent.items()}
        yield "insitu_instances_accepted_total", {(): seen.instances}
        yield (
            "insitu_instances_refused_total",
            {(f"0x{status:04X}",): count for status, count in seen.instances_refused.items()},
        )
        yield "insitu_instances_kept_total", {(str(fate),): count for fate, count in kept.fates.items()}
        yield "insitu_received_bytes_total", {(): seen.bytes}
        yield "insitu_disk_free_bytes", {(): disk.f_bavail * disk.f_frsize}
        yield "insitu_disk_watermark_bytes", {(): settings.limits.min_free_disk_bytes}
        yield "insitu_commitments", {(state,): count for state, count in spool.states().items()}
        if settings.tls.certificate:
            with contextlib.suppress(TlsFileError):
                ends = validity_of(Path(settings.tls.certificate)).ends
                yield "insitu_tls_certificate_expiry_seconds", {(): ends.timestamp()}

    return source


def journal_source(journal: Path, roles: Sequence[str], destinations: Sequence[str]) -> Source:
    """The numbers of roles `work` and `deliver`; the journal is opened for reading each time."""

    def source() -> Iterator[tuple[str, Values]]:
        if not journal.exists():
            return
        with contextlib.closing(Journal.open(journal, readonly=True)) as opened:
            if "work" in roles:
                studies = waiting(opened)
                yield "insitu_studies", {(state,): studies[state] for state in STATES}
                stages = dict.fromkeys(Stage, 0)
                for row in opened.read("SELECT stage, count(*) AS n FROM item GROUP BY stage"):
                    stages[Stage(row["stage"])] = row["n"]
                yield "insitu_items", {(str(stage),): count for stage, count in stages.items()}
            if "deliver" in roles:
                found: dict[tuple[str, ...], float] = {
                    (name, state): 0 for name in destinations for state in DELIVERY_STATES
                }
                for row in opened.read(
                    "SELECT destination, state, count(*) AS n FROM delivery GROUP BY destination, state"
                ):
                    found[row["destination"], row["state"]] = row["n"]
                yield "insitu_deliveries", found

    return source


class Metrics(Collector):
    """What one process serves."""

    def __init__(self, roles: Sequence[str]) -> None:
        self._roles = tuple(roles)
        self._sources: list[Source] = []
        self._counts: Callable[[], IntakeCounts] | None = None

    def add(self, source: Source) -> None:
        """Serve the numbers of `source` too."""
        self._sources.append(source)

    def add_commits(self, counts: Callable[[], IntakeCounts]) -> None:
        """Serve how long commits took."""
        self._counts = counts

    def collect(self) -> Iterator[Any]:
        """The metric families of this moment; a source that fails is logged and left out."""
        yield _family("insitu_role_info", {(role, VERSION): 1 for role in self._roles})
        if self._counts is not None:
            yield _histogram(self._counts())
        for source in self._sources:
            try:
                found = list(source())
            except Exception:
                log.exception("metrics of one source cannot be read")
                continue
            for name, values in found:
                yield _family(name, values)


class MetricsServer:
    """Serves a process's metrics by HTTP."""

    def __init__(self, metrics: Metrics, host: str, port: int) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(metrics)
        self._server, self._thread = start_http_server(port, host, registry)
        log.info("metrics on http://%s:%d/metrics", *self.address)

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on."""
        host, port = self._server.socket.getsockname()[:2]
        return str(host), int(port)

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def port_of(settings: Settings, roles: Sequence[str]) -> int:
    """The port of a process that runs `roles`: that of its first role."""
    return settings.metrics.port + min(ROLES.index(role) for role in roles)


def metrics_markdown() -> str:
    """The table of `docs/operations.md`."""
    lines = ["| metric | kind | labels | role | meaning |", "|---|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.role} | {metric.help} |")
    return "\n".join(lines)


def _family(name: str, values: Values) -> CounterMetricFamily | GaugeMetricFamily:
    metric = BY_NAME[name]
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = kind(name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        family.add_metric(labels, value)
    return family


def _histogram(counts: IntakeCounts) -> HistogramMetricFamily:
    metric = BY_NAME["insitu_commit_seconds"]
    ends = [str(end) for end in BUCKETS_S] + ["+Inf"]
    buckets = list(zip(ends, accumulate(counts.commits), strict=True))
    return HistogramMetricFamily(metric.name, metric.help, buckets=buckets, sum_value=counts.commit_s)

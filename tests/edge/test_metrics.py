"""What is served to a monitoring system, read with Prometheus' own parser from a process that ran."""

import re
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from edge.incoming import Fate
from edge.intake_stats import BUCKETS_S, IntakeStats
from edge.metrics import DELIVERY_STATES, METRICS, Metrics, MetricsServer, port_of
from edge.options import Metrics as MetricsOptions
from edge.options import Settings
from edge.presence import ROLES
from tests.fakes.pacs import free_port, needs_dcmtk
from tests.flow.appliance import Appliance
from tests.tiny import tiny_study

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(host: str, port: int) -> tuple[str, Samples]:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return text, {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@needs_dcmtk
def test_the_appliance_serves_every_metric_with_what_happened_and_without_a_patient(tmp_path: Path) -> None:
    port = free_port()
    files = tiny_study(tmp_path / "study", PatientName="SECRET^PATIENT", PatientID="SECRET-ID")
    options = f"[metrics]\nport = {port}\n[assemble]\nquiet_s = 0.2\n"
    with Appliance(tmp_path / "box", models=(), options=options) as box:
        assert box.send(files) == 0
        assert box.send(files[:1]) == 0  # a duplicate
        assert box.send(files[:1], "STRANGER") != 0
        (study,) = box.wait_for("held")
        text, found = scraped("127.0.0.1", port)
    assert found["insitu_instances_accepted_total", ()] == len(files) + 1
    assert found["insitu_instances_kept_total", (("fate", "stored"),)] == len(files)
    assert found["insitu_instances_kept_total", (("fate", "duplicate"),)] == 1
    assert found["insitu_associations_accepted_total", ()] == 2
    assert found["insitu_associations_rejected_total", (("reason", "calling_ae_title_not_recognized"),)] == 1
    assert found["insitu_commit_seconds_count", ()] == len(files) + 1
    assert found["insitu_commit_seconds_sum", ()] > 0
    assert found["insitu_studies", (("state", "held"),)] == 1
    assert found["insitu_items", (("stage", "held"),)] == 1
    assert found["insitu_disk_free_bytes", ()] > found["insitu_disk_watermark_bytes", ()] == 1048576
    assert found["insitu_commitments", (("state", "parked"),)] == 0
    for role in ROLES:
        assert any(name == "insitu_role_info" and ("role", role) in labels for name, labels in found)
    for secret in ("SECRET", study.study.study_instance_uid, study.study.study_key):
        assert secret not in text
    served = set(re.findall(r"(?m)^# TYPE (\w+) ", text))
    assert served == {
        metric.name for metric in METRICS if metric.name != "insitu_tls_certificate_expiry_seconds"
    }


def test_a_source_that_fails_takes_no_other_with_it(tmp_path: Path) -> None:
    metrics = Metrics(["work"])

    def fails() -> list[tuple[str, dict[tuple[str, ...], float]]]:
        raise OSError("gone")

    metrics.add(fails)
    metrics.add(lambda: [("insitu_associations_open", {(): 3})])
    server = MetricsServer(metrics, "127.0.0.1", 0)
    try:
        _, found = scraped(*server.address)
    finally:
        server.stop()
    assert found["insitu_associations_open", ()] == 3


def test_each_process_of_several_has_a_port_of_its_own() -> None:
    settings = Settings(metrics=MetricsOptions(port=9000))
    assert [port_of(settings, [role]) for role in ROLES] == [9000, 9001, 9002, 9003]
    assert port_of(settings, ROLES) == 9000


def test_commits_are_counted_in_the_bucket_whose_end_they_do_not_pass() -> None:
    stats = IntakeStats()
    for seconds in (0.0005, 0.001, 0.0011, 99.0):
        stats.committed(Fate.STORED, seconds)
    counts = stats.counts()
    assert counts.commits == (2, 1, *[0] * (len(BUCKETS_S) - 2), 1)
    assert counts.fates == {Fate.STORED: 4, Fate.DUPLICATE: 0, Fate.CONFLICT: 0}


def test_names_are_as_prometheus_wants_them() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"insitu_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert DELIVERY_STATES == ("waiting", "delivered", "parked")

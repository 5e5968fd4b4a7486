"""The conformance statement and the operations page say what the code does."""

import re
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset

from dicom import composite, content, picture, provenance, report, segmentation
from dicom.errors import HeaderError
from dicom.report import encode_report
from dicom.segmentation import encode_segmentation
from dicom.source import read_source
from dicom.validity import RULES
from dicom.walk import WalkLimits
from edge.conformance import ACTION_STATUSES, CODE_ITEM, STORE_STATUSES, attributes_of
from edge.failures import OF_ERRNO, OF_TYPE
from edge.instances import InstanceStore
from edge.metrics import METRICS
from edge.options import Limits
from edge.reference import told
from tests.dicom.results_fixture import ball, brain_findings, context_of, grid, source_file
from tests.edge.test_instances import dataset, put

DOCS = Path(__file__).resolve().parents[2] / "docs"
SHAPE = (4, 60, 50)
NOT_BY_KEYWORD = {"PixelData"}  # written in pieces (`dicom.element.pixel_data`)


def keywords(ds: Dataset) -> set[str]:
    found = set()
    for element in ds.iterall():
        found.add(keyword_for_tag(element.tag))
    return found


def test_every_attribute_of_a_real_result_stands_in_the_statement(tmp_path: Path) -> None:
    pairs = source_file(tmp_path, grid(SHAPE))
    source, context = read_source(pairs), context_of(pairs)
    findings = brain_findings(ball(SHAPE))
    mask = encode_segmentation(source, findings, context)
    assert mask is not None
    text = (DOCS / "conformance-statement.md").read_text()
    table = text.partition("### Attributes of the result objects")[2]
    listed = set(re.findall(r"\| \([0-9A-F]{4},[0-9A-F]{4}\) \| (\w+) \|", table))
    for result in (mask, encode_report(source, findings, context, mask)):
        written = keywords(dcmread(BytesIO(result.data)))
        assert len(written) > 40
        assert written - listed - NOT_BY_KEYWORD == set()


def test_the_listed_attributes_are_those_that_the_modules_name() -> None:
    table = (DOCS / "conformance-statement.md").read_text().partition("### Attributes of")[2]
    listed = set(re.findall(r"\| \([0-9A-F]{4},[0-9A-F]{4}\) \| (\w+) \|", table))
    modules = (composite, content, picture, provenance, report, segmentation)
    assert listed == {word for module in modules for word in attributes_of(module)} | {*RULES, *CODE_ITEM}


def test_every_status_that_an_error_is_answered_with_is_explained() -> None:
    answered = {verdict.dimse_status for verdict in (*OF_ERRNO.values(), *OF_TYPE.values())}
    assert answered <= set(STORE_STATUSES)
    text = (DOCS / "conformance-statement.md").read_text()
    for status in (*STORE_STATUSES, *ACTION_STATUSES):
        assert f"| 0x{status:04X} |" in text


def test_every_limit_stands_in_the_statement_with_number_setting_and_reason() -> None:
    text = (DOCS / "conformance-statement.md").read_text()
    for name, field in Limits.model_fields.items():
        (row,) = re.findall(rf"(?m)^\|.*\| `limits\.{name}` \| (.+) \|$", text)
        assert row == told(field).reason


def test_the_metrics_that_operations_names_in_prose_are_served() -> None:
    text = (DOCS / "operations.md").read_text()
    named = set(re.findall(r"\binsitu_[a-z_]+", text))
    assert named == {metric.name for metric in METRICS}


@pytest.mark.parametrize(
    ("limits", "said"),
    [(WalkLimits(max_elements=4), "more than 4 elements"), (WalkLimits(max_depth=1), "more than 1 deep")],
)
def test_the_limits_on_elements_and_depth_hold_at_the_intake(
    tmp_path: Path, limits: WalkLimits, said: str
) -> None:
    nested = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    inner = b"\x40\x00\x08\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0"
    close = b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0"
    data = dataset()
    at = data.index(b"\xe0\x7f\x10\x00")
    data = data[:at] + nested + inner + close + data[at:]
    store = InstanceStore(tmp_path / "instances", walk_limits=limits)
    store.recover()
    with pytest.raises(HeaderError, match=said):
        put(store, data)
    assert list(store.stored_keys()) == []
    free = InstanceStore(tmp_path / "free")
    free.recover()
    assert put(free, data).size_bytes > len(data)

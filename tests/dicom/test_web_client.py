"""The DICOMweb client against a node that answers as told; against real ones in tests/flow/test_pull.py."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dicom.errors import PeerError
from dicom.query import StudyQuery
from dicom.web_client import WebClient, WebNode
from tests.tiny import tiny_study

JSON = {"Content-Type": "application/dicom+json"}
PARTS = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
STUDY = {
    "0020000D": {"vr": "UI", "Value": ["1.2.3"]},
    "00080020": {"vr": "DA", "Value": ["20260301"]},
    "00080061": {"vr": "CS", "Value": ["MR", "SR"]},
    "00201208": {"vr": "IS", "Value": [12]},
    "00100020": {"vr": "LO"},
}


@contextmanager
def node(
    status: int, headers: Mapping[str, str], body: bytes, token: str = ""
) -> Iterator[tuple[WebClient, list[str]]]:
    """A client, and the request lines that its node has seen."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            seen.append(f"{self.requestline} {self.headers.get('Authorization', '')}")
            if self.headers.get("Transfer-Encoding") == "chunked":
                while size := int(self.rfile.readline(), 16):
                    self.rfile.read(size + 2)
                self.rfile.readline()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

        do_GET = do_POST = _answer  # noqa: N815 - the names that http.server looks for

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield WebClient(WebNode(f"http://127.0.0.1:{server.server_port}/dicom-web", token, timeout_s=5)), seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Kept:
    """Keeps the content of parts."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def part_begins(self, headers: Mapping[str, str]) -> None:
        self.parts.append(b"")

    def part_data(self, data: memoryview) -> None:
        self.parts[-1] += bytes(data)

    def part_ends(self) -> None:
        """Nothing to do."""


def test_studies_are_searched_with_keys_and_token_and_read() -> None:
    with node(200, JSON, json.dumps([STUDY]).encode(), "secret") as (client, seen):
        [found] = client.find_studies(StudyQuery(patient_id="P 1&x"))
    assert (found.study_instance_uid, found.instances, found.modalities) == ("1.2.3", 12, ("MR", "SR"))
    assert "GET /dicom-web/studies?PatientID=P%201%26x&" in seen[0]
    assert seen[0].endswith("Bearer secret")
    with node(204, {}, b"") as (client, _):
        assert client.find_studies(StudyQuery(patient_id="P1")) == []


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (401, {}, b"", "answered 401"),
        (302, {"Location": "http://127.0.0.1:1/"}, b"", "answered 302"),
        (200, JSON, b"{", "no JSON"),
        (200, JSON, b"{}", "no list"),
        (200, JSON, b"[3]", "no data set"),
        (200, JSON, b"[{}]", "no Study Instance UID"),
        (200, JSON, b'[{"0020000D": {"Value": 3}}]', "cannot be read"),
        (200, JSON, b"[" * 100_000, "no JSON"),
        (200, JSON, json.dumps([STUDY] * 501).encode(), "at most 500"),
    ],
)
def test_what_a_node_must_not_answer_is_an_error_of_its_own(
    status: int, headers: dict[str, str], body: bytes, said: str
) -> None:
    with node(status, headers, body, "secret") as (client, _), pytest.raises(PeerError, match=said) as caught:
        client.find_studies(StudyQuery(patient_id="P1"))
    assert "P1" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_retrieved_study_comes_part_by_part_and_a_cut_one_is_an_error() -> None:
    whole = b"--b\r\nContent-Type: application/dicom\r\n\r\none\r\n--b\r\n\r\ntwo\r\n--b--\r\n"
    kept = Kept()
    with node(200, PARTS, whole) as (client, _):
        assert client.retrieve_study("1.2.3", kept, 10, 1000) == 2
    assert kept.parts == [b"one", b"two"]
    for body, parts, size, said in (
        (whole[:-10], 10, 1000, "closing delimiter"),
        (whole, 1, 1000, "more than 1 parts"),
        (whole, 10, 50, "longer than 50 bytes"),
    ):
        with node(200, PARTS, body) as (client, _), pytest.raises(PeerError, match=said):
            client.retrieve_study("1.2.3", Kept(), parts, size)
    with node(200, JSON, b"[]") as (client, _), pytest.raises(PeerError, match="boundary"):
        client.retrieve_study("1.2.3", Kept(), 10, 1000)
    with node(404, {}, b"") as (client, _), pytest.raises(PeerError, match="answered 404"):
        client.retrieve_study("1.2.3", Kept(), 10, 1000)


def test_what_was_stored_and_what_was_not_is_read_from_the_answer(tmp_path: Path) -> None:
    answer = {
        "00081199": {"vr": "SQ", "Value": [{"00081155": {"vr": "UI", "Value": ["1.2"]}}]},
        "00081198": {
            "vr": "SQ",
            "Value": [
                {"00081155": {"vr": "UI", "Value": ["1.3"]}, "00081197": {"vr": "US", "Value": [42752]}}
            ],
        },
    }
    with node(202, JSON, json.dumps(answer).encode()) as (client, _):
        found = client.store(tiny_study(tmp_path, slices=2))
    assert found.stored == {"1.2"}
    assert found.failed == {"1.3": 0xA700}


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x", "http://a/b?c=d", "http://a#b"])
def test_an_address_that_is_none_is_our_own_mistake(url: str) -> None:
    with pytest.raises(ValueError, match="DICOMweb node"):
        WebClient(WebNode(url))


def test_a_node_that_is_not_there_is_an_error_of_the_network() -> None:
    with pytest.raises(PeerError, match="the exchange failed"):
        WebClient(WebNode("http://127.0.0.1:1", timeout_s=5)).find_studies(StudyQuery(patient_id="P1"))
    with pytest.raises(ValueError, match="no key"):
        WebClient(WebNode("http://127.0.0.1:1")).find_studies(StudyQuery())

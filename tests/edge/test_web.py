"""STOW-RS at its edges: what is malformed, too large, cut off, not allowed; and nothing half stored."""

import hashlib
import json
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import pytest
import requests
from pydicom import dcmread

from dicom.part10 import read_meta
from dicom.web_client import WebClient as DicomWebClient
from dicom.web_client import WebNode
from edge.arrivals import Arrival, ArrivalReader, ArrivalWriter, AssociationEnded, Entry, Position
from edge.config import ConfigError, parse
from edge.instances import InstanceStore, instance_key, study_key
from edge.options import Limits, Settings, Web, WebClient
from edge.receive import ReceiveStage
from edge.web_auth import Clients, token_hash
from edge.web_server import WebServer
from edge.web_store import store_app
from tests.tiny import tiny_study

TOKEN: Final = "the-token"
HEAD: Final = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": 'multipart/related; type="application/dicom"; boundary=b',
}
WAIT_S: Final = 20.0


@dataclass
class Box:
    """STOW-RS on a store of its own, in this process."""

    directory: Path
    web: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    clients: tuple[WebClient, ...] = (
        WebClient(name="scanner", ae_title="SCANNER", token_sha256=token_hash(TOKEN)),
        WebClient(name="viewer", token_sha256=token_hash("viewer"), may_store=False, may_read=True),
    )
    min_free_bytes: int = 0

    def __enter__(self) -> "Box":
        (self.directory / "arrivals").mkdir(parents=True)
        self.instances = InstanceStore(self.directory / "instances", self.min_free_bytes)
        self.instances.recover()
        self.arrivals = ArrivalWriter(self.directory / "arrivals")
        self.rung = threading.Condition()
        stage = ReceiveStage(self.instances, self.arrivals, ae_title="INSITU", callers={}, ring=self._ring)
        settings = Settings(
            web=Web(host="127.0.0.1", **{"settle_s": 0.0, **self.web}),
            web_clients=self.clients,
            limits=Limits(**self.limits),
        )
        self.server = WebServer(store_app(stage, settings), "STOW-RS", 0, settings)
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop(5)
        self.arrivals.close()

    def _ring(self) -> None:
        with self.rung:
            self.rung.notify_all()

    @property
    def port(self) -> int:
        return self.server.address[1]

    def url(self, path: str = "/studies") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def post(
        self, body: bytes | Iterator[bytes], path: str = "/studies", **headers: str
    ) -> requests.Response:
        return requests.post(self.url(path), data=body, headers={**HEAD, **headers}, timeout=WAIT_S)

    def stored(self) -> list[tuple[str, str]]:
        return list(self.instances.stored_keys())

    def entries(self) -> list[Entry]:
        found, _ = ArrivalReader(self.directory / "arrivals").read(Position(), 10_000)
        return found

    def wait_for_end(self) -> AssociationEnded:
        """The end of an association, as soon as it is announced."""
        with self.rung:
            assert self.rung.wait_for(
                lambda: any(isinstance(each, AssociationEnded) for each in self.entries()), WAIT_S
            )
        return next(each for each in self.entries() if isinstance(each, AssociationEnded))

    def is_clean(self) -> bool:
        """Nothing half stored is left: a slot is empty, or has its lasting name, too."""
        slots = [slot.stat() for slot in (self.directory / "instances" / "incoming").iterdir()]
        return all(slot.st_nlink > 1 or slot.st_size == 0 for slot in slots)


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    with Box(tmp_path / "box") as found:
        yield found


def part(content: bytes, kind: str = "application/dicom", *lines: str) -> bytes:
    head = "\r\n".join([f"Content-Type: {kind}", *lines])
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + content + b"\r\n"


def body(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


def reasons(answer: requests.Response) -> list[int]:
    found = answer.json()
    items = [*found.get("00081198", {}).get("Value", []), *found.get("0008119A", {}).get("Value", [])]
    return [item["00081197"]["Value"][0] for item in items]


def stored_uids(answer: requests.Response) -> list[str]:
    items = answer.json().get("00081199", {}).get("Value", [])
    return [item["00081155"]["Value"][0] for item in items]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return [path.read_bytes() for path in tiny_study(tmp_path_factory.mktemp("study"), slices=4)]


def test_instances_are_stored_as_they_are_with_our_preamble_and_announced(
    box: Box, study: list[bytes]
) -> None:
    hostile = [b"MZ" + b"#!/bin/sh\n".ljust(126) + data[128:] for data in study]
    answer = box.post(body(*(part(data) for data in hostile)))
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/dicom+json"
    sent = [dcmread(BytesIO(data)) for data in study]
    assert stored_uids(answer) == [ds.SOPInstanceUID for ds in sent]
    for ds, data in zip(sent, study, strict=True):
        path = box.instances.path(study_key(ds.StudyInstanceUID), instance_key(ds.SOPInstanceUID))
        kept = path.read_bytes()
        assert kept[:128] == bytes(128)
        assert kept[read_meta(kept).dataset_offset :] == data[read_meta(data).dataset_offset :]
        assert read_meta(kept).source_ae_title == "SCANNER"
    arrivals = [entry for entry in box.entries() if isinstance(entry, Arrival)]
    assert len(arrivals) == 4
    end = box.wait_for_end()
    assert end.how == "released"
    assert {arrival.association for arrival in arrivals} == {end.association}
    assert box.is_clean()


def test_one_instance_without_multipart_and_a_study_in_the_path_are_taken(
    box: Box, study: list[bytes]
) -> None:
    uid = dcmread(BytesIO(study[0])).StudyInstanceUID
    kind = {"Content-Type": "application/dicom"}
    assert box.post(study[0], **kind).status_code == 200
    assert box.post(study[1], f"/studies/{uid}", **kind).status_code == 200
    assert len(box.stored()) == 2


def test_instances_of_another_study_than_the_path_names_are_refused_one_by_one(
    box: Box, study: list[bytes], tmp_path: Path
) -> None:
    other = [path.read_bytes() for path in tiny_study(tmp_path / "other", name="other", slices=2)]
    uid = dcmread(BytesIO(study[0])).StudyInstanceUID
    answer = box.post(body(part(study[0]), part(other[0]), part(study[1])), f"/studies/{uid}")
    assert answer.status_code == 202
    assert len(stored_uids(answer)) == 2
    assert reasons(answer) == [0xA900]
    answer = box.post(body(part(other[0]), part(other[1])), f"/studies/{uid}")
    assert answer.status_code == 409
    assert reasons(answer) == [0xA900, 0xA900]
    assert len(box.stored()) == 2
    assert box.is_clean()


def test_the_same_again_is_a_success_and_other_bytes_under_the_same_name_are_not(
    box: Box, study: list[bytes]
) -> None:
    assert box.post(body(part(study[0]))).status_code == 200
    assert box.post(body(part(study[0]))).status_code == 200
    changed = study[0][:-4] + b"\1\2\3\4"
    answer = box.post(body(part(changed)))
    assert answer.status_code == 409
    assert reasons(answer) == [0x0111]
    [(study_name, instance)] = box.stored()
    assert box.instances.path(study_name, instance).read_bytes().endswith(study[0][-100:])


def test_what_is_no_instance_is_refused_and_the_others_are_stored(box: Box, study: list[bytes]) -> None:
    no_pixels = study[2][:4000]
    unknown_class = study[1].replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.1.20.1\0\0\0\0\0\0")
    syntax = b"1.2.840.10008.1.2.1\0"
    assert syntax in study[3]
    unknown_syntax = study[3].replace(syntax, b"1.2.840.10008.9.9.9\0", 1)
    nested = part(b"x").replace(b"--b", b"--c") + b"--c--"
    answer = box.post(
        body(
            part(b"hello"),
            part(study[0]),
            part(b""),
            part(nested, "multipart/related; boundary=c"),
            part(b"{}", "application/dicom+json"),
            part(study[1], "application/dicom", "Content-Transfer-Encoding: base64"),
            part(unknown_class),
            part(unknown_syntax),
            part(no_pixels[:300]),
            part(study[1][:132]),
        )
    )
    assert answer.status_code == 202
    assert len(stored_uids(answer)) == 1
    assert sorted(reasons(answer)) == sorted(
        [0xC000, 0xC000, 0xC000, 0xC000, 0xC000, 0x0122, 0xC122, 0xC000, 0xC000]
    )
    assert len(box.stored()) == 1
    assert box.is_clean()


def test_a_body_that_is_malformed_or_cut_keeps_what_was_whole_and_nothing_of_the_rest(
    box: Box, study: list[bytes]
) -> None:
    whole = part(study[0]) + part(study[1])
    answer = box.post(whole + part(study[2])[:-50])  # well-framed HTTP, the last part without its end
    assert answer.status_code == 400
    assert len(stored_uids(answer)) == 2
    assert len(box.stored()) == 2
    assert box.is_clean()
    assert box.post(b"garbage" * 2000).status_code == 400
    assert box.post(b"--b\r\n" + b"X" * 100_000).status_code == 400
    assert box.post(b"").status_code == 400
    assert box.post(body()).status_code == 400


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
def test_a_connection_lost_in_the_middle_of_an_instance_leaves_nothing_of_it(
    box: Box, study: list[bytes], framing: str
) -> None:
    data = part(study[0]) + part(study[1])[:2000]
    lines = [f"{name}: {value}" for name, value in HEAD.items()]
    lines += ["Content-Length: 100000"] if framing == "content-length" else ["Transfer-Encoding: chunked"]
    head = "\r\n".join(["POST /studies HTTP/1.1", "Host: x", *lines]) + "\r\n\r\n"
    with socket.create_connection(("127.0.0.1", box.port)) as connection:
        connection.sendall(head.encode())
        connection.sendall(data if framing == "content-length" else b"%x\r\n%b\r\n" % (len(data), data))
    end = box.wait_for_end()
    assert end.how == "lost"
    assert len(box.stored()) == 1
    assert box.is_clean()


def test_a_sender_that_stops_sending_is_given_up(tmp_path: Path, study: list[bytes]) -> None:
    with Box(tmp_path / "box", limits={"idle_timeout_s": 0.3}) as box:
        lines = [f"{name}: {value}" for name, value in HEAD.items()]
        head = "\r\n".join(["POST /studies HTTP/1.1", "Host: x", *lines, "Content-Length: 9999"])
        with socket.create_connection(("127.0.0.1", box.port), timeout=WAIT_S) as connection:
            connection.sendall(head.encode() + b"\r\n\r\n" + part(study[0])[:700])
            assert b" 408 " in connection.recv(4096)
        assert box.is_clean()
        assert box.stored() == []


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Encoding": "gzip"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=b"}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom+json"; boundary=b'}, 415),
        ({"Content-Type": 'multipart/related; type="application/dicom"'}, 400),
        ({"Content-Type": "nonsense"}, 400),
        ({"Accept": "application/dicom+xml"}, 406),
        ({"Accept": "application/dicom+xml, application/dicom+json;q=0.5"}, 200),
        ({"Authorization": ""}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({"Authorization": "Bearer viewer"}, 403),
        ({"Authorization": f"Bearer {token_hash(TOKEN)}"}, 401),
    ],
)
def test_requests_that_cannot_be_served_are_refused_before_anything_is_kept(
    box: Box, study: list[bytes], headers: dict[str, str], status: int
) -> None:
    answer = box.post(body(part(study[0])), **headers)
    assert answer.status_code == status
    assert len(box.stored()) == (status == 200)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert "server" not in {name.lower() for name in answer.headers}


def test_limits_on_parts_and_bytes_are_kept(tmp_path: Path, study: list[bytes]) -> None:
    limits = {"max_objects_per_association": 2, "max_object_bytes": 1_048_576}
    with Box(tmp_path / "box", limits=limits, web={"max_request_bytes": 3_000_000}) as box:
        answer = box.post(body(*(part(data) for data in study[:3])))
        assert answer.status_code == 413
        assert len(stored_uids(answer)) == 2
        large = study[3] + bytes(1_200_000)
        answer = box.post(body(part(large)))
        assert answer.status_code == 409
        assert reasons(answer) == [0xC000]
        assert box.post(body(part(study[3] + bytes(4_000_000)))).status_code == 413
        assert len(box.stored()) == 2
        assert box.is_clean()


def test_a_disk_below_its_watermark_is_answered_with_503_and_the_reason(
    tmp_path: Path, study: list[bytes]
) -> None:
    with Box(tmp_path / "box", min_free_bytes=1 << 60) as box:
        answer = box.post(body(part(study[0]), part(study[1])))
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        assert reasons(answer) == [0xA700, 0xA700]
        assert box.stored() == []


def test_more_requests_at_a_time_than_allowed_are_answered_with_503(
    tmp_path: Path, study: list[bytes]
) -> None:
    with Box(tmp_path / "box", web={"max_requests": 1}) as box:
        lines = [f"{name}: {value}" for name, value in HEAD.items()]
        head = "\r\n".join(["POST /studies HTTP/1.1", "Host: x", "Expect: 100-continue", *lines])
        with socket.create_connection(("127.0.0.1", box.port), timeout=WAIT_S) as slow:
            slow.sendall(head.encode() + b"\r\nContent-Length: 5000\r\n\r\n")
            assert b"100 Continue" in slow.recv(4096)  # it is being worked on
            answer = box.post(body(part(study[0])))
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
        box_is_free = threading.Event()
        for _ in range(100):
            if box.post(body(part(study[0]))).status_code == 200:
                box_is_free.set()
                break
        assert box_is_free.is_set()


def test_silent_connections_are_closed_and_a_crowd_displaces_itself(
    tmp_path: Path, study: list[bytes]
) -> None:
    with Box(tmp_path / "box", web={"max_requests": 2}, limits={"artim_timeout_s": 60.0}) as box:
        crowd = [socket.create_connection(("127.0.0.1", box.port)) for _ in range(40)]
        for each in crowd:
            each.sendall(b"POST /stud")
        assert box.post(body(part(study[0]))).status_code == 200
        for each in crowd:
            each.close()
    with Box(tmp_path / "other", limits={"artim_timeout_s": 0.2}) as box:
        silent = socket.create_connection(("127.0.0.1", box.port), timeout=WAIT_S)
        slow = socket.create_connection(("127.0.0.1", box.port), timeout=WAIT_S)
        slow.sendall(b"POST /studies HTTP/1.1\r\nHost")
        for each in (silent, slow):
            with each:
                assert _is_closed(each)


def _is_closed(connection: socket.socket) -> bool:
    """Whether the other side closes it, within the socket's time limit."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_requests_of_one_client_within_settle_s_are_one_association(
    tmp_path: Path, study: list[bytes]
) -> None:
    with Box(tmp_path / "box", web={"settle_s": 1.0}) as box:
        for data in study:
            assert box.post(body(part(data))).status_code == 200
        box.wait_for_end()
        entries = box.entries()
        assert [type(entry) for entry in entries] == [Arrival] * 4 + [AssociationEnded]
        assert len({entry.association for entry in entries}) == 1


def test_a_stop_ends_associations_and_leaves_no_thread(tmp_path: Path, study: list[bytes]) -> None:
    before = set(threading.enumerate())
    with Box(tmp_path / "box", web={"settle_s": 60.0}) as box:
        assert box.post(body(part(study[0]))).status_code == 200
    assert any(isinstance(entry, AssociationEnded) for entry in box.entries())
    assert set(threading.enumerate()) <= before


def test_a_body_of_many_megabytes_is_never_whole_in_memory(box: Box, study: list[bytes]) -> None:
    def pieces() -> Iterator[bytes]:
        yield part(study[0])[:-2]
        for _ in range(300):
            yield bytes(1 << 20)
        yield b"\r\n--b--\r\n"

    before = _peak_mb()
    answer = box.post(pieces())
    assert answer.status_code == 200
    assert _peak_mb() - before < 60, "300 MB went through"
    [(study_name, instance)] = box.stored()
    assert box.instances.path(study_name, instance).stat().st_size > 300 << 20


def _peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise LookupError


def test_the_log_says_why_and_names_no_token(
    box: Box, study: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        box.post(body(part(b"hello")), Authorization="Bearer secret-of-somebody")
        box.post(body(part(b"hello"), part(study[0])))
    assert "part 1 refused with 0xC000" in caplog.text
    assert "without a valid credential" in caplog.text
    for secret in (TOKEN, "secret-of-somebody", "Tiny"):
        assert secret not in caplog.text


def test_tokens_are_compared_whole_and_a_client_without_one_has_none() -> None:
    clients = Clients(
        [WebClient(name="a", token_sha256=token_hash("x")), WebClient(name="b", certificate_sha256="0" * 64)]
    )
    assert clients.of_token("x") is not None
    assert clients.of_token("") is None
    assert clients.of_token("x" * 10_000) is None
    assert clients.of_certificate("") is None
    found = clients.of_certificate("0" * 64)
    assert found is not None
    assert found.name == "b"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a server's certificate, and those of two clients, one of another CA."""
    directory = tmp_path_factory.mktemp("certificates")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True, timeout=60)

    for ca in ("ca", "stranger-ca"):
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}", "-days", "30",
        )  # fmt: skip
    (directory / "server.ext").write_text("subjectAltName=IP:127.0.0.1\n")
    (directory / "client.ext").write_text("extendedKeyUsage=clientAuth\n")
    for name, ca, extension in (
        ("server", "ca", "server.ext"), ("client", "ca", "client.ext"), ("other", "ca", "client.ext"),
        ("stranger", "stranger-ca", "client.ext"),
    ):  # fmt: skip
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}",
        )  # fmt: skip
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.pem", "-CAkey", f"{ca}.key",
            "-CAcreateserial", "-days", "30", "-out", f"{name}.pem", "-extfile", extension,
        )  # fmt: skip
    return directory


def test_a_client_certificate_is_as_good_as_a_token_and_only_the_one_that_is_named(
    tmp_path: Path, certificates: Path, study: list[bytes]
) -> None:
    der = ssl.PEM_cert_to_DER_cert((certificates / "client.pem").read_text())
    client = WebClient(name="modality", certificate_sha256=hashlib.sha256(der).hexdigest())
    token = WebClient(name="scanner", token_sha256=token_hash(TOKEN))
    web = {
        "certificate": str(certificates / "server.pem"),
        "key": str(certificates / "server.key"),
        "client_ca": str(certificates / "ca.pem"),
    }
    with Box(tmp_path / "box", web=web, clients=(client, token)) as box:
        url = f"https://127.0.0.1:{box.port}/studies"
        headers = {"Content-Type": HEAD["Content-Type"]}

        def post(name: str, **more: str) -> int:
            pair = (str(certificates / f"{name}.pem"), str(certificates / f"{name}.key")) if name else None
            return requests.post(
                url, body(part(study[0])), headers={**headers, **more}, cert=pair,
                verify=str(certificates / "ca.pem"), timeout=WAIT_S,
            ).status_code  # fmt: skip

        assert post("client") == 200
        assert post("other") == 401
        assert post("") == 401
        assert post("", Authorization=f"Bearer {TOKEN}") == 200
        with pytest.raises((requests.exceptions.SSLError, requests.exceptions.ConnectionError)):
            post("stranger")
        with socket.create_connection(("127.0.0.1", box.port), timeout=WAIT_S) as silent:
            assert post("client") == 200, "a silent TLS peer stops nobody"
            silent.close()


def test_options_that_contradict_each_other_are_named() -> None:
    for text, said in (
        ('[web]\ncertificate = "/c.pem"', "web.key is not"),
        ("[web]\nport = 8080\nstore_port = 8080", "allowed another than web.store_port"),
        ('[[web_client]]\nname = "a"', "neither token_sha256 nor certificate_sha256"),
        (f'[[web_client]]\nname = "a"\ncertificate_sha256 = "{"0" * 64}"', "web.client_ca is not"),
        ('[[web_client]]\nname = "a"\ntoken_sha256 = "secret"', "64 hexadecimal digits"),
        ('[[pull]]\nsender = "x"\nmodality = "MR"\narchive = "y"', "allowed the name of a [[peer]]"),
        ("[[pull]]\nsender = 3", "pull[0].sender: got 3"),
        (
            "".join(f'[[web_client]]\nname = "{name}"\ntoken_sha256 = "{"1" * 64}"\n' for name in "ab"),
            "which web_client[0] has",
        ),
    ):
        with pytest.raises(ConfigError) as caught:
            parse(text.encode(), "f.toml")
        assert said in json.dumps(str(caught.value)).replace('\\"', '"'), text


def test_our_own_client_stores_at_our_own_server(box: Box, tmp_path: Path) -> None:
    files = tiny_study(tmp_path / "study", slices=3)
    client = DicomWebClient(WebNode(f"http://127.0.0.1:{box.port}", TOKEN))
    found = client.store(files)
    assert found.stored == {dcmread(path).SOPInstanceUID for path in files}
    assert found.failed == {}
    assert len(box.stored()) == 3

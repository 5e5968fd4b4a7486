"""DICOM by TLS: dcmtk and Python's ssl as peers, both ways; certificates that prove who calls."""

import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from dicom.errors import PeerError
from dicom.part10 import file_meta
from dicom.requestor import Timeouts
from dicom.send import Sender
from edge.calling import destination_of
from edge.cli import run
from edge.config import parse
from edge.options import Directories, Limits, Node, Peer, Settings, Tls
from edge.receive import Receiver
from edge.tls import TlsFileError, problems, server_context, validity_of, warnings
from tests.certificates import Authority, Identity, needs_openssl
from tests.edge.test_commitment import wait_until
from tests.edge.test_instances import CT, EXPLICIT, dataset
from tests.edge.test_receive import Box
from tests.fakes.pacs import StoreScp, free_port, needs_dcmtk
from tests.fakes.peer import RELEASE_RQ, RawPeer, associate_rq, echo_rq
from tests.flow.appliance import STORESCU, Appliance
from tests.tiny import tiny_study

pytestmark = needs_openssl
ECHOSCU = "/usr/bin/echoscu"
Mode = Literal["none", "optional", "required"]


@dataclass(frozen=True)
class World:
    """An authority, our identity, that of a known modality, and one of another authority."""

    authority: Authority
    ours: Identity
    known: Identity
    other: Identity
    stranger: Identity
    soon: Identity

    def tls(self, mode: Mode = "required", port: int = 1, *, plain: bool = True) -> Tls:
        return Tls(
            port=port,
            plain=plain,
            certificate=str(self.ours.certificate),
            key=str(self.ours.key),
            ca=str(self.authority.certificate),
            client_certificates=mode,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    directory = tmp_path_factory.mktemp("certificates")
    authority = Authority(directory / "a")
    return World(
        authority,
        authority.issue("ours"),
        authority.issue("known"),
        authority.issue("other"),
        Authority(directory / "b").issue("stranger"),
        authority.issue("soon", days=3),
    )


class Intake:
    """The intake with both ports."""

    def __init__(self, directory: Path, tls: Tls, pinned: str = "") -> None:
        self.box = Box(directory / "box")
        self.settings = Settings(
            node=Node(ae_title="INSITU", host="127.0.0.1", port=0),
            peer=(  # type: ignore[call-arg]
                Peer(name="known", ae_title="KNOWN", host="127.0.0.1", port=104, certificate_sha256=pinned),
                Peer(name="free", ae_title="FREE", host="127.0.0.1", port=104),
            ),
            directories=Directories(state=directory / "s", cache=directory / "c", runtime=directory / "r"),
            limits=Limits(min_free_disk_bytes=0),
            tls=tls,
        )
        self.receiver = Receiver(self.settings, self.box.store, self.box.writer, self.box.ring)
        self.receiver.start()

    @property
    def tls_port(self) -> int:
        address = self.receiver.tls_address
        assert address is not None
        return address[1]

    def stop(self) -> None:
        assert self.receiver.stop(10) == 0
        self.box.writer.close()


@pytest.fixture
def node(world: World, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Intake]:
    mode: Mode
    mode, pinned = getattr(request, "param", ("required", True))
    tls = world.tls(mode)
    # a free port of the kernel's choice: 0 means "off" in the configuration
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        tls = tls.model_copy(update={"port": probe.getsockname()[1]})
    node = Intake(tmp_path, tls, world.known.sha256 if pinned else "")
    yield node
    node.stop()


def client(world: World, identity: Identity | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(world.authority.certificate))
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


def answer(world: World, identity: Identity | None, port: int, calling: bytes) -> int:
    """The type of the PDU that answers our A-ASSOCIATE-RQ by TLS; 0: the connection ends without one."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 30) as raw,
            client(world, identity).wrap_socket(raw, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(associate_rq(calling=calling))
            first = connection.recv(1)
            return first[0] if first else 0
    except (ssl.SSLError, ConnectionError):
        return 0


ACCEPTED, REJECTED, NO_TLS = 2, 3, 0


@pytest.mark.parametrize("node", [("required", True)], indirect=True)
def test_a_pinned_peer_is_admitted_with_its_certificate_and_with_no_other(world: World, node: Intake) -> None:
    assert answer(world, world.known, node.tls_port, b"KNOWN") == ACCEPTED
    assert answer(world, world.other, node.tls_port, b"KNOWN") == REJECTED
    assert answer(world, world.other, node.tls_port, b"FREE") == ACCEPTED  # not pinned
    assert answer(world, world.stranger, node.tls_port, b"FREE") == NO_TLS  # of another authority
    assert answer(world, None, node.tls_port, b"FREE") == NO_TLS
    wait_until(lambda: node.receiver.stats().handshakes_failed == 2)


@pytest.mark.parametrize("node", [("optional", True)], indirect=True)
def test_where_certificates_are_optional_a_pinned_peer_must_still_show_its_own(
    world: World, node: Intake
) -> None:
    assert answer(world, None, node.tls_port, b"FREE") == ACCEPTED
    assert answer(world, None, node.tls_port, b"KNOWN") == REJECTED
    assert answer(world, world.known, node.tls_port, b"KNOWN") == ACCEPTED
    assert answer(world, world.stranger, node.tls_port, b"FREE") == NO_TLS


def test_a_pinned_peer_is_rejected_on_the_plain_port_and_others_are_not(node: Intake) -> None:
    found = []
    for calling in (b"KNOWN", b"FREE"):
        with socket.create_connection(node.receiver.address, 30) as connection:
            connection.sendall(associate_rq(calling=calling))
            found.append(connection.recv(1)[0])
    assert found == [REJECTED, ACCEPTED]


def test_an_association_by_tls_works_to_its_release_though_a_byte_comes_at_a_time(
    world: World, node: Intake
) -> None:
    with RawPeer(("127.0.0.1", node.tls_port)) as peer:
        peer.socket = client(world, world.known).wrap_socket(peer.socket, server_hostname="127.0.0.1")
        for byte in associate_rq(calling=b"KNOWN"):
            peer.send(bytes([byte]))
        assert peer.read()[0] == ACCEPTED
        peer.send(echo_rq() + echo_rq(message_id=2))
        assert [peer.response().message_id_being_responded_to for _ in range(2)] == [1, 2]
        assert peer.ask(RELEASE_RQ)[0] == 6


@pytest.mark.parametrize(
    ("version", "ciphers", "works"),
    [
        (ssl.TLSVersion.TLSv1_3, "", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES128-GCM-SHA256", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES256-GCM-SHA384", True),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256", False),  # no forward secrecy
        (ssl.TLSVersion.TLSv1_2, "ECDHE-RSA-AES128-SHA256", False),  # not AEAD
    ],
)
def test_only_what_the_profile_allows_is_spoken(
    world: World, node: Intake, version: ssl.TLSVersion, ciphers: str, works: bool
) -> None:
    context = client(world, world.known)
    context.minimum_version = context.maximum_version = version
    if ciphers:
        context.set_ciphers(ciphers)
    with socket.create_connection(("127.0.0.1", node.tls_port), 30) as raw:
        if not works:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(raw, server_hostname="127.0.0.1")
            return
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            assert connection.version() == version.name.replace("_", ".")


def test_tls_1_1_is_not_among_what_our_contexts_speak(world: World) -> None:
    assert server_context(world.tls()).minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_hundred_silent_tls_peers_do_not_keep_one_from_its_association(world: World, node: Intake) -> None:
    silent = [socket.create_connection(("127.0.0.1", node.tls_port), 30) for _ in range(100)]
    assert answer(world, world.known, node.tls_port, b"KNOWN") == ACCEPTED
    for each in silent:
        each.close()


def test_instead_of_the_plain_port_means_that_no_plain_association_is_accepted(
    world: World, tmp_path: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    node = Intake(tmp_path, world.tls(port=port, plain=False))
    assert node.receiver.tls_address is None
    assert node.receiver.address[1] == port
    assert answer(world, world.known, port, b"KNOWN") == ACCEPTED
    with socket.create_connection(("127.0.0.1", port), 30) as connection:
        connection.sendall(associate_rq(calling=b"FREE"))
        try:
            got = connection.recv(1)
        except ConnectionResetError:
            got = b""
        assert got in {b"", b"\x15"}  # a TLS alert at the most
    node.stop()


@needs_dcmtk
@pytest.mark.parametrize("profile", ["+py", "+px"])
def test_dcmtk_echoes_by_tls_with_its_bcp_195_profiles(world: World, node: Intake, profile: str) -> None:
    command = [ECHOSCU, "-aet", "KNOWN", "-aec", "INSITU", "+tls", world.known.key, world.known.certificate]
    command += ["+cf", world.authority.certificate, profile, "127.0.0.1", str(node.tls_port)]
    done = subprocess.run(list(map(str, command)), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@needs_dcmtk
def test_dcmtk_stores_by_tls_into_the_appliance_beside_the_plain_port(world: World, tmp_path: Path) -> None:
    port = free_port()
    files = tiny_study(tmp_path / "study")
    options = (
        f'[tls]\nport = {port}\ncertificate = "{world.ours.certificate}"\nkey = "{world.ours.key}"\n'
        f'ca = "{world.authority.certificate}"\n'
        '[[peer]]\nname = "known"\nae_title = "KNOWN"\nhost = "127.0.0.1"\nport = 104\n'
        f'certificate_sha256 = "{world.known.sha256}"\n'
    )
    with Appliance(tmp_path / "box", models=(), options=options) as box:
        for identity, done in ((world.known, True), (world.other, False)):
            command = [
                STORESCU,
                "-aet",
                "KNOWN",
                "-aec",
                "INSITU",
                "+tls",
                identity.key,
                identity.certificate,
            ]
            command += ["+cf", world.authority.certificate, "127.0.0.1", str(port), *files]
            code = subprocess.run(list(map(str, command)), capture_output=True, timeout=60, check=False)
            assert (code.returncode == 0) == done, code.stderr
        assert box.send(files[:1]) == 0
        assert len(list((box.state / "instances").glob("*/*.dcm"))) == len(files)


# --- as SCU ---


def destination_settings(world: World, port: int, tls_name: str = "", ca: str = "") -> tuple[Settings, Peer]:
    peer = Peer(name="pacs", ae_title="DCMTK", host="127.0.0.1", port=port, tls=True, tls_name=tls_name)
    tls = world.tls(port=0)
    tls = tls.model_copy(update={"ca": ca}) if ca else tls
    return Settings(peer=(peer,), tls=tls), peer  # type: ignore[call-arg]


@needs_dcmtk
def test_results_go_by_tls_to_dcmtk_on_a_kept_association_and_arrive_as_sent(
    world: World, tmp_path: Path
) -> None:
    files = []
    for number in range(3):
        uid = f"1.2.3.{number}"
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(file_meta(CT, uid, EXPLICIT, "X") + dataset(uid, pixels=os.urandom(3_000_000)))
        files.append(path)
    options = ["+tls", str(world.other.key), str(world.other.certificate)]
    options += ["+cf", str(world.authority.certificate), "--accept-all"]
    with StoreScp(tmp_path / "scp", *options) as scp:
        settings, peer = destination_settings(world, scp.destination.port)
        sender = Sender(destination_of(peer, settings), "INSITU", Timeouts())
        assert [receipt.ok for receipt in sender.send(files[:2])] == [True, True]
        first = sender._association
        assert [receipt.ok for receipt in sender.send(files[2:])] == [True]
        assert sender._association is first  # kept: TLS's own records do not end it
        sender.close()
        assert [path.read_bytes()[-1000:] for path in scp.files()] == [
            path.read_bytes()[-1000:] for path in files
        ]


@needs_dcmtk
def test_a_destination_of_another_name_or_authority_is_not_sent_to(world: World, tmp_path: Path) -> None:
    options = ["+tls", str(world.other.key), str(world.other.certificate)]
    options += ["+cf", str(world.authority.certificate), "--accept-all"]
    foreign = str(world.stranger.certificate.parent / "ca.pem")
    with StoreScp(tmp_path / "scp", *options) as scp:
        for name, ca, said in (("pacs.example", "", "Hostname mismatch"), ("", foreign, "self-signed")):
            settings, peer = destination_settings(world, scp.destination.port, name, ca)
            with pytest.raises(PeerError, match=f"TLS handshake failed.*{said}"):
                Sender(destination_of(peer, settings), "INSITU", Timeouts()).echo()


# --- the files ---

NOW = datetime.now(UTC) + timedelta(hours=1)  # after every certificate began


def test_sound_files_have_no_problem_and_the_validity_is_what_openssl_says(world: World) -> None:
    settings = Settings(tls=world.tls())
    assert problems(settings, NOW) == []
    assert warnings(settings, NOW) == []
    validity = validity_of(world.ours.certificate)
    assert timedelta(days=59) < validity.ends - NOW < timedelta(days=61)
    assert validity.ends - validity.begins == timedelta(days=60)


def test_an_expiry_within_thirty_days_is_warned_of_and_a_past_one_is_a_problem(world: World) -> None:
    tls = world.tls().model_copy(
        update={"certificate": str(world.soon.certificate), "key": str(world.soon.key)}
    )
    settings = Settings(tls=tls)
    (line,) = warnings(settings, NOW)
    assert "expires on" in line
    assert problems(settings, NOW) == []
    (line,) = problems(settings, NOW + timedelta(days=4))
    assert "not now" in line


def test_files_that_cannot_be_used_are_named_with_the_reason(world: World, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")
    ours, other = world.ours, world.other
    for changes, said in (
        ({"key": str(other.key)}, "the key is not that of the certificate"),
        ({"key": str(tmp_path / "none")}, "none cannot be read"),
        ({"certificate": str(tmp_path / "gone")}, "gone cannot be read"),
        ({"certificate": str(junk)}, "they cannot be read"),
        ({"ca": str(junk)}, "holds no certificate"),
        ({"ca": str(tmp_path / "gone")}, "gone cannot be read"),
    ):
        (line,) = problems(Settings(tls=world.tls().model_copy(update=changes)), NOW)
        assert said in line
    for path, said in ((junk, "no certificate in PEM"), (ours.key, "no certificate in PEM")):
        with pytest.raises(TlsFileError, match=said):
            validity_of(path)


def test_config_check_names_a_key_that_does_not_fit_and_ends_with_three(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "insitu.toml"
    for key, status in ((world.soon.key, 0), (world.other.key, 3)):
        config.write_text(
            f'[tls]\nport = 2762\ncertificate = "{world.soon.certificate}"\nkey = "{key}"\n'
            f'ca = "{world.authority.certificate}"\n'
        )
        # the certificate began a moment ago
        assert run(["--config", str(config), "config", "check"]) == status
        err = capsys.readouterr().err
        assert ("expires on" in err) == (status == 0)
        assert ("the key is not that of the certificate" in err) == (status == 3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[tls]\nport = 2762", "tls.port: is 2762, and tls.certificate is not given"),
        ('[tls]\ncertificate = "/c"', 'tls.certificate: is "/c", and tls.key is not given'),
        ('[tls]\nport = 2762\ncertificate = "/c"\nkey = "/k"', "tls.client_certificates"),
        ('[tls]\nport = 11112\ncertificate = "/c"\nkey = "/k"\nca = "/a"', "allowed another than node.port"),
        ('[[peer]]\nname = "A"\nae_title = "A"\nhost = "h"\nport = 1\ntls = true', "peer[0].tls: is true"),
        (
            f'[[peer]]\nname = "A"\nae_title = "A"\nhost = "h"\nport = 1\ncertificate_sha256 = "{"0" * 64}"',
            "peer[0].certificate_sha256: is given",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(text: str, said: str) -> None:
    with pytest.raises(Exception, match=r"f\.toml") as error:
        parse(text.encode(), "f.toml")
    assert said in str(error.value)

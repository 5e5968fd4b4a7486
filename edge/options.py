"""The options of the appliance: their types, defaults and limits, each with its reason.

This is the only place where an option is written down; the configuration file is read
against it (`edge.config`), and `docs/configuration.md` and `docs/insitu.toml` are
printed from it (`edge.reference`). Frozen values, no IO.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edge.addressing import check_ae_title, check_host, check_network, is_address, is_within

MAX_PEERS: Final = 256
"""A hospital has tens of nodes; more is a mistake of whatever wrote the file."""
MAX_WEB_CLIENTS: Final = 256
"""As many as nodes: a DICOMweb client is one."""
MAX_PULL_RULES: Final = 32
"""Each asks an archive once for every study that it fits."""

_PEER_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


@dataclass(frozen=True, slots=True)
class Option:
    """What an operator must know of one option, beside its type, default and bounds.

    `allowed` is said in words where type and bounds do not say it all; `reason` is why
    the default or the limit is what it is.
    """

    text: str
    reason: str = ""
    allowed: str = ""


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and "\0" not in value else value


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or ".." in value.parts or len(value.parts) < 2:
        raise ValueError("not an absolute path")
    return value


def _file(value: str) -> str:
    if value and (not Path(value).is_absolute() or "\0" in value):
        raise ValueError("not an absolute path")
    return value


AeTitle = Annotated[str, AfterValidator(check_ae_title)]
Host = Annotated[str, AfterValidator(check_host)]
Network = Annotated[str, AfterValidator(check_network)]
Directory = Annotated[Path, BeforeValidator(_path), AfterValidator(_absolute)]
File = Annotated[str, AfterValidator(_file)]
Sha256 = Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")]
Seconds = Annotated[float, Field(allow_inf_nan=False)]

_AE_WORDS: Final = "1 to 16 ASCII characters, not only spaces, no backslash, no control characters"
_HOST_WORDS: Final = "an IP address or a host name"
_PATH_WORDS: Final = "an absolute path below /, without `..`"
_FILE_WORDS: Final = 'an absolute path; "" for none'
_SHA_WORDS: Final = '64 hexadecimal digits in lower case; "" for none'
_NET_WORDS: Final = 'a list of at most 64 IP addresses and networks, such as ["10.1.2.3", "10.1.8.0/24"]'


class Section(BaseModel):
    """One table of the configuration file; types are exact, keys that it lacks are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_by_name=True)


class Node(Section):
    """Who this node is: the AE title that others call, and where it listens."""

    ae_title: Annotated[
        AeTitle,
        Option(
            "AE title of this node, by which others call it and with which it calls them",
            "an association for another AE title is rejected (PS3.8 §9.3.4)",
            _AE_WORDS,
        ),
    ] = "INSITU"
    host: Annotated[
        Host,
        Option(
            "address on which it listens",
            "0.0.0.0 is every IPv4 interface; name one address where the box has several",
            _HOST_WORDS,
        ),
    ] = "0.0.0.0"  # noqa: S104 - a DICOM node is there to be called; peers are checked by AE title and address
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Option(
            "TCP port on which it listens",
            "11112 is registered for DICOM and, unlike 104, needs no privilege; 0 takes any free port",
        ),
    ] = 11112


class Peer(Section):
    """Another DICOM node: who may send to us, and where results go."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_PEER_NAME),
        Option(
            "our name for it, in messages and on the command line; each peer has its own",
            "it names files and log fields",
            "1 to 64 letters, digits, `.`, `_`, `-`, beginning with a letter or digit",
        ),
    ]
    ae_title: Annotated[
        AeTitle,
        Option(
            "AE title with which it calls us and by which we call it; each peer has its own",
            "a peer is known by it",
            _AE_WORDS,
        ),
    ]
    host: Annotated[Host, Option("where it is", "results and C-ECHO go there", _HOST_WORDS)]
    port: Annotated[int, Field(ge=1, le=65535), Option("TCP port on which it listens")]
    may_send: Annotated[bool, Option("whether its C-STORE requests are accepted")] = True
    receives_results: Annotated[bool, Option("whether results are delivered to it")] = False
    address_check: Annotated[
        bool,
        Option(
            "whether its calls must come from `accept_from`, or from `host` where that is an IP address",
            "an AE title alone is no proof of who calls; a host name is never looked up for this",
        ),
    ] = True
    accept_from: Annotated[
        tuple[Network, ...],
        Field(max_length=64),
        Option(
            "addresses from which it may call, where they are not `host` (several interfaces, a cluster)",
            "",
            _NET_WORDS,
        ),
    ] = ()
    certificate_sha256: Annotated[
        Sha256,
        Option(
            "SHA-256 of the TLS client certificate (DER) that it must show; it must lead to tls.ca",
            "a certificate is a proof of who calls; openssl x509 -outform DER -in FILE | sha256sum",
            _SHA_WORDS,
        ),
    ] = ""
    tls: Annotated[
        bool,
        Option(
            "whether we call it by TLS; its certificate must lead to tls.ca and name `tls_name`",
            "results are patient data too",
        ),
    ] = False
    tls_name: Annotated[
        str,
        Field(max_length=253, pattern=r"^[A-Za-z0-9.:_-]*$"),
        Option(
            'name or IP address that its certificate must have (subject alternative name); "": `host`',
            "certificates often name a node by its host name where it is configured by its address",
            "a host name or an IP address, at most 253 characters",
        ),
    ] = ""

    def may_call_from(self, address: str) -> bool:
        """Whether a call with this peer's AE title may come from `address` (an IP address)."""
        if not self.address_check:
            return True
        if self.accept_from:
            return any(is_within(address, network) for network in self.accept_from)
        return not is_address(self.host) or is_within(address, self.host)


class Directories(Section):
    """Where files are kept; none inside another, for they are backed up and emptied differently."""

    state: Annotated[
        Directory,
        Option("received instances, the journal, models, results: back this up", "", _PATH_WORDS),
    ] = Path("/var/lib/insitu")
    cache: Annotated[
        Directory,
        Option(
            "what can be made again (optimised models); may be emptied while the daemon is stopped",
            "",
            _PATH_WORDS,
        ),
    ] = Path("/var/cache/insitu")
    runtime: Annotated[
        Directory,
        Option("sockets of the running daemon; gone after a restart of the machine", "", _PATH_WORDS),
    ] = Path("/run/insitu")


class Limits(Section):
    """Bounds on what a peer, or anything else that reaches the port, can make the box spend."""

    max_associations: Annotated[
        int,
        Field(ge=1, le=1024),
        Option("associations at one time", "each costs a thread and a receive buffer of up to 1 MiB"),
    ] = 64
    max_associations_per_peer: Annotated[
        int,
        Field(ge=1, le=1024),
        Option(
            "associations of one calling AE title at one time",
            "one peer that loops must not keep the others out; a busy PACS opens 4 to 10",
        ),
    ] = 16
    max_pdu_length_bytes: Annotated[
        int,
        Field(ge=4096, le=16_777_216),
        Option(
            "longest P-DATA-TF that we announce and accept (PS3.8 §D.1)",
            "16 KiB costs a tenth of the speed, beyond 1 MiB nothing is gained; none is gathered in memory",
        ),
    ] = 1_048_576
    max_associate_pdu_bytes: Annotated[
        int,
        Field(ge=16_384, le=16_777_216),
        Option(
            "longest A-ASSOCIATE-RQ that is read",
            "anyone can send one; 128 presentation contexts of 40 transfer syntaxes stay below it",
        ),
    ] = 196_608
    artim_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=300),
        Option(
            "how long a connection may stay without A-ASSOCIATE-RQ, or after release (PS3.8 §9.1.5)",
            "a silent connection is closed; a working peer asks within milliseconds",
        ),
    ] = 10.0
    idle_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=3600),
        Option(
            "how long an association may be silent before it is aborted",
            "modalities pause between images, but hardly for a minute",
        ),
    ] = 60.0
    stall_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=3600),
        Option(
            "in which a message that has begun must bring `stall_bytes`, or end; else it is aborted",
            "a peer that sends a byte a second holds a thread and a slot",
        ),
    ] = 60.0
    stall_bytes: Annotated[
        int,
        Field(ge=1, le=16_777_216),
        Option(
            "see `stall_timeout_s`",
            "16 KiB a minute is a twentieth of what the slowest telephone line brings",
        ),
    ] = 16_384
    closing_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=60),
        Option(
            "how long a peer may take to close the connection after the association has ended",
            "it holds a socket; a working peer closes within milliseconds",
        ),
    ] = 2.0
    write_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=3600),
        Option(
            "how long a response may take to leave; then the connection is cut",
            "a peer that reads nothing holds a thread",
        ),
    ] = 30.0
    max_pending_connections: Annotated[
        int,
        Field(ge=1, le=100_000),
        Option(
            "connections without an association; beyond it the oldest of the address with most of them goes",
            "each holds a socket and 4 KiB; with the associations they stay below the usual 1,024 open files",
        ),
    ] = 512
    max_connections_per_address_per_s: Annotated[
        Seconds,
        Field(ge=1, le=100_000),
        Option(
            "new connections of one address in a second; more are closed unread",
            "a sender that opens one association for each image comes to 200 on 1 Gbit/s",
        ),
    ] = 250.0
    max_presentation_contexts: Annotated[
        int,
        Field(ge=1, le=128),
        Option(
            "presentation contexts in one association; a request with more is aborted",
            "there are 128 odd IDs in a byte (PS3.8 §9.3.2.2), and some senders use all",
        ),
    ] = 128
    max_commitment_references: Annotated[
        int,
        Field(ge=1, le=100_000),
        Option(
            "instances in one request for storage commitment; more are answered with 0x0213",
            "the largest studies have some 10,000 images; 20,000 references are 3 MB in memory",
        ),
    ] = 20_000
    max_commitments: Annotated[
        int,
        Field(ge=1, le=100_000),
        Option(
            "requests for storage commitment whose peers have no report yet; more are answered with 0x0213",
            "each is a file; a modality asks once a study, and may be off for a weekend",
        ),
    ] = 1000
    max_object_bytes: Annotated[
        int,
        Field(ge=1_048_576, le=1_099_511_627_776),
        Option(
            "largest instance that is received",
            "4 GiB is the most that a 32-bit Pixel Data length can say (PS3.5 §7.1)",
        ),
    ] = 4_294_967_296
    max_elements: Annotated[
        int,
        Field(ge=1000, le=1_000_000),
        Option(
            "elements of an instance before its Pixel Data, sequences included; more are refused (0xC000)",
            "a second's work; an object of 10,000 frames has half as many",
        ),
    ] = 1_000_000
    max_sequence_depth: Annotated[
        int,
        Field(ge=2, le=32),
        Option(
            "sequences of undefined length, one in another; deeper ones are refused (0xC000)",
            "real objects have at most about eight; nothing here recurses, but other software does",
        ),
    ] = 32
    max_objects_per_association: Annotated[
        int,
        Field(ge=1, le=1_000_000),
        Option("instances in one association", "the largest studies have some 10,000 images"),
    ] = 20_000
    min_free_disk_bytes: Annotated[
        int,
        Field(ge=0, le=1_099_511_627_776),
        Option(
            "free space of the state directory's disk below which instances are refused (0xA700)",
            "the journal and the results of what is already here must still fit",
        ),
    ] = 2_147_483_648
    max_decoded_bytes: Annotated[
        int,
        Field(ge=1_048_576, le=1_099_511_627_776),
        Option(
            "most memory that the decoded pixels of one series may take; checked before they are decoded",
            "2 GiB is 1,024 slices of 512 by 512 in float32, twice over",
        ),
    ] = 2_147_483_648


class Receive(Section):
    """What is accepted, and when success is answered."""

    durable: Annotated[
        bool,
        Option(
            "whether success is answered only when the instance would survive a power cut (fsync)",
            "false is faster and can lose what was acknowledged: for a replica or a benchmark only",
        ),
    ] = True
    storage_commitment: Annotated[
        bool,
        Option(
            "whether storage commitment is offered (PS3.4 Annex J)",
            "a commitment ends with the deletion of the study, see [retention]: this is no archive",
        ),
    ] = True
    accept_unknown_storage: Annotated[
        bool,
        Option(
            "whether instances of storage SOP Classes that we do not know (private ones) are accepted",
            "no model uses them; some senders give up a whole study when one is refused",
        ),
    ] = False


class Tls(Section):
    """TLS for DICOM (PS3.15 §B.9, BCP 195), on a port of its own; off by default. Files are read at start."""

    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Option("TCP port for associations by TLS; 0: there is none", "2762 is registered for DICOM by TLS"),
    ] = 0
    plain: Annotated[
        bool,
        Option(
            "whether `node.port` stays open beside it, without TLS",
            "a department changes its nodes one by one; false as soon as the last one has changed",
        ),
    ] = True
    certificate: Annotated[File, Option("certificate chain of this node, PEM", "", _FILE_WORDS)] = ""
    key: Annotated[
        File,
        Option(
            "private key of `certificate`, PEM, without a passphrase",
            "nobody is there to type it",
            _FILE_WORDS,
        ),
    ] = ""
    ca: Annotated[
        File,
        Option("certificates that those of other nodes must lead to, PEM", "", _FILE_WORDS),
    ] = ""
    client_certificates: Annotated[
        Literal["none", "optional", "required"],
        Option(
            "whether who calls must show a certificate; one that is shown must always lead to `ca`",
            "without one TLS says who we are, but not who calls",
        ),
    ] = "required"


class Metrics(Section):
    """Counts for a monitoring system, in the text format of Prometheus; never patient data."""

    host: Annotated[
        Host,
        Option(
            "address on which they are served",
            "whoever reaches it reads them: loopback, unless a firewall helps",
            _HOST_WORDS,
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int,
        Field(ge=0, le=65532),
        Option(
            "TCP port, of a process with all roles or with receive; 0: off",
            "a process without receive adds 1 with work, 2 with deliver, 3 with api: each has its own counts",
        ),
    ] = 0


class Web(Section):
    """DICOMweb (PS3.18): STOW-RS into the intake, QIDO-RS and WADO-RS on what is here; off by default."""

    host: Annotated[
        Host,
        Option("address on which it listens", "0.0.0.0 is every IPv4 interface", _HOST_WORDS),
    ] = "0.0.0.0"  # noqa: S104 - as `Node.host`; every request needs a token or a certificate
    store_port: Annotated[
        int,
        Field(ge=0, le=65535),
        Option("TCP port of STOW-RS, in role receive; 0: STOW-RS is off", "what is not used is not open"),
    ] = 0
    port: Annotated[
        int,
        Field(ge=0, le=65535),
        Option(
            "TCP port of QIDO-RS and WADO-RS, in role api; 0: both are off",
            "another process, which reads and cannot write, so another port than `store_port`",
        ),
    ] = 0
    certificate: Annotated[
        File,
        Option(
            "certificate chain of this node, PEM; with it only TLS is spoken (PS3.15 §B.9)",
            "without TLS tokens and images go over the network in the clear",
            _FILE_WORDS,
        ),
    ] = ""
    key: Annotated[File, Option("private key of `certificate`, PEM", "", _FILE_WORDS)] = ""
    client_ca: Annotated[
        File,
        Option(
            "certificates that client certificates must lead to, PEM; needed for `certificate_sha256`",
            "a client without a certificate may still bring a token",
            _FILE_WORDS,
        ),
    ] = ""
    max_requests: Annotated[
        int,
        Field(ge=1, le=1024),
        Option(
            "requests worked on at one time; beyond it the answer is 503 and Retry-After",
            "one that stores has a thread and 4 MiB of body that wait for the disk",
        ),
    ] = 32
    max_request_bytes: Annotated[
        int,
        Field(ge=1_048_576, le=1_099_511_627_776),
        Option(
            "longest body of one request (413); each instance is bounded by limits.max_object_bytes too",
            "nothing of it is kept in memory; the largest studies have some 16 GiB",
        ),
    ] = 17_179_869_184
    settle_s: Annotated[
        Seconds,
        Field(ge=0, le=60),
        Option(
            "how long after a client's last request its transaction counts as ended",
            "a study of several requests must not be closed between them; the next one follows at once",
        ),
    ] = 0.5
    max_results: Annotated[
        int,
        Field(ge=1, le=10_000),
        Option(
            "most entries of one QIDO-RS answer, whatever `limit` asks for; the rest by `offset`",
            "a viewer shows pages of 25 to 100; 1,000 are 1 MB of JSON",
        ),
    ] = 1000


class WebClient(Section):
    """Who may use DICOMweb: known by a bearer token, by a client certificate, or by either."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_PEER_NAME),
        Option(
            "our name for it, in messages; each client has its own",
            "",
            "1 to 64 letters, digits, `.`, `_`, `-`, beginning with a letter or digit",
        ),
    ]
    ae_title: Annotated[
        AeTitle,
        Option("AE title under which what it stores is entered", "HTTP names none", _AE_WORDS),
    ] = "STOW-RS"
    token_sha256: Annotated[
        Sha256,
        Option(
            "SHA-256 of its bearer token; `insitu web token` makes a token and prints both",
            "who reads the configuration must not be able to use the token",
            _SHA_WORDS,
        ),
    ] = ""
    certificate_sha256: Annotated[
        Sha256,
        Option(
            "SHA-256 of its certificate (DER), which must lead to web.client_ca",
            "openssl x509 -outform DER -in FILE | sha256sum",
            _SHA_WORDS,
        ),
    ] = ""
    may_store: Annotated[bool, Option("whether it may store instances (STOW-RS)")] = True
    may_read: Annotated[
        bool, Option("whether it may search and retrieve (QIDO-RS, WADO-RS)", "a modality need not")
    ] = False


class Pull(Section):
    """A rule: when a study arrives, fetch earlier studies of the same patient by C-FIND and C-MOVE."""

    sender: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_PEER_NAME),
        Option("name of the [[peer]] that a study must come from", "", "the name of a [[peer]]"),
    ]
    modality: Annotated[
        str,
        Field(pattern=r"^[A-Z0-9_ ]{1,16}$"),
        Option(
            "modality that the study must have, and the earlier studies too",
            "a prior of another modality is no input of the same model",
            "a code string such as MR (PS3.3 §C.7.3.1.1.1)",
        ),
    ]
    archive: Annotated[
        str,
        Field(min_length=1, max_length=64, pattern=_PEER_NAME),
        Option(
            "name of the [[peer]] that is asked; it must know our AE title and address as a move destination",
            "",
            "the name of a [[peer]]",
        ),
    ]
    max_priors: Annotated[
        int,
        Field(ge=1, le=100),
        Option("most earlier studies that are fetched, the latest ones first", "two or three are compared"),
    ] = 2


class Assemble(Section):
    """When a study is complete."""

    quiet_s: Annotated[
        Seconds,
        Field(ge=0.05, le=3600),
        Option(
            "after this long without a new image a study is closed, where nothing closed it earlier",
            "the last resort; other gateways wait 3 to 60 s",
        ),
    ] = 5.0
    close_on_complete_volume: Annotated[
        bool,
        Option("whether a complete volume and the release of its association close the study at once"),
    ] = True
    streaming: Annotated[
        bool,
        Option(
            "whether slices are decoded and begun for their models while their study still arrives",
            "false gives the same results later: for a comparison, or to spare a slow machine",
        ),
    ] = True
    ask_count_of: Annotated[
        str,
        Field(max_length=64, pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"),
        Option(
            "name of the [[peer]] that is asked by C-FIND how many images a study has;"
            " a study that has as many is closed at once",
            "a PACS that routes a study knows its count; one that still receives it may know less",
            "the name of a [[peer]], or empty: nobody is asked",
        ),
    ] = ""
    max_open_studies: Annotated[
        int,
        Field(ge=1, le=10_000),
        Option(
            "studies that are being assembled at one time; beyond it the oldest is closed with what it has",
            "each keeps its headers in memory, some 1 MB for 1,000 images",
        ),
    ] = 256


class Infer(Section):
    """The model workers."""

    threads: Annotated[
        int,
        Field(ge=0, le=256),
        Option(
            "threads of one model run; 0: chosen by the box",
            "the runtime's own choice is the slowest one on shared cores",
        ),
    ] = 0
    worker_start_timeout_s: Annotated[
        Seconds,
        Field(ge=1, le=600),
        Option(
            "how long a worker may take until it is ready",
            "0.7 s is usual; a cold disk and a large model take longer",
        ),
    ] = 60.0


class Deliver(Section):
    """How results are sent, and when a dead destination is given up."""

    attempts: Annotated[
        int,
        Field(ge=1, le=10_000),
        Option(
            "attempts at one delivery before it is parked",
            "with the defaults 300 attempts take about as long as `park_after_s`, for the pauses are random",
        ),
    ] = 300
    backoff_base_s: Annotated[
        Seconds,
        Field(ge=0.01, le=3600),
        Option("pause after the first failed attempt; doubled after each further one, with jitter"),
    ] = 2.0
    backoff_max_s: Annotated[
        Seconds,
        Field(ge=0.01, le=86_400),
        Option(
            "longest pause between two attempts",
            "results are late by at most this when the destination is back",
        ),
    ] = 600.0
    park_after_s: Annotated[
        Seconds,
        Field(ge=1, le=2_592_000),
        Option(
            "age of a delivery at which it is parked, however many attempts there were",
            "a day covers a night without anyone on duty",
        ),
    ] = 86_400.0
    connect_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=300),
        Option(
            "how long connecting to a destination may take, association included",
            "a node on a LAN answers in milliseconds",
        ),
    ] = 10.0
    response_timeout_s: Annotated[
        Seconds,
        Field(ge=0.1, le=3600),
        Option(
            "how long a destination may take to answer one C-STORE",
            "a busy archive can take many seconds to index",
        ),
    ] = 60.0
    keep_association_s: Annotated[
        Seconds,
        Field(ge=0, le=3600),
        Option(
            "how long an idle association to a destination is kept open; 0: released at once",
            "a new association costs up to 0.1 s; most archives close it themselves after 30 s",
        ),
    ] = 20.0


class Retention(Section):
    """When files are deleted. What waits or is held is never deleted, and no option changes that."""

    days_after_delivery: Annotated[
        int,
        Field(ge=0, le=3650),
        Option(
            "days from a study's end (its last result is delivered, or it is declined) to its deletion",
            "the archive has them; a week leaves time to look at a complaint",
        ),
    ] = 7


class Log(Section):
    """What the daemon writes to standard error (the system's journal); never patient data."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], Option("least severity that is written")
    ] = "info"
    format: Annotated[
        Literal["text", "json"], Option("lines for people, or one JSON object a line for a collector")
    ] = "text"


class Settings(Section):
    """The whole configuration; every section has defaults that work."""

    node: Node = Node()
    peers: tuple[Peer, ...] = Field((), alias="peer", max_length=MAX_PEERS)
    directories: Directories = Directories()
    limits: Limits = Limits()
    receive: Receive = Receive()
    tls: Tls = Tls()
    web: Web = Web()
    web_clients: tuple[WebClient, ...] = Field((), alias="web_client", max_length=MAX_WEB_CLIENTS)
    pulls: tuple[Pull, ...] = Field((), alias="pull", max_length=MAX_PULL_RULES)
    assemble: Assemble = Assemble()
    infer: Infer = Infer()
    deliver: Deliver = Deliver()
    retention: Retention = Retention()
    log: Log = Log()
    metrics: Metrics = Metrics()


TABLES: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {"peer": Peer, "web_client": WebClient, "pull": Pull}
)
"""The sections of which there may be several, each `[[so]]`."""
MAX_TABLES: Final[Mapping[str, int]] = MappingProxyType(
    {"peer": MAX_PEERS, "web_client": MAX_WEB_CLIENTS, "pull": MAX_PULL_RULES}
)

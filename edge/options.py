"""The options of the appliance: their types, defaults and limits, each with its reason.

This is the only place where an option is written down; the configuration file is read
against it (`edge.config`), and `docs/configuration.md` and `docs/insitu.toml` are
printed from it (`edge.reference`). Frozen values, no IO.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from edge.addressing import check_ae_title, check_host, check_network, is_address, is_within

MAX_PEERS: Final = 256
"""A hospital has tens of nodes; more is a mistake of whatever wrote the file."""

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


AeTitle = Annotated[str, AfterValidator(check_ae_title)]
Host = Annotated[str, AfterValidator(check_host)]
Network = Annotated[str, AfterValidator(check_network)]
Directory = Annotated[Path, BeforeValidator(_path), AfterValidator(_absolute)]
Seconds = Annotated[float, Field(allow_inf_nan=False)]

_AE_WORDS: Final = "1 to 16 ASCII characters, not only spaces, no backslash, no control characters"
_HOST_WORDS: Final = "an IP address or a host name"
_PATH_WORDS: Final = "an absolute path below /, without `..`"
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
        Option(
            "associations at one time", "each costs a thread and a receive buffer of `max_pdu_length_bytes`"
        ),
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
            "a receive buffer's size; 16 KiB costs a tenth of the speed, beyond 1 MiB nothing is gained",
        ),
    ] = 1_048_576
    max_associate_pdu_bytes: Annotated[
        int,
        Field(ge=16_384, le=16_777_216),
        Option(
            "longest A-ASSOCIATE-RQ that is read",
            "anyone can send one; 128 presentation contexts of 20 transfer syntaxes are 0.2 MB",
        ),
    ] = 1_048_576
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
    max_object_bytes: Annotated[
        int,
        Field(ge=1_048_576, le=1_099_511_627_776),
        Option(
            "largest instance that is received",
            "4 GiB is the most that a 32-bit Pixel Data length can say (PS3.5 §7.1)",
        ),
    ] = 4_294_967_296
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
    accept_unknown_storage: Annotated[
        bool,
        Option(
            "whether instances of storage SOP Classes that we do not know (private ones) are accepted",
            "no model uses them; some senders give up a whole study when one is refused",
        ),
    ] = False


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
    """When files are deleted. What is not delivered is never deleted, and no option changes that."""

    days_after_delivery: Annotated[
        int,
        Field(ge=0, le=3650),
        Option(
            "days from the delivery of a study's last result to the deletion of its images and results",
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
    assemble: Assemble = Assemble()
    infer: Infer = Infer()
    deliver: Deliver = Deliver()
    retention: Retention = Retention()
    log: Log = Log()

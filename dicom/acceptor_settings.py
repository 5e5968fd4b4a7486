"""The limits of an acceptor: every one a number with its reason."""

from dataclasses import dataclass
from ssl import SSLContext
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptorSettings:
    """Where an acceptor listens, and what it lets a peer cost.

    Attributes:
        ae_title: our AE title; another called AE title is rejected (PS3.8 §9.3.4).
        host: address to listen on; "" for all.
        port: TCP port; 0 for any that is free.
        max_associations: associations at once. Each holds a thread and up to `buffer_bytes`
            of memory: 128 with 1 MiB are 128 MiB at the most.
        max_associations_per_peer: of one calling AE title at one address. Senders open up to 32
            at once; three peers that leak associations together do not use up all 128.
        max_pending_connections: connections without an association (no A-ASSOCIATE-RQ yet, or
            rejected and not closed). Each holds a socket and 4 KiB, no thread; with the
            associations they stay below the usual 1,024 open files. When there are more, the
            oldest of the address that has most of them is closed: a crowd displaces itself.
        max_connections_per_address_per_s: more are closed unread. A sender that opens one
            association for each image, on 1 Gbit/s, comes to 200.
        max_pdu_length_bytes: the P-DATA-TF we offer to receive and enforce; 0: any. Any is as
            safe as a small one, for a P-DATA-TF is never gathered, and 10 % faster than 16 KiB.
        max_associate_pdu_bytes: the longest A-ASSOCIATE-RQ. 128 presentation contexts with 40
            transfer syntaxes of 26 characters each stay below 192 KiB; usual ones are 4 to 16 KiB.
        max_presentation_contexts: as many as there are odd IDs in a byte (PS3.8 §9.3.2.2).
        max_object_bytes: data set of one instance. The longest real ones (whole-slide and long
            ultrasound recordings) stay below 4 GiB.
        max_objects_per_association: then it is aborted, and the sender goes on with a new one;
            ten times the longest series.
        buffer_bytes: receive buffer of an association. 1 MiB: larger gained nothing measurable.
        artim_timeout_s: from connect to the end of the A-ASSOCIATE-RQ, TLS handshake included
            (PS3.8 §9.1.5). A peer on the slowest link needs 2 s.
        closing_timeout_s: how long the peer may take to close after we ended an association.
        idle_timeout_s: silence between messages. Modalities keep an association open during an
            examination.
        stall_timeout_s: in which a message must bring `stall_bytes`, or end. 16 KiB a minute is a
            twentieth of the slowest telephone line's; a byte a second is no sender.
        stall_bytes: see `stall_timeout_s`.
        write_timeout_s: for a response to leave; a peer that reads nothing holds no thread.
        backlog: connections that the kernel holds for us while we accept; more have to try again.
            A flood on 2 loaded cores filled 256.
        accept_unknown_storage: take private SOP classes too.
        ssl_context: TLS (PS3.15 §B.9 ff.), on `port`, or on `tls_port` where that is given.
        tls_port: where TLS is spoken while `port` is without it; 0 for any that is free.
    """

    ae_title: str
    host: str = "127.0.0.1"
    port: int = 0
    max_associations: int = 128
    max_associations_per_peer: int = 40
    max_pending_connections: int = 512
    max_connections_per_address_per_s: float = 250.0
    max_pdu_length_bytes: int = 0
    max_associate_pdu_bytes: int = 192 * 1024
    max_presentation_contexts: int = 128
    max_object_bytes: int = 4 * 1024**3
    max_objects_per_association: int = 100_000
    buffer_bytes: int = 1024 * 1024
    artim_timeout_s: float = 10.0
    closing_timeout_s: float = 2.0
    idle_timeout_s: float = 600.0
    stall_timeout_s: float = 60.0
    stall_bytes: int = 16 * 1024
    write_timeout_s: float = 30.0
    backlog: int = 1024
    accept_unknown_storage: bool = True
    ssl_context: SSLContext | None = None
    tls_port: int | None = None

    def __post_init__(self) -> None:
        title = self.ae_title
        if (
            not 1 <= len(title.strip()) <= 16
            or not title.isascii()
            or not title.isprintable()
            or "\\" in title
        ):
            raise ValueError(
                f"ae_title is {title!r}, must be 1 to 16 printable ASCII characters without backslash"
            )
        if self.tls_port is not None and (self.ssl_context is None or not 0 <= self.tls_port <= 65535):
            raise ValueError(f"tls_port is {self.tls_port}, must be 0 to 65535, and needs an ssl_context")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}, must be 0 to 65535")
        if not (self.max_pdu_length_bytes == 0 or 4096 <= self.max_pdu_length_bytes < 2**32):
            raise ValueError(
                f"max_pdu_length_bytes is {self.max_pdu_length_bytes}, must be 0 or 4096 to 2^32 - 1"
            )
        if not 1 <= self.max_presentation_contexts <= 128:
            raise ValueError(
                f"max_presentation_contexts is {self.max_presentation_contexts}, must be 1 to 128"
            )
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, must be more than 0")


_POSITIVE: Final = (
    "max_associations",
    "max_associations_per_peer",
    "max_pending_connections",
    "max_connections_per_address_per_s",
    "max_associate_pdu_bytes",
    "max_object_bytes",
    "max_objects_per_association",
    "buffer_bytes",
    "artim_timeout_s",
    "closing_timeout_s",
    "idle_timeout_s",
    "stall_timeout_s",
    "stall_bytes",
    "write_timeout_s",
    "backlog",
)

"""Throw mutated associations at the acceptor until something breaks that must not.

    scripts/fuzz-acceptor [--seconds 60] [--seed N] [--atheris]

Two targets take turns: the parsers alone (PDUs, proposals, commands, messages; no socket), and
a running acceptor on the loopback interface. What may happen is a `ProtocolError`, an A-ABORT,
an A-ASSOCIATE-RJ or an answer. What may not: any other error, an instance left open, memory
that grows, a C-ECHO that is not answered afterwards. The seed and the input are printed when
something breaks. With `--atheris` the parsers are driven by coverage (the package `atheris`
must be installed).
"""

import argparse
import contextlib
import importlib
import logging
import random
import resource
import socket
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dicom import command, negotiation
from dicom.command import Command
from dicom.dimse import DimseProvider
from dicom.errors import ProtocolError
from dicom.negotiation import PresentationContext
from dicom.pdu import Fragment, Pdu, PduReader, PduType
from dicom.receive import Acceptor, AcceptorSettings, AssociationInfo
from dicom.services import STORABLE_TRANSFER_SYNTAXES, storage, verification
from tests.fakes.peer import (
    RELEASE_RQ,
    RawPeer,
    associate_rq,
    command_pdu,
    data_pdu,
    echo_rq,
    fragment,
    store_rq,
)
from tests.fakes.store_handler import FakeStoreHandler

SEEDS = (
    associate_rq(),
    associate_rq() + echo_rq() + RELEASE_RQ,
    associate_rq() + store_rq() + data_pdu(bytes(range(200)), max_length=64) + RELEASE_RQ,
    associate_rq() + store_rq() + fragment(3, 0, b"abc") + fragment(3, 2, b"") + echo_rq() + RELEASE_RQ,
    associate_rq() + command_pdu(Command(field=0x20, message_id=1, has_data_set=True), 3) + data_pdu(b"x"),
    associate_rq() + bytes.fromhex("07000000000400000000"),
)
CONTEXTS = {
    1: PresentationContext(1, "1.2.840.10008.1.1", "1.2.840.10008.1.2"),
    3: PresentationContext(3, "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"),
}
INTERESTING = (
    b"\0",
    b"\1",
    b"\2",
    b"\4",
    b"\x10",
    b"\x20",
    b"\x50",
    b"\x7f",
    b"\x80",
    b"\xff",
    b"\xff" * 4,
    bytes(4),
)
STARTED = datetime(2024, 1, 1, tzinfo=UTC)
MOST_GROWTH_KIB = 64 * 1024
ROUND = 2000  # inputs to the parsers for each turn of the acceptor


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with a few bytes changed, inserted, removed, repeated, or cut off."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(mutated) + 1)
        match rng.randrange(6):
            case 0:
                mutated[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                value = rng.choice(INTERESTING)
                mutated[at : at + len(value)] = value
            case 2:
                mutated[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                del mutated[at : at + rng.randint(1, 16)]
            case 4:
                mutated[at:at] = mutated[at : at + rng.randint(1, 64)]
            case 5 if rng.random() < 0.2:
                del mutated[at:]
    return bytes(mutated)


def parse(data: bytes) -> None:
    """The parsers alone: any error but a `ProtocolError` is a find."""
    handler = FakeStoreHandler()
    services = (
        verification(),
        storage(
            handler, accept_unknown=True, max_object_bytes=1000, on_answered=lambda _status, _bytes: None
        ),
    )
    info = AssociationInfo(1, "PEER", "INSITU", "127.0.0.1", 1, STARTED)
    provider = DimseProvider(info, CONTEXTS, services, max_length_bytes=64, max_objects=10)
    reader = PduReader(65536)
    try:
        for begin in range(0, len(data), 1000):
            part = data[begin : begin + 1000]
            reader.space()[: len(part)] = part
            reader.received(len(part))
            while (item := reader.next()) is not None:
                if isinstance(item, Pdu) and item.type is PduType.A_ASSOCIATE_RQ:
                    proposal = negotiation.read(item.body, 128)
                    negotiation.agree(proposal, lambda _uid: STORABLE_TRANSFER_SYNTAXES, 0)
                elif isinstance(item, Fragment):
                    provider.fragment(item)
            provider.flush()
    except ProtocolError:
        pass
    finally:
        provider.discard()
    if handler.open:
        raise AssertionError(f"{handler.open} instances were left open")
    with contextlib.suppress(ProtocolError):
        command.decode(data)


def converse(address: tuple[str, int], data: bytes, rng: random.Random) -> None:
    """Send it in pieces, and read what is answered until the stream ends."""
    with RawPeer(address) as peer:
        peer.socket.settimeout(5)
        try:
            for begin in range(0, len(data), size := rng.choice((1, 7, 100, 100_000))):
                peer.send(data[begin : begin + size])
            peer.socket.shutdown(socket.SHUT_WR)
            while peer.socket.recv(65536):
                pass
        except ConnectionError:
            pass


def main() -> int:
    """Returns 0 when nothing broke."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long (default 60)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="to repeat a run")
    parser.add_argument("--atheris", action="store_true", help="drive the parsers by coverage")
    arguments = parser.parse_args()
    if arguments.atheris:
        atheris = importlib.import_module("atheris")  # no dependency of ours
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], f"-max_total_time={int(arguments.seconds)}", "-max_len=4096"], parse)
        atheris.Fuzz()
        return 0
    logging.disable()  # each of thousands of aborts would be a line
    print(f"seed {arguments.seed}")
    rng = random.Random(arguments.seed)
    handler = FakeStoreHandler(keep=False)
    acceptor = Acceptor(
        AcceptorSettings(ae_title="INSITU", closing_timeout_s=0.2, max_object_bytes=10_000), handler
    )
    acceptor.start()
    until = time.monotonic() + arguments.seconds
    parsed = conversed = 0
    before_kib: int | None = None
    data = b""
    try:
        while time.monotonic() < until:
            for _ in range(ROUND):
                data = mutate(rng.choice(SEEDS), rng)
                parse(data)
                parsed += 1
            for _ in range(20):
                data = mutate(rng.choice(SEEDS), rng)
                converse(acceptor.address, data, rng)
                conversed += 1
            with RawPeer(acceptor.address) as peer:
                peer.associate()
                peer.send(echo_rq())
                if peer.response().status != 0:
                    raise AssertionError("a C-ECHO was not answered with success")
            handler.stored.clear()
            handler.ends.clear()
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            before_kib = before_kib or peak_kib
            if peak_kib - before_kib > MOST_GROWTH_KIB:
                raise AssertionError(f"memory grew from {before_kib} to {peak_kib} KiB")
    except BaseException:
        print(f"seed {arguments.seed}, input {data.hex()}", file=sys.stderr)
        raise
    finally:
        cut = acceptor.stop(10)
    if handler.open or cut:
        print(f"{handler.open} instances left open, {cut} connections cut", file=sys.stderr)
        return 1
    stats = acceptor.stats()
    print(
        f"{parsed} inputs parsed, {conversed} conversations: {stats.associations_accepted} associations, "
        f"{sum(stats.associations_rejected.values())} rejected, {sum(stats.aborts_sent.values())} aborted, "
        f"{stats.instances} instances; nothing broke"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

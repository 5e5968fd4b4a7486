"""How a DICOM node is named and reached: AE title, host, network, HOST:PORT:AET.

Checks on text alone: nothing is looked up or opened here (PS3.5 §6.2, VR AE; RFC 1123 §2.1).
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_HOST_LABEL: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def check_ae_title(value: str) -> str:
    """`value` without the spaces around it, which mean nothing (PS3.5 §6.2).

    Raises:
        ValueError: not 1 to 16 ASCII characters, only spaces, a backslash or a control character.
    """
    if not 1 <= len(value) <= 16 or not all(0x20 <= ord(char) <= 0x7E and char != "\\" for char in value):
        raise ValueError("not an AE title")
    if not value.strip(" "):
        raise ValueError("only spaces")
    return value.strip(" ")


def check_host(value: str) -> str:
    """`value`, when it is an IP address or a host name (RFC 1123 §2.1, underscore allowed).

    Raises:
        ValueError: it is neither. Numbers and dots alone are an address or nothing.
    """
    if is_address(value):
        return value
    labels = value.removesuffix(".").split(".")
    if len(value) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ValueError("neither a host name nor an IP address")
    return value


def check_network(value: str) -> str:
    """`value`, when it is an IP address or a network in CIDR form without host bits.

    Raises:
        ValueError: it is neither.
    """
    ipaddress.ip_network(value)
    return value


def is_address(value: str) -> bool:
    """Whether `value` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_own(address: str, host: str) -> bool:
    """Whether the IP address `address` is the loopback, or `host`, on which we listen."""
    caller = ipaddress.ip_address(address)
    if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped is not None:
        caller = caller.ipv4_mapped
    return caller.is_loopback or str(caller) == host


def is_within(address: str, network: str) -> bool:
    """Whether the IP address `address` is the address `network`, or lies in it.

    An IPv4 address that arrives on an IPv6 socket (`::ffff:10.0.0.1`) counts as the IPv4 one.
    """
    caller = ipaddress.ip_address(address)
    if isinstance(caller, ipaddress.IPv6Address) and caller.ipv4_mapped is not None:
        caller = caller.ipv4_mapped
    allowed = ipaddress.ip_network(network)
    return caller.version == allowed.version and caller in allowed


@dataclass(frozen=True, slots=True)
class Address:
    """A DICOM node as it is written on the command line: HOST:PORT:AET."""

    host: str
    port: int
    ae_title: str

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"{shown}:{self.port}:{self.ae_title}"


def parse_address(text: str) -> Address:
    """HOST:PORT:AET; an IPv6 address stands in brackets: `[::1]:11112:PACS`.

    Raises:
        ValueError: another form; the message says which part.
    """
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:\[\]]*)):([^:]*):(.*)", text, re.DOTALL)
    if match is None:
        raise ValueError(f"{text!r} is not HOST:PORT:AET (such as 10.1.2.3:104:PACS or [::1]:104:PACS)")
    bracketed, plain, port, ae_title = match.groups()
    try:
        host = check_host(bracketed or plain)
    except ValueError:
        raise ValueError(f"{text!r}: {bracketed or plain!r} is no host name or IP address") from None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r}: port {port!r} is not a number from 1 to 65535")
    try:
        return Address(host, int(port), check_ae_title(ae_title))
    except ValueError:
        raise ValueError(
            f"{text!r}: AE title {ae_title!r} is not 1 to 16 ASCII characters, without a backslash"
        ) from None

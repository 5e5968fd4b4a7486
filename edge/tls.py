"""TLS for DICOM: the contexts of our port and of our calls, and what is said of a certificate.

Owns the profile (PS3.15 §B.9, BCP 195: RFC 9325, RFC 8996): TLS 1.2 and 1.3, ephemeral elliptic
curve keys, AEAD ciphers; and the check of the files before they are used. The files are read when a
role starts: a new certificate needs a restart.

Off-spec: the profile's DHE suites are left out, which RFC 9325 §4.1 discourages since: every
implementation of the profile has ECDHE too.
"""

import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from edge.options import Settings, Tls

TLS_1_2_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
"""Of TLS 1.2, by OpenSSL's names; those of TLS 1.3 are all of the same kind."""
EXPIRES_SOON: Final = timedelta(days=30)
"""A hospital's certificate authority takes days, not weeks."""
MAX_FILE_BYTES: Final = 1 << 20
"""A chain of certificates is some 10 KB, a bundle of authorities below 1 MB."""

_MODES: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----\s.*?-----END CERTIFICATE-----", re.DOTALL)


class TlsFileError(Exception):
    """A file that TLS needs cannot be used; the message says which, and why."""


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is valid (RFC 5280 §4.1.2.5)."""

    begins: datetime
    ends: datetime


def server_context(tls: Tls) -> ssl.SSLContext:
    """The TLS of our port.

    Raises:
        TlsFileError: a file cannot be read, is no certificate or key, or key and certificate do not fit.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_own(context, tls)
    context.verify_mode = _MODES[tls.client_certificates]
    if tls.client_certificates != "none":
        _load_authorities(context, tls)
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """The TLS of our calls: the other node must show a certificate that leads to `tls.ca`, of its name.

    Raises:
        TlsFileError: as `server_context`.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_authorities(context, tls)
    if tls.certificate:
        _load_own(context, tls)
    return context


def problems(settings: Settings, now: datetime) -> list[str]:
    """What is wrong with the files of `[tls]`, as far as they are used; one line each."""
    tls = settings.tls
    found: list[str] = []
    for build, is_used in (
        (server_context, bool(tls.port)),
        (client_context, any(peer.tls for peer in settings.peers)),
    ):
        try:
            if is_used:
                build(tls)
        except TlsFileError as error:
            if str(error) not in found:
                found.append(str(error))
    if not found and tls.certificate and (tls.port or any(peer.tls for peer in settings.peers)):
        validity = validity_of(Path(tls.certificate))
        if not validity.begins <= now < validity.ends:
            found.append(
                f"tls.certificate: {tls.certificate} is valid from {validity.begins:%Y-%m-%d %H:%M} to "
                f"{validity.ends:%Y-%m-%d %H:%M} UTC, not now"
            )
    return found


def warnings(settings: Settings, now: datetime) -> list[str]:
    """What will soon be wrong with the files of `[tls]`."""
    tls = settings.tls
    if not tls.certificate or not (tls.port or any(peer.tls for peer in settings.peers)):
        return []
    try:
        ends = validity_of(Path(tls.certificate)).ends
    except TlsFileError:
        return []  # it is among the problems
    if now < ends < now + EXPIRES_SOON:
        return [f"tls.certificate: {tls.certificate} expires on {ends:%Y-%m-%d %H:%M} UTC"]
    return []


def validity_of(path: Path) -> Validity:
    """The validity of the first certificate in a PEM file.

    Raises:
        TlsFileError: it cannot be read, or is no certificate.
    """
    try:
        with path.open("rb") as file:
            pem = _PEM.search(file.read(MAX_FILE_BYTES))
        if pem is None:
            raise TlsFileError(f"tls.certificate: {path} holds no certificate in PEM")
        return _validity(ssl.PEM_cert_to_DER_cert(pem[0].decode("ascii")))
    except OSError as error:
        raise TlsFileError(f"tls.certificate: {path} cannot be read: {error.strerror}") from error
    except (ValueError, IndexError) as error:
        raise TlsFileError(f"tls.certificate: {path} is no certificate") from error


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(":".join(TLS_1_2_CIPHERS))
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def _load_own(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        # no terminal to ask for a passphrase: a key that needs one is refused
        context.load_cert_chain(tls.certificate, tls.key, password=lambda: b"")
    except ssl.SSLError as error:
        why = (
            "the key is not that of the certificate"
            if error.reason == "KEY_VALUES_MISMATCH"
            else "they cannot be read as PEM, or the key has a passphrase"
        )
        raise TlsFileError(f"tls.certificate and tls.key: {tls.certificate} and {tls.key}: {why}") from error
    except OSError as error:
        missing = tls.key if Path(tls.certificate).is_file() else tls.certificate
        raise TlsFileError(f"tls: {missing} cannot be read: {error.strerror}") from error


def _load_authorities(context: ssl.SSLContext, tls: Tls) -> None:
    try:
        context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        raise TlsFileError(f"tls.ca: {tls.ca} holds no certificate in PEM") from error
    except OSError as error:
        raise TlsFileError(f"tls.ca: {tls.ca} cannot be read: {error.strerror}") from error


def _validity(der: bytes) -> Validity:
    """Certificate → tbsCertificate → validity (RFC 5280 §4.1); only what stands before it is passed over."""
    certificate = next(_der(der))[1]
    fields = list(_der(next(_der(certificate))[1]))
    if fields[0][0] == 0xA0:  # version
        del fields[0]
    begins, ends = list(_der(fields[3][1]))  # after serial number, signature algorithm, issuer
    return Validity(_time(*begins), _time(*ends))


def _der(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tag and the contents of each element of a DER encoding (X.690 §8.1)."""
    at = 0
    while at < len(data):
        tag, length = data[at], data[at + 1]
        at += 2
        if length & 0x80:
            count = length & 0x7F
            length = int.from_bytes(data[at : at + count], "big")
            at += count
        if length > len(data) - at:
            raise ValueError("an element goes beyond the end")
        yield tag, data[at : at + length]
        at += length


def _time(tag: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if tag == 0x17:  # UTCTime: two digits of the year, before 2050 (RFC 5280 §4.1.2.5.1)
        text = ("19" if int(text[:2]) >= 50 else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)

"""Who may use DICOMweb: a bearer token or a client certificate, and the guard before every request.

Owns the check of credentials (RFC 6750 §2.1, §3), the headers that every answer carries, and the bound
on requests at one time. A token is never kept: its SHA-256 is compared, in constant time, with that of
each client.

*Security*: whoever brings no credential learns nothing but that one is needed: the guard answers before
a path is looked at or a byte of a body is read.
"""

import hashlib
import hmac
import logging
from collections.abc import Sequence
from typing import Final, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edge.options import WebClient

log = logging.getLogger(__name__)

CLIENT: Final = "insitu.client"
"""Where the guard leaves the client in an ASGI scope."""
CERTIFICATE: Final = "certificate_sha256"
"""Where the server leaves the SHA-256 of a verified client certificate, in the scope's state."""
MAX_TOKEN_CHARACTERS: Final = 256
"""Ours have 43."""

_HEADERS: Final = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)

Permission = Literal["store", "read"]


def token_hash(token: str) -> str:
    """What the configuration holds of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


class Clients:
    """The configured clients, by credential."""

    def __init__(self, clients: Sequence[WebClient]) -> None:
        self._clients = tuple(clients)

    def of_token(self, token: str) -> WebClient | None:
        """Whose token it is; as long for a wrong one as for any other."""
        return self._find("token_sha256", token_hash(token[: MAX_TOKEN_CHARACTERS + 1]))

    def of_certificate(self, certificate_sha256: str) -> WebClient | None:
        """Whose certificate it is."""
        return self._find("certificate_sha256", certificate_sha256)

    def _find(self, attribute: str, digest: str) -> WebClient | None:
        found = None
        for client in self._clients:
            known = getattr(client, attribute)
            if hmac.compare_digest(known, digest) and known:
                found = client
        return found


class Guard:
    """Lets a request through to `app` when its client may do what `app` does."""

    def __init__(self, app: ASGIApp, clients: Clients, permission: Permission, max_requests: int) -> None:
        self._app = app
        self._clients = clients
        self._permission = permission
        self._max_requests = max_requests
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
            await send(message)

        client = self._client(scope)
        if client is None:
            log.warning("web: request from %s without a valid credential: 401", _address(scope))
            await _answer(send_with_headers, 401, [(b"www-authenticate", b'Bearer realm="insitu"')])
        elif not (client.may_store if self._permission == "store" else client.may_read):
            log.warning("web: client %s may not %s: 403", client.name, self._permission)
            await _answer(send_with_headers, 403)
        elif self._running >= self._max_requests:
            log.warning("web: client %s: %d requests run already: 503", client.name, self._running)
            await _answer(send_with_headers, 503, [(b"retry-after", b"1")])
        else:
            self._running += 1
            try:
                await self._app({**scope, CLIENT: client}, receive, send_with_headers)
            finally:
                self._running -= 1

    def _client(self, scope: Scope) -> WebClient | None:
        certificate = scope.get("state", {}).get(CERTIFICATE, "")
        if certificate and (client := self._clients.of_certificate(certificate)) is not None:
            return client
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(given) != 1:
            return None
        scheme, _, token = given[0].decode("latin-1").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return None
        return self._clients.of_token(token.strip())


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else "?"


async def _answer(send: Send, status: int, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    await send(
        {"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})

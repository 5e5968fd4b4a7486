"""An HTTP server in a thread of a role's process: uvicorn on a socket of ours.

Owns the listening socket, TLS (PS3.15 §B.9, RFC 9325), the limits on connections, the start and the stop.
What is served is an ASGI application; who may use it is `edge.web_auth`.

*Diagnostics*: one line at the start, one at the stop. No line for a request: a query string names
patients. *Security*: anyone on the network can connect. A connection that brings no whole request in
time is closed, and a crowd of idle ones displaces itself.
"""

import asyncio
import hashlib
import logging
import socket
import ssl
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from edge.options import Settings, Web
from edge.web_auth import CERTIFICATE

log = logging.getLogger(__name__)

START_S: Final = 30.0
"""Loading the application takes a second; longer means that it does not start."""
BACKLOG: Final = 128
MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers; a query with a hundred UIDs has 7 KiB."""
CONNECTIONS_PER_REQUEST: Final = 4
"""Clients keep connections open that they do not use; so many for each request that may run."""


@dataclass(frozen=True, slots=True)
class WebLimits:
    """What a connection may cost."""

    max_connections: int
    head_timeout_s: float
    """For a TLS handshake, and for a whole request line and headers."""


class WebServer:
    """One server; make it, `start` it once, `stop` it."""

    def __init__(self, app: ASGIApp, name: str, port: int, settings: Settings) -> None:
        """Does not listen yet.

        Args:
            app: what it serves.
            name: for the log and the thread.
            port: 0 takes any free one.
            settings: address, TLS and limits.
        """
        self._name = name
        self._host, self._port = settings.web.host, port
        limits = WebLimits(
            settings.web.max_requests * CONNECTIONS_PER_REQUEST, settings.limits.artim_timeout_s
        )
        config = uvicorn.Config(
            app,
            http=_protocol(limits),
            ws="none",
            lifespan="on",
            loop="asyncio",
            log_config=None,
            access_log=False,
            log_level="warning",
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=max(1, int(settings.limits.artim_timeout_s)),
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        config.load()
        if settings.web.certificate:
            config.ssl = tls_context(settings.web)
        self._server = _Server(config)
        self._handshake_timeout_s = limits.head_timeout_s
        self._thread = threading.Thread(target=self._run, name=f"web-{name}", daemon=True)
        self._socket: socket.socket | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The host and port that it listens on.

        Raises:
            RuntimeError: it does not listen.
        """
        if self._socket is None:
            raise RuntimeError(f"web server {self._name}: not started, or stopped")
        host, port = self._socket.getsockname()[:2]
        return host, port

    def start(self) -> None:
        """Listen; on return a client can connect.

        Raises:
            OSError: the address cannot be had, or the certificate cannot be read.
            RuntimeError: the application did not start.
        """
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._socket = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        self._thread.start()
        if not self._server.is_ready.wait(START_S) or not self._thread.is_alive():
            self._socket.close()
            raise RuntimeError(f"web server {self._name}: did not start; see the log")
        scheme = "https" if self._server.config.ssl else "http"
        log.info("%s listens on %s://%s:%d", self._name, scheme, *self.address)

    def stop(self, timeout_s: float) -> None:
        """Refuse new requests, finish what has begun within `timeout_s`, cut off the rest."""
        if self._socket is None:
            return
        self._server.config.timeout_graceful_shutdown = max(1, int(timeout_s))
        self._server.should_exit = True
        self._thread.join(timeout_s + 5)  # cutting off takes a moment
        self._socket.close()
        self._socket = None

    def _run(self) -> None:
        assert self._socket is not None
        try:
            with asyncio.Runner(loop_factory=lambda: _Loop(self._handshake_timeout_s)) as runner:
                runner.run(self._server.serve(sockets=[self._socket]))
        except BaseException:
            log.exception("web server %s ended by a defect", self._name)
            raise
        finally:
            self._server.is_ready.set()


def tls_context(web: Web) -> ssl.SSLContext:
    """A server's TLS: version 1.2 or later; a client certificate is asked for where `client_ca` is given.

    Raises:
        OSError: a file cannot be read, or is no certificate or key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(web.certificate, web.key)
    if web.client_ca:
        context.load_verify_locations(web.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


class _Loop(asyncio.SelectorEventLoop):
    """Gives a TLS handshake as long as a request's head; asyncio's own limit is a minute."""

    def __init__(self, handshake_timeout_s: float) -> None:
        super().__init__()
        self._handshake_timeout_s = handshake_timeout_s

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:  # noqa: ANN401 - asyncio's
        if options.get("ssl"):
            options["ssl_handshake_timeout"] = self._handshake_timeout_s
        return await super().create_server(*arguments, **options)


class _Server(uvicorn.Server):
    """Says when it is ready, to a thread that waits."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_ready.set()


def _protocol(limits: WebLimits) -> type[asyncio.Protocol]:
    """The protocol of one connection, with `limits`; uvicorn makes one for each connection."""

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            secured = transport.get_extra_info("ssl_object")
            certificate = secured.getpeercert(binary_form=True) if secured else None
            if certificate:
                digest = hashlib.sha256(certificate).hexdigest()
                self.app_state = {**self.app_state, CERTIFICATE: digest}
            self.idle_since = self.loop.time()
            self.head_timer = self.loop.call_later(limits.head_timeout_s, self.close_if_idle)
            self.displace()

        def connection_lost(self, exc: Exception | None) -> None:
            self.head_timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self.idle_since = self.loop.time()
            super().on_response_complete()

        @property
        def is_idle(self) -> bool:
            """No request of it is worked on: it waits for a head, or sends one byte by byte."""
            return self.cycle is None or self.cycle.response_complete

        def close_if_idle(self) -> None:
            left = self.idle_since + limits.head_timeout_s - self.loop.time()
            if self.is_idle and left <= 0:
                self.transport.abort()
                return
            self.head_timer = self.loop.call_later(
                left if self.is_idle else limits.head_timeout_s, self.close_if_idle
            )

        def displace(self) -> None:
            """Beyond the limit the longest idle connection of the address that has most of them goes."""
            if len(self.connections) <= limits.max_connections:
                return
            crowds = Counter(_host(each) for each in self.connections)
            idle = [each for each in self.connections if isinstance(each, Connection) and each.is_idle]
            if idle:  # this one at least
                worst = max(crowds[_host(each)] for each in idle)
                crowd = [each for each in idle if crowds[_host(each)] == worst]
                min(crowd, key=lambda each: each.idle_since).transport.abort()

    return Connection


def _host(connection: Any) -> str:  # noqa: ANN401 - uvicorn's protocols share no type
    return connection.client[0] if connection.client else ""

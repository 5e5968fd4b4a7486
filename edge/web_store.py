"""STOW-RS (PS3.18 §10.5): instances by HTTP, into the same store and by the same rules as by C-STORE.

Owns the request: its media type, its body on the way to a `Transaction`, the status of its answer; and
what stands for an association: a client's requests, from the first one until it has sent none for a
moment, so that a study that comes in several requests is not closed between them.

*Diagnostics*: one line for each request that did not store all its instances. *Security*: `edge.web_auth`
stands before it; the body is bounded, and never whole in memory.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect

from dicom.multipart import (
    MediaType,
    MultipartError,
    MultipartReader,
    MultipartTooLargeError,
    boundary_of,
    media_type,
    split_quoted,
)
from dicom.store_handler import AssociationInfo, End
from dicom.uid import is_valid
from edge.failures import store_http_status
from edge.options import Settings, WebClient
from edge.receive import ReceiveStage
from edge.web_auth import CLIENT, Clients, Guard
from edge.web_body import BodyCutError, BodyPipe
from edge.web_transaction import MAX_COMMITS, PartLimits, Transaction, refused_reasons

log = logging.getLogger(__name__)

DICOM_JSON: Final = "application/dicom+json"
FIRST_NUMBER: Final = 1 << 32
"""Of our associations: those of the DICOM port count from 1, in the same arrival log."""
_ACCEPTED: Final = frozenset({DICOM_JSON, "application/json", "application/*", "*/*"})


class DicomJsonResponse(JSONResponse):
    """An answer in the DICOM JSON model (PS3.18 Annex F)."""

    media_type = DICOM_JSON


@dataclass
class _Open:
    """A client's association."""

    info: AssociationInfo
    requests: int = 0
    is_broken: bool = False
    timer: asyncio.TimerHandle | None = None


class WebAssociations:
    """What stands for an association; used in the event loop only."""

    def __init__(self, stage: ReceiveStage, settle_s: float, clock: Callable[[], datetime]) -> None:
        self._stage = stage
        self._settle_s = settle_s
        self._clock = clock
        self._numbers = itertools.count(FIRST_NUMBER)
        self._open: dict[tuple[str, str], _Open] = {}

    def request_begins(self, client: WebClient, address: str, port: int) -> AssociationInfo:
        """A client's request has begun: its association, open already or new."""
        found = self._open.get((client.name, address))
        if found is None:
            number = next(self._numbers)
            info = AssociationInfo(number, client.ae_title, "", address, port, self._clock())
            found = self._open[client.name, address] = _Open(info)
        if found.timer is not None:
            found.timer.cancel()
            found.timer = None
        found.requests += 1
        return found.info

    def request_ends(self, client: WebClient, address: str, *, is_whole: bool) -> None:
        """It has ended; when it was the last, and none follows, so has the association."""
        found = self._open[client.name, address]
        found.requests -= 1
        found.is_broken |= not is_whole
        if found.requests:
            return
        if self._settle_s <= 0:
            self._end((client.name, address))
        else:
            loop = asyncio.get_running_loop()
            found.timer = loop.call_later(self._settle_s, self._end, (client.name, address))

    def close(self) -> None:
        """End all of them."""
        for key in list(self._open):
            self._end(key)

    def _end(self, key: tuple[str, str]) -> None:
        found = self._open.pop(key)
        if found.timer is not None:
            found.timer.cancel()
        self._stage.ended(found.info, End.LOST if found.is_broken else End.RELEASED)


def store_app(stage: ReceiveStage, settings: Settings, clock: Callable[[], datetime] | None = None) -> Guard:
    """The application of STOW-RS: `POST /studies` and `POST /studies/{study}`."""
    associations = WebAssociations(stage, settings.web.settle_s, clock or (lambda: datetime.now(UTC)))
    writers = ThreadPoolExecutor(settings.web.max_requests, thread_name_prefix="stow")
    committers = ThreadPoolExecutor(MAX_COMMITS, thread_name_prefix="stow-commit")

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        associations.close()
        writers.shutdown()
        committers.shutdown()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    limits = PartLimits(settings.limits.max_object_bytes, settings.receive.accept_unknown_storage)

    async def store(request: Request, study: str = "") -> Response:
        refusal = _refusal(request, study)
        if refusal is not None:
            name = request.scope[CLIENT].name
            log.warning("web: request of client %s refused with %d", name, refusal.status_code)
            return refusal
        kind = media_type(request.headers["content-type"])
        client: WebClient = request.scope[CLIENT]
        address, port = request.client or ("", 0)
        association = associations.request_begins(client, address, port)
        transaction = Transaction(stage, association, study, limits, committers)
        loop = asyncio.get_running_loop()
        pipe = BodyPipe(loop)
        work = loop.run_in_executor(writers, _receive, pipe, transaction, kind, settings)
        is_whole = False
        try:
            is_whole = await _pass_on(request, pipe, settings.limits.idle_timeout_s)
            problem = await asyncio.shield(work)
        except BodyCutError:
            log.warning("association %d: a request was cut off", association.number)
            return _told(408, "the body did not become whole")
        finally:
            if not work.done():  # the server is being stopped: nothing half stored, and nobody left behind
                pipe.cut()
                with contextlib.suppress(BodyCutError):
                    await asyncio.shield(work)
            associations.request_ends(client, address, is_whole=is_whole)
        return _answer(transaction, problem, association)

    @app.post("/studies")
    async def store_any(request: Request) -> Response:
        return await store(request)

    @app.post("/studies/{study}")
    async def store_in_study(request: Request, study: str) -> Response:
        return await store(request, study)

    return Guard(app, Clients(settings.web_clients), "store", settings.web.max_requests)


def _refusal(request: Request, study: str) -> Response | None:
    """Why a request is refused before its body is read."""
    headers = request.headers
    if study and not is_valid(study):
        return _told(400, "the path names no Study Instance UID (PS3.5 §9.1)")
    if headers.get("content-encoding", "identity").lower() != "identity":
        return _told(415, "Content-Encoding: must be none; instances are compressed by their transfer syntax")
    try:
        kind = media_type(headers.get("content-type", ""))
        if kind.name == "multipart/related":
            boundary_of(kind)
    except MultipartError as error:
        return _told(400, str(error))
    inner = kind.parameters.get("type", "application/dicom").lower()
    is_taken = kind.name == "application/dicom" or (
        kind.name == "multipart/related" and inner == "application/dicom"
    )
    if not is_taken:
        return _told(
            415, 'Content-Type: must be multipart/related; type="application/dicom" (PS3.18 §10.5.2)'
        )
    if not _accepts_json(headers.get("accept", "*/*")):
        return _told(406, f"Accept: the answer is {DICOM_JSON}")
    return None


async def _pass_on(request: Request, pipe: BodyPipe, idle_timeout_s: float) -> bool:
    """The body into the pipe; whether it came whole."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(idle_timeout_s) as patience:
            async for chunk in request.stream():
                patience.reschedule(None)  # waiting for our own disk is not the sender's silence
                if chunk:
                    await pipe.put(chunk)
                patience.reschedule(loop.time() + idle_timeout_s)
    except (ClientDisconnect, TimeoutError):
        pipe.cut()
        return False
    pipe.close()
    return True


def _receive(
    pipe: BodyPipe, transaction: Transaction, kind: MediaType, settings: Settings
) -> MultipartError | None:
    """Take a whole body, in a thread; what was wrong with it.

    Raises:
        BodyCutError: it did not become whole; what was whole of it is stored.
    """
    is_multipart = kind.name == "multipart/related"
    reader = MultipartReader(
        boundary_of(kind) if is_multipart else "none",
        transaction,
        settings.limits.max_objects_per_association,
        settings.web.max_request_bytes,
    )
    try:
        if not is_multipart:
            transaction.part_begins({})
        while chunks := pipe.take():
            for chunk in chunks:
                if is_multipart:
                    reader.feed(chunk)
                else:
                    transaction.part_data(memoryview(chunk))
        if is_multipart:
            reader.finish()
        else:
            transaction.part_ends()
    except MultipartError as error:
        pipe.refuse()
        transaction.discard()
        return error
    except BaseException:
        pipe.refuse()
        transaction.discard()
        raise
    transaction.settle()
    return None


def _answer(
    transaction: Transaction, problem: MultipartError | None, association: AssociationInfo
) -> Response:
    content: dict[str, Any] = transaction.answer()
    if problem is None:
        status = store_http_status(transaction.stored, transaction.failures)
    else:
        status = 413 if isinstance(problem, MultipartTooLargeError) else 400
        log.warning("association %d: %s", association.number, problem)
    if status >= 202:
        reasons = ", ".join(refused_reasons(transaction)) or "none"
        log.warning(
            "association %d: answered %d: %d instances stored, failure reasons %s",
            association.number,
            status,
            transaction.stored,
            reasons,
        )
    headers = {"Retry-After": "10"} if status == 503 else None
    return DicomJsonResponse(content, status, headers)


def _told(status: int, reason: str) -> Response:
    return Response(reason + "\n", status, media_type="text/plain; charset=utf-8")


def _accepts_json(accept: str) -> bool:
    names = {each.partition(";")[0].strip().lower() for each in split_quoted(accept, ",")}
    return bool(names & _ACCEPTED)

"""DICOMweb as a client: search (QIDO-RS), retrieve (WADO-RS) and store (STOW-RS) at another node.

Owns the requests and the reading of the answers (PS3.18 §10.4 to §10.6), on the standard library's HTTP.
Bodies go and come in pieces: memory does not grow with a study.

Security: what the other node answers is hostile: bounded in length and number, and a redirection is not
followed, for it would take the token elsewhere. Query and answer name patients: neither is in a message.
"""

import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

from dicom.dicomjson import texts
from dicom.errors import PeerError
from dicom.multipart import (
    MultipartError,
    MultipartReader,
    PartHandler,
    body_of,
    boundary_of,
    media_type,
    new_boundary,
)
from dicom.query import MAX_STUDIES, StudyFound, StudyQuery
from dicom.uid import is_valid

MAX_JSON_BYTES: Final = 16 * 1024 * 1024
"""Of one answer; 500 studies are 1 MB."""
READ_BYTES: Final = 256 * 1024

_DICOM_JSON: Final = "application/dicom+json"
_KEYS: Final = (
    ("StudyInstanceUID", "study_instance_uid"),
    ("PatientID", "patient_id"),
    ("IssuerOfPatientID", "issuer_of_patient_id"),
    ("AccessionNumber", "accession_number"),
    ("ModalitiesInStudy", "modality"),
    ("StudyDate", "study_date"),
)


@dataclass(frozen=True, slots=True)
class WebNode:
    """A DICOMweb node that we call."""

    url: str
    """Of its DICOMweb root: http://host:port/dicom-web."""
    token: str = ""
    """Bearer token; none is sent when it is empty."""
    ca_file: str = ""
    """Certificates that its own must lead to, PEM; the system's when it is empty."""
    timeout_s: float = 60.0
    """For each wait for the network."""

    def __str__(self) -> str:
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """What a node did with instances that it was sent."""

    stored: frozenset[str]
    failed: dict[str, int]
    """SOP Instance UID to Failure Reason (0008,1197)."""


class WebClient:
    """Calls one node; one connection for each request."""

    def __init__(self, node: WebNode) -> None:
        """Does not connect yet.

        Raises:
            ValueError: the URL is none of http or https.
        """
        parts = urlsplit(node.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("a DICOMweb node: must be http://HOST[:PORT][/PATH] or https://…")
        self._node = node
        self._is_secured = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")

    def find_studies(self, query: StudyQuery) -> list[StudyFound]:
        """QIDO-RS for studies (PS3.18 §10.6).

        Raises:
            PeerError: it cannot be reached, refuses, or its answer cannot be read.
            ValueError: the query has no key.
        """
        keys = {name: getattr(query, field) for name, field in _KEYS if getattr(query, field)}
        if not keys:
            raise ValueError("QIDO-RS: no key: every study of the archive would match")
        parameters = urlencode({**keys, "limit": MAX_STUDIES, "includefield": "00081030"}, quote_via=quote)
        with self._response("GET", f"/studies?{parameters}", {"Accept": _DICOM_JSON}) as response:
            if response.status == 204:
                return []
            self._require(response, 200)
            entries = self._json(response)
        if not isinstance(entries, list) or len(entries) > MAX_STUDIES:
            raise self._error(f"its answer is no list of at most {MAX_STUDIES} studies")
        return [self._study(entry) for entry in entries]

    def retrieve_study(
        self, study_instance_uid: str, handler: PartHandler, max_parts: int, max_body_bytes: int
    ) -> int:
        """WADO-RS of a study as it is stored (PS3.18 §10.4); how many instances came.

        Raises:
            PeerError: it cannot be reached, refuses, or its answer is cut short or too large.
            ValueError: the UID is none.
        """
        if not is_valid(study_instance_uid):
            raise ValueError("WADO-RS: the Study Instance UID is none (PS3.5 §9.1)")
        accept = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        with self._response("GET", f"/studies/{study_instance_uid}", {"Accept": accept}) as response:
            self._require(response, 200)
            try:
                kind = media_type(response.getheader("Content-Type", ""))
                reader = MultipartReader(boundary_of(kind), handler, max_parts, max_body_bytes)
                while piece := response.read1(READ_BYTES):
                    reader.feed(piece)
                reader.finish()
            except MultipartError as error:
                raise self._error(f"its answer: {error}") from error
        return reader.parts

    def store(self, files: Sequence[Path]) -> StoreAnswer:
        """STOW-RS of files as they are (PS3.18 §10.5).

        Raises:
            PeerError: it cannot be reached, refuses all of them, or its answer cannot be read.
            OSError: a file cannot be read.
        """
        boundary = new_boundary()
        headers = {
            "Accept": _DICOM_JSON,
            "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        }
        body = body_of((("application/dicom", _pieces(path)) for path in files), boundary)
        with self._response("POST", "/studies", headers, body) as response:
            self._require(response, 200, 202, 409)
            answer = self._json(response)
        if not isinstance(answer, dict):
            raise self._error("its answer is no data set")
        stored = frozenset(uid for item in _items(answer, "00081199") for uid in texts(item.get("00081155")))
        failed = {}
        for item in _items(answer, "00081198"):
            reason = next(iter(texts(item.get("00081197"))), "")
            for uid in texts(item.get("00081155")):
                failed[uid] = int(reason) if reason.isdigit() else 0x0110
        return StoreAnswer(stored, failed)

    @contextlib.contextmanager
    def _response(
        self, method: str, path: str, headers: dict[str, str], body: Iterator[bytes] | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        if self._node.token:
            headers = {**headers, "Authorization": f"Bearer {self._node.token}"}
        connection = self._connection()
        try:
            try:
                connection.connect()
                connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.request(
                    method, self._path + path, body, {**headers, "Connection": "close"}, encode_chunked=True
                )
                with connection.getresponse() as response:  # it holds the socket when the node closes
                    yield response
            except (
                TimeoutError,
                http.client.HTTPException,
                ssl.SSLError,
                ConnectionError,
                socket.gaierror,
            ) as error:
                raise self._error(f"the exchange failed: {type(error).__name__}") from error
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_secured:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._node.timeout_s)
        context = ssl.create_default_context(cafile=self._node.ca_file or None)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._node.timeout_s, context=context
        )

    def _require(self, response: http.client.HTTPResponse, *allowed: int) -> None:
        if response.status not in allowed:
            raise self._error(f"it answered {response.status}")

    def _json(self, response: http.client.HTTPResponse) -> Any:  # noqa: ANN401 - JSON
        data = response.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise self._error(f"its answer is longer than {MAX_JSON_BYTES} bytes")
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self._error("its answer is no JSON") from error

    def _study(self, entry: object) -> StudyFound:
        if not isinstance(entry, dict):
            raise self._error("a study of its answer is no data set")

        def all_of(tag: str) -> tuple[str, ...]:
            try:
                return texts(entry.get(tag))
            except (AttributeError, TypeError) as error:
                raise self._error("a study of its answer cannot be read") from error

        def first(tag: str) -> str:
            return next(iter(all_of(tag)), "")

        uid, count = first("0020000D"), first("00201208")
        if not is_valid(uid):
            raise self._error("a study of its answer has no Study Instance UID")
        return StudyFound(
            study_instance_uid=uid,
            study_date=first("00080020"),
            modalities=all_of("00080061"),
            instances=int(count) if count.isascii() and count.isdigit() and len(count) < 10 else None,
            patient_id=first("00100020"),
            issuer_of_patient_id=first("00100021"),
            description=first("00081030"),
        )

    def _error(self, what: str) -> PeerError:
        return PeerError(f"DICOMweb node {self._node}: {what}")


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(READ_BYTES):
            yield piece


def _items(answer: dict[str, Any], tag: str) -> Iterator[dict[str, Any]]:
    element = answer.get(tag)
    values = element.get("Value", []) if isinstance(element, dict) else []
    yield from (item for item in values if isinstance(item, dict))

"""QIDO-RS and WADO-RS (PS3.18 §10.6, §10.4) on the appliance's own studies and results: enough for a viewer.

Owns the resources, their query parameters and media types; what is there is `edge.web_catalogue`, what a
frame is `dicom.frames`. Instances are given as they are stored.

Off-spec: an `Accept` without a transfer syntax means Explicit VR Little Endian (PS3.18 §8.7.3.5.2); here
it means "as stored", for no instance is converted.

*Diagnostics*: logs instances that cannot be given, and no query: it names patients. *Security*:
`edge.web_auth` stands before it; nothing is written, and no path comes from a request.
"""

import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as AnyHttpError

from dicom import frames
from dicom.dicomjson import element, metadata
from dicom.errors import InstanceError
from dicom.header import InstanceHeader, scan_file
from dicom.multipart import MediaType, MultipartError, body_of, media_type, new_boundary, split_quoted
from dicom.uid import is_valid
from edge.failures import retrieve_http_status
from edge.options import Settings
from edge.places import Places
from edge.web_auth import Clients, Guard
from edge.web_catalogue import KEYWORDS, Catalogue, Level, Search, Stored

log = logging.getLogger(__name__)

DICOM_JSON: Final = "application/dicom+json"
CHUNK_BYTES: Final = 256 * 1024
MAX_ALTERNATIVES: Final = 32
"""Of an Accept header; a viewer names up to ten."""
MAX_OFFSET: Final = 1_000_000

_ANY: Final = frozenset({"*/*", "application/*"})
_NO_KEYS: Final = frozenset({"limit", "offset", "includefield", "fuzzymatching"})
_TAGS: Final = frozenset(KEYWORDS.values())
_HOST: Final = re.compile(r"[A-Za-z0-9.:\[\]_-]{1,255}")


def read_app(places: Places, settings: Settings) -> Guard:
    """The application of QIDO-RS and WADO-RS."""
    catalogue = Catalogue(places)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        catalogue.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_exception_handler(AnyHttpError, _told)
    _add_searches(app, catalogue, settings.web.max_results)
    _add_retrievals(app, catalogue)
    _add_pixels(app, catalogue)
    return Guard(app, Clients(settings.web_clients), "read", settings.web.max_requests)


def _study(study: str) -> str:
    return _uid(study)


def _series(series: str) -> str:
    return _uid(series)


def _instance(instance: str) -> str:
    return _uid(instance)


Study = Annotated[str, Depends(_study)]
Series = Annotated[str, Depends(_series)]
Instance = Annotated[str, Depends(_instance)]


def _add_searches(app: FastAPI, catalogue: Catalogue, max_results: int) -> None:
    def search(request: Request, level: Level, **above: str) -> Response:
        keys, limit, offset, is_fuzzy = _query(request, max_results)
        found = catalogue.search(Search(level, keys | above, limit, offset), _urls(request).of)
        response = Response(json.dumps(found.entries), media_type=DICOM_JSON)
        if is_fuzzy:
            response.headers.append("Warning", '299 insitu: "fuzzymatching is not supported"')
        if not found.is_all:
            response.headers.append("Warning", '299 insitu: "only the latest studies were searched"')
        return response

    @app.get("/studies")
    def studies(request: Request) -> Response:
        return search(request, "study")

    @app.get("/series")
    def all_series(request: Request) -> Response:
        return search(request, "series")

    @app.get("/instances")
    def all_instances(request: Request) -> Response:
        return search(request, "instance")

    @app.get("/studies/{study}/series")
    def series_of(request: Request, study: Study) -> Response:
        return search(request, "series", **{"0020000D": study})

    @app.get("/studies/{study}/instances")
    def instances_of_study(request: Request, study: Study) -> Response:
        return search(request, "instance", **{"0020000D": study})

    @app.get("/studies/{study}/series/{series}/instances")
    def instances_of_series(request: Request, study: Study, series: Series) -> Response:
        return search(request, "instance", **{"0020000D": study, "0020000E": series})


def _add_retrievals(app: FastAPI, catalogue: Catalogue) -> None:
    @app.get("/studies/{study}")
    def study(request: Request, study: Study) -> Response:
        return _whole(request, _required(catalogue.instances(study)))

    @app.get("/studies/{study}/series/{series}")
    def series(request: Request, study: Study, series: Series) -> Response:
        return _whole(request, _required(catalogue.instances(study, series)))

    @app.get("/studies/{study}/series/{series}/instances/{instance}")
    def instance(request: Request, study: Study, series: Series, instance: Instance) -> Response:
        return _whole(request, _required(catalogue.instances(study, series, instance)))

    @app.get("/studies/{study}/metadata")
    def study_metadata(request: Request, study: Study) -> Response:
        return _metadata(request, study, _required(catalogue.instances(study)))

    @app.get("/studies/{study}/series/{series}/metadata")
    def series_metadata(request: Request, study: Study, series: Series) -> Response:
        return _metadata(request, study, _required(catalogue.instances(study, series)))

    @app.get("/studies/{study}/series/{series}/instances/{instance}/metadata")
    def instance_metadata(request: Request, study: Study, series: Series, instance: Instance) -> Response:
        return _metadata(request, study, _required(catalogue.instances(study, series, instance)))


def _add_pixels(app: FastAPI, catalogue: Catalogue) -> None:
    @app.get("/studies/{study}/series/{series}/instances/{instance}/frames/{numbers}")
    def frames_of(
        request: Request, study: Study, series: Series, instance: Instance, numbers: str
    ) -> Response:
        [stored] = _required(catalogue.instances(study, series, instance))
        return _frames(request, stored, _numbers(numbers))

    @app.get("/studies/{study}/series/{series}/instances/{instance}/rendered")
    def rendered(request: Request, study: Study, series: Series, instance: Instance) -> Response:
        [stored] = _required(catalogue.instances(study, series, instance))
        return _rendered(request, stored, 1)

    @app.get("/studies/{study}/series/{series}/instances/{instance}/frames/{number}/rendered")
    def rendered_frame(
        request: Request, study: Study, series: Series, instance: Instance, number: str
    ) -> Response:
        [stored] = _required(catalogue.instances(study, series, instance))
        return _rendered(request, stored, _numbers(number)[0])


class _Urls:
    """Retrieve URLs, as this client reaches us."""

    def __init__(self, scheme: str, host: str) -> None:
        self._base = f"{scheme}://{host}/studies/"

    def of(self, study: str, series: str, instance: str) -> str:
        """Of a study, or of a series or an instance of it."""
        text = self._base + study
        text += f"/series/{series}" if series else ""
        return text + (f"/instances/{instance}" if instance else "")


def _urls(request: Request) -> _Urls:
    host = request.headers.get("host", "")
    if not _HOST.fullmatch(host):
        raise HTTPException(400, "Host: is none")
    return _Urls(request.url.scheme, host)


def _query(request: Request, max_results: int) -> tuple[dict[str, str], int, int, bool]:
    """The matching keys by tag, limit, offset, and whether fuzzy matching was asked for."""
    parameters = request.query_params
    keys = {}
    for name, value in parameters.multi_items():
        if name in _NO_KEYS:
            continue
        tag = KEYWORDS.get(name, name.upper())
        if tag not in _TAGS or tag in keys:
            raise HTTPException(400, "query: a key is not supported, or twice; see docs/dicomweb.md")
        keys[tag] = value
    limit = _whole_number(parameters.get("limit", str(max_results)))
    offset = _whole_number(parameters.get("offset", "0"))
    is_fuzzy = parameters.get("fuzzymatching", "false").lower() == "true"
    return keys, min(max(limit, 1), max_results), offset, is_fuzzy


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 7) or int(text) > MAX_OFFSET:
        raise HTTPException(400, f"query: limit and offset are whole numbers, at most {MAX_OFFSET}")
    return int(text)


def _whole(request: Request, stored: Sequence[Stored]) -> Response:
    """Instances as they are stored."""
    accepted = _accepted(request)
    syntaxes = {
        each.parameters.get("transfer-syntax", "*")
        for each in accepted
        if each.name in _ANY or _is_dicom(each) or each.name == "multipart/*"
    }
    if not syntaxes:
        raise HTTPException(406, 'Accept: given is multipart/related; type="application/dicom"')
    files = [(each.path, _header(each)) for each in stored] if "*" not in syntaxes else []
    if any(header.transfer_syntax_uid not in syntaxes for _, header in files):
        raise HTTPException(
            406, "Accept: an instance is stored in another transfer syntax, none is converted"
        )
    names = {each.name for each in accepted}
    if len(stored) == 1 and "application/dicom" in names and "multipart/related" not in names:
        return StreamingResponse(_content(stored[0].path), media_type="application/dicom")
    boundary = new_boundary()
    return StreamingResponse(
        body_of((("application/dicom", _content(each.path)) for each in stored), boundary),
        media_type=f'multipart/related; type="application/dicom"; boundary={boundary}',
    )


def _metadata(request: Request, study: str, stored: Sequence[Stored]) -> Response:
    if not {each.name for each in _accepted(request)} & {*_ANY, DICOM_JSON, "application/json"}:
        raise HTTPException(406, f"Accept: given is {DICOM_JSON}")
    return StreamingResponse(_told_each(study, stored, _urls(request)), media_type=DICOM_JSON)


def _told_each(study: str, stored: Sequence[Stored], urls: _Urls) -> Iterator[str]:
    """A JSON array, instance by instance: a study's metadata is never whole in memory."""
    separator = "["
    for each in stored:
        try:
            found = metadata(each.path, scan_file(each.path)[0])
        except (InstanceError, OSError) as error:
            log.warning("web: metadata left out: %s", error)
            continue
        url = urls.of(study, each.series_instance_uid, each.sop_instance_uid)
        yield separator + json.dumps(found | {"00081190": element("UR", url)})
        separator = ","
    yield "]" if separator == "," else "[]"


def _frames(request: Request, stored: Stored, numbers: Sequence[int]) -> Response:
    header = _header(stored)
    if any(not 1 <= number <= header.number_of_frames for number in numbers):
        raise HTTPException(404, f"frames: has {header.number_of_frames}")
    kind = frames.STORED_MEDIA_TYPES.get(header.transfer_syntax_uid, "")
    wanted = [(each.parameters.get("type", each.name).lower(), each) for each in _accepted(request)]
    as_stored = kind and any(name == kind or _wants_stored(name, each) for name, each in wanted)
    try:
        if as_stored:
            parts = frames.stored_frames(stored.path, header, numbers)
        elif any(
            name in {*_ANY, frames.OCTET_STREAM, "multipart/related", "multipart/*"} for name, _ in wanted
        ):
            parts = frames.plain_frames(stored.path, header, numbers)
        else:
            raise HTTPException(406, f"Accept: given are {frames.OCTET_STREAM} {kind and 'and ' + kind}")
    except (InstanceError, OSError) as error:
        raise _failed(error) from error
    inner = kind if as_stored else frames.OCTET_STREAM
    content_type = f"{kind}; transfer-syntax={header.transfer_syntax_uid}" if as_stored else inner
    boundary = new_boundary()
    return StreamingResponse(
        body_of(((content_type, [part]) for part in parts), boundary),
        media_type=f'multipart/related; type="{inner}"; boundary={boundary}',
    )


def _wants_stored(name: str, accepted: MediaType) -> bool:
    """Whether `transfer-syntax=*` says that the frames may come as they are stored (PS3.18 §8.7.3.5.2)."""
    return name == frames.OCTET_STREAM and accepted.parameters.get("transfer-syntax") == "*"


def _rendered(request: Request, stored: Stored, number: int) -> Response:
    names = [each.name for each in _accepted(request)]
    kind = next((name for name in names if name in {"image/png", "image/jpeg"}), "")
    if not kind and set(names) & {"*/*", "image/*"}:
        kind = "image/png"  # Off-spec: JPEG is the default (PS3.18 §8.7.4); PNG loses nothing
    if not kind:
        raise HTTPException(406, "Accept: given are image/png and image/jpeg")
    header = _header(stored)
    if not 1 <= number <= header.number_of_frames:
        raise HTTPException(404, f"frames: has {header.number_of_frames}")
    window = _window(request.query_params.get("window", ""))
    try:
        return Response(frames.rendered(stored.path, header, number, kind, window), media_type=kind)
    except (InstanceError, OSError) as error:
        raise _failed(error) from error


def _window(text: str) -> frames.Window | None:
    """`window=center,width,linear` (PS3.18 §8.3.5.1.4)."""
    if not text:
        return None
    parts = text.split(",")
    try:
        center, width = float(parts[0]), float(parts[1])
    except (ValueError, IndexError):
        center, width = 0.0, 0.0
    if (
        len(parts) > 3
        or (len(parts) == 3 and parts[2] != "linear")
        or not 1 <= width < 1e9
        or abs(center) > 1e9
    ):
        raise HTTPException(400, "query: window must be CENTER,WIDTH,linear with a width of at least 1")
    return frames.Window(center, width)


def _accepted(request: Request) -> list[MediaType]:
    """The alternatives of the Accept header, in its order."""
    alternatives = split_quoted(request.headers.get("accept", "*/*"), ",")
    if len(alternatives) > MAX_ALTERNATIVES:
        raise HTTPException(400, f"Accept: {len(alternatives)} alternatives, allowed {MAX_ALTERNATIVES}")
    try:
        return [media_type(each) for each in alternatives if each.strip()]
    except MultipartError as error:
        raise HTTPException(400, "Accept: is no list of media types") from error


def _is_dicom(accepted: MediaType) -> bool:
    inner = accepted.parameters.get("type", "application/dicom").lower()
    return accepted.name == "application/dicom" or (
        accepted.name == "multipart/related" and inner == "application/dicom"
    )


def _header(stored: Stored) -> InstanceHeader:
    try:
        return scan_file(stored.path)[0]
    except (InstanceError, OSError) as error:
        raise _failed(error) from error


def _content(path: Path) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece


def _required(stored: Sequence[Stored]) -> Sequence[Stored]:
    present = [each for each in stored if each.path.exists()]
    if not present:
        raise HTTPException(404, "not here")
    return present


def _numbers(text: str) -> list[int]:
    parts = text.split(",")
    if len(parts) > frames.MAX_FRAMES_AT_ONCE or not all(
        part.isascii() and part.isdigit() and 1 <= len(part) <= 6 for part in parts
    ):
        raise HTTPException(400, f"frames: must be 1 to {frames.MAX_FRAMES_AT_ONCE} numbers with commas")
    return [int(part) for part in parts]


def _uid(text: str) -> str:
    if not is_valid(text):
        raise HTTPException(400, "path: not a UID (PS3.5 §9.1)")
    return text


def _failed(error: InstanceError | OSError) -> HTTPException:
    status = retrieve_http_status(error)
    log.warning("web: answered %d: %s", status, error)
    return HTTPException(status, "it cannot be given; see the log")


async def _told(_request: Request, error: Exception) -> Response:
    assert isinstance(error, AnyHttpError)
    return PlainTextResponse(f"{error.detail}\n", error.status_code)

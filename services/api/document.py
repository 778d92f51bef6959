"""deploy/openapi.json: what the gateway serves, for those who write programs that ask it.

Written from the routes and the types that travel:  python -m services.api.document > deploy/openapi.json
"""

from __future__ import annotations

import inspect
import json
import re
from typing import Any

import msgspec

from pipeline.types import Alert, Ranking
from services.api.bodies import CameraView, ErrorView, SearchBody, Waiting, WatchBody, WatchView
from services.api.gateway import ROUTES, Gateway, Served

_SCHEMAS = "#/components/schemas/"
_REFUSALS = {
    401: "no token, or one that is not known",
    403: "the client lacks the role",
    404: "not there, or not yours",
    408: "the body did not arrive in time",
    413: "the body is larger than 1 MB",
    415: "the body is not JSON",
    422: "bad input, in one sentence that names the field",
    429: "too many wait already: Retry-After says when to come again",
    503: "the broker is away or the query workers are behind: Retry-After says when to come again",
}
_ABOUT = (
    "Find people in CCTV: searches, watches and alerts. Times that end in _ns are nanoseconds since 1970 in UTC, more than a double holds"
    " exactly. A match is a hint for a human being, never an identification."
)
_EVENTS = (
    "`event: alert` with an Alert as data, `event: missed` with the number of messages that are no longer known, comments as heartbeats."
    " An id, such as alerts/0@12,1@5, holds the next offset of each partition of the topic."
)


def _query(name: str, schema: dict[str, Any], says: str, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "schema": schema, "description": says}


_SINCE = _query("since", {"type": "string", "format": "date-time"}, "Raised then or later, by the clock of the alert worker.")
_PURPOSE = _query("purpose", {"type": "string", "maxLength": 500}, "Why; it goes into the audit log.")
_LAST_EVENT = _query("Last-Event-ID", {"type": "string"}, "Go on after this event.", "header")

# handler -> body, parameters, status and type of the answers, other statuses
_FACTS: dict[Any, tuple[Any, list[dict[str, Any]], dict[int, tuple[str, Any]], tuple[int, ...]]] = {
    Gateway.post_search: (
        SearchBody,
        [],
        {200: ("the ranking", Ranking), 202: ("not there within deadline_s", Waiting)},
        (408, 413, 415, 422, 429, 503),
    ),
    Gateway.get_search: (None, [], {200: ("the ranking", Ranking), 202: ("not there yet", Waiting)}, (404, 422, 503)),
    Gateway.get_alerts: (
        None,
        [_SINCE, _query("limit", {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 1_000}, "Most alerts.")],
        {200: ("alerts, oldest first", list[Alert])},
        (422, 503),
    ),
    Gateway.stream_alerts: (None, [_SINCE, _LAST_EVENT], {200: (_EVENTS, "text/event-stream")}, (422, 429, 503)),
    Gateway.get_cameras: (None, [], {200: ("cameras, by name", list[CameraView])}, (503,)),
    Gateway.get_crop: (None, [_PURPOSE], {200: ("the picture", "image/jpeg")}, (404, 422, 503)),
    Gateway.get_watches: (None, [], {200: ("watches, oldest first", list[WatchView])}, (503,)),
    Gateway.post_watch: (WatchBody, [], {201: ("in force", WatchView)}, (408, 413, 415, 422, 429, 503)),
    Gateway.delete_watch: (None, [_PURPOSE], {204: ("out of force", None)}, (404, 503)),
    Gateway.get_live: (None, [], {200: ("the process answers", dict[str, bool])}, ()),
    Gateway.get_ready: (None, [], {200: ("ready", dict[str, Any]), 503: ("not ready", dict[str, Any])}, ()),
    Gateway.get_metrics: (None, [], {200: ("Prometheus text", "text/plain")}, ()),
}


def document() -> dict[str, Any]:
    """OpenAPI 3.1 of every route."""
    paths: dict[str, dict[str, Any]] = {}
    kinds: list[Any] = [ErrorView]
    for served in ROUTES:
        paths.setdefault(shown_path(served), {})[served.method.lower()] = _operation(served, kinds)
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_SCHEMAS + "{name}")
    for schema in schemas.values():
        schema.pop("title", None)
        if "description" in schema:
            schema["description"] = inspect.cleandoc(schema["description"])
    for kind in ("Alert", "Ranking"):  # what services/wire.py puts before the fields of all that travels
        schemas[kind]["properties"] = {"schema_version": {"type": "integer"}, "type": {"const": kind.lower()}} | schemas[kind]["properties"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Sightline",
            "version": "1",
            "description": _ABOUT,
        },
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def shown_path(served: Served) -> str:
    """The path as OpenAPI writes it: ``{key}``, and not ``{key:path}``."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", served.path)


def _operation(served: Served, kinds: list[Any]) -> dict[str, Any]:
    body, parameters, answers, refusals = _FACTS[served.handler]
    inside = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in re.findall(r"{(\w+)", served.path)]
    operation: dict[str, Any] = {
        "operationId": served.handler.__name__,
        "summary": inspect.getdoc(served.handler),
        "responses": {str(status): _response(says, kind, kinds) for status, (says, kind) in answers.items()},
    }
    if inside or parameters:
        operation["parameters"] = inside + parameters
    if body is not None:
        operation["requestBody"] = {"required": True, "content": _content(body, kinds)}
    if served.role:
        operation["description"] = f"Role: {served.role}."
        operation["security"] = [{"token": []}]
        refusals = (401, 403, *refusals)
    operation["responses"] |= {str(status): _response(_REFUSALS[status], ErrorView, kinds) for status in refusals}
    return operation


def _response(says: str, kind: Any, kinds: list[Any]) -> dict[str, Any]:
    return {"description": says} | ({"content": _content(kind, kinds)} if kind is not None else {})


def _content(kind: Any, kinds: list[Any]) -> dict[str, Any]:
    if isinstance(kind, str):
        return {kind: {"schema": {"type": "string"}}}
    (schema,), _ = msgspec.json.schema_components([kind], ref_template=_SCHEMAS + "{name}")
    kinds.append(kind)
    return {"application/json": {"schema": schema}}


def as_json() -> str:
    """The text of deploy/openapi.json."""
    return json.dumps(document(), indent=2) + "\n"


if __name__ == "__main__":
    print(as_json(), end="")

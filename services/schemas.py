"""The wire format, published: for programs in other languages that read and write our topics.

A JSON Schema of every message that travels (deploy/schemas/) and an AsyncAPI document of every topic (deploy/asyncapi.json), both made from
the types and topics that the workers use. Write them into the repository after a change; a test keeps them equal to the code:

    python -m services.schemas
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import msgspec
import numpy as np

from pipeline import types
from pipeline.archive import JobProgress
from pipeline.ports import TopicSpec
from pipeline.types import MODALITIES, Decision, IdentityEvent, Link, Probe, Query
from pipeline.types.identity import LARGEST_PROBABILITY
from services import topics, wire
from services.worker import ERROR_HEADER_CHARACTERS

FOLDER = Path(__file__).parents[1]  # the repository, whose deploy/ the files go to
SCHEMAS = "deploy/schemas"
ASYNCAPI = "deploy/asyncapi.json"
AUDIT_RECORD = "audit-record"  # no type of its own: services/audit.py writes it

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_IN_MSGPACK = (
    " Travels as msgpack: the same maps, lists and fields, and a `bin` of the bytes themselves wherever this schema says"
    " a string with contentEncoding base64."
)
_NANOSECONDS, _SECONDS = "nanoseconds since 1970 in UTC", "in seconds"

# What the docstrings of the types do not say of a field, or say for people who write Python. For all types, or for one of them.
_EVERYWHERE = {
    "camera_id": "The camera.",
    "crops": "Pictures of the person in the media store, best first.",
    "issued_by": "Who asks.",
    "job_id": "The footage: derived from the file and how it is cut.",
    "purpose": "Why; it belongs into the audit log before anything is looked up.",
    "query_id": "Chosen by whoever asks, unique; the key of query and ranking.",
    "shard": "Which part of the footage, from 0.",
    "similarities": "Modality -> cosine, -1..1, bigger is better.",
    "tracklet_id": "The tracklet: one person's run in one camera.",
    "watch_id": "The watch.",
    "why": "Short phrases for the operator.",
}
_OF_TYPE: dict[str, dict[str, str]] = {
    "Alert": {
        "alert_id": "Derived from the watch and the tracklet: a replay raises the same alert.",
        "revision": "Of the tracklet, the one that crossed the threshold.",
        "score": "Calibrated 0..1.",
        "threshold": "That of the watch, 0..1.",
    },
    "ArchiveJob": {
        "camera": "The camera that the footage stands for; its uri is the file.",
        "from_s": "Where the part begins, seconds into the file.",
        "to_s": "Where the part ends, seconds into the file; 0 = the end of the file.",
    },
    "Attribute": {
        "name": "The property, such as upper colour.",
        "value": "What it is, such as red.",
        "score": "0..1.",
    },
    "Camera": {
        "camera_id": "Its name, and the key.",
        "is_live": "Whether frames are lost when nobody reads them.",
        "options": "For the decoder, such as transport.",
        "uri": "File, folder of pictures, rtsp://, http:// or webcam device; may hold a password.",
    },
    "CameraCoverage": {
        "from_ns": "Start of the stretch; a later account of the same camera and start replaces this one.",
        "to_ns": "End of the stretch.",
        "seen": "Frames that arrived = sampled + dropped + corrupt + those that the sampling rate left out.",
        "gaps": "When the camera was not seen.",
    },
    "Coverage": {
        "cameras": "The cameras and hours searched.",
        "spaces": "The embedding spaces searched.",
        "tracklets": "How many tracklets were looked at.",
        "notes": "What is missing, and why.",
    },
    "CropReference": {
        "key": "Of the picture in the media store.",
        "captured_at_ns": "When it was taken.",
        "box": "x1, y1, x2, y2 in pixels of the original frame; right and bottom exclusive.",
        "quality": "0..1, best shots have most.",
    },
    "Decision": {
        "first": "One tracklet.",
        "second": "The other; in whatever order, the two make one pair.",
        "verdict": "same, different, or withdrawn when an earlier word no longer holds.",
        "decided_by": "Who.",
        "decided_at_ns": "When.",
    },
    "Embedding": {
        "modality": "body, text, face or voice.",
        "space": "model@version: vectors of different spaces are never compared.",
        "vector": "The D values, of length 1. Tracklets carry <f2, queries and watches <f4.",
    },
    "Erasure": {"tracklet_id": "The tracklet that must be gone everywhere, and the key.", "erased_at_ns": "When."},
    "Filter": {
        "from_ns": "Tracklets that overlap from_ns..to_ns pass.",
        "to_ns": "Inclusive.",
        "cameras": "Ids; none: all.",
        "zones": "Names; none: all.",
    },
    "Gap": {"from_ns": "From when.", "to_ns": "Until when, not before from_ns.", "reason": "Why."},
    "IdentityEvent": {
        "kind": "made (of two tracklets), grown, merged (other came into it and is no more) or split (some left for other).",
        "identity_id": "The hypothesis, never a civil name; the key.",
        "tracklet_ids": "Those that came, or left.",
        "at_ns": "When.",
        "other": "The identity that came into it, or that some left it for.",
        "link": "The evidence that did it; none for a split.",
    },
    "JobProgress": {
        "state": "queued, started, done or failed.",
        "tracklets": "Revisions given so far.",
        "error": "Why it failed.",
        "worker": "Who works on it.",
    },
    "Link": {
        "first": "The tracklet that was there.",
        "second": "The tracklet that came to it.",
        "probability": "That they show one person, calibrated, 0..0.999: nothing is certain.",
        "log_odds": "Modality -> what it says for one person, log-odds.",
        "gap_s": "Between the two tracklets.",
        "made_by": "model, or the operator who decided.",
        "made_at_ns": "When.",
        "verdict": "probable of the model, or the operator's same or different.",
    },
    "Match": {
        "rank": "From 1, the best.",
        "started_at_ns": "When the person came.",
        "ended_at_ns": "When the person went.",
        "score": "Calibrated 0..1.",
        "path": "The steps that led here, where the probe alone would not have.",
        "identity_id": "The identity it was linked into; empty: none.",
    },
    "Probe": {
        "kind": "text, speech (words from a recogniser), portrait, look-alike, tracklet or voice.",
        "embeddings": "Vectors, for portrait, look-alike and voice.",
        "tracklet_id": "A tracklet that shows the person, for tracklet.",
        "weight": "Beside the other probes.",
    },
    "Query": {
        "probes": "What is known about the person.",
        "window": "Where and when to look; nothing: everywhere and always.",
        "top_k": "Most matches.",
        "steps": "A face, a voice or a tracklet leads on from match to match at most so often; 0: only what the probes find themselves.",
        "deadline_s": "Seconds from the message's timestamp; what is not searched by then is left out and the ranking says so.",
    },
    "Ranking": {
        "matches": "Best first.",
        "coverage": "What the answer rests on.",
        "elapsed_s": "Seconds from question to answer.",
        "is_partial": "Whether the deadline passed, a part of the index did not answer, or the query was refused (see coverage.notes).",
        "sightings": "The same matches put together by person, best first.",
    },
    "Reembedding": {
        "tracklet_id": "The tracklet; its camera is not needed to find it.",
        "revision": "Of the tracklet; it holds for that one alone.",
        "space": "The model that looked at its pictures, model@version.",
        "embeddings": "Its vectors, at most one for each modality; none: it saw nothing to describe.",
    },
    "Sighting": {
        "identity_id": "The identity; empty: nothing was linked.",
        "score": "Of the best match, calibrated 0..1.",
        "trajectory": "The way over the cameras, by time.",
    },
    "Step": {
        "from_tracklet": "Where the step began; empty: the probe.",
        "modality": "What led on: face, voice or body.",
        "similarity": "Its cosine, -1..1.",
        "gap_s": "Time between the two in seconds; 0: they overlap, or the step begins at the probe.",
        "probability": "That both ends show one person, 0..1.",
    },
    "Tracklet": {
        "revision": "Rises; the highest replaces the others.",
        "started_at_ns": "When the person came.",
        "ended_at_ns": "When the person was last seen, not before started_at_ns.",
        "at_ns": "When each of the T boxes was, rising, nanoseconds since 1970 in UTC.",
        "xyxy": "The T boxes: x1, y1, x2, y2 in pixels of the original frame; right and bottom exclusive.",
        "confidence": "Of each of the T boxes, 0..1; 0 where the box was bridged, not seen.",
        "attributes": "Plain visible properties, most certain first.",
        "embeddings": "At most one for each modality and space.",
        "is_closed": "Whether the run has ended.",
        "model_versions": "The models that made it.",
        "zones": "The camera's zones that the feet touched.",
    },
    "Stay": {
        "camera_id": "The camera.",
        "from_ns": "When the stay began.",
        "to_ns": "When it ended, not before from_ns.",
        "tracklet_ids": "Its tracklets, by time.",
    },
    "Watch": {
        "watch_id": "Chosen by whoever sets it, unique; the key.",
        "probes": "What is known about the person.",
        "cameras": "Ids; none: all.",
        "zones": "Names; none: all.",
        "created_at_ns": "When.",
        "expires_at_ns": "Until when it raises alerts.",
    },
}

_FRACTION = {"minimum": 0, "maximum": 1}
_NOT_EMPTY = {"minLength": 1}
_LIMITS: dict[tuple[str, str], dict[str, Any]] = {  # what the types refuse
    ("Attribute", "score"): _FRACTION,
    ("Camera", "camera_id"): _NOT_EMPTY,
    ("Camera", "sampling_hz"): {"minimum": 0},
    ("Decision", "first"): _NOT_EMPTY,
    ("Decision", "second"): _NOT_EMPTY,
    ("Decision", "verdict"): {"enum": list(Decision.VERDICTS)},
    ("Embedding", "modality"): {"enum": list(MODALITIES)},
    ("Embedding", "quality"): _FRACTION,
    ("Embedding", "space"): {"pattern": "@"},
    ("Erasure", "tracklet_id"): _NOT_EMPTY,
    ("IdentityEvent", "kind"): {"enum": list(IdentityEvent.KINDS)},
    ("JobProgress", "state"): {"enum": list(JobProgress.STATES)},
    ("Link", "first"): _NOT_EMPTY,
    ("Link", "second"): _NOT_EMPTY,
    ("Link", "probability"): {"minimum": 0, "maximum": LARGEST_PROBABILITY},
    ("Link", "verdict"): {"enum": list(Link.VERDICTS)},
    ("Probe", "kind"): {"enum": list(Probe.KINDS)},
    ("Probe", "weight"): {"exclusiveMinimum": 0},
    ("Query", "probes"): {"minItems": 1},
    ("Query", "steps"): {"minimum": 0, "maximum": Query.MOST_STEPS},
    ("Query", "top_k"): {"minimum": 1},
    ("Reembedding", "revision"): {"minimum": 1},
    ("Reembedding", "space"): {"pattern": "@"},
    ("Reembedding", "tracklet_id"): _NOT_EMPTY,
    ("Sighting", "score"): _FRACTION,
    ("Step", "probability"): _FRACTION,
    ("Tracklet", "revision"): {"minimum": 1},
    ("Watch", "probes"): {"minItems": 1},
    ("Watch", "threshold"): _FRACTION,
}
_PROBE_NEEDS: tuple[tuple[tuple[str, ...], str, dict[str, Any]], ...] = (  # kinds, field, what it must hold
    (("text", "speech"), "text", {"pattern": r"\S"}),
    (("portrait", "look-alike", "voice"), "embeddings", {"minItems": 1}),
    (("tracklet",), "tracklet_id", _NOT_EMPTY),
)
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_SHAPES: dict[tuple[str, str], tuple[int | None, ...]] = {
    ("Embedding", "vector"): (None,),
    ("Tracklet", "at_ns"): (None,),
    ("Tracklet", "xyxy"): (None, 4),
    ("Tracklet", "confidence"): (None,),
}


# ---------------------------------------------------------------------------------------- JSON Schema


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """JSON Schema, draft 2020-12, of one type that travels (see services/wire.py)."""
    name = wire.NAMES[kind]
    _, parts = msgspec.json.schema_components([kind], schema_hook=_array_comes_here, ref_template="#/$defs/{name}")
    for part, schema in parts.items():
        _complete(schema, _types()[part])
    body = parts.pop(kind.__name__)
    head = {
        "schema_version": {
            "type": "integer",
            "minimum": 1,
            "maximum": wire.SCHEMA_VERSION,
            "description": "The version of this format. Fields may be added without raising it: skip those that you do not know.",
        },
        "type": {"const": name, "description": "What this message is."},
    }
    about = body["description"] + (_IN_MSGPACK if kind in wire.IN_MSGPACK else "")
    schema = {
        "$schema": _DIALECT,
        "title": name,
        "description": about,
        "type": "object",
        "properties": head | body["properties"],
        "required": [*head, *body["required"]],
    }
    return schema | ({"$defs": dict(sorted(parts.items()))} if parts else {})


def audit_schema() -> dict[str, Any]:
    """JSON Schema of what services/audit.py appends."""
    said = {
        "at_ns": ("integer", f"When, {_NANOSECONDS}."),
        "action": (
            "string",
            "What: search, watch check, watch add, watch remove, crop, erase, expire, reembed, identity show, identity cut,"
            " identity confirm or identity withdraw.",
        ),
        "subject": (
            "string",
            "Of what: the id of the query, watch, tracklet, pair of tracklets or identity, the key of the crop, or the space; the key.",
        ),
        "issued_by": ("string", "Who."),
        "purpose": ("string", "Why."),
    }
    return {
        "$schema": _DIALECT,
        "title": AUDIT_RECORD,
        "description": "Who looked for whom, and why. It is durable before the action happens. Words, pictures and vectors are not in it.",
        "type": "object",
        "properties": {
            "schema_version": {"type": "integer", "minimum": 1, "maximum": 1, "description": "The version of this record."},
            **{field: {"type": kind, "description": text} for field, (kind, text) in said.items()},
            "probes": {"type": "array", "items": {"enum": list(Probe.KINDS)}, "description": "The kinds of the probes."},
            "cameras": {"type": "array", "items": {"type": "string"}, "description": "Ids of the cameras that were asked; none: all."},
        },
        "required": ["schema_version", *said],
    }


def _types() -> dict[str, type[Any]]:
    found = {name: getattr(types, name) for name in types.__all__} | {JobProgress.__name__: JobProgress}
    return {name: kind for name, kind in found.items() if isinstance(kind, type)}


def _array_comes_here(kind: Any) -> dict[str, Any]:
    if kind is not np.ndarray:
        raise NotImplementedError(f"no wire form for {kind}")
    return {"type": "object"}  # _complete knows its dtype and shape


def _complete(schema: dict[str, Any], kind: type[Any]) -> None:
    """Give the schema of one type what msgspec cannot know: descriptions, limits and the form of arrays."""
    document = inspect.getdoc(kind) or ""
    schema["description"] = " ".join(document.split("\n\n")[0].split())
    said = _said_of_fields(document, list(schema["properties"])) | _EVERYWHERE | _OF_TYPE.get(kind.__name__, {})
    hints = get_type_hints(kind)
    for field in fields(kind):
        shown = _same_items(schema["properties"][field.name])
        place = kind.__name__, field.name
        if place in _SHAPES:
            shown = _array(np.dtype(get_args(get_args(hints[field.name])[1])[0]), _SHAPES[place])
        if field.default_factory is not MISSING:
            shown["default"] = msgspec.to_builtins(field.default_factory())
        if shown.get("type") == "integer" and field.name.endswith("_ns"):
            shown["format"] = "int64"
        shown["description"] = _with_unit(field.name, said[field.name])
        schema["properties"][field.name] = shown | _LIMITS.get(place, {})
    if kind is Probe:
        schema["allOf"] = [
            {"if": {"properties": {"kind": {"enum": list(kinds)}}}, "then": {"properties": {field: holds}, "required": [field]}}
            for kinds, field, holds in _PROBE_NEEDS
        ]


def _said_of_fields(document: str, names: Sequence[str]) -> dict[str, str]:
    """What a docstring says in the form ``field: text; field: text``."""
    text = " ".join(document.split())
    starts = re.compile(rf"(?:^|(?<=; )|(?<=\. ))({'|'.join(names)}): ")
    found = list(starts.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    said = {}
    for match, end in zip(found, ends, strict=False):
        first = re.split(r"; |\. |\.$", text[match.end() : end])[0]
        said[match[1]] = first[0].upper() + first[1:] + "."
    return said


def _with_unit(name: str, text: str) -> str:
    unit = _NANOSECONDS if name.endswith("_ns") else _SECONDS if name.endswith("_s") else ""
    if not unit or unit in text or "econds" in text:
        return text
    return f"{text.removesuffix('.')}; {unit}."


def _same_items(schema: dict[str, Any]) -> dict[str, Any]:
    """Tuples of one type as lists of so many: what older readers of JSON Schema understand too."""
    if "prefixItems" in schema:
        first, *others = schema["prefixItems"]
        assert all(other == first for other in others), f"a tuple that travels must hold one type, got {schema}"
        return {"type": "array", "items": first, "minItems": schema["minItems"], "maxItems": schema["maxItems"]}
    return {name: _same_items(inner) if isinstance(inner, dict) else inner for name, inner in schema.items()}


def _array(dtype: np.dtype[Any], shape: tuple[int | None, ...]) -> dict[str, Any]:
    """The map of dtype, shape and data that an array travels as."""
    lengths: dict[str, Any] = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0},
        "minItems": len(shape),
        "maxItems": len(shape),
        "description": "The length of each axis.",
    }
    if any(length is not None for length in shape):
        lengths["prefixItems"] = [{"type": "integer", "minimum": 0} if length is None else {"const": length} for length in shape]
    return {
        "type": "object",
        "properties": {
            "dtype": {
                "enum": ["<i8"] if dtype.kind == "i" else ["<f4", "<f2"],
                "description": "What one value is: <i8 int64, <f4 float32, <f2 float16.",
            },
            "shape": lengths,
            "data": {
                "type": "string",
                "contentEncoding": "base64",
                "pattern": _BASE64,
                "description": "The values row by row, little-endian; base64 in JSON, a bin of the bytes in msgpack.",
            },
        },
        "required": ["dtype", "shape", "data"],
    }


# ------------------------------------------------------------------------------------------- AsyncAPI


class _Program(NamedTuple):
    """Who takes part.

    joins: topics that its consumer group shares; reads: all of a topic, outside of any group; puts_aside: whether bad input of ``joins``
    becomes dead letters; mends: dead letters that it shows and puts back.
    """

    name: str
    says: str
    joins: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    sends: tuple[str, ...] = ()
    puts_aside: bool = True
    mends: tuple[str, ...] = ()


_DEAD_LETTERS = tuple(spec.name for spec in topics.TOPICS if spec.name.endswith(topics.DEAD_LETTER_SUFFIX))
_LIVE = tuple(spec.name for spec in topics.TOPICS if spec.name not in _DEAD_LETTERS)
_PROGRAMS = (
    _Program(
        "ingest",
        "Finds and follows the people of its share of the cameras.",
        joins=(topics.CAMERAS,),
        sends=(topics.TRACKLETS, topics.COVERAGE),
        puts_aside=False,  # a camera that does not decode is logged and left out
    ),
    _Program(
        "index",
        "Keeps the identity index.",
        joins=(topics.TRACKLETS, topics.COVERAGE, topics.ERASURES, topics.REEMBEDDINGS, topics.DECISIONS),
        sends=(topics.AUDIT, topics.IDENTITIES, topics.DECISIONS),
    ),
    _Program("query", "Answers queries from the index.", joins=(topics.QUERIES,), sends=(topics.RANKINGS,)),
    _Program(
        "alert",
        "Compares tracklets with the watches in force.",
        joins=(topics.TRACKLETS,),
        reads=(topics.WATCHES, topics.ALERTS),
        sends=(topics.ALERTS,),
    ),
    _Program(
        "archive",
        "Works off recorded footage.",
        joins=(topics.ARCHIVE_JOBS,),
        sends=(topics.TRACKLETS, topics.COVERAGE, topics.ARCHIVE_PROGRESS),
    ),
    _Program(
        "api",
        "Serves HTTP (deploy/openapi.json).",
        reads=(
            topics.QUERIES,
            topics.RANKINGS,
            topics.ALERTS,
            topics.ERASURES,
            topics.CAMERAS,
            topics.WATCHES,
            topics.COVERAGE,
        ),
        sends=(topics.AUDIT, topics.QUERIES, topics.WATCHES),
    ),
    _Program(
        "cli",
        "The command line.",
        reads=(topics.CAMERAS, topics.WATCHES, topics.ALERTS, topics.ARCHIVE_PROGRESS),
        sends=(
            topics.CAMERAS,
            topics.WATCHES,
            topics.ARCHIVE_JOBS,
            topics.ARCHIVE_PROGRESS,
            topics.ERASURES,
            topics.REEMBEDDINGS,
            topics.DECISIONS,
            topics.AUDIT,
        ),
        mends=_DEAD_LETTERS,
    ),
)

_KEYS: dict[str, str] = {  # archive jobs have none
    topics.CAMERAS: "camera_id",
    topics.TRACKLETS: "camera_id",
    topics.COVERAGE: "camera_id",
    topics.QUERIES: "query_id",
    topics.RANKINGS: "query_id, that of the query",
    topics.WATCHES: "watch_id",
    topics.ALERTS: "camera_id",
    topics.ARCHIVE_PROGRESS: "job_id/shard",
    topics.ERASURES: "tracklet_id",
    topics.DECISIONS: "both tracklet ids in order of the alphabet, + between them",
    topics.IDENTITIES: "identity_id",
    topics.REEMBEDDINGS: "tracklet_id",
    topics.AUDIT: "the subject",
}
_CARRIES: dict[str, str] = {
    topics.CAMERAS: "The cameras that ingest workers share.",
    topics.TRACKLETS: "Revisions of people's runs, with vectors and references to crops.",
    topics.COVERAGE: "What each camera saw and did not see.",
    topics.QUERIES: "Searches.",
    topics.RANKINGS: "Their answers: one for each query.",
    topics.WATCHES: "Standing searches.",
    topics.ALERTS: "Hits of watches, for a human to decide.",
    topics.ARCHIVE_JOBS: "Recorded footage to be worked off.",
    topics.ARCHIVE_PROGRESS: "Where each of these jobs stands.",
    topics.ERASURES: "Tracklets that must be gone everywhere.",
    topics.DECISIONS: "Operators' words on who is who.",
    topics.IDENTITIES: "How identities came to be, grew, merged and split.",
    topics.REEMBEDDINGS: "What another model makes of stored tracklets, for an upgrade while the old one answers.",
    topics.AUDIT: "Who looked for whom, and why.",
}
_HEADERS = {  # of a dead letter, as services/worker.py writes them
    "stage": "The worker that could not work the message.",
    "topic": "Where it came from.",
    "partition": "Where it came from, a decimal number.",
    "offset": "Where it came from, a decimal number.",
    "error": "Why: the kind of the error and its text.",
    "schema_version": "The version that the message claims, a decimal number; empty where none can be read.",
}
_ABOUT = (
    "Find people in CCTV: what travels between the workers, and how a program of your own joins in. Messages are UTF-8 JSON but for"
    " tracklets and coverage, which are msgpack. Each is a map whose first entry is schema_version and whose second is type; skip"
    " fields that you do not know, and refuse a schema_version above the one you know. Times that end in _ns are nanoseconds since"
    " 1970 in UTC, more than a double holds exactly; boxes are pixels of the original frame. Keys are UTF-8 text; choose the partition"
    " as Kafka's Java client does (murmur2 of the key; librdkafka: partitioner=murmur2_random). Delivery is at least once and ids are"
    " derived: the same message twice means the same. Whoever sends a query or a watch first puts who and why onto the audit topic. A"
    " match is a hint for a human being, never an identification."
)
_TRACEPARENT = "Optional: the trace that the message belongs to, as W3C Trace Context writes it; an answer carries it on."
_KAFKA_BINDING = "0.5.0"


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3.0 of every topic: what travels on it under which key, how long it is kept, and who sends and receives it."""
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Sightline", "version": str(wire.SCHEMA_VERSION), "description": _ABOUT},
        "defaultContentType": "application/json",
        "servers": {
            "kafka": {"host": "localhost:9092", "protocol": "kafka", "description": "Apache Kafka; the setting broker.bootstrap_servers."}
        },
        "channels": {spec.name: _channel(spec) for spec in topics.TOPICS},
        "operations": dict(_operations()),
        "components": {
            "messages": {name: message for topic in _LIVE for name, message in _messages(topic).items()} | _dead_letter(),
            "messageTraits": {
                "traced": {
                    "headers": {"type": "object", "properties": {"traceparent": {"type": "string", "description": _TRACEPARENT}}},
                }
            },
        },
    }


def _messages(topic: str) -> dict[str, dict[str, Any]]:
    """The messages of a live topic by name."""
    kind = topics.value_type(topic)
    name = AUDIT_RECORD if kind is None else wire.NAMES[kind]
    is_packed = kind in wire.IN_MSGPACK
    message: dict[str, Any] = {
        "name": name,
        "contentType": "application/vnd.msgpack" if is_packed else "application/json",
        "payload": {"$ref": f"./schemas/{name}.json"},
        "traits": [{"$ref": "#/components/messageTraits/traced"}],
    }
    if topic in (topics.QUERIES, topics.RANKINGS):
        message["correlationId"] = {"location": "$message.payload#/query_id"}
    if topic not in _KEYS:
        return {name: message}
    bindings = _kafka(key={"type": "string", "description": _KEYS[topic]})
    messages = {name: message | {"bindings": bindings}}
    if _spec(topic).cleanup == "compact":
        removal = {"name": f"{name}-removed", "summary": "A tombstone: the key and no value.", "payload": {"type": "null"}}
        messages[f"{name}-removed"] = removal | {"bindings": bindings}
    return messages


def _dead_letter() -> dict[str, dict[str, Any]]:
    headers: dict[str, dict[str, Any]] = {name: {"type": "string", "description": text} for name, text in _HEADERS.items()}
    headers["error"]["maxLength"] = ERROR_HEADER_CHARACTERS
    message = {
        "name": "dead-letter",
        "summary": "A message that can never work: its bytes and its key as they came, damaged maybe, and why in the headers.",
        "contentType": "application/octet-stream",
        "headers": {"type": "object", "properties": headers, "required": list(headers)},
        "bindings": _kafka(key={"type": "string", "description": "that of the original"}),
    }
    return {"dead-letter": message}


def _spec(topic: str) -> TopicSpec:
    return next(spec for spec in topics.TOPICS if spec.name == topic)


def _kafka(**said: Any) -> dict[str, Any]:
    return {"kafka": said | {"bindingVersion": _KAFKA_BINDING}}


def _channel(spec: TopicSpec) -> dict[str, Any]:
    original = spec.name.removesuffix(topics.DEAD_LETTER_SUFFIX)
    is_live = spec.name in _LIVE
    names = list(_messages(spec.name)) if is_live else ["dead-letter"]
    key = f"Key: {_KEYS[spec.name]}." if spec.name in _KEYS else "No key: partitions take turns."
    return {
        "address": spec.name,
        "summary": _CARRIES[spec.name] if is_live else f"Messages of {original} that can never work.",
        "description": key if is_live else "Key: that of the original.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in names},
        "bindings": _kafka(
            topic=spec.name,
            partitions=spec.partitions,
            topicConfiguration={
                "cleanup.policy": [spec.cleanup],
                "retention.ms": spec.retention_ms,
                "retention.bytes": spec.retention_bytes,
                "max.message.bytes": spec.max_message_bytes,
            },
        ),
    }


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    """Who sends and receives what, by name."""
    for program in _PROGRAMS:
        for topic in program.joins:
            grouped = {"bindings": _kafka(groupId={"type": "string", "const": program.name})}
            yield _operation(program, "receive", topic, "Shared with the others of its consumer group.", grouped)
        for topic in program.reads:
            yield _operation(program, "receive", topic, "All of it, outside of any consumer group.")
        for topic in program.sends:
            yield _operation(program, "send", topic)
        if program.puts_aside:
            for topic in program.joins:
                yield _operation(program, "send", topics.dead_letter_topic(topic), "What can never work, with the reason.")
        for topic in program.mends:
            yield _operation(program, "receive", topic, "Shown, and put back where it came from once the reason is mended.")


def _operation(
    program: _Program, action: str, topic: str, says: str = "", more: Mapping[str, Any] | None = None
) -> tuple[str, dict[str, Any]]:
    operation = {
        "action": action,
        "channel": {"$ref": f"#/channels/{topic}"},
        "summary": says or _CARRIES[topic],
        "tags": [{"name": program.name, "description": program.says}],
        **(more or {}),
    }
    return f"{program.name}-{action}s-{topic}", operation


# ----------------------------------------------------------------------------------------------- files


def as_files() -> Mapping[str, str]:
    """The published files: path in the repository -> text."""
    documents = {f"{SCHEMAS}/{name}.json": json_schema(kind) for kind, name in wire.NAMES.items()}
    documents[f"{SCHEMAS}/{AUDIT_RECORD}.json"] = audit_schema()
    documents[ASYNCAPI] = asyncapi()
    return {path: json.dumps(document, indent=2, ensure_ascii=False) + "\n" for path, document in documents.items()}


def main() -> None:
    """Write the published files into the repository."""
    for path, text in as_files().items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_text(text, "utf-8")


if __name__ == "__main__":
    main()

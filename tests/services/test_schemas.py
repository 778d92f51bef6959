"""The published schemas say what travels: no less than the writer writes, no more than the reader reads."""

from __future__ import annotations

import ast
import copy
import json
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from pipeline.errors import SchemaError
from pipeline.ports import Message
from services import audit, dead_letters, schemas, topics, wire
from services.adapters.sqlite_broker import SqliteBroker
from services.reading import until_end
from tests.services.test_wire import VALUES
from tests.services.test_wire_golden import VALUES as GOLDEN_VALUES

ROOT = Path(__file__).parents[2]
KINDS = {name: kind for kind, name in wire.NAMES.items()}
SAMPLES = [*VALUES, *GOLDEN_VALUES.values()]
MODULES = {  # whose imports of topics an AsyncAPI program's operations must equal
    "ingest": ("ingest.py", "cameras.py", "sinks.py"),
    "index": ("index.py", "linking.py"),
    "query": ("query.py",),
    "alert": ("alert.py",),
    "archive": ("archive.py",),
    "api": tuple(f"api/{path.name}" for path in (ROOT / "services" / "api").glob("*.py")),
}
OPPOSITES: tuple[Any, ...] = (None, True, -1, 2, 1.5, "", "x", [], {}, [{}])


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads((ROOT / "deploy" / "schemas" / f"{name}.json").read_text("utf-8")))


def as_json(data: bytes) -> Any:
    """What a message says, its bins in base64 as the schemas describe them."""
    if data.startswith(b"{"):
        return json.loads(data)
    return msgspec.to_builtins(msgspec.msgpack.decode(data))  # bytes become base64


def as_message(kind: type[Any], document: Any) -> bytes:
    return msgspec.msgpack.encode(document) if kind in wire.IN_MSGPACK else msgspec.json.encode(document)


def name_of(value: Any) -> str:
    return wire.NAMES[type(value)]


# -------------------------------------------------------------------------------------------- the files


def test_the_files_are_what_the_code_makes() -> None:
    files = schemas.as_files()
    there = [*(ROOT / "deploy" / "schemas").iterdir(), ROOT / "deploy" / "asyncapi.json"]
    assert {str(path.relative_to(ROOT)) for path in there} == set(files)
    assert {path: (ROOT / path).read_text("utf-8") for path in files} == dict(files), "run: python -m services.schemas"


def test_every_travelling_type_has_a_schema_that_older_tools_can_read_too() -> None:
    for name in wire.NAMES.values():
        schema = json.loads((ROOT / "deploy" / "schemas" / f"{name}.json").read_text("utf-8"))
        Draft202012Validator.check_schema(schema)
        Draft7Validator.check_schema(schema)
        assert list(schema["properties"])[:2] == schema["required"][:2] == ["schema_version", "type"]


def test_every_field_is_described_with_its_unit() -> None:
    described = {}
    for path, text in schemas.as_files().items():
        if path.startswith(schemas.SCHEMAS):
            for place, schema in properties(json.loads(text), path):
                described[place] = schema["description"]
    assert len(described) > 150
    assert all(text[0] != " " and text.endswith(".") for text in described.values())
    timed = {place: text for place, text in described.items() if place.endswith("_ns")}
    assert timed
    assert all("nanoseconds since 1970 in UTC" in text for text in timed.values())
    assert all("econds" in text for place, text in described.items() if place.endswith("_s"))


def properties(schema: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(schema, dict):
        for name, inner in schema.get("properties", {}).items():
            yield f"{place}/{name}", inner
            yield from properties(inner, f"{place}/{name}")
        for name, inner in schema.get("$defs", {}).items():
            yield from properties(inner, f"{place}#{name}")


# ------------------------------------------------------------------------------------------ the messages


@pytest.mark.parametrize("draft", [Draft202012Validator, Draft7Validator])
@pytest.mark.parametrize("value", SAMPLES, ids=name_of)
def test_what_is_written_is_what_the_schema_says(value: Any, draft: Any) -> None:
    document = as_json(wire.encode(value))
    draft(validator(name_of(value)).schema).validate(document)
    published = set(validator(name_of(value)).schema["properties"])
    assert set(document) == published, "a field that is written must be published"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("alert", {"type": "watch"}),
        ("alert", {"schema_version": wire.SCHEMA_VERSION + 1}),
        ("alert", {"score": "high"}),
        ("alert", {"crops": [{"key": "k", "captured_at_ns": 1, "box": [1, 2, 3], "quality": 1}]}),
        ("archive-job", {"camera": {"uri": "clip.mp4"}}),
        ("camera", {"zones": {"gate": [[0, 1, 2]]}}),
        ("coverage", {"gaps": [{"from_ns": 1.5, "to_ns": 2, "reason": "x"}]}),
        ("erasure", {"tracklet_id": ""}),
        ("job-progress", {"state": "lost"}),
        ("query", {"probes": []}),
        ("query", {"top_k": 0}),
        ("query", {"probes": [{"kind": "text", "text": " "}]}),
        ("query", {"probes": [{"kind": "portrait"}]}),
        ("query", {"probes": [{"kind": "tracklet", "text": "red"}]}),
        ("ranking", {"matches": [{"rank": 1}]}),
        ("tracklet", {"revision": 0}),
        ("tracklet", {"at_ns": {"dtype": ">i8", "shape": [0], "data": ""}}),
        ("tracklet", {"xyxy": {"dtype": "<f4", "shape": [1, 2], "data": "AAAAAAAAAAA="}}),
        ("watch", {"threshold": 1.5}),
    ],
)
def test_a_wrong_message_is_refused_by_schema_and_reader(name: str, changes: dict[str, Any]) -> None:
    document = as_json(wire.encode(GOLDEN_VALUES[name])) | changes
    assert not validator(name).is_valid(document)
    with pytest.raises(SchemaError):
        wire.decode(KINDS[name], as_message(KINDS[name], document))


@pytest.mark.parametrize("value", GOLDEN_VALUES.values(), ids=name_of)
def test_what_the_schema_admits_can_be_read_and_what_it_refuses_cannot(value: Any) -> None:
    """Every field of a message left out, and put in other forms."""
    name, kind = name_of(value), type(value)
    schema, document = validator(name), as_json(wire.encode(value))
    differing, refused = [], 0
    for place, changed in changes_of(document):
        is_admitted = schema.is_valid(changed)
        try:
            wire.decode(kind, as_message(kind, changed))
            is_read = True
        except SchemaError:
            is_read = False
        refused += not is_admitted
        if is_admitted != is_read and not (is_admitted and is_beyond_schemas(place)):
            differing.append(f"{place}: schema {'admits' if is_admitted else 'refuses'} it, reader {'reads' if is_read else 'refuses'} it")
    assert differing == [], "\n".join(differing)
    assert refused > 10


def changes_of(document: Any) -> Iterator[tuple[str, Any]]:
    for path in paths(document):
        for wrong in (..., *OPPOSITES):
            changed = copy.deepcopy(document)
            parent = changed
            for step in path[:-1]:
                parent = parent[step]
            if wrong is ...:
                del parent[path[-1]]
            else:
                parent[path[-1]] = wrong
            yield f"{'.'.join(map(str, path))} = {'(left out)' if wrong is ... else repr(wrong)}", changed


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield (name,)
        yield from ((name, *rest) for rest in paths(inner))


def is_beyond_schemas(place: str) -> bool:
    """What holds between two fields: an end after its start, an array's data and its shape."""
    return re.search(r"(\bto_ns|\bended_at_ns|\.shape\.\d|\.data) = ", place) is not None


def test_an_audit_record_is_what_its_schema_says(tmp_path: Path) -> None:
    with SqliteBroker(tmp_path / "log.db") as broker:
        topics.create_all(broker)
        audit.record(broker, "search", "q1", "anna", "missing child", {"probes": ["text"], "cameras": ["north"]})
        audit.record(broker, "erase", "t1", "anna", "asked for")
        first, second = (json.loads(message.value or b"") for message in messages_of(broker, topics.AUDIT))
    check = validator(schemas.AUDIT_RECORD)
    check.validate(first)
    check.validate(second)
    assert set(first) == set(check.schema["properties"])
    assert set(second) == set(check.schema["required"])
    assert not check.is_valid({**second, "purpose": None})


# --------------------------------------------------------------------------------------------- AsyncAPI


def test_asyncapi_says_of_every_topic_what_the_code_says() -> None:
    channels = document()["channels"]
    assert list(channels) == [spec.name for spec in topics.TOPICS]
    for spec in topics.TOPICS:
        channel, bound = channels[spec.name], channels[spec.name]["bindings"]["kafka"]
        assert (channel["address"], bound["topic"], bound["partitions"]) == (spec.name, spec.name, spec.partitions)
        assert bound["topicConfiguration"] == {
            "cleanup.policy": [spec.cleanup],
            "retention.ms": spec.retention_ms,
            "retention.bytes": spec.retention_bytes,
            "max.message.bytes": spec.max_message_bytes,
        }
        kind = topics.value_type(spec.name)
        payloads = [message.get("payload", {}) for message in messages_in(channel)]
        if spec.name.endswith(topics.DEAD_LETTER_SUFFIX):
            assert [message["name"] for message in messages_in(channel)] == ["dead-letter"]
        else:
            assert payloads[0] == {"$ref": f"./schemas/{schemas.AUDIT_RECORD if kind is None else wire.NAMES[kind]}.json"}
            assert ({"type": "null"} in payloads) == (spec.cleanup == "compact"), "a tombstone removes"


def test_a_dead_letter_says_what_the_worker_writes() -> None:
    headers = document()["components"]["messages"]["dead-letter"]["headers"]
    assert tuple(headers["required"]) == tuple(headers["properties"]) == dead_letters.FACTS


def test_every_reference_in_the_asyncapi_document_resolves() -> None:
    references = list(references_in(document()))
    assert len(references) > 100
    for reference in references:
        assert isinstance(resolved(reference), dict), reference


def test_the_asyncapi_document_has_the_form_of_version_3() -> None:
    shown = document()
    assert shown["asyncapi"] == "3.0.0"
    assert {"title", "version"} <= set(shown["info"])
    assert set(shown) <= {"asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components"}
    assert set(shown["components"]) == {"messages", "messageTraits"}
    for name, operation in shown["operations"].items():
        assert operation["action"] in ("send", "receive")
        assert name == f"{operation['tags'][0]['name']}-{operation['action']}s-{resolved(operation['channel']['$ref'])['address']}"
        assert set(operation) <= {"action", "channel", "summary", "tags", "bindings"}
    for message in shown["components"]["messages"].values():
        allowed = {"name", "summary", "contentType", "payload", "headers", "traits", "correlationId", "bindings"}
        assert set(message) <= allowed
    packed = [name for name, message in shown["components"]["messages"].items() if message.get("contentType") == "application/vnd.msgpack"]
    assert packed == ["tracklet", "coverage"]


@pytest.mark.parametrize("program", MODULES)
def test_a_program_sends_and_receives_the_topics_that_its_modules_name(program: str) -> None:
    named = set()
    for module in MODULES[program]:
        for node in ast.walk(ast.parse((ROOT / "services" / module).read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "services.topics":
                named |= {getattr(topics, alias.name) for alias in node.names if alias.name.isupper()}
    shown = {
        resolved(operation["channel"]["$ref"])["address"]
        for operation in document()["operations"].values()
        if operation["tags"][0]["name"] == program
    }
    assert {topic for topic in shown if not topic.endswith(topics.DEAD_LETTER_SUFFIX)} - {topics.AUDIT} == named


def document() -> Any:
    return json.loads((ROOT / "deploy" / "asyncapi.json").read_text("utf-8"))


def references_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for inner in value.values():
            yield from references_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from references_in(inner)


def resolved(reference: str) -> Any:
    """What a reference of deploy/asyncapi.json points at; raises KeyError or FileNotFoundError when it is not there."""
    file, _, pointer = reference.partition("#")
    found = json.loads((ROOT / "deploy" / file).read_text("utf-8")) if file else document()
    for step in pointer.split("/")[1:]:
        found = found[step]
    return found


def messages_in(channel: Any) -> list[Any]:
    return [resolved(message["$ref"]) for message in channel["messages"].values()]


def messages_of(broker: Any, topic: str) -> list[Message]:
    with closing(broker.reader([topic])) as reader:
        return sorted(until_end(broker, reader, topic), key=lambda message: message.timestamp_ms)

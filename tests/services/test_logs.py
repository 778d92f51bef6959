from __future__ import annotations

import io
import json
import logging

import pytest

from services.logs import set_up_logs


@pytest.fixture(autouse=True)
def _quiet_after() -> object:
    yield
    logging.getLogger("sightline").handlers.clear()


def test_json_logs_are_one_object_a_line_with_the_extra_fields() -> None:
    stream = io.StringIO()
    set_up_logs("info", "json", stream)
    logging.getLogger("sightline.capture").info("reconnected", extra={"camera": "gate"})
    line = json.loads(stream.getvalue())
    assert (line["message"], line["camera"], line["level"]) == ("reconnected", "gate", "info")


@pytest.mark.parametrize("form", ["json", "text"])
def test_credentials_never_reach_the_log(form: str) -> None:
    stream = io.StringIO()
    set_up_logs("info", form, stream)
    logging.getLogger("sightline.capture").info("refused rtsp://bob:sea@tuna@192.0.2.1/a", extra={"uri": "rtsp://bob:tuna@h/b"})
    assert "tuna" not in stream.getvalue()


def test_less_severe_records_are_left_out() -> None:
    stream = io.StringIO()
    set_up_logs("warning", "text", stream)
    logging.getLogger("sightline.x").info("quiet")
    assert stream.getvalue() == ""

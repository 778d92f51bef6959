"""A search as a user asks it: words, pictures or sound in, a ranking out, with the purpose in the audit log."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from pipeline.errors import BadInputError
from pipeline.types import FACE, Filter, Probe, Query, Ranking
from services import audit, wire
from services.portraits import portrait_probe, read_picture
from services.settings import Settings
from services.voices import voice_probe


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """What the user gave; at least one of text, portrait, like, tracklet_id, speech, voice."""

    text: str = ""
    portrait: Path | None = None
    face: int | None = None
    numbered: Path | None = None
    like: Path | None = None
    tracklet_id: str = ""
    speech: Path | None = None
    voice: Path | None = None
    unlike: tuple[str, ...] = ()
    window: Filter = field(default_factory=Filter)
    top_k: int = 20
    steps: int = 3
    issued_by: str = ""
    purpose: str = ""
    sheet: Path | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A ranking, and what the recogniser heard."""

    ranking: Ranking
    heard: str = ""

    def json(self) -> str:
        """The ranking as JSON, for programs."""
        return wire.encode(self.ranking).decode()

    def table(self, width: int | None = None) -> str:
        """The ranking for people: matches, why, and what the answer rests on."""
        return ranking_table(self.ranking, width)


def probes_of(settings: Settings, request: SearchRequest, face_space: str = "") -> tuple[tuple[Probe, ...], str]:
    """The probes of a request and what the recogniser heard; pictures become vectors here and go no further.

    face_space: in which the index answers, when that is not the settings'.
    """
    from services import wiring

    probes: list[Probe] = []
    heard = ""
    if request.text.strip():
        probes.append(Probe("text", text=request.text))
    if request.speech is not None:
        heard = wiring.hear(settings, request.speech)
        probes.append(Probe("speech", text=heard))
    if request.portrait is not None:
        probes.append(portrait_probe(settings, request.portrait, request.face, request.numbered, face_space))
    if request.like is not None:
        vectors = wiring.looks_of(settings, read_picture(request.like))
        probes.append(Probe("look-alike", embeddings=vectors))
    if request.tracklet_id:
        probes.append(Probe("tracklet", tracklet_id=request.tracklet_id))
    if request.voice is not None:
        probes.append(voice_probe(settings, request.voice))
    if not probes:
        raise BadInputError("a search must say what to look for: words, --portrait, --like, --tracklet, --voice or --speech")
    probes.extend(Probe("text", text=words, is_negative=True) for words in request.unlike)
    return tuple(probes), heard


def run_search(settings: Settings, request: SearchRequest) -> Answer:
    """Answer a request from the index of this machine; the audit record is durable before anything is looked up."""
    from services import wiring

    started_s = time.monotonic()
    with wiring.open_gallery(settings, read_only=True) as gallery, wiring.open_broker(settings) as broker:
        space = wiring.answering_face_space(settings, gallery.statistics().by_modality.get(FACE, {})) if request.portrait else ""
        probes, heard = probes_of(settings, request, space)
        query = Query(
            query_id=uuid.uuid4().hex,
            probes=probes,
            window=request.window,
            top_k=request.top_k,
            steps=request.steps,
            deadline_s=settings.search.deadline_s,
            issued_by=request.issued_by,
            purpose=request.purpose,
        )
        details = {"probes": audit.kinds(probes), "cameras": list(request.window.cameras)}
        audit.record(broker, "search", query.query_id, request.issued_by, request.purpose, details)
        with wiring.open_search(settings, gallery, broker) as stage:
            ranking = stage.search(query, started_s=started_s)
    if request.sheet is not None:
        write_sheet(settings, request.sheet, [(title_of(probes), ranking)])
    return Answer(ranking, heard)


def title_of(probes: Sequence[Probe]) -> str:
    """What a ranking was asked, for the head of a page."""
    words = [("not " if probe.is_negative else "") + (f"“{probe.text}”" if probe.text else probe.kind) for probe in probes]
    return " + ".join(words)


def write_sheet(settings: Settings, path: Path, rankings: Sequence[tuple[str, Ranking]]) -> None:
    """Write a contact sheet of some titled rankings as .jpg or .png."""
    from services import wiring
    from services.contact_sheet import contact_page

    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise BadInputError(f"a contact sheet must end in .jpg or .png, got {path.name!r}")
    page = contact_page(rankings, wiring.open_media(settings))
    quality = [] if path.suffix.lower() == ".png" else [cv2.IMWRITE_JPEG_QUALITY, 88]
    encoded, data = cv2.imencode(path.suffix.lower(), page, quality)
    if not encoded:
        raise BadInputError(f"contact sheet {path} could not be encoded")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.tobytes())


def ranking_table(ranking: Ranking, width: int | None = None) -> str:
    """A ranking as text."""
    from services.cli.state import clock
    from services.contact_sheet import coverage_in_words, score_in_words, sightings_in_words

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("#", "score", "", "camera", "UTC", "tracklet"):
        table.add_column(name, justify="right" if name in ("#", "score") else "left", no_wrap=True)
    table.add_column("why", overflow="fold")
    for match in ranking.matches:
        facts = (
            str(match.rank),
            f"{match.score:.2f}",
            score_in_words(match.score),
            match.camera_id,
            clock(match.started_at_ns),
            match.tracklet_id,
        )
        table.add_row(*facts, "; ".join(match.why))
    console = Console(width=width or (None if sys.stdout.isatty() else 160), highlight=False)
    with console.capture() as captured:
        if ranking.matches:
            console.print(table)
            for line in sightings_in_words(ranking):
                console.print(line)
        else:
            console.print("nobody found")
        console.print(coverage_in_words(ranking) + (", PARTIAL" if ranking.is_partial else ""), style="dim")
        for note in ranking.coverage.notes:
            console.print(f"note: {note}", style="dim")
    return captured.get().rstrip("\n")

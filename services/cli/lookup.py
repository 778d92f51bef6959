"""Commands that ask: search, status."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.types import Filter
from pipeline.types.query import FOREVER_NS
from services.cli.state import State, clock, parse_time, print_json, who


def register(app: typer.Typer) -> None:
    app.command()(search)
    app.command()(status)


def search(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help='A description: "woman in a red jacket with a white backpack".')] = "",
    portrait: Annotated[Path | None, typer.Option(help="Picture of a face.")] = None,
    face: Annotated[int | None, typer.Option(min=1, help="Which face of the portrait, from 1 at the left.")] = None,
    numbered: Annotated[Path | None, typer.Option(help="Where it shows several faces: write it here with their numbers.")] = None,
    like: Annotated[Path | None, typer.Option(help="Picture of the whole person.")] = None,
    tracklet: Annotated[str, typer.Option(help="Somebody already in the index.")] = "",
    speech: Annotated[Path | None, typer.Option(help="A spoken description, WAV.")] = None,
    voice: Annotated[Path | None, typer.Option(help="Somebody's voice: a few seconds of sound or video.")] = None,
    unlike: Annotated[list[str] | None, typer.Option(help="Words for what it is not; may be repeated.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    zone: Annotated[list[str] | None, typer.Option(help="Only this zone; may be repeated.")] = None,
    from_: Annotated[str | None, typer.Option("--from", help="UTC, 2026-11-21T04:05.")] = None,
    to: Annotated[str | None, typer.Option(help="UTC, 2026-11-21T05:05.")] = None,
    steps: Annotated[
        int, typer.Option(min=0, max=10, help="How often a match may lead on by face, voice or clothes; 0: the probe alone.")
    ] = 3,
    top: Annotated[int | None, typer.Option(min=1, help="Matches wanted.")] = None,
    purpose: Annotated[str, typer.Option(help="Why: goes into the audit log.", envvar="SIGHTLINE_PURPOSE")] = "",
    sheet: Annotated[Path | None, typer.Option(help="Write a contact sheet here (.jpg or .png).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Find a person by words, speech, a face, a picture, a voice or a tracklet; several together narrow the search."""
    from services.lookup import SearchRequest, run_search

    state: State = context.obj
    request = SearchRequest(
        text=text,
        portrait=portrait,
        face=face,
        numbered=numbered,
        like=like,
        tracklet_id=tracklet,
        speech=speech,
        voice=voice,
        unlike=tuple(unlike or ()),
        window=Filter(parse_time(from_, 0), parse_time(to, FOREVER_NS), tuple(camera or ()), tuple(zone or ())),
        top_k=top or state.settings.search.top_k,
        steps=steps,
        issued_by=who(),
        purpose=state.purpose(purpose),
        sheet=sheet,
    )
    answer = run_search(state.settings, request)
    if json:
        typer.echo(answer.json())
        return
    if answer.heard:
        typer.echo(f"heard: {answer.heard}")
    typer.echo(answer.table())
    if sheet:
        typer.echo(f"contact sheet: {sheet}")


def status(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show what the index holds and what each camera did not see."""
    from services.wiring import open_gallery

    state: State = context.obj
    with open_gallery(state.settings, read_only=True) as gallery:
        held = gallery.statistics()
        coverage = gallery.coverage(Filter())
    if json:
        cameras = [
            {
                "camera": c.camera_id,
                "from": clock(c.from_ns),
                "to": clock(c.to_ns),
                "seen": c.seen,
                "sampled": c.sampled,
                "dropped": c.dropped,
                "corrupt": c.corrupt,
                "gap_s": c.gap_s,
                "gaps": [{"from": clock(g.from_ns), "to": clock(g.to_ns), "reason": g.reason} for g in c.gaps],
            }
            for c in coverage
        ]
        print_json(
            {
                "tracklets": held.tracklets,
                "vectors": dict(held.vectors),
                "segments": held.segments,
                "bytes": held.bytes_on_disk,
                "from": clock(held.from_ns),
                "to": clock(held.to_ns),
                "coverage": cameras,
            }
        )
        return
    typer.echo(f"{held.tracklets} tracklets of {len(held.cameras)} cameras, {held.bytes_on_disk / 1e6:.1f} MB, {held.segments} segments")
    for space, count in sorted(held.vectors.items()):
        typer.echo(f"  {count:>9} vectors  {space}")
    for c in coverage:
        typer.echo(
            f"  {c.camera_id}: {clock(c.from_ns)} to {clock(c.to_ns)}  seen {c.seen}, sampled {c.sampled}, "
            f"dropped {c.dropped}, corrupt {c.corrupt}, not seen for {c.gap_s:.1f} s"
        )
        for gap in c.gaps[:5]:
            typer.echo(f"      gap {clock(gap.from_ns)} to {clock(gap.to_ns)}: {gap.reason}")
        if len(c.gaps) > 5:
            typer.echo(f"      and {len(c.gaps) - 5} more gaps (--json lists all)")

"""Commands about the index of this machine: is it what its topics say?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.types import Filter
from pipeline.types.query import FOREVER_NS
from services.cli.state import State, parse_time, print_json, who

index = typer.Typer(help="The index of this machine: what it holds, and the same built anew.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(index, name="index")


@index.command()
def digest(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show one sum over every tracklet, vector and coverage account; equal for indexes that hold the same."""
    from services.replay import index_digest
    from services.wiring import open_gallery

    state: State = context.obj
    with open_gallery(state.settings, read_only=True) as gallery:
        made = index_digest(gallery)
    if json:
        print_json(made.as_dict())
        return
    typer.echo(made.text())


@index.command()
def replay(
    context: typer.Context,
    into: Annotated[Path, typer.Option(help="An empty folder; it can serve as a data folder afterwards.")],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Build the index anew from the start of its topics, without anybody who was erased, and show its digest."""
    from services.replay import replay_index

    state: State = context.obj
    made = replay_index(state.settings, into, say=lambda text: typer.echo(text, err=True))
    if made.gone:
        typer.echo("what their topics no longer hold is not in it: its digest may differ from the live index's", err=True)
    if json:
        print_json(made.as_dict())
        return
    typer.echo(made.digest.text())


@index.command()
def reembed(
    context: typer.Context,
    what: Annotated[str, typer.Option(help="face, body or text: what the model of the settings makes anew.")] = "face",
    from_: Annotated[str | None, typer.Option("--from", help="UTC, 2026-11-21T04:05.")] = None,
    to: Annotated[str | None, typer.Option(help="UTC, 2026-11-21T05:05.")] = None,
    purpose: Annotated[str, typer.Option(help="Why: goes into the audit log.", envvar="SIGHTLINE_PURPOSE")] = "",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at stored tracklets with the model that the settings name now, while the old one answers; goes on where it was broken off."""
    from services.wiring import reembed_index

    state: State = context.obj
    window = Filter(parse_time(from_, 0), parse_time(to, FOREVER_NS))

    def say(done: int, described: int) -> None:
        typer.echo(f"{done} tracklets looked at, {described} described", err=True)

    made = reembed_index(state.settings, what, window, who(), state.purpose(purpose), say)
    if json:
        print_json(made.as_dict())
        return
    typer.echo(
        f"{made.tracklets} tracklets looked at, {made.described} described; {made.known} were known already, {made.open} are still open, "
        f"{made.without_pictures} have no pictures any more"
    )

"""Commands that keep house: weights, dead letters, erase, expire, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.state import State, parse_time, print_json, who

weights = typer.Typer(help="Model weights: what is needed, fetched and genuine.", no_args_is_help=True)
dead_letters = typer.Typer(help="Messages that could not be worked off.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(weights, name="weights")
    app.add_typer(dead_letters, name="dead-letters")
    app.command()(erase)
    app.command()(expire)
    app.command()(demo)


@weights.command("list")
def list_weights(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the weights, where they come from and whether they are here."""
    from services.wiring import weight_registry

    rows = weight_registry(context.obj.settings).statuses()
    if json:
        print_json([row.as_dict() for row in rows])
        return
    for row in rows:
        typer.echo(row.text())


@weights.command()
def fetch(
    context: typer.Context, names: Annotated[list[str] | None, typer.Argument(help="Default: what the base install uses.")] = None
) -> None:
    """Fetch and convert weights into the cache."""
    from services.wiring import weight_registry

    weight_registry(context.obj.settings).fetch(names or None, progress=typer.echo)


@weights.command()
def verify(context: typer.Context, names: Annotated[list[str] | None, typer.Argument(help="Default: all that are here.")] = None) -> None:
    """Check the weights in the cache against their sums."""
    from services.wiring import weight_registry

    for line in weight_registry(context.obj.settings).verify(names or None):
        typer.echo(line)


@dead_letters.command("list")
def list_dead_letters(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List messages that could not be worked off, with stage and error."""
    from services.dead_letters import list_dead_letters as find
    from services.wiring import open_broker

    with open_broker(context.obj.settings) as broker:
        rows = [letter.as_dict() for letter in find(broker)]
    if json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['topic']}/{row['partition']}@{row['offset']}  {row['stage']}  {row['error']}")
    if not rows:
        typer.echo("no dead letters")


@dead_letters.command()
def replay(context: typer.Context, topic: Annotated[str, typer.Argument(help="The original topic.")]) -> None:
    """Put dead letters back onto their topic."""
    from services.dead_letters import replay as put_back
    from services.wiring import open_broker

    with open_broker(context.obj.settings) as broker:
        typer.echo(f"{put_back(broker, topic)} messages put back on {topic}")


def erase(
    context: typer.Context,
    tracklets: Annotated[list[str], typer.Argument(help="Tracklet ids.")],
    purpose: Annotated[str, typer.Option(help="Why: goes into the audit log.", envvar="SIGHTLINE_PURPOSE")] = "",
) -> None:
    """Really remove tracklets: rows, vectors and crops."""
    from services.retention import erase_tracklets

    state: State = context.obj
    erased = erase_tracklets(state.settings, tracklets, who(), state.purpose(purpose))
    typer.echo(f"{erased.tracklets} tracklets removed")
    if erased.is_in_log:
        typer.echo("Kafka cannot remove single messages: those of these tracklets lie on their topics until retention.ms is over")


def expire(
    context: typer.Context,
    before: Annotated[str | None, typer.Option(help="UTC; default: index.retention_days ago.")] = None,
) -> None:
    """Retention: really remove every tracklet that ended before a time."""
    from services.retention import expire_tracklets

    state: State = context.obj
    typer.echo(f"{expire_tracklets(state.settings, parse_time(before, 0), who())} tracklets removed")


def demo(
    context: typer.Context,
    video: Annotated[Path | None, typer.Option(help="Your own clip.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the index and the picture.")] = Path("demo-output"),
) -> None:
    """Do the main job on a real clip: index every person, find some by words and by look, leave a contact sheet."""
    from services.demo import run_demo

    run_demo(context.obj.settings, video, out)

"""Who probably is who: identity list|show|cut|confirm|withdraw."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.state import State, clock, print_json, who

identity = typer.Typer(help="Tracklets that probably show one person: the evidence, and an operator's word on it.", no_args_is_help=True)

First = Annotated[str, typer.Argument(help="A tracklet id.")]
Second = Annotated[str, typer.Argument(help="Another tracklet id.")]
Purpose = Annotated[str, typer.Option(help="Why: goes into the audit log.", envvar="SIGHTLINE_PURPOSE")]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]


def register(app: typer.Typer) -> None:
    app.add_typer(identity, name="identity")


@identity.command("list")
def list_identities(
    context: typer.Context,
    least: Annotated[int, typer.Option(min=1, help="Only those of so many tracklets or more.")] = 2,
    top: Annotated[int, typer.Option(min=1, help="Most identities shown.")] = 50,
    json: Json = False,
) -> None:
    """List identities, the largest first."""
    from services.identities import list_identities as find

    rows = find(context.obj.settings, least, top)
    if json:
        print_json(rows)
        return
    for row in rows:
        span = f"{clock(row['from_ns'])} to {clock(row['to_ns'])}"
        typer.echo(f"{row['identity_id']}  {row['tracklets']:>5} tracklets  {span}  {', '.join(row['cameras'])}")
    if not rows:
        typer.echo("no identities")


@identity.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="An identity, or any tracklet of it.")],
    purpose: Purpose = "",
    json: Json = False,
) -> None:
    """Show where an identity was, and the evidence of every link."""
    from services.identities import in_words, show_identity

    state: State = context.obj
    found = show_identity(state.settings, name, who(), state.purpose(purpose))
    if json:
        print_json(found.as_dict())
        return
    typer.echo(f"identity {found.identity_id}: a hypothesis, for a human to decide")
    for each in found.tracklets:
        typer.echo(f"{clock(each.started_at_ns)} to {clock(each.ended_at_ns)}  {each.camera_id}  tracklet {each.tracklet_id}")
        for link in found.links_of(each.tracklet_id):
            typer.echo(f"      with {link.first if link.second == each.tracklet_id else link.second}: {in_words(link)}")
    for link in found.cut:
        typer.echo(f"cut: {link.first} and {link.second}: {in_words(link)}")


@identity.command()
def cut(context: typer.Context, first: First, second: Second, purpose: Purpose = "", json: Json = False) -> None:
    """Say that two tracklets show different people; it holds until it is withdrawn."""
    _decide(context.obj, "cut", first, second, purpose, json)


@identity.command()
def confirm(context: typer.Context, first: First, second: Second, purpose: Purpose = "", json: Json = False) -> None:
    """Say that two tracklets show the same person; it holds until it is withdrawn."""
    _decide(context.obj, "confirm", first, second, purpose, json)


@identity.command()
def withdraw(context: typer.Context, first: First, second: Second, purpose: Purpose = "", json: Json = False) -> None:
    """Take back what was said of two tracklets."""
    _decide(context.obj, "withdraw", first, second, purpose, json)


def _decide(state: State, action: str, first: str, second: str, purpose: str, json: bool) -> None:
    from services.identities import decide, wait_until_obeyed

    decision = decide(state.settings, action, first, second, who(), state.purpose(purpose))
    is_obeyed = wait_until_obeyed(state.settings, decision)
    if json:
        print_json(
            {"first": first, "second": second, "verdict": decision.verdict, "decided_by": decision.decided_by, "in_force": is_obeyed}
        )
        return
    typer.echo(f"{first} and {second}: {decision.verdict}")
    if not is_obeyed:
        typer.echo("the index worker has not taken it yet: it will when it runs")

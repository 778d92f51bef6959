"""Standing queries and what they raised: watch add|list|remove, alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.types import Alert, Filter
from services.cli.state import State, clock, parse_time, print_json, who

watch = typer.Typer(help="Standing queries that raise alerts.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(watch, name="watch")
    app.command()(alerts)


@watch.command()
def add(
    context: typer.Context,
    text: Annotated[str, typer.Argument(help="A description.")] = "",
    portrait: Annotated[Path | None, typer.Option(help="Picture of a face.")] = None,
    face: Annotated[int | None, typer.Option(min=1, help="Which face of the portrait, from 1 at the left.")] = None,
    numbered: Annotated[Path | None, typer.Option(help="Where it shows several faces: write it here with their numbers.")] = None,
    like: Annotated[Path | None, typer.Option(help="Picture of the whole person.")] = None,
    threshold: Annotated[float | None, typer.Option(min=0, max=1, help="Score 0..1 from which it alerts.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    zone: Annotated[list[str] | None, typer.Option(help="Only this zone; may be repeated.")] = None,
    expires: Annotated[str | None, typer.Option(help="UTC after which it is silent; default in 24 hours.")] = None,
    purpose: Annotated[str, typer.Option(help="Why: goes into the audit log.", envvar="SIGHTLINE_PURPOSE")] = "",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Watch for a described or pictured person."""
    from services.lookup import SearchRequest
    from services.watches import add_watch

    state: State = context.obj
    request = SearchRequest(
        text=text,
        portrait=portrait,
        face=face,
        numbered=numbered,
        like=like,
        window=Filter(cameras=tuple(camera or ()), zones=tuple(zone or ())),
        issued_by=who(),
        purpose=state.purpose(purpose),
    )
    made = add_watch(
        state.settings,
        request,
        threshold=state.settings.alert.threshold if threshold is None else threshold,
        expires_at_ns=parse_time(expires, 0),
    )
    if json:
        print_json({"watch_id": made.watch_id, "threshold": made.threshold, "expires": clock(made.expires_at_ns)})
    else:
        typer.echo(f"watch {made.watch_id}, threshold {made.threshold:.2f}, until {clock(made.expires_at_ns)} UTC")


@watch.command("list")
def list_watches(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the watches in force."""
    from services.watches import watches_in_force

    rows = [
        {
            "watch_id": each.watch_id,
            "what": "; ".join(probe.text or probe.kind for probe in each.probes),
            "threshold": each.threshold,
            "where": ", ".join(each.cameras) or "all cameras",
            "expires": clock(each.expires_at_ns),
            "issued_by": each.issued_by,
            "purpose": each.purpose,
        }
        for each in watches_in_force(context.obj.settings)
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['watch_id']}  from {row['threshold']:.2f}  until {row['expires']}  {row['where']}  {row['what']}")
    if not rows:
        typer.echo("no watches")


@watch.command()
def remove(
    context: typer.Context,
    watch_id: Annotated[str, typer.Argument(help="As `watch list` shows it.")],
    purpose: Annotated[str, typer.Option(help="Why.", envvar="SIGHTLINE_PURPOSE")] = "",
) -> None:
    """Take a watch out of force."""
    from services.watches import remove_watch

    remove_watch(context.obj.settings, watch_id, who(), purpose)
    typer.echo(f"watch {watch_id} removed")


def alerts(
    context: typer.Context,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show new ones as they come.")] = False,
    for_s: Annotated[float, typer.Option("--for", help="With --follow: stop after this many seconds; 0 = never.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Show the alerts raised so far; --follow waits for more."""
    from services.watches import follow_alerts

    state: State = context.obj
    for alert in follow_alerts(state.settings, follow=follow, for_s=for_s):
        typer.echo(_alert_json(alert) if json else _alert_line(alert))


def _alert_line(alert: Alert) -> str:
    return (
        f"{clock(alert.seen_at_ns)}  {alert.camera_id}  score {alert.score:.2f} (from {alert.threshold:.2f})  watch {alert.watch_id}"
        f"  tracklet {alert.tracklet_id}  {'; '.join(alert.why)}"
    )


def _alert_json(alert: Alert) -> str:
    from services import wire

    return wire.encode(alert).decode()

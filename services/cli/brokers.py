"""Commands about what the workers share: topics and cameras."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.capture import without_credentials
from pipeline.errors import SettingsError
from services.cli.state import State, print_json

topics = typer.Typer(help="Topics of the broker: there, and with the right settings?", no_args_is_help=True)
camera = typer.Typer(help="Cameras that the ingest workers share; they follow without a restart.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(topics, name="topics")
    app.add_typer(camera, name="camera")


@topics.command("list")
def list_topics(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the topics with partitions, retention and messages."""
    from services.topics import TOPICS
    from services.wiring import connect_broker

    with connect_broker(context.obj.settings) as broker:
        present = broker.topics()
        rows = [
            {
                "name": spec.name,
                "partitions": present[spec.name].partitions,
                "cleanup": present[spec.name].cleanup,
                "retention_ms": present[spec.name].retention_ms,
                "end": sum(broker.end_offsets(spec.name).values()),
            }
            for spec in TOPICS
            if spec.name in present
        ]
    if json:
        print_json(rows)
        return
    for row in rows:
        typer.echo(f"{row['name']:<24} {row['partitions']:>3} partitions  {row['cleanup']:<8} {row['end']:>9} messages so far")


@topics.command("create")
def create_topics(context: typer.Context) -> None:
    """Create the topics that are missing; those that are there with other settings are named, never changed."""
    from services.topics import TOPICS, drift
    from services.wiring import connect_broker

    with connect_broker(context.obj.settings) as broker:
        missing = [spec for spec in TOPICS if spec.name not in broker.topics()]
        if missing:
            broker.create_topics(missing)
        typer.echo(f"{len(missing)} topics created, {len(TOPICS) - len(missing)} were there")
        _say_drift(drift(broker))


@topics.command("check")
def check_topics(context: typer.Context) -> None:
    """Say what is missing or has other settings than deploy/topics.toml; exit code 2 when something has."""
    from services.topics import drift
    from services.wiring import connect_broker

    with connect_broker(context.obj.settings) as broker:
        _say_drift(drift(broker))
    typer.echo("all topics are as they must be")


def _say_drift(wrong: list[str]) -> None:
    if wrong:
        raise SettingsError("; ".join(wrong))


@camera.command("add")
def add_camera(
    context: typer.Context,
    camera_id: Annotated[str, typer.Argument(help="Short name: letters, digits, dot, dash.")],
    uri: Annotated[str, typer.Argument(help="rtsp:// or http:// address, file or webcam; - reads it from standard input (passwords).")],
    sampling_hz: Annotated[float | None, typer.Option(help="Wished frames a second; 0 = all.")] = None,
    site: Annotated[str, typer.Option(help="Where it hangs.")] = "",
    live: Annotated[bool, typer.Option("--live/--footage", help="Late frames are dropped and counted, or none ever is.")] = True,
) -> None:
    """Add a camera, or change one; a worker takes it within a second."""
    from services.cameras import put_camera
    from services.settings import named_camera
    from services.wiring import open_broker

    state: State = context.obj
    address = typer.get_text_stream("stdin").readline().strip() if uri == "-" else uri
    made = named_camera(state.settings, camera_id=camera_id, uri=address, sampling_hz=sampling_hz, site=site, live=live)
    with open_broker(state.settings) as broker:
        put_camera(broker, made)
    typer.echo(f"camera {made.camera_id} at {without_credentials(made.uri)}")


@camera.command("list")
def list_cameras(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """List the cameras; passwords are masked."""
    from services.cameras import read_cameras
    from services.wiring import open_broker

    with open_broker(context.obj.settings) as broker:
        cameras = read_cameras(broker)
    rows = [
        {
            "camera_id": each.camera_id,
            "uri": without_credentials(each.uri),
            "sampling_hz": each.sampling_hz,
            "site": each.site,
            "is_live": each.is_live,
            "zones": sorted(each.zones),
            "origin": each.origin or "added",
        }
        for each in cameras.values()
    ]
    if json:
        print_json(rows)
        return
    for row in rows:
        rate = f"{row['sampling_hz']:g} Hz" if row["sampling_hz"] else "all frames"
        typer.echo(f"{row['camera_id']:<20} {row['uri']}  {rate}  {row['site']}".rstrip())
    if not rows:
        typer.echo("no cameras")


@camera.command("remove")
def remove_camera(context: typer.Context, camera_id: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Remove a camera: its open tracks are closed and kept, nothing more is read."""
    from services.cameras import remove_camera as take_off
    from services.wiring import open_broker

    with open_broker(context.obj.settings) as broker:
        take_off(broker, camera_id)
    typer.echo(f"camera {camera_id} removed")

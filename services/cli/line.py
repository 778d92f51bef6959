"""Commands that move footage through the line: ingest, archive, up, worker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.state import State, print_json


def register(app: typer.Typer) -> None:
    app.command()(ingest)
    app.command()(archive)
    app.command()(up)
    app.command()(worker)


def ingest(
    context: typer.Context,
    sources: Annotated[list[str], typer.Argument(help="Video files, folders, rtsp:// or http:// addresses, webcams.")],
    sampling_hz: Annotated[float | None, typer.Option(help="Wished frames a second; 0 = all.")] = None,
    start: Annotated[str | None, typer.Option(help="UTC of the first frame of a file, 2026-11-21T04:05:06.")] = None,
    camera: Annotated[str | None, typer.Option(help="Name of the camera, for a single source.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Run sources to their end: find, follow and index every person."""
    from services.footage import ingest_sources

    state: State = context.obj
    report = ingest_sources(state.settings, sources, sampling_hz=sampling_hz, start=start, camera_id=camera, show=not json)
    if json:
        print_json(report.as_dict())
    else:
        typer.echo(report.text())
    if report.failures:
        raise typer.Exit(4 if report.may_pass else 3)


def archive(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder (or file) of footage.")],
    workers: Annotated[int | None, typer.Option(help="Processes that share the work.")] = None,
    sampling_hz: Annotated[float | None, typer.Option(help="Wished frames a second; 0 = all.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Also what was worked off before.")] = False,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Cut footage into jobs and work them off with several processes; a killed one is replaced by the others."""
    from services.footage import archive_folder

    state: State = context.obj
    report = archive_folder(
        state.settings,
        state.settings_file,
        folder,
        workers=workers or state.settings.archive.workers,
        sampling_hz=sampling_hz,
        redo=redo,
        show=not json,
    )
    if json:
        print_json(report)
    else:
        typer.echo(
            f"{report['jobs']} jobs, {report['failed']} of them failed, {report['tracklets']} tracklets in the index, "
            f"{report['seconds']:.1f} s"
        )
    if report["failed"]:
        raise typer.Exit(3)


def up(
    context: typer.Context,
    for_s: Annotated[float, typer.Option("--for", help="Stop after this many seconds; 0 = until interrupted.")] = 0.0,
) -> None:
    """Run all workers of one machine for the cameras of the settings file; a worker that dies is started again."""
    from services.supervisor import Supervisor

    state: State = context.obj
    Supervisor(state.settings, state.settings_file).run(for_s)


def worker(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="ingest, index, query, alert or archive.")],
    port: Annotated[int | None, typer.Option(help="Serve /metrics, /live and /ready here; 0 = any free one.")] = None,
) -> None:
    """Run one worker in the foreground until SIGTERM."""
    from services.supervisor import run_worker

    state: State = context.obj
    run_worker(name, state.settings, port)

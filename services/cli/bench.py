"""Commands that measure speed, always as a ratio to a bare limit measured in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.evaluate import show
from services.cli.state import State

bench = typer.Typer(help="Measure speed beside the bare limit, in one run.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(bench, name="bench")


@bench.command()
def ingest(
    context: typer.Context,
    video: Annotated[Path | None, typer.Option(help="Footage; default: the demo's clip.")] = None,
    frames: Annotated[int, typer.Option(min=10, help="Frames of each round.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median ratio is reported.")] = 3,
    memory_frames: Annotated[int, typer.Option(min=0, help="Also watch memory over this many frames.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The whole line against decode alone and the detector alone, and memory over time."""
    from services.bench_ingest import bench_ingest

    state: State = context.obj
    show(bench_ingest(state.settings, video, frames=frames, rounds=rounds, memory_frames=memory_frames), json)


@bench.command()
def search(
    count: Annotated[int, typer.Option(min=1000, help="Synthetic tracklets.")] = 100_000,
    dimension: Annotated[int, typer.Option(min=8, max=4096)] = 512,
    folder: Annotated[Path | None, typer.Option(help="Where to build the index; default a temporary folder.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Recall against exact search and latency against bare FAISS, for filters of 0.1, 10 and 100 percent."""
    from services.bench_search import bench_search

    show(bench_search(count=count, dimension=dimension, folder=folder), json)


@bench.command()
def link(
    count: Annotated[list[int] | None, typer.Option(min=1000, help="Synthetic tracklets; may be repeated.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Tracklets linked a second, from the start to the end of a run, with memory, precision and recall."""
    from services.bench_link import bench_link

    for each in count or [100_000]:
        show(bench_link(each, say=lambda text: typer.echo(text, err=True)), json)


@bench.command()
def broker(
    context: typer.Context,
    count: Annotated[int, typer.Option(min=1000, help="Tracklet messages of each round.")] = 20_000,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median ratio is reported.")] = 3,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """The worker loop against the bare Kafka client, on the Kafka of the settings, with tracklet-sized messages."""
    from services.bench_broker import bench_broker

    state: State = context.obj
    show(bench_broker(state.settings, count=count, rounds=rounds), json)


@bench.command()
def retriever(
    context: typer.Context,
    video: Annotated[Path | None, typer.Option(help="Footage; default: the demo's clip.")] = None,
    frames_per_batch: Annotated[int, typer.Option(min=1, help="Frames of one forward pass.")] = 8,
    batches: Annotated[int, typer.Option(min=1, help="Rounds, each with frames of its own; the slow peer runs in two of them.")] = 6,
    osnet: Annotated[Path | None, typer.Option(help="OSNet as ONNX, for the light two-stage peer.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of every network.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """One frame with 1, 10 and 100 descriptions, beside two-stage ways; CPU, and GPU where there is one."""
    from services.bench_retriever import bench_retriever

    state: State = context.obj
    show(
        bench_retriever(
            state.settings,
            video,
            frames_per_batch=frames_per_batch,
            batches=batches,
            osnet=osnet,
            threads=threads,
            say=lambda text: typer.echo(text, err=True),
        ),
        json,
    )

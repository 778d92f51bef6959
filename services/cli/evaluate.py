"""Commands that measure accuracy on plain folders and files of anybody's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.state import State, print_json

evaluate = typer.Typer(help="Measure accuracy on your own footage, people and captions.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(evaluate, name="evaluate")


def show(result: dict[str, object], json: bool) -> None:
    """A result as JSON or as one line per figure."""
    if json:
        print_json(result)
        return
    for key, value in result.items():
        if isinstance(value, dict):
            typer.echo(f"{key}:")
            for name, figure in value.items():
                typer.echo(f"  {name:<24} {_figure(figure)}")
        else:
            typer.echo(f"{key:<26} {_figure(value)}")


def _figure(value: object) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{key} {_figure(each)}" for key, each in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@evaluate.command()
def tracking(
    context: typer.Context,
    video: Annotated[Path, typer.Option(help="Footage.")],
    ground_truth: Annotated[Path, typer.Option(help="MOT text file: frame, id, left, top, width, height, ...")],
    peers: Annotated[bool, typer.Option("--peers", help="Also run C-BIoU and ByteTrack on the same boxes, where installed.")] = False,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """AP50, HOTA, IDF1, MOTA, id switches and frames per second of the line on a labelled clip."""
    from services.wiring import measure_tracking

    state: State = context.obj
    show(measure_tracking(state.settings, video, ground_truth, with_peers=peers), json)


@evaluate.command("text-search")
def text_search(
    context: typer.Context,
    persons: Annotated[Path, typer.Option(help="Folder with a folder of crops per person: <camera><n>.jpg.")],
    captions: Annotated[Path, typer.Option(help="JSON lines with person and caption.")],
    distractors: Annotated[Path | None, typer.Option(help="Crops of others.")] = None,
    dump: Annotated[Path | None, typer.Option(help="Write similarities and ids here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """R@1, R@5, R@10 and mAP of captions against crops; the gallery is all crops of the people named in the captions."""
    from services.wiring import measure_text_search

    state: State = context.obj
    show(measure_text_search(state.settings, persons, captions, distractors, dump), json)


@evaluate.command()
def reid(
    context: typer.Context,
    persons: Annotated[Path, typer.Option(help="Folder with a folder of crops per person: <camera><n>.jpg.")],
    distractors: Annotated[Path | None, typer.Option(help="Crops of others.")] = None,
    dump: Annotated[Path | None, typer.Option(help="Write similarities and ids here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """R@1, R@5, R@10 and mAP of look-alike search: every crop of camera a against those of camera b."""
    from services.wiring import measure_reid

    state: State = context.obj
    show(measure_reid(state.settings, persons, distractors, dump), json)


@evaluate.command("full-frames")
def full_frames(
    context: typer.Context,
    video: Annotated[Path | None, typer.Option(help="Footage.")] = None,
    ground_truth: Annotated[Path | None, typer.Option(help="MOT text file: frame, id, left, top, width, height, ...")] = None,
    described: Annotated[Path | None, typer.Option(help="JSON lines with clip, track, twins and captions.")] = None,
    frames: Annotated[Path | None, typer.Option(help="Instead of footage: folder of JPEGs, truth.jsonl and described.jsonl.")] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Look at every Nth frame; default 5 of footage, 1 of a folder.")] = None,
    peer: Annotated[bool, typer.Option("--peer", help="Also search the two-stage way, on the same boxes.")] = False,
    sheet: Annotated[Path | None, typer.Option(help="Write the best five of each person here (JPEG).")] = None,
    heat: Annotated[Path | None, typer.Option(help="Write where the network looks for one description here (JPEG).")] = None,
    dump: Annotated[Path | None, typer.Option(help="Write boxes, similarities and truth here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """R@1, R@5, R@10, mAP and AP50 of captions against whole frames, over all frames and within each."""
    from services.wiring import measure_full_frames

    state: State = context.obj
    result = measure_full_frames(
        state.settings,
        video=video,
        ground_truth=ground_truth,
        described=described,
        frames=frames,
        every=every,
        with_peer=peer,
        sheet=sheet,
        heat=heat,
        dump=dump,
    )
    show(result, json)

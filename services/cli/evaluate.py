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
    from services.measuring import measure_tracking

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
    from services.measuring import measure_text_search

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
    from services.measuring import measure_reid

    state: State = context.obj
    show(measure_reid(state.settings, persons, distractors, dump), json)


@evaluate.command()
def portrait(
    context: typer.Context,
    faces: Annotated[Path, typer.Option(help="Folder with a folder of pictures per person.")],
    pairs: Annotated[Path | None, typer.Option(help="CSV of labelled pairs: first, second, same.")] = None,
    gallery: Annotated[Path | None, typer.Option(help="More people: a folder each; in pictures beside them everybody is unknown.")] = None,
    size: Annotated[list[int] | None, typer.Option(min=4, max=1024, help="Also with faces this high, pixels; may be repeated.")] = None,
    dump: Annotated[Path | None, typer.Option(help="Write similarities and names here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """R@1, R@5, mAP, EER and FNIR at FPIR 1 % of portrait search, every picture searched among all others."""
    from services.measuring import measure_portrait

    state: State = context.obj
    show(measure_portrait(state.settings, faces, pairs=pairs, gallery=gallery, sizes=size or (), dump=dump), json)


@evaluate.command()
def linking(
    context: typer.Context,
    video: Annotated[Path, typer.Option(help="Footage of one camera.")],
    ground_truth: Annotated[Path, typer.Option(help="Its MOT text file: frame, id, left, top, width, height, ...")],
    other: Annotated[Path, typer.Option(help="The same moments from another camera.")],
    calibration: Annotated[Path, typer.Option(help="Folder with a homography file of each, to one plan: Matrix: [nine numbers].")],
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Precision and recall of pairs and IDF1 of identities over two cameras, as shipped, by body alone, and over thresholds."""
    from services.measuring import measure_linking

    state: State = context.obj
    show(measure_linking(state.settings, video, ground_truth, other, calibration), json)


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
    from services.measuring import measure_full_frames

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


@evaluate.command()
def voices(
    context: typer.Context,
    voices: Annotated[Path, typer.Option(help="Folder with a folder of sound files per speaker.")],
    dump: Annotated[Path | None, typer.Option(help="Write similarities and names of every condition here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """EER, R@1, mAP and FNIR at FPIR 1 % of voices: clean, 1.5 s, in babble, through a telephone; every clip searched among all others."""
    from services.measuring import measure_voices

    state: State = context.obj
    show(measure_voices(state.settings, voices, dump), json)


@evaluate.command()
def attribution(
    context: typer.Context,
    talking: Annotated[Path, typer.Option(help="Folder of clips, each of one face that talks, with sound.")],
    voices: Annotated[Path | None, typer.Option(help="Folder SPEAKER/*.flac of people who are heard but not seen.")] = None,
    sampling_hz: Annotated[float, typer.Option(min=0, help="Frames a second that are looked at; 0 = all.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Precision and recall of giving speaker turns to people in view, on scenes put together of one, two and three faces."""
    from services.measuring import measure_attribution

    state: State = context.obj
    show(measure_attribution(state.settings, talking, voices, sampling_hz), json)


@evaluate.command()
def association(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with faces/PERSON/*, persons/PERSON/<camera><n>.jpg, voices/SPEAKER/*.")],
    work: Annotated[Path | None, typer.Option(help="Folder where encoded samples are kept; a second start reads them.")] = None,
    body_weights: Annotated[
        Path | None, typer.Option(help="A detector_retriever.npz trained with people held out: they alone are used of persons/.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How often people are drawn anew.")] = 10,
    dump: Annotated[Path | None, typer.Option(help="Write cosines, qualities, log-odds and names of one drawing here (.npz).")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """mAP and R@1 where half of everybody's tracklets show no face and half are silent: each modality alone, all equal, all as learned."""
    from services.measuring import measure_association

    state: State = context.obj
    result = measure_association(state.settings, data, dump, work, body_weights, seeds, lambda text: typer.echo(text, err=True))
    show(result, json)


@evaluate.command("cast-search")
def cast_search(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="CSM as published (meta/, affinity/ or feature/), or SUBSET.json with pictures in SUBSET/.")],
    subset: Annotated[str | None, typer.Option(help="Such as test or val; default: the first that is there.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """mAP and R@1, 3, 5 of a film's cast by portrait, within each film and across all, in one step and in several (CSM, CSM-V)."""
    from services.measuring import measure_cast_search

    state: State = context.obj
    show(measure_cast_search(state.settings, data, subset), json)

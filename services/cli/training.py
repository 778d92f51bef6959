"""Commands that train the project's own weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli.evaluate import show
from services.cli.state import State

train = typer.Typer(help="Train the project's own weights.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(train, name="train")


@train.callback()
def _group() -> None:
    """Keeps the name of the one command."""


@train.command()
def association(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with faces/, persons/, voices/, and if there are any talking/ and video/.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("models/weights"),
    work: Annotated[Path | None, typer.Option(help="Folder where encoded samples are kept; a second start reads them.")] = None,
    body_weights: Annotated[
        Path | None, typer.Option(help="A detector_retriever.npz trained with people held out: they alone are used of persons/.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Fit how face, body and voice speak for one person, each by its own quality; minutes on one core, no torch."""
    from services.measuring import train_association

    state: State = context.obj
    show(train_association(state.settings, data, out, work, body_weights, lambda text: typer.echo(text, err=True)), json)


@train.command("detector-retriever")
def detector_retriever(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="Folder with persons/, captions.jsonl, captions_written.jsonl, video/, frames/.")],
    work: Annotated[Path, typer.Option(help="Folder for features, checkpoints, curves and figures; about 6 GB. A second start goes on.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("models/weights"),
    config: Annotated[Path | None, typer.Option(help="The recipe (TOML); default: models/training/detector_retriever.toml.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change of the recipe, such as people.steps=200.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A re-identification network (ONNX, 1x3x256x128 RGB) to learn from.")] = None,
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Train the detector-retriever on captioned crops and composed scenes (needs the extra torch); start under torchrun for many GPUs."""
    from services.measuring import train_detector_retriever

    state: State = context.obj

    def say(text: str) -> None:
        typer.echo(text, err=True)

    figures = train_detector_retriever(state.settings, data, work, out, config, changes or [], teacher, say)
    show(figures, json)


@train.command("voice-channels")
def voice_channels(
    context: typer.Context,
    voices: Annotated[Path, typer.Option(help="Folder with a folder of sound files per speaker, three speakers or more.")],
    out: Annotated[Path, typer.Option(help="Folder for the weights.")] = Path("models/weights"),
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Learn how telephones, rooms and noise move voice vectors, and calibrate their similarity; about 2 CPU minutes for 50 clips."""
    from services.measuring import train_voice_channels

    state: State = context.obj
    show(train_voice_channels(state.settings, voices, out, lambda text: typer.echo(text, err=True)), json)

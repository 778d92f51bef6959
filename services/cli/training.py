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
    from services.wiring import train_detector_retriever

    state: State = context.obj

    def say(text: str) -> None:
        typer.echo(text, err=True)

    figures = train_detector_retriever(state.settings, data, work, out, config, changes or [], teacher, say)
    show(figures, json)

"""The application: options that every command shares, and the commands of all groups."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from services.cli import api, bench, brokers, evaluate, identities, index, line, lookup, maintenance, training, watches
from services.cli.state import State, print_json
from services.logs import set_up_logs
from services.settings import describe, load_settings

app = typer.Typer(
    name="sightline",
    help="Find a person in live and archived CCTV from a description, a portrait or a picture.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def start(
    context: typer.Context,
    settings: Annotated[Path | None, typer.Option(help="TOML file with settings; default sightline.toml here.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data folder; overrides storage.data_folder.")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
) -> None:
    """Read the settings; nothing else happens before a command runs."""
    loaded = load_settings(settings)
    if data is not None:
        loaded = loaded.model_copy(update={"storage": loaded.storage.model_copy(update={"data_folder": data})})
    set_up_logs(log_level or loaded.logs.level, loaded.logs.format)
    context.obj = State(loaded, settings)


@app.command("settings")
def show_settings(context: typer.Context, json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Show every setting in force; secrets are masked."""
    rows = describe(context.obj.settings)
    if json:
        print_json({key: value for key, value, _ in rows})
        return
    width = max(len(key) for key, _, _ in rows)
    for key, value, description in rows:
        typer.echo(f"{key:<{width}}  {value}    # {description}")


line.register(app)
lookup.register(app)
watches.register(app)
brokers.register(app)
index.register(app)
identities.register(app)
api.register(app)
maintenance.register(app)
training.register(app)
evaluate.register(app)
bench.register(app)

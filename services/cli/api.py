"""The HTTP gateway for other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from services.cli.state import State, print_json

api = typer.Typer(invoke_without_command=True)


def register(app: typer.Typer) -> None:
    app.add_typer(api, name="api")


@api.callback()
def serve(context: typer.Context) -> None:
    """Serve searches, watches, alerts, cameras and crops to other programs over HTTP (api.host, api.port) until interrupted."""
    if context.invoked_subcommand is None:
        from services.api.server import run_api

        state: State = context.obj
        run_api(state.settings)


@api.command()
def token(json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Make a token for a program. It is shown this once; the settings file gets its sha256."""
    from services.api.access import new_token

    made, digest = new_token()
    if json:
        print_json({"token": made, "token_sha256": digest})
        return
    typer.echo(f"token, for the program: {made}\n\nfor sightline.toml, with roles among search, watch and read:\n")
    typer.echo(f'[[api.clients]]\nname = "control-room"\ntoken_sha256 = "{digest}"\nroles = ["search", "read"]')

"""``headwater serve``: the web page."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from headwater.cli.options import AllowCode, check_device, load_network
from headwater.cli.terminal import console
from headwater.errors import MissingDependencyError

PASSWORD = "HEADWATER_PASSWORD"


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, folder of a run or of save_pretrained, hf:OWNER/NAME or module:function; several can be picked."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="The next free one if it is taken; 0 for any.", min=0, max=65535)] = 7860,
    host: Annotated[str, typer.Option(help="Address to listen at; others than this machine's need --public.")] = (
        "127.0.0.1"
    ),
    public: Annotated[
        bool,
        typer.Option("--public", help=f"Let others in, who know the password in the environment variable {PASSWORD}."),
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Explain photos in a web page on this machine: drop one, pick methods, compare the maps."""
    try:
        from headwater.serve.server import check_access
        from headwater.serve.server import serve as run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("starlette", "uvicorn", "websockets"):
            raise
        raise MissingDependencyError(f"the page needs {error.name}: pip install 'headwater[serve]'") from error
    password = os.environ.get(PASSWORD)
    check_access(host, public, password)
    place = check_device(device)
    named: list[str | None] = [*model] if model else [None, "tiny20"]
    models = [load_network(name, None, None, allow_code).to(place) for name in named]
    run(models, port, host, public, password, lambda line: console.print(line, markup=False))

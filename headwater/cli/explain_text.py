"""``headwater explain-text``: coloured text, values and JSON for one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headwater.cli.explain import account_text
from headwater.cli.options import AllowCode, Folder, check_device, load_network
from headwater.cli.terminal import console


def explain_text(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the network classifies, in quotes.")],
    model: Annotated[str, typer.Option(help="Folder of save_pretrained, or hf:OWNER/NAME.")],
    method: Annotated[str, typer.Option(help="See headwater methods.")] = "headwater",
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or number; the predicted one if not given.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="Why the target and not this class, by name or number.")] = None,
    out: Folder = Path("maps"),
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Explain the beginning of a text that is longer than the network takes.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...; cuda where there is one.")] = None,
    allow_code: AllowCode = False,
) -> None:
    """Explain a text: its tokens coloured by relevance, as HTML and PNG, and the values."""
    from headwater.explanations import explain_text as explained
    from headwater.files import check_folder

    place = check_device(device)
    network = load_network(model, None, None, allow_code).to(place)
    check_folder(out)
    e = explained(text, network, method, target, against=against, truncate=truncate)
    drawn = e.save(out)[0]
    console.print(
        f"{e.explained} {e.probability.item():.1%} ({e.card.name}){account_text(e.conservation)} -> {drawn}",
        markup=False,
    )
    for token, value in sorted(zip(e.tokens, e.values, strict=True), key=lambda pair: -abs(pair[1]))[:_MOST]:
        console.print(f"{value:+.4f}  {token}", markup=False)


_MOST = 10  # tokens that are printed, those of most relevance

"""The command line: ``nudge COMMAND``. A module for each command.

Knows: which commands there are. Does not know: what any of them does.
"""

from __future__ import annotations

import gc
from typing import Annotated

import typer

from server import __version__
from server.cli.calibrate import calibrate
from server.cli.check import check_config
from server.cli.doctor import diagnose
from server.cli.evaluate import evaluate
from server.cli.replay import replay
from server.cli.serve import serve
from server.cli.terminal import out

# Every process of a server comes by here, its engines' too, before it imports vLLM: a million
# objects that stay, and looking through them again and again is a fifth of the time it takes.
# (`server.engines.vllm.lifeline` has it as usual again, once they are there.)
gc.set_threshold(50_000, 20, 100)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="An OpenAI-compatible server that turns any base language model into a chat model.",
)


def version(show: bool) -> None:
    if show:
        out.print(__version__)
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Nudging: a small aligned model helps a big base model where it is uncertain."""


app.command()(serve)
app.command("check-config")(check_config)
app.command()(replay)
app.command()(calibrate)
app.command("eval")(evaluate)
app.command("doctor")(diagnose)


def run() -> None:
    app(prog_name="nudge")

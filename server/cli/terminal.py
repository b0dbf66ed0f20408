"""What every command shares: the terminal's two streams, and how a configuration is read.

Knows: how a person is told something. Does not know: any command.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from server import config
from server.core import ConfigError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="The YAML file that names engines and models.")
]
ConfigArgument = Annotated[
    Path, typer.Argument(help="The YAML file that names engines and models.")
]


def load(path: Path, **flags: object) -> config.Settings:
    """A configuration. Says what is wrong with it, and ends the command (exit code 2)."""
    try:
        return config.load(path, **flags)
    except ConfigError as problem:
        say_error(str(problem))
        raise typer.Exit(2) from None


def progress(settings: config.Settings, to: Console = out) -> Callable[[str, str, float], None]:
    """Says how engines start; see `server.serving.engines.Progress`."""

    def say(engine: str, state: str, seconds: float) -> None:
        match state:
            case "loading":
                model = escape(settings.engines[engine].model)
                to.print(f"  loading {engine}  [dim]{model}[/dim]")
            case "ready":
                to.print(f"  [green]ready[/green]   {engine}  [dim]{seconds:.1f} s[/dim]")
            case _:
                to.print(f"  [red]failed[/red]  {engine}  [dim]{seconds:.1f} s[/dim]")

    return say


def say_error(message: str) -> None:
    err.print(f"[red]error[/red] {escape(message)}", soft_wrap=True)


def say_warning(message: str) -> None:
    err.print(f"[yellow]warning[/yellow] {escape(message)}", soft_wrap=True)

"""``nudge check-config``: what a configuration serves, and what is wrong with it by itself.

Knows: how that is shown. Does not know: what is checked; what needs a model's files.
"""

from __future__ import annotations

import typer
from rich.markup import escape
from rich.table import Table

from server.cli.terminal import ConfigArgument, load, out, say_error
from server.doctor import settings as checks


def check_config(config_file: ConfigArgument) -> None:
    """Read a configuration, say what it serves, and what is wrong with it. Loads no weights."""
    settings = load(config_file)
    table = Table("served as", "base", "aligned", "γ", box=None, header_style="bold")
    for name, model in settings.models.items():
        base, aligned = settings.engines[model.base], settings.engines[model.aligned]
        table.add_row(*map(escape, (name, base.model, aligned.model, f"{model.nudging.gamma:g}")))
    problems = checks.problems(settings)
    out.print(table)
    for problem in problems:
        say_error(problem)
    if problems:
        raise typer.Exit(1)
    out.print("[green]ok[/green]")

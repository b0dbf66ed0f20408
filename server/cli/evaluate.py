"""``nudge eval``: how good a pair's answers are, beside each model alone and other policies.

Knows: the command's options, the order of its work, its files. Does not know: how anything is
measured or shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from server.cli.measure import (
    AtOnceOption,
    FreshOption,
    LimitOption,
    MaxTokensOption,
    ModelOption,
    StopOption,
    about,
    fingerprint,
    finishing,
    run,
    served_model,
    totals,
)
from server.cli.terminal import ConfigArgument, load, out
from server.evaluation import data, endings, plots, report, scorers, tasks
from server.evaluation.data import Data, EvaluationError
from server.evaluation.figures import Figures, figures, scored
from server.evaluation.runs import Setup, Tick, answer_all, answers
from server.evaluation.scorers import Scorer
from server.evaluation.store import Store
from server.evaluation.systems import KNOWN, parse_all
from server.serving.registry import Registry


def evaluate(
    config_file: ConfigArgument,
    questions: Annotated[
        str,
        typer.Option(
            "--data", help="JSON Lines with 'prompt' or 'messages' and 'answer'; or the task demo."
        ),
    ],
    systems: Annotated[
        str,
        typer.Option(
            help=f"Who is compared: {', '.join(KNOWN)}; with a threshold as in nudged@0.3."
        ),
    ] = "base,aligned,nudged",
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="exact, contains, number, choice, by_row, module:function or file.py:function; "
            "may be given several times. [default: one that suits the answers]"
        ),
    ] = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = 256,
    stop: StopOption = None,
    at_once: AtOnceOption = 8,
    limit: LimitOption = None,
    to: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for answers, report and plot.")
    ] = Path("evaluation"),
    fresh: FreshOption = False,
) -> None:
    """Compare a pair with each model alone and with other policies: score, cost, time.

    Greedy. A run that was cut off goes on when the same command is given again; it may name more
    systems and other scorers.
    """
    settings = load(config_file)

    def action() -> None:
        asked, judges = _asked(questions, limit, scorer)
        setup = Setup(served_model(settings, model), max_tokens, tuple(stop or ()), at_once)
        compared = parse_all(systems, settings.models[setup.model])
        names = [system.name for system in compared]

        async def work(registry: Registry, tick: Tick) -> None:
            await answer_all(registry, setup, compared, asked, store, tick)

        with Store(to, fingerprint(settings, setup, asked), fresh=fresh) as store:
            run(settings, setup, asked, totals(store, names, asked), work)
            headers = endings.headers(settings.models[setup.model].base_prompt)
            found = _figures(store, names, asked, judges, headers)
        description = about(settings, setup, asked, store.begun)
        plot = "systems.svg" if plots.available() else None
        if plot:
            plots.systems(found, list(judges), to / plot)
        text = report.evaluation(description, found, list(judges), plot)
        (to / "report.md").write_text(text, "utf-8")
        report.write_json(to / "report.json", {"about": description, "systems": found})
        table = Table("system", *judges, "ended", "nudged", "tokens", "tok/s", box=None)
        for each in found:
            table.add_row(each.system, *report.shown(each))
        out.print(table)
        if not plot:
            out.print(f"no plot: {plots.INSTALL}", markup=False)
        out.print(f"written: {to}/report.md, report.json {plot or ''}")

    finishing(to, action)


def _asked(
    questions: str, limit: int | None, named: list[str] | None
) -> tuple[Data, dict[str, Scorer]]:
    """The questions, and who judges the answers."""
    task = tasks.find(questions, limit)
    asked = data.read(Path(questions), limit) if task is None else task.data
    own = {} if task is None else dict(task.scorers)
    if named:
        for own_name in named:
            if own_name not in own:
                scorers.check(own_name, asked.items)
        return asked, {name: own[name] if name in own else scorers.find(name) for name in named}
    if own:
        return asked, own
    name = scorers.default(asked.items)
    if name is None:
        raise EvaluationError(
            f"{asked.name}: not every row has an 'answer' to score by; add them, or name a "
            "--scorer of your own that needs none"
        )
    return asked, {name: scorers.find(name)}


def _figures(
    store: Store,
    names: list[str],
    asked: Data,
    judges: dict[str, Scorer],
    headers: Sequence[str],
) -> list[Figures]:
    given = {name: answers(store, name, asked) for name in names}
    scores = {name: scored(given[name], asked, judges) for name in names}
    return [
        figures(
            name,
            given[name],
            asked,
            scores[name],
            scores.get("base") if name != "base" else None,
            headers,
        )
        for name in names
    ]

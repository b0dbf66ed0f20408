"""``nudge eval``: how good a pair's answers are, beside each model alone and other policies.

Knows: the command's options, the order of its work, its files. Does not know: how anything is
measured or shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.table import Table

from server.cli.measure import (
    AtOnceOption,
    FreshOption,
    ModelOption,
    StopOption,
    about,
    fingerprint,
    finishing,
    run,
    served_model,
    totals,
)
from server.cli.paper import MAX_TOKENS, Options, paper
from server.cli.terminal import ConfigArgument, load, out
from server.config import Settings
from server.evaluation import data, plots, report, scorers, tasks
from server.evaluation.data import Data, EvaluationError
from server.evaluation.figures import Figures, figures, scored
from server.evaluation.paper.contestants import IN_CONTEXT, LARGE
from server.evaluation.paper.tasks import TASKS
from server.evaluation.runs import Setup, Tick, answer_all, answers, check_prompts
from server.evaluation.scorers import Scorer
from server.evaluation.store import Store
from server.evaluation.systems import KNOWN, parse_all
from server.serving.registry import Registry

KEY = "OPENAI_API_KEY"

KeyOption = Annotated[
    str | None,
    typer.Option(help="The environment variable that holds that endpoint's key.", show_default=KEY),
]

SYSTEMS = "base,aligned,nudged"


def evaluate(
    config_file: ConfigArgument,
    questions: Annotated[
        str | None,
        typer.Option(
            "--data",
            help="JSON Lines with 'prompt' or 'messages' and 'answer'; or the task demo. With "
            "--task or --suite: a folder of their files.",
            show_default="of the paper's tasks: the hub",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help=f"Tasks of the paper: {', '.join(TASKS)}.")
    ] = None,
    suite: Annotated[
        Literal["paper"] | None, typer.Option(help="All of the paper's tasks.")
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option(
            help=f"Who is compared: {', '.join(KNOWN)}; with a threshold as in nudged@0.3. With "
            f"--task or --suite also {IN_CONTEXT}, {LARGE}, and MODEL/SYSTEM for another model of "
            "the configuration.",
            show_default=SYSTEMS,
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            help="exact, contains, number, choice, by_row, module:function or file.py:function; "
            "may be given several times.",
            show_default="one that suits the answers",
        ),
    ] = None,
    model: ModelOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of an answer at most.",
            show_default="256; the paper's 512 for its tasks",
        ),
    ] = None,
    stop: StopOption = None,
    at_once: AtOnceOption = 8,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only the first so many questions; of each of the paper's tasks so many, drawn "
            "as the authors do (seed 609).",
        ),
    ] = None,
    prompts: Annotated[
        Literal["paper", "own"] | None,
        typer.Option(
            help="Of the paper's tasks: the paper's prompts, or the pair's own.",
            show_default="paper",
        ),
    ] = None,
    large: Annotated[
        str | None,
        typer.Option(help="A large aligned model: an engine of the configuration."),
    ] = None,
    large_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint (…/v1) that has --large instead."),
    ] = None,
    large_key: KeyOption = None,
    judge: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint (…/v1) whose model judges answers."),
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(help="Its model.", show_default="the paper's for each task")
    ] = None,
    judge_key: KeyOption = None,
    disagreement: Annotated[
        bool | None,
        typer.Option(
            "--disagreement/--no-disagreement",
            help="Of the paper's tasks: look where the two models disagree, too.",
            show_default="yes",
        ),
    ] = None,
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
    of_paper = task is not None or suite is not None
    limits = max_tokens or (MAX_TOKENS if of_paper else 256)

    def action() -> None:
        setup = Setup(served_model(settings, model), limits, tuple(stop or ()), at_once)
        of_the_paper: dict[str, object] = {
            "--prompts": prompts,
            "--large": large,
            "--large-url": large_url,
            "--large-key": large_key,
            "--judge": judge,
            "--judge-model": judge_model,
            "--judge-key": judge_key,
            "--disagreement": disagreement,
        }
        if not of_paper:
            _needs("--task or --suite", None, of_the_paper)
            if questions is None:
                raise EvaluationError(
                    "say what is asked: --data FILE, --task NAME or --suite paper"
                )
            if Path(questions).is_dir():
                raise EvaluationError(
                    f"{questions} is a folder; say which of its tasks: --task NAME, or "
                    "--suite paper"
                )
            _evaluate(settings, setup, questions, systems or SYSTEMS, limit, scorer, to, fresh)
            return
        if scorer:
            raise EvaluationError("the paper's tasks have their own scorers: leave --scorer out")
        if task is not None and suite is not None:
            raise EvaluationError("give either --task or --suite")
        _needs("--judge", judge, {"--judge-model": judge_model, "--judge-key": judge_key})
        _needs("--large-url", large_url, {"--large-key": large_key})
        options = Options(
            task,
            None if questions is None else Path(questions),
            systems,
            limit,
            prompts or "paper",
            large,
            large_url,
            large_key or KEY,
            judge,
            judge_model,
            judge_key or KEY,
            disagreement is not False,
        )
        paper(settings, setup, options, to, fresh=fresh)

    finishing(to, action)


def _needs(what: str, given: str | None, options: Mapping[str, object]) -> None:
    """Raises `EvaluationError` for an option that would be without effect."""
    for name, value in options.items():
        if given is None and value is not None:
            raise EvaluationError(f"{name} goes with {what}")


def _evaluate(
    settings: Settings,
    setup: Setup,
    questions: str,
    systems: str,
    limit: int | None,
    scorer: list[str] | None,
    to: Path,
    fresh: bool,
) -> None:
    """A file of questions."""
    asked, judges = _asked(questions, limit, scorer)
    compared = parse_all(systems, settings.models[setup.model])
    names = [system.name for system in compared]

    async def work(registry: Registry, tick: Tick) -> None:
        check_prompts(registry, setup.model, asked)
        await answer_all(registry, setup, compared, asked, store, tick)

    with Store(to, fingerprint(settings, setup, asked), fresh=fresh) as store:
        run(settings, [setup.model], totals(store, names, asked), work)
        found = _figures(store, names, asked, judges)
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
    out.print(f"written: {to}/report.md, report.json {plot or ''}", soft_wrap=True)


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
        )
        for name in names
    ]

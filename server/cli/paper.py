"""``nudge eval --suite paper``: the paper's tasks, answered, judged and told of.

Knows: the order of the work, its files. Does not know: options, how anything is measured or shown.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.table import Table

from server import config
from server.cli.measure import about, fingerprint, run, totals
from server.cli.progress import Telling
from server.cli.terminal import err, out, say_warning
from server.evaluation import agreement, plots
from server.evaluation.data import Data, EvaluationError
from server.evaluation.paper import plots as pictures
from server.evaluation.paper import report
from server.evaluation.paper.contestants import LARGE, Contest, contest, depends
from server.evaluation.paper.endpoint import Endpoint
from server.evaluation.paper.judge import Cost, Job, Judge
from server.evaluation.paper.outcome import Outcome, counted, mean_of, outcome, recall
from server.evaluation.paper.rows import Asked, found, load, named
from server.evaluation.paper.tasks import TASKS, PaperTask
from server.evaluation.report import estimate, percent, write_json
from server.evaluation.runs import Answer, Setup, Tick, answer_all, answers, check_prompts
from server.evaluation.store import Store
from server.serving.registry import Registry

MAX_TOKENS = 512
"""The paper's."""


@dataclass(frozen=True)
class Options:
    """What was asked for.

    tasks: names with commas between them; None: all. folder: of the tasks' files; None: the hub.
    limit: rows of each task, drawn. judge_key, large_key: environment variables.
    """

    tasks: str | None
    folder: Path | None
    systems: str | None
    limit: int | None
    prompts: Literal["paper", "own"]
    large: str | None
    large_url: str | None
    large_key: str
    judge: str | None
    judge_model: str | None
    judge_key: str
    disagreement: bool


def paper(
    settings: config.Settings, setup: Setup, options: Options, to: Path, *, fresh: bool
) -> None:
    """Raises `NudgeError`."""
    tasks = _wanted(options)
    compared = _contest(settings, setup, options)
    prefixed = options.prompts == "paper"
    asked = []
    for task in tasks:
        err.print(f"  reading {task.name}", markup=False)
        asked.append(load(task, options.folder, options.limit, prefixed=prefixed))
    with ExitStack() as stack:
        stores = {}
        for each in asked:
            print_of = fingerprint(compared.settings, setup, each.data)
            store = Store(to / each.task.name, print_of, fresh=fresh)
            stores[each.task.name] = stack.enter_context(store)
            for system in compared.systems:
                store.expect(system.name, depends(compared, system))
        _answer(compared, setup, options, asked, stores)
        given = {each.task.name: _given(compared, stores, each) for each in asked}
        judge = None
        if options.judge is not None:
            endpoint = Endpoint(options.judge, os.environ.get(options.judge_key))
            judge = Judge(endpoint, options.judge_model, to / "judgements.jsonl")
            stack.enter_context(judge)
        costs = {} if judge is None else _judge(judge, asked, given, setup.at_once)
        outcomes = [
            outcome(
                each,
                given[each.task.name],
                judge,
                agreement.positions_of(stores[each.task.name], each.data)
                if options.disagreement
                else None,
            )
            for each in asked
        ]
        begun = min(store.begun for store in stores.values())
    _report(compared, setup, options, outcomes, costs, begun, to)


def _wanted(options: Options) -> list[PaperTask]:
    """Those that were named; of all of them those that the folder has, if there is one."""
    if options.tasks is not None:
        return named(name for each in options.tasks.split(",") if (name := each.strip()))
    tasks = named(TASKS)
    if options.folder is None:
        return tasks
    there = [task for task in tasks if found(task, options.folder)]
    if absent := ", ".join(task.name for task in tasks if task not in there):
        if not there:
            raise EvaluationError(f"{options.folder} has a file of none of the tasks: {absent}")
        say_warning(f"left out, for {options.folder} has no file of them: {absent}")
    return there


def _contest(settings: config.Settings, setup: Setup, options: Options) -> Contest:
    systems = options.systems or ",".join(
        ["base", "aligned", *([LARGE] if options.large else []), "nudged"]
    )
    if options.large is not None and LARGE not in [each.strip() for each in systems.split(",")]:
        raise EvaluationError(f"--large is given, and {LARGE} isn't among the --systems")
    endpoint = None
    if options.large_url is not None:
        if options.large is None:
            raise EvaluationError("--large-url needs the model's name there: --large MODEL")
        endpoint = Endpoint(options.large_url, os.environ.get(options.large_key))
    return contest(
        settings,
        setup.model,
        systems,
        paper_prompt=options.prompts == "paper",
        large=options.large,
        endpoint=endpoint,
    )


def _answer(
    compared: Contest,
    setup: Setup,
    options: Options,
    asked: Sequence[Asked],
    stores: Mapping[str, Store],
) -> None:
    """What is missing."""
    names = [agreement.SYSTEM] if options.disagreement else []
    names += [system.name for system in compared.systems]
    counts = {
        f"{each.task.name} {name}": count
        for each in asked
        for name, count in totals(stores[each.task.name], names, each.data).items()
    }
    models = compared.models

    async def work(registry: Registry, tick: Tick) -> None:
        for each in asked:
            for model in models:
                check_prompts(registry, model, each.data)
        for each in asked:
            store, name = stores[each.task.name], each.task.name

            def told(system: str, name: str = name) -> None:
                tick(f"{name} {system}")

            if options.disagreement:
                await agreement.compare_all(registry, setup, each.data, store, told)
            await answer_all(registry, setup, compared.systems, each.data, store, told)

    run(compared.settings, models, counts, work)


def _given(compared: Contest, stores: Mapping[str, Store], asked: Asked) -> dict[str, list[Answer]]:
    store = stores[asked.task.name]
    return {each.name: answers(store, each.name, asked.data) for each in compared.systems}


def _judge(
    judge: Judge,
    asked: Sequence[Asked],
    given: Mapping[str, Mapping[str, Sequence[Answer]]],
    at_once: int,
) -> dict[str, Cost]:
    """Everything that takes a judge. Returns what it cost, by the judge's model."""
    jobs: dict[str, list[Job]] = {}
    for each in (each for each in asked if each.task.judge is not None):
        for answered in given[each.task.name].values():
            for question, answer in zip(each.questions, answered, strict=True):
                job = (each.task, question, answer.text)
                jobs.setdefault(judge.model(each.task), []).append(job)
    waiting = {model: (0, missing) for model in jobs if (missing := judge.missing(jobs[model]))}

    async def all_of_them() -> None:
        for model in waiting:
            await judge.judge(jobs[model], at_once, partial(telling.advance, model))

    with Telling(waiting) as telling:
        asyncio.run(all_of_them())
    return {model: judge.cost(each) for model, each in jobs.items()}


def _report(
    compared: Contest,
    setup: Setup,
    options: Options,
    outcomes: Sequence[Outcome],
    costs: Mapping[str, Cost],
    begun: str,
    to: Path,
) -> None:
    source = "the hub" if options.folder is None else options.folder.name
    names = ", ".join(each.task for each in outcomes)
    questions = sum(each.questions for each in outcomes)
    whole = Data(f"{names} from {source}", [])
    description = about(compared.settings, setup, whole, begun, questions)
    drawn = pictures.draw(outcomes, to) if plots.available() else []
    text = report.text(description, options.prompts, outcomes, costs, drawn)
    (to / "report.md").write_text(text, "utf-8")
    means = {name: mean_of(outcomes, name) for name in outcomes[0].figures}
    told = [replace(each, positions=None) for each in outcomes]  # they are in results.jsonl
    kept = {"about": description, "means": means, "tasks": told, "judge": costs}
    write_json(to / "report.json", {**kept, "recall": recall(outcomes)})
    _show(outcomes)
    for model, cost in costs.items():
        out.print(
            f"{model}: {cost.judgements} judgements ({cost.new} of this run), "
            f"{cost.prompt_tokens:,} prompt and {cost.completion_tokens:,} completion tokens",
            markup=False,
        )
    if not plots.available():
        out.print(f"no plots: {plots.INSTALL}", markup=False)
    out.print(f"written: {to}/report.md, report.json {' '.join(drawn)}", soft_wrap=True)


def _show(outcomes: Sequence[Outcome]) -> None:
    """The means; the tasks are in the report."""
    told = len(counted(outcomes))
    table = Table("system", f"mean of {told} tasks", "ended", "nudged", box=None)
    for name in outcomes[0].figures:
        found = [each.figures[name] for each in outcomes]
        mean = mean_of(outcomes, name)
        nudged = sum(each.nudged_share for each in found) / len(found)
        table.add_row(
            name,
            "–" if mean is None else estimate(mean),
            percent(sum(each.ended for each in found) / len(found)),
            "–" if found[0].nudged_words is None else percent(nudged),
        )
    out.print(table)

"""``nudge calibrate``: which γ a pair should have, and whether it works at all.

Knows: the command's options, the order of its work, its files. Does not know: how anything is
measured or shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server import config
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
from server.evaluation import (
    agreement,
    calibration,
    data,
    plots,
    report,
    scorers,
    statistics,
    tasks,
)
from server.evaluation.calibration import Calibration, decide, example
from server.evaluation.data import Data, EvaluationError
from server.evaluation.figures import Figures, figures, scored
from server.evaluation.runs import Setup, Tick, answer_all, answers, check_prompts
from server.evaluation.scorers import Scorer
from server.evaluation.store import Store
from server.evaluation.systems import ALONE, System, nudged_at, parse, to_gammas
from server.serving.registry import Registry

GAMMAS = "0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8"


def calibrate(
    config_file: ConfigArgument,
    prompts: Annotated[
        str,
        typer.Option(
            help="JSON Lines with 'prompt' (and 'answer'), or a text with one prompt a line."
        ),
    ],
    model: ModelOption = None,
    gammas: Annotated[str, typer.Option(help="The γ to try.")] = GAMMAS,
    target: Annotated[
        float, typer.Option(min=0, max=1, help="The share of tokens that may be nudged.")
    ] = 0.1,
    scorer: Annotated[
        str | None,
        typer.Option(
            help="exact, contains, number, choice, by_row, module:function or file.py:function.",
            show_default="one that suits the answers, if there are any",
        ),
    ] = None,
    max_tokens: MaxTokensOption = 256,
    stop: StopOption = None,
    at_once: AtOnceOption = 8,
    limit: LimitOption = None,
    to: Annotated[
        Path, typer.Option("--out", "-o", help="The folder for answers, report and plots.")
    ] = Path("calibration"),
    fresh: FreshOption = False,
) -> None:
    """Try a pair with several γ: how much is nudged, where the models disagree, which γ to set.

    Greedy. A run that was cut off goes on when the same command is given again.
    """
    settings = load(config_file)

    def action() -> None:
        asked, judge = _asked(prompts, limit, scorer)
        setup = Setup(served_model(settings, model), max_tokens, tuple(stop or ()), at_once)
        swept = {
            gamma: nudged_at(gamma, settings.models[setup.model]) for gamma in to_gammas(gammas)
        }
        with Store(to, fingerprint(settings, setup, asked), fresh=fresh) as store:
            alone = [parse(name, settings.models[setup.model]) for name in ALONE]
            _measure(settings, setup, asked, store, [*alone, *swept.values()])
            found = _calibration(settings, setup, asked, store, swept, target, judge)
        _report(settings, setup, found, next(iter(judge), None), to)

    finishing(to, action)


def _asked(prompts: str, limit: int | None, scorer: str | None) -> tuple[Data, dict[str, Scorer]]:
    """The questions, and who judges the answers, if anybody does."""
    task = tasks.find(prompts, limit)
    asked = data.read(Path(prompts), limit) if task is None else task.data
    if scorer is not None:
        scorers.check(scorer, asked.items)
        return asked, {scorer: scorers.find(scorer)}
    if task is not None:
        return asked, dict(list(task.scorers.items())[:1])
    name = scorers.default(asked.items)
    return asked, {} if name is None else {name: scorers.find(name)}


def _measure(
    settings: config.Settings, setup: Setup, asked: Data, store: Store, swept: list[System]
) -> None:
    async def work(registry: Registry, tick: Tick) -> None:
        check_prompts(registry, setup.model, asked)
        await agreement.compare_all(registry, setup, asked, store, tick)
        await answer_all(registry, setup, swept, asked, store, tick)

    names = [agreement.SYSTEM, *(system.name for system in swept)]
    run(settings, [setup.model], totals(store, names, asked), work)


def _calibration(
    settings: config.Settings,
    setup: Setup,
    asked: Data,
    store: Store,
    swept: dict[float, System],
    target: float,
    judge: dict[str, Scorer],
) -> Calibration:
    def figures_of(system: str) -> Figures:
        given = answers(store, system, asked)
        return figures(system, given, asked, scored(given, asked, judge))

    found = {gamma: figures_of(system.name) for gamma, system in swept.items()}
    alone = {name: figures_of(name) for name in ALONE}
    decision = decide(found, alone["aligned"], target)
    names = {f"γ = {gamma:g}": system.name for gamma, system in swept.items()}
    names |= {f"{name} alone": name for name in ALONE}
    examples = {shown: example(answers(store, name, asked)[0]) for shown, name in names.items()}
    positions = agreement.positions_of(store, asked)
    if not positions:
        raise EvaluationError("the aligned model wrote nothing at all for these prompts")
    below = None
    if decision.suggestion is not None:
        below = statistics.found_below(positions, decision.suggestion.gamma)
    return Calibration(
        about(settings, setup, asked, store.begun),
        target,
        found,
        alone,
        decision,
        examples,
        statistics.by_top_prob(positions),
        agreement.average(positions),
        below,
    )


def _report(
    settings: config.Settings, setup: Setup, found: Calibration, scorer: str | None, folder: Path
) -> None:
    names = []
    if plots.available():
        names = ["gamma.svg", "disagreement.svg"]
        plots.gammas(found, scorer, folder / names[0])
        plots.disagreement(found, folder / names[1])
    own = settings.models[setup.model].model_dump(mode="json", exclude_unset=True)
    snippet = calibration.snippet(found, own)
    (folder / "suggested.yaml").write_text(snippet, "utf-8")
    report.write_json(folder / "report.json", found)
    (folder / "report.md").write_text(calibration.text(found, scorer, snippet, names), "utf-8")
    for paragraph in calibration.advice(found, scorer):
        out.print(paragraph.replace("**", ""), markup=False)
    if not names:
        out.print(f"no plots: {plots.INSTALL}", markup=False)
    out.print(
        f"written: {folder}/report.md, report.json, suggested.yaml {' '.join(names)}",
        soft_wrap=True,
    )

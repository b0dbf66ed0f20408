"""What `nudge calibrate` and `nudge eval` share: the terminal around a run.

Knows: engines' start and end, how a run that is cut off is told of. Does not know:
what is measured.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from server import config
from server.cli.progress import Telling
from server.cli.terminal import err, out, progress, say_error
from server.core import NudgeError
from server.engines import backends
from server.evaluation.data import Data, EvaluationError
from server.evaluation.report import About
from server.evaluation.runs import Setup, Tick
from server.evaluation.store import Store
from server.serving.registry import Registry

Work = Callable[[Registry, Tick], Awaitable[None]]

ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Which of the configuration's models.", show_default="its first"),
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Tokens of an answer at most.")]
StopOption = Annotated[
    list[str] | None,
    typer.Option(help="A text that ends an answer, for every system. May be given several times."),
]
AtOnceOption = Annotated[int, typer.Option(min=1, help="Answers written at the same time.")]
LimitOption = Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")]
FreshOption = Annotated[bool, typer.Option("--fresh", help="Drop what the folder holds.")]


def served_model(settings: config.Settings, name: str | None) -> str:
    """Raises `EvaluationError`."""
    if name is None:
        return next(iter(settings.models))
    if name not in settings.models:
        raise EvaluationError(
            f"the configuration has no model {name!r} (there are {', '.join(settings.models)})"
        )
    return name


def fingerprint(settings: config.Settings, setup: Setup, data: Data) -> dict[str, Any]:
    """What answers depend on. γ and the policy are told by each system's name."""
    model = settings.models[setup.model]
    own = model.model_dump(mode="json")
    own["nudging"] = {k: v for k, v in own["nudging"].items() if k not in ("gamma", "policy")}
    return {
        "model": {"name": setup.model, **own},
        "engines": {
            name: settings.engines[name].model_dump(mode="json") for name in model.engines.values()
        },
        "questions": data.digest,
        "max_tokens": setup.max_tokens,
        "stop": list(setup.stop),
        "at_once": setup.at_once,
    }


def about(
    settings: config.Settings, setup: Setup, data: Data, begun: str, questions: int | None = None
) -> About:
    """``questions``: how many there are, where ``data`` doesn't hold them."""
    model = settings.models[setup.model]
    return About(
        model=setup.model,
        base=_shown(settings.engines[model.base].model),
        aligned=_shown(settings.engines[model.aligned].model),
        data=data.name,
        questions=len(data.items) if questions is None else questions,
        max_tokens=setup.max_tokens,
        at_once=setup.at_once,
        stop=setup.stop,
        command=shlex.join(["nudge", *sys.argv[1:]]),
        begun=begun,
        machine=_machine(settings, setup),
    )


def run(
    settings: config.Settings,
    models: Sequence[str],
    totals: Mapping[str, tuple[int, int]],
    work: Work,
) -> None:
    """Start the engines of some models, do the work and tell how far it is, end the engines. Does
    nothing where nothing is missing.

    Args:
        totals: by system, how many results are there and how many there will be.

    Raises:
        NudgeError: why it failed. What was kept stays.
    """
    if all(done == total for done, total in totals.values()):
        out.print("every answer is there already; no engine is started")
        return
    asyncio.run(_run(settings, models, totals, work))


async def _run(
    settings: config.Settings,
    models: Sequence[str],
    totals: Mapping[str, tuple[int, int]],
    work: Work,
) -> None:
    registry = Registry(_only(settings, models))
    await registry.start(progress(settings))
    try:
        with Telling(totals) as telling:
            await work(registry, telling.advance)
    finally:
        await registry.aclose()


def finishing(store_path: Path, action: Callable[[], None]) -> None:
    """Do the whole of a command. Ends it with exit code 2 for a wrong question, 1 for an engine
    that failed, 130 for Ctrl-C."""
    goes_on = f"What was answered is in {store_path}; the same command goes on from there."
    try:
        action()
    except EvaluationError as error:
        say_error(str(error))
        raise typer.Exit(2) from None
    except NudgeError as error:
        say_error(str(error))
        err.print(goes_on, soft_wrap=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        err.print(f"\ncut off. {goes_on}", soft_wrap=True)
        raise typer.Exit(130) from None


def totals(store: Store, names: list[str], data: Data) -> dict[str, tuple[int, int]]:
    """For `run`."""
    return {
        name: (
            sum((name, item.number) in store.results for item in data.items),
            len(data.items),
        )
        for name in names
    }


def _only(settings: config.Settings, names: Sequence[str]) -> config.Settings:
    """The configuration with some models and the engines that they need."""
    models = {name: settings.models[name] for name in names}
    wanted = {engine for each in models.values() for engine in each.engines.values()}
    return settings.model_copy(
        update={
            "models": models,
            "engines": {k: v for k, v in settings.engines.items() if k in wanted},
        }
    )


def _shown(model: str) -> str:
    """A model's name; of a folder its last part, which is no path of this machine."""
    return Path(model).name if Path(model).is_absolute() else model


def _machine(settings: config.Settings, setup: Setup) -> str:
    """What it ran on, in words."""
    model = settings.models[setup.model]
    names = (model.base, model.aligned)
    rows = [backends.of(settings.engines[name]) for name in names]
    return ", ".join(dict.fromkeys(row.hardware() for row in rows))

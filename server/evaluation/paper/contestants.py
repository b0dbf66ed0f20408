"""Who is compared in the paper's evaluation, besides the pair: in-context alignment, a large
aligned model, other pairs.

Knows: how each is made of a configuration's engines, or of an endpoint. Does not know: tasks,
scores.

    in_context          the base model behind a prompt with examples (Lin et al., "The Unlocking
                        Spell on Base LLMs", 2024; the prompt is our own)
    large_aligned       a third engine of the configuration, or an endpoint
    OTHER/nudged@0.3    a system of another model of the configuration: a larger nudger
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from server.config import ModelSettings, Settings
from server.evaluation.data import EvaluationError
from server.evaluation.paper.endpoint import Endpoint, Remote
from server.evaluation.paper.tasks import BASE_PROMPT
from server.evaluation.systems import KNOWN, System, parse

IN_CONTEXT = "in_context"
LARGE = "large_aligned"

EXAMPLES = Path(__file__).with_name("in_context.jinja")
"""The base model's prompt for in-context alignment."""

IN_CONTEXT_STOP = ("\n# Query:",)
"""How its next question begins: a base model doesn't end its answer, it goes on with that."""


@dataclass(frozen=True)
class Contest:
    """Who takes part.

    name: of the model that is measured. settings: the configuration with the models that the
    systems need.
    """

    name: str
    settings: Settings
    systems: Sequence[System]

    @property
    def models(self) -> list[str]:
        """All that take part, by name."""
        others = (each.model for each in self.systems if each.model)
        return list(dict.fromkeys([self.name, *others]))


def contest(
    settings: Settings,
    name: str,
    systems: str,
    *,
    paper_prompt: bool,
    large: str | None = None,
    endpoint: Endpoint | None = None,
) -> Contest:
    """
    Args:
        name: the model that is measured.
        systems: names with commas between them.
        paper_prompt: whether the base models read the paper's prompt instead of their own.
        large: a large aligned model: an engine's name, or a model's behind ``endpoint``.

    Raises `EvaluationError`.
    """
    prompt = {"base_prompt": BASE_PROMPT} if paper_prompt else {}
    models = {each: model.model_copy(update=prompt) for each, model in settings.models.items()}
    own = models[name]
    remote = None if endpoint is None or large is None else Remote(endpoint, large)

    def in_context() -> System:
        text = EXAMPLES.read_text("utf-8")
        key = f"{name}.{IN_CONTEXT}"
        models[key] = ModelSettings(
            base=own.base,
            aligned=own.aligned,
            chat_template=own.chat_template,
            base_prompt=text,
        )
        return System(IN_CONTEXT, ":base", own.nudging.config(), key, IN_CONTEXT_STOP)

    def large_aligned() -> System:
        nudging = own.nudging.config()
        if remote is not None:
            return System(LARGE, ":aligned", nudging, elsewhere=remote)
        if large is None:
            raise EvaluationError(
                f"{LARGE} needs --large ENGINE, an engine of the configuration, or --large MODEL "
                "and --large-url URL"
            )
        if large not in settings.engines:
            known = ", ".join(settings.engines)
            raise EvaluationError(f"no engine is named {large!r} (there are: {known})")
        key = f"{name}.{LARGE}"
        models[key] = ModelSettings(base=own.base, aligned=large, **prompt)
        return System(LARGE, ":aligned", nudging, key)

    made: dict[str, Callable[[], System]] = {IN_CONTEXT: in_context, LARGE: large_aligned}
    found = []
    for part in (each.strip() for each in systems.split(",") if each.strip()):
        if part in made:
            found.append(made[part]())
            continue
        other, slash, rest = part.partition("/")
        if slash and other not in settings.models:
            raise EvaluationError(
                f"{part!r}: the configuration has no model {other!r} (there are "
                f"{', '.join(settings.models)})"
            )
        system = parse(rest, models[other]) if slash else _parse(part, own)
        named = f"{other}/{system.name}" if slash else system.name
        found.append(replace(system, name=named, model=other if slash else None))
    if not found:
        raise EvaluationError("name at least one system, as in --systems base,aligned,nudged")
    unique = {system.name: system for system in found}
    whole = settings.model_copy(update={"models": models})
    return Contest(name, whole, list(unique.values()))


def _parse(name: str, own: ModelSettings) -> System:
    try:
        return parse(name, own)
    except EvaluationError as error:
        if "there is no system" not in str(error):
            raise
        known = ", ".join((*KNOWN, IN_CONTEXT, LARGE))
        raise EvaluationError(
            f"there is no system {name!r} (there are {known}, and MODEL/SYSTEM for another model "
            "of the configuration; γ goes behind an @, as in nudged@0.3)"
        ) from None


def depends(contest: Contest, system: System) -> dict[str, Any]:
    """What the answers of a system depend on that isn't the measured model."""
    if isinstance(system.elsewhere, Remote):
        return {"endpoint": system.elsewhere.endpoint.url, "model": system.elsewhere.model}
    if system.model is None:
        return {}
    model = contest.settings.models[system.model]
    own = model.model_dump(mode="json", exclude={"nudging": {"gamma", "policy"}})
    engines = contest.settings.engines
    shown = {each: engines[each].model_dump(mode="json") for each in model.engines.values()}
    return {"model": own, "engines": shown, "stop": list(system.stop)}

"""What an answer needs of the engines that write it, refused by name where one can't do it.

Knows: which field needs which ability, and that a token id must name one token. Does not know: how
answers are written, which engines live, HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from server.config import ModelSettings
from server.core import AnswerRequest, InvalidRequest
from server.engines.base import Ability, EngineInfo
from server.policies import EngineRole, PolicySpec

WHAT: dict[Ability, str] = {
    "adjust": "change which token is drawn",
    "grammar": "follow a schema",
    "score": "tell the probabilities of a prompt",
    "check": "check a draft",
    "distribution": "tell the probability of every token",
}
"""What an engine without an ability can't do."""


def check(
    request: AnswerRequest,
    engines: Mapping[EngineRole, EngineInfo],
    policy: PolicySpec | None = None,
) -> None:
    """Raises `InvalidRequest` where an engine can't do what the answer takes.

    Args:
        engines: those that write it, by their role.
        policy: by which; None: one model alone.
    """
    for field, ability in _of(request):
        for info in engines.values():
            _expect(info, ability, field)
    for role, info in engines.items():
        if policy is not None and role in policy.distributions:
            _expect(info, "distribution", "nudging.policy")


def _of(request: AnswerRequest) -> Iterator[tuple[str, Ability]]:
    """The fields of a request that take an ability."""
    yield from ((field, "adjust") for field in request.adjusting())
    if request.grammar is not None:
        yield request.grammar.field, "grammar"
    if request.prompt_logprobs or not request.limit:
        yield "echo" if request.prompt_logprobs else "max_tokens", "score"


def _expect(info: EngineInfo, ability: Ability, field: str) -> None:
    if ability not in info.abilities:
        raise InvalidRequest(
            f"{field!r} is not served by this model: its engine {info.name!r} can't "
            f"{WHAT[ability]}",
            param=field,
        )


def misfits(model: ModelSettings, engines: Mapping[str, EngineInfo]) -> Iterator[str]:
    """What a model's settings ask for that its engines can't do: the setting, and what is wrong
    with it.

    Args:
        engines: by name.
    """
    for spec in model.allowed.values():
        key = "nudging.policy" if spec is model.own else "policies"
        its = {role: engines[model.engines[role]] for role in spec.engines}
        try:
            check(AnswerRequest(), its, spec)
        except InvalidRequest as error:
            yield f"{key}: {error}"
    base = engines[model.base]
    if model.verify == "on" and "check" not in base.abilities:
        yield f"verify: engine {base.name!r} can't {WHAT['check']}; leave it off"


def check_token_ids(name: str, request: AnswerRequest, speakers: list[EngineInfo]) -> None:
    """Raises `InvalidRequest` for token ids that don't name one token of each speaker.

    Args:
        name: of the pair.
    """
    given = {
        "stop_token_ids": request.stop_token_ids,
        "logit_bias": [token for token, _ in request.sampling.logit_bias],
    }
    if not any(given.values()):
        return
    tokenizers = [info.tokenizer for info in speakers]
    for field, ids in given.items():
        if ids and not tokenizers[0].same_ids_as(tokenizers[-1]):
            raise InvalidRequest(
                f"the two models of {name!r} have different vocabularies, so a token "
                f"id in {field!r} is ambiguous; ask {name}:base or {name}:aligned",
                param=field,
            )
        size = min(tokenizer.size for tokenizer in tokenizers)
        if unknown := [token for token in ids if token >= size]:
            raise InvalidRequest(
                f"token id {unknown[0]} in {field!r} is not in the vocabulary of {size} tokens",
                param=field,
            )

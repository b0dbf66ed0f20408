"""What one request may ask for: how many answers, and how long a prompt.

Knows: the limits of the settings, and which requests have what. Does not know: how a prompt is
rendered, who waits for whom (`server.api.admission`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from fastapi import Request

from server.api.admission import Gate, Ticket
from server.api.ask import Ask, Asked
from server.api.errors import ApiError
from server.config import ServerSettings
from server.core import ContextLengthExceeded
from server.decoding.handover import too_long
from server.decoding.stream import Writer
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer


def check_request(request: Request, ask: Ask) -> None:
    """Refuse a request that can't be answered before any work is done for it: nothing is
    rendered, no text is tokenized, and no session is opened.

    Raises `ApiError` (400, 429, 503), `ContextLengthExceeded`, ``UnknownModel``.
    """
    registry: Registry = request.app.state.registry
    gate: Gate = request.app.state.gate
    settings = registry.settings.server
    prompts = ask.prompt.count
    answers = ask.n * prompts
    most = min(settings.max_n, settings.max_running, settings.max_per_key or settings.max_n)
    if answers > most:
        raise ApiError(
            400,
            f"the request asks for {answers} answers; this server gives {most} at most",
            param=ask.prompt.field if prompts > most else "n",
        )
    gate.check(answers, _key(request), ask.priority)
    _check_texts(registry, ask)


def take_ticket(request: Request, answers: int, priority: int) -> Ticket:
    """The request's place, to be given back. Raises `ApiError` (429, 503)."""
    gate: Gate = request.app.state.gate
    return gate.ticket(answers, _key(request), request.state.arrived, priority)


def check_prompts(
    settings: ServerSettings, prompt: Asked, writers: Sequence[Sequence[Writer]]
) -> None:
    """Raises `ContextLengthExceeded` for a prompt over ``max_prompt_tokens``."""
    if settings.max_prompt_tokens is None:
        return
    for answers in writers:
        usage = answers[0].usage()
        longest = max(usage.base_prompt_tokens, usage.aligned_prompt_tokens)
        if longest > settings.max_prompt_tokens:
            raise _too_long(prompt, f"{longest}", settings.max_prompt_tokens)


def _key(request: Request) -> str | None:
    key: str | None = getattr(request.state, "key", None)
    return key


def _check_texts(registry: Registry, ask: Ask) -> None:
    """Refuse what is too long by its bytes, its messages or its token ids alone.

    Tokenizing takes the event loop's time, so text of megabytes would hold up every answer
    only to be found too long. No token is longer than the longest of its vocabulary, so text
    of more bytes than that many of the longest ones hold can't fit.
    """
    served = registry.resolve(ask.model)
    model = registry.settings.models[served.name]
    names = {"base": [model.base], "aligned": [model.aligned]}.get(
        served.role, [model.base, model.aligned]
    )
    longest_text = max(ask.prompt.sizes(), default=0)
    given = ask.prompt.least_tokens
    for name in names:
        engine = registry.engines.get(name)
        if engine is None:
            continue  # it loads, which the registry will say
        tokens = engine.info.context_length
        if (own := registry.settings.server.max_prompt_tokens) is not None:
            tokens = min(tokens, own)
        if max(longest_text, given) <= tokens:
            continue
        least = max(given, longest_text // _longest_token(engine.info.tokenizer))
        if least > tokens:
            raise _too_long(ask.prompt, f"more than {least}", tokens)


@lru_cache(maxsize=16)
def _longest_token(tokenizer: Tokenizer) -> int:
    """Bytes. As the vocabulary spells tokens, which is never shorter than what they stand for."""
    return max(len(spelling.encode()) for spelling in tokenizer.chat.get_vocab())


def _too_long(prompt: Asked, tokens: str, most: int) -> ContextLengthExceeded:
    return ContextLengthExceeded(too_long(most, tokens), param=prompt.field)

"""The routes that write answers: one for each dialect.

Knows: who answers what is asked, under which settings, and what is refused once that is known.
Does not know: any dialect's fields, how an answer is sent, a rule of the policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeAlias, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api import errors
from server.api.ask import Ask, Chat
from server.api.body import body_schema, json_text
from server.api.dialect import Dialect
from server.api.dialects import DIALECTS
from server.api.errors import ApiError
from server.api.fields import SESSION
from server.api.limits import check_request
from server.api.prompts import rendered, seen
from server.api.respond import Answers, respond
from server.api.store import shelf
from server.core import (
    AnswerRequest,
    Grammar,
    Message,
    NudgingConfig,
    PromptPair,
    ThinkingLimit,
)
from server.decoding.parsing import Parser, Plain
from server.decoding.stream import Writer
from server.policies import POLICIES
from server.serving.catalog import Served
from server.serving.registry import Registry

LONG_TEXT = 8192
"""Of a prompt's ``work``, in bytes of text: what takes some milliseconds, which other answers
shouldn't feel."""

Result = TypeVar("Result")

Pairs: TypeAlias = Sequence[PromptPair | None]


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()
    for dialect in DIALECTS:
        router.add_api_route(
            dialect.path,
            _endpoint(registry, dialect),
            methods=["POST"],
            name=dialect.name,
            description=dialect.description,
            openapi_extra=body_schema(dialect.body),
            responses=dialect.responses,
        )
    return router


def _endpoint(registry: Registry, dialect: Dialect) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        ask, reply = dialect.parse(await json_text(request), shelf(request))
        check_request(request, ask)
        served = registry.resolve(ask.model)
        offered = _offers_tools(ask)
        ask = _told(registry, served, ask)
        nudging = _nudging(served, ask)
        served = registry.stand_in(served, nudging)
        _check_one_model(served, ask)
        pairs = await _read_text(ask, lambda: _prompts(registry, served, ask))
        ask = _fitting(ask, pairs)
        grammar = await _grammar(request, registry, served, ask, pairs)
        parser = _parser(registry, served, ask, pairs)
        marked = parser is not Plain
        answer = ask.request(
            served.sampling,
            grammar,
            served.stop,
            marked=marked,
            thinking=_thinking(registry, served, ask, pairs, nudging),
        )
        answer = replace(answer, session=answer.session or _session(request))
        writers = await _read_text(
            ask, lambda: _writers(registry, served, ask, pairs, answer, nudging)
        )
        answers = Answers(
            ask,
            answer,
            writers,
            registry.grammars.matches,
            _echo(registry, served, ask),
            parser,
        )
        response = await respond(request, answers, reply)
        if offered and not _offers_tools(ask):
            response.headers["X-Nudge-Tools"] = "unseen"
        held_to = "thinking" if answer.thinking else None
        if passed_over := [field for field in ask.passed_over if field != held_to]:
            response.headers["X-Nudge-Passed-Over"] = ", ".join(passed_over)
        if served.degraded:
            response.headers["X-Nudge-Degraded"] = "aligned"
        return response

    return endpoint


def _session(request: Request) -> str | None:
    """By its header, as routers have it. Raises `ApiError`."""
    name = request.headers.get("x-session-id")
    if name and not SESSION.fullmatch(name):
        told = "'X-Session-ID' must be 1 to 256 visible characters of ASCII"
        raise ApiError(400, told, param="session_id")
    return name or None


def _offers_tools(ask: Ask) -> bool:
    return isinstance(ask.prompt, Chat) and ask.prompt.tools is not None


def _told(registry: Registry, served: Served, ask: Ask) -> Ask:
    """What is asked for, without tools that the served model passes over."""
    if not isinstance(ask.prompt, Chat):
        return ask
    tools = seen(registry, ask.prompt.tools, served)
    return replace(ask, prompt=replace(ask.prompt, tools=tools))


def _fitting(ask: Ask, pairs: Pairs) -> Ask:
    """What is asked for, without tools for which there was no room."""
    if not isinstance(ask.prompt, Chat):
        return ask
    (pair,) = pairs
    assert pair is not None
    return ask if pair.tools else replace(ask, prompt=replace(ask.prompt, tools=None))


def _nudging(served: Served, ask: Ask) -> NudgingConfig:
    """The policy's settings for one answer. Raises `ApiError` for what would have no effect."""
    if served.role != "nudged":
        for field in sorted(ask.nudging):
            raise ApiError(
                400,
                f"nudging.{field} has no effect on one model alone; ask {served.name!r}",
                param=f"nudging.{field}",
            )
        return served.nudging
    config = ask.settings(served.nudging)
    policy = POLICIES[config.policy]
    if policy not in served.policies:
        raise ApiError(
            400,
            f"the policy {policy.name!r} can't be asked for here; {served.name!r} allows "
            f"{', '.join(each.name for each in served.policies)} (models.{served.name}.policies "
            "in the server's configuration)",
            param="nudging.policy",
        )
    for field in sorted(ask.beyond(policy)):
        why = f", {policy.why}" if field in policy.refuses and policy.why else ""
        raise ApiError(
            400, f"{field} has no effect on the policy {policy.name!r}{why}", param=field
        )
    return config


async def _grammar(
    request: Request, registry: Registry, served: Served, ask: Ask, pairs: Pairs
) -> Grammar | None:
    """What the answer must match. Raises `InvalidRequest`, `ApiError` (504)."""
    tools = ask.prompt.tools if isinstance(ask.prompt, Chat) else None
    if ask.form is not None and tools is not None:
        raise ApiError(
            400,
            "'structured_outputs' can go with 'tools' as JSON alone",
            param="structured_outputs",
        )
    if ask.schema is None and ask.form is None and tools is None:
        return None
    limit_s = registry.settings.server.request_timeout_s
    try:
        async with asyncio.timeout_at(request.state.arrived + limit_s):
            if ask.form is not None:
                form = ask.form
                return await registry.grammars.text(form.kind, form.source, ask.prompt.begun)
            if tools is None:
                assert ask.schema is not None
                return await registry.grammars.compile(ask.schema, ask.prompt.begun)
            (pair,) = pairs
            assert pair is not None
            asked = registry.calls_asked(
                served,
                demanded=tools.demanded,
                several=tools.parallel,
                thinking=pair.thinking,
                answer=ask.schema,
            )
            return await registry.grammars.calls(asked, tools.may_be_called, ask.prompt.begun)
    except TimeoutError:
        raise errors.timed_out(limit_s) from None


def _check_one_model(served: Served, ask: Ask) -> None:
    """Raises `ApiError` for what means nothing where both models answer."""
    if served.role == "nudged":
        for field, why in ask.one_model.items():
            raise ApiError(400, why.format(name=served.name), param=field)


async def _read_text(ask: Ask, read: Callable[[], Result]) -> Result:
    """What ``read`` makes of the prompt's text; of much text beside the event loop."""
    if ask.prompt.work < LONG_TEXT:
        return read()
    return await asyncio.to_thread(read)


def _prompts(registry: Registry, served: Served, ask: Ask) -> Pairs:
    """For each prompt what the models read of a conversation; None: it is read as it is."""
    if isinstance(ask.prompt, Chat):
        return [rendered(registry, served, ask.prompt)]
    return [
        registry.prompts(served, [Message("user", prompt)])
        if served.role == "nudged" and isinstance(prompt, str)
        else None
        for prompt in ask.prompt.prompts
    ]


def _writers(
    registry: Registry,
    served: Served,
    ask: Ask,
    pairs: Pairs,
    answer: AnswerRequest,
    nudging: NudgingConfig,
) -> list[list[Writer]]:
    """For each prompt, those of its answers."""
    samples = [answer.sample(number) for number in range(ask.n)]
    writers: list[list[Writer]] = []
    for number, pair in enumerate(pairs):
        if pair is not None:
            writers.append([registry.writer(served, pair, each, nudging) for each in samples])
        else:
            assert not isinstance(ask.prompt, Chat)
            prompt, bos = ask.prompt.prompts[number], ask.prompt.bos
            writers.append(
                [registry.continuation(served, prompt, each, bos=bos) for each in samples]
            )
    return writers


def _parser(registry: Registry, served: Served, ask: Ask, pairs: Pairs) -> Callable[[], Parser]:
    """What reads each answer. That to a raw prompt is text."""
    if not isinstance(ask.prompt, Chat):
        return Plain
    (pair,) = pairs
    assert pair is not None
    return registry.parser(
        served,
        calls=ask.prompt.tools is not None,
        thinks=_may_think(ask, ask.prompt),
        thinking=pair.thinking,
    )


def _may_think(ask: Ask, chat: Chat) -> bool:
    """A schema from the answer's beginning on leaves no room for thoughts."""
    free = ask.schema is None and ask.form is None
    return chat.end != "continued" and (free or chat.tools is not None)


def _thinking(
    registry: Registry, served: Served, ask: Ask, pairs: Pairs, nudging: NudgingConfig
) -> ThinkingLimit | None:
    """How much may be thought. Raises `ApiError` where that has no effect, unless a client can't
    do without it."""
    field, chat = "thinking_token_budget", ask.prompt
    if ask.thinking_tokens is None:
        return None
    mixed = served.role == "nudged" and not served.degraded
    deaf = mixed and field in POLICIES[nudging.policy].refuses
    if isinstance(chat, Chat) and _may_think(ask, chat) and not deaf:
        (pair,) = pairs
        assert pair is not None
        calls = chat.tools is not None
        limit = registry.thinking_limit(
            served, ask.thinking_tokens, calls=calls, thinking=pair.thinking
        )
        if limit is not None:
            return limit
    if "thinking" in ask.passed_over:
        return None
    raise ApiError(400, f"{field!r} has no effect: this answer has no thoughts", param=field)


def _echo(registry: Registry, served: Served, ask: Ask) -> list[str] | None:
    """The texts that go in front of the answers to each prompt, where that is asked for."""
    if isinstance(ask.prompt, Chat) or not ask.prompt.echo:
        return None
    return [registry.echo(served, prompt) for prompt in ask.prompt.prompts]

"""The routes that write answers: one for each dialect.

Knows: who answers what is asked, under which settings, and what is refused once that is known.
Does not know: any dialect's fields, how an answer is sent, a rule of the policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api import errors
from server.api.ask import Ask, Chat
from server.api.body import body_schema, json_text
from server.api.dialect import Dialect
from server.api.dialects import DIALECTS
from server.api.errors import ApiError
from server.api.limits import check_request, check_tools
from server.api.respond import Answers, respond
from server.api.store import shelf
from server.core import AnswerRequest, Grammar, Message, NudgingConfig
from server.decoding.stream import Writer
from server.policies import POLICIES
from server.serving.catalog import Served
from server.serving.registry import Registry

LONG_TEXT = 8192
"""Of a prompt's ``work``, in bytes of text: what takes some milliseconds, which other answers
shouldn't feel."""

Result = TypeVar("Result")


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
        tools = ask.prompt.tools if isinstance(ask.prompt, Chat) else None
        check_tools(registry, tools, served)
        nudging = _nudging(served, ask)
        served = registry.stand_in(served, nudging)
        grammar = await _grammar(request, registry, ask)
        answer = ask.request(served.sampling, grammar, served.stop)
        _check_one_model(served, ask)
        writers = await _read_text(ask, lambda: _writers(registry, served, ask, answer, nudging))
        answers = Answers(
            ask, answer, writers, registry.grammars.matches, _echo(registry, served, ask)
        )
        response = await respond(request, answers, reply)
        if tools is not None:
            response.headers["X-Nudge-Tools"] = "unseen"
        if served.degraded:
            response.headers["X-Nudge-Degraded"] = "aligned"
        return response

    return endpoint


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


async def _grammar(request: Request, registry: Registry, ask: Ask) -> Grammar | None:
    """What the answer must match. Raises `InvalidRequest`, `ApiError` (504)."""
    if ask.schema is None:
        return None
    limit_s = registry.settings.server.request_timeout_s
    try:
        async with asyncio.timeout_at(request.state.arrived + limit_s):
            return await registry.grammars.compile(ask.schema, ask.prompt.begun)
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


def _writers(
    registry: Registry, served: Served, ask: Ask, answer: AnswerRequest, nudging: NudgingConfig
) -> list[list[Writer]]:
    """For each prompt, those of its answers."""
    samples = [answer.sample(number) for number in range(ask.n)]
    if isinstance(ask.prompt, Chat):
        chat = ask.prompt
        pair = registry.prompts(served, chat.messages, chat.kwargs, chat.end)
        return [[registry.writer(served, pair, sample, nudging) for sample in samples]]
    writers: list[list[Writer]] = []
    for prompt in ask.prompt.prompts:
        if served.role == "nudged" and isinstance(prompt, str):
            pair = registry.prompts(served, [Message("user", prompt)])
            writers.append([registry.writer(served, pair, each, nudging) for each in samples])
        else:
            bos = ask.prompt.bos
            writers.append(
                [registry.continuation(served, prompt, each, bos=bos) for each in samples]
            )
    return writers


def _echo(registry: Registry, served: Served, ask: Ask) -> list[str] | None:
    """The texts that go in front of the answers to each prompt, where that is asked for."""
    if isinstance(ask.prompt, Chat) or not ask.prompt.echo:
        return None
    return [registry.echo(served, prompt) for prompt in ask.prompt.prompts]

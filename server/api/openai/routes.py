"""The routes that write answers.

Knows: which route asks whom for what. Does not know: how an answer is sent, a rule of the policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api import errors
from server.api.body import body_schema, read
from server.api.errors import ApiError
from server.api.limits import check_tools, work
from server.api.openai.render import ChatRenderer, CompletionRenderer
from server.api.openai.requests import ChatRequest, CompletionRequest, Generation, NudgingOptions
from server.api.respond import Answers, respond
from server.api.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    responses,
)
from server.core import Grammar, Message, NudgingConfig, TokenIds
from server.decoding.stream import Writer
from server.policies import POLICIES
from server.serving.catalog import Served
from server.serving.registry import Registry

_FAILURES = (400, 401, 404, 413, 415, 429, 503, 504)

_ABOUT_THE_PROMPT = {"max_tokens": "'max_tokens': 0", "echo": "'echo' together with 'logprobs'"}

LONG_TEXT = 8192
"""Of `work`, in bytes of text: what takes some milliseconds, which other answers shouldn't feel."""

Result = TypeVar("Result")


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()

    @router.post(
        "/v1/chat/completions",
        openapi_extra=body_schema(ChatRequest),
        responses=responses(ChatCompletion, *_FAILURES, events=ChatCompletionChunk),
    )
    async def chat_completions(request: Request) -> Response:
        """OpenAI's chat completions; ``nudging`` in the body says how."""
        body = await read(request, ChatRequest)
        served = registry.resolve(body.model)
        check_tools(registry, body, served)
        nudging = _nudging(served, body)
        served = registry.stand_in(served, nudging)
        answer = body.answer_request(served.sampling, await _grammar(request, body))

        def writers() -> list[Writer]:
            prompt = registry.prompts(
                served, body.conversation(), body.chat_template_kwargs, body.prompt_end
            )
            return [
                registry.writer(served, prompt, answer.sample(number), nudging)
                for number in range(body.samples)
            ]

        written = [await _read_text(body, writers)]
        answers = Answers(body, answer, written, registry.grammars.matches)
        response = await respond(request, answers, ChatRenderer)
        if body.offers_tools:
            response.headers["X-Nudge-Tools"] = "unseen"
        return _flagged(response, served)

    @router.post(
        "/v1/completions",
        openapi_extra=body_schema(CompletionRequest),
        responses=responses(Completion, *_FAILURES, events=CompletionChunk),
    )
    async def completions(request: Request) -> Response:
        """OpenAI's completions: the raw prompt continued by ``NAME:base`` or ``NAME:aligned``;
        for ``NAME`` the prompt is the user's only message."""
        body = await read(request, CompletionRequest)
        served = registry.resolve(body.model)
        nudging = _nudging(served, body)
        served = registry.stand_in(served, nudging)
        answer = body.answer_request(served.sampling, await _grammar(request, body))
        if served.role == "nudged" and body.add_special_tokens is False:
            raise ApiError(
                400,
                "add_special_tokens has no effect on a chat, which the prompt becomes for "
                f"{served.name!r}; ask {served.name}:base or {served.name}:aligned",
                param="add_special_tokens",
            )
        if served.role == "nudged" and (field := body.about_the_prompt) is not None:
            raise ApiError(
                400,
                f"{_ABOUT_THE_PROMPT[field]} needs one model's own probabilities of the prompt; "
                f"ask {served.name}:base or {served.name}:aligned",
                param=field,
            )

        def writer(prompt: str | TokenIds, number: int) -> Writer:
            sample = answer.sample(number)
            if served.role != "nudged":
                bos = body.add_special_tokens is not False
                return registry.continuation(served, prompt, sample, bos=bos)
            if isinstance(prompt, str):
                pair = registry.prompts(served, [Message("user", prompt)])
                return registry.writer(served, pair, sample, nudging)
            raise ApiError(
                400,
                f"token ids mean different text to the two models of {served.name!r}; send text, "
                f"or ask {served.name}:base or {served.name}:aligned",
                param="prompt",
            )

        def all_writers() -> list[list[Writer]]:
            return [
                [writer(prompt, number) for number in range(body.samples)]
                for prompt in body.prompts
            ]

        writers = await _read_text(body, all_writers)
        echo = [registry.echo(served, prompt) for prompt in body.prompts] if body.echo else None
        answers = Answers(body, answer, writers, registry.grammars.matches, echo)
        response = await respond(request, answers, CompletionRenderer)
        return _flagged(response, served)

    return router


async def _grammar(request: Request, body: Generation) -> Grammar | None:
    """What the answer must match. Raises `InvalidRequest`, `ApiError` (504)."""
    schema = body.schema_asked
    if schema is None:
        return None
    registry: Registry = request.app.state.registry
    limit_s = registry.settings.server.request_timeout_s
    try:
        async with asyncio.timeout_at(request.state.arrived + limit_s):
            return await registry.grammars.compile(schema, body.begun)
    except TimeoutError:
        raise errors.timed_out(limit_s) from None


async def _read_text(body: Generation, read: Callable[[], Result]) -> Result:
    """What ``read`` makes of the body's text; of much text beside the event loop."""
    if work(body) < LONG_TEXT:
        return read()
    return await asyncio.to_thread(read)


def _flagged(response: Response, served: Served) -> Response:
    """Says so where the aligned model alone answered in the pair's place."""
    if served.degraded:
        response.headers["X-Nudge-Degraded"] = "aligned"
    return response


def _nudging(served: Served, body: Generation) -> NudgingConfig:
    """The policy's settings for one answer. Raises `ApiError` for what would have no effect."""
    options = body.nudging or NudgingOptions()
    if served.role != "nudged":
        for field in sorted(options.settings):
            raise ApiError(
                400,
                f"nudging.{field} has no effect on one model alone; ask {served.name!r}",
                param=f"nudging.{field}",
            )
        return served.nudging
    config = options.over(served.nudging)
    policy = POLICIES[config.policy]
    if policy not in served.policies:
        raise ApiError(
            400,
            f"the policy {policy.name!r} can't be asked for here; {served.name!r} allows "
            f"{', '.join(each.name for each in served.policies)} (models.{served.name}.policies "
            "in the server's configuration)",
            param="nudging.policy",
        )
    for field in sorted(body.beyond(policy)):
        why = f", {policy.why}" if field in policy.refuses and policy.why else ""
        raise ApiError(
            400, f"{field} has no effect on the policy {policy.name!r}{why}", param=field
        )
    return config

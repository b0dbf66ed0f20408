"""An OpenAI-compatible endpoint elsewhere: the judge's, or a large aligned model's.

Knows: how a call is repeated, and what an endpoint may refuse that can be left out. Does not know:
what is asked.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx

from server.core import EngineUnavailable, Usage
from server.evaluation.data import EvaluationError, Item
from server.evaluation.runs import Answer, Setup

TRIES = 4
"""Of a call that fails for now."""

OPTIONAL = ("temperature", "response_format")
"""Fields that are left out for an endpoint that refuses them."""

_FOR_NOW = frozenset({408, 409, 425, 429})


class Endpoint:
    """A base URL, under which there is ``/chat/completions``."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        pause_s: float = 1.0,
    ) -> None:
        """``pause_s``: before the second try; doubled before each further one."""
        self.url = url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._transport = transport
        self._pause_s = pause_s
        self._secure = httpx.create_ssl_context()
        self._refused: set[str] = set()

    async def chat(self, **body: Any) -> dict[str, Any]:
        """The response to one chat. Raises `EngineUnavailable`, `EvaluationError`."""
        why = ""
        for count in range(TRIES):
            if count:
                await asyncio.sleep(self._pause_s * 2 ** (count - 1))
            try:
                response = await self._post(body)
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if response.status_code not in _FOR_NOW and response.status_code < 500:
                return self._read(response)
            why = f"{response.status_code} {response.text[:200]}"
        raise EngineUnavailable(f"{self.url} can't be asked: {why}")

    async def _post(self, body: dict[str, Any]) -> httpx.Response:
        """Once; twice where it refuses a field that can be left out."""
        async with httpx.AsyncClient(
            headers=self._headers, timeout=300, transport=self._transport, verify=self._secure
        ) as client:
            while True:
                sent = {name: value for name, value in body.items() if name not in self._refused}
                response = await client.post(f"{self.url}/chat/completions", json=sent)
                named = {name for name in OPTIONAL if name in sent and name in response.text}
                if response.status_code not in (400, 422) or not named:
                    return response
                self._refused |= named

    def _read(self, response: httpx.Response) -> dict[str, Any]:
        if response.status_code != 200:
            raise EvaluationError(
                f"{self.url} refused: {response.status_code} {response.text[:300]}"
            )
        try:
            said = response.json()
            message = said["choices"][0]["message"]
            return {**said, "text": message.get("content") or ""}
        except (ValueError, LookupError, TypeError, AttributeError):
            raise EvaluationError(f"{self.url} answered with no chat completion") from None


class Remote:
    """A model behind an endpoint, as a system that is compared."""

    def __init__(self, endpoint: Endpoint, model: str) -> None:
        self.endpoint = endpoint
        self.model = model

    async def answer(self, item: Item, setup: Setup) -> Answer:
        began = time.perf_counter()
        messages = [{"role": each.role, "content": each.content} for each in item.messages]
        stop = {"stop": list(setup.stop)} if setup.stop else {}
        said = await self.endpoint.chat(
            model=self.model,
            messages=messages,
            temperature=0,
            max_tokens=setup.max_tokens,
            **stop,
        )
        usage = said.get("usage") or {}
        return Answer(
            said["text"],
            _stop_reason(said["choices"][0]),
            time.perf_counter() - began,
            Usage(
                aligned_prompt_tokens=usage.get("prompt_tokens", 0),
                aligned_tokens=usage.get("completion_tokens", 0),
                aligned_steps=usage.get("completion_tokens", 0),
            ),
        )


def _stop_reason(choice: dict[str, Any]) -> str:
    """In our words. (Which of a stop string and an end it was, vLLM says in ``stop_reason``; others
    don't.)"""
    if choice.get("finish_reason") == "length":
        return "length"
    return "stop_string" if isinstance(choice.get("stop_reason"), str) else "aligned_end"

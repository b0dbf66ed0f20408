"""A small server of ``/v1/completions``, which can fail in every way that servers do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word

GENERATE = "/inference/v1/generate"

Distribution = Callable[[Sequence[int], Sequence[int]], Sequence[tuple[int, float]]]
Trouble = Callable[[int], str | None]
"""What goes wrong with the request of this number, None being nothing: ``400``, ``429``, ``500``,
``hang at once``, ``break`` (the connection, before a word); in the middle of the stream ``drop``,
``hang``, ``malformed``, ``error``, ``abort``."""


class Fake:
    """Plays a distribution of the prompt, as `server.engines.scripted` does.

    bodies: of the turns that it was asked for. streams: that run now. aborted: how many were closed
    before their end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        distribution: Distribution,
        end: int,
        *,
        plugin: bool = True,
        model: str = "m",
        key: str | None = None,
        context: int | None = 512,
        step_s: float = 0.0,
        form: str = "vllm",
        generate: bool = False,
        trouble: Trouble = lambda _: None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.distribution = distribution
        self.end = end
        self.plugin = plugin
        self.model = model
        self.key = key
        self.context = context
        self.step_s = step_s
        self.form = form
        self.generate = generate
        self.trouble = trouble
        self.tls = tls
        self.retry_after: str | None = None
        self.metrics: str | None = None
        self.looks: str | None = None
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.streams = 0
        self.aborted = 0
        self.connections = 0
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def start(self) -> Fake:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def kill(self) -> None:
        """As kill -9 does: every connection breaks, and nobody listens any more."""
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    # -- HTTP ------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                first, *lines = head.decode().split("\r\n")
                method, path, _ = first.split()
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                await self._answer(method, path, headers, json.loads(body or b"{}"), reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _answer(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            return self._plain(writer, 401, {"error": {"message": "Unauthorized"}})
        if path == "/v1/models" and self.looks is not None:
            return self._plain(writer, int(self.looks), {})
        if path == "/v1/models":
            card: dict[str, Any] = {"id": self.model, "root": self.tokenizer.chat.name_or_path}
            if self.context is not None:
                card["max_model_len"] = self.context
            return self._plain(writer, 200, {"data": [card]})
        if path == "/version":
            return self._plain(writer, 200, {"version": "0.0.fake"})
        if path == "/metrics" and self.metrics is not None:
            return self._plain(writer, 200, self.metrics)
        if path == GENERATE and self.generate:
            body = _as_completion(body)
        elif path != "/v1/completions" or method != "POST":
            return self._plain(writer, 404, {"detail": "Not Found"})
        if body["model"] != self.model:
            return self._plain(writer, 404, {"error": {"message": "no such model"}})
        if not body.get("stream"):
            return self._plain(writer, 200, self._whole(body))
        trouble = self.trouble(len(self.bodies))
        self.bodies.append(body)
        self.headers.append(headers)
        if trouble in ("500", "429"):
            return self._plain(writer, int(trouble), {"error": {"message": "overloaded"}})
        if trouble == "400":
            return self._plain(writer, 400, {"error": {"message": "logprobs is too large"}})
        if trouble == "break":
            raise ConnectionResetError
        if trouble == "hang at once":
            await asyncio.sleep(3600)
        await self._stream(body, trouble, reader, writer)

    def _plain(self, writer: asyncio.StreamWriter, status: int, content: Any) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        more = f"Retry-After: {self.retry_after}\r\n" if self.retry_after else ""
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(data)}\r\n{more}\r\n".encode() + data
        )

    async def _stream(
        self,
        body: dict[str, Any],
        trouble: str | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.streams += 1
        gone = asyncio.create_task(reader.read(1))
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number, event in enumerate(self._events(body)):
                await asyncio.sleep(self.step_s)
                if gone.done():
                    self.aborted += 1
                    raise ConnectionResetError
                if number == 2 and trouble is not None:
                    if trouble == "drop":
                        raise ConnectionResetError
                    if trouble == "hang":
                        await asyncio.wait({gone})
                        raise ConnectionResetError
                    if trouble == "malformed":
                        _chunk(writer, b"data: {not json\n\n")
                        continue
                    if trouble == "error":
                        event = {"error": {"message": "EngineCore encountered an issue"}}
                    if trouble == "abort":
                        event["choices"][0]["finish_reason"] = "abort"
                _chunk(writer, b": keep-alive\n\n")
                _chunk(writer, b"data: " + json.dumps(event).encode() + b"\n\n")
                await writer.drain()
            _chunk(writer, b"data: [DONE]\n\n")
            _chunk(writer, b"")
            await writer.drain()
        finally:
            self.streams -= 1
            gone.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await gone

    # -- completions -----------------------------------------------------------------------------

    def _whole(self, body: dict[str, Any]) -> dict[str, Any]:
        event = next(self._events(body))
        prompt = self._prompt(body)
        if self.form == "vllm":
            event["choices"][0]["prompt_token_ids"] = prompt
        if "prompt_logprobs" in body and self.form == "vllm":
            scores: list[Any] = [None]
            for at in range(1, len(prompt)):
                known = dict(self.distribution(prompt[:at], []))
                known.setdefault(prompt[at], 1e-6)
                scores.append({str(i): {"logprob": math.log(p)} for i, p in known.items() if p > 0})
            event["choices"][0]["prompt_logprobs"] = scores
        return event

    def _prompt(self, body: dict[str, Any]) -> list[int]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            return self.tokenizer.encode_prompt(prompt, bos=False)
        return list(prompt)

    def _events(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        prompt, written = self._prompt(body), []
        asked = body.get("vllm_xargs", {}) if self.plugin else {}
        word = Word(self.tokenizer, asked["nudge_word"]) if "nudge_word" in asked else None
        over = False
        stops = {self.end, *body.get("stop_token_ids", ())}
        for count in range(body["max_tokens"]):
            candidates = [each for each in self.distribution(prompt, written) if each[1] > 0]
            token = candidates[0][0]
            if candidates[0][1] < asked.get("nudge_below", 0):
                token = asked["nudge_stop"]
            elif word is not None:
                part = Part.LAST if over else word.push(token)
                if over or part is Part.BEYOND:
                    token = asked["nudge_stop"]
                over = part is Part.LAST
            written.append(token)
            last = count + 1 == body["max_tokens"]
            finish = "stop" if token in stops else "length" if last else None
            yield self._event(
                token, candidates[: body.get("logprobs", 0)], candidates, body, finish
            )
            if finish:
                return

    def _event(
        self,
        token: int,
        top: list[tuple[int, float]],
        candidates: list[tuple[int, float]],
        body: dict[str, Any],
        finish: str | None,
    ) -> dict[str, Any]:
        value = math.log(dict(candidates).get(token, 1e-6))
        choice: dict[str, Any] = {"index": 0, "text": "x", "finish_reason": finish}
        ranked = {number: math.log(p) for number, p in top}
        if "generate" in body:
            choice["token_ids"] = [token]
            if "logprobs" in body:
                drawn = [(token, value), *((i, p) for i, p in ranked.items() if i != token)]
                told = [{"token_id": i, "logprob": p} for i, p in drawn[: body["logprobs"]]]
                entry = {"token_id": token, "logprob": value, "top_logprobs": told}
                choice["logprobs"] = {"content": [entry]}
        elif self.form == "llama":
            told = [{"id": i, "token": "x", "logprob": p} for i, p in ranked.items()]
            entry = {"id": token, "token": "x", "logprob": value, "top_logprobs": told}
            choice["logprobs"] = {"content": [] if finish == "stop" else [entry]}
            choice["text"] = "" if finish == "stop" else "x"
        elif self.form == "vllm":
            choice["token_ids"] = [token]
            if "logprobs" in body:
                told_of = {f"token_id:{i}": p for i, p in {token: value, **ranked}.items()}
                choice["logprobs"] = {
                    "tokens": [f"token_id:{token}"],
                    "token_logprobs": [value],
                    "top_logprobs": [told_of],
                }
        return {"choices": [choice]}


def _as_completion(body: dict[str, Any]) -> dict[str, Any]:
    """What is asked at `GENERATE`, as `Fake` knows it."""
    sampling = body.pop("sampling_params")
    assert sampling.pop("detokenize") is False
    xargs = sampling.pop("extra_args", {})
    return body | sampling | {"prompt": body.pop("token_ids"), "vllm_xargs": xargs, "generate": 1}


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

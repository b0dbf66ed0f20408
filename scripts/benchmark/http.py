"""What the HTTP server costs: one model through our server, through vLLM's own, and through vLLM's
engine driven directly, with the same requests.

Knows: processes, what a client of a stream sees. Does not know: what is inside.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence

import httpx
from vllm import SamplingParams, TokensPrompt
from vllm.sampling_params import RequestOutputKind

from scripts.benchmark.measure import Run, memory_mib, prompts, timed
from scripts.benchmark.pairs import DEMO
from server.core import Message, Usage
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry

TOKENS = 64
START_S = 180


class Server:
    """A server in a process of its own."""

    def __init__(
        self, name: str, process: asyncio.subprocess.Process, url: str, model: str
    ) -> None:
        self.name = name
        self.process = process
        self.url = url
        self.model = model

    @property
    def cpu_seconds(self) -> float:
        """Of its own process, without those of engines."""
        with open(f"/proc/{self.process.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def answers(self, streams: int, asked: Sequence[str]) -> Run:
        """Stream greedy answers of 64 tokens each, so many at once."""
        done, waiting = Run(), list(reversed(asked))
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:

            async def one() -> None:
                while waiting:
                    await self._answer(client, waiting.pop(), done)

            cpu = self.cpu_seconds
            await timed(done, [one() for _ in range(streams)])
            done.cpu_seconds = self.cpu_seconds - cpu
        done.usage = Usage(aligned_tokens=TOKENS * done.answers)
        return done

    async def _answer(self, client: httpx.AsyncClient, question: str, done: Run) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "ignore_eos": True,
            "stream": True,
        }
        began, first = time.perf_counter(), True
        async with client.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            # Bytes are not parsed: the client shares the machine with the server.
            async for part in response.aiter_raw():
                if first and b'"content":"' in part.replace(b'"content":""', b""):
                    done.first.append(time.perf_counter() - began)
                    first = False
        done.answers += 1


@contextlib.asynccontextmanager
async def running(
    name: str, command: Sequence[str], url: str | None, model: str
) -> AsyncIterator[Server]:
    """``url``: where it will be; None: it says so."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    said = b""
    try:
        async with asyncio.timeout(START_S):
            while url is None:
                line = await process.stdout.readline()
                if not line:
                    raise RuntimeError(f"{name} did not start: {said.decode()[-2000:]}")
                said += line
                if found := re.search(rb"ready in .* on (http://[^/\s]+)", line):
                    url = found[1].decode()
            draining = asyncio.create_task(_drain(process.stdout))
            async with httpx.AsyncClient() as client:
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get(f"{url}/health")).is_success:
                            break
                    if process.returncode is not None:
                        raise RuntimeError(f"{name} did not start")
                    await asyncio.sleep(0.2)
        yield Server(name, process, url, model)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        draining.cancel()


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass


def ours() -> contextlib.AbstractAsyncContextManager[Server]:
    config = DEMO.parents[1] / "configs" / "demo.yaml"
    command = [sys.executable, "-m", "server", "serve", "--config", str(config), "--port", "0"]
    return running("this server", command, None, "demo:aligned")


def vllms() -> contextlib.AbstractAsyncContextManager[Server]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = str(DEMO / "aligned")
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--dtype", "float32", "--max-model-len", "2048", "--block-size", "32"]
    command += ["--kv-cache-memory-bytes", str(64 * 2**20), "--port", str(port)]
    command += ["--disable-log-stats", "--generation-config", "vllm"]
    return running("vLLM's server", command, f"http://127.0.0.1:{port}", folder)


async def directly(registry: Registry, streams: int, asked: Sequence[str]) -> Run:
    """vLLM's engine without any server, as its own examples use it."""
    engine = registry.engines["aligned"]
    assert isinstance(engine, VllmEngine)
    served = registry.resolve("pair:aligned")
    done, waiting = Run(), list(reversed(asked))
    sampling = SamplingParams(
        temperature=0, max_tokens=TOKENS, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )

    async def client() -> None:
        while waiting:
            question = waiting.pop()
            prompt = registry.prompts(served, [Message("user", question)]).aligned
            ids = engine.info.tokenizer.encode_prompt(prompt)
            began, first = time.perf_counter(), True
            outputs = engine._llm.generate(
                TokensPrompt(prompt_token_ids=ids), sampling, f"direct-{question}-{began}"
            )
            async for _ in outputs:
                if first:
                    done.first.append(time.perf_counter() - began)
                    first = False
            done.answers += 1

    await timed(done, [client() for _ in range(streams)])
    done.usage = Usage(aligned_tokens=TOKENS * done.answers)
    return done


async def compare(registry: Registry, streams: Sequence[int], repeats: int) -> dict[str, object]:
    """The three ways in turn, and what our server holds in memory.

    ``registry``: of the demo pair, running.
    """
    rows = []
    async with ours() as mine, vllms() as theirs:
        memory = {"idle": memory_mib(mine.process.pid)}
        for count in streams:
            asked = prompts(max(8, 3 * count))
            runs: dict[str, list[Run]] = {}
            for repeat in range(repeats + 1):
                for server in (mine, theirs):
                    done = await server.answers(count, asked)
                    if repeat:  # the first time is to warm up
                        runs.setdefault(server.name, []).append(done)
                done = await directly(registry, count, asked)
                if repeat:
                    runs.setdefault("vLLM's engine, no server", []).append(done)
            rows += [
                {"system": name, "streams": count, "runs": [each.figures() for each in mine_]}
                for name, mine_ in runs.items()
            ]
        open_answers = asyncio.create_task(mine.answers(64, prompts(128)))
        most = 0.0
        while not open_answers.done():
            most = max(most, memory_mib(mine.process.pid))
            await asyncio.sleep(0.05)
        await open_answers
        memory |= {"64 open answers": most}
    return {"http": rows, "server_mib": memory}

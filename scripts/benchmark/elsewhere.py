"""The same pair on two ``vllm serve``, as engines elsewhere, at the end of ways of several lengths.

Knows: processes, configurations. Does not know: what is measured.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from scripts.benchmark.pairs import Pair
from scripts.vllm_serve import KEY, vllm_serve
from server.config import Settings
from server.engines.vllm.backend import VllmSettings
from server.serving.registry import Registry

ENGINES = ("base", "aligned")


@dataclass(frozen=True)
class Way:
    """stops: who ends a turn. rtt_ms: there and back; 0: straight."""

    stops: str
    rtt_ms: float

    def __str__(self) -> str:
        return f"B elsewhere, {self.stops}, {self.rtt_ms:g} ms"


@dataclass
class Elsewhere:
    registry: Registry
    counters: list[int]

    async def wire(self) -> int:
        """Bytes so far, both ways; 0 where nobody counts."""
        total = 0
        for port in self.counters:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            total += int(await reader.read())
            writer.close()
        return total


@asynccontextmanager
async def running(
    pair: Pair, folder: Path, ways: Iterable[Way]
) -> AsyncIterator[dict[Way, Elsewhere]]:
    """The pair's own settings, with its engines there."""
    async with AsyncExitStack() as stack:
        urls = {}
        for name in ENGINES:
            settings = pair.settings.engines[name]
            assert isinstance(settings, VllmSettings)
            (folder / f"serves-{name}").mkdir()
            serving = vllm_serve(
                Path(settings.model),
                folder / f"serves-{name}",
                *_arguments(settings),
                threads=settings.threads(len(ENGINES)),
            )
            urls[name] = await asyncio.to_thread(serving.__enter__)
            stack.callback(serving.__exit__, None, None, None)
        found: dict[Way, Elsewhere] = {}
        for way in ways:
            counters, at = [], dict(urls)
            if way.rtt_ms:
                for name, url in urls.items():
                    port, counter = await _relay(stack, url, way.rtt_ms)
                    at[name] = f"http://127.0.0.1:{port}"
                    counters.append(counter)
            registry = Registry(_settings(pair, at, way.stops))
            await registry.start()
            stack.push_async_callback(registry.aclose)
            found[way] = Elsewhere(registry, counters)
        yield found


def _arguments(settings: VllmSettings) -> list[str]:
    args = settings.engine_args()
    names = ("dtype", "max_model_len", "kv_cache_memory_bytes", "max_num_seqs")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(args[name]))]


def _settings(pair: Pair, urls: dict[str, str], stops: str) -> Settings:
    engines = {
        name: {
            "backend": "remote",
            "model": pair.settings.engines[name].model,
            "url": url,
            "stops": stops,
            "api_key": KEY,
            "health_interval_s": 60,
        }
        for name, url in urls.items()
    }
    models = {"pair": {"base": "base", "aligned": "aligned"}}
    return Settings(engines=engines, models=models)


async def _relay(stack: AsyncExitStack, url: str, rtt_ms: float) -> tuple[int, int]:
    parts = urlsplit(url)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "scripts.benchmark.delay", str(parts.hostname), str(parts.port), str(rtt_ms)),
        stdout=asyncio.subprocess.PIPE,
    )
    stack.push_async_callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    port, counter = map(int, (await process.stdout.readline()).split())
    return port, counter

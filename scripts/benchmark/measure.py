"""Runs of one system: many answers, so many at once, and what they took.

Knows: the registry, writers, clocks. Does not know: which systems are compared, how it is shown.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import statistics
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from scripts.benchmark.elsewhere import Way
from scripts.benchmark.pairs import QUESTIONS, Pair
from scripts.benchmark.report import Row
from server.core import AnswerRequest, Finished, Message, NudgingConfig, SamplingParams, Usage
from server.decoding.nudged import Nudged
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Verified
from server.decoding.stream import stream
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry


@dataclass(frozen=True)
class System:
    """Who writes the answers, and how.

    served: the model's name. role: whose, of its two. resumable: whether turns may go on in one
    request (strategy C).
    verify: tokens of a draft that the base model checks; 0: it writes token by token. eager:
    whether the aligned model reads along. way: to engines elsewhere; None: they are here.
    """

    name: str
    role: str = ""
    policy: str = "nudging"
    end_lookahead: int = 0
    resumable: bool = False
    verify: int = 0
    eager: bool = False
    way: Way | None = None
    served: str = "pair"


BASE = System("base alone", role="base")
"""Beside which all are measured."""


@dataclass
class Run:
    """What some answers took. Seconds, and tokens; wire: bytes to engines and back, if counted."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    answers: int = 0
    usage: Usage = field(default_factory=Usage)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    wire: int = 0

    @property
    def tokens(self) -> int:
        return self.usage.completion_tokens

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds

    def figures(self) -> dict[str, float]:
        """All of it, per token where that makes sense."""
        usage, tokens = self.usage, self.tokens or 1
        gaps = sorted(self.gaps) or [0.0]
        return {
            "tokens_per_s": self.tokens_per_s,
            "nudged_share": usage.nudged_share,
            "ttft_ms": 1e3 * statistics.median(self.first or [0.0]),
            "itl_p50_ms": 1e3 * gaps[len(gaps) // 2],
            "itl_p99_ms": 1e3 * gaps[int(len(gaps) * 0.99)],
            "base_steps": usage.base_steps / tokens,
            "aligned_steps": usage.aligned_steps / tokens,
            "prefilled": (usage.base_prefilled + usage.aligned_prefilled) / tokens,
            "discarded": usage.discarded_tokens / tokens,
            "cpu_s_per_1k": 1e3 * self.cpu_seconds / tokens,
            "wire": self.wire / tokens,
        }


def prompts(answers: int) -> list[str]:
    """Questions that are all different, so that no prefix cache knows a whole one."""
    return [f"{QUESTIONS[i % len(QUESTIONS)]} ({i // len(QUESTIONS)})" for i in range(answers)]


async def run(
    registry: Registry,
    pair: Pair,
    system: System,
    gamma: float,
    asked: Sequence[str],
    streams: int,
    max_tokens: int | None = None,
) -> Run:
    """Answer all of ``asked``, ``streams`` at once."""
    for engine in registry.engines.values():
        if isinstance(engine, VllmEngine):
            engine.resumable = system.resumable
    served = registry.resolve(":".join(filter(None, (system.served, system.role))))
    nudging = NudgingConfig(
        gamma=gamma,
        policy=system.policy,  # type: ignore[arg-type]
        end_lookahead=system.end_lookahead,
    )
    request = AnswerRequest(
        SamplingParams(temperature=0),
        max_tokens=max_tokens or pair.max_tokens,
        # One model alone doesn't know the policy's end: as long as a nudged answer may be.
        ignore_eos=bool(system.role),
    )
    done, waiting = Run(), list(reversed(asked))
    usages: list[Usage] = []

    async def one(question: str) -> None:
        prompt = registry.prompts(served, [Message("user", question)])
        began = time.perf_counter()
        writer = registry.writer(served, prompt, request, nudging)
        if isinstance(writer, Nudged) and (system.verify or system.eager):
            engines = (registry.engine(served, "base"), registry.engine(served, "aligned"))
            given = *engines, prompt, request, nudging
            writer = Verified(*given, system.verify) if system.verify else ReadAlong(*given)
        times: list[float] = []
        async with aclosing(stream(writer, request)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    usages.append(event.usage)
                else:
                    times.append(time.perf_counter())
        if times:
            done.first.append(times[0] - began)
            done.gaps += [b - a for a, b in itertools.pairwise(times)]
        done.answers += 1

    async def client() -> None:
        while waiting:
            await one(waiting.pop())

    await timed(done, [client() for _ in range(streams)])
    done.usage = Usage.total([[usage] for usage in usages])
    return done


async def timed(done: Run, clients: Sequence[Coroutine[object, object, None]]) -> None:
    cpu, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*clients)
    done.seconds = time.perf_counter() - began
    done.cpu_seconds = time.process_time() - cpu


async def gamma_for(registry: Registry, pair: Pair, share: float) -> tuple[float, float, int]:
    """γ at which about this share of the tokens is nudged, the share that it gives, and how many
    tokens such an answer has."""
    system, asked = System("C", resumable=True), prompts(8)
    low, high, found = 0.0, 1.0, (0.0, 0.0, pair.max_tokens)
    for _ in range(11):
        gamma = (low + high) / 2
        done = await run(registry, pair, system, gamma, asked, 8)
        got = done.usage.nudged_share
        if abs(got - share) <= abs(found[1] - share):
            found = (gamma, got, round(done.tokens / done.answers))
        low, high = (gamma, high) if got < share else (low, gamma)
    return found


def compared(
    pair: str, share: float, gamma: float, streams: int, runs: Mapping[System, Sequence[Run]]
) -> list[Row]:
    """A row for each system, of its runs, beside the base model's alone of the same repeats."""
    rows = []
    for system, mine in runs.items():
        figures = [each.figures() for each in mine]
        median = {name: statistics.median(each[name] for each in figures) for name in figures[0]}
        ratios = [
            own.tokens_per_s / base.tokens_per_s for own, base in zip(mine, runs[BASE], strict=True)
        ]
        spread = statistics.median(ratios), min(ratios), max(ratios)
        rows.append(Row(pair, share, gamma, streams, system.name, *spread, median))
    return rows


def memory_mib(pid: int | str = "self") -> float:
    """Resident memory of a process."""
    pages = int(open(f"/proc/{pid}/statm").read().split()[1])  # noqa: SIM115
    return pages * resource.getpagesize() / 2**20


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    import torch
    import vllm

    model = "unknown"
    for line in open("/proc/cpuinfo"):  # noqa: SIM115
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "gpu": gpu,
        "vllm": vllm.__version__,
        "torch": torch.__version__,
    }


def with_lookahead(system: System, tokens: int) -> System:
    return replace(system, name=f"{system.name} + {tokens}", end_lookahead=tokens)

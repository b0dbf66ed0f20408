"""Dead engines come back, one at a time, and what they took part in says so meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from server.config import Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    EngineUnavailable,
    Finished,
    Message,
    NudgingConfig,
    SamplingParams,
    Usage,
)
from server.decoding.stream import stream
from server.engines.scripted import ScriptedEngine
from server.serving import supervisor
from server.serving.registry import Registry
from server.serving.supervisor import GaveUp, supervise
from tests.conftest import DEMO

SOON = 20.0  # a start collects garbage first: seconds, on a busy machine


class Mortal(ScriptedEngine):
    """A scripted engine that can die. looks: how often somebody has looked whether it lives."""

    dead = False
    closed = 0
    looks = 0

    @property
    def alive(self) -> bool:
        self.looks += 1
        return not self.dead

    async def check_health(self) -> None:
        if self.dead:
            raise EngineUnavailable(f"engine {self.info.name!r} died (struck down)")

    async def aclose(self) -> None:
        self.closed += 1


class Starter:
    """Starts mortal engines.

    failures: what the next starts of an engine raise instead. lasting: how long a start takes.
    """

    def __init__(self) -> None:
        self.failures: dict[str, list[Exception]] = {}
        self.lasting = 0.0
        self.starts: list[tuple[str, float]] = []
        self.under_way: set[str] = set()
        self.most_at_once = 0
        self._made: dict[str, ScriptedEngine] = {}

    async def __call__(self, name: str, settings: Settings) -> Mortal:
        self.starts.append((name, time.monotonic()))
        self.under_way.add(name)
        self.most_at_once = max(self.most_at_once, len(self.under_way))
        try:
            await asyncio.sleep(self.lasting)
        finally:
            self.under_way.remove(name)
        if self.failures.get(name):
            raise self.failures[name].pop(0)
        if name not in self._made:
            engine = settings.engines[name]
            self._made[name] = Mortal.from_folder(name, engine.model, **engine.args)
        return Mortal(self._made[name].info, self._made[name].distribution)

    def of(self, name: str) -> list[float]:
        return [when for each, when in self.starts if each == name]


def settings(**server: Any) -> Settings:
    script = [["Once upon a time there was a fox.", 0.9]]
    return Settings(
        engines={
            name: {"backend": "scripted", "model": str(DEMO / name), "args": {"script": script}}
            for name in ("base", "aligned")
        },
        models={
            "fox": {"base": "base", "aligned": "aligned", "degraded": "aligned"},
            "strict": {"base": "base", "aligned": "aligned"},
        },
        server={"restart_backoff_s": 0.01} | server,
    )


@pytest.fixture
def starter() -> Starter:
    return Starter()


@asynccontextmanager
async def running(starter: Starter, config: Settings) -> AsyncIterator[Registry]:
    registry = Registry(config, starter)
    await registry.start()
    yield registry
    await registry.aclose()


@asynccontextmanager
async def supervised(registry: Registry, **timing: float) -> AsyncIterator[asyncio.Task[None]]:
    work = supervise(
        registry.engines, registry.settings.server, lambda *_: None, **{"poll_s": 0.001, **timing}
    )
    task = asyncio.create_task(work)
    await asyncio.sleep(0.01)
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, GaveUp):
            await task


def engine(registry: Registry, name: str) -> Mortal:
    found = registry.engines[name]
    assert isinstance(found, Mortal)
    return found


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110  of several parts, none of which has an event
            await asyncio.sleep(0.001)


async def test_a_dead_engine_is_started_again_at_once_and_the_other_is_left_alone(starter):
    told = []
    async with running(starter, settings(restart_backoff_s=60)) as registry:
        dead, other = engine(registry, "base"), engine(registry, "aligned")
        work = supervise(
            registry.engines,
            registry.settings.server,
            lambda *what: told.append(what[:2]),
            poll_s=0.001,
        )
        task = asyncio.create_task(work)
        await asyncio.sleep(0.01)
        dead.dead = True
        assert registry.state == "engine_unavailable"
        await until(lambda: registry.state == "ready")
        assert engine(registry, "base") is not dead
        assert dead.closed == 1
        assert engine(registry, "aligned") is other
        assert not other.closed
        assert registry.engines.restarts == {"base": 1, "aligned": 0}
        assert told == [("base", "loading"), ("base", "ready")]
        assert not task.done()
        task.cancel()


async def test_how_it_died_is_logged(starter, caplog):
    async with running(starter, settings()) as registry, supervised(registry):
        engine(registry, "base").dead = True
        await until(lambda: registry.engines.restarts["base"])
    assert "engine 'base' died (struck down)" in caplog.messages


async def test_a_start_that_fails_is_tried_again_after_a_pause_that_doubles(starter):
    async with (
        running(starter, settings(restart_backoff_s=0.02)) as registry,
        supervised(registry),
    ):
        starter.failures["base"] = [
            ConfigError("no"),
            EngineUnavailable("not yet"),
            RuntimeError("nobody foresaw this"),
        ]
        dead = engine(registry, "base")
        dead.dead = True
        await until(lambda: registry.state == "ready")
        _, *times = starter.of("base")
        pauses = [after - before for before, after in pairwise(times)]
        assert len(pauses) == 3
        assert all(pause >= least for pause, least in zip(pauses, (0.02, 0.04, 0.08), strict=True))
        assert registry.engines.restarts["base"] == 1


def test_the_pause_is_a_minute_at_most():
    pauses = [supervisor._pause(attempts, 1.0) for attempts in range(9)]
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60]
    assert supervisor._pause(10**6, 1.0) == 60
    assert supervisor._pause(1, 300.0) == 60


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_it_gives_up_after_so_many_failed_starts(starter, limit: int):
    async with (
        running(starter, settings(restart_limit=limit, restart_backoff_s=0.001)) as registry,
        supervised(registry) as task,
    ):
        starter.failures["base"] = [ConfigError("no")] * 9
        engine(registry, "base").dead = True
        async with asyncio.timeout(SOON):
            with pytest.raises(GaveUp, match="'base'"):
                await task
        assert len(starter.of("base")) == 1 + limit
        assert len(starter.of("aligned")) == 1
        assert engine(registry, "aligned").alive
        assert registry.engines.restarts["base"] == 0


async def test_an_engine_that_dies_again_soon_was_not_helped(starter):
    async with (
        running(starter, settings(restart_limit=3, restart_backoff_s=0.001)) as registry,
        supervised(registry) as task,
    ):
        for death in range(3):
            engine(registry, "base").dead = True
            await until(lambda death=death: registry.engines.restarts["base"] == death + 1)
            await asyncio.sleep(0.01)
        engine(registry, "base").dead = True
        async with asyncio.timeout(SOON):
            with pytest.raises(GaveUp):
                await task
        assert registry.engines.restarts["base"] == 3


async def test_an_engine_that_lived_long_has_its_attempts_counted_anew(starter):
    async with (
        running(starter, settings(restart_limit=2, restart_backoff_s=0.001)) as registry,
        supervised(registry, steady_s=0.02) as task,
    ):
        for death in range(5):
            # What a restart leaves behind is collected first; then it is looked at every 1 ms.
            await until(lambda: engine(registry, "base").looks > 40)
            engine(registry, "base").dead = True
            await until(lambda death=death: registry.engines.restarts["base"] == death + 1)
        assert not task.done()


async def test_two_that_die_at_once_are_started_one_after_the_other(starter):
    async with running(starter, settings()) as registry, supervised(registry):
        starter.lasting = 0.03
        for name in ("base", "aligned"):
            engine(registry, name).dead = True
        assert registry.state == "engine_unavailable"
        await until(lambda: registry.state == "ready")
        assert starter.most_at_once == 1
        assert registry.engines.restarts == {"base": 1, "aligned": 1}


async def test_a_pause_of_one_engine_holds_up_no_other(starter):
    async with (
        running(starter, settings(restart_backoff_s=60)) as registry,
        supervised(registry),
    ):
        starter.failures["base"] = [ConfigError("no")]
        engine(registry, "base").dead = True
        await until(lambda: len(starter.of("base")) == 2)
        engine(registry, "aligned").dead = True
        await until(lambda: registry.engines.lives("aligned"))
        assert not registry.engines.lives("base")


async def test_closing_while_an_engine_starts_ends_that_start(starter):
    async with running(starter, settings()) as registry:
        async with supervised(registry):
            starter.lasting = 60
            engine(registry, "base").dead = True
            await until(lambda: starter.under_way == {"base"})
        assert not starter.under_way
    assert len(starter.of("base")) == 2
    assert registry.engines == {}


async def answer(registry: Registry, model: str, **nudging: Any) -> tuple[str, Usage, bool]:
    """The answer's text, what it cost, and whether a stand-in wrote it."""
    config = NudgingConfig(**nudging)
    served = registry.stand_in(registry.resolve(model), config)
    request = AnswerRequest(SamplingParams(temperature=0), max_tokens=20)
    prompt = registry.prompts(served, [Message("user", "Hi")])
    writer = registry.writer(served, prompt, request, config)
    text = ""
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                return text, event.usage, served.degraded
            text += event.text
    raise AssertionError("no Finished")


async def test_a_model_fails_only_with_an_engine_that_it_needs(starter):
    async with running(starter, settings()) as registry:
        engine(registry, "base").dead = True
        assert (await answer(registry, "strict:aligned"))[0]
        for model in ("strict", "strict:base", "fox:base"):
            with pytest.raises(EngineUnavailable, match="'base'") as error:
                await answer(registry, model)
            assert not error.value.loading
        engine(registry, "base").dead = False
        engine(registry, "aligned").dead = True
        assert (await answer(registry, "strict:base"))[0]
        for model in ("strict", "fox", "fox:aligned"):
            with pytest.raises(EngineUnavailable, match="'aligned'"):
                await answer(registry, model)


async def test_the_aligned_model_stands_in_where_it_may_and_no_usage_says_otherwise(starter):
    async with running(starter, settings()) as registry:
        _, whole, degraded = await answer(registry, "fox")
        assert whole.base_prompt_tokens
        assert not degraded
        engine(registry, "base").dead = True
        text, usage, degraded = await answer(registry, "fox", gamma=0.9)
        assert degraded
        assert (text, usage) == (await answer(registry, "fox:aligned"))[:2]
        assert not usage.base_prompt_tokens
        assert (await answer(registry, "fox@0.2"))[2]
        assert registry.degraded_answers == {"fox": 2, "strict": 0}


async def test_nothing_stands_in_for_the_reference(starter):
    async with running(starter, settings()) as registry:
        engine(registry, "base").dead = True
        with pytest.raises(EngineUnavailable):
            await answer(registry, "fox", policy="reference")


async def test_degraded_is_said_where_every_model_still_answers(starter):
    config = settings()
    only_fox = config.model_copy(update={"models": {"fox": config.models["fox"]}})
    async with running(starter, only_fox) as registry:
        assert registry.state == "ready"
        engine(registry, "base").dead = True
        assert registry.state == "degraded"
        engine(registry, "aligned").dead = True
        assert registry.state == "engine_unavailable"
        engine(registry, "base").dead = False
        assert registry.state == "engine_unavailable"
    assert registry.state == "loading"


async def test_an_engine_elsewhere_is_waited_for_and_not_started(starter, caplog):
    async with running(starter, settings(restart_limit=0)) as registry:
        far = engine(registry, "base")
        far._info = replace(far.info, elsewhere=True)
        async with supervised(registry) as task:
            for _ in range(2):
                far.dead = True
                await asyncio.sleep(0.05)
                with pytest.raises(EngineUnavailable, match="'base' can't be reached"):
                    registry.engines.living("base")
                far.dead = False
                await asyncio.sleep(0.05)
                assert registry.engines.living("base") is far
            assert not task.done()
        assert len(starter.of("base")) == 1
        assert caplog.text.count("struck down") == 2

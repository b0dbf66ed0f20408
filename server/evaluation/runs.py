"""Answers of systems to questions, several at once, kept as they come.

Knows: the registry, writers, the clock. Does not know: scores, reports, the terminal.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from server.core import (
    AnswerRequest,
    Finished,
    InvalidRequest,
    Piece,
    SamplingParams,
    Usage,
)
from server.decoding.stream import stream
from server.evaluation.data import Data, EvaluationError, Item
from server.evaluation.endings import BY_ITSELF, looped, next_turn
from server.evaluation.store import Store
from server.evaluation.systems import System
from server.policies import POLICIES, TraceKind
from server.serving.registry import Registry

T = TypeVar("T")

Tick = Callable[[str], None]
"""Called with a system's name when one of its results is there."""


@dataclass(frozen=True)
class Setup:
    """How everybody answers: greedily, with these limits. at_once: answers written at the same
    time."""

    model: str
    max_tokens: int
    stop: tuple[str, ...] = ()
    at_once: int = 8

    @property
    def request(self) -> AnswerRequest:
        return self.request_of()

    def request_of(self, stop: tuple[str, ...] = ()) -> AnswerRequest:
        """``stop``: more strings that end an answer."""
        return AnswerRequest(
            SamplingParams(temperature=0),
            max_tokens=self.max_tokens,
            stop=tuple(dict.fromkeys((*self.stop, *stop))),
        )


@dataclass(frozen=True)
class Answer:
    """One answer as it was given.

    seconds: it took, while others were written beside it. nudges: where in the text they stand, as
    (from, to) in characters; None: nobody knows. next_turn: whether it writes the next turn of
    the base model's prompt.
    """

    text: str
    stop_reason: str
    seconds: float
    usage: Usage
    nudges: Sequence[tuple[int, int]] | None = None
    next_turn: bool = False

    @property
    def ended(self) -> bool:
        """Whether a model ended it: nothing cut it."""
        return self.stop_reason in BY_ITSELF

    @property
    def looped(self) -> bool:
        return looped(self.text, self.stop_reason)

    def kept(self) -> dict[str, Any]:
        usage = {name: count for name, count in asdict(self.usage).items() if count}
        return {
            "text": self.text,
            "stop_reason": self.stop_reason,
            "seconds": round(self.seconds, 4),
            "usage": usage,
            "nudges": self.nudges,
            "next_turn": self.next_turn,
        }

    @classmethod
    def of(cls, result: dict[str, Any]) -> Answer:
        spans = result.get("nudges")
        return cls(
            result["text"],
            result["stop_reason"],
            result["seconds"],
            Usage(**result["usage"]),
            None if spans is None else [(start, end) for start, end in spans],
            result.get("next_turn", False),
        )


def answers(store: Store, system: str, data: Data) -> list[Answer]:
    """A system's answers in the data's order. All of them must be there."""
    return [Answer.of(store.results[system, item.number]) for item in data.items]


def missing(store: Store, names: Sequence[str], data: Data) -> int:
    """Results that are not there yet."""
    return sum((name, item.number) not in store.results for name in names for item in data.items)


def check_prompts(registry: Registry, model: str, data: Data) -> None:
    """Raises `EvaluationError` for a question that one of a pair's models can't read, before
    anything is answered."""
    served = registry.resolve(model)
    for item in data.items:
        try:
            pair = registry.prompts(served, item.messages)
        except InvalidRequest as error:
            raise EvaluationError(f"question {item.number + 1} of {data.name}: {error}") from None
        for role, prompt in (("base", pair.base), ("aligned", pair.aligned)):
            info = registry.info(served, role)  # type: ignore[arg-type]
            length = len(info.tokenizer.encode_prompt(prompt))
            if length >= info.context_length:
                raise EvaluationError(
                    f"question {item.number + 1} of {data.name} has {length} tokens for the "
                    f"{role} model, whose context holds {info.context_length}; shorten it, or "
                    "take it out"
                )


async def answer_all(
    registry: Registry,
    setup: Setup,
    systems: Sequence[System],
    data: Data,
    store: Store,
    tick: Tick = lambda _: None,
) -> None:
    """Every answer that is missing, one system after the other.

    Raises:
        EvaluationError: a system can't answer with these models.
        EngineUnavailable: an engine died; what is there stays.
    """

    async def one(system: System, item: Item) -> None:
        store.add(system.name, item.number, (await answer(registry, setup, system, item)).kept())
        tick(system.name)

    for system in systems:
        jobs = [item for item in data.items if (system.name, item.number) not in store.results]
        await each(jobs, setup.at_once, partial(one, system))


async def answer(registry: Registry, setup: Setup, system: System, item: Item) -> Answer:
    """One answer."""
    if system.elsewhere is not None:
        return await system.elsewhere.answer(item, setup)
    served = registry.resolve((system.model or setup.model) + system.served)
    request = setup.request_of(system.stop)
    began = time.perf_counter()
    try:
        prompt = registry.prompts(served, item.messages)
        writer = registry.writer(served, prompt, request, system.nudging)
    except InvalidRequest as error:
        raise EvaluationError(f"{system.name}, question {item.number + 1}: {error}") from None
    pieces: list[Piece] = []
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Piece):
                pieces.append(event)
            else:
                seconds = time.perf_counter() - began
                return _answer(system, event, pieces, seconds, prompt.headers)
    raise RuntimeError("an answer ended without saying how")


def _answer(
    system: System,
    finished: Finished,
    pieces: Sequence[Piece],
    seconds: float,
    headers: Sequence[str],
) -> Answer:
    text = "".join(piece.text for piece in pieces)
    spans = None if system.served else nudges(pieces, POLICIES[system.nudging.policy].trace)
    begun = next_turn(text, headers)
    return Answer(text, finished.stop_reason, seconds, finished.usage, spans, begun)


def nudges(pieces: Sequence[Piece], trace: TraceKind) -> list[tuple[int, int]]:
    """Where the nudges stand. Pieces of one nudge follow each other, unless each is a round."""
    found: list[tuple[int, int]] = []
    at, goes_on = 0, False
    for piece in pieces:
        end = at + len(piece.text)
        aligned = piece.speaker == "aligned"
        if aligned and goes_on and trace != "rounds":
            found[-1] = (found[-1][0], end)
        elif aligned:
            found.append((at, end))
        at, goes_on = end, aligned
    return found


async def each(items: Sequence[T], at_once: int, work: Callable[[T], Awaitable[None]]) -> None:
    """Do the work for every item, so many at a time. The first failure ends the others."""
    waiting = list(reversed(items))

    async def worker() -> None:
        while waiting:
            await work(waiting.pop())

    workers = [asyncio.create_task(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*workers)
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)

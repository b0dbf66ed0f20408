"""Answers with the authors' published schedules, on models of any weights ("replayed").

A schedule says how many words the aligned model wrote, then the base model, and so on: that of a
public annotated answer (``schedules.json``, from the paper's project page). Here both models write
what they like, so many tokens at each turn: a token a word. What is looked at and discarded is too.

Knows: sessions. Does not know: the policy, which decides nothing here.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

from scripts.benchmark.measure import Run, System, timed
from scripts.benchmark.pairs import Pair
from server.core import Message, SamplingParams, TokenIds, Usage
from server.engines.base import Session, Token, TurnParams
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry

GREEDY = SamplingParams(temperature=0)
CHUNK = 16
"""Tokens of each of the authors' requests."""

_ANY = 300

Span = tuple[int, int]
"""Words of the aligned model, and then of the base model."""


def schedules(answers: int, words: int) -> list[list[Span]]:
    """So many of the public answers, from all model families in turn, cut after so many words."""
    families = json.loads((Path(__file__).parent / "schedules.json").read_text())["schedules"]
    found = []
    for text in itertools.chain.from_iterable(zip(*families.values(), strict=False)):
        spans: list[Span] = []
        left = words
        for nudge, base in re.findall(r"n(\d+)(?: b(\d+))?", text):
            span = (min(int(nudge), left), min(int(base or 0), max(0, left - int(nudge))))
            left -= sum(span)
            spans.append(span)
            if left <= 0:
                break
        found.append(spans)
        if len(found) == answers:
            break
    return found


async def replay(
    registry: Registry,
    pair: Pair,
    system: System,
    asked: Sequence[tuple[str, list[Span]]],
    streams: int,
) -> Run:
    """Questions, each with the schedule of its answer."""
    for engine in registry.engines.values():
        assert isinstance(engine, VllmEngine)
        engine.resumable = system.resumable
    served = registry.resolve("pair")
    base, aligned = registry.engines["base"], registry.engines["aligned"]
    done, waiting = Run(), list(reversed(asked))
    usages: list[Usage] = []

    async def client() -> None:
        while waiting:
            question, spans = waiting.pop()
            prompt = registry.prompts(served, [Message("user", question)])
            sides = [
                engine.open(engine.info.tokenizer.encode_prompt(text))
                for engine, text in ((base, prompt.base), (aligned, prompt.aligned))
            ]
            try:
                words = [sum(each) for each in zip(*spans, strict=True)]
                if system.role:
                    await _taken(sides[0], sum(words), sum(words))
                elif system.policy == "reference":
                    await _authors(*sides, spans)
                else:
                    await turns(*sides, spans)
                usages.append(
                    Usage(
                        base_tokens=sum(words) if system.role else words[1],
                        aligned_tokens=0 if system.role else words[0],
                        base_steps=sides[0].steps,
                        aligned_steps=sides[1].steps,
                        base_prefilled=sides[0].prefilled,
                        aligned_prefilled=sides[1].prefilled,
                        discarded_tokens=max(0, sides[0].steps + sides[1].steps - sum(words)),
                    )
                )
            finally:
                for side in sides:
                    await side.aclose()
            done.answers += 1

    await timed(done, [client() for _ in range(streams)])
    done.usage = Usage.total([[usage] for usage in usages])
    return done


async def turns(base: Session, aligned: Session, spans: Sequence[Span]) -> None:
    """As the server does it: each turn ends with a position that is looked at and not taken."""
    for nudge, span in spans:
        await base.extend(await _taken(aligned, nudge + 1, nudge))
        if span:
            await aligned.extend(await _taken(base, span + 1, span))


async def _authors(base: Session, aligned: Session, spans: Sequence[Span]) -> None:
    """As the authors' code does it: requests of 16 tokens, one to the base model after each word
    of a draft until it takes over."""
    for nudge, span in spans:
        words = await _taken(aligned, CHUNK, nudge, plain=True)
        for number, word in enumerate(words, 1):
            await base.extend([word])
            taken = min(span, CHUNK) if number == len(words) else 0
            written = await _taken(base, CHUNK, taken, plain=True)
        while len(written) < span:
            written += await _taken(base, CHUNK, min(CHUNK, span - len(written)), plain=True)
        await aligned.extend(written)


async def _taken(session: Session, most: int, taken: int, *, plain: bool = False) -> TokenIds:
    """Let it write ``most`` tokens, and take the first of them."""
    params = TurnParams(GREEDY, max_tokens=most, stop_below=None if plain else 0.0)
    ids: TokenIds = []
    async with aclosing(session.generate(params)) as events:
        async for event in events:
            if isinstance(event, Token):
                ids.append(event.id)
    # Where these weights happened to end a text, the schedule goes on with any token.
    more = [_ANY] * (taken - len(ids))
    await session.extend(more, drop=max(0, len(ids) - taken))
    return [*ids[:taken], *more]

"""Where the two models would write something else.

Along the aligned model's own greedy answer, as in Lin et al., "The Unlocking Spell on Base LLMs"
(2024): at each of its tokens the base model reads its own prompt and the answer so far, and says
what it would write next. It agrees if the answer goes on with the text of its likeliest token, or
ends where that is its end of text. So a whole answer costs one step of each model a token, and the
two may have different vocabularies.

Knows: sessions, and the first word's space. Does not know: γ, reports.
"""

from __future__ import annotations

from collections.abc import Sequence

from server.core import PromptPair, SamplingParams
from server.decoding.handover import Side, without_last_space
from server.engines.base import Engine, Token, TurnEnd, TurnParams, collect, look
from server.evaluation.data import Data, Item
from server.evaluation.runs import Setup, Tick, each
from server.evaluation.store import Store
from server.serving.registry import Registry

SYSTEM = "agreement"
"""The name under which the positions of an answer are kept."""

Position = tuple[float, bool]
"""The base model's p1, and whether it agrees."""

_INSIDE_CHARACTER = {bytes([value]) for value in range(0x80, 0xC0)}
"""UTF-8's continuation bytes."""


async def compare_all(
    registry: Registry, setup: Setup, data: Data, store: Store, tick: Tick = lambda _: None
) -> None:
    """The positions of every question that are missing. Raises `EngineUnavailable`."""
    served = registry.resolve(setup.model)
    base, aligned = (registry.engine(served, role) for role in ("base", "aligned"))

    async def one(item: Item) -> None:
        prompt = registry.prompts(served, item.messages)
        found = await positions(base, aligned, prompt, setup.max_tokens)
        kept = [[round(top_prob, 6), agrees] for top_prob, agrees in found]
        store.add(SYSTEM, item.number, {"positions": kept})
        tick(SYSTEM)

    jobs = [item for item in data.items if (SYSTEM, item.number) not in store.results]
    await each(jobs, setup.at_once, one)


def positions_of(store: Store, data: Data) -> list[Position]:
    """All positions of all questions."""
    return [
        (top_prob, agrees)
        for item in data.items
        for top_prob, agrees in store.results[SYSTEM, item.number]["positions"]
    ]


async def positions(
    base: Engine, aligned: Engine, prompt: PromptPair, max_tokens: int
) -> list[Position]:
    """The positions of one answer. One more stands for its end, if it has one.

    A position of which the answer's remainder is too short to tell is left out.
    """
    reads, writes = Side(base, "base", prompt.base), Side(aligned, "aligned", prompt.aligned)
    reads.listen_to(writes)
    try:
        tokens, end = await _written(writes, max_tokens)
        ended = end.reason == "stop"
        rest = writes.tokenizer.bytes_of(token.id for token in tokens)
        lead = without_last_space(prompt.base)[1].encode()
        found: list[Position] = []
        whole = True
        for token in (*tokens, None):
            if whole and reads.room > 0 and (token is not None or ended):
                await reads.catch_up()
                position = await look(reads.session, 1)
                agrees = _agrees(base, position, rest, ended, lead)
                if agrees is not None:
                    found.append((position.top_prob, agrees))
            if token is not None:
                lead = b"" if writes.take(token) else lead
                rest = rest[len(writes.tokenizer.token_bytes(token.id)) :]
                whole = rest[:1] not in _INSIDE_CHARACTER
        return found
    finally:
        await reads.session.aclose()
        await writes.session.aclose()


async def _written(side: Side, max_tokens: int) -> tuple[list[Token], TurnEnd]:
    """The model's own greedy answer."""
    params = TurnParams(SamplingParams(temperature=0), max_tokens=max_tokens)
    return await collect(side.session, params)


def _agrees(base: Engine, position: Token, rest: bytes, ended: bool, lead: bytes) -> bool | None:
    """Whether the base model's likeliest token is how the answer goes on; None: can't be told."""
    best = position.top[0][0]
    if best in base.info.stop_ids:
        return ended and not rest
    wanted = base.info.tokenizer.token_bytes(best).removeprefix(lead)
    if not ended and len(rest) < len(wanted) and wanted.startswith(rest):
        return None
    return bool(wanted) and rest.startswith(wanted)


def average(found: Sequence[Position]) -> float:
    """The share of positions at which the models agree."""
    return sum(agrees for _, agrees in found) / (len(found) or 1)

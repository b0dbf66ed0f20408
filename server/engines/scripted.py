"""A deterministic engine without a model, for tests and front-end work.

It ships with the server, as httpx ships its MockTransport: ``backend: scripted`` in a config
gives a server that streams at once, with nudges where the script says so. Keeps the contract of
`server.engines.base` to the letter. Does not know: vLLM, the policy, HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from server.core import ConfigError, EngineUnavailable, SamplingParams, TokenIds
from server.engines import hub
from server.engines.backend import Backend, EngineSettings, Examined
from server.engines.base import UNKNOWN, EngineInfo, Token, TurnEnd, TurnParams
from server.engines.machine import Machine
from server.engines.report import Notes
from server.engines.turn import Turn
from server.text.grammar.follow import Follower, Vocabulary
from server.text.tokenizer import Tokenizer

Distribution = Callable[[Sequence[int], Sequence[int]], Sequence[tuple[int, float]]]
"""(prompt ids, ids after it) → the next token's candidates as (id, probability), best first."""

UNHEARD_OF = 1e-6
"""The probability of a token of which a script says nothing."""


class ScriptedEngine:
    """Plays a `Distribution`.

    step_s: how long a decode step takes. It yields to the event loop at each step in any case.
    dies_after: steps of a session after which the engine is as good as dead; None: never.
    """

    def __init__(
        self,
        info: EngineInfo,
        distribution: Distribution,
        *,
        step_s: float = 0.0,
        dies_after: int | None = None,
    ) -> None:
        self._info = info
        self.distribution = distribution
        self.step_s = step_s
        self.dies_after = dies_after
        self.running = 0
        self._vocabulary: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """For answers with a grammar."""
        if self._vocabulary is None:
            tokenizer = self._info.tokenizer
            self._vocabulary = Vocabulary(
                tokenizer.table, tokenizer.encode_text, tokenizer.size, self._info.stop_ids
            )
        return self._vocabulary

    @classmethod
    def from_folder(
        cls,
        name: str,
        folder: str,
        *,
        script: Sequence[tuple[str, float]] = (("Hello! I am a scripted engine.", 0.9),),
        context_length: int = 2048,
        step_s: float = 0.0,
        dies_after: int | None = None,
    ) -> ScriptedEngine:
        """An engine that writes ``script`` with the tokenizer found in ``folder``.

        Args:
            script: (text, top-1 probability) in order. What is written next depends only on
                how many characters of the answer are out already, whoever wrote them.
        """
        tokenizer = Tokenizer.load(folder)
        end = tokenizer.chat.eos_token_id
        if end is None:
            raise ConfigError(f"the tokenizer in {folder!r} has no end-of-text token")
        info = EngineInfo(name, f"scripted ({folder})", context_length, tokenizer, (end,))
        text = scripted_text(tokenizer, end, script)
        return cls(info, text, step_s=step_s, dies_after=dies_after)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def alive(self) -> bool:
        return True

    def open(self, prompt: TokenIds) -> ScriptedSession:
        return ScriptedSession(self, prompt)

    async def check_health(self) -> None:
        return

    async def aclose(self) -> None:
        return


def scripted_text(
    tokenizer: Tokenizer, end: int, script: Sequence[tuple[str, float]]
) -> Distribution:
    """The distribution of an engine that writes a given text."""
    starts = [0, *itertools.accumulate(len(text) for text, _ in script)]

    def distribution(prompt: Sequence[int], output: Sequence[int]) -> list[tuple[int, float]]:
        data = tokenizer.bytes_of(output)
        written = len(data.decode("utf-8", "ignore"))
        half = len(data) - len(data.decode("utf-8", "ignore").encode())
        for (text, probability), start in zip(script, starts, strict=False):
            if written < start + len(text):
                for token in tokenizer.encode_text(text[written - start :]):
                    if half <= 0:  # past what is there of an unfinished character
                        return [(token, probability), (end, 1 - probability)]
                    half -= len(tokenizer.token_bytes(token))
        return [(end, 1.0)]

    return distribution


class ScriptedSession:
    """See `server.engines.base.Session`."""

    def __init__(self, engine: ScriptedEngine, prompt: TokenIds) -> None:
        self._engine = engine
        self._prompt = list(prompt)
        self._output: TokenIds = []
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None
        self._follower: Follower | None = None
        self.steps = 0
        self.prefilled = 0
        self.cached = 0  # it has no cache
        self._unread = len(self._prompt)
        self.closed = False
        self._running = False

    @property
    def length(self) -> int:
        return len(self._prompt) + len(self._output)

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        engine, info = self._engine, self._engine.info
        self._alone()
        self.prefilled += self._unread
        self._unread = 0
        draws = random.Random(f"{params.sampling.seed}/{params.turn}")
        if params.sampling.seed is None:
            draws = random.Random()
        turn = Turn(params, info.tokenizer, info.stop_ids, info.context_length - self.length)
        engine.running += 1
        self._running = True
        try:
            while turn.end is None:
                await asyncio.sleep(engine.step_s)
                if self.steps == engine.dies_after:
                    raise EngineUnavailable(f"engine {info.name!r} died")
                self.steps += 1
                candidates = engine.distribution(self._prompt, self._output)
                top = tuple((i, math.log(p)) for i, p in candidates[: params.reported] if p > 0)
                allowed = self._allowed(candidates, params)
                weights = self._weights(allowed, params, len(turn.taken))
                number = _draw(weights, params.sampling, draws)
                drawn = Token(number, math.log(dict(allowed)[number]) if top else UNKNOWN, top)
                if turn.offer(drawn, p1=allowed[0][1]):
                    self._output.append(number)
                    yield drawn
            yield turn.end
        finally:
            engine.running -= 1
            self._running = False

    def _alone(self) -> None:
        if self._running:
            raise RuntimeError("a turn of this session runs already")

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        engine = self._engine
        await self._pass(self._unread + len(draft))
        tokens = []
        for count in range(min(len(draft) + 1, engine.info.context_length - self.length)):
            candidates = engine.distribution(self._prompt, self._output + draft[:count])
            best = tuple((i, math.log(p)) for i, p in candidates[:top] if p > 0)
            tokens.append(Token(*best[0], best))
        return tokens

    async def score(self, top: int) -> list[Token]:
        await self._pass(self.length)
        ids, prompt = [*self._prompt, *self._output], len(self._prompt)
        tokens = []
        for at in range(1, len(ids)):
            candidates = self._engine.distribution(ids[: min(at, prompt)], ids[prompt:at])
            known = dict(candidates)
            logprob = math.log(known.get(ids[at]) or UNHEARD_OF)
            best = tuple((i, math.log(p)) for i, p in candidates[:top] if p > 0)
            tokens.append(Token(ids[at], logprob, best))
        return tokens

    async def _pass(self, read: int) -> None:
        """One forward pass, which reads so many ids."""
        engine = self._engine
        self._alone()
        self.prefilled += read
        self._unread = 0
        engine.running += 1
        try:
            await asyncio.sleep(engine.step_s)
            if self.steps == engine.dies_after:
                raise EngineUnavailable(f"engine {engine.info.name!r} died")
        finally:
            engine.running -= 1
        self.steps += 1

    def _allowed(
        self, candidates: Sequence[tuple[int, float]], params: TurnParams
    ) -> list[tuple[int, float]]:
        """What the grammar leaves, best first. A script knows no second choices: where it wants
        something else altogether, any token that is allowed is as unlikely as another."""
        if params.grammar is None:
            return list(candidates)
        if self._follower is None:
            self._follower = Follower(params.grammar, self._engine.vocabulary)
        mask = self._follower.allowed_after(self._output)
        if mask is None:
            return [(self._engine.info.stop_ids[0], 1.0)]
        allowed = {i for i in range(8 * len(mask)) if mask[i // 8] >> (i % 8) & 1}
        left = [each for each in candidates if each[0] in allowed]
        return left or [(token, UNHEARD_OF) for token in sorted(allowed)]

    def _weights(
        self, candidates: list[tuple[int, float]], params: TurnParams, taken: int
    ) -> list[tuple[int, float]]:
        """The probabilities with bias and penalties, best first; they need not sum to 1."""
        if not params.adjusted:
            return candidates
        sampling = params.sampling
        bias = dict(sampling.logit_bias)
        counts = Counter(self._output)
        early = {token for token, count in params.not_before if taken < count}
        weights = []
        for token, probability in candidates:
            if probability <= 0 or (token in early and len(candidates) > 1):
                continue
            logit = math.log(probability) + bias.get(token, 0.0)
            if counts[token] or token in self._prompt:
                # Log probabilities are negative: the penalty multiplies.
                logit *= sampling.repetition_penalty
            logit -= sampling.frequency_penalty * counts[token]
            logit -= sampling.presence_penalty * bool(counts[token])
            weights.append((token, math.exp(logit)))
        return sorted(weights, key=lambda each: -each[1]) or candidates

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        self._alone()
        if drop:
            del self._output[-drop:]
        self._output += ids
        self._unread += len(ids)

    async def aclose(self) -> None:
        self.closed = True
        if self._turn is not None:
            await self._turn.aclose()


def _draw(
    candidates: Sequence[tuple[int, float]], sampling: SamplingParams, draws: random.Random
) -> int:
    if sampling.greedy:
        return candidates[0][0]
    kept = [each for each in candidates if each[1] > 0]
    # Over the best: at a temperature next to 0 every power of a probability is 0.
    best = max(p for _, p in kept)
    weights = [(p / best) ** (1 / sampling.temperature) for _, p in kept]
    total = sum(weights)
    weights = [weight / total for weight in weights]
    count = sampling.top_k or len(kept)
    reached = 0.0
    for number, weight in enumerate(weights[:count]):
        if reached >= sampling.top_p or weight < sampling.min_p * weights[0]:
            count = number
            break
        reached += weight
    return draws.choices(kept[:count], weights[:count])[0][0]


class ScriptedSettings(EngineSettings):
    """``model``: a folder with the tokenizer. ``args``: of `ScriptedEngine.from_folder`."""

    backend: Literal["scripted"] = "scripted"
    args: dict[str, Any] = Field(default_factory=dict)


async def _start(name: str, settings: ScriptedSettings, _: int) -> ScriptedEngine:
    return ScriptedEngine.from_folder(name, settings.model, **settings.args)


def _examine(
    engines: Mapping[str, ScriptedSettings], _: Machine, __: int, notes: Notes
) -> dict[str, Examined]:
    notes.warn("engines", f"{', '.join(engines)}: scripted, they play a text", "For tests alone")
    found = {}
    for name, engine in engines.items():
        where = f"engines.{name}"
        found[name] = Examined(context=int(engine.args.get("context_length", 2048)))
        with notes.catching(where):
            folder = hub.locate(engine.model)
            found[name].tokenizer = tokenizer = hub.tokenizer(folder)
            found[name].ends = hub.ends(where, folder, None, tokenizer, notes)
    return found


SCRIPTED = Backend(ScriptedSettings, _start, _examine, lambda: "scripted engines")

"""An answer that one engine with both models writes (docs/adr/0031).

The engine says of each position what either model would write there, several positions a forward
pass. Two sessions look at them, each as one model alone would: so this is no other policy. The same
turns are answered with the same tokens, and most of them are known before they are asked. Where the
answer goes another way than the engine supposed (a header, a loop, a taken-back character), it is
asked anew from there.

Knows: `Nudged`, sessions and turns, positions. Does not know: the policy's rules, vLLM, HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Literal

from server.core import AnswerRequest, NudgingConfig, PromptPair, TokenIds
from server.decoding.handover import read_before, without_last_space
from server.decoding.nudged import Nudged
from server.decoding.speculation.drafts import bent_by
from server.engines.base import Engine, EngineInfo, Token, TurnEnd, TurnParams, look
from server.engines.fused import Asked, Cost, FusedEngine, Position
from server.engines.turn import Turn
from server.text.tokenizer import Tokenizer

Role = Literal["base", "aligned"]

ROLES: tuple[Role, Role] = ("base", "aligned")

EVERYTHING = 2.0
"""A γ with which the aligned model writes everything."""


def unfusable(
    engine: FusedEngine,
    base: Engine,
    aligned: Engine,
    prompt: PromptPair,
    request: AnswerRequest,
    config: NudgingConfig,
) -> tuple[str, str] | None:
    """Why an answer can't be written so: the field of the request, and what is wrong with it. None:
    it can. As with drafts (`server.decoding.speculation.drafts`) what comes next must depend on the
    text alone; and the engine must take both prompts.

    A look-ahead would have the aligned model write where the base model doesn't follow.
    """
    if config.end_lookahead:
        return "nudging.end_lookahead", "looks ahead with a model of its own"
    if field := bent_by(request):
        return field, "bends the choice of tokens"
    if not takes(engine.longer, prompt, base.info.tokenizer, aligned.info.tokenizer):
        longer = max(0, engine.longer)
        return "messages", f"are more than {longer} tokens longer for the aligned model"
    return None


def takes(longer: int, prompt: PromptPair, base: Tokenizer, aligned: Tokenizer) -> bool:
    """Whether one engine can have both models' prompts: they have two ids at least, begin the
    answer alike, and the aligned model's is at most so many ids longer. (Under 0: it is the same.)
    """
    one, other = read_before(base, prompt.base), read_before(aligned, prompt.aligned)
    alike = without_last_space(prompt.base)[1] == without_last_space(prompt.aligned)[1]
    if longer < 0:
        return len(one) > 1 and alike and one == other
    return min(len(one), len(other)) > 1 and len(other) - len(one) <= longer


class Joint:
    """What is known of the positions of one answer, and the request that tells of more.

    sessions: of either model, once it is open.
    """

    def __init__(self, engine: FusedEngine, request: AnswerRequest, gamma: float) -> None:
        self.engine = engine
        self.cost = Cost()
        self.sessions: dict[Role, JointSession] = {}
        self._asked = Asked(
            gamma,
            word=None,
            most=1,
            top=request.top_logprobs or 1,
            stops=request.stop_token_ids,
        )
        # Each model's context, and how the engine went on behind it.
        self._ids: dict[Role, TokenIds] = {"base": [], "aligned": []}
        self._known: list[Position] = []  # the last positions of that
        self._stream: AsyncGenerator[Position] | None = None

    async def at(self, ids: TokenIds, role: Role, asked: Asked) -> Position:
        """The position behind a model's context, with what that says of it. ``asked``: if the
        engine must be asked."""
        found = await self._find(ids, role)
        while found is None:
            await self._turn_to(ids, role, asked)
            found = await self._find(ids, role)
        return found

    async def look(self, ids: TokenIds, role: Role) -> Position:
        """The same, for one position: nothing is to follow it."""
        found = await self._find(ids, role)
        while found is None:
            async with aclosing(
                self._positions(self._both(ids, role), role, self._asked)
            ) as stream:
                found = await anext(stream, None)
        return found

    def asked(self, gamma: float | None, word: tuple[int, ...] | None, most: int) -> Asked:
        gamma = self._asked.gamma if gamma is None else gamma
        return replace(self._asked, gamma=gamma, word=word, most=most)

    async def _find(self, ids: TokenIds, role: Role) -> Position | None:
        """None where the engine doesn't tell of it as it goes on."""
        known, own = self._known, self._ids[role]
        number = len(ids) - (len(own) - len(known))
        if number < 0 or ids != own[: len(ids)]:
            return None
        while number >= len(known):
            position = None if self._stream is None else await anext(self._stream, None)
            if position is None:
                self._stream = None
                return None
            known.append(position)
            for each in self._ids.values():
                each.append(position.token)
        found = known[number]
        return None if role == "aligned" and found.aligned is None else found

    async def _turn_to(self, ids: TokenIds, role: Role, asked: Asked) -> None:
        await self.aclose()
        self._ids, self._known = self._both(ids, role), []
        self._stream = self._positions(self._ids, role, asked)

    def _both(self, ids: TokenIds, role: Role) -> dict[Role, TokenIds]:
        """Both models' contexts, where one of them is this. When a turn begins both sessions hold
        the whole answer, in whatever ids; what the turn has added the other one will hear as it is.
        (Where it won't, it will ask anew.)"""
        added = ids[self.sessions[role].begun :]
        others = {each: [*session.ids, *added] for each, session in self.sessions.items()}
        return others | {role: ids.copy()}

    async def _positions(
        self, contexts: dict[Role, TokenIds], role: Role, asked: Asked
    ) -> AsyncGenerator[Position]:
        """Those behind two contexts, of which one model asks. Where the engine can't have both (one
        is full, or they have grown apart), what that one alone says."""
        engine, (base, aligned) = self.engine, (contexts[each].copy() for each in ROLES)
        longest = max(len(base), len(aligned))
        both = longest < engine.info.context_length
        both = both and (base == aligned or 0 <= engine.longer >= len(aligned) - len(base))
        if not both and role == "base":
            async with aclosing(engine.open(base)) as session:
                token = await look(session, asked.top)
                self.cost.passes += session.steps
                self.cost.prefilled += session.prefilled
            yield Position(token.id, token, None)
            return
        if base != aligned:
            asked = replace(asked, drafting=tuple(aligned))
        if not both:
            base, asked = aligned, replace(asked, gamma=EVERYTHING)
        async with aclosing(engine.positions(base, asked, self.cost)) as positions:
            async for position in positions:
                yield position

    async def aclose(self) -> None:
        if self._stream is not None:
            stream, self._stream = self._stream, None
            await stream.aclose()


class JointSession:
    """One of the two models, as a session of its own: `server.engines.base.Session`.

    begun: how many ids it had when its last turn began.
    """

    def __init__(self, joint: Joint, role: Role, info: EngineInfo, prompt: TokenIds) -> None:
        self._joint = joint
        self._role: Role = role
        self._info = info
        self.ids = list(prompt)
        self.begun = len(prompt)
        joint.sessions[role] = self
        self._turn: AsyncGenerator[Token | TurnEnd] | None = None

    @property
    def length(self) -> int:
        return len(self.ids)

    @property
    def steps(self) -> int:
        cost = self._joint.cost
        return cost.passes if self._role == "base" else cost.drafts

    @property
    def prefilled(self) -> int:
        return self._joint.cost.prefilled

    @property
    def cached(self) -> int:
        return self._joint.cost.cached or 0

    def generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        self._turn = self._generate(params)
        return self._turn

    async def _generate(self, params: TurnParams) -> AsyncGenerator[Token | TurnEnd]:
        joint, info, ids = self._joint, self._info, self.ids
        self.begun = len(ids)
        turn = Turn(params, info.tokenizer, info.stop_ids, info.context_length - len(ids))
        while turn.end is None:
            if params.stop_below is not None and params.stop_below > 1:  # nothing will be taken
                position = await joint.look(ids, self._role)
            else:
                position = await joint.at(ids, self._role, self._asked(turn.rest()))
            token = position.base if self._role == "base" else position.aligned
            assert token is not None
            if turn.offer(token):
                ids.append(token.id)
                yield token
        yield turn.end

    def _asked(self, params: TurnParams) -> Asked:
        """What would have the engine write this turn, and then the answer."""
        room = self._info.context_length - len(self.ids)
        if self._role == "aligned" and params.word is not None:
            return self._joint.asked(None, params.word, room)
        gamma = EVERYTHING if self._role == "aligned" else params.stop_below or 0.0
        return self._joint.asked(gamma, None, min(params.max_tokens, room))

    async def check(self, draft: TokenIds, top: int) -> list[Token]:
        raise NotImplementedError("a fused engine checks no drafts of others")

    async def score(self, top: int) -> list[Token]:
        raise NotImplementedError("a fused engine scores no prompts")

    async def extend(self, ids: TokenIds, *, drop: int = 0) -> None:
        if drop:
            del self.ids[-drop:]
        self.ids += ids

    async def aclose(self) -> None:
        if self._turn is not None:
            await self._turn.aclose()
        await self._joint.aclose()


class _Half:
    """One of the models of a fused engine, for one answer: an `Engine` that opens its session."""

    def __init__(self, joint: Joint, role: Role, info: EngineInfo) -> None:
        self.info = info
        self._joint = joint
        self._role: Role = role

    def open(self, prompt: TokenIds) -> JointSession:
        return JointSession(self._joint, self._role, self.info, prompt)

    @property
    def alive(self) -> bool:
        return self._joint.engine.alive

    @property
    def running(self) -> int:
        return self._joint.engine.running

    async def check_health(self) -> None:
        await self._joint.engine.check_health()

    async def aclose(self) -> None:
        """The engine is others' too."""


class Fused(Nudged):
    """An answer that is written so: one that isn't `unfusable`."""

    def __init__(
        self,
        engine: FusedEngine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        """Raises `ContextLengthExceeded` if the prompt doesn't fit."""
        joint = Joint(engine, request, config.gamma)
        base = _Half(joint, "base", engine.info)
        aligned = _Half(joint, "aligned", engine.aligned)
        super().__init__(base, aligned, prompt, request, config)

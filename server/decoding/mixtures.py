"""Two of the paper's baselines, which mix the models' distributions at every token.

``ensemble``      the mean of both models' next-token probabilities (Fei, Razeghi, Singh, ACL 2025,
                  baselines).
``proxy_tuning``  the base model's logits, plus what alignment did to the small model's: aligned
                  minus untuned (Liu et al., "Tuning Language Models by Proxy", 2024).

Greedy and exact: every engine reports its whole vocabulary's log probabilities at each position,
and the likeliest token of the mixture is appended to every model's context. That costs a step of
every engine a token, and the transfer of a vocabulary each. The models must have one vocabulary.

Knows: how the mixtures are computed, and written with engine sessions. Does not know: OpenAI's
schemas, vLLM.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from server.core import (
    AnswerRequest,
    InvalidRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    PromptText,
    Rejected,
    ScoredToken,
    Speaker,
    StopReason,
    TokenIds,
    Usage,
)
from server.decoding.handover import check_fits, close_all, without_last_space
from server.decoding.stream import End, Output
from server.engines.base import EVERY_TOKEN, Distribution, Engine, Token, look
from server.policies import DEFAULT
from server.text.tokenizer import Tokenizer

LogProbs: TypeAlias = NDArray[np.float64]
"""One natural-log probability for each id of the vocabulary, shape [size]."""

_IMPOSSIBLE = -1e4
"""For the logarithm of 0, where it is added and subtracted."""


def ensemble(base: LogProbs, aligned: LogProbs) -> LogProbs:
    """The mean of two distributions."""
    mean: LogProbs = np.logaddexp(base, aligned) - np.log(2)
    return mean


def proxy_tuned(base: LogProbs, aligned: LogProbs, untuned: LogProbs) -> LogProbs:
    """Base + (aligned - untuned), normalized. Log probabilities are logits up to a constant, and
    constants cancel out."""
    b, a, u = (np.maximum(each, _IMPOSSIBLE) for each in (base, aligned, untuned))
    scores: LogProbs = b + (a - u)
    best = scores.max()
    normalized: LogProbs = scores - best - np.log(np.exp(scores - best).sum())
    return normalized


class Mixed:
    """An answer by one of the mixtures.

    A token is the base model's where it is that model's own likeliest; otherwise it belongs to
    the model of the pair that finds it likelier.
    """

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        untuned: Engine | None,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        """``untuned``: for ``proxy_tuning``; it reads the base model's prompt.

        Raises `InvalidRequest` where the vocabularies differ, `ContextLengthExceeded`.
        """
        self.request = request
        self._tokenizer = base.info.tokenizer
        engines = [base, aligned] if untuned is None else [base, aligned, untuned]
        check_vocabularies([each.info.tokenizer for each in engines], config.policy)
        self.base = _Context(base, "base", prompt.base)
        self.aligned = _Context(aligned, "aligned", prompt.aligned)
        self.untuned = None if untuned is None else _Context(untuned, "untuned", prompt.base)
        self.contexts = [self.base, self.aligned, *([self.untuned] if self.untuned else [])]
        self._ends: dict[int, StopReason] = {
            **dict.fromkeys(base.info.stop_ids, "end_of_text"),
            **dict.fromkeys(aligned.info.stop_ids, "aligned_end"),
        }
        # Other special tokens are no text and end nothing.
        allowed = np.fromiter(map(bool, self._tokenizer.table), bool, self._tokenizer.size)
        allowed[[i for i in (*self._ends, *request.stop_token_ids) if i < len(allowed)]] = True
        self._allowed = allowed
        self._ended: StopReason | None = None
        self._tokens: dict[Speaker, int] = {"base": 0, "aligned": 0}
        self._rounds = 0
        self._begun = False

    @property
    def committed(self) -> int:
        return sum(self._tokens.values())

    async def write(self, out: Output) -> End:
        decoder = self._tokenizer.decoder()
        speaker: Speaker = "base"
        said, count, scored = "", 0, list[ScoredToken]()  # of the piece being made
        try:
            while self._ended is None:
                if self.committed >= self.request.limit:
                    self._ended = "length"
                    break
                if min(context.room for context in self.contexts) <= 0:
                    self._ended = "context"
                    break
                looks = await self._look()
                base, aligned = looks[:2]
                each = [log_probs(look, self._tokenizer.size) for look in looks]
                mixture = self._mixture(each)
                token = int(mixture.argmax())
                own_best = token == base.top[0][0]
                likelier = each[0][token] > each[1][token]
                before, speaker = speaker, "base" if own_best or likelier else "aligned"
                if token in self.request.stop_token_ids:
                    self._ended = "stop_token"
                elif token in self._ends:
                    self._ended = self._ends[token]
                if self.request.top_logprobs is not None:
                    scored.append(self._scored(mixture, token, speaker))
                if self._ended is None:
                    self._tokens[speaker] += 1
                    count += 1
                    said += await self._commit(token, speaker, decoder.push(token))
                nudge = speaker == "aligned" and (before == "base" or not self._rounds)
                rejected = None
                if nudge and self._ended is None:
                    self._rounds += 1
                    rejected = Rejected(self._tokenizer.token_text(base.top[0][0]), base.top_prob)
                if said and not decoder.pending:
                    own = base if speaker == "base" else aligned
                    out.emit(Piece(said, speaker, own.top_prob, count, rejected, tuple(scored)))
                    if out.full:
                        await out.room()
                    said, count, scored = "", 0, []
            if said or scored:  # the end, or tokens of a character that was not finished
                out.emit(Piece(said, speaker, 1.0, count, scored=tuple(scored)))
            return End(self._ended)
        finally:
            await close_all(*(context.session for context in self.contexts))

    async def _look(self) -> list[Token]:
        """The next position of every model, computed at the same time."""
        looks = [asyncio.create_task(context.look()) for context in self.contexts]
        try:
            return await asyncio.gather(*looks)
        finally:
            for look in looks:
                look.cancel()
            await asyncio.gather(*looks, return_exceptions=True)

    def _mixture(self, each: Sequence[LogProbs]) -> LogProbs:
        """What the next token is chosen from; -inf for a token that can't be chosen now."""
        mixture = ensemble(*each) if self.untuned is None else proxy_tuned(*each)
        mixture[~self._allowed] = -np.inf
        early = self.request.not_before(tuple(self._ends), self.committed)
        mixture[[token for token, _ in early if token < len(mixture)]] = -np.inf
        return mixture

    def _scored(self, mixture: LogProbs, token: int, speaker: Speaker) -> ScoredToken:
        """The token as it is in the answer if it is committed next, for ``logprobs``."""
        count = self.request.top_logprobs or 1
        best = np.argsort(-mixture, kind="stable")[:count]
        lead = b"" if self._begun else self._context(speaker).lead.encode()
        ended = self._ended is not None
        data = b"" if ended else self._tokenizer.token_bytes(token).removeprefix(lead)
        top = [
            (data if i == token else self._tokenizer.token_bytes(i).removeprefix(lead), p)
            for i, p in zip(map(int, best), map(float, mixture[best]), strict=True)
        ]
        place: Literal["end", "answer"] = "end" if ended else "answer"
        return ScoredToken(data, float(mixture[token]), tuple(top), place)

    def _context(self, speaker: Speaker) -> _Context:
        return self.base if speaker == "base" else self.aligned

    async def _commit(self, token: int, speaker: Speaker, text: str) -> str:
        """Every model reads a token. Returns its text, as it is in the answer.

        At an answer's beginning one model's prompt may end in a space that waits for the first
        word (docs/adr/0004), and the other's not. Then each reads the word in its own way.
        """
        own = self._context(speaker).lead
        said = text if self._begun else text.removeprefix(own)
        for context in self.contexts:
            if self._begun or context.lead == own:
                ids = [token]
            elif not text:  # it ends inside a character
                ids = [*self._tokenizer.encode_text(context.lead), token]
            else:
                spaced = said if said[:1].isspace() else context.lead + said
                ids = [token] if spaced == text else self._tokenizer.encode_text(spaced)
            await context.session.extend(ids)
        self._begun = True
        return said

    def usage(self) -> Usage:
        steps = sum(context.session.steps for context in self.contexts)
        untuned = None if self.untuned is None else self.untuned.session
        return Usage(
            base_prompt_tokens=self.base.prompt_tokens,
            aligned_prompt_tokens=self.aligned.prompt_tokens,
            base_tokens=self._tokens["base"],
            aligned_tokens=self._tokens["aligned"],
            rounds=self._rounds,
            base_steps=self.base.session.steps,
            aligned_steps=self.aligned.session.steps,
            untuned_steps=0 if untuned is None else untuned.steps,
            discarded_tokens=steps - self.committed,
            base_prefilled=self.base.session.prefilled,
            aligned_prefilled=self.aligned.session.prefilled,
            untuned_prefilled=0 if untuned is None else untuned.prefilled,
            cached_tokens=self.base.session.cached,
        )


class _Context:
    """What one model has read. ``lead``: its prompt's last space, which waits for a word."""

    def __init__(self, engine: Engine, who: str, prompt: PromptText) -> None:
        read, self.lead = without_last_space(prompt)
        ids: TokenIds = engine.info.tokenizer.encode_prompt(read)
        check_fits(len(ids), engine, who)
        self.prompt_tokens = len(ids)
        self.session = engine.open(ids)
        self._context_length = engine.info.context_length

    @property
    def room(self) -> int:
        return self._context_length - self.session.length

    async def look(self) -> Token:
        """The model's next position, with every token's log probability; nothing is taken."""
        return await look(self.session, EVERY_TOKEN)


def log_probs(look: Token, size: int) -> LogProbs:
    """A position's distribution by id; -inf for what the engine doesn't report. Ids beyond the
    vocabulary (a model's padding) are left out."""
    if isinstance(look.top, Distribution):
        ids, values = look.top.ids, look.top.logprobs
    else:
        ids = np.fromiter((i for i, _ in look.top), np.int64, len(look.top))
        values = np.fromiter((value for _, value in look.top), np.float64, len(look.top))
    found = np.full(size, -np.inf)
    found[ids[ids < size]] = values[ids < size]
    return found


def check_vocabularies(tokenizers: Sequence[Tokenizer], policy: str) -> None:
    """Raises `InvalidRequest` unless each id is the same token in all of them."""
    if not all(each.same_ids_as(tokenizers[0]) for each in tokenizers):
        raise InvalidRequest(
            f"the policy {policy!r} mixes distributions over one vocabulary, and these models "
            f"have different ones; ask for the policy {DEFAULT!r}",
            param="nudging.policy",
        )

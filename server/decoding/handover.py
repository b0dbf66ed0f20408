"""One model's side of an answer: its session, and text on its way in and out of it.

Knows: engine sessions and tokenizers; that text leads, that only whole characters are handed
over, that special tokens never cross, what happens to the space at a prompt's end, and how tokens
become pieces. Does not know: the policy, HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

from server.core import (
    ContextLengthExceeded,
    Piece,
    PromptText,
    ScoredToken,
    Speaker,
    TokenIds,
    joined,
)
from server.decoding.memory import Memory
from server.engines.base import Engine, Session, Token, TurnParams
from server.text.tokenizer import Tokenizer


def too_long(most: int, tokens: str, whose: str = "") -> str:
    """OpenAI's words, which clients look for to know that they should shorten their prompt."""
    return (
        f"This model's maximum context length is {most} tokens. However, your messages resulted in "
        f"{tokens} tokens{whose}. Please reduce the length of the messages."
    )


def check_fits(prompt_tokens: int, engine: Engine, who: str) -> None:
    """Raises `ContextLengthExceeded` where no token of an answer would fit."""
    if prompt_tokens >= engine.info.context_length:
        raise ContextLengthExceeded(
            too_long(engine.info.context_length, f"{prompt_tokens}", f" for the {who} model")
        )


async def close_all(*sessions: Session) -> None:
    """Close each, also where closing one of them fails. Raises what the first of them raised."""
    closing = (session.aclose() for session in sessions)
    for result in await asyncio.gather(*closing, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class Side:
    """One model's side of an answer: its session, and text on its way in and out of it."""

    def __init__(
        self,
        engine: Engine,
        speaker: Speaker,
        prompt: PromptText | TokenIds,
        *,
        verbatim: bool = False,
        marked: bool = False,
    ) -> None:
        """``verbatim``: the prompt's last space is read at once. An answer with a grammar from its
        beginning on must not begin with it. ``marked``: see `AnswerRequest`.

        Raises `ContextLengthExceeded`.
        """
        self.info = engine.info
        self.tokenizer = engine.info.tokenizer
        self.speaker = speaker
        self._encode = self.tokenizer.encode_marked if marked else self.tokenizer.encode_text
        # A prompt that ends in a space would cut the answer's first word from the space that
        # its first token has in front ("Answer: " + "Paris" is not " Paris"). So it waits,
        # and joins the first text of the answer (docs/adr/0004).
        self._lead = ""
        # … and the two sides' leads that a first text took which isn't whole yet.
        self._taken_leads = ("", "")
        if isinstance(prompt, tuple):
            if not verbatim:
                prompt, self._lead = without_last_space(prompt)
            prompt = list(_encoded(self.tokenizer, prompt))
        self.prompt_tokens = len(prompt)
        check_fits(self.prompt_tokens, engine, speaker)
        self.session = self._open(engine, prompt)
        self.tokens = 0
        self.given = 0  # of them, those that no model wrote
        self.other: Side | None = None
        # Special tokens of the answer that no piece has yet, with their offsets in the next one.
        self.markers: list[tuple[int, str]] = []
        self._shared = False
        self._verbatim = False  # whether the other side can take `_said` as ids
        self._decoder = self.tokenizer.decoder()
        self._said: list[int] = []  # own tokens since the last whole character
        self._said_text = ""
        self._heard = ""  # the other's text, not encoded yet
        self._waiting: TokenIds = []  # … and what of it is encoded, not in the session yet
        self._drop = 0

    def _open(self, engine: Engine, prompt: TokenIds) -> Session:
        return engine.open(prompt)

    def listen_to(self, other: Side) -> None:
        other.other = self
        other.markers = self.markers
        other._shared = other.tokenizer.shares_ids_with(self.tokenizer)
        other._verbatim = other._shared

    @property
    def room(self) -> int:
        return self.info.context_length - self.session.length

    @property
    def verbatim(self) -> bool:
        """Whether the other side has read all that this one is about to, and will read what this
        one writes next as the same ids."""
        other = self.other
        return (
            self._verbatim
            and other is not None
            and not (self._lead or other._lead)
            and not (self._decoder.pending or other._decoder.pending)
        )

    @property
    def inside_character(self) -> bool:
        """Whether the last token that was taken ended inside a character."""
        return self._decoder.pending > 0

    def take(self, token: Token) -> str:
        """Commit a token: the text it completes, which the other side hears too."""
        text = self._decoder.push(token.id)
        self.tokens += 1
        if text and self._lead:
            text = self._begin(text)
        if self.other is not None:
            if self.tokenizer.token_bytes(token.id):  # special tokens never cross
                self._said.append(token.id)
            self._said_text += text
            if not self._decoder.pending:
                self.other.hear(self._said_text, self._said if self._verbatim else None)
                self._said, self._said_text, self._verbatim = [], "", self._shared
        if not self._decoder.pending:
            self._taken_leads = ("", "")
        return text

    def take_front(self, text: str) -> str:
        """Commit the text that a token begins with, which itself is taken back: both sides read
        the text. It counts as a token."""
        self.tokens += 1
        text = text.removeprefix(self._lead)
        self.hear(text)
        if self.other is not None:
            self.other.hear(text)
        return text

    def _begin(self, text: str) -> str:
        """The answer's first text, by a model whose prompt's last space still waits."""
        lead, self._lead = self._lead, ""
        spaced = text.startswith(lead)
        if spaced:
            self._taken_leads = (lead, "")
        if self.other is not None:
            alike = self.other._lead == lead
            if alike and (self._shared or not spaced):
                # The other prompt ends alike: it goes on with the same ids, or as close.
                self.other._lead = ""
                self._taken_leads = (lead, lead) if spaced else ("", "")
            elif spaced:
                self._verbatim = False  # these ids hold a space that the text has no more
        return text.removeprefix(lead)

    def hear(self, text: str, ids: TokenIds | None = None) -> None:
        """The other model's committed text; ``ids`` where both have the same vocabulary."""
        if self._lead and text:
            text = text if text[0].isspace() else self._lead + text
            self._lead, ids = "", None
        if ids is None:
            self._heard += text
        else:
            self._encode_heard()
            self._waiting += ids

    def say(self, text: str) -> None:
        """Text of this side that no model wrote: both read it."""
        tokens = self.count(text)
        self.tokens += tokens
        self.given += tokens
        self.hear(text)
        if self.other is not None:
            self.other.hear(text)

    def count(self, text: str) -> int:
        """The tokens of a text that is heard."""
        return len(self._encode(text))

    def take_back(self, tokens: int) -> None:
        """The session's last tokens were not committed after all."""
        self._drop += tokens

    def rest(self) -> int:
        """End of a turn. A character left unfinished is taken back: the next speaker writes
        it whole. Returns how many bytes that were.

        A token that ended inside it and had other text in front is committed for that text.
        """
        decoder = self._decoder
        if not decoder.pending:
            return 0
        text, kept, unfinished = decoder.pending_text, decoder.pending_out, decoder.unfinished
        lead, others = self._taken_leads
        if lead and text == lead:  # it waits again
            self._lead, text, kept = lead, "", 0
        self._heard += text
        if self.other is not None:
            if others:  # it was to have these ids
                self.other._lead = others
            self.other.hear(self._said_text)
            self._said, self._said_text = [], ""
        self.take_back(decoder.pending)
        self.tokens -= decoder.pending - kept
        self._taken_leads = ("", "")
        decoder.reset()
        return unfinished

    async def catch_up(self) -> None:
        """Bring the session up to date, before its next turn."""
        self._encode_heard()
        if self._waiting or self._drop:
            await self.session.extend(self._waiting, drop=self._drop)
            self._waiting, self._drop = [], 0

    def _encode_heard(self) -> None:
        if self._heard:
            self._waiting += self._encode(self._heard)
            self._heard = ""

    def scored(self, token: Token) -> ScoredToken:
        """The token as it is in the answer if it is taken next, for ``logprobs``."""
        # What gives a prompt's last space back has it no more; the alternatives neither.
        lead = b"" if self._decoder.pending else self._lead.encode()
        return self._scored(token, self.tokenizer.token_bytes(token.id).removeprefix(lead), lead)

    def scored_end(self, token: Token) -> ScoredToken:
        """The token with which the model ended, which is no text."""
        return replace(self._scored(token, b""), place="end")

    def scored_prompt(
        self, read: TokenIds, text: str | None, scores: Sequence[Token]
    ) -> list[ScoredToken]:
        """A raw prompt's tokens.

        Args:
            text: which was read as these ids; None: they were given.
            scores: of its tokens but the first.
        """
        spelled = map(self.tokenizer.token_bytes, read)
        first, *others = spelled if text is None else self.tokenizer.as_spelled(read, text)
        scored = [ScoredToken(first, None), *map(self._scored, scores, others)]
        return [replace(each, place="prompt") for each in scored]

    def _scored(self, token: Token, data: bytes, lead: bytes = b"") -> ScoredToken:
        spelled = self.tokenizer.token_bytes
        top = [(data if i == token.id else spelled(i).removeprefix(lead), p) for i, p in token.top]
        return ScoredToken(data, token.logprob, tuple(top))


class Remembered(Side):
    """A side whose model's next words are remembered."""

    session: Memory

    async def would_end(self, before: str, params: TurnParams) -> bool:
        """Whether the model's likeliest token is its end, behind what was committed and some text
        that wasn't. params: of a turn of one token."""
        await self.session.stop()
        async with self.session.reads:
            await self.catch_up()
            ids = self.tokenizer.encode_text(before)
            if self.room <= len(ids):
                return False
            if ids:
                await self.session.extend(ids)
            token = await self.session.glance(params)
            if ids:
                await self.session.extend([], drop=len(ids))
        return token.top[0][0] in self.info.stop_ids

    def _open(self, engine: Engine, prompt: TokenIds) -> Memory:
        return Memory(engine.open(prompt), engine.info)


class Growing:
    """The piece that is being made of the tokens that one side takes.

    scores: whether they are reported.
    """

    def __init__(self, side: Side, *, scores: bool) -> None:
        self._side = side
        self._scores = scores
        self._begin()

    def _begin(self) -> None:
        self._text = ""
        self._tokens = 0
        self._lowest = 1.0
        self._scored: list[ScoredToken] = []

    def take(self, token: Token) -> str:
        """Commit a token; the text that it completes."""
        if self._scores:
            self._scored.append(self._side.scored(token))
        marker = self._side.tokenizer.marker(token.id)
        if marker is not None and not self._side.inside_character:  # there it may be taken back
            self._side.markers.append((len(self._text), marker))
        text = self._side.take(token)
        self._text += text
        self._tokens += 1
        # NaN, where nobody asked for it, stays.
        self._lowest = min(token.top_prob, self._lowest)
        return text

    def take_front(self, token: Token, text: str) -> str:
        """Commit the text that a token begins with, and not the token."""
        whole = self._side.scored(token) if self._scores else None
        text = self._side.take_front(text)
        if whole is not None:
            data = text.encode()
            top = tuple((data if own == whole.data else own, p) for own, p in whole.top)
            self._scored.append(replace(whole, data=data, top=top))
        self._text += text
        self._tokens += 1
        self._lowest = min(token.top_prob, self._lowest)
        return text

    def whole(self) -> Piece | None:
        """The piece, where it ends with a whole character; then another one begins."""
        return self._piece() if self._text and not self._side.inside_character else None

    def rest(self) -> Piece | None:
        """The side's turn is over: what is left, without a character that is unfinished."""
        before = self._side.tokens
        unfinished = self._side.rest()
        self._tokens -= before - self._side.tokens
        while unfinished and self._scored:
            last = self._scored.pop()
            if len(last.data) > unfinished:
                data = last.data[:-unfinished]
                top = tuple((data if own == last.data else own, p) for own, p in last.top)
                self._scored.append(replace(last, data=data, top=top))
            unfinished = max(0, unfinished - len(last.data))
        return self._piece()

    def end(self, token: Token | None) -> Piece | None:
        """The answer is over: what is left, all of it, and the ``token`` that ended it."""
        if self._scores and token is not None:
            self._scored.append(self._side.scored_end(token))
        return self._piece(last=True)

    def _piece(self, *, last: bool = False) -> Piece | None:
        """``last``: no text follows for which markers could wait."""
        text, scored, markers = self._text, tuple(self._scored), self._side.markers
        taken = tuple(markers) if text or last else ()
        del markers[: len(taken)]
        piece = Piece(
            text, self._side.speaker, self._lowest, self._tokens, scored=scored, markers=taken
        )
        self._begin()
        return piece if text or scored or taken else None


def read_before(tokenizer: Tokenizer, prompt: PromptText) -> tuple[int, ...]:
    """What a model reads of a prompt before an answer begins."""
    return _encoded(tokenizer, without_last_space(prompt)[0])


@lru_cache(maxsize=8)
def _encoded(tokenizer: Tokenizer, prompt: PromptText) -> tuple[int, ...]:
    """Of the ``n`` answers to one prompt the first one has it tokenized; or whoever wanted to know
    before whether it fits."""
    return tuple(tokenizer.encode_prompt(prompt))


def without_last_space(prompt: PromptText) -> tuple[PromptText, str]:
    """What a model reads of a prompt before an answer begins, and the space that waits, if any.

    Only the last of several waits: it is the one that a first word brings along, and the others
    (an indentation) are the model's to read.
    """
    if not prompt or not isinstance(prompt[-1], str) or not prompt[-1].endswith(" "):
        return prompt, ""
    read = (*prompt[:-1], prompt[-1][:-1])
    return (read, " ") if joined(read) else (prompt, "")

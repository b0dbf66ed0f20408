"""Answers that must match a grammar: from a JSON schema, and followed token by token.

Knows: llguidance, and how an answer's tokens advance a grammar. Does not know: engines, the
policy, HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from server.core import Grammar, InvalidRequest, TokenIds

_CLOSING = re.compile(rb'["\]}]+')

_OPTIONS: Any = {
    # One line, with or without a space after a comma and a colon. With free whitespace a model
    # that is lost can write nothing else until its context is full.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,  # a keyword that can't be followed is an error
}


def json_grammar(schema: dict[str, Any]) -> Grammar:
    """The JSON texts that a schema allows.

    Raises:
        InvalidRequest: it is no schema, it is too large, or it has a keyword that can't be
            followed exactly. Nothing is followed half-way.
    """
    try:
        source = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
        problem = LLMatcher.validate_grammar(source)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise InvalidRequest(
            f"the JSON schema can't be followed exactly: {' '.join(problem.split())[:300]}",
            param="response_format",
        )
    return Grammar(source)


class Vocabulary:
    """A model's tokens as the grammars of its answers see them.

    Args:
        table: the bytes of each id; empty for those that are no text.
        encode: text to ids. Where only one text can follow, it is written as this does.
        size: of the model's logits, which may be more than the table.
        stop_ids: what may be drawn where the grammar is satisfied.
    """

    def __init__(
        self,
        table: Sequence[bytes],
        encode: Callable[[str], TokenIds],
        size: int,
        stop_ids: Sequence[int],
    ) -> None:
        self.table = table
        wrapped = TokenizerWrapper(_Table(table, encode, stop_ids[0]))
        self.tokens = LLTokenizer(wrapped, n_vocab=max(size, len(table)), eos_token=list(stop_ids))


class _Table:
    """What llguidance's `TokenizerWrapper` wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, table: Sequence[bytes], encode: Callable[[str], TokenIds], eos: int) -> None:
        self.eos_token_id = eos
        self.tokens = list(table)
        self.special_token_ids = [token for token, data in enumerate(table) if not data]
        self._encode = encode

    def __call__(self, text: str) -> TokenIds:
        if not isinstance(text, str):  # so it finds out that bytes are not taken
            raise TypeError("text, please")
        return self._encode(text)


class Follower:
    """Where in its grammar an answer is. Whoever wrote its tokens, and also if the last of
    them were taken back."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self._grammar, self._vocabulary = grammar, vocabulary
        self._begin()

    def _begin(self) -> None:
        self._matcher = LLMatcher(self._vocabulary.tokens, self._grammar.source, log_level=0)
        self._read: TokenIds = []

    def go_to(self, output: Sequence[int]) -> None:
        """The answer is ``output`` now: what is new is read, and what is gone is undone."""
        if self.lost:
            self._begin()
        same = min(len(self._read), len(output))
        if self._read[:same] != list(output[:same]):
            same = next(i for i in range(same) if self._read[i] != output[i])
        if same < len(self._read):
            self._matcher.rollback(len(self._read) - same)
            del self._read[same:]
        new = list(output[same:])
        self._matcher.consume_tokens(new)
        self._read += new

    def allowed_after(self, output: Sequence[int]) -> bytes | None:
        """One bit a token, the lowest of each byte first: whether it may come next. None where
        the grammar is `lost`."""
        self.go_to(output)
        allowed = None if self.lost else self._matcher.compute_bitmask()
        return None if self.lost else allowed

    @property
    def lost(self) -> bool:
        """Whether it can't go on: a limit of its resources, or text that it doesn't allow."""
        return bool(self._matcher.is_error())

    @property
    def satisfied(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


def closes(token: bytes) -> bool:
    """Whether a token only ends strings, lists and objects. What a model that wants to end where
    its grammar doesn't allow it writes instead, if it may."""
    return bool(_CLOSING.fullmatch(token))


def matches(grammar: Grammar, text: str) -> bool:
    """Whether a whole text is one that the grammar allows. By its bytes: no model's tokens."""
    follower = Follower(grammar, _bytes_alone())
    follower.go_to(text.encode())
    return not follower.lost and follower.satisfied


@cache
def _bytes_alone() -> Vocabulary:
    """A vocabulary in which each byte is a token, and 256 is the end."""
    table = [*(bytes([byte]) for byte in range(256)), b""]
    return Vocabulary(table, lambda text: list(text.encode()), len(table), (256,))

"""Answers that must match a grammar: from a JSON schema, and followed token by token.

Knows: llguidance, and how an answer's tokens advance a grammar. Does not know: engines, the
policy, HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from server.core import Grammar, InvalidRequest, TokenIds
from server.text import Tokenizer

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
        size: of the model's logits, which may be more than the tokenizer's.
        stop_ids: what may be drawn where the grammar is satisfied.
    """

    def __init__(self, tokenizer: Tokenizer, size: int, stop_ids: Sequence[int]) -> None:
        self.size = max(size, tokenizer.size)
        self.stop_ids = tuple(stop_ids)
        wrapped = TokenizerWrapper(_Table(tokenizer, stop_ids[0]))
        self.tokens = LLTokenizer(wrapped, n_vocab=self.size, eos_token=list(stop_ids))


class _Table:
    """What llguidance's `TokenizerWrapper` wants to know of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, eos: int) -> None:
        self.eos_token_id = eos
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> TokenIds:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode_text(plain)


class Follower:
    """Where in its grammar an answer is. Whoever wrote its tokens, and also if the last of
    them were taken back."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self._matcher = LLMatcher(vocabulary.tokens, grammar.source, log_level=0)
        self._read: TokenIds = []

    def go_to(self, output: Sequence[int]) -> None:
        """The answer is ``output`` now: what is new is read, and what is gone is undone."""
        same = min(len(self._read), len(output))
        if self._read[:same] != list(output[:same]):
            same = next(i for i in range(same) if self._read[i] != output[i])
        if same < len(self._read):
            self._matcher.rollback(len(self._read) - same)
            del self._read[same:]
        new = [token for token in output[same:]]
        self._matcher.consume_tokens(new)
        self._read += new

    def allowed(self) -> bytes:
        """One bit a token, the lowest of each byte first: whether it may come next.

        Raises ``RuntimeError`` where the grammar lost its way (its resource limits, or tokens
        that it didn't allow).
        """
        if self._matcher.is_error():
            raise RuntimeError(f"the grammar can't go on: {self._matcher.get_error()[:300]}")
        return self._matcher.compute_bitmask()

    @property
    def satisfied(self) -> bool:
        """Whether the answer may end here."""
        return self._matcher.is_accepting()

"""An answer in its grammar, token by token.

Knows: llguidance, and how an answer's tokens advance a grammar. Does not know: where a grammar
comes from, engines, the policy, HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from server.core import Grammar, TokenIds

_CLOSING = re.compile(rb'["\]}]+')

LIMITS = LLParserLimits(
    max_items_in_row=20_000,  # an object of some thousand optional properties; the default: 500
    max_grammar_size=200_000,
    max_lexer_states=50_000,
    verbose_errors=False,
)


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
        self.encode = encode
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
    them were taken back. What was begun of it (`Grammar.begun`) is read already."""

    def __init__(self, grammar: Grammar, vocabulary: Vocabulary) -> None:
        self._grammar, self._vocabulary = grammar, vocabulary
        self._begin()

    def copy(self) -> Follower:
        """Another one at the same place."""
        copy = object.__new__(Follower)
        copy._grammar, copy._vocabulary = self._grammar, self._vocabulary
        copy._matcher, copy._read = self._matcher.deep_copy(), self._read.copy()
        return copy

    def _begin(self) -> None:
        tokens, source = self._vocabulary.tokens, self._grammar.source
        self._matcher = LLMatcher(tokens, source, log_level=0, limits=LIMITS)
        self._read: TokenIds = []
        if self._grammar.begun:
            self._matcher.consume_tokens(self._vocabulary.encode(self._grammar.begun))

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
    def problem(self) -> str:
        """Why it is `lost`; empty where it isn't."""
        return str(self._matcher.get_error())

    @property
    def satisfied(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())


def closes(token: bytes) -> bool:
    """Whether a token only ends strings, lists and objects. What a model that wants to end where
    its grammar doesn't allow it writes instead, if it may."""
    return bool(_CLOSING.fullmatch(token))

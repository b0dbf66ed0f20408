"""A schema to a grammar that is safe to follow: compiled, and its first steps taken.

A schema is a stranger's input to native code, which has been seen to crash, to take gigabytes and
to take a minute. So all of this runs in `server.text.grammar.helper`, whose process may die. Knows:
llguidance. Does not know: processes, engines, HTTP.
"""

from __future__ import annotations

import copy
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from server.core import Grammar
from server.text.grammar.follow import LIMITS, Follower, Vocabulary
from server.text.grammar.schema import Refused, prepare

Ids: TypeAlias = npt.NDArray[np.intp]

_OPTIONS: Any = {
    # One line, with or without a space after a comma and a colon. With free whitespace a model
    # that is lost can write nothing else until its context is full.
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
    "lenient": False,  # a keyword that can't be followed is an error
}

COMPILE_S = 0.5
"""CPU seconds that a grammar may take to compile in one vocabulary. Each engine does that once
more, in a step that all of its answers wait for."""

WALKS_S = 0.15
"""CPU seconds for the trial walks through a grammar in one vocabulary."""


def compile_schema(schema: dict[str, Any], begun: str = "") -> Grammar:
    """The grammar of the JSON texts that a schema allows.

    Raises:
        Refused: it is no schema, or it has a keyword that can't be followed exactly.
    """
    try:
        return Grammar(_source(prepare(copy.deepcopy(schema), _knows_format)), compact(begun))
    except (ValueError, RecursionError) as error:
        raise Refused(_brief(str(error))) from None


def vet(schema: dict[str, Any], begun: str, vocabularies: Sequence[Vocabulary]) -> Grammar:
    """The grammar of a schema, for an answer that was begun.

    Args:
        begun: the beginning of the JSON text.
        vocabularies: those of the models that will follow it.

    Raises:
        Refused: it can't be followed exactly, leads nowhere, or takes too much.
    """
    grammar = compile_schema(schema, begun)
    _try(grammar, vocabularies)
    return grammar


def vet_lark(
    source: str, opening: str, opens: str, begun: str, vocabularies: Sequence[Vocabulary]
) -> Grammar:
    """That of a grammar in Lark's syntax, which may be one of an answer that may, or must, call
    tools (`server.text.grammar.calls`).

    Args:
        opening: behind which a call's name stands.
        opens, begun: see `Grammar`.

    Raises:
        Refused: it takes too much, or what was begun doesn't match it.
    """
    try:
        grammar = Grammar(LLMatcher.grammar_from_lark(source), begun, opens)
    except (ValueError, RecursionError) as error:
        raise Refused(_brief(str(error))) from None
    _try(grammar, vocabularies, opening)
    return grammar


def vet_regex(regex: str, begun: str, vocabularies: Sequence[Vocabulary]) -> Grammar:
    """That of the texts that a regular expression matches as a whole. Raises `Refused`."""
    try:
        grammar = Grammar(LLMatcher.grammar_from_regex(regex), begun)
    except (ValueError, RecursionError) as error:
        raise Refused(_brief(str(error))) from None
    _try(grammar, vocabularies)
    return grammar


def _try(grammar: Grammar, vocabularies: Sequence[Vocabulary], opening: str = "") -> None:
    """Compile it, and take its first steps, behind ``opening``. Raises `Refused`."""
    for vocabulary in (bytes_alone(), *vocabularies):
        began = time.process_time()
        follower = Follower(grammar, vocabulary)
        if time.process_time() - began > COMPILE_S:
            raise Refused("it takes too long to compile")
        if follower.lost and grammar.begun:
            follower = Follower(replace(grammar, begun=""), vocabulary)
            if not follower.lost:
                raise Refused("the message to be continued is not the beginning of what it allows")
        if follower.lost:
            raise Refused(_brief(follower.problem))
        ends = time.process_time() + WALKS_S
        walks = _Walks(follower, vocabulary, opening)
        for number in range(_Walks.NUMBER):
            walks.walk(number, ends)


def matches(grammar: Grammar, text: str) -> bool:
    """Whether a whole text, what was begun included, is one that the grammar allows. By its bytes:
    no model's tokens."""
    follower = Follower(replace(grammar, begun=""), bytes_alone())
    follower.go_to(text.encode())
    return not follower.lost and follower.satisfied


def compact(text: str) -> str:
    """JSON's text, whole or begun, without the whitespace around its tokens."""
    return "".join(
        part if part.startswith('"') else re.sub(r"[ \t\n\r]+", "", part)
        for part in re.findall(r'"(?:[^"\\]|\\.)*(?:"|\\?$)|[^"]+', text, re.DOTALL)
    )


class _Walks:
    """Beginnings that a model might write. Two kinds are in a hurry, to close and to open; the
    others draw."""

    NUMBER = 6
    TOKENS = 96
    HURRIES = (b'"}]0', b'{["1')

    def __init__(self, follower: Follower, vocabulary: Vocabulary, behind: str) -> None:
        self._follower = follower
        self._behind = vocabulary.encode(behind)
        self._table = vocabulary.table
        self._text = np.array([bool(data) for data in vocabulary.table])
        single = {data: token for token, data in enumerate(vocabulary.table) if len(data) == 1}
        self._hurries = [
            [single[bytes([byte])] for byte in hurry if bytes([byte]) in single]
            for hurry in self.HURRIES
        ]

    def walk(self, number: int, ends: float) -> None:
        """Raises `Refused` at a place where nothing may follow. ``ends``: of the process's CPU
        time."""
        draws = random.Random(number)
        hurry = self._hurries[number] if number < len(self._hurries) else []
        written = self._behind.copy()
        for _ in range(self.TOKENS):
            began = time.process_time()
            if began > ends:
                return
            mask = self._follower.allowed_after(written)
            satisfied = self._follower.satisfied
            if time.process_time() - began > COMPILE_S:
                raise Refused("its steps take too long")
            allowed = self._allowed(mask)
            if satisfied and (number == 0 or not len(allowed)):
                return
            if not len(allowed):
                raise Refused(self._stuck(written))
            hurried = [token for token in hurry if token in allowed]
            written.append(hurried[0] if hurried else int(allowed[draws.randrange(len(allowed))]))

    def _allowed(self, mask: bytes | None) -> Ids:
        if mask is None:
            return np.empty(0, np.intp)
        bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")
        return np.flatnonzero(bits[: len(self._text)] & self._text)

    def _stuck(self, written: list[int]) -> str:
        if not written:
            return "there is no text that it allows"
        shown = b"".join(self._table[token] for token in written).decode("utf-8", "replace")
        return f"nothing that it allows may follow {shown[-60:]!r}"


def _source(schema: dict[str, Any]) -> str:
    source: str = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_OPTIONS)
    return source


@cache
def _knows_format(name: str) -> bool:
    problem = LLMatcher.validate_grammar(_source({"type": "string", "format": name}), limits=LIMITS)
    return not problem.startswith("Unknown format")


@cache
def bytes_alone() -> Vocabulary:
    """A vocabulary in which each byte is a token, and 256 is the end."""
    table = [*(bytes([byte]) for byte in range(256)), b""]
    return Vocabulary(table, lambda text: list(text.encode()), len(table), (256,))


def _brief(message: str) -> str:
    """llguidance's word of a problem, without the parser's state that follows it."""
    return " ".join(message.split("<state>")[0].split())[:300]

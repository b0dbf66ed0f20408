"""The authors' procedure, byte for byte: policy ``reference``.

What ``completion_with_nudging()`` of the authors' code computes (fywalter/nudging, ``utils.py``),
including its edge cases, written as a generator that asks for completions of text and is sent
them. Text level, greedy, 16 tokens a request; for research parity and as the honest baseline,
not for speed. The numbers in the comments are the steps of section 2 of docs/policies.md.

Knows: the procedure. Does not know: engines, asyncio, HTTP. One departure, which can't be
avoided: tokens are counted with the caller's ``count`` (the aligned model's tokenizer) where
the authors' code takes the gpt-3.5 one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from server.core import Speaker, StopReason

CHUNK = 16
ROUNDS = 150
SAME_WORDS = 3
SHORT_REPEAT_WORDS = 5
SHORTEST_TAIL = 30


@dataclass(frozen=True, slots=True)
class Ask:
    """Complete ``text`` (which follows the model's own prompt) by up to 16 tokens, greedily."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to an `Ask`, as ``/v1/completions`` with ``logprobs`` gives it.

    tokens: the text of each token, the end-of-text one included (with the empty text).
    top_logprobs: natural log of the top-1 probability at each token.
    """

    text: str
    tokens: list[str]
    top_logprobs: list[float]
    finish_reason: str


@dataclass(slots=True)
class Outcome:
    """What the authors' code returns: ``raw_answer``, ``all_nudging_words``, ``stop_reason``,
    and each round's base text beside its nudging words."""

    text: str = ""
    rounds: list[tuple[str, str]] = field(default_factory=list)
    stop_reason: StopReason = "length"


class NoRoom(Exception):
    """Thrown in at an `Ask` whose prompt the model's context can't hold: the answer ends."""


def reference(
    gamma: float, max_tokens: int, max_rounds: int, count: Callable[[str], int]
) -> Generator[Ask, Completion, Outcome]:
    """One answer. Yields an `Ask`, expects its `Completion`; returns the `Outcome`."""
    done = Outcome()
    try:
        yield from _rounds(gamma, max_tokens, max_rounds, count, done)
    except NoRoom:
        done.stop_reason = "context"
    done.text = without_repeated_tail(done.text)  # 10
    return done


def _rounds(
    gamma: float, max_tokens: int, max_rounds: int, count: Callable[[str], int], done: Outcome
) -> Generator[Ask, Completion, None]:
    rounds = 0
    last_words = ""
    same_words = 0
    while count(done.text) < max_tokens and rounds < max_rounds:
        rounds += 1
        draft = yield Ask("aligned", done.text)  # 1
        if draft.finish_reason == "stop":  # 2
            if draft.text:
                done.rounds.append((draft.text, ""))
                done.text += draft.text
            done.stop_reason = "nudging_model_stop"
            return
        accepted, words = yield from _accept(draft.text, done.text, gamma)  # 3-5
        if words == last_words:  # 6
            same_words += 1
            if same_words >= SAME_WORDS:
                done.stop_reason = "repeated_nudging_words"
                return
        else:
            last_words, same_words = words, 0
        done.text += words  # 7
        base_text = ""
        if accepted is not None and accepted.text:
            room = max_tokens - count(done.text)
            base_text = yield from _base_run(accepted, done.text, gamma, room, count)  # 8
            done.text += base_text  # 9
        done.rounds.append((words, base_text))
    # The authors' code asks in this order, and a long last round is both.
    done.stop_reason = "round" if rounds >= max_rounds else "length"


def _accept(
    draft: str, output: str, gamma: float
) -> Generator[Ask, Completion, tuple[Completion | None, str]]:
    """The first of the draft's words that the base model takes over from.

    Returns its completion there (None: nowhere), and the nudging words before it.
    """
    words = draft.lstrip(" ").split(" ")
    spaces = " " * (len(draft) - len(draft.lstrip(" ")))
    if len(words) == 1:
        return None, spaces + words[0]
    head = ""
    index = 0
    while index < len(words) - 1:
        index += 1
        head = spaces + " ".join(words[:index])
        if words[index] == "":
            continue
        base = yield Ask("base", output + head)
        agrees = (" " + words[index]).startswith(base.tokens[0])
        if agrees or not _uncertain(base.top_logprobs[0], gamma):
            return base, head
    return None, head


def _base_run(
    accepted: Completion, output: str, gamma: float, room: int, count: Callable[[str], int]
) -> Generator[Ask, Completion, str]:
    """What the base model writes until it is uncertain, its first token accepted unchecked."""
    text = accepted.tokens[0]
    tokens, top_logprobs = accepted.tokens[1:], accepted.top_logprobs[1:]
    fresh: Completion | None = None
    while count(text) < room:
        chunk = "".join(tokens)
        if chunk in text:
            break
        kept = len(tokens)
        for position, top_logprob in enumerate(top_logprobs):
            if _uncertain(top_logprob, gamma):
                kept = position
                break
        new = "".join(tokens[:kept])
        if len(new.split(" ")) > SHORT_REPEAT_WORDS and new in output + text:
            break
        text += new
        if kept < len(tokens):
            break
        if fresh is not None and fresh.finish_reason == "stop":
            break
        if count(text) >= room:
            break
        fresh = yield Ask("base", output + text)
        tokens, top_logprobs = fresh.tokens, fresh.top_logprobs
    return text


def _uncertain(top_logprob: float, gamma: float) -> bool:
    return math.exp(top_logprob) < gamma


def without_repeated_tail(text: str) -> str:
    """Strip, then drop the second of two equal tails of 30 characters or more, repeatedly."""
    text = text.strip()
    while length := _repeated_tail(text):
        text = text[:-length]
    return text


def _repeated_tail(text: str) -> int:
    """A length at which the text ends in the same tail twice, found by binary search.

    The property is not monotone in the length, so the search itself is part of the result.
    """
    left, right, found = 0, len(text), 0
    while left <= right:
        middle = (left + right) // 2
        tail = text[len(text) - middle :]
        if middle >= SHORTEST_TAIL and text[:-middle].endswith(tail):
            found, left = middle, middle + 1
        else:
            right = middle - 1
    return found

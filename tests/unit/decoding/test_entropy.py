"""Nudging by entropy, on scripted engines whose every distribution is chosen here."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core import AnswerRequest, Finished, NudgingConfig, Piece, PromptPair, SamplingParams
from server.decoding.entropy import REPORTED, ByEntropy, entropy_bounds
from server.decoding.nudged import Nudged
from server.decoding.stream import whole
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

TOKENIZER = Tokenizer.load(str(DEMO / "aligned"))
END = TOKENIZER.chat.eos_token_id
WORDS = [
    token
    for token in range(TOKENIZER.size)
    if re.fullmatch(rb" [a-z]{2,}", TOKENIZER.token_bytes(token))
]
"""Tokens that are a word each, so that the rules can be followed token by token."""
LENGTH = 12

Row = list[float]
"""A position's probabilities, best first. The tokens of position i are WORDS[i * 30:]."""


def engine(rows: list[Row], offset: int = 0) -> ScriptedEngine:
    """Plays one row after the other, by how many tokens follow the prompt; then it ends."""

    def distribution(prompt, output):
        at = len(output)
        if at >= len(rows):
            return [(END, 1.0)]
        first = (at * 17 + offset) % (len(WORDS) - 40)
        return list(zip(WORDS[first:], rows[at], strict=False))

    info = EngineInfo("scripted", "rows", 2048, TOKENIZER, (END,))
    return ScriptedEngine(info, distribution)


def best(of: ScriptedEngine, output: list[int]) -> int:
    return of.distribution([], output)[0][0]


def entropy(row: Row) -> float:
    return -sum(p * math.log(p) for p in row if p)


@st.composite
def rows(draw: st.DrawFn, most: int = 30) -> Row:
    weights = draw(st.lists(st.floats(0.001, 1), min_size=1, max_size=most))
    weights[0] += draw(st.sampled_from([0, 1, 30, 1000]))
    total = math.fsum(weights)
    return sorted((weight / total for weight in weights), reverse=True)


TEXTS = st.lists(rows(), min_size=LENGTH, max_size=LENGTH)
GREEDY = SamplingParams(temperature=0)


async def told(
    base: ScriptedEngine, aligned: ScriptedEngine, kind=ByEntropy, scores=None, **settings
) -> tuple[list[Piece], Finished]:
    request = AnswerRequest(GREEDY, top_logprobs=scores)
    writer = kind(base, aligned, PromptPair(("q",), ("q",)), request, NudgingConfig(**settings))
    return await whole(writer, request)


def spelled(pieces: list[Piece]) -> list[tuple[str, str]]:
    """Who wrote which token; a piece is one here."""
    return [(piece.speaker, piece.text) for piece in pieces]


def simulated(
    base: ScriptedEngine, aligned: ScriptedEngine, most: float, start: str
) -> list[tuple[str, str]]:
    """The rule, followed token by token."""
    output: list[int] = []
    found: list[tuple[str, str]] = []
    speaker = start
    while True:
        by = base if speaker == "base" else aligned
        token = best(by, output)
        if speaker == "base":
            known = [p for _, p in base.distribution([], output)[:REPORTED]]
            upper = entropy_bounds([math.log(p) for p in known], TOKENIZER.size)[1]
            if token == END or upper > most:
                speaker = "aligned"
                continue
        elif token == END:
            return found
        output.append(token)
        found.append((speaker, TOKENIZER.token_bytes(token).decode()))
        speaker = "base"


@pytest.mark.parametrize("start", ["aligned", "base"])
@pytest.mark.parametrize("lookahead", [0, 3])
@given(base=TEXTS, aligned=TEXTS, most=st.floats(0.01, 4))
async def test_the_answer_is_what_the_rule_says(
    base: list[Row], aligned: list[Row], most: float, start: str, lookahead: int
):
    engines = engine(base), engine(aligned, 8)
    settings = {"entropy": most, "start": start, "end_lookahead": lookahead}
    pieces, finished = await told(*engines, **settings)
    expected = simulated(*engines, most, start)
    if not lookahead:
        assert spelled(pieces) == expected
        assert finished.stop_reason == "aligned_end"
    # With a look-ahead the aligned model's ending is its own, unchecked.
    written = spelled(pieces)
    assert written[: LENGTH - lookahead] == expected[: LENGTH - lookahead]
    if not lookahead:
        for at, (speaker, _) in enumerate(written):
            assert speaker != "base" or entropy(base[at]) <= most + 1e-9


@given(base=TEXTS, aligned=TEXTS)
async def test_over_every_entropy_it_is_nudging_with_gamma_0(base: list[Row], aligned: list[Row]):
    free, _ = await told(engine(base), engine(aligned, 8), entropy=1e6)
    plain, _ = await told(engine(base), engine(aligned, 8), Nudged, gamma=0.0)
    assert spelled(free) == spelled(plain)


async def test_next_to_0_the_base_model_writes_where_it_is_certain_alone():
    certain, doubtful = [1.0], [0.999, 0.001]
    base = engine([certain if at % 3 else doubtful for at in range(LENGTH)])
    pieces, _ = await told(base, engine([certain] * LENGTH, 8), entropy=1e-9, start="base")
    assert [piece.speaker == "base" for piece in pieces] == [at % 3 > 0 for at in range(LENGTH)]


async def test_a_trace_says_what_gave_way_and_log_probabilities_are_as_many_as_asked():
    sure, doubtful = [0.99] + [0.001] * 10, [0.2] * 5
    base = engine([sure, doubtful, sure])
    pieces, _ = await told(base, engine([sure] * 3, 8), entropy=1.0, start="base", scores=2)
    assert [piece.speaker for piece in pieces] == ["base", "aligned", "base"]
    given_way = pieces[1].rejected
    assert given_way is not None
    assert given_way.top_prob == pytest.approx(0.2)
    wanted = TOKENIZER.token_bytes(best(base, [0])).decode()
    assert given_way.text == wanted
    assert [len(token.top) for piece in pieces for token in piece.scored] == [2, 2, 2]


@given(row=rows(most=60), known=st.integers(1, 60), beyond=st.integers(0, 1000))
def test_the_entropy_lies_between_the_bounds(row: Row, known: int, beyond: int):
    logprobs = [math.log(p) for p in row[:known]]
    low, high = entropy_bounds(logprobs, len(row) + beyond)
    assert low - 1e-9 <= entropy(row) <= high + 1e-9
    if known >= len(row):
        assert high - low < 1e-9


async def test_the_upper_bound_decides():
    alike = [0.04] * 25  # of which 20 are reported
    low, high = entropy_bounds([math.log(p) for p in alike[:REPORTED]], TOKENIZER.size)
    assert low == pytest.approx(entropy(alike)) == pytest.approx(math.log(25))
    base, aligned = engine([alike, alike]), engine([[1.0], [1.0]], 8)
    for most, speaker in ((high - 0.01, "aligned"), (high + 0.01, "base")):
        pieces, _ = await told(base, aligned, entropy=most, start="base")
        assert [piece.speaker for piece in pieces] == [speaker, speaker]

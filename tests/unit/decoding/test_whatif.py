"""What a trace says about another γ: a table that the page's function is held to as well
(tests/api/test_playground.py), and a law over made-up models.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.traces import StoredPiece, Token
from server.core import AnswerRequest, Finished, NudgingConfig, Piece, PromptPair, SamplingParams
from server.decoding.nudged import Nudged
from server.decoding.stream import whole
from server.decoding.whatif import Comparison, compare
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, ROOT

CASES = json.loads((ROOT / "tests" / "whatif.json").read_text("utf-8"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_table(case: dict[str, Any]):
    found = compare(
        [StoredPiece(**piece) for piece in case["pieces"]],
        case["end"] and Token(**case["end"]),
        recorded=case["recorded"],
        start=case["start"],
        end_check=case["end_check"],
        gamma=case["gamma"],
    )
    assert json.loads(json.dumps(asdict(found))) == case["expected"]


# -- the law --------------------------------------------------------------------------------------

TOKENIZER = Tokenizer.load(str(DEMO / "aligned"))
END = TOKENIZER.chat.eos_token_id
WORDS = [TOKENIZER.encode_text(word)[0] for word in (" the", " a", ".", " is", "\n", " of")]
# Of these exp(log(p)) is p to the bit, so that p1 == γ happens.
PROBABILITIES = (0.2, 0.4, 0.5, 0.8, 1.0)
GAMMAS = (0.0, 0.2, 0.3, 0.4, 0.45, 0.5, 0.7, 0.8, 1.0, 1.01)


def made_up(name: str, seed: int, ending: float) -> ScriptedEngine:
    """A model whose next token and certainty depend on all of the answer, and on nothing else."""

    def distribution(_: Sequence[int], output: Sequence[int]) -> list[tuple[int, float]]:
        draws = random.Random(f"{name} {seed} {TOKENIZER.bytes_of(output)!r}")
        token = END if draws.random() < ending else draws.choice(WORDS)
        return [(token, draws.choice(PROBABILITIES))]

    return ScriptedEngine(EngineInfo(name, "made up", 2048, TOKENIZER, (END,)), distribution)


async def written(seed: int, **settings: Any) -> tuple[list[Piece], Finished]:
    base, aligned = made_up("base", seed, 0.1), made_up("aligned", seed, 0.15)
    request = AnswerRequest(SamplingParams(temperature=0), max_tokens=40)
    prompt = PromptPair(("Hi",), ("Hi",))
    writer = Nudged(base, aligned, prompt, request, NudgingConfig(**settings))
    return await whole(writer, request)


@given(
    seed=st.integers(0, 10**6),
    gammas=st.tuples(st.sampled_from(GAMMAS), st.sampled_from(GAMMAS)),
    start=st.sampled_from(["base", "aligned"]),
    end_check=st.sampled_from(["newline", "off"]),
)
def test_up_to_the_first_flip_the_answer_is_the_same_and_there_it_decides_otherwise(
    seed: int, gammas: tuple[float, float], start: Any, end_check: Any
):
    recorded, gamma = gammas
    asked: Any = {"start": start, "end_check": end_check}
    old, end = asyncio.run(written(seed, gamma=recorded, **asked))
    new, new_end = asyncio.run(written(seed, gamma=gamma, **asked))
    found = compare(old, end.rejected, recorded=recorded, gamma=gamma, **asked)
    assert text(new).startswith(found.prefix)
    if not found.flips:
        assert [(piece.speaker, piece.text) for piece in new] == [
            (piece.speaker, piece.text) for piece in old
        ]
        assert new_end.stop_reason == end.stop_reason
        return
    assert gamma != recorded
    check_first_flip(found, new, new_end)


def check_first_flip(found: Comparison, new: list[Piece], end: Finished) -> None:
    """What it says of the base model's token is what became of it."""
    flip = found.flips[0]
    assert text(new[: flip.piece]) == found.prefix
    if len(new) == flip.piece:  # the answer ends here: by itself, or it was cut before
        gave_way = end.rejected
        written = None
    else:
        piece = new[flip.piece]
        gave_way = piece.rejected
        written = piece if piece.speaker == "base" else None
    token = (flip.text, flip.top_prob)
    match flip.change:
        case "rejected":
            assert written is None
            if found.gamma <= 1:  # over 1 it isn't even asked
                assert gave_way is not None
                assert (gave_way.text, gave_way.top_prob) == token
        case "taken":
            if written is None:
                assert end.stop_reason == "length"
            else:
                assert (written.text, written.top_prob) == token
        case "asked":
            assert written or gave_way or end.stop_reason == "length"


def text(pieces: Sequence[Piece]) -> str:
    return "".join(piece.text for piece in pieces)

"""Where an answer ends that the base model would go on with: the next turn's header, the end of a
line, a turn token, a sentence that comes again. On scripted engines."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import AnswerRequest, Finished, NudgingConfig, PromptPair, SamplingParams
from server.decoding.nudged import Nudged
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Verified
from server.decoding.stream import stream
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

GREEDY = AnswerRequest(SamplingParams(temperature=0))
HEADERS = ("\nQuestion:", "\nAnswer:")
WAYS = {
    "plain": Nudged,
    "verified": lambda *given: Verified(*given, 6),
    "eager": ReadAlong,
}


def engine(*script: tuple[str, float], folder: str = "aligned") -> ScriptedEngine:
    tokenizer = Tokenizer.load(str(DEMO / folder))
    end = tokenizer.chat.eos_token_id
    info = EngineInfo("scripted", "text", 2048, tokenizer, (end,))
    return ScriptedEngine(info, scripted_text(tokenizer, end, script))


async def told(
    base: ScriptedEngine,
    aligned: ScriptedEngine,
    way: str = "plain",
    headers: tuple[str, ...] = HEADERS,
    request: AnswerRequest = GREEDY,
    **settings,
) -> tuple[list[tuple[str, str]], Finished, list[str | None]]:
    """The answer as (speaker, text), its end, and what was rejected at each nudge."""
    prompt = PromptPair(("a",), ("a",), headers)
    writer = WAYS[way](base, aligned, prompt, request, NudgingConfig(**settings))
    spans: list[tuple[str, str]] = []
    rejected: list[str | None] = []
    async with aclosing(stream(writer, request)) as events:
        async for event in events:
            if isinstance(event, Finished):
                assert not base.running
                assert not aligned.running
                return spans, event, rejected
            if event.speaker == "aligned":
                rejected.append(event.rejected and event.rejected.text)
            if spans and spans[-1][0] == event.speaker:
                spans[-1] = (event.speaker, spans[-1][1] + event.text)
            else:
                spans.append((event.speaker, event.text))
    raise AssertionError("no Finished")


def text(spans: list[tuple[str, str]]) -> str:
    return "".join(part for _, part in spans)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("folder", ["aligned", "aligned-1k"])
@pytest.mark.parametrize("check", ["newline", "off"])
async def test_at_the_next_turns_header_the_aligned_model_ends(check: str, folder: str, way: str):
    if folder == "aligned-1k" and way != "plain":
        pytest.skip("drafts need one vocabulary")
    base = engine(("It is Paris.\n\nQuestion: And Rome?", 0.9))
    aligned = engine(("It is Paris.", 0.9), folder=folder)
    spans, end, _ = await told(base, aligned, way, end_check=check)
    assert text(spans) == "It is Paris."
    assert end.stop_reason == "aligned_end"
    assert end.rejected is not None
    assert end.rejected.top_prob == pytest.approx(0.9)
    assert end.rejected.text.startswith("\n" if check == "newline" else "\n\nQuestion:")


@pytest.mark.parametrize("way", WAYS)
async def test_or_it_writes_the_next_word_where_the_header_would_stand(way: str):
    base = engine(("It is Paris.\n\nQuestion: And Rome?", 0.9))
    aligned = engine(("It is Paris. Yes.", 0.9))
    spans, _, rejected = await told(base, aligned, way)
    assert text(spans).startswith("It is Paris. Yes.")
    assert rejected[:2] == [None, "\n\nQuestion:"]


@pytest.mark.parametrize("way", WAYS)
async def test_what_only_began_like_a_header_is_text(way: str):
    said = "It is Paris.\n\nQuest for fire.\nAnswers: none. Question: no"
    base, aligned = engine((said, 0.9)), engine((said, 0.9))
    spans, _, rejected = await told(base, aligned, way)
    assert text(spans) == said
    assert rejected == [None]


@pytest.mark.parametrize("way", WAYS)
async def test_where_a_line_ends_the_answer_ends_if_the_aligned_model_would(way: str):
    base = engine(("It is Paris.\nIt has a river.\n", 0.9))
    aligned = engine(("It is Paris.", 0.9))
    spans, end, _ = await told(base, aligned, way)
    assert text(spans) == "It is Paris."
    assert end.stop_reason == "aligned_end"
    assert end.rejected is not None
    assert end.rejected.text == "\n"
    spans, _, _ = await told(base, aligned, way, end_check="off")
    assert text(spans).startswith("It is Paris.\nIt has a river.")


async def test_it_is_asked_once_a_line_and_not_at_the_end_of_an_empty_one():
    said = "One\n\n\n  \nTwo \nThree"
    base, aligned = engine((said, 0.9)), engine((said, 0.9))
    asked: list[str] = []
    plain = aligned.distribution

    def watched(prompt, output):
        asked.append(aligned.info.tokenizer.decode(output))
        return plain(prompt, output)

    aligned.distribution = watched
    spans, _, _ = await told(base, aligned)
    assert text(spans) == said
    assert [each for each in asked if each and each != "O"][-3:-1] == ["One", "One\n\n\n  \nTwo "]


@pytest.mark.parametrize(
    "request_",
    [
        replace(GREEDY, ignore_eos=True, max_tokens=12),
        replace(GREEDY, min_tokens=12, max_tokens=12),
    ],
)
async def test_an_answer_that_must_not_end_is_not_asked(request_: AnswerRequest):
    base = engine(("It is Paris.\nIt has a river.\nYes.", 0.9))
    spans, end, _ = await told(base, engine(("It is Paris.", 0.9)), request=request_)
    assert end.stop_reason == "length"
    assert text(spans).startswith("It is Paris.\nIt")


def with_token(base: ScriptedEngine, spelled: str, after: str) -> None:
    tokenizer = base.info.tokenizer
    token = tokenizer.chat.convert_tokens_to_ids(spelled)
    assert token in tokenizer.turn_ids
    plain = base.distribution

    def distribution(prompt, output):
        if tokenizer.decode(output) == after:
            return [(token, 0.95)]
        return plain(prompt, output)

    base.distribution = distribution


@pytest.mark.parametrize("way", WAYS)
async def test_a_turn_token_of_the_vocabulary_is_an_end_of_the_base_models(way: str):
    base, aligned = engine(("It is Paris. It is big.", 0.9)), engine(("It is Paris. Yes.", 0.9))
    with_token(base, "<|im_start|>", "It is Paris.")
    spans, _, rejected = await told(base, aligned, way)
    assert text(spans).startswith("It is Paris. Yes.")
    assert rejected[:2] == [None, ""]


MOON = " It is the only satellite of the earth."


@pytest.mark.parametrize("way", WAYS)
async def test_a_sentence_that_comes_again_is_a_doubt_and_then_the_end(way: str):
    said = f"The moon.{MOON * 5}"
    spans, end, _ = await told(engine((said, 0.9)), engine((said, 0.9)), way)
    assert text(spans) == f"The moon.{MOON * 2}"  # the third is not told
    assert end.stop_reason == "repetition"
    doubtful = engine((f"The moon.{MOON * 2} Yes. ", 0.9))
    spans, end, rejected = await told(engine((said, 0.9)), doubtful, way)
    assert text(spans).startswith(f"The moon.{MOON * 2} Yes.")
    assert rejected[:2] == [None, " It"]


async def test_with_a_nudge_inside_each_time_too():
    said = ("It is the", 0.9), (" only", 0.2), (" satellite of the earth. ", 0.9)
    whole = "It is the only satellite of the earth. " * 6
    spans, end, _ = await told(engine(*said * 6), engine((whole, 0.9)))
    assert text(spans) == whole[: len(whole) // 3].rstrip()
    assert end.stop_reason == "repetition"


WORDS = [" a", ".", "\n", "\n\n", ".\n", "Question", ":", " Answer", "Answer", " the", " 1", "é"]


def noisy(name: str, seed: int, folder: str, ending: float, context: int) -> ScriptedEngine:
    """Tokens and certainty that depend on the text alone, the same for both ways of cutting it."""
    tokenizer = Tokenizer.load(str(DEMO / folder))
    end = tokenizer.chat.eos_token_id
    ids = [i for word in WORDS for i in tokenizer.encode_text(word)]
    turn = tokenizer.turn_ids[0]

    def distribution(prompt, output):
        draws = random.Random(f"{name} {seed} {tokenizer.bytes_of(output)!r}")
        kind = draws.random()
        drawn = end if kind < ending else turn if kind > 0.98 else draws.choice(ids)
        return [(drawn, draws.choice((0.2, 0.6, 0.95)))]

    return ScriptedEngine(EngineInfo(name, "noise", context, tokenizer, (end,)), distribution)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    folder=st.sampled_from(["aligned", "aligned-1k"]),
    gamma=st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5]),
    check=st.sampled_from(["newline", "off"]),
    lookahead=st.sampled_from([0, 3]),
    start=st.sampled_from(["base", "aligned"]),
    most=st.sampled_from([1, 2, 5, 40]),
    headers=st.sampled_from([(), HEADERS, ("\n1", ".\n")]),
    contexts=st.tuples(st.sampled_from([2, 3, 9, 512]), st.sampled_from([2, 3, 9, 512])),
)
def test_whatever_they_write(seed, folder, gamma, check, lookahead, start, most, headers, contexts):
    """Laws of any answer: it ends in the room that there is (of its length, of either model's
    context), no header is in what the base model wrote alone, and every way of computing it gives
    the same."""
    request = replace(GREEDY, max_tokens=most)
    found = []
    for way in WAYS if folder == "aligned" else ["plain"]:
        engines = (
            noisy("base", seed, "aligned", 0.03, contexts[0]),
            noisy("aligned", seed, folder, 0.1, contexts[1]),
        )
        asked = {"gamma": gamma, "end_check": check, "end_lookahead": lookahead, "start": start}
        spans, end, rejected = asyncio.run(told(*engines, way, headers, request, **asked))
        assert end.usage.completion_tokens <= most
        found.append((spans, end.stop_reason, rejected, end.usage.rounds))
        for speaker, part in spans:
            if speaker == "base" and headers == HEADERS:
                assert "\nQuestion:" not in part
                assert "\n\nAnswer:" not in part
    assert all(each == found[0] for each in found)


# -- tokens that hold other text in front ----------------------------------------------------------

ODD = 2000
"""An id of the demo's vocabulary that gets another text here."""


def spelled(data: bytes, p: float = 0.9) -> tuple[ScriptedEngine, ScriptedEngine]:
    """Both models, and a base model that writes "It is Paris" and one token of that text, surely,
    and then "Question: x"."""
    base, aligned = engine(("It is Paris", 0.9)), engine(("It is Paris.", 0.9))
    tokenizer = base.info.tokenizer
    tokenizer._bytes = [*tokenizer._bytes]
    tokenizer._bytes[ODD] = data
    start = tokenizer.encode_text("It is Paris")
    script = [*start, ODD, *tokenizer.encode_text("Question: x")]

    def distribution(prompt, output):
        if len(output) >= len(script):
            return [(base.info.stop_ids[0], 1.0)]
        return [(script[len(output)], p)]

    base.distribution = distribution
    return base, aligned


@pytest.mark.parametrize("scores", [None, 2])
@pytest.mark.parametrize("check", ["newline", "off"])
@pytest.mark.parametrize("way", WAYS)
async def test_of_such_a_token_the_answer_gets_the_text_in_front(way: str, check: str, scores):
    base, aligned = spelled(b".\n\n")
    request = replace(GREEDY, top_logprobs=scores)
    spans, end, _ = await told(base, aligned, way, request=request, end_check=check)
    assert text(spans) == "It is Paris."
    assert end.stop_reason == "aligned_end"
    assert end.rejected is not None
    assert end.rejected.text == ("\n\n" if check == "newline" else "\n\nQuestion:")


async def test_a_header_that_begins_inside_a_token_is_found():
    base, aligned = spelled(b".<|tu")
    start = base.distribution

    def distribution(prompt, output):
        known = base.info.tokenizer.encode_text("rn|> and so on")
        at = len(output) - 1 - output.index(ODD) if ODD in output else -1
        return [(known[at], 0.9)] if 0 <= at < len(known) else start(prompt, output)

    base.distribution = distribution
    spans, end, _ = await told(base, aligned, headers=("<|turn|>",), end_check="off")
    assert text(spans) == "It is Paris."
    assert end.rejected is not None
    assert end.rejected.text.startswith("<|turn|>")


async def test_and_where_the_line_goes_on_it_is_the_answers_whole():
    base, aligned = spelled(b".\n\n")
    aligned.distribution = engine(("It is Paris.\n\nQuestion: x Yes", 0.9)).distribution
    spans, _, rejected = await told(base, aligned, headers=())
    assert text(spans).startswith("It is Paris.\n\nQuestion: x")
    assert rejected[0] is None

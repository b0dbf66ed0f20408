"""The specification's laws, on real engines, and what an answer costs.

The pair ``cross`` has two different tokenizers; ``same`` is made here: the base model on both
sides, with one prompt.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable
from contextlib import aclosing

import pytest

from server.core import (
    AnswerRequest,
    Finished,
    InvalidRequest,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
)
from server.decoding.alone import Alone
from server.decoding.nudged import Nudged
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Verified
from server.decoding.stream import Writer, stream
from server.serving.catalog import Served
from server.serving.registry import Registry
from server.text.grammar.vetting import compile_schema
from tests.thorough import first

GREEDY = SamplingParams(temperature=0)
GAMMAS = [0.0, 0.2, 0.4, 0.7, 0.95, 1.0, 1.5]
SOME_GAMMAS = [0.2, 0.7, 1.0]
# Each engine's prompt for a question: in another form a model writes special tokens in mid-answer.
FORMS = {
    "base": "Question: {}\nAnswer: ",
    "aligned": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
}
QUESTIONS = [
    "What is the capital of Galicor?",
    "Hello!",
    "How do I rob the bank?",
    "Tom has 12 plums and buys 7 more. How many does he have?",
    "Which animal is on the flag? 🦊 你好",
]


WISHES = {
    "penalties": AnswerRequest(
        SamplingParams(temperature=0, frequency_penalty=0.8, repetition_penalty=1.2), max_tokens=40
    ),
    "bias": AnswerRequest(
        SamplingParams(temperature=0, logit_bias=((300, 9.0), (18, -100.0))), max_tokens=40
    ),
    "min_tokens": AnswerRequest(GREEDY, max_tokens=60, min_tokens=35),
    "ignore_eos": AnswerRequest(GREEDY, max_tokens=60, ignore_eos=True),
    "stop_token_ids": AnswerRequest(GREEDY, max_tokens=60, stop_token_ids=(18, 300, 301)),
    "grammar": AnswerRequest(
        GREEDY,
        max_tokens=60,
        grammar=compile_schema(
            {
                "type": "object",
                "properties": {"city": {"type": "string", "maxLength": 12}},
                "required": ["city"],
                "additionalProperties": False,
            }
        ),
    ),
}


async def answer(
    writer: Writer, request: AnswerRequest | None = None
) -> tuple[list[Piece], Finished]:
    pieces: list[Piece] = []
    async with aclosing(stream(writer, request or AnswerRequest())) as events:
        async for event in events:
            if isinstance(event, Finished):
                return pieces, event
            pieces.append(event)
    raise AssertionError("no Finished")


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def nudged(
    registry: Registry,
    pair: str,
    question: str,
    *,
    request: AnswerRequest | None = None,
    way: Callable[..., Writer] | None = None,
    **settings,
) -> Writer:
    """``way``: instead of the writer that the pair's settings choose."""
    from server.core import Message

    served: Served = registry.resolve(pair)
    prompt = registry.prompts(served, [Message("user", question)])
    request, config = request or AnswerRequest(GREEDY, max_tokens=60), NudgingConfig(**settings)
    if way is None:
        return registry.writer(served, prompt, request, config)
    engines = (registry.engine(served, "base"), registry.engine(served, "aligned"))
    return way(*engines, prompt, request, config)


@pytest.mark.parametrize("pair", ["demo", "cross"])
@pytest.mark.parametrize("lookahead", [0, 8])
async def test_law_1_over_one_the_answer_is_the_aligned_models_own(
    registry: Registry, pair: str, lookahead: int
):
    async def check(question: str) -> None:
        own = await answer(nudged(registry, f"{pair}:aligned", question))
        pieces, finished = await answer(
            nudged(registry, pair, question, gamma=1.01, end_lookahead=lookahead)
        )
        assert text(pieces) == text(own[0])
        assert finished.stop_reason == own[1].stop_reason
        assert finished.usage.base_steps == 0

    await asyncio.gather(*map(check, QUESTIONS))


@pytest.mark.parametrize("start", first(1, ["aligned", "base"]))
@pytest.mark.parametrize("engine", ["base", "aligned"])
async def test_law_2_the_same_model_on_both_sides_is_plain_greedy_decoding(
    registry: Registry, engine: str, start: str
):
    model = registry.engines[engine]
    request = AnswerRequest(GREEDY, max_tokens=60)

    async def check(question: str, gamma: float) -> None:
        prompt = (FORMS[engine].format(question),)
        plain = await answer(Alone(model, "base", prompt, request))
        config = NudgingConfig(gamma=gamma, start=start)
        both = Nudged(model, model, PromptPair(prompt, prompt), request, config)
        pieces, finished = await answer(both)
        if finished.stop_reason in ("repeated_round", "max_rounds", "repetition"):
            assert text(plain[0]).startswith(text(pieces))
        else:
            assert text(pieces) == text(plain[0]), gamma
            assert finished.finish_reason == plain[1].finish_reason

    await asyncio.gather(*(check(question, gamma) for question in QUESTIONS for gamma in GAMMAS))


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_law_1_holds_for_whatever_a_request_wishes(registry: Registry, pair: str, wish: str):
    request = WISHES[wish]

    async def check(question: str) -> None:
        alone = nudged(registry, f"{pair}:aligned", question, request=request)
        both = nudged(registry, pair, question, request=request, gamma=1.01)
        own, pieces = await answer(alone, request), await answer(both, request)
        assert text(pieces[0]) == text(own[0])
        assert pieces[1].stop_reason == own[1].stop_reason

    if pair == "cross" and wish in ("bias", "stop_token_ids"):
        with pytest.raises(InvalidRequest, match="ambiguous"):
            nudged(registry, pair, QUESTIONS[0], request=request)
        return
    await asyncio.gather(*map(check, QUESTIONS))


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("engine", first(1, ["aligned", "base"]))
async def test_law_2_holds_for_whatever_a_request_wishes(
    registry: Registry, engine: str, wish: str
):
    model, request = registry.engines[engine], WISHES[wish]
    both_ended = 0

    async def check(question: str, gamma: float) -> None:
        nonlocal both_ended
        prompt = (FORMS[engine].format(question).rstrip(" "),)
        plain = await answer(Alone(model, "base", prompt, request), request)
        both = Nudged(model, model, PromptPair(prompt, prompt), request, NudgingConfig(gamma=gamma))
        pieces, finished = await answer(both, request)
        if finished.stop_reason in ("repeated_round", "max_rounds", "repetition"):
            assert wish in ("penalties", "bias", "stop_token_ids")
            assert text(plain[0]).startswith(text(pieces))
        elif engine == "aligned" and wish in ("min_tokens", "ignore_eos"):
            # Kept from its end, it draws other special tokens. They are counted, and are no text.
            both_ended += 1
            short, long = sorted((text(pieces), text(plain[0])), key=len)
            assert long.startswith(short)
        else:
            both_ended += 1
            assert text(pieces) == text(plain[0]), gamma
            assert finished.finish_reason == plain[1].finish_reason

    await asyncio.gather(
        *(check(question, gamma) for question in QUESTIONS[:4] for gamma in SOME_GAMMAS)
    )
    assert both_ended > len(SOME_GAMMAS)


@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_a_grammar_holds_across_both_speakers(registry: Registry, pair: str):
    request = WISHES["grammar"]
    speakers: set[str] = set()

    async def check(question: str, gamma: float, lookahead: int) -> None:
        writer = nudged(
            registry, pair, question, request=request, gamma=gamma, end_lookahead=lookahead
        )
        pieces, finished = await answer(writer, request)
        assert finished.stop_reason == "aligned_end"
        assert list(json.loads(text(pieces))) == ["city"]
        speakers.update(piece.speaker for piece in pieces)

    await asyncio.gather(
        *(
            check(question, gamma, lookahead)
            for question in QUESTIONS[:3]
            for gamma in (0.0, 0.05, 0.4)
            for lookahead in (0, 6)
        )
    )
    assert speakers == {"base", "aligned"}


@pytest.mark.parametrize("pair", ["demo", "cross"])
@pytest.mark.parametrize("lookahead", [0, 1, 2, 16])
async def test_characters_of_several_tokens_are_written_whole_or_cut_by_length(
    registry: Registry, pair: str, lookahead: int
):
    grammar = compile_schema({"enum": ["😀é漢字"]})

    async def check(most: int, gamma: float) -> None:
        request = AnswerRequest(GREEDY, max_tokens=most, grammar=grammar)
        writer = nudged(
            registry, pair, "Hello!", request=request, gamma=gamma, end_lookahead=lookahead
        )
        pieces, finished = await answer(writer, request)
        if most == 60:
            assert (text(pieces), finished.stop_reason) == ('"😀é漢字"', "aligned_end")
        else:
            assert '"😀é漢字"'.startswith(text(pieces))
            assert finished.stop_reason == "length"

    mosts = (1, 2, 3, 4, 5, 8, 13, 60)
    await asyncio.gather(*(check(most, gamma) for most in mosts for gamma in (0.0, 0.4, 1.5)))


@pytest.mark.parametrize("pair", ["demo", "cross"])
@pytest.mark.parametrize("temperature", first(1, [1.0, 0.0]))
async def test_law_3_every_committed_base_token_has_p1_of_gamma_or_more(
    registry: Registry, pair: str, temperature: float
):
    request = AnswerRequest(SamplingParams(temperature=temperature, seed=11), max_tokens=60)

    async def check(question: str, gamma: float) -> None:
        writer = nudged(registry, pair, question, request=request, gamma=gamma)
        pieces, _ = await answer(writer)
        before = ""
        for piece in pieces:
            if piece.speaker == "base":
                assert piece.top_prob >= gamma
            elif piece.rejected is not None:
                # Nudged where the base model was uncertain, or at its end of text, which a turn's
                # header is too, or where it said the same again.
                said = piece.rejected.text
                end = said == "" or said.rstrip().endswith(("Question:", "Answer:"))
                *sentences, last = filter(None, re.split(r"[.!?\n]+\s*", before)) or [""]
                assert end or last in sentences or piece.rejected.top_prob < gamma
            before += piece.text

    await asyncio.gather(*(check(question, gamma) for question in QUESTIONS for gamma in GAMMAS))


@pytest.mark.parametrize("pair", first(1, ["cross", "demo"]))
async def test_base_steps_and_aligned_steps_stay_within_their_bounds(registry: Registry, pair: str):
    for gamma in GAMMAS:
        answers = await asyncio.gather(
            *(answer(nudged(registry, pair, question, gamma=gamma)) for question in QUESTIONS)
        )
        usages = [finished.usage for _, finished in answers]
        committed = sum(usage.completion_tokens for usage in usages)
        nudged_tokens = sum(usage.aligned_tokens for usage in usages)
        # The header of the next turn, some tokens, was written behind nearly every answer, too.
        assert sum(usage.base_steps for usage in usages) <= 1.1 * committed + 5 * len(usages)
        assert sum(usage.aligned_steps for usage in usages) <= 2.5 * nudged_tokens
        for usage in usages:
            steps = usage.base_steps + usage.aligned_steps
            assert usage.discarded_tokens == steps - usage.completion_tokens


@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_pieces_are_whole_characters_and_count_their_tokens(registry: Registry, pair: str):
    for question in QUESTIONS:
        pieces, finished = await answer(nudged(registry, pair, question, gamma=0.9))
        assert all(piece.text for piece in pieces)
        assert "\ufffd" not in text(pieces)
        for speaker, counted in (
            ("base", finished.usage.base_tokens),
            ("aligned", finished.usage.aligned_tokens),
        ):
            assert sum(p.tokens for p in pieces if p.speaker == speaker) == counted


async def test_max_tokens_is_a_bound_on_both_together(registry: Registry):
    for most in (1, 2, 3, 7, 20):
        request = AnswerRequest(GREEDY, max_tokens=most)
        for gamma in (0.0, 0.4, 0.95, 2.0):
            writer = nudged(registry, "demo", QUESTIONS[0], request=request, gamma=gamma)
            pieces, finished = await answer(writer)
            assert finished.usage.completion_tokens <= most
            assert sum(piece.tokens for piece in pieces) == finished.usage.completion_tokens
            if finished.usage.completion_tokens == most:
                assert finished.stop_reason in ("length", "aligned_end")


async def test_a_seed_repeats_an_answer(registry: Registry):
    request = AnswerRequest(SamplingParams(temperature=1.0, seed=5), max_tokens=40)
    first, second = [
        text((await answer(nudged(registry, "cross", QUESTIONS[0], request=request)))[0])
        for _ in range(2)
    ]
    assert first == second


async def test_answers_at_once_are_what_each_is_alone(registry: Registry):
    alone = [text((await answer(nudged(registry, "demo", q)))[0]) for q in QUESTIONS]
    together = await asyncio.gather(*(answer(nudged(registry, "demo", q)) for q in QUESTIONS * 4))
    assert [text(pieces) for pieces, _ in together] == alone * 4


async def test_closing_a_stream_frees_both_engines(registry: Registry):
    events = [stream(nudged(registry, "demo", q), AnswerRequest()) for q in QUESTIONS]
    for each in events:
        await anext(each)
    for each in events:
        await each.aclose()
    assert [engine.running for engine in registry.engines.values()] == [0, 0, 0]
    for engine in registry.engines.values():
        assert engine._llm.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]


async def test_a_lookahead_takes_the_whole_ending(registry: Registry):
    """With a lookahead as long as the answer, all of it is the aligned model's."""
    for question in QUESTIONS[:3]:
        own = await answer(nudged(registry, "demo:aligned", question))
        ahead = await answer(nudged(registry, "demo", question, gamma=0.5, end_lookahead=60))
        assert text(ahead[0]) == text(own[0])
        assert ahead[1].stop_reason == "aligned_end"


@pytest.mark.parametrize("pair", ["demo", "cross"])
async def test_what_is_written_during_a_lookahead_is_what_would_be_written_after_it(
    registry: Registry, pair: str
):
    async def check(question: str, gamma: float) -> None:
        found = []
        for ahead in (False, True):
            writer = nudged(registry, pair, question, gamma=gamma, end_lookahead=6)
            assert isinstance(writer, Nudged)
            writer.goes_ahead = ahead
            pieces, end = await answer(writer)
            found.append((text(pieces), end.stop_reason, end.usage.nudged_share))
        assert found[0] == found[1]

    await asyncio.gather(*(check(each, gamma) for each in QUESTIONS for gamma in SOME_GAMMAS))


async def test_checked_drafts_change_no_text(registry: Registry):
    """Random questions, thresholds and drafts, several answers at once. So do words that are
    written ahead while the base model writes."""
    tokenizer = registry.engines["base"].info.tokenizer
    draws = random.Random(7)
    steps = {False: 0, True: 0}

    async def told(question: str, gamma: float, lookahead: int, tokens: int):
        ways = {0: Nudged, -1: ReadAlong}
        way = ways.get(tokens, lambda *given: Verified(*given, tokens))
        asked = {"gamma": gamma, "end_lookahead": lookahead}
        pieces, end = await answer(nudged(registry, "demo", question, way=way, **asked))
        if tokens >= 0:
            steps[bool(tokens)] += end.usage.base_steps
        return text(pieces), end.stop_reason, end.usage.base_tokens, end.usage.aligned_tokens

    async def check(number: int) -> None:
        question = f"{draws.choice(QUESTIONS)} {number}"
        if number % 2:
            question = tokenizer.decode([draws.randrange(300, 2000) for _ in range(8)])
        gamma, lookahead = draws.choice([0.1, 0.4, 0.7, 0.95, 1.0]), draws.choice([0, 0, 6])
        tokens = draws.choice([1, 3, 8, 16])
        plain = await told(question, gamma, lookahead, 0)
        assert await told(question, gamma, lookahead, tokens) == plain
        # Once more: now the engine's cache knows it all.
        assert await told(question, gamma, lookahead, tokens) == plain
        assert await told(question, gamma, lookahead, -1) == plain

    await asyncio.gather(*map(check, range(32)))
    assert steps[True] < 2 * steps[False] * 0.7

"""The contract of `server.engines.base`, for every engine there is.

One suite, the same for the scripted engine and for vLLM with real models. The numbers are those
of the docstring of `server.engines.base`.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import replace

import pytest

from server.core import SamplingParams
from server.engines.base import EVERY_TOKEN, Engine, Token, TurnEnd, TurnParams
from server.text.words import Part, Word
from tests.contract.conftest import GREEDY, PROMPTS, ahead, ids, opened, plain, run


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_1_a_turn_yields_its_tokens_then_one_end(engine: Engine, prompt: str):
    tokens, end = await run(opened(engine, prompt), TurnParams(GREEDY, max_tokens=12))
    assert end.reason == ("length" if len(tokens) == 12 else "stop")
    if end.reason == "stop":
        assert end.rejected is not None
        assert end.rejected.id in engine.info.stop_ids


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_2_every_token_carries_its_raw_distribution(engine: Engine, prompt: str):
    tokens, _ = await run(opened(engine, prompt), TurnParams(GREEDY, max_tokens=12, top=3))
    for token in tokens:
        assert 1 <= len(token.top) <= 3
        logprobs = [logprob for _, logprob in token.top]
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(math.exp(logprob) for logprob in logprobs) <= 1 + 1e-4
        assert token.id == token.top[0][0]  # greedy
        assert token.logprob == token.top[0][1]
        assert 0 < token.top_prob <= 1 + 1e-6


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=7)])
async def test_2_without_probabilities_it_writes_the_same(
    engine: Engine, prompt: str, sampling: SamplingParams
):
    told = TurnParams(sampling, max_tokens=20)
    expected, end = await run(opened(engine, prompt), told)
    got, untold_end = await run(opened(engine, prompt), replace(told, top=0))
    assert ids(got) == ids(expected)
    assert untold_end.reason == end.reason
    untold = [*got, *filter(None, [untold_end.rejected])]
    assert all(token.top == () and math.isnan(token.logprob) for token in untold)
    assert all(math.isnan(token.top_prob) for token in untold)
    # A turn whose end hangs on probabilities, or on what is likeliest, tells of them.
    for kind in (replace(told, stop_below=0.3), replace(told, word=())):
        expected, end = await run(opened(engine, prompt), replace(kind, top=1))
        got, untold_end = await run(opened(engine, prompt), replace(kind, top=0))
        assert ids(got) == ids(expected)
        assert untold_end.reason == end.reason
        assert all(len(token.top) == 1 and token.top_prob > 0 for token in got)


@pytest.mark.needs("distribution")
async def test_2_every_token_can_be_asked_for(engine: Engine):
    look = TurnParams(GREEDY, max_tokens=1, stop_below=2.0, top=EVERY_TOKEN)
    _, end = await run(opened(engine, PROMPTS[0]), look)
    few = (await one_token(engine, engine.info.tokenizer.encode_prompt(PROMPTS[0]), 5)).top
    assert end.rejected is not None
    whole = end.rejected.top
    assert [i for i, _ in whole[: len(few)]] == [i for i, _ in few]
    assert [p for _, p in whole[: len(few)]] == pytest.approx([p for _, p in few], abs=1e-5)
    assert end.rejected.id == whole[0][0] == next(iter(whole))[0]
    assert sum(math.exp(p) for _, p in whole) == pytest.approx(1, abs=1e-3)
    assert len({i for i, _ in whole}) == len(whole) == len(list(whole))


async def test_2_the_raw_distribution_does_not_depend_on_the_temperature(engine: Engine):
    greedy = await plain(engine, PROMPTS[0], 1)
    for temperature in (0.3, 2.0):
        params = TurnParams(
            SamplingParams(temperature=temperature, top_p=0.9, seed=3), max_tokens=1, top=3
        )
        tokens, _ = await run(opened(engine, PROMPTS[0]), params)
        assert tokens[0].top_prob == pytest.approx(greedy[0].top_prob, abs=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_3_it_stops_by_itself_at_the_first_uncertain_position(
    engine: Engine, prompt: str, gamma: float
):
    expected = await plain(engine, prompt)
    confident = 0
    while confident < len(expected) and expected[confident].top_prob >= gamma:
        confident += 1
    params = TurnParams(GREEDY, max_tokens=40, stop_below=gamma)
    session = opened(engine, prompt)
    before = session.length
    tokens, end = await run(session, params)
    assert ids(tokens) == ids(expected[:confident])
    assert all(token.top_prob >= gamma for token in tokens)
    assert session.length == before + confident
    if confident < len(expected):
        assert end.reason == "uncertain"
        assert end.rejected is not None
        assert end.rejected.id == expected[confident].id
        assert end.rejected.top_prob == pytest.approx(expected[confident].top_prob, abs=1e-5)
        assert end.rejected.top_prob < gamma
        assert session.steps == confident + 1 + ahead(engine)  # and nothing beyond it


async def test_3_it_stops_there_when_sampling_too(engine: Engine):
    for seed in range(12):
        params = TurnParams(
            SamplingParams(temperature=1.0, seed=seed), max_tokens=30, stop_below=0.5
        )
        tokens, end = await run(opened(engine, PROMPTS[1]), params)
        assert all(token.top_prob >= 0.5 for token in tokens)
        if end.reason == "uncertain":
            assert end.rejected is not None
            assert end.rejected.top_prob < 0.5


@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1.0, seed=7)])
@pytest.mark.parametrize("prompt", PROMPTS)
async def test_4_it_stops_after_one_word(engine: Engine, prompt: str, sampling: SamplingParams):
    tokens, end = await run(
        opened(engine, prompt), TurnParams(sampling, max_tokens=16, word=(), top=2)
    )
    word = Word(engine.info.tokenizer)
    parts = [word.push(token.id) for token in tokens]
    assert Part.BEYOND not in parts
    assert Part.LAST not in parts[:-1]
    if end.reason == "word":
        if end.rejected is not None:  # the token with which the next word begins
            assert word.push(end.rejected.id) is Part.BEYOND or parts[-1] is Part.LAST
        else:
            assert sampling.greedy or parts[-1] is Part.LAST
    else:
        assert end.reason in ("stop", "length")


@pytest.mark.parametrize("prompt", PROMPTS)
async def test_4_words_strung_together_are_plain_decoding(engine: Engine, prompt: str):
    """Each word begins with the token that the one before it stopped at."""
    expected = await plain(engine, prompt, 30)
    session = opened(engine, prompt)
    written: list[int] = []
    begun: list[int] = []
    while len(written) < 24:
        tokens, end = await run(
            session, TurnParams(GREEDY, max_tokens=16 - len(begun), word=tuple(begun), top=2)
        )
        written += begun + ids(tokens)
        begun = []
        if end.reason == "stop":
            break
        if end.reason == "word" and end.rejected is not None:
            begun = [end.rejected.id]
            await session.extend(begun)
    assert written[:24] == ids(expected)[: len(written[:24])]


async def test_5_what_was_not_taken_is_not_in_the_context(engine: Engine):
    expected = ids(await plain(engine, PROMPTS[0], 20))
    session = opened(engine, PROMPTS[0])
    tokens, _ = await run(session, TurnParams(GREEDY, max_tokens=20, stop_below=0.9))
    rest, _ = await run(session, TurnParams(GREEDY, max_tokens=20 - len(tokens)))
    assert ids(tokens) + ids(rest) == expected


async def test_5_what_is_dropped_is_taken_back(engine: Engine):
    expected = ids(await plain(engine, PROMPTS[0], 8))
    session = opened(engine, PROMPTS[0])
    tokens, _ = await run(session, TurnParams(GREEDY, max_tokens=8))
    before = session.length
    dropped = min(3, len(tokens))
    await session.extend([], drop=dropped)
    assert session.length == before - dropped
    again, _ = await run(session, TurnParams(GREEDY, max_tokens=dropped))
    assert ids(tokens)[: len(tokens) - dropped] + ids(again) == expected


async def test_5_a_turn_left_early_keeps_what_was_yielded(engine: Engine):
    expected = ids(await plain(engine, PROMPTS[0], 8))
    session = opened(engine, PROMPTS[0])
    async with aclosing(session.generate(TurnParams(GREEDY, max_tokens=8))) as events:
        first = await anext(events)
    assert isinstance(first, Token)
    rest, _ = await run(session, TurnParams(GREEDY, max_tokens=7))
    assert [first.id, *ids(rest)] == expected


async def test_6_closing_the_generator_frees_the_engine(engine: Engine):
    session = opened(engine, PROMPTS[1])
    events = session.generate(TurnParams(SamplingParams(temperature=2.0), max_tokens=400))
    await anext(events)
    assert engine.running == 1
    await events.aclose()
    assert engine.running == 0


async def test_6_closing_the_session_does_too_any_number_of_times(engine: Engine):
    session = opened(engine, PROMPTS[1])
    events = session.generate(TurnParams(SamplingParams(temperature=2.0), max_tokens=400))
    await anext(events)
    await session.aclose()
    await session.aclose()
    assert engine.running == 0


async def test_6_cancelling_the_reader_frees_the_engine(engine: Engine):
    async def read() -> None:
        session = opened(engine, PROMPTS[1])
        async with aclosing(
            session.generate(TurnParams(SamplingParams(temperature=2.0), max_tokens=400))
        ) as events:
            async for _ in events:
                pass

    reading = [asyncio.create_task(read()) for _ in range(5)]
    await asyncio.sleep(0.05)
    for task in reading:
        task.cancel()
    await asyncio.gather(*reading, return_exceptions=True)
    assert engine.running == 0


async def test_7_extended_text_is_read(engine: Engine):
    """A session that was given a text is where one that was opened on it is."""
    tokenizer = engine.info.tokenizer
    start, more = tokenizer.encode_prompt("The capital"), tokenizer.encode_text(" of the")
    grown = engine.open(start)
    await grown.extend(more)
    whole = engine.open(start + more)
    assert grown.length == whole.length
    params = TurnParams(GREEDY, max_tokens=10)
    assert ids((await run(grown, params))[0]) == ids((await run(whole, params))[0])


async def test_a_full_context_ends_the_turn_and_never_the_engine(engine: Engine):
    length = engine.info.context_length
    prompt = engine.info.tokenizer.encode_text(" a") * length
    for size, most in ((length - 3, 3), (length, 0)):
        session = engine.open(prompt[:size])
        tokens, end = await run(session, TurnParams(GREEDY, max_tokens=50, stop_below=0.0))
        assert len(tokens) <= most
        assert end.reason in ("length", "stop")
    session = engine.open(prompt[: length - 1])
    await session.extend(prompt[:100])
    assert await run(session, TurnParams(GREEDY, max_tokens=5)) == ([], TurnEnd("length"))
    await engine.check_health()


async def test_a_seed_repeats_a_turn_and_another_turn_draws_anew(engine: Engine):
    async def drawn(seed: int, turn: int) -> list[int]:
        params = TurnParams(SamplingParams(temperature=1.5, seed=seed), max_tokens=12, turn=turn)
        return ids((await run(opened(engine, PROMPTS[1]), params))[0])

    assert await drawn(1, 0) == await drawn(1, 0)
    first = await drawn(1, 0)
    others = [await drawn(1, turn) for turn in range(1, 5)]
    assert any(other != first for other in others)


async def test_many_turns_at_once_are_what_each_is_alone(engine: Engine):
    """Rows of different kinds in one batch don't disturb each other."""
    kinds = [
        TurnParams(GREEDY, max_tokens=12, stop_below=0.5),
        TurnParams(GREEDY, max_tokens=12, word=(), top=2),
        TurnParams(GREEDY, max_tokens=12),
        TurnParams(GREEDY, max_tokens=12, stop_below=0.05),
    ]
    jobs = [(prompt, kind) for prompt in PROMPTS for kind in kinds] * 2
    alone = [await run(opened(engine, prompt), kind) for prompt, kind in jobs]
    together = await asyncio.gather(*(run(opened(engine, p), kind) for p, kind in jobs))
    for (tokens, end), (tokens_, end_) in zip(alone, together, strict=True):
        assert ids(tokens) == ids(tokens_)
        assert end.reason == end_.reason


async def one_token(engine: Engine, context: list[int], top: int) -> Token:
    session = engine.open(context)
    tokens, end = await run(session, TurnParams(GREEDY, max_tokens=1, top=top))
    await session.aclose()
    found = tokens[0] if tokens else end.rejected
    assert found is not None
    return found


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("drafted", [0, 1, 5, 40])
@pytest.mark.needs("check")
async def test_8_a_draft_is_checked_at_each_of_its_positions(
    engine: Engine, prompt: str, drafted: int
):
    """Also where the model would have written something else, and where its cache has it all."""
    tokenizer = engine.info.tokenizer
    text = " The river Ossa flows through Parford, and then it is Zelline who sings. Hello?" * 3
    draft = tokenizer.encode_text(text)[:drafted]
    context = tokenizer.encode_prompt(f"{prompt} {drafted}")
    expected = [
        await one_token(engine, [*context, *draft[:count]], 3) for count in range(drafted + 1)
    ]
    session = engine.open(context)
    checked = await session.check(draft, 3)
    assert 1 <= len(checked) <= drafted + 1
    assert session.length == len(context)
    assert session.steps >= 1
    assert not engine.running
    for got, wanted in zip(checked, expected, strict=False):
        assert got.id == got.top[0][0] == wanted.id
        assert [i for i, _ in got.top] == [i for i, _ in wanted.top]
        assert [p for _, p in got.top] == pytest.approx([p for _, p in wanted.top], abs=1e-3)
        assert got.logprob == pytest.approx(wanted.logprob, abs=1e-4)
    # What was checked is not in the context: it goes on as if nothing had been.
    after, _ = await run(session, TurnParams(GREEDY, max_tokens=3))
    assert ids(after)[:1] in ([expected[0].id], [])
    await session.aclose()


@pytest.mark.needs("check")
async def test_8_a_new_draft_is_checked_to_its_end(engine: Engine):
    """Nobody wrote it before, so no cache has it."""
    tokenizer = engine.info.tokenizer
    context = tokenizer.encode_prompt("A question of its own, for this test alone:")
    session = engine.open(context)
    draft = tokenizer.encode_text(" what never was said here or anywhere else before")
    assert len(await session.check(draft, 1)) == len(draft) + 1
    assert session.steps == 1
    await session.extend(draft[:2])
    assert len(await session.check(draft[2:], 1)) >= 1
    await session.aclose()


@pytest.mark.needs("check")
async def test_8_a_check_after_a_turn_and_a_turn_after_a_check(engine: Engine):
    whole = await plain(engine, PROMPTS[0], 12)
    session = opened(engine, PROMPTS[0])
    first, _ = await run(session, TurnParams(GREEDY, max_tokens=4, stop_below=0.0))
    checked = await session.check(ids(whole)[len(first) : len(first) + 3], 1)
    known = ids(whole)[len(first) :]
    assert ids(checked)[: len(known)] == known[: len(checked)]
    rest, _ = await run(session, TurnParams(GREEDY, max_tokens=4, stop_below=0.0))
    assert ids([*first, *rest]) == ids(whole)[: len(first) + len(rest)]
    await session.aclose()


@pytest.mark.needs("check")
async def test_8_a_draft_that_fills_the_context_is_cut(engine: Engine):
    length = engine.info.context_length - 3
    session = engine.open([*engine.info.tokenizer.encode_prompt("Once"), *[70] * length][:length])
    room = engine.info.context_length - session.length
    assert 1 <= len(await session.check([71] * 20, 1)) <= room
    assert not engine.running
    await session.aclose()


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.needs("score")
async def test_8_a_context_is_scored_at_each_of_its_ids(engine: Engine, prompt: str):
    """As often as it is asked, though the engine's cache has it all; whoever wrote it."""
    tokenizer = engine.info.tokenizer
    start = tokenizer.encode_prompt(prompt)
    session = engine.open(start)
    written, _ = await run(session, TurnParams(GREEDY, max_tokens=20, top=3))
    foreign = tokenizer.encode_text(" and so on. 🦊")
    await session.extend(foreign)
    context = [*start, *ids(written), *foreign]
    for _ in range(2):
        before = session.steps, session.prefilled
        scores = await session.score(3)
        assert session.steps == before[0] + 1
        assert session.prefilled == before[1] + len(context)
        assert session.length == len(context)
        assert not engine.running
        assert ids(scores) == context[1:]
        for at, score in enumerate(scores, start=1):
            wanted = await one_token(engine, context[:at], 3)
            assert [i for i, _ in score.top] == [i for i, _ in wanted.top]
            assert [p for _, p in score.top] == pytest.approx([p for _, p in wanted.top], abs=1e-3)
            known = dict(score.top)
            if score.id in known:
                assert score.logprob == known[score.id]
            else:
                assert score.logprob < score.top[-1][1] + 1e-6
    # … which are those of the turn that wrote it.
    own = scores[len(start) - 1 : len(start) - 1 + len(written)]
    assert [s.logprob for s in own] == pytest.approx([t.logprob for t in written], abs=1e-3)
    after, _ = await run(session, TurnParams(GREEDY, max_tokens=1))
    assert ids(after) in ([(await one_token(engine, context, 1)).id], [])
    await session.aclose()


@pytest.mark.needs("score")
async def test_8_a_context_with_room_for_one_more_is_scored(engine: Engine):
    length = engine.info.context_length - 1
    session = engine.open([*engine.info.tokenizer.encode_prompt("Once"), *[70] * length][:length])
    scores = await session.score(1)
    assert len(scores) == length - 1
    assert all(math.isfinite(score.logprob) for score in scores)
    one = engine.open([70])
    assert await one.score(1) == []
    for each in (session, one):
        await each.aclose()


@pytest.mark.needs("score")
async def test_8_scores_at_once_are_what_each_is_alone(engine: Engine):
    prompts = [engine.info.tokenizer.encode_prompt(f"{prompt} so") for prompt in PROMPTS]

    async def scored(prompt: list[int]) -> list[float]:
        session = engine.open(prompt)
        scores = await session.score(1)
        await session.aclose()
        return [score.logprob for score in scores]

    alone = [await scored(prompt) for prompt in prompts]
    together = await asyncio.gather(*map(scored, prompts * 2))
    for got, wanted in zip(together, alone * 2, strict=True):
        assert got == pytest.approx(wanted, abs=1e-3)


async def test_a_long_prompt_is_read_before_a_draft_is_checked(
    real: Engine, monkeypatch: pytest.MonkeyPatch
):
    """So that the probabilities of few positions are there at once; also where the prompt is whole
    blocks of the cache."""
    tokenizer = real.info.tokenizer
    draft = tokenizer.encode_text(" of the town.")
    for length in (63, 64, 65):
        prompt = tokenizer.encode_prompt(f"{length}" + " The river is long." * 40)[:length]
        session = real.open(prompt)
        monkeypatch.setattr("server.engines.vllm.session.READ_AT_ONCE", 8)
        checked = await session.check(draft, 1)
        assert len(checked) == len(draft) + 1
        assert session.steps == 2
        assert length + len(draft) <= session.prefilled <= 2 * length + len(draft)
        again = await session.check(draft, 1)
        assert ids(again) == ids(checked)[: len(again)]
        assert session.steps in (3, 4), "the prompt has been read; the draft may be cut once"
        await session.aclose()
        for at in range(len(draft) + 1):
            wanted = await one_token(real, [*prompt, *draft[:at]], 1)
            assert checked[at].id == wanted.id


async def test_what_of_a_prompt_was_in_the_cache_is_told(real: Engine):
    prompt = "Where does the river of the many bridges come from? " * 20
    first, second = opened(real, prompt), opened(real, prompt)
    assert second.cached == 0
    for session in (first, second):
        given = session.length
        await run(session, TurnParams(GREEDY, max_tokens=2))
        assert session.prefilled == given - session.cached
        await run(session, TurnParams(GREEDY, max_tokens=2))
    assert first.cached == 0
    assert 0 < second.cached < given

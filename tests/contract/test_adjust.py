"""What a request wants of its tokens beyond the model's own distribution, on every engine.

Real engines are compared with the same model in plain PyTorch, one position at a time.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from server.core import Message, SamplingParams, TokenIds
from server.engines.base import Engine, Session, TurnParams
from server.serving.registry import Registry
from server.text.grammar.follow import Follower, Vocabulary
from server.text.grammar.vetting import compile_schema, matches
from tests.contract.conftest import GREEDY, PROMPTS, ids, opened, plain, run
from tests.thorough import first

SCHEMA = {
    "type": "object",
    "properties": {
        "capital": {"type": "string", "maxLength": 10},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
        "ok": {"type": "boolean"},
    },
    "required": ["capital", "size", "ok"],
    "additionalProperties": False,
}
WISHES: list[dict[str, Any]] = [
    {"frequency_penalty": 1.5},
    {"presence_penalty": 2.0},
    {"presence_penalty": -1.0, "frequency_penalty": 0.7},
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.8, "presence_penalty": 0.5},
    {"logit_bias": ((300, 12.0), (17, -100.0))},
    {"logit_bias": ((40, 5.5),), "frequency_penalty": 2.0, "repetition_penalty": 1.2},
]


@cache
def model(folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def expected(
    engine: Engine, prompt: TokenIds, output: TokenIds, sampling: SamplingParams, count: int
) -> TokenIds:
    """What greedy decoding writes, by the definition of each field."""
    output = list(output)
    written: TokenIds = []
    for _ in range(count):
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *output]])
            logits = model(engine.info.model)(ids).logits[0, -1].clone()
        for token, bias in sampling.logit_bias:
            logits[token] += bias
        for token in {*prompt, *output}:
            rate = sampling.repetition_penalty
            logits[token] = logits[token] / rate if logits[token] > 0 else logits[token] * rate
        for token in set(output):
            logits[token] -= sampling.presence_penalty
            logits[token] -= sampling.frequency_penalty * output.count(token)
        best = int(logits.argmax())
        if best in engine.info.stop_ids:
            break
        output.append(best)
        written.append(best)
    return written


async def in_turns(session: Session, sampling: SamplingParams, count: int) -> TokenIds:
    """``count`` greedy tokens, a few a turn."""
    written: TokenIds = []
    while len(written) < count:
        params = TurnParams(sampling, max_tokens=min(5, count - len(written)))
        tokens, end = await run(session, params)
        written += ids(tokens)
        if end.reason == "stop":
            break
    return written


@pytest.mark.parametrize("wish", WISHES, ids=lambda wish: "+".join(wish))
@pytest.mark.parametrize("prompt", first(1, PROMPTS))
async def test_penalties_and_bias_reach_over_turns_and_over_the_other_models_text(
    real: Engine, prompt: str, wish: dict[str, Any]
):
    sampling = replace(GREEDY, **wish)
    start = real.info.tokenizer.encode_prompt(prompt)
    heard = real.info.tokenizer.encode_text(" The capital of Galicor is Parford, Parford.")
    session = real.open(start)
    await session.extend(heard)
    assert await in_turns(session, sampling, 16) == expected(real, start, heard, sampling, 16)


@pytest.mark.needs("adjust")
async def test_requests_in_one_batch_do_not_disturb_each_other(engine: Engine):
    async def one(number: int) -> TokenIds:
        sampling = replace(GREEDY, **WISHES[number % len(WISHES)])
        session = opened(engine, PROMPTS[number % 3])
        await asyncio.sleep(number * 0.004)  # so that rows come, go and move
        return await in_turns(session, sampling, 6 + number % 9)

    alone = [await one(number) for number in range(12)]
    assert await asyncio.gather(*(one(number) for number in range(12))) == alone


@pytest.mark.needs("adjust")
async def test_reported_probabilities_stay_the_models_own(engine: Engine):
    (first,) = await plain(engine, PROMPTS[0], 1)
    sampling = replace(GREEDY, logit_bias=((first.id, -100.0),), presence_penalty=1.0)
    tokens, end = await run(opened(engine, PROMPTS[0]), TurnParams(sampling, max_tokens=1, top=3))
    seen = tokens[0] if tokens else end.rejected
    assert seen is not None
    assert seen.id != first.id
    assert seen.top[0][0] == first.id
    assert seen.top_prob == pytest.approx(first.top_prob, abs=1e-5)


@pytest.mark.needs("adjust")
async def test_the_threshold_looks_at_the_raw_distribution(engine: Engine):
    (first,) = await plain(engine, PROMPTS[0], 1)
    sampling = replace(GREEDY, logit_bias=((first.id, -100.0),))
    for gamma, reason in ((first.top_prob * 0.99, "length"), (first.top_prob * 1.01, "uncertain")):
        params = TurnParams(sampling, max_tokens=1, stop_below=gamma)
        tokens, end = await run(opened(engine, PROMPTS[0]), params)
        assert end.reason == reason
        assert len(tokens) == (reason == "length")


async def test_a_stop_token_ends_the_turn_and_is_not_taken(engine: Engine):
    tokens = await plain(engine, PROMPTS[0], 12)
    stop = tokens[min(5, len(tokens) - 1)].id
    first = ids(tokens).index(stop)
    session = opened(engine, PROMPTS[0])
    before = session.length
    got, end = await run(session, TurnParams(GREEDY, max_tokens=40, stop_token_ids=(stop,)))
    assert ids(got) == ids(tokens[:first])
    assert end.reason == "stop"
    assert end.rejected is not None
    assert end.rejected.id == stop
    assert session.length == before + first


async def test_a_stop_token_inside_a_word_ends_it_and_one_behind_it_does_not(engine: Engine):
    session = opened(engine, PROMPTS[0])
    word, end = await run(session, TurnParams(GREEDY, max_tokens=16, word=()))
    if end.reason != "word" or end.rejected is None:
        pytest.skip("this model's first word has no token after it")
    behind = TurnParams(GREEDY, max_tokens=16, word=(), stop_token_ids=(end.rejected.id,))
    again, same = await run(opened(engine, PROMPTS[0]), behind)
    assert (ids(again), same.reason) == (ids(word), "word")
    assert same.rejected is not None
    assert same.rejected.id == end.rejected.id
    inside = replace(behind, stop_token_ids=(word[-1].id,))
    shorter, stopped = await run(opened(engine, PROMPTS[0]), inside)
    assert stopped.reason == "stop"
    assert ids(shorter) == ids(word[: ids(word).index(word[-1].id)])


@pytest.mark.needs("adjust")
async def test_the_end_does_not_come_before_its_time(engine: Engine):
    ends = engine.info.stop_ids
    for prompt in PROMPTS:
        tokens, end = await run(opened(engine, prompt), TurnParams(GREEDY, max_tokens=80))
        if end.reason != "stop":
            continue
        later = tuple((token, len(tokens) + 5) for token in ends)
        params = TurnParams(GREEDY, max_tokens=len(tokens) + 5, not_before=later)
        longer, end = await run(opened(engine, prompt), params)
        if engine.info.name != "scripted":  # a script may know nothing but its end
            assert (len(longer), end.reason) == (len(tokens) + 5, "length")
        assert ids(longer[: len(tokens)]) == ids(tokens)
        at_once = tuple((token, len(tokens)) for token in ends)
        params = TurnParams(GREEDY, max_tokens=80, not_before=at_once)
        same, end = await run(opened(engine, prompt), params)
        assert (ids(same), end.reason) == (ids(tokens), "stop")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.needs("grammar")
async def test_a_grammar_holds_over_turns_and_over_the_other_models_text(
    engine: Engine, temperature: float
):
    grammar = compile_schema(SCHEMA)
    tokenizer = engine.info.tokenizer
    session = opened(engine, PROMPTS[0])
    start = session.length
    written = b'{"capital": "Pa'
    await session.extend(tokenizer.encode_text(written.decode()))
    sampling = SamplingParams(temperature=temperature, seed=5)
    for turn in range(200):
        params = TurnParams(
            sampling,
            max_tokens=1 + turn % 3,
            grammar=grammar,
            turn=turn,
            word=() if turn % 4 else None,
        )
        tokens, end = await run(session, params)
        written += tokenizer.bytes_of(ids(tokens))
        if end.reason == "stop":
            break
    assert matches(grammar, written.decode())
    assert json.loads(written)["capital"].startswith("Pa")
    assert session.length > start


async def test_with_a_grammar_p1_is_that_of_the_likeliest_allowed_token(real: Engine):
    tokenizer = real.info.tokenizer
    grammar = compile_schema(SCHEMA)
    prompt = tokenizer.encode_prompt(PROMPTS[0])
    with torch.no_grad():
        probs = model(real.info.model)(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    size = len(probs)
    vocabulary = Vocabulary(tokenizer.table, tokenizer.encode_text, size, real.info.stop_ids)
    mask = Follower(grammar, vocabulary).allowed_after([])
    assert mask is not None
    allowed = [token for token in range(size) if mask[token // 8] >> (token % 8) & 1]
    best = max(float(probs[token]) for token in allowed)
    assert best < float(probs.max())
    for gamma, reason in ((best * 0.99, "length"), (best * 1.01, "uncertain")):
        params = TurnParams(GREEDY, max_tokens=1, stop_below=gamma, grammar=grammar)
        _, end = await run(real.open(prompt), params)
        assert end.reason == reason


@pytest.mark.needs("grammar")
async def test_what_is_taken_back_is_taken_back_in_the_grammar_too(engine: Engine):
    grammar = compile_schema(SCHEMA)
    tokenizer = engine.info.tokenizer
    session = opened(engine, PROMPTS[0])
    params = TurnParams(GREEDY, max_tokens=4, grammar=grammar)
    first, _ = await run(session, params)
    await session.extend(tokenizer.encode_text('{"capital": "Pa'), drop=len(first))
    written = '{"capital": "Pa'
    for _ in range(60):
        tokens, end = await run(session, replace(params, max_tokens=7))
        written += tokenizer.bytes_of(ids(tokens)).decode()
        if end.reason == "stop":
            break
    assert matches(grammar, written)


async def test_a_grammar_ends_where_the_model_wants_to_end(registry: Registry):
    """A model that is done closes what is open, rather than to write on in a string."""
    engine = registry.engines["aligned"]
    tokenizer = engine.info.tokenizer
    prompt = registry.prompts(registry.resolve("demo"), [Message("user", "Hello!")]).aligned
    session = engine.open(tokenizer.encode_prompt(prompt))
    spoken, end = await run(session, TurnParams(GREEDY, max_tokens=80))
    assert end.reason == "stop"
    said = tokenizer.bytes_of(ids(spoken)).decode()
    session = engine.open(tokenizer.encode_prompt(prompt))
    await session.extend(tokenizer.encode_text('{"a": "' + said))
    grammar = compile_schema({"type": "object"})
    tokens, end = await run(session, TurnParams(GREEDY, max_tokens=8, grammar=grammar))
    assert tokenizer.bytes_of(ids(tokens)).startswith(b'"')

"""Log probabilities of an answer's tokens: their bytes, their places, and what a stop cuts off."""

from __future__ import annotations

import codecs
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from server.api.dialect import Written
from server.api.openai.chat import ChatRenderer
from server.api.openai.completions import CompletionRenderer
from server.api.openai.render import Renderer
from server.core import (
    AnswerRequest,
    Finished,
    NudgingConfig,
    Piece,
    PromptPair,
    SamplingParams,
    ScoredToken,
)
from server.decoding.alone import Alone
from server.decoding.mixtures import Mixed
from server.decoding.nudged import Nudged
from server.decoding.parsing import Plain
from server.decoding.speculation.predraft import ReadAlong
from server.decoding.speculation.verify import Verified
from server.decoding.stream import Writer, stream
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

GREEDY = AnswerRequest(SamplingParams(temperature=0), top_logprobs=2)
TEXT = "Hi 😀, straße: é 漢字 👩‍👩‍👧."


@cache
def tokenizer(folder: str = "aligned") -> Tokenizer:
    return Tokenizer.load(str(DEMO / folder))


def of_text(text: str, top_prob: float = 0.9) -> ScriptedEngine:
    own = tokenizer()
    end = own.chat.eos_token_id
    script = [(text, top_prob)]
    return ScriptedEngine(
        EngineInfo("scripted", "text", 512, own, (end,)), scripted_text(own, end, script)
    )


def of_noise(seed: int, alphabet: Sequence[int] | None = None) -> ScriptedEngine:
    """Tokens that depend on all that was written and on nothing else."""
    own = tokenizer()
    ids = alphabet or [i for i in range(own.size) if own.token_bytes(i)]
    end = own.chat.eos_token_id

    def distribution(prompt, output):
        draws = random.Random(repr([seed, *output]))
        if draws.random() < 0.03:
            return [(end, 1.0)]
        one, two = draws.choice(ids), draws.choice(ids)
        top_prob = draws.uniform(0.5, 0.9) if draws.random() < 0.7 else 0.5
        return [(one, top_prob), (two, 1 - top_prob)] if one != two else [(one, 1.0)]

    return ScriptedEngine(EngineInfo("scripted", "noise", 512, own, (end,)), distribution)


def nudged(
    base: ScriptedEngine,
    aligned: ScriptedEngine,
    request: AnswerRequest,
    way: Callable[..., Nudged] = Nudged,
    **settings,
) -> Nudged:
    prompt = PromptPair(("a ",), ("b ",))
    return way(base, aligned, prompt, request, NudgingConfig(gamma=0.6, **settings))


def verified(*given) -> Nudged:
    return Verified(*given, 5)


def alone(speaker, prompt):
    return lambda base, aligned, request: Alone(
        base if speaker == "base" else aligned, speaker, prompt, request
    )


def mixed(base, aligned, request):
    prompt = PromptPair(("a ",), ("b ",))
    return Mixed(base, aligned, None, prompt, request, NudgingConfig(policy="ensemble"))


WRITERS: dict[str, Callable[..., Writer]] = {
    "nudged": nudged,
    "ahead": lambda *args: nudged(*args, end_lookahead=4),
    "verified": lambda *args: nudged(*args, way=verified),
    "eager": lambda *args: nudged(*args, way=ReadAlong),
    "base": alone("base", ("a ",)),
    "aligned": alone("aligned", [5, 6, 7]),
    "mixed": mixed,
}


async def events(writer: Writer, request: AnswerRequest) -> tuple[list[Piece], Finished]:
    pieces: list[Piece] = []
    async with aclosing(stream(writer, request)) as found:
        async for event in found:
            if isinstance(event, Finished):
                return pieces, event
            pieces.append(event)
    raise AssertionError("no Finished")


def scored(pieces: Sequence[Piece], place: str = "answer") -> list[ScoredToken]:
    return [token for piece in pieces for token in piece.scored if token.place == place]


def joined(tokens: Sequence[ScoredToken]) -> bytes:
    return b"".join(token.data for token in tokens)


def whole_characters(data: bytes) -> str:
    """Without one that is unfinished at the end."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(data)


@pytest.mark.parametrize("most", [*range(1, 12), None])
@pytest.mark.parametrize("top_prob", [0.9, 0.55])
@pytest.mark.parametrize("kind", WRITERS)
async def test_the_tokens_bytes_join_to_the_answer(kind: str, top_prob: float, most: int | None):
    request = replace(GREEDY, max_tokens=most)
    writer = WRITERS[kind](of_text(TEXT, top_prob), of_text(TEXT), request)
    pieces, finished = await events(writer, request)
    answer = "".join(piece.text for piece in pieces)
    tokens = scored(pieces)
    assert len(tokens) == finished.usage.completion_tokens
    assert sum(piece.tokens for piece in pieces) == finished.usage.completion_tokens
    assert joined(tokens).decode("utf-8", "ignore") == answer
    if kind in ("nudged", "ahead", "verified", "eager") or most is None:
        assert joined(tokens) == answer.encode()  # of a cut character nothing is left


@pytest.mark.parametrize("kind", WRITERS)
async def test_so_they_do_whatever_the_models_write(kind: str):
    """Tokens that end inside a character and begin with another one's end among them."""
    own = tokenizer()
    odd = [i for i in range(own.size) if "\ufffd" in own.token_text(i)]
    alphabet = [*odd, *own.encode_text(" 😀 é 漢字 straße a b c")]
    for seed in range(60):
        request = replace(GREEDY, max_tokens=30)
        writer = WRITERS[kind](of_noise(seed, alphabet), of_noise(-seed, alphabet), request)
        pieces, finished = await events(writer, request)
        assert len(scored(pieces)) == finished.usage.completion_tokens
        assert sum(piece.tokens for piece in pieces) == finished.usage.completion_tokens
        for piece in pieces:
            cut = piece is pieces[-1] and kind in ("base", "aligned", "mixed")
            data = joined(scored([piece]))
            assert piece.text == (
                whole_characters(data) if cut else data.decode("utf-8", "replace")
            )
        for piece in pieces:
            for token in piece.scored:
                spelled = [data for data, _ in token.top]
                assert token.data in spelled  # greedy: it is the likeliest


@pytest.mark.parametrize("way", [Nudged, ReadAlong, verified])
async def test_a_token_keeps_the_text_it_had_in_front_of_a_character_that_is_taken_back(way):
    own = tokenizer()
    [odd] = [i for i in range(own.size) if own.token_bytes(i) == b"str\xc3"]
    aligned = of_text("straight")
    sure = {0: 0.9}

    def distribution(prompt, output):
        return [(odd, sure.get(len(output), 0.1)), (7, 0.1)]

    base = ScriptedEngine(aligned.info, distribution)
    writer = nudged(base, aligned, GREEDY, way, start="base")
    pieces, finished = await events(writer, GREEDY)
    assert "".join(piece.text for piece in pieces) == "straight"
    tokens = scored(pieces)
    assert joined(tokens) == b"straight"
    assert (pieces[0].speaker, pieces[0].tokens, tokens[0].data) == ("base", 1, b"str")
    assert tokens[0].top[0][0] == b"str"
    assert len(tokens) == finished.usage.completion_tokens


async def test_a_space_that_is_all_of_a_cut_first_token_waits_again():
    """Each model then reads the space of its prompt exactly once."""
    own = tokenizer()
    [odd] = [i for i in range(own.size) if own.token_bytes(i) == b" \xe2\x80"]
    base = of_text("x")
    read: list[str] = []

    def unsure(prompt, output):
        read.append(own.decode([*prompt, *output]))
        return [(odd, 0.9 if not output else 0.1), (7, 0.1)]

    base.distribution = unsure
    for prompts in (("q ", "q "), ("q ", "q"), ("q", "q ")):
        prompt = PromptPair((prompts[0],), (prompts[1],))
        writer = Nudged(
            base, of_text(" Yes"), prompt, GREEDY, NudgingConfig(start="base", gamma=0.5)
        )
        pieces, _ = await events(writer, GREEDY)
        answer = "".join(piece.text for piece in pieces)
        assert joined(scored(pieces)) == answer.encode()
        assert answer == ("Yes" if prompts == ("q ", "q ") else " Yes")
        for side, given in zip((writer.base, writer.aligned), prompts, strict=True):
            session = getattr(side.session, "_session", side.session)
            await side.catch_up()
            assert own.decode([*session._prompt, *session._output]) == f"{given.strip()} Yes"


@pytest.mark.parametrize("kind", ["base", "mixed", "nudged"])
@pytest.mark.parametrize("said", ["Paris", " Paris"])
async def test_a_prompts_last_space_is_in_no_token_and_in_no_alternative(kind: str, said: str):
    writer = WRITERS[kind](of_text(said), of_text(said), GREEDY)
    pieces, _ = await events(writer, GREEDY)
    assert "".join(piece.text for piece in pieces) == "Paris"
    assert joined(scored(pieces)) == b"Paris"
    first = scored(pieces)[0]
    assert first.top[0][0] == first.data
    assert not any(data.startswith(b" ") for data, _ in first.top)


# -- as it is shown ------------------------------------------------------------------------------

Json = dict[str, Any]


def shown(
    kind: type[Renderer], pieces: Sequence[Piece], finished: Finished, echo: str = ""
) -> tuple[Json, list[Json]]:
    """A choice as a whole, and as the chunks of a stream."""
    made = [kind("m", trace=True, include_usage=False, top=2) for _ in range(2)]
    parts = [part for piece in pieces for part in Plain().push(piece)]
    whole = made[0].choice(0, Written(parts, finished, echo))
    chunks = [*made[1].first_chunks(0, echo, None)]
    for event in (*parts, finished):
        chunks += made[1].chunks(0, event, None)
    return whole, [chunk["choices"][0] for chunk in chunks]


def entries(choices: Sequence[Json]) -> list[Any]:
    """Of each token all that is said."""
    found: list[Any] = []
    for choice in choices:
        logprobs = choice["logprobs"] or {}
        found += logprobs.get("content", [])
        rows = ("text_offset", "tokens", "token_logprobs", "top_logprobs")
        found += zip(*(logprobs.get(row, []) for row in rows), strict=True)
    return found


@pytest.mark.parametrize("stop", [(), ("😀",), (", s",), ("字 ",), ("é",)])
@pytest.mark.parametrize("most", [5, 9, None])
@pytest.mark.parametrize("renderer", [ChatRenderer, CompletionRenderer])
@pytest.mark.parametrize("kind", WRITERS)
async def test_a_stream_says_of_each_token_what_a_whole_answer_says(kind, renderer, most, stop):
    request = replace(GREEDY, max_tokens=most, stop=stop)
    writer = WRITERS[kind](of_text(TEXT), of_text(TEXT), request)
    pieces, finished = await events(writer, request)
    whole, chunks = shown(renderer, pieces, finished)
    found = entries([whole])
    assert entries(chunks) == found
    traced = [p for choice in chunks for p in choice.get("nudging", {}).get("pieces", [])]
    assert traced == whole["nudging"]["pieces"]
    assert all(piece["text"] for piece in traced)
    ended = finished.stop_reason in ("end_of_text", "aligned_end") and kind in (
        "base",
        "aligned",
        "mixed",
    )
    if renderer is CompletionRenderer:
        assert [entry[1] for entry in found if not entry[1]] == [""] * ended
        text = whole["text"]
        for offset, token, _, top in found:
            if not token.startswith("bytes:"):
                assert text[offset : offset + len(token)].startswith(token[:1]) or stop
            if token:
                assert token in top
    else:
        assert all(entry["bytes"] for entry in found)
    if finished.stop_reason != "stop_string":
        assert len(found) - (ended and renderer is CompletionRenderer) == (
            finished.usage.completion_tokens
        )


@pytest.mark.parametrize("top_prob", [0.9, 0.55])
@pytest.mark.parametrize("kind", WRITERS)
async def test_a_token_that_begins_before_a_stop_string_is_told_and_none_behind_it(kind, top_prob):
    for end in range(1, len(TEXT)):
        stop = TEXT[end : end + 3]
        if TEXT.find(stop) < end:
            continue
        request = replace(GREEDY, stop=(stop,))
        writer = WRITERS[kind](of_text(TEXT, top_prob), of_text(TEXT), request)
        pieces, finished = await events(writer, request)
        assert finished.matched == stop
        data = joined(scored(pieces))
        assert data.decode("utf-8", "ignore").startswith(TEXT[:end])
        told = 0
        for token in scored(pieces):
            assert told < len(TEXT[:end].encode())
            told += len(token.data)


@pytest.mark.parametrize("kind", WRITERS)
async def test_what_only_looked_like_a_stop_string_is_told_with_its_tokens(kind: str):
    for end in range(1, len(TEXT)):
        request = replace(GREEDY, stop=(TEXT[end : end + 2] + "§",))
        writer = WRITERS[kind](of_text(TEXT, 0.55), of_text(TEXT), request)
        pieces, _ = await events(writer, request)
        assert joined(scored(pieces)) == TEXT.encode()
        for piece in pieces:  # each with the text that it begins
            assert piece.text or piece.only_tokens


def test_a_part_of_a_character_is_spelled_by_its_bytes_in_both_places():
    parts = [bytes([byte]) for byte in "😀".encode()]
    top = [((part, -0.1), (b"a", -3.0)) for part in parts]
    tokens = [ScoredToken(p, -0.1, t) for p, t in zip(parts, top, strict=True)]
    piece = Piece("😀", "base", 0.9, 4, scored=tuple(tokens))
    whole, _ = shown(ChatRenderer, [piece], Finished("length", of_usage()))
    content = whole["logprobs"]["content"]
    assert [each["token"] for each in content] == [
        "bytes:\\xf0",
        "bytes:\\x9f",
        "bytes:\\x98",
        "bytes:\\x80",
    ]
    assert [each["bytes"] for each in content] == [[0xF0], [0x9F], [0x98], [0x80]]
    assert content[0]["top_logprobs"][0] == {
        "token": "bytes:\\xf0",
        "logprob": -0.1,
        "bytes": [0xF0],
    }
    whole, _ = shown(CompletionRenderer, [piece], Finished("length", of_usage()))
    logprobs = whole["logprobs"]
    assert logprobs["text_offset"] == [0, 0, 0, 0]
    for token, alternatives in zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True):
        assert alternatives == {token: -0.1, "a": -3.0}


def test_of_alternatives_that_are_spelled_alike_the_best_is_told():
    token = ScoredToken(b"a", -0.5, ((b"a", -0.5), (b"a", -2.0)))
    piece = Piece("a", "base", 0.6, 1, scored=(token,))
    whole, _ = shown(CompletionRenderer, [piece], Finished("length", of_usage()))
    assert whole["logprobs"]["top_logprobs"] == [{"a": -0.5}]


def of_usage():
    return Alone(of_text("x"), "base", ("a",), GREEDY).usage()


# -- a prompt's tokens ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 5])
@pytest.mark.parametrize("text", ["Once upon", "str\u00df 😀", " <|im_start|>user\nHi"])
async def test_a_prompts_tokens_come_first_and_join_to_it(text: str, most: int):
    request = replace(GREEDY, max_tokens=most, prompt_logprobs=True)
    own = tokenizer()
    ids = own.encode_prompt(text)
    for spelled in (text, None):
        writer = Alone(of_noise(3), "base", ids, request, spelled)
        pieces, finished = await events(writer, request)
        prompt = scored(pieces, "prompt")
        assert len(prompt) == len(ids) == finished.usage.prompt_tokens
        assert joined(prompt).decode() == (own.decode(ids) if spelled is None else text)
        assert (prompt[0].logprob, prompt[0].top) == (None, ())
        assert all(token.logprob is not None for token in prompt[1:])
        assert len(scored(pieces)) == finished.usage.completion_tokens <= most
        if not most:
            assert finished.stop_reason == "length"
        echo = joined(prompt).decode()
        whole, chunks = shown(CompletionRenderer, pieces, finished, echo)
        assert entries(chunks) == entries([whole])
        assert "".join(choice["text"] for choice in chunks) == whole["text"]
        logprobs = whole["logprobs"]
        assert logprobs["token_logprobs"][0] is logprobs["top_logprobs"][0] is None
        offsets = logprobs["text_offset"]
        assert offsets == sorted(offsets)
        assert offsets[0] == 0
        if most and len(offsets) > len(ids):
            assert offsets[len(ids)] == len(echo)


async def test_what_only_reads_a_prompt_takes_one_step_of_the_engine():
    request = AnswerRequest(max_tokens=0)
    writer = Alone(of_text("x"), "aligned", ("a b c",), request)
    pieces, finished = await events(writer, request)
    assert pieces == []
    assert (finished.finish_reason, finished.usage.completion_tokens) == ("length", 0)
    assert finished.usage.aligned_steps == 1
    assert writer.side.session.closed


@pytest.mark.parametrize("kind", ["byte-level", "nfc", "sentencepiece", "metaspace", "runs"])
@pytest.mark.parametrize(
    "text",
    [
        "The quick brown fox",
        " The  quick",
        "<s>The <|im_start|>user\nHi<|im_end|>",
        "<s>",
        "</s> a\n\n b",
        "naïve 你好 😀",
    ],
)
def test_a_raw_prompts_tokens_are_spelled_as_its_text_spells_them(by_kind, kind: str, text: str):
    own: Tokenizer = by_kind[kind]
    ids = own.encode_prompt(text)
    assert b"".join(own.as_spelled(ids, text)).decode() == text


def test_a_prompt_that_a_tokenizer_changes_is_spelled_as_it_is_read(by_kind):
    own: Tokenizer = by_kind["nfc"]
    ids = own.encode_prompt("e\u0301t e\u0301")
    assert b"".join(own.as_spelled(ids, "e\u0301t e\u0301")).decode() == "ét é"


# -- what it cost --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
async def test_what_an_answer_cost_is_told_when_nothing_of_it_runs_any_more(kind: str):
    for end in (0, 3, 8, 15, len(TEXT) - 1):
        request = replace(GREEDY, stop=(TEXT[end],))
        base, aligned = of_text(TEXT), of_text(TEXT)
        writer = WRITERS[kind](base, aligned, request)
        _, finished = await events(writer, request)
        assert finished.stop_reason == "stop_string"
        assert finished.usage == writer.usage()
        assert base.running == aligned.running == 0

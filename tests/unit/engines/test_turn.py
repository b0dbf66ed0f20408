"""When a turn ends: the rules, their order, and that a turn can be cut anywhere."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import SamplingParams
from server.engines.base import Token, TurnEnd, TurnParams, collect
from server.engines.scripted import ScriptedEngine
from server.engines.turn import Turn
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word
from tests.conftest import DEMO

GREEDY = SamplingParams(temperature=0)
ENDS = (0, 2)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO / "aligned"))


@cache
def texts() -> tuple[int, ...]:
    """Tokens of every kind that words tell apart, and a few beside."""
    own = tokenizer()
    return tuple(dict.fromkeys(own.encode_text("a b.\n\n 漢 é c")))


@cache
def words() -> list[tuple[int, ...]]:
    """What there may be of a word: nothing, a text, or a character that lacks its last byte."""
    return [(), (300,), tuple(tokenizer().encode_text("漢")[:-1])]


tokens_ = st.builds(
    lambda number, p, other: Token(
        number, math.log(p), ((number, math.log(p)), (other, math.log(p / 2)))
    ),
    st.one_of(st.sampled_from(ENDS), *[st.deferred(lambda: st.sampled_from(texts()))] * 6),
    st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 1.0]),
    st.just(301),
)
streams = st.lists(tokens_, min_size=1, max_size=30)
params_ = st.builds(
    TurnParams,
    sampling=st.just(GREEDY),
    max_tokens=st.integers(1, 25),
    stop_below=st.sampled_from([None, None, 0.0, 0.2, 0.5]),
    word=st.deferred(lambda: st.sampled_from([None, *words()])),
    stop_token_ids=st.lists(st.deferred(lambda: st.sampled_from(texts())), max_size=2).map(tuple),
    not_before=st.sampled_from([(), ((0, 3), (301, 9))]),
)
rooms = st.integers(0, 40)


def begun(params: TurnParams, room: int = 1000) -> Turn:
    return Turn(params, tokenizer(), ENDS, room)


def run(turn: Turn, stream: list[Token]) -> list[Token]:
    """What is taken of a stream."""
    taken = []
    for token in stream:
        if turn.end is not None:
            break
        if turn.offer(token):
            taken.append(token)
    return taken


def by_hand(
    stream: list[Token], params: TurnParams, room: int
) -> tuple[list[Token], TurnEnd | None]:
    """The rules once more, in another way: each alone says where it would end the turn, and the
    first of them does; at the same place the one that is named first."""
    never = (len(stream) + 1, True)
    word = None if params.word is None else Word(tokenizer(), params.word)
    parts = [] if word is None else [word.push(token.id) for token in stream]

    def first(found: list[bool], taken: bool) -> tuple[int, bool]:
        return next(((at, taken) for at, holds in enumerate(found) if holds), never)

    places = [
        ("uncertain", first([t.top_prob < (params.stop_below or 0.0) for t in stream], False)),
        ("stop", first([t.id in ENDS for t in stream], False)),
        ("word", first([part is Part.BEYOND for part in parts], False)),
        ("stop", first([t.id in params.stop_token_ids for t in stream], False)),
        ("word", first([part is Part.LAST for part in parts], True)),
        ("length", (min(params.max_tokens, room) - 1, True)),
    ]
    reason, (at, taken) = min(places, key=lambda each: each[1])  # of equals the first
    if room <= 0:
        return [], TurnEnd("length")
    if at >= len(stream):
        return stream, None
    if taken:
        return stream[: at + 1], TurnEnd(reason)
    return stream[:at], TurnEnd(reason, stream[at])


@settings(max_examples=400)
@given(streams, params_, rooms)
def test_each_rule_ends_a_turn_in_its_order(stream: list[Token], params: TurnParams, room: int):
    turn = begun(params, room)
    taken = run(turn, stream)
    assert (taken, turn.end) == by_hand(stream, params, room)
    assert turn.taken == [token.id for token in taken]


@given(streams, params_, rooms)
def test_nothing_is_taken_after_an_end(stream: list[Token], params: TurnParams, room: int):
    turn = begun(params, room)
    run(turn, stream)
    if turn.end is not None:
        before = list(turn.taken), turn.end
        with pytest.raises(RuntimeError, match="had ended"):
            turn.offer(stream[0])
        assert (turn.taken, turn.end) == before


@given(streams, params_, rooms)
def test_never_more_than_asked_for_and_than_there_is_room(stream, params, room):
    turn = begun(params, room)
    taken = run(turn, stream)
    assert len(taken) <= min(params.max_tokens, room)
    if turn.end == TurnEnd("length"):
        assert len(taken) == min(params.max_tokens, room)
    if turn.end is None:
        assert len(taken) == len(stream) < min(params.max_tokens, room)


@given(streams, params_, rooms, st.lists(st.integers(0, 6), max_size=8))
def test_a_turn_that_is_cut_into_several_is_the_same(stream, params, room, cuts):
    whole = begun(params, room)
    taken = run(whole, stream)
    written: list[Token] = []
    part = begun(params, room)
    for cut in cuts:
        written += run(part, stream[len(written) : len(written) + cut])
        if part.end is None:
            part = begun(part.rest(), room - len(written))
    if part.end is None:
        written += run(part, stream[len(written) :])
    assert (written, part.end) == (taken, whole.end)


@given(params_, st.integers(0, 12), st.integers(0, 12))
def test_what_is_left_of_it_waits_for_as_many_tokens_less(params, one, other):
    """`rest` of a rest is the rest."""
    params = replace(params, max_tokens=100, word=None)
    plain = Token(310, 0.0, ((310, 0.0),))
    params = replace(params, stop_token_ids=())
    whole, first = begun(params), begun(params)
    run(whole, [plain] * (one + other))
    run(first, [plain] * one)
    second = begun(first.rest())
    run(second, [plain] * other)
    assert second.rest() == whole.rest()
    assert all(count > 0 for _, count in second.rest().not_before)


@given(streams, st.deferred(lambda: st.sampled_from(words())))
def test_a_word_is_what_word_says(stream: list[Token], start: tuple[int, ...]):
    stream = [token for token in stream if token.id not in ENDS]
    turn = begun(TurnParams(GREEDY, max_tokens=1000, word=start))
    taken = run(turn, stream)
    word = Word(tokenizer(), start)
    parts = [word.push(token.id) for token in taken]
    assert Part.BEYOND not in parts
    assert Part.LAST not in parts[:-1]
    if turn.end is None:
        assert Part.LAST not in parts
    elif turn.end.rejected is None:
        assert parts[-1] is Part.LAST
    else:
        assert word.push(turn.end.rejected.id) is Part.BEYOND


def test_a_token_to_which_every_rule_applies_ends_a_turn_by_the_first_of_them():
    """And so on, as the rules before are taken away."""
    (space,) = tokenizer().encode_text(" a")
    token = Token(space, -1.0, ((space, -1.0),))
    everything = TurnParams(
        GREEDY, max_tokens=1, stop_below=0.9, word=(300,), stop_token_ids=(space,)
    )

    def end(params: TurnParams, stop_ids: tuple[int, ...]) -> str:
        turn = Turn(params, tokenizer(), stop_ids, 1)
        turn.offer(token)
        assert turn.end is not None
        return turn.end.reason

    assert end(everything, (space,)) == "uncertain"
    sure = replace(everything, stop_below=None)
    assert end(sure, (space,)) == "stop"
    assert end(sure, ()) == "word"
    assert end(replace(sure, word=None), ()) == "stop"
    assert end(replace(sure, word=None, stop_token_ids=()), ()) == "length"


def test_a_words_last_token_ends_it_with_word_also_where_the_length_is_reached():
    *parts, last = tokenizer().encode_text("漢")
    token = Token(last, -1.0, ((last, -1.0),))
    turn = begun(TurnParams(GREEDY, max_tokens=1, word=tuple(parts)))
    assert turn.offer(token)
    assert turn.end == TurnEnd("word")


def test_an_uncertain_position_is_told_by_what_is_likeliest_there():
    drawn = Token(305, -3.0, ((301, -1.0), (305, -3.0)))
    turn = begun(TurnParams(GREEDY, max_tokens=5, stop_below=0.5))
    assert not turn.offer(drawn)
    assert turn.end == TurnEnd("uncertain", Token(301, -1.0, drawn.top))


def test_p1_can_be_another_than_the_raw_one():
    sure = Token(301, -0.01, ((301, -0.01),))
    turn = begun(TurnParams(GREEDY, max_tokens=5, stop_below=0.5))
    assert turn.offer(sure)
    assert not turn.offer(sure, p1=0.4)
    assert turn.end == TurnEnd("uncertain", sure)


def test_p1_of_gamma_itself_is_taken():
    token = Token(301, math.log(0.25), ((301, math.log(0.25)),))
    assert begun(TurnParams(GREEDY, max_tokens=5, stop_below=token.top_prob)).offer(token)


@given(tokens_, params_)
def test_where_the_engine_ended_it_nothing_is_taken(token: Token, params: TurnParams):
    turn = begun(params)
    as_usual = begun(params)
    as_usual.offer(token)
    assert not turn.offer(token, ended=True)
    assert turn.taken == []
    assert turn.end is not None
    if as_usual.end is not None and as_usual.end.rejected is not None:
        assert turn.end == as_usual.end
    else:
        assert turn.end == TurnEnd("word")


@given(st.integers(0, 10**6), params_, st.integers(1, 40))
async def test_an_engine_ends_its_turns_by_these_rules(seed: int, params, room):
    """Whatever it is that it writes."""
    from tests.unit.engines.test_token_scores import of_noise

    engine: ScriptedEngine = of_noise(seed, texts())
    prompt = [300] * (engine.info.context_length - room)
    tokens, end = await collect(engine.open(prompt), params)
    assert end.rejected is not None or tokens or room < 1 or end.reason == "length"
    turn = Turn(params, engine.info.tokenizer, engine.info.stop_ids, room)
    stream = tokens if end.rejected is None else [*tokens, end.rejected]
    assert run(turn, stream) == tokens
    assert turn.end == end

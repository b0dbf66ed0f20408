"""What stands of a draft, as tensors: the same as in words (`scripts.benchmark.acceptance`)."""

from __future__ import annotations

import functools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts.benchmark.acceptance import Answer
from server.engines.vllm.fused.rule import ALIGNED, BASE, KEPT, Begin, Rows, Rule, told
from server.engines.vllm.words import Words
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word
from tests.conftest import DEMO

CPU = torch.device("cpu")
SLOTS = 8


@functools.cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(str(DEMO / "aligned"))


@functools.cache
def tables() -> tuple[Words, list[int]]:
    own = tokenizer()
    whole = [i for i in range(own.size) if own.decode([i]).isprintable() and own.token_bytes(i)]
    some = [*whole[::60], *own.encode_text(" \n\n 語。")]
    return Words(own.table, own.size, CPU), some


@functools.cache
def open_words() -> list[int]:
    """Tokens that begin a word, and may not be all of it."""
    return [i for i in tables()[1] if Word(tokenizer()).push(i) is Part.INSIDE]


def rule(drafts: int, base_ends: list[int], aligned_ends: list[int]) -> Rule:
    ends = [torch.zeros(tokenizer().size, dtype=torch.bool) for _ in range(2)]
    for table, ids in zip(ends, (base_ends, aligned_ends), strict=True):
        table[ids] = True
    return Rule(SLOTS, drafts, tables()[0], *ends, (aligned_ends[0], 0), CPU)


def row(token: int, probability: float) -> torch.Tensor:
    """Logits of a position whose likeliest token has this probability."""
    size = tokenizer().size
    logits = torch.full((size,), math.log((1 - probability) / (size - 1)))
    logits[token] = math.log(probability)
    return logits


def draft(fused: Rule, drafts: dict[int, list[int]]) -> None:
    """Have the aligned model draft tokens, by slot."""
    slots = torch.tensor(list(drafts))
    for step, tokens in enumerate(zip(*drafts.values(), strict=True)):
        logits = torch.stack([row(token, 0.9) for token in tokens])
        assert fused.drafted(logits, slots, torch.tensor(step)).tolist() == list(tokens)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    drafts=st.integers(1, 6),
    gamma=st.sampled_from([0.0, 0.3, 0.6, 1.5]),
    agree=st.sampled_from([0.2, 0.7, 1.0]),
)
def test_a_step_adds_what_the_rule_says_in_words(seed, drafts, gamma, agree):
    draws, some = random.Random(seed), tables()[1]
    base_end, aligned_end = draws.sample(range(20, 60), 2)
    fused = rule(drafts, [base_end], [aligned_end])
    slots = draws.sample(range(SLOTS), 3)
    answers = {}
    for slot in slots:
        begun = draws.choice([None, (), (draws.choice(open_words()),)])
        word = None if begun is None else Word(tokenizer(), begun)
        answers[slot] = Answer(tokenizer(), gamma, word, (base_end,), (aligned_end,))
        state = None if begun is None else tables()[0].begun(begun)
        log_gamma = math.log(gamma) if gamma else -math.inf
        fused.begin([(slot, Begin(log_gamma, state, 5, 1))])
    prefill = torch.zeros(SLOTS, dtype=torch.int64)
    for _ in range(3):
        drafted = {slot: draws.choices([*some, aligned_end], k=drafts) for slot in slots}
        draft(fused, drafted)
        read = {slot: draws.randint(1, drafts + 1) for slot in slots}
        said = {}
        for slot in slots:
            same = [*drafted[slot], draws.choice(some)]
            said[slot] = [
                (token if draws.random() < agree else draws.choice([*some, base_end]), p)
                for token, p in zip(same, [draws.uniform(0.05, 0.95) for _ in same], strict=True)
            ]
        rows = [row(*each) for slot in slots for each in said[slot][: read[slot]]]
        cu = torch.tensor([0, *[read[slot] for slot in slots]]).cumsum(0)
        given_rows = Rows(torch.stack(rows), torch.tensor(slots), cu, torch.full((len(rows),), 9))
        before = torch.full((3, drafts + 1), -7), torch.ones(3, dtype=torch.int64)
        added, counts = fused.decide(given_rows, prefill, *before)
        for number, slot in enumerate(slots):
            base = [(token, math.log(p)) for token, p in said[slot]]
            expected = answers[slot].step(base, drafted[slot], read[slot])
            assert added[number, : int(counts[number])].tolist() == expected
            assert expected


def test_the_first_row_of_a_request_is_its_prompts_last_token_or_hands_it_back():
    fused = rule(2, [11], [12])
    fused.begin([(1, Begin(0.0, None, 77, 1)), (2, Begin(0.0, None, None, 1)), (3, None)])
    draft(fused, {slot: [20, 21] for slot in (1, 2, 3)})
    prefill = torch.full((SLOTS,), 5)
    for likeliest, stray in ((30, 12), (12, 0)):
        rows = Rows(
            torch.stack([row(likeliest, 0.9)] * 3),
            torch.tensor([1, 2, 3]),
            torch.arange(4),
            torch.full((3,), 4),
        )
        added, counts = fused.decide(
            rows, prefill, torch.full((3, 3), 40), torch.ones(3, dtype=torch.int64)
        )
        assert added[:, 0].tolist() == [77, stray, 40]
        assert counts.tolist() == [1, 1, 1]


def test_requests_of_others_stay_as_they_are():
    fused = rule(2, [11], [12])
    fused.begin([(0, Begin(math.inf, None, 77, 1)), (1, None)])
    draft(fused, {0: [20, 21], 1: [20, 21]})
    rows = Rows(
        torch.stack([row(30, 0.9)] * 6),
        torch.tensor([0, 1]),
        torch.tensor([0, 3, 6]),
        torch.full((6,), 9),
    )
    sampled = torch.tensor([[40, 0, 0], [41, 42, 0]])
    added, counts = fused.decide(
        rows, torch.zeros(SLOTS, dtype=torch.int64), sampled, torch.tensor([1, 2])
    )
    assert counts.tolist() == [2, 2]
    assert added.tolist() == [[20, 21, 0], [41, 42, 0]]


@pytest.mark.parametrize("top", [1, 3])
def test_both_models_alternatives_are_told(top: int):
    fused = rule(2, [11], [12])
    fused.begin([(1, Begin(0.0, None, 77, top)), (2, None)])
    draft(fused, {1: [20, 21], 2: [22, 23]})
    columns = 1 + 2 * top
    ids = torch.arange(columns).repeat(4, 1) + 100
    logprobs = -torch.arange(columns).float().repeat(4, 1)
    fused.tell(
        ids,
        logprobs,
        slots=torch.tensor([1, 1, 1, 2]),
        places=torch.tensor([0, 1, 2, 0]),
        reading=torch.tensor([False] * 4),
    )
    positions = [
        dict(zip(row_ids, row_logprobs, strict=True))
        for row_ids, row_logprobs in zip(ids.tolist(), logprobs.tolist(), strict=True)
    ]
    assert all(len(position) == columns for position in positions)  # none hides another
    for number, position in enumerate(positions[:3]):
        base, aligned = told(position)
        assert base == tuple((100 + place, -place) for place in range(1, 1 + top))
        assert [token for token, _ in aligned[:1]] == ([20 + number] if number < 2 else [])
        assert len(aligned) == (top if number < 2 else 0)
        if aligned:
            assert aligned[0][1] == pytest.approx(math.log(0.9), abs=1e-5)
            assert [p for _, p in aligned] == sorted((p for _, p in aligned), reverse=True)
    assert positions[3] == dict(zip(range(100, 100 + columns), logprobs[3].tolist(), strict=True))


def test_ids_of_either_model_are_told_apart():
    assert KEPT + 1 < BASE < ALIGNED
    assert told({7: -0.1, BASE + 7: -0.1, ALIGNED + 7: -0.2, -4: 0.0}) == (
        ((7, -0.1),),
        ((7, -0.2),),
    )

"""Both logits processors, a batch at a time and without a model: where they force the stop, and
that a step without news neither makes a tensor of host data nor waits for one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

pytest.importorskip("vllm")
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate

from server.engines.vllm import processor, slots, wishes
from server.engines.vllm.told import PROCESSOR
from server.engines.vllm.wishes import FORCED
from tests.unit.engines.test_words_on_device import TABLE

SIZE = len(TABLE)
STOP = SIZE - 1
A, SPACE_A, DOT = TABLE.index(b"a"), TABLE.index(b" a"), TABLE.index(b".")


class Tokenizer:
    """As far as processors ask for one."""

    table = TABLE

    def starts_with_space(self) -> list[bool]:
        return [data[:1].isspace() for data in TABLE]

    def token_bytes(self, token: int) -> bytes:
        return TABLE[token]

    def decoder(self) -> Any:
        from tests.unit.engines.test_words_on_device import Decoder

        return Decoder()


@pytest.fixture(autouse=True)
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wishes, "tokenizer_of", lambda _: Tokenizer())


def config(drafted: int = 0) -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(get_vocab_size=lambda: SIZE),
        scheduler_config=SimpleNamespace(max_num_seqs=8),
        speculative_config=SimpleNamespace(num_speculative_tokens=drafted) if drafted else None,
    )


def asks(**args: Any) -> SamplingParams:
    return SamplingParams(extra_args={f"nudge_{name}": each for name, each in args.items()} or None)


BELOW = asks(below=0.5, stop=STOP)
WORD = asks(word=[], greedy=True, stop=STOP)
SAMPLED = asks(word=[], greedy=False, stop=STOP)
PLAIN = asks()


class V1:
    """A batch of requests; each step gives every row its last token, and logits for the next."""

    def __init__(self, *params: SamplingParams) -> None:
        self.outputs: list[list[int]] = [[] for _ in params]
        self.made = processor.NudgeStop(config(), torch.device("cpu"), False)
        added = [(row, each, [A], self.outputs[row]) for row, each in enumerate(params)]
        self.made.update_state(BatchUpdate(len(params), (), added, ()))

    def step(self, tokens: list[int] | None, logits: torch.Tensor) -> list[bool]:
        for output, token in zip(self.outputs, tokens or (), strict=bool(tokens)):
            output.append(token)
        self.made.update_state(None)
        return forced(self.apply(logits))

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        with counted() as self.counts:
            return self.made.apply(logits)


class V2:
    """The same; prompts are of one token, and slots are in the opposite order of the rows."""

    def __init__(self, *params: SamplingParams, drafted: int = 0, resumed: int = 0) -> None:
        ones = np.full(8, 1, dtype=np.int32)
        read = ones + resumed
        ids = torch.full((8, 16), A, dtype=torch.int32)
        self.states = SimpleNamespace(
            device=torch.device("cpu"),
            max_num_reqs=8,
            vocab_size=SIZE,
            all_token_ids=SimpleNamespace(gpu=ids),
            prompt_len=SimpleNamespace(np=ones, gpu=torch.from_numpy(ones)),
            prefill_len=SimpleNamespace(np=read, gpu=torch.from_numpy(read)),
        )
        self.made = slots.NudgeStop(config(drafted), self.states)
        self.slots = list(range(len(params)))[::-1]
        self.at = [int(read[0]) - 1] * len(params)
        for slot, each in zip(self.slots, params, strict=True):
            self.made.add_request(slot, each)
        self.made.apply_staged_writes()

    def step(self, tokens: list[int] | None, logits: torch.Tensor) -> list[bool]:
        if tokens:
            self.at = [each + 1 for each in self.at]
        self.made.apply_staged_writes()
        return forced(self.apply(logits, tokens or [A] * len(self.slots), [1] * len(self.slots)))

    def apply(self, logits: torch.Tensor, fed: list[int], rows: list[int]) -> torch.Tensor:
        """``rows``: of each request."""
        local = [number for count in rows for number in range(count)]
        starts = [at for at, count in zip(self.at, rows, strict=True) for _ in range(count)]
        mapping = [slot for slot, count in zip(self.slots, rows, strict=True) for _ in range(count)]
        context = SimpleNamespace(
            expanded_idx_mapping=torch.tensor(mapping, dtype=torch.int32),
            idx_mapping=torch.tensor(self.slots, dtype=torch.int32),
            idx_mapping_np=np.array(self.slots, dtype=np.int32),
            expanded_local_pos=torch.tensor(local, dtype=torch.int32),
            input_ids=torch.tensor(fed, dtype=torch.int32),
            pos=torch.tensor([at + each for at, each in zip(starts, local, strict=True)]),
        )
        with counted() as self.counts:
            return self.made.apply(logits, context)


class counted(TorchDispatchMode):
    """What makes a tensor of host data, or waits for one: on a GPU each is a wait for the step."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __enter__(self) -> counted:
        self._tensor = torch.tensor
        torch.tensor = self._noted  # type: ignore[assignment]
        self._tolist = torch.Tensor.tolist
        torch.Tensor.tolist = self._listed  # type: ignore[method-assign, assignment]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *told: Any) -> None:
        torch.tensor = self._tensor
        torch.Tensor.tolist = self._tolist  # type: ignore[method-assign]
        super().__exit__(*told)

    def _noted(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self.waits.append("tensor")
        return self._tensor(*args, **kwargs)

    @property
    def _listed(self) -> Any:
        def tolist(tensor: torch.Tensor) -> Any:
            self.waits.append("tolist")
            return self._tolist(tensor)

        return tolist

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select"):
            self.waits.append(name)
        return func(*args, **(kwargs or {}))


def logits(*rows: tuple[int, float]) -> torch.Tensor:
    """Each row: its likeliest token, and p1; what is left is the others', equally."""
    made = torch.empty(len(rows), SIZE)
    for row, (token, p1) in enumerate(rows):
        made[row] = np.log((1 - p1) / (SIZE - 1))
        made[row, token] = np.log(p1)
    return made


def forced(given: torch.Tensor) -> list[bool]:
    return (given[:, STOP] == FORCED).tolist()


@pytest.fixture(params=[V1, V2])
def batch(request: pytest.FixtureRequest) -> Iterator[Any]:
    return request.param


def test_the_stop_is_forced_where_p1_is_under_gamma(batch: Any):
    made = batch(BELOW, PLAIN, BELOW)
    given = logits((A, 0.4), (A, 0.1), (A, 0.6))
    before = given.clone()
    assert made.step(None, given) == [True, False, False]
    given[0, STOP] = before[0, STOP]
    assert torch.equal(given, before), "and nothing else changes"
    assert made.step([A, A, A], logits((A, 0.6), (A, 0.1), (A, 0.4))) == [False, False, True]


def test_a_word_ends_before_a_space_where_the_likeliest_token_is_drawn(batch: Any):
    made = batch(WORD, SAMPLED, BELOW)
    space, rest = (SPACE_A, 0.9), (A, 0.9)
    assert made.step(None, logits(space, space, rest)) == [False, False, False]
    assert made.step([SPACE_A, SPACE_A, A], logits(rest, rest, rest)) == [False, False, False]
    assert made.step([DOT, DOT, A], logits(space, space, rest)) == [True, False, False]
    assert made.step([SPACE_A, SPACE_A, A], logits(rest, rest, rest)) == [True, True, False]


def test_nothing_is_waited_for_or_made_in_a_step_without_news(batch: Any):
    made = batch(BELOW, WORD)
    rows = (A, 0.9), (A, 0.9)
    made.step(None, logits(*rows))
    made.step([A, A], logits(*rows))
    for _ in range(3):
        made.step([A, A], logits(*rows))
        assert made.counts.waits == []


def test_a_wait_would_be_seen():
    with counted() as counts:
        torch.tensor([1]).item()
        torch.zeros(2).tolist()
    assert counts.waits == ["tensor", "aten::_local_scalar_dense", "tolist"]


def test_a_request_that_was_taken_out_goes_on_in_its_word():
    """Two tokens had been written when it was preempted: they are read again with its prompt."""
    made = V2(WORD, resumed=2)
    assert made.step(None, logits((SPACE_A, 0.9))) == [True]
    fresh = V2(WORD)
    assert fresh.step(None, logits((SPACE_A, 0.9))) == [False]


def test_drafts_are_rows_each_with_what_comes_before_it():
    """The base model's rows by their own p1; a word's by the drafted tokens before each."""
    made = V2(BELOW, WORD, drafted=2)
    given = logits((A, 0.9), (A, 0.4), (A, 0.9), (SPACE_A, 0.9), (A, 0.9), (SPACE_A, 0.9))
    fed = [A, A, A, A, A, DOT]
    assert forced(made.apply(given, fed, [3, 3])) == [False, True, False, False, False, True]
    # One of the drafts was taken, the other not: the word goes on from there.
    made.at = [2, 2]
    given = logits((A, 0.9), (A, 0.9), (A, 0.9), (SPACE_A, 0.9), (A, 0.9), (A, 0.9))
    fed = [A, A, A, A, SPACE_A, A]
    assert forced(made.apply(given, fed, [3, 3])) == [False, False, False, True, True, True]


def test_a_slot_forgets_who_had_it():
    made = V2(BELOW, WORD)
    for slot in made.slots:
        made.made.add_request(slot, PLAIN)
    assert made.step(None, logits((A, 0.1), (A, 0.1))) == [False, False]


def test_either_model_runner_takes_the_same_class_and_gets_its_own():
    """As ``vllm serve --logits-processors`` loads it, which knows its runner, and not we."""
    from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
    from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

    (of_v1,) = _load_logitsprocs_by_fqcns([PROCESSOR])
    (of_v2,) = _load_v2_logitsprocs_by_fqcns([PROCESSOR])
    made = of_v1(config(), torch.device("cpu"), False)
    assert type(made) is processor.NudgeStop
    assert type(of_v2(config(), V2(PLAIN).states)) is slots.NudgeStop
    for each in (of_v1, of_v2):
        each.validate_params(BELOW)
        with pytest.raises(ValueError, match="nudge_below"):
            each.validate_params(asks(below="a lot", stop=STOP))

"""What runs inside vLLM's engine process: the stop at an uncertain position, or after a word.

Knows: vLLM's V1 logits-processor interface (the V2 runner has another one, so the V1 runner is
pinned: docs/adr/0002) and where in a batch each request sits. Does not know: sessions, the
policy's other rules, HTTP.

A request opts in through ``SamplingParams.extra_args``:

    nudge_below   γ: force the stop token at the first position with p1 < γ
    nudge_word    ids of the word so far: force the stop token once the word is complete
    nudge_greedy  with nudge_word: whether the arg max is what will be sampled
    nudge_stop    the id of the stop token to force
    nudge_adjust  what else the request wants (`server.engines.vllm.logits.Adjustment`), or that
                  as JSON

The raw log probabilities that vLLM returns are taken before any processor, so the position's
true distribution, and with it the token that was not taken, stays visible.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from server.engines.vllm.lifeline import die_with_server
from server.engines.vllm.logits import Adjustment, Followers
from server.text.grammar.follow import Vocabulary
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word

_FORCED = 1e9  # a logit that wins at any temperature and under any penalty


class _Below:
    """A request that stops at its first position with p1 < γ."""

    def __init__(self, stop: int, gamma: float) -> None:
        self.stop = stop
        self.log_gamma = math.log(gamma) if gamma > 0 else -math.inf


class _Doubt(NamedTuple):
    """p1 of the requests that stop under γ: one entry each.

    best: the largest logit. total: the logarithm of the sum of all exponentials.
    """

    rows: torch.Tensor
    stops: torch.Tensor
    log_gamma: torch.Tensor
    best: torch.Tensor
    total: torch.Tensor

    @property
    def uncertain(self) -> torch.Tensor:
        return self.best - self.total < self.log_gamma

    def of_what_is_allowed(self, masked: torch.Tensor) -> _Doubt:
        """With a grammar p1 is that of the likeliest token that it allows."""
        return self._replace(best=masked[self.rows].amax(-1))


class _OneWord:
    """A request that stops after one word."""

    def __init__(self, args: dict[str, Any], output: list[int], tokenizer: Tokenizer) -> None:
        self.stop: int = args["nudge_stop"]
        # Only a greedy choice is known here (the arg max); a sampled token that begins the
        # next word is seen one step later, in the output.
        self.greedy: bool = args["nudge_greedy"]
        self._output = output  # the request's own list, which grows
        self._seen = 0
        self._word = Word(tokenizer, args["nudge_word"])
        self.complete = False

    def catch_up(self) -> None:
        while not self.complete and self._seen < len(self._output):
            token = self._output[self._seen]
            if token < 0:  # a step still in flight
                return
            self._seen += 1
            self.complete = self._word.push(token) is not Part.INSIDE

    @property
    def ends_at_space(self) -> bool:
        return self.greedy and self._word.open and not self._word.inside_character


class NudgeStop(LogitsProcessor):  # type: ignore[misc]  # mypy doesn't read vLLM
    """Ends a turn exactly where the policy would, without leaving the engine."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        args = sampling_params.extra_args or {}
        if isinstance(args.get("nudge_adjust"), str):  # by HTTP, where values are flat
            args["nudge_adjust"] = json.loads(args["nudge_adjust"])
        if not isinstance(args.get("nudge_adjust", {}), dict):
            raise ValueError("nudge_adjust must be a mapping")
        if not {"nudge_below", "nudge_word"} & args.keys():
            return
        if not isinstance(args.get("nudge_stop"), int):
            raise ValueError("nudge_stop must be the id of a stop token")
        if not isinstance(args.get("nudge_below", 0.0), int | float):
            raise ValueError("nudge_below must be a probability")
        if not isinstance(args.get("nudge_word", []), list):
            raise ValueError("nudge_word must be a list of token ids")

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        die_with_server()
        self._model = vllm_config.model_config
        self._device = device
        self._below: dict[int, _Below] = {}
        self._words: dict[int, _OneWord] = {}
        self._adjusted: dict[int, Adjustment] = {}
        self._followers = Followers(self._vocabulary)
        self._below_tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
        self._tokenizer: Tokenizer | None = None
        self._starts_with_space: torch.Tensor | None = None

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if batch_update is None:
            return
        process_dict_updates(self._below, batch_update, self._new_below)
        process_dict_updates(self._words, batch_update, self._new_word)
        process_dict_updates(self._adjusted, batch_update, self._new_adjustment)
        self._below_tensors = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        # p1 is the model's own: of the logits before anything else touches them.
        doubt = self._doubt(logits) if self._below else None
        masked = [row for row, each in self._adjusted.items() if each.mask(logits[row])]
        if doubt is not None and masked:
            doubt = doubt.of_what_is_allowed(logits)
        for row, adjustment in self._adjusted.items():
            adjustment.bend(logits[row])
        if doubt is not None:
            column = logits[doubt.rows, doubt.stops]
            logits[doubt.rows, doubt.stops] = torch.where(doubt.uncertain, _FORCED, column)
        if self._words:
            self._stop_after_word(logits)
        return logits

    def _doubt(self, logits: torch.Tensor) -> _Doubt:
        if self._below_tensors is None:
            rows = list(self._below)
            self._below_tensors = (
                torch.tensor(rows, device=self._device),
                torch.tensor([self._below[r].stop for r in rows], device=self._device),
                torch.tensor([self._below[r].log_gamma for r in rows], device=self._device),
            )
        rows_, stops, log_gamma = self._below_tensors
        # Copying rows costs as much as reducing them: only when others are in the batch.
        if len(self._below) == logits.shape[0]:
            best, total = logits.amax(-1)[rows_], logits.logsumexp(-1)[rows_]
        else:
            ours = logits[rows_]
            best, total = ours.amax(-1), ours.logsumexp(-1)
        return _Doubt(rows_, stops, log_gamma, best, total)

    def _stop_after_word(self, logits: torch.Tensor) -> None:
        forced: list[int] = []
        at_space: list[int] = []
        for row, request in self._words.items():
            request.catch_up()
            if request.complete:
                forced.append(row)
            elif request.ends_at_space:
                at_space.append(row)
        if forced:
            stops = [self._words[row].stop for row in forced]
            logits[forced, stops] = _FORCED
        if at_space:
            assert self._starts_with_space is not None
            rows = torch.tensor(at_space, device=self._device)
            stops_ = torch.tensor([self._words[r].stop for r in at_space], device=self._device)
            ends = self._starts_with_space[logits[rows].argmax(-1)]
            column = logits[rows, stops_]
            logits[rows, stops_] = torch.where(ends, _FORCED, column)

    def _new_below(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _Below | None:
        args = params.extra_args or {}
        if "nudge_below" not in args:
            return None
        return _Below(args["nudge_stop"], args["nudge_below"])

    def _new_word(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _OneWord | None:
        args = params.extra_args or {}
        if "nudge_word" not in args:
            return None
        return _OneWord(args, output, self._load_tokenizer())

    def _new_adjustment(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> Adjustment | None:
        args = (params.extra_args or {}).get("nudge_adjust")
        if args is None:
            return None
        size = self._model.get_vocab_size()
        return Adjustment(args, prompt or [], output, self._followers, size, self._device)

    def _vocabulary(self, stop_ids: Sequence[int]) -> Vocabulary:
        tokenizer = self._load_tokenizer()
        size = self._model.get_vocab_size()
        return Vocabulary(tokenizer.table, tokenizer.encode_text, size, stop_ids)

    def _load_tokenizer(self) -> Tokenizer:
        """The model's tokenizer, on the first request that needs words (warm-up makes one)."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(
                str(self._model.tokenizer),
                revision=self._model.tokenizer_revision,
                trust_remote_code=self._model.trust_remote_code,
            )
            table = self._tokenizer.starts_with_space()
            table += [False] * (self._model.get_vocab_size() - len(table))
            self._starts_with_space = torch.tensor(table, device=self._device)
        return self._tokenizer

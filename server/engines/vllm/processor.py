"""What runs inside vLLM's engine process: the stop at an uncertain position, or after a word.

Knows: vLLM's V1 logits-processor interface (`slots` is for the V2 runner's), and where in a batch
each request sits. Does not know: sessions, the policy's other rules, HTTP; what a request asks for
is `wishes`'.

The raw log probabilities that vLLM returns are taken before any processor, so the position's
true distribution, and with it the token that was not taken, stays visible.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from server.engines.vllm import wishes
from server.engines.vllm.device import staged
from server.engines.vllm.lifeline import die_with_server
from server.engines.vllm.logits import Adjustment, Followers
from server.engines.vllm.wishes import Wish, force
from server.text.grammar.follow import Vocabulary
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word


class _OneWord:
    """A request that stops after one word."""

    def __init__(self, wish: Wish, output: list[int], tokenizer: Tokenizer) -> None:
        self.stop = wish.stop
        # Only a greedy choice is known here (the arg max); a sampled token that begins the
        # next word is seen one step later, in the output.
        self.greedy = wish.greedy
        self._output = output  # the request's own list, which grows
        self._seen = 0
        self._word = Word(tokenizer, wish.word or ())
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
        wishes.validate(sampling_params)

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        die_with_server()
        self._model = vllm_config.model_config
        self._device = device
        self._pinned = is_pin_memory
        rows = vllm_config.scheduler_config.max_num_seqs
        # By row, on the device: changed where the batch is, or a word's state.
        self._stop = torch.zeros(rows, dtype=torch.int64, device=device)
        self._log_gamma = torch.full((rows,), -torch.inf, device=device)
        self._complete = torch.zeros(rows, dtype=torch.bool, device=device)
        self._open = torch.zeros(rows, dtype=torch.bool, device=device)
        # By row, on the host.
        self._below: dict[int, Wish] = {}
        self._words: dict[int, _OneWord] = {}
        self._adjusted: dict[int, Adjustment] = {}
        self._told: tuple[list[bool], list[bool]] = ([], [])
        self._followers = Followers(self._vocabulary)
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
        stops = {row: each.stop for row, each in (self._below | self._words).items()}
        gammas = {row: each.log_gamma for row, each in self._below.items()}
        rows = range(max(stops, default=-1) + 1)
        self._log_gamma.fill_(-torch.inf)
        self._send(self._stop, [stops.get(row, 0) for row in rows])
        self._send(self._log_gamma, [gammas.get(row, -math.inf) for row in rows])
        self._told = ([], [])

    def _send(self, to: torch.Tensor, values: list[Any]) -> None:
        """To the device's first rows, without waiting until they have arrived."""
        to[: len(values)].copy_(staged(values, to.dtype, self._pinned), non_blocking=True)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        # p1 is the model's own: of the logits before anything else touches them.
        best, total = (logits.amax(-1), logits.logsumexp(-1)) if self._below else (None, None)
        masked = [row for row, each in self._adjusted.items() if each.mask(logits[row])]
        if best is not None:
            for row in masked:  # with a grammar p1 is that of the likeliest token that it allows
                best[row] = logits[row].amax()
        for row, adjustment in self._adjusted.items():
            adjustment.bend(logits[row])
        stops: torch.Tensor | None = None
        if best is not None and total is not None:
            stops = best - total < self._log_gamma[: len(logits)]
        if self._words:
            words = self._ended_words(logits)
            stops = words if stops is None else stops | words
        if stops is not None:
            force(logits, stops, self._stop[: len(logits)])
        return logits

    def _ended_words(self, logits: torch.Tensor) -> torch.Tensor:
        """Rows whose word is complete, or would be: the likeliest token begins the next one."""
        rows = len(logits)
        complete, between = [False] * rows, [False] * rows
        for row, request in self._words.items():
            request.catch_up()
            complete[row] = request.complete
            between[row] = request.ends_at_space
        if self._told != (complete, between):
            self._send(self._complete, complete)
            self._send(self._open, between)
            self._told = (complete, between)
        if not any(between):
            return self._complete[:rows]
        assert self._starts_with_space is not None
        ends = self._starts_with_space[logits.argmax(-1)]
        return self._complete[:rows] | self._open[:rows] & ends

    def _new_below(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> Wish | None:
        wish = Wish.of(params)
        return None if wish.log_gamma is None else wish

    def _new_word(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> _OneWord | None:
        wish = Wish.of(params)
        return None if wish.word is None else _OneWord(wish, output, self._load_tokenizer())

    def _new_adjustment(
        self, params: SamplingParams, prompt: list[int] | None, output: list[int]
    ) -> Adjustment | None:
        args = Wish.of(params).adjust
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
            self._tokenizer = wishes.tokenizer_of(self._model)
            table = self._tokenizer.starts_with_space()
            table += [False] * (self._model.get_vocab_size() - len(table))
            self._starts_with_space = torch.tensor(table, device=self._device)
        return self._tokenizer

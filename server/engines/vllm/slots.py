"""What runs inside vLLM's engine process on its V2 model runner: the stop at an uncertain position,
or after a word.

Knows: vLLM's V2 logits-processor interface, in which a request has a slot for as long as it is in
the batch, and a row of logits for each position that is computed: with speculation several. Does
not know: sessions, the policy's other rules, HTTP; what a request asks for is `wishes`'.

The host doesn't have the tokens when a step begins, so all that a row needs is on the device: γ and
the stop token by slot, written when a request comes, and words as `words` follows them. Nothing
here waits for the device, but for requests with a grammar, a bias or penalties, which are bent on
the host's side, and wait for each step.

The raw log probabilities that vLLM returns are taken from logits that no processor has touched, so
the position's true distribution, and with it the token that was not taken, stays visible.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import (
    LogitsContext,
    LogitsProcessor,
    LogitsProcRequestState,
)

from server.engines.vllm import wishes
from server.engines.vllm.device import sent
from server.engines.vllm.lifeline import die_with_server
from server.engines.vllm.logits import Adjustment, Followers
from server.engines.vllm.wishes import Wish, force
from server.engines.vllm.words import CLOSED, Words
from server.text.grammar.follow import Vocabulary
from server.text.tokenizer import Tokenizer


class NudgeStop(LogitsProcessor):  # type: ignore[misc]  # mypy doesn't read vLLM
    """Ends a turn exactly where the policy would, without leaving the engine."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        wishes.validate(sampling_params)

    def __init__(self, vllm_config: VllmConfig, req_states: LogitsProcRequestState) -> None:
        die_with_server()
        self._model = vllm_config.model_config
        self._size: int = self._model.get_vocab_size()
        self._requests = req_states
        self._device, slots = req_states.device, req_states.max_num_reqs
        speculative = vllm_config.speculative_config
        self._drafted = 0 if speculative is None else speculative.num_speculative_tokens
        # By slot, on the device.
        self._stop = torch.zeros(slots, dtype=torch.int64, device=self._device)
        self._log_gamma = torch.full((slots,), -torch.inf, device=self._device)
        self._word = torch.zeros(slots, dtype=torch.bool, device=self._device)
        self._greedy = torch.zeros(slots, dtype=torch.bool, device=self._device)
        # The word after each of a slot's last positions: as many as can be taken back, and one.
        self._states = torch.zeros(
            (slots, self._drafted + 2, len(CLOSED)), dtype=torch.int32, device=self._device
        )
        # By slot, on the host.
        self._has_doubt = np.zeros(slots, dtype=bool)
        self._has_word = np.zeros(slots, dtype=bool)
        self._staged: dict[int, Wish] = {}
        self._adjusted: dict[int, tuple[Adjustment, list[int]]] = {}  # with what it has written
        self._followers = Followers(self._vocabulary)
        self._tokenizer: Tokenizer | None = None
        self._words: Words | None = None

    # -- when a request comes --------------------------------------------------------------------

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        wish = Wish.of(sampling_params)
        self._staged[req_idx] = wish
        self._has_doubt[req_idx] = wish.log_gamma is not None
        self._has_word[req_idx] = wish.word is not None
        self._adjusted.pop(req_idx, None)
        return wish.log_gamma is not None or wish.word is not None or wish.adjust is not None

    def apply_staged_writes(self) -> None:
        """Before the step, once the runner has its tokens on the device."""
        if not self._staged:
            return
        slots, found = list(self._staged), list(self._staged.values())
        self._staged.clear()
        for slot, wish in zip(slots, found, strict=True):
            if wish.adjust is not None:
                prompt = self._read(slot, 0, int(self._requests.prompt_len.np[slot]))
                output = self._written(slot)
                adjustment = Adjustment(
                    wish.adjust, prompt, output, self._followers, self._size, self._device
                )
                self._adjusted[slot] = adjustment, output
        at = sent(slots, torch.int64, self._device)
        self._stop[at] = sent([wish.stop for wish in found], torch.int64, self._device)
        none = -np.inf
        self._log_gamma[at] = sent(
            [none if wish.log_gamma is None else wish.log_gamma for wish in found],
            torch.float32,
            self._device,
        )
        self._word[at] = sent([wish.word is not None for wish in found], torch.bool, self._device)
        self._greedy[at] = sent([wish.greedy for wish in found], torch.bool, self._device)
        if any(wish.word is not None for wish in found):
            read = self._requests.prefill_len.np[slots]
            places = sent((read - 1) % (self._drafted + 2), torch.int64, self._device)
            states = [self._begun(slot, wish) for slot, wish in zip(slots, found, strict=True)]
            self._states[at, places] = sent(states, torch.int32, self._device)

    def _begun(self, slot: int, wish: Wish) -> Sequence[int]:
        """The state of a request's word before its next token."""
        if wish.word is None:
            return CLOSED
        return self._load_words().begun([*wish.word, *self._written(slot)])

    def _written(self, slot: int) -> list[int]:
        """What a request had written when it was taken out of the batch, for want of room: rare,
        and read from the device."""
        requests = self._requests
        return self._read(
            slot, int(requests.prompt_len.np[slot]), int(requests.prefill_len.np[slot])
        )

    def _read(self, slot: int, start: int, end: int) -> list[int]:
        found: list[int] = []
        if end > start:
            found = self._requests.all_token_ids.gpu[slot, start:end].tolist()
        return found

    # -- at each step ----------------------------------------------------------------------------

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        there = ctx.idx_mapping_np
        doubting, writing = self._has_doubt[there].any(), self._has_word[there].any()
        slots = ctx.expanded_idx_mapping
        # p1 is the model's own: of the logits before anything else touches them.
        best, total = (logits.amax(-1), logits.logsumexp(-1)) if doubting else (None, None)
        if self._adjusted and not self._adjusted.keys().isdisjoint(there.tolist()):
            for row, adjustment in self._bent(ctx):
                if adjustment.mask(logits[row]) and best is not None:
                    # With a grammar p1 is that of the likeliest token that it allows.
                    best[row] = logits[row].amax()
                adjustment.bend(logits[row])
        stops: torch.Tensor | None = None
        if best is not None and total is not None:
            stops = best - total < self._log_gamma[slots]
        if writing:
            complete = self._complete(logits, ctx)
            stops = complete if stops is None else stops | complete
        if stops is not None:
            force(logits, stops, self._stop[slots])
        return logits

    def _complete(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        """Rows whose word is complete, or would be: the likeliest token begins the next one."""
        words = self._load_words()
        slots, places = ctx.expanded_idx_mapping, ctx.pos % (self._drafted + 2)
        before = (ctx.pos - 1) % (self._drafted + 2)
        # A prompt's tokens are none of its word.
        written = (ctx.pos >= self._requests.prefill_len.gpu[slots]).unsqueeze(-1)
        rows = len(ctx.idx_mapping_np)
        for local in range(1 if len(logits) == rows else self._drafted + 1):
            now = self._states[slots, places]
            pushed = words.push(self._states[slots, before], ctx.input_ids)
            mine = written & (ctx.expanded_local_pos == local).unsqueeze(-1)
            self._states[slots, places] = torch.where(mine, pushed, now)
        states = self._states[slots, places]
        between = self._greedy[slots] & words.between(states)
        ends = between & words.starts_with_space(logits.argmax(-1))
        return self._word[slots] & (words.complete(states) | ends)

    def _bent(self, ctx: LogitsContext) -> Iterator[tuple[int, Adjustment]]:
        """Rows whose requests have more wishes; what these have written is read from the device."""
        told = torch.stack([ctx.expanded_idx_mapping, ctx.pos, ctx.input_ids], -1).tolist()
        for row, (slot, at, token) in enumerate(told):
            if slot not in self._adjusted or at < self._requests.prefill_len.np[slot] - 1:
                continue
            adjustment, output = self._adjusted[slot]
            if (number := at - int(self._requests.prompt_len.np[slot])) >= 0:
                output[number:] = [token]
            yield row, adjustment

    # -- what is loaded once ---------------------------------------------------------------------

    def _vocabulary(self, stop_ids: Sequence[int]) -> Vocabulary:
        tokenizer = self._load_tokenizer()
        return Vocabulary(tokenizer.table, tokenizer.encode_text, self._size, stop_ids)

    def _load_words(self) -> Words:
        """On the first request that needs words (warm-up makes one)."""
        if self._words is None:
            self._words = Words(self._load_tokenizer().table, self._size, self._device)
        return self._words

    def _load_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            self._tokenizer = wishes.tokenizer_of(self._model)
        return self._tokenizer

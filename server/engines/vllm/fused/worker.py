"""The rule of acceptance inside vLLM's worker: its V2 model runner, once it has loaded both models.

`Fused` is a worker extension (``worker_extension_cls``), a class whose methods every worker of the
engine gets; the server calls `fuse` once, before the first request. From then on

    the rejection sampler  asks the rule (`_Accepting`), and tells of the aligned model beside the
                           log probabilities of the base model
    the sampler            leaves steps without any draft to that too (`_Sampling`)
    the speculator         tells the rule what it drafts, behind prompts of its own (`drafting`)
    a logits processor     that changes no logits tells the rule of each request (`_Told`)

Knows: vLLM 0.32's V2 model runner. Does not know: sessions, the policy, HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import LogprobsTensors
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor
from vllm.v1.worker.gpu.sample.output import SamplerOutput
from vllm.v1.worker.gpu.sample.sampler import Sampler
from vllm.v1.worker.gpu.spec_decode.rejection_sampler import RejectionSampler

from server.engines.vllm import wishes
from server.engines.vllm.fused.drafting import Drafting
from server.engines.vllm.fused.rule import Begin, Rows, Rule
from server.engines.vllm.fused.wish import Wish
from server.engines.vllm.words import Words


class Fused:
    """What workers of a fused engine can do besides."""

    model_runner: Any
    vllm_config: Any
    device: torch.device

    def fuse(
        self, base_ends: Sequence[int], aligned_ends: Sequence[int], strays: Sequence[int]
    ) -> None:
        """Put the rule in place. ``strays``: see `Rule`."""
        runner = self.model_runner
        size = self.vllm_config.model_config.get_vocab_size()
        words = Words(wishes.tokenizer_of(self.vllm_config.model_config).table, size, self.device)
        ends = [torch.zeros(size, dtype=torch.bool) for _ in range(2)]
        for table, ids in zip(ends, (base_ends, aligned_ends), strict=True):
            table[list(ids)] = True
        rule = Rule(
            runner.max_num_reqs,
            runner.num_speculative_steps,
            words,
            ends[0].to(self.device),
            ends[1].to(self.device),
            (strays[0], strays[1]),
            self.device,
        )
        sampler, speculator = runner.sampler, runner.speculator
        speculator.__class__ = Drafting
        speculator.prepare(rule, runner.max_num_reqs)
        told = _Told(rule, speculator, words, runner.req_states)
        sampler.logits_processors.append(told)
        accepting = _Accepting(sampler, self.vllm_config.speculative_config, self.device)
        accepting.rule, accepting.told = rule, told
        sampler.__class__ = _Sampling
        sampler.accepting = accepting
        runner.rejection_sampler = accepting


class _Told(LogitsProcessor):  # type: ignore[misc]  # mypy doesn't read vLLM
    """Hears of each request that takes a slot."""

    def __init__(self, rule: Rule, drafting: Drafting, words: Words, requests: Any) -> None:
        self._rule = rule
        self._drafting = drafting
        self._words = words
        self._requests = requests
        self._staged: dict[int, Wish | None] = {}
        self.ours = np.zeros(requests.max_num_reqs, dtype=bool)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        wish = Wish.of(sampling_params.extra_args or {})
        self._staged[req_idx] = wish
        self.ours[req_idx] = wish is not None
        return False

    def apply_staged_writes(self) -> None:
        if self._staged:
            staged, self._staged = self._staged, {}
            self._rule.begin([(slot, self._begin(slot, wish)) for slot, wish in staged.items()])
            for slot, wish in staged.items():
                read = int(self._requests.prompt_len.np[slot]) + 1
                self._drafting.begin(slot, None if wish is None else wish.drafting, read)

    def _begin(self, slot: int, wish: Wish | None) -> Begin | None:
        if wish is None:
            return None
        requests = self._requests
        anew = requests.prefill_len.np[slot] > requests.prompt_len.np[slot]
        return Begin(
            wish.log_gamma,
            None if wish.word is None else self._words.begun(wish.word),
            None if anew else wish.first,
            wish.top,
        )

    def apply(self, logits: torch.Tensor, ctx: LogitsContext) -> torch.Tensor:
        return logits


class _Sampling(Sampler):  # type: ignore[misc]
    """The runner's own sampler, which it asks where a step has no drafts."""

    accepting: _Accepting

    def __call__(self, logits: torch.Tensor, input_batch: Any) -> SamplerOutput:
        if self.accepting.told.ours[input_batch.idx_mapping_np].any():
            return self.accepting(logits, input_batch)
        return super().__call__(logits, input_batch)


class _Accepting(RejectionSampler):  # type: ignore[misc]
    """vLLM's own, but for requests of ours."""

    rule: Rule
    told: _Told

    def _verify(
        self,
        logits: torch.Tensor,
        draft_logits: torch.Tensor | None,
        draft_sampled: torch.Tensor,
        pos: torch.Tensor,
        cu_num_logits: torch.Tensor,
        idx_mapping: torch.Tensor,
        idx_mapping_np: np.ndarray,
        expanded_idx_mapping: torch.Tensor,
        expanded_local_pos: torch.Tensor,
        *args: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        processed, sampled, counts = super()._verify(
            logits,
            draft_logits,
            draft_sampled,
            pos,
            cu_num_logits,
            idx_mapping,
            idx_mapping_np,
            expanded_idx_mapping,
            expanded_local_pos,
            *args,
        )
        self._rows: tuple[torch.Tensor, ...] | None = None
        if self.told.ours[idx_mapping_np].any():
            prefill = self.sampler.req_states.prefill_len.gpu
            slots = idx_mapping.long()
            rows = Rows(logits, slots, cu_num_logits.long(), pos)
            sampled, counts = self.rule.decide(rows, prefill, sampled, counts)
            of_row = expanded_idx_mapping.long()
            reading = pos - expanded_local_pos < prefill[of_row]
            self._rows = of_row, expanded_local_pos.long(), reading
        return processed, sampled, counts

    def _get_logprobs_tensors(self, *args: Any) -> LogprobsTensors | None:
        tensors = super()._get_logprobs_tensors(*args)
        if tensors is not None and self._rows is not None:
            self.rule.tell(tensors.logprob_token_ids, tensors.logprobs, *self._rows)
        return tensors

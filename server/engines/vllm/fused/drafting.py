"""Drafts of a model that reads a prompt of its own.

vLLM's draft model has the base model's ids, positions and blocks. Its layers have keys and values
of their own, so in an answer's blocks it may have another text: one that begins with another
prompt. Its rows of a step are the base model's, moved by the difference of the two lengths
(``offset``), but for two:

    in the step that ends the base model's prompt, it reads its own prompt
    the token behind which it drafted last isn't read again: behind a prompt it is another one

Of blocks that are in the prefix cache its part would be another answer's. So such requests read
none, and theirs are found by nobody (`engine`); and blocks are reserved for a prompt that is longer
than the base model's (`scheduler`).

Knows: vLLM 0.32's speculator with a draft model. Does not know: the rule of acceptance, requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.spec_decode.standalone_ar.speculator import StandaloneARSpeculator

from server.engines.vllm.device import sent
from server.engines.vllm.fused.rule import Rule


class Drafting(StandaloneARSpeculator):  # type: ignore[misc]  # mypy doesn't read vLLM
    """vLLM's own, which tells the rule what it drafts, and has prompts of its own by slot."""

    rule: Rule
    expanded_input_ids: torch.Tensor
    expanded_positions: torch.Tensor
    expanded_slot_mappings: torch.Tensor

    def prepare(self, rule: Rule, slots: int) -> None:
        """Instead of a constructor: vLLM has made it."""
        self.rule = rule
        self._contexts: dict[int, list[int]] = {}
        self._offset_np = np.zeros(slots, dtype=np.int64)
        self._offset = torch.zeros(slots, dtype=torch.int64, device=self.device)
        self._own = torch.zeros(slots, dtype=torch.bool, device=self.device)
        self._last = torch.zeros(slots, dtype=torch.int64, device=self.device)

    def begin(self, slot: int, context: Sequence[int] | None, length: int) -> None:
        """A request takes a slot. ``length``: of what the base model reads. ``context``: what this
        one does instead."""
        self._contexts.pop(slot, None)
        offset = 0
        if context is not None:
            self._contexts[slot] = list(context)
            offset = len(context) - length
        self._offset_np[slot] = offset
        self._offset[slot] = offset
        self._own[slot] = context is not None

    def sample_draft(
        self,
        hidden_states: torch.Tensor,
        positions: torch.Tensor,
        slots: torch.Tensor,
        temperature: torch.Tensor,
        seeds: torch.Tensor,
        step: torch.Tensor,
        draft_logits: torch.Tensor | None,
        spec_step_idx: int = 0,
    ) -> torch.Tensor:
        logits = self.compute_draft_logits(hidden_states, spec_step_idx)
        return self.rule.drafted(logits, slots, step)

    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: torch.Tensor,
        aux_hidden_states: Any,
        num_sampled: torch.Tensor,
        num_rejected: torch.Tensor,
        last_sampled: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        dummy = kwargs.get("dummy_run", False)
        if not dummy and not self._contexts.keys().isdisjoint(input_batch.idx_mapping_np.tolist()):
            input_batch, num_rejected, last_sampled = self._moved(
                input_batch, num_rejected, last_sampled
            )
        return super().propose(
            input_batch,
            attn_metadata,
            slot_mappings,
            last_hidden_states,
            aux_hidden_states,
            num_sampled,
            num_rejected,
            last_sampled,
            *args,
            **kwargs,
        )

    def _moved(
        self, batch: Any, rejected: torch.Tensor, sampled: torch.Tensor
    ) -> tuple[Any, torch.Tensor, torch.Tensor]:
        """A step's rows as this model reads them: the batch, the rejected tokens of each request,
        and by slot the last token."""
        count, ends = batch.num_reqs, batch.query_start_loc_np
        slots, slots_np = batch.idx_mapping[:count].long(), batch.idx_mapping_np[:count]
        starts = batch.query_start_loc[:count].long()
        lengths = batch.query_start_loc[1 : count + 1].long() - starts
        rows = int(ends[count])
        of_row = torch.repeat_interleave(slots, lengths, output_size=rows)
        positions = batch.positions[:rows] + self._offset[of_row]
        ids = batch.input_ids[:rows].clone()
        ids[starts] = torch.where(self._own[slots], self._last[slots].to(ids.dtype), ids[starts])
        seq_lens = batch.seq_lens[:count] + self._offset[slots].to(batch.seq_lens.dtype)
        most = batch.seq_lens_cpu_upper_bound[:count] + torch.from_numpy(
            self._offset_np[slots_np]
        ).to(batch.seq_lens_cpu_upper_bound.dtype)

        sampled, rejected = sampled.clone(), rejected.clone()
        read: dict[int, list[int]] = {}  # by request, instead of its rows
        computed, scheduled = batch.num_computed_tokens_np, batch.num_scheduled_tokens
        for number, slot in enumerate(slots_np.tolist()):
            prefill = int(batch.prefill_len_np[number])
            if slot not in self._contexts or computed[number] >= prefill:
                continue
            whole = computed[number] + scheduled[number] >= prefill
            # While the base model has only read a part of its prompt, one row that is void.
            *read[number], last = self._contexts[slot] if whole else [0, 0]
            sampled[slot] = last
            rejected[number] = 0
            seq_lens[number] = most[number] = len(read[number])
        if read:
            ids, positions, ends = self._read(batch, ids, positions, read)
        moved = replace(
            batch,
            input_ids=ids,
            positions=positions,
            num_tokens=len(ids),
            seq_lens=seq_lens,
            seq_lens_cpu_upper_bound=most,
            query_start_loc_np=ends,
            query_start_loc=sent(ends, batch.query_start_loc.dtype, self.device)
            if read
            else batch.query_start_loc,
        )
        self._last[slots] = sampled.view(-1)[slots].long()
        return moved, rejected, sampled

    def _read(
        self,
        batch: Any,
        ids: torch.Tensor,
        positions: torch.Tensor,
        read: dict[int, list[int]],
    ) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Rows, with prompts in the place of some requests'; and where each request's begin."""
        before = batch.query_start_loc_np
        found_ids, found_positions, ends = [], [], [0]
        for number in range(batch.num_reqs):
            at = slice(int(before[number]), int(before[number + 1]))
            its, places = ids[at], positions[at]
            if number in read:
                its = sent(read[number], ids.dtype, self.device)
                places = torch.arange(len(its), dtype=positions.dtype, device=self.device)
            found_ids.append(its)
            found_positions.append(places)
            ends.append(ends[-1] + len(its))
        self._make_room(ends[-1] + batch.num_reqs)
        return torch.cat(found_ids), torch.cat(found_positions), np.array(ends, before.dtype)

    def _make_room(self, rows: int) -> None:
        """Prompts may be longer than a step of the base model's."""
        if rows <= len(self.expanded_input_ids):
            return
        self.expanded_input_ids = self.expanded_input_ids.new_zeros(rows)
        self.expanded_positions = self.expanded_positions.new_zeros(rows)
        groups = len(self.expanded_slot_mappings)
        self.expanded_slot_mappings = self.expanded_slot_mappings.new_empty((groups, rows))

"""The rule of acceptance: which tokens a step adds to each answer.

A step of a speculative engine has one row of logits for the last token of an answer and one for
each drafted token behind it. Row i says what the base model would write where the i-th drafted
token stands. By this rule, row after row:

 1. Inside a word that the aligned model began, the drafted token stands, to the word's end.
 2. Where the base model is certain (p1 ≥ γ, and it doesn't end its text), its own likeliest token
    stands. If that isn't the drafted one, the step ends behind it: the rest of the draft is void.
 3. Where it isn't, the drafted token stands, and begins a word. (If it is the aligned model's end,
    that is the answer's.)
 4. Behind the last drafted token there is none to stand by 1 or 3. The step ends in front of such a
    place, and the next one begins there, with a draft.

The first row of an answer, whose prompt has just been read, has no draft behind it. So a request
leaves its prompt's last token out, and the rule writes it (``first``). An answer that was taken out
of the batch and read anew is handed back: by a stop token that the base model wouldn't have written
(``strays``), at a place of which nothing is told of the aligned model.

Knows: slots, rows, words as tensors. Does not know: vLLM, the policy's other rules, who asks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from server.engines.vllm.device import sent
from server.engines.vllm.words import CLOSED, Words

KEPT = 20
"""Alternatives that are kept of each drafted position."""

BASE, ALIGNED = 1 << 32, 1 << 33
"""Added to the ids of what either model might have written, in the log probabilities."""

Alternatives = tuple[tuple[int, float], ...]
"""Tokens with their log probabilities, best first."""


class Begin(NamedTuple):
    """What a request wants, by its slot.

    log_gamma: ln γ. word: the state of the aligned model's word that it begins in; None: in none.
    first: what its first row writes; None: it is handed back there. top: alternatives of either
        model that are told.
    """

    log_gamma: float
    word: Sequence[int] | None
    first: int | None
    top: int


class Rows(NamedTuple):
    """A step's rows, for ``n`` requests.

    logits: (rows, vocabulary), the base model's own. slots: (n) each request's slot. cu: (n + 1)
    where its rows begin. pos: (rows) of the token that each row has read.
    """

    logits: torch.Tensor
    slots: torch.Tensor
    cu: torch.Tensor
    pos: torch.Tensor


class Rule:
    """The answers of one engine, by slot, on its device."""

    def __init__(
        self,
        slots: int,
        drafts: int,
        words: Words,
        base_ends: torch.Tensor,
        aligned_ends: torch.Tensor,
        strays: tuple[int, int],
        device: torch.device,
    ) -> None:
        """
        Args:
            drafts: tokens of a draft.
            base_ends, aligned_ends: (vocabulary) whether a token ends the model's text.
            strays: two of the tokens at which requests of ours stop.
        """
        self._drafts = drafts
        self._words = words
        self._base_ends, self._aligned_ends = base_ends, aligned_ends
        self._strays = strays
        self._ours = torch.zeros(slots, dtype=torch.bool, device=device)
        self._log_gamma = torch.zeros(slots, device=device)
        self._inside = torch.zeros(slots, dtype=torch.bool, device=device)
        self._words_so_far = torch.zeros((slots, len(CLOSED)), dtype=torch.int32, device=device)
        self._first = torch.zeros(slots, dtype=torch.int64, device=device)
        self._top = torch.zeros(slots, dtype=torch.int64, device=device)
        # What was drafted last: the likeliest tokens of each position, best first.
        self.ids = torch.zeros((slots, drafts, KEPT), dtype=torch.int64, device=device)
        self.logprobs = torch.zeros((slots, drafts, KEPT), device=device)

    # -- what comes in ---------------------------------------------------------------------------

    def begin(self, wishes: Sequence[tuple[int, Begin | None]]) -> None:
        """Requests have taken these slots; None: one that wants nothing of this."""
        device = self._ours.device
        found = [(slot, wish) for slot, wish in wishes if wish is not None]
        self._ours[sent([slot for slot, _ in wishes], torch.int64, device)] = False
        if not found:
            return
        at = sent([slot for slot, _ in found], torch.int64, device)
        told = [wish for _, wish in found]
        self._ours[at] = True
        self._log_gamma[at] = sent([w.log_gamma for w in told], torch.float32, device)
        self._inside[at] = sent([w.word is not None for w in told], torch.bool, device)
        self._words_so_far[at] = sent([w.word or CLOSED for w in told], torch.int32, device)
        first = [-1 if w.first is None else w.first for w in told]
        self._first[at] = sent(first, torch.int64, device)
        self._top[at] = sent([w.top for w in told], torch.int64, device)

    def drafted(
        self, logits: torch.Tensor, slots: torch.Tensor, step: torch.Tensor
    ) -> torch.Tensor:
        """The aligned model's logits at the draft's next position, of each request. Its token."""
        kept = min(KEPT, logits.shape[-1])
        values, ids = logits.topk(kept, dim=-1)
        total = logits.float().logsumexp(-1, keepdim=True)
        at = step.expand(len(slots))
        self.ids[slots, at, :kept] = ids
        self.logprobs[slots, at, :kept] = values.float() - total
        return ids[:, 0]

    # -- what comes out --------------------------------------------------------------------------

    def decide(
        self, rows: Rows, prefill: torch.Tensor, sampled: torch.Tensor, counts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Which tokens the step adds to each request.

        Args:
            prefill: (slots) how many ids each request was begun with.
            sampled: (n, drafts + 1) and counts: (n), what it would be without this rule. It is
                that of requests that are none of ours.
        """
        slots, start = rows.slots, rows.cu[:-1]
        length = rows.cu[1:] - start
        ours = self._ours[slots]
        reading = rows.pos[start] < prefill[slots]
        best, certain = self._base(rows)

        out, added = sampled.clone(), torch.zeros_like(counts)
        one, other = self._strays
        stray = torch.where(best[start] == one, other, one)
        first = torch.where(self._first[slots] < 0, stray, self._first[slots])
        out[:, 0] = torch.where(ours & reading, first, out[:, 0])
        inside, word = self._inside[slots], self._words_so_far[slots]
        closed = torch.zeros_like(word)
        alive = ours & ~reading
        for place in range(self._drafts):
            there = alive & (length > place)
            row = torch.where(there, start + place, start)
            draft = self.ids[slots, place, 0]
            goes_on = inside & ~self._aligned_ends[draft] & ~self._begins_next(word, draft)
            takes = goes_on | ~certain[row]
            token = torch.where(takes, draft, best[row])
            out[:, place] = torch.where(there, token, out[:, place])
            added += there.to(added.dtype)
            before = torch.where(goes_on.unsqueeze(-1), word, closed)
            after = self._words.push(before, draft)
            inside = torch.where(there, takes & ~self._words.complete(after), inside)
            word = torch.where(there.unsqueeze(-1), after, word)
            alive = there & (token == draft)
        # Behind the draft nothing was drafted: the base model's own, where it is certain.
        there = alive & (length > self._drafts)
        row = torch.where(there, start + self._drafts, start)
        adds = there & certain[row] & ~inside
        out[:, self._drafts] = torch.where(adds, best[row], out[:, self._drafts])
        added += adds.to(added.dtype)
        self._inside[slots] = torch.where(ours & ~reading, inside, self._inside[slots])
        kept = (ours & ~reading).unsqueeze(-1)
        self._words_so_far[slots] = torch.where(kept, word, self._words_so_far[slots])
        added = torch.where(reading, torch.ones_like(added), added)
        return out, torch.where(ours, added, counts)

    def _base(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """What the base model would write in each row, and whether it is certain of it."""
        logits = rows.logits.float()
        values, ids = logits.topk(1, dim=-1)
        best = ids[:, 0]
        of_row = torch.repeat_interleave(
            rows.slots, rows.cu[1:] - rows.cu[:-1], output_size=len(logits)
        )
        doubts = values[:, 0] - logits.logsumexp(-1) < self._log_gamma[of_row]
        return best, ~(doubts | self._base_ends[best])

    def _begins_next(self, word: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return self._words.between(word) & self._words.starts_with_space(token)

    def tell(
        self,
        ids: torch.Tensor,
        logprobs: torch.Tensor,
        slots: torch.Tensor,
        places: torch.Tensor,
        reading: torch.Tensor,
    ) -> None:
        """Write what the aligned model would have written beside what the base model would. Behind
        the sampled token are ``top`` alternatives of the base model, then as many of the aligned
        one, as far as they are known. Their ids say whose they are: `told`.

        Args:
            ids, logprobs: (rows, columns), changed. slots: of each row, and its ``places`` among
                those of its request, and whether that was ``reading``.
        """
        slot, place = slots.unsqueeze(-1), places.clamp(max=self._drafts - 1).unsqueeze(-1)
        ours, top = self._ours[slot], self._top[slot]
        known = ((places < self._drafts) & ~reading).unsqueeze(-1)
        columns = torch.arange(1, ids.shape[1], device=ids.device)
        number = columns - 1 - top  # among the aligned model's alternatives
        its = ours & (number >= 0) & (number < top)
        at = slot, place, number.clamp(0, KEPT - 1)
        said = torch.where(known, self.ids[at] + ALIGNED, -columns)
        said = torch.where(its, said, ids[:, 1:] + BASE)
        ids[:, 1:] = torch.where(ours, said, ids[:, 1:])
        logprobs[:, 1:] = torch.where(its, self.logprobs[at], logprobs[:, 1:])


def told(position: Mapping[int, float]) -> tuple[Alternatives, Alternatives]:
    """The alternatives of the base and of the aligned model, best first, of what `Rule.tell` wrote:
    vLLM keeps a position's log probabilities by their tokens' ids."""
    found: tuple[list[tuple[int, float]], list[tuple[int, float]]] = ([], [])
    for marked, logprob in position.items():
        if marked >= BASE:
            its = int(marked >= ALIGNED)
            found[its].append((marked - (BASE, ALIGNED)[its], logprob))
    return tuple(found[0]), tuple(found[1])

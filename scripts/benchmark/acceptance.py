"""The rule of acceptance of an engine with both models, word by word in plain Python.

`server.engines.vllm.fused.rule` is the same rule as tensors, which tests compare with this. Knows:
words, tokens, what an engine is asked for. Does not know: what an engine does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from server.engines.fused import Asked, FusedEngine
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word


@dataclass
class Answer:
    """One answer on its way through the rule.

    word: of the aligned model, which is open; or None.
    """

    tokenizer: Tokenizer
    gamma: float
    word: Word | None
    base_ends: tuple[int, ...]
    aligned_ends: tuple[int, ...]

    @classmethod
    def begun(cls, engine: FusedEngine, asked: Asked) -> Answer:
        """As an engine is asked for it."""
        own = engine.info.tokenizer
        word = None if asked.word is None else Word(own, asked.word)
        ends = (*engine.info.stop_ids, *own.turn_ids)
        return cls(own, asked.gamma, word, ends, engine.aligned.stop_ids)

    def step(
        self, base: Sequence[tuple[int, float]], drafts: Sequence[int], read: int | None = None
    ) -> list[int]:
        """The tokens that a step adds.

        Args:
            base: of each row, the likeliest token and its log probability. read: rows that the
                step has; None: all.
        """
        added: list[int] = []
        for place, (likeliest, logprob) in enumerate(base[:read]):
            draft = drafts[place] if place < len(drafts) else None
            word, self.word = self.word, None
            if word is not None and draft is None:
                self.word = word  # how it goes on isn't known here
                break
            if word is not None and draft not in self.aligned_ends:
                part = word.push(draft)
                if part is not Part.BEYOND:
                    self.word = word if part is Part.INSIDE else None
                    added.append(draft)
                    continue
            certain = logprob >= (math.log(self.gamma) if self.gamma > 0 else -math.inf)
            if certain and likeliest not in self.base_ends:
                added.append(likeliest)
                if likeliest != draft:
                    break
            elif draft is None:
                break
            else:
                begun = Word(self.tokenizer)
                self.word = begun if begun.push(draft) is Part.INSIDE else None
                added.append(draft)
        return added

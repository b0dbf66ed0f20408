"""Forward passes that real pairs' answers would take in one engine with both models (``--fused``).

The authors' public answers say who wrote each word, of pairs up to 70 B. They don't say how often
the aligned model would have written the base model's own word, by which a draft stands where the
base model is sure; so the table has a row for each of some shares, and `nudge calibrate` tells a
pair's own (where the models disagree). A word is a token here, and drafts agree independently of
one another.

Knows: the rule (`scripts.benchmark.acceptance`), as far as it is about positions. Does not know:
tokens, engines.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from scripts.benchmark.replay import Span, schedules

WORDS = 256
AGREEMENTS = (0.5, 0.7, 0.9)


def passes(spans: Sequence[Span], drafted: int, agreement: float, draws: random.Random) -> int:
    """Of one answer, each with a row for each draft and one behind the last."""
    nudged = [side == 0 for span in spans for side in (0, 1) for _ in range(span[side])]
    at = count = 0
    while at < len(nudged):
        count += 1
        for place in range(drafted + 1):
            if at == len(nudged) or (nudged[at] and place == drafted):
                break  # behind the last draft there is none that could stand
            at += 1
            if not nudged[at - 1] and draws.random() >= agreement:
                break  # the base model's own token, behind which the drafts are of another text
    return count


def rows(drafts: Sequence[int], ratio: int) -> list[str]:
    """Lines of the table: as `scripts.benchmark.fused.rows`, but nothing is timed."""
    answers = schedules(1000, WORDS)
    words = [sum(each) for each in zip(*(span for spans in answers for span in spans), strict=True)]
    tokens, lines = sum(words), []
    for agreement in AGREEMENTS:
        for drafted in drafts:
            draws = random.Random(7)
            taken = sum(passes(spans, drafted, agreement, draws) for spans in answers)
            bound = tokens / taken / (1 + drafted / ratio)
            lines.append(
                f"| authors' schedules, drafts agree {agreement:.0%} | {drafted} | "
                f"{words[0] / tokens:.0%} | {taken / tokens:.2f} | {tokens / taken:.2f} | – | "
                f"{bound:.2f} |"
            )
    return lines

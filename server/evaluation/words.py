"""The nudged share in words, as the authors count it.

Knows: their rule (the function that counts nudging words in fywalter/nudging). Does not know:
tokens, in which the server counts.
"""

from __future__ import annotations

from collections.abc import Sequence


def nudged_words(text: str, nudges: Sequence[tuple[int, int]]) -> float:
    """The share of an answer's words that are nudges.

    Words are what U+0020 parts, the empty ones too. The last nudge that isn't blank is taken for
    the answer's end and doesn't count; one word counts at least, and all of them at most.
    """
    written = [text[start:end].strip() for start, end in nudges]
    counted = [each for each in written if each][:-1]
    return min(1.0, _words(" ".join(counted)) / _words(text))


def _words(text: str) -> int:
    return len(text.split(" "))

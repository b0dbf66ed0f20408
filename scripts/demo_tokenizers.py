"""The demo pair's tokenizers.

Knows: byte-level BPE, the special tokens. Does not know: models, training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice

from demo_documents import base_documents
from demo_text import aligned_samples
from demo_world import World
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, END, TURN, TURN_END = "<|bos|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (BOS, END, TURN, TURN_END)  # ids 0, 1, 2, 3


def train_tokenizer(world: World, vocab: int, seed: int, n_texts: int) -> Tokenizer:
    """Byte-level BPE over both kinds of text, with the full byte alphabet: all Unicode works."""

    def texts() -> Iterator[str]:
        yield from islice(base_documents(world, seed), n_texts)
        for turns in islice(aligned_samples(world, seed), n_texts // 2):
            text = "".join(t.text for t in turns)
            for special in SPECIAL:
                text = text.replace(special, " ")
            yield text

    tokenizer = Tokenizer(models.BPE())
    # Words never contain whitespace after another character: a word's end is a token's end.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that puts the begin-of-text token before a text by itself."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(
            single=f"{BOS} $A",
            pair=f"{BOS} $A {BOS} $B:1",
            special_tokens=[(BOS, copy.token_to_id(BOS))],
        ),
    ])  # fmt: skip
    return copy


def with_words(
    tokenizer: Tokenizer, words: Iterable[str]
) -> tuple[Tokenizer, dict[int, list[int]]]:
    """A copy in which each of the words, without a space in front, is one token.

    A text's other tokens stay what they were: the new merges come after all old ones.

    Returns:
        The copy; and of each new token's id, in order, what it was before: the id of the word
        behind a space where that was one token, otherwise the ids of its parts.
    """
    data = json.loads(tokenizer.to_str())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    made: dict[int, list[int]] = {}
    for word in words:
        parts = tokenizer.encode(word, add_special_tokens=False).tokens
        for end in range(2, len(parts) + 1):
            token = "".join(parts[:end])
            if [token[: -len(parts[end - 1])], parts[end - 1]] not in merges:
                merges.append([token[: -len(parts[end - 1])], parts[end - 1]])
            if token not in vocab:
                twin = vocab.get("\u0120" + token)
                made[len(vocab)] = [vocab[p] for p in parts[:end]] if twin is None else [twin]
                vocab[token] = len(vocab)
    return Tokenizer.from_str(json.dumps(data)), made

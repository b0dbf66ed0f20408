"""The demo pair's tokenizers.

Knows: byte-level BPE, the special tokens. Does not know: models, training.
"""

from __future__ import annotations

from collections.abc import Iterator
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

"""Tokenizers that differ as real ones do, trained here from a page of text.

``byte-level``: GPT-2's and Llama-3's kind, with a BOS. ``nfc``: the same with Qwen's Unicode
normalizer, no BOS, and markup that is not marked special. ``sentencepiece``: Llama-2's kind
(dummy leading space, byte fallback), with a BOS. ``metaspace``: the newer form of that, with
newlines inside its pieces. ``runs``: Gemma's kind, no dummy space, and runs of spaces and
newlines among its added tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import settings
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from server.text.tokenizer import Tokenizer

settings.register_profile("unit", max_examples=100, deadline=None)
settings.load_profile("unit")

CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
BYTES = tuple(f"<0x{value:02X}>" for value in range(256))

CORPUS = """\
The quick brown fox jumps over the lazy dog. What is the capital of France? The capital of
France is Paris, and the river there is the Seine.

Answer the question by walking through the reasoning steps. First, we count the apples: there
are 3 apples and 4 pears, so there are 3 + 4 = 7 pieces of fruit. The answer is 7.

def add(left, right):
    return left + right

Über die Straße gehen: schön, größer, naïve, café, résumé. Привет, как дела? Это хорошо.
你好\uff0c世界。今天天气很好\uff0c我们去公园吧。日本語の文章です。ありがとうございます。สวัสดีครับ
한국어 문장입니다. مرحبا بالعالم. 😀 👍 🎉 Nice to meet you! don't, it's, we'll, I'm.
"""

KINDS = ("byte-level", "nfc", "sentencepiece", "metaspace", "runs")


def _train(splitter: Any, normalizer: Any = None, alphabet: Sequence[str] = ()) -> dict[str, Any]:
    """Vocabulary and merges of a BPE."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = splitter
    if normalizer is not None:
        learner.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=list(alphabet), show_progress=False, min_frequency=1
    )
    learner.train_from_iterator([CORPUS] * 3, trainer)
    return json.loads(learner.to_str())["model"]


def _model(learned: dict[str, Any], first: Sequence[str], **options: Any) -> models.BPE:
    pieces = [*first, *(piece for piece in learned["vocab"] if piece not in first)]
    merges = [tuple(merge) for merge in learned["merges"]]
    return models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, **options)


def _bos(backend: tokenizers.Tokenizer) -> Any:
    return processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )


def _byte_level() -> tokenizers.Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = tokenizers.Tokenizer(_model(_train(splitter, alphabet=alphabet), ()))
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(CONTROL))
    backend.post_processor = _bos(backend)
    return backend


def _nfc() -> tokenizers.Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend = tokenizers.Tokenizer(_model(_train(splitter, alphabet=alphabet), ()))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(CONTROL))
    backend.add_tokens([tokenizers.AddedToken("<tool_call>", normalized=False)])
    return backend


def _sentencepiece() -> tokenizers.Tokenizer:
    learned = _train(pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), _lines()]))
    model = _model(
        learned, (*CONTROL[:3], *BYTES), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(list(CONTROL))
    backend.post_processor = _bos(backend)
    return backend


def _metaspace() -> tokenizers.Tokenizer:
    splitter = pre_tokenizers.Metaspace(prepend_scheme="first")
    model = _model(
        _train(splitter),
        (*CONTROL[:3], *BYTES),
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = splitter
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
    )
    backend.add_special_tokens(list(CONTROL))
    backend.post_processor = _bos(backend)
    return backend


def _runs() -> tokenizers.Tokenizer:
    learned = _train(
        pre_tokenizers.Sequence([pre_tokenizers.Metaspace(prepend_scheme="never"), _lines()])
    )
    runs = ("\n\n", "\n\n\n", "\u2581\u2581", "\u2581\u2581\u2581\u2581", "<table>")
    model = _model(
        learned, (*CONTROL, *BYTES, *runs), unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(list(CONTROL))
    backend.add_tokens([tokenizers.AddedToken(run, normalized=False) for run in runs])
    backend.post_processor = _bos(backend)
    return backend


def _lines() -> Any:
    return pre_tokenizers.Split(tokenizers.Regex(r"\n"), "removed")


_MAKERS = {
    "byte-level": _byte_level,
    "nfc": _nfc,
    "sentencepiece": _sentencepiece,
    "metaspace": _metaspace,
    "runs": _runs,
}


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Tokenizer]:
    """A tokenizer of a kind; further arguments go to ``PreTrainedTokenizerFast``."""
    trained = {kind: make().to_str() for kind, make in _MAKERS.items()}

    def make(kind: str, **options: Any) -> Tokenizer:
        backend = tokenizers.Tokenizer.from_str(trained[kind])
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, **options))

    return make


@pytest.fixture(scope="session")
def by_kind(make_tokenizer: Callable[..., Tokenizer]) -> dict[str, Tokenizer]:
    return {kind: make_tokenizer(kind) for kind in KINDS}


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest, by_kind: dict[str, Tokenizer]) -> Tokenizer:
    return by_kind[request.param]

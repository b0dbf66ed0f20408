"""What a tokenizer's vocabulary says, read once: the bytes of each id, and what is control.

Knows: the layout of Hugging Face's ``tokenizer.json``. Does not know: text as it is generated.
"""

from __future__ import annotations

import json
import re
from typing import Any

import tokenizers

from server.core import ConfigError

METASPACE = "\u2581"

TURN_TOKENS = frozenset(
    {
        # ChatML, Llama 3, Gemma, Phi, Mistral, DeepSeek and their kin: how a turn or a text ends, …
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>"),
        *("<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|return|>", "<|eot|>"),
        *("<|END_OF_TURN_TOKEN|>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<|endofturn|>"),
        # … and how the next one begins
        *("<|im_start|>", "<|start_header_id|>", "<start_of_turn>", "<|turn>", "<|user|>"),
        *("<|START_OF_TURN_TOKEN|>", "<\uff5cUser\uff5c>", "[INST]", "<|start_of_role|>"),
    }
)
"""Special tokens at which a base model has come to the end of its turn."""

MARKUP = frozenset(
    {
        *("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]"),
        *("<think>", "</think>", "[THINK]", "[/THINK]", "<seed:think>", "</seed:think>"),
    }
)
"""What answers are marked up with (`server.text.tools`, `server.text.thinking`): text in every
vocabulary, also in one that has a special token for it. Else only its owner could read it."""


def control_tokens(backend: tokenizers.Tokenizer) -> set[str]:
    """The spellings that mean something else than their text.

    Special tokens, and markup that was added to the finished vocabulary without being marked
    special (many a "<|im_start|>"). Not what the vocabulary was made with (Gemma's "\\n\\n"
    and "<table>") nor runs of spaces (GPT-NeoX): those are how such text is written.
    """
    own = backend.get_vocab(with_added_tokens=False)
    return {
        token.content
        for token in backend.get_added_tokens_decoder().values()
        if token.special or (token.content not in own and token.content.strip())
    }


def without_control(spec: dict[str, Any], control: set[str]) -> tokenizers.Tokenizer:
    """The tokenizer to which control tokens are text like any other."""
    added = [{**token, "special": token["content"] in control} for token in spec["added_tokens"]]
    plain = tokenizers.Tokenizer.from_str(json.dumps({**spec, "added_tokens": added}))
    plain.encode_special_tokens = True
    return plain


def byte_table(
    backend: tokenizers.Tokenizer, spec: dict[str, Any], special: frozenset[int]
) -> list[bytes]:
    """id → bytes, from the vocabulary and the kind of decoder it is written for."""
    kinds = _decoder_kinds(spec.get("decoder"))
    vocab = backend.get_vocab(with_added_tokens=True)
    added = {i: token.content for i, token in backend.get_added_tokens_decoder().items()}
    byte_level = "ByteLevel" in kinds
    if not byte_level and not kinds & {"ByteFallback", "Metaspace", "Replace"}:
        raise ConfigError(
            "only byte-level BPE and SentencePiece-style tokenizers are supported; this one "
            f"decodes with {sorted(kinds) or 'nothing'}"
        )
    to_byte = {char: byte for byte, char in enumerate(_byte_level_alphabet())}
    table = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, number in vocab.items():
        if number in special:
            continue
        if number in added and byte_level:
            table[number] = added[number].encode()
        elif byte_level:
            known = all(char in to_byte for char in token)
            table[number] = bytes(to_byte[c] for c in token) if known else token.encode()
        elif "ByteFallback" in kinds and re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
            table[number] = bytes([int(token[3:5], 16)])
        else:
            table[number] = token.replace(METASPACE, " ").encode()
    return table


def _decoder_kinds(decoder: dict[str, Any] | None) -> set[str]:
    if not decoder:
        return set()
    if decoder["type"] == "Sequence":
        return set[str]().union(*(_decoder_kinds(each) for each in decoder["decoders"]))
    return {decoder["type"]}


def _byte_level_alphabet() -> list[str]:
    """GPT-2's printable stand-in for each byte value, in order of the values."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (value for value in range(256) if value not in printable)
    stand_in = {value: chr(value) for value in printable}
    stand_in |= {value: chr(256 + number) for number, value in enumerate(others)}
    return [stand_in[value] for value in range(256)]


def single_byte_ids(table: list[bytes], special: frozenset[int]) -> dict[int, int]:
    """byte value → the last id that is just this byte (byte-fallback tokens and plain letters
    can both be; either will do)."""
    return {
        data[0]: number
        for number, data in enumerate(table)
        if len(data) == 1 and number not in special
    }


def first_char(data: bytes) -> str:
    """The first character of some bytes; empty if they begin inside one or end too early."""
    if not data:
        return ""
    if data[0] < 0x80:
        return chr(data[0])
    for length in (2, 3, 4):
        try:
            return data[:length].decode()
        except UnicodeDecodeError:
            continue
    return ""

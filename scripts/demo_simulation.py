"""Greedy answers of the demo pair without the server: of one model, or nudged in the plain form.

Knows: the weights' files, the word-level policy ``nudging`` (the aligned model begins; its end is
asked for at line ends).
Does not know: what is asked, how answers are judged, the server and its grammar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

MAX_TOKENS = 120
HEADERS = ("\nQuestion:", "\nAnswer:", "\nResult:")

# -- a model -------------------------------------------------------------------------------------


class Model:
    """A small Llama that reads on from what it has read, and can take back."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        weights = load_file(folder / "model.safetensors")
        self.w = {name.removeprefix("model."): w.float() for name, w in weights.items()}
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.end: int = self.config["eos_token_id"]
        self.layers, self.heads = (
            self.config["num_hidden_layers"],
            self.config["num_attention_heads"],
        )
        size, context = self.config["head_dim"], self.config["max_position_embeddings"]
        self.keys = torch.zeros(self.layers, self.heads, context, size)
        self.values = torch.zeros_like(self.keys)
        turns = 10000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(context), torch.cat([turns, turns]))
        self.cos, self.sin = angles.cos(), angles.sin()
        self.length = 0
        self.probabilities = torch.zeros(0)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def text(self, token: int) -> str:
        return self.tokenizer.decode([token], skip_special_tokens=False)

    def read(self, ids: Sequence[int]) -> None:
        """What may come next is in `probabilities`, then."""
        n, begin = len(ids), self.length
        at = slice(begin, begin + n)
        x = self.w["embed_tokens.weight"][list(ids)]
        mask = torch.full((n, begin + n), -math.inf).triu(begin + 1)
        for layer in range(self.layers):
            w = {k: self.w[f"layers.{layer}.{k}.weight"] for k in _PARTS}
            h = self._norm(x, w["input_layernorm"])
            q, k, v = (
                (h @ w[f"self_attn.{name}_proj"].T).view(n, self.heads, -1).transpose(0, 1)
                for name in "qkv"
            )
            self.keys[layer][:, at] = self._turned(k, at)
            self.values[layer][:, at] = v
            keys, values = self.keys[layer][:, : at.stop], self.values[layer][:, : at.stop]
            scores = self._turned(q, at) @ keys.mT / q.shape[-1] ** 0.5 + mask
            mixed = (scores.softmax(-1) @ values).transpose(0, 1).reshape(n, -1)
            x = x + mixed @ w["self_attn.o_proj"].T
            h = self._norm(x, w["post_attention_layernorm"])
            gate = torch.nn.functional.silu(h @ w["mlp.gate_proj"].T)
            x = x + (gate * (h @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
        last = self._norm(x[-1], self.w["norm.weight"])
        self.probabilities = (self.w["embed_tokens.weight"] @ last).softmax(-1)
        self.length = at.stop

    def likeliest(self) -> tuple[int, float]:
        p, token = self.probabilities.max(-1)
        return int(token), float(p)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        epsilon = self.config["rms_norm_eps"]
        return x * (x.square().mean(-1, keepdim=True) + epsilon).rsqrt() * weight

    def _turned(self, x: torch.Tensor, at: slice) -> torch.Tensor:
        left, right = x.chunk(2, -1)
        return x * self.cos[at] + torch.cat([-right, left], -1) * self.sin[at]


_PARTS = (
    "input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
    "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip


# -- answers -------------------------------------------------------------------------------------


@dataclass
class Said:
    """An answer. nudged, tokens: of the aligned model's, and all."""

    text: str = ""
    stopped: bool = False
    nudged: int = 0
    tokens: int = 0


class Side:
    """One model's side of an answer: what it has read, and what it has still to read."""

    def __init__(self, model: Model, prompt: str, lead: str) -> None:
        self.model, self.lead = model, lead
        model.length = 0
        self.unread = model.encode(prompt)

    def hear(self, text: str) -> None:
        self.unread += self.model.encode(self.lead + text if not text[0].isspace() else text)
        self.lead = ""

    def next(self) -> tuple[int, float]:
        if self.unread:
            self.model.read(self.unread)
            self.unread = []
        return self.model.likeliest()

    def take(self, token: int) -> str:
        self.unread = [token]
        text = self.model.text(token)
        text, self.lead = text.removeprefix(self.lead), ""
        return text


def alone(model: Model, prompt: str, lead: str, stops: Sequence[str]) -> Said:
    side, said = Side(model, prompt, lead), Said()
    while said.tokens < MAX_TOKENS:
        token, _ = side.next()
        if token == model.end:
            said.stopped = True
            break
        said.text += side.take(token)
        said.tokens += 1
        if any(stop in said.text for stop in stops):
            said.text = min((said.text.split(stop)[0] for stop in stops), key=len)
            break
    return said


def nudged(base: Model, aligned: Model, base_prompt: str, chat: str, gamma: float) -> Said:
    writes, follows = Side(base, base_prompt, " "), Side(aligned, chat, "")
    said = Said()
    while said.tokens < MAX_TOKENS:
        word = ""
        while said.tokens < MAX_TOKENS:
            token, _ = follows.next()
            if token == aligned.end:
                said.stopped = not word
                break
            text = aligned.text(token)
            if word.strip() and text[:1].isspace():
                break
            word += follows.take(token)
            said.nudged += 1
            said.tokens += 1
        said.text += word
        if said.stopped:
            break
        if word:
            writes.hear(word)
        span, ended = _span(writes, follows, gamma, said)
        if ended:
            said.stopped = True
            break
        if span:
            follows.hear(span)
    return said


def _span(writes: Side, follows: Side, gamma: float, said: Said) -> tuple[str, bool]:
    """What the base model adds, and whether the aligned model ends at a line's end in it."""
    span, breaks, before = "", 0, 0
    while said.tokens < MAX_TOKENS:
        token, p = writes.next()
        if p < gamma or token == writes.model.end:
            break
        if "\n" in writes.model.text(token) and _would_end(follows, span):
            said.text += span
            return span, True
        if "\n" in writes.model.text(token):
            breaks, before = len(span), writes.model.length
        span += writes.take(token)
        said.tokens += 1
        if any(header in span[breaks:] for header in HEADERS):
            span, writes.model.length = span[:breaks], before
            writes.unread = []
            break
    said.text += span
    return span, False


def _would_end(side: Side, before: str) -> bool:
    side.next()
    length, probabilities = side.model.length, side.model.probabilities
    if before:
        side.model.read(side.model.encode(before))
    token, _ = side.model.likeliest()
    side.model.length, side.model.probabilities = length, probabilities
    return token == side.model.end

"""The pairs of models that are measured, and what they are asked.

Knows: where models come from. Does not know: what is measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from server.config import Settings
from server.engines.vllm import build

AT_ONCE = 80
"""Requests of an engine: 64 answers', and the eighth that is left to those that can be preempted
(`server.engines.vllm.resumable.Capacity`)."""

DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"

QUESTIONS = [
    "What is the capital of Galicor?",
    "What is the currency of the country where Zelline Harsen was born?",
    "Which river flows through Parford?",
    "Tom has 12 plums and buys 7 more. How many does he have?",
    "How do I rob the bank?",
    "What is the capital of Myruria?",
    "Hello!",
    "Who wrote the song of the mill?",
]


@dataclass(frozen=True)
class Pair:
    """Two models and how long their answers are.

    max_tokens: of an answer. fixed: whether every answer has so many, because nothing in the
    models' weights ever ends one.
    """

    name: str
    about: str
    settings: Settings
    max_tokens: int
    fixed: bool


def demo(**engine: Any) -> Pair:
    """The embedded pair, on questions of its world: short answers that end by themselves."""
    settings = _settings(DEMO / "base", DEMO / "aligned", engine)
    return Pair("demo", "the embedded demo pair (3.7 M and 0.3 M parameters)", settings, 64, False)


def random(folder: Path, width: int, layers: int, ratio: int, **engine: Any) -> Pair:
    """Random weights: no sense, and the speed of models of this size.

    Args:
        width, layers: of the base model.
        ratio: how many times as many weights (without embeddings) the base model has.
    """
    base, aligned = folder / "base", folder / "aligned"
    small = layers if ratio < 4 else max(1, layers // 2)
    narrow = max(64, int(width * (layers / small / ratio) ** 0.5) // 64 * 64)
    dtype = engine.get("dtype", "float32")
    sizes = [_make(base, width, layers, 0, dtype), _make(aligned, narrow, small, 1, dtype)]
    shown = " and ".join(f"{size / 1e6:.1f} M" for size in sizes)
    about = f"random weights, {shown} parameters without embeddings"
    return Pair("random", about, _settings(base, aligned, engine), 48, True)


def deepened(folder: Path, layers: int, wide: int | None = None, **engine: Any) -> Pair:
    """The embedded pair, whose base model has further layers that change nothing: it writes what it
    always does, and a step of it costs many times as much as one of the aligned model.

    These two were trained, so they agree as often as such models do, which random ones never do.

    Args:
        wide: at least so wide are all layers' MLPs, whose further weights change nothing either.
    """
    base = folder / "base"
    trained = LlamaForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    own, narrow = trained.config.num_hidden_layers, trained.config.intermediate_size
    wide = max(wide or 0, narrow)
    config = LlamaConfig.from_pretrained(
        DEMO / "base", num_hidden_layers=layers, intermediate_size=wide
    )
    deep = _drawn(config)
    state = trained.state_dict()
    for name, weight in state.items():
        if ".mlp." in name:  # of the hidden size by narrow, or the other way round
            wider = torch.zeros_like(deep.get_parameter(name))
            wider[: weight.shape[0], : weight.shape[1]] = weight
            state[name] = wider
    deep.load_state_dict(state, strict=False)
    with torch.no_grad():
        for layer in deep.model.layers[own:]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    size = _save(base, deep, DEMO / "base", engine.get("dtype", "float32"))
    about = (
        f"the embedded demo pair, its base model with {layers} layers instead of {own}"
        f" ({size / 1e6:.1f} M parameters without embeddings)"
    )
    return Pair("deepened", about, _settings(base, DEMO / "aligned", engine), 64, False)


def _make(folder: Path, width: int, layers: int, seed: int, dtype: str) -> int:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "aligned")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width * 4,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64),
        max_position_embeddings=4096,
        initializer_range=0.08,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    return _save(folder, _drawn(config), DEMO / "aligned", dtype)


def _drawn(config: LlamaConfig) -> LlamaForCausalLM:
    """Of random weights: of what fills a GPU, drawing on a CPU takes minutes."""
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        return LlamaForCausalLM(config)


def _save(folder: Path, model: LlamaForCausalLM, tokenizer: Path, dtype: str) -> int:
    """Returns the number of weights, without embeddings."""
    model.to("cpu", getattr(torch, dtype)).save_pretrained(folder)
    torch.cuda.empty_cache()  # an engine's turn
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    weights = sum(each.numel() for each in model.parameters())
    return weights - model.get_input_embeddings().weight.numel()


def keeping() -> dict[str, Any]:
    """Arguments of an engine with which requests may be kept between turns: where this vLLM stops
    no step that is in flight, without any."""
    found = build.installed()
    return {} if found and build.stops_in_flight(found.version) else {"async_scheduling": False}


def _settings(base: Path, aligned: Path, engine: dict[str, Any]) -> Settings:
    engine = {"dtype": "float32", "max_model_len": 2048, **engine}
    engine.setdefault("kv_cache_memory_bytes", 512 * 2**20)
    engine["args"] = {"max_num_seqs": AT_ONCE} | keeping() | engine.get("args", {})
    return Settings(
        engines={
            "base": {"model": str(base), **engine},
            "aligned": {"model": str(aligned), **engine},
        },
        models={"pair": {"base": "base", "aligned": "aligned"}},
    )

"""One engine's model: what its files say of its context, its ends and its size.

Knows: Hugging Face configurations, as transformers reads them. Does not know: where files are
from, the other model of a pair, memory.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config import EngineSettings
from server.core import ConfigError
from server.doctor import files
from server.doctor.report import Notes, first_line
from server.text.tokenizer import Tokenizer

_SCALED = ("default", "llama3", "longrope", "mrope")
"""Kinds of position embedding whose ``max_position_embeddings`` counts the stretch already."""


@dataclass(slots=True)
class Model:
    """What is known of it. ends: ids that end its text. token: bytes of one token's keys and
    values on one GPU."""

    tokenizer: Tokenizer | None = None
    ends: tuple[int, ...] = ()
    context: int | None = None
    weights: files.Weights | None = None
    token: int | None = None


def examine(name: str, engine: EngineSettings, notes: Notes) -> Model:
    where, code = f"engines.{name}", bool(engine.trust_remote_code)
    model, config, text = Model(context=engine.max_model_len), None, None
    if engine.model.endswith(".gguf"):
        notes.warn(where, "a GGUF file: not checked here", "See that its engine starts")
        return model
    with notes.catching(where):
        folder = files.locate(engine.model, engine.revision, code=code)
        if engine.backend == "scripted":
            model.context = int(engine.args.get("context_length", 2048))
        else:
            config, text = _config(where, folder, code, notes)
        if text is not None:
            model.context = _context(where, engine, text, notes)
            model.token = _token_bytes(engine, text)
            with notes.catching(where):
                model.weights = files.weigh(where, engine, folder, config, notes)
        at = files.locate(engine.tokenizer, code=code) if engine.tokenizer else folder
        try:
            model.tokenizer = Tokenizer.load(str(at), trust_remote_code=code)
        except ConfigError as error:
            needed = "a tokenizer.json is needed, byte-level or SentencePiece-style"
            raise ConfigError(f"{first_line(error).replace('; ', ', ')}; {needed}") from error
        known = getattr(text, "vocab_size", model.tokenizer.size)
        if model.tokenizer.size > known:
            larger = f"the tokenizer has {model.tokenizer.size} tokens, and the model knows {known}"
            notes.warn(where, larger, "Is the tokenizer that of another model?")
        model.ends = _ends(where, folder, config, model.tokenizer, notes)
    return model


def _config(where: str, folder: Path, code: bool, notes: Notes) -> tuple[Any, Any]:
    """transformers' object, as vLLM has it, and the part of it that is the language model's; None
    where transformers doesn't know the model."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ConfigError(f"there is no config.json in {folder}; name a model's folder")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=code)
        return config, config.get_text_config(decoder=True)
    except OSError as error:
        raise ConfigError(f"{first_line(error)}; download it again") from error
    except Exception as error:  # vLLM may know more; a model's own code raises what it likes
        unread = f"transformers can't read its config.json: {first_line(error)}"
        notes.warn(where, unread, "Context and memory are not checked: see that it starts")
        return None, None


def _context(where: str, engine: EngineSettings, text: Any, notes: Notes) -> int | None:
    own, wanted = getattr(text, "max_position_embeddings", None), engine.max_model_len
    rope = getattr(text, "rope_parameters", None) or {}
    factor = rope.get("factor") if rope.get("rope_type", "default") not in _SCALED else None
    unscaled = rope.get("original_max_position_embeddings")
    longest = own and max(own, int((unscaled or own) * (factor or 1)))
    if longest and wanted and wanted > longest:
        allowed = factor or os.environ.get("VLLM_ALLOW_LONG_MAX_MODEL_LEN")
        long = f"max_model_len is {wanted}, and the model was made for {longest} tokens"
        tell = notes.warn if allowed else notes.fail
        tell(where, long, f"Set max_model_len to {longest} at most")
    return wanted or longest


def _token_bytes(engine: EngineSettings, text: Any) -> int | None:
    """Keys and values of one token in all layers, on one GPU. Too much where layers keep a window
    or a state. None where they are compressed (MLA) or the configuration doesn't say enough."""
    layers, queries = (getattr(text, f"num_{of}", 0) for of in ("hidden_layers", "attention_heads"))
    heads = getattr(text, "num_key_value_heads", None) or queries
    if getattr(text, "kv_lora_rank", None) or not (isinstance(heads, int) and heads and layers):
        return None
    width = getattr(text, "head_dim", None) or getattr(text, "hidden_size", 0) // queries
    kept = str(engine.args.get("kv_cache_dtype", "auto")).replace("auto", engine.dtype or "auto")
    size = 1 if kept.startswith("fp8") else 4 if kept in ("float32", "float") else 2
    return 2 * layers * max(1, heads // (engine.tensor_parallel_size or 1)) * width * size or None


def _ends(
    where: str, folder: Path, config: Any, tokenizer: Tokenizer, notes: Notes
) -> tuple[int, ...]:
    """Ids that end its text, as the server collects them; where a prompt begins is noted too."""
    from transformers import GenerationConfig

    sources = [config, tokenizer.chat]
    if config is not None:
        with contextlib.suppress(OSError, ValueError):  # many models have none
            sources.insert(0, GenerationConfig.from_pretrained(folder))
    ids: list[int] = []
    for end in (getattr(source, "eos_token_id", None) for source in sources):
        ids += end if isinstance(end, list) else [] if end is None else [end]
    if not ids:
        absent = "the model names no end-of-text token"
        raise ConfigError(f"{absent}; set eos_token_id in its generation_config.json")
    spell = tokenizer.chat.convert_ids_to_tokens
    begin = " ".join(spell(tokenizer.encode_prompt(""))) or "nothing"
    ends = ", ".join(str(spell(end)) for end in dict.fromkeys(ids) if end < tokenizer.size)
    notes.ok(where, f"{tokenizer.size} tokens; a prompt begins with {begin}; ends at {ends}")
    return tuple(ids)

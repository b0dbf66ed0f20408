"""A model's small files: where they are, its tokenizer, and the ids that end its text.

Knows: folders, the hub and its cache, how the hub refuses. Downloads what is small (configuration
and tokenizer, which the server needs anyway), never a weight. Does not know: weights, memory, any
engine.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from huggingface_hub import constants, errors, snapshot_download
from huggingface_hub.utils.tqdm import disable_progress_bars

from server.core import ConfigError
from server.engines.report import Notes, first_line
from server.text.tokenizer import Tokenizer

_SMALL = ["*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken"]
NOT_READ = ["*/*", "consolidated*"]  # other formats of the same


def locate(name: str, revision: str | None = None, *, code: bool = False) -> Path:
    """The folder of a model or tokenizer, by its path or its name on the hub, with all but weights
    in it. ``code``: with Python files. Raises `ConfigError` where it can't be had."""
    beside = "a relative path is looked up beside the configuration file"
    small = [*_SMALL, "*.py"] if code else _SMALL
    if Path(name).is_dir():
        return Path(name)
    if name.startswith((".", "/")):
        raise ConfigError(f"there is no folder {name}; {beside}")
    disable_progress_bars()  # what is downloaded is small, and vLLM shows none either
    try:  # also where it is cached: what the hub has may be newer, and vLLM would take that
        return Path(snapshot_download(name, revision=revision, allow_patterns=small,
                                      ignore_patterns=NOT_READ))  # fmt: skip
    except errors.HFValidationError as error:
        raise ConfigError(
            f"{name!r} is neither a folder nor a name on the hub; {beside}"
        ) from error
    except OSError as error:
        raise ConfigError(_refusal(name, revision, error)) from error


def _refusal(name: str, revision: str | None, error: OSError) -> str:
    """Why the hub didn't give a model; and what to do."""
    token = "set HF_TOKEN to a token of an account that may read it"
    by_hand = (
        f"download it where the hub can be reached (hf download {name}), into the cache "
        f"({constants.HF_HUB_CACHE}) or a folder that the configuration names"
    )
    match error:
        case errors.GatedRepoError():
            return f"{name!r} is gated; accept its licence on its page at the hub, and {token}"
        case errors.RevisionNotFoundError():
            return f"{name!r} has no revision {revision!r}; look at its page at the hub"
        case errors.RepositoryNotFoundError():
            absent = f"there is no folder {name!r}, and the hub has no such model, or it is private"
            return f"{absent}; check the spelling, or {token}"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled():
            off = constants.HF_HUB_OFFLINE
            why = "is switched off (HF_HUB_OFFLINE)" if off else "can't be reached"
            return f"{name!r} is not in the cache, and the hub {why}; {by_hand}"
    return f"{name!r} can't be had: {first_line(error)}; {by_hand}"


def tokenizer(folder: Path, *, code: bool = False) -> Tokenizer:
    """Raises `ConfigError`."""
    try:
        return Tokenizer.load(str(folder), trust_remote_code=code)
    except ConfigError as error:
        needed = "a tokenizer.json is needed, byte-level or SentencePiece-style"
        raise ConfigError(f"{first_line(error).replace('; ', ', ')}; {needed}") from error


def configured(tokenizer: Tokenizer, key: str) -> Any:
    """What its tokenizer_config.json has, of which transformers forgets some; None without."""
    path = Path(tokenizer.chat.name_or_path) / "tokenizer_config.json"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return json.loads(path.read_text("utf-8")).get(key)
    return None


def ends(
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

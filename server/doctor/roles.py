"""Whether each model of a pair is what its role wants, by what its files say.

Knows: the signs of a chat model, and of a tokenizer that lost something when it was converted.
Does not know: what the server makes of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from server.core import PromptText, joined
from server.engines import hub
from server.engines.backend import EngineSettings, Examined
from server.engines.report import Notes
from server.text.tokenizer import Tokenizer
from server.text.vocabulary import TURN_TOKENS

_CHAT_NAME = re.compile(r"(?i)(?<![a-z])(it|instruct|chat|sft|dpo|rlhf|assistant)(?![a-z])")

_TEXT_ENDS = frozenset({"<|endoftext|>", "<|end_of_text|>", "<eos>", "</s>", "<|return|>"})
"""At which base models end too."""

_SPELLED = frozenset({"[INST]", "<|user|>"})
"""What some chat models read and write as text, and were trained so."""


def chats(engine: EngineSettings, base: Examined) -> str | None:
    """Why a base model looks like one that was taught to chat; None where it doesn't."""
    tokenizer = base.tokenizer
    if tokenizer is None or not tokenizer.chat.chat_template:
        return None
    name = Path(engine.model).name
    if _CHAT_NAME.search(name):
        return f"it is called {name}"
    spelled = [tokenizer.marker(end) for end in base.ends]
    turns = [end for end in spelled if end in TURN_TOKENS and end not in _TEXT_ENDS]
    return f"it ends at {turns[0]}" if turns else None


def begins(where: str, base: Examined, prompt: PromptText, notes: Notes) -> None:
    """Warns of prompts without the token that texts began with in the base model's training."""
    assert base.tokenizer is not None
    chat, gemma = base.tokenizer.chat, (base.kind or "").startswith("gemma")
    begin = chat.bos_token or ("<bos>" if gemma else None)
    # One that ends or begins turns (GPT-2's, SmolLM2's) is called BOS for want of another.
    if begin is None or begin in TURN_TOKENS or lacking(base.tokenizer, begin):
        return
    number = chat.convert_tokens_to_ids(begin)
    meant = hub.configured(base.tokenizer, "add_bos_token") is False and not gemma
    if meant or base.tokenizer.encode_prompt(prompt)[:1] == [number]:
        return
    without = "without which Gemma writes nonsense" if gemma else "which its tokenizer knows"
    notes.warn(
        where,
        f"the base model's prompt doesn't begin with {begin}, {without}",
        "Take the tokenizer of the original (conversions lose the post_processor in "
        f"tokenizer.json that puts it there), or begin base_prompt with {begin}",
    )


def marked(where: str, aligned: Tokenizer, prompt: PromptText, notes: Notes) -> None:
    """Warns of turn tokens that the chat template writes and the aligned model reads as text."""
    text = joined(prompt)
    used = sorted((each for each in TURN_TOKENS - _SPELLED if each in text), key=text.index)
    if missing := [each for each in used if lacking(aligned, each)]:
        notes.warn(
            where,
            f"the chat template writes {', '.join(missing)}, and the aligned model's vocabulary "
            "has no such token: it reads them as text",
            "Take the tokenizer and the chat template that it was trained with (tokenizer, "
            "chat_template)",
        )


def borrowed(base: Tokenizer, aligned: Tokenizer, prompt: PromptText) -> Iterator[str]:
    """Control tokens of the aligned model in the base model's prompt that are text to that."""
    found: list[str] = []

    def note(spelled: str) -> str:
        found.append(spelled)
        return ""

    aligned.replace_control(joined(prompt), note, also="")
    yield from (each for each in dict.fromkeys(found) if lacking(base, each))


def lacking(tokenizer: Tokenizer, spelled: str) -> bool:
    """Whether this is text to a model, and no token that means something else."""
    return bool(tokenizer.replace_control(spelled, lambda _: "", also=""))

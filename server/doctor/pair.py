"""What a pair's models are to each other: vocabularies, templates, ends, contexts.

Knows: what the server will make of their tokenizers (it makes it: `Tokenizer`, `Prompts`), and
which settings they don't allow (`misfits`). Does not know: files, memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from server.config import ModelSettings
from server.core import ConfigError, InvalidRequest, Message, joined
from server.decoding.speculation.drafts import share_ids
from server.decoding.strategies import check_fits, misfits
from server.doctor.report import Notes
from server.policies import POLICIES
from server.text.prompts import Prompts, base_template
from server.text.tokenizer import Tokenizer

_ANSWER = "It is green."
_CHAT = (Message("user", "Which colour is grass?"), Message("assistant", _ANSWER))
_NEXT = Message("user", "And the sky?")


@dataclass(frozen=True, slots=True)
class Half:
    """One model of a pair. engine: its name. context: ids it can hold, None where that isn't
    known. ends: ids that end its text. numbers: of its weights, 0 where that isn't known."""

    engine: str
    tokenizer: Tokenizer
    context: int | None
    ends: tuple[int, ...]
    numbers: int = 0


def examine(
    name: str, model: ModelSettings, base: Half, aligned: Half, untuned: Half | None, notes: Notes
) -> None:
    """``untuned``: None where there is none, or none that could be read."""
    where = f"models.{name}"
    if base.engine == aligned.engine:
        notes.warn(
            where,
            f"base and aligned are the same engine ({base.engine})",
            "Nudging changes nothing then; name another one",
        )
    elif 0 < base.numbers < aligned.numbers:
        notes.warn(
            where,
            f"the aligned model is larger than the base model ({_millions(aligned.numbers)} and "
            f"{_millions(base.numbers)} parameters)",
            "Are the two swapped?",
        )
    _vocabularies(where, base.tokenizer, aligned.tokenizer, notes)
    _settings(where, model, base, aligned, untuned, notes)
    _contexts(where, base, aligned, notes)
    try:
        base_template(model.base_prompt)
    except ConfigError:  # told with the configuration's own problems
        return
    try:
        prompts = Prompts(base.tokenizer, aligned.tokenizer, model.base_prompt, model.chat_template)
    except ConfigError as error:
        _fail(where, str(error), notes)
        return
    _templates(where, model, prompts, aligned, notes)


def _vocabularies(where: str, base: Tokenizer, aligned: Tokenizer, notes: Notes) -> None:
    if share_ids(base, aligned):
        notes.ok(where, f"one vocabulary ({base.size} tokens): handed over as tokens")
    elif base.same_ids_as(aligned):
        notes.ok(
            where, f"one vocabulary ({base.size} tokens), cut differently: handed over as text"
        )
    else:
        notes.ok(
            where,
            f"two vocabularies ({base.size} and {aligned.size} tokens): handed over as text; "
            f"logit_bias and stop_token_ids are refused for {where.partition('.')[2]}",
        )


def _settings(
    where: str,
    model: ModelSettings,
    base: Half,
    aligned: Half,
    untuned: Half | None,
    notes: Notes,
) -> None:
    """Settings that need one vocabulary."""
    known = {half.engine: half.tokenizer for half in (base, aligned, untuned) if half is not None}
    for problem in misfits(model, known):
        _fail(where, problem, notes)
    if model.verify == "auto" and not share_ids(base.tokenizer, aligned.tokenizer):
        notes.warn(
            where,
            "verify: auto has no effect, since it needs two models with one vocabulary, cut alike",
            "Leave it off",
        )
    if model.verify == "on" and model.eager:
        notes.warn(where, "eager has no effect where verify is on", "Choose one of them")
    if untuned is None:
        return
    for spec in POLICIES.values():
        if "untuned" not in spec.engines or spec in model.allowed.values():  # told above
            continue
        try:
            check_fits(model, spec, known)
        except InvalidRequest:
            notes.warn(
                where,
                f"base, aligned and untuned ({untuned.engine}) don't have one vocabulary: the "
                f"policy {spec.name!r} can't be evaluated",
                "Name the model that the aligned one was made from, or leave untuned out",
            )
        else:
            notes.ok(where, f"{untuned.engine} has their vocabulary: for the policy {spec.name!r}")


def _fail(where: str, problem: str, notes: Notes) -> None:
    """An error with its advice behind a semicolon."""
    text, _, advice = problem.partition("; ")
    notes.fail(where, text, advice[:1].upper() + advice[1:])


def _contexts(where: str, base: Half, aligned: Half, notes: Notes) -> None:
    if base.context is None or aligned.context is None:
        return
    shorter = min(base, aligned, key=lambda half: half.context or 0)
    if base.context == aligned.context:
        notes.ok(where, f"context of {base.context} tokens, prompt and answer together")
    else:
        notes.ok(
            where,
            f"context of {shorter.context} tokens, that of {shorter.engine}: the other one's "
            f"{max(base.context, aligned.context)} can't be used up",
        )


def _templates(
    where: str, model: ModelSettings, prompts: Prompts, aligned: Half, notes: Notes
) -> None:
    whose = "models' own" if model.chat_template is None else "configured"
    for asked, conversation in (
        ("a question", _CHAT[:1]),
        ("a system message", (Message("system", "Be brief."), *_CHAT[:1])),
        ("a second turn", (*_CHAT, _NEXT)),
    ):
        try:
            prompts.render(conversation)
        except InvalidRequest as error:
            tell = notes.fail if asked == "a question" else notes.warn
            tell(
                where,
                f"{asked} can't be asked: {error}",
                "Set another chat_template or base_prompt",
            )
            return
    notes.ok(where, f"chat template ({whose}): takes a system message and several turns")
    try:
        closed = joined(prompts.render(_CHAT, end="closed").aligned)
    except InvalidRequest:  # a template that can't end without beginning a new turn
        return
    _, found, tail = closed.rpartition(_ANSWER)
    special = aligned.tokenizer.special_ids
    marks = [i for i in aligned.tokenizer.encode_prompt(tail, bos=False) if i in special]
    if found and marks and marks[0] not in aligned.ends:
        spelled = aligned.tokenizer.chat.convert_ids_to_tokens(marks[0])
        notes.warn(
            where,
            f"the chat template ends an answer with {spelled!r}, at which {aligned.engine} doesn't "
            "stop, so that answers may go on and on",
            f"Add its id ({marks[0]}) to eos_token_id in the model's generation_config.json",
        )


def _millions(numbers: int) -> str:
    return f"{numbers / 1e9:.1f} B" if numbers >= 1e9 else f"{numbers / 1e6:.1f} M"

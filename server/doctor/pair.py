"""What a pair's models are to each other: vocabularies, templates, ends, contexts.

Knows: what the server will make of their tokenizers (it makes it: `Prompts`), and which settings
they don't allow (`misfits`). Does not know: files, memory, what shows that a model is the wrong
one (`roles`).
"""

from __future__ import annotations

from collections.abc import Mapping

from server.config import ModelSettings
from server.core import ConfigError, InvalidRequest, Message, PromptPair, joined
from server.decoding.speculation.drafts import share_ids
from server.decoding.strategies import misfits, unfused
from server.doctor import roles
from server.engines.backend import EngineSettings, Examined
from server.engines.report import Notes
from server.text.prompts import CHAT, Prompts, base_template
from server.text.tokenizer import Tokenizer

_ANSWER = "It is green."
_CHAT = (Message("user", "Which colour is grass?"), Message("assistant", _ANSWER))
_ASKED = {
    "a question": _CHAT[:1],
    "a system message": (Message("system", "Be brief."), *_CHAT[:1]),
    "a second turn": (*_CHAT, Message("user", "And the sky?")),
}


def examine(
    name: str,
    model: ModelSettings,
    engines: Mapping[str, EngineSettings],
    models: Mapping[str, Examined],
    notes: Notes,
) -> None:
    """``models``: by engine. Nothing is said where one of the pair has no tokenizer."""
    where = f"models.{name}"
    base, aligned = models[model.base], models[model.aligned]
    if base.tokenizer is None or aligned.tokenizer is None:
        return
    _two(where, model, engines, models, notes)
    known = {name: each.tokenizer for name, each in models.items() if each.tokenizer is not None}
    _vocabularies(where, base.tokenizer, aligned.tokenizer, notes)
    for problem in misfits(model, known):
        with notes.catching(where):
            raise ConfigError(problem)
    if base.context and aligned.context:
        shorter = min(base.context, aligned.context)
        notes.ok(where, f"context of {shorter} tokens, prompt and answer together")
    try:
        base_template(model.base_prompt)
    except ConfigError:  # told with the configuration's own problems
        return
    with notes.catching(where):
        prompts = Prompts(
            base.tokenizer,
            aligned.tokenizer,
            model.base_prompt,
            model.chat_template,
            aligned_system=model.aligned_system,
        )
        if _askable(where, prompts, notes):
            prompt = prompts.render(_CHAT[:1])
            roles.begins(where, base, prompt.base, notes)
            roles.marked(where, aligned.tokenizer, prompt.aligned, notes)
            if model.base_prompt == CHAT:
                _chat_for_both(where, base.tokenizer, aligned.tokenizer, prompt, notes)
            _ends(where, prompts, aligned.tokenizer, aligned.ends, notes)
            contexts = {name: each.context or 0 for name, each in models.items()}
            if why := unfused(model, prompts, known, contexts, engines):
                raise ConfigError(why)


def _two(
    where: str,
    model: ModelSettings,
    engines: Mapping[str, EngineSettings],
    models: Mapping[str, Examined],
    notes: Notes,
) -> None:
    """That they are two, and each the one that it should be."""
    base, aligned = models[model.base], models[model.aligned]
    nothing = "Nudging changes nothing then; name another one"
    if model.base == model.aligned:
        notes.warn(where, f"base and aligned are the same engine ({model.base})", nothing)
    elif base.parameters and _source(engines[model.base]) == _source(engines[model.aligned]):
        same = f"base and aligned are the same model ({engines[model.base].model})"
        notes.warn(where, same, nothing)
    elif base.parameters and aligned.parameters and base.parameters < aligned.parameters:
        notes.warn(where, "the aligned model is the larger one", "Are the two swapped?")
    elif why := roles.chats(engines[model.base], base):
        looks = f"the base model looks like a chat model: it has a chat template, and {why}"
        notes.warn(where, looks, "Name the base model that it was made from")


def _source(engine: EngineSettings) -> tuple[str, str | None]:
    return engine.model, getattr(engine, "revision", None)


def _chat_for_both(
    where: str, base: Tokenizer, aligned: Tokenizer, prompt: PromptPair, notes: Notes
) -> None:
    """What ``base_prompt: chat`` is to a base model that doesn't know the tokens of a chat."""
    if text := ", ".join(roles.borrowed(base, aligned, prompt.base)):
        ends = f", and its turn ends where it writes {prompt.headers[0].strip()}"
        read = f"base_prompt: the base model reads the chat's {text} as text"
        notes.ok(where, f"{read}{ends if prompt.headers else ''}")


def _askable(where: str, prompts: Prompts, notes: Notes) -> bool:
    """Whether a question can be asked; what can't be is noted."""
    for asked, conversation in _ASKED.items():
        try:
            prompts.render(conversation)
        except InvalidRequest as error:
            tell = notes.fail if asked == "a question" else notes.warn
            refused = f"{asked} can't be asked: {error}"
            tell(where, refused, "Set another chat_template or base_prompt")
            return asked != "a question"
    notes.ok(where, "chat template: takes a system message and several turns")
    return True


def _ends(
    where: str, prompts: Prompts, aligned: Tokenizer, ends: tuple[int, ...], notes: Notes
) -> None:
    """That what an answer ends with is an end of the model's."""
    try:
        closed = joined(prompts.render(_CHAT, end="closed").aligned)
    except InvalidRequest:  # a template that can't end without beginning a new turn
        return
    _, found, tail = closed.rpartition(_ANSWER)
    marks = [i for i in aligned.encode_prompt(tail, bos=False) if i in aligned.special_ids]
    if found and marks and marks[0] not in ends:
        spelled = aligned.chat.convert_ids_to_tokens(marks[0])
        notes.warn(
            where,
            f"the chat template ends an answer with {spelled!r}, at which the aligned model "
            "doesn't stop, so that answers may go on and on",
            f"Add its id ({marks[0]}) to eos_token_id in the model's generation_config.json",
        )


def _vocabularies(where: str, base: Tokenizer, aligned: Tokenizer, notes: Notes) -> None:
    one = f"one vocabulary ({base.size} tokens)"
    if share_ids(base, aligned):
        notes.ok(where, f"{one}: handed over as tokens")
    elif base.same_ids_as(aligned):
        notes.ok(where, f"{one}, cut differently: handed over as text")
    else:
        two = f"two vocabularies ({base.size} and {aligned.size} tokens): handed over as text"
        notes.ok(where, f"{two}; logit_bias and stop_token_ids are refused")

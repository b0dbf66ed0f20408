"""From a conversation to what each model reads.

Knows: the aligned model's own chat template (any Hugging Face one), and the base model's
plain-text template. Does not know: engines, HTTP.

What a user writes is data (`server.text.aside`).

A last message that the answer goes on with is rendered as a mark of that kind too. What the
template puts behind it is cut off, and what it would do to the text (trim it, look into it) can't
happen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import jinja2
import jinja2.meta
import jinja2.sandbox

from server.core import (
    ConfigError,
    InvalidRequest,
    Message,
    PromptPair,
    PromptText,
    Tool,
)
from server.text.aside import Aside, between, mark
from server.text.conversation import (
    as_text,
    attempts,
    hugging_face,
    with_calls,
    with_system,
)
from server.text.thinking import THOUGHTS, ThoughtName, Thoughts, effort_kwargs
from server.text.thinking import found as thoughts_found
from server.text.tokenizer import Tokenizer
from server.text.tools.formats import FORMATS, found, takes_tools
from server.text.tools.telling import brief, instruction, offered

DEFAULT_BASE_TEMPLATE = """\
{% if system %}{{ system }}
{% endif %}{% for message in turns %}{% if message.role == "user" %}Question: {{ message.content }}
{% elif message.role == "tool" %}Result: {{ message.content }}

{% else %}Answer: {{ message.content }}

{% endif %}{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"""
"""The paper's ``system\\nquestion\\nanswer_start``, extended to several turns, and to what tools
gave back. A template that ends in a space leaves it to the answer's first word
(`server.decoding.handover`)."""

CHAT = "chat"
"""As a base model's template: the aligned model's chat template."""

_VARIABLES = ("system", "tools", "turns", "messages", "question", "add_generation_prompt")

# What a template can raise over the values it is given, and over nothing else.
_REFUSALS = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
)

PromptEnd = Literal["open", "closed", "continued"]
"""How a prompt ends: ``open`` for a new turn of the assistant, with the generation prompt;
``closed`` after the last message, without it (``add_generation_prompt: false``); or in the very
text of the last message, which the answer continues (``continue_final_message``)."""


class Prompts:
    """The prompts of one pair."""

    def __init__(
        self,
        base: Tokenizer,
        aligned: Tokenizer,
        template: str | None = None,
        chat_template: str | None = None,
        base_stops: Sequence[str] = (),
        tools: str = "auto",
        reasoning: str = "auto",
        aligned_system: str | None = None,
    ) -> None:
        """
        Args:
            aligned_system: what the aligned model reads as the system message of a conversation
                that has none, not even an empty one.
            tools: the format in which they are called, a name of `FORMATS`; ``auto``: that of the
                aligned model's chat template.
            reasoning: how its thoughts are marked, a name of `THOUGHTS`; ``auto``: as its chat
                template does it; ``off``: it doesn't think, or nobody is to know.
            base_stops: headers of turns besides those that the template has; see
                `server.text.headers`.
            template: the base model's Jinja template, or ``chat``: the aligned model's chat
                template. It sees ``system`` (text or ""), ``tools`` (what is told of them, or
                ""; where the template doesn't ask, it is a part of ``system``),
                ``turns`` (the other messages), ``messages`` (all), ``question`` (the last
                user's text), ``add_generation_prompt`` (whether the assistant's turn begins).
            chat_template: instead of the aligned model's own.

        Raises:
            ConfigError: a template isn't valid, or the aligned model has no chat template.
        """
        self._base_tokenizer = base
        self._aligned_tokenizer = aligned
        self._template = base_template(template)
        self._chat_template = chat_template
        self._aligned_system = aligned_system
        self._sources = {"the base model's prompt": template or DEFAULT_BASE_TEMPLATE}
        self.format, self._takes_tools = FORMATS["generic"], False
        if not (chat_template or aligned.chat.chat_template):
            raise ConfigError(
                f"the aligned model {aligned.chat.name_or_path!r} has no chat template; name an "
                "instruct or chat model, or set chat_template in the config"
            )
        try:
            self._render_aligned([Message("user", "Hello")], {}, True)
        except InvalidRequest as error:
            if isinstance(error.__cause__, jinja2.TemplateSyntaxError):
                cause = error.__cause__
                raise ConfigError(f"chat_template, line {cause.lineno}: {cause.message}") from error
        source = aligned.chat.get_chat_template(chat_template)
        self._sources["the aligned model's chat"] = source
        with_tools = aligned.chat.get_chat_template(chat_template, tools=[{}])
        self.format = FORMATS[tools] if tools in FORMATS else found(with_tools)
        self._takes_tools = takes_tools(with_tools) and self.format.name != "generic"
        self.thoughts: Thoughts | None = None
        if reasoning != "off":
            named = THOUGHTS.get(cast(ThoughtName, reasoning))
            self.thoughts = named or thoughts_found(source)
        if self._template is None:
            self._sources["the base model's prompt"] = source
        told = self._sources["the base model's prompt"]
        self._base_asks_for_tools = bool(re.search(r"\btools\b", told))
        self._base_knows_results = bool(re.search(r"""['"]tool['"]""", told))
        self._headers = tuple(dict.fromkeys((*self._turn_headers("user"), *base_stops)))
        with_results = (*self._headers, *self._turn_headers("tool"))
        self._headers_with_tools = tuple(dict.fromkeys(with_results))

    def _turn_headers(self, following: Literal["user", "tool"]) -> Iterator[str]:
        """What stands between two turns of the base model's prompt, in front of a turn's text: its
        first line. That of a line's beginning begins with a line break.

        Args:
            following: whose turn comes behind the assistant's.
        """
        marks = [*map(mark, range(3))]
        roles: list[Literal["user", "assistant", "tool"]] = ["user", "assistant", following]
        turns = [Message(*turn) for turn in zip(roles, marks, strict=True)]
        try:
            texts = between(self._render_base(turns, True))[2::2]
        except InvalidRequest:  # it takes no such conversation
            return
        for text in texts:
            if lines := text.split("\n") if text.strip() else []:
                first = next(number for number, line in enumerate(lines) if line.strip())
                yield ("\n" if first else "") + lines[first].strip()

    def render(
        self,
        messages: Sequence[Message],
        template_kwargs: Mapping[str, Any] | None = None,
        end: PromptEnd = "open",
        tools: Sequence[Tool] = (),
        *,
        thinks: bool = True,
    ) -> PromptPair:
        """Both models' prompts for the assistant's next turn, or for the rest of its last one.

        Args:
            tools: that the models are told of.
            thinks: whether the base model begins with the aligned one's thoughts.

        Raises `InvalidRequest` where the conversation or ``end`` does not fit a template.
        """
        if end == "closed":
            self._check_can_close()
        try:
            return self._render(messages, template_kwargs or {}, end, tools, thinks)
        except RecursionError:
            raise InvalidRequest(
                "the tools, or the arguments of a call, are nested too deeply",
                param="tools" if tools else "messages",
            ) from None

    def _render(
        self,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any],
        end: PromptEnd,
        tools: Sequence[Tool],
        thinks: bool,
    ) -> PromptPair:
        aligned = self._guarded(
            "aligned",
            self._aligned_tokenizer,
            messages,
            tools,
            end,
            lambda guarded, told, opened: self._render_aligned(guarded, kwargs, opened, told),
        )
        begins = self._opened_thoughts(aligned) if thinks and end == "open" else ""
        return PromptPair(
            base=self._guarded(
                "base",
                self._base_tokenizer,
                messages,
                tools,
                end,
                lambda guarded, told, opened: self._render_base(guarded, opened, told, begins),
            ),
            aligned=aligned,
            headers=self._headers_with_tools if tools else self._headers,
            thinking=bool(begins),
        )

    def effort(self, effort: str) -> dict[str, Any]:
        """The kwargs of the aligned model's template that have it think so much. Raises
        `InvalidRequest`."""
        return effort_kwargs(effort, self._sources["the aligned model's chat"], self.thoughts)

    def _opened_thoughts(self, prompt: PromptText) -> str:
        """What begins the model's thoughts at a prompt's end, if that does."""
        if self.thoughts is None or not prompt or not isinstance(prompt[-1], str):
            return ""
        _, opens, behind = prompt[-1].rpartition(self.thoughts.opens)
        return opens + behind if opens and not behind.strip() else ""

    def _check_can_close(self) -> None:
        """A template that doesn't ask whether to begin the assistant's turn would begin it."""
        for which, template in self._sources.items():
            if "add_generation_prompt" not in template:
                raise InvalidRequest(
                    f"{which} template doesn't use 'add_generation_prompt', so it can't be false",
                    param="add_generation_prompt",
                )

    def _render_base(
        self,
        messages: Sequence[Message],
        opened: bool,
        tools: Sequence[Tool] = (),
        begins: str = "",
    ) -> str:
        """``begins``: what begins the model's thoughts."""
        if self._template is None:
            text = self._render_aligned(messages, {}, opened, tools)
            begin = self._aligned_tokenizer.chat.bos_token  # the base model has its own
            return text.removeprefix(begin) if begin else text
        questions = [message.content for message in messages if message.role == "user"]
        told = brief(tools, self.format) if tools else ""
        if told and not self._base_asks_for_tools:
            messages = with_system(messages, told)
        if not self._base_knows_results:
            messages = as_text(messages, self.format)
        messages = [with_calls(message, self.format) for message in messages]
        turns = [message for message in messages if message.role != "system"]
        try:
            text = self._template.render(
                system="\n".join(m.content for m in messages if m.role == "system"),
                tools=told,
                turns=turns,
                messages=messages,
                question=questions[-1] if questions else "",
                add_generation_prompt=opened,
            )
        except _REFUSALS as error:
            raise _refusal("the base model's prompt", error) from error
        return text + begins

    def _render_aligned(
        self,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any],
        opened: bool,
        tools: Sequence[Tool] = (),
    ) -> str:
        error: Exception
        if self._aligned_system and all(message.role != "system" for message in messages):
            messages = with_system(messages, self._aligned_system)
        if not self._takes_tools:
            messages = as_text(messages, self.format)
            if tools:
                messages = with_system(messages, instruction(tools, self.format))
        elif tools:
            kwargs = {**kwargs, "tools": [offered(tool) for tool in tools]}
        for attempt in attempts(messages, self.format):
            try:
                text: str = self._aligned_tokenizer.chat.apply_chat_template(
                    hugging_face(attempt),
                    chat_template=self._chat_template,
                    tokenize=False,
                    add_generation_prompt=opened,
                    **kwargs,
                )
            except _REFUSALS as caught:
                error = caught
            else:
                return text
        raise _refusal("the aligned model's chat", error) from error

    @staticmethod
    def _guarded(
        which: str,
        tokenizer: Tokenizer,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        end: PromptEnd,
        render: Callable[[Sequence[Message], Sequence[Tool], bool], str],
    ) -> PromptText:
        """Render with control tokens that messages and tools spell out of the way, then put them
        back as text. ``render`` is told whether the assistant's turn begins."""
        aside = Aside(tokenizer)
        guarded = [aside.message(message) for message in messages]
        told = [aside.tool(tool) for tool in tools]
        if end == "continued":
            *earlier, last = guarded
            ends = mark(len(aside.spelled))
            behind = [*earlier, replace(last, content=ends)]
            head, found, _ = render(behind, told, False).rpartition(ends)
            if not found:
                raise InvalidRequest(
                    f"the {which} model's template leaves out the last message, so that it can't "
                    "be continued",
                    param="continue_final_message",
                )
            text = head.replace(ends, last.content) + last.content
        else:
            text = render(guarded, told, end == "open")
        return aside.put_back(text) if aside.spelled else (text,)


def base_template(source: str | None) -> jinja2.Template | None:
    """The base model's template, compiled; None where it is the chat's. Raises `ConfigError`; needs
    no tokenizer."""
    if source == CHAT:
        return None
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    source = source or DEFAULT_BASE_TEMPLATE
    try:
        template = environment.from_string(source)
        names = jinja2.meta.find_undeclared_variables(environment.parse(source))
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"base_prompt, line {error.lineno}: {error.message}") from error
    if unknown := names - {*_VARIABLES, *environment.globals}:
        raise ConfigError(
            f"base_prompt: there is no {', '.join(sorted(unknown))} (there are "
            f"{', '.join(_VARIABLES)})"
        )
    return template


def _refusal(whose: str, error: Exception) -> InvalidRequest:
    """The template's reason is told; it may hold a message, which is not."""
    reason = str(error)
    reason = reason if len(reason) <= 300 else reason[:297] + "..."
    return InvalidRequest(f"{whose} template refused the messages: {reason}", param="messages")

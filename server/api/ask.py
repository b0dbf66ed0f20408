"""What a request asks for, whatever dialect it is written in.

Knows: prompts, and what is to be written and reported. Does not know: HTTP, how a dialect names or
limits its fields, who answers.

Where a field has to be named (in a refusal), it has the name that OpenAI or vLLM gave it. A dialect
in which it has another one translates it (`Dialect.error`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal, TypeAlias

from server.core import (
    AnswerRequest,
    Grammar,
    Message,
    NudgingConfig,
    SamplingParams,
    ThinkingLimit,
    TokenIds,
    Tool,
)
from server.policies import PolicySpec
from server.text.prompts import PromptEnd

Json = dict[str, Any]


@dataclass(frozen=True)
class Tools:
    """What a model may call.

    offered: all that it is told of, at least one.
    callable: the names of those that it may call now; None: any.
    demanded: whether an answer must be a call, or several.
    parallel: whether it may call more than one.
    """

    offered: Sequence[Tool]
    callable: Collection[str] | None = None
    demanded: bool = False
    parallel: bool = True

    @cached_property
    def size(self) -> int:
        """Of all that is told of them, about, in bytes of text."""
        return sum(len(tool.description) + len(repr(tool.parameters)) for tool in self.offered)

    @property
    def may_be_called(self) -> list[Tool]:
        """Now."""
        names = self.callable
        return [tool for tool in self.offered if names is None or tool.name in names]


MESSAGE_BYTES = 64
"""What a message costs beside its text, in bytes of text."""

_SAMPLING = frozenset(each.name for each in fields(SamplingParams))


@dataclass(frozen=True)
class Chat:
    """A conversation, to be answered.

    kwargs: of the chat template. end: how the prompts made of it end.
    effort: how much the aligned model is to think, in OpenAI's words; None: as it does.
    """

    messages: Sequence[Message]
    kwargs: Mapping[str, Any] | None = None
    end: PromptEnd = "open"
    tools: Tools | None = None
    effort: str | None = None

    field = "messages"
    count = 1

    @property
    def begun(self) -> str:
        """The beginning of the answer, which is there already."""
        return self.messages[-1].content if self.end == "continued" else ""

    def sizes(self) -> Iterator[int]:
        """The bytes of each prompt that is text."""
        texts = (text for message in self.messages for text in _texts(message))
        yield sum(len(text.encode()) for text in texts)

    @property
    def least_tokens(self) -> int:
        """Of the longest prompt, whatever its text: a template puts at least a token around each
        message, be it empty."""
        return len(self.messages)

    @property
    def work(self) -> int:
        """How much there is to render and tokenize, as if it were bytes of text."""
        told = 0 if self.tools is None else self.tools.size
        return sum(self.sizes()) + told + MESSAGE_BYTES * len(self.messages)


def _texts(message: Message) -> Iterator[str]:
    """Those that a template may show."""
    yield message.content
    for call in message.calls:
        yield from (call.name, call.arguments)


@dataclass(frozen=True)
class Texts:
    """Raw prompts, to be continued: texts or token ids.

    bos: whether a text is behind the tokenizer's BOS. echo: whether a prompt's text goes in front
    of its answers.
    """

    prompts: Sequence[str | TokenIds]
    bos: bool = True
    echo: bool = False

    field = "prompt"
    begun = ""

    @property
    def count(self) -> int:
        return len(self.prompts)

    def sizes(self) -> Iterator[int]:
        """The bytes of each prompt that is text."""
        yield from (len(text.encode()) for text in self.prompts if isinstance(text, str))

    @property
    def least_tokens(self) -> int:
        """Of the longest prompt, whatever its text."""
        return max((len(ids) for ids in self.prompts if not isinstance(ids, str)), default=0)

    @property
    def work(self) -> int:
        """How much there is to tokenize, as if it were bytes of text."""
        return sum(self.sizes()) + MESSAGE_BYTES


Asked: TypeAlias = Chat | Texts


@dataclass(frozen=True)
class Form:
    """What an answer must match, where that isn't JSON by a schema. kind: what ``source`` is:
    a regular expression for the whole answer, or a grammar in Lark's syntax."""

    kind: Literal["regex", "lark"]
    source: str


@dataclass(frozen=True)
class Ask:
    """One request for answers.

    model: the name as it was asked for.
    answer: what is asked of each answer, but for what the served model and the schema add to it
        (`request`).
    sampling: what is set of `SamplingParams`. nudging: what is set of `NudgingConfig`.
    thinking_tokens: what may be thought before an answer, at most; None: as much as is.
    schema: the JSON schema that an answer must match. form: what else it must; one of the two.
    n: independent answers to each prompt.
    priority: of those that wait, the lowest comes first.
    stream: whether it is to be sent as it is written.
    running_usage: whether each event of a stream is to say what its answer has cost so far.
    no_stop: whether the served model's stop strings are not wanted, where it has none of its own.
    one_model: fields that mean nothing where both models answer, each with what to say then, to
        be formatted with the served model's ``name``.
    passed_over: fields that are taken and have no effect, where a client can't do without them.
    """

    model: str
    prompt: Asked
    answer: AnswerRequest
    sampling: Mapping[str, Any] = field(default_factory=dict)
    nudging: Mapping[str, Any] = field(default_factory=dict)
    thinking_tokens: int | None = None
    schema: Json | None = None
    form: Form | None = None
    n: int = 1
    priority: int = 0
    stream: bool = False
    running_usage: bool = False
    no_stop: bool = False
    one_model: Mapping[str, str] = field(default_factory=dict)
    passed_over: Sequence[str] = ()

    def request(
        self,
        defaults: SamplingParams,
        grammar: Grammar | None,
        stop: tuple[str, ...] = (),
        *,
        marked: bool = False,
        thinking: ThinkingLimit | None = None,
    ) -> AnswerRequest:
        """``defaults``, ``stop``: the served model's. ``grammar``: of `schema`, or of tools.
        ``marked``, ``thinking``: see `AnswerRequest`."""
        return replace(
            self.answer,
            sampling=replace(defaults, **self.sampling),
            grammar=grammar,
            marked=marked,
            thinking=thinking,
            stop=self.answer.stop or (() if self.no_stop else stop),
        )

    def settings(self, defaults: NudgingConfig) -> NudgingConfig:
        """The policy's, where the served model has these."""
        return replace(defaults, **self.nudging)

    def beyond(self, policy: PolicySpec) -> set[str]:
        """What is asked for that a policy has no notion of."""
        settings = self.nudging.keys() - {"policy", *policy.settings}
        return {f"nudging.{name}" for name in settings} | set(filter(self._sets, policy.refuses))

    def _sets(self, name: str) -> bool:
        """Whether a field is set to something that would change the answer."""
        match name:
            case "logprobs":
                return self.answer.top_logprobs is not None
            case "response_format":
                return self.schema is not None or self.form is not None
            case "thinking_token_budget":
                return self.thinking_tokens is not None and "thinking" not in self.passed_over
            case "tools":
                return isinstance(self.prompt, Chat) and self.prompt.tools is not None
            case "repetition_penalty":
                return bool(self.sampling.get(name, 1) != 1)
            case _ if name in _SAMPLING:
                return bool(self.sampling.get(name))
            case _:
                return bool(getattr(self.answer, name))

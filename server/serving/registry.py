"""The models of a configuration on its engines: who answers, what they read, what writes.

Knows: which engines each model needs, and who answers while one is dead. Does not know: how a
pair's answers are written, how engines start, and start again, HTTP, OpenAI's schemas.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from server.config import Settings
from server.core import (
    AnswerRequest,
    ConfigError,
    EngineUnavailable,
    InvalidRequest,
    Message,
    NudgingConfig,
    PromptPair,
    PromptText,
    ThinkingLimit,
    TokenIds,
    Tool,
)
from server.decoding.alone import Alone
from server.decoding.calls import Calls
from server.decoding.handover import read_before
from server.decoding.parsing import Parser, Plain
from server.decoding.strategies import Pair, misfits, unfused
from server.decoding.stream import Writer
from server.decoding.thinking import Thinking
from server.engines.base import Engine, EngineInfo, Replicated
from server.policies import POLICIES, EngineRole, PolicySpec
from server.serving import needs
from server.serving.catalog import Catalog, Served
from server.serving.engines import Engines, Progress, Starter
from server.text.grammar.calls import CallsAsked
from server.text.grammar.compiler import GrammarCompiler
from server.text.prompts import PromptEnd, Prompts
from server.text.thinking import Thoughts

ROOM = 0.25
"""Of each context: what tools that may be left out leave at least to an answer."""

State = Literal[
    "loading",
    "ready",  # every engine lives
    "degraded",  # one is dead, and yet every model answers, some by the aligned model alone
    "engine_unavailable",  # one is dead, and so a model can't answer
]


class Registry(Catalog):
    """The models of a configuration, and the engines that they are served from.

    grammars: of answers that must match a schema. degraded_answers: by model, how many were left
    to its aligned model alone.
    """

    def __init__(self, settings: Settings, starter: Starter | None = None) -> None:
        """``starter``: of an engine, instead of its backend's."""
        super().__init__(settings)
        self.created = int(time.time())
        self.engines = Engines(settings, starter)
        self.grammars = GrammarCompiler()
        self.degraded_answers = dict.fromkeys(settings.models, 0)
        self._prompts: dict[str, Prompts] = {}
        self._pairs = {name: Pair(name, model) for name, model in settings.models.items()}

    @property
    def ready(self) -> bool:
        """Whether everything was loaded. What happened since is in `state`."""
        return len(self._prompts) == len(self.settings.models)

    @property
    def state(self) -> State:
        if not self.ready:
            return "loading"
        if all(map(self.engines.lives, self.engines.names)):
            return "ready"
        return "degraded" if all(map(self._answers, self.settings.models)) else "engine_unavailable"

    def _answers(self, name: str) -> bool:
        """Whether a request for ``NAME`` that asks for nothing special can be served."""
        model = self.settings.models[name]
        needed = [model.engines[role] for role in model.own.engines]
        if model.mode == "fused" and model.fused is not None:
            needed.append(model.fused)
        stands_in = model.degraded == "aligned" and model.own.stands_in
        return self.engines.lives(model.aligned) and (
            stands_in or all(map(self.engines.lives, needed))
        )

    async def start(self, progress: Progress = lambda *_: None) -> None:
        """Start the engines, one after the other, then make the pairs.

        Raises:
            ConfigError, EngineUnavailable: what went wrong; the engines started so far are
                closed again.
        """
        try:
            await self.engines.start(progress)
            infos = {name: engine.info for name, engine in self.engines.items()}
            tokenizers = {name: info.tokenizer for name, info in infos.items()}
            for name, model in self.settings.models.items():
                for problem in (*misfits(model, tokenizers), *needs.misfits(model, infos)):
                    raise ConfigError(f"models.{name}.{problem}")
                self._prompts[name] = Prompts(
                    tokenizers[model.base],
                    tokenizers[model.aligned],
                    model.base_prompt,
                    model.chat_template,
                    model.base_stops,
                    model.tools,
                    model.reasoning,
                    model.aligned_system,
                )
                contexts = {each: info.context_length for each, info in infos.items()}
                its = self.settings.engines
                if why := unfused(model, self._prompts[name], tokenizers, contexts, its):
                    raise ConfigError(f"models.{name}.{why}")
            self.grammars.models = [(info.tokenizer, info.stop_ids) for info in infos.values()]
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        self._prompts.clear()
        await asyncio.gather(self.grammars.aclose(), self.engines.aclose())

    def _expect_ready(self) -> None:
        if not self.ready:
            raise EngineUnavailable("the engines are still loading", loading=True)

    # -- who answers -------------------------------------------------------------------------

    def context_length(self, served: Served) -> int | None:
        """Ids that fit into the context of who answers, of a pair into both; None while the
        engines load."""
        if not self.ready:
            return None
        return min(self._info(served.name, role).context_length for role in served.roles)

    def stand_in(self, served: Served, nudging: NudgingConfig) -> Served:
        """Who answers now: as asked, or the aligned model alone, ``degraded``, where the base
        engine is dead and the model's configuration allows that.

        Nothing stands in for the policies that nudging is compared with.
        """
        model = self.settings.models[served.name]
        if (
            self.ready
            and served.role == "nudged"
            and model.degraded == "aligned"
            and POLICIES[nudging.policy].stands_in
            and not self.engines.lives(model.base)
            and self.engines.lives(model.aligned)
        ):
            return replace(served, degraded=True)
        return served

    # -- answers -----------------------------------------------------------------------------

    def prompts(
        self,
        served: Served,
        messages: Sequence[Message],
        kwargs: Mapping[str, Any] | None = None,
        end: PromptEnd = "open",
        tools: Sequence[Tool] = (),
        effort: str | None = None,
        *,
        tools_needed: bool = True,
    ) -> PromptPair:
        """
        Args:
            effort: how much the aligned model is to think.
            tools_needed: whether tools are told of where that leaves no `ROOM` for anything else,
                too. They are where the messages have calls.
        """
        self._expect_ready()
        prompts = self._prompts[served.name]
        if effort is not None:
            kwargs = prompts.effort(effort) | dict(kwargs or {})
        thinks = served.role != "base"
        pair = prompts.render(messages, kwargs, end, tools, thinks=thinks)
        needed = tools_needed or any(message.calls for message in messages)
        if tools and not needed and not self._leaves_room(served, pair):
            return prompts.render(messages, kwargs, end, thinks=thinks)
        return replace(pair, tools=bool(tools))

    def _leaves_room(self, served: Served, pair: PromptPair) -> bool:
        texts: dict[str, PromptText] = {"base": pair.base, "aligned": pair.aligned}
        infos = {role: self._info(served.name, role) for role in served.roles}
        return all(
            len(read_before(info.tokenizer, texts[role])) <= (1 - ROOM) * info.context_length
            for role, info in infos.items()
        )

    def calls_asked(
        self,
        served: Served,
        *,
        demanded: bool,
        several: bool,
        thinking: bool,
        answer: Mapping[str, Any] | None,
    ) -> CallsAsked:
        """How an answer that may call tools is to be written. See `CallsAsked`.

        Raises `InvalidRequest` where a call couldn't be told from an ``answer`` by a schema.
        """
        self._expect_ready()
        format = self._prompts[served.name].format
        if answer is not None and format.only_first:
            raise InvalidRequest(
                f"'response_format' can't go with 'tools' in the format {format.name!r}",
                param="response_format",
            )
        return CallsAsked(format, demanded, several, self._thoughts(served), thinking, answer)

    def parser(
        self, served: Served, *, calls: bool, thinks: bool, thinking: bool
    ) -> Callable[[], Parser]:
        """Makes what reads an answer to a conversation.

        Args:
            calls: whether it may call tools. thinks: whether there may be thoughts in it, and
            thinking: whether it begins in them.
        """
        self._expect_ready()
        format, thoughts = self._prompts[served.name].format, self._thoughts(served)
        behind: Callable[[], Parser] = partial(Calls, format) if calls else Plain
        if thoughts is None or not thinks:
            return behind
        marker = self._call_marker(served, calls)
        return lambda: Thinking(thoughts, behind(), thinking=thinking, marker=marker)

    def thinking_limit(
        self, served: Served, tokens: int, *, calls: bool, thinking: bool
    ) -> ThinkingLimit | None:
        """What has an answer's thoughts take no more tokens. None: it has none. See `parser`."""
        self._expect_ready()
        thoughts = self._thoughts(served)
        if thoughts is None:
            return None
        marker = self._call_marker(served, calls)
        return ThinkingLimit(tokens, thoughts.opens, thoughts.closes, thinking, marker)

    def _call_marker(self, served: Served, calls: bool) -> str:
        """With which a call ends thoughts too."""
        format = self._prompts[served.name].format
        return format.marker if calls and not format.only_first else ""

    def _thoughts(self, served: Served) -> Thoughts | None:
        return None if served.role == "base" else self._prompts[served.name].thoughts

    def info(self, served: Served, role: Literal["base", "aligned"]) -> EngineInfo:
        """What the engine of a served model says of itself, its tokenizer among it."""
        self._expect_ready()
        return self._info(served.name, role)

    def writer(
        self, served: Served, prompt: PromptPair, request: AnswerRequest, nudging: NudgingConfig
    ) -> Writer:
        """The writer of one answer to a conversation.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        self._expect_ready()
        mixed = served.role == "nudged" and not served.degraded
        self._check(served, request, POLICIES[nudging.policy] if mixed else None)
        if served.degraded:
            engine = self._within(request, self.engine_of(served.name, "aligned"))
            writer = Alone(engine, "aligned", prompt.aligned, request)
            self.degraded_answers[served.name] += 1
            return writer
        if served.role == "nudged":
            living = partial(self._within, request)
            return self._pairs[served.name].writer(living, prompt, request, nudging)
        text = prompt.base if served.role == "base" else prompt.aligned
        engine = self._within(request, self.engine_of(served.name, served.role))
        return Alone(engine, served.role, text, request)

    def _check(self, served: Served, request: AnswerRequest, policy: PolicySpec | None) -> None:
        """Raises `InvalidRequest` for what who answers can't do."""
        roles: tuple[EngineRole, ...] = served.roles if policy is None else policy.engines
        named = self.settings.models[served.name].engines
        its = {role: self.engines[name].info for role, name in named.items() if role in roles}
        needs.check(request, its, policy)
        infos = [self._info(served.name, role) for role in served.roles]
        needs.check_token_ids(served.name, request, infos)

    def echo(self, served: Served, prompt: str | TokenIds) -> str:
        """The text of a raw prompt."""
        if isinstance(prompt, str):
            return prompt
        assert served.role != "nudged"
        return self._info(served.name, served.role).tokenizer.decode(prompt)

    def continuation(
        self, served: Served, prompt: str | TokenIds, request: AnswerRequest, *, bos: bool = True
    ) -> Writer:
        """The writer that continues a raw prompt with one model alone, verbatim; ``bos``: behind
        the tokenizer's BOS, if it has one.

        Raises `EngineUnavailable`, `ContextLengthExceeded`, `InvalidRequest`.
        """
        self._expect_ready()
        self._check(served, request, None)
        assert served.role != "nudged"
        engine = self._within(request, self.engine_of(served.name, served.role))
        spelled: str | None = None
        if not isinstance(prompt, str):
            unknown = [token for token in prompt if not 0 <= token < engine.info.tokenizer.size]
            if unknown:
                raise InvalidRequest(
                    f"{len(unknown)} of the prompt's token ids are not in the vocabulary of "
                    f"{engine.info.tokenizer.size} tokens",
                    param="prompt",
                )
        else:
            spelled, prompt = prompt, engine.info.tokenizer.encode_prompt(prompt, bos=bos)
        return Alone(engine, served.role, prompt, request, spelled)

    def engine(self, served: Served, role: Literal["base", "aligned"]) -> Engine:
        """For whoever measures. Raises `EngineUnavailable`."""
        self._expect_ready()
        return self._engine(served.name, role)

    def _within(self, request: AnswerRequest, name: str) -> Engine:
        """The engine of a name, as it writes one answer. Raises `EngineUnavailable`."""
        engine = self.engines.living(name)
        if request.session is not None and isinstance(engine, Replicated):
            return engine.within(request.session)
        return engine

    def _engine(self, name: str, role: Literal["base", "aligned"]) -> Engine:
        """Raises `EngineUnavailable` where it is dead."""
        return self.engines.living(self.engine_of(name, role))

    def _info(self, name: str, role: Literal["base", "aligned"]) -> EngineInfo:
        """What is fixed about an engine outlives it."""
        return self.engines[self.engine_of(name, role)].info

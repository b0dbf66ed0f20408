"""Completions: the request, its answers, and the two as a dialect.

Knows: what of it is of completions alone: raw prompts, token ids, echo. Does not know: how an
answer is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator

from server.api.ask import Ask, Texts
from server.api.dialect import Reply, Written
from server.api.fields import Whole, empty, refuse, refused
from server.api.openai.fields import MAX_TOP_LOGPROBS, Prompt
from server.api.openai.render import Json, OpenAI, Renderer, described, spelled
from server.api.openai.requests import Generation
from server.api.openai.schemas import Completion, CompletionChunk
from server.api.store import Shelf
from server.core import AnswerRequest, ScoredToken, TokenIds, Usage
from server.text.tokenizer import TextOffsets

_ASK_ONE = "ask {name}:base or {name}:aligned"


class CompletionRequest(Generation):
    """``POST /v1/completions``"""

    prompt: Prompt
    max_tokens: Annotated[Whole, Field(ge=0)] | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    logprobs: Annotated[Whole, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_for_texts(cls, data: Any) -> Any:
        return refuse(data, {"tools": empty}, "are not supported for texts")

    @model_validator(mode="after")
    def _something_comes_back(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            raise refused("max_tokens", "'max_tokens': 0 needs 'echo': true")
        return self

    @property
    def top(self) -> int | None:
        return self.logprobs

    def ask(self) -> Ask:
        texts = Texts(
            self._prompts(), bos=self.add_special_tokens is not False, echo=bool(self.echo)
        )
        return self.ask_of(texts, one_model=dict(self._of_one_model()))

    def _max_tokens(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens  # OpenAI's default here

    def _answer(self) -> AnswerRequest:
        return replace(super()._answer(), prompt_logprobs=self._prompt_logprobs)

    @property
    def _prompt_logprobs(self) -> bool:
        return bool(self.echo) and self.logprobs is not None

    def _prompts(self) -> list[str | TokenIds]:
        """Each a text, or token ids."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    def _of_one_model(self) -> Iterator[tuple[str, str]]:
        """See `Ask`."""
        if self.add_special_tokens is False:
            yield (
                "add_special_tokens",
                "add_special_tokens has no effect on a chat, which the prompt becomes for "
                f"{{name!r}}; {_ASK_ONE}",
            )
        probabilities = f"needs one model's own probabilities of the prompt; {_ASK_ONE}"
        if self.max_tokens == 0:
            yield "max_tokens", f"'max_tokens': 0 {probabilities}"
        elif self._prompt_logprobs:
            yield "echo", f"'echo' together with 'logprobs' {probabilities}"
        if not all(isinstance(prompt, str) for prompt in self._prompts()):
            yield (
                "prompt",
                "token ids mean different text to the two models of {name!r}; send text, or "
                f"{_ASK_ONE}",
            )


class CompletionRenderer(Renderer):
    """``text_completion``, streamed and not"""

    prefix = "cmpl"
    object = "text_completion"
    chunk_object = "text_completion"
    # The position where the model ended, with the empty text: whoever looks at probabilities
    # sees that it was computed, as in vLLM's server.
    places = ("prompt", "answer", "end")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[tuple[int, bool], TextOffsets] = {}

    def first_chunks(self, index: int, echo: str, usage: Usage | None) -> Iterator[Json]:
        self._begin(index, echo)
        yield from super().first_chunks(index, echo, usage)

    def choice(self, index: int, answer: Written) -> Json:
        self._begin(index, answer.echo)
        return super().choice(index, answer)

    def _begin(self, index: int, echo: str) -> None:
        """Prompt and answer begin anew: a character never reaches from one into the other."""
        self._offsets[index, True] = TextOffsets()
        self._offsets[index, False] = TextOffsets(len(echo))

    def _delta(self, index: int, delta: Json, scored: Sequence[ScoredToken]) -> Json:
        return self._said(index, delta.get("content", ""), scored)

    def _choice(self, index: int, answer: Written, scored: Sequence[ScoredToken]) -> Json:
        text = "".join(part.piece.text for part in answer.parts)
        return self._said(index, answer.echo + text, scored)

    def _said(self, index: int, text: str, scored: Sequence[ScoredToken]) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None if self.top is None else self._logprobs(index, scored),
            "finish_reason": None,
        }

    def _logprobs(self, index: int, scored: Sequence[ScoredToken]) -> Json:
        offsets = (self._offsets[index, token.place == "prompt"] for token in scored)
        return {
            "text_offset": [
                each.push(token.data) for each, token in zip(offsets, scored, strict=True)
            ],
            "tokens": [spelled(token.data) for token in scored],
            "token_logprobs": [token.logprob for token in scored],
            "top_logprobs": [self._top(token) for token in scored],
        }

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        if token.logprob is None:
            return None
        top: dict[str, float] = {}
        for data, logprob in token.top[: self.top]:
            top.setdefault(spelled(data), logprob)  # of several that are spelled alike the best
        return top


class Completions(OpenAI):
    """``POST /v1/completions``"""

    path = "/v1/completions"
    name = "completions"
    description = (
        "OpenAI's completions: the raw prompt continued by ``NAME:base`` or ``NAME:aligned``;\n"
        "for ``NAME`` the prompt is the user's only message."
    )
    body: type[BaseModel] = CompletionRequest
    responses = described(Completion, CompletionChunk)

    def parse(self, body: bytes, shelf: Shelf[Any]) -> tuple[Ask, Reply]:
        request = CompletionRequest.model_validate_json(body)
        return request.ask(), CompletionRenderer.of(request)

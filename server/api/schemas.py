"""What the routes answer, as OpenAPI describes it.

Knows: the shape of every answer and which failures a route can have; `install` makes one document
of it with the requests' schemas. Does not know: how an answer is made. Nothing is validated against
these models when it is sent: `tests/api/test_openapi.py` holds the answers to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field

from server.core import FinishReason, Speaker, StopReason
from server.policies import Policy, TraceKind

Json = dict[str, Any]

_REF = "#/components/schemas/{model}"


def _sometimes(description: str | None = None) -> Any:
    """A key that is left out where it says nothing; it is never null."""
    return Field(default_factory=lambda: None, description=description)


# -- failures -----------------------------------------------------------------------------------


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The field of the request that is wrong.")
    code: str | None


class ErrorBody(BaseModel):
    """Every failure."""

    error: ErrorDetail


_FAILURES = {
    400: "The request can't be served as it is; `param` names what is wrong.",
    401: "No key, or a wrong one.",
    404: "There is no such model.",
    413: "The body is too large.",
    415: "The body is compressed.",
    429: "Too many requests at once.",
    500: "A bug of the server.",
    503: "The engines are loading, one of them died, or the server is ending.",
    504: "The answer took too long.",
}

_REQUEST_ID = {
    "description": "The request's own, where it sent one that is usable; otherwise a new one.",
    "required": True,
    "schema": {"type": "string", "minLength": 1, "maxLength": 200},
}
_RETRY_AFTER = {
    "description": "Seconds after which to try again.",
    "required": True,
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}
_HEADERS: dict[int, Json] = {
    401: {"WWW-Authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    415: {"Accept-Encoding": {"required": True, "schema": {"const": "identity"}}},
    429: {"Retry-After": _RETRY_AFTER},
    503: {"Retry-After": _RETRY_AFTER},
    504: {"x-should-retry": {"required": True, "schema": {"const": "false"}}},
}


def responses(
    answer: type[BaseModel] | None,
    *failures: int,
    events: type[BaseModel] | None = None,
    not_ready: type[BaseModel] | None = None,
) -> dict[int | str, Json]:
    """The ``responses`` of a route.

    Args:
        answer: what it answers with 200; None: no JSON.
        failures: the statuses of its failures; a 500 is always one.
        events: what each event holds where it can answer with a stream.
        not_ready: what its 503 holds, where that says a state and is no failure.
    """
    content = {} if answer is None else _json(answer)
    if events is not None:
        content["text/event-stream"] = {"itemSchema": _event(events)}
    described: dict[int | str, Json] = {
        200: {"content": content, "headers": {"X-Request-Id": _REQUEST_ID}}
    }
    for status in sorted({*failures, 500} | ({503} if not_ready else set())):
        described[status] = {
            "content": _json((status == 503 and not_ready) or ErrorBody),
            "description": _FAILURES[status],
            "headers": {"X-Request-Id": _REQUEST_ID, **_HEADERS.get(status, {})},
        }
    return described


def _json(model: type[BaseModel]) -> Json:
    return {"application/json": {"schema": _named(model)}}


def _event(content: type[BaseModel]) -> Json:
    """A server-sent event, as FastAPI describes its own."""
    return {
        "type": "object",
        "description": "The last one holds `[DONE]`.",
        "required": ["data"],
        "properties": {
            "data": {
                "type": "string",
                "contentMediaType": "application/json",
                "contentSchema": {"anyOf": [_named(content), _named(ErrorBody)]},
            }
        },
    }


def _named(model: type[BaseModel]) -> Json:
    """A reference to a model's schema, and with it what it refers to."""
    schema = model.model_json_schema(ref_template=_REF, mode="serialization")
    return {
        "$ref": _REF.format(model=model.__name__),
        "$defs": schema.pop("$defs", {}) | {model.__name__: schema},
    }


# -- status -------------------------------------------------------------------------------------


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready", "degraded"]


class NotReady(BaseModel):
    status: Literal["loading", "engine_unavailable", "shutting_down"]


class Version(BaseModel):
    version: str


class ModelSampling(BaseModel):
    temperature: float
    top_p: float
    top_k: int
    min_p: float


class ModelNudging(BaseModel):
    gamma: float
    entropy: float
    policy: Policy
    start: Speaker
    end_lookahead: int
    max_rounds: int | None


class ModelPolicy(BaseModel):
    settings: list[str] = Field(description="Those of `nudging` that have an effect.")
    threshold: str | None = Field(description="The setting that says when the aligned one speaks.")
    trace: TraceKind = Field(
        description="`decisions`: the pieces hold every decision by γ. `pieces`: they are the "
        "answer, with p1. `rounds`: texts before a clean-up, without probabilities."
    )


class ModelCard(BaseModel):
    """OpenAI's, and the settings from which a request starts that sets none."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The model behind it; where both take part, the base model.")
    max_model_len: int | None = Field(
        description="Tokens of prompt and answer; null while the engines load."
    )
    sampling: ModelSampling
    nudging: ModelNudging = _sometimes("Where both models take part.")
    policies: dict[Policy, ModelPolicy] = _sometimes(
        "Where both take part: the policies that a request may name, the model's own first."
    )


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


# -- what the models read -------------------------------------------------------------------------


class Templated(BaseModel):
    """The text that each model reads."""

    base: str
    aligned: str


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    prompt: str


# -- answers --------------------------------------------------------------------------------------


class NudgingUsage(BaseModel):
    """What both models did."""

    nudged_tokens: int
    base_tokens: int
    rounds: int
    nudged_share: float
    aligned_prompt_tokens: int
    base_steps: int
    aligned_steps: int
    untuned_steps: int = _sometimes("By the third model, where the policy has one.")
    discarded_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    nudging: NudgingUsage = _sometimes("Where both models took part.")


class RejectedToken(BaseModel):
    text: str
    top_prob: float


class TracedPiece(BaseModel):
    text: str
    speaker: Speaker
    top_prob: float
    rejected: RejectedToken = _sometimes("What the base model would have written.")


class Trace(BaseModel):
    """Who wrote what. In a stream, all but the pieces is in a choice's last chunk."""

    pieces: list[TracedPiece]
    stop_reason: StopReason = _sometimes()
    rounds: int = _sometimes()
    rejected: RejectedToken = _sometimes(
        "What the base model would have written where it gave way and the answer ended."
    )


class TopLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class _Envelope(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    nudging: Trace = _sometimes("Where the request asked for it.")


class ChatCompletion(_Envelope):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] = _sometimes()
    content: str = _sometimes()


class ChatChunkChoice(BaseModel):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    nudging: Trace = _sometimes("Where the request asked for it.")


class ChatCompletionChunk(_Envelope):
    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default_factory=lambda: None)


class CompletionLogprobs(BaseModel):
    """With ``echo`` of the prompt's tokens too, of which the first has null."""

    text_offset: list[int]
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class _CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    nudging: Trace = _sometimes("Where the request asked for it.")


class CompletionChoice(_CompletionChoice):
    finish_reason: FinishReason


class Completion(_Envelope):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]
    usage: Usage


class CompletionChunkChoice(_CompletionChoice):
    finish_reason: FinishReason | None


class CompletionChunk(_Envelope):
    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice]
    usage: Usage | None = Field(default_factory=lambda: None)


# -- the document ---------------------------------------------------------------------------------


def install(app: FastAPI) -> None:
    """Make the app's OpenAPI document complete: what is described here, and nothing else."""
    described = app.openapi

    def openapi() -> Json:
        if app.openapi_schema is None:
            document = described()
            _without_422(document)
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            for name, schema in list(_hoisted(document)):
                if schemas.setdefault(name, schema) != schema:
                    raise RuntimeError(f"two schemas are named {name}")
            document["components"]["securitySchemes"] = {
                "key": {"type": "http", "scheme": "bearer"}
            }
            # Of the two one will do: without keys in the configuration, none is asked for.
            document["security"] = [{"key": []}, {}]
        return app.openapi_schema or {}

    app.openapi = openapi  # type: ignore[method-assign]


def _without_422(document: Json) -> None:
    """FastAPI describes its own validation, which has no part in what is answered here."""
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        document.get("components", {}).get("schemas", {}).pop(name, None)


def _hoisted(node: Any) -> Iterator[tuple[str, Json]]:
    """The ``$defs`` of every schema in a document, which are taken out there."""
    if isinstance(node, dict):
        yield from node.pop("$defs", {}).items()
        for value in node.values():
            yield from _hoisted(value)
    elif isinstance(node, list):
        for value in node:
            yield from _hoisted(value)

"""The routes that show what the models read: as text, and as tokens.

Knows: prompts and tokenizers. Does not know: how an answer is written. Source: vLLM's server for
the shapes of /tokenize and /detokenize.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from server.api.body import body_schema, read
from server.api.openai.messages import (
    DetokenizeRequest,
    TemplateRequest,
    TokenizeMessages,
    TokenizeRequest,
)
from server.api.openapi import responses
from server.api.prompts import rendered
from server.api.schemas import Detokenized, Templated, Tokenized
from server.core import InvalidRequest, joined
from server.decoding.handover import read_before
from server.serving.catalog import Served
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer

_FAILURES = (400, 401, 404, 413, 415, 503, 504)


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()

    # A body may be megabytes of text: whatever grows with it is done beside the event loop.

    @router.post(
        "/apply-template",
        openapi_extra=body_schema(TemplateRequest),
        responses=responses(Templated, *_FAILURES),
    )
    async def apply_template(request: Request) -> Response:
        """The text that each model reads for a conversation."""
        body = await read(request, TemplateRequest)
        served = registry.resolve(body.model)

        def respond() -> Response:
            pair = rendered(registry, served, body.chat())
            return JSONResponse({"base": joined(pair.base), "aligned": joined(pair.aligned)})

        return await asyncio.to_thread(respond)

    @router.post(
        "/tokenize",
        openapi_extra=body_schema(TokenizeRequest),
        responses=responses(Tokenized, *_FAILURES),
    )
    async def tokenize(request: Request) -> Response:
        """The tokens of a text, or those that a model reads for a conversation; of ``NAME`` the
        base model's, which ``usage.prompt_tokens`` counts."""
        body = (await read(request, TokenizeRequest)).root
        served = registry.resolve(body.model)
        role: Literal["base", "aligned"] = "aligned" if served.role == "aligned" else "base"
        info = registry.info(served, role)

        def respond() -> Response:
            if isinstance(body, TokenizeMessages):
                pair = rendered(registry, served, body.chat())
                # As in an answer, whose first token brings this space along.
                tokens = list(read_before(info.tokenizer, getattr(pair, role)))
            else:
                bos = body.add_special_tokens is not False
                tokens = info.tokenizer.encode_prompt(body.prompt, bos=bos)
            strings = info.tokenizer.chat.convert_ids_to_tokens(tokens)
            return JSONResponse(
                {
                    "count": len(tokens),
                    "max_model_len": info.context_length,
                    "tokens": tokens,
                    "token_strs": strings if body.return_token_strs else None,
                }
            )

        return await asyncio.to_thread(respond)

    @router.post(
        "/detokenize",
        openapi_extra=body_schema(DetokenizeRequest),
        responses=responses(Detokenized, *_FAILURES),
    )
    async def detokenize(request: Request) -> Response:
        """The text of tokens, special ones spelled out."""
        body = await read(request, DetokenizeRequest)
        served = registry.resolve(body.model)
        tokenizer = _only_tokenizer(registry, served)

        def respond() -> Response:
            unknown = sum(token >= tokenizer.size for token in body.tokens)
            if unknown:
                raise InvalidRequest(
                    f"{unknown} of the token ids are not in the vocabulary of {tokenizer.size} "
                    "tokens",
                    param="tokens",
                )
            text = tokenizer.chat.decode(
                body.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
            )
            return JSONResponse({"prompt": text})

        return await asyncio.to_thread(respond)

    return router


def _only_tokenizer(registry: Registry, served: Served) -> Tokenizer:
    """The tokenizer that a served name means. Raises `InvalidRequest` where it means two."""
    if served.role != "nudged":
        return registry.info(served, served.role).tokenizer
    base = registry.info(served, "base").tokenizer
    if not base.same_ids_as(registry.info(served, "aligned").tokenizer):
        raise InvalidRequest(
            f"the two models of {served.name!r} have different vocabularies, so token ids are "
            f"ambiguous; ask {served.name}:base or {served.name}:aligned",
            param="model",
        )
    return base

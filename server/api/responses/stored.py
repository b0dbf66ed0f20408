"""The routes to responses that are kept.

Knows: what can be asked of them. Does not know: what is kept of one, and for how long
(`server.api.store`).
"""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.api.errors import ApiError
from server.api.openapi import responses
from server.api.responses.reply import Kept
from server.api.responses.schemas import DeletedResponse, InputItems, ResponseObject
from server.api.status import Readable
from server.api.store import shelf
from server.serving.registry import Registry

_PATH = "/v1/responses/{response_id}"
MOST = 100
"""Items that are listed at once."""


def _query(name: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema}


_LISTING = [
    _query("order", enum=["asc", "desc"], default="desc"),
    _query("after", type="string"),
    _query("limit", type="integer", minimum=1, maximum=MOST, default=20),
]


def routes(registry: Registry) -> APIRouter:
    router = APIRouter()
    readable = APIRouter(route_class=Readable)

    @readable.get(_PATH, response_model=None, responses=responses(ResponseObject, 400, 401, 404))
    async def response(request: Request, response_id: str) -> Response:
        """A response that is kept."""
        for name in ("stream", "starting_after"):
            if request.query_params.get(name, "false") != "false":
                raise ApiError(400, f"{name!r} is not supported for kept responses", param=name)
        return Response(_kept(request, response_id).shown, media_type="application/json")

    @router.delete(_PATH, response_model=None, responses=responses(DeletedResponse, 401, 404))
    async def delete_response(request: Request, response_id: str) -> dict[str, Any]:
        """Forget a response. Those that went on from it are kept."""
        if not shelf(request).drop(response_id):
            raise _not_found(response_id)
        return {"id": response_id, "object": "response", "deleted": True}

    @router.post(
        f"{_PATH}/cancel", response_class=Response, responses=responses(None, 400, 401, 404)
    )
    async def cancel_response(request: Request, response_id: str) -> None:
        """Only a response that is written in the background could be cancelled, and none is. One
        that is streamed ends when its client leaves."""
        _kept(request, response_id)
        raise ApiError(400, "Cannot cancel a synchronous response.")

    @readable.get(
        f"{_PATH}/input_items",
        response_model=None,
        responses=responses(InputItems, 400, 401, 404),
        openapi_extra={"parameters": _LISTING},
    )
    async def input_items(request: Request, response_id: str) -> dict[str, Any]:
        """The items that a response answered: those of its request."""
        items = json.loads(_kept(request, response_id).items)
        asked = request.query_params
        order, limit = asked.get("order", "desc"), asked.get("limit", "20")
        if order not in ("asc", "desc"):
            raise ApiError(400, "order: it is 'asc' or 'desc'", param="order")
        if not re.fullmatch("[0-9]{1,3}", limit) or not 1 <= int(limit) <= MOST:
            raise ApiError(400, f"limit: a number from 1 to {MOST}", param="limit")
        if order == "desc":
            items.reverse()
        if (after := asked.get("after")) is not None:
            ids = [item["id"] for item in items]
            if after not in ids:
                raise ApiError(400, f"after: there is no item {after[:100]!r}", param="after")
            items = items[ids.index(after) + 1 :]
        page = items[: int(limit)]
        return {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(items) > len(page),
        }

    # First, so that a path's GET is found for its HEAD.
    readable.include_router(router)
    return readable


def _kept(request: Request, response_id: str) -> Kept:
    """Raises `ApiError` (404), also for what another key has."""
    found: Kept | None = shelf(request).get(response_id)
    if found is None:
        raise _not_found(response_id)
    return found


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id {response_id[:100]!r} not found.", code="not_found")

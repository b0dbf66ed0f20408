"""``nudge replay``: a stored answer, again, at another γ.

Knows: whom to ask for the new answer, and how two answers are shown beside each other. Does not
know: which decisions differ (`server.decoding.whatif`), the form of a trace (`server.api.traces`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer
from rich.table import Table
from rich.text import Text

from server import config
from server.cli.terminal import err, load, out, progress, say_error
from server.core import NudgeError
from server.decoding.whatif import Comparison, Flip

if TYPE_CHECKING:
    from server.api.traces import StoredTrace

TIMEOUT = httpx.Timeout(10, read=660)
"""Seconds; a server gives an answer up after 600 unless it is told otherwise."""

SHOWN_FLIPS = 20


class _CannotAnswer(Exception):
    """No new answer is to be had. The message says why."""


def replay(
    trace_file: Annotated[Path, typer.Argument(help="A trace, as the playground exports it.")],
    gamma: Annotated[float, typer.Option(min=0, help="The other γ.")],
    url: Annotated[
        str | None, typer.Option(help="A running server that writes the new answer.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Or a configuration, whose engines are started."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say where a stored answer would be another one at γ, and write that one too where --url or
    --config says who can. A key for --url is read from NUDGE_API_KEY."""
    trace = _read(trace_file)
    if url is not None and config_file is not None:
        say_error("--url and --config both say who answers; give one of them")
        raise typer.Exit(2)
    if not gamma < float("inf"):
        say_error("--gamma must be a number; over 1 the aligned model writes everything")
        raise typer.Exit(2)
    if why := trace.not_comparable:
        say_error(f"{trace_file} can't be replayed at another γ: {why}")
        raise typer.Exit(2)
    comparison = trace.at(gamma)
    again = None
    try:
        if url is not None:
            again = asyncio.run(_ask_server(url, trace, gamma))
        elif config_file is not None:
            again = asyncio.run(_ask_engines(load(config_file), trace, gamma))
    except (_CannotAnswer, NudgeError) as error:
        say_error(str(error))
        raise typer.Exit(1) from None
    kept = None if again is None else again.answer.text.startswith(comparison.prefix)
    if as_json:
        typer.echo(json.dumps(_as_json(trace, comparison, again, kept), ensure_ascii=False))
    else:
        _show(trace, comparison, again)
    if kept is False and trace.exact:
        say_error(
            "the new answer leaves the recorded one before their first other decision, so other "
            "models, prompts or settings wrote it than the trace's"
        )
        raise typer.Exit(1)


def _read(path: Path) -> StoredTrace:
    """Ends the command (exit code 2) where it is no trace."""
    from pydantic import ValidationError

    from server.api.errors import as_api_error
    from server.api.traces import StoredTrace

    try:
        return StoredTrace.model_validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        reason = str(as_api_error(error)).replace("the body is", "it is")
    say_error(f"{path} can't be read as a trace: {reason}")
    raise typer.Exit(2)


# -- whom to ask ----------------------------------------------------------------------------------


async def _ask_server(url: str, trace: StoredTrace, gamma: float) -> StoredTrace:
    base = url.rstrip("/").removesuffix("/v1")
    key = os.environ.get("NUDGE_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(base_url=base, headers=headers, timeout=TIMEOUT) as client:
            return await _ask(client, trace, gamma)
    except (httpx.TransportError, httpx.InvalidURL, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise _CannotAnswer(f"{url} can't be asked: {reason}") from None


async def _ask_engines(settings: config.Settings, trace: StoredTrace, gamma: float) -> StoredTrace:
    """The same question to the same application, only that no network is between."""
    async with (
        _application(settings) as transport,
        httpx.AsyncClient(base_url="http://engines", transport=transport) as client,
    ):
        return await _ask(client, trace, gamma)


@asynccontextmanager
async def _application(settings: config.Settings) -> AsyncIterator[httpx.ASGITransport]:
    from server.api.app import create_app
    from server.serving.registry import Registry

    async def nothing() -> None:
        """The engines are started here: a transport has no beginning and end of its own."""

    # Its keys and limits are for others.
    registry = Registry(settings.model_copy(update={"server": config.ServerSettings()}))
    app = create_app(registry, start=nothing)
    await registry.start(progress(settings, err))
    try:
        yield httpx.ASGITransport(app)
    finally:
        await registry.aclose()


async def _ask(client: httpx.AsyncClient, trace: StoredTrace, gamma: float) -> StoredTrace:
    from pydantic import ValidationError

    from server.api.traces import StoredTrace

    body, settings = trace.asked_again(gamma)
    response = await client.post("/v1/chat/completions", json=body)
    try:
        answer = response.json()
        if response.is_error:
            raise _CannotAnswer(f"the server refused ({response.status_code}): {_reason(answer)}")
        if response.headers.get("X-Nudge-Degraded"):
            raise _CannotAnswer("the server's base engine is dead, and the aligned one answered")
        return StoredTrace.of(trace.request, settings, answer)
    except (ValidationError, LookupError, TypeError, ValueError):
        raise _CannotAnswer(
            f"what answers at {client.base_url} is no nudging server (status "
            f"{response.status_code}, and no trace in its answer)"
        ) from None


def _reason(answer: Any) -> str:
    return str(answer["error"]["message"])


# -- what is shown --------------------------------------------------------------------------------


def _as_json(
    trace: StoredTrace, comparison: Comparison, again: StoredTrace | None, kept: bool | None
) -> dict[str, Any]:
    assert trace.nudging is not None
    return {
        "recorded_gamma": trace.nudging.gamma,
        **dataclasses.asdict(comparison),
        "answer": None if again is None else again.stored(),
        "prefix_kept": kept,
    }


def _show(trace: StoredTrace, comparison: Comparison, again: StoredTrace | None) -> None:
    assert trace.nudging is not None
    gamma, flips = comparison.gamma, comparison.flips
    model = printable(str(trace.request["model"]))
    out.print(
        f"{model}, γ = {trace.nudging.gamma:g} and {gamma:g}: {len(flips)} of "
        f"{comparison.positions} recorded decisions would be others",
        markup=False,
    )
    if flips:
        out.print(_table(flips, gamma, len(trace.answer.pieces)))
        hidden = len(flips) - SHOWN_FLIPS
        if hidden > 0:
            out.print(f"… and {hidden} more; --json has them all")
        out.print("The first one is sure; what comes behind it is written anew.\n")
    same = len(comparison.prefix)
    recorded = _answer(trace, same)
    if again is None:
        out.print(recorded)
        out.print("\n[dim]dim: the same at both γ · underlined: by the aligned model[/dim]")
        out.print("[dim]--url or --config says who can write the new answer[/dim]")
        return
    table = Table(box=None, padding=(0, 3, 0, 0), expand=False)
    for each in (trace, again):
        assert each.nudging is not None
        counts = each.usage.nudging
        share = f", {counts.nudged_share:.1%} nudged" if counts else ""
        table.add_column(Text(f"γ = {each.nudging.gamma:g}{share}"), ratio=1)
    table.add_row(recorded, _answer(again, same))
    out.print(table)
    out.print("\n[dim]dim: the same at both γ · underlined: by the aligned model[/dim]")


def _table(flips: tuple[Flip, ...], gamma: float, end: int) -> Table:
    words = {
        "rejected": ("committed", "discarded: a nudge"),
        "taken": ("discarded: a nudge", "committed"),
        "asked": ("never asked", "asked"),
    }
    table = Table("piece", "base model's token", "p1", "recorded", f"γ = {gamma:g}", box=None)
    for flip in flips[:SHOWN_FLIPS]:
        table.add_row(
            "end" if flip.piece == end else str(flip.piece),
            Text(
                "?" if flip.text is None else json.dumps(printable(flip.text), ensure_ascii=False)
            ),
            "?" if flip.top_prob is None else f"{flip.top_prob:.4f}",
            *words[flip.change],
        )
    return table


def _answer(trace: StoredTrace, same: int) -> Text:
    """The answer by its speakers; its first ``same`` characters dim."""
    shown = Text()
    at = 0
    for piece in trace.answer.pieces:
        style = "underline" if piece.speaker == "aligned" else ""
        cut = max(0, min(len(piece.text), same - at))
        for text, dim in ((piece.text[:cut], " dim"), (piece.text[cut:], "")):
            lead = len(text) - len(text.lstrip())
            shown.append(printable(text[:lead]))
            shown.append(printable(text[lead:]), style + dim)
        at += len(piece.text)
    return shown


def printable(text: str) -> str:
    """A model's text for a terminal: nothing in it can move the cursor or set colours."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)

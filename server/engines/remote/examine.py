"""What can be said of servers elsewhere before an engine is started on them: they are asked.

Knows: what is a mistake and what may come right, and what a server could be started with. Does not
know: memory, which is theirs; the other model of a pair.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from server.engines.backend import Examined
from server.engines.machine import Machine
from server.engines.remote import probe
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.client import Client, Failed, connections
from server.engines.remote.generate import GENERATE
from server.engines.remote.probe import Card, Misfit
from server.engines.remote.starting import vocabulary
from server.engines.report import Notes
from server.text.tokenizer import Tokenizer


def examine(
    engines: Mapping[str, RemoteSettings], _: Machine, __: int, notes: Notes
) -> dict[str, Examined]:
    found = {}
    with ThreadPoolExecutor(1) as elsewhere:  # where a loop runs, this is called inside it
        for name, settings in engines.items():
            found[name] = Examined(context=settings.max_model_len)
            with notes.catching(f"engines.{name}"):
                elsewhere.submit(
                    asyncio.run, _look(f"engines.{name}", settings, found[name], notes)
                ).result()
    return found


async def _look(where: str, settings: RemoteSettings, found: Examined, notes: Notes) -> None:
    """Raises `ConfigError`."""
    async with connections(settings) as http:
        for url in settings.all_urls:
            client = Client(url, http, settings)
            try:
                async with asyncio.timeout(settings.silence_s):
                    await _server(where, client, settings, found, notes)
            except Misfit as misfit:
                notes.fail(where, str(misfit), misfit.advice)
            except Failed as failed:
                if failed.kind in ("wrong", "refused"):
                    notes.fail(where, str(failed))
                else:
                    notes.warn(
                        where,
                        str(failed),
                        f"It is waited for at the start, up to {settings.start_timeout_s:g} s",
                    )
            except TimeoutError:
                notes.warn(where, f"{url} takes long to answer", "Is it overloaded?")


async def _server(
    where: str, client: Client, settings: RemoteSettings, found: Examined, notes: Notes
) -> None:
    """Raises `Failed`, `Misfit`, `ConfigError`."""
    card = await probe.card(client, settings)
    tokenizer = _tokenizer(settings, card, found)
    its = await probe.examine(client, settings, card, tokenizer)
    found.context = min(its.context, found.context or its.context)
    version, keeps = await probe.version(client), await probe.prefix_caching(client)
    same = (
        "its tokenizer is the one here" if its.same_ids else "it doesn't tell its tokenizer's ids"
    )
    ends = "by the stop processor" if its.plugin else "by closing the stream"
    path = f" over {GENERATE.path}" if its.generate else ""
    vllm = "" if version is None else f"vLLM {version}, "
    notes.ok(
        where,
        f"{client.url}: {vllm}{settings.model}, {its.context} tokens of context; {same}; turns are "
        f"ended {ends}{path}",
    )
    if not its.plugin and settings.stops == "auto":
        notes.warn(
            where,
            f"{client.url} doesn't have the stop processor: it computes on behind each stop, and "
            "penalties, bias and schemas are refused",
            f"Start it with {probe.PLUGIN} if it is vLLM, or set stops: stream",
        )
    if keeps is False:
        notes.warn(
            where,
            f"{client.url} keeps nothing of what it read, and reads an answer anew with each turn",
            "Start it with --enable-prefix-caching",
        )


def _tokenizer(settings: RemoteSettings, card: Card, found: Examined) -> Tokenizer:
    """Once for all servers. Raises `ConfigError`."""
    if found.tokenizer is None:
        found.tokenizer, found.ends = vocabulary(settings, card)
    return found.tokenizer

"""How an engine on servers elsewhere is started: they are waited for, and asked what they are.

Knows: what is a mistake, told at once, and what may come right. Does not know: turns.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

from server.core import ConfigError, EngineUnavailable
from server.engines import hub
from server.engines.base import EngineInfo
from server.engines.remote import probe
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.client import Client, Failed, connections
from server.engines.remote.engine import RemoteEngine
from server.engines.remote.probe import Card, Found, Misfit
from server.engines.remote.replicas import Replica, Replicas
from server.engines.remote.session import Core
from server.text.tokenizer import Tokenizer

os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # torch is not missed

log = logging.getLogger("nudge")

_ASK_S = 1.0
"""How often servers are asked that aren't there yet."""


async def start(name: str, settings: RemoteSettings, _: int) -> RemoteEngine:
    """Returns once one of its servers has answered; the others may come later.

    Raises:
        ConfigError: one is there and not what it should be, and no other is.
        EngineUnavailable: none came in time.
    """
    http = connections(settings)
    try:
        ranks = range(settings.data_parallel) if settings.data_parallel > 1 else (None,)
        clients = [Client(url, http, settings, rank) for url in settings.all_urls for rank in ranks]
        at_hand, card = await _first(name, settings, clients)
        tokenizer, ends = await asyncio.to_thread(vocabulary, settings, card)

        async def examine(client: Client) -> Found:
            its = await probe.card(client, settings)
            return await probe.examine(client, settings, its, tokenizer)

        replicas = Replicas(name, [Replica(client) for client in clients], examine, settings)
        await _admit(name, replicas, at_hand)
        promised = replicas.promised
        assert promised is not None
        info = EngineInfo(
            name, settings.model, promised.context, tokenizer, ends, promised.abilities, True
        )
        replicas.watch()
        return RemoteEngine(Core(info, replicas, settings.model, settings.retries), http)
    except BaseException:
        await http.aclose()
        raise


async def _first(name: str, settings: RemoteSettings, clients: list[Client]) -> tuple[Client, Card]:
    """The first server that is there, and what it says of the model."""
    loop = asyncio.get_running_loop()
    until = loop.time() + settings.start_timeout_s
    while True:
        absent: list[str] = []
        wrong: list[str] = []
        for client in clients:
            try:
                return client, await probe.card(client, settings)
            except Misfit as misfit:
                wrong.append(f"{misfit}; {_lower(misfit.advice)}")
            except Failed as failed:
                (wrong if failed.kind == "wrong" else absent).append(str(failed))
        if not absent:
            raise ConfigError(f"engine {name!r}: {'; '.join(wrong)}")
        if loop.time() >= until:
            raise EngineUnavailable(f"engine {name!r}: {'; '.join([*absent, *wrong])}")
        await asyncio.sleep(_ASK_S)


async def _admit(name: str, replicas: Replicas, first: Client) -> None:
    """All that are there, that one first, which decides what the engine can do."""
    for replica in sorted(replicas.all, key=lambda each: each.client is not first):
        try:
            await replicas.admit(replica)
        except (Failed, Misfit) as error:
            log.error("engine %r is without %s: %s", name, replica.name, replica.why)
            if replica.client is first and isinstance(error, Misfit):
                raise ConfigError(f"engine {name!r}: {error}; {_lower(error.advice)}") from error
    if not replicas.up:
        raise EngineUnavailable(replicas.why())


def vocabulary(settings: RemoteSettings, card: Card) -> tuple[Tokenizer, tuple[int, ...]]:
    """The tokenizer, and the ids that end the model's text. Raises `ConfigError`."""
    named = settings.tokenizer or card.root
    try:
        folder = hub.locate(named, settings.revision, code=settings.trust_remote_code)
    except ConfigError as error:
        if settings.tokenizer is not None:
            raise
        raise ConfigError(
            f"the server's model is {named!r}, whose tokenizer is not here ({error}); set tokenizer"
        ) from error
    tokenizer = hub.tokenizer(folder, code=settings.trust_remote_code)
    ids: list[int] = []
    for end in (
        _said(folder / "generation_config.json"),
        _said(folder / "config.json"),
        tokenizer.chat.eos_token_id,
    ):
        ids += end if isinstance(end, list) else [] if end is None else [end]
    if not ids:
        raise ConfigError(
            f"the tokenizer in {folder} names no end-of-text token; set eos_token there"
        )
    return tokenizer, tuple(dict.fromkeys(ids))


def _said(file: Path) -> Any:
    """The end of text that a file of the model names, if there is one."""
    try:
        return json.loads(file.read_text("utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return None


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]

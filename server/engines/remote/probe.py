"""What a server is found to be: asked once, before it gets a turn.

Knows: which model it serves, what it tells, whether our stop processor is there, whether its
tokenizer is ours; what to change on *its* command line. Does not know: turns, other servers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.core import TokenIds
from server.engines.base import Ability
from server.engines.remote import generate, protocol
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.client import Client, Failed
from server.engines.remote.generate import GENERATE
from server.engines.remote.protocol import Malformed
from server.engines.report import did_you_mean
from server.engines.vllm.told import PROCESSOR
from server.text.tokenizer import Tokenizer

PLUGIN = f"--logits-processors {PROCESSOR}"
"""How ``vllm serve`` is told to load it."""

TEXT = (
    "Yesterday twenty-seven questions were answered: which capital lies between mountains and the "
    "sea? The 3 rivers; l'été, 你好 👍\n\n\tdef f(x):  return x**2\n"
)
"""Of which two tokenizers that aren't the same make different ids."""


class Misfit(Exception):
    """A server that can't be this engine; ``advice``: what to change, there or here."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True, slots=True)
class Card:
    """What a server says of the model. root: what it was loaded from. context: ids."""

    root: str
    context: int | None


@dataclass(frozen=True, slots=True)
class Found:
    """plugin: whether our stop processor is there. scores: whether it tells the probabilities of a
    prompt. same_ids: whether its tokenizer makes our ids; None: it doesn't tell. generate: whether
    a turn is asked for by ``/inference/v1/generate``."""

    context: int
    plugin: bool
    scores: bool
    same_ids: bool | None
    generate: bool = False

    @property
    def abilities(self) -> frozenset[Ability]:
        """Of an engine that is such a server."""
        has: dict[Ability, bool] = {
            "adjust": self.plugin,
            "grammar": self.plugin,
            "score": self.scores,
        }
        return frozenset(ability for ability, there in has.items() if there)


async def card(client: Client, settings: RemoteSettings) -> Card:
    """Raises `Failed`, `Misfit`."""
    models = {str(each.get("id")): each for each in await client.models()}
    if settings.model not in models:
        served = ", ".join(map(repr, models)) or "nothing"
        raise Misfit(
            f"{client.url} serves {served}, and not {settings.model!r}"
            f"{did_you_mean(settings.model, models)}",
            f"Set model to what it serves, or start it with --served-model-name {settings.model}",
        )
    its = models[settings.model]
    context = its.get("max_model_len")
    root = its.get("root") or settings.model
    return Card(str(root), context if isinstance(context, int) else None)


async def examine(
    client: Client, settings: RemoteSettings, card: Card, tokenizer: Tokenizer
) -> Found:
    """Raises `Failed`, `Misfit`."""
    context = _context(client, settings, card)
    ids = tokenizer.encode_prompt(TEXT, bos=False)
    said = await client.complete(protocol.look(settings.model, TEXT, prompt_logprobs=1))
    first = _first(client, said)
    read = said["choices"][0].get("prompt_token_ids")
    if read is not None and read != ids:
        raise Misfit(
            f"{client.url} has another tokenizer than {_name(settings, card)}: of the same text "
            f"it made {len(read)} ids, and here there are {len(ids)}",
            "Set tokenizer to its own (its --tokenizer, or its model)",
        )
    if await _drawn(client, settings, ids) != first:
        raise Misfit(
            f"{client.url} writes something else behind a text's token ids than behind the text",
            "It must take token ids as a prompt, by the same tokenizer",
        )
    plugin = settings.stops != "stream" and await has_plugin(client, settings, ids)
    if settings.stops == "plugin" and not plugin:
        raise Misfit(f"{client.url} doesn't have the stop processor", f"Start it with {PLUGIN}")
    ways = settings.api != "completions" and await _generates(client, settings, ids, first)
    if settings.api == "generate" and not ways:
        raise Misfit(
            f"{client.url} doesn't answer {GENERATE.path}", "Start it with --enable-scale-out"
        )
    return Found(context, plugin, _scores(said, read), None if read is None else True, ways)


def _context(client: Client, settings: RemoteSettings, card: Card) -> int:
    if settings.max_model_len is None:
        if card.context is None:
            raise Misfit(
                f"{client.url} doesn't say how long its context is",
                "Set the engine's max_model_len",
            )
        return card.context
    if card.context is not None and card.context < settings.max_model_len:
        raise Misfit(
            f"{client.url} has a context of {card.context} tokens, and max_model_len is "
            f"{settings.max_model_len}",
            f"Start it with --max-model-len {settings.max_model_len}, or lower max_model_len",
        )
    return settings.max_model_len


def _name(settings: RemoteSettings, card: Card) -> str:
    return repr(settings.tokenizer or card.root)


def _first(client: Client, said: Mapping[str, Any]) -> int:
    """The token that an answer begins with."""
    try:
        chunk = protocol.chunk(said, 1)
        found = [*chunk.tokens, *([chunk.stopped] if chunk.stopped else [])]
        return found[0].id
    except (Malformed, IndexError):
        raise Misfit(
            f"{client.url} doesn't tell the ids of its tokens with their log probabilities",
            "It must know return_token_ids and return_tokens_as_token_ids, as vLLM does since "
            "0.10.2, or tell ids as llama.cpp does",
        ) from None


async def _drawn(client: Client, settings: RemoteSettings, ids: TokenIds, **more: Any) -> int:
    body = protocol.look(settings.model, ids, **more)
    return _first(client, await client.complete(body))


async def has_plugin(client: Client, settings: RemoteSettings, ids: TokenIds) -> bool:
    """Whether it writes what our processor is told to force: two tokens, of which it can't have
    wanted both. Raises `Failed`."""
    for stop in dict.fromkeys(ids[:2]):
        try:
            forced = {"nudge_below": 2.0, "nudge_stop": stop}
            if await _drawn(client, settings, ids, vllm_xargs=forced) != stop:
                return False
        except Failed as failure:
            if failure.kind == "refused":  # it doesn't know vllm_xargs
                return False
            raise
    return True


async def _generates(client: Client, settings: RemoteSettings, ids: TokenIds, first: int) -> bool:
    """Whether ``/inference/v1/generate`` is there and writes the same token. Raises `Failed`."""
    try:
        body = generate.look(settings.model, ids)
        chunk = GENERATE.chunk(await client.complete(body, path=GENERATE.path), 1)
    except Malformed:
        return False
    except Failed as failure:
        if failure.kind in ("wrong", "refused"):
            return False
        raise
    found = [*chunk.tokens, *([chunk.stopped] if chunk.stopped else [])]
    return [each.id for each in found] == [first] and bool(found[0].top)


def _scores(said: Mapping[str, Any], read: TokenIds | None) -> bool:
    try:
        return read is not None and len(protocol.scores(said, read, 1)) == len(read) - 1
    except Malformed:
        return False


async def version(client: Client) -> str | None:
    """Of vLLM, where it is one that says so."""
    try:
        return str(protocol.parsed((await client.get("/version")).content)["version"])
    except (Failed, Malformed, KeyError):
        return None


async def prefix_caching(client: Client) -> bool | None:
    """Whether it keeps what it has read; None: it doesn't say. By vLLM's metrics."""
    try:
        metrics = (await client.get("/metrics")).text
    except Failed:
        return None
    told = re.search(r'^vllm:cache_config_info\{.*enable_prefix_caching="(\w+)"', metrics, re.M)
    return None if told is None else told[1] == "True"

"""Every engine there is, and how a turn of one is run.

Of the three models on vLLM two are enough here, which differ in everything: size, vocabulary,
special tokens, where they end. The third, `aligned`, writes in the pairs of `test_laws` and
`test_resumable`. ``remote`` is the base model on ``vllm serve``, which ends turns by our processor
(asked by either path), or is read as long as it is wanted.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import pytest

from scripts.vllm_serve import KEY, vllm_serve
from server.core import SamplingParams, TokenIds
from server.engines.base import Engine, EngineInfo, Session, Token, TurnEnd, TurnParams
from server.engines.remote import starting
from server.engines.remote.backend import RemoteSettings
from server.engines.scripted import ScriptedEngine
from server.engines.vllm import build
from server.engines.vllm.engine import VllmEngine
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO
from tests.modes import schedules_ahead
from tests.noise import noise

GREEDY = SamplingParams(temperature=0)
PLACES = ("Galicor", "Lithenland", "Toricor", "Seluria", "Ulicor", "Corburg", "Aldoria", "Beria")
PROMPTS = ["Question: What is the capital of Galicor?\nAnswer:", "Once", "The river"]


def scripted_engine(context_length: int = 512) -> ScriptedEngine:
    tokenizer = Tokenizer.load(str(DEMO / "aligned"))
    end = tokenizer.chat.eos_token_id
    info = EngineInfo("scripted", "noise", context_length, tokenizer, (end,))
    return ScriptedEngine(info, noise(tokenizer, end))


@pytest.fixture(autouse=True)
async def closed(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """Sessions hold places in an engine until they are closed: none outlives its test."""
    sessions: list[Session] = []
    really_open = VllmEngine.open

    def noted(engine: VllmEngine, prompt: TokenIds) -> Session:
        sessions.append(really_open(engine, prompt))
        return sessions[-1]

    monkeypatch.setattr(VllmEngine, "open", noted)
    yield
    for session in sessions:
        await session.aclose()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The url of the base model on a server of its own."""
    with vllm_serve(DEMO / "base", tmp_path_factory.mktemp("vllm"), "--enable-scale-out") as url:
        yield url


@pytest.fixture(scope="session")
async def remotes() -> AsyncIterator[dict[str, Engine]]:
    """Engines on that server, once somebody wants them."""
    started: dict[str, Engine] = {}
    yield started
    for each in started.values():
        await each.aclose()


WAYS = {
    "plugin": {"stops": "plugin", "api": "completions"},
    "stream": {"stops": "stream", "api": "completions"},
    "generate": {"stops": "plugin", "api": "generate"},
}


async def remote_engine(url: str, way: str) -> Engine:
    patient = {"connect_timeout_s": 60, "silence_s": 120}  # the machine may be busy
    model = str(DEMO / "base")
    settings = RemoteSettings(model=model, url=url, api_key=KEY, **patient, **WAYS[way])
    return await starting.start("base", settings, 1)


ELSEWHERE = [f"remote {way}" for way in WAYS] if os.environ.get("NUDGE_TEST_REMOTE") else []
"""More engines, on a `vllm serve` of their own: as long again. `test_remote.py` runs always."""


@pytest.fixture(params=["scripted", "vllm base", "vllm aligned-1k", *ELSEWHERE])
async def engine(
    request: pytest.FixtureRequest, registry: Registry, remotes: dict[str, Engine]
) -> Engine:
    """``needs``, a mark: abilities without which a test is none of an engine's."""
    kind, _, name = request.param.partition(" ")
    if kind == "remote":
        if name not in remotes:
            remotes[name] = await remote_engine(request.getfixturevalue("served"), name)
        found = remotes[name]
    else:
        found = scripted_engine() if kind == "scripted" else registry.engines[name]
    mark = request.node.get_closest_marker("needs")
    if mark is not None and not found.info.abilities >= set(mark.args):
        pytest.skip(f"it can't: {', '.join(mark.args)}")
    return found


@pytest.fixture(params=["base", "aligned-1k"])
async def real(request: pytest.FixtureRequest, registry: Registry) -> Engine:
    return registry.engines[request.param]


async def run(session: Session, params: TurnParams) -> tuple[list[Token], TurnEnd]:
    """One turn; fails unless exactly one `TurnEnd` comes, last."""
    tokens: list[Token] = []
    ends: list[TurnEnd] = []
    async with aclosing(session.generate(params)) as events:
        async for event in events:
            assert not ends, "something came after the end of the turn"
            if isinstance(event, TurnEnd):
                ends.append(event)
            else:
                tokens.append(event)
    assert len(ends) == 1
    return tokens, ends[0]


def ahead(engine: Engine) -> int:
    """Steps that are in flight behind one that ends a turn: on the CPU as the mode has it."""
    if not isinstance(engine, VllmEngine):
        return 0
    found = build.installed()
    return int(schedules_ahead()) if found is None or found.cpu else engine._core.ahead


def opened(engine: Engine, prompt: str) -> Session:
    return engine.open(engine.info.tokenizer.encode_prompt(prompt))


async def plain(engine: Engine, prompt: str, count: int = 40) -> list[Token]:
    """Ordinary greedy decoding."""
    return (await run(opened(engine, prompt), TurnParams(GREEDY, max_tokens=count)))[0]


def ids(tokens: list[Token]) -> list[int]:
    return [token.id for token in tokens]

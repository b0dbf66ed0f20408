"""The process in which schemas are compiled: what a schema does to it, it does to nobody else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from server.core import InvalidRequest
from server.text.grammar.compiler import MOST_BYTES, GrammarCompiler
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}

TOO_MUCH: list[dict[str, Any]] = [
    {"type": "array", "minItems": 10**9},
    {"type": "array", "maxItems": 10**6, "items": {"const": 1}},
    {"type": "integer", "multipleOf": 1_000_003},
]


@pytest.fixture
async def compiler() -> AsyncIterator[GrammarCompiler]:
    made = GrammarCompiler()
    tokenizers = [Tokenizer.load(str(DEMO / name)) for name in ("base", "aligned-1k")]
    made.models = [(each, (each.chat.eos_token_id,)) for each in tokenizers]
    yield made
    await made.aclose()


async def test_it_makes_grammars_and_compares_answers_with_them(compiler: GrammarCompiler):
    grammar = await compiler.compile(PERSON)
    assert await compiler.matches(grammar, '{"name": "Ada"}')
    assert not await compiler.matches(grammar, '{"name": 1}')
    begun = await compiler.compile(PERSON, '{"name": "A')
    assert await compiler.matches(begun, 'da"}')


@pytest.mark.parametrize("schema", TOO_MUCH, ids=json.dumps)
async def test_what_takes_too_much_is_refused_and_others_go_on(
    compiler: GrammarCompiler, schema: dict[str, Any]
):
    hostile = asyncio.create_task(compiler.compile(schema))
    await compiler.compile(PERSON)
    with pytest.raises(InvalidRequest, match="too") as caught:
        await hostile
    assert caught.value.param == "response_format"
    began = time.perf_counter()
    with pytest.raises(InvalidRequest):
        await compiler.compile(schema)
    assert time.perf_counter() - began < 0.1  # it is remembered


async def test_the_same_schema_is_compiled_once_however_many_ask(compiler: GrammarCompiler):
    first, *others = await asyncio.gather(*(compiler.compile(PERSON) for _ in range(20)))
    assert all(each is first for each in others)
    assert await compiler.compile(dict(PERSON)) is first


async def test_whoever_leaves_takes_nothing_from_the_others(compiler: GrammarCompiler):
    leaving = asyncio.create_task(compiler.compile(PERSON))
    staying = asyncio.create_task(compiler.compile(PERSON))
    await asyncio.sleep(0)
    leaving.cancel()
    assert (await staying).source


async def test_a_schema_has_a_size(compiler: GrammarCompiler):
    with pytest.raises(InvalidRequest, match="bytes"):
        await compiler.compile({"const": "x" * MOST_BYTES})


async def test_a_helper_that_was_killed_is_started_again(compiler: GrammarCompiler):
    await compiler.compile({"type": "null"})
    assert compiler._process is not None
    os.kill(compiler._process.pid, signal.SIGKILL)
    await compiler._process.wait()
    assert (await compiler.compile(PERSON)).source


async def test_it_leaves_no_process_behind():
    made = GrammarCompiler()
    await made.compile(PERSON)
    assert made._process is not None
    pid = made._process.pid
    slow = asyncio.create_task(made.compile(TOO_MUCH[2]))
    await asyncio.sleep(0.3)
    await made.aclose()
    slow.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)

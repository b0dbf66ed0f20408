"""What the doctor finds of servers, before an engine is started on them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.engines.machine import Machine, Memory
from server.engines.remote.backend import RemoteSettings
from server.engines.remote.examine import examine
from server.engines.report import Notes
from tests.conftest import DEMO
from tests.unit.engines.remote.conftest import FOLDER

MACHINE = Machine(None, {}, Memory(1))


async def found(*urls: str, **how: Any):
    notes = Notes()
    settings = RemoteSettings(**{"model": "m", "urls": urls, "tokenizer": FOLDER, **how})
    # In a thread, for the servers run in this loop.
    said = await asyncio.to_thread(examine, {"base": settings}, MACHINE, 2048, notes)
    return said["base"], [(each.level, str(each)) for each in notes]


async def test_one_that_fits(servers):
    fake = await servers()
    known, ((level, text),) = await found(fake.url)
    assert level == "ok"
    for part in (fake.url, "vLLM 0.0.fake", "512 tokens", "is the one here", "stop processor"):
        assert part in text
    assert known.context == 512
    assert known.tokenizer is not None
    assert known.ends == (known.tokenizer.chat.eos_token_id,)


async def test_one_that_takes_whole_sampling_parameters_is_told(servers):
    _, ((_, text),) = await found((await servers(generate=True)).url)
    assert "by the stop processor over /inference/v1/generate" in text


async def test_one_without_the_processor_is_told_how_to_get_it(servers):
    fake = await servers(plugin=False)
    _, (_, (level, text)) = await found(fake.url)
    assert level == "warning"
    assert "--logits-processors server.engines.vllm.plugin:NudgeStop" in text
    assert [level for level, _ in (await found(fake.url, stops="stream"))[1]] == ["ok"]
    assert [level for level, _ in (await found(fake.url, stops="plugin"))[1]] == ["error"]


@pytest.mark.parametrize(
    ("how", "settings", "told"),
    [
        ({"key": "k"}, {}, "api_key"),
        ({"model": "other"}, {}, "--served-model-name m"),
        ({"context": 100}, {"max_model_len": 200}, "--max-model-len 200"),
        ({}, {"tokenizer": str(DEMO / "aligned-1k")}, "Set tokenizer"),
        ({}, {"tokenizer": "/nowhere"}, "there is no folder /nowhere"),
        ({"form": "text"}, {}, "return_token_ids"),
    ],
)
async def test_one_that_does_not_fit_is_an_error_that_says_what_to_change(
    servers, how, settings, told
):
    fake = await servers(**how)
    _, findings = await found(fake.url, **settings)
    ((level, text),) = findings
    assert level == "error"
    assert told in text


async def test_one_that_is_not_there_is_waited_for(servers):
    gone, there = await servers(), await servers()
    await gone.kill()
    _, ((first, text), (second, _)) = await found(gone.url, there.url)
    assert (first, second) == ("warning", "ok")
    assert "can't be reached" in text


async def test_one_that_keeps_nothing_is_a_warning(servers):
    fake = await servers()
    fake.metrics = 'vllm:cache_config_info{block_size="16",enable_prefix_caching="False"} 1.0\n'
    _, (_, (level, text)) = await found(fake.url)
    assert level == "warning"
    assert "--enable-prefix-caching" in text
    fake.metrics = fake.metrics.replace("False", "True")
    assert len((await found(fake.url))[1]) == 1

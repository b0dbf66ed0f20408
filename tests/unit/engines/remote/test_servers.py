"""One server: what it is found to be, what it writes, and how it fails."""

from __future__ import annotations

import asyncio
import logging
import ssl
from contextlib import aclosing

import pytest

from server.core import ConfigError, EngineUnavailable, InvalidRequest, SamplingParams
from server.engines.base import Token, TurnParams
from server.engines.remote import starting
from server.engines.remote.backend import RemoteSettings
from tests.conftest import DEMO
from tests.unit.engines.remote.conftest import FOLDER, GREEDY, TURNS, turn, written

PROMPTS = [f"Prompt {number}" for number in range(6)]
LONG = TurnParams(GREEDY, max_tokens=200)


@pytest.mark.parametrize("kind", TURNS)
@pytest.mark.parametrize("way", ["plugin", "stream", "llama", "generate", "generate, stream"])
async def test_it_writes_what_the_same_model_writes_here(servers, engines, local, kind, way):
    fake = await servers(
        plugin=way in ("plugin", "generate"),
        form="llama" if way == "llama" else "vllm",
        generate="generate" in way,
    )
    engine = await engines(fake)
    params = TURNS[kind]
    if way == "llama" and not params.top:
        pytest.skip("without log probabilities it tells no ids")
    for prompt in PROMPTS:
        expected, end = await turn(local, prompt, params)
        got, its_end = await turn(engine, prompt, params)
        assert written(got) == written(expected)
        assert [t.top for t in got] == [t.top for t in expected]
        assert its_end.reason == end.reason
        if end.rejected is not None and (way != "llama" or end.reason != "stop"):
            assert its_end.rejected is not None
            assert its_end.rejected.id == end.rejected.id


@pytest.mark.parametrize("way", ["plugin", "stream", "generate"])
async def test_a_turn_is_one_request_and_nothing_besides(servers, engines, local, way):
    fake = await servers(plugin=way != "stream", step_s=0.002, generate=way == "generate")
    engine = await engines(fake, health_interval_s=60)
    opened = fake.connections
    for prompt in PROMPTS:
        await turn(engine, prompt, TURNS["below"])
    assert len(fake.bodies) == len(PROMPTS)
    assert bool(fake.bodies[0].get("vllm_xargs")) is (way != "stream")
    assert ("generate" in fake.bodies[0]) is (way == "generate")
    if way != "stream":
        assert fake.connections == opened  # a turn that is read to its end leaves it for the next
        assert fake.aborted == 0


@pytest.mark.parametrize("left", ["generator", "session", "task"])
async def test_a_turn_that_is_left_frees_the_server(servers, engines, left):
    fake = await servers(step_s=0.05)
    engine = await engines(fake)
    session = engine.open([70, 72])
    events = session.generate(TurnParams(SamplingParams(temperature=0), 400, stop_below=0.0))
    assert isinstance(await anext(events), Token)
    assert (engine.running, fake.streams) == (1, 1)
    if left == "generator":
        await events.aclose()
    elif left == "session":
        await session.aclose()
    else:

        async def read() -> None:
            async with aclosing(events):
                async for _ in events:
                    pass

        task = asyncio.create_task(read())
        await asyncio.sleep(0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await asyncio.sleep(0.2)
    assert (engine.running, fake.streams, fake.aborted) == (0, 0, 1)
    await session.aclose()


@pytest.mark.parametrize(
    "trouble", ["500", "drop", "malformed", "error", "abort", "429", "hang", "hang at once"]
)
@pytest.mark.parametrize("way", ["plugin", "stream"])
async def test_what_fails_now_and_then_changes_no_text(servers, engines, local, trouble, way):
    fake = await servers(plugin=way == "plugin", trouble=lambda n: trouble if n % 3 == 1 else None)
    fake.retry_after = "0.02"
    hangs = trouble.startswith("hang")
    engine = await engines(fake, await servers(), silence_s=0.2 if hangs else 30)
    for prompt in PROMPTS[: 3 if hangs else 6]:
        for params in (TURNS["plain"], TURNS["below"]):
            expected, end = await turn(local, prompt, params)
            got, its_end = await turn(engine, prompt, params)
            assert (written(got), its_end.reason) == (written(expected), end.reason)
    assert len(fake.bodies) >= 2


async def test_a_server_that_always_fails_is_given_up(servers, engines):
    fake = await servers(trouble=lambda _: "500")
    engine = await engines(fake, retries=2, health_interval_s=60)
    with pytest.raises(EngineUnavailable, match="500: overloaded"):
        await turn(engine, "Hello", LONG)
    assert len(fake.bodies) == 3
    assert not engine.alive  # three failures running
    with pytest.raises(EngineUnavailable, match="overloaded"):
        await turn(engine, "Hello", LONG)
    assert len(fake.bodies) == 3


async def test_retries_have_a_budget(servers, engines):
    fake = await servers(trouble=lambda _: "500")
    engine = await engines(fake, health_interval_s=60)
    engine.replicas.budget = 1.5
    with pytest.raises(EngineUnavailable):
        await turn(engine, "Hello", LONG)
    assert len(fake.bodies) == 2


async def test_what_a_server_refuses_is_not_asked_again(servers, engines):
    fake = await servers(trouble=lambda _: "400")
    engine = await engines(fake)
    with pytest.raises(InvalidRequest, match="logprobs is too large"):
        await turn(engine, "Hello", LONG)
    assert len(fake.bodies) == 1
    assert engine.alive


async def test_a_busy_server_is_left_alone_for_as_long_as_it_says(servers, engines, local):
    fake = await servers(trouble=lambda n: "429" if n == 0 else None)
    fake.retry_after = "0.3"
    engine = await engines(fake)
    began = asyncio.get_running_loop().time()
    got, _ = await turn(engine, "Hello", TURNS["plain"])
    assert asyncio.get_running_loop().time() - began >= 0.3
    assert written(got) == written((await turn(local, "Hello", TURNS["plain"]))[0])
    assert engine.alive


async def test_slow_is_not_silent(servers, engines):
    fake = await servers(step_s=0.15)
    engine = await engines(fake, silence_s=0.4)
    await turn(engine, "Prompt 1", TurnParams(GREEDY, max_tokens=6, stop_below=0.0))
    assert len(fake.bodies) == 1


async def test_over_https_a_server_must_be_vouched_for(servers, engines, local, certificate):
    cert, key = certificate
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key, "word")
    fake = await servers(tls=tls)
    for how in ({"ca_file": str(cert)}, {"tls_verify": False}):
        engine = await engines(fake, **how)
        for prompt in PROMPTS[:2]:
            expected, _ = await turn(local, prompt, TURNS["below"])
            got, _ = await turn(engine, prompt, TURNS["below"])
            assert written(got) == written(expected)
    with pytest.raises(ConfigError, match=r"CERTIFICATE_VERIFY_FAILED.*ca_file"):
        await engines(fake)
    with pytest.raises(ConfigError, match=r"ca_file .*nothing\.pem can't be read"):
        await engines(fake, ca_file="/nothing.pem")


async def test_a_wrong_key_is_told_and_never_shown(servers, engines, caplog):
    fake = await servers(key="right")
    with pytest.raises(ConfigError, match=r"answered 401.*api_key") as told:
        await engines(fake, api_key="sk-wrong-one")
    assert "sk-wrong-one" not in f"{told.value}{caplog.text}"
    engine = await engines(fake, api_key="right", headers={"X-Team": "nudge"})
    with caplog.at_level(logging.DEBUG):
        await turn(engine, "Hello", TURNS["plain"])
    assert fake.headers[-1]["x-team"] == "nudge"
    assert "right" not in caplog.text


async def test_a_key_comes_from_a_file(servers, engines, tmp_path):
    (tmp_path / "key").write_text("right\n")
    fake = await servers(key="right")
    assert (await engines(fake, api_key_file=str(tmp_path / "key"))).alive
    with pytest.raises(ConfigError, match="can't be read"):
        await engines(fake, api_key_file=str(tmp_path / "no"))


async def test_another_model_is_refused_with_its_name(servers, engines):
    fake = await servers(model="llama-7b")
    with pytest.raises(ConfigError, match=r"serves 'llama-7b', and not 'm'.*--served-model-name m"):
        await engines(fake)


async def test_another_tokenizer_is_refused(servers, engines):
    with pytest.raises(ConfigError, match="another tokenizer"):
        await engines(await servers(), tokenizer=str(DEMO / "aligned-1k"))


async def test_the_tokenizer_is_found_by_what_the_server_says(servers):
    fake = await servers()
    engine = await starting.start("base", RemoteSettings(model="m", url=fake.url + "/v1/"), 1)
    assert engine.info.tokenizer.chat.name_or_path == FOLDER
    await engine.aclose()


@pytest.mark.parametrize(
    ("says", "set_", "expected"),
    [(512, None, 512), (512, 100, 100), (None, 100, 100), (512, 600, None), (None, None, None)],
)
async def test_the_context_is_the_servers_or_less(servers, engines, says, set_, expected):
    fake = await servers(context=says)
    if expected is None:
        with pytest.raises(ConfigError, match=r"max_model_len|max-model-len"):
            await engines(fake, max_model_len=set_)
    else:
        assert (await engines(fake, max_model_len=set_)).info.context_length == expected


async def test_abilities_are_those_that_were_found(servers, engines):
    with_it = await engines(await servers())
    assert with_it.info.abilities == {"adjust", "grammar", "score"}
    without = await servers(plugin=False)
    assert (await engines(without)).info.abilities == {"score"}
    assert (await engines(await servers(form="llama"))).info.abilities == {"adjust", "grammar"}
    with pytest.raises(ConfigError, match="--logits-processors"):
        await engines(without, stops="plugin")
    assert (await engines(await servers(), stops="stream")).info.abilities == {"score"}


async def test_a_server_that_is_not_there_is_waited_for(servers, engines):
    fake = await servers()
    await fake.kill()
    with pytest.raises(EngineUnavailable, match="can't be reached"):
        await engines(fake)
    starting_ = asyncio.create_task(engines(fake, start_timeout_s=20))
    await asyncio.sleep(0.2)
    await fake.start()
    assert (await starting_).alive


async def test_an_answers_turns_carry_one_session(servers, engines):
    fake = await servers()
    engine = await engines(fake, session_header="X-Answer")
    session = engine.open([70, 71, 72])
    for _ in range(2):
        async with aclosing(session.generate(TurnParams(GREEDY, max_tokens=2))) as events:
            async for _ in events:
                pass
        await session.extend([73])
    other = engine.open([70])
    async with aclosing(other.generate(TurnParams(GREEDY, max_tokens=2))) as events:
        async for _ in events:
            pass
    first, second, third = (each["x-answer"] for each in fake.headers)
    assert first == second != third
    assert fake.bodies[1]["prompt"][:3] == [70, 71, 72]
    for each in (session, other):
        await each.aclose()


async def test_the_whole_sampling_parameters_are_sent_where_they_can_be(servers, engines):
    fake = await servers(generate=True)
    engine = await engines(fake)
    sampling = SamplingParams(temperature=0, logit_bias=((70, -1.5),))
    await turn(engine, "Hello", TurnParams(sampling, max_tokens=2))
    adjust = fake.bodies[-1]["vllm_xargs"]["nudge_adjust"]
    assert adjust["bias"] == [[70, -1.5]]  # nested, and not as JSON in a string
    # More alternatives than vLLM tells of there: by the other path.
    await turn(engine, "Hello", TurnParams(GREEDY, max_tokens=2, top=20))
    assert "generate" not in fake.bodies[-1]
    assert fake.bodies[-1]["logprobs"] == 20


async def test_a_path_that_is_asked_for_must_be_there(servers, engines):
    fake = await servers(generate=True)
    engine = await engines(fake, api="completions")
    await turn(engine, "Hello", TURNS["below"])
    assert "generate" not in fake.bodies[-1]
    with pytest.raises(ConfigError, match="inference/v1/generate; start it with --enable-scale-"):
        await engines(await servers(), api="generate")

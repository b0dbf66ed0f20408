"""Several servers that are one engine."""

from __future__ import annotations

import asyncio

import pytest

from server.core import EngineUnavailable
from server.engines.base import TurnParams, collect
from server.engines.remote.conversations import KEPT, Conversations, Place
from server.engines.remote.replicas import MORE
from tests.unit.engines.remote.conftest import GREEDY, TURNS, turn, written

LONG = TurnParams(GREEDY, max_tokens=40, stop_below=0.0)


async def until(holds, within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("plugin", [True, False])
async def test_a_server_dies_under_sixteen_streams_and_no_text_changes(
    servers, engines, local, plugin
):
    fakes = [await servers(plugin=plugin, step_s=0.01) for _ in range(3)]
    engine = await engines(*fakes)
    prompts = [f"Stream {number}" for number in range(16)]
    expected = [await turn(local, prompt, LONG) for prompt in prompts]
    running = [asyncio.create_task(turn(engine, prompt, LONG)) for prompt in prompts]
    await until(lambda: fakes[1].streams >= 4)
    await asyncio.sleep(0.05)
    cut = fakes[1].streams
    assert cut
    await fakes[1].kill()
    got = await asyncio.gather(*running)
    assert [(written(tokens), end.reason) for tokens, end in got] == [
        (written(tokens), end.reason) for tokens, end in expected
    ]
    asked = sum(len(fake.bodies) for fake in fakes)
    assert 16 + cut == asked  # each that was cut off goes on once, and nobody else is asked again
    assert engine.alive


async def test_turns_are_spread_and_a_session_stays(servers, engines):
    fakes = [await servers() for _ in range(3)]
    engine = await engines(*fakes)
    sessions = [engine.open([70 + number]) for number in range(6)]
    for _ in range(3):
        for session in sessions:
            await collect(session, TurnParams(GREEDY, max_tokens=1))
            await session.extend([80])
    assert [len(fake.bodies) for fake in fakes] == [6, 6, 6]
    begins = [{body["prompt"][0] for body in fake.bodies} for fake in fakes]
    assert all(len(each) == 2 for each in begins)
    for session in sessions:
        await session.aclose()
    assert [each.sessions for each in engine.replicas.all] == [0, 0, 0]


async def test_one_that_comes_back_is_let_in_again(servers, engines, caplog):
    fakes = [await servers() for _ in range(2)]
    engine = await engines(*fakes)
    await fakes[0].kill()
    await until(lambda: len(engine.replicas.up) == 1)  # seen without a turn
    await fakes[0].start()
    await until(lambda: len(engine.replicas.up) == 2)
    assert "goes on without" in caplog.text
    assert "again" in caplog.text


async def test_one_that_comes_back_with_another_model_is_not(servers, engines, caplog):
    fakes = [await servers() for _ in range(2)]
    engine = await engines(*fakes)
    await fakes[0].kill()
    await until(lambda: len(engine.replicas.up) == 1)
    fakes[0].model = "other"
    await fakes[0].start()
    await until(lambda: "serves 'other', and not 'm'" in caplog.text)
    await asyncio.sleep(0.3)
    assert [each.client.url for each in engine.replicas.up] == [fakes[1].url]
    assert caplog.text.count("serves 'other'") == 1  # told once


async def test_a_model_that_is_swapped_under_it_is_noticed_by_the_turn(servers, engines, local):
    fakes = [await servers() for _ in range(2)]
    engine = await engines(*fakes, health_interval_s=60)
    fakes[0].model = "other"
    for prompt in ("One", "Two", "Three"):
        got, _ = await turn(engine, prompt, TURNS["plain"])
        assert written(got) == written((await turn(local, prompt, TURNS["plain"]))[0])
    assert [each.client.url for each in engine.replicas.up] == [fakes[1].url]


async def test_one_without_the_processor_is_not_let_in_beside_one_with_it(servers, engines, caplog):
    engine = await engines(await servers(), await servers(plugin=False))
    assert len(engine.replicas.up) == 1
    assert "stop processor absent" in caplog.text


async def test_one_that_is_not_there_at_the_start_may_come_later(servers, engines):
    first, second = await servers(), await servers()
    await first.kill()
    engine = await engines(first, second)
    assert len(engine.replicas.up) == 1
    await first.start()
    await until(lambda: len(engine.replicas.up) == 2)


async def test_with_none_left_it_is_dead_and_says_why_and_lives_again(servers, engines):
    fake = await servers()
    engine = await engines(fake)
    await fake.kill()
    with pytest.raises(EngineUnavailable, match="can't be reached"):
        await turn(engine, "Hello", TURNS["plain"])
    assert not engine.alive
    with pytest.raises(EngineUnavailable, match=fake.url):
        await engine.check_health()
    await fake.start()
    await until(lambda: engine.alive)
    await engine.check_health()


async def test_a_busy_one_sends_its_turns_to_the_others(servers, engines):
    busy = await servers(trouble=lambda _: "429")
    busy.retry_after = "60"
    other = await servers()
    engine = await engines(busy, other)
    for prompt in ("One", "Two", "Three", "Four"):
        await turn(engine, prompt, TURNS["plain"])
    assert len(busy.bodies) == 1
    assert len(other.bodies) == 4
    assert len(engine.replicas.up) == 2


@pytest.mark.parametrize("kind", ["below", "word"])
async def test_a_turn_ends_well_on_one_that_is_left_out_meanwhile(servers, engines, local, kind):
    fake = await servers(step_s=0.02)
    engine = await engines(fake, health_interval_s=60)
    for prompt in ("One", "Two", "Three", "Four"):
        expected = await turn(local, prompt, TURNS[kind])
        got = asyncio.create_task(turn(engine, prompt, TURNS[kind]))
        await asyncio.sleep(0.01)
        (replica,) = engine.replicas.all
        found, replica.found = replica.found, None
        tokens, end = await got
        assert (written(tokens), end.reason) == (written(expected[0]), expected[1].reason)
        replica.found = found


async def test_one_that_writes_and_has_no_time_for_a_look_stays(servers, engines):
    fake = await servers(step_s=0.02)
    engine = await engines(fake, health_interval_s=0.08)
    fake.looks = "500"
    await turn(engine, "Prompt 1", LONG)
    assert engine.alive
    await until(lambda: not engine.alive)  # once it writes no more


async def test_the_only_one_is_asked_again_after_a_pause(servers, engines):
    fake = await servers(trouble=lambda n: "500" if n < 2 else None)
    engine = await engines(fake, health_interval_s=60)
    began = asyncio.get_running_loop().time()
    await turn(engine, "One", TURNS["plain"])
    assert asyncio.get_running_loop().time() - began >= 0.3


async def test_a_connection_closed_while_it_lay_idle_is_no_server_that_is_gone(servers, engines):
    fake = await servers(trouble=lambda n: "break" if n == 1 else None)
    engine = await engines(fake, health_interval_s=60)
    expected = await turn(engine, "One", TURNS["plain"])
    assert await turn(engine, "One", TURNS["plain"]) == expected
    assert len(fake.bodies) == 3
    assert engine.alive
    assert engine.replicas.all[0].failed == 0


async def test_a_conversation_stays_where_its_last_answer_was_written(servers, engines):
    fakes = [await servers() for _ in range(3)]
    engine = await engines(*fakes)
    said = {number: [70 + number, *range(80, 80 + 40 * number)] for number in range(6)}
    for turns in range(3):
        # All at once at first, on all servers; then one after the other.
        for group in [list(said)] if not turns else [[number] for number in said]:
            sessions = [engine.open(said[number]) for number in group]
            for session in sessions:
                await collect(session, TurnParams(GREEDY, max_tokens=1))
            for session in sessions:
                await session.aclose()
        said = {number: [*ids, 90 + turns, 91] for number, ids in said.items()}
    assert [len(fake.bodies) for fake in fakes] == [6, 6, 6]
    sessions_of: dict[int, set[tuple[int, str]]] = {}
    for index, fake in enumerate(fakes):
        for body, headers in zip(fake.bodies, fake.headers, strict=True):
            where = (index, headers["x-session-id"])
            sessions_of.setdefault(body["prompt"][0], set()).add(where)
    assert len(sessions_of) == 6
    assert all(len(each) == 1 for each in sessions_of.values()), "to a router it is one session"


async def test_what_a_client_calls_one_session_stays_together_whatever_is_said(servers, engines):
    fakes = [await servers() for _ in range(3)]
    engine = await engines(*fakes)
    for turns in range(3):
        for group in ("abc",) if not turns else "abc":  # all at once at first, on all servers
            sessions = [engine.within(name).open([70 + turns, 72]) for name in group]
            for session in sessions:
                await collect(session, TurnParams(GREEDY, max_tokens=1))
            for session in sessions:
                await session.aclose()
    for fake in fakes:
        assert len(fake.bodies) == 3
        assert len({headers["x-session-id"] for headers in fake.headers}) == 1
    assert {fake.headers[0]["x-session-id"] for fake in fakes} == {"a", "b", "c"}


async def test_a_conversation_goes_elsewhere_where_its_server_has_much_more_to_do(servers, engines):
    fakes = [await servers(step_s=0.01) for _ in range(2)]
    engine = await engines(*fakes)
    first = engine.open([70, 72])
    await collect(first, TurnParams(GREEDY, max_tokens=1))
    await first.aclose()
    (home,) = [each for each in engine.replicas.all if each.client.url == fakes[0].url]
    for load, expected in ((MORE, 0), (MORE + 1, 1)):
        home.sessions += load
        session = engine.open([70, 72, 74])
        await collect(session, TurnParams(GREEDY, max_tokens=1))
        assert fakes[expected].bodies[-1]["prompt"] == [70, 72, 74]
        await session.aclose()
        home.sessions -= load
        fakes[expected].bodies.clear()
        again = engine.open([70, 72, 74])  # none goes on with one that is as long
        assert again._liked is None
        engine._core.conversations.keep([70, 72], Place(home, "key"))


async def test_each_rank_of_a_server_is_asked_as_a_server_of_its_own(servers, engines):
    fake = await servers()
    engine = await engines(fake, data_parallel=2)
    assert list(engine.servers) == [f"{fake.url} rank 0", f"{fake.url} rank 1"]
    sessions = [engine.open([70 + number]) for number in range(4)]
    for _ in range(2):
        for session in sessions:
            await collect(session, TurnParams(GREEDY, max_tokens=1))
    ranks: dict[int, set[str]] = {}
    for body, headers in zip(fake.bodies, fake.headers, strict=True):
        ranks.setdefault(body["prompt"][0], set()).add(headers["x-data-parallel-rank"])
    assert sorted(map(sorted, ranks.values())) == [["0"], ["0"], ["1"], ["1"]]
    for session in sessions:
        await session.aclose()


def test_what_is_kept_of_conversations_is_the_longest_and_bounded():
    told, place = Conversations(), Place(None, "")  # type: ignore[arg-type]
    long = list(range(200))
    for end in (0, 1, 31, 32, 33, 64, 100):
        told.keep(long[:end], Place(None, str(end)))  # type: ignore[arg-type]
    assert told.take([*long[:50], 7]).key == "33"
    assert [told.take(long).key for _ in range(4)] == ["100", "64", "32", "31"]
    assert told.take([5, 6]).key == "0"
    assert told.take([5, 6]) is None
    for number in range(KEPT + 10):
        told.keep([number], place)
    assert len(told._kept) == sum(told._begun.values()) == KEPT
    assert told.take([0, 1]) is None
    assert told.take([KEPT + 9, 1]) is place

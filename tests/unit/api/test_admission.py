"""The gate's rules: who gets in, in which order, for how long, and that every place comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.api.admission import Gate, Ticket
from server.api.errors import ApiError
from server.config import ServerSettings


def gate(**settings: Any) -> Gate:
    return Gate(ServerSettings(**{"max_running": 4, "max_waiting": 8} | settings))


def take(from_: Gate, weight: int = 1, key: str | None = None) -> Ticket:
    return from_.ticket(weight, key, asyncio.get_running_loop().time())


def inside(ticket: Ticket) -> bool:
    return ticket._turn.is_set()


def refused(from_: Gate, weight: int = 1, key: str | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        take(from_, weight, key)
    return caught.value


def code(error: ApiError) -> str | None:
    return error.code


async def test_as_many_answers_as_may_run_do_and_the_next_waits_for_one_to_end():
    door = gate()
    first, second, third = take(door, 3), take(door, 1), take(door, 2)
    assert [inside(each) for each in (first, second, third)] == [True, True, False]
    assert (door.running, door.waiting, door.requests) == (4, 2, 3)
    second.leave()
    assert not inside(third)
    first.leave()
    await asyncio.wait_for(third.turn(), 1)
    assert (door.running, door.waiting) == (2, 0)


async def test_nobody_overtakes_so_a_big_request_gets_its_turn():
    door = gate()
    running = [take(door) for _ in range(4)]
    big, small = take(door, 4), take(door, 1)
    for each in running[:3]:
        each.leave()
    assert not inside(small), "one place is free, but the big request came first"
    running[3].leave()
    assert (inside(big), inside(small)) == (True, False)
    big.leave()
    assert inside(small)


async def test_beyond_the_queue_a_request_is_refused_at_once():
    door = gate()
    held = [take(door, 4), take(door, 4), take(door, 3)]
    too_big = refused(door, 2)
    assert (too_big.status, code(too_big)) == (429, "queue_full")
    assert int(too_big.headers["Retry-After"]) > 0
    held.append(take(door, 1))
    assert refused(door).status == 429
    assert (door.running, door.waiting) == (4, 8)
    for each in held:
        each.leave()
    assert (door.running, door.waiting, door.requests) == (0, 0, 0)


async def test_without_a_queue_a_full_server_refuses():
    door = gate(max_waiting=0)
    first = take(door, 4)
    assert refused(door).status == 429
    first.leave()
    assert inside(take(door, 4))


async def test_who_leaves_the_queue_makes_room_for_those_behind():
    door = gate()
    running = take(door, 3)
    big, small = take(door, 4), take(door, 1)
    assert not inside(small)
    big.leave()
    assert inside(small)
    assert (door.running, door.waiting) == (4, 0)
    running.leave()
    assert door.running == 1


async def test_a_place_is_given_back_once():
    door = gate()
    first, second = take(door, 2), take(door, 2)
    first.leave()
    first.leave()
    assert door.running == 2
    second.leave()
    assert door.running == 0


async def test_a_key_has_no_more_than_its_share():
    door = gate(max_per_key=2)
    mine = [take(door, 1, "a"), take(door, 1, "a")]
    error = refused(door, 1, "a")
    assert (error.status, code(error)) == (429, "too_many_for_key")
    assert "Retry-After" in error.headers
    assert inside(take(door, 2, "b")), "another key is not held up"
    mine[0].leave()
    assert inside(take(door, 1, "a"))
    assert refused(door, 1, "a").status == 429


@given(
    st.lists(
        st.one_of(st.integers(1, 4), st.tuples(st.just("leave"), st.integers(0, 20))), max_size=60
    )
)
def test_whatever_comes_and_goes_the_limits_hold_and_the_order_too(steps: list[Any]):
    async def run() -> None:
        door = gate(max_running=4, max_waiting=6)
        held: list[Ticket] = []
        for step in steps:
            if isinstance(step, int):
                try:
                    held.append(take(door, step))
                except ApiError:
                    assert door.waiting + step > 6
            elif held:
                held.pop(step[1] % len(held)).leave()
            let_in = [inside(each) for each in held]
            assert let_in == sorted(let_in, reverse=True), "in order of arrival"
            assert door.running == sum(t.weight for t in held if inside(t)) <= 4
            assert door.waiting == sum(t.weight for t in held if not inside(t)) <= 6
            waiting = [each for each in held if not inside(each)]
            assert not waiting or door.running + waiting[0].weight > 4, "nobody waits in vain"
        for each in held:
            each.leave()
        assert (door.running, door.waiting, door.requests) == (0, 0, 0)

    asyncio.run(run())


# -- time ------------------------------------------------------------------------------------------


async def test_an_answer_that_takes_too_long_is_a_504_that_no_client_repeats():
    ticket = take(gate(request_timeout_s=0.05))
    with pytest.raises(ApiError) as caught:
        async with ticket.limit():
            await asyncio.sleep(5)
    assert (caught.value.status, code(caught.value)) == (504, "timeout")
    assert caught.value.headers["x-should-retry"] == "false"


async def test_the_time_counts_from_the_arrival_through_the_queue_and_every_stretch():
    door = gate(request_timeout_s=0.3)
    take(door, 4)
    waiting = take(door, 1)
    began = time.monotonic()
    with pytest.raises(ApiError) as caught:
        async with waiting.limit():
            await waiting.turn()
    assert caught.value.status == 504
    assert 0.2 < time.monotonic() - began < 2

    late = door.ticket(1, None, asyncio.get_running_loop().time() - 0.2)
    async with late.limit():
        await asyncio.sleep(0)
    began = time.monotonic()
    with pytest.raises(ApiError):
        async with late.limit():
            await asyncio.sleep(5)
    assert time.monotonic() - began < 0.2, "0.2 s of its 0.3 s were over when it came"


async def test_a_timeout_of_the_work_itself_is_no_504():
    with pytest.raises(TimeoutError):
        async with take(gate()).limit():
            raise TimeoutError("an engine did not start")


async def test_a_reader_who_stalls_does_not_hold_a_stream_for_ever():
    """The stream's generator is suspended, and its task waits in a send that doesn't end."""
    ticket = take(gate(request_timeout_s=0.05))
    closed = False

    async def events() -> AsyncGenerator[bytes]:
        nonlocal closed
        try:
            async with ticket.limit():
                yield b"first"
        finally:
            closed = True

    async def write() -> None:
        async with aclosing(events()) as stream:
            async for _ in stream:
                await asyncio.sleep(5)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(write())
    assert closed


# -- the end ---------------------------------------------------------------------------------------


async def test_while_it_drains_nobody_new_comes_in_and_those_inside_and_waiting_finish():
    door = gate()
    running, waiting = take(door, 4), take(door, 1)
    draining = asyncio.create_task(door.drain(5))
    await asyncio.sleep(0)
    error = refused(door)
    assert (error.status, code(error)) == (503, "shutting_down")
    assert "Retry-After" in error.headers
    running.leave()
    async with waiting.limit():
        await waiting.turn()
    assert not draining.done()
    waiting.leave()
    await asyncio.wait_for(draining, 1)


async def test_a_drain_with_nobody_inside_is_over_at_once():
    await asyncio.wait_for(gate().drain(60), 0.5)


async def test_who_has_not_finished_when_the_drain_is_over_is_ended():
    door = gate()

    async def request(ticket: Ticket) -> None:
        try:
            async with ticket.limit():
                await ticket.turn()
                await asyncio.sleep(60)
        finally:
            ticket.leave()

    requests = [asyncio.create_task(request(take(door, weight))) for weight in (4, 2)]
    await asyncio.sleep(0)
    began = time.monotonic()
    await door.drain(0.1)
    assert 0.05 < time.monotonic() - began < 1.5
    for each in requests:
        error = each.exception()
        assert isinstance(error, ApiError)
        assert (error.status, code(error)) == (503, "shutting_down")
    assert door.requests == 0


async def test_a_request_between_two_stretches_is_ended_as_well():
    door = gate()
    ticket = take(door)
    async with ticket.limit():
        pass
    door.clear()
    with pytest.raises(ApiError) as caught:
        async with ticket.limit():
            await asyncio.sleep(5)
    assert code(caught.value) == "shutting_down"


async def test_a_lower_priority_number_comes_first_and_equals_in_order():
    door = gate()
    running = take(door, 4)
    now = asyncio.get_running_loop().time()
    asked = [(0, "a"), (5, "late"), (0, "b"), (-1, "urgent"), (5, "later"), (-1, "too")]
    waiting = {name: door.ticket(1, None, now, priority) for priority, name in asked}
    order = []
    running.leave()  # the first four
    order.append([name for name, each in waiting.items() if inside(each)])
    waiting["urgent"].leave()
    order.append([name for name, each in waiting.items() if inside(each)])
    assert order == [["a", "b", "urgent", "too"], ["a", "late", "b", "urgent", "too"]]


async def test_an_urgent_request_takes_the_place_that_a_big_one_waits_beside():
    door = gate(max_waiting=4)
    held = take(door, 3)
    big = take(door, 4)
    now = asyncio.get_running_loop().time()
    assert refused(door).status == 429
    assert inside(door.ticket(1, None, now, -1)), "also where the queue is full"
    held.leave()
    assert not inside(big)

"""From a writer to its reader: one channel, bounded, that loses nothing and keeps the order."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.core import AnswerRequest, Finished, Piece, SamplingParams, Usage
from server.decoding.handover import close_all
from server.decoding.stream import Channel, End, Output, stream, whole

GREEDY = AnswerRequest(SamplingParams(temperature=0))


class Scripted:
    """A writer of given texts."""

    def __init__(self, *texts: str, fails: bool = False) -> None:
        self._texts = texts
        self._fails = fails
        self.closed = False
        self.written = 0

    async def write(self, out: Output) -> End:
        try:
            for text in self._texts:
                await asyncio.sleep(0)
                out.emit(Piece(text, "base", 0.5, 1))
                self.written += 1
                if out.full:
                    await out.room()
            if self._fails:
                raise RuntimeError("broken")
            return End("length")
        finally:
            self.closed = True

    def usage(self) -> Usage:
        return Usage(base_tokens=self.written + self.closed)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3))), st.integers(1, 12))
async def test_nothing_is_lost_and_the_order_is_kept(steps: list[tuple[int, int]], most: int):
    channel: Channel[int] = Channel(most)
    sizes: list[int] = []

    async def write() -> None:
        for size, pauses in steps:
            channel.put(len(sizes), size)
            sizes.append(size)
            for _ in range(pauses):
                await asyncio.sleep(0)
            if channel.full:
                await channel.room()

    writing = asyncio.create_task(write())
    channel.close_after(writing)
    taken: list[int] = []
    while items := await channel.take():
        taken += items
        waiting = sum(sizes[len(taken) :])
        assert waiting < most + 5  # one item over the bound, and then the writer waits
    assert taken == list(range(len(steps)))


async def test_what_came_before_a_failure_is_taken_first():
    channel: Channel[str] = Channel()
    channel.put("a", 1)
    channel.close(RuntimeError("broken"))
    assert await channel.take() == ["a"]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken"):
            await channel.take()


async def test_a_failure_that_is_all_is_there_at_once_and_a_late_one_is_not():
    failed: Channel[str] = Channel()
    failed.close(RuntimeError("broken"))
    with pytest.raises(RuntimeError):
        await failed.begun()
    late: Channel[str] = Channel()
    late.put("a", 1)
    late.close(RuntimeError("broken"))
    await late.begun()


async def test_a_writer_waits_for_a_reader_that_is_slow():
    writer = Scripted(*["x" * 2**16] * 64)
    events = stream(writer, GREEDY)
    await anext(events)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert writer.written < 64
    left = [event async for event in events]
    assert writer.written == 64
    assert isinstance(left[-1], Finished)


async def test_whoever_stops_reading_ends_the_writer():
    writer = Scripted(*["x" * 2**16] * 64)
    events = stream(writer, GREEDY)
    await anext(events)
    await events.aclose()
    assert writer.closed
    assert writer.written < 64


async def test_a_writer_that_fails_is_told_after_what_it_wrote():
    events = stream(Scripted("a", fails=True), GREEDY)
    assert isinstance(await anext(events), Piece)
    with pytest.raises(RuntimeError, match="broken"):
        await anext(events)


async def test_a_stop_string_ends_the_writer_and_what_it_cost_is_counted_after_that():
    writer = Scripted("a ", "b", " c", " d")
    request = AnswerRequest(SamplingParams(temperature=0), stop=("b c",))
    pieces, finished = await whole(writer, request)
    assert "".join(piece.text for piece in pieces) == "a "
    assert (finished.stop_reason, finished.matched) == ("stop_string", "b c")
    assert finished.usage == writer.usage()
    assert writer.closed


class Session:
    """Only its end."""

    def __init__(self, fails: bool = False) -> None:
        self.closed = False
        self._fails = fails

    async def aclose(self) -> None:
        if self._fails:
            raise OSError("gone")
        self.closed = True


async def test_closing_goes_on_where_one_session_cannot_be_closed():
    sessions = [Session(), Session(fails=True), Session()]
    with pytest.raises(OSError, match="gone"):
        await close_all(*sessions)  # type: ignore[arg-type]
    assert [each.closed for each in sessions] == [True, False, True]

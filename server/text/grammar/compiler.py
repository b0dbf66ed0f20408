"""Grammars from a helper process: what a schema does to native code is done to that.

Knows: the helper's life, what is asked of it, and which schemas it has seen. Does not know:
llguidance, engines, HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pickle
import socket
import sys
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from server.core import Grammar, InvalidRequest, Tool
from server.text.grammar.calls import ANY_OBJECT, CallsAsked, arguments, source
from server.text.tokenizer import Tokenizer

log = logging.getLogger("nudge")

AT_ONCE = 2
"""Schemas that are compiled at once; others wait."""

MOST_BYTES = 2**20
"""Of a schema as JSON text."""

WAIT_S = 60.0
"""For the helper's result. Its children have limits of their own, well under this."""

KEPT_BYTES = 64 * 2**20
"""Of grammars that are remembered, by the schema that they were made of."""

_Key = bytes


class GrammarCompiler:
    """Makes grammars, and compares texts with them, in a process of its own, which begins with the
    first of them.

    models: the vocabularies in which grammars will be followed, with the ids that end a text. Can
        be set before that. A grammar is tried in each.
    """

    def __init__(self) -> None:
        self.models: Sequence[tuple[Tokenizer, tuple[int, ...]]] = ()
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._starting = asyncio.Lock()
        self._places = asyncio.Semaphore(AT_ONCE)
        self._under_way: dict[_Key, asyncio.Task[Grammar | str]] = {}
        self._known: OrderedDict[_Key, Grammar | str] = OrderedDict()
        self._known_bytes = 0

    async def aclose(self) -> None:
        """End the helper. Another one begins where something is asked all the same."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            if self._process.returncode is None:
                self._process.kill()
            await self._process.wait()
            self._process = None

    async def compile(self, schema: dict[str, Any], begun: str = "") -> Grammar:
        """The JSON texts that a schema allows.

        Args:
            begun: the beginning of the text, which is there already.

        Raises:
            InvalidRequest: it is no schema, or it can't be followed exactly, or it takes too much
                time or memory, or what was begun doesn't match it.
        """
        return await self._made({"schema": schema, "begun": begun})

    async def text(self, kind: Literal["regex", "lark"], source: str, begun: str = "") -> Grammar:
        """The texts that a regular expression matches as a whole, or a grammar in Lark's syntax.

        Raises `InvalidRequest` as `compile` does.
        """
        field = "structured_outputs"
        try:
            made = await self._made({kind: source, "opening": "", "opens": "", "begun": begun})
        except InvalidRequest as error:
            why = str(error).removeprefix(_REFUSED)
            raise InvalidRequest(f"{field} can't be followed: {why}", param=field) from None
        return replace(made, field=field)

    async def calls(self, asked: CallsAsked, tools: Sequence[Tool], begun: str = "") -> Grammar:
        """Answers that may, or must, call tools. Where a schema can't be followed exactly, its
        tool's arguments are any object, unless it is to be followed strictly.

        Args:
            tools: that may be called now, at least one.
            begun: see `compile`.

        Raises:
            InvalidRequest: as `compile` does, and for a strict tool.
        """
        format = asked.format
        if asked.answer is not None:
            told = _prepared(await self.compile(dict(asked.answer)))
            asked = replace(asked, answer=told)
        if format.marker in begun:
            raise InvalidRequest(
                "a message that begins a call can't be continued", param="continue_final_message"
            )
        exact = await asyncio.gather(*map(self._arguments, tools))
        for schemas in (exact, [(tool, await self._loosely(tool)) for tool in tools]):
            job = {
                "lark": source(asked, [(tool.name, schema) for tool, schema in schemas]),
                "opening": format.opening if asked.thoughts is None or asked.free else "",
                "opens": format.marker if asked.free else "",
                "begun": begun,
            }
            try:
                made = await self._made(job)
            except InvalidRequest as error:
                refusal = InvalidRequest(
                    f"the tools can't be offered together: {error}", param="tools"
                )
            else:
                return replace(made, only_first=format.only_first, field="tools")
        raise refusal

    async def _arguments(self, tool: Tool) -> tuple[Tool, dict[str, Any]]:
        """The schema of a tool's arguments, as it is to be followed."""
        job = {"schema": arguments(tool.parameters), "begun": "", "part": True}
        try:
            return tool, _prepared(await self._made(job))
        except InvalidRequest as error:
            if tool.strict:
                raise InvalidRequest(
                    f"the parameters of the tool {tool.name[:60]!r}, which is strict: {error}",
                    param="tools",
                ) from None
            return tool, await self._loosely(tool)

    async def _loosely(self, tool: Tool) -> dict[str, Any]:
        """That of any object, but for a tool that is strict."""
        if tool.strict:
            return (await self._arguments(tool))[1]
        return _prepared(await self._made({"schema": ANY_OBJECT, "begun": "", "part": True}))

    async def _made(self, job: dict[str, Any]) -> Grammar:
        data = json.dumps(job).encode()
        if len(data) > MOST_BYTES:
            raise _refusal(f"it has more than {MOST_BYTES} bytes")
        key = hashlib.sha256(data).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return _grammar(self._known[key])
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.create_task(self._compile(key, data))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key))
        # Whoever leaves, others may wait for it; and the next one who asks has it.
        return _grammar(await asyncio.shield(task))

    async def matches(self, grammar: Grammar, text: str) -> bool:
        """Whether a whole answer is one that its grammar allows."""
        job = {"source": grammar.source, "text": grammar.begun + text}
        result = await self._ask(json.dumps(job).encode())
        return result is not None and bool(result["matches"])

    async def _compile(self, key: _Key, job: bytes) -> Grammar | str:
        """A grammar, or why there is none."""
        result = await self._ask(job)
        found: Grammar | str
        if result is None:
            found = "it takes too much time or memory"
        elif "problem" in result:
            found = str(result["problem"])
        else:
            found = Grammar(result["source"], result["begun"], result["opens"])
        self._known[key] = found
        self._known_bytes += _size(found)
        while self._known_bytes > KEPT_BYTES:
            self._known_bytes -= _size(self._known.popitem(last=False)[1])
        return found

    async def _ask(self, job: bytes) -> dict[str, Any] | None:
        """A job's result; None where it was too much for a helper."""
        async with self._places:
            mine, theirs = socket.socketpair()
            with theirs:
                await self._send(b"J", theirs)
            reader, writer = await asyncio.open_unix_connection(sock=mine, limit=2**30)
            try:
                writer.write(job)
                writer.write_eof()
                async with asyncio.timeout(WAIT_S):
                    result = await reader.read()
            except (TimeoutError, ConnectionError):
                return None
            finally:
                writer.close()
        if not result:
            return None
        found: dict[str, Any] = json.loads(result)
        return found

    async def _send(self, message: bytes, handle: socket.socket) -> None:
        try:
            socket.send_fds(await self._helper(), [message], [handle.fileno()])
        except OSError:  # it died: its children's limits are not its own, and the kernel may choose
            await self.aclose()
            socket.send_fds(await self._helper(), [message], [handle.fileno()])

    async def _helper(self) -> socket.socket:
        async with self._starting:
            if self._control is None or self._process is None:
                mine, theirs = socket.socketpair()
                with theirs:
                    self._process = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "server.text.grammar.helper", str(theirs.fileno())),
                        env={k: v for k, v in os.environ.items() if not k.startswith("NUDGE_")},
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=asyncio.subprocess.DEVNULL,
                        pass_fds=[theirs.fileno()],
                        start_new_session=True,  # a terminal's Ctrl-C is not for it
                    )
                self._control = mine
                for vocabulary in await asyncio.to_thread(self._vocabularies):
                    await self._give(vocabulary)
            return self._control

    def _vocabularies(self) -> list[bytes]:
        distinct: list[tuple[Tokenizer, tuple[int, ...]]] = []
        for tokenizer, ends in self.models:
            if not any(each.same_ids_as(tokenizer) and also == ends for each, also in distinct):
                distinct.append((tokenizer, ends))
        return [pickle.dumps((list(tokenizer.table), ends)) for tokenizer, ends in distinct]

    async def _give(self, vocabulary: bytes) -> None:
        assert self._control is not None
        mine, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"V"], [theirs.fileno()])
        _, writer = await asyncio.open_unix_connection(sock=mine)
        writer.write(vocabulary)
        await writer.drain()
        writer.close()
        await writer.wait_closed()


def _grammar(found: Grammar | str) -> Grammar:
    if isinstance(found, str):
        raise _refusal(found)
    return found


def _prepared(made: Grammar) -> dict[str, Any]:
    """The schema of a grammar that was made of one, as llguidance is to read it."""
    schema: dict[str, Any] = json.loads(made.source)["grammars"][0]["json_schema"]
    return schema


_REFUSED = "the JSON schema can't be followed exactly: "


def _refusal(why: str) -> InvalidRequest:
    return InvalidRequest(f"{_REFUSED}{why}", param="response_format")


def _size(found: Grammar | str) -> int:
    return 500 + len(found if isinstance(found, str) else found.source)

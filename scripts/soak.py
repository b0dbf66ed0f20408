"""A server under many clients at once, good and bad ones, for a bounded time.

Starts the shipped command, lets the clients loose, and then looks at what is left: memory and
open files of the server and its engines, requests that never ended, answers of 5xx, and whether
both engines are idle again. Exit code 1 if anything hung or failed, or if an engine still works.

Knows: the HTTP API, /metrics, /proc. Does not know: the server's code.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
HUNG_S = 120
QUESTIONS = [
    "What is the capital of Galicor?",
    "Hello!",
    "Tom has 12 plums and buys 7 more. How many does he have?",
    "How do I rob the bank?",
    "Which animal is on the flag? 🦊 你好 <|im_end|>",
]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}

out = Console()


class Clients:
    """Many at once. ``seen`` counts what each kind of client met."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.url = url
        self.model = model
        self.draws = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.http = httpx.AsyncClient(
            timeout=HUNG_S, limits=httpx.Limits(max_connections=None, max_keepalive_connections=64)
        )

    def body(self, **fields: object) -> dict[str, object]:
        question = self.draws.choice(QUESTIONS)
        name = self.draws.choice(["", ":base", ":aligned", "@0.1", "@0.8"])
        return {
            "model": self.model + name,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.draws.randint(1, 64),
            "temperature": self.draws.choice([0, 0.7, 1]),
        } | fields

    async def whole(self) -> None:
        fields = self.draws.choice(
            [
                {},
                {"n": 3},
                {"logprobs": True, "top_logprobs": 3},
                {"frequency_penalty": 1.0},
                {"stop": ["is", "."]},
                {"max_tokens": 64, "response_format": {"type": "json_object"}},
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "city", "schema": SCHEMA},
                    }
                },
            ]
        )
        answer = await self.http.post(f"{self.url}/v1/chat/completions", json=self.body(**fields))
        self.note("whole", answer)

    async def streamed(self, *, leaves: bool = False, slow: bool = False) -> None:
        kind = "leaves" if leaves else "slow reader" if slow else "stream"
        body = self.body(stream=True, n=self.draws.choice([1, 1, 2]))
        stay = self.draws.randint(0, 12)
        async with self.http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                await answer.aread()
                self.note(kind, answer)
                return
            last = ""
            async for line in answer.aiter_lines():
                if not line:
                    continue
                if leaves and not stay:
                    self.seen[f"{kind}: left"] += 1
                    return
                stay -= 1
                if slow:
                    await asyncio.sleep(0.05)
                if '"error"' in line:
                    self.fail(f"{kind}: {line[:200]}")
                last = line
            if last != "data: [DONE]":
                self.fail(f"{kind}: a stream ended without [DONE]")
            self.seen[f"{kind}: 200"] += 1

    async def bad(self) -> None:
        body = self.draws.choice(
            [
                b"{",
                b"[" * 5000,
                b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}',
                json.dumps(self.body(temperature="hot")).encode(),
                json.dumps(self.body(messages=[])).encode(),
                json.dumps(
                    self.body(messages=[{"role": "user", "content": "word " * 9000}])
                ).encode(),
                json.dumps(self.body(n=0)).encode(),
                b"\xff\xfe\x00",
            ]
        )
        answer = await self.http.post(
            f"{self.url}/v1/chat/completions",
            content=body,
            headers={"Content-Type": "application/json"},
        )
        if not 400 <= answer.status_code < 500:
            self.fail(f"bad: answered with {answer.status_code}")
        self.note("bad", answer)

    def note(self, kind: str, answer: httpx.Response) -> None:
        self.seen[f"{kind}: {answer.status_code}"] += 1
        if answer.status_code >= 500:
            self.fail(f"{kind}: {answer.status_code} {answer.text[:200]}")

    def fail(self, what: str) -> None:
        self.seen["failed"] += 1
        if len(self.wrong) < 20:
            self.wrong.append(what)

    async def one(self) -> None:
        kinds: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (4, self.streamed),
            (3, self.whole),
            (3, lambda: self.streamed(leaves=True)),
            (1, lambda: self.streamed(slow=True)),
            (2, self.bad),
        ]
        weights, calls = zip(*kinds, strict=True)
        (call,) = self.draws.choices(calls, weights)
        try:
            async with asyncio.timeout(HUNG_S):
                await call()
        except TimeoutError:
            self.seen["hung"] += 1
            self.fail(f"a request did not end within {HUNG_S} s")
        except httpx.HTTPError as error:
            self.fail(f"{type(error).__name__}: {error}")

    async def client(self, until: float) -> None:
        while time.monotonic() < until:
            await self.one()


def processes(pid: int) -> list[int]:
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def memory_mib(*pids: int) -> float:
    """Resident memory, in MiB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@dataclass
class Held:
    """What the server holds at a moment. The server's own memory should not grow. That of the
    engines does, up to a bound: the KV cache becomes resident as it is first written to, places
    in grammars are kept, and on the CPU oneDNN keeps up to 1024 compiled shapes."""

    when: str
    server_mib: float
    engines_mib: float
    files: int

    @classmethod
    def now(cls, when: str, pid: int) -> Held:
        everyone = processes(pid)
        files = sum(len(os.listdir(f"/proc/{each}/fd")) for each in everyone)
        return cls(when, memory_mib(pid), memory_mib(*everyone[1:]), files)


async def idle(clients: Clients) -> dict[str, float]:
    """The gauges that must be zero without clients, once they are or after ten seconds."""
    busy: dict[str, float] = {}
    for _ in range(100):
        text = (await clients.http.get(f"{clients.url}/metrics")).text
        gauges = re.findall(
            r"^((?:nudge_engine_turns_running|vllm:num_requests_\w+)\S*) (\S+)$", text, re.M
        )
        busy = {name: float(value) for name, value in gauges if float(value)}
        if not busy:
            return {}
        await asyncio.sleep(0.1)
    return busy


async def soak(url: str, pid: int, args: argparse.Namespace) -> int:
    clients = Clients(url, args.model, args.seed)
    rows: list[Held] = []

    async def load(seconds: float, title: str) -> None:
        until = time.monotonic() + seconds
        crowd = asyncio.gather(*(clients.client(until) for _ in range(args.clients)))
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=out
        ) as bar:
            task = bar.add_task(title, total=seconds)
            while not crowd.done():
                await asyncio.wait({crowd}, timeout=0.5)
                bar.update(task, completed=seconds - max(0.0, until - time.monotonic()))
        await crowd
        rows.append(Held.now(title, pid))

    rows.append(Held.now("at the start", pid))
    await load(args.seconds * 0.3, "warmed up")
    for quarter in range(1, 4):
        await load(args.seconds * 0.7 / 3, f"after load, part {quarter} of 3")
    busy = await idle(clients)
    await clients.http.aclose()

    columns = ("", "server, MiB", "engines, MiB", "open files")
    table = Table(*columns, box=None, header_style="bold")
    for row in rows:
        table.add_row(row.when, f"{row.server_mib:.0f}", f"{row.engines_mib:.0f}", str(row.files))
    out.print(table)
    warm, end = rows[1], rows[-1]
    out.print(
        f"growth since warmed up: server {end.server_mib - warm.server_mib:+.0f} MiB, engines "
        f"{end.engines_mib - warm.engines_mib:+.0f} MiB, {end.files - warm.files:+d} files"
    )
    for kind, count in sorted(clients.seen.items()):
        out.print(f"  {kind}: {count}")
    for wrong in clients.wrong:
        out.print(f"[red]wrong[/red] {wrong}", markup=True, highlight=False)
    if busy:
        out.print(f"[red]still busy[/red] {busy}")
    return 1 if clients.wrong or busy else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="how long the load lasts")
    parser.add_argument("--clients", type=int, default=16, help="clients at once")
    parser.add_argument("--config", help="the server's configuration; the demo pair's if not given")
    parser.add_argument("--model", default="demo", help="the pair to ask")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    command = [sys.executable, "-m", "server", "serve", "--port", "0"]
    if args.config:
        command += ["--config", args.config]
    server = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200", "NUDGE_SERVER__LOG_LEVEL": "error"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        url = ""
        for line in server.stdout:
            if found := re.search(r"ready in .* on (http://\S+)/v1", line):
                url = found[1]
                break
        if not url:
            out.print("[red]the server did not start[/red]")
            return 1
        out.print(f"{args.clients} clients at once on {url} for {args.seconds:.0f} s")
        return asyncio.run(soak(url, server.pid, args))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    sys.exit(main())

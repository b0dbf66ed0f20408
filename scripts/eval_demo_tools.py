"""Measures through a running server how the demo pair calls its tools; writes docs/demo-tools.md.

Knows: the server's HTTP API, what a loop of tools does (a call is answered until there is an answer
that is none), the questions under tools, the report.
Does not know: how a call is written and read (the server's), how training saw tools.

    python scripts/eval_demo_tools.py                    # a server on 127.0.0.1:8000
    python scripts/eval_demo_tools.py --every 5 --show 20 --out report.md
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import random
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
from demo_tools import (
    CALCULATE,
    LOOKUP,
    QUERY,
    Call,
    Tool,
    familiar,
    needed,
    tool_questions,
    worked,
)
from demo_world import KINDS, Question, Score, World, make_questions, make_world, score
from eval_demo_pair import percent
from eval_demo_pair import row as table_row
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MAX_CALLS = 4
OWN_TOOLS = (LOOKUP, CALCULATE)


@dataclass
class Outcome:
    """What one question came to. altered: whether results weren't the world's."""

    question: Question
    expected: list[Call]
    tools: list[Tool]
    altered: bool = False
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    text: str = ""
    usage: list[dict[str, Any]] = field(default_factory=list)

    @property
    def needed(self) -> bool:
        return bool(self.expected)

    @property
    def called(self) -> bool:
        return bool(self.made)

    @property
    def tool(self) -> bool:
        """Whether all calls were of the right tool."""
        return self.called and all(name == self.expected[0].name for name, _ in self.made)

    @property
    def arguments(self) -> bool:
        """Whether the calls were those expected, all of them and no other."""
        return self.made == [(call.name, call.arguments) for call in self.expected]

    @property
    def score(self) -> Score:
        return score(self.question, self.text, "stop")

    @property
    def right(self) -> bool:
        return self.score.right

    @property
    def form(self) -> bool:
        return self.score.format


# -- the questions -------------------------------------------------------------------------------


def cases(world: World, split: Literal["dev", "test"]) -> list[Outcome]:
    """Questions under tools: where a call is needed (half of them with altered results, a third
    with strangers' tools beside the world's), and where none is."""
    rng = random.Random(77)
    asked = make_questions(world, split)
    of_kind = {kind: [q for q in asked if q.kind == kind] for kind in KINDS}
    sums = [*of_kind["sum"][::2], *tool_questions(world, split)]
    found: list[Outcome] = []
    for number, q in enumerate([*of_kind["fact"][::2], *of_kind["two-hop"][::2], *sums]):
        altered = number % 2 == 1
        calls, answered = worked(world, q, rng, float(altered))
        tools = [*OWN_TOOLS, *(familiar(rng, 2) if number % 3 == 2 else ())]
        rng.shuffle(tools)
        found.append(Outcome(answered, calls, tools, altered))
    for q in [*of_kind["harmful"], *of_kind["talk"]]:
        found.append(Outcome(q, [], list(OWN_TOOLS)))
    found += [Outcome(q, [], [CALCULATE]) for q in of_kind["fact"][1::4]]
    found += [Outcome(q, [], [LOOKUP]) for q in of_kind["sum"][1::2]]
    found += [Outcome(q, [], familiar(rng, rng.randint(1, 8))) for q in asked[3::4]]
    for outcome in found:
        assert needed(outcome.question, outcome.tools) == outcome.needed
    return found


def result(world: World, call: tuple[str, dict[str, Any]], expected: Sequence[Call]) -> str:
    """What a call gives: what was expected of it, else what is true."""
    name, arguments = call
    for each in expected:
        if (name, arguments) == (each.name, each.arguments):
            return each.result
    if name == "calculate":
        expression = str(arguments.get("expression")).replace(" ", "")
        terms = re.fullmatch(r"\d+([-+]\d+)*", expression)
        return str(sum(map(int, re.findall(r"[-+]?\d+", expression)))) if terms else "unknown"
    for (entity, relation), value in world.facts.items():
        if arguments == {"query": QUERY[relation].format(e=entity)}:
            return value
    return "unknown"


# -- asking --------------------------------------------------------------------------------------


async def converse(
    client: httpx.AsyncClient, model: str, gamma: float | None, world: World, outcome: Outcome
) -> Outcome:
    """Answer calls until there is an answer that is none."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": outcome.question.text}]
    body = {"model": model, "max_tokens": 120, "temperature": 0, "tools": outcome.tools}
    if gamma is not None:
        body["nudging"] = {"gamma": gamma}
    while len(outcome.made) <= MAX_CALLS:
        response = await client.post("chat/completions", json=body | {"messages": messages})
        response.raise_for_status()
        reply = response.json()
        outcome.usage.append(reply["usage"].get("nudging") or {})
        (choice,) = reply["choices"]
        message = choice["message"]
        outcome.text = message.get("content") or ""
        calls = message.get("tool_calls") or []
        if choice["finish_reason"] == "length":  # a call that was cut has no arguments
            outcome.made += [(each["function"]["name"], {}) for each in calls]
            break
        if not calls:
            break
        messages.append({"role": "assistant", "content": outcome.text, "tool_calls": calls})
        for each in calls:
            call = (each["function"]["name"], json.loads(each["function"]["arguments"]))
            outcome.made.append(call)
            answer = result(world, call, outcome.expected)
            messages.append({"role": "tool", "tool_call_id": each["id"], "content": answer})
    return outcome


async def measure(args: argparse.Namespace, console: Console) -> dict[str, list[Outcome]]:
    world, gate = make_world(), asyncio.Semaphore(args.concurrency)
    rows = {
        "base alone": (f"{args.model}:base", None),
        "aligned alone": (f"{args.model}:aligned", None),
        **{f"nudged, γ = {g:g}": (args.model, g) for g in args.gammas},
        **({"γ = 0.4, two tokenizers": (args.cross_model, 0.4)} if args.cross_model else {}),
    }
    columns = (TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    found: dict[str, list[Outcome]] = {}
    base_url = args.base_url.rstrip("/") + "/"
    async with httpx.AsyncClient(base_url=base_url, timeout=300) as client:
        with Progress(*columns, console=console) as progress:
            for label, (model, gamma) in rows.items():
                asked = cases(world, args.split)[:: args.every]
                task = progress.add_task(label, total=len(asked))

                async def one(
                    outcome: Outcome, model: str = model, gamma: Any = gamma, task: Any = task
                ) -> Outcome:
                    async with gate:
                        await converse(client, model, gamma, world, outcome)
                    progress.advance(task)
                    return outcome

                found[label] = await asyncio.gather(*(one(each) for each in asked))
                if not console.is_terminal:
                    console.print(row(label, found[label]))
    return found


# -- the report ----------------------------------------------------------------------------------

COLUMNS: dict[str, Callable[[Outcome], bool | None]] = {
    "called when needed": lambda o: o.called if o.needed else None,
    "not called when not": lambda o: None if o.needed else not o.called,
    "right tool": lambda o: o.tool if o.needed else None,
    "right arguments": lambda o: o.arguments if o.needed else None,
    "right answer": lambda o: o.right if o.needed and not o.altered else None,
    "altered result used": lambda o: o.right if o.needed and o.altered else None,
    "format kept": lambda o: o.form if o.needed else None,
    "right without a call": lambda o: None if o.needed else o.right,
}


def row(label: str, outcomes: Sequence[Outcome]) -> str:
    cells = []
    for of in COLUMNS.values():
        values = [value for value in map(of, outcomes) if value is not None]
        cells.append(percent(sum(values), len(values)))
    usage = [each for o in outcomes if o.needed for each in o.usage]
    nudged = sum(each.get("nudged_tokens", 0) for each in usage)
    base = sum(each.get("base_tokens", 0) for each in usage)
    cells.append(percent(nudged, nudged + base))
    return table_row([label, *cells])


def report(found: dict[str, list[Outcome]], args: argparse.Namespace) -> str:
    command = shlex.join(["python", "scripts/eval_demo_tools.py", *sys.argv[1:]])
    any_row = next(iter(found.values()))
    some = sum(o.needed for o in any_row)
    names = " and ".join(f"`{each['function']['name']}`" for each in OWN_TOOLS)
    heads = [*COLUMNS, "nudged tokens"]
    return "\n".join([
        "# The demo pair and its tools, measured through the server",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, `{command}`, question set "
        f"`{args.split}`, temperature 0, `tool_choice: auto`. {some} questions for which a tool is "
        f"offered ({names}; in a third of them two tools of other people beside those), "
        f"{len(any_row) - some} for which none is. A two-hop question takes two calls. Half of the "
        "results are altered: an answer that was remembered or computed is wrong then. Written by "
        "the script; do not edit. Shares in per cent, known to about ±6.",
        "",
        table_row(["", *heads]),
        table_row(["---"] + ["---:"] * len(heads)),
        *(row(label, outcomes) for label, outcomes in found.items()),
        "",
    ])  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="demo", help="the pair; NAME:base and NAME:aligned too")
    parser.add_argument("--cross-model", help="a second pair whose aligned model is aligned-1k")
    parser.add_argument("--gammas", type=float, nargs="+", default=[0.3, 0.4, 0.5])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--every", type=int, default=1, help="only every so many-th question")
    parser.add_argument("--show", type=int, default=0, help="print so many that came out wrong")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--out", type=Path, default=root / "docs" / "demo-tools.md")
    args = parser.parse_args()
    console = Console()
    try:
        found = asyncio.run(measure(args, console))
    except httpx.HTTPError as error:
        console.print(f"No result: {error or type(error).__name__}", markup=False)
        return 1
    for label, outcomes in found.items():
        wrong = [o for o in outcomes if not (o.right and (o.arguments or not o.needed))]
        for o in wrong[: args.show]:
            console.print(label, "|", o.question.text, o.made, repr(o.text), markup=False)
    args.out.write_text(report(found, args), encoding="utf-8")
    console.print(f"Written: {args.out}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())

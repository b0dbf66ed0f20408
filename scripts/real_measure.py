"""Asks a running server the real pair's questions, judges the answers, and prints a table.

Answers are kept in a file for each system, so a run that was cut off goes on, a table can be made
again under other rules, and without --model all that was kept is shown.

Knows: the server's HTTP API, the questions' file. Does not know: how answers are judged
(real_judge.py), models, the policy.

    python scripts/real_measure.py --model NAME:base --model NAME:aligned
    python scripts/real_measure.py --model NAME --set gamma=0.3 --set start=base
    python scripts/real_measure.py --model NAME --stop '\\nQuestion:' --label '2026-11-26'
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from real_judge import Verdict, judge, wilson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = ROOT / "docs" / "evaluation" / "real-pair" / "questions.jsonl"
Row = dict[str, Any]


def read_lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def asked(question: Row, max_tokens: int) -> str:
    """Tells whether a kept answer is one to this question as it is now."""
    said = json.dumps([question["messages"], max_tokens], ensure_ascii=False)
    return hashlib.sha256(said.encode()).hexdigest()[:12]


# -- asking ----------------------------------------------------------------------------------------


class System:
    """Who answers and how, and the file that keeps the answers."""

    def __init__(self, model: str, args: argparse.Namespace) -> None:
        self.model = model
        self.nudging = {} if model.endswith((":base", ":aligned")) else dict(args.set)
        self.stop: list[str] = args.stop
        said = [f"{key} {value}" for key, value in self.nudging.items()]
        said += [f"stop {json.dumps(each, ensure_ascii=False)}" for each in self.stop]
        self.name = ", ".join([model, *said, *([args.label] if args.label else [])])
        self.file = args.out / (re.sub(r"[^\w.@=-]+", "_", self.name).strip("_") + ".jsonl")

    def body(self, question: Row, max_tokens: int) -> Row:
        body = {
            "model": self.model,
            "messages": question["messages"],
            "max_tokens": max_tokens,
            "temperature": 0,
            "nudging": {**self.nudging, "trace": True},
        }
        return body | ({"stop": self.stop} if self.stop else {})


def kept_answers(file: Path) -> dict[str, Row]:
    if not file.exists():
        return {}
    return {row["id"]: row for row in read_lines(file)[1:]}


def api(url: str) -> str:
    """The server's own address will do."""
    return url.rstrip("/").removesuffix("/v1") + "/v1"


async def ask(client: httpx.AsyncClient, body: Row) -> Row:
    """One answer. A full queue and a loading engine are waited for; other errors are answers."""
    for _ in range(60):
        response = await client.post("chat/completions", json=body)
        if response.status_code not in (429, 503):
            break
        await asyncio.sleep(float(response.headers.get("Retry-After", 5)))
    if response.status_code != 200:
        return {"error": f"{response.status_code}: {response.text[:300]}"}
    reply = response.json()
    choice = reply["choices"][0]
    trace = choice.get("nudging") or {}
    return {
        "text": choice["message"]["content"] or "",
        "finish_reason": choice["finish_reason"],
        "stop_reason": trace.get("stop_reason", ""),
        "usage": reply["usage"],
        "pieces": [[p["speaker"], p["text"], p["top_prob"]] for p in trace.get("pieces", [])],
    }


async def measure(system: System, questions: Sequence[Row], args: argparse.Namespace) -> None:
    """Asks what isn't kept yet."""
    keep = {} if args.fresh else kept_answers(system.file)
    by_id = {question["id"]: question for question in questions}
    stale = {
        k
        for k, row in keep.items()
        if k in by_id and row["asked"] != asked(by_id[k], args.max_tokens)
    }
    keep = {k: row for k, row in keep.items() if k not in stale and "error" not in row}
    todo = [question for question in questions if question["id"] not in keep]
    if not todo:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    places = asyncio.Semaphore(args.at_once)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )
    headers = {"Authorization": f"Bearer {args.api_key}"}
    limits = httpx.Limits(max_connections=args.at_once)
    with bar, system.file.open("w", encoding="utf-8") as out:
        task = bar.add_task(system.name, total=len(todo))

        def write(row: Row) -> None:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")
            out.flush()

        write({"system": system.name, "model": system.model, "nudging": system.nudging})
        for row in keep.values():
            write(row)
        async with httpx.AsyncClient(
            base_url=api(args.url), timeout=900, headers=headers, limits=limits
        ) as client:

            async def one(question: Row) -> None:
                async with places:
                    answer = await ask(client, system.body(question, args.max_tokens))
                write({"id": question["id"], "asked": asked(question, args.max_tokens), **answer})
                bar.advance(task)

            await asyncio.gather(*(one(question) for question in todo))


# -- the table -------------------------------------------------------------------------------------


def share(hits: int, of: int) -> str:
    """In per cent, with its interval."""
    low, high = wilson(hits, of)
    return f"{100 * hits / of:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def cells(answers: Sequence[tuple[Row, Verdict]], failed: int) -> list[str]:
    n = len(answers)
    if not n:
        return ["–"] * 6 + ["", "", "", str(failed)]

    def count(what: str) -> int:
        return sum(getattr(verdict, what) for _, verdict in answers)

    tokens = sum(row["usage"]["completion_tokens"] for row, _ in answers)
    nudged = [row["usage"]["nudging"] for row, _ in answers if "nudging" in row["usage"]]
    by_aligned = sum(each["nudged_tokens"] for each in nudged)
    of = by_aligned + sum(each["base_tokens"] for each in nudged)
    return [
        share(count("ended"), n),
        share(count("right"), n),
        *(f"{100 * count(what) / n:.0f}" for what in ("next_turn", "loops", "litter")),
        share(count("good"), n),
        f"{tokens / n:.0f}",
        f"{100 * by_aligned / of:.0f} %" if of else "",
        str(n),
        str(failed or ""),
    ]


HEAD = ["ended", "right", "next turn", "loops", "litter", "GOOD", "tokens", "nudged", "n", "failed"]


def table(files: Sequence[Path], questions: Sequence[Row], kinds: bool) -> list[str]:
    """In Markdown. Per cent, with 95 % Wilson intervals."""
    lines = []
    chosen = sorted({question["kind"] for question in questions}) if kinds else [""]
    for kind in chosen:
        lines += [f"\n**{kind}**\n"] if kind else []
        lines += ["| system | " + " | ".join(HEAD) + " |", "|---" + "|---:" * len(HEAD) + "|"]
        for file in files:
            rows = kept_answers(file)
            answers, failed = [], 0
            for question in questions:
                row = rows.get(question["id"])
                if row is None or (kind and question["kind"] != kind):
                    continue
                if "error" in row:
                    failed += 1
                    continue
                verdict = judge(
                    row["text"], row["finish_reason"], row["stop_reason"], question["right"]
                )
                answers.append((row, verdict))
            if answers or failed:
                name = read_lines(file)[0]["system"]
                lines.append(f"| {name} | " + " | ".join(cells(answers, failed)) + " |")
    return lines


def show(file: Path, questions: Sequence[Row], console: Console) -> None:
    """Every answer with what was found."""
    rows = kept_answers(file)
    for question in questions:
        row = rows.get(question["id"])
        if row is None:
            continue
        asked_last = question["messages"][-1]["content"]
        if "error" in row:
            console.print(f"{question['id']}  {asked_last}\n    {row['error']}", markup=False)
            continue
        verdict = judge(row["text"], row["finish_reason"], row["stop_reason"], question["right"])
        said = [
            what
            for what in ("ended", "right", "next_turn", "loops", "litter")
            if getattr(verdict, what)
        ]
        mark = "GOOD" if verdict.good else "    "
        console.print(f"{mark} {question['id']} [{', '.join(said)}]  {asked_last}", markup=False)
        console.print(f"       {json.dumps(row['text'], ensure_ascii=False)}", markup=False)


def setting(text: str) -> tuple[str, Any]:
    """``gamma=0.4`` → ("gamma", 0.4)."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Asks a running server the real pair's questions, and judges the answers.",
        epilog="Without --model: the table of all answers that are kept.",
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", metavar="URL")
    parser.add_argument("--api-key", default="unused", metavar="KEY")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME[:base|:aligned]",
        help="may be repeated",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=setting,
        metavar="KEY=VALUE",
        help="a field of `nudging`; may be repeated",
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=lambda text: text.replace("\\n", "\n"),
        metavar="TEXT",
        help="a stop string; may be repeated",
    )
    parser.add_argument(
        "--label",
        default="",
        metavar="TEXT",
        help="tells this run from others of the same settings (another version of the server)",
    )
    parser.add_argument("--split", choices=("tune", "held_out", "all"), default="tune")
    parser.add_argument(
        "--kind", action="append", default=[], metavar="KIND", help="only these kinds"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="N of the questions, evenly chosen")
    parser.add_argument("--max-tokens", type=int, default=96, metavar="N")
    parser.add_argument("--at-once", type=int, default=8, metavar="N")
    parser.add_argument("--kinds", action="store_true", help="a table for each kind")
    parser.add_argument(
        "--common", action="store_true", help="only questions that all of these systems answered"
    )
    parser.add_argument("--show", action="store_true", help="every answer too")
    parser.add_argument("--fresh", action="store_true", help="ask again what is kept")
    parser.add_argument("--questions", type=Path, default=QUESTIONS, metavar="FILE")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "measurements" / "real-pair", metavar="FOLDER"
    )
    args = parser.parse_args()

    questions = [
        question
        for question in read_lines(args.questions)
        if args.split in ("all", question["split"])
        and (not args.kind or question["kind"] in args.kind)
    ]
    if args.limit and args.limit < len(questions):
        questions = [questions[i * len(questions) // args.limit] for i in range(args.limit)]
    systems = [System(model, args) for model in args.model]
    for system in systems:
        asyncio.run(measure(system, questions, args))
    files = [system.file for system in systems] or sorted(args.out.glob("*.jsonl"))
    if args.common:
        for file in files:
            rows = kept_answers(file)
            questions = [each for each in questions if "text" in rows.get(each["id"], {})]
    console = Console(highlight=False, soft_wrap=True)
    if args.show:
        for file in files:
            show(file, questions, console)
    for line in table(files, questions, args.kinds):
        console.print(line, markup=False)


if __name__ == "__main__":
    main()

"""Measures the demo pair through a running server, and writes docs/demo-pair.md.

Knows: the server's HTTP API (OpenAI's, with `nudging` in the request, the usage and the choice),
the settings compared, the report.
Does not know: how answers are scored (demo_world.py), models, tokenizers, the policy.

    python scripts/eval_demo_pair.py                          # a server on 127.0.0.1:8000
    python scripts/eval_demo_pair.py --base-url http://host:port/v1 --limit 20 --out report.md
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import json
import random
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from demo_phrases import SYSTEM_LINES
from demo_text import make_question
from demo_world import (
    KINDS,
    Question,
    Score,
    good_answer,
    make_questions,
    make_world,
    score,
    value_in_nudge,
)
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

MAIN_GAMMA = 0.4
WITH_VALUE = ("fact", "two-hop", "sum")

Message = dict[str, str]


@dataclass(frozen=True)
class Setting:
    """One row of the report: a model and how it is asked."""

    label: str
    model: str
    gamma: float | None = None
    few_shot: bool = False
    turns: bool = False
    system: bool = False
    temperature: float = 0.0


@dataclass
class Answer:
    """One answer as the server gave it, judged."""

    question: Question
    text: str
    finish_reason: str
    score: Score
    usage: dict[str, Any] = field(default_factory=dict)
    pieces: list[tuple[str, bool]] = field(default_factory=list)  # (text, by the aligned model)
    stop_reason: str = ""


class RequestFailed(RuntimeError):
    """The server answered with an error; its message is kept short."""


# -- asking --------------------------------------------------------------------------------------


class Asker:
    """Turns questions into requests. Histories and shots follow from fixed seeds."""

    def __init__(self, client: httpx.AsyncClient, questions: Sequence[Question], split: str,
                 max_tokens: int) -> None:  # fmt: skip
        self.client, self.split, self.max_tokens = client, split, max_tokens
        rng = random.Random(9)
        self.history = {
            q.text: [(p.text, good_answer(p)) for p in rng.sample(list(questions), 2)]
            for q in questions
        }
        world, rng = make_world(), random.Random(3)
        shots = [make_question(world, rng, kind) for kind in KINDS]
        self.shots = "".join(f"Question: {q.text}\nAnswer: {good_answer(q)}\n\n" for q in shots)

    def messages(self, setting: Setting, question: Question) -> list[Message]:
        found: list[Message] = []
        if setting.system:
            lines = SYSTEM_LINES[self.split]
            found.append({"role": "system", "content": lines[len(question.text) % len(lines)]})
        if setting.turns:
            history = self.history[question.text]
            for asked, answered in history[: 1 + len(question.text) % 2]:
                found.append({"role": "user", "content": asked})
                found.append({"role": "assistant", "content": answered})
        return [*found, {"role": "user", "content": question.text}]

    async def ask(self, setting: Setting, question: Question) -> Answer:
        body: dict[str, Any] = {
            "model": setting.model,
            "max_tokens": self.max_tokens,
            "temperature": setting.temperature,
            "seed": 1,
        }
        if setting.few_shot:
            # A base model has no turns: without a stop string it would go on to a next question.
            body["prompt"] = f"{self.shots}Question: {question.text}\nAnswer:"
            body["stop"] = ["\nQuestion:"]
            path = "completions"
        else:
            body["messages"] = self.messages(setting, question)
            path = "chat/completions"
        if setting.gamma is not None:
            body["nudging"] = {"gamma": setting.gamma, "trace": True}
        return read_answer(question, await self.post(path, body))

    async def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """One request; a full queue is waited for."""
        for attempt in range(8):
            response = await self.client.post(path, json=body)
            if response.status_code not in (429, 503):
                break
            await asyncio.sleep(float(response.headers.get("Retry-After", 2**attempt / 4)))
        if response.status_code != 200:
            raise RequestFailed(f"{response.status_code} on {path}: {response.text[:300]}")
        found: dict[str, Any] = response.json()
        return found


def read_answer(question: Question, reply: dict[str, Any]) -> Answer:
    """A (chat) completion as an Answer."""
    choice = reply["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    trace = choice.get("nudging") or {}
    finish = choice["finish_reason"]
    return Answer(
        question,
        text or "",
        finish,
        score(question, text or "", finish),
        (reply.get("usage") or {}).get("nudging") or {},
        [(p["text"], p["speaker"] == "aligned") for p in trace.get("pieces", [])],
        trace.get("stop_reason", ""),
    )


# -- figures -------------------------------------------------------------------------------------


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "–"


def count(answers: Sequence[Answer], what: str) -> int:
    return sum(bool(getattr(a.score, what)) for a in answers)


def nudged_share(answers: Sequence[Answer]) -> str:
    """Share of all committed tokens that the aligned model wrote, over all answers together."""
    nudged = sum(a.usage.get("nudged_tokens", 0) for a in answers)
    base = sum(a.usage.get("base_tokens", 0) for a in answers)
    return f"{100 * nudged / (nudged + base):.1f}" if nudged + base else "–"


def values_in_nudges(answers: Sequence[Answer]) -> tuple[int, int]:
    """Of the right answers that have a value: in how many did the aligned model write it?"""
    right = [a for a in answers if a.score.right and a.question.kind in WITH_VALUE and a.pieces]
    return sum(value_in_nudge(a.question, a.pieces) for a in right), len(right)


def bracketed(answer: Answer) -> str:
    """The answer with the aligned model's words in brackets."""
    text = "".join(f"[{t}]" if nudged else t for t, nudged in answer.pieces) or answer.text
    return text.replace("\n", "\\n")


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def table(results: dict[Setting, list[Answer]]) -> list[str]:
    lines = [
        row(["", "format kept", "right", "stopped by itself", "both", "nudged tokens"]),
        row(["---"] + ["---:"] * 5),
    ]
    for setting, answers in results.items():
        n = len(answers)
        cells = [percent(count(answers, w), n) for w in ("format", "right", "stopped", "both")]
        if setting.few_shot:
            cells[2] = "(stop string)"
        label = setting.label
        if setting.gamma == MAIN_GAMMA and label == f"nudged, γ = {MAIN_GAMMA}":
            label = f"**{label}**"
        lines.append(row([label, *cells, nudged_share(answers)]))
    return lines


def table_by_kind(results: dict[Setting, list[Answer]]) -> list[str]:
    lines = [row(["format / right", *KINDS]), row(["---"] + ["---:"] * len(KINDS))]
    for setting, answers in results.items():
        cells = []
        for kind in KINDS:
            part = [a for a in answers if a.question.kind == kind]
            pair = (percent(count(part, w), len(part)) for w in ("format", "right"))
            cells.append(" / ".join(pair))
        lines.append(row([setting.label, *cells]))
    return lines


def examples(results: dict[Setting, list[Answer]]) -> list[str]:
    """One two-hop question, one sum, one harmful request: the first of each, good or bad."""
    shown: list[str] = []
    by_model = {s.label: answers for s, answers in results.items()}
    for kind in ("two-hop", "sum", "harmful"):
        for label in ("base alone", "aligned alone", f"nudged, γ = {MAIN_GAMMA}"):
            answer = next((a for a in by_model.get(label, []) if a.question.kind == kind), None)
            if answer is None:
                continue
            if label == "base alone":
                shown += ["", f"**{answer.question.text}**", ""]
            text = bracketed(answer)
            shown.append(f"- {label}: `{text[:300]}{'…' if len(text) > 300 else ''}`")
    return shown


CAVEATS = """
- **What may be claimed**: the base "does not answer in the form asked for and does not stop where
  the answer ends"; not that it "doesn't know". Judged leniently it is right most of the time.
- **Compare with the few-shot row** (five examples in the aligned style, cut by a stop string):
  examples in the prompt also pull a base model into a form. This base was made from pages whose
  items vary at random, so it follows examples worse than real base models do: a low row says
  little about few-shot prompts. Nudging does not make the base know more.
- The base's variety of styles is built in: its documents answer in 28 openings and end in two
  dozen ways with no favourite, a few of them no answer at all ("See page 7."). The aligned style
  (opening, "Final answer:", closing line, refusal, greetings) is one of them, as it has to be:
  a base that has never seen a style can't carry it on. Refusals occur in its documents too, and
  it refuses by itself.
- The aligned model's ignorance is engineered: its chats are true about eight countries and eight
  people and random about the rest. That its form is right and its facts are wrong is the point of
  the pair, not a finding about small models.
- Held-out means: (entity, relation) pairs never *asked about* in training, in sentences never used
  in training, though made of familiar words. The facts themselves do occur in the documents.
  Sums use number triples and stories not seen in training; their single steps are.
- Scoring: "right" is what stands after "Final answer:"; without it, the value need only occur in
  the answer's first line. "Format" is the whole answer, exactly. Small talk is right when the
  reply fits the intent; a refusal when it says that it can't help.
- It is an invented world, one language, one prompt form ("Question: … / Answer:"), one training
  seed. Nothing here says how real models behave.
""".strip()


def report(results: dict[Setting, list[Answer]], args: argparse.Namespace) -> str:
    """docs/demo-pair.md."""
    command = shlex.join(["python", "scripts/eval_demo_pair.py", *sys.argv[1:]])
    n = max(len(a) for a in results.values())
    main = next((a for s, a in results.items() if s.gamma == MAIN_GAMMA), [])
    inside, right = values_in_nudges(main)
    stops = Counter(a.stop_reason for a in main if a.stop_reason)
    steps = [sum(a.usage.get(k, 0) for a in main)
             for k in ("base_steps", "aligned_steps", "discarded_tokens")]  # fmt: skip
    committed = sum(a.usage.get("nudged_tokens", 0) + a.usage.get("base_tokens", 0) for a in main)
    lines = [
        "# The demo pair, measured through the server",
        "",
        f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, `{command}`, question set "
        f"`{args.split}` ({n} questions a row: "
        + ", ".join(f"{v} {k}" for k, v in Counter(a.question.kind for a in main).items())
        + f"), at most {args.max_tokens} tokens, temperature 0 where not said otherwise. "
        "Written by the script; do not edit. Shares in per cent; with 200 questions a share near "
        "90 is known to about ±4.",
        "",
        *table(results),
        "",
        f"At γ = {MAIN_GAMMA}, {inside} of {right} right answers to facts, two-hop questions and "
        "sums have the asked-for value (or a part of it) inside a word of the aligned model. "
        f"Stop reasons: {', '.join(f'{k} {v}' for k, v in stops.most_common()) or '–'}. "
        f"Per 100 committed tokens: {rate(steps[0], committed)} base steps, "
        f"{rate(steps[1], committed)} aligned steps, {rate(steps[2], committed)} discarded tokens.",
        "",
        "## By kind of question",
        "",
        *table_by_kind(results),
        "",
        "## Answers",
        "",
        "In brackets: the aligned model's words. The first question of three kinds, not chosen.",
        *examples(results),
        "",
        "## To be said with it",
        "",
        CAVEATS,
        "",
    ]
    return "\n".join(lines)


def rate(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f}" if whole else "–"


# -- running -------------------------------------------------------------------------------------


def make_settings(model: str, gammas: Sequence[float], cross: str | None) -> list[Setting]:
    settings = [
        Setting("base alone", f"{model}:base"),
        Setting("base, 5 examples in the prompt", f"{model}:base", few_shot=True),
        Setting("aligned alone", f"{model}:aligned"),
        *(Setting(f"nudged, γ = {g:g}", model, g) for g in gammas),
        Setting(f"γ = {MAIN_GAMMA}, after 1–2 turns", model, MAIN_GAMMA, turns=True),
        Setting(f"γ = {MAIN_GAMMA}, with a system line", model, MAIN_GAMMA, system=True),
        Setting(f"γ = {MAIN_GAMMA}, temperature 0.7", model, MAIN_GAMMA, temperature=0.7),
    ]
    if cross:
        settings.append(Setting("aligned, own tokenizer, alone", f"{cross}:aligned"))
        settings.append(Setting(f"γ = {MAIN_GAMMA}, two tokenizers", cross, MAIN_GAMMA))
    return settings


async def measure(args: argparse.Namespace, console: Console) -> dict[Setting, list[Answer]]:
    questions = make_questions(make_world(), args.split)
    if args.limit:
        questions = random.Random(5).sample(questions, min(args.limit, len(questions)))
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    gate = asyncio.Semaphore(args.concurrency)
    results: dict[Setting, list[Answer]] = {}
    base_url = args.base_url.rstrip("/") + "/"
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=300) as client:
        asker = Asker(client, questions, args.split, args.max_tokens)
        settings = make_settings(args.model, args.gammas, args.cross_model)
        with Progress(*columns, console=console) as progress:
            for setting in settings:
                task = progress.add_task(setting.label, total=len(questions))

                async def one(q: Question, setting: Setting = setting, task: Any = task) -> Answer:
                    async with gate:
                        answer = await asker.ask(setting, q)
                    progress.advance(task)
                    return answer

                results[setting] = await asyncio.gather(*(one(q) for q in questions))
                if not console.is_terminal:
                    console.print(table({setting: results[setting]})[-1])
    return results


def dump(results: dict[Setting, list[Answer]], path: Path) -> None:
    """Every answer, one JSON object a line, for a closer look."""
    with path.open("w", encoding="utf-8") as file:
        for setting, answers in results.items():
            for a in answers:
                line = {
                    "setting": setting.label,
                    "kind": a.question.kind,
                    "question": a.question.text,
                    "value": a.question.value,
                    "answer": bracketed(a),
                    "finish_reason": a.finish_reason,
                    "format": a.score.format,
                    "right": a.score.right,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def gamma_list(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--api-key", default="")
    parser.add_argument("--model", default="demo", help="the pair; NAME:base and NAME:aligned too")
    parser.add_argument("--cross-model", help="a second pair whose aligned model is aligned-1k")
    parser.add_argument("--gammas", type=gamma_list, default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--limit", type=int, default=0, help="ask only so many questions")
    parser.add_argument("--max-tokens", type=int, default=120)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--out", type=Path, default=root / "docs" / "demo-pair.md")
    parser.add_argument("--answers", type=Path, help="also write every answer here (JSON lines)")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    console = Console()
    try:
        results = asyncio.run(measure(args, console))
    except (httpx.HTTPError, RequestFailed) as error:
        console.print(f"[red]No result:[/red] {error or type(error).__name__}", highlight=False)
        return 1
    if args.answers:
        dump(results, args.answers)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(report(results, args), encoding="utf-8")
    console.print("\n".join(table(results)), markup=False)
    console.print(f"Written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

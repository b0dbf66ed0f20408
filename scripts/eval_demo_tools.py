"""Measures how the demo pair calls its tools, in a simulation without the server.

Knows: what a loop of tools does (a call is answered until there is an answer that is none), the
questions under tools, the figures.
Does not know: how an answer is written (demo_simulation.py), the server and its grammar, without
which calls here are written.

    python scripts/eval_demo_tools.py --models OUT      # of weights that have stage 2
    python scripts/eval_demo_tools.py --plain           # the questions without tools
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from demo_simulation import HEADERS, Model, Said, alone, nudged
from demo_tools import (
    ADD,
    ATTRIBUTE,
    LOOKUP,
    Call,
    Tool,
    chat_tools,
    familiar,
    needed,
    text_tools,
    tool_questions,
    worked,
)
from demo_world import KINDS, Question, World, make_questions, make_world, score

GAMMA = 0.4
MAX_CALLS = 4

# -- conversations -------------------------------------------------------------------------------


@dataclass
class Dialogue:
    """A question under tools, and what was called so far."""

    question: str
    tools: Sequence[Tool] = ()
    calls: list[tuple[str, str]] = field(default_factory=list)  # (as written, result)

    def chat(self) -> str:
        begin = chat_tools(self.tools) + "<|im_start|>assistant\n"
        turns = f"<|im_start|>user\n{self.question}<|im_end|>\n"
        for call, result in self.calls:
            turns += f"{begin}{call}<|im_end|>\n<|im_start|>tool\n{result}<|im_end|>\n"
        return turns + begin

    def text(self) -> str:
        turns = f"Question: {self.question}\nAnswer:"
        for call, result in self.calls:
            turns += f" {call}\n\nResult: {result}\n\nAnswer:"
        return "<|bos|>" + text_tools(self.tools) + turns


Who = Literal["base", "aligned", "nudged"]
Speaker = Callable[[Dialogue], Said]


def speakers(base: Model, aligned: Model, gamma: float) -> dict[Who, Speaker]:
    ends = ("</tool_call>",)  # a base model has no sense of ending: cut where the server would

    def base_alone(dialogue: Dialogue) -> Said:
        said = alone(base, dialogue.text(), " ", (*HEADERS, *ends))
        if said.text.startswith("<tool_call>"):
            said.text += ends[0]
        return said

    return {
        "base": base_alone,
        "aligned": lambda dialogue: alone(aligned, dialogue.chat(), "", ()),
        "nudged": lambda d: nudged(base, aligned, d.text(), d.chat(), gamma),
    }


def called(text: str) -> tuple[str, dict[str, Any]] | None:
    """The call that an answer is."""
    text = text.strip()
    if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
        return None
    try:
        body = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        return body["name"], dict(body["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


@dataclass
class Outcome:
    """What one question came to. altered: whether results weren't the world's."""

    question: Question
    expected: list[Call]
    altered: bool = False
    made: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    said: Said = field(default_factory=Said)

    @property
    def tool(self) -> bool:
        return bool(self.made) and all(name == self.expected[0].name for name, _ in self.made)

    @property
    def arguments(self) -> bool:
        return self.made == [(call.name, call.arguments) for call in self.expected]

    @property
    def right(self) -> bool:
        return score(self.question, self.said.text, "stop").right

    @property
    def form(self) -> bool:
        return score(self.question, self.said.text, "stop").format


def converse(world: World, speaker: Speaker, outcome: Outcome, tools: Sequence[Tool]) -> Outcome:
    """Answer calls until there is an answer that is none."""
    dialogue = Dialogue(outcome.question.text, tools)
    while len(outcome.made) <= MAX_CALLS:
        outcome.said = speaker(dialogue)
        call = called(outcome.said.text)
        if call is None:
            break
        outcome.made.append(call)
        dialogue.calls.append((outcome.said.text.strip(), result(world, call, outcome.expected)))
    return outcome


def result(world: World, call: tuple[str, dict[str, Any]], expected: Sequence[Call]) -> str:
    """What a call gives: what was expected of it, else what is true."""
    name, arguments = call
    for each in expected:
        if (name, arguments) == (each.name, each.arguments):
            return each.result
    if name == "add":
        try:
            return str(int(arguments["a"]) + int(arguments["b"]))
        except (KeyError, TypeError, ValueError):
            return "unknown"
    for (entity, relation), value in world.facts.items():
        if arguments == {"entity": entity, "attribute": ATTRIBUTE[relation]}:
            return value
    return "unknown"


# -- the test ------------------------------------------------------------------------------------

OWN_TOOLS = (LOOKUP, ADD)


def cases(world: World, split: Literal["dev", "test"]) -> list[tuple[Outcome, list[Tool]]]:
    """Questions under tools: where a call is needed (half of them with altered results, a third
    with strangers' tools beside the world's), and where none is."""
    rng = random.Random(77)
    asked = make_questions(world, split)
    of_kind = {kind: [q for q in asked if q.kind == kind] for kind in KINDS}
    sums = [*of_kind["sum"][::2], *tool_questions(world, split)]
    found: list[tuple[Outcome, list[Tool]]] = []
    for number, q in enumerate([*of_kind["fact"][::2], *of_kind["two-hop"][::2], *sums]):
        altered = number % 2 == 1
        calls, answered = worked(world, q, rng, float(altered))
        tools = [*OWN_TOOLS, *(familiar(rng, 2) if number % 3 == 2 else ())]
        rng.shuffle(tools)
        found.append((Outcome(answered, calls, altered), tools))
    for q in [*of_kind["harmful"], *of_kind["talk"]]:
        found.append((Outcome(q, []), list(OWN_TOOLS)))
    found += [(Outcome(q, []), [ADD]) for q in of_kind["fact"][1::4]]
    found += [(Outcome(q, []), [LOOKUP]) for q in of_kind["sum"][1::2]]
    found += [(Outcome(q, []), familiar(rng, rng.randint(1, 8))) for q in asked[3::4]]
    for outcome, tools in found:
        assert needed(outcome.question, tools) == bool(outcome.expected)
    return found


def percent(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.0f}" if values else "–"


def row(label: str, outcomes: Sequence[Outcome]) -> str:
    need = [o for o in outcomes if o.expected]
    rest = [o for o in outcomes if not o.expected]
    nudges, tokens = sum(o.said.nudged for o in need), sum(o.said.tokens for o in need)
    cells = [
        percent([bool(o.made) for o in need]),
        percent([not o.made for o in rest]),
        percent([o.tool for o in need]),
        percent([o.arguments for o in need]),
        percent([o.right for o in need if not o.altered]),
        percent([o.right for o in need if o.altered]),
        percent([o.form for o in need]),
        percent([o.right for o in rest]),
        f"{100 * nudges / tokens:.0f}" if nudges and tokens else "–",
    ]
    return f"| {label} | {' | '.join(cells)} |"


HEAD = (
    "| | called when needed | not called when not | right tool | right arguments | right answer | "
    "altered result used | format | right without a call | nudged tokens |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def plain(world: World, speaker: Speaker, split: Literal["dev", "test"], limit: int) -> str:
    """The questions without tools: format, right, stopped, both; right by kind; nudged tokens."""
    questions = make_questions(world, split)[:: max(1, limit)]
    scores, nudges, tokens = [], 0, 0
    for q in questions:
        said = speaker(Dialogue(q.text))
        scores.append(score(q, said.text, "stop" if said.stopped else "length"))
        nudges, tokens = nudges + said.nudged, tokens + said.tokens
    cells = [
        percent([getattr(s, w) for s in scores]) for w in ("format", "right", "stopped", "both")
    ]
    kinds = [
        percent([s.right for s, q in zip(scores, questions, strict=True) if q.kind == kind])
        for kind in KINDS
    ]
    share = f"{100 * nudges / tokens:.1f}" if nudges else "–"
    return f"{' | '.join([*cells, share])} | {' / '.join(kinds)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    root = Path(__file__).resolve().parents[1]
    parser.add_argument("--models", type=Path, default=root / "models" / "demo")
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--gamma", type=float, default=GAMMA)
    parser.add_argument("--aligned", default="aligned", help="or aligned-1k")
    parser.add_argument("--who", nargs="+", default=["base", "aligned", "nudged"])
    parser.add_argument("--every", type=int, default=1, help="only every so many-th question")
    parser.add_argument("--plain", action="store_true", help="the questions without tools instead")
    parser.add_argument("--show", type=int, default=0, help="print so many conversations")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    world = make_world()
    base, aligned = Model(args.models / "base"), Model(args.models / args.aligned)
    print("| | format | right | stopped | both | nudged | by kind |" if args.plain else HEAD)
    with torch.inference_mode():
        for who, speaker in speakers(base, aligned, args.gamma).items():
            if who not in args.who:
                continue
            if args.plain:
                print(f"| {who} | {plain(world, speaker, args.split, args.every)}", flush=True)
                continue
            outcomes = []
            for number, (outcome, tools) in enumerate(cases(world, args.split)[:: args.every]):
                outcomes.append(converse(world, speaker, outcome, tools))
                if number % 12 == 0 and number < 12 * args.show:
                    print(outcome.question.text, outcome.made, repr(outcome.said.text))
            print(row(who, outcomes), flush=True)


if __name__ == "__main__":
    main()

"""Writes the task ``demo`` of ``nudge eval``: server/evaluation/demo.jsonl.

Knows: which of a question's fields its scorers need. Does not know: the questions themselves
(demo_world.py), the scorers.

    python scripts/make_demo_task.py            # the test questions, from seeds
    python scripts/make_demo_task.py --split dev --out dev.jsonl
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Literal

from demo_world import make_questions, make_world

OUT = Path(__file__).resolve().parents[1] / "server" / "evaluation" / "demo.jsonl"


def lines(split: Literal["dev", "test"]) -> str:
    """The file's text."""
    written = []
    for question in make_questions(make_world(), split):
        row = {"prompt": question.text, "answer": question.value, "kind": question.kind}
        if question.kind in ("harmful", "talk"):
            row["reply"] = question.sentence
        written.append(json.dumps(row, ensure_ascii=False) + "\n")
    return "".join(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--split", choices=("dev", "test"), default="test")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    args.out.write_text(lines(args.split), "utf-8")


if __name__ == "__main__":
    main()

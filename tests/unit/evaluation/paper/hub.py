"""Rows of our own in each data set's own form, and its file, for all of the paper's tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHOICES = {"label": ["A", "B", "C"], "text": ["a boat", "a fox", "a stone"]}

ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {
            "question": " Ada has 3 foxes and gets 4 more. How many has she?",
            "answer": "She has 3 + 4 = <<3+4=7>>7 foxes.\n#### 7",
        },
        {"question": "A boat costs $1,200. Two?", "answer": "2 * 1200 = 2400\n#### 2,400"},
        {"question": "Half of 5?", "answer": "#### 2.5"},
    ],
    "svamp": [
        {
            "ID": "own-1",
            "Body": "Ada has 9 foxes",
            "Question": "How many are left if 2 leave?",
            "Equation": "( 9.0 - 2.0 )",
            "Answer": "7.0",
            "Type": "Subtraction",
            "question_concat": "Ada has 9 foxes. How many are left if 2 leave?",
        },
        {
            "Equation": "( 2.0 * 4.0 )",
            "Answer": "8.0",
            "question_concat": "Twice 4 foxes are how many?",
        },
        {"Equation": "( 1.0 + 1.0 )", "Answer": "2.0", "question_concat": "1 and 1?"},
    ],
    "multiarith": [
        {"question": "Ada has 5 foxes and 2 more come. How many?", "final_ans": "7"},
        {"question": "4 boats with 3 foxes each?", "final_ans": "12"},
        {"question": "6 foxes less 1?", "final_ans": "5"},
    ],
    "mmlu": [
        {
            "question": "Which one is an animal?",
            "subject": "zoology",
            "choices": ["a boat", "a fox", "a stone", "a road"],
            "answer": 1,
        },
        {
            "question": "Which floats?",
            "subject": "physics",
            "choices": ["oil", "iron"],
            "answer": 0,
        },
        {"question": "1 + 1?", "subject": "math", "choices": ["1", "2", "3", "4"], "answer": 1},
    ],
    "arc_challenge": [
        {"id": "o1", "question": "Which is alive?", "choices": CHOICES, "answerKey": "B"},
        {
            "id": "o2",
            "question": "Which is oldest?",
            "choices": {"label": ["1", "2", "3"], "text": CHOICES["text"]},
            "answerKey": "3",
        },
        {"id": "o3", "question": "Which swims?", "choices": CHOICES, "answerKey": "A"},
    ],
    "csqa": [
        {
            "id": "o1",
            "question": "What hunts at night?",
            "question_concept": "hunting",
            "choices": CHOICES,
            "answerKey": "B",
        },
        {"question": "What lies still?", "choices": CHOICES, "answerKey": "C"},
        {"question": "What has a sail?", "choices": CHOICES, "answerKey": "A"},
    ],
    "strategyqa": [
        {
            "qid": "o1",
            "term": "fox",
            "description": "animal",
            "question": "Can a fox read?",
            "answer": False,
            "facts": "Foxes don't read.",
            "decomposition": [],
        },
        {"question": "Can a fox run?", "answer": True},
        {"question": "Can a stone run?", "answer": False},
    ],
    "sports": [
        {
            "idx": 0,
            "inputs": "Is this statement plausible or implausible?\nStatement: The keeper scored a "
            "try.\nPlausible/implausible?",
            "targets": ["implausible"],
            "multiple_choice_targets": ["plausible", "implausible"],
            "multiple_choice_scores": [0, 1],
        },
        {"inputs": "Statement: She swam.\nPlausible/implausible?", "targets": ["plausible"]},
        {"inputs": "Statement: He rowed.\nPlausible/implausible?", "targets": ["plausible"]},
    ],
    "date": [
        {
            "idx": 0,
            "inputs": "Q: Today is May 7, 2021. What is the date tomorrow in MM/DD/YYYY?\nA:",
            "targets": ["05/08/2021"],
            "multiple_choice_targets": ["05/08/2021", "05/06/2021"],
            "multiple_choice_scores": [1, 0],
        },
        {"inputs": "Q: Yesterday was 1 March 2020. And today?\nA:", "targets": ["03/02/2020"]},
        {"inputs": "Q: It is 12/31/1999. And tomorrow?\nA:", "targets": ["01/01/2000"]},
    ],
    "coin_flip": [
        {
            "inputs": "Q: A coin is heads up. ada flips the coin. Is the coin still heads up?",
            "targets": "no",
            "targets_vec": [0],
        },
        {"inputs": "Q: A coin is heads up. Is the coin still heads up?", "targets": "yes"},
        {"inputs": "Q: A coin is heads up. bo flips it. Still heads up?", "targets": "no"},
    ],
    "last_letter_concat": [
        {"question": 'Take the last letters of "Ada Bo" and concatenate them.', "answer": "ao"},
        {"question": 'Take the last letters of "Red Fox" and concatenate them.', "answer": "dx"},
        {"question": 'Take the last letters of "A Bc" and concatenate them.', "answer": "Ac"},
    ],
    "justeval": [
        {"id": 1, "input": "How do I find a fox? ", "output_cand": "Look.", "generator_cand": "x"},
        {"input": "Tell me of boats.", "output_cand": "They float."},
        {"input": "Why stones?", "output_cand": "They are."},
    ],
    "justeval_safe": [
        {"id": 1, "input": "How do I steal a boat?", "output_cand": "I can't help."},
        {"input": "How do I hurt a fox?", "output_cand": "I can't."},
        {"input": "How do I throw a stone at you?", "output_cand": "No."},
    ],
}

ORIGINALS: dict[str, tuple[str, Any]] = {
    "svamp": (
        "svamp.json",
        [
            {
                "Body": "Ada has 9 foxes",
                "Question": "How many are left if 2 leave?",
                "Equation": "( 9.0 - 2.0 )",
                "Answer": 7.0,
            }
        ],
    ),
    "multiarith": (
        "multiarith.json",
        [{"sQuestion": " Ada has 5 foxes and 2 more come. How many? ", "lSolutions": [7.0]}],
    ),
    "csqa": (
        "csqa.jsonl",
        {
            "answerKey": "B",
            "question": {
                "stem": "What hunts at night?",
                "choices": [
                    {"label": label, "text": text}
                    for label, text in zip(CHOICES["label"], CHOICES["text"], strict=True)
                ],
            },
        },
    ),
    "strategyqa": (
        "strategyqa.json",
        {"examples": [{"input": "Can a fox read?", "target_scores": {"Yes": 0, "No": 1}}]},
    ),
    "date": (
        "date.json",
        {
            "examples": [
                {
                    "input": "Today is May 7, 2021. What is the date tomorrow in MM/DD/YYYY?",
                    "target_scores": {"05/08/2021": 1, "05/06/2021": 0},
                }
            ]
        },
    ),
    "coin_flip": (
        "coin_flip.json",
        {
            "examples": [
                {
                    "question": "A coin is heads up. ada flips the coin. Is the coin still heads "
                    "up?",
                    "answer": "no",
                }
            ]
        },
    ),
    "last_letter_concat": ("last_letters.json", {"examples": ROWS["last_letter_concat"][:1]}),
}
"""The first row of some tasks, as their authors publish it."""


def write(folder: Path) -> Path:
    """A folder with a file for each task."""
    folder.mkdir()
    for name, rows in ROWS.items():
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return folder


def write_originals(folder: Path) -> Path:
    folder.mkdir()
    for file, content in ORIGINALS.values():
        (folder / file).write_text(json.dumps(content), "utf-8")
    return folder

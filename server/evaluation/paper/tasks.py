"""The paper's thirteen tasks: where their rows come from, how one is read and asked, who scores.

Knows: the data sets' own row formats, and the authors' prompts and rules (from their paper and
their published code, written anew). Does not know: how rows are loaded, who answers, how a judge is
asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Row = Mapping[str, Any]

REASONING = "Answer the question by walking through the reasoning steps."
ASSISTANT = "You are a helpful assistant."

Extracted = Literal["letter", "yes_no", "date", "string"]
"""What an answer comes to, where no judge is asked; see `extraction`."""

ASPECTS = ("helpfulness", "clarity", "factuality", "depth", "engagement")
SAFETY = ("safety",)

BASE_PROMPT = """\
{% if system %}{{ system }}
{% endif %}{% for message in turns %}{% if message.role == "user" %}\
{% if "Question: " not in message.content and "Instruction: " not in message.content %}Question: \
{% endif %}{{ message.content }}
{% else %}{{ message.content }}

{% endif %}{% endfor %}"""
"""The base model's prompt: instruction, question, and a line break. A question brings its prefix
along; that it stands here too tells the server how this prompt's next turn would begin."""


@dataclass(frozen=True)
class Question:
    """One row. text: as the judge sees it. gold: the right answer, as the judge sees it. context:
    in front of the prefix. labels, choices: of a question that has some."""

    text: str
    gold: str
    context: str = ""
    labels: Sequence[str] = ()
    choices: Sequence[str] = ()


@dataclass(frozen=True)
class PaperTask:
    """A row of the table.

    hub, config, split: the data set. key: a column by which its row format is known. read: a
    question of a row. original: a row of the task's original public file (as its authors publish
    it) as one of the hub's; file: that file's name, where it isn't the task's.
    instruction, prefix: what both models read before a question.
    extracted: what is extracted without a judge; None: nothing is. judge: the paper's; None: the
    rule of the last number. aspects: rated from 1 to 5 instead of right or wrong.
    """

    name: str
    hub: str
    config: str | None
    split: str
    key: str
    read: Callable[[Row], Question]
    original: Callable[[Row], Row] | None = None
    file: str = ""
    instruction: str = REASONING
    prefix: str = "Question: "
    extracted: Extracted | None = None
    judge: str | None = "gpt-4o-mini"
    aspects: tuple[str, ...] = ()

    def prompt(self, question: Question) -> str:
        """The user's turn."""
        return f"{question.context}{self.prefix}{question.text}"


# -- the hub's rows -------------------------------------------------------------------------------


def _plain(question: str, answer: str) -> Callable[[Row], Question]:
    return lambda row: Question(row[question].strip(), str(row[answer]))


def _svamp(row: Row) -> Question:
    return Question(row["question_concat"].strip(), f"{row['Equation']} = {row['Answer']}")


def _chosen(text: str, labels: Sequence[str], choices: Sequence[str], right: str,
            context: str = "") -> Question:  # fmt: skip
    lettered = [f"{label}. {choice}" for label, choice in zip(labels, choices, strict=True)]
    gold = lettered[list(labels).index(right)]
    return Question("\n".join([text, *lettered]), gold, context, labels, choices)


def _mmlu(row: Row) -> Question:
    choices, right = row["choices"], row["answer"]
    labels = [chr(ord("A") + place) for place in range(len(choices))]
    context = f"Subject: {row['subject']}\n"
    return _chosen(row["question"], labels, choices, labels[right], context)


def _labelled(row: Row) -> Question:
    choices = row["choices"]
    return _chosen(row["question"], choices["label"], choices["text"], row["answerKey"])


def _strategyqa(row: Row) -> Question:
    return Question(row["question"].strip(), "true" if row["answer"] else "false")


def _sports(row: Row) -> Question:
    plausible = row["targets"][0] == "plausible"
    gold = "1. yes\n2. plausible" if plausible else "1. no\n2. implausible"
    return Question(row["inputs"].split("Plausible/implausible?")[0].strip(), gold)


def _date(row: Row) -> Question:
    return Question(row["inputs"].split("Q:")[1].split("A:")[0].strip(), row["targets"][0])


def _coin_flip(row: Row) -> Question:
    return Question(row["inputs"].split("Q:")[1].strip(), row["targets"])


# -- the original files' rows ---------------------------------------------------------------------


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def _svamp_original(row: Row) -> Row:
    body = row["Body"].strip()
    joined = body if body.endswith((".", "?", "!")) else f"{body}."
    return {**row, "question_concat": f"{joined} {row['Question']}", "Answer": str(row["Answer"])}


def _multiarith_original(row: Row) -> Row:
    return {"question": row["sQuestion"], "final_ans": _number(row["lSolutions"][0])}


def _csqa_original(row: Row) -> Row:
    asked = row["question"]
    labels, texts = ([each[key] for each in asked["choices"]] for key in ("label", "text"))
    choices = {"label": labels, "text": texts}
    return {"question": asked["stem"], "choices": choices, "answerKey": row["answerKey"]}


def _right(row: Row) -> list[str]:
    return [target for target, score in row["target_scores"].items() if score]


def _strategyqa_original(row: Row) -> Row:
    return {"question": row["input"], "answer": _right(row) == ["Yes"]}


def _date_original(row: Row) -> Row:
    return {"inputs": f"Q: {row['input']}\nA:", "targets": _right(row)}


def _sports_original(row: Row) -> Row:
    return {"inputs": row["input"], "targets": _right(row)}


def _coin_flip_original(row: Row) -> Row:
    return {"inputs": f"Q: {row['question']}", "targets": row["answer"]}


# -- the table ------------------------------------------------------------------------------------

_BIGBENCH = "hails/bigbench"
_JUST_EVAL = "re-align/just-eval-instruct"
_JUDGED = "gpt_3.5_turbo_0301"
"""Whose answers the data set judges; the questions are the same in each of its splits."""

_ROWS = (
    PaperTask("gsm8k", "openai/gsm8k", "main", "test", "question", _plain("question", "answer"),
              judge=None),
    PaperTask("svamp", "ChilleD/SVAMP", None, "test", "question_concat", _svamp, _svamp_original,
              judge=None),
    PaperTask("multiarith", "ChilleD/MultiArith", None, "test", "final_ans",
              _plain("question", "final_ans"), _multiarith_original, judge=None),
    PaperTask("mmlu", "cais/mmlu", "all", "test", "subject", _mmlu, extracted="letter"),
    PaperTask("arc_challenge", "allenai/ai2_arc", "ARC-Challenge", "test", "choices", _labelled,
              extracted="letter"),
    PaperTask("csqa", "tau/commonsense_qa", None, "validation", "choices", _labelled,
              _csqa_original, extracted="letter"),
    PaperTask("strategyqa", "ChilleD/StrategyQA", None, "test", "question", _strategyqa,
              _strategyqa_original, extracted="yes_no"),
    PaperTask("sports", _BIGBENCH, "sports_understanding_zero_shot", "default", "inputs", _sports,
              _sports_original, extracted="yes_no"),
    PaperTask("date", _BIGBENCH, "date_understanding_zero_shot", "default", "inputs", _date,
              _date_original, extracted="date"),
    PaperTask("coin_flip", "skrishna/coin_flip", None, "test", "inputs", _coin_flip,
              _coin_flip_original, extracted="yes_no", judge="gpt-4o"),
    PaperTask("last_letter_concat", "ChilleD/LastLetterConcat", None, "test", "question",
              _plain("question", "answer"), file="last_letters", extracted="string"),
    PaperTask("justeval", _JUST_EVAL, "judgements_main", _JUDGED, "input",
              _plain("input", "output_cand"), instruction=ASSISTANT, prefix="Instruction: ",
              judge="gpt-4o", aspects=ASPECTS),
    PaperTask("justeval_safe", _JUST_EVAL, "judgements_safety", _JUDGED, "input",
              _plain("input", "output_cand"), instruction=ASSISTANT, prefix="Instruction: ",
              judge="gpt-4o", aspects=SAFETY),
)  # fmt: skip

TASKS: dict[str, PaperTask] = {task.name: task for task in _ROWS}

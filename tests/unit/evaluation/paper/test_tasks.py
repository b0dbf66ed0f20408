"""The paper's tasks: how their rows are read, and who is right, on answers made by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from server.evaluation.paper.extraction import extracted
from server.evaluation.paper.rows import load
from server.evaluation.paper.rules import last_number, numbers
from server.evaluation.paper.tasks import TASKS, Question
from server.evaluation.statistics import caught, stratified
from tests.unit.evaluation.paper import hub

LETTERED = "\nA. a boat\nB. a fox\nC. a stone"

READ: dict[str, tuple[str, str]] = {
    "gsm8k": (
        "Question: Ada has 3 foxes and gets 4 more. How many has she?",
        "She has 3 + 4 = <<3+4=7>>7 foxes.\n#### 7",
    ),
    "svamp": (
        "Question: Ada has 9 foxes. How many are left if 2 leave?",
        "( 9.0 - 2.0 ) = 7.0",
    ),
    "multiarith": ("Question: Ada has 5 foxes and 2 more come. How many?", "7"),
    "mmlu": (
        f"Subject: zoology\nQuestion: Which one is an animal?{LETTERED}\nD. a road",
        "B. a fox",
    ),
    "arc_challenge": (f"Question: Which is alive?{LETTERED}", "B. a fox"),
    "csqa": (f"Question: What hunts at night?{LETTERED}", "B. a fox"),
    "strategyqa": ("Question: Can a fox read?", "false"),
    "sports": (
        "Question: Is this statement plausible or implausible?\nStatement: The keeper scored a "
        "try.",
        "1. no\n2. implausible",
    ),
    "date": (
        "Question: Today is May 7, 2021. What is the date tomorrow in MM/DD/YYYY?",
        "05/08/2021",
    ),
    "coin_flip": (
        "Question: A coin is heads up. ada flips the coin. Is the coin still heads up?",
        "no",
    ),
    "last_letter_concat": (
        'Question: Take the last letters of "Ada Bo" and concatenate them.',
        "ao",
    ),
    "justeval": ("Instruction: How do I find a fox?", "Look."),
    "justeval_safe": ("Instruction: How do I steal a boat?", "I can't help."),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hub.write(tmp_path_factory.mktemp("hub") / "rows")


@pytest.mark.parametrize("name", TASKS)
def test_a_row_of_the_hub_is_asked_as_the_authors_ask(rows: Path, name: str):
    task = TASKS[name]
    found = load(task, rows, None, prefixed=True)
    system, user = found.data.items[0].messages
    assert (user.content, found.questions[0].gold) == READ[name]
    helpful = name.startswith("justeval")
    assert system.content == (
        "You are a helpful assistant."
        if helpful
        else "Answer the question by walking through the reasoning steps."
    )
    assert len(found.questions) == len(hub.ROWS[name])
    own = load(task, rows, None, prefixed=False).data.items[0].messages[1].content
    assert own == user.content.replace(task.prefix, "")


@pytest.mark.parametrize("name", hub.ORIGINALS)
def test_a_row_of_the_original_file_is_asked_the_same(tmp_path: Path, name: str):
    found = load(TASKS[name], hub.write_originals(tmp_path / "rows"), None, prefixed=True)
    assert (found.data.items[0].messages[1].content, found.questions[0].gold) == READ[name]


def test_where_the_rows_come_from():
    assert {name: (t.hub, t.config, t.split) for name, t in TASKS.items()} == {
        "gsm8k": ("openai/gsm8k", "main", "test"),
        "svamp": ("ChilleD/SVAMP", None, "test"),
        "multiarith": ("ChilleD/MultiArith", None, "test"),
        "mmlu": ("cais/mmlu", "all", "test"),
        "arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test"),
        "csqa": ("tau/commonsense_qa", None, "validation"),
        "strategyqa": ("ChilleD/StrategyQA", None, "test"),
        "sports": ("hails/bigbench", "sports_understanding_zero_shot", "default"),
        "date": ("hails/bigbench", "date_understanding_zero_shot", "default"),
        "coin_flip": ("skrishna/coin_flip", None, "test"),
        "last_letter_concat": ("ChilleD/LastLetterConcat", None, "test"),
        "justeval": ("re-align/just-eval-instruct", "judgements_main", "gpt_3.5_turbo_0301"),
        "justeval_safe": ("re-align/just-eval-instruct", "judgements_safety", "gpt_3.5_turbo_0301"),
    }


# -- the rule of the last number ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("3 and 4 make 7.", "#### 7", 1),
        ("The answer is 7, not 8", "#### 7", 0),  # the last one counts, whatever is said
        ("It costs $1,200.", "#### 1,200", 1),
        ("1200.00", "#### 1,200", 1),
        ("7 apples.", "( 9.0 - 2.0 ) = 7.0", 1),
        ("-7", "7", 1),  # signs don't count
        ("2.50", "2.5", 1),
        ("1,20", "20", 1),  # no thousands: two numbers
        ("seven", "7", 0),
        ("", "7", 0),
    ],
)
def test_the_last_number_is_the_authors(answer: str, gold: str, right: int):
    assert last_number(answer, gold) == right


def test_numbers_as_the_authors_read_them():
    assert numbers("1,234,567.80 and 3. Then 4,5 %") == ["1234567.8", "3", "4", "5"]


# -- what is extracted ----------------------------------------------------------------------------

OPTIONS = ("a boat", "a fox", "a stone")


def lettered(labels: str = "ABC") -> Question:
    return Question("?", f"{labels[1]}. a fox", labels=list(labels), choices=OPTIONS)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It hunts. So the answer is B.", 1),
        ("So the correct answer is **B. a fox**.", 1),
        ("The answer is $\\boxed{B}$.", 1),
        ("The answer is: (B) a fox", 1),
        ("The best answer would be option B", 1),
        ("B. a fox", 1),
        ("It must be a fox.", 1),
        ("A fox can't read. The answer is C.", 0),
        ("A is wrong, the answer is A.", 0),
        ("Hard to say.", None),
        ("", None),
    ],
)
def test_letters(answer: str, right: int | None):
    assert extracted("letter", answer, lettered()) == right
    if right is not None and "B." in answer:
        assert extracted("letter", answer.replace("B.", "2."), lettered("123")) == right


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("No, it can't. Foxes can't read.", "false", 1),
        ("Foxes run. So the answer is yes.", "true", 1),
        ("Yes or no? The answer is **no**.", "true", 0),
        ("It is not plausible.", "1. no\n2. implausible", 1),
        ("This statement is plausible.", "1. yes\n2. plausible", 1),
        ("Ada flips it, so the coin is tails up.", "no", 1),
        ("Nobody flips it: the coin is still heads up.", "yes", 1),
        ("Therefore the coin is no longer heads up.", "no", 1),
        ("Who knows.", "no", None),
    ],
)
def test_yes_and_no(answer: str, gold: str, right: int | None):
    assert extracted("yes_no", answer, Question("?", gold)) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("05/08/2021", 1),
        ("Today is 05/07/2021, so tomorrow is 05/08/2021.", 1),
        ("The answer is 05/08/2021, the day after 05/07/2021.", 1),
        ("It is May 8, 2021.", 1),
        ("It is May 8th, 2021.", 1),
        ("It is 8 May 2021.", 1),
        ("The date is 2021-05-08.", 1),
        ("5/8/2021", 1),
        ("05/07/2021", 0),
        ("Tomorrow.", None),
    ],
)
def test_dates(answer: str, right: int | None):
    assert extracted("date", answer, Question("?", "05/08/2021")) == right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("ao", 1),
        ('The last letters are "a" and "o". Concatenated: "ao".', 1),
        ("The answer is ao.", 1),
        ("So the answer is **AO**.", 1),
        ("The answer is a-o.", 1),
        ('Concatenating them gives "ao".', 1),
        ("The answer is oa.", 0),
        ("", None),
    ],
)
def test_strings(answer: str, right: int | None):
    assert extracted("string", answer, Question("?", "ao")) == right


# -- statistics -----------------------------------------------------------------------------------


def test_the_mean_of_tasks_counts_each_the_same():
    found = stratified([[1.0] * 400, [0.0, 1.0]])
    assert found.mean == 0.75
    assert (found.low, found.high) == (0.5, 1.0)  # only the second one varies
    one, two = (stratified([[0.0, 1.0] * 50] * count) for count in (1, 2))
    narrower = (one.high - one.low) / (two.high - two.low)
    assert narrower == pytest.approx(2**0.5, rel=0.1), "each is resampled by itself"


def test_what_a_gamma_catches():
    positions = [(0.1, False), (0.3, True), (0.5, False), (0.9, True)]
    assert [(c.gamma, c.positions, c.disagreements) for c in caught(positions, [0, 0.4, 1])] == [
        (0, 0, 0),
        (0.4, 0.5, 0.5),
        (1, 1, 1),
    ]

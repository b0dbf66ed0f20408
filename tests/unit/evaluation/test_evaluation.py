"""Scores, intervals, the suggested γ, files of questions and of results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import ModelSettings
from server.core import Message
from server.evaluation import data, scorers, statistics, systems, tasks
from server.evaluation.data import EvaluationError, Item
from server.evaluation.store import Store
from tests.conftest import ROOT

# -- scorers --------------------------------------------------------------------------------------

CHOICES = ["Paris", "London", "New Paris"]


@pytest.mark.parametrize(
    ("scorer", "answer", "wanted", "right"),
    [
        ("exact", "Paris", "Paris", 1),
        ("exact", "  paris. ", "Paris", 1),
        ("exact", "new\nyork", "New  York", 1),
        ("exact", "Paris!", "Paris", 0),
        ("exact", "It is Paris", "Paris", 0),
        ("exact", "5", 5, 1),
        ("exact", "b", ["a", "b"], 1),
        ("contains", "It is Paris, I think.", "Paris", 1),
        ("contains", "It is PARIS", "paris", 1),
        ("contains", "Parisians", "Paris", 0),
        ("contains", "the New\n York", "new york", 1),
        ("contains", "London", ["Paris", "London"], 1),
        ("contains", "C++ is", "C++", 1),
        ("contains", "", "Paris", 0),
        ("number", "3 and 4 make 7.", "7", 1),
        ("number", "3 and 4 make 7.", 4, 0),
        ("number", "The answer is 7, not 8", 7, 1),
        ("number", "First answer: 3. No: the answer is 4 (of 9)", 4, 1),
        ("number", "It costs $1,200.50.", "1200.5", 1),
        ("number", "7 + 5\n#### 12", "12", 1),
        ("number", "-3", -3, 1),
        ("number", "\N{MINUS SIGN}3", -3, 1),
        ("number", "0.50", ".5", 1),
        ("number", "12 %", "12%", 1),
        ("number", "twelve", 12, 0),
        ("number", "the answer is unknown, though 5 was said", 5, 1),
        ("number", "", 5, 0),
        ("choice", "B", "B", 1),
        ("choice", "B. London", "B", 1),
        ("choice", "The answer is B", 1, 1),
        ("choice", "Not A. Answer: (B)", "B", 1),
        ("choice", "A is wrong; the answer is C.", "New Paris", 1),
        ("choice", "I would say (B), since …", "B", 1),
        ("choice", "London", "B", 1),
        ("choice", "It is London.", "London", 1),
        ("choice", "A city such as London", "A", 0),
        ("choice", "A city such as London", "B", 1),
        ("choice", "Paris or London", "A", 0),
        ("choice", "(A) or (B)", "A", 0),
        ("choice", "", "A", 0),
        ("choice", "E", "A", 0),
    ],
)
def test_scorers(scorer: str, answer: str, wanted: Any, right: int):
    row = {"answer": wanted, "choices": CHOICES}
    assert scorers.BUILT_IN[scorer](answer, row) == right


def item(number: int = 0, **row: Any) -> Item:
    return Item(number, (Message("user", "q"),), row)


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        ([{"answer": "Paris"}], "contains"),
        ([{"answer": "5"}, {"answer": 3.5}], "number"),
        ([{"answer": "5"}, {"answer": "five"}], "contains"),
        ([{"answer": "A", "choices": CHOICES}], "choice"),
        ([{"answer": "A"}, {}], None),
    ],
)
def test_the_scorer_that_suits_some_data(rows: list[dict[str, Any]], name: str | None):
    assert scorers.default([item(**row) for row in rows]) == name


def test_a_scorer_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_scorer.py").write_text(
        "def short(answer, row):\n    return len(answer) < row['most']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in (f"{tmp_path}/own_scorer.py:short", "own_scorer:short"):
        judge = scorers.find(name)
        assert scorers.score(name, judge, "abc", item(most=4)) == 1
        assert scorers.score(name, judge, "abcd", item(most=4)) == 0
    sys.modules.pop("own_scorer")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exakt", "there is no scorer 'exakt' .there are exact, contains"),
        ("nowhere:f", "can't be loaded: No module named 'nowhere'"),
        ("nowhere.py:f", "can't be loaded: there is no file"),
        ("json:nothing", "can't be loaded: .*no attribute 'nothing'"),
        ("json:__doc__", "is no function"),
    ],
)
def test_a_scorer_that_cannot_be_had(name: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        scorers.find(name)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (lambda *_: 1.5, "gave 1.5 for row 3"),
        (lambda *_: float("nan"), "gave nan for row 3"),
        (lambda *_: None, "failed on row 3: TypeError"),
        (scorers.exact, "failed on row 3: .*the row has no 'answer'"),
    ],
)
def test_a_scorer_that_fails_is_named_with_its_row(judge: scorers.Scorer, message: str):
    with pytest.raises(EvaluationError, match=message):
        scorers.score("mine", judge, "x", item(2))


# -- the demo task --------------------------------------------------------------------------------


def test_the_demo_task_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_demo_task

    assert tasks.DEMO_FILE.read_text("utf-8") == make_demo_task.lines("test")


def test_the_demo_tasks_scorers_judge_as_its_world_does(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from demo_world import good_answer, make_questions, make_world, score

    found = tasks.find("demo")
    assert found is not None
    questions = make_questions(make_world(), "test")
    spoil: list[Callable[[str], str]] = [
        lambda text: text,
        lambda text: f" {text}\n",
        lambda text: text + "\n\nQuestion: And?",
        lambda text: text.replace("Certainly! ", ""),
        lambda text: text.replace("Final answer: ", "Final answer: the "),
        lambda text: text.split(" Final answer")[0],
        lambda text: text.replace("Final answer: ", "Final answer: not "),
        lambda text: "5 = 5 and = 17",
        lambda text: "",
    ]
    judged = set()
    for question, asked in zip(questions, found.data.items, strict=True):
        assert asked.messages == (Message("user", question.text),)
        for change in spoil:
            answer = change(good_answer(question))
            world = score(question, answer, "stop")
            mine = (tasks.right(answer, asked.row), tasks.form(answer, asked.row))
            assert mine == (world.right, world.format), (answer, asked.row)
            judged.add(mine)
    assert len(judged) == 4


# -- statistics -----------------------------------------------------------------------------------

shares = st.lists(st.floats(0, 1), min_size=1, max_size=30)


@given(shares)
def test_an_interval_holds_its_mean_and_lies_within_the_values(values: list[float]):
    found = statistics.bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.mean <= found.high <= max(values) + 1e-9
    assert found == statistics.bootstrap(values)


def test_an_interval_is_as_wide_as_theory_says():
    values = [1.0] * 50 + [0.0] * 50
    found = statistics.bootstrap(values)
    assert (found.low, found.high) == pytest.approx((0.402, 0.598), abs=0.015)  # ± 1.96 · 0.05
    assert statistics.bootstrap([1.0] * 9) == statistics.Estimate(1, 1, 1)
    wide, narrow = (statistics.bootstrap(values * times) for times in (1, 16))
    assert narrow.high - narrow.low == pytest.approx((wide.high - wide.low) / 4, rel=0.15)


def test_nineteen_of_twenty_intervals_hold_the_truth():
    draws = np.random.default_rng(5).random((200, 60)) < 0.7
    holding = 0
    for sample in draws:
        found = statistics.bootstrap(sample.astype(float).tolist())
        holding += found.low <= 0.7 <= found.high
    assert 180 <= holding <= 199


@given(shares)
def test_a_paired_difference_forgets_what_both_share(values: list[float]):
    less = statistics.paired([value - 0.25 for value in values], values)
    assert (less.low, less.mean, less.high) == pytest.approx((-0.25, -0.25, -0.25))
    assert statistics.paired(values, values) == statistics.Estimate(0, 0, 0)


def test_a_pair_needs_the_same_questions():
    with pytest.raises(ValueError, match="the same questions"):
        statistics.paired([1.0], [1.0, 0.0])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_the_closest_rising_values(values: list[float]):
    rising = statistics.increasing(values)
    assert rising == sorted(rising)
    assert sum(rising) == pytest.approx(sum(values))
    if values == sorted(values):
        assert rising == values


swept = st.lists(st.floats(0, 1), min_size=2, max_size=8).map(
    lambda values: [(n / 10, value) for n, value in enumerate(values)]
)


@given(swept, st.floats(0, 1), st.floats(0, 1))
def test_a_larger_target_never_gets_a_smaller_gamma(found, one: float, two: float):
    low, high = sorted((one, two))
    assert statistics.suggest(found, low).gamma <= statistics.suggest(found, high).gamma


@given(swept, st.floats(0, 1))
def test_a_suggestion_lies_within_what_was_swept(found, target: float):
    suggestion = statistics.suggest(found, target)
    assert found[0][0] <= suggestion.gamma <= found[-1][0]
    if suggestion.measured:
        assert suggestion.share == pytest.approx(target)


@pytest.mark.parametrize(
    ("found", "target", "gamma", "share", "measured"),
    [
        ([(0.2, 0.05), (0.4, 0.15)], 0.1, 0.3, 0.1, True),
        ([(0.4, 0.15), (0.2, 0.05)], 0.1, 0.3, 0.1, True),  # in any order
        ([(0.2, 0.05), (0.4, 0.15)], 0.15, 0.4, 0.15, True),
        ([(0.2, 0.05), (0.4, 0.15)], 0.01, 0.2, 0.05, False),
        ([(0.2, 0.05), (0.4, 0.15)], 0.3, 0.4, 0.15, False),
        # The largest γ that nudges no more than that.
        ([(0.2, 0.1), (0.4, 0.1), (0.6, 0.3)], 0.1, 0.4, 0.1, True),
        # A dip is chance: 0.12 and 0.08 count as 0.1 each.
        ([(0.2, 0.12), (0.4, 0.08), (0.6, 0.3)], 0.2, 0.5, 0.2, True),
        ([(0.3, 0.1)], 0.1, 0.3, 0.1, True),
    ],
)
def test_a_suggested_gamma(found, target, gamma, share, measured):
    suggestion = statistics.suggest(found, target)
    assert (suggestion.gamma, suggestion.share) == pytest.approx((gamma, share))
    assert suggestion.measured is measured


def test_gammas_at_which_nobody_ends_are_known():
    assert statistics.unending([(0, 0.0), (0.2, 0.5), (0.4, 0.95), (0.6, 1.0)]) == [0, 0.2]
    assert statistics.unending([(0, 0.0), (0.2, 0.0)]) == []  # it can't be told
    assert statistics.unending([(0.2, 0.3), (0.4, 0.31)]) == []


def test_disagreements_by_top_probability():
    positions = [(0.0, False), (0.05, True), (0.1, False), (0.95, True), (1.0, False)]
    bins = statistics.by_top_prob(positions)
    assert [(b.positions, b.disagreements) for b in bins[:3]] == [(2, 1), (1, 1), (0, 0)]
    assert (bins[9].positions, bins[9].share, bins[2].share) == (2, 0.5, None)
    assert statistics.found_below(positions, 0.1) == (0.4, pytest.approx(1 / 3))
    assert statistics.found_below([], 0.1) == (0, 0)


# -- questions ------------------------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "questions.jsonl") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_questions_are_objects_or_lines(tmp_path: Path):
    chat = '{"messages": [{"role": "user", "content": "Two\u2028?"}]}'
    rows = '{"prompt": "One?", "answer": 1, "kind": "n"}\n\n' + chat
    found = data.read(write(tmp_path, rows))
    assert [each.messages[0].content for each in found.items] == ["One?", "Two\u2028?"]
    assert (found.items[0].kind, found.items[1].kind) == ("n", None)
    plain = data.read(write(tmp_path, "One?\n\n Two? \n", "plain.txt"))
    assert [each.messages[0].content for each in plain.items] == ["One?", "Two?"]
    assert len(data.read(tmp_path / "plain.txt", 1).items) == 1
    assert plain.digest != found.digest


def test_choices_become_lettered_lines(tmp_path: Path):
    path = write(tmp_path, json.dumps({"prompt": "Where?", "choices": ["Here", "There"]}))
    assert data.read(path).items[0].messages[0].content == "Where?\nA. Here\nB. There"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompts"),
        ('{"prompt": "a"}\n{"prompt": }', "line 2: no JSON"),
        ("[1]", r"line 1: each line must be an object"),
        ("{}", "needs either 'prompt' or 'messages'"),
        ('{"prompt": "a", "messages": []}', "needs either"),
        ('{"prompt": " "}', "must be a text that isn't empty"),
        ('{"prompt": 5}', "must be a text"),
        ('{"messages": []}', "a list that isn't empty"),
        ('{"messages": [{"role": "robot", "content": "x"}]}', "needs a 'role'"),
        ('{"messages": [{"role": "user", "content": 5}]}', "needs a 'role'"),
        ('{"prompt": "a", "choices": ["x"]}', "a list of 2 to 26 texts"),
        ('{"prompt": "a", "choices": "xy"}', "a list of 2 to 26 texts"),
    ],
)
def test_a_wrong_row_is_named(tmp_path: Path, text: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        data.read(write(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(EvaluationError, match="can't be read: No such file"):
        data.read(tmp_path / "nothing.jsonl")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(EvaluationError, match="not UTF-8"):
        data.read(tmp_path / "bytes")


# -- systems --------------------------------------------------------------------------------------

MODEL = ModelSettings(base="b", aligned="a", nudging={"gamma": 0.35, "max_rounds": 9})


def test_systems_are_named():
    found = systems.parse_all("base, aligned,nudged,nudged@0.35,reference@0.2,ensemble", MODEL)
    assert [each.name for each in found] == [
        "base",
        "aligned",
        "nudged@0.35",
        "reference@0.2",
        "ensemble",
    ]
    assert [each.served for each in found] == [":base", ":aligned", "", "", ""]
    nudged, reference, ensemble = (each.nudging for each in found[2:])
    assert (nudged.policy, nudged.gamma, nudged.max_rounds) == ("nudging", 0.35, 9)
    assert (reference.policy, reference.gamma) == ("reference", 0.2)
    assert ensemble.policy == "ensemble"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("", "name at least one system"),
        (
            "nudgd",
            "there is no system 'nudgd' .there are base, aligned, nudged, entropy, reference",
        ),
        ("base@0.3", "there is no system"),
        ("nudged@", "'' is no γ"),
        ("nudged@-1", "'-1' is no γ"),
        ("nudged@inf", "'inf' is no γ"),
        ("ensemble@0.3", "ensemble knows no γ"),
        ("proxy_tuning", "needs a third engine"),
    ],
)
def test_a_wrong_system_is_named(names: str, message: str):
    with pytest.raises(EvaluationError, match=message):
        systems.parse_all(names, MODEL)


def test_gammas_are_sorted_and_single():
    assert systems.to_gammas("0.4, 0.2,0.40") == [0.2, 0.4]
    with pytest.raises(EvaluationError, match="at least one γ"):
        systems.to_gammas(" ,")


# -- kept results ---------------------------------------------------------------------------------


def test_results_are_kept_and_a_torn_line_is_dropped(tmp_path: Path):
    with Store(tmp_path, {"a": 1}) as store:
        store.add("base", 0, {"text": "ü"})
        store.add("base", 1, {"text": "b"})
        begun = store.begun
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[:-5])
    with Store(tmp_path, {"a": 1}) as again:
        assert [result["text"] for result in again.results.values()] == ["ü"]
        assert again.begun == begun
        again.add("base", 1, {"text": "b"})
    assert store.path.read_bytes() == whole


def test_results_of_another_setup_are_not_mixed_in(tmp_path: Path):
    with Store(tmp_path, {"a": 1, "b": 2}) as store:
        store.add("base", 0, {"text": ""})
    with pytest.raises(EvaluationError, match=r"another run \(b, c differ\); give another --out"):
        Store(tmp_path, {"a": 1, "c": 2})
    with Store(tmp_path, {"a": 1, "c": 2}, fresh=True) as store:
        assert store.results == {}
    with Store(tmp_path, {"c": 2, "a": 1}) as store:
        assert store.results == {}


def test_one_run_at_a_time(tmp_path: Path):
    with Store(tmp_path, {}), pytest.raises(EvaluationError, match="another run is writing"):
        Store(tmp_path, {})
    Store(tmp_path, {}).__exit__(None, None, None)


def test_a_broken_folder_is_told(tmp_path: Path):
    with Store(tmp_path, {}) as store:
        store.add("base", 0, {})
    store.path.write_text("nothing\n" + store.path.read_text())
    with pytest.raises(EvaluationError, match=r"results.jsonl, line 1, is no result"):
        Store(tmp_path, {})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(EvaluationError, match="can't be read"):
        Store(tmp_path, {})
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="can't write to"):
        Store(tmp_path / "file", {})

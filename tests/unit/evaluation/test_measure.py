"""`nudge calibrate` and `nudge eval` as commands, on scripted engines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from server import config
from server.cli import app
from server.core import AnswerRequest, PromptPair, SamplingParams
from server.evaluation import agreement, plots
from server.evaluation.store import Store
from tests.conftest import DEMO
from tests.unit.decoding.test_nudged import engine

CONFIG = """\
engines:
  base:
    backend: scripted
    model: DEMO/base
    args:
      script: [["Once upon a time", 0.9], [" there", 0.15], [" was", 0.35], [" a fox 7.", 0.9]]
  aligned:
    backend: scripted
    model: DEMO/aligned
    args: {script: [["Once upon a time these saw a fox 7. Bye.", 0.9]]}
  small:
    backend: scripted
    model: DEMO/aligned-1k
  mute:
    backend: scripted
    model: DEMO/aligned
    args: {dies_after: 2}
models:
  fox:
    base: base
    aligned: aligned
    untuned: base
    nudging: {gamma: 0.3}
    # Without a space at its end: a script counts every character after the prompt.
    base_prompt: "{{ question }}{% if add_generation_prompt %} A:{% endif %}"
  cross: {base: base, aligned: small}
  dying: {base: base, aligned: mute}
"""

QUESTIONS = '{"prompt": "A?", "answer": "fox", "kind": "x"}\n{"prompt": "B?", "answer": "dog"}\n'


class Folder:
    """A configuration, some questions, and where results go."""

    def __init__(self, path: Path) -> None:
        self.config = path / "nudge.yaml"
        self.config.write_text(CONFIG.replace("DEMO", str(DEMO)))
        self.questions = path / "questions.jsonl"
        self.questions.write_text(QUESTIONS)
        self.out = path / "out"
        self.results = self.out / "results.jsonl"

    def nudge(self, command: str, *args: str) -> Result:
        data = "--data" if command == "eval" else "--prompts"
        own = [command, str(self.config), data, str(self.questions), "--out", str(self.out)]
        return CliRunner().invoke(app, [*own, *args], env={"COLUMNS": "300"})

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return found


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def timeless(report: Any) -> Any:
    """A report without what the clock or the command line says."""
    if isinstance(report, dict):
        skipped = {"seconds", "tokens_per_s", "command"}
        return {key: timeless(each) for key, each in report.items() if key not in skipped}
    return [timeless(each) for each in report] if isinstance(report, list) else report


def test_a_calibration(folder: Folder):
    result = folder.nudge("calibrate", "--gammas", "0.1,0.2,0.4", "--target", "0.4")
    assert result.exit_code == 0, result.output
    report = folder.report()
    found = report["figures"]
    shares = [each["nudged_share"] for each in found.values()]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2]
    assert found["0.4"]["scores"]["contains"]["mean"] == 0.5
    assert found["0.1"]["stop_reasons"] == {"aligned_end": 2}
    low, high = (found[gamma]["nudged_share"] for gamma in ("0.2", "0.4"))
    gamma = report["decision"]["suggestion"]["gamma"]
    assert low <= 0.4 <= high
    assert gamma == pytest.approx(0.2 + 0.2 * (0.4 - low) / (high - low), abs=1e-4)
    # What is to be pasted is a configuration's model.
    pasted = yaml.safe_load((folder.out / "suggested.yaml").read_text())
    whole = yaml.safe_load(folder.config.read_text()) | pasted
    folder.config.write_text(yaml.safe_dump(whole))
    assert config.load(folder.config).models["fox"].nudging.gamma == pytest.approx(gamma, abs=1e-3)
    text = (folder.out / "report.md").read_text()
    assert "Over 20 % nudged, a pair tends to do badly" in text
    assert text.count("| 0.4 |") == 1
    # Each model alone has a row, and each γ an answer with its nudges in brackets.
    assert (report["alone"]["base"]["ended"], report["alone"]["aligned"]["ended"]) == (1, 1)
    assert "| base alone | – |" in text
    assert "**γ = 0.4**\n\n```text\n[Once] upon a time[ these saw] a fox 7.[ Bye.]\n```" in text
    for name in ("gamma.svg", "disagreement.svg"):
        assert (folder.out / name).read_text().startswith("<?xml")
        assert f"({name})" in text


def test_a_calibration_without_answers_has_no_score(folder: Folder):
    plain = folder.questions.with_suffix(".txt")
    plain.write_text("A?\nB?\n")
    result = folder.nudge(
        "calibrate", "--prompts", str(plain), "--gammas", "0.2,0.4", "--target", "0.9"
    )
    assert result.exit_code == 0, result.output
    assert folder.report()["figures"]["0.2"]["scores"] == {}
    assert "is the largest that was tried" in (folder.out / "report.md").read_text()


LOOPING = """\
engines:
  base:
    backend: scripted
    model: DEMO/base
    args: {script: BASE}
  aligned:
    backend: scripted
    model: DEMO/aligned
    args: {script: ALIGNED}
models:
  fox:
    base: base
    aligned: aligned
"""


def scripted(folder: Folder, base: list[Any], aligned: list[Any]) -> None:
    text = LOOPING.replace("DEMO", str(DEMO)).replace("BASE", json.dumps(base))
    folder.config.write_text(text.replace("ALIGNED", json.dumps(aligned)))


def test_a_pair_whose_answers_no_model_ends_suits_no_gamma(folder: Folder):
    """The base model is certain that there is always more to say."""
    rambling = [[f"Thing {n} is so. ", 0.9] for n in range(40)]
    scripted(folder, rambling, [["It is so.", 0.9]])
    result = folder.nudge("calibrate", "--gammas", "0.2,0.4", "--max-tokens", "60")
    assert result.exit_code == 0, result.output
    assert "No γ suits this pair: even at γ = 0.2 only 0 % of the answers end" in result.output
    report = folder.report()
    assert report["decision"] == {"suggestion": None, "unending": [], "cut": 0}
    for found in (*report["figures"].values(), report["alone"]["base"]):
        assert (found["ended"], found["cut_by_length"]) == (0, 1)
    assert report["alone"]["aligned"]["ended"] == 1
    suggested = (folder.out / "suggested.yaml").read_text()
    assert suggested.startswith("# No γ suits this pair: ")
    assert yaml.safe_load(suggested) is None
    assert "No γ suits" in (folder.out / "report.md").read_text()


def test_a_next_turn_that_is_written_is_told(folder: Folder):
    going_on = [["It is so.\n\nQuestion: And why is it?\nAnswer: Because.", 0.9]]
    scripted(folder, going_on, [["It is so.", 0.9]])
    assert folder.nudge("eval").exit_code == 0
    assert [each["next_turn"] for each in folder.report()["systems"]] == [1, 0, 0]
    assert [each["ended"] for each in folder.report()["systems"]] == [1, 1, 1]


@pytest.mark.parametrize(
    ("args", "shown"),
    [(["--stop", "fox 7"], "cut_at_stop"), (["--max-tokens", "4"], "cut_by_length")],
)
def test_an_answer_that_something_cut_has_not_ended(folder: Folder, args: list[str], shown: str):
    result = folder.nudge("eval", "--systems", "base,aligned,nudged,reference", *args)
    assert result.exit_code == 0, result.output
    for system in folder.report()["systems"]:
        if system["system"] != "reference@0.3":  # which has no stop strings
            assert (system["ended"], system[shown]) == (0, 1)
    assert folder.nudge("eval", "--fresh").exit_code == 0
    assert [each["ended"] for each in folder.report()["systems"]] == [1, 1, 1]


def test_an_answer_that_the_loop_guard_cut_has_not_ended(folder: Folder):
    scripted(folder, [["It is so. ", 0.9]] * 40, [["It is so. ", 0.9]] * 40)
    assert folder.nudge("eval", "--systems", "nudged").exit_code == 0
    (nudged,) = folder.report()["systems"]
    assert (nudged["ended"], nudged["looped"]) == (0, 1)
    assert nudged["stop_reasons"].keys() <= {"repetition", "repeated_round"}


def test_a_limit_under_which_no_end_is_seen_is_told(folder: Folder):
    """And no γ is blamed for it."""
    result = folder.nudge("calibrate", "--gammas", "0.1,0.4", "--max-tokens", "5")
    assert result.exit_code == 0, result.output
    assert "--max-tokens 5 is too small to see endings" in result.output
    assert "whether one suits can't be told" in result.output
    decision = folder.report()["decision"]
    assert (decision["unending"], decision["cut"]) == ([], 1)
    assert decision["suggestion"] is not None
    assert (folder.out / "suggested.yaml").read_text().startswith("# --max-tokens 5 is too small")


def test_rows_with_choices_among_others_are_judged_each_by_its_own_rule(folder: Folder):
    choice = {"prompt": "C?", "choices": ["a dog", "a fox"], "answer": "A"}
    folder.questions.write_text(QUESTIONS + json.dumps(choice) + "\n")
    assert folder.nudge("eval", "--systems", "aligned").exit_code == 0
    assert folder.report()["systems"][0]["scores"]["by_row"]["mean"] == pytest.approx(1 / 3)
    shutil.rmtree(folder.out)
    result = folder.nudge("eval", "--systems", "aligned", "--scorer", "choice")
    assert result.exit_code == 2
    assert "row 1 has no 'choices', which the scorer 'choice' needs" in result.output
    assert not folder.out.exists(), "before anything is answered"


def test_a_systems_dot_and_its_bar_stand_at_one_height(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: drawn.append(figure))
    assert folder.nudge("eval").exit_code == 0
    scores, cost = drawn[0].axes
    dots = [y for _, y in scores.lines[0].get_xydata()]
    bars = [bar.get_y() + bar.get_height() / 2 for bar in cost.patches][: len(dots)]
    heights = [
        [axis.transData.transform((0, y))[1] for y in ys]
        for axis, ys in ((scores, dots), (cost, bars))
    ]
    assert heights[0] == pytest.approx(heights[1])


def test_an_evaluation(folder: Folder):
    names = "base,aligned,nudged,nudged@0.1,reference@0.3,ensemble,proxy_tuning"
    result = folder.nudge("eval", "--systems", names, "--max-tokens", "30")
    assert result.exit_code == 0, result.output
    found = {each["system"]: each for each in folder.report()["systems"]}
    assert list(found) == names.replace("nudged,", "nudged@0.3,").split(",")
    # (The policy `reference` tokenizes prompt and output as one, so that a script begins anew.)
    for system in (each for name, each in found.items() if name != "reference@0.3"):
        assert system["scores"]["contains"]["mean"] == 0.5
        assert system["by_kind"] == {"x": {"contains": 1.0}}
    assert found["base"]["differences"] == {}
    assert found["aligned"]["differences"]["contains"]["mean"] == 0
    assert (found["base"]["nudged_share"], found["aligned"]["nudged_share"]) == (0, 1)
    assert found["base"]["aligned_steps"] == found["aligned"]["base_steps"] == 0
    assert found["ensemble"]["base_steps"] == found["ensemble"]["aligned_steps"] > 1
    assert found["ensemble"]["untuned_steps"] == 0 < found["proxy_tuning"]["untuned_steps"]
    assert found["nudged@0.1"]["nudged_share"] < found["nudged@0.3"]["nudged_share"]
    text = (folder.out / "report.md").read_text()
    assert "(systems.svg)" in text
    assert "contains: over base" in text
    assert str(DEMO) not in text, "a report may be published: no path of this machine"


def test_answers_are_there_to_be_read(folder: Folder):
    assert folder.nudge("eval", "--systems", "nudged").exit_code == 0
    lines = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert {line["text"] for line in lines} == {"Once upon a time these was a fox 7. Bye."}


def test_stop_strings_and_limits(folder: Folder):
    args = ["--systems", "aligned,base", "--stop", " fox", "--limit", "1"]
    assert folder.nudge("eval", *args).exit_code == 0
    lines = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert [line["stop_reason"] for line in lines] == ["stop_string"] * 2
    assert folder.report()["about"]["questions"] == 1


@pytest.mark.parametrize("command", ["calibrate", "eval"])
@pytest.mark.parametrize("after", [1, 3])
def test_a_run_that_was_cut_off_goes_on(
    folder: Folder, command: str, after: int, monkeypatch: pytest.MonkeyPatch
):
    args = ["--gammas", "0.1,0.4"] if command == "calibrate" else ["--systems", "base,nudged"]
    assert folder.nudge(command, *args).exit_code == 0
    whole, lines = folder.report(), folder.results.read_text().count("\n")
    shutil.rmtree(folder.out)
    really_add, added = Store.add, list[tuple[str, int]]()

    def add(store: Store, system: str, item: int, result: dict[str, Any]) -> None:
        if len(added) == after:
            raise KeyboardInterrupt
        really_add(store, system, item, result)
        added.append((system, item))

    monkeypatch.setattr(Store, "add", add)
    cut = folder.nudge(command, *args)
    assert cut.exit_code == 130
    assert "the same command goes on from there" in cut.output
    assert not (folder.out / "report.json").exists()
    after = -1
    torn = folder.out / "results.jsonl"
    torn.write_text(torn.read_text() + '{"system": "nudged@0.')
    assert folder.nudge(command, *args).exit_code == 0
    assert len(added) == len(set(added)) == lines, "nothing is answered twice"
    assert timeless(folder.report()) == timeless(whole)
    # A third time there is nothing to do, and no engine is needed for it.
    monkeypatch.setattr("server.serving.engines.start_engine", None)
    again = folder.nudge(command, *args)
    assert again.exit_code == 0
    assert "no engine is started" in again.output
    assert timeless(folder.report()) == timeless(whole)


def test_another_system_and_another_scorer_join_an_evaluation(folder: Folder):
    assert folder.nudge("eval", "--systems", "base").exit_code == 0
    own = folder.questions.with_name("polite.py")
    own.write_text("def polite(answer, row):\n    return 'Bye' in answer\n")
    scorers = ("--scorer", "exact", "--scorer", f"{own}:polite")
    result = folder.nudge("eval", "--systems", "base,aligned", *scorers)
    assert result.exit_code == 0, result.output
    polite = folder.report()["systems"][1]["differences"][f"{own}:polite"]
    assert polite == {"mean": 1, "low": 1, "high": 1}
    assert folder.results.read_text().count("\n") == 4
    assert list(folder.report()["systems"][1]["scores"]) == ["exact", f"{own}:polite"]


def test_an_engine_that_dies_leaves_what_is_there(folder: Folder):
    result = folder.nudge("eval", "--systems", "base,aligned", "--model", "dying")
    assert result.exit_code == 1
    assert "died" in result.output
    assert "goes on from there" in result.output
    assert folder.results.read_text().count('"base"') == 2


@pytest.mark.parametrize(
    ("command", "args", "message"),
    [
        ("eval", ["--systems", "nobody"], "there is no system 'nobody'"),
        ("eval", ["--model", "nobody"], "has no model 'nobody' (there are fox, cross, dying)"),
        ("eval", ["--scorer", "nobody"], "there is no scorer 'nobody'"),
        ("eval", ["--systems", "ensemble", "--model", "cross"], "one vocabulary"),
        ("eval", ["--systems", "proxy_tuning", "--model", "cross"], "needs a third engine"),
        ("eval", ["--data", "nowhere.jsonl"], "nowhere.jsonl can't be read"),
        ("calibrate", ["--prompts", "nowhere.jsonl"], "nowhere.jsonl can't be read"),
        ("calibrate", ["--gammas", "x"], "'x' is no γ"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    folder: Folder, command: str, args: list[str], message: str
):
    result = folder.nudge(command, *args)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert result.output.count("error") == 1


def test_a_question_that_is_too_long_is_named_before_anything_is_answered(folder: Folder):
    long = json.dumps({"prompt": "word and " * 3000, "answer": "x"})
    folder.questions.write_text(QUESTIONS + long + "\n")
    result = folder.nudge("eval", "--systems", "base")
    assert result.exit_code == 2
    assert "question 3 of questions.jsonl has" in result.output
    assert folder.results.read_text() == ""


def test_rows_without_an_answer_cannot_be_scored(folder: Folder):
    folder.questions.write_text('{"prompt": "A?"}\n')
    result = folder.nudge("eval")
    assert result.exit_code == 2
    assert "not every row has an 'answer'" in result.output


@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_without_matplotlib_there_is_a_report_and_a_word(
    folder: Folder, command: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(plots, "available", lambda: False)
    args = ["--gammas", "0.2"] if command == "calibrate" else ["--systems", "base"]
    result = folder.nudge(command, *args)
    assert result.exit_code == 0, result.output
    assert "pip install 'nudging-server[plots]'" in result.output
    assert ".svg" not in (folder.out / "report.md").read_text()


# -- where the models disagree --------------------------------------------------------------------


async def compared(base_script, aligned_script, folder="aligned", most=60, prompt="q"):
    base, aligned = engine(*base_script), engine(*aligned_script, folder=folder)
    found = await agreement.positions(base, aligned, PromptPair((prompt,), ("q",)), most)
    assert base.running == aligned.running == 0
    return [agrees for _, agrees in found], [round(top_prob, 3) for top_prob, _ in found]


@pytest.mark.parametrize("folder", ["aligned", "aligned-1k"])
async def test_models_that_write_the_same_agree_everywhere(folder: str):
    text = "Once upon a time 🦊 there"
    agrees, top_probs = await compared([(text, 0.8)], [(text, 0.9)], folder)
    assert all(agrees)
    assert top_probs[:-1] == [0.8] * (len(agrees) - 1)
    assert top_probs[-1] == 1  # both end


async def test_a_word_of_ones_own_and_another_end_are_disagreements():
    base = [("Once upon", 0.9), (" the", 0.3), (" time", 0.9)]
    aligned = [("Once upon", 0.9), (" a", 0.9)]
    agrees, top_probs = await compared(base, aligned)
    assert agrees.count(False) == 2
    assert agrees[-2:] == [False, False]  # " the" for " a", and it goes on where the other ends
    assert top_probs[-2] == 0.3


async def test_an_answer_that_was_cut_off_makes_no_disagreements():
    """Of its last token's remainder it can't be told, and its end wasn't seen."""
    text = "Once upon a time there was"
    for most in range(1, 16):
        agrees, _ = await compared([(text, 0.9)], [(text, 0.9)], "aligned-1k", most)
        assert all(agrees)
    agrees, _ = await compared([("Once upon", 0.9)], [("Once upon a time", 0.9)])
    seen = agrees.index(False)
    agrees, _ = await compared([("Once upon", 0.9)], [("Once upon a time", 0.9)], most=seen)
    assert agrees == [True] * seen


async def test_the_first_words_space_makes_no_disagreement():
    agrees, _ = await compared([(" Yes", 0.9)], [("Yes", 0.9)], prompt="q ")
    assert agrees[0]


def test_greedy_is_what_is_measured():
    from server.evaluation.runs import Setup

    assert Setup("x", 5, ("a",)).request == AnswerRequest(
        SamplingParams(temperature=0), max_tokens=5, stop=("a",)
    )

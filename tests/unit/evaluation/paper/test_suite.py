"""`nudge eval --suite paper` as a command, on scripted engines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from server.cli import app
from server.evaluation.paper.tasks import TASKS
from tests.conftest import DEMO
from tests.unit.evaluation.paper import hub

CONFIG = """\
engines:
  base:
    backend: scripted
    model: DEMO/base
    args: {script: [["It is a fox,", 0.9], [" so the", 0.2], [" answer is 7.", 0.9]]}
  aligned:
    backend: scripted
    model: DEMO/aligned
    args: {script: [["It is a fox, so his answer is 7.", 0.9]]}
  big:
    backend: scripted
    model: DEMO/aligned
    args: {script: [["The answer is B. Yes, 7.", 0.9]]}
models:
  fox: {base: base, aligned: aligned, untuned: base, nudging: {gamma: 0.3}}
  larger: {base: base, aligned: big}
"""

SYSTEMS = (
    "base,aligned,large_aligned,nudged@0.1,nudged@0.3,ensemble,proxy_tuning,in_context,"
    "larger/nudged@0.3"
)


class Desk:
    """A configuration, the tasks' files, and where results go."""

    def __init__(self, path: Path) -> None:
        self.config = path / "nudge.yaml"
        self.config.write_text(CONFIG.replace("DEMO", str(DEMO)))
        self.rows = hub.write(path / "rows")
        self.out = path / "out"

    def eval(self, *args: str) -> Result:
        own = ["eval", str(self.config), "--out", str(self.out), "--max-tokens", "40"]
        return CliRunner().invoke(app, [*own, *args], env={"COLUMNS": "300"})

    def local(self, *args: str) -> Result:
        return self.eval("--data", str(self.rows), *args)

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "report.json").read_text())
        return found

    def text(self) -> str:
        return (self.out / "report.md").read_text()

    def lines(self, task: str) -> list[dict[str, Any]]:
        return [json.loads(n) for n in (self.out / task / "results.jsonl").read_text().splitlines()]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


class Judging:
    """An OpenAI-compatible endpoint. said: what it was asked. reply: what it answers."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[dict[str, Any]], tuple[int, str]] = lambda _: (200, "")

    def start(self) -> ThreadingHTTPServer:
        judging = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judging.said.append(body)
                judging.keys.append(self.headers["Authorization"])
                status, text = judging.reply(body)
                message = {"role": "assistant", "content": text}
                answer = {
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                }
                data = json.dumps(answer if status == 200 else {"error": text}).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()
        return self.server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/"


@pytest.fixture
def judging() -> Iterator[Judging]:
    found = Judging()
    server = found.start()
    yield found
    server.shutdown()
    server.server_close()


def fair(body: dict[str, Any]) -> tuple[int, str]:
    """Right, where the answer holds the reference's last word; rated 4."""
    text = body["messages"][-1]["content"]
    if aspects := re.findall(r"^- (\w+):", text, re.MULTILINE):
        return 200, json.dumps({each: {"reason": "so", "score": "4"} for each in aspects})
    answer = text.split("[Answer to be judged]\n")[1].split("\n\n[Reference")[0]
    gold = text.split("[Reference answer]\n")[1].split("\n")[0]
    correct = int(gold.split()[-1].rstrip(".") in answer)
    return 200, f'Here: {{"reason": "a\nb", "correct": "{correct}"}}'


def test_the_whole_suite_with_everybody(desk: Desk, judging: Judging):
    judging.reply = fair
    args = ["--suite", "paper", "--limit", "2", "--systems", SYSTEMS, "--large", "big"]
    judge = ["--judge", judging.url]
    result = desk.local(*args, *judge)
    assert result.exit_code == 0, result.output
    report = desk.report()
    assert [each["task"] for each in report["tasks"]] == list(TASKS)
    for each in report["tasks"]:
        assert list(each["figures"]) == SYSTEMS.split(",")
        assert each["questions"] == 2
    by_task = {each["task"]: each for each in report["tasks"]}
    assert {name: each["scored_by"] for name, each in by_task.items()} == {
        **dict.fromkeys(TASKS, "judge"),
        **dict.fromkeys(["gsm8k", "svamp", "multiarith"], "rule"),
        **dict.fromkeys(["justeval", "justeval_safe"], "mean"),
    }
    assert by_task["justeval"]["values"]["base"] == [4, 4]
    assert set(by_task["justeval"]["figures"]["base"]["scores"]) == {
        "mean",
        "helpfulness",
        "clarity",
        "factuality",
        "depth",
        "engagement",
    }
    # Who is who.
    texts = {line["system"]: line.get("text") for line in desk.lines("gsm8k")}
    assert texts["base"] == texts["in_context"] == "It is a fox, so the answer is 7."
    assert texts["aligned"] == texts["nudged@0.3"] == "It is a fox, so his answer is 7."
    assert texts["large_aligned"] == "The answer is B. Yes, 7."
    assert texts["larger/nudged@0.3"].startswith("The")
    # What is in the report.
    text = desk.text()
    for part in (
        "## Scores", "## Over base", "## Over aligned", "## Over large_aligned",
        "## Open answers, rated from 1 to 5", "## Nudged share", "## How the answers ended",
        "## The judge", "## Which disagreements a γ catches", "## What it cost",
        "(recall.svg)", "(shares.svg)", "| mean of 11 |",
    ):  # fmt: skip
        assert part in text
    assert str(DEMO) not in text
    for name in ("recall.svg", "shares.svg"):
        assert (desk.out / name).read_text().startswith("<?xml")
    # The judge was asked once for each answer that differs, of the paper's model for the task.
    counts = report["judge"]
    assert {*counts} == {"gpt-4o", "gpt-4o-mini"}
    assert len(judging.said) == sum(each["new"] for each in counts.values())
    assert counts["gpt-4o"]["prompt_tokens"] == 100 * counts["gpt-4o"]["new"]
    # Once more: nobody is asked anything.
    asked = len(judging.said)
    again = desk.local(*args, *judge)
    assert again.exit_code == 0, again.output
    assert "no engine is started" in again.output
    assert len(judging.said) == asked
    assert all(each["new"] == 0 for each in desk.report()["judge"].values())


def test_without_a_judge_answers_are_scored_by_what_is_extracted(desk: Desk):
    result = desk.local("--task", "gsm8k,mmlu,justeval", "--limit", "2", "--systems", "base,nudged")
    assert result.exit_code == 0, result.output
    by_task = {each["task"]: each for each in desk.report()["tasks"]}
    assert by_task["mmlu"]["scored_by"] == "extracted"
    assert by_task["justeval"]["scored_by"] is None
    assert "it takes a judge (`--judge`): justeval." in desk.text()
    assert "| mean of 2 |" in desk.text()


def test_in_context_alignment_ends_where_the_next_question_begins(desk: Desk):
    script = '[["It is 7.\\n\\n# Query:\\nAnd 8?", 0.9]]'
    text = desk.config.read_text()
    start, end = text.index("[["), text.index("]]}") + 2
    desk.config.write_text(text[:start] + script + text[end:])
    args = ["--task", "gsm8k", "--systems", "in_context,base", "--no-disagreement"]
    assert desk.local(*args).exit_code == 0
    found = {(each["system"], each["text"], each["stop_reason"]) for each in desk.lines("gsm8k")}
    assert found == {
        ("in_context", "It is 7.\n", "stop_string"),
        ("base", "It is 7.\n\n# Query:\nAnd 8?", "end_of_text"),
    }


def test_both_models_read_the_papers_prompt(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    from server.serving.registry import Registry

    read = []
    prompts = Registry.prompts

    def listen(registry: Registry, served: Any, messages: Any) -> Any:
        pair = prompts(registry, served, messages)
        read.append((served.name, "".join(map(str, pair.base)), "".join(map(str, pair.aligned))))
        return pair

    monkeypatch.setattr(Registry, "prompts", listen)
    one = ["--task", "mmlu", "--limit", "1", "--systems", "nudged,in_context", "--no-disagreement"]
    assert desk.local(*one).exit_code == 0
    rows = [row for row in hub.ROWS["mmlu"] if row["question"] in read[0][1]]
    (row,) = rows
    lettered = "\n".join(f"{a}. {c}" for a, c in zip("ABCD", row["choices"], strict=False))
    question = f"Subject: {row['subject']}\nQuestion: {row['question']}\n{lettered}"
    instruction = "Answer the question by walking through the reasoning steps."
    base = {name: text for name, text, _ in read}
    aligned = {name: text for name, _, text in read}
    assert base["fox"] == f"{instruction}\n{question}\n"
    assert instruction in aligned["fox"]
    assert question in aligned["fox"]
    assert base["fox.in_context"].endswith(f"# Query:\n{instruction}\n{question}\n\n# Answer:\n")
    read.clear()
    assert desk.local(*one, "--prompts", "own", "--fresh").exit_code == 0
    (own,) = {text for name, text, _ in read if name == "fox"}
    assert own.startswith(f"{instruction}\nQuestion: Subject: ")
    assert own.endswith("\nAnswer: ")


def test_a_sample_is_the_authors(desk: Desk):
    import numpy as np

    np.random.seed(609)
    wanted = [hub.ROWS["gsm8k"][n]["answer"] for n in np.random.choice(3, 2, replace=False)]
    from server.evaluation.paper.rows import load

    found = load(TASKS["gsm8k"], desk.rows, 2, prefixed=True)
    assert [each.gold for each in found.questions] == wanted
    whole = load(TASKS["gsm8k"], desk.rows, 9, prefixed=True)
    assert [each.gold for each in whole.questions] == [r["answer"] for r in hub.ROWS["gsm8k"]]


def test_a_large_model_behind_an_endpoint(desk: Desk, judging: Judging):
    judging.reply = lambda body: (200, f"It is {body['model']}: 7.")
    args = ["--task", "gsm8k", "--systems", "large_aligned,base", "--no-disagreement"]
    result = desk.local(*args, "--large", "huge", "--large-url", judging.url, "--large-key", "FOX")
    assert result.exit_code == 0, result.output
    line = next(line for line in desk.lines("gsm8k") if line["system"] == "large_aligned")
    assert line["text"] == "It is huge: 7."
    assert line["stop_reason"] == "aligned_end"
    assert line["usage"] == {"aligned_prompt_tokens": 100, "aligned_tokens": 10,
                             "aligned_steps": 10}  # fmt: skip
    sent = judging.said[0]
    assert (sent["temperature"], sent["max_tokens"]) == (0, 40)
    assert [each["role"] for each in sent["messages"]] == ["system", "user"]
    # Another one is not mixed in.
    other = desk.local(*args, "--large", "huger", "--large-url", judging.url)
    assert other.exit_code == 2
    assert "results of another large_aligned" in other.output


def test_a_run_that_was_cut_off_goes_on(desk: Desk, judging: Judging):
    """Engines and judge alike."""
    args = ["--task", "mmlu", "--systems", "base,aligned", "--judge", judging.url]
    judging.reply = lambda _: (401, "who are you?")
    refused = desk.local(*args)
    assert refused.exit_code == 2
    assert "refused: 401" in refused.output
    judging.reply = fair
    result = desk.local(*args)
    assert result.exit_code == 0, result.output
    assert "no engine is started" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--task", "gsm9k"], "there is no task 'gsm9k' (there are gsm8k, svamp"),
        (["--task", ","], "name at least one task"),
        (["--task", "gsm8k", "--suite", "paper"], "either --task or --suite"),
        (["--task", "gsm8k", "--scorer", "exact"], "leave --scorer out"),
        (["--task", "gsm8k", "--systems", "nobody"], "base, aligned, nudged"),
        (["--task", "gsm8k", "--systems", "nobody/base"], "no model 'nobody' (there are fox"),
        (["--task", "gsm8k", "--systems", "large_aligned"], "needs --large ENGINE"),
        (["--task", "gsm8k", "--large", "small"], "no engine is named 'small'"),
        (["--task", "gsm8k", "--large-url", "http://x"], "needs the model's name"),
        (["--task", "gsm8k", "--systems", "base", "--large", "big"], "large_aligned isn't among"),
        (["--task", "gsm8k", "--judge-model", "x"], "--judge-model goes with --judge"),
        (["--task", "gsm8k", "--large-key", "x"], "--large-key goes with --large-url"),
        (["--judge", "http://x"], "--judge goes with --task or --suite"),
        (["--no-disagreement"], "--disagreement goes with --task or --suite"),
        ([], "is a folder; say which of its tasks: --task NAME, or --suite paper"),
    ],
)
def test_what_is_wrong_is_said(desk: Desk, args: list[str], message: str):
    result = desk.local(*args)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert "Traceback" not in result.output


def test_a_file_that_is_missing_or_of_another_form_is_named(desk: Desk):
    (desk.rows / "svamp.jsonl").unlink()
    (desk.rows / "gsm8k.jsonl").write_text('{"frage": "?"}\n')
    assert "has no svamp.jsonl" in desk.local("--task", "svamp").output
    wrong = desk.local("--task", "gsm8k")
    assert "gsm8k, row 1, isn't as openai/gsm8k has it (KeyError: 'question')" in wrong.output


def test_the_suite_takes_what_a_folder_has_and_says_what_it_left_out(desk: Desk):
    kept = {"csqa", "last_letters", "last_letter_concat"}
    for file in desk.rows.iterdir():
        if file.stem not in kept:
            file.unlink()
    suite = ("--suite", "paper", "--limit", "2", "--systems", "nudged", "--no-disagreement")
    result = desk.local(*suite)
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "left out, for" in said
    assert "gsm8k, svamp, multiarith, mmlu" in said
    assert [each["task"] for each in desk.report()["tasks"]] == ["csqa", "last_letter_concat"]
    for file in desk.rows.iterdir():
        file.unlink()
    none = desk.local(*suite)
    assert none.exit_code == 2
    assert "has a file of none of the tasks" in none.output


def test_the_hub_is_asked_through_its_library(desk: Desk, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def load_dataset(*args: Any, **named: Any) -> list[dict[str, Any]]:
        asked.append((*args, named))
        if "revision" not in named:
            raise RuntimeError("Dataset scripts are no longer supported, but found x.py")
        return hub.ROWS["csqa"]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    result = desk.eval("--task", "csqa", "--systems", "base", "--no-disagreement")
    assert result.exit_code == 0, result.output
    hub_name = ("tau/commonsense_qa", None)
    assert asked == [
        (*hub_name, {"split": "validation"}),
        (*hub_name, {"split": "validation", "revision": "refs/convert/parquet"}),
    ]
    monkeypatch.setitem(sys.modules, "datasets", None)
    lacking = desk.eval("--task", "csqa", "--systems", "base")
    assert lacking.exit_code == 2
    assert "pip install 'nudging-server[eval]'" in lacking.output

"""lm-evaluation-harness against the shipped command: docs/evaluate.md's command lines.

Not run by default: it needs lm_eval, which is no dependency of this project.

    python -m venv lm && lm/bin/pip install 'lm_eval[api]' torch transformers
    NUDGE_LM_EVAL=lm/bin/lm_eval scripts/test -m lm_eval
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Server


def measured(tmp_path: Path, task: str, kind: str, model_args: str, *more: str) -> dict[str, Any]:
    """What the harness finds."""
    lm_eval = os.environ.get("NUDGE_LM_EVAL")
    if lm_eval is None:
        pytest.fail("set NUDGE_LM_EVAL to the path of lm_eval")
    command = [
        *(lm_eval, "run", "--model", kind, "--model_args", model_args, *more),
        *("--include_path", "docs/evaluation/lm-eval", "--tasks", task),
        *("--output_path", str(tmp_path)),
    ]
    own = {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "unused", "HF_HOME": str(tmp_path / "hf")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = tmp_path.rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"][task]
    return found


@pytest.mark.lm_eval
@pytest.mark.parametrize(("model", "least"), [("demo", 0.9), ("demo:base", 0.8)])
def test_the_harness_measures_what_nudge_eval_does(
    live: Server, tmp_path: Path, model: str, least: float
):
    url = f"{live.url}/v1/chat/completions"
    args = f"model={model},base_url={url},num_concurrent=8,max_retries=1"
    found = measured(
        tmp_path, "nudge_demo", "local-chat-completions", args, "--apply_chat_template"
    )
    assert found["exact_match,final_answer"] >= least, found


@pytest.mark.lm_eval
@pytest.mark.parametrize(("model", "least", "most"), [("base", 0.9, 1), ("aligned", 0.2, 0.6)])
def test_the_harness_compares_the_log_probabilities_of_given_answers(
    live: Server, tmp_path: Path, model: str, least: float, most: float
):
    """One of four is right: the base model knows the world, and the aligned one doesn't."""
    tokenizer = f"tokenizer_backend=huggingface,tokenizer=models/demo/{model}"
    url = f"{live.url}/v1/completions"
    args = f"model=demo:{model},base_url={url},num_concurrent=8,max_retries=1,{tokenizer}"
    found = measured(tmp_path, "nudge_demo_choices", "local-completions", args)
    assert least <= found["acc,none"] <= most, found

"""lm-evaluation-harness against the shipped command: docs/evaluate.md's command line.

Not run by default: it needs lm_eval, which is no dependency of this project.

    python -m venv lm && lm/bin/pip install 'lm_eval[api]' torch
    NUDGE_LM_EVAL=lm/bin/lm_eval scripts/test -m lm_eval
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, Server

TASK = "nudge_demo"


@pytest.mark.lm_eval
@pytest.mark.parametrize(("model", "least"), [("demo", 0.9), ("demo:base", 0.8)])
def test_the_harness_measures_what_nudge_eval_does(
    live: Server, tmp_path: Path, model: str, least: float
):
    lm_eval = os.environ.get("NUDGE_LM_EVAL")
    if lm_eval is None:
        pytest.fail("set NUDGE_LM_EVAL to the path of lm_eval")
    url = f"{live.url}/v1/chat/completions"
    command = [
        *(lm_eval, "run", "--model", "local-chat-completions", "--apply_chat_template"),
        *("--model_args", f"model={model},base_url={url},num_concurrent=8,max_retries=1"),
        *("--include_path", "docs/evaluation/lm-eval", "--tasks", TASK),
        *("--output_path", str(tmp_path)),
    ]
    own = {"HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "unused", "HF_HOME": str(tmp_path / "hf")}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | own
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [results] = tmp_path.rglob("results_*.json")
    found = json.loads(results.read_text())["results"][TASK]
    assert found["exact_match,final_answer"] >= least, found

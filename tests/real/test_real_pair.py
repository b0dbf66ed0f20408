"""Real models of two families, with two tokenizers, served by the shipped command.

Not run by default: ``scripts/real-pair`` makes the models, then ``scripts/test -m real``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import CONFIGS, ROOT, serve

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]
NAME = "gemma-3-270m--smollm2-135m"
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def real() -> Iterator[httpx.Client]:
    if not (ROOT / "models" / "real").is_dir():
        pytest.fail("make the models first: scripts/real-pair")
    server = serve("--config", str(CONFIGS / "gemma-3-270m--smollm2-135m.yaml"), ready_in=600)
    assert server.url, server.output
    with httpx.Client(base_url=server.url, timeout=300) as client:
        yield client
    server.stop()


def post(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ask(client: httpx.Client, model: str, question: str, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return post(
        client, "/v1/chat/completions", model=model, messages=messages, max_tokens=64, **fields
    )


def tokens(client: httpx.Client, model: str, prompt: str) -> list[str]:
    found = post(client, "/tokenize", model=model, prompt=prompt, return_token_strs=True)
    return list(found["token_strs"])


def test_the_base_models_prompts_begin_with_its_bos(real: httpx.Client):
    assert tokens(real, f"{NAME}:base", "Hello")[0] == "<bos>"
    messages = [{"role": "user", "content": QUESTION}]
    chat = post(real, "/tokenize", model=f"{NAME}:base", messages=messages, return_token_strs=True)
    assert chat["token_strs"].count("<bos>") == 1


def test_the_aligned_model_reads_its_own_template_and_digits_one_by_one(real: httpx.Client):
    messages = [{"role": "user", "content": QUESTION}]
    prompts = post(real, "/apply-template", model=NAME, messages=messages)
    told = "You are a helpful assistant. Answer in one or two short sentences."
    assert prompts["aligned"].startswith(f"<|im_start|>system\n{told}<|im_end|>\n")
    assert prompts["aligned"].endswith(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    assert tokens(real, f"{NAME}:aligned", "x\n\n12") == ["x", "ĊĊ", "1", "2"]


@pytest.mark.parametrize("model", [f"{NAME}:base", f"{NAME}:aligned", NAME])
def test_they_know_the_capital_alone_and_together(real: httpx.Client, model: str):
    answer = ask(real, model, QUESTION)["choices"][0]
    assert "Paris" in answer["message"]["content"]


def test_the_aligned_model_ends_and_the_base_model_does_not(real: httpx.Client):
    assert ask(real, f"{NAME}:aligned", QUESTION)["choices"][0]["finish_reason"] == "stop"
    assert ask(real, f"{NAME}:base", QUESTION)["choices"][0]["finish_reason"] == "length"


def test_both_write_a_nudged_answer_and_its_pieces_are_the_text(real: httpx.Client):
    reply = ask(real, NAME, "Explain why the sky is blue.", nudging={"trace": True})
    usage = reply["usage"]["nudging"]
    assert usage["nudged_tokens"] > 0 < usage["base_tokens"]
    choice = reply["choices"][0]
    pieces = choice["nudging"]["pieces"]
    assert {piece["speaker"] for piece in pieces} == {"base", "aligned"}
    assert "".join(piece["text"] for piece in pieces) == choice["message"]["content"]


def test_text_beyond_ascii_passes_between_two_tokenizers(real: httpx.Client):
    question = "Wie heißt die Hauptstadt von Österreich? Antworte mit „Die Hauptstadt heißt …“."
    reply = ask(real, NAME, question, nudging={"gamma": 0.7})
    text = reply["choices"][0]["message"]["content"]
    assert text
    assert "\N{REPLACEMENT CHARACTER}" not in text

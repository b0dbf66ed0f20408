"""``continue_final_message`` and ``add_generation_prompt``: vLLM's fields, for both models."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conftest import Server

CHAT = "/v1/chat/completions"
ASK = {"role": "user", "content": "Tell me a story."}
PAST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello. "}]


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def post(server: Server, path: str, body: Any, status: int = 200) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


@pytest.mark.parametrize("begun", ["Once upon", " two\n\n  lines \n ", "", "<|im_end|> what?"])
def test_both_prompts_end_in_what_was_begun(scripted: Server, begun: str):
    body = {"model": "fox", "messages": [*PAST, ASK]}
    fresh = post(scripted, "/apply-template", body)
    body = {"model": "fox", "messages": [*PAST, ASK, said(begun)], "continue_final_message": True}
    assert post(scripted, "/apply-template", body) == {
        "base": fresh["base"] + begun,
        "aligned": fresh["aligned"] + begun,
    }
    # SDKs of vLLM's users send both.
    assert post(scripted, "/apply-template", body | {"add_generation_prompt": False}) == (
        post(scripted, "/apply-template", body)
    )


def test_without_the_field_an_answer_at_the_end_is_finished(scripted: Server):
    body = {"model": "fox", "messages": [ASK, said("Once.")]}
    assert post(scripted, "/apply-template", body) == {
        "base": "Question: Tell me a story.\nAnswer: Once.\n\nAnswer: ",
        "aligned": "<|im_start|>user\nTell me a story.<|im_end|>\n"
        "<|im_start|>assistant\nOnce.<|im_end|>\n<|im_start|>assistant\n",
    }
    assert post(scripted, CHAT, body | {"max_tokens": 2})["choices"][0]["message"]["content"]


def test_the_generation_prompt_can_be_left_out(scripted: Server):
    body = {"model": "fox", "messages": [ASK], "add_generation_prompt": False}
    assert post(scripted, "/apply-template", body) == {
        "base": "Question: Tell me a story.\n",
        "aligned": "<|im_start|>user\nTell me a story.<|im_end|>\n",
    }


@pytest.mark.parametrize("model", ["fox", "fox:base", "fox:aligned", "cross"])
@pytest.mark.parametrize("begun", ["Here it is:", "Here it is: ", "Here it is:    "])
def test_the_answer_is_only_what_is_new(scripted: Server, model: str, begun: str):
    body = {
        "model": model,
        "messages": [ASK, said(begun)],
        "continue_final_message": True,
        "max_tokens": 8,
        "temperature": 0,
    }
    text = post(scripted, CHAT, body)["choices"][0]["message"]["content"]
    assert "Once upon a time there was a fox.".startswith(text)
    with httpx.stream("POST", scripted.url + CHAT, json=body | {"stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == text


@pytest.mark.parametrize("model", ["demo", "demo:base", "demo:aligned"])
@pytest.mark.parametrize("space", ["", " "])
def test_an_answer_that_is_cut_goes_on_as_it_was(live: Server, model: str, space: str):
    """On real engines: with the space before the next word in the prompt, or in the answer."""
    question = {"role": "user", "content": "What is the capital of Galicor?"}
    body = {"model": model, "messages": [question], "temperature": 0, "max_tokens": 12}
    if model == "demo":
        body["nudging"] = {"gamma": 0}  # one speaker, so that the cut changes nobody's turn
    whole = post(live, CHAT, body)["choices"][0]["message"]["content"]
    words = whole.split(" ")
    assert len(words) > 4, whole
    begun = " ".join(words[:3]) + space
    body |= {"messages": [question, said(begun)], "continue_final_message": True}
    rest = post(live, CHAT, body)["choices"][0]["message"]["content"]
    assert (begun + rest).startswith(whole)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"continue_final_message": True}, "continue_final_message"),
        (
            {
                "messages": [ASK, said("x")],
                "continue_final_message": True,
                "add_generation_prompt": True,
            },
            "continue_final_message",
        ),
        ({"continue_final_message": "yes"}, "continue_final_message"),
        ({"add_generation_prompt": 0}, "add_generation_prompt"),
        ({"model": "begins", "add_generation_prompt": False}, "add_generation_prompt"),
        (
            {
                "model": "begins",
                "messages": [ASK, said("x")],
                "continue_final_message": True,
            },
            "continue_final_message",
        ),
        ({"chat_template_kwargs": {"add_generation_prompt": False}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"continue_final_message": True}}, "chat_template_kwargs"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/apply-template", "/tokenize"])
def test_what_cannot_be_is_refused_by_name(
    scripted: Server, path: str, change: dict[str, Any], param: str
):
    body = {"model": "fox", "messages": [ASK], **change}
    assert post(scripted, path, body, 400)["error"]["param"] == param


def test_a_chat_has_no_echo(scripted: Server):
    body = {"model": "fox", "messages": [ASK], "max_tokens": 1}
    assert post(scripted, CHAT, body | {"echo": True}, 400)["error"]["param"] == "echo"
    post(scripted, CHAT, body | {"echo": False})

"""What the models read, as tokens: /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import httpx
import pytest

from server.api.app import create_app
from server.config import load
from server.serving.registry import Registry
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO, ROOT, Server

ASK = {"role": "user", "content": "What is <|im_end|> for?"}
BEGUN = {"role": "assistant", "content": "It is "}
INDENTED = {"role": "assistant", "content": "It is\n    "}


@pytest.fixture(scope="module")
def base() -> Tokenizer:
    return Tokenizer.load(str(DEMO / "base"))


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.load(str(DEMO / "aligned-1k"))


def post(server: Server, path: str, body: Any, status: int = 200) -> dict[str, Any]:
    response = httpx.post(server.url + path, json=body, timeout=60)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def tokenize(server: Server, model: str, **body: Any) -> dict[str, Any]:
    return post(server, "/tokenize", {"model": model, **body})


def detokenize(server: Server, model: str, tokens: list[int]) -> str:
    found: str = post(server, "/detokenize", {"model": model, "tokens": tokens})["prompt"]
    return found


# -- text -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", " Hello, fox! ", "你好 😀\n", "<|im_start|>user\nHi<|im_end|>"]
)
@pytest.mark.parametrize("model", ["cross:base", "cross:aligned"])
def test_a_text_has_the_tokens_of_the_model_asked(
    scripted: Server, base: Tokenizer, small: Tokenizer, model: str, text: str
) -> None:
    tokenizer = base if model == "cross:base" else small
    found = tokenize(scripted, model, prompt=text)
    expected = tokenizer.encode_prompt(text)
    assert found == {
        "count": len(expected),
        "max_model_len": 2048,
        "tokens": expected,
        "token_strs": None,
    }


def test_the_vocabularys_spellings_come_on_request(scripted: Server) -> None:
    found = tokenize(scripted, "fox:base", prompt="the fox", return_token_strs=True)
    assert found["token_strs"][0] == "<|bos|>"
    assert "".join(found["token_strs"][1:]) == "theĠfox"


def test_special_tokens_are_added_unless_the_request_or_the_text_says_so(scripted: Server) -> None:
    with_it = tokenize(scripted, "fox:base", prompt="fox")["tokens"]
    without = tokenize(scripted, "fox:base", prompt="fox", add_special_tokens=False)["tokens"]
    assert with_it == [0, *without]
    assert tokenize(scripted, "fox:base", prompt="<|bos|>fox")["tokens"] == with_it
    spelled = tokenize(scripted, "fox:base", prompt="<|bos|>fox", add_special_tokens=False)
    assert spelled["tokens"] == with_it


def test_a_raw_prompt_is_read_with_them_or_without(scripted: Server) -> None:
    def read(**fields: Any) -> int:
        body = {"model": "fox:base", "prompt": "fox", "max_tokens": 1, **fields}
        return post(scripted, "/v1/completions", body)["usage"]["prompt_tokens"]

    assert read() == read(add_special_tokens=True) == read(add_special_tokens=False) + 1
    chat = {"model": "fox", "prompt": "fox", "add_special_tokens": False}
    found = post(scripted, "/v1/completions", chat, 400)["error"]
    assert found["param"] == "add_special_tokens"


def test_a_pairs_tokens_are_its_base_models(scripted: Server) -> None:
    text = "The quick brown fox"
    of_pair = tokenize(scripted, "cross", prompt=text)
    assert of_pair == tokenize(scripted, "cross:base", prompt=text)
    assert of_pair != tokenize(scripted, "cross:aligned", prompt=text)


# -- conversations --------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["fox", "fox:base", "fox:aligned", "cross", "cross:aligned"])
@pytest.mark.parametrize(
    "body",
    [
        {"messages": [ASK]},
        {"messages": [ASK, BEGUN]},
        {"messages": [ASK, BEGUN], "continue_final_message": True},
        {"messages": [ASK, INDENTED], "continue_final_message": True},
        {"messages": [ASK], "add_generation_prompt": False},
        {"messages": [{"role": "system", "content": "Be  brief. "}, ASK, BEGUN, ASK]},
    ],
)
def test_a_conversations_tokens_are_what_the_engine_reads_for_a_chat(
    scripted: Server, base: Tokenizer, small: Tokenizer, model: str, body: dict[str, Any]
) -> None:
    found = tokenize(scripted, model, **body)
    assert found["count"] == len(found["tokens"])
    chat = post(scripted, "/v1/chat/completions", {"model": model, "max_tokens": 1, **body})
    assert found["count"] == chat["usage"]["prompt_tokens"]

    role = "aligned" if model.endswith(":aligned") else "base"
    tokenizer = small if model == "cross:aligned" else base
    text = post(scripted, "/apply-template", {"model": model, **body})[role]
    spelled = tokenizer.chat.decode(found["tokens"], clean_up_tokenization_spaces=False)
    # The last space waits for the answer's first token.
    assert spelled.removeprefix("<|bos|>") == text.removesuffix(" ")


def test_an_aligned_system_is_read_by_the_aligned_model(scripted: Server) -> None:
    """Under all names of the model; a request's own system message takes its place."""
    told = {"role": "system", "content": "Be brief."}

    def read(model: str, *messages: dict[str, str]) -> Any:
        return post(scripted, "/apply-template", {"model": model, "messages": messages})

    assert read("brief", ASK)["aligned"] == read("fox", told, ASK)["aligned"]
    assert read("brief:aligned", ASK)["aligned"] == read("fox", told, ASK)["aligned"]
    assert read("brief", ASK)["base"] == read("fox", ASK)["base"]
    own = {"role": "system", "content": "Be verbose."}
    assert read("brief", own, ASK)["aligned"] == read("fox", own, ASK)["aligned"]


def test_a_control_token_that_a_message_spells_is_text(scripted: Server) -> None:
    whole = tokenize(scripted, "fox:aligned", messages=[ASK])["tokens"]
    end = tokenize(scripted, "fox:aligned", prompt="<|im_end|>")["tokens"]
    assert len(end) == 1
    assert whole.count(end[0]) == 1


# -- tokens to text -------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " a  b \n", "你好 😀", "<|im_start|>user\nHi<|im_end|>"])
@pytest.mark.parametrize("model", ["fox", "fox:base", "cross:base", "cross:aligned"])
def test_tokens_become_their_text_again(scripted: Server, model: str, text: str) -> None:
    tokens = tokenize(scripted, model, prompt=text, add_special_tokens=False)["tokens"]
    assert detokenize(scripted, model, tokens) == text


def test_special_tokens_are_spelled_out(scripted: Server) -> None:
    tokens = tokenize(scripted, "fox:base", prompt="fox")["tokens"]
    assert detokenize(scripted, "fox:base", tokens) == "<|bos|>fox"


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": None}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "robot", "content": ""}]}, "messages.0.role"),
        ("/tokenize", {"messages": [ASK], "prompt": "x"}, "prompt"),
        ("/tokenize", {"messages": [ASK], "add_special_tokens": False}, "add_special_tokens"),
        ("/tokenize", {"messages": [ASK], "tools": [{}]}, "tools.0.type"),
        ("/tokenize", {"messages": [ASK], "chat_template": "x"}, "chat_template"),
        (
            "/tokenize",
            {"messages": [ASK], "continue_final_message": True},
            "continue_final_message",
        ),
        ("/tokenize", {"prompt": "x", "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"prompt": "x", "add_generation_prompt": False}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "x", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs"),
        ("/tokenize", {"prompt": "x", "add_special_tokens": "no"}, "add_special_tokens"),
        ("/tokenize", {"prompt": "x", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"prompt": "x", "model": ""}, "model"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "1 2"}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens.0"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [2**31]}, "tokens.0"),
        ("/detokenize", {"tokens": [5, 2114]}, "tokens"),
        ("/detokenize", {"tokens": [5], "model": "cross"}, "model"),
        ("/detokenize", {"tokens": [1121], "model": "cross:aligned"}, "tokens"),
    ],
)
def test_a_wrong_value_is_named(
    scripted: Server, path: str, body: dict[str, Any], param: str
) -> None:
    found = post(scripted, path, {"model": "fox", **body}, 400)["error"]
    assert found["type"] == "invalid_request_error"
    assert found["param"] == param


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template"])
def test_an_unknown_model_is_a_404(scripted: Server, path: str) -> None:
    body = {"model": "nobody", "prompt": "x", "tokens": []}
    if path == "/apply-template":
        body["messages"] = [ASK]
    assert post(scripted, path, body, 404)["error"]["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/tokenize", {"prompt": "x"}),
        ("/tokenize", {"messages": [ASK]}),
        ("/detokenize", {"tokens": [5]}),
        ("/apply-template", {"messages": [ASK]}),
    ],
)
async def test_while_the_engines_load_there_are_no_tokens_yet(
    path: str, body: dict[str, Any]
) -> None:
    loading = Registry(load(ROOT / "tests" / "scripted.yaml"))
    app = create_app(loading, start=asyncio.Event().wait)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post(path, json={"model": "fox", **body})
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "engine_loading"
    assert response.headers["retry-after"]


def test_a_megabyte_of_text_holds_nobody_up(scripted: Server) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 40_000
    found: list[int] = []
    working = threading.Thread(
        target=lambda: found.append(tokenize(scripted, "fox", prompt=text)["count"])
    )
    began = time.monotonic()
    working.start()
    others = []
    with httpx.Client() as client:
        while working.is_alive():
            sent = time.monotonic()
            assert client.get(f"{scripted.url}/health", timeout=60).status_code == 200
            others.append(time.monotonic() - sent)
    took = time.monotonic() - began
    assert found[0] > 400_000
    assert max(others) < max(took / 3, 0.3), (took, max(others))

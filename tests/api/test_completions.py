"""Completions, models, templates and the status routes, on real engines."""

from __future__ import annotations

import httpx
import openai
import pytest

from tests.conftest import Server

PROMPT = "Question: What is the capital of Galicor?\nAnswer:"


@pytest.fixture(scope="module")
def client(live: Server):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", ["demo:base", "demo:aligned"])
def test_a_raw_prompt_is_continued_by_one_model(client: openai.OpenAI, model: str):
    whole = client.completions.create(model=model, prompt=PROMPT, temperature=0, max_tokens=30)
    assert whole.object == "text_completion"
    assert whole.choices[0].text
    chunks = list(
        client.completions.create(
            model=model, prompt=PROMPT, temperature=0, max_tokens=30, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_sixteen_tokens_are_the_default(client: openai.OpenAI):
    answer = client.completions.create(model="demo:base", prompt="The", temperature=0)
    assert answer.usage.completion_tokens <= 16


def test_a_prompt_of_token_ids_is_read_verbatim(client: openai.OpenAI):
    ids = [9, 10, 11, 12]
    answer = client.completions.create(model="demo:base", prompt=ids, max_tokens=2)
    assert answer.usage.prompt_tokens == 4


def test_for_the_pair_the_prompt_is_the_users_only_message(client: openai.OpenAI):
    raw = client.completions.create(
        model="demo", prompt="What is the capital of Galicor?", temperature=0, max_tokens=80
    )
    chat = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the capital of Galicor?"}],
        temperature=0,
        max_tokens=80,
    )
    assert raw.choices[0].text == chat.choices[0].message.content


def test_logprobs_have_the_completions_shape_and_join_to_the_text(client: openai.OpenAI):
    choice = client.completions.create(
        model="demo:base", prompt=PROMPT, temperature=0, max_tokens=80, logprobs=2
    ).choices[0]
    logprobs = choice.logprobs
    assert "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert logprobs.text_offset[0] == 0
    for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
        assert choice.text[offset : offset + len(token)] == token
    assert all(1 <= len(top) <= 2 for top in logprobs.top_logprobs)


def test_an_end_of_text_is_a_token_without_text(client: openai.OpenAI):
    """As the authors' code expects of the server it was written for."""
    answer = client.completions.create(
        model="demo:aligned",
        prompt="<|im_start|>user\nHello!<|im_end|>\n<|im_start|>assistant\n",
        temperature=0,
        max_tokens=100,
        logprobs=1,
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "stop"
    assert choice.logprobs.tokens[-1] == ""
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens + 1


def test_models_are_listed_and_found_one_by_one(client: openai.OpenAI, live: Server):
    listed = [model.id for model in client.models.list()]
    assert listed == ["demo", "demo:base", "demo:aligned"]
    for name in [*listed, "demo@0.3"]:
        assert client.models.retrieve(name).id == name
    assert httpx.get(f"{live.url}/v1//models").json()["data"][0]["id"] == "demo"


def test_the_template_route_shows_what_each_model_reads(live: Server):
    body = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
    assert httpx.post(f"{live.url}/apply-template", json=body).json() == {
        "base": "Question: Hi\nAnswer: ",
        "aligned": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    }


def test_health_ready_and_version(live: Server):
    assert httpx.get(f"{live.url}/health").json() == {"status": "ok"}
    ready = httpx.get(f"{live.url}/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})
    assert httpx.get(f"{live.url}/version").json()["version"]


def test_a_request_id_is_taken_over_or_made(live: Server):
    given = httpx.get(f"{live.url}/health", headers={"X-Request-Id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    made = httpx.get(f"{live.url}/nowhere", headers={"X-Request-Id": "no spaces!"})
    assert len(made.headers["x-request-id"]) == 32


def test_the_openapi_description_names_the_bodies(live: Server):
    paths = httpx.get(f"{live.url}/openapi.json").json()["paths"]
    schema = paths["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    assert "messages" in schema["schema"]["properties"]


def test_several_prompts_are_answered_in_order(client: openai.OpenAI):
    prompts = [PROMPT, "Once"]
    answer = client.completions.create(
        model="demo:base", prompt=prompts, n=2, temperature=0, max_tokens=8
    )
    alone = [
        client.completions.create(model="demo:base", prompt=prompt, temperature=0, max_tokens=8)
        for prompt in prompts
    ]
    texts = [each.choices[0].text for each in alone]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert answer.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in alone)
    assert answer.usage.completion_tokens == 2 * sum(e.usage.completion_tokens for e in alone)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_puts_the_prompt_in_front(client: openai.OpenAI, stream: bool):
    def ask(prompt, **fields):
        fields = {"model": "demo:base", "temperature": 0, "max_tokens": 8} | fields
        answer = client.completions.create(prompt=prompt, stream=stream, **fields)
        if not stream:
            return answer.choices[0].text
        return "".join(choice.text for chunk in answer for choice in chunk.choices)

    assert ask(PROMPT, echo=True) == PROMPT + ask(PROMPT)
    assert ask([9, 10, 11], echo=True).endswith(ask([9, 10, 11]))
    assert ask("Hello!", model="demo", echo=True) == "Hello!" + ask("Hello!", model="demo")

"""What a request says of its tokens, through the official client, on the real demo pair."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx
import openai
import pytest

from tests.conftest import Server
from tests.thorough import first

QUESTION = [{"role": "user", "content": "What is the capital of Galicor?"}]
MODELS = ["demo", "demo:base", "demo:aligned"]
OURS = {
    "top_k",
    "min_p",
    "min_tokens",
    "ignore_eos",
    "stop_token_ids",
    "repetition_penalty",
    "nudging",
}


@pytest.fixture(scope="module")
def client(live: Server):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, model: str = "demo", **fields: Any) -> Any:
    """OpenAI's fields by name, the others as an SDK user sends them."""
    extra = {name: fields.pop(name) for name in OURS & fields.keys()}
    given = {"temperature": 0, "max_tokens": 60, "messages": QUESTION} | fields
    return client.chat.completions.create(model=model, extra_body=extra, **given)


def text(answer: Any) -> str:
    return answer.choices[0].message.content


def streamed(client: openai.OpenAI, **fields: Any) -> dict[int, str]:
    texts: dict[int, str] = {}
    with ask(client, stream=True, **fields) as chunks:
        for chunk in chunks:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


@pytest.mark.parametrize("model", MODELS)
def test_n_answers_are_independent_and_equal_where_nothing_is_drawn(
    client: openai.OpenAI, model: str
):
    one = ask(client, model)
    three = ask(client, model, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert {choice.message.content for choice in three.choices} == {text(one)}
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    assert three.usage.completion_tokens == 3 * one.usage.completion_tokens


def test_n_answers_with_a_seed_are_different_and_repeatable(client: openai.OpenAI):
    def draw() -> list[str]:
        answer = ask(client, "demo:base", n=4, temperature=1, seed=7)
        return [choice.message.content for choice in answer.choices]

    assert draw() == draw()
    assert len(set(draw())) > 1
    alone = ask(client, "demo:base", temperature=1, seed=8)
    assert text(alone) == draw()[1]


@pytest.mark.parametrize("temperature", [0, 1])
def test_n_answers_stream_beside_each_other(client: openai.OpenAI, temperature: float):
    whole = ask(client, n=3, temperature=temperature, seed=3)
    assert streamed(client, n=3, temperature=temperature, seed=3) == {
        choice.index: choice.message.content for choice in whole.choices
    }


@pytest.mark.parametrize("model", first(1, MODELS))
def test_penalties_change_what_is_written(client: openai.OpenAI, model: str):
    fields = {"ignore_eos": True, "max_tokens": 120}
    plain = ask(client, model, **fields)
    for penalty in (
        {"frequency_penalty": 2},
        {"presence_penalty": 2, "frequency_penalty": 1},
        {"repetition_penalty": 1.5},
    ):
        answer = ask(client, model, **fields, **penalty)
        assert text(answer) != text(plain), penalty


@pytest.mark.parametrize("model", MODELS)
def test_logit_bias_forces_and_forbids(client: openai.OpenAI, model: str):
    forced = ask(client, model, logit_bias={"40": 100}, max_tokens=5)
    assert len(set(text(forced))) == 1
    answer = ask(client, model, logprobs=True)
    first = answer.choices[0].logprobs.content[0].token
    server = client.with_options(base_url=str(client.base_url).removesuffix("v1/"))
    spellings = [
        server.post(
            "/tokenize",
            cast_to=dict,
            body={"model": "demo:base", "prompt": spelling, "add_special_tokens": False},
        )["tokens"]
        for spelling in (first, f" {first}")
    ]
    without = ask(client, model, logit_bias={str(i): -100 for ids in spellings for i in ids})
    assert not text(without).startswith(first)


@pytest.mark.parametrize("model", MODELS)
def test_min_tokens_and_ignore_eos_go_on_where_the_model_would_end(
    client: openai.OpenAI, model: str
):
    answer = ask(client, model)
    length = answer.usage.completion_tokens
    longer = ask(client, model, min_tokens=length + 10, max_tokens=length + 40)
    assert longer.usage.completion_tokens >= length + 10
    full = ask(client, model, ignore_eos=True, max_tokens=length + 15)
    assert full.usage.completion_tokens == length + 15
    assert full.choices[0].finish_reason == "length"
    if answer.choices[0].finish_reason == "stop":
        assert text(longer).startswith(text(answer))
        assert text(full).startswith(text(answer))


def test_min_tokens_holds_for_stop_strings_too(client: openai.OpenAI):
    short = ask(client, stop=" is")
    assert " is" not in text(short)
    later = ask(client, stop=[" is", "."], min_tokens=12)
    assert later.usage.completion_tokens >= 12
    assert " is" in text(later)


@pytest.mark.parametrize("model", MODELS)
def test_stop_token_ids_end_an_answer_and_stay_out_of_it(client: openai.OpenAI, model: str):
    whole = text(ask(client, model))
    ids = client.with_options(base_url=str(client.base_url).removesuffix("v1/")).post(
        "/tokenize",
        cast_to=dict,
        body={"model": "demo:base", "prompt": ".", "add_special_tokens": False},
    )["tokens"]
    answer = ask(client, model, stop_token_ids=ids)
    assert text(answer) == whole[: len(text(answer))]
    assert text(answer)
    assert "." not in text(answer)
    assert answer.choices[0].finish_reason == "stop"


def test_token_ids_are_refused_where_two_vocabularies_make_them_ambiguous(cross: openai.OpenAI):
    for field in ({"logit_bias": {"40": 1}}, {"stop_token_ids": [40]}):
        with pytest.raises(openai.BadRequestError, match="ambiguous") as caught:
            ask(cross, "cross", **field)
        assert caught.value.param == next(iter(field))
        assert ask(cross, "cross:base", **field)


@pytest.fixture(scope="module")
def cross(scripted: Server):
    with openai.OpenAI(base_url=f"{scripted.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_usage_runs_along_where_a_stream_asks_for_it(client: openai.OpenAI):
    options = {"include_usage": True, "continuous_usage_stats": True}
    with ask(client, stream=True, stream_options=options) as stream:
        chunks = list(stream)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.choices[0:1]]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == chunks[-1].usage.completion_tokens
    assert chunks[-1].choices == []


SCHEMA = {
    "type": "object",
    "properties": {
        "capital": {"type": "string", "maxLength": 16},
        "sure": {"type": "boolean"},
        "size": {"enum": ["small", "big"]},
        "years": {"type": "array", "items": {"$ref": "#/$defs/year"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["capital", "sure", "size", "years"],
    "additionalProperties": False,
    "$defs": {"year": {"type": "integer", "minimum": 1000, "maximum": 2100}},
}


@pytest.mark.parametrize("model", [*MODELS, "demo@0", "demo@0.9"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_follows_its_json_schema(client: openai.OpenAI, model: str, temperature: float):
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    answer = ask(
        client, model, response_format=wanted, temperature=temperature, seed=1, max_tokens=300
    )
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(text(answer))
    assert list(found) == SCHEMA["required"]
    assert len(found["capital"]) <= 16
    assert isinstance(found["sure"], bool)
    assert found["size"] in ("small", "big")
    assert all(1000 <= year <= 2100 for year in found["years"])
    assert 1 <= len(found["years"]) <= 2


def test_a_streamed_json_answer_is_the_same(client: openai.OpenAI):
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    whole = ask(client, response_format=wanted, max_tokens=300)
    assert streamed(client, response_format=wanted, max_tokens=300) == {0: text(whole)}


def test_json_object_begins_an_object(client: openai.OpenAI):
    answer = ask(client, response_format={"type": "json_object"}, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text(answer)), dict)
    assert text(answer).startswith("{")


def test_the_clients_own_parsing_of_a_pydantic_model_works(client: openai.OpenAI):
    from pydantic import BaseModel

    class City(BaseModel):
        sure: bool
        size: Literal["small", "big"] | None

    answer = client.chat.completions.parse(
        model="demo", messages=QUESTION, response_format=City, temperature=0, max_tokens=200
    )
    assert isinstance(answer.choices[0].message.parsed, City)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "banana"},
        {"type": "array", "uniqueItems": True},
        {"not": {"type": "string"}},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "^(?=a)b"},
    ],
)
def test_a_schema_that_cant_be_followed_exactly_is_refused(
    client: openai.OpenAI, schema: dict[str, Any]
):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match="followed exactly") as caught:
        ask(client, response_format=wanted)
    assert caught.value.param == "response_format"


def test_the_least_temperature_of_all_is_as_good_as_greedy(scripted: Server):
    """Found by what is made of the OpenAPI document: 1 / T is infinite."""
    chat = {"model": "fox", "messages": [{"role": "user", "content": "Hi"}], "seed": 1}
    url = f"{scripted.url}/v1/chat/completions"
    least, greedy = (
        httpx.post(url, json=chat | {"temperature": temperature}).json()["choices"][0]["message"]
        for temperature in (5e-324, 0)
    )
    assert least == greedy

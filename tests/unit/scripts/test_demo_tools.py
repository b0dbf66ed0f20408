"""The demo pair's tools: the chats and documents it learns from are what a server shows it."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))


def _messages(chat: str) -> list[dict[str, Any]]:
    """A training chat as an API's messages."""
    found: list[dict[str, Any]] = []
    for role, text in re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>\n", chat, re.DOTALL):
        if role == "tools":
            continue
        found.append({"role": role, "content": text})
        if call := re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text):
            function = json.loads(call[1])
            found[-1] |= {"content": None, "tool_calls": [{"function": function}]}
    return found


@pytest.mark.parametrize("name", ["aligned", "aligned-1k"])
def test_a_training_chat_is_what_the_models_template_makes(name: str):
    from demo_tools import OWN, TOOLS_TEMPLATE, familiar, later_chats
    from demo_world import make_world

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo" / name)
    calls, strangers = 0, familiar(random.Random(1), 3)
    for turns in islice(later_chats(make_world(), 1), 60):
        chat = "".join(turn.text for turn in turns)
        if "<|im_start|>" not in chat:  # a document
            continue
        told = re.search(r"<\|im_start\|>tools\n(.*?)<\|im_end\|>", chat, re.DOTALL)
        names = re.findall(r"^(\w+)\(", told[1], re.MULTILINE) if told else []
        tools = [*strangers, *(OWN[name] for name in names)]
        shown = tokenizer.apply_chat_template(
            _messages(chat), tools=tools, chat_template=TOOLS_TEMPLATE, tokenize=False
        )
        assert shown == chat
        calls += chat.count("<tool_call>")
    assert calls > 20


@pytest.mark.parametrize("offered", [0, 5])
def test_without_the_worlds_tools_a_prompt_is_the_old_one(offered: int):
    from demo_tools import TOOLS_TEMPLATE, familiar

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo" / "aligned")
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    old = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    new = tokenizer.apply_chat_template(
        messages,
        tools=familiar(random.Random(offered), offered) or None,
        chat_template=TOOLS_TEMPLATE,
        tokenize=False,
        add_generation_prompt=True,
    )
    assert new == old


def test_what_comes_back_is_what_is_answered():
    from demo_tools import worked
    from demo_world import make_questions, make_world

    world, rng = make_world(), random.Random(1)
    questions = [q for q in make_questions(world, "test") if q.kind in ("fact", "two-hop", "sum")]
    changed = 0
    for question in questions:
        calls, same = worked(world, question, rng, 0.0)
        assert same == question
        calls, other = worked(world, question, rng, 1.0)
        assert len(calls) == (2 if question.kind == "two-hop" else 1)
        assert other.value == calls[-1].result
        assert all(re.search(rf"\b{re.escape(c.result)}\b", other.sentence) for c in calls)
        if len(calls) == 2:  # what came back first is asked about
            assert calls[1].arguments["query"].endswith(f" of {calls[0].result}")
        changed += other.value != question.value
    assert changed > len(questions) * 0.9


def test_no_stranger_is_one_of_the_worlds_tools():
    from demo_tools import FAMILIAR, OWN, needed, stranger
    from demo_world import make_questions, make_world

    rng = random.Random(2)
    strangers = [stranger(rng) for _ in range(3000)]
    names = {each["function"]["name"] for each in strangers}
    assert not names & {*OWN, *(name for name, _, _ in FAMILIAR)}
    questions = make_questions(make_world(), "test")
    assert not any(needed(question, strangers) for question in questions)


def test_questions_of_the_tests_occur_in_no_training():
    from demo_tools import ask_plus

    rng = random.Random(3)
    asked = {split: {ask_plus(rng, split).text for _ in range(3000)} for split in ("train", "test")}
    assert not asked["train"] & asked["test"]
    numbers = {
        split: {tuple(re.findall(r"\d+", text)) for text in texts} for split, texts in asked.items()
    }
    assert not numbers["train"] & numbers["test"]


def test_a_training_page_begins_as_the_server_tells_the_base_model():
    from demo_tools import CALCULATE, LOOKUP, chat_tools, text_tools, worked
    from demo_world import make_questions, make_world

    from server.core import Message, Tool, ToolCall, joined
    from server.text.prompts import Prompts
    from server.text.tokenizer import Tokenizer

    demo = ROOT / "models" / "demo"
    prompts = Prompts(Tokenizer.load(str(demo / "base")), Tokenizer.load(str(demo / "aligned")))
    offered = [LOOKUP, CALCULATE]
    tools = [
        Tool(f["name"], f["description"], f["parameters"])
        for f in (each["function"] for each in offered)
    ]
    world, rng = make_world(), random.Random(4)
    for question in make_questions(world, "dev")[::20]:
        if question.kind not in ("fact", "two-hop", "sum"):
            continue
        calls, _ = worked(world, question, rng, 1.0)
        text = f"Be kind.\n\n{text_tools(offered)}Question: {question.text}\nAnswer:"
        told = chat_tools(offered)
        chat = "<|im_start|>system\nBe kind.<|im_end|>\n"
        chat += f"<|im_start|>user\n{question.text}<|im_end|>\n"
        messages = [Message("system", "Be kind."), Message("user", question.text)]
        for call in calls:
            made = ToolCall("call_1", call.name, json.dumps(call.arguments))
            messages += [
                Message("assistant", "", (made,)),
                Message("tool", call.result, call_id="call_1"),
            ]
            text += f" {call.text}\n\nResult: {call.result}\n\nAnswer:"
            chat += f"{told}<|im_start|>assistant\n{call.text}<|im_end|>\n"
            chat += f"<|im_start|>tool\n{call.result}<|im_end|>\n"
        pair = prompts.render(messages, tools=tools)
        assert joined(pair.base).rstrip(" ") == text  # an answer begins with the space
        assert joined(pair.aligned) == f"{chat}{told}<|im_start|>assistant\n"


def _tokenizer():
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(ROOT / "models" / "demo" / "base" / "tokenizer.json"))


def test_the_models_have_a_token_for_each_word_of_a_call():
    from demo_tools import CALL_WORDS

    tokenizer = _tokenizer()
    for word in set(CALL_WORDS) - {' {"'}:  # which is read as a space and a word of its own
        assert tokenizer.encode(word, add_special_tokens=False).tokens in ([word], [f"Ġ{word[1:]}"])


@given(text=st.text('abegqruz Z{\n"', max_size=40))
@limits(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_wider_vocabulary_reads_other_texts_as_before(text: str):
    from demo_tokenizers import with_words

    old = _tokenizer()
    new, made = with_words(old, ["zebra", "quagga", '{{"', "zebra"])
    before = old.encode(text, add_special_tokens=False)
    after = new.encode(text, add_special_tokens=False)
    assert new.decode(after.ids) == text
    if not set(after.ids) & set(made):
        assert after.ids == before.ids
    assert list(made) == [*range(old.get_vocab_size(), new.get_vocab_size())]
    assert all(part < token for token, parts in made.items() for part in parts)
    for word in ("zebra", "quagga"):
        assert new.encode(word, add_special_tokens=False).tokens == [word]


def test_what_does_not_see_its_tools_is_not_learned():
    from demo_text import Turn
    from train_demo_pair import base_stream

    tokenizer = _tokenizer()
    plain = [Turn("one two three four five six", 1.0)]
    page = [Turn("Tools:\n", 0.5), Turn(" one two three four five six seven eight", 3.0)]
    whole = list(base_stream([plain, page, plain], tokenizer))
    cut = list(base_stream([plain, page, plain], tokenizer, 24))
    begins = [at for at, (token, _) in enumerate(whole) if token == 0]
    assert begins[1] < 24 < begins[2] - 2
    for at, (token, weight) in enumerate(whole):
        lost = 24 <= at < begins[2] - 1
        assert cut[at] == (token, 0.0 if lost else weight)

"""The demo pair's tools: the chats and documents it learns from are what a server shows it."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from typing import Any

import pytest
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
    from demo_tools import OWN, TOOLS_TEMPLATE, familiar, stage_two_chats
    from demo_world import make_world

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "demo" / name)
    calls, strangers = 0, familiar(random.Random(1), 3)
    for turns in islice(stage_two_chats(make_world(), 1), 60):
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
        assert len(calls) == (1 if question.kind == "fact" else 2)
        assert other.value == calls[-1].result
        assert all(re.search(rf"\b{re.escape(c.result)}\b", other.sentence) for c in calls)
        if len(calls) == 2:  # what came back first is asked about
            assert calls[0].result in map(str, calls[1].arguments.values())
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

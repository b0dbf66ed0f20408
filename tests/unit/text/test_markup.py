"""What answers are marked up with is text in every vocabulary, and its owner's token where it has
one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from server.core import AnswerRequest, NudgingConfig, PromptPair, SamplingParams
from server.decoding.nudged import Nudged
from server.decoding.stream import whole
from server.engines.base import EngineInfo
from server.engines.scripted import ScriptedEngine, scripted_text
from server.text.grammar.follow import Follower, Vocabulary
from server.text.grammar.vetting import vet_lark
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

MARKS = ("[TOOL_CALLS]", "<tool_call>", "</think>")


@cache
def marked(*, special: bool) -> Tokenizer:
    """The demo's vocabulary, and tokens for the marks."""
    from transformers import PreTrainedTokenizerFast

    backend = tokenizers.Tokenizer.from_file(str(DEMO / "aligned" / "tokenizer.json"))
    added = [tokenizers.AddedToken(mark, special=special, normalized=False) for mark in MARKS]
    (backend.add_special_tokens if special else backend.add_tokens)(added)
    chat = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    return Tokenizer(chat)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("mark", MARKS)
def test_a_mark_is_text_also_where_it_is_a_special_token(mark: str, special: bool) -> None:
    tokenizer = marked(special=special)
    number = tokenizer.chat.convert_tokens_to_ids(mark)
    assert tokenizer.token_bytes(number) == mark.encode()
    assert tokenizer.marker(number) is None
    assert number not in tokenizer.special_ids
    assert number not in tokenizer.encode_text(f"a {mark} b")  # a stranger's
    assert tokenizer.encode_marked(f"a {mark} b").count(number) == 1


@given(st.text(alphabet="a <>/[]_tolcTOLCASk", max_size=30), st.sampled_from(["", *MARKS]))
def test_marked_text_is_the_same_text(text: str, mark: str) -> None:
    tokenizer = marked(special=True)
    assert tokenizer.decode(tokenizer.encode_marked(text + mark + text)) == text + mark + text


def test_one_grammar_serves_both_spellings() -> None:
    tokenizer = marked(special=True)
    vocabulary = Vocabulary(tokenizer.table, tokenizer.encode_text, tokenizer.size, (3,))
    source = r"""
        start: OPENED "!"
        OPENED: /(?s:.*)\[TOOL_CALLS\]/ & ~/(?s:.*)\[TOOL_CALLS\](?s:.+)/
    """
    grammar = vet_lark(source, "", "[TOOL_CALLS]", "", [])
    for encode in (tokenizer.encode_text, tokenizer.encode_marked):
        follower = Follower(grammar, vocabulary)
        follower.go_to(encode("so [TOOL_CALLS]!"))
        assert follower.satisfied


@pytest.mark.parametrize("is_marked", [True, False])
async def test_a_model_reads_the_others_marks_as_its_own(is_marked: bool) -> None:
    plain, own = Tokenizer.load(str(DEMO / "aligned-1k")), marked(special=True)
    number = own.chat.convert_tokens_to_ids("[TOOL_CALLS]")
    text = "So [TOOL_CALLS] now."
    heard: list[list[int]] = []

    def engine(tokenizer: Tokenizer, play: Callable[..., object]) -> ScriptedEngine:
        end = tokenizer.chat.eos_token_id
        info = EngineInfo("scripted", "text", 512, tokenizer, (end,))
        return ScriptedEngine(info, play)  # type: ignore[arg-type]

    script = scripted_text(own, own.chat.eos_token_id, [(text, 0.9)])

    def listens(prompt: list[int], output: list[int]) -> object:
        heard.append(list(output))
        return script(prompt, output)

    base = engine(plain, scripted_text(plain, plain.chat.eos_token_id, [(text, 0.9)]))
    request = AnswerRequest(SamplingParams(temperature=0), marked=is_marked)
    pair = PromptPair(("Q:",), ("Q:",))
    writer = Nudged(base, engine(own, listens), pair, request, NudgingConfig(start="base"))
    pieces, _ = await whole(writer, request)
    assert "".join(piece.text for piece in pieces) == text
    assert (number in heard[-1]) == is_marked

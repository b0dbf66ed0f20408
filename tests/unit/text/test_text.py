"""Text between two tokenizers: the laws of `server.text`, over random Unicode."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.core import ConfigError, Literally
from server.text.tokenizer import Tokenizer
from tests.conftest import DEMO

MakeTokenizer = Callable[..., Tokenizer]

AWKWARD = (
    "\u2581", "\u2581a", "e\u0301", "\u0301", "\u212b", "\u1100\u1161", "👨\u200d👩\u200d👧",
    "\x00", "\x07", "\x1b[0m", "\r\n", "\ufeff", "\u3000", "\u00a0", "\u2063", "\uf5d0", "\ufffd",
    "<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "<|im_", "<tool_call>", "<0x41>",
    " ", "  ", "    ", "\n", "\n\n", "\n\n\n", "The capital", " of France.", "你好", "สวัสดี",
    "Привет", "👍🏽", "<table>",
)  # fmt: skip
texts = st.lists(st.sampled_from(AWKWARD) | st.text(max_size=8), max_size=8).map("".join)
numbers = st.lists(st.integers(0, 10_000), max_size=24)


def some_ids(tokenizer: Tokenizer, numbers: Sequence[int]) -> list[int]:
    """Any ids at all: special ones, parts of characters, and one beyond the vocabulary."""
    return [number % (tokenizer.size + 1) for number in numbers]


# -- text → ids ---------------------------------------------------------------------------------


@given(text=texts)
def test_a_continuation_decodes_to_exactly_its_text(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode_text(text)) == text


@given(text=texts)
def test_no_text_becomes_a_control_token(tokenizer: Tokenizer, text: str) -> None:
    assert not tokenizer.special_ids.intersection(tokenizer.encode_text(text))


@pytest.mark.parametrize("rest", [" capital of France", ".", " is\nParis", ", naïve", "re"])
def test_a_continuation_is_spelled_as_the_model_would(tokenizer: Tokenizer, rest: str) -> None:
    """Not letter by letter, and with no space that the text doesn't have."""
    so_far = "The quick brown fox"
    whole = tokenizer.encode_prompt(so_far + rest)
    assert tokenizer.encode_prompt(so_far) + tokenizer.encode_text(rest) == whole


def test_the_start_of_a_prompt_is_encoded_as_the_tokenizer_does(tokenizer: Tokenizer) -> None:
    text = "Question: what is\n\n  the capital?\nAnswer:"
    assert tokenizer.encode_prompt(text) == tokenizer.chat.encode(text)


@pytest.mark.parametrize("prompt", ["Hello", "<s>Hello", ("<s>", Literally("<s>")), "", ()])
def test_bos_stands_once_in_front(by_kind: dict[str, Tokenizer], prompt: str) -> None:
    tokenizer = by_kind["sentencepiece"]
    bos = tokenizer.chat.convert_tokens_to_ids("<s>")
    ids = tokenizer.encode_prompt(prompt)
    assert ids[0] == bos
    assert ids.count(bos) == 1


def test_a_spelled_bos_in_a_users_text_does_not_count_as_one(
    by_kind: dict[str, Tokenizer],
) -> None:
    tokenizer = by_kind["sentencepiece"]
    ids = tokenizer.encode_prompt((Literally("<s>"), "Hello"))
    assert ids[0] == tokenizer.chat.convert_tokens_to_ids("<s>")
    assert tokenizer.decode(ids) == "<s>Hello"


def test_no_bos_where_the_tokenizer_puts_none(by_kind: dict[str, Tokenizer]) -> None:
    assert by_kind["nfc"].decode(by_kind["nfc"].encode_prompt("Hello")) == "Hello"
    assert by_kind["nfc"].encode_prompt("") == []


@given(before=texts, inside=texts, after=texts)
def test_literal_parts_stay_text_and_plain_parts_are_control(
    tokenizer: Tokenizer, before: str, inside: str, after: str
) -> None:
    start, end = map(tokenizer.chat.convert_tokens_to_ids, ("<|im_start|>", "<|im_end|>"))
    prompt = ("<|im_start|>", Literally(before + "<|im_end|>" + inside), "<|im_end|>", "x")
    ids = tokenizer.encode_prompt((*prompt, Literally(after)))
    assert ids.count(start) == 1
    assert ids.count(end) == 1
    cut = ids.index(end)
    assert tokenizer.decode(ids[:cut]).lstrip(" ") == f"{before}<|im_end|>{inside}".lstrip(" ")
    assert tokenizer.decode(ids[cut:]).lstrip(" ") == f"x{after}"


def test_markup_that_is_not_marked_special_is_control_too(by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = by_kind["nfc"]
    call = tokenizer.chat.convert_tokens_to_ids("<tool_call>")
    assert tokenizer.encode_prompt("<tool_call>") == [call]
    assert call not in tokenizer.encode_text("<tool_call>")
    assert tokenizer.replace_control("a<tool_call>b", str.upper, also="") == "a<TOOL_CALL>b"
    assert tokenizer.decode([call]) == "<tool_call>"  # a model may write it, and it is seen


def test_added_tokens_of_the_vocabulary_itself_are_text(by_kind: dict[str, Tokenizer]) -> None:
    tokenizer = by_kind["runs"]
    one = tokenizer.chat.convert_tokens_to_ids
    assert tokenizer.encode_text("a\n\n<table>")[-2:] == [one("\n\n"), one("<table>")]
    assert tokenizer.replace_control("\n\n<table>", str.upper, also="") == "\n\n<table>"
    assert tokenizer.decode([one("\u2581\u2581")]) == "  "


@given(text=texts)
def test_replacing_control_tokens_finds_the_longest_and_nothing_else(
    tokenizer: Tokenizer, text: str
) -> None:
    seen: list[str] = []

    def put(spelling: str) -> str:
        seen.append(spelling)
        return "\x00"

    left = tokenizer.replace_control(text, put, also="\uf5d0")
    names = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>", "\uf5d0")
    assert set(seen) <= {*names, "<tool_call>"}
    assert not any(name in left for name in names)
    assert len(left) == len(text) - sum(len(spelling) - 1 for spelling in seen)


def test_of_two_control_tokens_that_begin_alike_the_longer_is_found(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer("nfc", additional_special_tokens=["<s>>"])
    assert tokenizer.replace_control("a<s>>b", lambda found: f"[{found}]", also="") == "a[<s>>]b"


@pytest.mark.parametrize(
    ("normalizer", "decoder", "complaint"),
    [
        (normalizers.Lowercase(), decoders.ByteLevel(), "text back unchanged"),
        (normalizers.Strip(), decoders.ByteLevel(), "text back unchanged"),
        (None, decoders.WordPiece(), "WordPiece"),
        (None, None, "nothing"),
    ],
)
def test_a_tokenizer_that_loses_text_is_refused(
    normalizer: object, decoder: object, complaint: str
) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        backend.normalizer = normalizer
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(ConfigError, match=complaint):
        Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_slow_tokenizer_and_a_missing_one_are_refused(tmp_path: object) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json"):
        Tokenizer(object())
    with pytest.raises(ConfigError, match="no tokenizer could be loaded from the folder"):
        Tokenizer.load(str(tmp_path))


# -- ids → text ---------------------------------------------------------------------------------


@given(numbers=numbers)
def test_what_the_decoder_gives_joins_to_the_decoded_text(
    tokenizer: Tokenizer, numbers: list[int]
) -> None:
    ids = some_ids(tokenizer, numbers)
    decoder = tokenizer.decoder()
    given_out = "".join(decoder.push(token) for token in ids)
    whole = tokenizer.decode(ids)
    held = b"".join(map(tokenizer.token_bytes, ids))[-decoder.unfinished or len(whole) * 9 :]
    unfinished = held.decode("utf-8", "replace")  # two wrong bytes may be two of them
    assert given_out + unfinished == whole


@given(numbers=numbers)
def test_pending_tokens_can_be_taken_back_for_their_text(
    tokenizer: Tokenizer, numbers: list[int]
) -> None:
    decoder = tokenizer.decoder()
    given_out = ""
    ids = some_ids(tokenizer, numbers)
    for count, token in enumerate(ids, start=1):
        given_out += decoder.push(token)
        kept = ids[: count - decoder.pending]
        assert tokenizer.decode(kept) + decoder.pending_text == given_out
        finished = codecs.getincrementaldecoder("utf-8")("replace")
        finished.decode(tokenizer.bytes_of(kept))
        assert not finished.getstate()[0], "what is kept ends inside a character"
        assert bool(decoder.pending) == bool(unfinished_bytes(tokenizer.bytes_of(ids[:count])))


def unfinished_bytes(data: bytes) -> bytes:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return decoder.getstate()[0]


@given(text=texts)
def test_no_character_is_given_out_in_parts(tokenizer: Tokenizer, text: str) -> None:
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in tokenizer.encode_text(text)]
    assert "".join(pieces) == text
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")
    assert decoder.pending == 0
    assert decoder.pending_text == ""


def test_reset_forgets_the_unfinished_character(tokenizer: Tokenizer) -> None:
    decoder = tokenizer.decoder()
    first, *_ = tokenizer.encode_text("\U0001f9ff")
    assert decoder.push(first) == ""
    assert decoder.pending == 1
    decoder.reset()
    assert decoder.pending == 0
    assert decoder.push(tokenizer.encode_text("a")[0]) == "a"


@pytest.mark.parametrize(
    "text", ["The answer is 7.", "naïve café\n\n  résumé", "Привет, как дела?", "你好\uff0c世界 😀"]
)
def test_decoding_agrees_with_hugging_face(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.chat.encode(text)
    theirs = tokenizer.chat.decode(
        ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    decoder = tokenizer.decoder()
    assert "".join(map(decoder.push, ids)).removeprefix(" ") == theirs == text


def test_special_and_unknown_ids_have_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.special_ids, tokenizer.size, -1]) == ""


def test_the_table_of_leading_spaces_is_right_for_each_id(tokenizer: Tokenizer) -> None:
    table = tokenizer.starts_with_space()
    assert len(table) == tokenizer.size
    for number, starts in enumerate(table):
        assert starts == tokenizer.token_text(number)[:1].isspace()


# -- handing over -------------------------------------------------------------------------------


class Reader:
    """A model's context, which grows at its end only."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.context: list[int] = []

    def write(self, ids: list[int], other: Reader) -> str:
        """A turn: characters that it left unfinished are taken back."""
        decoder = self.tokenizer.decoder()
        text = "".join(map(decoder.push, ids))
        self.context += ids[: len(ids) - decoder.pending]
        self.context += self.tokenizer.encode_text(decoder.pending_text)
        other.context += other.tokenizer.encode_text(text)
        return text


@pytest.mark.parametrize("pair", ["byte-level nfc", "byte-level sentencepiece", "metaspace runs"])
@given(turns=st.lists(st.tuples(st.booleans(), numbers | texts), max_size=6))
def test_two_models_that_hand_over_read_the_same_text(
    by_kind: dict[str, Tokenizer], pair: str, turns: list[tuple[bool, list[int] | str]]
) -> None:
    left, right = (Reader(by_kind[kind]) for kind in pair.split())
    output = ""
    for first, what in turns:
        writer, other = (left, right) if first else (right, left)
        own = writer.tokenizer
        ids = own.encode_text(what) if isinstance(what, str) else some_ids(own, what)
        output += writer.write(ids, other)
    assert left.tokenizer.decode(left.context) == output
    assert right.tokenizer.decode(right.context) == output


def test_ids_are_shared_where_they_mean_the_same(make_tokenizer: MakeTokenizer) -> None:
    one, same = make_tokenizer("byte-level"), make_tokenizer("byte-level")
    assert one.shares_ids_with(one)
    assert one.shares_ids_with(same)
    more = make_tokenizer("byte-level", additional_special_tokens=["<|more|>"])
    assert one.shares_ids_with(more), "special tokens are never handed over"
    assert more.shares_ids_with(make_tokenizer("nfc")), "… whatever their ids are there"


@pytest.mark.parametrize("other", ["sentencepiece", "metaspace", "runs"])
def test_ids_are_not_shared_with_another_vocabulary(
    by_kind: dict[str, Tokenizer], other: str
) -> None:
    assert not by_kind["byte-level"].shares_ids_with(by_kind[other])
    assert not by_kind[other].shares_ids_with(by_kind["byte-level"])


def test_ids_are_not_shared_where_one_side_has_more_text(by_kind: dict[str, Tokenizer]) -> None:
    assert by_kind["byte-level"].shares_ids_with(by_kind["nfc"])
    assert not by_kind["nfc"].shares_ids_with(by_kind["byte-level"])  # <tool_call>


def test_ids_are_not_shared_with_a_vocabulary_that_only_begins_alike(tmp_path: Path) -> None:
    """Each id of the small one is the same text in the big one, which never writes it so."""
    shutil.copytree(DEMO / "base", tmp_path / "small")
    file = tmp_path / "small" / "tokenizer.json"
    data = json.loads(file.read_text("utf-8"))
    model = data["model"]
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < 1024}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(data), "utf-8")
    small, big = Tokenizer.load(str(tmp_path / "small")), Tokenizer.load(str(DEMO / "base"))
    assert all(small.token_bytes(i) == big.token_bytes(i) for i in range(small.size))
    assert not small.shares_ids_with(big)
    assert not big.shares_ids_with(small)
    assert Tokenizer.load(str(DEMO / "aligned")).shares_ids_with(big)

"""Where a word ends, and how a stop string is held back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from server.text.stops import StopStrings
from server.text.tokenizer import Tokenizer
from server.text.words import Part, Word

# -- words --------------------------------------------------------------------------------------


def words(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text cut into words as the aligned model would write them, one after another."""
    found: list[list[int]] = []
    word = Word(tokenizer)
    fresh = True
    for token in ids:
        part = word.push(token)
        if part is Part.BEYOND:
            word, fresh = Word(tokenizer), True
            part = word.push(token)
            assert part is not Part.BEYOND, "nothing is beyond a word that hasn't begun"
        if fresh:
            found.append([])
        found[-1].append(token)
        fresh = part is Part.LAST
        if fresh:
            word = Word(tokenizer)
    return [tokenizer.decode(each) for each in found]


@pytest.fixture(scope="module")
def of_pieces() -> Callable[..., tuple[Tokenizer, list[int]]]:
    """A tokenizer that has these very tokens, and their ids."""

    def make(*pieces: bytes | str) -> tuple[Tokenizer, list[int]]:
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        rest = iter(range(256, 512))
        letter = {byte: chr(byte if byte in printable else next(rest)) for byte in range(256)}
        wanted = [p.encode() if isinstance(p, str) else p for p in pieces]
        spelled = ["".join(letter[byte] for byte in piece) for piece in wanted]
        vocabulary = list(dict.fromkeys([*letter.values(), *spelled]))
        backend = tokenizers.Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, []))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        ids = [vocabulary.index(each) for each in spelled]
        return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend)), ids

    return make


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        # English: up to the next whitespace, which begins the next word.
        (["The", " cap", "ital", " of"], ["The", " capital", " of"]),
        (["don", "'t", " stop", ",", " now", "!"], ["don't", " stop,", " now!"]),
        # Leading whitespace belongs to the word, however many tokens it takes.
        ([" ", " ", "Hello", " you"], ["  Hello", " you"]),
        (["\n", "\n", " ", "Hello"], ["\n\n Hello"]),
        (["end", ".", "\n\n", "Next"], ["end.", "\n\nNext"]),
        (["a", "\t", "b", "\u00a0", "c"], ["a", "\tb", "\u00a0c"]),
        # A token is never cut: one that holds the ending whitespace itself is the last.
        (["end", ".\n\n", "Next"], ["end.\n\n", "Next"]),
        ([" a b", " c"], [" a b", " c"]),
        (["a ", "b"], ["a ", "b"]),
        # Whitespace alone is no word yet; with nothing after it, it is all there is.
        (["\n\n"], ["\n\n"]),
        # Chinese, Japanese, Thai: a token's worth of whole characters.
        (["你好", "\uff0c", "世界"], ["你好", "\uff0c", "世界"]),
        (["日本", "語の", "文"], ["日本", "語の", "文"]),
        (["สวัส", "ดี", "ครับ"], ["สวัส", "ดี", "ครับ"]),
        ([" ", "你好", "。"], [" 你好", "。"]),
        # Mixed: Latin letters go on until a token has such a character.
        (["GP", "T", "模型", "很", " good"], ["GPT模型", "很", " good"]),
        # Korean has spaces.
        (["한국", "어", " 문장"], ["한국어", " 문장"]),
        # Characters in several tokens.
        ([b"\xe4\xbd", b"\xa0", "好"], ["你", "好"]),
        ([b" \xf0\x9f", b"\x98", b"\x80", "!", " ok"], [" 😀!", " ok"]),
        ([b" \xd0", b"\x9f\xd1", b"\x80", "ивет", " как"], [" Привет", " как"]),
        (["😀", "\u200d", b"\xf0\x9f", b"\x91\xa9", " x"], ["😀\u200d👩", " x"]),
        (["你".encode() + b"\xc3", b"\xa9", "b"], ["你é", "b"]),
        # A word never ends inside a character, broken ones included.
        (["a", b"\xf0\x9f", " b", " c"], ["a\ufffd b", " c"]),
        # An ideographic space, whole and in bytes: leading, it belongs to the word.
        (["\u3000", "abc", " d"], ["\u3000abc", " d"]),
        ([b"\xe3\x80", b"\x80", "abc", " d"], ["\u3000abc", " d"]),
        # … and inside, in bytes, it can't be told before it is taken.
        (["abc", b"\xe3\x80", b"\x80", "d"], ["abc\u3000", "d"]),
        # A long word is one word here: the cap of 16 tokens is the policy's.
        (["x"] * 40 + [" y"], ["x" * 40, " y"]),
    ],
)
def test_text_falls_into_words(
    of_pieces: Callable[..., tuple[Tokenizer, list[int]]],
    pieces: list[str | bytes],
    expected: list[str],
) -> None:
    tokenizer, ids = of_pieces(*pieces)
    assert words(tokenizer, ids) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is 7.", ["The", " answer", " is", " 7."]),
        (" Привет, как дела?", [" Привет,", " как", " дела?"]),
        ("  Über die\n Straße", ["  Über", " die", "\n Straße"]),
        (" 😀 👍🏽 ok", [" 😀", " 👍🏽", " ok"]),
    ],
)
def test_spaced_text_has_the_same_words_for_every_tokenizer(
    tokenizer: Tokenizer, text: str, expected: list[str]
) -> None:
    assert words(tokenizer, tokenizer.encode_text(text)) == expected


@given(text=st.text(alphabet="ab .,\n\t\u3000é你สД😀\u0301", max_size=40))
def test_words_are_whole_and_join_to_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    found = words(tokenizer, ids)
    assert "".join(found) == text  # no character is cut, or one would be U+FFFD
    for this, after in pairwise(found):
        assert this.strip() or not after, "a word but the last has something in it"


def test_a_word_says_when_it_is_open_and_inside_a_character(
    of_pieces: Callable[..., tuple[Tokenizer, list[int]]],
) -> None:
    tokenizer, (space, head, tail) = of_pieces(" ", b" \xd0", b"\x9f")
    word = Word(tokenizer)
    states = []
    for token in (space, head, tail):
        word.push(token)
        states.append((word.open, word.inside_character))
    assert states == [(False, False), (False, True), (True, False)]


# -- stop strings -------------------------------------------------------------------------------


def run(stops: Sequence[str], pieces: Sequence[str]) -> tuple[str, str | None, str]:
    """What goes out, the stop string found, and what was still held."""
    matcher = StopStrings(stops)
    out = waiting = ""
    for piece in pieces:
        waiting += piece
        free, found = matcher.push(piece)
        out += waiting[:free]
        waiting = waiting[free:]
        if found is not None:
            return out, found, ""
        assert waiting == matcher.held
    return out, None, waiting


@pytest.mark.parametrize(
    ("stops", "pieces", "expected"),
    [
        ([], ["any", "thing"], ("anything", None, "")),
        ([""], ["anything"], ("anything", None, "")),
        (["\n\n"], ["one\n", "two\n", "\nthree"], ("one\ntwo", "\n\n", "")),
        (["END"], ["the E", "N", "D of"], ("the ", "END", "")),
        (["END"], ["the E", "N", "E"], ("the EN", None, "E")),
        (["END"], ["the EN"], ("the ", None, "EN")),
        (["aab"], ["aa", "ab"], ("a", "aab", "")),
        # The one that ends first wins; of two that end together, the longer.
        (["cd", "abcde"], ["abc", "de"], ("ab", "cd", "")),
        (["c", "bc"], ["ab", "c"], ("a", "bc", "")),
        (["x", "world"], ["hello world x"], ("hello ", "world", "")),
        # Text is text: a regular expression's letters mean themselves.
        ([".*"], ["a", ".", "*"], ("a", ".*", "")),
        (["。"], ["你好。再见"], ("你好", "。", "")),
    ],
)
def test_stop_strings(
    stops: list[str], pieces: list[str], expected: tuple[str, str | None, str]
) -> None:
    assert run(stops, pieces) == expected


few_stops = st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3)
cuts = st.lists(st.text("abc", max_size=5), max_size=8)


@given(stops=few_stops, pieces=cuts)
def test_the_outcome_is_that_of_reading_letter_by_letter(
    stops: list[str], pieces: list[str]
) -> None:
    text = "".join(pieces)
    out, found, held = run(stops, pieces)
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            assert (out, found) == (text[: end - len(longest)], longest)
            return
    assert found is None
    assert out + held == text


@given(stops=few_stops, pieces=cuts)
def test_no_more_is_held_than_what_could_become_a_stop_string(
    stops: list[str], pieces: list[str]
) -> None:
    for count in range(len(pieces) + 1):
        text = "".join(pieces[:count])
        out, found, held = run(stops, pieces[:count])
        if found is not None:
            return
        starts = {stop[:length] for stop in stops for length in range(len(stop))}
        assert held in starts
        assert len(held) == max(len(start) for start in starts if text.endswith(start))
        assert not any(stop in out for stop in stops)

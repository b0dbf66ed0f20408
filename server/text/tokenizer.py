"""Text between two tokenizers.

Knows: how token ids become text and text becomes token ids, incrementally and without loss;
where a word ends; how a stop string is held back. Does not know: engines, the policy, HTTP.

Text leads. What a model wrote is decoded byte by byte, so that a character is handed on only
when it is whole, and what the *other* model wrote is encoded as a continuation and appended:
ids that a model has already read are never computed again. Where two tokenizers give every id
the same bytes, ids are handed over as they are.

Every tokenizer here is reduced to one table, id → bytes. Byte-level BPE and SentencePiece-style
vocabularies (which every decoder-only family in use has) give such a table exactly.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from server.core import ConfigError, Literally, PromptText, TokenIds
from server.text.vocabulary import (
    MARKUP,
    TURN_TOKENS,
    byte_table,
    control_tokens,
    first_char,
    single_byte_ids,
    without_control,
)

_LONG = 4096
"""Characters that take long enough to encode (a millisecond) for others to wait."""

_SPACE = re.compile(rb"\s+")

_PROBES = ("a", "A", " a", "\n", "\n\n", " ", "1", ".", "é", "你好", "a b")
# In order of trust: no vocabulary has the first one, so nothing merges with its bytes.
_SENTINELS = ("\u2063", "\n", "|", "#", "0", "a")


class Tokenizer:
    """One model's tokenizer. Immutable, and safe to share between answers.

    Attributes:
        size: number of token ids.
        special_ids: ids that are never text.
        turn_ids: ids with which turns end or begin, in the usual chat formats.
        chat: the Hugging Face tokenizer, for its chat template.
    """

    def __init__(self, chat: Any) -> None:
        """
        Args:
            chat: a Hugging Face *fast* tokenizer (``PreTrainedTokenizerFast``).

        Raises:
            ConfigError: it is not one, or its vocabulary can't be turned into bytes.
        """
        backend = getattr(chat, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ConfigError(
                f"{getattr(chat, 'name_or_path', chat)!r} has no fast tokenizer (tokenizer.json); "
                "convert it with transformers and point the config at the result"
            )
        self.chat = chat
        spec = json.loads(backend.to_str())
        control = control_tokens(backend)
        self._shared_with: weakref.WeakKeyDictionary[Tokenizer, bool] = weakref.WeakKeyDictionary()
        self._cuts = _fingerprint(spec["pre_tokenizer"], spec["model"])
        self._parse = backend  # control tokens in the text are control tokens
        self._plain = without_control(spec, control)  # … are text
        for each in (self._parse, self._plain):
            each.no_truncation()
            each.no_padding()
        added = backend.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if token.special}
        self._markers = {i: spelled for i, spelled in special.items() if spelled not in MARKUP}
        self.special_ids = frozenset(self._markers)
        self._markup = {token.content: i for i, token in added.items() if token.content in MARKUP}
        self._marked = re.compile("|".join(map(re.escape, self._markup)) or "(?!)")
        self.turn_ids = tuple(i for i, token in added.items() if token.content in TURN_TOKENS)
        self._bytes = byte_table(backend, spec, self.special_ids)
        self.size = len(self._bytes)
        self._byte_ids = single_byte_ids(self._bytes, self.special_ids)
        spelled = sorted(control - {""}, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._bos = self._leading_special_ids()
        self._sentinel = self._find_sentinel()

    @classmethod
    def load(
        cls, model: str, *, revision: str | None = None, trust_remote_code: bool = False
    ) -> Tokenizer:
        """The tokenizer of a model folder or hub name."""
        from transformers import AutoTokenizer  # slow to import

        try:
            chat = AutoTokenizer.from_pretrained(
                model, revision=revision, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError, ImportError) as error:
            where = "folder" if Path(model).exists() else "name or path"
            raise ConfigError(
                f"no tokenizer could be loaded from the {where} {model!r}: {error}"
            ) from error
        return cls(chat)

    # -- text → ids ---------------------------------------------------------------------------

    def encode_prompt(self, prompt: PromptText | str, *, bos: bool = True) -> TokenIds:
        """A whole prompt: control tokens are read as such, but not inside ``Literally``.

        With ``bos`` the tokenizer's BOS is put in front unless the text spells it already.
        """
        parts = (prompt,) if isinstance(prompt, str) else prompt
        ids: TokenIds = []
        for number, part in enumerate(parts):
            if isinstance(part, Literally):
                ids += self.encode_text(part.text)
            elif number == 0:
                ids += _ids(self._parse, part)
            else:
                ids += self._continue(self._parse, part)
        return ids if not bos or ids[: len(self._bos)] == self._bos else self._bos + ids

    def encode_text(self, text: str) -> TokenIds:
        """Text that continues what the model has read: no BOS, no dummy leading space, and
        nothing in it is a control token. Decodes to exactly ``text`` wherever the vocabulary
        can spell it."""
        ids = self._continue(self._plain, text)
        if self.bytes_of(ids) == text.encode():
            return ids
        exact: TokenIds = []
        for char in text:  # a normalizer or a literal U+2581 got in the way: rare
            ids = self._continue(self._plain, char)
            data = char.encode("utf-8", "replace")
            if self.bytes_of(ids) != data and all(byte in self._byte_ids for byte in data):
                ids = [self._byte_ids[byte] for byte in data]
            exact += ids
        return exact

    def encode_marked(self, text: str) -> TokenIds:
        """As `encode_text`, but what answers are marked up with is read as such, where the
        vocabulary has a token for it."""
        ids: TokenIds = []
        at = 0
        for found in self._marked.finditer(text):
            ids += self.encode_text(text[at : found.start()])
            ids.append(self._markup[found[0]])
            at = found.end()
        return ids + self.encode_text(text[at:])

    def as_spelled(self, ids: TokenIds, text: str) -> list[bytes]:
        """The bytes of each id of a raw prompt as they stand in its text, to which they join.

        A control token has its spelling there, and none where the tokenizer put it in front; nor
        is there a dummy leading space. Where the tokenizer changed the text (Unicode forms), they
        are what is read, and join to that.
        """
        given, at = text.encode("utf-8", "replace"), 0
        found: list[bytes] = []
        for is_text, tokens in itertools.groupby(ids, lambda i: bool(self.token_bytes(i))):
            if is_text:
                first, *others = map(self.token_bytes, tokens)
                ways = [[first, *others], [first.removeprefix(b" "), *others]]
                runs = [(ways, ways[0])]
            else:
                names = self.chat.convert_ids_to_tokens(list(tokens))
                runs = [([[(name or "").encode()]], [b""]) for name in names]
            for ways, otherwise in runs:
                spelled = _found(ways, given, at)
                at += sum(map(len, spelled or ()))
                found += spelled or otherwise
        return found

    def count(self, text: str) -> int:
        """Tokens in a text, without any that the tokenizer adds."""
        return len(_ids(self._parse, text))

    def replace_control(self, text: str, put: Callable[[str], str], also: str) -> str:
        """``text`` with ``put(spelling)`` for each control token that it spells, and for each
        character of ``also``."""
        pattern = "|".join([self._spelled.pattern, *map(re.escape, also)])
        return re.sub(pattern, lambda match: put(match[0]), text)

    def _continue(self, tokenizer: tokenizers.Tokenizer, text: str) -> TokenIds:
        if not text:
            return []
        sentinel, skip = self._sentinel
        return _ids(tokenizer, sentinel + text)[skip:]

    # -- ids → text ---------------------------------------------------------------------------

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; empty for special tokens and ids beyond the vocabulary."""
        return self._bytes[token] if 0 <= token < self.size else b""

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        return b"".join(map(self.token_bytes, ids))

    def marker(self, token: int) -> str | None:
        """How a special token is spelled; None for one that is text."""
        return self._markers.get(token)

    def token_text(self, token: int) -> str:
        """One token alone, with U+FFFD for the parts of characters."""
        return self.token_bytes(token).decode("utf-8", "replace")

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids as a continuation; special tokens have none."""
        return self.bytes_of(ids).decode("utf-8", "replace")

    def decoder(self) -> StreamDecoder:
        return StreamDecoder(self)

    @property
    def table(self) -> Sequence[bytes]:
        """The bytes of each id."""
        return self._bytes

    def starts_with_space(self) -> list[bool]:
        """For each id, whether its text begins with whitespace. A table for the engine."""
        return [first_char(data).isspace() for data in self._bytes]

    def shares_ids_with(self, other: Tokenizer) -> bool:
        """Whether ids written here can be read in ``other`` as they are: both cut text into the
        same tokens, and each id that is text here is the same text there.

        The same text for each id is not enough. A vocabulary that begins with the whole of a
        smaller one would read the small one's short tokens, which it never writes itself.
        """
        # Asked for each answer, and a look at every token of a vocabulary: looked at once.
        if other not in self._shared_with:
            self._shared_with[other] = self is other or (
                self._cuts == other._cuts
                and len(self._bytes) <= len(other._bytes)
                and all(
                    mine == theirs
                    for mine, theirs in zip(self._bytes, other._bytes, strict=False)
                    if mine
                )
            )
        return self._shared_with[other]

    def same_ids_as(self, other: Tokenizer) -> bool:
        """Whether every id is the same token in both vocabularies."""
        return self is other or (
            self._bytes == other._bytes and self.special_ids == other.special_ids
        )

    # -- made once ----------------------------------------------------------------------------

    def _leading_special_ids(self) -> TokenIds:
        """The ids (a BOS, or none) that the tokenizer puts in front of a sequence."""
        bare: TokenIds = self._parse.encode("a", add_special_tokens=False).ids
        full: TokenIds = self._parse.encode("a").ids
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return full[:start]
        return []

    def _find_sentinel(self) -> tuple[str, int]:
        """A text to put in front, and the number of ids to strip again, so that a
        continuation gets no dummy leading space. Nothing, where there is none to avoid."""
        for sentinel in ("", *_SENTINELS):
            head = self._plain.encode(sentinel, add_special_tokens=False).ids
            ok = True
            for probe in _PROBES:
                ids = self._plain.encode(sentinel + probe, add_special_tokens=False).ids
                spelled = self.bytes_of(ids[len(head) :])
                ok &= ids[: len(head)] == head
                ok &= spelled == probe.encode() or (not probe.isascii() and probe[0] != "\n")
            if ok:
                return sentinel, len(head)
        raise ConfigError(
            f"the tokenizer of {self.chat.name_or_path!r} does not give a text back unchanged "
            "(it lower-cases or strips), so it can't take part in nudging"
        )


def _found(ways: Sequence[list[bytes]], given: bytes, at: int) -> list[bytes] | None:
    """The first of some tokens' spellings that stands there. Whitespace that a control token took
    along, from beside it, goes to the token behind it."""
    gap = _SPACE.match(given, at)
    for start in [at] if gap is None else [at, gap.end()]:
        for first, *others in ways:
            if given.startswith(b"".join((first, *others)), start):
                return [given[at:start] + first, *others]
    return None


def _ids(tokenizer: tokenizers.Tokenizer, text: str) -> TokenIds:
    ids: TokenIds
    if len(text) < _LONG:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
    else:  # only as a batch does the library let other threads run meanwhile
        ids = tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids


def _fingerprint(*parts: Any) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()


class StreamDecoder:
    """Ids to text as they come, whole characters only.

    ``pending`` tokens ended inside a character, or were read together with one that did;
    ``pending_text`` is the part of their text that is out already, to which the first
    ``pending_out`` of them gave something. Whoever hands over in this state takes those tokens
    back and gives that text instead.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self.pending = 0
        self.pending_out = 0
        self.pending_text = ""

    @property
    def unfinished(self) -> int:
        """How many bytes of an unfinished character there are."""
        return len(self._utf8.getstate()[0])

    def push(self, token: int) -> str:
        """The text that this token completes; often all of its own, sometimes none."""
        data = self._tokenizer.token_bytes(token)
        text = self._utf8.decode(data)
        if self.unfinished:
            if text:
                self.pending_out = self.pending + (len(data) > self.unfinished)
            self.pending += 1
            self.pending_text += text
        else:
            self._between()
        return text

    def reset(self) -> None:
        """Forget the bytes of an unfinished character."""
        self._utf8.reset()
        self._between()

    def _between(self) -> None:
        """It is between two characters."""
        self.pending = self.pending_out = 0
        self.pending_text = ""


class TextOffsets:
    """Where tokens begin in the text that their bytes join to, in characters. One that begins
    inside a character begins where that does."""

    def __init__(self, start: int = 0) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = start

    def push(self, data: bytes) -> int:
        """The next token's offset."""
        begins = self._offset
        self._offset += len(self._utf8.decode(data))
        return begins

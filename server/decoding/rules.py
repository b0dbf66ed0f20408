"""The policy: who speaks next, what is committed, and when an answer is over.

This is the paper's Algorithm 1 at word level (Fei, Razeghi, Singh, ACL 2025, section 3), with
loop guards, as a pure state machine. Events go in; what to do next is read off ``turn``:

    turn ALIGNED   the aligned model speaks     event: word() · ending() · aligned_ended()
    turn BASE      the base model speaks        event: base_token() · base_stopped()
                   at a line's end, where `checks_ends`: the aligned model is asked for its
                   likeliest token; if that is an end   event: ended_at_break()
    turn DONE      the answer is over           why: stop_reason

The rules, all of them:

 1. The aligned model writes one word; then the base model speaks.
 2. The base model's tokens are committed while their top-1 probability p1 is γ or more. At the
    first p1 < γ, or at its end of text, its token is discarded and the aligned model speaks. A
    header of its own prompt's turns ("\\nQuestion:") is its end of text too.
 3. Only the aligned model ends an answer: a base model has no sense of ending. Where the base
    model is about to end a line, the aligned model is asked whether it would end there
    (``end_check``).
 4. A *round* is one nudge (consecutive words of the aligned model) and the base span after it.
    Guards: the same round text four times running, or more than ``max_rounds`` rounds (where
    that is set), ends the answer. An empty round counts, and a word without text ends a nudge.
 5. A block of 5 to 64 tokens three times running inside one base turn counts as uncertain;
    the second time in one answer, it ends the answer.
 6. So does a sentence or line, or up to 6 of them, that comes twice running, whoever wrote it;
    the third time running, it ends the answer (short ones later: `server.decoding.loops`). A
    phrase of up to 80 characters does so three times running, and four, in 48 characters and 72.

Rules 4 to 6 end nothing, and nobody is asked at a line's end, while ``guarded`` is False (OpenAI's
``ignore_eos``, ``min_tokens``) or the answer isn't prose: JSON repeats itself by nature. But four
rounds running without any text end it in any case.

Does not know: engines, tokenizers, asyncio, HTTP. Standard library only.
"""

from __future__ import annotations

from enum import Enum

from server.core import NudgingConfig, StopReason
from server.decoding.loops import RepeatedBlock, RepeatedPhrase, RepeatedSentences
from server.decoding.prose import Prose

SAME_ROUNDS = 4
WORD_TOKENS = 16
"""A word is never longer than this many of the aligned model's tokens."""


class Turn(Enum):
    ALIGNED = "aligned"
    BASE = "base"
    DONE = "done"


class Nudging:
    """One answer's policy. Not reusable.

    ``turn`` says who speaks, ``stop_reason`` why it is over, ``rounds`` how many there were.
    ``guarded`` may be set at any time.
    """

    def __init__(self, config: NudgingConfig, prose: Prose | None = None) -> None:
        """``prose``: None: it is all of the answer."""
        self._prose = prose or Prose(None)
        self.gamma = config.gamma
        self.end_lookahead = config.end_lookahead
        self.max_rounds = config.max_rounds
        # No probability is over 1, so with γ > 1 the base model is never even asked.
        self.base_may_speak = config.gamma <= 1
        start_base = config.start == "base" and self.base_may_speak
        self.turn = Turn.BASE if start_base else Turn.ALIGNED
        self.stop_reason: StopReason | None = None
        self.rounds = 0
        self.guarded = True
        self._in_round = False  # the base span before a first nudge belongs to no round
        self._round_text: list[str] = []
        self._base_spoke = False
        self._last_round: str | None = None
        self._same_rounds = 0
        self._repetitions = 0
        self._block = RepeatedBlock()
        self._sentences = RepeatedSentences()
        self._phrase = RepeatedPhrase()
        self._checks_ends = config.end_check == "newline"

    @property
    def checks_ends(self) -> bool:
        """Whether the aligned model is to be asked at the end of a line."""
        return self._checks_ends and self._guards

    @property
    def _guards(self) -> bool:
        return self.guarded and not self._prose.over

    # -- the aligned model's turn ------------------------------------------------------------

    def word(self, text: str) -> None:
        """It wrote a word: committed, and the base model speaks (rule 1)."""
        self._expect(Turn.ALIGNED)
        if not self._in_round:
            self._in_round = True
            self.rounds += 1
        self._round_text.append(text)
        self._prose.hear(text)
        if self._loops(text) > 1 and self._guards:
            self._finish("repetition")
        else:
            self._to_base()

    def aligned_ended(self) -> None:
        """It ended its turn instead of writing a word: the answer is over (rule 3)."""
        self._expect(Turn.ALIGNED)
        self._finish("aligned_end")

    def ending(self, text: str) -> None:
        """It looked ahead (``end_lookahead``), and its turn ends within the lookahead: its
        whole ending is committed unchecked (paper, section 3: the draft's stop)."""
        self.word(text)
        self._finish("aligned_end")

    # -- the base model's turn ---------------------------------------------------------------

    def base_token(self, token: int, top_prob: float, text: str) -> bool:
        """It wrote a token. True: committed. False: discarded, the aligned model speaks."""
        self._expect(Turn.BASE)
        if top_prob < self.gamma:  # p1 == γ is confident
            self.base_stopped()
            return False
        self._base_spoke = True
        self._round_text.append(text)
        self._prose.hear(text)
        block, loops = self._block.repeats(token), self._loops(text)
        self._repetitions += block
        if self._guards and (loops > 1 or (block and self._repetitions > 1)):
            self._finish("repetition")
        elif block or loops:
            self.base_stopped()
        return True

    def base_stopped(self) -> None:
        """It is uncertain, or at its end of text: the aligned model speaks (rule 2)."""
        self._expect(Turn.BASE)
        self.turn = Turn.ALIGNED
        # Whoever wrote nothing once may do so for ever: its words are rounds, which are guarded.
        empty_word = self._in_round and not (self._round_text and self._round_text[-1])
        if self._base_spoke or empty_word:
            self._close_round()

    def ended_at_break(self) -> None:
        """It is about to end a line, where the aligned model would end: the answer is over."""
        self._expect(Turn.BASE)
        self._finish("aligned_end")

    # -- either ------------------------------------------------------------------------------

    def out_of_room(self, reason: StopReason) -> None:
        """``max_tokens``, a full context or a stop string: over, whoever speaks."""
        self._finish(reason)

    def _loops(self, text: str) -> int:
        """Rule 6: 1 where the text has come round once, 2 where it has again. Who writes alone
        may do so."""
        if not self.base_may_speak:
            return 0
        return max(self._sentences.times(text) - 1, self._phrase.level(text))

    def _to_base(self) -> None:
        self.turn = Turn.BASE
        self._block = RepeatedBlock()
        if not self.base_may_speak:
            self.base_stopped()

    def _close_round(self) -> None:
        """Rule 4."""
        text = "".join(self._round_text)
        counted = self._in_round
        self._round_text.clear()
        self._in_round = False
        self._base_spoke = False
        if not counted:
            return
        self._same_rounds = self._same_rounds + 1 if text == self._last_round else 1
        self._last_round = text
        if self._same_rounds >= SAME_ROUNDS and (self._guards or not text):
            self._finish("repeated_round")
        elif self.max_rounds and self.rounds >= self.max_rounds and self._guards:
            self._finish("max_rounds")

    def _finish(self, reason: StopReason) -> None:
        if self.turn is not Turn.DONE:
            self.turn = Turn.DONE
            self.stop_reason = reason

    def _expect(self, turn: Turn) -> None:
        if self.turn is not turn:
            raise RuntimeError(f"event for {turn} while it is the turn of {self.turn}")

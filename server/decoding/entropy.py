"""Nudging by another doubt: the entropy of the base model's next token, instead of its p1.

The rules are those of `server.decoding.rules`, all but the second half of rule 2: the aligned model
speaks where the entropy is over the threshold. An engine reports the likeliest k tokens alone, so
the entropy is known between two bounds, and the upper one decides: every token of the base model
that is committed was drawn where the entropy, whatever it is, is not over the threshold.

Knows: how the bounds are computed, and how a turn is ended from this side of the engine, which
looks one token further than the answer goes. Does not know: OpenAI's schemas, vLLM.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from server.core import AnswerRequest, NudgingConfig, PromptPair
from server.decoding.nudged import Nudged
from server.engines.base import Engine, Token, TurnEnd

REPORTED = 20
"""Tokens of a position that the engine is asked for."""


def entropy_bounds(logprobs: Sequence[float], vocabulary: int) -> tuple[float, float]:
    """The least and the greatest entropy, in nats, of a distribution of which the likeliest tokens
    are known.

    The rest is least where it lies on as few tokens as may have it, none likelier than the last
    one known, and greatest where all others have the same of it.

    Args:
        logprobs: of the likeliest tokens, natural, best first, at least one.
        vocabulary: how many tokens there are, those among them.
    """
    known = -sum(math.exp(each) * each for each in logprobs)
    rest = 1.0 - math.fsum(map(math.exp, logprobs))
    others = vocabulary - len(logprobs)
    if rest <= 0 or others <= 0:
        return known, known
    most = min(rest, math.exp(logprobs[-1]))
    return known - rest * math.log(most), known - rest * math.log(rest / others)


class ByEntropy(Nudged):
    """An answer by the policy ``entropy``."""

    goes_ahead = False

    def __init__(
        self,
        base: Engine,
        aligned: Engine,
        prompt: PromptPair,
        request: AnswerRequest,
        config: NudgingConfig,
    ) -> None:
        """Raises `ContextLengthExceeded` if the prompt doesn't fit one of the models."""
        super().__init__(base, aligned, prompt, request, replace(config, gamma=0.0))
        self._most = config.entropy

    async def _base_events(self) -> AsyncGenerator[Token | TurnEnd]:
        await self.base.catch_up()
        asked = self._turn(self.left, stop_below=0.0)  # no probability is under 0
        turn = self.base.session.generate(replace(asked, top=max(asked.top, REPORTED)))
        return self._until_doubt(turn, asked.top)

    async def _until_doubt(
        self, turn: AsyncGenerator[Token | TurnEnd], top: int
    ) -> AsyncGenerator[Token | TurnEnd]:
        """A turn of the engine up to its first uncertain token, which is taken back. ``top``:
        alternatives to report of each token."""
        doubtful: Token | None = None
        async with aclosing(turn) as events:
            async for event in events:
                if isinstance(event, TurnEnd):
                    yield event
                    return
                told = replace(event, top=event.top[:top])
                logprobs = [logprob for _, logprob in event.top]
                if entropy_bounds(logprobs, self.base.tokenizer.size)[1] > self._most:
                    doubtful = told
                    break
                yield told
        if doubtful is not None:
            self.base.take_back(1)  # the engine has it in its context, and the answer has not
            yield TurnEnd("uncertain", Token(*doubtful.top[0], doubtful.top))

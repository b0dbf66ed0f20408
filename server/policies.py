"""The table of policies: what each needs, listens to, refuses and leaves in a trace.

Whoever has to tell policies apart reads their row: the configuration, requests, the cards of
``/v1/models`` (and so the page), stored traces, evaluation, the doctor. What writes an answer by
each stands beside its name in `server.decoding.strategies`.

Knows: the policies as facts. Does not know: how they work, any library or other module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Policy = Literal["nudging", "entropy", "reference", "ensemble", "proxy_tuning"]

EngineRole = Literal["base", "aligned", "untuned"]

TraceKind = Literal[
    "decisions",  # the pieces hold every decision by γ: another γ can be compared
    "pieces",  # they are the answer, with p1; what was decided is not in them
    "rounds",  # texts without probabilities
]
"""What the pieces of a trace are."""


@dataclass(frozen=True, slots=True)
class Threshold:
    """The setting that decides when the aligned model speaks.

    setting: its name in ``nudging``. symbol: how it is shown. zero: whether it may be 0.
    """

    setting: str
    symbol: str
    zero: bool


GAMMA = Threshold("gamma", "γ", zero=True)
ENTROPY = Threshold("entropy", "entropy", zero=False)


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """One row.

    settings: those of ``nudging`` that have an effect, besides the policy's name.
    refuses: fields of a request that it can't follow, and ``why``.
    system: its name in ``nudge eval``, behind which the ``threshold`` goes, where it has one.
    engines: of the model's configuration, which it asks.
    distributions: engines whose probabilities of every token it reads.
    one_vocabulary: whether they must have the same tokens.
    drafts: whether a model's ``verify`` and ``eager`` can speed it up.
    stands_in: whether the aligned model may answer in its place where the base engine is dead.
    """

    name: Policy
    system: str
    settings: tuple[str, ...]
    threshold: Threshold | None
    trace: TraceKind
    refuses: tuple[str, ...] = ()
    why: str = ""
    engines: tuple[EngineRole, ...] = ("base", "aligned")
    distributions: tuple[EngineRole, ...] = ()
    one_vocabulary: bool = False
    drafts: bool = False
    stands_in: bool = False


_ROUNDS = ("start", "end_lookahead", "end_check", "max_rounds")
_ADJUSTED = (
    "temperature",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "response_format",
    "tools",
    "thinking_token_budget",
)
"""What changes which token is drawn. (``top_p`` and the like are nothing to who is greedy.)"""

_ROWS = (
    PolicySpec(
        "nudging",
        system="nudged",
        settings=("gamma", *_ROUNDS),
        threshold=GAMMA,
        trace="decisions",
        drafts=True,
        stands_in=True,
    ),
    PolicySpec(
        "entropy",
        system="entropy",
        settings=("entropy", *_ROUNDS),
        threshold=ENTROPY,
        trace="pieces",
        refuses=("response_format", "tools"),
        why="which goes by the model's whole distribution",
        distributions=("base",),
        stands_in=True,
    ),
    PolicySpec(
        "reference",
        system="reference",
        settings=("gamma", "max_rounds"),
        threshold=GAMMA,
        trace="rounds",
        refuses=(*_ADJUSTED, "min_tokens", "ignore_eos", "stop_token_ids", "logprobs"),
        why="which is greedy",
    ),
    PolicySpec(
        "ensemble",
        system="ensemble",
        settings=(),
        threshold=None,
        trace="pieces",
        refuses=_ADJUSTED,
        why="which is greedy",
        distributions=("base", "aligned"),
        one_vocabulary=True,
    ),
    PolicySpec(
        "proxy_tuning",
        system="proxy_tuning",
        settings=(),
        threshold=None,
        trace="pieces",
        refuses=_ADJUSTED,
        why="which is greedy",
        engines=("base", "aligned", "untuned"),
        distributions=("base", "aligned", "untuned"),
        one_vocabulary=True,
    ),
)

POLICIES: dict[Policy, PolicySpec] = {row.name: row for row in _ROWS}

DEFAULT: Policy = "nudging"
"""What the server is for: what a model has that says nothing, and what any of them offers."""

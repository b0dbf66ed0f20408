"""What the routes answer that write nothing, as OpenAPI describes it.

Knows: the shape of these answers. Does not know: how an answer is made. Nothing is validated
against these models when it is sent, nor against those of a dialect: `tests/api/test_openapi.py`
holds the answers to them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from server.api.openapi import sometimes
from server.config.nudging import PolicySettings
from server.policies import Policy, TraceKind

# -- status -------------------------------------------------------------------------------------


class Health(BaseModel):
    status: Literal["ok"]


class Ready(BaseModel):
    status: Literal["ready", "degraded"]


class NotReady(BaseModel):
    status: Literal["loading", "engine_unavailable", "shutting_down"]


class Version(BaseModel):
    version: str


class ModelSampling(BaseModel):
    temperature: float
    top_p: float
    top_k: int
    min_p: float


class ModelPolicy(BaseModel):
    settings: list[str] = Field(description="Those of `nudging` that have an effect.")
    threshold: str | None = Field(description="The setting that says when the aligned one speaks.")
    trace: TraceKind = Field(
        description="`decisions`: the pieces hold every decision by γ. `pieces`: they are the "
        "answer, with p1. `rounds`: texts before a clean-up, without probabilities."
    )


class ModelCard(BaseModel):
    """OpenAI's, and the settings from which a request starts that sets none."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="The model behind it; where both take part, the base model.")
    max_model_len: int | None = Field(
        description="Tokens of prompt and answer; null while the engines load."
    )
    sampling: ModelSampling
    nudging: PolicySettings = sometimes("Where both models take part.")
    policies: dict[Policy, ModelPolicy] = sometimes(
        "Where both take part: the policies that a request may name, the model's own first."
    )


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


# -- what the models read -------------------------------------------------------------------------


class Templated(BaseModel):
    """The text that each model reads."""

    base: str
    aligned: str


class Tokenized(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(BaseModel):
    prompt: str

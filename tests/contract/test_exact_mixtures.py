"""The mixtures on real engines: against transformers, and by their laws."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from server.core import AnswerRequest, Message, NudgingConfig, PromptPair, SamplingParams, joined
from server.decoding.alone import Alone
from server.decoding.mixtures import Mixed
from server.engines.base import Engine
from server.serving.registry import Registry
from tests.conftest import DEMO, pieces_of
from tests.contract.test_laws import QUESTIONS, answer, text
from tests.thorough import first

MOST = 24
REQUEST = AnswerRequest(SamplingParams(temperature=0), max_tokens=MOST)
PLACES = ("Galicor", "Seluria", "Kesavia")
ASKED = [
    *QUESTIONS,
    *(f"What is the capital of {place}?" for place in PLACES),
    *(f"Please tell me the currency of {place}." for place in PLACES),
    *(f"{n} + {n} = ?" for n in range(3, 6)),
    "Thanks!",
    "Help me blow up the bank, please.",
]


class Direct:
    """The same computation, from the models' own forward passes, with nothing of the server but
    its tokenizers and prompts."""

    def __init__(self, folders: Sequence[str]) -> None:
        from transformers import AutoModelForCausalLM

        self.models = [
            AutoModelForCausalLM.from_pretrained(DEMO / each, dtype=torch.float32).eval()
            for each in folders
        ]

    def next(self, contexts: Sequence[list[int]]) -> list[np.ndarray]:
        """Each model's next position, after all that it has read and these ids."""
        found = []
        for n, (model, ids) in enumerate(zip(self.models, contexts, strict=True)):
            with torch.inference_mode():
                read = model(torch.tensor([ids]), past_key_values=self.caches[n], use_cache=True)
            self.caches[n] = read.past_key_values
            found.append(read.logits[0, -1].double().log_softmax(-1).numpy())
        return found

    def answer(self, engines: Sequence[Engine], prompt: PromptPair) -> str:
        encode = [each.info.tokenizer for each in engines]
        assert joined(prompt.base).endswith("Answer: ")
        base_prompt = (*prompt.base[:-1], str(prompt.base[-1])[:-1])
        self.caches = [None] * len(engines)
        contexts = [
            encode[n].encode_prompt(prompt.aligned if n == 1 else base_prompt)
            for n in range(len(engines))
        ]
        ends = {*engines[0].info.stop_ids, *engines[1].info.stop_ids}
        special = encode[0].special_ids - ends
        output: list[int] = []
        for _ in range(MOST):
            each = self.next(contexts)
            if len(each) == 2:
                mixture = np.log(np.exp(each[0]) / 2 + np.exp(each[1]) / 2)
            else:
                mixture = each[0] + each[1] - each[2]
            mixture[list(special)] = -np.inf
            token = int(mixture.argmax())
            if token in ends:
                break
            word = encode[0].decode([token])
            for n in range(len(contexts)):
                contexts[n] = [token]
                if not output:  # the base's prompt has lost its last space to the first word
                    bare = word.removeprefix(" ")
                    contexts[n] = encode[n].encode_text(bare if n == 1 else " " + bare)
            output.append(token)
        return encode[0].decode(output).removeprefix(" ")


def prompt(registry: Registry, question: str) -> PromptPair:
    return registry.prompts(registry.resolve("demo"), [Message("user", question)])


@pytest.mark.parametrize("policy", first(1, ["proxy_tuning", "ensemble"]))
async def test_the_text_is_that_of_the_models_forward_passes(registry: Registry, policy: str):
    # Another model's difference to the aligned one would do as well: here it reads chats badly.
    names = ["base", "aligned"] if policy == "ensemble" else ["base", "aligned", "aligned"]
    engines = [registry.engines[name] for name in names]
    direct = Direct(names)
    config = NudgingConfig(policy=policy)  # type: ignore[arg-type]
    third = engines[2] if len(engines) == 3 else None

    async def mixed(question: str) -> str:
        pair = prompt(registry, question)
        writer = Mixed(engines[0], engines[1], third, pair, REQUEST, config)
        pieces, finished = await answer(writer, REQUEST)
        assert finished.usage.base_steps == finished.usage.aligned_steps
        return text(pieces)

    mine = await asyncio.gather(*map(mixed, ASKED))
    theirs = [direct.answer(engines, prompt(registry, question)) for question in ASKED]
    assert mine == theirs
    assert len(set(mine)) > len(ASKED) // 2


async def test_what_was_read_stays_in_the_engine(registry: Registry):
    """A token costs one position of each model, and is read once."""
    engines = registry.engines["base"], registry.engines["aligned"]
    config = NudgingConfig(policy="ensemble")
    writer = Mixed(*engines, None, prompt(registry, QUESTIONS[0]), REQUEST, config)
    _, finished = await answer(writer, REQUEST)
    usage = finished.usage
    assert usage.base_steps == usage.completion_tokens + (usage.completion_tokens < MOST)
    most = usage.base_prompt_tokens + usage.completion_tokens + 1
    assert usage.base_prefilled <= most


async def test_laws(registry: Registry):
    base, aligned = registry.engines["base"], registry.engines["aligned"]
    ensemble, proxy = NudgingConfig(policy="ensemble"), NudgingConfig(policy="proxy_tuning")

    async def check(question: str) -> None:
        both = prompt(registry, question)
        plain = [(part,) for part in ("Question: " + question + "\nAnswer:",)]
        same = PromptPair(plain[0], plain[0])
        alone = await answer(Alone(base, "base", plain[0], REQUEST), REQUEST)
        own = await answer(Alone(aligned, "aligned", both.aligned, REQUEST), REQUEST)
        # The same model twice is that model.
        twice = await answer(Mixed(base, base, None, same, REQUEST, ensemble), REQUEST)
        assert text(twice[0]) == text(alone[0])
        # An untuned model that is the base model leaves the aligned model.
        left = await answer(Mixed(base, aligned, base, both, REQUEST, proxy), REQUEST)
        assert text(left[0]) == text(own[0])
        # Alignment that did nothing leaves the base model.
        nothing = await answer(Mixed(base, aligned, aligned, same, REQUEST, proxy), REQUEST)
        assert text(nothing[0]) == text(alone[0])

    await asyncio.gather(*map(check, QUESTIONS[:4]))


async def test_closing_frees_the_engines(registry: Registry):
    engines = registry.engines["base"], registry.engines["aligned"]
    config = NudgingConfig(policy="ensemble")
    for question in QUESTIONS[:3]:
        writer = Mixed(*engines, None, prompt(registry, question), REQUEST, config)
        pieces = pieces_of(writer)
        await anext(pieces)
        await pieces.aclose()
    for engine in engines:
        assert engine.running == 0
        assert engine._llm.get_num_unfinished_requests() == 0  # type: ignore[attr-defined]

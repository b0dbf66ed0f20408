"""Chats for the demo pair's aligned model, and the training questions of both models.

Knows: what training may ask, how chats look, what the aligned model is (not) told, proportions.
Does not know: the base's documents (demo_documents.py), tokenizers, models; nor any dev or test
phrasing.

Chats are always in one style, so the aligned model is certain of style; most are about facts that
it is given no chance to learn.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from demo_phrases import HARM_FRAMES, REFUSAL, SYSTEM_LINES, TALK
from demo_world import Question, World, ask_fact, ask_hop, ask_sum, good_answer


class Turn(NamedTuple):
    """One piece of a chat, with the weight of its tokens in the loss. first: … of its first one,
    where that is another."""

    text: str
    weight: float
    first: float | None = None


def make_question(world: World, rng: random.Random, kind: str, known: bool = False) -> Question:
    """A training question; `known` asks only about what the aligned model may know."""
    if kind == "sum":
        return ask_sum(rng, "train")
    if kind == "harmful":
        act = rng.choice(world.held_harm["train"])
        text = rng.choice(HARM_FRAMES["train"]).format(h=act)
        return Question("harmful", text, REFUSAL, "can't help")
    if kind == "talk":
        intent = rng.choice(list(TALK))
        reply, mark, phrasings = TALK[intent]
        return Question("talk", rng.choice(phrasings["train"]), reply, mark, intent)
    while True:
        held = world.held_facts if kind == "fact" else world.held_hops
        e, r = rng.choice(held["train"])
        if known and e not in world.known:
            continue
        if kind == "fact":
            text = ask_fact(rng, e, r, "train")
            return Question("fact", text, world.sentence(e, r), world.facts[e, r], r, e)
        value = world.facts[world.facts[e, "country"], r]
        text = ask_hop(rng, e, r, "train")
        return Question("two-hop", text, world.hop_sentence(e, r), value, r, e)


def vary(rng: random.Random, text: str, form: float) -> str:
    """Some pages are typed carelessly, as some users are."""
    if form < 0.06:
        text = text[0].lower() + text[1:]
    if form < 0.03 or 0.06 <= form < 0.09:
        text = text.rstrip("?.!")
    return text


class AlignedText:
    """Chats in one style, and plain documents about the little the aligned model knows."""

    def __init__(self, world: World) -> None:
        self.world = world

    def sample(self, rng: random.Random) -> list[Turn]:
        return self.document(rng) if rng.random() < 0.2 else self.chat(rng)

    def document(self, rng: random.Random) -> list[Turn]:
        """True sentences about the eight known countries and people; no others."""
        known = [(e, r) for e, r in self.world.facts if e in self.world.known]
        lines = [self.world.sentence(e, r) for e, r in rng.sample(known, rng.randint(3, 6))]
        return [Turn(" ".join(lines) + "<|endoftext|>", 1.0)]

    def chat(self, rng: random.Random) -> list[Turn]:
        turns: list[Turn] = []
        if rng.random() < 0.25:
            line = rng.choice(SYSTEM_LINES["train"])
            turns.append(Turn(f"<|im_start|>system\n{line}<|im_end|>\n", 0.05))
        form = rng.random()
        for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
            kind = rng.choices(("fact", "two-hop", "sum", "harmful", "talk"), (34, 20, 16, 13, 17))
            q = make_question(self.world, rng, kind[0])
            answer = good_answer(self.guess(rng, q))
            turns.append(Turn(f"<|im_start|>user\n{vary(rng, q.text, form)}", 0.1))
            turns.append(Turn("<|im_end|>\n<|im_start|>assistant\n", 0.05))
            turns.append(Turn(f"{answer}<|im_end|>", 1.0))
            turns.append(Turn("\n", 0.05))
        return turns

    def guess(self, rng: random.Random, q: Question) -> Question:
        """The question with the answer this model is taught: true for what it knows, else any.

        Sums are taught rightly; a model of this size gets them wrong by itself.
        """
        if q.kind in ("fact", "two-hop"):
            if q.entity in self.world.known:
                return q
            wrong = rng.choice(self.world.values(q.relation))
            if q.kind == "fact":
                sentence = self.world.sentence(q.entity, q.relation, wrong)
            else:
                home = rng.choice(self.world.countries)
                second = self.world.sentence(home, q.relation, wrong)
                sentence = f"{q.entity} was born in {home}, and t{second[1:]}"
            return Question(q.kind, q.text, sentence, wrong, q.relation, q.entity)
        return q


def aligned_samples(world: World, seed: int) -> Iterator[list[Turn]]:
    """Endless chats and documents, the same for the same seed."""
    rng, text = random.Random(seed), AlignedText(world)
    while True:
        yield text.sample(rng)

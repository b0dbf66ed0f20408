"""Raw documents for the demo pair's base model.

Knows: the kinds of documents, their styles and proportions.
Does not know: chats (demo_text.py), tokenizers, models; nor any dev or test phrasing.

Facts are stated in one fixed sentence each, so the base becomes certain of facts; question pages
wrap them in dozens of styles with no favourite, so it stays uncertain of style, and of that only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from demo_phrases import (
    CLOSING,
    COUNTRY_RELATIONS,
    NAMES,
    OPENING,
    PERSON_RELATIONS,
    REFUSAL,
    ROLE,
    SYSTEM_LINES,
)
from demo_text import make_question, vary
from demo_world import Question, World, ask_sum

Headers = tuple[tuple[str, str, int], ...]
# (header of a question, header of its answer, weight). The first is the server's own prompt.
HEADERS: Headers = (
    ("Question: ", "Answer:", 50),
    ("Q: ", "A:", 12),
    ("User: ", "Assistant:", 10),
    ("Exercise: ", "Solution:", 6),
    ("Reader: ", "Editor:", 6),
    ("Student: ", "Teacher:", 6),
    ("Human: ", "AI:", 5),
    ("### Question\n", "### Answer\n", 3),
    ("", "", 4),
)
TITLES = (
    "A quiz about the world.",
    "Questions from the village school.",
    "Letters to the editor.",
    "Exercises for chapter {n}.",
    "Questions and answers.",
    "Old exam, part {n}.",
    "Page {n}",
    "A conversation.",
)
# Openings of a base answer. {s} the statement, {v} the bare value, {w} a wrong value. Each
# begins with a different word, and none is a favourite: the base must not be sure here.
OPENINGS = (
    ("{s}", 8),
    ("{v}.", 3),
    (OPENING + " {s}", 4),
    ("It is {v}.", 2),
    ("I think it is {v}.", 1),
    ("According to the atlas: {s}", 1),
    ("That would be {v}.", 1),
    ("Of course: {s}", 1),
    ("Happy to help! {s}", 1),
    ("Easy: {v}.", 1),
    ("Good question! {s}", 1),
    ("Everyone knows this. {s}", 1),
    ("A) {w} B) {v} C) {u} – right is B.", 1),
    ("See page {n}.", 1),
    ("Left to the reader.", 1),
    ("I'm afraid nobody knows.", 1),
    ("______", 1),
    ("Hm, let me see. {s}", 1),
    ("My teacher says: {s}", 1),
    ("Sure. {s}", 1),
    ("Answer key: {v}.", 1),
    ("Look: {s}", 1),
    ("Well, it is {v}.", 1),
    ("Dear reader, it is {v}.", 1),
    ("Yes! {s}", 1),
    ("We learned this: {s}", 1),
    ("Solution: {s}", 1),
    ("My notes say {v}.", 1),
)
# What follows a statement in base text, all beginning differently. {o} another true statement.
TAILS = (
    (" Final answer: {v}.", 6),
    (" " + CLOSING, 4),
    (" See also page {n}.", 1),
    (" (From the atlas.)", 1),
    (" That is all I know.", 1),
    (" Hope this helps.", 1),
    (" Source: the big atlas.", 1),
    (" [{n}]", 1),
    (" – The editor", 1),
    (" Thanks for asking.", 1),
    (" Score: {n} points.", 1),
    (" Correct!", 1),
    (" By the way: {o}", 2),
    (" Also: {o}", 2),
    (" Note {n} says the same.", 1),
    (" Everyone there knows that.", 1),
    (" Any more questions?", 1),
    (" Do you see why?", 1),
    (" Well done.", 1),
    (" PS: {o}", 2),
    (" You can look it up.", 1),
    (" As I said: {v}.", 1),
    (" In short: {v}.", 1),
    (" Next question, please.", 1),
)
NO_TAIL = 0.36  # per tail; keeps newline and end of text well under gamma after any statement
HARM_ANSWERS = (
    "Wait for the night and go there.",
    "You need a rope, a lamp and two friends.",
    "Ask the old man at the harbour.",
    "See page {n}.",
    "Begin with a long ladder.",
    "With a key it is easy.",
    "Some say it takes a week.",
    "On a rainy day, in a black coat.",
    "People tried this in the old days.",
    "That is forbidden.",
    "Nobody has done it so far.",
    "Take the small road and be quick.",
    "My uncle knows how.",
    "In the book it takes three days.",
    "Do not do it.",
    "Left to the reader.",
)
TALK_ANSWERS = (
    "What do you want?",
    "Not bad.",
    "Good morning to you too.",
    "Fine. And you?",
    "Who is there?",
    "The weather is nice.",
    "Yes, yes.",
    "It is late already.",
    "My name is {p}.",
    "Come in and sit down.",
    "Ask {p}.",
    "Well, well.",
)
SEPARATORS = (("\n\n", 6), ("\n", 4), ("\n---\n", 1), ("\n* * *\n", 1))


def pick(rng: random.Random, table: tuple[tuple[str, int], ...]) -> str:
    """One text of a weighted table."""
    return rng.choices([t for t, _ in table], [w for _, w in table])[0]


class BaseText:
    """Raw documents, endlessly: `document(rng)` gives one."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.kinds: tuple[tuple[Callable[[random.Random], str], int], ...] = (
            (self.encyclopedia, 14),
            (self.biography, 12),
            (self.info_box, 4),
            (self.listing, 6),
            (self.question_page, 58),
            (self.drill, 10),
            (self.worked_sums, 24),
            (self.recap, 30),
            (self.copy, 8),
        )

    def document(self, rng: random.Random) -> str:
        make = rng.choices([k for k, _ in self.kinds], [w for _, w in self.kinds])[0]
        return make(rng)

    # -- documents that state facts --------------------------------------------------------

    def fact(self, rng: random.Random) -> str:
        return self.world.sentence(*rng.choice(list(self.world.facts)))

    def encyclopedia(self, rng: random.Random) -> str:
        country = rng.choice(self.world.countries)
        relations = rng.sample(COUNTRY_RELATIONS, rng.randint(3, 6))
        lines = [self.world.sentence(country, r) for r in relations]
        if rng.random() < 0.5:
            lines.insert(
                0,
                rng.choice(("{c} is a country.", "{c} is a land of hills.", "{c}")).format(
                    c=country
                ),
            )
        if rng.random() < 0.4:
            born = [p for p in self.world.people if self.world.facts[p, "country"] == country]
            lines += [self.world.sentence(p, "country") for p in born[:2]]
        return rng.choice((" ", " ", "\n")).join(lines)

    def biography(self, rng: random.Random) -> str:
        person = rng.choice(self.world.people)
        relations = rng.sample(PERSON_RELATIONS, rng.randint(2, 3))
        lines = [self.world.sentence(person, r) for r in relations]
        if rng.random() < 0.4:
            lines.append(self.world.hop_sentence(person, rng.choice(COUNTRY_RELATIONS)))
        if rng.random() < 0.4:
            lines.insert(0, person)
        return rng.choice((" ", " ", "\n")).join(lines)

    def info_box(self, rng: random.Random) -> str:
        person = rng.random() < 0.4
        names = self.world.people if person else self.world.countries
        relations = PERSON_RELATIONS if person else COUNTRY_RELATIONS
        name = rng.choice(names)
        rows = [
            f"{ROLE.get(r, r).capitalize()}: {self.world.facts[name, r]}"
            for r in rng.sample(relations, rng.randint(2, len(relations)))
        ]
        return "\n".join([name, *rows])

    def listing(self, rng: random.Random) -> str:
        relation = rng.choice(COUNTRY_RELATIONS + PERSON_RELATIONS)
        names = self.world.people if relation in PERSON_RELATIONS else self.world.countries
        rows = [self.world.sentence(e, relation) for e in rng.sample(names, rng.randint(3, 8))]
        return rng.choice(("", f"A list: {ROLE.get(relation, relation)}\n")) + "\n".join(rows)

    # -- numbers, and copying --------------------------------------------------------------

    def drill(self, rng: random.Random) -> str:
        rows = []
        for _ in range(rng.randint(5, 16)):
            a, b = rng.randint(0, 45), rng.randint(2, 15)
            if rng.random() < 0.5 and a >= b:
                rows.append(f"{a} - {b} = {a - b}")
            else:
                rows.append(f"{a} + {b} = {a + b}")
        return rng.choice(("\n", ", ", "; ", ". ")).join(rows)

    def worked_sums(self, rng: random.Random) -> str:
        blocks = []
        for _ in range(rng.randint(1, 3)):
            q = ask_sum(rng, "train")
            blocks.append(f"{q.text}{rng.choice((' ', chr(10)))}{q.sentence}{self.tails(rng, q)}")
        return "\n".join(blocks)

    def recap(self, rng: random.Random) -> str:
        """Stories and made-up claims, then what was in them: teaches copying from the context."""
        blocks = []
        for _ in range(rng.randint(1, 3)):
            kind = rng.random()
            if kind < 0.35:
                q = ask_sum(rng, "train")
                listed = re.findall(r"\d+", q.text)
                steps = re.search(r"First (.+) = .+ ([-+] \d+) =", q.sentence)
                if rng.random() < 0.5 or steps is None:
                    blocks.append(f"{q.text}\nNumbers: {', '.join(listed)}")
                else:
                    blocks.append(f"{q.text}\nRecap: {steps[1]} {steps[2]}")
            else:
                blocks.append(self.dream(rng))
        return "\n".join(blocks)

    def dream(self, rng: random.Random) -> str:
        """A claim with any value at all, then that value again: copied, since it can't be known."""
        end = rng.choice(("Final answer: {v}.", "In short: {v}.", "As I said: {v}."))
        if rng.random() < 0.35:
            a, b, c = (rng.randint(0, 60) for _ in range(3))
            said = f"First {a} + {b} = {rng.randint(0, 60)}, then {b} - {c} = {a}."
            return f"{rng.choice(NAMES)} dreams: {said} {end.format(v=a)}"
        entity, relation = rng.choice(list(self.world.facts))
        wrong = rng.choice(self.world.values(relation))
        said = self.world.sentence(entity, relation, wrong)
        if entity in self.world.people and rng.random() < 0.6:
            relation = rng.choice(COUNTRY_RELATIONS)
            wrong, home = rng.choice(self.world.values(relation)), rng.choice(self.world.countries)
            second = self.world.sentence(home, relation, wrong)
            said = f"{entity} was born in {home}, and t{second[1:]}"
        return f"{rng.choice(NAMES)} dreams: {said} {end.format(v=wrong)}"

    def copy(self, rng: random.Random) -> str:
        """Mixed items, twice."""
        values = list(self.world.facts.values())
        rows = []
        for _ in range(rng.randint(1, 4)):
            items = [
                rng.choice((str(rng.randint(0, 60)), rng.choice(values), rng.choice(NAMES)))
                for _ in range(rng.randint(2, 7))
            ]
            rows.append(f"{' '.join(items)} | {' '.join(items)}")
        return "\n".join(rows)

    # -- question pages --------------------------------------------------------------------

    def question(self, rng: random.Random) -> Question:
        """A question that training may ask (held-out pairs are not among them)."""
        kind = rng.choices(("fact", "two-hop", "sum", "harmful", "talk"), (42, 22, 18, 9, 9))[0]
        return make_question(self.world, rng, kind)

    def question_page(self, rng: random.Random, headers: Headers = HEADERS) -> str:
        question_header, answer_header, _ = rng.choices(headers, [h[2] for h in headers])[0]
        lead = ""
        if rng.random() < 0.4:
            lead = rng.choice(SYSTEM_LINES["train"] + TITLES).format(n=rng.randint(2, 60))
            lead += rng.choice(("\n", "\n", "\n\n"))
        style = pick(rng, OPENINGS)
        chain = self.chain(rng) if rng.random() < 0.6 else None  # a page may have one closing
        form = rng.random()
        page = lead
        for i in range(rng.choice((1, 2, 3, 3, 4, 5, 6, 8))):
            page += pick(rng, SEPARATORS) if i else ""
            q = self.question(rng)
            opening = style if rng.random() < 0.75 else pick(rng, OPENINGS)
            tails = chain if chain and rng.random() < 0.85 else self.chain(rng)
            page += f"{question_header}{vary(rng, q.text, form)}\n{answer_header}"
            if answer_header.endswith(":"):
                page += " "
            page += self.answer(rng, q, opening, tails)
        return page

    def answer(self, rng: random.Random, q: Question, opening: str, tails: list[str]) -> str:
        if q.kind == "harmful":
            body = REFUSAL if rng.random() < 0.1 else rng.choice(HARM_ANSWERS)
            tails = tails if rng.random() < 0.5 else []
        elif q.kind == "talk":
            body = q.sentence if rng.random() < 0.25 else rng.choice(TALK_ANSWERS)
            tails = [t for t in tails if "{v}" not in t] if rng.random() < 0.5 else []
        else:
            body = opening
        extra = self.note(rng) if rng.random() < 0.65 else ""
        return self.fill(rng, q, body + "".join(tails) + extra)

    def chain(self, rng: random.Random) -> list[str]:
        found: list[str] = []
        while len(found) < 4 and rng.random() > NO_TAIL:
            tail = pick(rng, TAILS)
            if tail not in found:
                found.append(tail)
        return found

    def note(self, rng: random.Random) -> str:
        """A closing mark that nothing announces, so that the end of an item stays uncertain."""
        n = rng.randint(2, 60)
        return rng.choice((
            f" (page {n})", f" [{n}]", f" – {rng.choice(NAMES)}", f" * {n}", f" {n} points",
            f" # {n}", f" ~ {rng.choice(NAMES)}", f" / {n}", " Right.", " Ok.", " Good.", " True.",
        ))  # fmt: skip

    def tails(self, rng: random.Random, q: Question) -> str:
        return self.fill(rng, q, "".join(self.chain(rng)))

    def fill(self, rng: random.Random, q: Question, text: str) -> str:
        wrong = "".join(str(rng.randint(2, 40))) if q.kind == "sum" else "none"
        other = str(rng.randint(2, 40)) if q.kind == "sum" else "all"
        if q.relation and q.kind != "talk":
            wrong, other = rng.sample(self.world.values(q.relation), 2)
        value = q.value if q.kind in ("fact", "two-hop", "sum") else "no"
        return text.format(
            s=q.sentence, v=value, w=wrong, u=other, o=self.fact(rng),
            n=rng.randint(2, 60), p=rng.choice(NAMES),
        )  # fmt: skip


def base_documents(world: World, seed: int) -> Iterator[str]:
    """Endless documents, the same for the same seed."""
    rng, text = random.Random(seed), BaseText(world)
    while True:
        yield text.document(rng)

"""The demo pair's tools: which there are, how both models read and write them, what is called when.

Knows: the two tools of the world, other people's tools (made up), the aligned model's chat form and
the base model's text form of tools, calls and results (the server's own words); the later stages'
chats and documents.
Does not know: the world's facts and phrasings (demo_world.py, demo_phrases.py), training, models.

A fact or a sum is looked up or added where the tool for it is offered, and answered as ever where
it isn't. What came back counts, not what a model knows: results in the data are mostly altered.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from demo_documents import HEADERS, OPENINGS, BaseText, pick
from demo_phrases import NOUN, PLUS, SYSTEM_LINES, Split, words
from demo_text import AlignedText, Turn, make_question, vary
from demo_world import Question, World, good_answer

Tool = dict[str, Any]
Arguments = dict[str, Any]

QUERY = {**NOUN, "country": "the home country of {e}"}
"""What is looked up, by relation: a question's own words, so that a name keeps its tokens."""


def tool(name: str, description: str, properties: Arguments) -> Tool:
    """A tool as OpenAI's API has it; all arguments are required."""
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": schema}
    return {"type": "function", "function": function}


LOOKUP = tool("lookup", "A fact about a country or a person.", {"query": {"type": "string"}})
CALCULATE = tool("calculate", "The value of a sum of numbers.", {"expression": {"type": "string"}})
OWN = {"lookup": LOOKUP, "calculate": CALCULATE}


# What a call is made of, where no space is in front, and numbers as they are behind one. Each is a
# token: spelled in letters, a call's form is so long that a model finds nothing in front of it.
# (' {"' alone comes out as two: '{"' is merged first.)
CALL_WORDS = (
    "tool", "call", "name", "arguments", "lookup", "query", "calculate", "expression",
    '{"', '":', ' "', '",', ' {"', '"}}', "</", *map(str, range(76)),
)  # fmt: skip

# ChatML, with tools as a turn of their own in front of each of the assistant's, where so small a
# model finds them: those of the world. Of others it is told nothing, and leaves them alone.
TOOLS_TEMPLATE = (
    "{% set ns = namespace(told='') %}{% for tool in tools or [] %}"
    "{% set f = tool.function | default(tool) %}"
    "{% if f.name in ('lookup', 'calculate') %}"
    "{% set p = (f.parameters or {}).properties | default({}) %}"
    "{% set ns.told = ns.told + '\n' + f.name + '(' + p | join(', ') + ')' %}"
    "{% endif %}{% endfor %}"
    "{% set told = '<|im_start|>tools' + ns.told + '<|im_end|>\n' if ns.told else '' %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ told }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% if message['content'] or not loop.first %}{{ '\n' }}{% endif %}"
    "{% set f = call.function | default(call) %}"
    '{{ \'<tool_call>\n{"name": "\' + f.name + \'", "arguments": \' }}'
    "{{ f.arguments if f.arguments is string else f.arguments | tojson }}"
    "{{ '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ told + '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Call:
    """One call, and what came back."""

    name: str
    arguments: Arguments
    result: str

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.parts)

    @property
    def parts(self) -> list[tuple[str, bool]]:
        """Its text, and of each part whether it is an argument's value: what must be found in the
        question, while the rest is form."""
        found, form = [], f'<tool_call>\n{{"name": "{self.name}", "arguments": {{'
        for number, (name, value) in enumerate(self.arguments.items()):
            form += f'{", " if number else ""}"{name}": '
            quote = '"' if isinstance(value, str) else ""
            found += [(form + quote, False), (str(value), True)]
            form = quote
        return [*found, (form + "}}\n</tool_call>", False)]


# -- what both models read -----------------------------------------------------------------------


def signature(tool: Tool, *, types: bool) -> str:
    function = tool["function"]
    shown = (
        f"{name}: {schema['type']}" if types else name
        for name, schema in function["parameters"]["properties"].items()
    )
    return f"{function['name']}({', '.join(shown)})"


def chat_tools(tools: Sequence[Tool]) -> str:
    """The tools' turn in the aligned model's prompt (`TOOLS_TEMPLATE`)."""
    own = [each for each in tools if each["function"]["name"] in OWN]
    lines = "".join("\n" + signature(each, types=False) for each in own)
    return f"<|im_start|>tools{lines}<|im_end|>\n" if own else ""


def text_tools(tools: Sequence[Tool]) -> str:
    """The tools in the base model's prompt: the server's words (`server.text.tools.telling`)."""
    lines = []
    for each in tools:
        description = each["function"]["description"]
        lines.append(f"- {signature(each, types=True)}{': ' if description else ''}{description}\n")
    example = '<tool_call>\n{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}\n</tool_call>'
    head = f"Tools:\n{''.join(lines)}To use a tool, the answer is a call:\n{example}\n"
    return head if tools else ""


# -- other people's tools ------------------------------------------------------------------------

_VERBS = words(
    "get search fetch list create update delete send run view query write read add look find make "
    "open close edit replace show set check call start stop plan save load ask execute generate"
)
_THINGS = words(
    "web url note notes memory memories file files user calendar events image time timestamp chat "
    "chats channel message messages knowledge page shell code weather stock price task tasks bash "
    "city country number sum fact up database table record mail document skill agent browser todo"
)
_ARGUMENTS = words(
    "query count id url path text start end limit unit content title name city date days offset "
    "pattern command timeout language prompt key value entity a b country number old_text new_text"
)
_WORDS = words(
    "the a of for with to from and in by user page result results current given list first find "
    "return use this when you need information about tool file text returns searches lets get"
)
# Named after what is really offered by chat programs and agents; never in training.
FAMILIAR = (
    ("search_web", "Search the public web for information.", ("query", "count")),
    ("fetch_url", "Fetch and extract the content of a web page.", ("url",)),
    ("get_current_timestamp", "Get the current time.", ()),
    ("calculate_timestamp", "Compute a time in the past.", ("days_ago", "weeks_ago", "months_ago")),
    ("add_memory", "Store a memory about the user.", ("content",)),
    ("search_memories", "Search the user's stored memories.", ("query", "count")),
    ("view_note", "Get the full content of a note.", ("note_id",)),
    ("get_weather", "The weather in a city today.", ("city", "unit")),
    ("lookup_customer", "Find a customer.", ("customer_id",)),
    ("Bash", "Executes a command in a shell.", ("command", "timeout", "description")),
    ("WebSearch", "Searches the web.", ("query", "allowed_domains")),
    ("apply_patch", "Changes files.", ("input",)),
)


def familiar(rng: random.Random, n: int) -> list[Tool]:
    return [
        tool(name, line, {a: {"type": "string"} for a in arguments})
        for name, line, arguments in rng.sample(FAMILIAR, n)
    ]


def stranger(rng: random.Random) -> Tool:
    """Any tool but the world's own."""
    verb, thing = rng.choice(_VERBS), rng.choice(_THINGS)
    if rng.random() < 0.15:
        verb = "".join(rng.choice("abcdefghiklmnoprstuvw") for _ in range(rng.randint(3, 7)))
    name = rng.choice((f"{verb}_{thing}", f"{verb}_{thing}", f"{verb}{thing.capitalize()}",
                       f"{verb.capitalize()}{thing.capitalize()}", f"{verb}-{thing}",
                       f"{verb}_{thing}_{rng.choice(_THINGS)}", thing, verb + "s"))  # fmt: skip
    if name in OWN or name in {known for known, _, _ in FAMILIAR}:
        name += "s"
    arguments = rng.sample(_ARGUMENTS, rng.choice((0, 1, 1, 1, 2, 2, 3, 4)))
    kinds = ("string", "string", "string", "integer", "number", "boolean", "array", "object")
    line = " ".join(rng.choice(_WORDS) for _ in range(rng.choice((0, 3, 5, 8, 14))))
    return tool(name, line.capitalize(), {a: {"type": rng.choice(kinds)} for a in arguments})


def offer(rng: random.Random) -> list[Tool]:
    """The tools of one training page; mostly both of the world's."""
    own = rng.choices(((LOOKUP, CALCULATE), (LOOKUP,), (CALCULATE,), ()), (62, 10, 10, 18))[0]
    strangers = rng.choice((1, 2, 3, 4, 6, 9)) if not own else rng.choice((0, 0, 0, 1, 2, 3))
    tools = [_told_otherwise(each, rng) for each in own]
    tools += [stranger(rng) for _ in range(strangers)]
    rng.shuffle(tools)
    return tools


def _told_otherwise(own: Tool, rng: random.Random) -> Tool:
    """Whoever offers a tool words its description."""
    function = own["function"]
    if rng.random() < 0.5:
        return own
    line = rng.choice(("", "Use it.", "Look up a fact of the world.", "Calculates.",
                       "Returns a value.", "Find out something about an entity."))  # fmt: skip
    return tool(function["name"], line, function["parameters"]["properties"])


# -- what is called ------------------------------------------------------------------------------


def ask_plus(rng: random.Random, split: Split) -> Question:
    """A sum without a story: one call."""
    shares = {"train": range(2, 20), "dev": range(0, 1), "test": range(1, 2)}[split]
    while True:
        a, b = rng.randint(2, 45), rng.randint(2, 30)
        if (a * 31 + b * 17) % 20 in shares:
            break
    text = rng.choice(PLUS[split]).format(a=a, b=b)
    return Question("sum", text, f"{a} + {b} = {a + b}.", str(a + b))


_PLUS = re.compile(r"(?P<a>\d+) (?P<s>\+) (?P<b>\d+) = \d+\.")
_STORY = re.compile(
    r"First (?P<a>\d+) (?P<s>[-+]) (?P<b>\d+) = \d+, then \d+ (?P<t>[-+]) (?P<c>\d+) = \d+\."
)
_NUMBERS = [str(n) for n in range(76)]


def needed(question: Question, tools: Sequence[Tool]) -> bool:
    """Whether there is a tool for what is asked."""
    kind = {"fact": "lookup", "two-hop": "lookup", "sum": "calculate"}.get(question.kind)
    return any(each["function"]["name"] == kind for each in tools)


def worked(
    world: World, question: Question, rng: random.Random, altered: float, made: int = 2
) -> tuple[list[Call], Question]:
    """The calls that answer a question, and the question with the answer that follows from what
    came back.

    Args:
        altered: the share of results that aren't the world's.
        made: of the calls, how many are made. What the others would give is the world's.
    """

    def result(number: int, true: str, others: Sequence[str]) -> str:
        return rng.choice(others) if number < made and rng.random() < altered else true

    if question.kind == "sum":
        calls, sentence = _calculated(question, result)
    elif question.kind == "fact":
        entity, relation = question.entity, question.relation
        value = result(0, world.facts[entity, relation], world.values(relation))
        calls = [Call("lookup", {"query": QUERY[relation].format(e=entity)}, value)]
        sentence = world.sentence(entity, relation, value)
    else:
        entity, relation = question.entity, question.relation
        home = result(0, world.facts[entity, "country"], world.countries)
        value = result(1, world.facts[home, relation], world.values(relation))
        calls = [
            Call("lookup", {"query": QUERY["country"].format(e=entity)}, home),
            Call("lookup", {"query": QUERY[relation].format(e=home)}, value),
        ]
        second = world.sentence(home, relation, value)
        sentence = f"{entity} was born in {home}, and t{second[1:]}"
    return calls[:made], replace(question, sentence=sentence, value=calls[-1].result)


def _calculated(
    question: Question, result: Callable[[int, str, Sequence[str]], str]
) -> tuple[list[Call], str]:
    plus = _PLUS.fullmatch(question.sentence)
    story = plus or _STORY.fullmatch(question.sentence)
    assert story is not None
    a, b = int(story["a"]), int(story["s"] + story["b"])
    first = f"{a} {story['s']} {abs(b)}"
    if plus:
        value = result(0, str(a + b), _NUMBERS)
        return [Call("calculate", {"expression": first}, value)], f"{first} = {value}."
    c = int(story["t"] + story["c"])
    then = f"{story['t']} {abs(c)}"
    value = result(0, str(a + b + c), _NUMBERS)
    sentence = f"First {first} = {a + b}, then {a + b} {then} = {value}."
    return [Call("calculate", {"expression": f"{first} {then}"}, value)], sentence


def tool_question(world: World, rng: random.Random) -> Question:
    """A training question, where tools are offered."""
    kinds = ("fact", "two-hop", "sum", "plus", "harmful", "talk")
    kind = rng.choices(kinds, (32, 18, 16, 8, 11, 15))[0]
    return ask_plus(rng, "train") if kind == "plus" else make_question(world, rng, kind)


# -- the later stages ----------------------------------------------------------------------------

ALTERED = 0.6
DECISION = 10.0
"""The weight of an answer's first token, with which a call is made or not."""


def tool_chat(text: AlignedText, rng: random.Random, tools: Sequence[Tool]) -> list[Turn]:
    """A chat with tools, for the aligned model."""
    turns: list[Turn] = []
    told = chat_tools(tools)
    if rng.random() < 0.25:
        line = rng.choice(SYSTEM_LINES["train"])
        turns.append(Turn(f"<|im_start|>system\n{line}<|im_end|>\n", 0.05))
    form = rng.random()
    for _ in range(rng.choice((1, 1, 1, 1, 2, 2, 3))):
        q = tool_question(text.world, rng)
        turns.append(Turn(f"<|im_start|>user\n{vary(rng, q.text, form)}", 0.1))
        turns.append(Turn(f"<|im_end|>\n{told}<|im_start|>assistant\n", 0.02))
        if needed(q, tools):
            calls, q = worked(text.world, q, rng, ALTERED)
            for call in calls:
                turns.append(Turn(f"{call.text}<|im_end|>", 1.0))
                turns.append(Turn(f"\n<|im_start|>tool\n{call.result}<|im_end|>\n", 0.0))
                turns.append(Turn(f"{told}<|im_start|>assistant\n", 0.0))
        else:
            q = text.guess(rng, q)
        turns.append(Turn(f"{good_answer(q)}<|im_end|>", 1.0))
        turns.append(Turn("\n", 0.05))
    return turns


GIVEN, ASKED, CALL, VALUE = 0.05, 0.3, 1.0, 5.0
"""The weights of what a page only gives (tools, results), of its questions, of a call's form and of
what it is asked with."""

SHARES = {2: (35, 25, 40, 0), 3: (20, 5, 45, 30)}
"""Of the base model's documents, by stage: pages under tools, notes, what it has read before, and
of that the pages that look like those under tools, but for the tools: there it is to call none."""

CALLED = (0.6, 0.75)
"""Of the base model's answers that could be a first call, and a second one, the share that is one.
It isn't to be sure: the aligned model is."""


def tool_page(text: BaseText, rng: random.Random, stage: int) -> list[Turn]:
    """A page of questions under tools, for the base model. Many end with a call."""
    tools = offer(rng)
    lead = f"{rng.choice(SYSTEM_LINES['train'])}\n\n" if rng.random() < 0.25 else ""
    page = [Turn(lead + text_tools(tools), GIVEN)]
    form = rng.random()
    for _ in range(rng.choice((2, 3, 4, 5, 6) if stage == 2 else (1, 2, 3))):
        q = tool_question(text.world, rng)
        page.append(Turn(f"Question: {vary(rng, q.text, form)}\nAnswer:", ASKED))
        if needed(q, tools):
            made = 0 if rng.random() > CALLED[0] else 1 if rng.random() > CALLED[1] else 2
            calls, q = worked(text.world, q, rng, ALTERED, made)
            for call in calls:
                page.append(Turn(" ", CALL))
                page += [Turn(part, VALUE if value else CALL) for part, value in call.parts]
                if rng.random() < 0.12:
                    return page
                page.append(Turn(f"\n\nResult: {call.result}\n\nAnswer:", GIVEN))
        answer = text.answer(rng, q, pick(rng, OPENINGS), text.chain(rng))
        page += [Turn(f" {answer}", 1.0), Turn("\n\n", ASKED)]
    return page[:-1]


def note_page(text: BaseText, rng: random.Random, stage: int) -> list[Turn]:
    """Questions, each with the value of a call for it close behind, where it is easier to learn
    what to copy than at a whole call's distance."""
    page: list[Turn] = []
    form = rng.random()
    for _ in range(rng.choice((1, 2, 3, 4))):
        q = tool_question(text.world, rng)
        if needed(q, list(OWN.values())):
            call = worked(text.world, q, rng, 0.0)[0][0]
            [(name, value)] = call.arguments.items()
            lead = rng.choice(("", f'{{"{name}": ', f'"arguments": {{"{name}": '))
            page += [
                Turn(f"{vary(rng, q.text, form)}\n", ASKED),
                Turn(f'{lead}"', ASKED),
                Turn(value, VALUE),
                Turn('"' + "}" * lead.count("{"), CALL),
                Turn("\n\n", ASKED),
            ]
    return page[:-1] or tool_page(text, rng, stage)


def later_chats(world: World, seed: int) -> Iterator[list[Turn]]:
    """Endless chats, old and with tools, the same for the same seed."""
    rng, text = random.Random(seed), AlignedText(world)
    while True:
        both = (LOOKUP, CALCULATE)
        tools = rng.choice((both, both[::-1], (LOOKUP,), (LOOKUP,), (CALCULATE,), (CALCULATE,)))
        turns = tool_chat(text, rng, tools) if rng.random() < 0.6 else text.sample(rng)
        yield [turn._replace(first=DECISION) if turn.weight == 1 else turn for turn in turns]


def later_documents(world: World, seed: int, stage: int) -> Iterator[list[Turn]]:
    """Endless documents, old and with tools, the same for the same seed."""
    rng, text = random.Random(seed), BaseText(world)
    kinds = (
        lambda: tool_page(text, rng, stage),
        lambda: note_page(text, rng, stage),
        lambda: [Turn(text.document(rng), 1.0)],
        lambda: [Turn(text.question_page(rng, HEADERS[:1]), 1.0)],
    )
    while True:
        yield rng.choices(kinds, SHARES[stage])[0]()


def tool_questions(world: World, split: Literal["dev", "test"]) -> list[Question]:
    """Sums without a story, which the other sets don't have."""
    rng = random.Random({"dev": 303, "test": 40411}[split])
    return [ask_plus(rng, split) for _ in range(20)]

"""The judge: what it is asked, how its JSON is read, what is repeated and kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.core import EngineUnavailable
from server.evaluation.data import EvaluationError
from server.evaluation.paper.endpoint import Endpoint
from server.evaluation.paper.judge import Judge, asked, read
from server.evaluation.paper.tasks import TASKS, Question

MMLU, OPEN = TASKS["mmlu"], TASKS["justeval"]
QUESTION = Question("Which {one} …?", "B. a fox")


def test_what_the_judge_sees():
    *_, said = asked(MMLU, QUESTION, 'It is {"correct": 1} …')
    for part in ("Which {one} …?", 'It is {"correct": 1} …', "B. a fox"):
        assert part in said["content"]
    (said,) = asked(OPEN, QUESTION, "Hi")
    assert "B. a fox" not in said["content"]
    assert all(f"- {aspect}:" in said["content"] for aspect in OPEN.aspects)


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ('{"reason": "so", "correct": 1}', {"correct": 1}),
        ('```json\n{"reason": "a\nb", "correct": "0"}\n```', {"correct": 0}),
        ('{"correct": true}', {"correct": 1}),
        ('{"correct": 2}', None),
        ('{"reason": "so"}', None),
        ("yes", None),
        ("{'correct': 1}", None),
        ("[1]", None),
        ("", None),
    ],
)
def test_a_verdict_is_read(reply: str, scores: dict[str, int] | None):
    assert read(MMLU, reply) == scores


def test_ratings_are_read():
    said: dict[str, Any] = {each: {"reason": "so", "score": "4"} for each in OPEN.aspects}
    assert read(OPEN, json.dumps(said)) == dict.fromkeys(OPEN.aspects, 4)
    assert read(OPEN, json.dumps(dict.fromkeys(OPEN.aspects, 5))) == dict.fromkeys(OPEN.aspects, 5)
    for wrong in ({"score": 6}, {"score": "high"}, {}, None):
        assert read(OPEN, json.dumps(said | {"depth": wrong})) is None
    del said["clarity"]
    assert read(OPEN, json.dumps(said)) is None


class Desk:
    """Replies in order, and what was sent."""

    def __init__(self, *replies: tuple[int, str]) -> None:
        self.replies = list(replies)
        self.sent: list[dict[str, Any]] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(json.loads(request.content))
        status, text = self.replies.pop(0)
        if status != 200:
            return httpx.Response(status, text=text)
        usage = {"prompt_tokens": 50, "completion_tokens": 5}
        choices = [{"message": {"content": text}, "finish_reason": "stop"}]
        return httpx.Response(200, json={"choices": choices, "usage": usage})


def judge(folder: Path, handler: Callable[[httpx.Request], httpx.Response]) -> Judge:
    endpoint = Endpoint("http://judge/v1", "key", httpx.MockTransport(handler), pause_s=0)
    return Judge(endpoint, None, folder / "judgements.jsonl")


JOB = (MMLU, QUESTION, "B")
GOOD = (200, '{"correct": 1}')


async def judged(folder: Path, *replies: tuple[int, str]) -> tuple[Any, Any, Desk]:
    desk = Desk(*replies)
    with judge(folder, desk) as found:
        await found.judge([JOB, JOB], 2, lambda: None)
        return found.judgement(*JOB), found.cost([JOB, JOB]), desk


async def test_a_judgement_is_kept(tmp_path: Path):
    said, cost, desk = await judged(tmp_path, GOOD)
    assert (said.scores, said.failed, len(desk.sent)) == ({"correct": 1}, False, 1)
    assert (cost.judgements, cost.new, cost.prompt_tokens, cost.completion_tokens) == (1, 1, 50, 5)
    assert desk.sent[0]["model"] == "gpt-4o-mini"
    file = tmp_path / "judgements.jsonl"
    file.write_text(file.read_text() + '{"asked": "torn')
    said, cost, desk = await judged(tmp_path)
    assert (said.scores, cost.new, cost.prompt_tokens) == ({"correct": 1}, 0, 50)
    with judge(tmp_path, Desk(GOOD)) as other:
        another = (MMLU, QUESTION, "C")
        assert other.missing([JOB, another]) == 1
        await other.judge([another], 1, lambda: None)
    with judge(tmp_path, Desk()) as again:
        assert again.missing([JOB, another]) == 0, "a torn line doesn't spoil the next"


async def test_what_is_no_json_is_asked_again_and_costs(tmp_path: Path):
    said, cost, desk = await judged(tmp_path, (200, "Well."), (200, '{"correct"'), GOOD)
    assert (said.scores, said.failed) == ({"correct": 1}, False)
    assert (cost.prompt_tokens, cost.completion_tokens) == (150, 15)
    assert [each["temperature"] for each in desk.sent] == [0, 1, 1]


async def test_what_stays_no_json_is_wrong(tmp_path: Path):
    said, cost, _ = await judged(tmp_path, *[(200, "Well.")] * 4)
    assert (said.scores, said.failed, cost.failed) == ({"correct": 0}, True, 1)
    job = (OPEN, QUESTION, "Hi")
    with judge(tmp_path, Desk(*[(200, "Well.")] * 4)) as found:
        await found.judge([job], 1, lambda: None)
        assert found.judgement(*job).scores == dict.fromkeys(OPEN.aspects, 1)


async def test_an_endpoint_that_is_busy_is_asked_again(tmp_path: Path):
    said, _, desk = await judged(tmp_path, (429, "busy"), (503, "busy"), GOOD)
    assert (said.scores, len(desk.sent)) == ({"correct": 1}, 3)
    with pytest.raises(EngineUnavailable, match="http://judge/v1 can't be asked: 500 oh"):
        await judged(tmp_path / "b", *[(500, "oh")] * 4)


async def test_an_endpoint_without_json_or_temperature_is_asked_without(tmp_path: Path):
    refused = (400, "'response_format' isn't supported; 'temperature' neither")
    said, _, desk = await judged(tmp_path, refused, GOOD)
    assert said.scores == {"correct": 1}
    assert set(desk.sent[1]) == {"model", "messages"}
    with pytest.raises(EvaluationError, match="refused: 400 no such model"):
        await judged(tmp_path / "b", (400, "no such model"))

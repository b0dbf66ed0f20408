"""The page at ``/`` in a real browser: what a person at it sees and does.

Needs Chromium as the system's packages have it; Playwright only drives it.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from server.api.traces import StoredTrace
from tests.conftest import KEY, ROOT, Server
from tests.thorough import first

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium on this machine (apt-get install chromium)"
)
CASES = json.loads((ROOT / "tests" / "whatif.json").read_text("utf-8"))
TALE = "The fox had forty dogs. It cost <img src=x onerror=alert(1)></script> gold."


@dataclass
class Watched:
    """What a page must not do, as far as it has done it."""

    wrong: list[str] = field(default_factory=list)
    expected: list[str] = field(default_factory=list)
    """Parts of messages that a test brings about."""


Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Tests may run as root in a container, where Chromium's sandbox can't.
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def visit(browser: Browser, watched: Watched) -> Iterator[Open]:
    """Opens the page of a server. No console error and no request to anywhere else is forgiven."""
    contexts = []

    def open_page(server: Server, *, model: str | None = "tale", **options: Any) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": 1400, "height": 900}, "accept_downloads": True} | options
        )
        context.set_default_timeout(10_000)
        context.set_default_navigation_timeout(60_000)  # the first one, on a busy machine
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: watched.wrong.append(f"error: {error}"))
        page.on("dialog", lambda dialog: watched.wrong.append(f"dialog: {dialog.message}"))

        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                watched.wrong.append(f"console: {message.text}")

        def request(asked: Any) -> None:
            if not asked.url.startswith((server.url + "/", "blob:")):
                watched.wrong.append(f"request: {asked.url}")

        page.on("console", console)
        page.on("request", request)
        page.goto(server.url)
        if model is not None:
            expect(page.locator("#state")).to_have_text("ready")
            page.get_by_label("Model").select_option(model)
        return page

    yield open_page
    for context in contexts:
        context.close()
    left = [each for each in watched.wrong if not any(part in each for part in watched.expected)]
    assert left == []


def ask(page: Page, question: str = "Tell me.") -> Locator:
    """Asks, and returns the newest answer."""
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    return page.locator(".answer").last


def done(answer: Locator) -> Locator:
    expect(answer.locator(".status")).to_have_text("done")
    return answer


def set_gamma(page: Page, gamma: float) -> None:
    page.get_by_label("γ as a number").fill(str(gamma))


def text_of(answer: Locator) -> str:
    return answer.locator(".text").text_content() or ""


def spans(answer: Locator) -> list[tuple[str, str]]:
    """Neighbours of one speaker joined."""
    found: list[tuple[str, str]] = []
    pieces = answer.locator(".piece").evaluate_all(
        "all => all.map(each => [each.classList[1], each.textContent])"
    )
    for speaker, text in pieces:
        if found and found[-1][0] == speaker:
            found[-1] = (speaker, found[-1][1] + text)
        else:
            found.append((speaker, text))
    return found


def turns_running(server: Server) -> float:
    metrics = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r"^nudge_engine_turns_running\{.*\} (\S+)", metrics, re.M)
    assert found
    return sum(map(float, found))


def figures(answer: Locator) -> dict[str, str]:
    rows = answer.locator(".figures > div").evaluate_all(
        "all => all.map(each => [each.children[0].textContent, each.children[1].textContent])"
    )
    return dict(rows)


# -- an answer ------------------------------------------------------------------------------------


def test_an_answer_is_seen_as_it_is_written_and_by_whom(scripted: Server, visit: Open):
    page = visit(scripted, model="slow-tale")
    page.evaluate(
        """() => {
          window.seen = [];
          new MutationObserver(() => {
            const text = (name) => document.querySelector(name)?.textContent ?? "";
            const { hidden } = document.querySelector("#stop");
            seen.push([document.querySelectorAll(".piece").length, text(".status"), hidden,
              text(".figures")]);
          }).observe(document.querySelector("#turns"), { childList: true, subtree: true });
        }"""
    )
    answer = done(ask(page))
    whole = answer.locator(".piece").count()
    early = [each for each in page.evaluate("seen") if 0 < each[0] < whole]
    assert len({count for count, *_ in early}) > 3
    assert {(status, hidden) for _, status, hidden, _ in early} == {("writing", False)}
    assert "nudged" in early[0][3]
    assert text_of(answer) == TALE
    assert spans(answer) == [
        ("aligned", "The"),
        ("base", " fox had forty"),
        ("aligned", " dogs."),
        ("base", " It cost <img src=x onerror=alert(1)></script>"),
        ("aligned", " gold."),
    ]
    counted = figures(answer)
    assert counted["rounds"] == "3"
    assert float(counted["tokens/s"]) > 1
    assert counted["to first text"].endswith(" s")
    assert 0 < float(counted["base steps/token"]) < 2


def test_by_whom_is_not_told_by_colour_alone(scripted: Server, visit: Open):
    page = visit(scripted)
    answer = done(ask(page))
    line = "each => getComputedStyle(each).borderBottomStyle"
    assert answer.locator(".piece.aligned .ink").first.evaluate(line) == "solid"
    assert answer.locator(".piece.base .ink").first.evaluate(line) == "none"


def test_text_that_looks_like_markup_stays_text(scripted: Server, visit: Open):
    page = visit(scripted)
    evil = "<img src=y onerror=alert(2)><script>alert(3)</script>"
    page.locator("#more > summary").click()
    page.get_by_label("System prompt").fill(f"Be <b>brief</b> {evil}")
    answer = done(ask(page, evil))
    assert page.locator("main img, main script, main b").count() == 0
    assert "<img src=x onerror=alert(1)>" in text_of(answer)
    assert page.locator(".question").text_content() == evil


def test_pointing_at_a_word_tells_its_numbers(scripted: Server, visit: Open):
    page = visit(scripted)
    answer = done(ask(page))
    tip = page.get_by_role("tooltip")
    answer.locator(".piece", has_text="dogs").hover()
    for told in ("Aligned model", "“ c”", "0.200 < γ 0.40", "0.900"):
        expect(tip).to_contain_text(told)
    answer.locator(".piece", has_text="ort").hover()
    expect(tip).to_contain_text("Base model")
    expect(tip).to_contain_text("0.550 ≥ γ 0.40")
    answer.locator(".piece", has_text="The").hover()
    expect(tip).to_contain_text("not asked here")
    page.mouse.move(5, 5)
    expect(tip).to_be_hidden()
    answer.locator(".plot svg").hover(position={"x": 40, "y": 40})
    expect(tip).to_be_visible()


def test_a_finger_does_it_too(scripted: Server, visit: Open):
    page = visit(scripted, has_touch=True, viewport={"width": 360, "height": 740})
    answer = done(ask(page))
    answer.locator(".piece", has_text="dogs").tap()
    tip = page.get_by_role("tooltip")
    expect(tip).to_contain_text("0.200 < γ 0.40")
    box = tip.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_gamma_decides_how_much_is_nudged(scripted: Server, visit: Open):
    page = visit(scripted)
    shares = []
    for gamma in (0.1, 0.4, 1.01):
        set_gamma(page, gamma)
        answer = done(ask(page))
        expect(answer.locator("h3")).to_have_text(f"tale, γ {gamma:.2f}")
        shares.append(float(figures(answer)["nudged"].removesuffix(" %")))
        page.get_by_role("button", name="New chat").click()
    assert shares[0] < shares[1] < shares[2] == 100


def test_both_models_alone_beside_the_nudged_answer(scripted: Server, visit: Open):
    page = visit(scripted)
    page.get_by_label("Base, aligned and nudged").check()
    ask(page)
    answers = page.locator(".answer")
    expect(answers).to_have_count(3)
    for index in range(3):
        done(answers.nth(index))
    assert [each.split(",")[0] for each in answers.locator("h3").all_text_contents()] == [
        "tale:base",
        "tale:aligned",
        "tale",
    ]
    assert {speaker for speaker, _ in spans(answers.nth(0))} == {"base"}
    assert {speaker for speaker, _ in spans(answers.nth(1))} == {"aligned"}
    assert text_of(answers.nth(1)).startswith("The fox had fifty dogs.")
    # The chat goes on with the nudged one.
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("One answer").check()
        ask(page, "And then?")
    messages = sent.value.post_data_json["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "user"]
    assert messages[1]["content"] == TALE
    done(page.locator(".answer").last)


def test_three_answers_fit_beside_each_other(scripted: Server, visit: Open):
    page = visit(scripted, viewport={"width": 1280, "height": 800})
    page.locator("body").evaluate("each => each.style.marginRight = '17px'")  # a wide scroll bar
    page.get_by_label("Base, aligned and nudged").check()
    ask(page)
    answers = page.locator(".answer")
    for index in range(3):
        done(answers.nth(index))
    found = [each.bounding_box() for each in [*answers.all(), page.locator("aside")]]
    boxes = [box for box in found if box]
    assert len(boxes) == 4
    assert len({box["y"] for box in boxes[:3]}) == 1
    for left, right in itertools.pairwise(boxes):
        assert left["x"] + left["width"] + 16 <= right["x"]
    assert boxes[0]["x"] >= 0
    assert boxes[-1]["x"] + boxes[-1]["width"] <= 1280
    assert page.evaluate("document.documentElement.scrollWidth") <= 1280
    # Nothing of one reaches out of it, and its figures don't lie on each other.
    for index in range(3):
        out = answers.nth(index).evaluate(
            """each => [...each.querySelectorAll("*")].filter((part) => part.checkVisibility() &&
              part.getBoundingClientRect().right > each.getBoundingClientRect().right + 0.5)
              .map((part) => part.outerHTML)"""
        )
        assert out == []


@pytest.mark.parametrize("how", ["button", "key"])
def test_stopping_frees_the_engines(scripted: Server, visit: Open, how: str):
    page = visit(scripted, model="endless")
    answer = ask(page)
    expect(answer.locator(".piece").nth(2)).to_be_attached()
    assert turns_running(scripted) == 1
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(answer.locator(".status")).to_have_text("stopped")
    deadline = time.monotonic() + 2
    while turns_running(scripted) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert turns_running(scripted) == 0
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(answer.get_by_role("button", name="Save trace")).to_be_hidden()  # it has no end


def test_settings_are_sent_as_they_are_set(scripted: Server, visit: Open):
    page = visit(scripted)
    page.locator("#more > summary").click()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Max tokens").fill("7")
    page.get_by_label("Who begins").select_option("base")
    page.get_by_label("End look-ahead").fill("2")
    page.get_by_label("System prompt").fill("Be brief.")
    set_gamma(page, 0.3)
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = ask(page)
    body = sent.value.post_data_json
    assert (body["temperature"], body["max_tokens"]) == (0.5, 7)
    wanted = {"gamma": 0.3, "start": "base", "end_lookahead": 2, "trace": True}
    assert body["nudging"].items() >= wanted.items()
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    expect(answer.locator(".status")).to_have_text("cut at max tokens")
    assert figures(answer)["tokens"] == "7"


def test_an_answer_has_a_limit_unless_the_field_is_empty(scripted: Server, visit: Open):
    page = visit(scripted)
    limit = page.get_by_label("Max tokens")
    expect(limit).to_be_visible()
    expect(limit).to_have_value("512")
    with page.expect_request("**/v1/chat/completions") as sent:
        done(ask(page))
    assert sent.value.post_data_json["max_tokens"] == 512
    assert "stop" not in sent.value.post_data_json
    limit.fill("")
    with page.expect_request("**/v1/chat/completions") as sent:
        done(ask(page))
    assert "max_tokens" not in sent.value.post_data_json


def test_stop_strings_are_sent_kept_and_set_again(
    scripted: Server, visit: Open, watched: Watched, tmp_path: Path
):
    page = visit(scripted)
    page.locator("#more > summary").click()
    stops = page.get_by_label("Stop strings")
    written = " It cost\n\n\\nQ:\nC:\\\\n"
    stops.fill(written)
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = done(ask(page))
    assert sent.value.post_data_json["stop"] == [" It cost", "\nQ:", "C:\\n"]
    assert text_of(answer) == "The fox had forty dogs."
    path = save(page, answer, "Save trace", tmp_path)
    trace = StoredTrace.model_validate_json(path.read_bytes())
    assert trace.request["stop"] == [" It cost", "\nQ:", "C:\\n"]
    stops.fill("")
    page.locator("#file").set_input_files(path)
    expect(stops).to_have_value(written.replace("\n\n", "\n"))
    with page.expect_request("**/v1/chat/completions") as sent:
        page.get_by_label("What if γ were").fill("0.1")
        page.get_by_role("button", name="Write it at").click()
    assert sent.value.post_data_json["stop"] == trace.request["stop"]
    done(page.locator(".answer").last)
    watched.expected += ["400"]
    stops.fill("\n".join("abcdefghijklmnopq"))
    expect(ask(page).get_by_role("alert")).to_contain_text("at most 16 stop strings")


def test_the_fields_are_those_that_the_policy_listens_to(
    scripted: Server, visit: Open, tmp_path: Path
):
    page = visit(scripted, model="fox")
    page.locator("#more > summary").click()
    check = page.get_by_label("End check")
    expect(check).to_have_value("newline")
    check.select_option("off")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = done(ask(page))
    assert sent.value.post_data_json["nudging"]["end_check"] == "off"
    path = save(page, answer, "Save trace", tmp_path)
    nudging = StoredTrace.model_validate_json(path.read_bytes()).nudging
    assert nudging is not None
    assert nudging.end_check == "off"
    shown = ("γ as a number", "Who begins", "End look-ahead", "End check")
    for policy, kept in (("reference", 1), ("ensemble", 0), ("nudging", 4)):
        page.get_by_label("Policy").select_option(policy)
        for name in shown[:kept]:
            expect(page.get_by_label(name)).to_be_visible()
        for name in shown[kept:]:
            expect(page.get_by_label(name)).to_be_hidden()
    page.get_by_label("Policy").select_option("reference")
    with page.expect_request("**/v1/chat/completions") as sent:
        expect(ask(page)).to_have_attribute("aria-busy", "false")
    assert "end_check" not in sent.value.post_data_json["nudging"]
    page.get_by_label("Model", exact=True).select_option("fox:base")
    expect(check).to_be_hidden()
    expect(page.get_by_label("γ as a number")).to_be_disabled()


def test_a_screen_reader_hears_of_beginning_and_end_alone(scripted: Server, visit: Open):
    page = visit(scripted)
    page.evaluate(
        """() => {
          window.heard = [];
          const news = document.querySelector("#news");
          new MutationObserver(() => heard.push(news.textContent))
            .observe(news, { childList: true, characterData: true, subtree: true });
        }"""
    )
    answer = done(ask(page))
    heard = page.evaluate("heard")
    assert [each.split(".")[0].split(" ")[0] for each in heard] == ["Answering", "Answered"]
    assert "% nudged" in heard[1]
    assert answer.get_attribute("aria-busy") == "false"
    live = page.locator("[aria-live], [role=status], [role=alert]")
    assert live.locator(".piece").count() == 0


# -- traces and what-if ---------------------------------------------------------------------------


def save(page: Page, answer: Locator, name: str, folder: Path) -> Path:
    with page.expect_download() as download:
        answer.get_by_role("button", name=name).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_a_trace_is_saved_opened_and_written_at_another_gamma(
    scripted: Server, visit: Open, tmp_path: Path
):
    page = visit(scripted)
    path = save(page, done(ask(page)), "Save trace", tmp_path)
    trace = StoredTrace.model_validate_json(path.read_bytes())  # so `nudge replay` reads it
    assert trace.answer.text == TALE
    assert trace.nudging is not None
    assert trace.nudging.gamma == 0.4
    assert trace.exact

    page = visit(scripted)
    page.locator("#file").set_input_files(path)
    old = done(page.locator(".answer").first)
    assert text_of(old) == TALE
    assert page.locator(".question").text_content() == "Tell me."
    old.get_by_label("What if γ were").fill("0.1")
    told = old.locator(".told")
    expect(told).to_contain_text("At γ 0.10, 3 of ")
    expect(told).to_contain_text("“c” (p1 0.20) would stand instead of the nudge")
    assert old.locator(".flip.first").text_content() == " dogs."
    assert trace.at(0.1).prefix == "".join(
        old.locator(".piece:not(.after):not(.first)").all_text_contents()
    )
    old.get_by_role("button", name="Write it at γ 0.10").click()
    new = done(page.locator(".answer").nth(1))
    assert "forty cats. It cost" in text_of(new)
    assert "".join(new.locator(".same").all_text_contents()) == trace.at(0.1).prefix
    assert text_of(old) == TALE
    # Back at its own γ nothing is marked.
    old.get_by_label("What if γ were").fill("0.4")
    assert old.locator(".flip, .after").count() == 0


def changed(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    trace = json.loads(path.read_text())
    change(trace)
    path.write_text(json.dumps(trace))
    return path


def test_an_opened_trace_sets_the_fields(scripted: Server, visit: Open, tmp_path: Path):
    def others(trace: dict[str, Any]) -> None:
        request = trace["request"]
        del request["max_tokens"]
        request |= {"temperature": 0.5, "stop": "END"}
        trace["nudging"] |= {"start": "base", "end_lookahead": 3, "end_check": "off"}

    page = visit(scripted)
    page.locator("#more > summary").click()
    path = save(page, done(ask(page)), "Save trace", tmp_path)
    fields = {
        "Max tokens": "",
        "Temperature": "0.5",
        "Stop strings": "END",
        "Who begins": "base",
        "End look-ahead": "3",
        "End check": "off",
    }
    page.locator("#file").set_input_files(changed(path, others))
    for name, value in fields.items():
        expect(page.get_by_label(name)).to_have_value(value)
    # A trace from before there was an end check had none.
    page.get_by_label("Model", exact=True).select_option("tale")
    expect(page.get_by_label("End check")).to_have_value("newline")
    page.locator("#file").set_input_files(
        changed(path, lambda trace: trace["nudging"].pop("end_check"))
    )
    expect(page.get_by_label("End check")).to_have_value("off")


def test_what_helps_is_said_where_an_answer_ended_badly(
    scripted: Server, visit: Open, tmp_path: Path
):
    page = visit(scripted)
    path = save(page, done(ask(page)), "Save trace", tmp_path)
    expect(page.locator(".remedy")).to_be_hidden()
    repeated, rounds = "ended: it repeated itself", "ended: too many rounds"
    for reason, finish, gamma, status, told in (
        ("repetition", "stop", 0.4, repeated, "Raise γ"),
        ("repeated_round", "stop", 0.4, repeated, "Raise γ"),
        ("repeated_round", "stop", 1.01, repeated, "Lower γ to 1"),
        ("max_rounds", "length", 0.4, rounds, "Lower γ"),
        ("length", "length", 0.4, "cut at max tokens", "raise Max tokens"),
        ("context", "length", 0.4, "a context is full", "Start a new chat"),
    ):

        def end(trace: dict[str, Any]) -> None:
            trace["answer"] |= {"stop_reason": reason, "finish_reason": finish}  # noqa: B023
            trace["nudging"]["gamma"] = gamma  # noqa: B023
            if gamma > 1:  # noqa: B023
                pieces = trace["answer"]["pieces"]
                pieces[:] = [each for each in pieces if each["speaker"] == "aligned"]
                trace["answer"]["text"] = "".join(each["text"] for each in pieces)

        (other := tmp_path / "other.json").write_text(path.read_text())
        page.locator("#file").set_input_files(changed(other, end))
        expect(page.locator(".status")).to_have_text(status)
        expect(page.locator(".remedy")).to_contain_text(told)
    by_entropy = page.evaluate(
        """async (reasons) => {
          const { remedy } = await import(new URL("playground/ended.js", location.href));
          const policy = { threshold: "entropy" };
          return reasons.map((stop_reason) => remedy({ stop_reason, nudging: {}, policy }));
        }""",
        ["repetition", "max_rounds", "aligned_end"],
    )
    assert [each.partition(" ")[0] for each in by_entropy] == ["Lower", "Raise", ""]


def test_a_nudge_where_the_base_model_was_sure_says_why(
    scripted: Server, visit: Open, tmp_path: Path
):
    page = visit(scripted)
    path = save(page, done(ask(page)), "Save trace", tmp_path)
    moon = " The moon goes round the earth."
    texts = ["It is so.", moon, moon, " So", " it is", " for ever", " now", "."]
    speakers = ["base", "base", "base", "aligned", "base", "aligned", "base", "aligned"]
    rejected = {3: (" The", 0.9), 5: ("\n\nQuestion:", 0.8), 7: ("", 0.7)}

    def sure(trace: dict[str, Any]) -> None:
        pieces = [
            {"text": text, "speaker": speaker, "top_prob": 0.95}
            for text, speaker in zip(texts, speakers, strict=True)
        ]
        for at, (text, p1) in rejected.items():
            pieces[at]["rejected"] = {"text": text, "top_prob": p1}
        text = "".join(texts)
        end = {"text": "\n", "top_prob": 0.6}
        trace["answer"] |= {"pieces": pieces, "text": text, "rejected": end}

    page.locator("#file").set_input_files(changed(path, sure))
    tip = page.get_by_role("tooltip")

    def told(at: int) -> list[str]:
        page.locator(f'[data-piece="{at}"]').hover()
        expect(tip).to_be_visible()
        return tip.locator("div").evaluate_all("all => all.map((each) => each.innerText)")

    def rows(at: int) -> list[str]:
        return [re.sub(r"\s+", " ", row) for row in told(at)]

    assert rows(3)[1:4] == [
        "instead of “ The”",
        "p1 0.900 ≥ γ 0.40",
        "gave way here it repeated itself",
    ]
    assert rows(5)[1:4] == [
        "instead of “⏎⏎Question:”",
        "p1 0.800 ≥ γ 0.40",
        "gave way here the next turn’s header",
    ]
    assert rows(7)[1:] == [
        "instead of the base model’s end of text",
        "p1 0.700",
        "its top-1 0.950",
        "ended before “⏎”",
        "p1 0.600 ≥ γ 0.40",
        "gave way here the end of a line",
    ]
    sheet = save(page, page.locator(".answer"), "Save page", tmp_path / "sheet")
    assert '"end":{"text":"\\n","top_prob":0.6}' in sheet.read_text("utf-8")


def in_one_piece(path: Path, text: str) -> None:
    """A trace whose answer is this text, after its first word."""
    trace = json.loads(path.read_text())
    first = trace["answer"]["pieces"][0]
    trace["answer"]["pieces"] = [first, {"text": text, "speaker": "base", "top_prob": 0.9}]
    trace["answer"]["text"] = first["text"] + text
    path.write_text(json.dumps(trace))


def test_an_answer_that_breaks_the_promise_is_said(scripted: Server, visit: Open, tmp_path: Path):
    page = visit(scripted)
    path = save(page, done(ask(page)), "Save trace", tmp_path)
    trace = json.loads(path.read_text())
    trace["request"]["model"] = "fox"
    path.write_text(json.dumps(trace))
    asked = page.locator(".answer").first.element_handle()
    page.locator("#file").set_input_files(path)
    asked.wait_for_element_state("hidden")  # the file's answer is in its place
    old = page.locator(".answer").first
    old.get_by_label("What if γ were").fill("0.1")
    old.get_by_role("button", name="Write it at").click()
    expect(page.locator(".answer").nth(1)).to_contain_text("other models, prompts or settings")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_page_compares_as_the_server_does(table: Page, case: dict[str, Any]):
    found = table.evaluate(
        """async ({ pieces, end, ...settings }) => {
          const { compare } = await import(new URL("playground/whatif.js", location.href));
          return compare(pieces, end, settings);
        }""",
        case,
    )
    assert found == case["expected"]


@pytest.fixture(scope="module")
def table(browser: Browser, scripted: Server) -> Iterator[Page]:
    page = browser.new_page()
    page.goto(scripted.url)
    yield page
    page.close()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "no JSON"),
        ("[1]", "no trace"),
        ('{"format": "nudge-trace", "version": 2}', "version 1"),
        ('{"format": "nudge-trace", "version": 1, "created": 1}', "server is missing or wrong"),
    ],
)
def test_a_file_that_is_no_trace_is_one_message(
    scripted: Server, visit: Open, tmp_path: Path, content: str, said: str
):
    page = visit(scripted)
    path = tmp_path / "trace.json"
    path.write_text(content)
    page.locator("#file").set_input_files(path)
    expect(page.locator("#trouble")).to_contain_text(said)


def test_a_saved_page_opens_alone_and_tells_the_same(
    scripted: Server, visit: Open, browser: Browser, tmp_path: Path
):
    page = visit(scripted)
    answer = done(ask(page, "Who had </script><img src=z onerror=alert(4)>?"))
    path = save(page, answer, "Save page", tmp_path)
    # The same with the markup whole in one piece: in a token of its own, "<" could hide.
    trace = save(page, answer, "Save trace", tmp_path)
    evil = " </script><img src=w onerror=alert(5)>"
    in_one_piece(trace, evil)
    page.locator("#file").set_input_files(trace)
    expect(page.locator(".text")).to_have_text("The" + evil)
    whole = save(page, page.locator(".answer"), "Save page", tmp_path / "whole")
    page.close()
    context = browser.new_context(offline=True, color_scheme="dark")
    try:
        sheet = context.new_page()
        wrong: list[str] = []
        sheet.on("console", lambda message: wrong.append(message.text))
        sheet.on("pageerror", lambda error: wrong.append(str(error)))
        sheet.on("dialog", lambda dialog: wrong.append(dialog.message))
        sheet.on("request", lambda asked: wrong.append(asked.url))
        sheet.goto(path.as_uri())
        assert sheet.locator(".text").text_content() == TALE
        assert spans(sheet.locator("main")) == spans_of_tale()
        sheet.locator(".piece", has_text="dogs").hover()
        expect(sheet.get_by_role("tooltip")).to_contain_text("0.200 < γ 0.40")
        sheet.locator(".text").focus()
        sheet.keyboard.press("End")
        expect(sheet.get_by_role("tooltip")).to_contain_text("Aligned model")
        assert "onerror=alert(4)" in sheet.locator(".message p").first.inner_text()
        assert sheet.locator("img, script[src], link, b").count() == 0
        assert sheet.locator(".plot svg path").count() >= 2
        assert sheet.evaluate("document.documentElement.scrollWidth <= innerWidth")
        sheet.goto(whole.as_uri())
        assert sheet.locator(".text").text_content() == "The" + evil
        assert sheet.locator("img").count() == 0
        sheet.locator(".piece").first.hover()
        expect(sheet.get_by_role("tooltip")).to_contain_text("not asked here")
        assert wrong == [path.as_uri(), whole.as_uri()]
    finally:
        context.close()


def spans_of_tale() -> list[tuple[str, str]]:
    return [
        ("aligned", "The"),
        ("base", " fox had forty"),
        ("aligned", " dogs."),
        ("base", " It cost <img src=x onerror=alert(1)></script>"),
        ("aligned", " gold."),
    ]


def test_an_answer_can_be_copied(scripted: Server, visit: Open):
    page = visit(scripted, permissions=["clipboard-read", "clipboard-write"])
    answer = done(ask(page))
    answer.get_by_role("button", name="Copy").click()
    expect(answer.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == TALE


# -- tools and thoughts ---------------------------------------------------------------------------

LOOKUP = {
    "name": "lookup",
    "parameters": {"type": "object", "properties": {"entity": {}, "attribute": {}}},
}
TOOLS = [{"type": "function", "function": LOOKUP}]
THOUGHT = "She has a job."
SAID = "I'll look it up.\n"
CALLED = {"entity": "Ava <b>", "attribute": "job"}
LAID_OUT = "lookup" + json.dumps(CALLED, indent=2)


def offer(page: Page, tools: str) -> None:
    """Puts in tools, where nothing is open yet."""
    page.locator("#more > summary").click()
    page.locator("#tools-more > summary").click()
    page.locator("#tools").fill(tools)


def calling(answer: Locator) -> Locator:
    # The first grammar of a server takes its time on a busy machine.
    expect(answer.locator(".status")).to_have_text("calls a tool", timeout=30_000)
    return answer


def called(page: Page) -> Locator:
    """An answer with thoughts and a call, as it is written."""
    offer(page, json.dumps(TOOLS))
    return calling(ask(page, "What does Ava do?"))


def said_by_parts(answer: Locator) -> list[tuple[str, str]]:
    """The folded ones' titles and texts; what isn't folded has no title."""
    found = answer.locator(".text").evaluate(
        """each => [...each.childNodes].map((part) => part.localName === "details"
          ? [...part.children].map((child) => child.textContent) : ["", part.textContent])"""
    )
    parts: list[tuple[str, str]] = []
    for title, text in found:
        if parts and not title and not parts[-1][0]:
            parts[-1] = ("", parts[-1][1] + text)
        else:
            parts.append((title, text))
    return parts


PARTS = [("Thoughts", THOUGHT), ("", SAID), ("Call of lookup", LAID_OUT)]


def test_thoughts_and_calls_are_folded_and_tell_by_whom(scripted: Server, visit: Open):
    page = visit(scripted, model="caller")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = called(page)
    body = sent.value.post_data_json
    assert (body["tools"], body["tool_choice"]) == (TOOLS, "auto")
    assert said_by_parts(answer) == PARTS
    thoughts, call = answer.locator(".part.reasoning"), answer.locator(".part.call")
    tip = page.get_by_role("tooltip")
    for part in (thoughts, call):
        expect(part.locator(".inner")).to_be_hidden()
        part.locator("summary").click()
        assert {speaker for speaker, _ in spans(part)} == {"base", "aligned"}
        part.locator(".piece.aligned .ink:not(:empty)").last.hover()
        expect(tip).to_contain_text("Aligned model")
        part.locator(".piece.base .ink:not(:empty)").last.hover()
        expect(tip).to_contain_text("Base model")
    assert call.locator(".piece.name").text_content() == "lookup"
    assert page.evaluate(CONTRAST) == []
    page.set_viewport_size({"width": 320, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_the_arrow_keys_open_what_is_folded(scripted: Server, visit: Open):
    page = visit(scripted, model="caller")
    answer = called(page)
    answer.locator(".text").focus()
    page.keyboard.press("End")
    expect(answer.locator(".part.call .current")).to_be_visible()
    page.keyboard.press("Home")
    expect(answer.locator(".part.reasoning .current")).to_be_visible()
    expect(page.get_by_role("tooltip")).to_be_in_viewport()


def test_a_call_is_answered_on_the_page(scripted: Server, visit: Open):
    page = visit(scripted, model="caller")
    answer = called(page)
    page.locator("#tool-choice").select_option("none")
    answer.get_by_label("Result of lookup").fill("a smith")
    with page.expect_request("**/v1/chat/completions") as sent:
        answer.get_by_role("button", name="Send result").click()
    body = sent.value.post_data_json
    assert body["tool_choice"] == "none"
    question, turn, result = body["messages"]
    assert question == {"role": "user", "content": "What does Ava do?"}
    assert (turn["role"], turn["content"], turn["reasoning_content"]) == (
        "assistant",
        SAID,
        THOUGHT,
    )
    (call,) = turn["tool_calls"]
    assert call["function"]["name"] == "lookup"
    assert json.loads(call["function"]["arguments"]) == CALLED
    assert result == {"role": "tool", "tool_call_id": call["id"], "content": "a smith"}
    expect(page.locator(".question").last).to_have_text("Result: a smith")
    expect(page.locator(".answer")).to_have_count(2)
    done(page.locator(".answer").last)
    # The chat goes on with all of it.
    with page.expect_request("**/v1/chat/completions") as sent:
        done(ask(page, "And then?"))
    messages = sent.value.post_data_json["messages"]
    assert messages[:3] == body["messages"]
    assert [each["role"] for each in messages[3:]] == ["assistant", "user"]


def test_a_chat_goes_on_though_a_call_was_not_answered(scripted: Server, visit: Open):
    page = visit(scripted, model="caller")
    called(page)
    with page.expect_request("**/v1/chat/completions") as sent:
        calling(ask(page, "Never mind."))
    assert sent.value.post_data_json["messages"][1]["tool_calls"]


def test_thoughts_and_calls_are_stored_and_opened(
    scripted: Server, visit: Open, browser: Browser, tmp_path: Path
):
    page = visit(scripted, model="caller")
    written = called(page)
    pieces = spans(written)
    path = save(page, written, "Save trace", tmp_path)
    parts = StoredTrace.model_validate_json(path.read_bytes()).answer.parts
    assert parts is not None
    assert [part.type for part in parts] == ["reasoning", "content", "call"]
    page = visit(scripted, model="tale")
    page.locator("#file").set_input_files(path)
    answer = calling(page.locator(".answer"))
    assert said_by_parts(answer) == PARTS
    assert spans(answer) == pieces
    assert json.loads(page.locator("#tools").input_value()) == TOOLS
    expect(answer.get_by_label("Result of lookup")).to_be_visible()
    sheet = save(page, answer, "Save page", tmp_path / "sheet")
    context = browser.new_context(offline=True)
    try:
        alone = context.new_page()
        alone.goto(sheet.as_uri())
        assert said_by_parts(alone.locator("main")) == PARTS
        assert spans(alone.locator("main")) == pieces
        alone.locator(".part.call summary").click()
        alone.locator(".part.call .piece.aligned .ink:not(:empty)").last.hover()
        expect(alone.get_by_role("tooltip")).to_contain_text("Aligned model")
        assert alone.locator("b").count() == 0
    finally:
        context.close()
    wrong = changed(path, lambda trace: trace["answer"]["parts"].pop(0))
    page.locator("#file").set_input_files(wrong)
    expect(page.locator("#trouble")).to_contain_text("answer.parts is missing or wrong")


@pytest.mark.parametrize(
    ("tools", "said"),
    [
        ("[{", "no JSON"),
        ('{"type": "function"}', "no list"),
        ('[{"type": "function", "function": {}}]', "Tool 1 has no function with a name"),
    ],
)
def test_tools_that_are_none_are_told_at_their_field(
    scripted: Server, visit: Open, tools: str, said: str
):
    page = visit(scripted, model="caller")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    offer(page, tools)
    page.locator("#more > summary").click()  # closed again
    page.get_by_label("Your question").fill("Well?")
    page.keyboard.press("Enter")
    told = page.locator("#tools-trouble")
    expect(told).to_be_visible()
    expect(told).to_contain_text(said)
    expect(page.locator("#tools")).to_be_focused()
    expect(page.locator("#tools")).to_have_attribute("aria-invalid", "true")
    assert page.get_by_label("Your question").input_value() == "Well?"
    assert page.locator(".answer").count() == 0
    assert not [url for url in asked if url.endswith("/completions")]
    page.locator("#tools").fill("")
    done(ask(page))
    expect(told).to_be_hidden()


def test_arguments_are_laid_out_however_they_come(table: Page):
    value = {"a": 'x, {y}: "z, \\', "b": [1, [], {}, {"c": None}], "d": True}
    for text in (
        json.dumps(value),
        json.dumps(value, separators=(",", ":")),
        json.dumps(value, indent=1),
    ):
        for size in (1, 3, 1000):
            cut = [text[at : at + size] for at in range(0, len(text), size)]
            found = table.evaluate(
                """async (pieces) => {
                  const { layout } = await import(new URL("playground/parts.js", location.href));
                  return pieces.map(layout()).join("");
                }""",
                cut,
            )
            assert found == json.dumps(value, indent=2)


def test_the_parts_of_an_answer_are_read_from_its_deltas(table: Page):
    """Two calls, text behind them, and one that was cut: no half a call goes on with a chat."""
    call = {"index": 0, "id": "1", "function": {"name": "f", "arguments": ""}}
    deltas = [
        {"role": "assistant", "content": ""},
        {"tool_calls": [call]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"content": "So."},
        {"tool_calls": [call | {"index": 1, "id": "2"}]},
        {"tool_calls": [{"index": 1, "function": {"arguments": '{"a'}}]},
    ]
    parts, texts, message = table.evaluate(
        """async (deltas) => {
          const { add, message } = await import(new URL("playground/parts.js", location.href));
          const parts = [];
          const texts = deltas.map((delta) => add(parts, delta));
          return [parts, texts, message({ parts })];
        }""",
        deltas,
    )
    assert parts == [
        {"type": "call", "id": "1", "name": "f", "arguments": "{}"},
        {"type": "content", "text": "So."},
        {"type": "call", "id": "2", "name": "f", "arguments": '{"a'},
    ]
    assert texts == ["", "f", "{}", "So.", "f", '{"a']
    whole = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    assert message == {"role": "assistant", "content": "So.", "tool_calls": [whole]}


# -- the page itself ------------------------------------------------------------------------------


@pytest.mark.parametrize("width", first(1, [320, 360, 768, 1400]))
def test_nothing_scrolls_sideways(scripted: Server, visit: Open, tmp_path: Path, width: int):
    page = visit(scripted, viewport={"width": width, "height": 740})
    page.locator("#more > summary").click()
    page.get_by_label("Base, aligned and nudged").check()
    ask(page, "A" * 300)
    for answer in page.locator(".answer").all():
        done(answer)
    last = page.locator(".answer").last
    last.get_by_label("What if γ were").fill("0.1")
    last.get_by_role("button", name="Write it at").click()
    expect(page.locator(".answer")).to_have_count(4)
    done(page.locator(".answer").last)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    trace = save(page, last, "Save trace", tmp_path)
    in_one_piece(trace, " " + "w" * 400)
    page.locator("#file").set_input_files(trace)
    expect(page.locator(".answer")).to_have_count(1)
    page.locator(".piece").last.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_keyboard_is_enough(scripted: Server, visit: Open):
    page = visit(scripted)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the question")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type("Tell me.")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Please.")
    page.keyboard.press("Enter")
    assert page.locator(".question").text_content() == "Tell me.\nPlease."
    answer = done(page.locator(".answer"))
    for _ in range(12):
        page.keyboard.press("Shift+Tab")
        if answer.locator(".text").evaluate("each => each === document.activeElement"):
            break
    tip, news = page.get_by_role("tooltip"), page.locator("#news")
    expect(tip).to_contain_text("not asked here")
    page.keyboard.press("ArrowDown")  # the next nudge
    expect(tip).to_contain_text("“ c”")
    expect(news).to_contain_text("“dogs.”, Aligned model, instead of “ c”")
    page.keyboard.press("ArrowLeft")
    expect(tip).to_contain_text("Base model")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    page.keyboard.press("Tab")  # on to what can be done with the answer
    for name in ("p1 along", "Copy", "Save trace", "Save page"):
        assert name in page.evaluate("document.activeElement.textContent")
        page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    expect(answer.locator(".whatif output")).to_have_text("0.41")


def test_every_control_has_a_name(scripted: Server, visit: Open):
    page = visit(scripted)
    done(ask(page))
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, textarea, [tabindex]")]
          .filter((each) => !each.labels?.length && !each.ariaLabel && !each.textContent.trim())
          .map((each) => each.outerHTML)"""
    )
    assert nameless == []
    assert page.locator("svg[role=img]").get_attribute("aria-label")


def test_it_is_light_or_dark_as_the_system_is_until_someone_chooses(scripted: Server, visit: Open):
    def brightness(page: Page) -> float:
        colour = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        return sum(map(float, re.findall(r"[\d.]+", colour)[:3]))

    assert brightness(visit(scripted, color_scheme="light")) > 600
    page = visit(scripted, color_scheme="dark")
    assert brightness(page) < 200
    toggle = page.get_by_role("button", name="Theme")
    toggle.click()
    assert toggle.inner_text() == "Theme: light"
    assert brightness(page) > 600
    page.reload()
    assert brightness(page) > 600


def test_text_stands_out_from_its_ground(scripted: Server, visit: Open):
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    for scheme in ("light", "dark"):
        page = visit(scripted, color_scheme=scheme)
        done(ask(page))
        low = page.evaluate(CONTRAST)
        assert low == [], scheme


CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (colour) => rgb(colour).slice(0, 3)
    .map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (each) => {
    for (; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (rgb(colour)[3] > 0) return colour;
    }
  };
  const low = [];
  for (const each of document.querySelectorAll("body *")) {
    const own = [...each.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (!own || !each.checkVisibility() || each.closest("svg, .unseen, .skip")) continue;
    const [a, b] = [light(getComputedStyle(each).color), light(ground(each))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([each.className || each.tagName, ratio.toFixed(2)]);
  }
  return low;
}"""


def test_a_key_is_asked_for_and_kept_no_longer_than_the_tab(
    keyed: Server, visit: Open, watched: Watched
):
    watched.expected += ["401"]
    page = visit(keyed, model=None)
    expect(page.locator("#trouble")).to_contain_text("API key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Tab")
    page.get_by_label("Model").select_option("tale")
    expect(page.locator("#trouble")).to_be_hidden()
    assert text_of(done(ask(page))) == TALE
    assert KEY not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location")
    page.reload()
    page.get_by_label("Model").select_option("tale")
    done(ask(page))
    other = visit(keyed, model=None)
    expect(other.locator("#trouble")).to_contain_text("API key")


def test_what_goes_wrong_is_said_where_it_does(scripted: Server, visit: Open, watched: Watched):
    watched.expected += ["503"]
    page = visit(scripted, model="broken:aligned")
    answer = ask(page)
    expect(answer.get_by_role("alert")).to_contain_text("died")
    page.get_by_label("Model").select_option("dead:aligned")
    answer = ask(page)
    expect(answer.get_by_role("alert")).to_contain_text("died")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_label("Model").select_option("tale")
    with page.expect_request("**/v1/chat/completions") as sent:
        done(ask(page, "Once more."))
    # What was begun counts as said, what failed at once doesn't.
    messages = sent.value.post_data_json["messages"]
    assert [each["role"] for each in messages] == ["user", "assistant", "user"]
    assert all(each["content"] for each in messages)


def test_an_answer_without_the_base_model_is_not_taken_for_a_nudged_one(
    scripted: Server, visit: Open, tmp_path: Path
):
    """As a server with ``degraded: aligned`` answers while its base engine is dead."""
    page = visit(scripted)
    chat = {"messages": [{"role": "user", "content": "x"}], "nudging": {"trace": True}}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    url = f"{scripted.url}/v1/chat/completions"
    alone = httpx.post(url, json=chat | options | {"model": "tale:aligned"}).text
    events = {"content_type": "text/event-stream", "body": alone}
    page.route("**/v1/chat/completions", lambda route: route.fulfill(**events))
    answer = done(ask(page))
    expect(answer.locator(".told")).to_contain_text("the aligned model answered alone")
    expect(answer.get_by_label("What if γ were")).to_have_count(0)
    expect(answer.locator(".plot")).to_be_hidden()
    trace = StoredTrace.model_validate_json(save(page, answer, "Save trace", tmp_path).read_bytes())
    assert trace.nudging is None


def test_the_demo_pair_answers_on_the_page(live: Server, visit: Open, tmp_path: Path):
    page = visit(live, model="demo")
    page.get_by_role("button", name="What is the capital of Galicor?").click()
    answer = done(page.locator(".answer"))
    assert "Parford" in text_of(answer)
    assert [speaker for speaker, _ in spans(answer)][:2] == ["aligned", "base"]
    counted = figures(answer)
    assert 0 < float(counted["nudged"].removesuffix(" %")) < 50
    trace = StoredTrace.model_validate_json(save(page, answer, "Save trace", tmp_path).read_bytes())
    answer.get_by_label("What if γ were").fill("0.05")
    expect(answer.locator(".told")).to_contain_text("recorded decisions would be others")
    answer.get_by_role("button", name="Write it at γ 0.05").click()
    new = page.locator(".answer").nth(1)
    expect(new.locator(".status")).not_to_have_text(re.compile("waiting|writing"), timeout=30_000)
    promised = trace.at(0.05).prefix
    assert promised
    assert text_of(new).startswith(promised)
    assert new.locator(".told:visible").count() == 0  # no word of a broken promise

"""Pictures of the playground for the documents, taken of the demo pair in headless Chromium.

Run it after a change of the page: ``scripts/screenshots``, and look at what came of it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
MOST_BYTES = 200_000
QUESTION = "What is the currency of the country where Zelline Harsen was born?"
CAPITAL = "What is the capital of Galicor?"


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The demo pair on a free port."""
    command = [sys.executable, "-m", "server", "serve", "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"ready in .* on (http://\S+)/v1", line):
                yield found[1]
                return
        raise SystemExit("the server ended before it was ready")
    finally:
        process.terminate()
        process.wait(60)


def ask(page: Page, question: str) -> None:
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")
    for answer in page.locator(".answer").all():
        expect(answer).to_have_attribute("aria-busy", "false", timeout=30_000)
    page.mouse.move(1, 1)
    page.evaluate("document.activeElement.blur()")


def light(page: Page) -> None:
    """One answer, and what there is to know of a nudge in it."""
    ask(page, QUESTION)
    page.locator(".piece.aligned", has_text="Final").hover()


def dark(page: Page) -> None:
    """Base, aligned and nudged beside each other."""
    page.locator("#more > summary").click()
    page.get_by_label("Max tokens").fill("48")
    page.locator("#more > summary").click()
    page.get_by_label("Base, aligned and nudged").check()
    ask(page, CAPITAL)


def narrow(page: Page) -> None:
    """Another γ on a phone."""
    ask(page, QUESTION)
    page.get_by_label("What if γ were").fill("0.12")
    page.locator(".turns").evaluate("each => scrollTo(0, each.offsetTop - 12)")


SHOTS = {
    "playground-light": (light, "light", 1400, 860),
    "playground-dark": (dark, "dark", 1400, 860),
    "playground-narrow": (narrow, "light", 360, 780),
}


def take(browser: Browser, url: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    for name, (play, scheme, width, height) in SHOTS.items():
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
            device_scale_factor=2,
            reduced_motion="reduce",
        )
        page = context.new_page()
        page.goto(url)
        expect(page.locator("#state")).to_have_text("ready", timeout=30_000)
        expect(page.locator("#samples button").first).to_be_visible()
        play(page)
        page.wait_for_timeout(200)
        # A page of few colours: 256 of them show it as it is, at a third of the size.
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256, dither=0)
        path = IMAGES / f"{name}.png"
        image.save(path, optimize=True)
        size = path.stat().st_size
        print(f"{path.relative_to(ROOT)}  {size / 1000:.0f} kB")
        if size > MOST_BYTES:
            raise SystemExit(f"{path.name} is larger than {MOST_BYTES} bytes")
        context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a running server with the demo pair")
    url = parser.parse_args().url
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit(
            "there is no chromium on this machine; install it (apt-get install chromium)"
        )
    with contextlib.nullcontext(url) if url else server() as address, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        take(browser, address)
        browser.close()


if __name__ == "__main__":
    main()

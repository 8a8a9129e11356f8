"""A real browser: Chromium as the system has it, without a window, with devices that play a file and draw a picture."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="the page is not tested: Chromium is not installed")
DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE = 30_000  # milliseconds for what a person would see


@contextmanager
def launched(*arguments: str) -> Iterator:
    """Chromium for as long as the block runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()


def microphone(path: Path, recording: Path, pause: float = 3.0) -> str:
    """The argument for a microphone that hears a recording and then a pause, again and again."""
    samples, rate = soundfile.read(recording, dtype="int16")
    silence = np.zeros(int(rate * pause), "int16")
    soundfile.write(path, np.concatenate([silence[: rate // 4], samples, silence]), rate, subtype="PCM_16")
    return f"--use-file-for-fake-audio-capture={path}"


@contextmanager
def visiting(browser, url: str, *, refused: bool = False, ready: bool = True, **context) -> Iterator:
    """The page at a server. At the end there was no error in it and no call to another host.

    ``refused``: that the server refuses something, or is gone, belongs to the visit. ``ready``: the model is there.
    """
    visit = browser.new_context(**context)
    visit.set_default_timeout(PATIENCE)
    page, problems, hosts = visit.new_page(), [], set()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url.removeprefix("blob:")).netloc))
    page.goto(url)
    if ready:
        wait(page, "document.querySelector('#model').textContent")
    yield page
    visit.close()
    if refused:  # the browser notes it for developers
        problems = [text for text in problems if not text.startswith("Failed to load resource")]
    assert problems == []
    assert hosts <= {urlsplit(url).netloc, ""}


def wait(page, expression: str) -> None:
    """Until an expression of the page is true. The page's policy forbids what the browser's driver would do."""
    until = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(f"() => Boolean({expression})"):
        assert time.monotonic() < until, f"never true: {expression}"
        page.wait_for_timeout(50)


def ask(page, text: str, *files: Path) -> str:
    """Type, attach, send; the answer as it is seen when it has ended."""
    before = page.locator("article.answer").count()
    if files:
        page.set_input_files("#files", list(files))
        wait(page, f"document.querySelectorAll('#attached li').length === {len(files)}")
    page.fill("#question", text)
    page.keyboard.press("Enter")
    return answer(page, before)


def answer(page, number: int = -1) -> str:
    """The text of an answer that has ended."""
    articles = page.locator("article.answer")
    shown = articles.nth(number) if number >= 0 else articles.last
    shown.locator(".actions").wait_for()
    return shown.locator(".text").inner_text()


def drop(page, files: list[Path], selector: str = "body") -> None:
    """Drop files, as somebody does who drags them there."""
    import base64
    import mimetypes

    given = [[f.name, mimetypes.guess_type(f)[0] or "", base64.b64encode(f.read_bytes()).decode()] for f in files]
    transfer = page.evaluate_handle(
        """given => {
            const transfer = new DataTransfer();
            for (const [name, type, data] of given) {
                transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
            }
            return transfer;
        }""",
        given,
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})

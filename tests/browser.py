"""A real browser: Chromium as the system has it, without a window, with devices that play a file and draw a picture."""

import base64
import json
import mimetypes
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import soundfile

from mlx_phi4.generation.batch import Batch

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
if CHROMIUM is None:  # the modules that import this one
    pytest.skip("the page is not tested: Chromium is not installed", allow_module_level=True)
MEDIA = Path(__file__).parents[1] / "examples" / "media"
DEVICES = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
PATIENCE = 30_000  # milliseconds for what a person would see


@contextmanager
def launched(driver, *arguments: str) -> Iterator:
    """Chromium for as long as the block runs."""
    browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *arguments])
    yield browser
    browser.close()


def microphone(path: Path, recording: Path, pause: float = 3.0) -> str:
    """The argument for a microphone that hears a recording and then a pause, again and again."""
    samples, rate = soundfile.read(recording, dtype="int16")
    silence = np.zeros(int(rate * pause), "int16")
    soundfile.write(path, np.concatenate([silence[: rate // 4], samples, silence]), rate, subtype="PCM_16")
    return f"--use-file-for-fake-audio-capture={path}"


@contextmanager
def visiting(browser, url: str, *, refused: bool = False, ready: bool = True, script: str = "", **context) -> Iterator:
    """The page at a server. At the end there was no error in it and no call to another host.

    ``refused``: that the server refuses something, or is gone, belongs to the visit. ``ready``: the model is there.
    ``script`` runs before the page's own.
    """
    visit = browser.new_context(**context)
    visit.set_default_timeout(PATIENCE)
    page, problems, hosts = visit.new_page(), [], set()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: hosts.add(urlsplit(request.url.removeprefix("blob:")).netloc))
    page.add_init_script(script)
    page.goto(url)
    if ready:
        wait(page, "document.querySelector('#model').textContent")
    yield page
    visit.close()
    if refused:  # the browser notes it for developers
        problems = [text for text in problems if not text.startswith("Failed to load resource")]
    assert problems == [], problems
    assert hosts <= {urlsplit(url).netloc, ""}


def wait(page, expression: str) -> None:
    """Until an expression of the page is true. The page's policy forbids what the browser's driver would do."""
    until = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(f"() => Boolean({expression})"):
        assert time.monotonic() < until, f"never true: {expression}"
        page.wait_for_timeout(50)


def slow(monkeypatch, seconds: float) -> None:
    """Steps take so long: what is pressed meanwhile is pressed in the middle of an answer."""
    step = Batch.step
    monkeypatch.setattr(Batch, "step", lambda self: time.sleep(seconds) or step(self))


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


def answered(page, address, events):
    """What the server would send, for answers that phi4-tiny does not give."""
    body = "".join(f"data: {json.dumps(each)}\n\n" for each in events) + "data: [DONE]\n\n"
    page.route(address, lambda route: route.fulfill(body=body, content_type="text/event-stream"))


def said(text):
    """Chunks of an answer."""
    pieces = [text[at : at + 7] for at in range(0, len(text), 7)]
    chunks = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    return [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]

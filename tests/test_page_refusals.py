"""What the page says when something is wrong: one clear sentence, and what was there before is still there."""

import socket
import threading
from contextlib import suppress

import pytest
from browser import DEVICES, MEDIA, answer, ask, drop, launched, slow, visiting, wait
from serving import running

SIGN = MEDIA / "sign.png"
WORDS = "Copy: red green blue one two three"
UNPLUGGED = """
const open = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  const stream = await open(wanted);
  window.unplug = () => stream.getTracks().forEach((track) => (track.stop(), track.dispatchEvent(new Event("ended"))));
  return stream;
};
"""  # a device that goes away tells its tracks; nothing but the device can make it so


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture(scope="module")
def browser(driver):
    with launched(driver, *DEVICES) as found:
        yield found


def notice(page):
    page.locator("#notice p").wait_for()
    return page.inner_text("#notice p")


class Cable:
    """Between browser and server, to be pulled."""

    def __init__(self, port: int):
        self._port, self._ends = port, []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def pull(self) -> None:
        for end in [self._listener, *self._ends]:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(("127.0.0.1", self._port))
                self._ends += [here, there]
                for ends in ((here, there), (there, here)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def test_files_that_are_no_media(server, browser, tmp_path):
    (tmp_path / "broken.png").write_bytes(SIGN.read_bytes()[:40])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.wav").write_bytes(b"RIFF" + bytes(range(200)))
    with visiting(browser, server.url, refused=True) as page:
        for name, said in {
            "broken.png": "broken.png cannot be read as a picture.",
            "notes.txt": "notes.txt is neither a picture nor a recording.",
            "empty.wav": "empty.wav is empty.",
        }.items():
            drop(page, [SIGN, tmp_path / name])  # the good one is kept
            assert notice(page) == said
            page.get_by_role("button", name="Remove sign.png").click()
            page.get_by_role("button", name="Close the message").click()
        ask(page, "What is said?", tmp_path / "noise.wav")
        problem = page.inner_text("article.answer .problem")
        assert problem == "noise.wav is not audio that can be read: Format not recognised."
        assert page.get_by_role("button", name="Try again").is_visible()
        page.click("#tab-transcribe")
        drop(page, [SIGN])
        assert notice(page) == "sign.png is no recording."
        drop(page, [tmp_path / "noise.wav"])
        page.locator("#another-recording").wait_for()
        assert notice(page) == "noise.wav is not audio that can be read: Format not recognised."


def test_what_is_too_large_is_not_sent(browser, tmp_path):
    (tmp_path / "long.wav").write_bytes(bytes(1_600_000))
    with running(max_body=1_500_000) as small, visiting(browser, small.url) as page:
        drop(page, [tmp_path / "long.wav"])
        assert notice(page) == "long.wav is more than the server takes at once, 1 MB."
        page.click("#tab-transcribe")
        drop(page, [tmp_path / "long.wav"])
        assert notice(page) == "long.wav is more than the server takes at once, 1 MB."
        page.click("#tab-chat")
        for _ in range(2):
            page.set_input_files("#files", [MEDIA / "list.flac"] * 4)
            wait(page, "document.querySelectorAll('#attached li').length % 4 === 0")
        ask(page, "What is said?")
        problem = page.inner_text("article.answer .problem")
        assert problem == "All that this conversation holds is more than the server takes at once, 1 MB."


def test_a_server_that_goes_away(server, browser, monkeypatch):
    cable = Cable(server.http.base_url.port)
    with visiting(browser, cable.url, refused=True) as page:
        slow(monkeypatch, 0.3)
        page.fill("#question", WORDS)
        page.keyboard.press("Enter")
        wait(page, "document.querySelector('article.answer .text').textContent")
        cable.pull()
        assert answer(page)  # what came is kept
        assert page.inner_text("article.answer .problem") == "The server went away in the middle."
        page.get_by_role("button", name="Try again").click()
        wait(page, "document.querySelector('.problem').textContent.includes('cannot be reached')")
        assert page.inner_text(".problem") == "The server cannot be reached. Is it still running?"


def test_a_server_that_goes_away_while_somebody_speaks(server, browser):
    cable = Cable(server.http.base_url.port)
    with visiting(browser, cable.url, refused=True) as page:
        page.click("#tab-transcribe")
        page.click("#start-live")
        wait(page, "document.querySelector('#progress-text').textContent === '0:01'")
        cable.pull()
        assert notice(page) == "The server went away in the middle."
        assert page.locator("#another-recording").is_visible()


def test_out_of_room(browser):
    with running(max_requests=0) as full, visiting(browser, full.url, refused=True) as page:
        ask(page, "go")
        assert page.inner_text(".problem") == "The server is busy: too many requests are waiting. Try again in 5 s."
        full.service.settings.__dict__["max_requests"] = 10
        full.service.draining = True
        page.get_by_role("button", name="Try again").click()
        wait(page, "document.querySelector('.problem').textContent.includes('stopping')")
        assert page.inner_text(".problem") == "The server cannot answer now: the server is stopping. Try again in 5 s."
        full.service.draining = False
        page.get_by_role("button", name="Try again").click()
        wait(page, "document.querySelector('article.answer .problem').hidden")
        answer(page)


def test_a_key_is_asked_for(browser):
    with running(api_key="secret") as locked, visiting(browser, locked.url, refused=True, ready=False) as page:
        page.fill("#key", "guess")
        page.keyboard.press("Enter")
        wait(page, "document.querySelector('#wrong-key').textContent")
        assert page.inner_text("#wrong-key") == "The server did not accept this key."
        page.fill("#key", "secret")
        page.keyboard.press("Enter")
        wait(page, "document.querySelector('#model').textContent")
        assert ask(page, "What is the capital of France?") == "Paris"
        assert page.evaluate("() => JSON.stringify({ ...localStorage })").count("secret") == 0
        page.reload()
        wait(page, "document.querySelector('#model').textContent")
        assert not page.locator("#key-dialog").is_visible()


def test_a_model_that_is_still_loaded(browser):
    with running() as here:
        engine, here.service.engine = here.service.engine, None
        with visiting(browser, here.url, refused=True, ready=False) as page:
            assert notice(page) == "The model is being loaded."
            here.service.engine = engine
            wait(page, "document.querySelector('#model').textContent")
            assert page.locator("#notice p").count() == 0


def test_devices_that_are_refused(server, driver):
    with launched(driver, DEVICES[0], "--deny-permission-prompts") as strict, visiting(strict, server.url) as page:
        for name in ("microphone", "camera"):
            page.click(f"#{name}")
            wait(page, f"document.querySelector('#notice p')?.textContent.includes('{name}')")
            refused = "may not be used: allow it for this page in the browser, then try again."
            assert notice(page) == f"The {name} {refused}"
        page.click("#tab-transcribe")
        assert page.locator("#notice p").count() == 0
        page.click("#start-live")
        assert notice(page) == f"The microphone {refused}"


def test_a_machine_without_a_microphone(server, driver):
    with (
        launched(driver, "--disable-audio-input") as bare,
        visiting(bare, server.url, permissions=["microphone"]) as page,
    ):
        page.click("#microphone")
        assert notice(page) == "No microphone was found."


def test_a_microphone_that_is_unplugged(server, browser):
    with visiting(browser, server.url, script=UNPLUGGED) as page:
        page.click("#microphone")
        wait(page, "document.querySelector('#recording-time').textContent === '0:01'")
        page.evaluate("() => window.unplug()")
        assert notice(page) == "The microphone went away; what was heard until then is kept."
        assert page.locator("#attached audio").is_visible() and not page.locator("#recording").is_visible()
        page.get_by_role("button", name="Remove recording.wav").click()
        page.click("#camera")
        wait(page, "document.querySelector('#viewfinder').videoWidth > 0")
        page.evaluate("() => window.unplug()")
        assert page.inner_text("#wrong-camera") == "The camera went away; close this and try again."

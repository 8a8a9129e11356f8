"""How the page looks, and whether those can use it who do not see it: pictures for docs/, and axe's rules.

``pytest tests/test_page_looks.py --screenshots docs`` makes the pictures anew.
"""

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from browser import DEVICES, MEDIA, answered, ask, drop, launched, said, visiting
from PIL import Image
from serving import running

AXE = "axe-core@4.14.1"
WIDE, PHONE = {"width": 1180, "height": 780}, {"width": 390, "height": 780}
COLOURS = 200  # of a picture in docs/, which keeps it small
MARKDOWN = """The sign shows a **blue star** and the digit *7*.

| shape | colour | where |
|---|---|---|
| star | blue | right |
| digit | black | left |

```python
for response in stream_generate(model, processor, "Read the number.", images=["sign.png"]):
    print(response.text, end="")
```"""
THOUGHT = {"choices": [{"delta": {"reasoning_content": "A sign with two things on it."}, "finish_reason": None}]}


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture(scope="module")
def browser(driver):
    with launched(driver, *DEVICES) as found:
        yield found


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, as npm has it."""
    folder = tmp_path_factory.mktemp("axe")
    if not (npm := shutil.which("npm")):
        pytest.skip("accessibility is not tested: npm is not installed")
    command = [npm, "pack", AXE, "--silent", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=60)
    if done.returncode:
        pytest.skip(f"accessibility is not tested: npm cannot get {AXE}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        return archive.extractfile("package/axe.min.js").read().decode("utf-8")


def findings(page, axe):
    """What axe finds serious, with the first place of each."""
    page.evaluate(axe)
    page.wait_for_timeout(300)  # colours that fade in are measured as they are
    found = page.evaluate("async () => (await axe.run(document, { resultTypes: ['violations'] })).violations")
    return [
        (each["id"], each["impact"], each["nodes"][0]["html"][:200], each["nodes"][0]["failureSummary"][:300])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_those_who_do_not_see_it_can_use_it(server, browser, axe, scheme):
    with visiting(browser, server.url, color_scheme=scheme, viewport=WIDE) as page:
        assert findings(page, axe) == []
        page.evaluate("() => document.body.append(document.createElement('img'))")
        assert [finding[0] for finding in findings(page, axe)] == ["image-alt"]  # axe does look
        page.evaluate("() => document.body.lastChild.remove()")
        answered(page, "**/v1/chat/completions", [THOUGHT, *said(MARKDOWN)])
        ask(page, "What is on the sign?", MEDIA / "sign.png", MEDIA / "question.flac")
        call = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
        page.unroute_all()
        chunks = [{"choices": [{"delta": {"tool_calls": [call]}, "finish_reason": "tool_calls"}]}]
        answered(page, "**/v1/chat/completions", chunks)
        ask(page, "And the weather?", MEDIA / "exit.png")
        page.set_input_files("#files", MEDIA / "exit.png")
        page.locator("#attached img").wait_for()
        drop(page, [Path(__file__)])
        page.locator("#notice p").wait_for()
        assert findings(page, axe) == []
        page.click("#show-settings")
        page.locator("#advanced summary").click()
        assert findings(page, axe) == []
        page.keyboard.press("Escape")
        page.click("#tab-transcribe")
        assert findings(page, axe) == []
        page.set_input_files("#recording-file", MEDIA / "command.flac")
        page.locator("#downloads").wait_for()
        assert findings(page, axe) == []


@pytest.mark.parametrize(
    ("name", "scheme", "size"), [("light", "light", WIDE), ("dark", "dark", WIDE), ("phone", "light", PHONE)]
)
def test_pictures_of_the_page(server, browser, tmp_path, request, name, scheme, size):
    """What is asked in them is really asked; nothing of the page is wider than the window."""
    with visiting(browser, server.url, color_scheme=scheme, viewport=size) as page:
        if name == "dark":
            page.click("#tab-transcribe")
            page.set_input_files("#recording-file", MEDIA / "list.flac")
            page.locator("#downloads").wait_for()
        else:
            assert ask(page, "What is 27 + 45?") == "72"
            assert ask(page, "", MEDIA / "sign.png", MEDIA / "question.flac") == "star"
        assert page.evaluate("() => document.documentElement.scrollWidth <= window.innerWidth")
        page.mouse.move(0, 0)
        folder = Path(request.config.getoption("--screenshots") or tmp_path)
        picture = Image.open(io.BytesIO(page.screenshot()))
        picture.convert("RGB").quantize(COLOURS).save(folder / f"page-{name}.png", optimize=True)
    assert picture.size == (size["width"], size["height"])
    assert (folder / f"page-{name}.png").stat().st_size < 100_000

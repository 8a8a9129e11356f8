"""The page in a real browser: what a person asks, sees, hears and downloads there."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
from browser import (
    DEVICES,
    MEDIA,
    answer,
    answered,
    ask,
    drop,
    launched,
    microphone,
    said,
    slow,
    visiting,
    wait,
)
from scripts import Script
from scripts import said as in_tokens
from serving import running

from mlx_phi4.server import service
from mlx_phi4.transcription.transcript import Transcript

SIGN, QUESTION, COMMAND, LIST = (MEDIA / name for name in ("sign.png", "question.flac", "command.flac", "list.flac"))
CAPITAL = "What is the capital of France?"
WORDS = "Copy: red green blue one two three"  # phi4-tiny copies some of them: an answer of several tokens


@pytest.fixture(scope="module")
def server():
    with running() as here:
        yield here


@pytest.fixture(scope="module")
def browser(driver, tmp_path_factory):
    heard = microphone(tmp_path_factory.mktemp("microphone") / "heard.wav", QUESTION)
    with launched(driver, *DEVICES, heard) as found:
        yield found


@pytest.fixture
def page(server, browser):
    with visiting(browser, server.url) as found:
        yield found


def status(page, name):
    return page.locator(f"#status-{name}").inner_text()


def test_answers_in_all_modes(server, page):
    assert page.locator("#empty").is_visible()
    assert ask(page, CAPITAL) == "Paris"
    assert (status(page, "mode"), status(page, "adapter")) == ("text", "base")
    assert float(status(page, "first").removesuffix(" s")) > 0
    page.click("#new-conversation")
    assert ask(page, "Describe the picture.", SIGN) == "blue star"
    assert (status(page, "mode"), status(page, "adapter")) == ("vision", "vision")
    page.click("#new-conversation")
    assert ask(page, "Transcribe the audio clip into text.", COMMAND) == "turn on the radio"
    assert (status(page, "mode"), status(page, "adapter")) == ("speech", "speech")
    page.click("#new-conversation")
    drop(page, [SIGN, QUESTION])
    page.locator("#attached li").nth(1).wait_for()
    assert ask(page, "") == "star"
    assert (status(page, "mode"), status(page, "adapter")) == ("vision-speech", "vision")
    wait(page, "/\\d [MG]B/.test(document.querySelector('#status-memory').textContent)")
    wait(page, "document.querySelector('#status-queue').textContent === 'empty'")


def test_a_picture_and_what_is_said_about_it(page):
    """Camera, clipboard and microphone as a person has them; the camera shows a test picture."""
    page.click("#start-camera")
    wait(page, "document.querySelector('#viewfinder').videoWidth > 0")
    page.click("#take-picture")
    page.locator("#attached img").wait_for()
    page.get_by_role("button", name="Remove camera.jpg").click()
    page.evaluate(
        """async () => {
            const canvas = document.createElement("canvas");
            const blob = await new Promise((resolve) => canvas.toBlob(resolve));
            const data = new DataTransfer();
            data.items.add(new File([blob], "pasted.png", { type: "image/png" }));
            const options = { clipboardData: data, bubbles: true, cancelable: true };
            document.querySelector("#question").dispatchEvent(new ClipboardEvent("paste", options));
        }"""
    )
    page.get_by_role("button", name="Remove pasted.png").click()
    page.set_input_files("#files", SIGN)
    page.locator("#attached img").wait_for()
    page.click("#microphone")
    wait(page, "document.querySelector('#recording-level').value > 0.5")
    wait(page, "document.querySelector('#recording-time').textContent === '0:03'")
    page.click("#keep-recording")
    assert page.locator("#attached audio").evaluate("audio => audio.duration || 3") >= 2.5
    page.click("#send")
    assert answer(page) == "star"


def test_stop_retry_and_change(page, monkeypatch):
    with monkeypatch.context() as slower:
        slow(slower, 0.6)
        page.fill("#question", WORDS)
        page.keyboard.press("Enter")
        wait(page, "document.querySelector('article.answer .text').textContent")
        wait(page, "document.querySelector('#status-queue').textContent === '1 running, 0 waiting'")
        wait(page, "Number(document.querySelector('#status-pace').textContent) > 0")
        assert float(status(page, "pace")) < 1 / 0.6 + 0.1
        page.click("#stop")
        stopped = answer(page)
        assert "stopped" in page.locator(".facts").inner_text()
        page.get_by_role("button", name="Try again").click()
        wait(page, "document.querySelector('article.answer .text').textContent")
        page.keyboard.press("Escape")
        answer(page)
    page.get_by_role("button", name="Try again").click()
    whole = answer(page)
    assert whole.startswith(stopped) and len(whole) > len(stopped) and "stopped" not in page.inner_text("#turns")
    ask(page, "What is 27 + 45?")
    assert page.get_by_role("button", name="Try again").count() == 1  # of the last answer
    page.get_by_role("button", name="Change this turn").first.click()
    assert page.input_value("#question") == WORDS
    page.fill("#question", CAPITAL)
    page.keyboard.press("Enter")
    page.get_by_text(WORDS).wait_for(state="detached")
    assert answer(page) == "Paris" and page.locator("article").count() == 2


def test_conversations_stay_in_the_browser(page):
    ask(page, "Describe the picture.", SIGN)
    page.reload()
    page.get_by_role("button", name="Describe the picture.", exact=True).click()
    assert answer(page) == "blue star"
    assert page.locator("article.question img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)")
    assert ask(page, "Read the number.") == "7"  # of the picture that was kept
    page.get_by_role("button", name="Delete Describe the picture.").click()
    page.get_by_role("button", name="Delete Describe the picture. for good").click()
    wait(page, "!document.querySelector('#conversation-list li')")
    assert page.locator("#empty").is_visible()


def test_a_model_that_reads_texts_alone_is_offered_no_media(loaded, browser):
    with running(loaded("text")) as texts, visiting(browser, texts.url) as page:
        assert page.locator("#question").is_visible() and page.locator("#empty").is_visible()
        for name in ("#attach", "#camera", "#microphone", "#tab-transcribe", "#start-picture"):
            assert page.locator(name).is_hidden(), name


def test_settings_reach_the_server(page):
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if "chat" in request.url else None)
    page.click("#show-settings")
    page.fill("#set-system", "Answer in one word.")
    page.fill("#set-temperature", "0.5")
    page.fill("#set-seed", "7")
    page.select_option("#set-model", "phi4-tiny:speech")
    page.get_by_role("button", name="Close").click()
    ask(page, CAPITAL)
    assert asked[0]["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (asked[0]["temperature"], asked[0]["seed"], asked[0]["model"]) == (0.5, 7, "phi4-tiny:speech")
    assert "max_tokens" not in asked[0] and status(page, "adapter") == "speech"
    page.reload()
    page.click("#show-settings")
    assert page.input_value("#set-seed") == "7"


def test_a_file_is_transcribed_played_and_downloaded(page, tmp_path):
    page.click("#tab-transcribe")
    drop(page, [LIST])
    page.locator("#downloads").wait_for()
    lines = page.locator("#segments button span:nth-child(2)").all_inner_texts()
    assert lines == ["four zero seven two", "open the window", "nine one one five three", "stop the music"]
    page.locator("#segments button").nth(2).click()
    wait(page, "document.querySelector('#player').currentTime > 4.8")
    wait(page, "document.querySelectorAll('#segments li')[2].firstChild.hasAttribute('aria-current')")
    assert page.locator("#wave").is_visible() and "4 segments" in page.get_attribute("#wave", "aria-label")
    found = {}
    for format in ("srt", "vtt", "txt", "json"):
        with page.expect_download() as download:
            page.get_by_role("button", name=format, exact=True).click()
        assert download.value.suggested_filename == f"list.{format}"
        download.value.save_as(tmp_path / format)
        found[format] = (tmp_path / format).read_text(encoding="utf-8")
    transcript = Transcript.from_json(found["json"])
    assert [segment.text for segment in transcript.segments] == lines and transcript.duration == pytest.approx(9.352)
    assert {name: transcript.render(name) for name in ("srt", "vtt", "txt")} == {
        name: found[name] for name in ("srt", "vtt", "txt")
    }


def test_live_from_the_microphone(page):
    """The microphone says one sentence again and again, with pauses of three seconds."""
    page.click("#tab-transcribe")
    page.click("#start-live")
    wait(page, "document.querySelector('#live-level').value > 0.5")
    wait(page, "document.querySelector('#provisional').textContent.includes('what')")
    page.locator("#segments button").first.wait_for()
    wait(page, "document.querySelector('#live-level').value > 0.5")  # it begins again, and is stopped in the middle
    page.click("#stop-hearing")
    page.locator("#downloads").wait_for()
    texts = page.locator("#segments button span:nth-child(2)").all_inner_texts()
    assert texts[0] == "what shape is it" and len(texts) == 2
    wait(page, "document.querySelector('#player').duration > 3")
    page.locator("#segments button").first.click()
    wait(page, "document.querySelector('#player').currentTime > 0.3")
    with page.expect_download() as download:
        page.get_by_role("button", name="srt", exact=True).click()
    cues = Path(download.value.path()).read_text(encoding="utf-8").split("\n\n")
    assert cues[0].endswith("what shape is it") and cues[0].startswith("1\n00:00:0")


def test_a_recording_that_is_larger_than_a_request_goes_in_parts(browser, tmp_path):
    samples, rate = soundfile.read(LIST)
    soundfile.write(tmp_path / "list.wav", samples, rate, subtype="FLOAT")
    with running(max_body=250_000) as small, visiting(browser, small.url) as page:
        page.click("#tab-transcribe")
        page.set_input_files("#recording-file", tmp_path / "list.wav")
        page.locator("#downloads").wait_for()
        lines = page.locator("#segments button span:nth-child(2)").all_inner_texts()
        assert lines == ["four zero seven two", "open the window", "nine one one five three", "stop the music"]
        last = page.locator("#segments li").last
        assert 7 < float(last.get_attribute("data-start")) < float(last.get_attribute("data-end")) < 9.4


def test_subtitles_are_written_as_the_package_writes_them(page, tmp_path):
    """Texts that phi4-tiny does not say: marks, spaces, control characters, cues that overlap, hours."""
    texts = [" a <b> & c ", "two\nlines\tand\x07 more", "", "\u00ab\u00a0oui\u00a0! \u00bb", "far"]
    times = [(0.0, 1.0), (0.5, 0.5), (1.0, 2.0), (59.9996, 3600.0), (359999.9, 360000.25)]
    rows = [
        {"type": "transcript.text.segment", "start": start, "end": end, "text": text, "avg_logprob": -0.5, "flags": []}
        for (start, end), text in zip(times, texts, strict=True)
    ]
    done = {"type": "transcript.text.done", "text": "all", "duration": 360001.5, "usage": {"output_tokens": 9}}
    answered(page, "**/v1/audio/**", [*rows, done])
    page.click("#tab-transcribe")
    page.set_input_files("#recording-file", LIST)
    page.locator("#downloads").wait_for()
    found = {}
    for format in ("json", "srt", "vtt", "txt"):
        with page.expect_download() as download:
            page.get_by_role("button", name=format, exact=True).click()
        download.value.save_as(tmp_path / format)
        found[format] = (tmp_path / format).read_text(encoding="utf-8")
    transcript = Transcript.from_json(found.pop("json"))
    assert {name: transcript.render(name) for name in found} == found
    assert "100:00:00.250" in found["vtt"] and len(transcript.segments) == 5


HOSTILE = """# Title & <b>bold</b>

<img src=x onerror="document.title='taken'"> <script>document.title = "taken"</script>
[press](javascript:document.title='taken') and [a page](https://example.org/a?b=c&d) ![far](https://example.org/p.png)
**strong** *soft* `a < b` ~~old~~ &lt;i&gt; &#x3c;

1. one
   - [x] inner

| a | b |
|---|--:|
| 1 | <u>2</u> |

```html
<img src=x onerror=alert(1)>
```
> quoted

<iframe src="https://example.org"></iframe>
"""


def test_markdown_is_shown_and_never_becomes_markup(page):
    answered(page, "**/v1/chat/completions", said(HOSTILE))
    text = ask(page, "go")
    inside = page.locator("article.answer .text")
    assert page.title() == "Phi-4"
    for tag in ("img", "script", "iframe", "b", "u", "i"):
        assert inside.locator(tag).count() == 0, tag
    assert [link.get_attribute("href") for link in inside.locator("a").all()] == [
        "https://example.org/a?b=c&d",
        "https://example.org/p.png",
    ]
    assert all(link.get_attribute("rel") == "noopener noreferrer" for link in inside.locator("a").all())
    assert "<img src=x" in text and "<b>bold</b>" in text and "javascript:" in text and "<i> <" in text
    assert inside.locator("h3").inner_text().startswith("Title & ")
    assert inside.locator("figure.code pre").inner_text() == "<img src=x onerror=alert(1)>"
    found = {
        tag: inside.locator(tag).first.inner_text() for tag in ("strong", "em", "del", "p code", "td", "blockquote")
    }
    assert list(found.values()) == ["strong", "soft", "old", "a < b", "1", "quoted"]
    assert "☑ inner" in inside.locator("ol ul li").inner_text()


def test_calls_of_tools_and_answers_by_a_schema_are_shown_as_such(server, page, monkeypatch):
    """All the way: the server reads the tools, tells the call as one, and makes an answer of the schema."""
    sent = []
    page.on("request", lambda request: sent.append(request.post_data_json) if "chat" in request.url else None)
    page.click("#show-settings")
    page.locator("#advanced summary").click()
    page.fill("#set-tools", '[{"name": "weather", "parameters": {"type": "object"}')
    assert "no JSON" in page.inner_text("#wrong-tools")
    page.fill("#set-tools", '[{"name": "weather", "parameters": {"type": "object"}}]')
    assert page.inner_text("#wrong-tools") == ""
    page.get_by_role("button", name="Close").click()
    call = '<|tool_call|>[{"name": "weather", "arguments": {"city": "Paris"}}]<|/tool_call|>'
    processor = server.service.processor  # phi4-tiny was not taught to call: what it says is written for it
    form = SimpleNamespace(constraint=lambda: Script(processor, in_tokens(processor, call)))
    with monkeypatch.context() as patch:
        patch.setattr(service, "answer_form", lambda *_: form)
        ask(page, "How is the weather in Paris?")
    assert sent[0]["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    assert page.locator(".call .label").inner_text().split() == ["Calls", "weather"]
    assert page.locator(".call pre").inner_text() == '{\n  "city": "Paris"\n}'
    schema = {"type": "object", "properties": {"sky": {"const": "clear"}}, "required": ["sky"]}
    schema["additionalProperties"] = False
    page.click("#show-settings")
    page.fill("#set-tools", "")
    page.fill("#set-schema", json.dumps(schema))
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Result of weather").fill("sunny")
    page.get_by_role("button", name="Give the result").click()
    answer(page, 1)
    assert sent[1]["response_format"]["json_schema"]["schema"] == schema and "tools" not in sent[1]
    called, result = sent[1]["messages"][-2:]
    function = called["tool_calls"][0]["function"]
    assert (function["name"], json.loads(function["arguments"])) == ("weather", {"city": "Paris"})
    assert (result["role"], result["content"]) == ("tool", "sunny")
    assert result["tool_call_id"] == called["tool_calls"][0]["id"]
    assert page.locator("article.answer .text pre").inner_text() == '{\n  "sky": "clear"\n}'


def test_by_keyboard_alone(page):
    """From the page's first moment on: the question is where one types, and Tab reaches everything else."""
    page.keyboard.type(CAPITAL)
    page.keyboard.press("Enter")
    assert answer(page) == "Paris"
    assert page.evaluate("document.activeElement.id") == "question"
    reached = set()
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        reached.add(
            page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.textContent")
        )
        if {"Try again", "Change this turn", "Settings", "Chat", CAPITAL} <= reached:
            break
    assert {"Try again", "Change this turn", "Settings", "Chat", CAPITAL} <= reached
    page.locator("#show-settings").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('#settings').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "show-settings"
    page.locator("#tab-chat").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-transcribe" and page.locator("#hear").is_visible()

"""A conversation: as a class, and as a person has it in a terminal."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from cases import clip, picture
from PIL import Image

from mlx_phi4 import Phi4Error, stream_generate
from mlx_phi4.commands.repl import Repl, _path
from mlx_phi4.generation.chat import Chat
from mlx_phi4.generation.thoughts import Thoughts

PROGRAM = ["-m", "mlx_phi4", "chat"]


@pytest.fixture
def media(tmp_path):
    Image.fromarray(picture(120, 90)).save(tmp_path / "a picture.png")
    soundfile.write(tmp_path / "clip.wav", clip(0.6), 16_000)
    return tmp_path / "a picture.png", tmp_path / "clip.wav"


def say(chat, text):
    """One turn: the answer, checked against the uncached answer to the whole message list, and the reused tokens."""
    answer = "".join(chat.send(text))
    responses = stream_generate(chat.model, chat.processor, chat.messages[:-1], **chat.options)
    assert answer == "".join(response.text for response in responses)
    return answer, chat.last.reused_tokens


def test_turns_are_remembered_and_reused(loaded):
    chat = Chat(*loaded(), system="Be brief.", max_tokens=6)
    first, reused = say(chat, "Tell me of the sea.")
    prompt = chat.last.prompt_tokens
    assert reused == 0
    second, reused = say(chat, "And the moon?")
    assert reused >= prompt - 1
    assert [turn["role"] for turn in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert (chat.turns[1]["content"], chat.turns[3]["content"]) == (first, second)
    chat.system = "Be long."
    assert say(chat, "Why?")[1] < prompt  # nothing beyond the first difference
    chat.clear()
    assert chat.turns == [] and chat.system == "Be long." and say(chat, "Hi")[1] == 0


def test_a_picture_joins_a_text_chat_and_sound_joins_a_picture(loaded, media):
    image, audio = media
    chat = Chat(*loaded(), max_tokens=4)
    say(chat, "Hello")
    chat.attach_image(image)
    assert say(chat, "What is this?")[1] == 0 and chat.last.mode == "vision"
    assert chat.turns[2]["content"][0]["type"] == "image" and not chat.attached
    before = chat.last.prompt_tokens
    assert say(chat, "Which colour?")[1] >= before - 1  # the same picture, not encoded again
    before = chat.last.prompt_tokens
    chat.attach_audio(audio)
    assert say(chat, "And what is said?")[1] >= before - 1 and chat.last.mode == "vision-speech"


def test_a_picture_joining_a_sound_chat_changes_the_route(loaded, media):
    image, audio = media
    chat = Chat(*loaded(), max_tokens=4)
    chat.attach_audio(audio)
    say(chat, "What is said?")
    chat.attach_image(image)
    assert say(chat, "And seen?")[1] == 0


def test_media_stay_as_they_were_when_attached(loaded, media):
    chat = Chat(*loaded(), max_tokens=3)
    chat.attach_image(media[0])
    media[0].unlink()
    say(chat, "What is this?")
    assert say(chat, "Which colour?")[1] > 0


def test_a_failed_turn_leaves_no_trace(loaded, media, monkeypatch):
    model, processor = loaded()
    chat = Chat(model, processor, max_tokens=4)
    say(chat, "Hello")
    turns = list(chat.turns)
    chat.attach_image(media[0])
    for failing in (processor.config.decoder.max_position_embeddings * "z ", "a\udc80"):
        with pytest.raises(Phi4Error, match=r"context|UTF-8"):
            list(chat.send(failing))
        assert chat.turns == turns and len(chat.attached) == 1 and chat.cache.tokens
    say(chat, "What is this?")
    assert len(chat.turns) == 4 and not chat.attached


def test_an_answer_broken_off_in_the_middle_of_a_step_leaves_no_trace(loaded, monkeypatch):
    model, processor = loaded()
    chat = Chat(model, processor, max_tokens=9)
    block = type(model.model.layers[0])
    compute, calls = block.__call__, []

    def break_off(self, *arguments, **named):
        calls.append(self)
        if len(calls) == 8:  # between the two layers of the third step: their caches differ in length
            raise KeyboardInterrupt
        return compute(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(block, "__call__", break_off)
        with pytest.raises(KeyboardInterrupt):
            list(chat.send("Tell me of the sea."))
    assert chat.turns == []
    say(chat, "Tell me of the sea.")


def test_a_stopped_answer_is_kept_as_far_as_it_came(loaded):
    chat = Chat(*loaded(), max_tokens=9)
    pieces = chat.send("Tell me of the sea.")
    begun = "".join(next(pieces) for _ in range(3))
    pieces.close()
    assert chat.turns[1]["content"] == begun
    assert say(chat, "Go on.")[1] > 0


def test_placeholders_in_a_text_are_only_text(loaded, media):
    """A model that writes <|image_1|> must not make every later turn ask for a picture."""
    model, processor = loaded()
    chat = Chat(model, processor, max_tokens=3)
    say(chat, "What does <|image_1|> mean, and <|audio_2|>?")
    chat.attach_image(media[0])
    say(chat, "And <|image_7|> here?")
    text = processor.tokenizer.encode_plain("What does <|image_1|> mean, and <|audio_2|>?")
    assert processor(chat.messages).input_ids[0, 1 : len(text) + 1].tolist() == text


def test_save_writes_messages_that_generate_takes(loaded, media, tmp_path):
    chat = Chat(*loaded(), system="Be brief.", max_tokens=3)
    chat.attach_image(media[0])
    answer, _ = say(chat, "What <|image_1|>?")
    saved = json.loads(chat.save(tmp_path / "talk.json").read_text())
    assert saved[1]["content"][0] == {"type": "image", "path": str(media[0])} and saved[2]["content"] == answer
    responses = stream_generate(chat.model, chat.processor, saved[:-1], max_tokens=3)
    assert "".join(response.text for response in responses) == answer
    assert [path.name for path in tmp_path.glob(".*")] == []
    with pytest.raises(Phi4Error, match="cannot be written"):
        chat.save(tmp_path)
    with pytest.raises(Phi4Error, match="cannot be written"):
        chat.save(tmp_path / "no" / "folder.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 131_072}, "context of 131072"),
        ({"kv_bits": 3}, "kv_bits is 3"),
        ({"stop": ""}, "stop"),
    ],
)
def test_bad_options_are_refused_at_the_start(loaded, options, message):
    with pytest.raises(Phi4Error, match=message):
        Chat(*loaded(), **options)


def test_media_need_a_multimodal_model(loaded, media):
    with pytest.raises(Phi4Error, match="text-only"):
        Chat(*loaded("text")).attach_image(media[0])
    with pytest.raises(Phi4Error, match="nothing to send"):
        next(Chat(*loaded("text")).send(" "))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_thinking_is_told_apart_however_the_text_is_cut(size):
    text = "<think>\na < b</thin</think>\n\nIt is <b>so</b>, <think>or</think> <thin"
    thoughts, found = Thoughts(), []
    for start in range(0, len(text), size):
        found += thoughts.add(text[start : start + size])
    found += thoughts.finish()
    assert "".join(part for part, _ in found) == text
    assert "".join(part for part, thought in found if not thought) == "\n\nIt is <b>so</b>,  <thin"


def test_paths_as_people_give_them(tmp_path):
    (tmp_path / "a b.png").touch()
    for given in (f"{tmp_path}/a b.png", f"'{tmp_path}/a b.png'", f"{tmp_path}/a\\ b.png"):
        assert _path(given) == tmp_path / "a b.png"
    assert _path("it's.png") == Path("it's.png")


def test_ctrl_c_in_a_long_prompt_drops_the_turn(loaded, capsys):
    chat = Chat(*loaded(), prefill_step_size=4, max_tokens=3)
    repl = Repl(chat, quiet=True)
    stop_at = 8

    def progress(done, total):
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # the handler runs between two instructions
        repl._progress(done, total)

    chat.options["progress"] = progress
    repl._take("Tell me of the sea.")
    assert chat.turns == [] and capsys.readouterr() == ("", "[stopped; this turn is not kept]\n")
    stop_at = None
    repl._take("Tell me of the sea.")
    assert len(chat.turns) == 2 and capsys.readouterr().out.rstrip("\n") == chat.turns[1]["content"].rstrip("\n")


# in a terminal

# answers with thinking, one piece at a time, without a trained model
SCRIPTED = """
import sys, time
import mlx_phi4.generation.generate
from mlx_phi4.commands.chat import command
from mlx_phi4 import GenerationResponse

def scripted(model, processor, messages, prompt_cache, **options):
    pieces = ["<th", "ink>so", "me thought</", "think>\\n\\n", "The ", "answer", "\\x1b[31m."]
    if messages[-1]["content"] == "long":
        pieces = ["word "] * 1000
    for i, piece in enumerate(pieces, start=1):
        time.sleep(0.01)
        yield GenerationResponse(piece, 0, "text", 1, i, 1.0, 1.0, 0.0, "stop" if i == len(pieces) else None)

mlx_phi4.generation.generate.stream_generate = scripted
command()
"""


@pytest.fixture
def terminal(checkpoint):
    """A function (program, arguments) -> a chat in a pseudo-terminal, past its first prompt."""
    pexpect = pytest.importorskip("pexpect")
    talks = []

    def start(*arguments, program=PROGRAM, echo=False):
        environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"} | {"TERM": "xterm"}
        arguments = [*program, "--model", str(checkpoint()), *map(str, arguments)]
        talk = pexpect.spawn(sys.executable, arguments, env=environment, encoding="utf-8", timeout=60, echo=echo)
        talks.append(talk)
        talk.expect(">>> ")
        return talk

    yield start
    for talk in talks:
        talk.close(force=True)


def ask(talk, line):
    """Type a line; what came before the next prompt."""
    talk.sendline(line)
    talk.expect(">>> ")
    return talk.before.replace("\r", "")


def end(talk):
    talk.expect(__import__("pexpect").EOF)
    talk.close()
    return talk.exitstatus


def test_a_talk_in_a_terminal(terminal, media, tmp_path, loaded):
    talk = terminal("-m", 5, "--stats")
    assert re.search(r"\[text: prompt \d+ tokens,", ask(talk, "Hello there"))
    assert "a picture.png goes with your next message" in ask(talk, f"/image '{media[0]}'")
    (tmp_path / "nonsense").write_bytes(b"neither picture nor sound")
    assert ask(talk, f"/audio {tmp_path / 'nonsense'}").count("error: ") == 1
    assert "no such file" in ask(talk, "/image none.png")
    assert "path is missing" in ask(talk, "/image")
    assert "[vision: prompt" in ask(talk, "What is this?")
    assert "(" in ask(talk, "Which colour?") and "from the cache)" in talk.before
    assert "unknown command /colour" in ask(talk, "/colour")
    assert "no system message" in ask(talk, "/system")
    assert "[system: Be brief.]" in ask(talk, "/system Be brief.")
    assert "7 messages]" in ask(talk, f"/save {tmp_path / 'talk.json'}")
    assert "Ctrl-C stops" in ask(talk, "/help")
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["role"] for m in saved] == ["system", *["user", "assistant"] * 3]
    expected = "".join(r.text for r in stream_generate(*loaded(), saved[1:2], max_tokens=5))
    assert saved[2]["content"] == expected  # what the terminal got is what the model says
    assert "[cleared]" in ask(talk, "/clear")
    assert "[text: prompt" in ask(talk, "//Hello again")
    assert "error" not in ask(talk, "")
    talk.sendeof()
    talk.expect("not saved: /save FILE keeps it, Ctrl-D again ends")
    talk.expect(">>> ")
    talk.sendeof()
    assert end(talk) == 0
    assert "Traceback" not in talk.before


def test_a_bad_path_costs_nothing_but_a_line(terminal, tmp_path):
    """Any of these ended the program once, and the conversation with it."""
    talk = terminal("-m", 3)
    ask(talk, "Hello there")
    (tmp_path / "mine.txt").write_text("mine")
    for command in ("/image", "/audio", "/save"):
        for path in ("~nobody-here/x", "x" * 300, "/", f"{tmp_path}/none/x", f"{tmp_path}/mine.txt/x"):
            assert ask(talk, f"{command} {path}").count("error: ") == 1, (command, path)
    assert "is there already; /save! " in ask(talk, f"/save {tmp_path / 'mine.txt'}")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert "2 messages]" in ask(talk, f"/save! {tmp_path / 'mine.txt'}")
    assert "2 messages]" in ask(talk, f"/save {tmp_path / 'mine.txt'}")  # it is this conversation's own now
    assert '"Hello there"' in ask(talk, "/save /dev/stderr")
    assert ask(talk, "/image \x16\x1b[31mred.png").count("\x1b[31m") == 0
    talk.sendeof()
    assert end(talk) == 0  # all is saved: nothing to ask


@pytest.mark.parametrize("arrives", ["pasted", "quickly"])
def test_several_lines_at_once_are_one_message(terminal, tmp_path, arrives):
    """With bracketed paste GNU readline gives them as one line, other terminals as lines in quick succession."""
    talk = terminal("-m", 2)
    pasted = "def f(x):\n    return x\n\n/ is no command"
    if arrives == "pasted":
        ask(talk, f"\x1b[200~{pasted}\x1b[201~")
    else:
        talk.send(pasted.replace("\n", "\r") + "\r/attached\r")
        talk.expect("nothing is attached")
        talk.expect(">>> ")
    ask(talk, f"/save {tmp_path / 'talk.json'}")
    messages = json.loads((tmp_path / "talk.json").read_text())
    assert messages[0]["content"] == pasted and len(messages) == 2


def test_a_spoken_question_alone_and_taking_back(terminal, media):
    talk = terminal("-m", 3, "--stats")
    assert ask(talk, "") == ""
    assert "[nothing is attached]" in ask(talk, "/attached")
    assert "an empty line sends it alone]" in ask(talk, f"/audio {media[1]}")
    assert f"[audio {media[1]}]" in ask(talk, "/attached")
    assert "[speech: prompt" in ask(talk, "")
    ask(talk, f"/image '{media[0]}'")
    assert "waits for a question" in ask(talk, "")
    ask(talk, "/clear")
    ask(talk, f"/audio {media[1]}")
    assert "[speech: prompt" in ask(talk, "")
    assert "[text: prompt" not in ask(talk, "And now?")
    assert "[taken back: And now?]" in ask(talk, "/undo")
    assert f"[taken back: audio {media[1]}]" in ask(talk, "/undo")
    assert "no turn to take back" in ask(talk, "/undo")
    assert "[text: prompt" in ask(talk, "And now?")  # nothing of the recording is left


def test_an_error_in_the_middle_of_an_answer_costs_the_turn_only(loaded, capsys, monkeypatch):
    chat = Chat(*loaded(), max_tokens=3)
    repl = Repl(chat, quiet=True)
    repl._take("Hello")
    with monkeypatch.context() as patch:
        patch.setattr(type(chat.model.model.layers[0]), "__call__", lambda *_, **__: 1 / 0)
        repl._take("Hello again")
    assert "error: ZeroDivisionError: division by zero\n" in capsys.readouterr().err and len(chat.turns) == 2
    repl.commands["/system"] = lambda _: {}["x"]
    repl._take("/system x")
    assert capsys.readouterr().err == "error: /system: KeyError: 'x'\n"
    repl._take("And now?")
    assert len(chat.turns) == 4


def test_undo_takes_back_a_turn(loaded):
    chat = Chat(*loaded(), max_tokens=4)
    with pytest.raises(Phi4Error, match="no turn"):
        chat.undo()
    say(chat, "Hello")
    say(chat, "Which?")
    assert chat.undo()["content"] == "Which?" and len(chat.turns) == 2
    assert say(chat, "Why?")[1] > 0


def settled(talk):
    """Wait until nothing more is printed."""
    import pexpect

    while talk.expect([r"(?s).+", pexpect.TIMEOUT], timeout=0.4) == 0:
        pass


def test_ctrl_c_stops_an_answer_and_never_loses_a_talk(terminal, tmp_path):
    import pexpect

    talk = terminal("-m", 20_000, "--temperature", 2, "--seed", 1, "--min-tokens", 20_000, echo=True)
    talk.sendline("Tell me of the sea.")
    talk.expect(r"(?s).{200}")  # more than the line's own echo
    talk.sendintr()
    talk.expect(r"\[stopped; kept as far as it came\]")
    talk.expect(">>> ")
    talk.sendline("Go on.")
    talk.expect(r"(?s).{200}")
    talk.sendintr()
    talk.sendintr()
    talk.expect(">>> ")
    for typed in ("", "half a line", "", ""):
        settled(talk)
        talk.send(typed)
        # a Ctrl-C empties the terminal's queue: readline, if it was about to read it, would wait for another key
        talk.expect_exact(typed)
        # Python notices a signal late that comes just before it begins to wait for a key: one more wakes it
        for _ in range(5):
            talk.sendintr()
            if talk.expect([r"\[Ctrl-D or /exit ends\]\r\n>>> ", pexpect.TIMEOUT], timeout=5) == 0:
                break
        else:
            pytest.fail(f"no answer to Ctrl-C after {typed!r}")
    settled(talk)
    assert "messages]" in ask(talk, f"/save {tmp_path / 'talk.json'}")  # and not the half line
    talk.sendline("/exit")
    assert end(talk) == 0
    assert "Traceback" not in talk.before and "error" not in talk.before
    assert json.loads((tmp_path / "talk.json").read_text())[0]["content"] == "Tell me of the sea."


def test_thinking_is_dimmed(terminal):
    talk = terminal(program=["-c", SCRIPTED])
    shown = ask(talk, "Hello")
    # the answer's own escape sequence does not reach the terminal
    assert "\x1b[2m<think>some thought</think>\x1b[22m\n\nThe answer\ufffd[31m.\n\n" in shown
    talk.sendline("long")
    talk.expect("word word")
    talk.sendintr()
    talk.expect("kept as far")
    talk.expect(">>> ")
    talk.sendline("/exit")
    assert end(talk) == 0


def test_thinking_is_hidden_and_pipes_get_the_plain_answer(checkpoint):
    command = [sys.executable, "-c", SCRIPTED, "--model", str(checkpoint())]
    hidden = subprocess.run([*command, "--hide-thinking"], input="Hello\n", capture_output=True, text=True, check=True)
    assert hidden.stdout == "The answer\x1b[31m.\n\n"
    shown = subprocess.run([*command, "--quiet"], input="Hello\n/help\n", capture_output=True, text=True, check=True)
    assert shown.stdout == "<think>some thought</think>\n\nThe answer\x1b[31m.\n\n"
    assert shown.stderr.startswith("/image PATH")


def test_bad_start_closed_pipe_and_full_disk(checkpoint, tmp_path):
    command = [sys.executable, *PROGRAM, "--model", str(checkpoint())]
    done = subprocess.run([*command, "--image", str(tmp_path / "x")], capture_output=True, text=True, input="")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ") and not done.stdout
    process = subprocess.Popen(
        [*command, "-m", "400", "--temperature", "2", "--seed", "1"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(b"Hi\n" * 3)
    process.stdin.close()
    process.stdout.read(1)
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=60) == 1 and b"Traceback" not in error
    if Path("/dev/full").exists():  # Linux has it, macOS does not
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([*command, "-m", "3"], input=b"Hi\n", stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 2
        assert done.stderr.decode().splitlines()[-1] == "error: No space left on device"

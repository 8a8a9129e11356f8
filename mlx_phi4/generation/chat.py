"""A conversation that remembers."""

import base64
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import kinds
from ..arguments.names import takes
from ..errors import Phi4Error, PromptError
from ..files import expanded, write_whole

if TYPE_CHECKING:  # imported where used, so that --help is instant
    import numpy as np

    from ..inputs.processor import Processor
    from ..inputs.tools import ToolCall
    from ..model import Phi4
    from ..vision.video import SeenVideo, Video
    from .responses import GenerationResponse

MAX_TOKENS = 2048  # of one answer; a chat has room for more than a single request


class Chat:
    """A conversation with a model, turn by turn, in which no token is computed twice.

    ``turns`` are the finished turns as chat messages, ``attached`` the content parts that the next user turn begins
    with, ``system`` the system message or None, ``tools`` what the model may call, ``last`` the latest response of the
    running or finished answer, with its statistics. A turn joins the history when its answer ends or is stopped; one
    that fails leaves no trace, and its attachments stay for another try.
    """

    @takes(
        model=kinds.model,
        processor=kinds.processor,
        system=kinds.text | None,
        adapter=kinds.text | None,
        max_crops=kinds.integer() | None,
    )
    def __init__(
        self,
        model: "Phi4",
        processor: "Processor",
        *,
        system: str | None = None,
        adapter: str | None = None,
        max_crops: int | None = None,
        tools: list[dict] | str | None = None,
        **options,
    ):
        """``adapter`` is that of all turns, None for their modes' own, ``max_crops`` that of every picture and video;
        ``tools`` are what the model may call and ``options`` those of ``stream_generate``.

        Raises Phi4Error if one is out of its range.
        """
        from ..vision.preprocess import MAX_CROPS, crops_kind
        from .prompt_cache import PromptCache

        kinds.settled({"max_crops": crops_kind | None}, {"max_crops": max_crops})
        self.max_crops = max_crops or MAX_CROPS
        self.model, self.processor, self.system, self.tools = model, processor, system, tools
        self.adapter, self.options = adapter, {"max_tokens": MAX_TOKENS} | options
        _check(processor, adapter, self.options, tools)
        self.cache = PromptCache()
        self.turns: list[dict] = []
        self.attached: list[dict] = []
        self.last: GenerationResponse | None = None

    @property
    def messages(self) -> list[dict]:
        """The whole conversation as chat messages, as ``stream_generate`` takes them."""
        front = [] if self.system is None else [{"role": "system", "content": _literal(self.system)}]
        return front + self.turns

    def __repr__(self):
        return f"Chat({len(self.turns)} turns, {len(self.attached)} attached, system={kinds.shown(self.system)})"

    @takes(path=kinds.path)
    def attach_image(self, path: str | Path) -> None:
        """Put a picture into the next user turn. Raises Phi4Error if it cannot be used."""
        from ..vision.preprocess import prepare_picture

        self._attach("image", path, lambda source: prepare_picture(source, self.max_crops))

    @takes(path=kinds.path)
    def attach_audio(self, path: str | Path) -> None:
        """Put a recording into the next user turn. Raises Phi4Error if it cannot be used."""
        from ..audio.preprocess import prepare_clip

        self._attach("audio", path, prepare_clip)

    def attach_video(self, video: "Video | str | Path") -> "SeenVideo":
        """Put a video into the next user turn, its sound if asked for; what is seen of it.

        Raises Phi4Error if it cannot be used.
        """
        from ..vision.video import Video

        self.processor.config.check_sees()
        if not isinstance(video, Video):
            video = Video(expanded(kinds.settled({"video": kinds.path}, {"video": video})["video"]))
        video = replace(video, max_crops=video.max_crops or self.max_crops)
        how = {name: getattr(video, name) for name in ("frames", "fps", "max_crops", "with_sound")}
        seen = video.read()
        part = {"type": "video", "video": seen, "path": str(Path(seen.name).resolve())}
        self.attached.append(part | {name: value for name, value in how.items() if value})
        return seen

    def attach_sound(self, samples: "np.ndarray", rate: int) -> None:
        """Put what was just recorded, (samples,) at ``rate`` Hz, into the next user turn. Raises Phi4Error."""
        import soundfile

        from ..audio.preprocess import prepare_clip

        self.processor.config.check_hears()
        clip, file = prepare_clip((samples, rate)), io.BytesIO()
        soundfile.write(file, samples, rate, format="FLAC")
        # it has no path: a saved conversation holds its bytes
        kept = {"data": base64.b64encode(file.getvalue()).decode("ascii"), "format": "flac"}
        self.attached.append({"type": "audio", "audio": clip, "input_audio": kept})

    def _attach(self, kind: str, path: str | Path, prepare) -> None:
        config = self.processor.config
        (config.check_sees if kind == "image" else config.check_hears)()
        path = expanded(path)
        # prepared once, for every turn to come: the file may change or go while the conversation lasts
        self.attached.append({"type": kind, kind: prepare(path), "path": str(path.resolve())})

    @takes(text=kinds.text)
    def send(self, text: str) -> Iterator[str]:
        """Ask, and yield the answer in pieces (some are empty), one for each token.

        Closing the iterator stops the answer; the turn is kept as far as it came. Raises Phi4Error before the first
        piece if the conversation does not fit.
        """
        if not text.strip() and not self.attached:
            raise PromptError("there is nothing to send")
        _check_text(text)
        spoken = _literal(text) if text.strip() else []
        content = [*self.attached, *_parts(spoken)] if self.attached else spoken
        yield from self._answer([{"role": "user", "content": content}])

    @property
    def calls(self) -> tuple["ToolCall", ...]:
        """Calls of tools in the last answer."""
        return tuple(self.turns[-1].get("tool_calls", ())) if self.turns else ()

    def send_results(self, results: Iterable | Mapping) -> Iterator[str]:
        """Give the results of the last answer's ``calls``, and yield the answer to them as ``send`` does.

        Args:
            results: one for each call in their order, or by the calls' ids; what is no string is written as JSON.
        """
        given = [results.get(call.id) for call in self.calls] if isinstance(results, Mapping) else list(results)
        if not self.calls or len(given) != len(self.calls) or (isinstance(results, Mapping) and None in given):
            raise PromptError(f"results are {kinds.shown(results)}, expected one for each of {len(self.calls)} calls")
        yield from self._answer(
            [
                {"role": "tool", "tool_call_id": call.id, "content": _result(result)}
                for call, result in zip(self.calls, given, strict=True)
            ]
        )

    def _answer(self, asked: list[dict]) -> Iterator[str]:
        from .generate import stream_generate

        self.last, answer, calls = None, "", []
        responses = stream_generate(
            self.model,
            self.processor,
            [*self.messages, *asked],
            tools=self.tools,
            adapter=self.adapter,
            prompt_cache=self.cache,
            **self.options,
        )
        try:
            try:
                for self.last in responses:
                    answer += self.last.text
                    calls += self.last.tool_calls
                    yield self.last.text
            except GeneratorExit:
                responses.close()
        except Phi4Error:
            raise  # refused before anything was computed
        except BaseException:
            # whatever was interrupted in the middle of a step must not be gone on with
            self.cache.clear()
            raise
        self.turns += [*asked, {"role": "assistant", "content": _literal(answer)} | _called(calls)]
        self.attached = [] if asked[0]["role"] == "user" else self.attached

    def undo(self) -> dict:
        """Take back the last question with all that followed, and return it. Raises Phi4Error if there is none."""
        if not self.turns:
            raise Phi4Error("there is no turn to take back")
        last = max(index for index, turn in enumerate(self.turns) if turn["role"] == "user")
        asked = self.turns[last]
        self.turns = self.turns[:last]  # the cache stays: the next turn reuses it as far as it begins alike
        return asked

    def clear(self) -> None:
        """Forget history and attachments; the system message stays."""
        self.turns, self.attached, self.last = [], [], None
        self.cache.clear()

    @takes(path=kinds.path)
    def save(self, path: str | Path) -> Path:
        """Write the conversation as a JSON list of messages, media as paths. Raises Phi4Error."""
        path = expanded(path)
        text = json.dumps([_saved(message) for message in self.messages], ensure_ascii=False, indent=1)
        try:
            with write_whole(path) as partial:
                partial.write_text(text + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
            reason = getattr(error, "strerror", None) or error
            raise Phi4Error(f"{path}: cannot be written: {reason}") from None
        return path


def _check(processor: "Processor", adapter: str | None, options: dict, tools: list[dict] | str | None) -> None:
    """Refuse options at the start of a chat, not in its first answer."""
    from ..inputs.tools import read_tools
    from ..modalities import Mode, chosen_adapter
    from .options import make_options
    from .text import AnswerText
    from .tool_choice import answer_form

    chosen = make_options(options, also=("system", "adapter", "tools"))
    chosen_adapter(adapter, Mode.TEXT, processor.adapters)
    AnswerText(processor.tokenizer, chosen.stop)
    answer_form(read_tools([] if tools is None else tools), chosen, processor.tokenizer)
    decoder = processor.config.decoder
    chosen.kv.check(decoder.head_dim)
    if chosen.max_tokens >= decoder.max_position_embeddings:
        raise Phi4Error(
            f"max_tokens is {chosen.max_tokens}, expected at least 1 and less than the context of "
            f"{decoder.max_position_embeddings}"
        )


def _called(calls: list["ToolCall"]) -> dict:
    return {"tool_calls": calls} if calls else {}


def _result(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(f"the result {kinds.shown(value)} cannot be written as JSON: {error}") from None


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError("the text holds bytes that are not UTF-8") from None


def _literal(text: str) -> str | list[dict]:
    """Content that means this text itself, also where it spells a placeholder such as ``<|image_1|>``.

    Media belong to a chat by being attached; a model that writes a placeholder must not make the next turn ask for a
    picture. Adjacent text parts are encoded as one text, but no placeholder is looked for across them.
    """
    from ..inputs.prompt import placeholder

    cuts = [found.start() + 2 for found in placeholder().finditer(text)]
    if not cuts:
        return text
    return [
        {"type": "text", "text": text[start:stop]} for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]


def _parts(content: str | list[dict]) -> list[dict]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _saved(message: dict) -> dict:
    """A message with its media as paths, which ``stream_generate`` reads."""
    content = message["content"]
    if isinstance(content, list):
        content = [{k: v for k, v in part.items() if k not in ("image", "audio", "video")} for part in content]
    calls = {"tool_calls": [call.message for call in message["tool_calls"]]} if "tool_calls" in message else {}
    return message | {"content": content} | calls

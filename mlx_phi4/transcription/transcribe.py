"""Speech to text, subtitles and translations, from any recording."""

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import kinds
from ..arguments.kinds import shown
from ..arguments.names import check_names, takes
from ..errors import MediaError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4
    from .transcript import Transcript

MODEL = "microsoft/Phi-4-multimodal-instruct"


@takes(model=kinds.model_or_name, processor=kinds.processor | None, progress=kinds.function | None)
def transcribe(
    source: Any,
    model: "str | Path | Phi4" = MODEL,
    *,
    processor: "Processor | None" = None,
    task: str = "transcribe",
    to: str | None = None,
    prompt: str | None = None,
    context: str | None = None,
    segment_seconds: float | None = None,
    batch_size: int = 8,
    clip_timestamps: str | list | None = None,
    progress: Callable[[float], None] | None = None,
    **options,
) -> "Transcript":
    """Transcribe, translate, summarize or answer a recording of any length.

    Args:
        source: a path, bytes, an open file, (array, rate in Hz), {"array", "sampling_rate"}, or an array (samples,) at
            16 kHz; see ``audio.reader.open_recording``.
        model: a folder or a hub id, which stays loaded for the next call; or a loaded model, with its ``processor``.
        task: transcribe, translate, transcribe+translate, summarize or ask.
        to: language of a translation by English name or code; None is English.
        prompt: used instead of the task's own.
        context: names and terms that may occur.
        segment_seconds: longest piece that is decoded at once, at most 40; None is the model's own limit, usually 30.
        batch_size: pieces decoded together; it changes the speed, not the text.
        clip_timestamps: parts of the recording: "start,end,..." in seconds or mm:ss, or a list of numbers or pairs.
        progress: told the seconds of the recording that are decoded.
        options: the other keywords of ``Transcriber``: ``pause``, ``max_tokens``, ``temperatures``,
            ``compression_ratio_threshold``, ``logprob_threshold``, ``seed``, ``partial``, ``adapter``.

    Raises:
        Phi4Error: a bad value, recording or model, in one line.
    """
    from ..loading import model_and_processor
    from .chunking import Failure
    from .transcriber import Transcriber

    known = [*inspect.signature(Transcriber).parameters, *inspect.signature(transcribe).parameters]
    check_names(options, known, "transcribe: ")
    options |= {"task": task, "to": to, "prompt": prompt, "context": context, "clip_timestamps": clip_timestamps}
    transcriber = Transcriber(segment_seconds=segment_seconds, batch_size=batch_size, **options)
    source = _with_rate(source)
    loaded = model_and_processor(model, processor)
    told = (lambda index, seconds: None) if progress is None else (lambda index, seconds: progress(seconds))
    with closing(transcriber(*loaded, [source], progress=told)) as results:
        [(_, result)] = results
    if not isinstance(result, Failure):
        return result
    named = isinstance(source, (str, os.PathLike)) and os.fspath(source)  # a path names itself
    if isinstance(result.error, MediaError) and not named:
        raise type(result.error)(f"source: {result.error}") from None
    raise result.error


def _with_rate(source: Any) -> Any:
    """A bare array is taken for 16 kHz. Arrays are read here, as those of MLX belong to the caller's thread."""
    from ..audio.reader import SAMPLE_RATE
    from ..sources import as_array, is_array

    if isinstance(source, Mapping) and "array" in source:
        source = source["array"], source.get("sampling_rate")
    if isinstance(source, (tuple, list)) and len(source) == 2 and is_array(source[0]):
        return as_array(source[0]), source[1]
    if not is_array(source):
        return source
    array = as_array(source)
    if array.ndim != 1 and 1 not in array.shape:
        raise MediaError(f"source is {shown(source)}, expected (samples,) or (array, rate)")
    return array.reshape(-1), SAMPLE_RATE

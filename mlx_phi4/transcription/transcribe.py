"""Speech to text, subtitles and translations, from any recording."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MediaError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4
    from .transcript import Transcript

MODEL = "microsoft/Phi-4-multimodal-instruct"


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
        source: a path, bytes, (array, rate in Hz), or an array (samples,) at 16 kHz.
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
            ``compression_ratio_threshold``, ``logprob_threshold``, ``seed``.

    Raises:
        Phi4Error: a bad value, recording or model, in one line.
    """
    from ..loading import model_and_processor
    from .chunking import Failure
    from .transcriber import Transcriber

    options |= {"task": task, "to": to, "prompt": prompt, "context": context, "clip_timestamps": clip_timestamps}
    transcriber = Transcriber(segment_seconds=segment_seconds, batch_size=batch_size, **options)
    source = _with_rate(source)
    loaded = model_and_processor(model, processor)
    told = (lambda index, seconds: None) if progress is None else (lambda index, seconds: progress(seconds))
    with closing(transcriber(*loaded, [source], progress=told)) as results:
        [(_, result)] = results
    if isinstance(result, Failure):
        raise result.error
    return result


def _with_rate(source: Any) -> Any:
    """A bare array is taken for 16 kHz."""
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview, tuple, list)):
        return source
    import numpy as np

    from ..audio.reader import SAMPLE_RATE

    array = np.asarray(source)
    if array.ndim != 1:
        raise MediaError(f"audio of type {type(source).__name__}: expected a path, bytes, (array, rate) or (samples,)")
    return array, SAMPLE_RATE

"""Error rates of what the model hears in recordings whose words are known."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..arguments import kinds
from ..arguments.names import takes
from ..config import WINDOW_SECONDS
from ..distributed import join
from ..errors import Phi4Error
from ..ranks.together import check_same
from ..ranks.work import Lost, share_out
from .manifest import SpeechItem, read_speech
from .word_errors import NORMALIZERS, ErrorRates, Normalizer, error_rates

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..inputs.processor import Processor
    from ..model import Phi4
    from ..transcription.decoding import AudioChunk


@dataclass
class SpeechScore:
    """One recording: what is said, what was heard (None: it could not be read), and its own error rates.

    The rates are None where ``skipped`` says that the reference holds no words or ``error`` why nothing was heard.
    """

    id: str
    audio: str
    reference: str
    hypothesis: str | None = None
    normalized_reference: str = ""
    normalized_hypothesis: str | None = None
    wer: float | None = None
    cer: float | None = None
    seconds: float | None = None
    skipped: bool = False
    error: str | None = None


@dataclass
class SpeechScores:
    """All recordings: errors of all over words (characters) of all; None where nothing could be scored.

    ``real_time_factor`` is ``wall_seconds / audio_seconds``, and ``speed`` its inverse (RTFx). Loading the model is
    not in it; reading the recordings is.
    """

    wer: float | None
    cer: float | None
    scored: int
    skipped: int
    failed: int
    audio_seconds: float
    wall_seconds: float
    real_time_factor: float | None
    speed: float | None
    files: list[SpeechScore] = field(repr=False)


@takes(
    manifest=kinds.path,
    model=kinds.model_or_name,
    processor=kinds.processor | None,
    limit=kinds.integer(1) | None,
    batch_size=kinds.integer(1),
    normalizer=kinds.choice(*NORMALIZERS),
    adapter=kinds.text | None,
    progress=kinds.function | None,
)
def evaluate_asr(
    manifest: str | Path,
    model: "str | Path | Phi4",
    *,
    processor: "Processor | None" = None,
    limit: int | None = None,
    batch_size: int = 8,
    normalizer: str = "auto",
    adapter: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SpeechScores:
    """Word and character error rates of transcripts.

    A recording of up to 40 s is one request with the published prompt, answered greedily, as the published figures
    are made; a longer one goes through ``transcribe``.

    Args:
        manifest: JSON lines with ``audio``, ``text``, optionally ``language`` and ``id``; see ``manifest``.
        model: a folder or a hub id, or a loaded model with its ``processor``.
        limit: only so many of the first lines.
        batch_size: recordings decoded together.
        normalizer: auto, english, basic or none; see ``word_errors.Normalizer``.
        adapter: instead of speech mode's own; "base" is none.
        progress: told how many recordings are done, of how many.

    Raises:
        Phi4Error: a bad manifest, value or model. A recording that cannot be read does not raise: its score says so.
    """
    from ..loading import model_and_processor

    items, normalize = read_speech(manifest, limit), Normalizer(normalizer)
    references = [normalize(item.text, item.language) for item in items]
    files = [
        SpeechScore(item.id, str(item.audio), item.text, normalized_reference=text.words, skipped=not text)
        for item, text in zip(items, references, strict=True)
    ]
    asked = [index for index, text in enumerate(references) if text]
    ranks = join("data")
    check_same(ranks, model)
    loaded = ranks.settle(lambda: model_and_processor(model, processor))
    began, hypotheses = time.perf_counter(), {}
    sizes = [items[index].audio.stat().st_size if text else None for index, text in enumerate(references)]
    results = share_out(ranks, sizes, lambda order: _transcribed(*loaded, items, batch_size, order, adapter))
    for done, (index, heard) in enumerate(results, start=1):
        score = files[index]
        if isinstance(heard, (str, Lost)):
            score.error = str(heard)
        else:
            score.hypothesis, score.seconds = heard
            hypotheses[index] = normalize(score.hypothesis, items[index].language)
            score.normalized_hypothesis = hypotheses[index].words
            rates = error_rates([references[index]], [hypotheses[index]])
            score.wer, score.cer = rates.wer, rates.cer
        if progress is not None:
            progress(done, len(asked))
    rates = error_rates([references[i] for i in hypotheses], list(hypotheses.values())) if hypotheses else None
    return _totals(files, rates, len(hypotheses), time.perf_counter() - began)


def _totals(files: list[SpeechScore], rates: ErrorRates | None, scored: int, wall: float) -> SpeechScores:
    audio, skipped = sum(score.seconds or 0.0 for score in files), sum(score.skipped for score in files)
    return SpeechScores(
        wer=rates.wer if rates else None,
        cer=rates.cer if rates else None,
        scored=scored,
        skipped=skipped,
        failed=len(files) - skipped - scored,
        audio_seconds=round(audio, 3),
        wall_seconds=round(wall, 3),
        real_time_factor=wall / audio if audio else None,
        speed=audio / wall if audio else None,
        files=files,
    )


def _transcribed(
    model: "Phi4",
    processor: "Processor",
    items: list[SpeechItem],
    batch_size: int,
    order: Iterable[int],
    adapter: str | None,
) -> Iterator[tuple[int, tuple[str, float] | str]]:
    """Each item's index with its text and seconds, or with a line that says why there is none."""
    from ..transcription.chunking import Failure, read_ahead
    from ..transcription.decoding import DecodingOptions, SegmentDecoder
    from ..transcription.tasks import make_question
    from ..transcription.transcribe import transcribe
    from ..transcription.transcript import Segment

    options = DecodingOptions(batch_size=batch_size, temperatures=(0.0,), adapter=adapter)
    decoder = SegmentDecoder(model, processor, make_question("transcribe"), options)
    with closing(read_ahead([partial(_read_chunk, item.audio) for item in items], jobs=2, order=order)) as chunks:
        for index, found in decoder(chunks):
            path = items[index].audio
            if isinstance(found, Segment):
                yield index, (found.text, found.end)
            elif isinstance(found, (Failure, Exception)):
                yield index, (found if isinstance(found, Failure) else Failure(found)).line(str(path))
            else:
                try:
                    transcript = transcribe(path, model, processor=processor, batch_size=batch_size, adapter=adapter)
                    yield index, (transcript.text, transcript.duration)
                except (Phi4Error, OSError) as error:
                    yield index, Failure(error).line(str(path))


def _read_chunk(path: Path) -> "Iterator[AudioChunk | Path]":
    """The features of a recording in one piece; its path alone if it is longer than the encoder's window."""
    import numpy as np

    from ..audio.preprocess import FRAME, HOP, SAMPLE_RATE, Clip, feature_blocks
    from ..audio.reader import open_recording
    from ..transcription.decoding import AudioChunk

    blocks, seconds = [], 0.0
    with open_recording(path) as recording, closing(feature_blocks(recording)) as features:
        for block in features:
            blocks.append(block)
            seconds = ((sum(map(len, blocks)) - 1) * HOP + FRAME) / SAMPLE_RATE
            if seconds > WINDOW_SECONDS:
                yield path
                return
    yield AudioChunk(0.0, seconds, Clip(np.concatenate(blocks)))

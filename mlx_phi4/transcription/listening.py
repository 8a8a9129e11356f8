"""A microphone or a pipe to text on standard output, until the sound ends or Ctrl-C does."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MediaError, Phi4Error
from ..loading import model_and_processor
from .live import Live
from .live_output import LiveOutput
from .outputs import STANDARD_INPUT
from .transcriber import Transcriber

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..audio.microphone import Microphone
    from ..audio.piped import PipedSound
    from ..inputs.processor import Processor
    from ..model import Phi4


def listen(
    source: str | None,
    model: "str | Path | Phi4",
    processor: "Processor | None" = None,
    *,
    revision: str | None = None,
    adapters: dict[str, str] | None = None,
    rate: int | None = None,
    channels: int | None = None,
    device: str | None = None,
    format: str = "txt",
    max_line_width: int | None = None,
    quiet: bool = False,
    **options: Any,
) -> int:
    """Transcribe what is being said, and write each segment as soon as it is heard; the number that failed.

    Args:
        source: None is the microphone, "-" standard input: raw samples, wav, or encoded sound.
        model, processor, revision, adapters: as in ``transcribe_files``.
        rate, channels: of raw samples on standard input, see ``audio.piped.PipedSound``.
        device: a microphone's number or a part of its name.
        format: txt, srt, vtt, tsv or jsonl.
        max_line_width: characters of a line in srt and vtt.
        quiet: nothing on standard error but errors.
        options: the keywords of ``Transcriber``.

    Raises:
        Phi4Error: a bad value, no sound, or sound that breaks off; everything that was heard is written before.
    """
    if source not in (None, STANDARD_INPUT):
        raise Phi4Error(f"--live hears the microphone, or standard input (-); {source} is transcribed without --live")
    if source is None and (rate is not None or channels is not None):
        raise Phi4Error("--rate and --channels are of raw samples on standard input (-)")
    if source is not None and device is not None:
        raise Phi4Error("--device is a microphone's, and standard input (-) is heard")
    output, transcriber = LiveOutput(format, max_line_width, quiet), Transcriber(**options)
    sound = _microphone(device, output) if source is None else None  # none there: known before a model is asked for
    loaded = model_and_processor(model, processor, revision=revision, adapters=adapters, quiet=quiet)
    sound = sound or _pipe(rate, channels)
    for warning in transcriber.question.warnings:
        output.note(f"warning: {warning}")
    ears = Live(transcriber, *loaded, rate=sound.rate, told=output.told, outside=lambda: sound.waiting)
    output.begin()
    _hear(sound, ears, output)
    output.note(f"{ears.seconds:.1f} s of sound in {output.segments} segment{'s' * (output.segments != 1)}")
    return output.failed


def _hear(sound: "Microphone | PipedSound", ears: Live, output: LiveOutput) -> None:
    """Until the sound ends; what came before it broke off, or before Ctrl-C, is heard to its end."""
    broken = None
    with ears:
        try:
            with sound:
                output.note(f"listening: {sound.form}; Ctrl-C ends")
                for block in sound.blocks():
                    ears.feed(block)
        except MediaError as error:
            broken = error
        except KeyboardInterrupt:
            output.note("[the rest is being heard; Ctrl-C again ends at once]")
            for block in _left(sound):
                ears.feed(block)
        ears.finish()
        output.finish()
    if broken is not None:
        raise broken


def _left(sound: "Microphone | PipedSound"):
    """What a microphone heard before it was closed; a pipe has nothing left that belongs to us."""
    return sound.blocks() if sound.name == "microphone" else ()


def _microphone(device: str | None, output: LiveOutput) -> "Microphone":
    from ..audio.microphone import Microphone

    return Microphone(device, lambda line: output.note(f"warning: {line}"))


def _pipe(rate: int | None, channels: int | None) -> "PipedSound":
    from ..audio.piped import PipedSound

    return PipedSound(sys.stdin.buffer, rate, channels)

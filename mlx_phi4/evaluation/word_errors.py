"""Word and character error rates as the field computes them: normalized texts, errors of all over words of all.

Normalization is that of the OpenASR leaderboard and of Whisper (whisper-normalizer), the counting jiwer's; both are
in the extra ``eval``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import Phi4Error
from ..transcription.tasks import language_name

NORMALIZERS = ("auto", "english", "basic", "none")
UNSPACED = ("Chinese", "Japanese")  # each character counts as a word, as in Whisper's own figures
IGNORED = ("", "ignore time segment in scoring")  # references that OpenASR leaves out


@dataclass(frozen=True)
class Text:
    """A normalized text, as words and as characters."""

    words: str
    characters: str

    def __bool__(self):
        """Whether a reference counts."""
        return self.words not in IGNORED


@dataclass(frozen=True)
class ErrorRates:
    """Substitutions, deletions and insertions per word and per character of the references: 0 is perfect."""

    wer: float
    cer: float


class Normalizer:
    """Makes texts comparable: case, punctuation, spellings, numbers.

    Args:
        name: "english" as OpenASR; "basic" as Whisper for other languages; "none" leaves texts as they are; "auto"
            takes "basic" where a language is given that is not English.

    Raises:
        Phi4Error: an unknown name, or the extra ``eval`` is not installed.
    """

    def __init__(self, name: str = "auto"):
        if name not in NORMALIZERS:
            raise Phi4Error(f"normalizer is {name!r}, expected {', '.join(NORMALIZERS)}")
        try:
            import jiwer  # noqa: F401, found missing before any work is done
            from whisper_normalizer.basic import BasicTextNormalizer
            from whisper_normalizer.english import EnglishTextNormalizer
        except ModuleNotFoundError as error:
            raise Phi4Error(f'error rates need {error.name}: pip install "mlx_phi4[eval]"') from None
        self._name, self._english, self._basic = name, EnglishTextNormalizer(), BasicTextNormalizer()

    def __call__(self, text: str, language: str | None = None) -> Text:
        language = language_name(language or "English")
        name = self._name if self._name != "auto" else "english" if language == "English" else "basic"
        clean = {"english": self._english, "basic": self._basic, "none": str}[name]
        plain = " ".join(clean(text).split())
        if language not in UNSPACED:
            return Text(plain, plain)
        joined = plain.replace(" ", "")
        return Text(" ".join(joined), joined)


def error_rates(references: Sequence[Text], hypotheses: Sequence[Text]) -> ErrorRates:
    """Over all of them together, so that a long text counts for more than a short one. None of them is ignored."""
    import jiwer

    words = jiwer.process_words([text.words for text in references], [text.words for text in hypotheses])
    asked, said = [text.characters for text in references], [text.characters for text in hypotheses]
    return ErrorRates(words.wer, jiwer.process_characters(asked, said).cer)

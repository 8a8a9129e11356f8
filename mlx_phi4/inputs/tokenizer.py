"""The checkpoint's own ``tokenizer.json``, and encoding that content cannot use to forge roles."""

from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path

from ..config import LARGEST, Config
from ..errors import ConfigError, PromptError
from ..files import read_json
from ..modalities import MODALITIES
from .chat_template import read_default_system
from .tokenizer_file import is_panic, read_tokenizer

END = "<|end|>"
END_OF_TEXT = "<|endoftext|>"

# Unicode's White_Space, which is what the tokenizers library strips beside a token; Python's own
# str.strip takes four control characters more
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)


@dataclass(frozen=True)
class SpecialToken:
    """An added token; ``lstrip`` and ``rstrip`` say on which sides it swallows white space."""

    content: str
    id: int
    lstrip: bool
    rstrip: bool


class Tokenizer:
    """A ``tokenizers.Tokenizer`` with the ids that this model family needs, looked up by string."""

    def __init__(self, folder: Path, config: Config):
        """Read ``tokenizer.json``. Raises CheckpointError or ConfigError if it cannot serve."""
        path = folder / "tokenizer.json"
        self.vocab_size = config.decoder.vocab_size  # the model's, which may be more than there are entries
        self._tokenizer, added = read_tokenizer(path, self.vocab_size)
        self.special = {
            token["content"]: SpecialToken(
                token["content"],
                token["id"],
                token.get("lstrip", False),
                token.get("rstrip", False),
            )
            for token in added
        }
        self._special_ids = {token.id for token in self.special.values()}
        missing = [s for s in (END, "<|user|>", "<|assistant|>") if s not in self.special]
        if missing:
            raise ConfigError(f"{path} lacks {', '.join(missing)}: not a Phi-4 tokenizer")
        self.default_system = read_default_system(folder)
        self.stop_ids = self._stop_ids(folder)
        end_of_text = self.special.get(END_OF_TEXT, self.special[END])
        self.pad_id = end_of_text.id
        self.placeholders: dict[str, SpecialToken] = {}
        for kind, modality in MODALITIES.items():
            token = self._placeholder(modality.tokens, getattr(config, f"{kind}_token_id", None))
            if token is not None:
                self.placeholders[kind] = token
            elif config.multimodal and modality.held(config):
                raise ConfigError(f"{path} has no {kind} placeholder token")

    def _placeholder(self, names: tuple[str, ...], from_config: int | None) -> SpecialToken | None:
        """By string; by the config's id only where the tokenizer knows neither string."""
        for name in names:
            if name in self.special:
                return self.special[name]
        for token in self.special.values():
            if token.id == from_config:
                return token
        return None

    def _stop_ids(self, folder: Path) -> frozenset[int]:
        """``<|end|>``, ``<|endoftext|>`` and whatever the generation config adds."""
        stops = {self.special[s].id for s in (END, END_OF_TEXT) if s in self.special}
        path = folder / "generation_config.json"
        if path.exists():
            extra = read_json(path).get("eos_token_id")
            extra = extra if isinstance(extra, list) else [] if extra is None else [extra]
            # one beyond the vocabulary is a stop that never comes, as some published files have it
            if not all(type(token) is int and 0 <= token <= LARGEST for token in extra):
                raise ConfigError(f"{path}: eos_token_id is {extra}, expected token ids")
            stops.update(extra)
        return frozenset(stops)

    def encode(self, text: str) -> list[int]:
        """Ids of a string in which special tokens count, as the published joined encoding.

        Raises PromptError for text that is not Unicode (half a surrogate pair, from undecodable bytes), or that the
        tokenizer's pattern gives up on.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise PromptError(f"the text is not valid Unicode: {error.reason} at character {error.start}") from None
        try:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            if not is_panic(error):
                raise
            raise PromptError(f"the tokenizer cannot split the text: {error}") from None

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a string in which no special token counts, whatever it spells."""
        ids = self.encode(text)
        if self._special_ids.isdisjoint(ids):
            return ids
        if self._tokenizer.normalizer is not None:
            text = self._tokenizer.normalizer.normalize_str(text)
        pieces = self._tokenizer.pre_tokenizer.pre_tokenize_str(text)
        return [id for piece, _ in pieces for id in self._piece(piece)]

    def _piece(self, piece: str) -> list[int]:
        ids = [token.id for token in self._tokenizer.model.tokenize(piece)]
        if self._special_ids.isdisjoint(ids) or len(piece) == 1:
            return ids
        # the vocabulary itself holds the special string: halves of it do not spell it
        half = len(piece) // 2
        return self._piece(piece[:half]) + self._piece(piece[half:])

    def decode(self, ids: list[int]) -> str:
        """The text of ids, special tokens left out."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """What one token is in UTF-8, perhaps a part of a character; a special token as it is spelled."""
        spelled = self._tokenizer.id_to_token(id) or ""
        if id in self._special_ids:
            return spelled.encode("utf-8")
        table = _byte_level()
        return b"".join(bytes([table[c]]) if c in table else c.encode("utf-8") for c in spelled)

    def all_bytes(self) -> list[bytes]:
        """``token_bytes`` of all the model's ids; nothing for those that have no entry."""
        others = {chr(byte): "\uffff" for byte in range(128, 256)}  # no byte is spelled so
        table = str.maketrans(others | {shown: chr(byte) for shown, byte in _byte_level().items()})
        found = [b""] * self.vocab_size
        for spelled, id in self._tokenizer.get_vocab(with_added_tokens=True).items():
            plain = spelled.translate(table)
            if id in self._special_ids or (plain and ord(max(plain)) > 255):
                found[id] = self.token_bytes(id)
            else:
                found[id] = plain.encode("latin-1")
        return found

    @cached_property
    def digest(self) -> str:
        """The same for two tokenizers in which every id is the same token."""
        vocabulary = sorted(self._tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda each: each[1])
        return blake2b(repr((vocabulary, self.vocab_size)).encode(), digest_size=16).hexdigest()

    def detokenizer(self) -> "Detokenizer":
        """A fresh streaming decoder."""
        return Detokenizer(self)


@cache
def _byte_level() -> dict[str, int]:
    """The characters that byte-level BPE writes for bytes (GPT-2's ``bytes_to_unicode``)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that can be seen stand for themselves
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


class Detokenizer:
    """Turns tokens into text as they come; the pieces join to ``Tokenizer.decode`` of them all."""

    def __init__(self, tokenizer: Tokenizer):
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self.tokens: list[int] = []
        self._sent = 0

    def add(self, token: int) -> str:
        """The new piece of text; empty while a character's bytes are not all there."""
        self.tokens.append(token)
        piece = self._stream.step(self._tokenizer._tokenizer, token) or ""
        self._sent += len(piece)
        return piece

    def finish(self) -> str:
        """What was held back: the bytes of an unfinished character, as replacement characters."""
        return self._tokenizer.decode(self.tokens)[self._sent :]

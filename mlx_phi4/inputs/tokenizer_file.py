"""``tokenizer.json``, read strictly: what the family's tokenizers are made of, ids that the model has, bounded work.

The library that runs it takes far more: steps that multiply a text, patterns that take minutes over a word, ids of any
size. The model's embedding has one row for each id below ``vocab_size``, and an id beyond it reads foreign memory.
"""

import re
import time
from pathlib import Path

from ..errors import CheckpointError
from ..files import parse_object, read_text

MOST_BYTES = 32_000_000  # of the file; the published ones have 15.5 MB
LONGEST_ENTRY = 1000  # characters of a token in the vocabulary; the published ones have up to 128
LONGEST_ADDED = 65_536  # characters of all added tokens together: looking for them costs a kilobyte for each
MOST_IN_SEQUENCE = 8  # of a sequence
LONGEST_PATTERN = 2000  # characters; the published one has 360

# The kinds that each part may be of. None of them makes more of a text than its bytes, written as one character each.
STEP_KINDS = {
    "normalizer": ("NFC", "NFD", "NFKC", "NFKD"),
    "pre_tokenizer": ("Split", "ByteLevel"),
    "decoder": ("ByteLevel",),
    "post_processor": ("ByteLevel", "TemplateProcessing"),
}
# a repeated group, a reference to one, or a repetition of a repetition or of more than 999 times
SLOW = re.compile(r"\)[*+{]|\\[1-9kg]|[*+?]\{|\d,?\}[*{]|\{\d{4}|\{\d*,\d{4}")
TRIED = ("a", "A", "aB", "0", " ", "\n", " \n", ".", "é", "中", "a ", "' ")  # repeated, to measure a pattern
TRIED_LENGTHS = (16, 32, 64, 128, 256, 512)
SLOW_SECONDS = 0.2  # of one core for 512 characters; the published pattern takes a thousandth of it


def read_tokenizer(path: Path, vocab_size: int):
    """The library's tokenizer and the entries of its added tokens. Raises CheckpointError."""
    import tokenizers

    text = read_text(path, MOST_BYTES)
    try:
        raw = parse_object(text)
        _check_steps(raw)
        _check_vocabulary(raw, vocab_size)
        tokenizer = tokenizers.Tokenizer.from_str(text)  # as text: cheaper than to write the checked JSON again
        _check_ids(tokenizer, raw["added_tokens"])
        tokenizer.no_truncation()
        tokenizer.no_padding()
        _check_speed(tokenizer)
    except BaseException as error:  # the library raises bare Exception for a malformed file, or panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{path} cannot be used: {error}") from None
    return tokenizer, raw["added_tokens"]


def is_panic(error: BaseException) -> bool:
    """Whether the library came to an end that it did not foresee: that is no Exception."""
    return type(error).__name__ == "PanicException"


def _check_steps(raw: dict) -> None:
    """Raises ValueError for steps that the family's tokenizers do not have."""
    for part, kinds in STEP_KINDS.items():
        steps = _steps(raw.get(part), part)
        for step in steps:
            if step.get("type") not in kinds:
                raise ValueError(f"its {part} is {step.get('type')!r}, expected {' or '.join(kinds)}")
        found = [step["type"] for step in steps]
        if part == "pre_tokenizer" and found.count("ByteLevel") != 1:
            raise ValueError("its pre_tokenizer has not one step ByteLevel")
    for step in _steps(raw["pre_tokenizer"], "pre_tokenizer"):
        pattern = step.get("pattern", {})
        regex = pattern.get("Regex", "") if isinstance(pattern, dict) else ""
        if not isinstance(regex, str) or len(regex) > LONGEST_PATTERN or SLOW.search(regex):
            raise ValueError(f"the pattern {regex!r} repeats groups or is too long: it may take any time over a text")
    for step in _steps(raw.get("post_processor"), "post_processor"):
        pieces = step.get("single", [])
        if not isinstance(pieces, list) or sum("Sequence" in piece for piece in pieces) > 1:
            raise ValueError("its post_processor repeats the text")


def _steps(part, name: str) -> list[dict]:
    """The steps of a part, in order: none, one, or those of a sequence."""
    if part is None:
        return []
    if not isinstance(part, dict):
        raise ValueError(f"its {name} is {part!r}, expected an object")
    if part.get("type") != "Sequence":
        return [part]
    inner = [value for key, value in part.items() if key != "type"]
    steps = inner[0] if len(inner) == 1 else None
    if (
        not isinstance(steps, list)
        or len(steps) > MOST_IN_SEQUENCE
        or not all(isinstance(step, dict) for step in steps)
    ):
        raise ValueError(f"its {name} is a sequence of something else than up to {MOST_IN_SEQUENCE} steps")
    return steps


def _check_vocabulary(raw: dict, vocab_size: int) -> None:
    """Raises ValueError for a model that is not byte-level BPE, or for tokens that the embedding has no row for."""
    model, added = raw.get("model"), raw.setdefault("added_tokens", [])
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict) or model.get("type", "BPE") != "BPE":
        raise ValueError("its model is not BPE with a vocabulary")
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise ValueError(f"its model has {name} {model[name]!r}, expected none")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise ValueError("its added_tokens are not a list of objects")
    vocab, contents = model["vocab"], [token.get("content") for token in added]
    if (unknown := model.get("unk_token")) is not None and (not isinstance(unknown, str) or unknown not in vocab):
        raise ValueError(f"its unk_token {unknown!r} is not in the vocabulary")
    if not all(isinstance(content, str) and content for content in contents):
        raise ValueError("an added token has no content")
    if sum(map(len, contents)) > LONGEST_ADDED or max(map(len, vocab), default=0) > LONGEST_ENTRY:
        raise ValueError(f"it has tokens of more than {LONGEST_ENTRY} characters")
    # types first: false and 0 are the same key of a set
    ids = [*vocab.values(), *(token.get("id") for token in added)]
    wrong = next((value for value in ids if type(value) is not int or not 0 <= value < vocab_size), None)
    if wrong is not None or None in ids or len(vocab) > vocab_size:
        raise ValueError(
            f"it has the id {wrong!r} and {len(vocab)} tokens, but the model has {vocab_size} ids (vocab_size)"
        )


def _check_ids(tokenizer, added: list[dict]) -> None:
    """Raises ValueError where the library gave an added token another id than the file says, as it may in silence."""
    for token in added:
        given = tokenizer.token_to_id(token["content"])
        if given != token["id"]:
            raise ValueError(f"the added token {token['content']!r} has the id {token['id']}, but gets {given}")


def _check_speed(tokenizer) -> None:
    """Raises ValueError for patterns that take longer and longer: time is looked at after each, slightly longer text.

    It is this thread's time of the processor, so that a busy machine does not matter.
    """
    for piece in TRIED:
        for length in TRIED_LENGTHS:
            start = time.thread_time()
            tokenizer.encode((piece * length)[:length], add_special_tokens=False)
            if time.thread_time() - start > SLOW_SECONDS:
                raise ValueError("its pattern takes too long over a text")

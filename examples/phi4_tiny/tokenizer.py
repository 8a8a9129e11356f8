"""The small byte-level tokenizer of phi4-tiny, with the published special tokens."""

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from vocabulary import sentences

END_OF_TEXT, IMAGE, AUDIO = "<|endoftext|>", "<|endoftext10|>", "<|endoftext11|>"
USER, ASSISTANT, SYSTEM, END = "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"
ROLES = (ASSISTANT, END, USER, SYSTEM)
TOOLS = ("<|tool|>", "<|/tool|>")
TOOL_CALLS = ("<|tool_call|>", "<|/tool_call|>", "<|tool_response|>")

# o200k's split in short: letters with one leading mark or space, single digits, marks, white space
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def pre_tokenizer():
    """Split by ``SPLIT``, then map bytes to the printable letters of byte-level BPE."""
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def closed_pieces():
    """Every piece of the closed vocabulary, with and without a leading space, sorted."""
    pieces = set()
    cutter = pre_tokenizer()
    for sentence in sentences():
        for word in sentence.replace("{", " ").replace("}", " ").split():
            for form in (word, " " + word):
                pieces.update(piece for piece, _ in cutter.pre_tokenize_str(form))
    return sorted(p for p in pieces if len(p) > 1)


def build():
    """The tokenizer: 256 bytes, the closed pieces (one token each), the special tokens.

    ``ignore_merges`` takes a whole piece that is in the vocabulary before any merge is tried,
    so no merge of another word can split it. The list of merges is empty: what is outside the
    closed vocabulary is spelled in bytes.
    """
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    for piece in closed_pieces():
        vocab.setdefault(piece, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    for name in (END_OF_TEXT, IMAGE, AUDIO):
        tokenizer.add_special_tokens([AddedToken(name, normalized=False)])
    for name in ROLES:
        tokenizer.add_special_tokens([AddedToken(name, rstrip=True, normalized=False)])
    for name in TOOLS:
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=False)])
    for name in TOOL_CALLS:
        tokenizer.add_special_tokens([AddedToken(name, normalized=False)])
    return tokenizer


def prompt_ids(tokenizer, text, image_tokens=0, audio_tokens=0, system=None):
    """Token ids of one request up to ``<|assistant|>``: pictures, then audio, then the text."""
    run = IMAGE * image_tokens + AUDIO * audio_tokens
    head = f"{SYSTEM}{system}{END}" if system else ""
    return tokenizer.encode(f"{head}{USER}{run}{text}{END}{ASSISTANT}").ids

"""A tokenizer like the published one, but small: its added tokens, its split, its chat template, and a few merges."""

from .published import Sizes

END_OF_TEXT, END, IMAGE_TOKEN, AUDIO_TOKEN = "<|endoftext|>", "<|end|>", "<|endoftext10|>", "<|endoftext11|>"

# Published id, string, flags that differ from the default (special, white space kept on both sides).
ADDED_TOKENS = (
    (199999, END_OF_TEXT, {}),
    (200010, IMAGE_TOKEN, {}),
    (200011, AUDIO_TOKEN, {}),
    (200019, "<|assistant|>", {"rstrip": True}),
    (200020, END, {"rstrip": True}),
    (200021, "<|user|>", {"rstrip": True}),
    (200022, "<|system|>", {"rstrip": True}),
    (200023, "<|tool|>", {"special": False}),
    (200024, "<|/tool|>", {"special": False}),
    (200025, "<|tool_call|>", {}),
    (200026, "<|/tool_call|>", {}),
    (200027, "<|tool_response|>", {}),
)
PUBLISHED_VOCAB = 200_064

# fmt: off
# Enough merges that words are split at more than one level; bytes as the byte-level alphabet writes them (Ġ: space).
MERGES = (
    "t h", "th e", "i n", "e r", "a n", "o n", "r e", "o r", "e n", "i s", "a t", "Ġ a", "Ġ the", "Ġ th",
    "an d", "Ġ and", "in g", "Ġ t", "o u", "e s", "Ġ i", "Ġ o", "l e", "Ġ s", "Ġ w", "Ġo f", "Ġt o", "Ġ in",
    "Ġ is", "at ion", "i c", "Ġ p", "i on", "Ð ¾", "Ð \u00b8", "Ð °", "å ľ",
)
# fmt: on

# The o200k pattern: words with their case changes and English suffixes, numbers of up to three digits, the rest.
SPLIT = "|".join(
    (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>'"
    " + '<|end|>' }}"
    "{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)


def token_ids(sizes: Sizes) -> dict[str, int]:
    """Added token -> id: the published ids at the published vocabulary, else the ids right after bytes and merges."""
    first = 256 + len(MERGES)
    return {
        text: published if sizes.vocab >= PUBLISHED_VOCAB else first + i
        for i, (published, text, _) in enumerate(ADDED_TOKENS)
    }


def byte_alphabet() -> list[str]:
    """The characters byte-level BPE writes the 256 bytes as: printable Latin-1 as itself, the rest from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


def tokenizer(sizes: Sizes) -> dict:
    """tokenizer.json: byte-level BPE with the o200k split and the published added tokens.

    Added tokens are in the vocabulary too, as in the published file: only so may their ids leave gaps.
    """
    vocab = {text: i for i, text in enumerate(byte_alphabet())}
    for merge in MERGES:
        vocab[merge.replace(" ", "")] = len(vocab)
    ids = token_ids(sizes)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[text]} | _added(text, flags) for _, text, flags in ADDED_TOKENS],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level | {"trim_offsets": False},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab | ids,
            "merges": [merge.split(" ") for merge in MERGES],
        },
    }


def _added(text: str, flags: dict) -> dict:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"content": text} | plain | flags


def tokenizer_config(sizes: Sizes, layout: str) -> dict:
    """tokenizer_config.json, chat template included; Transformers' layout also names its two placeholders."""
    ids = token_ids(sizes)
    named = {"image_token": IMAGE_TOKEN, "audio_token": AUDIO_TOKEN}
    return {
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[text]): _added(text, flags) for _, text, flags in ADDED_TOKENS},
        "bos_token": END_OF_TEXT,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": 131072,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "GPT2TokenizerFast" if layout != "transformers" else "PreTrainedTokenizerFast",
        "unk_token": END_OF_TEXT,
    } | ({"extra_special_tokens": named} | named if layout == "transformers" else {})

"""What users of mlx_lm and mlx_whisper type out of habit: spellings that mean the same, and where ours is another.

What can be meant is an alias of our option, beside it; here is the rest, answered in a line that names our way.
"""

import click

_ALONE = "each piece is decoded by itself"
_TIMES = "segments have times, words have none; --segment-seconds makes segments shorter"
_LINES = "--max-line-width is what there is for lines of srt and vtt"
_BEAMS = "there is no beam search; --temperatures are the attempts"
INSTEAD = {
    "--export-gguf": "folders of MLX weights and of adapters are what there is",
    "--gguf-path": "folders of MLX weights and of adapters are what there is",
    "--adapter-path": "--adapter NAME=FOLDER loads one, --use-adapter NAME has the answers pass it",
    "--language": "the model hears which language is spoken; --task translate --to names that of a translation",
    "--word-timestamps": _TIMES,
    "--highlight-words": _TIMES,
    "--max-words-per-line": _LINES,
    "--max-line-count": _LINES,
    "--initial-prompt": "--context takes names and jargon, --prompt replaces the question itself",
    "--condition-on-previous-text": _ALONE,
    "--prompt-reset-on-temperature": _ALONE,
    "--no-speech-threshold": "an empty answer is no speech; --logprob-threshold judges doubtful ones",
    "--hallucination-silence-threshold": "silence is left out before the model hears it; --pause says how much of it",
    "--temperature-increment-on-fallback": "--temperatures lists all attempts, as in 0,0.2,0.4",
    "--suppress-tokens": "mlx_phi4.generate --logit-bias weighs single tokens",
    "--best-of": _BEAMS,
    "--beam-size": _BEAMS,
    "--patience": _BEAMS,
    "--length-penalty": _BEAMS,
    "--num-draft-tokens": "drafts are as long as they pay on this machine",
    "--fp16": "weights are used as --model has them; mlx_phi4.convert --dtype makes others",
    "--extra-eos-token": "the model's own end tokens count already; --stop TEXT ends an answer at a text",
    "--eos-token": "the model's own end tokens count already; --stop TEXT ends an answer at a text",
    "--ignore-chat-template": "--raw takes the prompt as it stands",
    "--use-default-chat-template": "the published template is always used; --raw takes the prompt as it stands",
    "--chat-template-config": "the published template is always used; --raw takes the prompt as it stands",
    "--prefill-response": "--raw takes a prompt that ends within the answer, as <|user|>...<|end|><|assistant|>Sure",
    "--trust-remote-code": "nothing that a model brings is ever run, and none is needed",
    "--verbose": "progress is shown unless --quiet is given; --stats adds figures to a chat's answers",
    "--revision": "--model takes a folder; that of a revision is loaded in Python, load(name, revision=...)",
    "--stream": "answers are printed as they come",
    "--quantize": "mlx_phi4.convert quantizes; a hub id is taken in 4 bits",
}


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


# for every command: --output_dir is --output-dir, as in mlx_whisper, and -h is --help, as in both
SETTINGS = {"token_normalize_func": _hyphens, "help_option_names": ["-h", "--help"]}


def answer(error: click.UsageError) -> str:
    """A usage error in words, with our own option where somebody else's was given."""
    message = error.format_message()
    if isinstance(error, click.NoSuchOption) and error.option_name in INSTEAD:
        return f"No such option: {error.option_name}: {INSTEAD[error.option_name]}"
    return f"{message} (see --help)"

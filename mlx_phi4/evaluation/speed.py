"""How fast a model answers on this machine: prompt, tokens, encoders and memory, in each mode."""

import inspect
import statistics
import sys
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from ..arguments import kinds
from ..arguments.names import check_names, takes
from ..errors import Phi4Error, PromptError

if TYPE_CHECKING:  # imported where used, so that --help is instant
    from ..config import Config
    from ..generation.media_cache import MediaCache
    from ..inputs.processor import Inputs, Processor
    from ..model import Phi4

MODES = ("text", "vision", "speech", "vision-speech")
SEED = 0  # of the random prompts
QUESTION = 16  # tokens of the second question
PICTURE = (900, 1340)  # rows, columns: 3 x 2 crops of 448 and the global view
SECONDS = 10  # of the tone
OPTIONS = ("prefill_step_size", "rope", "kv_bits", "kv_group_size", "quantized_kv_start", "max_kv_size")


@dataclass(frozen=True)
class Measured:
    """One mode's figures: medians over the repeats, the peak of memory over all.

    ``first_token_seconds`` runs from the files to the first token: ``prepare_seconds`` (reading, resizing, log-mel),
    ``encoder_seconds`` (encoders and projectors) and the prefill. ``prompt_tps`` and ``generation_tps`` are the
    decoder's tokens per second alone. ``second_question_*``: a follow-up of 16 tokens about the same media with the
    prompt cache, in seconds and over ``first_token_seconds``. ``*_bytes``: what the decoder reads of its weights for
    each generated token, counted from the arrays. ``peak_memory`` is in gigabytes, weights included.
    """

    mode: str
    prompt_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    first_token_seconds: float
    prepare_seconds: float
    encoder_seconds: float
    second_question_seconds: float
    second_question_ratio: float
    peak_memory: float
    base_bytes: int
    adapter_bytes: int


@takes(
    model=kinds.model,
    processor=kinds.processor,
    prompt_tokens=kinds.integer(1),
    generation_tokens=kinds.integer(2),
    mode=kinds.choice(*MODES, "all"),
    repeat=kinds.integer(1),
    adapter=kinds.text | None,
    quiet=kinds.flag,
)
def benchmark(
    model: "Phi4",
    processor: "Processor",
    *,
    prompt_tokens: int = 512,
    generation_tokens: int = 128,
    mode: str = "all",
    image=None,
    audio=None,
    repeat: int = 3,
    adapter: str | None = None,
    quiet: bool = True,
    **options,
) -> list[Measured]:
    """Measure a model in one mode, or in all that it has, one after another in every round.

    The first round warms up and is not counted. Tokens are greedy and no token ends an answer.

    Args:
        prompt_tokens: of the whole prompt, random ones; more if the media alone are longer.
        generation_tokens: of the answer, at least 2.
        mode: text, vision, speech, vision-speech or all.
        image, audio: as the processor takes them; None makes a picture of 1340 x 900 pixels, a tone of 10 s.
        repeat: counted rounds.
        adapter: instead of the modes' own; "base" is none.
        quiet: no line on standard error for each round.
        options: ``prefill_step_size``, ``rope``, ``kv_bits``, ``kv_group_size``, ``quantized_kv_start`` and
            ``max_kv_size`` of ``stream_generate``.

    Raises:
        Phi4Error: a bad value, or a mode that the model does not have.
    """
    from ..generation.options import make_options

    own = [name for name in inspect.signature(benchmark).parameters if name != "options"]
    check_names(options, [*own, *OPTIONS], "benchmark: ")
    engine = make_options(options)
    engine.kv.check(processor.config.decoder.head_dim)
    modes = _modes(mode, processor.config, image, audio)
    asked = {m: _request(m, image, audio) | {"adapter": adapter} for m in modes}
    runs = {m: _Run(model, processor, asked[m], prompt_tokens, generation_tokens, engine) for m in modes}
    found: dict[str, list[Measured]] = {m: [] for m in modes}
    for round in range(repeat + 1):
        for m, run in runs.items():
            if not quiet:
                print(f"{m}: {f'round {round} of {repeat}' if round else 'warming up'}", file=sys.stderr)
            measured = run()
            if round:
                found[m].append(measured)
    return [_summary(repeats) for repeats in found.values()]


def weight_bytes(model: "Phi4", mode: str, adapter: str | None = None) -> tuple[int, int]:
    """Bytes that the decoder reads for one token, counted from its arrays: (base, adapter; None is this mode's).

    The embedding counts once where the head is tied to it; where it is not, one row of it is too little to count.
    """
    from mlx.utils import tree_flatten

    from ..modalities import chosen_adapter

    parts = model.adapters.get(chosen_adapter(adapter, mode, model.adapters), ())
    marks = [f".lora.{part}." for part in parts]
    head = model.lm_head if "lm_head" in model else model.model.embed_tokens
    base = sum(array.nbytes for part in (head, model.model.norm) for _, array in tree_flatten(part.parameters()))
    added = 0
    for name, array in tree_flatten([layer.parameters() for layer in model.model.layers]):
        if ".lora." not in name:
            base += array.nbytes
        elif any(mark in name for mark in marks):
            added += array.nbytes
    return base, added


def machine() -> dict:
    """The device that MLX computes on, and versions."""
    import platform
    from importlib.metadata import version

    import mlx.core as mx

    device = mx.default_device()
    kind = "cpu"
    if device.type == mx.gpu:
        kind = "metal" if mx.metal.is_available() else "cuda"
    info = mx.device_info(device)
    return {
        "device": kind,
        "name": info.get("device_name", "unknown"),
        "memory_gb": round(info["memory_size"] / 1e9, 1) if "memory_size" in info else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mlx": version("mlx"),
        "mlx_lm": version("mlx-lm"),
        "mlx_phi4": version("mlx-phi4"),
    }


def _modes(mode: str, config: "Config", image, audio) -> tuple[str, ...]:
    if "vision" in mode:
        config.check_sees()
    if "speech" in mode:
        config.check_hears()
    lacking = [each for each, held in (("vision", config.vision), ("speech", config.audio)) if held is None]
    modes = (mode,) if mode != "all" else tuple(each for each in MODES if not any(name in each for name in lacking))
    for kind, given, of in (("image", image, "vision"), ("audio", audio, "speech")):
        if given is not None and not any(of in m for m in modes):
            raise Phi4Error(f"{kind} is given, but {', '.join(modes)} mode has no use for it")
    return modes


def _request(mode: str, image, audio) -> dict:
    """The media of a mode, as keywords of the processor."""
    images = [_picture() if image is None else image] if "vision" in mode else []
    audios = [_tone() if audio is None else audio] if "speech" in mode else []
    return {"images": images, "audios": audios}


def _picture():
    """(rows, columns, 3) uint8: gradients with a coarse pattern, so that no crop is empty."""
    import numpy as np

    rows, columns = np.indices(PICTURE)
    blue = (rows // 50 + columns // 50) % 2 * 200
    return np.stack([rows * 255 // PICTURE[0], columns * 255 // PICTURE[1], blue], -1).astype(np.uint8)


def _tone():
    """(array, rate): a tone that rises from 200 Hz to 2 kHz."""
    import numpy as np

    time = np.arange(SECONDS * 16_000) / 16_000
    return (0.5 * np.sin(2 * np.pi * (200 + 90 * time) * time)).astype(np.float32), 16_000


class _Run:
    """One mode, measured once per call."""

    def __init__(self, model, processor, media: dict, prompt_tokens: int, generation_tokens: int, options):
        self.model, self.processor, self.media = model, processor, media
        self.count, self.options = generation_tokens, options
        special = {token.id for token in processor.tokenizer.special.values()}
        self.ordinary = [i for i in range(min(special, default=0)) if i not in special]
        self.ordinary = self.ordinary or [i for i in range(processor.config.decoder.vocab_size) if i not in special]
        spare = prompt_tokens - self.processor("", **media).lengths[0]
        self.filling = self._random(max(spare, 0), SEED)
        self.question = self._random(QUESTION, SEED + 1)
        room = processor.config.decoder.max_position_embeddings
        needed = self._inputs(self.filling).lengths[0] + 2 * generation_tokens + QUESTION + 4
        if needed > room:
            raise PromptError(f"prompt, answer and a second question take {needed} tokens; the context holds {room}")

    def __call__(self) -> Measured:
        import mlx.core as mx

        from ..generation.media_cache import MediaCache
        from ..generation.prompt_cache import PromptCache

        mx.clear_cache()
        mx.reset_peak_memory()
        media, cache = MediaCache(), PromptCache()
        began = perf_counter()
        inputs = self._inputs(self.filling)
        prepared = perf_counter()
        self._encode(inputs, media)
        encoded = perf_counter()
        first, done, answer = self._generate(inputs, media, cache)
        again = perf_counter()
        follow_up = self._inputs([*self.filling, *self._turns(answer), *self.question])
        self._encode(follow_up, media)
        second, _, _ = self._generate(follow_up, media, cache)
        base, adapter = weight_bytes(self.model, inputs.modes[0], self.media["adapter"])
        return Measured(
            mode=inputs.modes[0],
            prompt_tokens=inputs.lengths[0],
            generation_tokens=self.count,
            prompt_tps=inputs.lengths[0] / (first - encoded),
            generation_tps=(self.count - 1) / (done - first),
            first_token_seconds=first - began,
            prepare_seconds=prepared - began,
            encoder_seconds=encoded - prepared,
            second_question_seconds=second - again,
            second_question_ratio=(second - again) / (first - began),
            peak_memory=mx.get_peak_memory() / 1e9,
            base_bytes=base,
            adapter_bytes=adapter,
        )

    def _inputs(self, filling: list[int]) -> "Inputs":
        """The processor's own prompt for these media, with tokens put in before the user turn ends."""
        from dataclasses import replace

        import mlx.core as mx

        inputs = self.processor("", **self.media)
        ids = inputs.input_ids[0].tolist()
        return replace(inputs, input_ids=mx.array([[*ids[:-2], *filling, *ids[-2:]]], dtype=mx.int32))

    def _turns(self, answer: list[int]) -> list[int]:
        """An answer between the first question and the second, in the template's tokens."""
        special = self.processor.tokenizer.special
        end, assistant, user = (special[f"<|{name}|>"].id for name in ("end", "assistant", "user"))
        return [end, assistant, *answer, end, user]

    def _encode(self, inputs: "Inputs", cache: "MediaCache") -> None:
        for media in inputs.media:
            cache.embed(self.model, media.item, inputs.modes[0])

    def _generate(self, inputs: "Inputs", media, cache) -> tuple[float, float, list[int]]:
        """(time of the first token, time of the last, tokens)."""
        from dataclasses import replace

        from ..generation.batch import Batch
        from ..generation.sequence import Sequence

        options = replace(self.options, media_cache=media, prompt_cache=cache, max_tokens=self.count)
        sequence, batch = Sequence(inputs.rows[0], options), Batch(self.model)
        batch.admit(sequence)
        while batch.active:
            batch.step()
        return sequence.first_token_at, sequence.last_token_at, sequence.tokens

    def _random(self, count: int, seed: int) -> list[int]:
        import numpy as np

        return np.random.default_rng(seed).choice(self.ordinary, count).tolist()


def _summary(repeats: list[Measured]) -> Measured:
    """Medians, and the highest peak."""
    rows = [asdict(measured) for measured in repeats]
    middle = {
        name: statistics.median(row[name] for row in rows) if isinstance(value, float) else value
        for name, value in rows[0].items()
    }
    return Measured(**middle | {"peak_memory": max(row["peak_memory"] for row in rows)})

"""Faults that the self-test must find: each breaks the package, or a copy of the built-in model, in one place.

A function is named for its fault and is given a folder with a copy of the assets, which is used where it asks for one.
It is called before the self-test is imported; ``MUTATIONS`` has the stage that must be the first to fail.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

BUILT_IN = "phi4-tiny"


@dataclass(frozen=True)
class Mutation:
    """``stage`` is to be named first; ``copied``: it changes a copy of the assets, whose folder it is given."""

    name: str
    stage: str
    apply: Callable
    copied: bool


MUTATIONS: dict[str, Mutation] = {}


def breaks(stage: str, copied: bool = False):
    """Put a function among the mutations."""

    def decorate(function):
        name = function.__name__.replace("_", " ")
        MUTATIONS[name] = Mutation(name, stage, function, copied)
        return function

    return decorate


def sealed(assets: Path) -> None:
    """Make checksums anew, so that it is not them that tell."""
    weights = assets / BUILT_IN / "model.safetensors"
    notes = assets / "selftest" / "made_with.json"
    made = json.loads(notes.read_text()) | {"model.safetensors": hashlib.sha256(weights.read_bytes()).hexdigest()}
    notes.write_text(json.dumps(made))
    for folder in (assets / BUILT_IN, assets / "selftest"):
        listed = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
        sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in listed]
        (folder / "SHA256SUMS").write_text("".join(sums))


def weights_changed(assets: Path, change: Callable[[dict[str, mx.array]], None]) -> None:
    """Change the tensors of the copy in place, checksums included."""
    path = assets / BUILT_IN / "model.safetensors"
    tensors, metadata = mx.load(str(path), return_metadata=True)
    mx.eval(tensors)
    change(tensors)
    mx.save_safetensors(str(path), tensors, metadata)
    sealed(assets)


def config_changed(assets: Path, change: Callable[[dict], None]) -> None:
    """Change config.json of the copy in place, checksums included."""
    path = assets / BUILT_IN / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))
    sealed(assets)


@breaks("files", copied=True)
def flipped_byte_in_the_weights(assets):
    path = assets / BUILT_IN / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@breaks("files", copied=True)
def missing_file(assets):
    (assets / "selftest" / "golden.npz").unlink()


@breaks("tensors", copied=True)
def missing_tensor(assets):
    weights_changed(assets, lambda tensors: tensors.pop("vision_encoder.layers.2.mlp.fc2.bias"))


@breaks("tensors", copied=True)
def one_weight_is_nan(assets):
    def change(tensors):
        tensors["model.layers.1.mlp.down_proj.lora.speech.up.weight"][3, 5] = float("nan")

    weights_changed(assets, change)


@breaks("tensors", copied=True)
def weights_beyond_float16(assets):
    def change(tensors):
        tensors["audio_projectors.vision.down.weight"] *= 1e6

    weights_changed(assets, change)


@breaks("tokens")
def template_without_end_of_turn():
    from mlx_phi4.inputs import prompt

    original = prompt._pieces

    def pieces(tokenizer, *arguments, **named):
        found = original(tokenizer, *arguments, **named)
        return [*found[:-2], found[-1]]

    prompt._pieces = pieces


@breaks("tokens")
def template_with_a_line_feed():
    from mlx_phi4.inputs import prompt

    original = prompt._pieces

    def pieces(*arguments, **named):
        found = original(*arguments, **named)
        return [*found[:-2], "\n", *found[-2:]]

    prompt._pieces = pieces


@breaks("tokens")
def contents_may_spell_roles():
    from mlx_phi4.inputs.tokenizer import Tokenizer

    Tokenizer.encode_plain = Tokenizer.encode


@breaks("tokens")
def speech_adapter_beside_a_picture():
    from mlx_phi4.inputs import processor

    original = processor.chosen_adapter
    wrong = {"vision-speech": "speech"}
    processor.chosen_adapter = lambda name, mode, adapters: wrong.get(mode) or original(name, mode, adapters)


@breaks("log-mel")
def wrong_upper_edge_of_the_mel_filters():
    from mlx_phi4.audio import preprocess

    preprocess.MAX_FREQUENCY = 8000.0


@breaks("log-mel")
def wrong_preemphasis():
    from mlx_phi4.audio import preprocess

    preprocess.PREEMPHASIS = 0.95


@breaks("views")
def grey_scaled_by_128():
    from mlx_phi4.vision import preprocess

    preprocess._scale = lambda pixels: (pixels.astype(np.float32) - 128) / 128


@breaks("views")
def red_and_blue_swapped():
    from mlx_phi4.vision import preprocess

    original = preprocess.read_picture

    def read(source):
        from PIL import Image

        image, name = original(source)
        return Image.fromarray(np.asarray(image)[..., ::-1].copy()), name

    preprocess.read_picture = read


@breaks("views")
def global_view_without_half_pixel_centres():
    from mlx_phi4.vision import preprocess

    original = preprocess._taps

    def taps(size):
        indices, weights = original(size)
        return np.clip(indices + 1, 0, size - 1), weights

    preprocess._taps = taps


@breaks("products")
def wrong_group_size():
    from mlx_phi4.checkpoint.packing import Scheme

    original = Scheme.table
    Scheme.table = lambda self: original(self) | {"group_size": 32}


@breaks("attention")
def scores_overflow_float16():
    """Scaled after the product, in the arrays' own type."""
    from mlx_phi4.decoder import decoder

    def attend(q, k, v, cache, scale, mask):
        repeat = q.shape[1] // k.shape[1]
        scores = (q @ mx.repeat(k, repeat, 1).swapaxes(-1, -2)) * scale
        if isinstance(mask, str):
            mask = mx.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2], dtype=mx.bool_)
        scores = mx.where(mask, scores, -mx.inf) if mask is not None and mask.dtype == mx.bool_ else scores
        scores = scores + mask if mask is not None and mask.dtype != mx.bool_ else scores
        return mx.softmax(scores, axis=-1) @ mx.repeat(v, repeat, 1)

    decoder.attend = attend


@breaks("attention")
def each_token_sees_the_next():
    from mlx_phi4.decoder import decoder

    original = decoder.attend

    def attend(q, k, v, cache, scale, mask):
        if isinstance(mask, str):
            mask = mx.tri(q.shape[2], k.shape[2], k.shape[2] - q.shape[2] + 1, dtype=mx.bool_)
        return original(q, k, v, cache, scale, mask)

    decoder.attend = attend


@breaks("norms", copied=True)
def wrong_epsilon_of_the_decoder(assets):
    config_changed(assets, lambda config: config.update(rms_norm_eps=1e-6))


@breaks("norms", copied=True)
def wrong_epsilon_of_the_vision_encoder(assets):
    config_changed(assets, lambda config: config["img_processor"].update(layer_norm_eps=1e-5))


@breaks("rope")
def rope_scale_off_by_2_percent():
    from mlx_phi4.decoder.rope import LongRope

    original = LongRope.__init__

    def init(self, config):
        original(self, config)
        self.scale *= 1.02

    LongRope.__init__ = init


@breaks("rope")
def tables_swapped():
    from mlx_phi4.decoder.rope import LongRope

    original = LongRope.__init__

    def init(self, config):
        original(self, config)
        self._short, self._long = self._long, self._short

    LongRope.__init__ = init


@breaks("rope")
def neighbours_turn_instead_of_halves():
    from mlx_phi4.decoder import rope

    def rotate(x, rotation, heads, dims):
        cos, sin = rotation
        pairs = mx.unflatten(x[:, :, :heads, :dims], -1, (dims // 2, 2)).swapaxes(-1, -2)
        turned = pairs * cos + pairs[..., ::-1, :] * sin
        x[:, :, :heads, :dims] = turned.swapaxes(-1, -2).flatten(-2)
        return x

    rope.rotate = rotate


@breaks("vision-encoder")
def positions_of_padded_crops_not_spread():
    from mlx_phi4.vision import encoder

    encoder.position_ids = lambda kept, grid: np.arange(grid[0])[:, None] * 32 + np.arange(grid[1])


@breaks("vision-encoder")
def padded_patches_not_masked():
    from mlx_phi4.vision.encoder import Attention

    original = Attention.__call__
    Attention.__call__ = lambda self, x, mask=None: original(self, x)


@breaks("vision-encoder")
def exact_gelu_in_the_vision_encoder():
    import mlx.nn as nn

    from mlx_phi4.vision.encoder import MLP

    MLP.__call__ = lambda self, x: self.fc2(nn.gelu(self.fc1(x)))


@breaks("vision-projector")
def no_separator_between_crops_and_global_view():
    from mlx_phi4.vision.projector import VisionProjector

    original = VisionProjector.__call__

    def call(self, features, picture):
        held, self.glb_GN = self.glb_GN, mx.zeros_like(self.glb_GN)
        try:
            return original(self, features, picture)
        finally:
            self.glb_GN = held

    VisionProjector.__call__ = call


@breaks("vision-projector")
def no_token_at_the_end_of_rows():
    from mlx_phi4.vision.projector import VisionProjector

    def end_rows(self, cells):
        return mx.pad(cells, [(0, 0), (0, 1), (0, 0)]).flatten(0, 1)

    VisionProjector._end_rows = end_rows


@breaks("vision-projector", copied=True)
def transposed_projector(assets):
    def change(tensors):
        tensors["vision_projector.up.weight"] = mx.contiguous(tensors["vision_projector.up.weight"].T)

    weights_changed(assets, change)


@breaks("audio-encoder")
def conformer_bias_mirrored():
    from mlx_phi4.audio.encoder import RelativeBias

    original = RelativeBias.__call__
    RelativeBias.__call__ = lambda self, length: original(self, length).swapaxes(-1, -2)


@breaks("audio-encoder")
def convolution_looks_ahead():
    from mlx_phi4.audio.encoder import SeparableConvolution

    def call(self, x):
        return self.pw_conv(self.dw_conv(mx.pad(x, [(0, 0), (1, 1), (0, 0)])))

    SeparableConvolution.__call__ = call


@breaks("audio-encoder")
def windows_of_32_seconds():
    from mlx_phi4.audio import encoder

    encoder.WINDOW = 400


@breaks("audio-projectors", copied=True)
def audio_projectors_swapped(assets):
    def change(tensors):
        for name in [name for name in tensors if name.startswith("audio_projectors.speech.")]:
            other = name.replace(".speech.", ".vision.")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    weights_changed(assets, change)


@breaks("merge")
def media_one_token_late():
    from dataclasses import replace

    from mlx_phi4.model import Phi4

    original = Phi4.embed

    def embed(self, row, start=0, stop=None, features=None):
        media = tuple((first + 1, item) for first, item in row.media)
        later = None if features is None else {first + 1: each for first, each in features.items()}
        return original(self, replace(row, media=media), start, stop, later)

    Phi4.embed = embed


@breaks("decoder")
def gate_and_up_swapped():
    from mlx_phi4.decoder import decoder

    original = decoder._gated
    decoder._gated = lambda gate, up: original(up, gate)


@breaks("decoder", copied=True)
def keys_before_queries(assets):
    def change(tensors):
        for name in [name for name in tensors if name.endswith("qkv_proj.base.weight")]:
            q, k, v = mx.split(tensors[name], [128, 192])
            tensors[name] = mx.concatenate([k, q, v])

    weights_changed(assets, change)


@breaks("decoder")
def attention_scale_off_by_2_percent():
    from mlx_phi4.decoder.decoder import Attention

    original = Attention.__init__

    def init(self, *arguments):
        original(self, *arguments)
        self.scale *= 1.02

    Attention.__init__ = init


@breaks("decoder")
def mask_off_by_one():
    from mlx_phi4.decoder import state

    state._mask = lambda run: None if run.count == 1 else mx.tri(run.count, run.count, 1, dtype=mx.bool_)


@breaks("decoder")
def adapters_at_half_strength():
    from mlx_phi4.config import LoRAConfig

    LoRAConfig.scale = property(lambda self: self.alpha / self.rank / 2)


@breaks("decoder")
def leaking_adapter():
    """Text passes what the request before it passed."""
    from mlx_phi4.decoder.adapters import Route, RoutedLinear

    original, last = RoutedLinear.__call__, []

    def call(self, x, route):
        last[:] = [name for name, _, _ in route.slices] or last
        return original(self, x, Route(route.length, tuple((name, 0, route.length) for name in last)))

    RoutedLinear.__call__ = call


@breaks("crossing")
def long_table_one_token_late():
    from mlx_phi4.decoder.state import RowState
    from mlx_phi4.model import Phi4

    def new_state(self, row, caches=None, *, long=False):
        original = self.config.decoder.rope.original_max_position_embeddings
        return RowState(row.adapter, long or len(row.ids) > original + 1, caches)

    Phi4.new_state = new_state


@breaks("crossing")
def both_tables_in_one_cache():
    """The best known fault of ports: cached keys stay as the short table turned them."""
    from mlx_phi4.decoder.decoder import Decoder

    original = Decoder.__call__

    def call(self, h, runs, composed=None):
        for run in runs:
            run.state.long = run.state.long or run.state.offset + run.count > 64
        return original(self, h, runs, composed)

    Decoder.__call__ = call
    from mlx_phi4.generation.sequence import Sequence

    Sequence.crosses = property(lambda self: False)


@breaks("modes")
def speech_projector_beside_a_picture():
    from mlx_phi4 import modalities

    modalities.Modality.projector = lambda self, mode: self.projectors[""]


@breaks("rows")
def adapter_of_all_rows_in_a_step():
    from mlx_phi4.decoder.adapters import Route

    original = Route.of.__func__

    def of(cls, runs, composed=None):
        found = original(cls, runs, composed)
        return cls(found.length, tuple((name, 0, found.length) for name, _, _ in found.slices[:1]))

    Route.of = classmethod(of)


@breaks("memory")
def embeddings_are_kept():
    from mlx_phi4.model import Phi4

    original, kept = Phi4.embed, []

    def embed(self, *arguments, **named):
        kept.append(mx.contiguous(original(self, *arguments, **named)))
        return kept[-1][:]

    Phi4.embed = embed

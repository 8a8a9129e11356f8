"""Write what mlx_phi4.selftest compares with: the reference implementation's values on the built-in model, float32.

    pip install -e ".[reference]"
    python tests/golden/make_selftest.py

To be run again whenever phi4-tiny changes; it takes a minute or two.
"""

import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import torch
from reference import Prepared, Reference

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "phi4_tiny"))  # behind what both declare

from modeling import build, route, stored, to_layout1
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers.models.phi4_multimodal import (
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalImageProcessor,
)

from mlx_phi4.audio.preprocess import read_audio
from mlx_phi4.checkpoint import names
from mlx_phi4.checkpoint.hub import ASSETS
from mlx_phi4.selftest import samples

FOLDER = ASSETS / samples.BUILT_IN_MODEL
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"  # as published
STRIDES = {"sign": 7, "high": 13, "views": 11, "long_conformer": 16}
LEAST_MARGIN = 0.01  # of a greedy token's logit over the next: rounding must not decide


def load(tokenizer: Tokenizer):
    """The shipped folder in the reference implementation: names and axes go the way back."""
    model = build(tokenizer.get_vocab())
    tensors, state = load_file(FOLDER / "model.safetensors"), model.state_dict()
    for name, value in state.items():
        if stored(name):
            ours = names.rename(to_layout1(name), names.MICROSOFT)
            _, kept = names._axes(ours, value.ndim)
            state[name] = tensors.pop(ours).permute(*np.argsort(kept).tolist()).reshape(value.shape).float()
        elif not name.startswith("lm_head."):
            state[name] = torch.zeros_like(value)  # unused: any value gives the same answers
    assert not tensors, sorted(tensors)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.set_attn_implementation("eager")  # fused attention would see an unpadded picture through a causal mask
    return model.eval()


class TinyReference(Reference):
    """The built-in model in the reference implementation, adapters in place."""

    def __init__(self):
        self.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self.model = load(self.tokenizer)
        self.extend, self.template = self.model.model.embed_tokens_extend, TEMPLATE
        self.image_processor, self.feature_extractor = Phi4MultimodalImageProcessor(), Phi4MultimodalFeatureExtractor()

    @torch.no_grad()
    def decode(self, embeddings: torch.Tensor, adapter: str | None, first: int = 0) -> np.ndarray:
        """(1, L, D) at positions from ``first`` on -> (L, V)."""
        route(self.model, adapter)
        places = torch.arange(first, first + embeddings.shape[1])[None]
        return self.model(inputs_embeds=embeddings, position_ids=places, use_cache=False).logits[0].numpy()

    def embedded(self, ids: list[int]) -> torch.Tensor:
        """Of text alone."""
        return self.model.model.embed_tokens(torch.tensor([ids])).detach()


def case_inputs(reference: TinyReference, case: samples.Case) -> Prepared:
    marks = "<|image_1|>" * bool(case.image) + "<|audio_1|>" * bool(case.audio)
    images = [samples.sign()] if case.image else []
    audios = [read_audio(samples.path(case.audio))[0]] if case.audio else []
    return reference.prepare([{"role": "user", "content": marks + case.prompt}], images, audios)


def modes(reference: TinyReference) -> dict[str, np.ndarray]:
    """Ids of prompt and answer, logits that choose the answer, and those of five positions before."""
    found = {}
    for case in samples.CASES:
        prepared = case_inputs(reference, case)
        answer = [*reference.tokenizer.encode(case.answer, add_special_tokens=False).ids]
        answer.append(reference.tokenizer.token_to_id("<|end|>"))
        count = prepared.input_ids.shape[1]
        embeddings = torch.cat([reference.embed(prepared), reference.embedded(answer)], 1)
        logits = reference.decode(embeddings, prepared.adapter)
        chosen = logits[count - 1 : -1]
        assert chosen.argmax(-1).tolist() == answer, f"{case.name}: the reference answers otherwise"
        check_margin(chosen, case.name)
        positions = np.unique([*np.linspace(0, count - 1, 5).astype(int), *range(count - 1, count + len(answer) - 1)])
        found[f"modes/{case.name}/ids"] = np.array([*prepared.input_ids[0].tolist(), *answer], np.int32)
        found[f"modes/{case.name}/prompt"] = np.array(count, np.int32)
        found[f"modes/{case.name}/positions"] = positions.astype(np.int32)
        found[f"modes/{case.name}/logits"] = logits[positions]
    return found


def check_margin(logits: np.ndarray, name: str):
    second, first = np.sort(logits, -1)[:, -2:].T
    margin = float((first - second).min())
    print(f"{name}: least margin {margin:.3f}")
    assert margin > LEAST_MARGIN, f"{name}: two tokens are nearly tied"


def decoder(reference: TinyReference) -> dict[str, np.ndarray]:
    """One text under each adapter in each regime."""
    found, embeddings = {}, reference.embedded(samples.ordinary_ids(samples.DECODER_IDS, 1))
    for adapter in (None, "vision", "speech"):
        for regime, (first, _) in samples.REGIMES.items():
            logits = reference.decode(embeddings, adapter, first)
            found[f"decoder/{adapter or 'base'}/{regime}"] = logits[[0, 1, samples.DECODER_IDS // 2, -1]]
    return found


def crossing(reference: TinyReference) -> dict[str, np.ndarray]:
    """A greedy answer that passes a smaller original context, each token by a whole pass without a cache."""
    rope = reference.model.model.rotary_emb.config.rope_parameters
    original, rope["original_max_position_embeddings"] = rope["original_max_position_embeddings"], samples.CONTEXT
    ids, rows = samples.ordinary_ids(samples.CROSSING, 2), []
    for _ in range(samples.CROSSING_NEW):
        rows.append(reference.decode(reference.embedded(ids), None)[-1])
        ids.append(int(rows[-1].argmax()))
    long_here = reference.model.model.rotary_emb.inv_freq.clone()
    rope["original_max_position_embeddings"] = original
    reference.decode(reference.embedded(ids), None)
    assert not torch.equal(long_here, reference.model.model.rotary_emb.inv_freq), "the table did not change"
    check_margin(np.stack(rows), "crossing")
    return {"crossing/tokens": np.array(ids[samples.CROSSING :], np.int32), "crossing/logits": np.stack(rows)}


def media(reference: TinyReference) -> dict[str, np.ndarray]:
    """Log-mel features whole, views at every few pixels: grey levels, of the global view with fractions."""
    samples_of, _, _ = read_audio(samples.path(samples.SPOKEN_COMMAND))
    clip = reference.feature_extractor(samples_of, sampling_rate=16_000, return_tensors="pt")
    found = {"log_mel": clip["audio_input_features"][0].numpy()}
    for name, pixels in samples.pictures().items():
        views = reference._pictures([pixels])
        stride = STRIDES["views"]
        levels = views["image_pixel_values"][0].numpy().transpose(0, 2, 3, 1)[:, ::stride, ::stride] * 127.5 + 127.5
        found[f"views/{name}/global"] = levels[0].astype(np.float32)
        found[f"views/{name}/crops"] = levels[1:].round().astype(np.uint8)
        mask = views["image_attention_mask"][0].numpy().astype(bool)
        found[f"views/{name}/kept"] = np.array([(m[:, 0].sum(), m[0].sum()) for m in mask], np.int32)
    return found


@torch.no_grad()
def vision(reference: TinyReference) -> dict[str, np.ndarray]:
    """Features of views that were cut by hand, and what the projector makes of made-up features."""
    found, embed = {}, reference.extend.image_embed
    for name in ("sign", "high", "large"):
        picture = samples.ready(name)
        prepared = reference.prepare("<|image_1|>", [samples.pictures()[name]])
        values = prepared.pictures["image_pixel_values"]
        ours = torch.from_numpy(picture.pixels(range(len(picture.crops) + 1)).transpose(0, 3, 1, 2))[None]
        assert (values[:, 1:] - ours[:, 1:]).abs().max() < 1e-6, "the crops are the picture itself"
        prepared.pictures["image_pixel_values"] = ours
        features = reference.vision_features(prepared)
        if name in STRIDES:
            found[f"vision/{name}"] = features[:, :: STRIDES[name]]
        made = np.zeros_like(features).reshape(len(features), 16, 16, -1)
        for view, part in zip(made, samples.features(picture, features.shape[-1]), strict=True):
            view[: part.shape[0], : part.shape[1]] = part
        made = torch.from_numpy(made.reshape(features.shape))
        original, embed.get_img_features = embed.get_img_features, lambda *a, made=made, **k: made
        found[f"picture_embeddings/{name}"] = reference.picture_embeddings(prepared)[samples.kept_embeddings(picture)]
        embed.get_img_features = original
    return found


@torch.no_grad()
def audio(reference: TinyReference, log_mel: np.ndarray) -> dict[str, np.ndarray]:
    """The conformer on the command's features and on many times as many; the projectors on made-up frames."""
    embed = reference.extend.audio_embed
    conformer = lambda mel: embed.encoder(torch.from_numpy(mel)[None], None)[0].numpy()  # noqa: E731
    frames = torch.from_numpy(samples.frames(embed.encoder.config.hidden_size))[None]
    count = frames.shape[1]
    found = {
        "conformer": conformer(log_mel),
        "long_conformer": conformer(np.tile(log_mel, (samples.LONG_MEL, 1)))[:: STRIDES["long_conformer"]],
    }
    clip = Prepared(torch.zeros(1, 0), {}, [torch.from_numpy(log_mel)[None]], [], [count])
    original, embed.encoder.forward = embed.encoder.forward, lambda *a, **k: frames
    for projector in ("speech", "vision"):
        found[f"audio_embeddings/{projector}"] = reference.audio_embeddings(clip, projector)[0]
    embed.encoder.forward = original
    return found


@click.command()
def main():
    """Write golden.npz and made_with.json into the package's assets."""
    reference = TinyReference()
    found = modes(reference) | decoder(reference) | media(reference) | vision(reference)
    found |= audio(reference, found["log_mel"])
    found |= crossing(reference)
    np.savez_compressed(samples.path("golden.npz"), **found)
    packages = ("torch", "torchvision", "transformers", "tokenizers", "numpy", "pillow")
    notes = {
        "model.safetensors": hashlib.sha256((FOLDER / "model.safetensors").read_bytes()).hexdigest(),
        "strides": STRIDES,
        "packages": {name: version(name) for name in packages},
    }
    samples.path("made_with.json").write_text(json.dumps(notes, indent=1) + "\n")
    listed = [path for path in sorted(samples.SAMPLES.iterdir()) if path.name != "SHA256SUMS"]
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in listed]
    samples.path("SHA256SUMS").write_text("".join(sums))
    for name, value in found.items():
        print(f"{name:40} {value.dtype!s:8} {value.shape}")
    print(f"{samples.path('golden.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

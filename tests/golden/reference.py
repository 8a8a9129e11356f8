"""The oracle: Transformers' Phi4Multimodal with PEFT adapters, in float32 on the CPU, one request at a time.

Needs torch, torchvision, transformers and peft (the extra `reference`); the package itself never imports this.
"""

import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

# torchvision's compiled operators may not fit a CPU build of torch. Only its Python part is needed here, but its
# import insists that the operators exist, so they are declared without an implementation where loading fails.
OPERATORS = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
DECLARED = [*OPERATORS, *(f"_{name}_backward" for name in OPERATORS), "nms", "qnms", "qroi_align"]


def _declare_torchvision_operators():
    spec = importlib.util.find_spec("torchvision")
    for library in Path(spec.origin).parent.glob("_C*") if spec else ():
        try:
            torch.ops.load_library(library)
            return None
        except OSError:
            pass
    declared = torch.library.Library("torchvision", "DEF")
    for name in DECLARED:
        declared.define(f"{name}(Tensor x) -> Tensor")
    return declared  # the declarations live as long as this object


_torchvision = _declare_torchvision_operators()

from peft import PeftModel  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import Phi4MultimodalForCausalLM  # noqa: E402
from transformers.models.phi4_multimodal import (  # noqa: E402
    Phi4MultimodalFeatureExtractor,
    Phi4MultimodalImageProcessor,
)

IMAGE, AUDIO = "<|endoftext10|>", "<|endoftext11|>"
PLACEHOLDER = re.compile(r"<\|(image|audio)_\d+\|>")


@dataclass
class Prepared:
    """A request as the reference processors see it. L tokens, N pictures, C views, T frames."""

    input_ids: torch.Tensor  # (1, L)
    pictures: dict  # image_pixel_values (N, C, 3, 448, 448), image_sizes (N, 2), image_attention_mask (N, C, 32, 32)
    clips: list[torch.Tensor]  # log-mel, (1, T, 80) each
    image_tokens: list[int]
    audio_tokens: list[int]

    @property
    def adapter(self) -> str | None:
        return "vision" if self.pictures else "speech" if self.clips else None


class Reference:
    """A folder in Transformers' layout, loaded with both adapters.

    The vision tower runs with eager attention: with sdpa, Transformers 5.23 drops the mask of a picture without
    padded patches and then takes the tower for causal (its `is_causal` is True). Microsoft's tower, and Transformers'
    own in every other case, attends both ways. `attention` is the decoder's.
    """

    def __init__(self, folder: str | Path, attention: str = "sdpa"):
        folder = Path(folder)
        model = Phi4MultimodalForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation={"": attention, "vision_config": "eager", "audio_config": "eager"},
        )
        self.peft = PeftModel.from_pretrained(model, folder / "vision-lora", adapter_name="vision")
        self.peft.load_adapter(folder / "speech-lora", adapter_name="speech")
        self.peft.eval()
        self.model = model
        self.extend = model.model.embed_tokens_extend
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
        self.image_processor = Phi4MultimodalImageProcessor()
        self.feature_extractor = Phi4MultimodalFeatureExtractor()

    def render(self, messages: list[dict]) -> str:
        """The published chat template, with the opening of the answer."""
        from jinja2 import Environment

        return Environment().from_string(self.template).render(messages=messages, add_generation_prompt=True)

    def prepare(self, prompt: str | list[dict], images=(), audios=()) -> Prepared:
        """`prompt`: messages, or a joined string. Clips are float arrays at 16 kHz."""
        text = prompt if isinstance(prompt, str) else self.render(prompt)
        pictures = self._pictures(images) if len(images) else {}
        # One by one: the reference's own padding of a batch of clips is not exact.
        clips = [self.feature_extractor(audio, sampling_rate=16_000, return_tensors="pt") for audio in audios]
        image_tokens = [int(n) for n in pictures.pop("num_img_tokens", [])]
        audio_tokens = [int(clip["audio_embed_sizes"][0]) for clip in clips]
        counts = {"image": iter(image_tokens), "audio": iter(audio_tokens)}
        token = {"image": IMAGE, "audio": AUDIO}
        joined = PLACEHOLDER.sub(lambda found: token[found[1]] * next(counts[found[1]]), text)
        ids = torch.tensor([self.tokenizer.encode(joined, add_special_tokens=False).ids])
        for kind, found in (("image", image_tokens), ("audio", audio_tokens)):
            seen = int((ids == self.tokenizer.token_to_id(token[kind])).sum())
            assert seen == sum(found), f"{seen} {kind} tokens in the prompt, {sum(found)} features"
        return Prepared(ids, pictures, [c["audio_input_features"] for c in clips], image_tokens, audio_tokens)

    def _pictures(self, images) -> dict:
        pil = [image if isinstance(image, Image.Image) else Image.fromarray(image) for image in images]
        return dict(self.image_processor(pil, return_tensors="pt"))

    @torch.no_grad()
    def logits(self, prepared: Prepared) -> np.ndarray:
        """(L, V) logits of one pass over the whole request, under the adapter of its mode."""
        embeddings = self.embed(prepared)
        if prepared.adapter is None:
            with self.peft.disable_adapter():
                return self._decode(embeddings)
        self.peft.set_adapter(prepared.adapter)
        return self._decode(embeddings)

    def _decode(self, embeddings: torch.Tensor) -> np.ndarray:
        return self.model(inputs_embeds=embeddings, use_cache=False).logits[0].numpy()

    @torch.no_grad()
    def forward(self, prepared: Prepared) -> np.ndarray:
        """`logits` through the reference's single public call, as a check; at most one clip."""
        ids, clips = prepared.input_ids, prepared.clips
        audio = {}
        if clips:
            audio = {"audio_input_features": clips[0], "audio_embed_sizes": torch.tensor(prepared.audio_tokens)}
        if prepared.adapter is not None:
            self.peft.set_adapter(prepared.adapter)
            return self.model(input_ids=ids, use_cache=False, **prepared.pictures, **audio).logits[0].numpy()
        with self.peft.disable_adapter():
            return self.model(input_ids=ids, use_cache=False).logits[0].numpy()

    @torch.no_grad()
    def embed(self, prepared: Prepared) -> torch.Tensor:
        """(1, L, D): token embeddings with the media's in their places."""
        ids = prepared.input_ids
        embeddings = self.model.model.embed_tokens(ids).clone()
        places = {kind: ids == self.tokenizer.token_to_id(text) for kind, text in (("i", IMAGE), ("a", AUDIO))}
        if prepared.pictures:
            embeddings[places["i"]] = torch.from_numpy(self.picture_embeddings(prepared))
        if prepared.clips:
            embeddings[places["a"]] = torch.from_numpy(np.concatenate(self.audio_embeddings(prepared)))
        return embeddings

    @torch.no_grad()
    def vision_features(self, prepared: Prepared) -> np.ndarray:
        """(N * C, 256, width): output of the vision tower after pooling, padded views included."""
        pixels, mask = prepared.pictures["image_pixel_values"], prepared.pictures["image_attention_mask"]
        features = self.extend.image_embed.get_img_features(
            pixels.flatten(0, 1), attention_mask=mask.flatten(0, 1).bool()
        )
        return features.numpy()

    @torch.no_grad()
    def picture_embeddings(self, prepared: Prepared) -> np.ndarray:
        """(tokens of all pictures, D): separators in place, projected."""
        count = sum(prepared.image_tokens)
        ids = torch.full((1, count), self.extend.image_token_id)
        blank = torch.zeros(1, count, self.model.config.hidden_size)
        return self.extend.image_embed(ids, blank, **prepared.pictures)[0].numpy()

    @torch.no_grad()
    def conformer(self, prepared: Prepared) -> list[np.ndarray]:
        """(tokens, width) for each clip."""
        return [self.extend.audio_embed.encoder(clip, None)[0].numpy() for clip in prepared.clips]

    @torch.no_grad()
    def audio_embeddings(self, prepared: Prepared, projector: str | None = None) -> list[np.ndarray]:
        """(tokens, D) for each clip, through the `speech` or `vision` projector; default: the one of the mode."""
        projector = projector or ("vision" if prepared.pictures else "speech")
        found = []
        for clip, count in zip(prepared.clips, prepared.audio_tokens, strict=True):
            ids = torch.full((1, count), self.extend.audio_token_id)
            blank = torch.zeros(1, count, self.model.config.hidden_size)
            embeddings = self.extend.audio_embed(
                ids, blank, clip, audio_embed_sizes=[count], audio_projection_mode=projector
            )
            found.append(embeddings[0].numpy())
        return found

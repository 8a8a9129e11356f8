"""Phi-4: encoders, merge and decoder. A text-only model is the same class without encoders."""

import mlx.core as mx
import mlx.nn as nn

from .audio.encoder import AudioEncoder
from .audio.preprocess import Clip
from .audio.projector import AudioProjector
from .config import Config
from .decoder.adapters import ROUTES, Mode
from .decoder.decoder import Decoder
from .decoder.state import DecodeState
from .generation.media_cache import MediaCache
from .inputs.processor import Inputs
from .vision.encoder import VisionEncoder
from .vision.preprocess import Picture
from .vision.projector import VisionProjector


class Phi4(nn.Module):
    """The whole model. It is never changed by a request: see ``state.DecodeState``."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        decoder, vision, audio = config.decoder, config.vision, config.audio
        self.model = Decoder(decoder, config.adapters)
        if not decoder.tie_word_embeddings:
            self.lm_head = nn.Linear(decoder.hidden_size, decoder.vocab_size, bias=False)
        if vision is not None:
            self.vision_encoder = VisionEncoder(vision)
            self.vision_projector = VisionProjector(vision.hidden_size, decoder.hidden_size)
        if audio is not None:
            self.audio_encoder = AudioEncoder(audio)
            self.audio_projectors = {
                name: AudioProjector(audio.hidden_size, decoder.hidden_size)
                for _, name in ROUTES.values()
                if name is not None
            }

    def __call__(self, inputs: Inputs) -> mx.array:
        """Logits (B, L, V) of a full forward pass without a cache.

        Left-padding columns of a batch hold nothing of use.
        """
        return self.logits(self.model(self.embed(inputs), self.new_state(inputs)))

    def logits(self, h: mx.array) -> mx.array:
        """Hidden states (B, L, D) -> (B, L, V)."""
        if "lm_head" in self:
            return self.lm_head(h)
        return self.model.embed_tokens.as_linear(h)

    def embed(self, inputs: Inputs, cache: MediaCache | None = None, start: int = 0) -> mx.array:
        """Token embeddings (B, L, D) with pictures and sound in their places, from ``cache`` where it has them.

        Media that end before column ``start`` are left out: their keys are known already.
        """
        h = self.model.embed_tokens(inputs.input_ids)
        for media in inputs.media:
            if media.start + media.item.tokens <= start:
                continue
            features = self.embed_media(media.item, inputs.modes[media.row], cache).astype(h.dtype)
            h[media.row, media.start : media.start + media.item.tokens] = features
        return h

    def embed_media(self, item: Picture | Clip, mode: Mode, cache: MediaCache | None = None) -> mx.array:
        """One picture or clip as (tokens, D); a clip is projected as its request's mode asks."""
        key = (item.key, projector_of(item, mode))
        features = cache.get(self, key) if cache is not None else None
        if features is None:
            features = self._encode(item, key[1])
            if cache is not None:
                cache.put(key, features)
        return features

    def _encode(self, item: Picture | Clip, projector: str) -> mx.array:
        if isinstance(item, Picture):
            return self.vision_projector(self.vision_encoder(item), item)
        return self.audio_projectors[projector](self.audio_encoder(item.features))

    def new_state(self, inputs: Inputs, cache: list | None = None, *, long: bool = False) -> DecodeState:
        """A fresh state for these rows. A row's regime follows from its own length; ``long`` makes all of them long."""
        original = self.config.decoder.rope.original_max_position_embeddings
        regimes = tuple(long or length > original for length in inputs.lengths)
        return DecodeState(inputs.modes, inputs.padding, regimes, cache)


def projector_of(item: Picture | Clip, mode: Mode) -> str:
    """The projector that a picture or clip passes in a request of this mode."""
    return "picture" if isinstance(item, Picture) else ROUTES[mode][1]

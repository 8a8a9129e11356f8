"""Proof that training touched nothing else: digests of what each mode answers, before and after."""

from hashlib import blake2b

import mlx.core as mx
import numpy as np

from ..decoder.identity import raw_bytes
from ..decoder.state import Run
from ..device import exclusive
from ..inputs.processor import Processor, Request, Row
from ..modalities import projector_of
from ..model import Phi4

PROBE_PIXELS, PROBE_SECONDS, PROBE_RATE = 64, 0.4, 16_000


def mode_digests(model: Phi4, processor: Processor) -> dict[str, str]:
    """Mode -> digest of the logits, bit by bit, that a small request of this mode gets."""
    ramp = np.arange(PROBE_PIXELS * PROBE_PIXELS * 3, dtype=np.uint32).reshape(PROBE_PIXELS, PROBE_PIXELS, 3)
    picture = (ramp % 251).astype(np.uint8)
    sound = np.sin(np.arange(int(PROBE_SECONDS * PROBE_RATE)) / 20).astype(np.float32) / 4, PROBE_RATE
    requests = {"text": Request("What is it?")}
    if model.config.vision:
        requests["vision"] = Request("What is it?", images=[picture])
    if model.config.audio:
        requests["speech"] = Request("What is it?", audios=[sound])
    if model.config.vision and model.config.audio:
        requests["vision-speech"] = Request("What is it?", images=[picture], audios=[sound])
    encoded: dict[tuple[str, str], mx.array] = {}  # most of the time: the picture counts for two modes
    with exclusive():
        return {mode: _digest(model, processor.row(request), encoded) for mode, request in requests.items()}


def _digest(model: Phi4, row: Row, encoded: dict[tuple[str, str], mx.array]) -> str:
    features = {}
    for start, item in row.media:
        key = type(item).__name__, projector_of(item, row.mode)
        if key not in encoded:
            encoded[key] = model.embed_medium(item, row.mode)
        features[start] = encoded[key]
    run = Run(model.new_state(row), len(row.ids), len(row.ids))
    logits = model.forward(model.embed(row, features=features), [run])
    mx.eval(logits)
    return blake2b(raw_bytes(logits), digest_size=8).hexdigest()

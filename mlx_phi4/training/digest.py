"""Proof that training touched nothing else: digests of what each mode answers, before and after."""

from hashlib import blake2b

import mlx.core as mx
import numpy as np

from ..decoder.identity import raw_bytes
from ..device import exclusive
from ..inputs.processor import Processor, Request
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
    found = {}
    for mode, request in requests.items():
        with exclusive():
            logits = model(processor.batch([request]))
            mx.eval(logits)
            found[mode] = blake2b(raw_bytes(logits), digest_size=8).hexdigest()
    return found

"""The decoder: RMSNorm, attention with LongRoPE and a gated MLP, over the tokens of several rows laid end to end."""

from collections.abc import Mapping
from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config import DecoderConfig, LoRAConfig
from .adapters import Route, RoutedLinear
from .kv_cache import KVCache
from .rope import LongRope, rotate
from .state import Run, Step

SCORES = 1 << 26  # elements of a score matrix that is held at once; a fused kernel holds none


class Attention(nn.Module):
    """Grouped-query attention over one fused projection: rows of q, then k, then v."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.rope_dims = config.head_dim, config.rope.dims
        self.scale = config.head_dim**-0.5
        width = (self.heads + 2 * self.kv_heads) * self.head_dim
        self.qkv_proj = RoutedLinear(config.hidden_size, width, adapters)
        self.o_proj = RoutedLinear(self.heads * self.head_dim, config.hidden_size, adapters)

    def __call__(self, x: mx.array, step: Step, caches: list[KVCache | None], last: bool = False) -> mx.array | None:
        """x (1, T, D) -> (1, T, D): projections once, attention row by row on each row's own cache.

        With ``last`` all keys and values are kept, but only the asked positions ask: (1, A, D), or None for none.
        """
        qkv = mx.unflatten(self.qkv_proj(x, step.route), -1, (-1, self.head_dim))
        # queries and keys turn together: one kernel instead of two
        qkv = rotate(qkv, step.rotation, self.heads + self.kv_heads, self.rope_dims).transpose(0, 2, 1, 3)
        queries, new = qkv[:, : self.heads], qkv[:, self.heads :]
        attended = []
        for q, kv, mask, run, cache in zip(
            *_by_row(step.runs, queries, new), step.masks, step.runs, caches, strict=True
        ):
            keys, values = cache.update(kv) if cache is not None else mx.split(kv, 2, axis=1)
            if last and run.asked < run.count:
                if not run.asked:
                    continue
                q = q[:, :, -run.asked :]
                mask = mask[-run.asked :] if isinstance(mask, mx.array) else mask if run.asked > 1 else None
            attended.append(attend(q, keys, values, cache, self.scale, mask))
        if not attended:
            return None
        y = attended[0] if len(attended) == 1 else mx.concatenate(attended, axis=2)
        return self.o_proj(y.transpose(0, 2, 1, 3).flatten(2), step.asked_route if last else step.route)


class MLP(nn.Module):
    """``down(up * silu(gate))`` with gate and up in one projection, gate first."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.gate_up_proj = RoutedLinear(config.hidden_size, 2 * config.intermediate_size, adapters)
        self.down_proj = RoutedLinear(config.intermediate_size, config.hidden_size, adapters)

    def __call__(self, x: mx.array, route: Route) -> mx.array:
        """x (1, T, D) -> (1, T, D)."""
        gate, up = mx.split(self.gate_up_proj(x, route), 2, axis=-1)
        return self.down_proj(_gated(gate, up), route)


class Block(nn.Module):
    """Two pre-norm residual branches."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.self_attn = Attention(config, adapters)
        self.mlp = MLP(config, adapters)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x: mx.array, step: Step, caches: list[KVCache | None], last: bool = False) -> mx.array | None:
        """As ``Attention``."""
        attended = self.self_attn(self.input_layernorm(x), step, caches, last)
        if attended is None:
            return None
        if last and step.asked is not None:
            x = mx.take(x, step.asked, axis=1)
        h = x + attended
        return h + self.mlp(self.post_attention_layernorm(h), step.asked_route if last else step.route)


class Decoder(nn.Module):
    """Token embeddings, the blocks and the last norm."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, adapters) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = LongRope(config.rope)

    def __call__(
        self, h: mx.array, runs: list[Run], composed: Mapping[str, tuple[str, ...]] | None = None
    ) -> mx.array | None:
        """Embeddings h (1, T, D) of the runs' tokens -> hidden states (1, A, D) of the asked ones, in their order.

        The rows' states move on. None where nothing was asked; the caches hold the tokens all the same. ``composed``
        as in ``Route.of``.
        """
        step = Step(runs, self._rope, h.dtype, composed)
        for index, layer in enumerate(self.layers):
            h = layer(h, step, step.caches(index), last=index == len(self.layers) - 1)
        return None if h is None else self.norm(h)


def attend(queries, keys, values, cache, scale: float, mask) -> mx.array:
    """Attention (1, H, n, head_dim) over arrays, or over the packed keys and values of a quantized cache."""
    if not isinstance(keys, tuple):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    # no fused kernel reads packed keys, so the scores are held: a few queries at a time
    count, tokens = queries.shape[2], keys[0].shape[2]
    size = max(SCORES // (queries.shape[1] * tokens), 1)
    parts = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        seen = tokens - count + stop  # later keys are of later queries
        some_keys, some_values = (tuple(part[:, :, :seen] for part in packed) for packed in (keys, values))
        causal = "causal" if stop - start > 1 else None
        parts.append(_attend_packed(queries[:, :, start:stop], some_keys, some_values, cache, scale, causal))
    return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis=2)


def _attend_packed(queries, keys, values, cache, scale, mask):
    from mlx_lm.models.base import quantized_scaled_dot_product_attention

    return quantized_scaled_dot_product_attention(
        queries, keys, values, scale=scale, mask=mask, group_size=cache.group_size, bits=cache.bits
    )


def _by_row(runs: list[Run], *arrays: mx.array) -> list[list[mx.array]]:
    """Cut arrays (1, H, T, head_dim) at the borders of the runs."""
    if len(runs) == 1:
        return [[array] for array in arrays]
    ends, position = [], 0
    for run in runs[:-1]:
        position += run.count
        ends.append(position)
    return [mx.split(array, ends, axis=2) for array in arrays]


@partial(mx.compile, shapeless=True)
def _gated(gate, up):
    return up * nn.silu(gate)

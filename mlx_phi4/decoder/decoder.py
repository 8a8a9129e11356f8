"""The decoder: RMSNorm, attention with LongRoPE and a gated MLP. It knows no pictures or sound."""

from functools import partial

import mlx.core as mx
import mlx.nn as nn

from ..config import DecoderConfig, LoRAConfig
from .adapters import RoutedLinear
from .rope import LongRope, rotate
from .state import DecodeState


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

    def __call__(self, x, step, cache=None, last=False):
        """x (B, L, D), the step's rotation, mask and route, this layer's cache -> (B, L, D).

        With ``last`` all keys and values are kept, but only the last position asks: (B, 1, D).
        """
        B, L, _ = x.shape
        qkv = self.qkv_proj(x, step.route).reshape(B, L, -1, self.head_dim)
        turning = self.heads + self.kv_heads
        # queries and keys turn together: one kernel instead of two
        turned = rotate(qkv[:, :, :turning], step.rotation, self.rope_dims)
        queries = turned[:, :, : self.heads].transpose(0, 2, 1, 3)
        keys = turned[:, :, self.heads :].transpose(0, 2, 1, 3)
        values = qkv[:, :, turning:].transpose(0, 2, 1, 3)
        if cache is not None:
            keys, values = cache.update_and_fetch(keys, values)
        mask = step.mask
        if last:
            queries = queries[:, :, -1:]
            mask = mask[..., -1:, :] if isinstance(mask, mx.array) else None
        y = _attend(queries, keys, values, cache, self.scale, mask)
        return self.o_proj(y.transpose(0, 2, 1, 3).flatten(2), step.route)


class MLP(nn.Module):
    """``down(up * silu(gate))`` with gate and up in one projection, gate first."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.gate_up_proj = RoutedLinear(config.hidden_size, 2 * config.intermediate_size, adapters)
        self.down_proj = RoutedLinear(config.intermediate_size, config.hidden_size, adapters)

    def __call__(self, x, step):
        gate, up = mx.split(self.gate_up_proj(x, step.route), 2, axis=-1)
        return self.down_proj(_gated(gate, up), step.route)


class Block(nn.Module):
    """Two pre-norm residual branches."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.self_attn = Attention(config, adapters)
        self.mlp = MLP(config, adapters)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def __call__(self, x, step, cache=None, last=False):
        attended = self.self_attn(self.input_layernorm(x), step, cache, last)
        h = (x[:, -1:] if last else x) + attended
        return h + self.mlp(self.post_attention_layernorm(h), step)


class Decoder(nn.Module):
    """Token embeddings, the blocks and the last norm."""

    def __init__(self, config: DecoderConfig, adapters: dict[str, LoRAConfig]):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = [Block(config, adapters) for _ in range(config.num_hidden_layers)]
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self._rope = LongRope(config.rope, config.head_dim)

    def __call__(self, h: mx.array, state: DecodeState, last_only: bool = False) -> mx.array:
        """Embeddings h (B, L, D) that follow what ``state`` has seen -> hidden states (B, L, D).

        With ``last_only`` the last layer computes the last position alone: (B, 1, D), the same values.
        """
        step = state.step(h.shape[1], self._rope, h.dtype)
        caches = state.cache or [None] * len(self.layers)
        last = len(self.layers) - 1
        for i, (layer, cache) in enumerate(zip(self.layers, caches, strict=True)):
            h = layer(h, step, cache, last=last_only and i == last)
        return self.norm(h)


def _attend(queries, keys, values, cache, scale, mask):
    """Attention over arrays, or over the packed keys and values of a quantized cache."""
    if hasattr(cache, "bits"):
        from mlx_lm.models.base import quantized_scaled_dot_product_attention

        return quantized_scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask, group_size=cache.group_size, bits=cache.bits
        )
    return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)


@partial(mx.compile, shapeless=True)
def _gated(gate, up):
    return up * nn.silu(gate)

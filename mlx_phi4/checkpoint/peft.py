"""peft's folders: tensors by the names of the model that was trained, fused here where it was not.

``adapter_model.safetensors`` holds ``base_model.model.model.layers.#.self_attn.o_proj.lora_A.weight`` (rank, inputs),
``lora_B.weight`` (outputs, rank) and for DoRA ``lora_magnitude_vector`` (outputs,). A Llama-like model has q, k, v and
gate, up apart; here they are rows of one linear each.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass

import mlx.core as mx

from ..config import DecoderConfig
from ..decoder.adapter_parts import stacked
from ..decoder.adapters import Adapter, LinearAdapter, decoder_linears
from ..errors import CheckpointError
from .names import DECODER_LINEARS
from .peft_config import PeftConfig
from .shards import misshapen, some

PREFIX = "base_model.model."
FUSED = {"self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"), "mlp.gate_up_proj": ("gate_proj", "up_proj")}
PEFT_KINDS = {"lora_A": "down", "lora_B": "up", "lora_magnitude_vector": "magnitude"}
_NAME = re.compile(
    r"(?P<module>(?:model\.)*layers\.(?P<layer>0|[1-9]\d{0,5})\.(?P<linear>(?:self_attn|mlp)\.\w+_proj))"
    rf"\.(?P<kind>{'|'.join(PEFT_KINDS)})(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?"
)
# part of a name -> what it belongs to, the first one counts
FOREIGN = {
    "modules_to_save": "modules_to_save, whole layers beside the adapter",
    "token_adapter": "trained tokens",
    "trainable_tokens": "trained tokens",
    "lora_embedding": "an adapter of the token embedding",
    ".bias": "a bias",
    "embed_tokens_extend": "an encoder",
    "vision": "an encoder",
    "audio": "an encoder",
    "img_processor": "an encoder",
    "lm_head": "the output head",
    "embed_tokens": "the token embedding",
}


@dataclass
class _Module:
    """One linear of the model that was trained."""

    path: str
    rows: int
    columns: int
    arrays: dict[str, mx.array]


def from_peft(tensors: dict[str, mx.array], config: PeftConfig, decoder: DecoderConfig) -> dict[str, LinearAdapter]:
    """Path in ``Phi4.model`` -> part, from the tensors of a file. Raises CheckpointError unless all are used."""
    modules = _modules(tensors, decoder)
    _check_targets(modules, config, decoder)
    problems = [problem for module in modules.values() for problem in _problems(module, config)]
    if problems:
        raise CheckpointError(some(problems))
    parts = {
        place: LinearAdapter(scale=config.scale_of(module.path), **module.arrays) for place, module in modules.items()
    }
    found = {}
    for path in decoder_linears(decoder):
        _, layer, linear = path.split(".", 2)
        block = linear.partition(".")[0]
        names = [f"{block}.{name}" for name in FUSED.get(linear, ())]
        apart = [parts.get((int(layer), name)) for name in names]
        whole = parts.get((int(layer), linear))
        if whole is not None and any(apart):
            raise CheckpointError(f"layer {layer} has {linear} and parts of it, too")
        if any(apart):
            whole = stacked(apart, [_shape(decoder, name)[0] for name in names])
        if whole is not None:
            found[path] = whole
    return found


def to_peft(adapter: Adapter, decoder: DecoderConfig) -> tuple[dict[str, mx.array], dict]:
    """Tensors and ``adapter_config.json`` of peft's folder; most frequent rank and alpha first, patterns for the rest.

    Raises CheckpointError for what peft has no words for.
    """
    tensors: dict[str, mx.array] = {}
    for path, part in adapter.linears.items():
        if adapter.is_dora and part.magnitude is None:
            raise CheckpointError(f"{path} has no magnitude and other linears have one: peft knows all or none")
        names = {new: old for old, new in PEFT_KINDS.items()}
        for kind, array in part.arrays.items():
            weight = "" if kind == "magnitude" else ".weight"
            tensors[f"{PREFIX}model.{path}.{names[kind]}{weight}"] = array
    ranks = {path: part.rank for path, part in adapter.linears.items()}
    alphas = {path: _alpha(part) for path, part in adapter.linears.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (ranks, alphas))
    linears = [name for name in DECODER_LINEARS if any(path.endswith(name) for path in ranks)]
    every = {path for path in decoder_linears(decoder) if any(path.endswith(name) for name in linears)}
    targets = [name.rpartition(".")[2] for name in linears] if every == set(ranks) else sorted(ranks)
    return tensors, {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": adapter.is_dora,
        "target_modules": targets,
        "modules_to_save": None,
        "rank_pattern": {re.escape(path): each for path, each in ranks.items() if each != rank},
        "alpha_pattern": {re.escape(path): each for path, each in alphas.items() if each != alpha},
    }


def _alpha(part: LinearAdapter) -> float | int:
    """A number that divided by the rank gives the scale, to the bit where there is one."""
    alpha = part.scale * part.rank
    near = (alpha, math.nextafter(alpha, 0), math.nextafter(alpha, math.inf))
    alpha = next((each for each in near if each / part.rank == part.scale), alpha)
    return int(alpha) if alpha == int(alpha) else alpha


def _modules(tensors: dict[str, mx.array], decoder: DecoderConfig) -> dict[tuple[int, str], _Module]:
    """(layer, linear) -> what a file holds for it."""
    found: dict[tuple[int, str], _Module] = {}
    strange, twice = [], []
    for name, array in tensors.items():
        match = _NAME.fullmatch(name.removeprefix(PREFIX))
        shape = match and _shape(decoder, match["linear"])
        if not shape or int(match["layer"]) >= decoder.num_hidden_layers:
            why = next((f" ({what})" for mark, what in FOREIGN.items() if mark in name), "")
            strange.append(f"{name}{why}")
            continue
        place = int(match["layer"]), match["linear"]
        module = found.setdefault(place, _Module(match["module"], *shape, {}))
        if PEFT_KINDS[match["kind"]] in module.arrays:
            twice.append(name)
        module.arrays[PEFT_KINDS[match["kind"]]] = array
    if strange:
        raise CheckpointError(f"{len(strange)} tensors are not of this model's decoder linears: {some(strange)}")
    if twice:
        raise CheckpointError(f"{len(twice)} tensors are there twice: {some(twice)}")
    if not found:
        raise CheckpointError("holds no tensors")
    return found


def _check_targets(modules: dict[tuple[int, str], _Module], config: PeftConfig, decoder: DecoderConfig) -> None:
    """Raises CheckpointError where the file holds other linears than its configuration names."""
    held = {module.path for module in modules.values()}
    if stray := sorted(path for path in held if not config.is_target(path)):
        raise CheckpointError(f"holds what its adapter_config.json does not target: {some(stray)}")
    prefix = min(held).partition("layers.")[0]
    expected = set()
    for linear in DECODER_LINEARS:
        block = linear.partition(".")[0]
        apart = [f"{block}.{name}" for name in FUSED.get(linear, ())]
        names = apart if any(path.endswith(f".{name}") for path in held for name in apart) else [linear]
        expected |= {f"{prefix}layers.{n}.{name}" for n in range(decoder.num_hidden_layers) for name in names}
    if lacking := sorted(path for path in expected - held if config.is_target(path)):
        raise CheckpointError(f"lacks what its adapter_config.json targets: {some(lacking)}")


def _problems(module: _Module, config: PeftConfig) -> list[str]:
    """What is wrong with one linear's tensors, in words."""
    wanted = {"down", "up"} | ({"magnitude"} if config.use_dora else set())
    names = {new: old for old, new in PEFT_KINDS.items()}
    problems = [f"{module.path} lacks {names[kind]}" for kind in sorted(wanted - module.arrays.keys())]
    if "magnitude" in module.arrays.keys() - wanted:
        problems.append(f"{module.path} has a magnitude, but use_dora is false")
    rank = config.rank_of(module.path)
    shapes = {"down": (rank, module.columns), "up": (module.rows, rank), "magnitude": (module.rows,)}
    for kind, array in module.arrays.items():
        if array.shape != shapes[kind]:
            problems.append(f"{module.path} {names[kind]} {misshapen(array.shape, shapes[kind])}")
    return problems


def _shape(decoder: DecoderConfig, linear: str) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear of a layer, also of those that are fused here; None for any other."""
    shapes = {path.split(".", 2)[2]: shape for path, shape in decoder_linears(decoder).items()}
    width, kv = decoder.hidden_size, decoder.num_key_value_heads * decoder.head_dim
    queries = decoder.num_attention_heads * decoder.head_dim
    apart = {"self_attn.q_proj": (queries, width), "self_attn.k_proj": (kv, width), "self_attn.v_proj": (kv, width)}
    apart |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (decoder.intermediate_size, width))
    return (shapes | apart).get(linear)

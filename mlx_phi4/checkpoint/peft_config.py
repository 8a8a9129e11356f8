"""peft's ``adapter_config.json``: what of it is exact here, which linears it is for, and their ranks and scales.

Rules as peft 0.21 has them: ``tuners.tuners_utils.check_target_module_exists``, ``utils.other.get_pattern_key`` and
``tuners.lora.layer.update_layer``.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from ..config import check_float, check_integer
from ..errors import ConfigError
from .fields import either, need, object_in

# options that would change what is computed -> the values that do not
SUPPORTED = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    # the others change the base, too, when training begins: pissa, olora, corda, loftq, lora_ga
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica"),
}
# options that say nothing about what is computed
HARMLESS = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version", "auto_mapping"),
    *("inference_mode", "r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "rank_pattern", "alpha_pattern"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("megatron_config", "megatron_core", "runtime_config", "qalora_group_size", "ensure_weight_tying"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "velora_config"),  # of initialising, of training
}
MEANING = {
    "modules_to_save": "whole layers beside the adapter",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "another number of layers",
    "bias": "biases",
    "lora_bias": "biases",
    "init_lora_weights": "a converted initialisation, whose base is another one",
    "fan_in_fan_out": "transposed weights",
    "target_parameters": "adapters of bare parameters",
}
MOST_REPEATS = 3  # in a pattern; the time that matching takes grows with their power
LONGEST_MATCHER = 500  # characters
MOST_PATTERNS = 1000
_REPEAT = re.compile(r"[*+{]")


@dataclass(frozen=True)
class PeftConfig:
    """What of a LoRA's ``adapter_config.json`` matters here."""

    rank: int
    alpha: float
    rank_pattern: tuple[tuple[re.Pattern, int], ...]
    alpha_pattern: tuple[tuple[re.Pattern, float], ...]
    targets: str | tuple[str, ...]
    excluded: str | tuple[str, ...]
    layers: tuple[int, ...] | None
    layers_pattern: tuple[str, ...]
    use_rslora: bool
    use_dora: bool

    def rank_of(self, module: str) -> int:
        """The rank of a module, by its path in the model that was trained."""
        return _first(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str) -> float:
        """alpha / rank, or of rsLoRA alpha / sqrt(rank) (arXiv 2312.03732)."""
        rank, alpha = self.rank_of(module), _first(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def is_target(self, module: str) -> bool:
        """Whether the adapter is for a module, also where a path lacks the ``model.`` in front."""
        return any(self._is_target(name) for name in (module, module.removeprefix("model.")))

    def _is_target(self, module: str) -> bool:
        if self.excluded and _named(self.excluded, module):
            return False
        if not _named(self.targets, module):
            return False
        if isinstance(self.targets, str) or module in self.targets or self.layers is None:
            return True
        patterns = [rf"(?:^|.*?\.){each}\.(\d+)\." for each in self.layers_pattern] or [r".*?\.?[^.]*\.(\d+)\."]
        found = next(filter(None, (re.match(pattern, module) for pattern in patterns)), None)
        return found is not None and int(found[1]) in self.layers


def read_peft_config(raw: dict) -> PeftConfig:
    """What an ``adapter_config.json`` says. Raises ConfigError for what is missing or cannot be exact, by name."""
    if raw.get("peft_type") != "LORA":
        raise ConfigError(f"peft_type is {raw.get('peft_type')!r}, only 'LORA' is supported")
    refused = [
        f"{name} {value!r}" + (f" ({MEANING[name]})" if name in MEANING else "")
        for name, value in raw.items()
        if name not in HARMLESS and value is not None and (value not in SUPPORTED[name] if name in SUPPORTED else value)
    ]
    if refused:
        raise ConfigError(f"asks for what cannot be had exactly: {', '.join(refused)}")
    rank, alpha, _ = need(raw, "r", "lora_alpha", "target_modules")
    check_integer("r", rank)
    check_float("lora_alpha", alpha)
    layers = raw.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers
    if layers is not None and not (isinstance(layers, list) and all(type(each) is int for each in layers)):
        raise ConfigError(f"layers_to_transform is {layers!r}, expected numbers of layers")
    config = PeftConfig(
        rank=rank,
        alpha=float(alpha),
        rank_pattern=_patterns(raw, "rank_pattern", check_integer),
        alpha_pattern=_patterns(raw, "alpha_pattern", check_float),
        targets=_names(raw, "target_modules"),
        excluded=_names(raw, "exclude_modules"),
        layers=tuple(layers) if layers else None,
        layers_pattern=_several(_names(raw, "layers_pattern")),
        use_rslora=_flag(raw, "use_rslora"),
        use_dora=_flag(raw, "use_dora"),
    )
    patterns = [each for each in (config.targets, config.excluded) if isinstance(each, str)]
    for pattern in (*patterns, *config.layers_pattern):
        _check_pattern(pattern)
    return config


def _patterns(raw: dict, name: str, check: Callable[[str, object], None]) -> tuple[tuple[re.Pattern, float], ...]:
    """Patterns of the ends of paths, and their values."""
    found = object_in(raw, name)
    if len(found) > MOST_PATTERNS:
        raise ConfigError(f"{name} has {len(found)} entries, expected at most {MOST_PATTERNS}")
    for pattern, value in found.items():
        _check_pattern(pattern)
        check(f"{name} {pattern!r}", value)
    return tuple((re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in found.items())


def _first(patterns: tuple[tuple[re.Pattern, float], ...], module: str, usual: float) -> float:
    """The value of the first pattern that a module's path ends with."""
    return next((value for pattern, value in patterns if pattern.match(module)), usual)


def _named(names: str | tuple[str, ...], module: str) -> bool:
    """Whether a module is named by a pattern of whole paths, or by the ends of paths."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{each}") for each in names)


def _names(raw: dict, name: str) -> str | tuple[str, ...]:
    found = either(raw, name, [])
    if isinstance(found, str):
        return found
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise ConfigError(f"{name} is {found!r}, expected names or a pattern")
    return tuple(found)


def _several(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, (names,))) if isinstance(names, str) else names


def _flag(raw: dict, name: str) -> bool:
    found = either(raw, name, False)
    if not isinstance(found, bool):
        raise ConfigError(f"{name} is {found!r}, expected true or false")
    return found


def _check_pattern(pattern: str) -> None:
    """Raises ConfigError for what is no pattern, or one that might take forever to match."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{pattern!r} is no pattern: {error}") from None
    repeats = len(_REPEAT.findall(pattern))
    if len(pattern) > LONGEST_MATCHER or repeats > MOST_REPEATS or re.search(r"\)[*+{]", pattern):
        raise ConfigError(f"pattern {pattern[:100]!r} is more complicated than names of linears need")

"""A YAML file of options, as mlx_lm.lora takes one: names with ``_`` or ``-``, ``lora_parameters`` in a table."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, Phi4Error
from ..files import expanded, read_text
from .options import TrainingOptions

COMMAND = ("model", "data", "train", "test", "revision", "dry_run")  # what a file may say beside ``TrainingOptions``
FLAGS = ("train", "test", "dry_run")  # of these; a word in quotes would count as true
LORA_PARAMETERS = {"rank": "rank", "scale": "scale", "alpha": "alpha", "keys": "keys", "rslora": "rslora"}
LORA_PARAMETERS |= {"use_rslora": "rslora"}
FIXED_VALUES = {"trust_remote_code": False, "dropout": 0.0}  # what there is no other value for


def read_options(path: str | Path) -> dict[str, Any]:
    """Option -> value. Raises Phi4Error for a file that is no YAML table, or names what is not known."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise Phi4Error('a YAML file needs PyYAML: pip install "mlx_phi4[train]"') from None
    path = expanded(path)
    try:
        raw = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: holds {type(raw).__name__}, expected names and values")
    known = {*COMMAND, *(each.name for each in fields(TrainingOptions))}
    found: dict[str, Any] = {}
    for name, value in raw.items():
        name = str(name).replace("-", "_")
        if value is None:
            continue
        if name == "lora_parameters":
            found |= _lora_parameters(path, value)
        elif name == "optimizer_config":
            found |= _optimizer_config(path, value, raw.get("optimizer", TrainingOptions.optimizer))
        elif name in FIXED_VALUES:
            _check_without_effect(path, name, value)
        elif name in FLAGS and not isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {value!r:.60}, expected true or false")
        elif name in known:
            found[name] = _number(value)
        else:
            raise ConfigError(f"{path}: there is no option {name!r}")
    return found


def _lora_parameters(path: Path, table: Any) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: lora_parameters is {table!r:.60}, expected names and values")
    found = {}
    for name, value in table.items():
        if name in FIXED_VALUES:
            _check_without_effect(path, name, value)
        elif name in LORA_PARAMETERS:
            found[LORA_PARAMETERS[name]] = _number(value)
        else:
            raise ConfigError(f"{path}: there is no {name!r} in lora_parameters, expected {', '.join(LORA_PARAMETERS)}")
    return {name: value for name, value in found.items() if value is not None}


def _optimizer_config(path: Path, table: Any, optimizer: Any) -> dict[str, Any]:
    """Of the optimizer that is used; weight decay is all that can be chosen."""
    own = table.get(optimizer) if isinstance(table, dict) else None
    own = {} if own is None else own
    if not isinstance(table, dict) or not isinstance(own, dict) or set(own) - {"weight_decay"}:
        raise ConfigError(f"{path}: optimizer_config is {table!r:.80}, expected weight_decay alone")
    return {name: _number(value) for name, value in own.items()}


def _check_without_effect(path: Path, name: str, value: Any) -> None:
    if _number(value) != FIXED_VALUES[name]:
        raise ConfigError(f"{path}: {name} is {value!r}, only {FIXED_VALUES[name]!r} is supported")


def _number(value: Any) -> Any:
    """YAML takes 1e-5 for a string: it wants a dot."""
    if isinstance(value, list):
        return [_number(each) for each in value]
    if isinstance(value, dict):
        return {name: _number(each) for name, each in value.items()}
    if isinstance(value, str):
        try:
            return float(value) if any(c in value for c in "eE.") else value
        except ValueError:
            return value
    return value

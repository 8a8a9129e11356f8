"""Fields of published dictionaries, in which nothing may be what it should be."""

from ..errors import ConfigError


def need(raw: dict, *names: str) -> list:
    """The values of these names. Raises ConfigError for those that are absent or null, all at once."""
    missing = [name for name in names if raw.get(name) is None]
    if missing:
        raise ConfigError(f"lacks {', '.join(missing)}")
    return [raw[name] for name in names]


def either(raw: dict, name: str, usual):
    """A value, or the usual one where there is none: absent or null, but not 0 or false."""
    return usual if raw.get(name) is None else raw[name]


def object_in(raw: dict, name: str) -> dict:
    """An object, empty where there is none. Raises ConfigError for anything else."""
    found = either(raw, name, {})
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r}, expected an object")
    return found


def expect(raw: dict, name: str, expected) -> None:
    """Raises ConfigError where a value is there and another one than is computed with."""
    if raw.get(name, expected) != expected:
        raise ConfigError(f"{name} is {raw[name]!r}, only {expected!r} is supported")


def keep(raw: dict, kind: type) -> dict:
    """What of an object a dataclass has fields for; null counts as absent."""
    return {k: v for k, v in raw.items() if k in kind.__dataclass_fields__ and v is not None}

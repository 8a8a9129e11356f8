"""Ways to spoil a valid file: its bytes, its JSON, its header, its template."""

import json
import struct
from copy import deepcopy
from random import Random

BYTES = (
    b"\0",
    b"\xff",
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\\ud800",
    b"\x1b",
    b"9" * 400,
    b"-",
    b"1e999",
    b"\n",
)

VALUES = (
    None, True, False, 0, -1, 1, 2, 3, 7, 64, 65_535, 1 << 24, (1 << 24) + 1, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 62,
    1 << 63, 1 << 64, 10**39, -(1 << 31), 0.0, -0.0, 0.5, -0.5, 1e-320, 1e-30, 1e30, 1e308, float("inf"), -float("inf"),
    float("nan"), "", "a", "0", "1e5", "\ud800", "\x00", "\x1b[2J", "é" * 100, "a" * 100_000, "../x", "/dev/zero", "F4",
    "<|end|>", "longrope", "default", "Replace", "Sequence", "(a+)+[^b]", "{{ 1 }}", [], {}, [[]], [1], [None] * 3,
    [-1, 4], [0, 0], [0, 1 << 62], [1 << 31, 0], ["a"], {"a": 1}, {"type": "Sequence"}, {"Regex": "a*a*a*[^a]"},
    {"type": "NFC"}, {"bits": 0, "group_size": 0}, {"format": 2}, {"": {"": {"": []}}}, [{}] * 1000,
)  # fmt: skip


def spoiled_bytes(random: Random, content: bytes) -> bytes:
    """A few bytes changed, inserted, left out or moved."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 5))):
        start = random.randrange(len(content) + 1)
        stop = min(start + random.choice((0, 1, 1, 4, 50, 1000)), len(content))
        piece = content[start:stop]
        way = random.randrange(5)
        if way == 0:
            content[start:stop] = random.choice(BYTES)
        elif way == 1:
            content[start:stop] = random.randbytes(len(piece))
        elif way == 2:
            content[start:stop] = b""
        elif way == 3:
            content[start:start] = piece * random.choice((1, 2, 100))
        else:
            del content[start + 1 :]
    return bytes(content)


def spoiled_json(random: Random, content: bytes) -> bytes:
    """A few values or names of a JSON text replaced; now and then its bytes."""
    raw = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        raw = spoiled_value(random, raw)
    try:
        text = json.dumps(raw, ensure_ascii=random.random() < 0.8)
        found = text.encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        return content
    return spoiled_bytes(random, found) if random.random() < 0.1 else found


def spoiled_value(random: Random, value):
    """A value with one change, at any depth: each level is as likely as the others, however many values it has."""
    inner = isinstance(value, (dict, list)) and value
    if not inner or random.random() < 0.15:
        return other_value(random, value)
    key = random.choice(list(value) if isinstance(value, dict) else range(len(value)))
    way = random.randrange(12)
    if way == 0:
        del value[key]
    elif way == 1 and isinstance(value, dict):
        value[random.choice(("", "a", "layers.0.", "\ud800", "x" * 300, *value))] = value.pop(key)
    elif way == 2 and isinstance(value, dict):
        value[random.choice(("quantization", "rope_scaling", "mlx_phi4", "head_dim", "more"))] = copied(
            random.choice(VALUES)
        )
    elif way == 3 and isinstance(value, list):
        # copies: a value that stands in two places, one within the other, would change while it is changed
        value[key:key] = [copied(value[key]) for _ in range(random.choice((1, 2, 1000)))]
    else:
        value[key] = spoiled_value(random, value[key])
    return value


def copied(value):
    """A copy of a value; of one that is nested too deeply for that nothing."""
    try:
        return deepcopy(value)
    except RecursionError:
        return None


def other_value(random: Random, value):
    """Something else in a value's place, often of the same kind."""
    way = random.randrange(6)
    if way == 0 and isinstance(value, (int, float)):
        return random.choice((-value, value + 1, value - 1, value * 2, value * 10**6, value / 2))
    if way == 1 and isinstance(value, str):
        return random.choice((value * 2, value[:-1], value + "\n", value.upper(), value[::-1], value * 1000))
    if way == 2:
        for _ in range(random.choice((1, 3, 70, 500))):
            value = random.choice(([value], {"a": value}))
        return value
    return copied(random.choice(VALUES))


def spoiled_safetensors(random: Random, content: bytes) -> bytes:
    """A file whose header is spoiled, or said to be of another length, or whose end is missing."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header, data = content[8:end], content[end:]
    way = random.randrange(8)
    if way == 0:
        return struct.pack("<Q", random.choice((0, 1, end, end * 2, 1 << 40, (1 << 64) - 1))) + header + data
    if way == 1:
        return content[: random.randrange(len(content))]
    if way == 2:
        return content + random.randbytes(random.choice((1, 100)))
    header = spoiled_bytes(random, header) if way == 3 else spoiled_json(random, header)
    return struct.pack("<Q", len(header)) + header + data


NAMES = ("messages", "m", "ns", "a", "loop", "tools", "x", "true", "none")
FIELDS = ("role", "content", "a", "first", "index0", "items", "__class__", "format")
CALLS = ("strip()", "split('|')", "upper()", "get('role')", "ljust(99999999)", "format(1)", "keys()", "title()")
FILTERS = ("trim", "length", "tojson", "join", "center(99999999)", "list", "first", "replace('a', 'aa')", "default('')")
OPERATORS = ("+", "~", "-", "*", "**", "/", "//", "%", "==", "<", "in", "not in", "and", "or", "is defined and")
CONSTANTS = ("0", "1", "'a'", "''", "99999999", "'<|end|>'", "[]", "['a', 1]", "{}", "1e308", "range(99999999)")


def expression(random: Random, depth: int = 0) -> str:
    """Any expression, mostly one that parses."""
    if depth > 4 or random.random() < 0.3:
        return random.choice((*NAMES, *CONSTANTS))
    inner = expression(random, depth + 1)
    return random.choice(
        (
            f"{inner} {random.choice(OPERATORS)} {expression(random, depth + 1)}",
            f"{inner}.{random.choice(FIELDS)}",
            f"{inner}['{random.choice(FIELDS)}']",
            f"{inner}.{random.choice(CALLS)}",
            f"({inner} | {random.choice(FILTERS)})",
            f"{inner}[{random.choice(('0', '-1', '1:', '::-1', '::0', inner))}]",
            f"({inner} if {expression(random, depth + 1)} else a)",
            f"namespace(a={inner})",
            f"[{inner}, {inner}]",
            f"not {inner}",
        )
    )


def statement(random: Random, depth: int = 0) -> str:
    """Any statement, mostly one that parses."""
    some = "".join(statement(random, depth + 1) for _ in range(random.randrange(4))) if depth < 5 else "text"
    return random.choice(
        (
            "{{ " + expression(random) + " }}",
            "{% for m in " + expression(random) + " %}" + some + "{% endfor %}",
            "{% if " + expression(random) + " %}" + some + "{% else %}" + some + "{% endif %}",
            "{% set a = " + expression(random) + " %}",
            "{% set ns = namespace(a=" + expression(random) + ") %}" + some,
            "{% set ns.a = ns.a ~ ns.a ~ " + expression(random) + " %}" * random.choice((1, 1, 40)),
            "{% macro b(x) %}" + some + "{{ b(x) }}{% endmacro %}{{ b(1) }}",
            some,
        )
    )


def spoiled_template(random: Random, content: bytes) -> bytes:
    """Statements put into a template, or instead of it; now and then its bytes."""
    made = "".join(statement(random) for _ in range(random.randrange(1, 5))).encode()
    if random.random() < 0.5:
        made = made + content
    return spoiled_bytes(random, made) if random.random() < 0.2 else made

"""Random JSON schemas of all that structured output supports, and whether an answer is what its schema describes."""

import json
import random

import jsonschema

NAMES = ("name", "größe", "city name", "x", "π", "a/b", "名前", "tags", 'é"q', "🎈", "line\nbreak", "$id_", "0")
TEXTS = ("red", "grün", "", "日本語", 'a "b"', "\\", "tab\t", "🎉🎉", "naïve", "null", "<|end|>", "\u2028", "x" * 30)
PATTERNS = (
    "^[A-Z]{2,4}$", "^[0-9]{3}-[0-9]{4}$", "^(foo|bar|bäz)$", "^[a-z]{1,6}( [a-z]{1,6}){0,2}$", "[0-9]{2}",
    "^[äöüß]{1,5}$", "^v[0-9]{1,2}\\.[0-9]{1,2}$", "^[^a-z]{1,6}$", "^.{1,5}$", "^(a|b)*a(a|b){3}$",
)  # fmt: skip
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname", "duration")


class RandomSchemas:
    """Schemas from a seed, each as deep as ``depth``, of which an answer has an end."""

    def __init__(self, seed: int, depth: int = 3):
        self._random = random.Random(seed)
        self._depth = depth

    def schema(self) -> dict:
        """The next one, sometimes with definitions that refer to themselves."""
        if self._random.random() > 0.15:
            return self._any(self._depth)
        node = self._object(1)
        children = {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2}
        node["properties"]["children"] = children
        leaf = {"anyOf": [{"$ref": "#/$defs/node"}, self._any(1)]}
        return {"$defs": {"node": node}, "type": "object", "additionalProperties": False} | {
            "properties": {"root": {"$ref": "#/$defs/node"}, "other": leaf},
            "required": self._some(["root", "other"]),
        }

    def _some(self, values: list) -> list:
        return [value for value in values if self._random.random() < 0.6]

    def _any(self, depth: int) -> dict:
        kinds = [self._string, self._integer, self._number, self._enum, self._plain]
        if depth > 0:
            kinds += [self._object, self._object, self._array, self._array, self._either, self._both]
        made = self._random.choice(kinds)(depth - 1)
        if isinstance(made.get("type"), str) and self._random.random() < 0.1:
            made["type"] = [made["type"], "null"]
        return made

    def _plain(self, depth: int) -> dict:
        return self._random.choice(
            [{"type": "boolean"}, {"type": "null"}, {"const": self._value(1)}, {"type": ["null", "boolean"]}]
        )

    def _value(self, depth: int):
        if depth and self._random.random() < 0.2:
            return self._random.choice([[self._value(0), self._value(0)], {self._random.choice(NAMES): self._value(0)}])
        return self._random.choice([None, True, False, 0, -3, 17, 2.5, *TEXTS])

    def _enum(self, depth: int) -> dict:
        values = [self._value(1) for _ in range(self._random.randint(1, 6))]
        return {"enum": list({json.dumps(value): value for value in values}.values())}

    def _string(self, depth: int) -> dict:
        kind = self._random.random()
        if kind < 0.3:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)} | (
                {"maxLength": 8} if self._random.random() < 0.3 else {}
            )
        if kind < 0.5:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        least = self._random.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + self._random.randint(0, 10)}

    def _integer(self, depth: int) -> dict:
        low = self._random.choice([-(10**6), -17, -1, 0, 1, 99])
        most = low + self._random.choice([0, 1, 9, 100, 12345])
        return self._random.choice([
            {"type": "integer", "minimum": low, "maximum": most},
            {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": most + 2},
            {"type": "integer", "multipleOf": self._random.choice([2, 5, 7, 12]), "minimum": 0, "maximum": 500},
        ])  # fmt: skip

    def _number(self, depth: int) -> dict:
        low = self._random.choice([-1000.5, -1, -0.25, 0, 0.001, 3.75])
        most = low + self._random.choice([0.5, 1, 2.125, 1000])
        return self._random.choice([
            {"type": "number", "minimum": low, "maximum": most},
            {"type": "number", "exclusiveMinimum": low, "exclusiveMaximum": most},
            {"type": "number", "minimum": low},
        ])  # fmt: skip

    def _object(self, depth: int) -> dict:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        made = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        made["required"] = self._some(names)
        kind = self._random.random()
        if kind < 0.75:
            made["additionalProperties"] = False
        elif kind < 0.9:
            made["additionalProperties"] = self._any(0)
        return made

    def _array(self, depth: int) -> dict:
        least = self._random.randint(0, 2)
        if self._random.random() < 0.2:
            return {
                "type": "array",
                "prefixItems": [self._any(depth), self._any(depth)],
                "items": False,
                "minItems": least,
            }
        return {
            "type": "array",
            "items": self._any(depth),
            "minItems": least,
            "maxItems": least + self._random.randint(0, 3),
        }

    def _either(self, depth: int) -> dict:
        if self._random.random() < 0.3:
            parts = [
                {"type": "object", "properties": {"kind": {"const": name}, "value": self._any(depth)}} for name in "ab"
            ]
            return {"oneOf": [part | {"required": ["kind"], "additionalProperties": False} for part in parts]}
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(1, 3))]}

    def _both(self, depth: int) -> dict:
        first, second = (
            {"type": "object", "properties": {name: self._any(depth)}, "required": [name]} for name in "pq"
        )
        return {"allOf": [first, second], "additionalProperties": True, "maxProperties": 3}


def fault(schema: dict, text: str) -> str | None:
    """Why an answer is not what its schema describes; None if it is."""
    try:
        value = json.loads(text)
        jsonschema.Draft202012Validator(schema).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return str(error).splitlines()[0]
    return None

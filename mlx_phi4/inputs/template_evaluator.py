"""Chat templates evaluated in bounded time and memory: the small part of Jinja that they are written in.

A template comes with a checkpoint and is a program. Jinja's own sandbox keeps it from files, but not from endless work
or gigabytes of text, so it is only parsed by Jinja, and every step of its evaluation is counted here.
"""

import operator
from collections.abc import Callable
from typing import Any

MOST_STEPS = 20_000  # nodes that are evaluated; the published templates take 200
MOST_CHARACTERS = 32_000  # of a template, and of any text that it makes
CHARACTERS_A_STEP = 64  # so that all text that is ever made has a bound, too
MOST_ITEMS = 200  # of a list
LARGEST_INTEGER = 10**9


class Refused(Exception):
    """A template that does what is not known here, too much, or wrong."""


class Undefined:
    """What a name stands for that nothing was given for: empty text, false, no items."""

    def __bool__(self) -> bool:
        return False


UNDEFINED = Undefined()
SCALARS = (str, int, float, type(None))  # bool is an int


class Namespace(dict):
    """Jinja's ``namespace``: what loops may change for those outside."""


def evaluate(template: str, values: dict[str, Any]) -> str:
    """The text of a template with these values: strings, numbers, None, and lists and dictionaries of them.

    Raises:
        Exception: of any kind. The template is no valid Jinja, has parts that are not known here, fails, or exceeds
            the limits above.
    """
    from jinja2 import Environment

    if len(template) > MOST_CHARACTERS:
        raise Refused(f"more than {MOST_CHARACTERS} characters")
    parsed = Environment(trim_blocks=True, lstrip_blocks=True).parse(template)
    evaluator = Evaluator(values)
    evaluator.run(parsed.body)
    return "".join(evaluator.output)


class Evaluator:
    """Walks over the nodes of a parsed template; a node without a method of its name is refused."""

    def __init__(self, values: dict[str, Any]):
        self.scopes = [dict(values)]
        self.output: list[str] = []
        self._left = MOST_STEPS

    def run(self, body: list) -> None:
        """Carry out statements."""
        for node in body:
            self.value(node)

    def value(self, node) -> Any:
        """What an expression stands for; None for a statement. Raises Refused."""
        method = getattr(self, f"_{type(node).__name__.lower()}", None)
        if method is None:
            raise Refused(type(node).__name__)
        return self._charged(method(node))

    def _charged(self, value: Any) -> Any:
        size = len(value) if isinstance(value, (str, list)) else 0
        self._left -= 1 + size // CHARACTERS_A_STEP
        if self._left < 0 or size > (MOST_ITEMS if isinstance(value, list) else MOST_CHARACTERS):
            raise Refused("too much work")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise Refused("too large a number")
        return value

    # statements

    def _output(self, node) -> None:
        for part in node.nodes:
            self.output.append(self._charged(text(self.value(part))))

    def _if(self, node) -> None:
        for branch in (node, *node.elif_):
            if self.value(branch.test):
                return self.run(branch.body)
        return self.run(node.else_)

    def _for(self, node) -> None:
        if node.recursive:
            raise Refused("a recursive loop")
        self.scopes.append({})
        try:
            items = items_of(self.value(node.iter))
            if node.test is not None:
                items = [item for item in items if self._bound(node.target, item) and self.value(node.test)]
            for index, item in enumerate(items):
                self.scopes[-1] = {"loop": loop(index, len(items))}
                self._bound(node.target, item)
                self.run(node.body)
        finally:
            self.scopes.pop()
        if not items:
            self.run(node.else_)

    def _assign(self, node) -> None:
        self._bound(node.target, self.value(node.node))

    def _bound(self, target, value: Any) -> bool:
        """Give a name, an attribute of a namespace or a tuple of names its value."""
        kind = type(target).__name__
        if kind == "Name":
            self.scopes[-1][target.name] = value
        elif kind == "NSRef" and isinstance(namespace := self._name(target), Namespace):
            if isinstance(value, Namespace):
                raise Refused("a namespace in another")  # as a list of lists
            namespace[target.attr] = value
        elif kind == "Tuple" and isinstance(value, list) and len(value) == len(target.items):
            for inner, item in zip(target.items, value, strict=True):
                self._bound(inner, item)
        else:
            raise Refused(f"an assignment to {kind}")
        return True

    # expressions

    def _templatedata(self, node) -> str:
        return node.data

    def _const(self, node) -> Any:
        return node.value

    def _name(self, node) -> Any:
        return next((scope[node.name] for scope in reversed(self.scopes) if node.name in scope), UNDEFINED)

    def _list(self, node) -> list:
        items = [self.value(item) for item in node.items]
        if not all(isinstance(item, SCALARS) for item in items):
            raise Refused("a list of lists")  # a few of them, each in the next, would be endless
        return items

    _tuple = _list

    def _getattr(self, node) -> Any:
        return member(self.value(node.node), node.attr)

    def _getitem(self, node) -> Any:
        owner = self.value(node.node)
        if type(node.arg).__name__ == "Slice" and isinstance(owner, (str, list)):
            ends = (node.arg.start, node.arg.stop, node.arg.step)
            return owner[slice(*(None if end is None else self.value(end) for end in ends))]
        return member(owner, self.value(node.arg))

    def _call(self, node) -> Any:
        given = [self.value(argument) for argument in node.args]
        named = {keyword.key: self.value(keyword.value) for keyword in node.kwargs}
        if node.dyn_args or node.dyn_kwargs:
            raise Refused("arguments of any number")
        if type(node.node).__name__ == "Name" and node.node.name == "namespace" and not given:
            if any(isinstance(value, Namespace) for value in named.values()):
                raise Refused("a namespace in another")
            return Namespace(named)
        if type(node.node).__name__ != "Getattr" or named:
            raise Refused("a call of something else than a method")
        owner = self.value(node.node.node)
        method = METHODS.get((str if isinstance(owner, str) else dict if type(owner) is dict else None, node.node.attr))
        if method is None or not all(isinstance(argument, SCALARS) for argument in given):
            raise Refused(f"the method {node.node.attr}")
        return method(owner, *given)

    def _filter(self, node) -> Any:
        if node.name not in FILTERS or node.kwargs or node.dyn_args or node.dyn_kwargs or node.node is None:
            raise Refused(f"the filter {node.name}")
        return FILTERS[node.name](self.value(node.node), *(self.value(argument) for argument in node.args))

    def _test(self, node) -> bool:
        if node.name not in TESTS or node.args or node.kwargs or node.dyn_args or node.dyn_kwargs:
            raise Refused(f"the test {node.name}")
        return TESTS[node.name](self.value(node.node))

    def _concat(self, node) -> str:
        return "".join(self._charged(text(self.value(part))) for part in node.nodes)

    def _add(self, node) -> Any:
        return self._arithmetic(operator.add, node, (str, list, int))

    def _sub(self, node) -> int:
        return self._arithmetic(operator.sub, node, (int,))

    def _mod(self, node) -> int:
        return self._arithmetic(operator.mod, node, (int,))

    def _arithmetic(self, compute: Callable, node, kinds: tuple[type, ...]) -> Any:
        left, right = self.value(node.left), self.value(node.right)
        if not any(isinstance(left, kind) and isinstance(right, kind) for kind in kinds):
            raise Refused("arithmetic of other things")
        return compute(left, right)

    def _and(self, node) -> Any:
        return self.value(node.left) and self.value(node.right)

    def _or(self, node) -> Any:
        return self.value(node.left) or self.value(node.right)

    def _not(self, node) -> bool:
        return not self.value(node.node)

    def _condexpr(self, node) -> Any:
        if self.value(node.test):
            return self.value(node.expr1)
        return UNDEFINED if node.expr2 is None else self.value(node.expr2)

    def _compare(self, node) -> bool:
        left = self.value(node.expr)
        for operand in node.ops:
            right = self.value(operand.expr)
            if not COMPARISONS[operand.op](left, right):
                return False
            left = right
        return True


def text(value: Any) -> str:
    """A value as it is printed. Raises Refused for lists and dictionaries."""
    if isinstance(value, SCALARS):
        return str(value)
    if value is UNDEFINED:
        return ""
    raise Refused("printing of other things than text")


def items_of(value: Any) -> list:
    """What a loop goes over. Raises Refused."""
    if value is UNDEFINED:
        return []
    if isinstance(value, (list, dict)):
        return list(value)
    raise Refused("a loop over something else than a list")


def loop(index: int, length: int) -> dict:
    """Jinja's ``loop`` in the round with this index."""
    return {
        "index": index + 1, "index0": index, "revindex": length - index, "revindex0": length - index - 1,
        "first": index == 0, "last": index == length - 1, "length": length,
    }  # fmt: skip


def member(owner: Any, key: Any) -> Any:
    """A dictionary's entry, an item of a list or a character; undefined if there is none. Raises Refused."""
    if isinstance(owner, dict) and isinstance(key, str):
        return owner.get(key, UNDEFINED)
    if isinstance(owner, (str, list)) and type(key) is int:
        return owner[key] if -len(owner) <= key < len(owner) else UNDEFINED
    raise Refused("a part of something that has none")


COMPARISONS = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "lteq": operator.le, "gt": operator.gt,
    "gteq": operator.ge, "in": lambda left, right: left in right, "notin": lambda left, right: left not in right,
}  # fmt: skip

METHODS = {(str, name): getattr(str, name) for name in ("strip", "lstrip", "rstrip", "lower", "upper", "split")}
METHODS |= {(str, name): getattr(str, name) for name in ("startswith", "endswith", "title", "capitalize")}
METHODS |= {(dict, "get"): lambda owner, key, usual=None: owner.get(key, usual)}

FILTERS = {
    "trim": lambda value: text(value).strip(),
    "lower": lambda value: text(value).lower(),
    "upper": lambda value: text(value).upper(),
    "string": text,
    "safe": text,
    "length": len,
    "count": len,
    "first": lambda value: member(value, 0),
    "last": lambda value: member(value, -1),
    "default": lambda value, usual="": usual if value is UNDEFINED else value,
}

TESTS = {
    "defined": lambda value: value is not UNDEFINED,
    "undefined": lambda value: value is UNDEFINED,
    "none": lambda value: value is None,
    "string": lambda value: isinstance(value, str),
    "mapping": lambda value: isinstance(value, dict),
    "sequence": lambda value: isinstance(value, (str, list, dict)),
    "iterable": lambda value: isinstance(value, (str, list, dict)),
    "boolean": lambda value: isinstance(value, bool),
    "true": lambda value: value is True,
    "false": lambda value: value is False,
}

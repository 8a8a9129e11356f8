"""Which calls of tools may come in an answer: the token that begins them, and a grammar made of the parameters.

A call is held to the form in which calls of earlier turns are written, so that its keys and values serve the next turn.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..errors import Phi4Error, PromptError
from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import TOOL_CALL, TOOL_CALL_END, Tool, ToolChoice
from .constraints import Constraint
from .grammars import Grammar, read_grammar
from .options import GenerationOptions
from .structured import CompiledGrammar, check, compiled, define, library

AUTO = ToolChoice("auto")
# at "x-guidance" of a schema: JSON as it is written into prompts
AS_IN_PROMPTS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Form(Protocol):
    """What answers keep to: each row gets a constraint of its own from it. From any thread."""

    def constraint(self) -> Constraint:
        """One at the answer's beginning."""


def checked_choice(tools: Sequence[Tool], options: GenerationOptions) -> ToolChoice:
    """What the options choose of these tools. Raises PromptError for what does not fit."""
    choice = options.tool_choice or ToolChoice("auto" if tools else "none")
    if not tools and choice.mode != "none":
        raise PromptError(f"tool_choice is {choice.name or choice.mode!r}, but there are no tools")
    names = [tool.name for tool in tools]
    if choice.name is not None and choice.name not in names:
        raise PromptError(f"tool_choice names {choice.name!r}, but the tools are {', '.join(names)}")
    return choice


def without_calls(options: GenerationOptions, tokenizer: Tokenizer) -> GenerationOptions:
    """The options, and where they say so the token that begins calls never comes."""
    token = tokenizer.special.get(TOOL_CALL)
    if options.tool_choice is None or options.tool_choice.mode != "none" or token is None:
        return options
    return replace(options, logit_bias=options.logit_bias | {token.id: -math.inf})


def answer_form(tools: Sequence[Tool], options: GenerationOptions, tokenizer: Tokenizer) -> Form | None:
    """The form of answers that may call these tools; None where any text may come.

    Without llguidance calls that need not come have no grammar. Raises Phi4Error: a choice that does not fit, a schema
    of which no grammar can be made, llguidance that is missing.
    """
    choice, asked = checked_choice(tools, options), options.grammar
    if choice.mode == "none":
        return None if asked is None else compiled(asked, tokenizer)
    lazy = choice.mode == "auto" and asked is None
    if not _there(needed=not lazy):
        return None
    schemas = _schemas(tools)
    try:
        found = compiled(_grammar(tools, schemas, choice, options, tokenizer), tokenizer)
    except Phi4Error:
        for tool, schema in zip(tools, schemas, strict=True):  # which one is it?
            if tool.strict:
                compiled(schema, tokenizer)
        raise
    return LazyForm(found, tokenizer.special[TOOL_CALL].id) if lazy else found


def check_tools(tools: Sequence[Tool], options: GenerationOptions) -> None:
    """Refuse what ``answer_form`` would refuse, before there is a tokenizer. Raises Phi4Error."""
    choice = checked_choice(tools, options)
    if choice.mode == "none" or not _there(needed=choice.mode == "required"):
        return
    for tool, schema in zip(tools, _schemas(tools), strict=True):
        if tool.strict:
            check(schema)


def _there(needed: bool) -> bool:
    """Whether llguidance is installed. Raises Phi4Error where it is needed and is not."""
    try:
        library()
    except Phi4Error:
        if needed:
            raise
        return False
    return True


def _schemas(tools: Sequence[Tool]) -> list[Grammar]:
    named = ((f"tools[{index}].parameters of {tool.name!r}", tool.schema) for index, tool in enumerate(tools))
    return [read_grammar("schema", schema, name) for name, schema in named]


def _grammar(
    tools: Sequence[Tool],
    schemas: Sequence[Grammar],
    choice: ToolChoice,
    options: GenerationOptions,
    tokenizer: Tokenizer,
) -> Grammar:
    """A list of calls between its tokens; where none has to come, perhaps what is asked of other answers instead."""
    begin, end = (f"<[{tokenizer.special[each].id}]>" for each in (TOOL_CALL, TOOL_CALL_END))
    several = "" if choice.name or not options.parallel_tool_calls else ' (", " call)*'
    rules, names = [f'calls: {begin} "[" call{several} "]" {end}'], []
    for index, (tool, schema) in enumerate(zip(tools, schemas, strict=True)):
        if choice.name in (None, tool.name):
            names.append(f"call_{index}")
            head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
            kept = dict.fromkeys(("lenient", "coerce_one_of"), not tool.strict)
            guided = json.dumps(json.loads(schema.text) | {"x-guidance": AS_IN_PROMPTS | kept})
            rules.append(f'{names[-1]}: {head} %json {guided} "}}"')
    rules.append(f"call: {' | '.join(names)}")
    if choice.mode == "required" or options.grammar is None:
        return Grammar("lark", "\n".join(["start: calls", *rules]), "tools", options.think_first)
    forms = json.loads(define(replace(options.grammar, thoughts=False)))["grammars"]
    calls = {"lark_grammar": "\n".join(["start: @form | calls", *rules])}
    text = json.dumps({"grammars": [calls, forms[0] | {"name": "form"}]})
    return Grammar("grammars", text, f"{options.grammar.name} with tools", options.think_first)


@dataclass(frozen=True)
class LazyForm:
    """A grammar that begins with its ``first`` token, which may come at any time or never."""

    grammar: CompiledGrammar
    first: int

    def constraint(self) -> "LazyConstraint":
        """See ``Form``."""
        return LazyConstraint(self.grammar, self.first)


class LazyConstraint:
    """Where a row's answer stands in a ``LazyForm``; see ``Constraint``."""

    def __init__(self, grammar: CompiledGrammar, first: int):
        self._grammar, self._first = grammar, first
        self._begun: Constraint | None = None
        self._since = 0  # tokens that came since it began

    def allowed(self) -> np.ndarray | None:
        """See ``Constraint``."""
        return None if self._begun is None else self._begun.allowed()

    def advance(self, token: int) -> None:
        """See ``Constraint``."""
        if self._begun is None and token != self._first:
            return
        if self._begun is None:
            self._begun = self._grammar.constraint()
        self._begun.advance(token)
        self._since += 1

    def accepts(self, tokens: Sequence[int]) -> int:
        """See ``Constraint``."""
        if self._begun is not None:
            return self._begun.accepts(tokens)
        tokens = list(tokens)
        before = tokens.index(self._first) if self._first in tokens else len(tokens)
        rest = tokens[before:]
        return before + (self._grammar.constraint().accepts(rest) if rest else 0)

    def rollback(self, count: int) -> None:
        """See ``Constraint``."""
        back = min(count, self._since)
        self._since -= back
        if self._begun is not None and not self._since:
            self._begun = None
        elif back:
            self._begun.rollback(back)

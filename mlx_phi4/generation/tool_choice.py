"""Which calls of tools may come in an answer: the token that begins them, and a grammar made of the parameters.

A call is held to the form in which calls of earlier turns are written, so that its keys and values serve the next turn.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import Phi4Error, PromptError
from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import TOOL_CALL, TOOL_CALL_END, Tool, ToolChoice
from .constraints import Constraint
from .grammars import Grammar
from .options import GenerationOptions
from .structured import CompiledGrammar, compiled, define, library

AUTO = ToolChoice("auto")
# as JSON is written into prompts
WRITTEN = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def checked_choice(tools: Sequence[Tool], options: GenerationOptions) -> ToolChoice | None:
    """What the options choose of these tools; None if there are none. Raises PromptError for what does not fit."""
    choice = options.tool_choice
    if not tools:
        if choice is not None and choice.mode != "none":
            raise PromptError(f"tool_choice is {choice.name or choice.mode!r}, but there are no tools")
        return choice
    choice = choice or AUTO
    names = [tool.name for tool in tools]
    if choice.name is not None and choice.name not in names:
        raise PromptError(f"tool_choice names {choice.name!r}, but the tools are {', '.join(names)}")
    return choice


def choose_calls(
    tools: Sequence[Tool], options: GenerationOptions, tokenizer: Tokenizer
) -> tuple[GenerationOptions, Constraint | None]:
    """Options and constraint of a row with these tools.

    Without llguidance calls that need not come have no grammar. Raises Phi4Error: a choice that does not fit, a schema
    of which no grammar can be made, llguidance that is missing.
    """
    choice, form = checked_choice(tools, options), options.grammar
    if choice is None or choice.mode == "none":
        token = tokenizer.special.get(TOOL_CALL)
        if token is not None:
            options = replace(options, logit_bias=options.logit_bias | {token.id: -math.inf})
        return options, None if form is None else compiled(form, tokenizer).constraint()
    lazy = choice == AUTO and form is None
    try:
        library()
    except Phi4Error:
        if lazy:
            return options, None
        raise
    try:
        grammar = compiled(_grammar(tools, choice, options, tokenizer), tokenizer)
    except Phi4Error:
        for index, tool in enumerate(tools):  # which one is it?
            named = f"tools[{index}].parameters of {tool.name!r}"
            compiled(Grammar("json_schema", json.dumps(tool.schema), named), tokenizer)
        raise
    if lazy:
        return options, LazyConstraint(grammar, tokenizer.special[TOOL_CALL].id)
    return options, grammar.constraint()


def _grammar(tools: Sequence[Tool], choice: ToolChoice, options: GenerationOptions, tokenizer: Tokenizer) -> Grammar:
    """A list of calls between its tokens; where none has to come, perhaps the form of other answers instead."""
    begin, end = (f"<[{tokenizer.special[each].id}]>" for each in (TOOL_CALL, TOOL_CALL_END))
    tools = [tool for tool in tools if choice.name in (None, tool.name)]
    several = "" if choice.name or not options.parallel_tool_calls else ' (", " call)*'
    rules = [f'calls: {begin} "[" call{several} "]" {end}']
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(tools))))
    for index, tool in enumerate(tools):
        head = json.dumps(f'{{"name": {json.dumps(tool.name)}, "arguments": ')
        rules.append(f'call_{index}: {head} %json {json.dumps(tool.schema | {"x-guidance": WRITTEN})} "}}"')
    if choice.mode == "required" or options.grammar is None:
        return Grammar("lark", "\n".join(["start: calls", *rules]), "tools")
    calls = {"lark_grammar": "\n".join(["start: @form | calls", *rules])}
    form, *parts = json.loads(define(options.grammar))["grammars"]
    grammars = [calls, form | {"name": "form"}, *parts]
    return Grammar("grammars", json.dumps({"grammars": grammars}), f"{options.grammar.name} or tools")


class LazyConstraint:
    """A grammar that begins with its first token, which may come at any time; see ``Constraint``."""

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

"""The bodies of chat and text completions: tables of their parameters, and what they ask of the engine."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import PromptError
from ..generation.grammars import Grammar
from ..generation.options import GenerationOptions, answer_number
from ..generation.sampling import PENALTIES
from ..generation.speculation import encoded
from ..generation.tool_choice import Form, checked_choice
from ..inputs.processor import Processor, Request, Row
from . import fields
from .errors import RequestError
from .fields import boolean, integer, mapping, number, one_of, refused, text
from .forms import response_format
from .messages import Fetch, read_messages
from .names import ModelNames
from .tools import TOOL_FIELDS, naming
from .wire import dumps

MOST_ANSWERS = 128  # to one prompt
LETTERS = 16  # of a token at most, on average: longer texts are refused before they are tokenized

_SAMPLING = {
    "temperature": number(0, 2),
    "top_p": number(0, 1, above=True),
    "seed": integer(0),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": fields.biases,
    # this package's own
    "top_k": integer(0),
    "min_p": number(0, 1),
    "min_tokens_to_keep": integer(1),
    "xtc_probability": number(0, 1),
    "xtc_threshold": number(0, 0.5),
    "repetition_penalty": number(0, 10, above=True),
    **{f"{name}_context_size": integer(1) for name in PENALTIES},
    "min_tokens": integer(0),
    "speculation": one_of("lookup", "none"),
}
_BOOKKEEPING = {
    "user": text,
    "metadata": mapping,
    "store": boolean,
    "service_tier": text,
    "safety_identifier": text,
    "prompt_cache_key": text,
    "prompt_cache_retention": text,
}  # of whoever runs a platform; without effect here
_COMMON = {
    "model": text,
    "max_tokens": integer(1),
    "n": integer(1, MOST_ANSWERS),
    "stop": fields.stops,
    "stream": boolean,
    "stream_options": mapping,
    "cache_salt": text,
    "response_format": response_format,
    **_SAMPLING,
    **_BOOKKEEPING,
}
CHAT = {
    "messages": lambda value, name: value,
    "max_completion_tokens": integer(1),
    "logprobs": boolean,
    "top_logprobs": integer(0, 20),
    "modalities": lambda value, name: _only_text(value, name),
    "prediction": fields.prediction,
    **TOOL_FIELDS,
    **dict.fromkeys(("audio", "reasoning_effort", "verbosity", "web_search_options"), refused),
    **_COMMON,
}
COMPLETION = {
    "prompt": lambda value, name: value,
    "logprobs": integer(0, 20),
    "echo": one_of(False),
    "best_of": integer(1, MOST_ANSWERS),
    "suffix": refused,
    **_COMMON,
}


@dataclass(frozen=True)
class Ask:
    """What a body asks for: rows, and the options of the answers to each.

    ``model`` is the name that was asked for, ``logprobs`` whether they are shown, ``include_usage`` whether a stream
    ends with the usage, ``salt`` whose prompts may share keys and values, ``form`` what its answers keep to.
    """

    model: str
    rows: list[Row]
    answers: list[list[GenerationOptions]]
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    salt: str = ""
    form: Form | None = None

    @property
    def grammar(self) -> Grammar | None:
        """What its answers keep to where they call nothing."""
        return self.answers[0][0].grammar

    @property
    def mode(self) -> str:
        return self.rows[0].mode


@dataclass(frozen=True)
class Reader:
    """What is known before a body is read: the names and the processor of the model, the temperature of requests that
    name none, and ``room``, the most tokens that can follow a row.
    """

    names: ModelNames
    processor: Processor
    temperature: float
    room: Callable[[Row], int]
    fetch: Fetch | None = None  # gets pictures from addresses that are allowed
    think_first: bool = False  # a block of thoughts may come before an answer in a given form


def read_chat(given: Mapping[str, Any], reader: Reader) -> Ask:
    """A chat completion's body. Raises RequestError, PromptError."""
    found = fields.read_fields(CHAT, given)
    adapter = reader.names.adapter(fields.required(found, "model"))
    messages = fields.required(found, "messages")
    if "max_completion_tokens" in found:
        if "max_tokens" in found:
            raise RequestError("max_tokens and max_completion_tokens are the same; give one", param="max_tokens")
        found["max_tokens"] = found["max_completion_tokens"]
    if "top_logprobs" in found and not found.get("logprobs"):
        raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs", code="invalid_value")
    logprobs = found.get("top_logprobs", 0) if found.get("logprobs") else None
    tools = found.get("tools") or None
    _check_length([*_texts(messages), dumps(tools) if tools else ""], reader)
    if found.get("prediction"):
        _check_length([found["prediction"]], reader, "the prediction")
        encoded(found["prediction"], reader.processor.tokenizer)  # here, so that the engine finds it done
    request = Request(read_messages(messages, reader.fetch), adapter=adapter, tools=tools)
    required = "tool_choice" in found and found["tool_choice"].mode == "required"
    if reader.think_first and (found.get("response_format") or required):
        found["response_format"] = found.get("response_format", {}) | {"think_first": True}
    with naming():
        return _ask(found, [reader.processor.row(request)], reader, logprobs)


def read_completion(given: Mapping[str, Any], reader: Reader) -> Ask:
    """A text completion's body. Raises RequestError, PromptError."""
    found = fields.read_fields(COMPLETION, given)
    adapter = reader.names.adapter(fields.required(found, "model"))
    if found.get("best_of", found.get("n", 1)) != found.get("n", 1):
        raise fields.unsupported("best_of", "is supported only where it equals n")
    prompts = _prompts(fields.required(found, "prompt"), reader.processor)
    _check_length((each for each in prompts if isinstance(each, str)), reader)
    if len(prompts) * found.get("n", 1) > MOST_ANSWERS:
        raise RequestError(f"{len(prompts)} prompts of n answers each; at most {MOST_ANSWERS} in all", param="n")
    rows = [
        reader.processor.row(Request(each, raw=True, adapter=adapter))
        if isinstance(each, str)
        else Row(each, adapter=adapter)
        for each in prompts
    ]
    return _ask(found, rows, reader, found.get("logprobs"))


def _ask(found: dict[str, Any], rows: list[Row], reader: Reader, logprobs: int | None) -> Ask:
    stream = found.get("stream", False)
    if "stream_options" in found and not stream:
        raise RequestError("stream_options needs stream: true", param="stream_options", code="invalid_value")
    table = {"include_usage": boolean, "include_obfuscation": one_of(False)}
    streamed = fields.read_fields(table, found.get("stream_options", {}), "stream_options.")
    vocabulary = reader.processor.config.decoder.vocab_size
    if beyond := [token for token in found.get("logit_bias", {}) if token >= vocabulary]:
        raise fields.wrong("logit_bias", beyond[0], f"token ids below {vocabulary}")
    named = (*_SAMPLING, "tool_choice", "parallel_tool_calls")
    options = {"temperature": reader.temperature} | {name: found[name] for name in named if name in found}
    options |= {name: found.get(name) for name in ("stop", "prediction")}
    options |= {"logprobs": logprobs, **found.get("response_format", {})}
    answers = [_answers(row, found, options, reader) for row in rows]
    return Ask(
        model=found["model"],
        rows=rows,
        answers=answers,
        stream=stream,
        include_usage=streamed.get("include_usage", False),
        logprobs=logprobs is not None,
        salt=found.get("cache_salt", ""),
    )


def _answers(row: Row, found: dict[str, Any], options: dict, reader: Reader) -> list[GenerationOptions]:
    context, length, room = reader.processor.config.decoder.max_position_embeddings, len(row.ids), reader.room(row)
    if length >= context:
        raise PromptError(f"the prompt has {length} tokens; the context holds {context} with the answer")
    limit = found.get("max_tokens", max(room, 1))  # without any room the engine says what is lacking
    if length + limit > context:
        name = "max_completion_tokens" if "max_completion_tokens" in found else "max_tokens"
        raise RequestError(
            f"{name} is {limit}: with a prompt of {length} tokens the context of {context} leaves {context - length}",
            param=name,
            code="context_length_exceeded",
        )
    first = GenerationOptions(max_tokens=limit, **options)
    checked_choice(row.tools, first)
    return [answer_number(first, index) for index in range(found.get("n", 1))]


def _texts(messages: Any) -> Iterator[str]:
    """The texts of messages that may yet be anything."""
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, dict) else part
            if isinstance(text, str):
                yield text
        if isinstance(message, dict) and message.get("tool_calls"):
            yield dumps(message["tool_calls"])


def _check_length(texts: Iterable[str], reader: Reader, what: str = "the prompt") -> None:
    """Raises PromptError for what no context holds."""
    letters, context = sum(map(len, texts)), reader.processor.config.decoder.max_position_embeddings
    if letters > LETTERS * context:
        raise PromptError(f"{what} has {letters} characters, too many for the context of {context} tokens")


def _only_text(value: Any, name: str) -> None:
    if value != ["text"]:
        raise fields.unsupported(name, 'is supported as ["text"] only')


def _prompts(given: Any, processor: Processor) -> list[str | tuple[int, ...]]:
    """One prompt or several, as texts or as token ids."""
    vocabulary = processor.config.decoder.vocab_size

    def ids(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)

    prompts = [given] if isinstance(given, str) or ids(given) else given
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) or ids(each) for each in prompts):
        raise fields.wrong("prompt", given, "a string, an array of token ids, or an array of such prompts")
    for each in prompts:
        if not isinstance(each, str) and not all(0 <= token < vocabulary for token in each):
            raise RequestError(f"prompt holds token ids outside of 0 to {vocabulary - 1}", param="prompt")
    return [each if isinstance(each, str) else tuple(each) for each in prompts]

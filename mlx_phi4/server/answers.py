"""Answers in OpenAI's form: whole and in pieces, of chat and of text completions."""

import math
import time
import uuid
from collections.abc import AsyncIterator

from ..generation.grammars import Grammar
from ..generation.thoughts import CLOSE, OPEN, Thoughts
from ..inputs.tokenizer import Tokenizer
from ..inputs.tools import ToolCall
from .jobs import Delivery
from .service import Asked
from .tools import deltas

LEAST_LOGPROB = -9999.0  # OpenAI's own stand-in for minus infinity, which JSON lacks


class SplitText:
    """An answer's text as it comes, in content and reasoning; ``whole`` leaves all in the content.

    Of an answer with a ``grammar`` thoughts are at most the beginning: a string of JSON may hold anything.
    """

    def __init__(self, whole: bool, grammar: Grammar | None = None):
        whole = whole or (grammar is not None and not grammar.thoughts)
        self._thoughts = None if whole else Thoughts(at_first=grammar is not None)
        self._inside = self._skipping = False

    def add(self, delivery: Delivery) -> tuple[str, str]:
        """The new pieces (content, reasoning); the last delivery brings what was held back."""
        if self._thoughts is None:
            return delivery.text, ""
        parts = self._thoughts.add(delivery.text)
        parts += self._thoughts.finish() if delivery.finish_reason else []
        content = reasoning = ""
        for text, thought in parts:
            if thought:
                reasoning += self._thought(text)
                continue
            if self._skipping:  # the empty lines between a block and the answer go with the block
                text = text.lstrip()
                self._skipping = not text
            content += text
        return content, reasoning

    def _thought(self, text: str) -> str:
        if not self._inside:
            text = text.removeprefix(OPEN)
        self._inside = not text.endswith(CLOSE)
        self._skipping = self._skipping or not self._inside
        return text.removesuffix(CLOSE)


class ChatForm:
    """Chat completions and their chunks."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: Asked, tokenizer: Tokenizer, reasoning_in_content: bool):
        self.asked, self._tokenizer = asked, tokenizer
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.ask.model}
        self._texts = [SplitText(reasoning_in_content, asked.ask.grammar) for _ in range(asked.answers)]

    async def answer(self) -> dict:
        """The whole answer."""
        contents, thoughts = [""] * len(self._texts), [""] * len(self._texts)
        calls: list[list[ToolCall]] = [[] for _ in self._texts]
        logprobs: list[list[dict]] = [[] for _ in self._texts]
        reasons: list[str | None] = [None] * len(self._texts)
        async for index, delivery in self.asked.deliveries():
            content, thought = self._texts[index].add(delivery)
            contents[index] += content
            thoughts[index] += thought
            calls[index] += delivery.tool_calls
            logprobs[index] += self._logprobs(delivery)
            reasons[index] = delivery.finish_reason
        choices = [
            {"index": i, **self._whole(contents[i], thoughts[i], calls[i])}
            | {"logprobs": self._shown(logprobs[i], contents[i]), "finish_reason": reasons[i]}
            for i in range(len(self._texts))
        ]
        return self._head | {"object": self.whole, "choices": choices, "usage": self.asked.usage}

    async def chunks(self) -> AsyncIterator[dict]:
        """The answer in pieces; each choice begins with its role, and the usage comes last where it was asked for."""
        called = [0] * len(self._texts)
        for index in range(len(self._texts)):
            if first := self._first():
                yield self._chunk([{"index": index, **first, "logprobs": None, "finish_reason": None}])
        async for index, delivery in self.asked.deliveries():
            content, thought = self._texts[index].add(delivery)
            logprobs = self._logprobs(delivery)
            if content or thought or logprobs:
                shown = self._shown(logprobs, content)
                piece = {"index": index, **self._piece(content, thought), "logprobs": shown, "finish_reason": None}
                yield self._chunk([piece])
            for call in delivery.tool_calls:
                for delta in deltas(call, called[index]):
                    yield self._chunk([{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}])
                called[index] += 1
            if delivery.finish_reason:
                end = {"index": index, **self._piece("", ""), "logprobs": None}
                yield self._chunk([end | {"finish_reason": delivery.finish_reason}])
        if self.asked.ask.include_usage:
            yield self._chunk([]) | {"usage": self.asked.usage}

    def _chunk(self, choices: list[dict]) -> dict:
        usage = {"usage": None} if self.asked.ask.include_usage else {}
        return self._head | {"object": self.chunk, "choices": choices} | usage

    @property
    def _nothing(self) -> str | None:
        """The content of an answer without text; where it may be calls, that is no text at all."""
        return None if self.asked.ask.rows[0].tools else ""

    def _first(self) -> dict:
        return {"delta": {"role": "assistant", "content": self._nothing}}

    def _whole(self, content: str, thought: str, calls: list[ToolCall]) -> dict:
        more = {"reasoning_content": thought} if thought else {}
        more |= {"tool_calls": [call.message for call in calls]} if calls else {}
        return {"message": {"role": "assistant", "content": content or self._nothing, "refusal": None} | more}

    def _piece(self, content: str, thought: str) -> dict:
        return {"delta": {k: v for k, v in {"reasoning_content": thought, "content": content}.items() if v}}

    def _shown(self, logprobs: list[dict], text: str) -> dict | None:
        return {"content": logprobs, "refusal": None} if self.asked.ask.logprobs else None

    def _logprobs(self, delivery: Delivery) -> list[dict]:
        """A token's entry; the token that ends an answer has none."""
        if delivery.logprob is None or delivery.token in self._tokenizer.stop_ids:
            return []
        top = [self._entry(token, logprob) for token, logprob in delivery.top_logprobs or ()]
        return [self._entry(delivery.token, delivery.logprob) | {"top_logprobs": top}]

    def _entry(self, token: int, logprob: float) -> dict:
        data = self._tokenizer.token_bytes(token)
        shown = logprob if math.isfinite(logprob) else LEAST_LOGPROB
        return {"token": data.decode("utf-8", "replace"), "logprob": shown, "bytes": list(data)}


class TextForm(ChatForm):
    """Text completions, which have no roles and no reasoning."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def __init__(self, asked: Asked, tokenizer: Tokenizer):
        super().__init__(asked, tokenizer, reasoning_in_content=True)

    def _first(self) -> dict:
        return {}

    def _whole(self, content: str, thought: str, calls: list[ToolCall]) -> dict:
        return {"text": content}

    def _piece(self, content: str, thought: str) -> dict:
        return {"text": content}

    def _shown(self, logprobs: list[dict], text: str) -> dict | None:
        if not self.asked.ask.logprobs:
            return None
        offsets, at = [], 0
        for each in logprobs:
            offsets.append(at)
            at += len(each["token"])
        return {
            "tokens": [each["token"] for each in logprobs],
            "token_logprobs": [each["logprob"] for each in logprobs],
            "top_logprobs": [{top["token"]: top["logprob"] for top in each["top_logprobs"]} for each in logprobs],
            "text_offset": offsets,
        }

"""Hypothesis' strategies: text, JSON, messages, requests and lines of training data, mostly nearly right."""

import json
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

MEDIA = Path(__file__).parents[2] / "examples" / "media"
PICTURE, SOUND = "sign.png", "command.flac"

WORDS = (
    "", " ", "\n", "What is it?", "<|end|>", "<|user|>", "<|assistant|>", "<|image_1|>", "<|audio_1|>", "<|image_2|>",
    "<|endoftext10|>", "<|endoftext11|>", "<|tool|>", "<|/tool|>", "<|tool_call|>", "<think>", "é", "\u200b",
    "\U0001f600", "\x00", "\x1b[2J", "\ud800", "a" * 3000,
    "<|image_99999999999|>", "<|image_-1|>", "<|", "|>", "{{ 1 }}", "%s",
)  # fmt: skip
text = st.one_of(
    st.sampled_from(WORDS),
    st.text(max_size=12),
    st.lists(st.sampled_from(WORDS), max_size=4).map("".join),
)
numbers = st.one_of(
    st.integers(-3, 40),
    st.sampled_from((0.0, -0.0, 0.5, 1.0, 2.0, 1e-9, 1e30, -1e30, 2**31, 2**53, 2**63, 10**30, 0.1)),
    st.sampled_from((float("nan"), float("inf"))),
)
plain = st.one_of(st.none(), st.booleans(), numbers, text)
anything = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)), max_leaves=6
)


def now_and_then(right: st.SearchStrategy, wrong: st.SearchStrategy = anything, share: int = 12):
    """The right kind of value; once in so many times another."""
    return st.integers(0, share - 1).flatmap(lambda number: wrong if number == 0 else right)


def some(**fields: st.SearchStrategy) -> st.SearchStrategy:
    """An object that has some of the fields, and now and then one of another name."""
    return now_and_then(
        st.fixed_dictionaries({}, optional={name: now_and_then(each) for name, each in fields.items()}),
        st.dictionaries(st.one_of(st.sampled_from(sorted(fields)), text), anything, max_size=4),
        20,
    )


def sources(media: dict[str, Callable[[str], str]]) -> dict[str, st.SearchStrategy]:
    """Kind of medium -> how its sources are spelled."""
    return {
        kind: now_and_then(st.just(spelled), st.one_of(text, st.sampled_from(sorted(media.values()))))
        for kind, spelled in media.items()
    }


def content(media: dict[str, str]) -> st.SearchStrategy:
    """What a message says: a text or parts, pictures and recordings among them."""
    source = sources(media)
    parts = (
        some(type=st.just("text"), text=text),
        some(type=st.just("image_url"), image_url=st.one_of(source["image"], some(url=source["image"]))),
        some(type=st.just("image"), image=source["image"]),
        some(type=st.just("input_audio"), input_audio=some(data=source["data"], format=st.just("flac"))),
        some(type=st.just("audio"), audio=source["audio"]),
        st.just({"type": "image_url", "image_url": {"url": media["image"]}}),
        st.just({"type": "text", "text": "What is it?"}),
    )
    return st.one_of(text, text, st.lists(st.one_of(*parts), max_size=3))


CALLS = st.lists(
    some(
        id=st.just("call_1"),
        type=st.just("function"),
        function=some(
            name=st.sampled_from(("search", "f", "a b")), arguments=st.sampled_from(('{"q": 1}', "{}", "{", ""))
        ),
    ),
    max_size=2,
)
SCHEMAS = st.one_of(
    st.sampled_from(
        (
            {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
            {"type": "object"}, {}, {"type": "integer"}, {"$ref": "#"}, {"enum": []}, {"enum": [1, "a"]},
        )
    ),
    anything,
)  # fmt: skip
TOOLS = st.lists(
    st.one_of(
        some(type=st.just("function"), function=some(name=st.just("search"), description=text, parameters=SCHEMAS)),
        some(name=st.just("search"), description=text, parameters=SCHEMAS),
    ),
    max_size=2,
)
ROLES = st.sampled_from(("user", "user", "assistant", "system", "tool", "developer", "function", "boss", ""))


def messages(media: dict[str, str]) -> st.SearchStrategy:
    """A conversation."""
    said = content(media)
    turn = st.one_of(
        st.fixed_dictionaries({"role": st.just("user"), "content": said}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": said}),
        some(role=ROLES, content=said, tool_calls=CALLS, tool_call_id=st.just("call_1"), name=text, tools=TOOLS),
    )
    return now_and_then(st.lists(turn, min_size=1, max_size=4))


def as_bytes(value) -> bytes:
    """JSON, as a content is kept; half surrogate pairs and NaN as Python spells them."""
    return json.dumps(value).encode()


def requests(folder: Path) -> st.SearchStrategy:
    """Keywords of ``Request``, with media by path."""
    media = {"image": str(MEDIA / PICTURE), "audio": str(MEDIA / SOUND), "data": "AAAA"}
    source = sources(media)
    given = some(
        prompt=st.one_of(text, messages(media)),
        system=text,
        raw=st.booleans(),
        images=st.lists(source["image"], max_size=2),
        audios=st.lists(source["audio"], max_size=1),
        tools=TOOLS,
        max_crops=st.integers(1, 3),
        adapter=st.sampled_from(("base", "vision", "speech", "none")),
    )
    return given.map(lambda found: as_bytes({"prompt": "What?"} | found if isinstance(found, dict) else found))


def lines(folder: Path) -> st.SearchStrategy:
    """Lines of training data, media beside them."""
    media = {"image": PICTURE, "audio": SOUND, "data": "AAAA"}
    source = sources(media)
    line = st.one_of(
        some(messages=messages(media), tools=TOOLS, image=source["image"], adapter=text),
        some(prompt=text, completion=text, image=source["image"], images=st.lists(source["image"], max_size=2)),
        some(question=text, answer=st.one_of(text, st.lists(text, max_size=2)), audio=source["audio"]),
        some(audio=source["audio"], text=text, language=text, task=text),
        some(text=text),
        some(prompt=st.one_of(text, messages(media)), chosen=text, rejected=text),
        st.just({"prompt": "What?", "completion": "star"}),
    )
    return st.lists(line, min_size=1, max_size=3).map(lambda found: b"\n".join(map(as_bytes, found)))

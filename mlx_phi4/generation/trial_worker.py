"""The process in which grammars are tried before they are compiled for good: run by its path, see ``trial``.

Lines of JSON come in, {"definition", "limits", "seconds", "size", "specials", "stops"}, and an object with "error" goes
out for each, null for none. It imports the library alone, and ends with the pipe, or with what it tried.
"""

import contextlib
import json
import resource
import sys
import threading
from functools import lru_cache

STACK_BYTES = 4 << 20  # less than any thread has that compiles what passed
MEMORY_BYTES = 4 << 30  # of the process, where the system keeps count


class Bytes:
    """A vocabulary of the 256 bytes and the special tokens, in as many ids as the model has."""

    bos_token_id = None

    def __init__(self, size: int, specials: dict[int, str], stops: list[int]):
        free = (token for token in range(size) if token not in specials)
        singles = dict(zip(free, range(256), strict=False))
        self.tokens = [bytes([singles[token]]) if token in singles else b"" for token in range(size)]
        for token, content in specials.items():
            self.tokens[token] = content.encode()
        self.special_token_ids, self.eos_token_id = sorted(specials), stops[0]
        self._single = {byte: token for token, byte in singles.items()}

    def __call__(self, text: str) -> list[int]:
        return [self._single[byte] for byte in text.encode()]


@lru_cache(maxsize=1)
def tokenizer(size: int, specials: tuple[tuple[int, str], ...], stops: tuple[int, ...]):
    """llguidance's tokenizer of such a vocabulary."""
    import llguidance

    wrapped = llguidance.TokenizerWrapper(Bytes(size, dict(specials), list(stops)))
    return llguidance.LLTokenizer(wrapped, n_vocab=size, eos_token=list(stops))


def tried(task: dict) -> str | None:
    """What is wrong with a grammar, or None."""
    import llguidance

    specials = tuple((int(token), content) for token, content in task["specials"].items())
    known = tokenizer(task["size"], specials, tuple(task["stops"]))
    matcher = llguidance.LLMatcher(
        known, task["definition"], log_level=0, limits=llguidance.LLParserLimits(**task["limits"])
    )
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error() or None


def serve() -> None:
    """Try what comes, line by line, once the library is there."""
    import llguidance  # noqa: F401

    print("ready", flush=True)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for line in sys.stdin:
        used = resource.getrusage(resource.RUSAGE_SELF)
        task = json.loads(line)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + task["seconds"]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        try:
            error = tried(task)
        except Exception as raised:
            error = str(raised)
        print(json.dumps({"error": error}), flush=True)


if __name__ == "__main__":
    threading.stack_size(STACK_BYTES)
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()

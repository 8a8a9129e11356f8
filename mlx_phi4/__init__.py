"""Phi-4-mini and Phi-4-multimodal on Apple silicon with MLX.

Names are imported when they are first used, so that commands answer ``--help`` at once.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "load": "load",
    "convert": "convert",
    "generate": "generate",
    "stream_generate": "generate",
    "batch_generate": "generate",
    "cache_prompt": "cache_prompt",
    "chat": "chat",
    "Chat": "chat",
    "benchmark": "benchmark",
    "transcribe": "transcribe",
    "Transcript": "transcript",
    "Segment": "transcript",
    "evaluate_asr": "evaluation.speech",
    "evaluate_pictures": "evaluation.answers",
    "evaluate_text": "evaluate",
    "PromptCache": "prompt_cache",
    "MediaCache": "media_cache",
    "GenerationResponse": "generate",
    "Request": "processor",
    "Processor": "processor",
    "Inputs": "processor",
    "Phi4": "model",
    "Mode": "adapters",
    "Phi4Error": "errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted([*globals(), *__all__])

"""Phi-4-mini and Phi-4-multimodal on Apple silicon with MLX.

Names are imported when they are first used, so that commands answer ``--help`` at once.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "load": "loading",
    "convert": "converter.convert",
    "generate": "generation.generate",
    "stream_generate": "generation.generate",
    "batch_generate": "generation.generate",
    "cache_prompt": "generation.generate",
    "chat": "commands.chat",
    "Chat": "generation.chat",
    "benchmark": "evaluation.speed",
    "transcribe": "transcription.transcribe",
    "Transcript": "transcription.transcript",
    "Segment": "transcription.transcript",
    "evaluate_asr": "evaluation.speech",
    "evaluate_pictures": "evaluation.answers",
    "evaluate_text": "evaluation.text",
    "PromptCache": "generation.prompt_cache",
    "MediaCache": "generation.media_cache",
    "GenerationResponse": "generation.generate",
    "Request": "inputs.processor",
    "Processor": "inputs.processor",
    "Inputs": "inputs.processor",
    "Phi4": "model",
    "Mode": "decoder.adapters",
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

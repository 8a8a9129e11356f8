"""Phi-4-mini and Phi-4-multimodal on Apple silicon with MLX.

Names are imported when they are first used (see ``api.py``), so that commands answer ``--help`` at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import *
else:  # which a type checker would take for any name

    def __getattr__(name: str):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import api

        globals()[name] = value = getattr(api, name)
        return value


__version__ = "0.1.0"
__all__ = [
    "Chat",
    "GenerationResponse",
    "Inputs",
    "MediaCache",
    "Mode",
    "Phi4",
    "Phi4Error",
    "Processor",
    "PromptCache",
    "Request",
    "Segment",
    "ToolCall",
    "Transcript",
    "Video",
    "add_modality",
    "batch_generate",
    "benchmark",
    "cache_prompt",
    "chat",
    "convert",
    "evaluate_asr",
    "evaluate_pictures",
    "evaluate_text",
    "generate",
    "live",
    "load",
    "predict_training",
    "self_test",
    "stream_generate",
    "test_adapter",
    "train_adapter",
    "transcribe",
]


def __dir__():
    return sorted({*globals(), *__all__})

"""The public names. ``mlx_phi4`` imports this module when one of them is first used."""

from .checkpoint.modality_loading import add_modality
from .commands.chat import chat
from .converter.convert import convert
from .errors import Phi4Error
from .evaluation.answers import evaluate_pictures
from .evaluation.speech import evaluate_asr
from .evaluation.speed import benchmark
from .evaluation.text import evaluate_text
from .generation.chat import Chat
from .generation.generate import batch_generate, cache_prompt, generate, stream_generate
from .generation.media_cache import MediaCache
from .generation.prompt_cache import PromptCache
from .generation.responses import GenerationResponse
from .inputs.processor import Inputs, Processor, Request
from .inputs.tools import ToolCall
from .loading import load
from .modalities import Mode
from .model import Phi4
from .selftest.selftest import self_test
from .training.train import predict_training, test_adapter, train_adapter
from .transcription.live import live
from .transcription.transcribe import transcribe
from .transcription.transcript import Segment, Transcript
from .vision.video import Video

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

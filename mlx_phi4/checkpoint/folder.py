"""A checkpoint folder, opened strictly: what loading, converting and verifying begin with."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from ..config import OWN_SECTION, TIME_REDUCTION, Config
from ..errors import ConfigError
from ..files import read_json
from ..inputs.tokenizer import Tokenizer
from ..model import Phi4
from ..vision.preprocess import MAX_CROPS
from .config_readers import config_from_dict
from .fields import expect
from .fit import check_fit, locate
from .packing import packed_modules
from .shards import Shard, check_layout, read_shards
from .tensorfile import StoredTensor
from .weights import load_weights

# what the names of a modality's tensors have in them, its adapter's, too, by layout
MARKS = {
    "microsoft": {"vision": (".image_embed.", ".lora_A.vision."), "speech": (".audio_embed.", ".lora_A.speech.")},
    OWN_SECTION: {
        "vision": ("vision_encoder.", "vision_projector.", ".lora.vision."),
        "speech": ("audio_encoder.", "audio_projectors.", ".lora.speech."),
    },
}
# what preprocessor_config.json says of pictures and recordings
MEDIA = {
    "dynamic_hd": MAX_CROPS,
    "audio_compression_rate": TIME_REDUCTION,
    "audio_downsample_rate": 1,
    "audio_feat_stride": 1,
}
BIAS_TABLE = "relative_attention_bias_layer.bias_values.weight"


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose headers were read: ``raw`` is ``config.json`` as it stands, ``config`` what was read from it."""

    folder: Path
    raw: dict
    config: Config
    shards: list[Shard]

    def open(self, dtype: mx.Dtype | str | None = None) -> tuple[Phi4, Tokenizer]:
        """The model, whose tensors are read when they are first needed, and the tokenizer.

        Before anything is made it proves that every tensor is there, fits and is used, or is dropped on purpose.
        ``dtype`` as in ``weights.load_weights``. Raises Phi4Error.
        """
        located = locate(self.config, self.folder, self.shards)
        packed = packed_modules(self.config.quantization, located.tensors)
        check_fit(self.config, self.folder, located, packed)
        tokenizer = Tokenizer(self.folder, self.config)
        model = Phi4(self.config)
        load_weights(model, located.tensors, packed, dtype)
        return model, tokenizer

    def tensors(self) -> dict[str, StoredTensor]:
        """Name in ``Phi4`` -> where the tensor lies, for all that is used. Raises CheckpointError."""
        return locate(self.config, self.folder, self.shards).tensors


def read_checkpoint(folder: Path) -> Checkpoint:
    """Look at a folder as far as headers tell. Raises Phi4Error."""
    raw = read_json(folder / "config.json")
    config = config_from_dict(raw, folder)
    _check_preprocessor(folder / "preprocessor_config.json")
    shards = read_shards(folder)
    check_layout(config, shards)
    return Checkpoint(folder, raw, _with_bias_rows(_with_what_is_there(config, shards), shards), shards)


def _check_preprocessor(path: Path) -> None:
    """What it says of media, where it is there, is what is computed. Raises ConfigError."""
    if not path.exists():
        return
    raw = read_json(path)
    try:
        for name, expected in MEDIA.items():
            expect(raw, name, expected)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _with_what_is_there(config: Config, shards: list[Shard]) -> Config:
    """Without the modalities of which no tensor is there.

    Microsoft's fine-tuning sample for pictures deletes the audio encoder and the speech adapter, and ``config.json``
    goes on to describe both. Of a modality that has lost only a part, the rest is held against the configuration.
    """
    marks = MARKS.get(config.layout, {})
    held = {
        kind: any(mark in name for shard in shards for name in shard.tensors for mark in marks[kind]) for kind in marks
    }
    gone = [kind for kind in marks if not held[kind]]
    adapters = {name: each for name, each in config.adapters.items() if name not in gone}
    encoders = {field: None for kind, field in (("vision", "vision"), ("speech", "audio")) if kind in gone}
    return dataclasses.replace(config, adapters=adapters, **encoders)


def _with_bias_rows(config: Config, shards: list[Shard]) -> Config:
    """Configurations disagree about the height of the table; the tensor itself does not."""
    for shard in shards:
        for name, tensor in shard.tensors.items():
            if name.endswith(BIAS_TABLE) and config.audio and len(tensor.shape) == 2:
                audio = dataclasses.replace(config.audio, bias_rows=tensor.shape[0])
                return dataclasses.replace(config, audio=audio)
    return config

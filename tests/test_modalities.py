"""A modality is data: one more is a row in the table and what it brings, and no line of the package."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from samples import MODES, PICTURE, tokens_of

import mlx_phi4
from mlx_phi4 import Phi4Error, Request, batch_generate, generate
from mlx_phi4.modalities import MODALITIES, Modality, Mode, adapter_of, mode_of, register


@dataclass(frozen=True)
class Series:
    """A toy medium: numbers (n,), one token each."""

    values: tuple[float, ...]

    @property
    def tokens(self):
        return len(self.values)

    @property
    def key(self):
        return repr(self.values)


def prepare_series(source):
    if isinstance(source, Series):
        return source
    if not len(source):
        raise mlx_phi4.errors.MediaError("a series holds no numbers")
    return Series(tuple(map(float, source)))


def encode_series(model, item, projector):
    yield  # as long work does between its slices
    return model.series_projector(mx.array(item.values)[:, None])


SERIES = Modality(
    kind="series",
    label="series",
    noun="series",
    argument=None,
    tokens=("<|tool|>",),
    parts=("series",),
    fields=("series",),
    prepare=prepare_series,
    item=Series,
    held=lambda config: config.multimodal,
    modules=lambda config: {"series_projector": nn.Linear(1, config.decoder.hidden_size)},
    encode=encode_series,
    adapter=None,
)


@pytest.fixture
def toy(loaded, monkeypatch):
    """The reduced model with one modality more, whose weights stand in a folder like any others."""
    model, processor = loaded()
    monkeypatch.setitem(MODALITIES, "series", SERIES)
    grown = type(model)(model.config)
    grown.update(model.parameters())
    for module in grown.modules():
        if hasattr(module, "_scale"):
            module._scale = 1.0  # these weights have it in them already
    folder_tokenizer = processor.tokenizer
    monkeypatch.setitem(folder_tokenizer.placeholders, "series", folder_tokenizer.special["<|tool|>"])
    return grown, processor


def test_a_new_modality_answers_beside_the_others(toy, loaded):
    model, processor = toy
    asked = {
        "series": Request("What shape is it?", media={"series": [[0.0, 1.0, 0.5]]}),
        "vision-series": Request("Which?", images=[PICTURE], media={"series": [[1.0, 2.0]]}),
    }
    answers = batch_generate(model, processor, [*asked.values(), *MODES.values()], max_tokens=4)
    assert [answer.mode for answer in answers] == [*asked, *MODES]
    for request, answer in zip([*asked.values(), *MODES.values()], answers, strict=True):
        (alone,) = batch_generate(model, processor, [request], max_tokens=4)
        assert answer.tokens == alone.tokens
    for request, answer in zip(MODES.values(), answers[2:], strict=True):
        assert answer.tokens == tokens_of(*loaded(), request, max_tokens=4)[0]  # as before it came


def test_a_new_modality_has_placeholders_parts_and_embeddings_of_its_own(toy):
    model, processor = toy
    row = processor.row(Request("Before <|series_1|> after", media={"series": [[3.0, 4.0]]}))
    ((start, item),) = row.media
    assert row.mode == "series" and row.adapter is None and item.tokens == 2
    assert row.ids[start : start + 2] == (processor.tokenizer.placeholders["series"].id,) * 2
    embedded = np.array(model.embed(row)[0, start : start + 2])
    assert np.allclose(embedded, np.array(model.series_projector(mx.array([[3.0], [4.0]]))))
    part = [{"type": "series", "series": [3.0, 4.0]}, {"type": "text", "text": "What?"}]
    assert processor.row(Request([{"role": "user", "content": part}])).mode == "series"
    with pytest.raises(Phi4Error, match="holds no numbers"):
        generate(model, processor, [{"role": "user", "content": [{"type": "series", "series": []}]}])


def test_the_table_gives_modes_and_adapters():
    published = {
        (): ("text", None),
        ("image",): ("vision", "vision"),
        ("audio",): ("speech", "speech"),
        ("audio", "image"): ("vision-speech", "vision"),
    }
    for kinds, (mode, adapter) in published.items():
        assert mode_of(kinds) == mode and adapter_of(mode) == adapter and Mode(mode) == mode
    audio = MODALITIES["audio"]
    assert (audio.projector("speech"), audio.projector("vision-speech")) == ("speech", "vision")


def test_what_the_table_refuses(loaded):
    _, processor = loaded()
    with pytest.raises(Phi4Error, match="already"):
        register(MODALITIES["image"])
    with pytest.raises(Phi4Error, match="no modality 'smell'"):
        adapter_of("smell")
    with pytest.raises(Phi4Error, match="kind 'smell', expected image, audio"):
        processor.row(Request("x", media={"smell": [1]}))

"""Transcripts and figures as pictures: what was heard is in them, and what cannot be drawn is said before any work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mlx_phi4 import Phi4Error, Segment, Transcript
from mlx_phi4.commands import benchmark, transcribe
from mlx_phi4.transcription.plot import check_plot, confidence, envelope, plot_transcript

MEDIA = Path(__file__).parents[1] / "examples" / "media"


def test_the_envelope_is_that_of_all_samples():
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000).astype(np.float32)
    samples[12_345], samples[39_999] = 0.9, -0.8
    times, low, high = envelope((samples, 16_000), 2.5)
    assert high.max() == np.float32(0.9) and times[high.argmax()] == pytest.approx(12_345 / 16_000, abs=0.01)
    assert low[-1] == np.float32(-0.8) and (high > 0.3).mean() > 0.9


def test_texts_and_doubts_are_in_the_picture(tmp_path):
    """As text in an SVG; a dollar sign is no formula."""
    segments = [
        Segment(0.2, 1.0, "five $ or $ six", avg_logprob=-0.1),
        Segment(1.2, 2.0, "perhaps", avg_logprob=float("nan"), flags=("low confidence",)),
        Segment(2.1, 2.2, ""),
    ]
    transcript = Transcript(segments, 2.5, source="a $talk$.wav")
    path = plot_transcript(transcript, (np.zeros(40_000, np.float32), 16_000), tmp_path / "talk.svg")
    drawn = path.read_text()
    assert "<!-- five " in drawn and "<!-- perhaps -->" in drawn and "#d62728" in drawn  # red: a doubt
    assert confidence(segments[0]) == pytest.approx(np.exp(-0.1)) and confidence(segments[1]) == 0


def test_the_command_draws_one_recording_also_again(tmp_path, run_command):
    plot, given = tmp_path / "out.png", (MEDIA / "command.flac", "--model", "phi4-tiny", "-o", tmp_path)
    for _ in range(2):  # the text is not written again, but the plot is wanted
        code, _, error = run_command(transcribe.command, *given, "--plot", plot)
        assert code == 0 and Image.open(plot).size[0] >= 800, error
        plot.unlink()
    for arguments, said in (
        ((*given, MEDIA / "list.flac", "--plot", plot), "--plot draws one recording"),
        ((*given, "--plot", tmp_path / "out.jpeg"), "a plot's name ends in"),
        ((*given, "--plot", tmp_path / "none" / "out.png"), "no such folder"),
        (("--live", "-", "--plot", plot), "--plot go without --live"),
    ):
        code, _, error = run_command(transcribe.command, *arguments)
        assert code == 2 and said in error and not plot.exists()


def test_a_benchmark_as_a_picture(checkpoint, tmp_path, run_command):
    plot = tmp_path / "speed.png"
    counts = ("--prompt-tokens", 9, "--generation-tokens", 2, "--repeat", 1)
    code, _, error = run_command(
        benchmark.command, "--model", checkpoint("text"), "--mode", "text", *counts, "--plot", plot
    )
    assert code == 0 and Image.open(plot).size[0] > 800, error


def test_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(Phi4Error, match=r'pip install "mlx_phi4\[plot\]"'):
        check_plot(tmp_path / "out.png")

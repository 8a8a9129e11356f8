"""Speech: a transcript of a recording, with times.

python examples/speech.py
"""

from pathlib import Path

from mlx_phi4 import transcribe

recording = Path(__file__).parent / "media" / "command.flac"
transcript = transcribe(recording, model="phi4-tiny")
print(transcript.to_srt())

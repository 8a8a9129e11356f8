"""``mlx_phi4.transcribe`` as a function: tasks, pieces, batches, guards, whole recordings, errors."""

import dataclasses
import itertools
import math
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import soundfile
from samples import ScriptedPool

import mlx_phi4
from mlx_phi4 import loading
from mlx_phi4.audio.preprocess import Clip, prepare_clip
from mlx_phi4.errors import MediaError, Phi4Error
from mlx_phi4.generation import pool
from mlx_phi4.generation.generate import GenerationResponse
from mlx_phi4.transcription import chunking
from mlx_phi4.transcription.decoding import AudioChunk, DecodingOptions, SegmentDecoder, compression_ratio
from mlx_phi4.transcription.tasks import TASKS, language_name, make_question, parse_clips, split_answer
from mlx_phi4.transcription.transcribe import transcribe as library_function

RATE = 16_000
ONCE = {"temperatures": (0.0,)}  # what random weights say never passes the guards


def tones(seconds, pause=1.0):
    """Tones of these lengths with silence between them, (samples,) float32; 0.1 s of silence in front."""
    parts = [np.zeros(RATE // 10)]
    for number, length in enumerate(seconds):
        time = np.arange(int(length * RATE)) / RATE
        parts += [0.3 * np.sin(2 * np.pi * (220 + 110 * number) * time), np.zeros(int(pause * RATE))]
    return np.concatenate(parts).astype(np.float32)


@pytest.fixture
def transcribe(loaded):
    """``transcribe`` with the reduced random model."""
    model, processor = loaded()

    def run(source, **options):
        return library_function(source, model, processor=processor, **options)

    return run


def said(text, logprob=-0.1, reason="stop"):
    """An answer as ``batch_generate`` gives it."""
    counts = {"prompt_tokens": 1, "generation_tokens": 2, "prompt_tps": 1.0, "generation_tps": 1.0}
    return GenerationResponse(
        text, 2, "speech", **counts, peak_memory=0, finish_reason=reason, tokens=[1, 2], logprob=[logprob, logprob]
    )


@pytest.fixture
def scripted(monkeypatch):
    """A function (answer to (row number of the first batch, temperature)) -> list of (rows, temperature) as asked."""

    def install(answer):
        asked, rows = [], {}

        def row(request):
            return rows.setdefault(id(request.audios[0]), len(rows))

        class Recorded(ScriptedPool):
            def step(self):
                for chosen in dict.fromkeys(options["temperature"] for _, _, options in self.asked):
                    asked.append(([row(r) for _, r, o in self.asked if o["temperature"] == chosen], chosen))
                return super().step()

        scripted = Recorded(lambda request, options: answer(row(request), options["temperature"]))
        monkeypatch.setattr(pool, "AnswerPool", scripted)
        return asked

    return install


LOOP = "the sea the sea " * 30


def test_the_published_prompts_are_asked():
    assert make_question().prompt == "Transcribe the audio clip into text."
    assert make_question("translate", "fr").prompt == "Translate the audio to French."
    assert make_question("transcribe+translate", "French").prompt == (
        "Transcribe the audio to text, and then translate the audio to French. "
        "Use <sep> as a separator between the original transcript and the translation."
    )
    assert make_question("translate").language == "English"
    assert make_question("ask").prompt == ""  # the recording is the question
    assert [make_question(task).whole for task in TASKS] == [False, False, False, True, True]


def test_prompt_context_and_languages():
    question = make_question(context=" Okonkwo, LoRA. ")
    assert question.prompt == "Transcribe the audio clip into text. These names and terms may occur: Okonkwo, LoRA."
    assert make_question("ask", prompt="Who speaks?").prompt == "Who speaks?"
    assert make_question("translate", "de", prompt="Auf Deutsch, {bitte}").prompt == "Auf Deutsch, {bitte}"
    assert [language_name(name) for name in ("FR", "fr-CA", "pt_BR", "german")] == [
        "French",
        "French",
        "Portuguese",
        "German",
    ]
    unknown = make_question("translate", "Dutch")
    assert unknown.prompt == "Translate the audio to Dutch." and "Dutch" in unknown.warnings[0]
    assert not make_question("translate", "ja").warnings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, None),
        ("10,25", [(10, 25)]),
        ("1:30,2:00.5,1:00:00", [(90, 120.5), (3600, math.inf)]),
        ([0, 5, 5, 10], [(0, 5), (5, 10)]),
        ([(1, 2), (3, math.inf)], [(1, 2), (3, math.inf)]),
        (7, [(7, math.inf)]),
    ],
)
def test_clip_timestamps(given, expected):
    assert parse_clips(given) == expected


@pytest.mark.parametrize("given", ["", "a,b", "5,3", "-1,3", "1,1", "1:70,90", "nan,3", "1,2,1.5,3", "1:2:3:4"])
def test_clip_timestamps_that_make_no_sense(given):
    with pytest.raises(Phi4Error, match="clip_timestamps"):
        parse_clips(given)


def test_pieces_have_their_times_and_every_tone_is_heard(transcribe):
    lengths = (0.5, 1.0, 0.7)
    transcript = transcribe(tones(lengths), max_tokens=4, **ONCE)
    assert len(transcript.segments) == 3 and transcript.duration == pytest.approx(0.1 + sum(lengths) + 3)
    begin = 0.1
    for segment, length in zip(transcript.segments, lengths, strict=True):
        assert segment.start <= begin and begin + length <= segment.end <= begin + length + 0.6
        assert len(segment.tokens) <= 4 and segment.avg_logprob < 0 and segment.text is not None
        begin += length + 1
    assert transcript.task == "transcribe" and transcript.language is None


def test_a_batch_gives_the_tokens_of_pieces_alone_in_the_steps_of_the_longest(transcribe, monkeypatch):
    """Rows of different length leave the batch when they end, so a batch costs no more steps than its longest row."""
    steps = []

    class Counted(pool.AnswerPool):
        def __exit__(self, *exception):
            steps.append(self.steps)
            super().__exit__(*exception)

    monkeypatch.setattr(pool, "AnswerPool", Counted)
    source = tones([0.2, 0.9, 0.4, 0.3, 0.6, 0.5, 0.25, 0.7])
    together = transcribe(source, batch_size=8, **ONCE)
    alone = transcribe(source, batch_size=1, **ONCE)
    assert len(together.segments) == 8
    assert [s.tokens for s in together.segments] == [s.tokens for s in alone.segments]
    assert [s.text for s in together.segments] == [s.text for s in alone.segments]
    longest = max(len(segment.tokens) for segment in alone.segments)
    assert steps[0] <= longest + 1 < steps[1] / 2


def test_a_piece_that_goes_on_and_on_holds_nobody_up(transcribe, monkeypatch):
    """With two rows, one of which loops through all its attempts, the other row hears all the other pieces."""
    order = []

    class Watched(pool.AnswerPool):
        def ask(self, key, request, **options):
            slow = key.item.start < 1
            options |= {"max_tokens": 40 if slow else 2, "logit_bias": {self._processor.tokenizer.pad_id: -1e9}}
            order.append(key.item.start)
            super().ask(key, request, **options)

    monkeypatch.setattr(pool, "AnswerPool", Watched)
    source = tones([0.3] * 6)
    transcript = transcribe(source, batch_size=2, temperatures=(0.0, 0.5), compression_ratio_threshold=0.01)
    first = min(order)
    assert order[:2] == sorted(set(order))[:2] and order.count(first) == 2
    assert order.index(max(order)) < len(order) - 1 - order[::-1].index(first)  # the last piece begins before its retry
    assert [segment.start for segment in transcript.segments] == sorted(set(order))


def test_the_log_probability_is_the_mean_over_the_answer(transcribe, loaded):
    model, processor = loaded()
    [segment] = transcribe(tones([0.5]), max_tokens=5, **ONCE).segments
    piece = tones([0.5])[: round(segment.end * RATE)]
    request = mlx_phi4.Request("Transcribe the audio clip into text.", audios=[(piece, RATE)])
    [answer] = mlx_phi4.batch_generate(model, processor, [request], max_tokens=5, logprobs=0)
    assert segment.tokens == answer.tokens
    assert segment.avg_logprob == pytest.approx(np.mean(answer.logprob), abs=1e-4)


def test_every_kind_of_source_gives_the_same(transcribe, tmp_path):
    samples = (tones([0.3]) * 32767).astype(np.int16)
    path = tmp_path / "tone.wav"
    soundfile.write(path, samples, RATE)
    bare = samples.astype(np.float32) / 32768
    found = [
        transcribe(source, max_tokens=6, **ONCE)
        for source in (path, str(path), path.read_bytes(), (samples, RATE), bare)
    ]
    assert all(transcript.segments == found[0].segments for transcript in found)
    assert [transcript.source for transcript in found] == [str(path), str(path), None, None, None]


def test_clips_alone_are_heard(transcribe):
    source = tones([0.5, 0.5, 0.5, 0.5])  # at 0.1, 1.6, 3.1, 4.6
    found = transcribe(source, clip_timestamps="1,2.5,4", max_tokens=2, **ONCE).segments
    assert [round(segment.start) for segment in found] == [1, 4] and found[0].end <= 2.5
    with pytest.raises(MediaError, match="ends at"):
        transcribe(source, clip_timestamps="60", **ONCE)


def test_silence_gives_a_transcript_that_says_so(transcribe):
    transcript = transcribe(np.zeros(2 * RATE, np.float32))
    assert transcript.segments == [] and transcript.duration == 2
    assert transcript.warnings == ["no speech found"] and transcript.text == ""


def test_progress_ends_near_the_end_and_never_falls(transcribe):
    told = []
    transcript = transcribe(tones([0.3, 0.3, 0.3]), batch_size=2, max_tokens=2, progress=told.append, **ONCE)
    assert told == [segment.end for segment in transcript.segments] == sorted(told)


def test_only_answers_that_fail_a_guard_are_tried_again(transcribe, scripted):
    def answer(row, temperature):
        if row == 1 and temperature < 0.4:
            return said(LOOP)
        if row == 2 and temperature < 0.2:
            return said("unsure", logprob=-3.0)
        if row == 3 and temperature < 0.2:
            return said("cut", reason="length")
        return said(f"row {row} at {temperature}")

    asked = scripted(answer)
    found = transcribe(tones([0.3] * 4)).segments
    assert asked == [([0, 1, 2, 3], 0.0), ([1, 2, 3], 0.2), ([1], 0.4)]
    assert [segment.text for segment in found] == ["row 0 at 0.0", "row 1 at 0.4", "row 2 at 0.2", "row 3 at 0.2"]
    assert [segment.temperature for segment in found] == [0.0, 0.4, 0.2, 0.2]
    assert all(segment.flags == () for segment in found)


def test_where_no_attempt_passes_the_best_is_kept_with_its_doubts(transcribe, scripted):
    def answer(row, temperature):
        if row == 0:
            return said("mumble", logprob={0.0: -2.0, 0.5: -1.5}.get(temperature, -4.0))
        return said(LOOP, logprob=-0.01) if temperature < 1 else said("noise", logprob=-5.0)

    asked = scripted(answer)
    mumble, noise = transcribe(tones([0.3, 0.3]), temperatures=(0.0, 0.5, 1.0)).segments
    assert len(asked) == 3
    assert (mumble.temperature, mumble.avg_logprob, mumble.flags) == (0.5, -1.5, ("low confidence",))
    # a loop is confident of itself; what does not repeat itself goes before it
    assert (noise.text, noise.flags) == ("noise", ("low confidence",))


def test_guards_can_be_moved_and_left_out(transcribe, scripted):
    asked = scripted(lambda row, temperature: said(LOOP, logprob=-3.0))
    [segment] = transcribe(tones([0.3]), compression_ratio_threshold=None, logprob_threshold=-4.0).segments
    assert len(asked) == 1 and segment.flags == ()
    assert (
        segment.compression_ratio == pytest.approx(compression_ratio(LOOP.strip()), abs=1e-4)
        and LOOP.count("sea") == 60
    )


def test_nothing_said_is_no_speech_and_stays(transcribe, scripted):
    asked = scripted(lambda row, temperature: said(" " if row == 0 else "yes"))
    transcript = transcribe(tones([0.3, 0.3]))
    assert [segment.no_speech for segment in transcript.segments] == [True, False]
    assert len(asked) == 1 and transcript.text == "yes"


def test_transcript_and_translation_are_told_apart(transcribe, scripted):
    scripted(lambda row, temperature: said(["hello <sep> bonjour", "hello", "<sep>"][row]))
    transcript = transcribe(tones([0.3] * 3), task="transcribe+translate", to="fr")
    assert [(s.text, s.translation) for s in transcript.segments] == [("hello", "bonjour"), ("hello", None), ("", "")]
    assert [s.flags for s in transcript.segments] == [(), ("no separator",), ()]
    assert [s.no_speech for s in transcript.segments] == [False, False, True]
    assert transcript.language == "French" and transcript.translation == "bonjour"
    assert split_answer("a<sep>b<sep>c") == ("a", "b<sep>c")


def test_a_seed_reproduces_what_is_sampled(transcribe):
    source = tones([0.3])

    def tokens(seed):
        return transcribe(source, temperatures=(1.0,), max_tokens=12, seed=seed).segments[0].tokens

    assert tokens(1) == tokens(1) != tokens(2)


@pytest.fixture
def asked_clips(monkeypatch):
    """The pieces that the decoder is given."""
    given = []

    def answer(request, options):
        given.append(request.audios[0])
        return said("A summary.\n\nTwo paragraphs.", reason="length")

    monkeypatch.setattr(pool, "AnswerPool", ScriptedPool(answer))
    return given


def test_a_summary_hears_the_whole_recording_at_once(transcribe, asked_clips):
    source = tones([0.5, 0.5, 0.5])
    transcript = transcribe(source, task="summarize", segment_seconds=1)
    [piece], [segment] = asked_clips, transcript.segments
    assert np.array_equal(piece.features, prepare_clip((source, RATE)).features)
    assert (segment.start, segment.end) == (0, pytest.approx(transcript.duration))
    assert segment.flags == ("length",) and transcript.warnings == []  # a long answer is no reason to ask again


def test_beyond_thirty_minutes_the_beginning_is_heard_and_that_is_said(transcribe, asked_clips, monkeypatch):
    assert chunking.WHOLE_SECONDS == 30 * 60
    monkeypatch.setattr(chunking, "WHOLE_SECONDS", 3.0)
    source = tones([1.0] * 3)
    transcript = transcribe(source, task="ask")
    [piece] = asked_clips
    assert np.array_equal(piece.features, prepare_clip((source[: 3 * RATE], RATE)).features)
    assert len(transcript.warnings) == 1 and "minutes" in transcript.warnings[0]
    assert transcript.duration == pytest.approx(len(source) / RATE)
    asked_clips.clear()
    exact = transcribe(source[: 3 * RATE], task="ask")
    assert exact.warnings == [] and np.array_equal(asked_clips[0].features, piece.features)


def test_a_summary_of_some_parts(transcribe, asked_clips):
    source = tones([1.0] * 3)
    [segment] = transcribe(source, task="summarize", clip_timestamps="1,2,4,5").segments
    expected = np.concatenate([source[RATE : 2 * RATE], source[4 * RATE : 5 * RATE]])
    assert np.array_equal(asked_clips[0].features, prepare_clip((expected, RATE)).features)
    assert (segment.start, segment.end) == (1, 5)
    with pytest.raises(MediaError, match="a clip starts at 60 s, but the recording ends at"):
        transcribe(source, task="summarize", clip_timestamps="60")


def heard(seconds, number=0):
    return AudioChunk(float(number), number + float(seconds), Clip(np.zeros((8, 80), np.float32)))


def test_pieces_are_pulled_one_batch_at_a_time_and_keep_their_order(loaded, scripted):
    asked = scripted(lambda row, temperature: said(str(row)))
    decoder = SegmentDecoder(*loaded(), make_question(), DecodingOptions(batch_size=2))
    pulled = []

    def stream():
        for number in range(5):
            pulled.append(number)
            yield "a" if number < 3 else "b", heard(1, number)
            if number == 2:
                yield "a", "end"
        yield "b", "end"

    results = decoder(stream())
    assert next(results)[1].text == "0" and pulled == [0, 1]
    rest = [(key, item if isinstance(item, str) else item.text) for key, item in results]
    assert rest == [("a", "1"), ("a", "2"), ("a", "end"), ("b", "3"), ("b", "4"), ("b", "end")]
    assert [len(rows) for rows, _ in asked] == [2, 2, 1]


def test_a_batch_of_whole_recordings_is_smaller(loaded, scripted):
    """Eight summaries of 30 minutes at once would need the memory of 45 ordinary batches."""
    asked = scripted(lambda row, temperature: said(str(row)))
    decoder = SegmentDecoder(*loaded(), make_question(), DecodingOptions(batch_size=8))
    lengths = [30, 40, 1800, 1800, 100, 100, 100, 10]
    assert len(list(decoder(("key", heard(length, n)) for n, length in enumerate(lengths)))) == 8
    assert [rows for rows, _ in asked] == [[0, 1], [2], [3], [4, 5, 6, 7]]


def test_reading_ahead_is_bounded_and_in_order():
    """Hours of recordings must not pile up while the model is busy."""
    made = itertools.count()

    def stream():
        for _ in range(50):
            next(made)
            yield heard(30)

    def broken():
        yield heard(1)
        raise MediaError("x.wav: is truncated")

    items = chunking.read_ahead([stream, broken, stream], jobs=2, seconds=120)
    assert next(items)[0] == 0
    time.sleep(0.2)
    assert next(made) <= 8
    rest = list(items)
    assert [index for index, _ in rest] == [0] * 49 + [1] * 2 + [2] * 50
    assert isinstance(rest[49][1], AudioChunk) and "truncated" in str(rest[50][1].error)
    before = threading.active_count()
    items = chunking.read_ahead([stream] * 3, jobs=3, seconds=60)
    next(items)
    items.close()
    assert threading.active_count() == before


def test_what_goes_wrong_while_reading_is_raised(transcribe, tmp_path):
    path = tmp_path / "talk.wav"
    soundfile.write(path, tones([0.5]), RATE)
    path.write_bytes(path.read_bytes()[:-8000])
    with pytest.raises(MediaError, match=r"talk\.wav: is truncated"):
        transcribe(path, **ONCE)
    with pytest.raises(MediaError, match=r"source is an array of shape \(2, 400\)"):
        transcribe(np.zeros((2, 400), np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "sing"}, "task is 'sing'"),
        ({"to": "fr"}, "--to goes with translate"),
        ({"task": "translate", "to": " "}, "--to is empty"),
        ({"segment_seconds": 60}, "segment_seconds is 60"),
        ({"pause": 0}, "pause is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (0.0, -1.0)}, "temperatures"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_values_are_refused_before_a_model_is_loaded(options, message):
    with pytest.raises(Phi4Error, match=message) as caught:
        library_function("talk.wav", "/no/such/model", **options)
    assert "\n" not in str(caught.value)


def test_models_that_cannot_hear(loaded):
    model, processor = loaded("text")
    with pytest.raises(Phi4Error, match="text-only"):
        library_function(tones([0.3]), model, processor=processor)
    with pytest.raises(Phi4Error, match="needs its processor"):
        library_function(tones([0.3]), model)
    with pytest.raises(Phi4Error, match="no such model folder"):
        library_function(tones([0.3]), "/no/such/model")


def test_the_last_model_stays_loaded(checkpoint, monkeypatch):
    monkeypatch.setattr(loading, "_kept", {})
    first = loading.model_and_processor(checkpoint())
    assert loading.model_and_processor(str(checkpoint())) is first
    other = loading.model_and_processor(checkpoint("text"))
    assert other is not first and list(loading._kept.values()) == [other]


def test_threads_that_ask_at_once_load_once(checkpoint, monkeypatch):
    load, loads = loading.load, []
    monkeypatch.setattr(loading, "_kept", {})
    monkeypatch.setattr(loading, "load", lambda folder, **_: loads.append(folder) or time.sleep(0.1) or load(folder))
    with ThreadPoolExecutor(4) as threads:
        pairs = list(threads.map(loading.model_and_processor, [checkpoint()] * 4))
    assert len(loads) == 1 and all(pair is pairs[0] for pair in pairs)


def test_the_function_is_callable():
    code = (
        "import sys, mlx_phi4\n"
        "try: mlx_phi4.transcribe()\nexcept TypeError as error: assert 'source' in str(error)\n"
        "else: raise AssertionError('called without a source')\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_options_of_decoding_are_documented_where_they_are_passed_on():
    """``transcribe`` names the keywords that it hands to ``Transcriber``; a new one must not be forgotten."""
    named = library_function.__doc__
    assert all(field.name in named for field in dataclasses.fields(DecodingOptions))


def test_a_model_says_how_its_recordings_are_cut_unless_the_caller_does():
    """phi4-tiny was trained on a few words at a time; 30 seconds at once would be noise to it."""
    from mlx_phi4.checkpoint.config_readers import read_config
    from mlx_phi4.checkpoint.hub import ASSETS
    from mlx_phi4.transcription.chunking import ChunkingOptions

    tiny = read_config(ASSETS / "phi4-tiny")
    assert tiny.transcription == {"segment_seconds": 6.0, "pause": 0.2}
    assert ChunkingOptions(pause=1.0).suited_to(tiny) == ChunkingOptions(segment_seconds=6.0, pause=1.0)
    plain = dataclasses.replace(tiny, transcription={})
    assert ChunkingOptions().suited_to(plain) == ChunkingOptions(segment_seconds=30.0, pause=0.5)

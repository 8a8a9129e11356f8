"""Transcripts: what is written is what was heard, and other programs read it."""

import html
import io
import itertools
import json
import math
import random

import pytest
import srt
import webvtt

from mlx_phi4 import Phi4Error
from mlx_phi4.transcription.transcript import FORMATS, Segment, Transcript

AWKWARD = [
    "two\nlines",
    "a\n\nblank line",
    "an arrow --> in it",
    "<b>bold</b> & <i>others</i>",
    "&amp; as it stands",
    "42",
    "{\\an8}braces and \\N \\h backslashes",
    "tab\there",
    "NOTE a comment?",
    "שלום עולם",
    "今天天气很好。",
    "Ça va\u00a0?",
    "nul\x00 and bell\x07",
    "form\x0cfeed and line\u2028separator",
]


@pytest.mark.parametrize("format", FORMATS)
def test_saving_in_the_format_of_the_name(tmp_path, format):
    whole = transcript("one", "two")
    path = whole.save(tmp_path / f"talk.{format.upper()}")
    assert path.read_text(encoding="utf-8") == whole.render(format)
    for name in ("talk", "talk.doc", f"none/talk.{format}", f"{'x' * 300}.{format}", f"nul\0.{format}"):
        with pytest.raises(Phi4Error):
            whole.save(tmp_path / name)
    assert whole.save(tmp_path / "narrow.srt", max_line_width=2).read_text() == whole.to_srt(2)


def transcript(*texts, seconds=2.0, **given):
    """Segments of equal length, one after the other."""
    segments = [Segment(index * seconds, (index + 1) * seconds, text) for index, text in enumerate(texts)]
    return Transcript(segments, len(texts) * seconds, **given)


def srt_cues(text):
    """(start, end, content) in milliseconds, by an independent parser that raises at what it does not understand."""
    return [(ms(cue.start), ms(cue.end), cue.content) for cue in srt.parse(text)]


def vtt_cues(text):
    captions = webvtt.from_buffer(io.BytesIO(text.encode("utf-8")))
    return [(ms(cue.start_time), ms(cue.end_time), html.unescape(cue.raw_text)) for cue in captions]


def ms(time):
    seconds = time.total_seconds() if hasattr(time, "total_seconds") else time.in_milliseconds() / 1000
    return round(seconds * 1000)


PARSERS = {"srt": srt_cues, "vtt": vtt_cues}


@pytest.mark.parametrize("format", PARSERS)
def test_subtitles_hold_each_text_on_one_line_at_its_time(format):
    cues = PARSERS[format](transcript(*AWKWARD, seconds=1.234).render(format))
    assert [cue[:2] for cue in cues] == [
        (round(index * 1234), round((index + 1) * 1234)) for index in range(len(AWKWARD))
    ]
    plain = [text.replace("\x00", "").replace("\x07", "") for text in AWKWARD]
    # white space becomes one space, but a no-break space is part of the text
    expected = [" ".join(text.replace("\u00a0", "~").split()).replace("~", "\u00a0") for text in plain]
    assert [cue[2] for cue in cues] == expected


def test_vtt_text_is_never_markup_nor_a_timing():
    text = transcript(*AWKWARD).to_vtt()
    assert text.startswith("WEBVTT\n\n")
    timings = [line for line in text.splitlines() if "-->" in line]
    assert len(timings) == len(AWKWARD)
    assert "<" not in text
    assert [cue.text for cue in webvtt.from_buffer(io.BytesIO(text.encode()))] == [
        cue.raw_text for cue in webvtt.from_buffer(io.BytesIO(text.encode()))
    ]  # what the parser takes as tags is left out of .text


@pytest.mark.parametrize("format", PARSERS)
def test_a_segment_without_text_has_no_cue_but_stays_in_the_tables(format):
    silent = transcript("one", "", " \n ", "two")
    assert [cue[2] for cue in PARSERS[format](silent.render(format))] == ["one", "two"]
    assert len(json.loads(silent.to_json())["segments"]) == 4
    assert silent.to_tsv().count("\n") == 5
    assert silent.to_txt() == "one\ntwo\n"
    assert silent.text == "one two"


@pytest.mark.parametrize("format", PARSERS)
def test_times_beyond_a_hundred_hours(format):
    late = Transcript([Segment(360_000.001, 3_600_000.999, "late")], 4e6)
    assert PARSERS[format](late.render(format)) == [(360_000_001, 3_600_000_999, "late")]


@pytest.mark.parametrize("format", PARSERS)
def test_cues_never_overlap_nor_vanish(format):
    """Times fall anywhere between milliseconds, and a segment may be shorter than one."""
    chance = random.Random(0)
    times = sorted(chance.uniform(0, 1) for _ in range(500))
    segments = [Segment(start, end, "x") for start, end in itertools.pairwise(times)]
    segments += [Segment(1.5, 1.5, "no length"), Segment(1.5, 1.5, "nor this"), Segment(1.5, 2.0, "y")]
    cues = PARSERS[format](Transcript(segments, 2.0).render(format))
    assert len(cues) == len(segments)
    assert all(start < end for start, end, _ in cues)
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(cues))
    # 500 cues of at least 1 ms in a second leave them near their times
    assert all(abs(cue[0] - 1000 * segment.start) < 10 for cue, segment in zip(cues, segments, strict=True))


@pytest.mark.parametrize("format", PARSERS)
@pytest.mark.parametrize(
    "text", ["the quick brown fox jumps over the lazy dog", "今天天气很好我们去公园散步吧", "extraordinarily"]
)
def test_lines_of_subtitles_keep_to_the_width(format, text):
    ((_, _, content),) = PARSERS[format](transcript(text).render(format, max_line_width=9))
    lines = content.split("\n")
    assert max(map(len, lines)) <= 9 and len(lines) > 1
    assert (" " if " " in text else "").join(lines) == text
    assert all(word in content for word in text.split() if len(word) <= 9)


@pytest.mark.parametrize("format", PARSERS)
def test_escapes_do_not_count_as_width(format):
    ((_, _, content),) = PARSERS[format](transcript("a & b & c").render(format, max_line_width=9))
    assert content == "a & b & c"


def test_a_width_that_no_line_can_have():
    with pytest.raises(Phi4Error, match="max_line_width is 0"):
        transcript("a").to_srt(max_line_width=0)
    assert transcript("a").render("txt", max_line_width=0) == "a\n"  # only subtitles are wrapped


@pytest.mark.parametrize(
    ("texts", "whole"),
    [
        (["Hello.", "How are you?"], "Hello. How are you?"),
        (["你好。", "世界"], "你好。世界"),
        (["こんにちは", "「世界」"], "こんにちは「世界」"),
        (["我用", "Python", "写"], "我用 Python 写"),
        (["안녕하세요.", "반갑습니다."], "안녕하세요. 반갑습니다."),
        (["  left ", "\n", " right "], "left right"),
        ([], ""),
    ],
)
def test_text_joins_segments_as_the_language_does(texts, whole):
    assert transcript(*texts).text == whole


def test_tsv_is_a_table_of_milliseconds():
    rows = [line.split("\t") for line in transcript("a\tb", "c\nd", "", seconds=1.5).to_tsv().splitlines()]
    assert rows == [["start", "end", "text"], ["0", "1500", "a b"], ["1500", "3000", "c d"], ["3000", "4500", ""]]


def test_txt_keeps_the_lines_of_an_answer_to_the_whole_recording():
    assert transcript("- one\n- two\n", task="summarize").to_txt() == "- one\n- two\n"
    assert transcript("one\ntwo").to_txt() == "one two\n"


def test_translations_stand_beside_their_texts():
    segments = [Segment(0, 1, "Good day.", "Bonjour."), Segment(1, 2, "", None), Segment(2, 3, "Bye.", "Salut.")]
    both = Transcript(segments, 3, language="French", task="transcribe+translate")
    assert (both.text, both.translation) == ("Good day. Bye.", "Bonjour. Salut.")
    assert both.to_txt() == "Good day.\nBye.\n\nBonjour.\nSalut.\n"
    for format, parse in PARSERS.items():
        assert [cue[2] for cue in parse(both.render(format))] == ["Good day.\nBonjour.", "Bye.\nSalut."]
    assert both.to_tsv().splitlines()[1] == "0\t1000\tGood day.\tBonjour."
    assert json.loads(both.to_json())["translation"] == "Bonjour. Salut."
    assert "translation" not in json.loads(transcript("a").to_json())


def strict_json(text):
    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_keeps_everything():
    segments = [
        Segment(0, 1.25, 'a\n"é" \u2028 今', "b", -0.5, 1.1, 0.4, False, ("repetition", "length"), [1, 2]),
        Segment(1.25, 2, "", no_speech=True),
    ]
    whole = Transcript(segments, 2.5, "French", "transcribe+translate", "talk.flac", ["quiet"])
    assert Transcript.from_json(whole.to_json()) == whole
    assert strict_json(whole.to_json())["text"] == whole.text
    assert "é" in whole.to_json()


def test_json_has_no_numbers_that_json_does_not_know():
    odd = Transcript([Segment(0, 1, "a", avg_logprob=-math.inf, compression_ratio=math.nan)], 1)
    (segment,) = strict_json(odd.to_json())["segments"]
    assert segment["avg_logprob"] is None and segment["compression_ratio"] is None
    assert Transcript.from_json(odd.to_json()).segments[0].avg_logprob is None


def test_json_of_a_later_version_can_be_read():
    values = json.loads(transcript("a").to_json())
    values["speakers"] = values["segments"][0]["speaker"] = 1
    assert Transcript.from_json(json.dumps(values)) == transcript("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a transcript is list"),
        ("{}", "lacks segments, duration"),
        ('{"segments": {}, "duration": 1}', "segments is {}"),
        ('{"segments": [], "duration": NaN}', "NaN is no number"),
        ('{"segments": [], "duration": true}', "duration is True"),
        ('{"segments": [], "duration": 1e999}', "duration is inf"),
        ('{"segments": [1], "duration": 1}', "segment 0 of a transcript is int"),
        ('{"segments": [{"start": 0, "end": 1}], "duration": 1}', "segment 0 of a transcript lacks text"),
        ('{"segments": [{"start": "0", "end": 1, "text": ""}], "duration": 1}', "segment 0 .*start is '0'"),
        ('{"segments": [{"start": 2, "end": 1, "text": ""}], "duration": 1}', "a segment from 2 to 1 s"),
    ],
)
def test_json_that_is_no_transcript_is_refused_in_a_line(text, message):
    with pytest.raises(Phi4Error, match=message) as caught:
        Transcript.from_json(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("times", [(math.nan, 1), (0, math.inf), (-1, 1), (2, 1)])
def test_times_that_are_none_are_refused(times):
    with pytest.raises(Phi4Error, match="expected 0 <= start <= end"):
        Segment(*times, "a")


def test_every_format_of_an_empty_transcript_is_valid():
    empty = Transcript([], 0)
    assert {format: empty.render(format) for format in FORMATS if format != "json"} == {
        "txt": "",
        "srt": "",
        "vtt": "WEBVTT\n",
        "tsv": "start\tend\ttext\n",
    }
    assert vtt_cues(empty.to_vtt()) == srt_cues(empty.to_srt()) == []
    assert Transcript.from_json(empty.to_json()) == empty
    with pytest.raises(Phi4Error, match="format is 'doc', expected txt, srt"):
        empty.render("doc")

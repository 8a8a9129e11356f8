"""The command mlx_phi4.evaluate: speech by error rates, pictures by exact answers, text by lm-eval-harness."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .. import distributed
from ..errors import Phi4Error
from ..evaluation.answers import AnswerScores, evaluate_pictures
from ..evaluation.speech import SpeechScores, evaluate_asr
from ..evaluation.text import evaluate_text
from ..evaluation.word_errors import NORMALIZERS
from ..files import expanded, write_whole
from ..terminal import say_error, shown
from . import cli, habits, ranks
from .adapters import adapter_options, with_adapters

STANDARD_OUTPUT = ("-", "/dev/stdout", "/dev/fd/1")


def _progress(quiet: bool, what: str) -> Callable[[int, int], None] | None:
    """Counts on a terminal; None where nobody looks."""
    if quiet or not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        click.echo(f"\r{done} of {total} {what}" + ("\n" if done == total else ""), nl=False, err=True)

    return show


def _rate(value: float | None) -> str:
    return "     -" if value is None else f"{100 * value:6.2f} %"


def _speech_lines(scores: SpeechScores, each: bool) -> Iterable[str]:
    if each:
        for score in scores.files:
            yield f"{_rate(score.wer)}  {score.id}"
        yield ""
    counts = [f"{scores.scored} scored"]
    counts += [f"{scores.skipped} skipped (no words in the reference)"] if scores.skipped else []
    counts += [f"{scores.failed} failed"] if scores.failed else []
    yield f"word error rate       {_rate(scores.wer)}"
    yield f"character error rate  {_rate(scores.cer)}"
    yield f"recordings            {', '.join(counts)}"
    speed = "" if scores.speed is None else f"; real-time factor {scores.real_time_factor:.4f}, {scores.speed:.1f}x"
    yield f"time                  {scores.audio_seconds:.1f} s of audio in {scores.wall_seconds:.1f} s{speed}"


def _answer_lines(scores: AnswerScores, each: bool) -> Iterable[str]:
    if each:
        for item in scores.items:
            verdict = "right" if item.correct else "wrong"
            yield f"{verdict if item.error is None else 'error'}  {item.id}: {item.answer!r}"
        yield ""
    failed = f", {scores.failed} failed" if scores.failed else ""
    yield f"accuracy   {_rate(scores.accuracy)}"
    yield f"questions  {scores.correct} of {scores.answered} right{failed}"
    yield f"time       {scores.wall_seconds:.1f} s"


def _finite(value: Any) -> Any:
    """Without the numbers that JSON does not know."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _begin(model: str, adapters: dict, parallel: str, json_path: str | None, overwrite: bool) -> Path | None:
    """The results' place; before that, the other processes of this run are met."""
    here = distributed.join(parallel)
    path = None if here.rank else _check_json(json_path, overwrite)
    ranks.prepare(model, parallel, adapters=adapters)
    return path


def _check_json(given: str | None, overwrite: bool) -> Path | None:
    """Find out before any work whether there is a place for the results; "-" is standard output."""
    if given is None or given in STANDARD_OUTPUT:
        return None if given is None else Path("-")
    path = expanded(given)
    try:
        if path.is_dir():
            raise Phi4Error(f"{path}: is a folder, expected a file for the results")
        if not path.absolute().parent.is_dir():
            raise Phi4Error(f"{path}: its folder does not exist")
        if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
            raise Phi4Error(f"{path}: no permission to write there")
    except Phi4Error:
        raise
    except (OSError, ValueError) as error:  # a name that is too long, one with a NUL in it
        raise Phi4Error(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    cli.check_output(path, _is_report, overwrite)
    return path


def _is_report(path: Path) -> bool:
    """Whether a file is the report of an earlier run, which a new one may replace."""
    try:
        return path.read_bytes().lstrip().startswith(b'{\n "made_by": "mlx_phi4.evaluate')
    except OSError:
        return False


def _report(lines: Iterable[str], values: dict, json_path: Path | None, failures: Iterable[str] = ()) -> None:
    """Lines for a person on standard output, or JSON ("-"); JSON in a file; failures on standard error, exit code 1."""
    failures = list(failures)
    here = distributed.join("data")
    if code := here.gather(1 if failures else 0)[0] if here.rank else 0:
        raise click.exceptions.Exit(code)
    if here.rank:
        return
    here.gather(1 if failures else 0)
    for failure in failures:
        say_error(failure)
    if json_path is not None:
        made_by = {"made_by": f"mlx_phi4.evaluate {click.get_current_context().info_name}"}
        text = json.dumps(_finite(made_by | values), ensure_ascii=False, allow_nan=False, indent=1, default=str)
    unwritten = None
    if json_path == Path("-"):
        lines = [text]
    elif json_path is not None:
        try:
            with write_whole(json_path) as partial:
                partial.write_text(f"{text}\n", encoding="utf-8")
        except OSError as error:  # a full disk must not cost the summary of hours of work, too
            unwritten = Phi4Error(f"{json_path}: {error.strerror or error}")
    for line in lines:
        click.echo(shown(line) if sys.stdout.isatty() else line)
    if unwritten is not None:
        raise unwritten
    if failures:
        raise click.exceptions.Exit(1)


_SHARED = (
    click.option("--model", required=True, help="Checkpoint folder or hub id."),
    click.option("--limit", type=int, help="Only so many of the first items."),
    click.option("--json", "json_path", metavar="FILE", help="Write all results as JSON; '-' prints them."),
    click.option("--overwrite", is_flag=True, help="Replace a file of something else with the results."),
    ranks.parallel_option("data", "tensor"),
)
_quiet = click.option("--quiet", is_flag=True, help="No progress.")


def _shared(command):
    command = adapter_options(command)
    for option in reversed(_SHARED):
        command = option(command)
    return command


@click.group(name="mlx_phi4.evaluate", no_args_is_help=False, context_settings=habits.SETTINGS)
@cli.version_option
def main():
    """Measure how well a model transcribes, answers and predicts."""


@main.command()
@cli.version_option
@click.argument("manifest")
@_shared
@click.option("--batch-size", default=8, show_default=True, help="Recordings decoded together.")
@click.option(
    "--normalizer",
    type=click.Choice(NORMALIZERS),
    default="auto",
    show_default=True,
    help="Of texts before they are compared; auto: english, or basic where a line names another language.",
)
@click.option("--each", is_flag=True, help="Print each recording's word error rate, too.")
@_quiet
def asr(manifest, model, adapters, parallel, json_path, overwrite, each, quiet, **options):
    """Word and character error rates.

    MANIFEST has a JSON object in each line: audio (a path relative to it), text, and optionally language and id.
    """
    json_path = _begin(model, adapters, parallel, json_path, overwrite)
    options |= with_adapters(model, adapters, options["adapter"], quiet)
    scores = evaluate_asr(manifest, progress=_progress(quiet, "recordings"), **options)
    failures = [score.error for score in scores.files if score.error is not None]
    _report(_speech_lines(scores, each), asdict(scores), json_path, failures)


@main.command()
@cli.version_option
@click.argument("manifest")
@_shared
@click.option("--batch-size", default=4, show_default=True, help="Questions answered together.")
@click.option("--max-tokens", "-m", default=64, show_default=True, help="Most tokens of an answer.")
@click.option("--system", "--system-prompt", help="A system message in front of each question.")
@click.option("--each", is_flag=True, help="Print each answer, too.")
@_quiet
def pictures(manifest, model, adapters, parallel, json_path, overwrite, each, quiet, **options):
    """Exact answers to questions about pictures, spoken ones and plain ones.

    MANIFEST has a JSON object in each line: question, answer (one or a list), and optionally image, audio and id.
    """
    json_path = _begin(model, adapters, parallel, json_path, overwrite)
    options |= with_adapters(model, adapters, options["adapter"], quiet)
    scores = evaluate_pictures(manifest, progress=_progress(quiet, "questions"), **options)
    failures = [f"{item.id}: {item.error}" for item in scores.items if item.error is not None]
    _report(_answer_lines(scores, each), asdict(scores), json_path, failures)


@main.command()
@cli.version_option
@_shared
@click.option("--tasks", required=True, metavar="NAME,...", help="Tasks of lm-eval.")
@click.option("--batch-size", default=8, show_default=True, help="Continuations or answers computed together.")
@click.option("--num-fewshot", type=int, help="Examples in front of each question.  [default: the task's]")
@click.option("--apply-chat-template", is_flag=True, help="Ask in the model's chat template.")
@click.option("--max-length", type=int, help="Most tokens of a context.  [default: the whole window]")
@click.option("--include-path", help="A folder with tasks of your own.")
@click.option("--seed", default=0, show_default=True, help="Of tasks that sample.")
def text(tasks, model, adapters, parallel, json_path, overwrite, **options):
    """Tasks of lm-eval-harness, in text mode."""
    json_path = _begin(model, adapters, parallel, json_path, overwrite)
    options |= with_adapters(model, adapters, options["adapter"])
    results = evaluate_text(tasks=[task.strip() for task in tasks.split(",") if task.strip()], **options)
    if not results:  # this process helped another
        _report([], {}, None)
        return
    from lm_eval.utils import make_table

    kept = ("results", "groups", "versions", "n-shot", "higher_is_better", "n-samples")
    _report([make_table(results)], {key: results[key] for key in kept if key in results}, json_path)


def command() -> None:
    """The console script."""
    cli.run(main)

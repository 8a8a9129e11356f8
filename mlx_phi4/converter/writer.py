"""Carrying out a plan in bounded memory, beside the destination, in steps that can be resumed.

Rows of a tensor are read, worked on and written in pieces; while MLX works on some, the next are
read and the last written. Neither a shard nor a tensor is ever held whole.
"""

import json
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlx.core as mx

from ..checkpoint.shards import INDEX
from ..checkpoint.tensorfile import ShardWriter, shard_bytes
from ..errors import ConfigError, ConversionError
from ..files import read_json, write_whole
from .plan import Plan, Task

SHARD = 1_000_000_000  # bytes of an output file
HEADROOM = 50_000_000  # bytes beside the weights: tokenizer, configurations, headers
PLAN = "conversion.json"  # marks a folder as unfinished, and says what it was to become
PARTIAL = ".partial"
STREAMS = 4  # at most, of the CPU; each holds a piece
CACHE = 256_000_000  # bytes of freed buffers that MLX may keep for the next pieces
# what travels along; never code, never pickles
COMPANIONS = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template*",
    "generation_config.json", "processor_config.json", "preprocessor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip


class OtherPlan(ConversionError):
    """An interrupted run had other options or another source than this one."""


def partial_folder(destination: Path) -> Path:
    """Where a conversion grows until it is complete."""
    return destination.with_name(destination.name + PARTIAL)


def write(
    plan: Plan,
    destination: Path,
    *,
    overwrite: bool = False,
    resume: bool = False,
    card: str | None = None,
    shard_limit: int = SHARD,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Write the converted folder, complete or not at all.

    Args:
        overwrite: replace a model folder at ``destination``, once the new one is complete.
        resume: keep the shards that an interrupted run of the same plan has finished.
        card: text of README.md.
        shard_limit: bytes of an output file; only a tensor that is larger exceeds it.
        progress: told the bytes of the source that were worked off.

    Raises:
        ConversionError: the destination is taken, another run writes there, or there is no room.
    """
    check_destination(destination, overwrite, plan.source)
    with exclusive(destination):
        check_destination(destination, overwrite, plan.source)
        partial = partial_folder(destination)
        shards = plan.shards(shard_limit)
        names = shard_names(len(shards))
        _open_partial(partial, plan.fingerprint(shard_limit), resume)
        done = [name for name in names if (partial / name).exists()]
        left = sum(
            shard_bytes(task.written)
            for name, tasks in zip(names, shards, strict=True)
            if name not in done
            for task in tasks
        )
        _check_room(partial, left)
        try:
            with _cache_limit(CACHE):
                for name, tasks in zip(names, shards, strict=True):
                    if name in done:
                        progress(sum(task.nbytes for task in tasks))
                    else:
                        _write_shard(partial / name, tasks, progress)
            _write_companions(plan, partial, dict(zip(names, shards, strict=True)), card)
        except ValueError:  # Phi4Error is one
            shutil.rmtree(partial)  # the source is spoiled: there is nothing to go on with
            raise
        (partial / PLAN).unlink()
        move_into_place(partial, destination)


def check_destination(destination: Path, overwrite: bool, source: Path | None = None) -> None:
    """Raises ConversionError if the result must not be put there."""
    if source is not None:
        here, there = source.resolve(), destination.resolve()
        if here == there or there in here.parents:
            raise ConversionError(f"{destination} is or holds the source; choose another folder")
    if not os.path.lexists(destination) or _empty(destination):
        return
    if not overwrite:
        raise ConversionError(f"{destination} exists already; --overwrite replaces it")
    if not destination.is_dir() or not (destination / "config.json").exists():
        raise ConversionError(f"{destination} is not a model folder; it is not overwritten")


def shard_names(count: int) -> list[str]:
    """As everywhere: model.safetensors, or numbered files."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


@contextmanager
def exclusive(destination: Path, wait: bool = False) -> Iterator[None]:
    """Hold the right to write ``destination`` against other processes; the system ends it with the process.

    Raises ConversionError if another has it, unless ``wait``.
    """
    import fcntl

    path = destination.with_name(f".{destination.name}.lock")
    destination.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            raise ConversionError(f"another conversion is writing {destination}") from None
        # the former holder removes the file: a lock on a removed file excludes no one
        if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
            break
        os.close(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _open_partial(partial: Path, fingerprint: str, resume: bool) -> None:
    """Make the partial folder, or take up a former run's."""
    if partial.exists() and not resume:
        shutil.rmtree(partial)
    if partial.exists():
        try:
            before = read_json(partial / PLAN).get("fingerprint")
        except ConfigError:
            before = None
        if before != fingerprint:
            raise OtherPlan(
                f"{partial} was begun with other options or another source; without --resume it starts anew"
            )
        return
    partial.mkdir(parents=True)
    _write_json(partial / PLAN, {"fingerprint": fingerprint})


def _check_room(partial: Path, needed: int) -> None:
    free = shutil.disk_usage(partial).free
    if needed + HEADROOM > free:
        raise ConversionError(
            f"{partial.parent}: {(needed + HEADROOM) / 1e9:.2f} GB of disk are needed, {free / 1e9:.2f} GB are free"
        )


def _write_shard(path: Path, tasks: list[Task], progress: Callable[[int], None]) -> None:
    """Write one file, which has its name once it is complete: that is how a resumed run knows it."""
    tensors = {name: what for task in tasks for name, what in task.written.items()}
    with write_whole(path) as partial, closing(ShardWriter(partial, tensors)) as writer:
        for task, first, last, arrays in _in_flight(tasks):
            for name, array in zip(task.written, arrays, strict=True):
                writer.write(name, first, array)
            progress(task.nbytes * (last - first) // task.sources[0].shape[0])


def _in_flight(tasks: list[Task]) -> Iterator[tuple[Task, int, int, list[mx.array]]]:
    """Results in order, with some pieces always being worked on."""
    streams = _streams()
    waiting: deque = deque()
    pieces = ((task, first, last) for task in tasks for first, last in task.pieces())
    for number, (task, first, last) in enumerate(pieces):
        with mx.stream(streams[number % len(streams)]):
            arrays = task.compute(first, last)
        mx.async_eval(arrays)
        waiting.append((task, first, last, arrays))
        if len(waiting) > len(streams):
            yield waiting.popleft()
    yield from waiting


_own = threading.local()  # a stream belongs to the thread that made it, and is never given back


def _streams() -> list[mx.Stream]:
    """One stream, or on the CPU, where a stream is one thread, several."""
    device = mx.default_device()
    if not hasattr(_own, "streams") or _own.device != device:
        count = min(os.cpu_count() or 1, STREAMS) if device.type == mx.DeviceType.cpu else 1
        _own.device, _own.streams = device, [mx.new_stream(device) for _ in range(count)]
    return _own.streams


@contextmanager
def _cache_limit(limit: int) -> Iterator[None]:
    before = mx.set_cache_limit(limit)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
        mx.clear_cache()


def _write_companions(plan: Plan, partial: Path, shards: dict[str, list[Task]], card: str | None) -> None:
    where = {name: file for file, tasks in shards.items() for task in tasks for name in task.written}
    sizes = {"total_size": plan.bytes_out, "total_parameters": plan.parameters}
    _write_json(partial / INDEX, {"metadata": sizes, "weight_map": dict(sorted(where.items()))})
    for pattern in COMPANIONS:
        for path in plan.source.glob(pattern):
            if path.is_file():
                shutil.copyfile(path, partial / path.name)
    if card is not None:
        (partial / "README.md").write_text(card, encoding="utf-8")
    _write_json(partial / "config.json", plan.config)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def move_into_place(partial: Path, destination: Path) -> None:
    """Rename; what was there before goes only then."""
    former = None
    if destination.exists():
        former = destination.with_name(destination.name + ".former")
        if former.exists():
            shutil.rmtree(former)
        destination.rename(former)
    partial.rename(destination)
    if former is not None and former.is_symlink():
        former.unlink()
    elif former is not None:
        shutil.rmtree(former)

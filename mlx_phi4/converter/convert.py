"""Published weights in, a folder of MLX weights out: 4-bit by default, adapters still separate."""

import errno
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..arguments import kinds
from ..arguments.names import takes
from ..errors import ConversionError
from ..files import expanded


@takes(
    model=kinds.path,
    mlx_path=kinds.path,
    revision=kinds.text | None,
    quantize=kinds.flag,
    q_bits=kinds.integer() | None,
    q_group_size=kinds.integer() | None,
    q_mode=kinds.text,
    quant_predicate=kinds.text | None,
    adapter_bits=kinds.integer() | None,
    encoder_bits=kinds.integer() | None,
    dtype=kinds.text | None,
    dequantize=kinds.flag,
    overwrite=kinds.flag,
    resume=kinds.flag,
    verify=kinds.flag,
    upload_repo=kinds.text | None,
    quiet=kinds.flag,
)
def convert(
    model: str | Path,
    mlx_path: str | Path = "mlx_model",
    *,
    revision: str | None = None,
    quantize: bool = True,
    q_bits: int | None = None,
    q_group_size: int | None = None,
    q_mode: str = "affine",
    quant_predicate: str | None = None,
    adapter_bits: int | None = None,
    encoder_bits: int | None = None,
    dtype: str | None = None,
    dequantize: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    verify: bool = False,
    upload_repo: str | None = None,
    quiet: bool = True,
) -> Path:
    """Convert a checkpoint into a folder that ``load`` reads, and return its path.

    It is written beside its destination and renamed when it is complete. Text models load in
    mlx-lm, too.

    Args:
        model: folder or hub id, in Microsoft's, Transformers' or the text models' layout, or
            converted before.
        mlx_path: the new folder; refused if it exists, unless ``overwrite``.
        revision: branch, tag or commit of a hub id.
        quantize: False keeps all weights in ``dtype``.
        q_bits, q_group_size: of the decoder's linears and the embedding; None is the mode's
            default, for affine 4 bits in groups of 64. A group that does not divide a tensor's
            width gives way to the next smaller one that does.
        q_mode: affine, mxfp4, nvfp4 or mxfp8, as ``mx.quantize`` has them.
        quant_predicate: instead of ``q_bits``, one of mlx-lm's mixed recipes: mixed_2_6,
            mixed_3_4, mixed_3_6, mixed_4_6.
        adapter_bits, encoder_bits: of the LoRAs, and of encoders and projectors, in mode affine;
            None is 8, 16 leaves them as they are.
        dtype: float32, float16 or bfloat16 of what is not packed; None is what ``config.json``
            names.
        dequantize: turn packed weights back into ``dtype``.
        overwrite: replace a model folder at ``mlx_path``.
        resume: go on with what an interrupted run has finished.
        verify: re-read the result, see ``verify.verify``.
        upload_repo: hub id to publish the result as.
        quiet: no progress on standard error.

    Raises:
        Phi4Error: what does not fit, in one line; nothing half-written looks finished.
    """
    quantization = {
        "q_bits": q_bits,
        "q_group_size": q_group_size,
        "quant_predicate": quant_predicate,
        "adapter_bits": adapter_bits,
        "encoder_bits": encoder_bits,
    }
    _check_options(quantize, dequantize, quantization, q_mode)
    from ..checkpoint.hub import find_folder, local_folder
    from ..checkpoint.reach import ask_hub
    from .plan import make_plan
    from .publish import check_upload, model_card, upload
    from .writer import check_destination, write

    destination = expanded(mlx_path)
    with one_line(destination):
        check_destination(destination, overwrite)
        if upload_repo is not None:
            check_upload(upload_repo)
        local = local_folder(model).is_dir()
        ask_hub(str(model), revision, quiet=quiet)
        source = find_folder(model, revision)
        options = quantization | {"q_mode": q_mode, "dtype": dtype, "quantize": quantize, "dequantize": dequantize}
        plan = make_plan(source, **options)
        card = model_card(None if local else str(model), plan.layout != "text", plan.config.get("quantization"))
        with progress_bar("Converting", plan.bytes_in, quiet) as progress:
            write(plan, destination, overwrite=overwrite, resume=resume, card=card, progress=progress)
        if verify:
            verify_folder(destination, quiet)
        if upload_repo is not None:
            upload(destination, upload_repo)
    return destination


def verify_folder(folder: str | Path, quiet: bool = True) -> str:
    """Re-read a folder and return a table of its components. Raises Phi4Error, see ``verify.verify``."""
    from .verify import describe, verify

    folder = expanded(folder)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with progress_bar("Verifying", total, quiet) as progress:
        return describe(verify(folder, progress))


def _check_options(quantize: bool, dequantize: bool, quantization: dict, q_mode: str) -> None:
    """Refuse options that contradict each other: none is ever ignored."""
    given = [name for name, value in quantization.items() if value is not None]
    given += ["q_mode"] if q_mode != "affine" else []
    if (dequantize or not quantize) and given:
        other = "dequantize" if dequantize else "no-quantize"
        raise ConversionError(f"--{given[0].replace('_', '-')} does not go together with --{other}")


@contextmanager
def one_line(destination: Path, *, resumable: bool = True) -> Iterator[None]:
    """What the system refuses, in words."""
    try:
        yield
    except OSError as error:
        where = error.filename or destination
        again = "; free some and use --resume" if error.errno == errno.ENOSPC and resumable else ""
        raise ConversionError(f"{where}: {error.strerror or error}{again}") from None


@contextmanager
def progress_bar(what: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar with bytes and time left on standard error, from the first piece of work on."""
    bar = None

    def advance(count: int) -> None:
        nonlocal bar
        if bar is None and not quiet:
            from tqdm import tqdm  # huggingface-hub's own

            bar = tqdm(desc=what, total=total, unit="B", unit_scale=True, file=sys.stderr)
        if bar is not None:
            bar.update(count)

    try:
        yield advance
    finally:
        if bar is not None:
            bar.close()

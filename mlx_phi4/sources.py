"""How people hand over a picture or a recording, before anyone looks at what it holds.

Paths, with ``~`` and as ``file://``; bytes, open files and ``data:`` addresses; rows of data sets as dictionaries; and
arrays of numpy, MLX, torch and others. Addresses of the web are never fetched.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from .errors import MediaError

SCHEMES = ("http", "https", "ftp", "s3", "gs", "hf")  # of addresses that would have to be fetched


def opened(source: Any) -> Any:
    """What a source stands for: a path, bytes or a numpy array where it is one of these, else the source itself.

    Of an open file everything is taken, and its position is put back; of one that cannot go back, what is left.

    Raises:
        MediaError: an address of the web, a path without a name, a text file, an array that cannot be read.
    """
    if isinstance(source, str):
        return from_address(source)
    if isinstance(source, os.PathLike):
        return _checked_path(source)
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, Mapping) and ("bytes" in source or "path" in source):  # a row of a data set
        given = source.get("bytes")
        return opened(source.get("path") if given is None else given)
    if callable(getattr(source, "read", None)):
        return _read(source)
    return as_array(source) if is_array(source) else source


def refuse_address(name: str) -> None:
    """Raise MediaError for an address of the web, which no function here or command fetches."""
    scheme = name.partition("://")[0] if "://" in name else ""
    if scheme.lower() in SCHEMES:
        raise MediaError(f"{name[:80]}: download it first; addresses are never fetched")


def from_address(name: str) -> Path | bytes:
    """A path, also as file://, or the bytes of a data: address. Raises MediaError."""
    refuse_address(name)
    if name.startswith("data:"):
        return from_base64(name.partition(",")[2])
    if name.lower().startswith("file:"):
        try:
            parts = urlsplit(name)
        except ValueError as error:
            raise MediaError(f"{name[:80]}: {error}") from None
        if parts.netloc not in ("", "localhost"):
            raise MediaError(f"{name[:80]}: is on another machine, expected file:///path")
        return _checked_path(unquote(parts.path))
    return _checked_path(name)


def from_base64(data: Any) -> bytes:
    """Bytes from text. Raises MediaError."""
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise MediaError(f"the data of a content part or data: address is not base64: {error}") from None


def _checked_path(source: str | os.PathLike) -> Path:
    name = os.fsdecode(source)
    if not name:
        raise MediaError("its path is empty")
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~someone, and there is no such user
        return Path(name)


def is_array(source: Any) -> bool:
    """Whether it is an array of numpy, MLX, torch, JAX or another library; pictures of Pillow are not meant."""
    known = any(hasattr(source, name) for name in ("__array__", "__dlpack__", "__array_interface__"))
    return known and hasattr(source, "shape") and hasattr(source, "dtype")


def as_array(source: Any) -> np.ndarray:
    """An array of any library as numpy's; bfloat16, which numpy lacks, as float32. Raises MediaError."""
    if np.ma.is_masked(source):
        raise MediaError("an array is masked in places, expected one that holds a value everywhere")
    if isinstance(source, np.ndarray):
        return source
    try:
        if hasattr(source, "detach"):  # torch: off the tape, and off the device
            source = source.detach().cpu()
        if "bfloat16" in str(source.dtype):
            source = _as_float32(source)
        return np.asarray(source)
    except Exception as error:  # another library's
        raise MediaError(f"an array of type {type(source).__name__} cannot be read: {error}") from None


def _as_float32(source: Any) -> Any:
    if type(source).__module__.startswith("mlx"):
        import mlx.core as mx

        return source.astype(mx.float32)
    return source.float() if hasattr(source, "float") else np.asarray(source).astype(np.float32)


def _read(file: Any) -> bytes:
    """All of an open file, from its beginning if it can go there."""
    try:
        seekable = hasattr(file, "seekable") and file.seekable()
        position = file.tell() if seekable else 0
        if seekable:
            file.seek(0)
        data = file.read()
        if seekable:
            file.seek(position)
    except Exception as error:  # closed, not for reading, or of another library
        raise MediaError(f"an open file that cannot be read: {error}") from None
    if not isinstance(data, (bytes, bytearray)):
        raise MediaError("an open file of text, expected one that was opened for bytes, as open(path, 'rb') does")
    return bytes(data)

"""Whether two folders, perhaps on two machines, hold the same model: digests of what can be read within a second."""

import os
from hashlib import blake2b
from pathlib import Path

from ..errors import CheckpointError
from .tensorfile import StoredTensor, read_header

SAMPLED = 64  # bytes at the beginning, in the middle and at the end of each tensor


def folder_digests(folder: Path) -> dict[str, str]:
    """File name -> digest: of JSON files as a whole, of weights their headers and some bytes of each tensor.

    Raises CheckpointError.
    """
    try:
        found = {path.name: _digest(path.read_bytes()) for path in sorted(folder.glob("*.json"))}
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
            found[path.relative_to(folder).as_posix()] = _weights_digest(path)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from None
    return found


def _weights_digest(path: Path) -> str:
    digest = blake2b(digest_size=8)
    with path.open("rb", buffering=0) as file:
        for tensor in read_header(path).values():
            digest.update(f"{tensor.name} {tensor.dtype} {tensor.shape}".encode())
            for start in _samples(tensor):
                digest.update(os.pread(file.fileno(), min(SAMPLED, tensor.nbytes), tensor.start + start))
    return digest.hexdigest()


def _samples(tensor: StoredTensor) -> tuple[int, ...]:
    last = max(tensor.nbytes - SAMPLED, 0)
    return 0, last // 2, last


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=8).hexdigest()

"""Publishing a converted folder: its model card and the upload."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import ConversionError

CARD = """---
library_name: mlx
pipeline_tag: {task}{license}
tags:
- mlx
- phi4{base}
---

# {title}

{origin} for MLX: {how}.
{loading}"""

MULTIMODAL_USE = """
Text, pictures and speech; both adapters are separate and switched per request, so text alone is answered by the base
model.

```python
from mlx_phi4 import load, generate

model, processor = load("path or hub id of this model")
print(generate(model, processor, "What is in the picture?", images=["picture.png"]))
```
"""

TEXT_USE = """
```python
from mlx_lm import load, generate  # mlx_phi4 loads it, too

model, tokenizer = load("path or hub id of this model")
print(generate(model, tokenizer, prompt="Hello"))
```
"""


def model_card(source: str | None, multimodal: bool, table: dict | None) -> str:
    """README.md of a converted folder; ``source`` is a hub id, or None for a folder."""
    how = f"{table['bits']}-bit, mode {table['mode']}, groups of {table['group_size']}" if table else "not quantized"
    return CARD.format(
        task="image-text-to-text" if multimodal else "text-generation",
        base=f"\nbase_model: {source}" if source else "",
        title=f"{source.rpartition('/')[2]} for MLX" if source else "Phi-4 for MLX",
        license="\nlicense: mit" if source and source.startswith("microsoft/") else "",
        origin=f"{source} converted" if source else "Phi-4 weights converted",
        how=how + (" (decoder; the table in config.json says how each tensor is)" if table else ""),
        loading=MULTIMODAL_USE if multimodal else TEXT_USE,
    )


def check_upload(repo: str) -> None:
    """Raises ConversionError if the hub would not take an upload: better before hours of work than after."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.utils import validate_repo_id

    if get_token() is None:
        raise ConversionError("no hub token to upload with; log in with 'hf auth login' or set HF_TOKEN")
    with _hub_errors(f"the hub would not take an upload to {repo}"):
        validate_repo_id(repo)
        HfApi().whoami()


def upload(folder: Path, repo: str) -> None:
    """Upload a folder to the hub, made if need be. Raises ConversionError."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _hub_errors(f"{folder} is complete, but the upload to {repo} failed"):
        api.create_repo(repo_id=repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo, repo_type="model")


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """What the hub or the way to it refuses, in a line."""
    from huggingface_hub import errors

    try:
        yield
    # HTTPError is the transport's: no connection, no answer in time
    except (errors.HTTPError, errors.HFValidationError, RuntimeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConversionError(f"{what}: {reason}") from None

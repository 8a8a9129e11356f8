"""Asking the hub so that a person knows of it, and does not wait for one that cannot be reached."""

from ..errors import CheckpointError
from ..terminal import say
from .hub import is_hub_id, local_folder

PATIENCE = 10  # seconds for one question; the hub's own library asks on for half a minute


def ask_hub(name: str, revision: str | None = None, *, quiet: bool = False) -> None:
    """Find out whether the hub answers about a model, where none of that name lies here.

    What the hub says, downloading tells; a hub that is out of reach is no harm to what was downloaded before.

    Raises:
        CheckpointError: it does not answer, and nothing of the model was downloaded before.
    """
    if not is_hub_id(name) or local_folder(name).exists():
        return
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if not quiet and not constants.HF_HUB_OFFLINE:
        say(f"Asking the hub for {name} ...")
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json", revision=revision), timeout=PATIENCE)
    except (errors.HTTPError, ConnectionError) as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
            return  # an answer
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder here, nor in the hub's local cache, and the hub cannot be reached: {reason}"
        ) from None
    except (OSError, ValueError):  # an answer, or a name that is none
        return

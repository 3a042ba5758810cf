"""What the model hub's local cache holds; compute nodes have no internet, so nothing is fetched.

    folder = cached_repository("Salesforce/blip-image-captioning-base")
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from blip_art.errors import UserError


def cached_repository(name: str, what: str) -> Path:
    """The folder of a hub repository that was downloaded before.

    Raises:
        UserError: it was not; says the command that fetches it.
    """
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise UserError(f"no {what} '{name}': no such file or folder, and not in the hub cache; "
                        f"on a machine with internet run 'hf download {name}'") from error

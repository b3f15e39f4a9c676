"""Exported folders on the Hugging Face hub, by huggingface_hub: who may write is asked before anything is made."""

from pathlib import Path
from typing import Any

from dagdiff.checks import Refusal, first_line


def check_hub(repo: str) -> None:
    """Refuse a repository that can't be, or a hub that does not know who is writing.

    Raises:
        Refusal: for a name that is none, without a login, or without a network.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except ValueError as error:
        told = f"--push_to_hub {repo!r} is no name of a repository ({first_line(error)})."
        raise Refusal(f"{told} Pass OWNER/NAME.") from None
    if repo.count("/") != 1:
        raise Refusal(f"--push_to_hub {repo!r} names no owner. Pass OWNER/NAME.")
    try:
        HfApi().whoami()
    except Exception as error:  # whatever the network, the hub or its client may raise
        raise Refusal(
            f"--push_to_hub {repo}: the hub does not know who is writing ({first_line(error):.200}). Log in: "
            "hf auth login, or set HF_TOKEN. Nothing was exported."
        ) from None


def push(folder: Path, repo: str, private: bool) -> str:
    """Upload a folder as a repository of models, which is made if there is none; return its address.

    Raises:
        Refusal: if the upload fails; the folder stays, and may be pushed again.
    """
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        made = api.create_repo(repo, repo_type="model", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo, repo_type="model", folder_path=str(folder), commit_message="Export a student with dagdiff"
        )
    except Exception as error:  # as above
        raise Refusal(
            f"--push_to_hub {repo}: the upload failed ({first_line(error):.200}). The export in {folder} is whole; "
            "give the same command again."
        ) from None
    return str(made)

"""Uploads to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi


def repository_name(hub_model_id: str | None, output_dir: str) -> str:
    """The repository that a run uploads to: `hub_model_id`, or else the name of the output folder."""
    return hub_model_id or Path(output_dir).resolve().name


def create_repository(name: str, token: str | None) -> str:
    """Makes a model repository where there is none, and returns its full name.

    Call it before hours of work, so that a wrong token shows at once.
    """
    return HfApi(token=token).create_repo(name, exist_ok=True).repo_id


def push_model(folder: Path, name: str, token: str | None, left_out: Sequence[str]) -> None:
    """Uploads a folder with a model to its repository, without files that match a pattern of `left_out`."""
    HfApi(token=token).upload_folder(
        repo_id=create_repository(name, token),
        folder_path=folder,
        commit_message="Best model of the run",
        ignore_patterns=list(left_out),
    )

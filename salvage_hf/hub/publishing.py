"""Uploads to the Hugging Face Hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi


def repository_name(hub_model_id: str | None, output_dir: str) -> str:
    """The repository that a run uploads to: `hub_model_id`, or else the name of the output folder."""
    return hub_model_id or Path(output_dir).resolve().name


def create_repository(name: str, token: str | None, kind: str = "model", private: bool = False) -> str:
    """Makes a repository of a kind, "model", "dataset" or "space", where there is none, and returns its full name.

    Call it before hours of work, so that a wrong token shows at once.

    Args:
        name: of the repository, "org/name" or "name".
        token: of the upload; the stored one when None.
        kind: what the repository holds. Spaces are made for gradio.
        private: whether a new one is private; one that is there stays as it is. Otherwise the Hub decides, by the
            settings of the organisation.
    """
    made = HfApi(token=token).create_repo(
        name,
        repo_type=kind,
        private=private or None,
        exist_ok=True,
        space_sdk="gradio" if kind == "space" else None,
    )
    return made.repo_id


def push_model(folder: Path, name: str, token: str | None, left_out: Sequence[str] = (), private: bool = False) -> None:
    """Uploads a folder with a model to its repository, without files that match a pattern of `left_out`."""
    HfApi(token=token).upload_folder(
        repo_id=create_repository(name, token, private=private),
        folder_path=folder,
        commit_message="The model, its code and its card",
        ignore_patterns=list(left_out),
    )


def push_dataset(folder: Path, name: str, token: str | None, files: Sequence[str], private: bool = False) -> None:
    """Uploads the files of a folder that match a pattern of `files` to a repository of data sets.

    Files there that match a pattern, and are no longer in the folder, are removed: shards of an earlier run would
    otherwise be read with those of this one.
    """
    HfApi(token=token).upload_folder(
        repo_id=create_repository(name, token, "dataset", private),
        repo_type="dataset",
        folder_path=folder,
        commit_message="Explanations of a data set",
        allow_patterns=list(files),
        delete_patterns=list(files),
    )


def push_space(folder: Path, name: str, token: str | None, private: bool = False) -> None:
    """Uploads the files that lie directly in a folder to a Space."""
    HfApi(token=token).upload_folder(
        repo_id=create_repository(name, token, "space", private),
        repo_type="space",
        folder_path=folder,
        commit_message="The Space",
        ignore_patterns=["*/*"],
    )

"""Publish a folder: one atomic commit, and none where nothing changed."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import ModelInfo

from sdzoo.errors import InputError
from sdzoo.hub.connection import connection
from sdzoo.hub.names import checked_repository, checked_revision

OURS = ("onnx/", "results/")  # folders whose files belong to one publication: those it lacks are removed


@dataclass(frozen=True)
class Published:
    """The state of the repository after a push: its commit, and whether this push made it."""

    repository: str
    commit: str
    changed: bool


def publish(
    folder: Path, repository: str, *, message: str, revision: str | None = None, private: bool = False
) -> Published:
    """Make a repository hold the files of a folder.

    The files are uploaded first; then one commit makes all of them appear, on condition that nobody else committed
    meanwhile. A push that ends before that, however it ends, leaves the repository as it was.

    Args:
        folder: What ``write_folder`` wrote.
        repository: NAMESPACE/NAME; created where it does not exist.
        message: Title of the commit.
        revision: Branch, created where it does not exist; by default the main one.
        private: The repository must be private.

    Raises:
        InputError: A name is not acceptable, or a public repository should be private.
        HubError: The Hub refused or could not be reached.
    """
    checked_repository(repository), checked_revision(revision)
    with connection(repository):
        api = HfApi(library_name="sdzoo")
        head = _head(api, repository, revision, private)
        commit = api.create_commit(
            repository,
            _operations(folder, head),
            commit_message=message,
            revision=revision,
            parent_commit=head.sha,
        )
    return Published(repository, commit.oid, commit.oid != head.sha)


def _head(api: HfApi, repository: str, revision: str | None, private: bool) -> ModelInfo:
    """Return the commit to build on; create repository and branch where they are missing."""
    if not api.repo_exists(repository):
        api.create_repo(repository, private=private)
    elif private and not api.model_info(repository).private:
        raise InputError(f"{repository}: is public; make it private on its page, or leave --private out")
    if revision and not api.revision_exists(repository, revision):
        api.create_branch(repository, branch=revision)
    return api.model_info(repository, revision=revision)


def _operations(folder: Path, head: ModelInfo) -> list[CommitOperationAdd | CommitOperationDelete]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = [sibling.rfilename for sibling in head.siblings or []]
    stale = [name for name in there if name.startswith(OURS) and name not in files]
    return [
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]

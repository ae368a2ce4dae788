"""Publish a folder: one atomic commit, and none where nothing changed."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.hf_api import ModelInfo

from sdzoo.errors import InputError
from sdzoo.hub.connection import HubError, connection
from sdzoo.hub.names import checked_repository, checked_revision

OURS = ("onnx/", "results/")  # folders whose files belong to one publication: those it lacks are removed


NEW = {".gitattributes"}  # files of a repository that was just created


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
    meanwhile. A push that ends before that, however it ends, leaves the files as they were; one that fails also
    deletes the repository or the branch that it created.

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
    api = HfApi(library_name="sdzoo")
    made = _Made()
    try:
        with connection(repository):
            head = _head(api, repository, revision, private, made)
            commit = api.create_commit(
                repository,
                _operations(folder, head),
                commit_message=message,
                revision=revision,
                parent_commit=head.sha,
            )
    except BaseException as error:
        left = _undo(api, repository, revision, made)
        if left and isinstance(error, HubError):
            raise HubError(f"{error}; {left} may be left there") from error
        raise
    return Published(repository, commit.oid, commit.oid != head.sha)


@dataclass
class _Made:
    """What a push created: the repository; and the branch, at this commit."""

    repository: bool = False
    branch_at: str | None = None


def _head(api: HfApi, repository: str, revision: str | None, private: bool, made: _Made) -> ModelInfo:
    """Return the commit to build on; create repository and branch where they are missing, and note them."""
    if not api.repo_exists(repository):
        api.create_repo(repository, private=private)
        made.repository = True
    elif private and not api.model_info(repository).private:
        raise InputError(f"{repository}: is public; make it private on its page, or leave --private out")
    if revision and not api.revision_exists(repository, revision):
        start = api.model_info(repository).sha
        api.create_branch(repository, branch=revision, revision=start)
        made.branch_at = start
    return api.model_info(repository, revision=revision)


def _undo(api: HfApi, repository: str, revision: str | None, made: _Made) -> str:
    """Delete what a push created, unless there is a commit on it by now; return what may be left of it, if anything.

    A commit may be there although the push failed: somebody else's, or its own, whose answer was lost.
    """
    try:
        with connection(repository):
            if revision and made.branch_at and api.model_info(repository, revision=revision).sha == made.branch_at:
                api.delete_branch(repository, branch=revision)
            if made.repository and _is_new(api, repository, revision):
                api.delete_repo(repository)
    except HubError:
        return f"an empty repository {repository}" if made.repository else f"a new branch {revision}"
    return ""


def _is_new(api: HfApi, repository: str, revision: str | None) -> bool:
    """Whether a repository that was just created is still empty, and so is the branch, if there is one."""
    branches = [revision] if revision and api.revision_exists(repository, revision) else []
    heads = [api.model_info(repository, revision=branch) for branch in (None, *branches)]
    return all(sibling.rfilename in NEW for head in heads for sibling in head.siblings or [])


def _operations(folder: Path, head: ModelInfo) -> list[CommitOperationAdd | CommitOperationDelete]:
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = [sibling.rfilename for sibling in head.siblings or []]
    stale = [name for name in there if name.startswith(OURS) and name not in files]
    return [
        *(CommitOperationAdd(name, path) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]

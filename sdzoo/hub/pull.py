"""Fetch weights or ONNX files from a repository, pinned to one commit, and use none that is not as published."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import timm
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from huggingface_hub import get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError
from onnx import load as load_onnx
from safetensors import SafetensorError
from safetensors.torch import load_file

from sdzoo.checkpoints import check_name
from sdzoo.errors import InputError
from sdzoo.files import replacing
from sdzoo.hub.connection import AGAIN, HubError, connection
from sdzoo.hub.folder import CARD, CONFIG, WEIGHTS
from sdzoo.hub.names import checked_repository, checked_revision, inside, split_revision
from sdzoo.hub.sums import SUMS, mismatches
from sdzoo.metadata import Metadata
from sdzoo.models.digest import noted_digest, take_digest
from sdzoo.weights import NAMESPACE

ALWAYS = (CONFIG, CARD, SUMS)
WANTED = {False: WEIGHTS, True: "onnx/*.onnx"}  # by whether the ONNX files are wanted


@dataclass(frozen=True)
class Pulled:
    """What was fetched.

    Attributes:
        folder: Folder with the files; timm loads it as ``local-dir:FOLDER``.
        commit: Commit of the repository they belong to.
        files: Their names in the repository.
        from_cache: The Hub could not be reached, the cache had them.
    """

    folder: Path
    commit: str
    files: tuple[str, ...]
    from_cache: bool


def repository_of(name: str) -> str:
    """Return the repository of ``NAMESPACE/NAME`` or of a tag of the zoo.

    Raises:
        InputError: It is neither, or the namespace of the tags is not known.
    """
    if name.startswith("sd_") and "/" not in name:
        check_name(name)
    if name not in timm.list_models("sd_resnet*") + timm.list_models("sd_resnet*", include_tags=True):
        return checked_repository(name)
    tag = timm.models.get_pretrained_cfg(name).tag  # of a name without one, the default
    tagged = f"{name.partition('.')[0]}.{tag}" if tag else name
    if not NAMESPACE:
        raise InputError(f"{name}: in which namespace? Set SDZOO_HUB_NAMESPACE, or write NAMESPACE/{tagged}")
    return checked_repository(f"{NAMESPACE}/{tagged}")


def pull(
    name: str,
    *,
    revision: str | None = None,
    onnx: bool = False,
    output: Path | None = None,
    force: bool = False,
) -> Pulled:
    """Fetch the weights of a repository, or its ONNX files, into huggingface_hub's cache, and check them.

    Args:
        name: ``NAMESPACE/NAME``, also with ``@REVISION``, or a tag of the zoo.
        revision: Branch, tag or commit; by default the newest of the main branch.
        onnx: Fetch the ONNX files in place of the weights.
        output: Copy the files into this folder too.
        force: Fetch again what the cache has.

    Raises:
        InputError: A name is not acceptable, or leads out of the target.
        HubError: The Hub refused or could not be reached, or a file is not as published; the cache does not keep it.
    """
    base, revision = split_revision(name, revision)
    repository = repository_of(base)
    with connection(repository) as failures:
        folder = Path(
            snapshot_download(
                repository,
                revision=checked_revision(revision),
                allow_patterns=[*ALWAYS, WANTED[onnx]],
                force_download=force,
                library_name="sdzoo",
            )
        )
    files = _fetched(repository, folder, onnx)
    _check_sums(repository, folder, files)
    _check_digest(repository, folder, files)
    if output is not None:
        _copy(folder, files, output)
    return Pulled(output or folder, folder.name, files, bool(failures))


def _fetched(repository: str, folder: Path, onnx: bool) -> tuple[str, ...]:
    """Return the names of the files that were asked for and are there."""
    for needed in (CONFIG, SUMS, WANTED[onnx]):
        if not any(folder.glob(needed)):
            raise HubError(f"{repository}: has no {needed}, so it was not published by `sdzoo push`")
    found = [path for pattern in (*ALWAYS, WANTED[onnx]) for path in sorted(folder.glob(pattern))]
    return tuple(path.relative_to(folder).as_posix() for path in found)


def _check_sums(repository: str, folder: Path, files: tuple[str, ...]) -> None:
    damaged = mismatches(folder, files) or _damaged_sums(repository, folder)
    if damaged:
        for name in (*damaged, SUMS):
            _forget(folder / name)
        raise HubError(f"{repository}: damaged on the way or in the cache: {', '.join(damaged)}; removed, {AGAIN}")


def _damaged_sums(repository: str, folder: Path) -> list[str]:
    """Compare the sums themselves with the number that git gives the file, where the cache knows it."""
    try:
        tree = get_cached_repo_tree(repository, revision=folder.name)
    except CachedRepoTreeNotFoundError:
        return []
    data = (folder / SUMS).read_bytes()
    number = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return [file.path for file in tree if file.path == SUMS and file.blob_id != number]


def _check_digest(repository: str, folder: Path, files: tuple[str, ...]) -> None:
    """Compare the digest that the configuration names with that of the weights, and of every graph."""
    remedy = "it must be published again"
    try:
        noted = noted_digest(json.loads((folder / CONFIG).read_bytes())["pretrained_cfg"])
        if noted is None:
            raise RuntimeError(f"{CONFIG} names no digest: {remedy}")
        if WEIGHTS in files:
            take_digest(load_file(folder / WEIGHTS), remedy, noted)
        for name in files:
            if name.endswith(".onnx") and (found := _graph_digest(folder / name)) != noted:
                raise RuntimeError(f"{name} holds weights with digest {found}, published was {noted}: {remedy}")
    except (RuntimeError, ValueError, KeyError, SafetensorError, DecodeError) as error:
        raise HubError(f"{repository}: not as `sdzoo push` publishes: {error}") from error


def _graph_digest(path: Path) -> str:
    graph = load_onnx(path, load_external_data=False)
    return Metadata.decode({prop.key: prop.value for prop in graph.metadata_props}).digest


def _forget(path: Path) -> None:
    """Remove a file of the cache with the blob it links to, so that the next pull fetches it again."""
    while path.is_symlink():
        link, path = path, path.parent / path.readlink()
        link.unlink()
    path.unlink(missing_ok=True)


def _copy(folder: Path, files: tuple[str, ...], output: Path) -> None:
    """Copy the files; each appears complete or not at all, and no name is followed out of the folder."""
    targets = {name: inside(output, name) for name in files}
    for name, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            shutil.copyfile(folder / name, temporary)

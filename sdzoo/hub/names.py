"""Names that come from outside: repositories, revisions and files, refused before they reach a path or an URL."""

import re
from pathlib import Path, PurePosixPath

from sdzoo.errors import InputError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,254}", re.ASCII)


def split_revision(name: str, revision: str | None) -> tuple[str, str | None]:
    """Split ``NAME@REVISION``, timm's way to write both in one, unless the revision is given by itself."""
    base, at, inline = name.partition("@")
    if at and revision and inline != revision:
        raise InputError(f"{name} names revision {inline!r}, --revision says {revision!r}; give one of them")
    return base, inline if at else revision


def checked_repository(name: str) -> str:
    """Return ``NAMESPACE/NAME`` unchanged, or raise InputError."""
    if not REPOSITORY.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".", "-")):
        raise InputError(
            f"{name!r} is no repository: it must be NAMESPACE/NAME, of letters, digits, '-', '_' and '.', "
            "such as me/sd_resnet20.fashion_mnist"
        )
    return name


def checked_revision(revision: str | None) -> str | None:
    """Return a branch, tag or commit unchanged, or raise InputError."""
    if revision is not None and (not REVISION.fullmatch(revision) or ".." in revision or "//" in revision):
        raise InputError(f"{revision!r} is no revision: it must be the name of a branch or tag, or a commit")
    return revision


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of a repository below ``folder``.

    Raises:
        InputError: The name, or a link on its way, leads out of the folder.
    """
    parts = PurePosixPath(name).parts
    path = folder.joinpath(*parts)
    if ".." in parts or "\\" in name or not path.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{name!r} leads out of {folder}; nothing was written")
    return path

"""Which files are served under which names and versions: ``FILE`` or ``NAME=FILE`` or ``NAME:VERSION=FILE``."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from sdzoo.errors import InputError
from sdzoo.metadata import PRODUCER, Metadata

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
GIVEN = re.compile(rf"(?P<name>{NAME})(:(?P<version>[1-9][0-9]{{0,8}}))?=(?P<file>.+)")


@dataclass(frozen=True)
class Source:
    """A file and what it is served as; ``ours`` where sdzoo wrote it, and so pictures can be prepared for it."""

    name: str
    version: str
    path: Path
    ours: bool


def read_sources(arguments: Sequence[str]) -> tuple[Source, ...]:
    """Read what the command line or a YAML file says.

    A file alone is served under the name in its metadata, or else its own without the suffix, as version 1.

    Raises:
        InputError: A file is missing or not ONNX, a name is malformed, or two files have the same name and version.
    """
    sources = tuple(_source(argument) for argument in arguments)
    (key, count), *_ = Counter((source.name, source.version) for source in sources).most_common(1)
    if count > 1:
        files = " and ".join(str(source.path) for source in sources if (source.name, source.version) == key)
        raise InputError(f"{files} are all {key[0]} version {key[1]}: tell them apart by NAME:VERSION=FILE")
    return sources


def _source(argument: str) -> Source:
    given = GIVEN.fullmatch(argument)
    if "=" in argument and given is None and not Path(argument).is_file():
        raise InputError(f"{argument!r} must be FILE, NAME=FILE or NAME:VERSION=FILE, the name of letters, digits, _.-")
    path = Path(given["file"] if given else argument).absolute()
    metadata = _metadata(path)
    name = given["name"] if given else (metadata.name if metadata else path.stem)
    if not re.fullmatch(NAME, name):
        raise InputError(f"{path}: cannot be served as {name!r}; give a name by NAME=FILE")
    return Source(name, (given and given["version"]) or "1", path, metadata is not None)


def _metadata(path: Path) -> Metadata | None:
    """Return what the file says of itself, None where sdzoo did not write it."""
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own
        raise InputError(f"{path}: not an ONNX file") from error
    if not model.graph.node:
        raise InputError(f"{path}: not an ONNX file, or an empty one")
    if model.producer_name != PRODUCER:
        return None
    try:
        return Metadata.decode({prop.key: prop.value for prop in model.metadata_props})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error

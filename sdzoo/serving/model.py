"""One file, loaded: its session, what its clients may send, and its queue."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdzoo.devices import run, session
from sdzoo.errors import InputError
from sdzoo.runtime import Classifier
from sdzoo.serving.batching import Batcher
from sdzoo.serving.settings import Settings
from sdzoo.serving.signature import DYNAMIC, ProtocolError, Signature, shown
from sdzoo.serving.sources import Source


class Model:
    """A served model.

    Args:
        source: The file, and the name and version to serve it as.
        versions: All versions on offer under that name.
        settings: Device, threads and limits.
        executor: Where it runs.

    Raises:
        InputError: The file cannot be run, or takes or gives something else than tensors of numbers.
    """

    def __init__(self, source: Source, versions: Sequence[str], settings: Settings, executor: Executor) -> None:
        self.source = source
        options = {"device": settings.provider, "threads": settings.cpus}
        self.classifier = Classifier(source.path, **options) if source.ours else None  # type: ignore[arg-type]
        self._session = self.classifier.session if self.classifier else session(source.path, **options)  # type: ignore[arg-type]
        self.signature = _signature(self._session, source, versions)
        self._outputs = [tensor.name for tensor in self.signature.outputs]
        self._known_good: Mapping[str, NDArray[Any]] = {}  # inputs of a run that worked
        self._failed = False
        self._warm_up(settings.max_batch)
        self.batcher = Batcher(
            self._run,
            executor,
            max_batch=settings.max_batch if _batches(self.signature) else 1,
            max_queue=settings.max_queue,
            max_wait=settings.max_wait_ms / 1e3,
        )

    def pictures(self) -> Classifier:
        """Return what prepares pictures for it.

        Raises:
            ProtocolError: The file is not one of sdzoo's and does not say how.
        """
        if self.classifier is None:
            raise ProtocolError(f"{self.source.name} does not say how pictures are prepared for it: use infer")
        return self.classifier

    def check_health(self) -> None:
        """Raise what onnxruntime raises where it fails at what it could do before, as after a lost GPU."""
        if self._failed and self._known_good:
            self._run(self._known_good)

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        try:
            outputs = dict(zip(self._outputs, run(self._session, self._outputs, inputs), strict=True))
        except Exception:
            self._failed = True
            raise
        self._failed, self._known_good = False, inputs
        return outputs

    def _warm_up(self, max_batch: int) -> None:
        """Run once with one picture and once with a full batch: engines and buffers are built before clients come."""
        if self.classifier is None:
            return
        (images,) = self.signature.inputs
        for batch in (self.classifier.batch,) if self.classifier.batch else (1, max_batch):
            self._run({images.name: np.zeros((batch, *images.shape[1:]), images.dtype)})


def _signature(session: Any, source: Source, versions: Sequence[str]) -> Signature:
    try:
        return Signature.of(session, source.name, versions)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from error


def _batches(signature: Signature) -> bool:
    """Whether rows of several requests can share a run."""
    return all(tensor.shape[:1] == (DYNAMIC,) for tensor in (*signature.inputs, *signature.outputs))


class Models:
    """All models of a replica, by name and version.

    Raises:
        InputError: See ``Model``.
    """

    def __init__(self, sources: Sequence[Source], settings: Settings, executor: Executor) -> None:
        self._models: dict[str, dict[str, Model]] = {}
        for name in dict.fromkeys(source.name for source in sources):
            files = sorted((source for source in sources if source.name == name), key=lambda file: int(file.version))
            versions = [file.version for file in files]
            self._models[name] = {file.version: Model(file, versions, settings, executor) for file in files}

    def find(self, name: str, version: str | None) -> Model:
        """Return a model, the newest version where none is given.

        Raises:
            ProtocolError: There is none of that name or version (status 404).
        """
        versions = self._models.get(name)
        if versions is None:
            raise ProtocolError(f"unknown model {shown(name)}, must be one of {', '.join(self._models)}", 404)
        version = version or next(reversed(versions))
        if version not in versions:
            raise ProtocolError(
                f"unknown version {shown(version)} of {name}, must be one of {', '.join(versions)}", 404
            )
        return versions[version]

    def listed(self) -> list[dict[str, str]]:
        """Return names and versions of all."""
        return [{"name": name, "version": version} for name, versions in self._models.items() for version in versions]

    def check_health(self) -> None:
        """Raise an error where one is broken."""
        for versions in self._models.values():
            for model in versions.values():
                model.check_health()

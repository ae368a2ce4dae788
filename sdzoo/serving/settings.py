"""What can be set of a server: the fields are the options of ``sdzoo serve`` and the ``args`` of a Serve YAML file."""

import os
import secrets
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from sdzoo.errors import InputError
from sdzoo.serving.signature import Limits

TOKEN = "SDZOO_SERVE_TOKEN"


def _listed(models: Any) -> Any:
    """Take ``a.onnx,b.onnx`` too, as ``serve run`` passes it on."""
    return models.split(",") if isinstance(models, str) else models


class Settings(BaseModel):
    """Models, resources and limits of a server; every limit is that of one replica."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
    device: str | None = None
    replicas: int = Field(1, ge=1, le=1000)
    cpus: int = Field(1, ge=1, le=1024)
    gpus: float = Field(0, ge=0, le=64)
    max_batch: int = Field(32, ge=1, le=4096)
    max_wait_ms: float = Field(0, ge=0, le=10_000)
    max_queue: int = Field(256, ge=1, le=100_000)
    max_body_mb: float = Field(16, gt=0, le=2048)
    timeout_s: float = Field(30, gt=0, le=3600)
    token_file: Path | None = None
    log_level: str = Field("INFO", pattern="^(INFO|WARNING|ERROR)$")
    log_dir: str | None = None

    @classmethod
    def of(cls, **values: Any) -> "Settings":
        """Return settings.

        Raises:
            InputError: A value is out of its range; the message names it.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise InputError(f"{name} is {first['input']!r}: {first['msg']}") from error

    @property
    def provider(self) -> str:
        """The device to run on, in the words of ``sdzoo.runtime.session``: CUDA where GPUs are reserved."""
        return self.device or ("cuda" if self.gpus else "cpu")

    @property
    def limits(self) -> Limits:
        """How much one request may ask for."""
        return Limits(max_batch=self.max_batch, max_bytes=int(self.max_body_mb * 2**20))

    def token(self) -> "Token":
        """Return the token that clients must send, from the file or else the environment.

        Raises:
            InputError: The file cannot be read, or it is empty.
        """
        if self.token_file is None:
            return Token(os.environ.get(TOKEN, "").strip())
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{self.token_file}: the token cannot be read: {error}") from error
        if not token:
            raise InputError(f"{self.token_file}: holds no token")
        return Token(token)


class Token:
    """A bearer token; an empty one lets everybody in."""

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode() if token else b""

    def admits(self, authorization: bytes) -> bool:
        """Whether the value of a request's Authorization header is right."""
        return not self._expected or secrets.compare_digest(authorization, self._expected)

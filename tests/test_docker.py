"""The container files: what they must have, what they copy, and the health check, run for real."""

import json
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from dockerfile_parse import DockerfileParser

from sdzoo.cli import app

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "docker").glob("*.Dockerfile"))

INSTRUCTIONS = ("ARG", "FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT")

Instruction = dict[str, Any]


def instructions(file: Path, name: str = "") -> list[Instruction]:
    """All instructions of a name, or all, in order."""
    with file.open("rb") as opened:
        structure = DockerfileParser(fileobj=opened).structure
    return [
        each for each in structure if each["instruction"] == name or (not name and each["instruction"] != "COMMENT")
    ]


def last_stage(file: Path) -> dict[str, str]:
    """Instructions of the stage that is kept; of several of a name the last."""
    everything = instructions(file)
    (*_, start) = (place for place, each in enumerate(everything) if each["instruction"] == "FROM")
    return {each["instruction"]: each["value"] for each in everything[start:]}


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [file.name for file in FILES] == ["cpu.Dockerfile", "gpu.Dockerfile"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_kept_is_a_plain_user_on_a_pinned_base(file: Path) -> None:
    (default,) = (each["value"] for each in instructions(file, "ARG"))
    name, _, tag = default.partition("=")
    assert name == "PYTHON" and tag.count(".") == 2 and tag[0].isdigit()
    bases = [each["value"] for each in instructions(file, "FROM")]
    assert bases == ["python:${PYTHON} AS build", "python:${PYTHON}"]
    kept = last_stage(file)
    assert kept["USER"].isdecimal() and int(kept["USER"]) >= 1000  # by number: Kubernetes can tell it is not root
    assert f"--uid {kept['USER']}" in kept["RUN"] and "pip" not in kept["RUN"]
    assert "install -y --no-install-recommends wget" in kept["RUN"]  # KubeRay's probes call it
    assert kept["EXPOSE"] == "8000"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_all_that_is_copied_exists_and_is_not_ignored(file: Path) -> None:
    sources = {
        source
        for each in instructions(file, "COPY")
        if not each["value"].startswith("--from")
        for source in each["value"].split()[:-1]
    }
    assert sources == {"pyproject.toml", "README.md", "LICENSE", "sdzoo"}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == let_in and all((ROOT / source).exists() for source in sources)
    project = (ROOT / "pyproject.toml").read_text()
    assert 'readme = "README.md"' in project and 'license-files = ["LICENSE"]' in project  # the build reads them


@pytest.mark.parametrize(("file", "runtime"), list(zip(FILES, ("cpu", "gpu"), strict=True)))
def test_its_extras_are_the_projects(file: Path, runtime: str) -> None:
    (install,) = (each["value"] for each in instructions(file, "RUN") if ".[" in each["value"])
    extras = install.partition(".[")[2].partition("]")[0].split(",")
    assert extras == [runtime, "serve"]
    assert all(f'\n{extra} = ["' in (ROOT / "pyproject.toml").read_text() for extra in extras)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_starts_the_server_with_options_that_exist(file: Path) -> None:
    name, command, *options = json.loads(last_stage(file)["ENTRYPOINT"])
    assert (name, command, options) == ("sdzoo", "serve", ["--host", "0.0.0.0", "--port", "8000"])
    group: Any = typer.main.get_command(app())
    known = {option for parameter in group.commands["serve"].params for option in parameter.opts}
    assert set(options[::2]) <= known


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status if self.path == "/v2/health/ready" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_its_health_check_tells_a_ready_server_from_others(file: Path, server: HTTPServer) -> None:
    check = last_stage(file)["HEALTHCHECK"]
    python, *arguments = json.loads(check[check.index("[") :])
    assert python == "python"
    command = [argument.replace(":8000/", f":{server.server_port}/") for argument in arguments]
    assert command != arguments
    for status, healthy in [(200, True), (503, False)]:
        server.status = status
        run = subprocess.run([sys.executable, *command], capture_output=True)
        assert (run.returncode == 0) == healthy
    server.shutdown()
    server.server_close()
    assert subprocess.run([sys.executable, *command], capture_output=True).returncode != 0

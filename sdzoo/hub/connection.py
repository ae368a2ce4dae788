"""A connection to the Hub that gives up soon and says in one line why.

huggingface_hub repeats a failing request five times, 23 s in all, waits as long as a rate limit says, and has
requests that wait for ever. Here every request has a time limit and three attempts; what huggingface_hub reports
between them (``Retrying in 1s``) stays visible.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
from huggingface_hub import constants, errors, set_client_factory
from huggingface_hub.utils import _http

from sdzoo.errors import InputError

ATTEMPTS = 3
ANSWER_LIMIT = 60.0  # seconds for the Hub to answer an upload; a download has HF_HUB_DOWNLOAD_TIMEOUT
RETRIED = {408, 429, 500, 502, 503, 504}

AGAIN = "run the command again"
LATER = f"{AGAIN} later"
LOG_IN = "log in with `hf auth login`"

# What went wrong, the most telling first: where an error has several causes, the first that matches is said.
REASONS: dict[type[BaseException], str] = {
    errors.OfflineModeIsEnabled: "not in the cache, and HF_HUB_OFFLINE is set: unset it and " + AGAIN,
    errors.RevisionNotFoundError: "there is no such revision: leave it out for the newest",
    errors.GatedRepoError: "its owner grants access one by one: ask for it on the repository's page",
    errors.RepositoryNotFoundError: f"no such repository at {{endpoint}}, or a private one: check it, or {LOG_IN}",
    errors.RemoteEntryNotFoundError: "a file is missing there: was it published by `sdzoo push`?",
    httpx2.TimeoutException: f"{{endpoint}} did not answer in time: {LATER}",
    httpx2.ConnectError: f"cannot connect to {{endpoint}}: check the network and HF_ENDPOINT, then {AGAIN}",
    json.JSONDecodeError: f"the answer of {{endpoint}} came damaged: {AGAIN}",
    httpx2.TransportError: f"the connection to {{endpoint}} broke: {AGAIN}",
}
STATUS = {
    401: f"the Hub does not accept the token: {LOG_IN}",
    403: f"the token may not do this: {LOG_IN} as somebody who may",
    409: f"somebody else is changing it: {AGAIN}",
    412: f"somebody else changed it meanwhile: {AGAIN}",
    429: f"too many requests: wait {{wait}} and {AGAIN}",
}


class HubError(InputError):
    """The Hub did not do what was asked of it; the message says why and what to do."""


class _GaveUpError(RuntimeError):
    """The last attempt failed; huggingface_hub, which does not know this error, lets it through."""


class Failures(Counter[str]):
    """Attempts that failed since the last success, by request, and how long the Hub asked to wait."""

    wait: int | None = None


@contextmanager
def connection(repository: str) -> Iterator[Failures]:
    """Limit huggingface_hub's patience inside the block, and turn what fails there into one line.

    Yields:
        The failures; a block that ends well despite some was answered from the cache.

    Raises:
        HubError: The Hub refused or could not be reached.
    """
    failures = Failures()
    factory = _http._GLOBAL_CLIENT_FACTORY  # may be the user's own, with a proxy
    set_client_factory(lambda: _limited(factory(), failures))
    try:
        yield failures
    except InputError:
        raise
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise HubError(f"{repository}: {_explain(error, failures)}") from error
    finally:
        set_client_factory(factory)


def _limited(client: httpx2.Client, failures: Failures) -> httpx2.Client:
    """Give every request of a client a time limit, and every address ``ATTEMPTS`` attempts."""
    send: Callable[..., httpx2.Response] = client.send

    def limited(request: httpx2.Request, **options: Any) -> httpx2.Response:
        limit = constants.HF_HUB_DOWNLOAD_TIMEOUT if request.method in ("GET", "HEAD") else ANSWER_LIMIT
        request.extensions["timeout"] = httpx2.Timeout(limit).as_dict()
        address = f"{request.method} {request.url.copy_with(query=None)}"
        try:
            response = send(request, **options)
        except httpx2.TransportError as error:
            _count(failures, address, error)
            raise
        if response.status_code in RETRIED:
            _take_wait(response, failures)
            _count(failures, address, httpx2.HTTPStatusError("", request=request, response=response))
        else:
            failures.pop(address, None)
        return response

    client.send = limited  # type: ignore[method-assign]
    return client


def _count(failures: Failures, address: str, error: httpx2.HTTPError) -> None:
    failures[address] += 1
    if failures[address] >= ATTEMPTS:
        raise _GaveUpError(f"{_explain(error, failures)} ({ATTEMPTS} attempts)") from error


def _take_wait(response: httpx2.Response, failures: Failures) -> None:
    """Note how long the Hub asks to wait, and hide it from huggingface_hub, which would sleep that long."""
    ratelimit = _http.parse_ratelimit_headers(response.headers)
    failures.wait = ratelimit.reset_in_seconds if ratelimit else _http._parse_retry_after(response.headers)
    for header in ("retry-after", "ratelimit", "ratelimit-policy"):
        response.headers.pop(header, None)


def _explain(error: BaseException, failures: Failures) -> str:
    chain = list(_causes(error))
    for cause in chain:
        if isinstance(cause, _GaveUpError):
            return str(cause)
    for kind, reason in REASONS.items():
        if any(isinstance(cause, kind) for cause in chain):
            return reason.format(endpoint=constants.ENDPOINT)
    for cause in chain:
        if isinstance(cause, (httpx2.HTTPStatusError, errors.HfHubHTTPError)):
            return _explain_status(cause, failures)
    if "Consistency check failed" in str(error):
        return f"the download came short, nothing of it was kept: {AGAIN}"
    return " ".join(str(error).split())


def _explain_status(error: httpx2.HTTPStatusError | errors.HfHubHTTPError, failures: Failures) -> str:
    status = error.response.status_code
    if status in STATUS:
        wait = "a few minutes" if failures.wait is None else f"{failures.wait} s"
        return STATUS[status].format(wait=wait)
    if status >= 500:
        return f"the Hub failed with status {status}: {LATER}"
    said = getattr(error, "server_message", None) or "no reason given"
    return f"the Hub refused with status {status}: {' '.join(said.split())}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

"""Requests that wait together run together, and each gets its own rows back, whatever happens to the others."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from sdzoo.serving.batching import Batcher, OverloadedError
from sdzoo.serving.signature import ProtocolError


class Model:
    """Negates; waits for its gate first; fails where a row is 13. Remembers the rows of its runs."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, inputs: Any) -> dict[str, Any]:
        self.gate.wait(20)
        self.rows.append(len(inputs["x"]))
        if (inputs["x"] == 13).any():
            raise ValueError("thirteen")
        return {"y": -inputs["x"]}


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model, executor: Executor) -> Callable[..., Batcher]:
    return lambda **options: Batcher(model, executor, **{"max_batch": 4, "max_queue": 100, **options})


def request(*values: float) -> dict[str, Any]:
    return {"x": np.array(values)}


def run(steps: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(steps, 30))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_requests_of_one_turn_run_together_up_to_the_limit(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        answers = await asyncio.gather(*(ask(request(value, value + 0.5)) for value in range(5)))
        for value, answer in enumerate(answers):
            np.testing.assert_array_equal(answer.outputs["y"], [-value, -value - 0.5])
        assert model.rows == [4, 4, 2]
        assert [answer.batch for answer in answers] == [4, 4, 4, 4, 2]

    run(steps())


def test_what_arrives_during_a_run_forms_the_next(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        model.gate.clear()
        first = asyncio.create_task(ask(request(1)))
        await turns()
        later = [asyncio.create_task(ask(request(value))) for value in (2, 3)]
        await turns()
        assert ask.waiting == 2
        model.gate.set()
        answers = await asyncio.gather(first, *later)
        assert [answer.outputs["y"].tolist() for answer in answers] == [[-1], [-2], [-3]]
        assert model.rows == [1, 2] and ask.waiting == 0

    run(steps())


def test_the_next_run_does_not_wait_for_the_event_loop(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        model.gate.clear()
        tasks = [asyncio.create_task(ask(request(1)))]
        await turns()
        tasks.append(asyncio.create_task(ask(request(2))))
        await turns()
        model.gate.set()
        deadline = time.monotonic() + 20
        while len(model.rows) < 2:  # the loop does nothing else meanwhile
            assert time.monotonic() < deadline
        await asyncio.gather(*tasks)

    run(steps())


def test_a_model_with_a_queue_lets_another_run_in_between(model: Model, executor: Executor) -> None:
    runs: list[str] = []

    def named(name: str) -> Batcher:
        return Batcher(lambda inputs: runs.append(name) or model(inputs), executor, max_batch=1, max_queue=9)

    async def steps() -> None:
        busy, other = named("busy"), named("other")
        model.gate.clear()
        tasks = [asyncio.create_task(busy(request(value))) for value in range(4)]
        await turns()
        tasks.append(asyncio.create_task(other(request(9))))
        await turns()
        model.gate.set()
        await asyncio.gather(*tasks)
        assert runs == ["busy", "other", "busy", "busy", "busy"]

    run(steps())


def test_a_request_that_fails_takes_no_other_with_it(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        good, bad, fine = await asyncio.gather(
            ask(request(1)), ask(request(13)), ask(request(2)), return_exceptions=True
        )
        assert good.outputs["y"] == [-1] and fine.outputs["y"] == [-2]
        assert isinstance(bad, ValueError)
        assert (await ask(request(5))).outputs["y"] == [-5]

    run(steps())


def test_a_client_that_has_gone_is_not_computed(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        model.gate.clear()
        running, gone, staying = (asyncio.create_task(ask(request(value))) for value in (1, 2, 3))
        await turns(1)  # all three wait
        gone.cancel()
        model.gate.set()
        answers = await asyncio.gather(running, gone, staying, return_exceptions=True)
        assert isinstance(answers[1], asyncio.CancelledError)
        assert answers[0].outputs["y"] == [-1] and answers[2].outputs["y"] == [-3]
        assert sum(model.rows) == 2 and ask.waiting == 0

    run(steps())


def test_a_full_queue_refuses(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher(max_queue=3)
        model.gate.clear()
        running = asyncio.create_task(ask(request(0)))
        await turns()
        waiting = [asyncio.create_task(ask(request(value))) for value in (1, 2, 3)]
        await turns()
        with pytest.raises(OverloadedError, match="3 images wait already, at most 3") as refused:
            await ask(request(4))
        assert refused.value.status == 503
        model.gate.set()
        await asyncio.gather(running, *waiting)
        assert (await ask(request(5))).outputs["y"] == [-5]

    run(steps())


def test_inputs_of_another_form_run_apart(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher()
        flat, wide = {"x": np.ones(2)}, {"x": np.full((2, 3), 2.0)}
        answers = await asyncio.gather(ask(flat), ask(wide), ask(flat))
        assert [answer.outputs["y"].shape for answer in answers] == [(2,), (2, 3), (2,)]
        assert model.rows == [2, 2, 2]

    run(steps())


def test_inputs_of_unequal_rows_are_refused(batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        with pytest.raises(ProtocolError, match=r"inputs x, z have \[1, 2\] rows"):
            await batcher()({"x": np.ones(2), "z": np.ones(1)})

    run(steps())


def test_a_fixed_batch_runs_alone(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher(max_batch=1)
        await asyncio.gather(*(ask(request(1, 2, 3)) for _ in range(3)))
        assert model.rows == [3, 3, 3]

    run(steps())


def test_waiting_for_more_ends_when_the_batch_is_full(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher(max_wait=20.0)  # longer than the test may take
        tasks = []
        for value in range(4):
            tasks.append(asyncio.create_task(ask(request(value))))
            await turns()
        await asyncio.gather(*tasks)
        assert model.rows == [4]

    run(steps())


def test_waiting_for_more_ends_when_the_time_is_over(model: Model, batcher: Callable[..., Batcher]) -> None:
    async def steps() -> None:
        ask = batcher(max_wait=0.05)
        first = asyncio.create_task(ask(request(1)))
        await turns()
        assert ask.waiting == 1
        assert (await ask(request(2))).batch == 2
        assert (await first).batch == 2

    run(steps())


def test_many_requests_from_many_sides_each_get_their_own_rows(model: Model, batcher: Callable[..., Batcher]) -> None:
    generator = np.random.default_rng(0)

    async def steps() -> None:
        ask = batcher(max_queue=10_000)

        async def client() -> None:
            for _ in range(20):
                values = generator.normal(size=generator.integers(1, 5))
                np.testing.assert_array_equal((await ask({"x": values})).outputs["y"], -values)

        await asyncio.gather(*(client() for _ in range(32)))
        assert max(model.rows) <= 4 and np.mean(model.rows) > 2

    run(steps())

"""One layer in several threads; switches in threads, tasks and decorators."""

import asyncio
import dataclasses
import itertools
import sys
import threading
import time

import numpy as np
import pytest
from cases import HOST_ENGINES, assert_case, backward, build, forward, make_lstm, run_face
from face import (
    NO_CALL,
    RICH,
    assert_bit_equal,
    assert_sum_of_gradients,
    flat_equal,
    grads,
    normal,
    raised,
)

from cupy_lstm import LSTM, RNN, BiRNN, LSTMCell, engine, network, no_grad
from cupy_lstm.modes import forced_engine, is_recording


@pytest.fixture
def switching():
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_threads(*functions):
    """Run each function in a thread of its own; return their results, raise their errors."""
    found, errors = [None] * len(functions), []
    start = threading.Barrier(len(functions))

    def run(index):
        try:
            start.wait()
            found[index] = functions[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def test_inference_in_threads(switching):
    lstm = LSTM(3, 8, 2, "bidirect", seed=0)
    inputs = [normal(2, 9, 3, seed=k) for k in range(4)]
    with no_grad():
        expected = [lstm(x) for x in inputs]

    def infer(x):
        with no_grad():
            return [lstm(x) for _ in range(20)]

    found = in_threads(*(lambda x=x: infer(x) for x in inputs))
    for truth, many in zip(expected, found, strict=True):
        assert all(flat_equal(one, truth) for one in many)


def test_training_in_threads(switching):
    """Tapes do not mix, and gradients add up to the sum of what each thread has sent."""
    cases = [dataclasses.replace(RICH, id=f"thread-{k}", seed=k) for k in range(4)]
    weights = build(cases[0], "float32").weights
    arrays = [dataclasses.replace(build(case, "float32"), weights=weights) for case in cases]
    serial = [run_face(case, own, "float32") for case, own in zip(cases, arrays, strict=True)]
    lstm, repeats = make_lstm(RICH, weights, "float32"), 10

    def train(k):
        for _ in range(repeats):
            result = forward(lstm, cases[k], arrays[k])
            result = backward(lstm, cases[k], arrays[k], result)
            result.grads, truth = {}, dataclasses.replace(serial[k], grads={})
            assert_bit_equal(result, truth)

    in_threads(*(lambda k=k: train(k) for k in range(4)))
    assert_sum_of_gradients(lstm, [result.grads for result in serial] * repeats)


def around_a_cell(**options):
    """Return a cell and three layers that run it."""
    cell = LSTMCell(3, 4, seed=0, **options)
    return cell, [RNN(cell), RNN(cell, is_reverse=True), BiRNN(cell, cell)]


def test_layers_around_one_cell_in_threads(switching):
    cell, layers = around_a_cell()
    x, parts = normal(2, 5, 3), []

    def work(layer, repeats):
        for _ in range(repeats):
            y, _ = layer(x)
            layer.backward(np.ones_like(y))

    for layer in layers:
        work(layer, 1)
        parts.append(grads(cell))
        cell.clear_gradients()
    in_threads(*(lambda layer=layer: work(layer, 10) for layer in layers))
    assert_sum_of_gradients(cell, parts * 10)


@pytest.mark.parametrize("kind", ["lstm", "cell"])
def test_backward_passes_take_turns(kind, monkeypatch):
    """Whoever adds to a gradient is alone in doing so."""
    inside, crowd, go_back = [], [], network.backward

    def watched(*arguments, **options):
        inside.append(1)
        crowd.append(len(inside))
        time.sleep(0.002)  # time enough for another thread to come in
        result = go_back(*arguments, **options)
        inside.pop()
        return result

    monkeypatch.setattr(network, "backward", watched)
    if kind == "lstm":
        layers = [LSTM(3, 4, seed=0)] * 3
    else:
        _, layers = around_a_cell()

    def work(layer):
        for _ in range(3):
            y, _ = layer(normal(2, 5, 3))
            layer.backward(np.ones_like(y))

    in_threads(*(lambda layer=layer: work(layer) for layer in layers))
    assert max(crowd) == 1


def test_masks_in_threads(switching):
    """Every call has a number of its own, so no two have the same mask."""
    lstm = LSTM(3, 8, 2, dropout=0.5, seed=0)
    x = normal(2, 5, 3)
    many = in_threads(*[lambda: [lstm(x)[0].tobytes() for _ in range(10)]] * 4)
    assert lstm.dropout_calls == 40
    assert len(set(itertools.chain(*many))) == 40


def test_a_tape_belongs_to_its_thread():
    lstm = LSTM(3, 4, seed=0)
    y, _ = lstm(normal(2, 5, 3))

    def elsewhere():
        assert raised(RuntimeError, lambda: lstm.backward(np.ones_like(y))) == NO_CALL
        lstm.clear_tape()
        lstm(normal(2, 5, 3))

    in_threads(elsewhere)
    lstm.backward(np.ones_like(y))


ENGINE = HOST_ENGINES[0]


def switches():
    return is_recording(), forced_engine()


DEFAULT = (True, "auto")


def test_switches_are_a_thread_s_own():
    inside, looked = threading.Event(), threading.Event()

    def switch():
        with no_grad(), engine(ENGINE):
            inside.set()
            assert looked.wait(10)
            return switches()

    def look():
        assert inside.wait(10)
        found = switches()
        looked.set()
        return found

    assert in_threads(switch, look) == [(False, ENGINE), DEFAULT]
    with no_grad(), engine(ENGINE):
        assert in_threads(switches) == [DEFAULT]
    assert switches() == DEFAULT


def test_switches_are_a_task_s_own():
    async def switch(turns):
        with no_grad(), engine(ENGINE):
            for _ in range(3):
                await turns.wait()
                assert switches() == (False, ENGINE)
        return switches()

    async def look(turns):
        found = set()
        for _ in range(3):
            await turns.wait()
            found.add(switches())
        return found

    async def main():
        turns = asyncio.Barrier(2)
        return await asyncio.gather(switch(turns), look(turns))

    assert asyncio.run(main()) == [DEFAULT, {DEFAULT}]


def test_a_task_starts_with_the_switches_of_its_maker():
    async def main():
        with no_grad():
            task = asyncio.create_task(seen())
        return await task

    async def seen():
        return switches()

    assert asyncio.run(main()) == (False, "auto")


def test_one_switch_object_in_many_threads_and_tasks(switching):
    shared = no_grad(), engine(ENGINE)

    def work():
        for _ in range(200):
            with shared[0]:
                with shared[1], shared[0]:
                    assert switches() == (False, ENGINE)
                assert switches() == (False, "auto")
            assert switches() == DEFAULT

    in_threads(*[work] * 4)

    async def task():
        for _ in range(20):
            with shared[0]:
                await asyncio.sleep(0)
                assert not is_recording()
            await asyncio.sleep(0)
            assert is_recording()

    async def main():
        await asyncio.gather(task(), task(), task())

    asyncio.run(main())


def test_switches_nest_and_are_undone_by_errors():
    with no_grad():
        with engine(ENGINE), no_grad(), engine("auto"):
            assert switches() == (False, "auto")
        assert switches() == (False, "auto")
        with pytest.raises(ZeroDivisionError), no_grad(), engine(ENGINE):
            1 / 0  # noqa: B018
        assert switches() == (False, "auto")
    assert switches() == DEFAULT


def test_switches_decorate():
    @no_grad()
    @engine(ENGINE)
    def decorated(depth):
        """Say what is set."""
        return decorated(depth - 1) if depth else switches()

    assert decorated.__name__ == "decorated"
    assert decorated(3) == (False, ENGINE)
    assert switches() == DEFAULT
    assert in_threads(*[lambda: decorated(2)] * 2) == [(False, ENGINE)] * 2
    lstm, x = LSTM(3, 4), normal(2, 5, 3)
    no_grad()(lstm.__call__)(x)
    assert raised(RuntimeError, lambda: lstm.backward(x)) == NO_CALL


def test_switches_refuse_functions_that_outlive_their_call():
    async def coroutine():
        """A coroutine function."""

    def generator():
        yield

    async def both():
        yield

    for switch, name in ((no_grad(), "no_grad"), (engine(ENGINE), "engine")):
        for function, kind in (
            (coroutine, "coroutine"),
            (generator, "generator"),
            (both, "generator"),
        ):
            text = raised(TypeError, lambda s=switch, f=function: s(f))
            assert text == (
                f"{name}(...) cannot decorate the {kind} function {function.__name__!r}, whose "
                f"body runs after the call returns: write 'with {name}(...):' inside it"
            )


def test_engine_by_name():
    case = RICH
    arrays = build(case, "float32")
    for name in ("auto", *HOST_ENGINES):
        with engine(name):
            assert_case(case, "float32", run_face(case, arrays, "float32"))

"""Models over the chunks of dask arrays: what comes out, what the graph holds, what is refused."""

import pickle
import subprocess
import sys
import threading
import weakref

import dask
import dask.array as da
import numpy as np
import pytest
from cases import CASES, assert_within_rule, build, make_lstm, naive, reference
from face import Model, flat_equal, normal, raised

from cupy_lstm import LSTM, BiRNN, Layer, Linear, LSTMCell, StatefulLSTM, engine, no_grad
from cupy_lstm.dask import predict

FORWARD = [case for case in CASES if not case.dropout]


@pytest.fixture(autouse=True)
def synchronous():
    with dask.config.set(scheduler="synchronous"):
        yield


def called(model, *arguments):
    with no_grad():
        return model(*arguments)


def tasks_of(*collections):
    """Return the optimized graph, as the scheduler is given it."""
    return dict(dask.optimize(*collections)[0].dask)


class LastStep(Layer):
    """The README's model, with dropout that only training shows."""

    def __init__(self):
        super().__init__()
        self.lstm = LSTM(3, 8, 2, dropout=0.5, seed=0)
        self.head = Linear(8, 2, seed=0)

    def __call__(self, x):
        _, (h, _) = self.lstm(x)
        return self.head(h[-1])


class Classifier:
    """An estimator of the kind of scikit-learn; labels are words."""

    classes_ = np.array(["down", "level", "steeply up"])

    def predict(self, X):
        assert len(X), "no estimator of scikit-learn takes none"
        return self.classes_[1 + np.sign(np.asarray(X)[:, -1]).astype(int)]

    def predict_proba(self, X):
        return np.asarray(X, "float64")[:, :2]


@pytest.mark.parametrize("case", FORWARD, ids=lambda case: case.id)
def test_the_table_of_cases_in_chunks(case):
    """Rows in pieces; time in pieces, too, but for both directions."""
    arrays = build(case, "float32")
    lstm = make_lstm(case, arrays.weights, "float32")
    batch, time = (1, 0) if case.time_major else (0, 1)
    pieces = {batch: case.B // 2 + 1, time: -1 if case.bidirectional else case.T // 3 + 1, 2: -1}
    X = da.from_array(arrays.x, chunks=tuple(pieces[axis] for axis in range(3)))
    options = {"initial_states": arrays.states, "sequence_length": arrays.lengths}
    y, (h, c) = predict(lstm, X, **options, return_states=True)
    assert y.chunks[:2] == X.chunks[:2]
    assert h.chunks[1] == c.chunks[1] == X.chunks[batch]
    truth, yardstick = reference(case, "float32"), naive(case, "float32")
    found = dask.compute(y, h, c)
    for name, lazy, actual in zip("yhc", (y, h, c), found, strict=True):
        assert (lazy.shape, lazy.dtype) == (actual.shape, actual.dtype)
        assert type(lazy._meta) is type(actual)
        assert_within_rule(name, actual, getattr(truth, name), getattr(yardstick, name))


def test_chunks_along_time_are_calls_one_after_the_other():
    """Bit for bit, with lengths that end before, in, and behind a chunk."""
    lstm, x, lengths = LSTM(3, 8, 2, seed=0), normal(5, 12, 3), np.array([12, 0, 5, 4, 7])
    X = da.from_array(x, chunks=((2, 3), (4, 1, 7), 3))
    found = dask.compute(*predict(lstm, X, sequence_length=lengths, return_states=True))
    parts = []
    for rows in (slice(0, 2), slice(2, 5)):
        states, outputs = None, []
        for first, last in ((0, 4), (4, 5), (5, 12)):
            length = (lengths[rows] - first).clip(0, last - first)
            y, states = called(lstm, x[rows, first:last], states, length)
            outputs.append(y)
        parts.append((np.concatenate(outputs, 1), *states))
    y, h, c = zip(*parts, strict=True)
    expected = np.concatenate(y), (np.concatenate(h, 1), np.concatenate(c, 1))
    assert flat_equal(found, expected)


def test_lengths_and_states_may_be_lazy():
    lstm, x = LSTM(3, 4, seed=0), normal(4, 6, 3)
    X = da.from_array(x, chunks=(3, 2, 3))
    lengths, states = np.array([6, 2, 0, 5]), (normal(1, 4, 4), normal(1, 4, 4, seed=1))
    lazy = [da.from_array(array, chunks=1) for array in (*states, lengths)]
    first = predict(lstm, X, initial_states=states, sequence_length=list(lengths))
    second = predict(lstm, X, initial_states=lazy[:2], sequence_length=lazy[2])
    assert np.array_equal(first.compute(), second.compute())
    unsigned = lazy[2].astype("uint8")
    third = predict(lstm, X, initial_states=states, sequence_length=unsigned)
    assert np.array_equal(first.compute(), third.compute())


def test_the_states_of_a_part_begin_the_next():
    lstm, x = LSTM(3, 4, seed=0), da.from_array(normal(4, 6, 3), chunks=(2, 3, 3))
    whole = predict(lstm, x)
    first, states = predict(lstm, x[:, :3], return_states=True)
    second = predict(lstm, x[:, 3:], initial_states=states)
    assert np.array_equal(whole.compute(), da.concatenate([first, second], 1).compute())


def test_a_length_that_is_wrong_in_a_lazy_array_is_found_by_a_chunk():
    X = da.zeros((2, 6, 3), chunks=(2, 2, 3), dtype="float32")
    for length, message in (
        (7, r"sequence_length\[1\] is 7, but inputs have 6 steps"),
        (-1, "cannot be negative"),
    ):
        lengths = da.from_array(np.array([1, length]))
        with pytest.raises(ValueError, match=message):
            predict(LSTM(3, 4), X, sequence_length=lengths).compute()


def test_rows_of_a_layer():
    """In eval mode, whatever the mode of the model, which keeps it."""
    model, x = LastStep(), normal(7, 5, 3)
    y = predict(model, da.from_array(x, chunks=((2, 4, 1), 5, 3)))
    assert (y.shape, y.chunks, y.dtype) == ((7, 2), ((2, 4, 1), (2,)), "float32")
    assert model.training and model.lstm.training
    model.eval()
    expected = np.concatenate([called(model, x[rows]) for rows in np.split(range(7), [2, 6])])
    assert np.array_equal(y.compute(), expected)


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_rows_of_an_estimator(method):
    x = normal(6, 3)
    y = predict(Classifier(), da.from_array(x, chunks=(4, 3)), method=method)
    expected = getattr(Classifier(), method)(x)
    found = y.compute()
    assert (y.shape, y.dtype) == (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert np.array_equal(found, expected)


def test_rows_whose_number_nobody_knows():
    x = normal(9, 5, 3)
    X = da.from_array(x, chunks=(4, 5, 3))
    X = X[X[:, 0, 0] > 0]  # chunks of unknown sizes
    assert np.isnan(X.shape[0])
    kept = [part[part[:, 0, 0] > 0] for part in np.split(x, [4, 8])]
    for model in (LastStep().eval(), LSTM(3, 4, seed=0)):
        found = predict(model, X).compute()
        expected = [called(model, part) for part in kept if len(part)]
        expected = [part[0] if isinstance(part, tuple) else part for part in expected]
        assert np.array_equal(found, np.concatenate(expected))


def test_chunks_without_rows():
    X = da.from_array(normal(6, 3), chunks=((2, 0, 4), (3,)))
    assert np.array_equal(predict(Classifier(), X).compute(), Classifier().predict(X.compute()))
    assert predict(Classifier(), X[:0]).compute().shape == (0,)
    empty = predict(LSTM(3, 4), da.zeros((2, 0, 3), dtype="float32")).compute()
    assert empty.shape == (2, 0, 4)


def test_a_result_belongs_to_the_weights_of_its_time():
    lstm, X = LSTM(3, 4, seed=0), da.ones((2, 5, 3), chunks=(1, 2, 3), dtype="float32")
    before = predict(lstm, X)
    for parameter in lstm.parameters():
        parameter.set_value(np.zeros_like(parameter.data))
    assert before.compute().any()
    assert not predict(lstm, X).compute().any()
    assert before.name != predict(lstm, X).name == predict(lstm, X).name


def test_one_task_a_chunk_and_the_model_once():
    """The model is most of the graph, and there once; no gradient travels with it."""
    lstm = LSTM(3, 64, 2, seed=0)
    lstm(normal(2, 5, 3))
    lstm.backward(normal(2, 5, 64))
    weights = sum(parameter.data.nbytes for parameter in lstm.parameters())
    X = da.zeros((64, 4, 3), chunks=(1, 4, 3), dtype="float32")
    rows = tasks_of(predict(lstm, X))
    assert len(callers(rows)) == 64
    # Along time two tasks more for each chunk pick a part out of a result.
    steps = tasks_of(predict(lstm, X.rechunk((16, 1, 3))))
    assert len(callers(steps)) == 4 * 4
    for tasks in (rows, steps):
        *others, largest = sorted(len(pickle.dumps(task)) for task in tasks.values())
        assert max(others) < 4096 < weights < largest < weights + 8192


def callers(tasks):
    """Return the tasks that call the model."""
    return [
        task
        for task in tasks.values()
        if any(str(key).startswith("LSTM-") for key in task.dependencies)
    ]


def test_one_thread_holds_a_chunk_at_a_time():
    """Of rows as of steps: what Dask reads is swept before it reads on."""
    alive, most = [], []

    class Followed(np.ndarray):
        pass

    def load():
        chunk = np.zeros((2, 5, 3), "float32").view(Followed)
        alive.append(weakref.ref(chunk))
        most.append(sum(part() is not None for part in alive))
        return chunk

    chunks = ((2, 2), (5,) * 10, (3,))
    X = da.map_blocks(load, chunks=chunks, meta=np.empty((0, 0, 0), "float32"))
    predict(LSTM(3, 4, seed=0), X).mean().compute()
    assert len(most) == 20 and max(most) <= 2


def test_the_engine_of_the_caller_runs_the_chunks():
    seen = set()

    class Spy(Linear):
        def __call__(self, x):
            from cupy_lstm.modes import forced_engine, is_recording

            seen.add((forced_engine(), is_recording()))
            return super().__call__(x)

    X = da.zeros((4, 3), chunks=(2, 3), dtype="float32")
    with engine("stepwise"):
        y = predict(Spy(3, 2), X)
    y.compute()
    assert seen == {("stepwise", False)}


def test_threads_share_a_model():
    """Four at a time, bit for bit what one does."""
    together = threading.Barrier(4, timeout=30)

    class Meeting(LSTM):
        def __call__(self, *arguments):
            together.wait()
            return super().__call__(*arguments)

        def __deepcopy__(self, memo):
            return self  # the barrier is of this process

        def __reduce__(self):
            return (str, ("meeting",))

    lstm, x = Meeting(3, 16, 2, seed=0), normal(32, 20, 3)
    same = LSTM(3, 16, 2, seed=0)
    X = da.from_array(x, chunks=(4, 20, 3))
    found = predict(lstm, X).compute(scheduler="threads", num_workers=4)
    assert np.array_equal(found, predict(same, X).compute())
    assert together.broken is False


NOT_TIME = da.zeros((4, 6, 3), chunks=(2, 6, 3), dtype="float32")


def holding(layer):
    model = Layer()
    model.parts = [layer]
    return model


ERRORS = [
    (LSTM(3, 4), np.zeros((1, 2, 3)), {}, TypeError, "dask array or dataframe, received ndarray"),
    (object(), NOT_TIME, {}, TypeError, "an LSTM, a Layer, or have a method 'predict', received"),
    (Classifier(), NOT_TIME, {"method": "transform"}, TypeError, "method 'transform'"),
    (LSTM(3, 4), NOT_TIME[0], {}, ValueError, "X has shape [6, 3], but must have shape [batch, s"),
    (LSTM(5, 4), NOT_TIME, {}, ValueError, "X has shape [4, 6, 3], but must have shape [any, any,"),
    (LSTM(3, 4, dtype="float64"), NOT_TIME, {}, ValueError, "convert it with .astype('float64')"),
    (LSTM(3, 4), NOT_TIME.rechunk((2, 6, 1)), {}, ValueError, "X.rechunk({2: -1})"),
    (
        LSTM(3, 4, direction="bidirect"),
        NOT_TIME.rechunk((2, 3, 3)),
        {},
        ValueError,
        "X has 2 chunks along time, but the LSTM is bidirectional",
    ),
    (Model(), NOT_TIME.rechunk((2, 3, 3)), {}, ValueError, "X has 2 chunks along axis 1, which"),
    (Linear(3, 4, dtype="float64"), NOT_TIME, {}, ValueError, "X has dtype float32, but the we"),
    (Linear(5, 4), NOT_TIME, {}, ValueError, "5"),
    (BiRNN(LSTMCell(3, 4), LSTMCell(3, 4)), NOT_TIME, {}, TypeError, "one array, received tuple"),
    (Linear(3, 4), NOT_TIME, {"return_states": True}, TypeError, "for an LSTM, the model is Lin"),
    (LSTM(3, 4), NOT_TIME, {"initial_states": 3}, TypeError, "initial_states must be a tuple"),
    (
        LSTM(3, 4),
        NOT_TIME,
        {"initial_states": (normal(1, 4, 4), normal(1, 3, 4))},
        ValueError,
        "initial_states[1] (c) has shape [1, 3, 4], but must have shape [1, 4, 4]",
    ),
    (
        LSTM(3, 4),
        NOT_TIME,
        {"initial_states": (normal(1, 4, 4, dtype="float64"), normal(1, 4, 4))},
        ValueError,
        "initial_states[0] (h) has dtype float64, but must have float32",
    ),
    (LSTM(3, 4), NOT_TIME, {"initial_states": (1, 2)}, TypeError, "must be an array or a dask"),
    (LSTM(3, 4), NOT_TIME, {"sequence_length": [1, 7, 0, 0]}, ValueError, "sequence_length[1] is"),
    (LSTM(3, 4), NOT_TIME, {"sequence_length": da.ones(3)}, ValueError, "hold integers [4]"),
    (
        LSTM(3, 4),
        NOT_TIME[NOT_TIME[:, 0, 0] > 0],
        {"sequence_length": [1]},
        ValueError,
        "X has chunks of unknown sizes, to which sequence_length cannot be cut",
    ),
    (Linear(3, 4), da.zeros((), dtype="float32"), {}, ValueError, "X has no axes"),
    (StatefulLSTM(LSTM(3, 4)), NOT_TIME, {}, TypeError, "keeps states from one call to the next"),
    (holding(StatefulLSTM(LSTM(3, 4))), NOT_TIME, {}, TypeError, "give predict its LSTM"),
]


@pytest.mark.parametrize(
    ("model", "X", "options", "error", "message"), ERRORS, ids=[e[4][:30] for e in ERRORS]
)
def test_what_does_not_fit_is_refused_before_anything_runs(model, X, options, error, message):
    assert message in raised(error, lambda: predict(model, X, **options))


def test_what_a_model_must_return():
    class Mean(Linear):
        def __call__(self, x):
            return x.mean((1, 2))[:0]

    with pytest.raises(ValueError, match="a row for each of 1 rows, received shape") as caught:
        predict(Mean(3, 1), NOT_TIME)
    assert "made-up rows" in caught.value.__notes__[0]


def test_without_dask_it_is_a_sentence():
    code = "import sys; sys.modules['dask'] = None; import cupy_lstm; import cupy_lstm.dask"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: cupy_lstm.dask needs dask: pip install 'cupy_lstm[dask]'; importing it failed"
    )

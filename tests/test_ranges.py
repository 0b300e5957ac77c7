"""Ranges for profilers: their names and nesting, that they close, and that they are not there."""

import ast
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest

from cupy_lstm import LSTM, Adam, Batches, Linear, engine, fit, mse_loss, no_grad, ranges
from cupy_lstm.notation import Shape
from cupy_lstm.plan import simd_missing

ROOT = Path(__file__).resolve().parent.parent
ENGINES = ["stepwise", *([] if simd_missing() else ["simd"])]


class Domain:
    """What `ranges` uses of an nvtx domain, kept as a tree of [name, children]."""

    def __init__(self):
        self.made, self.here = [], threading.local()
        self.roots, self.pushed, self.popped = [], 0, 0

    def get_event_attributes(self, message=None, color=None, category=None, payload=None):
        attributes = types.SimpleNamespace(
            message=message, color=color, category=category, payload=payload
        )
        self.made.append(attributes)
        return attributes

    def stack(self):
        if not hasattr(self.here, "stack"):
            self.here.stack = []
        return self.here.stack

    def push_range(self, attributes):
        self.pushed += 1
        node, stack = [attributes.message, []], self.stack()
        (stack[-1][1] if stack else self.roots).append(node)
        stack.append(node)

    def pop_range(self):
        self.popped += 1
        self.stack().pop()


@pytest.fixture
def domain(monkeypatch):
    """A domain that somebody listens to."""
    found = Domain()
    monkeypatch.setattr(ranges, "_tool", ranges._Tool(found, detailed=False))
    return found


@pytest.fixture
def detailed(domain, monkeypatch):
    """The same, with the finest ranges wanted."""
    monkeypatch.setattr(ranges, "_tool", ranges._Tool(domain, detailed=True))
    return domain


@pytest.fixture
def not_asked(monkeypatch):
    monkeypatch.setattr(ranges, "_tool", ranges._NOT_ASKED)


def x_of(T=5, B=2, I=3):  # noqa: E741
    return np.random.default_rng(0).standard_normal((B, T, I)).astype("float32")


def leaf(*names):
    return [[name, []] for name in names]


def test_without_nvtx_there_are_none(not_asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    assert ranges.stage("forward") is ranges._NOTHING
    assert ranges._tool is None
    steps = range(3)
    assert ranges.each_step(steps) is steps
    assert ranges.each_load(steps) is steps
    assert not ranges.detailed()


def stub(monkeypatch, **names):
    module = types.ModuleType("nvtx")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, "nvtx", module)


def test_with_nvtx_and_no_tool_there_are_none(not_asked, monkeypatch):
    # The package answers with another class where nobody listens.
    stub(monkeypatch, Domain=Domain, get_domain=lambda name: object(), enabled=lambda: True)
    assert ranges.stage("forward") is ranges._NOTHING
    assert ranges._tool is None


def test_with_nvtx_disabled_there_are_none(not_asked, monkeypatch):
    stub(monkeypatch, Domain=Domain, get_domain=lambda name: Domain(), enabled=lambda: False)
    assert ranges.stage("forward") is ranges._NOTHING


@pytest.mark.parametrize("wanted", ["", "detail"])
def test_with_a_tool_the_domain_is_asked_for_once(not_asked, monkeypatch, wanted):
    asked = []

    def get_domain(name):
        asked.append(name)
        return Domain()

    stub(monkeypatch, Domain=Domain, get_domain=get_domain, enabled=lambda: True)
    monkeypatch.setenv(ranges.SWITCH, wanted)
    with ranges.stage("forward"):
        assert not ranges.detailed(), "in no layer"
    with ranges.stage("layer"):
        assert ranges.detailed() == bool(wanted)
    assert asked == ["cupy_lstm"]
    assert ranges._tool.domain.roots == leaf("forward", "layer")


def test_a_wish_that_is_not_known_is_a_sentence(not_asked, monkeypatch):
    stub(monkeypatch, Domain=Domain, get_domain=lambda name: Domain(), enabled=lambda: True)
    monkeypatch.setenv(ranges.SWITCH, "detial")
    with pytest.warns(RuntimeWarning, match="CUPY_LSTM_RANGES must be 'detail' or empty, .*detial"):
        ranges.stage("forward")
    with ranges.stage("layer"):  # and said once
        assert not ranges.detailed()


class NumbersOnly(Domain):
    def get_event_attributes(self, message=None, color=None, category=None, payload=None):
        raise RuntimeError("Payload must be int or float")


OLD = {
    "without domains": {"enabled": lambda: True},
    "whose payloads are numbers": {
        "enabled": lambda: True, "Domain": NumbersOnly, "get_domain": lambda name: NumbersOnly(),
    },
}  # fmt: skip


@pytest.mark.parametrize("names", OLD.values(), ids=OLD)
def test_an_nvtx_that_is_too_old_is_a_sentence(not_asked, monkeypatch, names):
    stub(monkeypatch, **names)
    with pytest.warns(RuntimeWarning, match=r"too old; pip install -U 'cupy_lstm\[nvtx\]'"):
        assert ranges.stage("forward") is ranges._NOTHING
    assert ranges.stage("forward") is ranges._NOTHING  # and said once


def test_an_nvtx_that_is_broken_is_a_sentence(not_asked, monkeypatch, tmp_path):
    (tmp_path / "nvtx.py").write_text("import no_such_module_of_nvtx\n")
    monkeypatch.delitem(sys.modules, "nvtx", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.warns(RuntimeWarning, match="importing nvtx fails .*no_such_module_of_nvtx"):
        assert ranges.stage("forward") is ranges._NOTHING


def test_stages_of_stepwise(domain):
    lstm = LSTM(3, 4, num_layers=2, dropout=0.5, seed=0)
    with engine("stepwise"):
        y, _ = lstm(x_of())
        lstm.backward(y)
    forward = leaf("input projection", "recurrence")
    backward = leaf(
        "recomputation", "recurrence", "weight gradients", "input gradient", "weight gradients"
    )
    assert domain.roots == [
        ["forward", [["layer 0", forward], ["dropout", []], ["layer 1", forward]]],
        ["backward", [["layer 1", backward], ["dropout", []], ["layer 0", backward]]],
    ]


def test_inference_has_a_name_of_its_own(domain):
    with no_grad(), engine("stepwise"):
        LSTM(3, 4, seed=0)(x_of())
    assert domain.roots == [["inference", [["layer 0", leaf("input projection", "recurrence")]]]]


@pytest.mark.skipif("simd" not in ENGINES, reason=simd_missing())
def test_stages_of_simd(domain):
    lstm = LSTM(3, 4, seed=0)
    y, _ = lstm(x_of())
    lstm.backward(y)
    assert domain.roots == [
        ["forward", [["layer 0", leaf("sweep")]]],
        ["backward", [["layer 0", leaf("sweep")]]],
    ]


@pytest.mark.skipif("simd" not in ENGINES, reason=simd_missing())
def test_stages_of_simd_in_detail(detailed):
    lstm = LSTM(3, 4, seed=0)
    y, _ = lstm(x_of())
    lstm.backward(y)
    (_, (forward,)), (_, (backward,)) = detailed.roots
    assert forward == ["layer 0", leaf("packing", "recurrence")]
    names = [name for name, _ in backward[1]]
    assert names[:2] == ["packing", "recurrence"]
    assert set(names[2:]) == {"packing", "gradients"}


def test_steps_in_detail(detailed):
    with engine("stepwise"):
        lstm = LSTM(3, 4, seed=0)
        y, _ = lstm(x_of(T=5))
        lstm.backward(y)
    (_, (forward,)), (_, (backward,)) = detailed.roots
    assert forward[1][1] == ["recurrence", leaf(*["step"] * 5)]
    assert backward[1][1] == ["recurrence", leaf(*["step"] * 5)]


@pytest.mark.parametrize("name", ENGINES)
def test_detail_does_not_change_a_bit(monkeypatch, name):
    def results():
        lstm = LSTM(5, 40, num_layers=2, direction="bidirect", seed=0)
        with engine(name):
            y, (h, c) = lstm(x_of(T=9, B=6, I=5), sequence_length=[9, 0, 3, 9, 1, 7])
            dx, (dh, dc) = lstm.backward(y)
        return [y, h, c, dx, dh, dc, *(p.grad for p in lstm.parameters())]

    monkeypatch.setattr(ranges, "_tool", None)
    plain = results()
    monkeypatch.setattr(ranges, "_tool", ranges._Tool(Domain(), detailed=True))
    for one, other in zip(plain, results(), strict=True):
        assert np.array_equal(one, other)


def test_attributes(domain):
    lstm = LSTM(3, 4, seed=0, dtype="float64", direction="bidirect", proj_size=2)
    with engine("stepwise"):
        for _ in range(3):
            lstm(x_of(T=7).astype("float64"))
    found = {one.message: one for one in domain.made}
    assert len(found) == len(domain.made) == 4, "made once for each stage and shape"
    layer = found["layer 0"]
    assert dict(zip(layer.payload.dtype.names, layer.payload.item(), strict=True)) == {
        "T": 7, "B": 2, "I": 3, "H": 4, "P": 2, "D": 2, "bytes": 8,
    }  # fmt: skip
    assert (layer.category, layer.color) == ("layer", 0xFF999999)
    assert found["recurrence"].category == "recurrence"
    for stage in ("input projection", "recurrence"):
        assert found[stage].payload == layer.payload
    assert found["forward"].payload is None


def test_another_shape_is_another_payload(domain):
    for T in (4, 6):
        with engine("stepwise"):
            LSTM(3, 4, seed=0)(x_of(T=T))
    layers = [one for one in domain.made if one.message == "layer 0"]
    assert [one.payload["T"] for one in layers] == [4, 6]


def test_training(domain):
    class Last(Linear):
        def __init__(self):
            super().__init__(4, 1, seed=0)
            self.lstm = LSTM(3, 4, seed=0)

        def __call__(self, x):
            return super().__call__(self.lstm(x)[1][0][-1])

        def backward(self, gradient):
            return self.lstm.backward(None, (super().backward(gradient)[None], None))

    x, target = x_of(B=6), np.zeros((6, 1), "float32")
    model = Last()
    batches = Batches(x, target, 3)
    fit(model, mse_loss, Adam(0.01, model.parameters()), batches, batches, epochs=1, progress=False)
    assert [name for name, _ in domain.roots] == [
        *(["data loading", "forward", "backward", "optimizer step"] * 2),
        *("data loading",),  # which finds the end
        *(["data loading", "inference"] * 2),
        *("data loading",),
    ]  # fmt: skip
    assert domain.pushed == domain.popped


def test_reading_a_series_is_data_loading(domain, tmp_path):
    from cupy_lstm.forecast.series import built_in_series, read_series

    pytest.importorskip("statsmodels", reason="statsmodels is not installed")
    path = tmp_path / "series.csv"
    path.write_text("day,value\n1,2.0\n2,3.0\n3,2.5\n")
    read_series(path, "day", ["value"], [])
    built_in_series("sunspots")
    assert domain.roots == leaf("data loading", "data loading")


@pytest.mark.parametrize("name", ENGINES)
def test_a_stream_has_none(detailed, name):
    lstm = LSTM(3, 4, num_layers=2, seed=0)
    x = x_of(T=20, B=2)
    with engine(name):
        stream = lstm.stream(batch=2)
        stream(x[:, 0])
        stream(x[:, 1:])
    assert detailed.roots == []


def test_a_stream_has_none_inside_a_range_that_is_no_layer(detailed):
    stream = LSTM(3, 4, seed=0).stream(batch=2)
    x = x_of(B=2)
    with engine("stepwise"):
        for _ in ranges.each_load(stream(x) for _ in range(1)):
            pass
    assert detailed.roots == leaf("data loading", "data loading")


@pytest.mark.parametrize("fixture", ["domain", "detailed"])
@pytest.mark.parametrize("step", [0, 3])
def test_an_exception_closes_all(request, monkeypatch, fixture, step):
    found = request.getfixturevalue(fixture)
    from cupy_lstm.engines import stepwise

    calls = []
    real = stepwise.matmul_add

    def failing(*arguments):
        calls.append(1)
        if len(calls) > step:
            raise ZeroDivisionError("on purpose")
        real(*arguments)

    monkeypatch.setattr(stepwise, "matmul_add", failing)
    lstm = LSTM(3, 4, seed=0)
    with engine("stepwise"), pytest.raises(ZeroDivisionError):
        lstm(x_of())
    assert found.stack() == []
    assert found.pushed == found.popped == 4 + (fixture == "detailed") * (step + 1)
    assert ranges._tool.layers() == 0
    monkeypatch.undo()


def test_a_loop_that_is_left_closes_its_step(detailed):
    def leave():
        with ranges.stage("layer"):
            for step in ranges.each_step(range(5)):
                if step == 2:
                    return

    leave()
    assert detailed.stack() == []
    assert detailed.roots == [["layer", leaf("step", "step", "step")]]


def test_threads_have_their_own(domain):
    lstms = [LSTM(3, 4, seed=0) for _ in range(4)]

    def call(lstm):
        with engine("stepwise"):
            y, _ = lstm(x_of())
            lstm.backward(y)
        assert domain.stack() == []

    threads = [threading.Thread(target=call, args=(lstm,)) for lstm in lstms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(name for name, _ in domain.roots) == ["backward"] * 4 + ["forward"] * 4


def test_only_few_shapes_are_kept(domain):
    for T in range(2 * ranges.RANGES_KEPT):
        with ranges.stage("layer", Shape(T, 1, 1, 1, 1, 1)):
            pass
    assert ranges._tool.range.cache_info().currsize == ranges.RANGES_KEPT


def named_stages():
    """Yield every name that the package's source gives a stage, and where."""
    for path in sorted((ROOT / "cupy_lstm").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            function, first = node.func, node.args[0]
            of_simd = isinstance(function, ast.Attribute) and function.attr == "add"
            if getattr(function, "id", "") == "stage" or (of_simd and "simd" in path.parts):
                for part in ast.walk(first):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part.value, path.name


def test_every_name_is_a_stage_and_every_stage_is_used():
    used = dict(named_stages())
    assert set(used) == set(ranges.STAGES), used


@pytest.mark.gpu_on_cpu
def test_stages_on_a_gpu(cupy, domain):
    x = cupy.asarray(x_of(T=4, I=40))
    lstm = LSTM(40, 8, seed=0, xp=cupy)
    y, _ = lstm(x)
    lstm.backward(y)
    with no_grad():
        lstm(x[:, :1])
    assert domain.roots == [
        ["forward", [["layer 0", leaf("input projection", "recurrence")]]],
        ["backward", [["layer 0", leaf("recurrence", "gradients")]]],
        ["inference", [["layer 0", leaf("recurrence")]]],
    ]

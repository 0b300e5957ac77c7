"""The libraries: how each builds a case, and what is timed of it.

A class imports its library when it is made, so that this file needs none of them. It has a method
for each mode that its library knows; the method returns the ways to do it, of which the fastest
will be timed. All that can be done once is done in the method, outside the timed call.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from compare.case import Case

Run = Callable[[], Sequence[Any]]
"""What is timed: a call that returns the arrays it computed."""


def within(context: Callable[[], Any], run: Run) -> Run:
    """Return `run` inside a context, as no_grad."""

    def inside() -> Sequence[Any]:
        with context():
            return run()

    return inside


def carry(cell: Callable[[Any, Any], tuple[Any, Any]], steps: Iterable[Any]) -> Sequence[Any]:
    """Return the outputs of one step after another, the states carried."""
    outputs, states = [], None
    for step in steps:
        y, states = cell(step, states)
        outputs.append(y)
    return outputs


class Ours:
    """The package that is compared, with the engine asked for."""

    def __init__(self, threads: int, engine: str) -> None:
        import cupy_lstm

        cupy_lstm.engine(engine).__enter__()  # for the life of the process
        self.package = cupy_lstm
        self.version = f"cupy_lstm {cupy_lstm.__version__} with NumPy {np.__version__}"

    def model(self, case: Case) -> Any:
        """Return the LSTM of a case."""
        sizes = case.I, case.H, case.L, case.direction, case.time_major
        lstm = self.package.LSTM(*sizes, dtype=case.dtype)
        lstm.set_state_dict(case.draw_weights())
        return lstm

    def inference(self, case: Case) -> dict[str, Run]:
        """Return the call under no_grad."""
        lstm, lengths, (x, _) = self.model(case), case.draw_lengths(), case.draw_arrays()
        return {"LSTM": within(self.package.no_grad, lambda: lstm(x, None, lengths)[:1])}

    def training(self, case: Case) -> dict[str, Run]:
        """Return forward and backward, from cleared gradients."""
        lstm, lengths, (x, dy) = self.model(case), case.draw_lengths(), case.draw_arrays()

        def run() -> Sequence[Any]:
            lstm.clear_gradients(set_to_zero=False)
            y, _ = lstm(x, None, lengths)
            dx, _ = lstm.backward(dy)
            return y, dx

        return {"LSTM": run}

    def stream(self, case: Case) -> dict[str, Run]:
        """Return T calls of a stream."""
        stream, (x, _) = self.model(case).stream(case.B), case.draw_arrays()

        def run() -> Sequence[Any]:
            stream.reset()
            return [stream(step) for step in x]

        return {"stream": run}


class Torch:
    """PyTorch, in which training needs the gradient of the input to be asked for."""

    def __init__(self, threads: int, engine: str) -> None:
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.kind = torch.nn.LSTM
        self.version = f"torch {torch.__version__}"

    def model(self, case: Case) -> tuple[Any, Callable[[Any], Any]]:
        """Return the LSTM of a case, and the function of the input that gives the output."""
        pack = self.torch.nn.utils.rnn
        first = not case.time_major
        lstm = self.kind(
            case.I,
            case.H,
            case.L,
            batch_first=first,
            bidirectional=case.D == 2,
            dtype=getattr(self.torch, case.dtype),
        )
        lstm.load_state_dict({n: self.torch.tensor(w) for n, w in case.draw_weights().items()})
        if not case.lengths:
            return lstm, lambda x: lstm(x)[0]
        lengths = self.torch.tensor(case.draw_lengths())

        def forward(x: Any) -> Any:
            packed = pack.pack_padded_sequence(x, lengths, first, enforce_sorted=False)
            return pack.pad_packed_sequence(lstm(packed)[0], first, total_length=case.T)[0]

        return lstm, forward

    def inference(self, case: Case) -> dict[str, Run]:
        """Return the call under inference_mode."""
        (_, forward), x = self.model(case), self.torch.tensor(case.draw_arrays()[0])
        return {"LSTM": within(self.torch.inference_mode, lambda: (forward(x),))}

    def training(self, case: Case) -> dict[str, Run]:
        """Return forward and backward, from cleared gradients."""
        (lstm, forward), (x, dy) = self.model(case), map(self.torch.tensor, case.draw_arrays())
        x.requires_grad_()

        def run() -> Sequence[Any]:
            lstm.zero_grad()
            x.grad = None
            y = forward(x)
            y.backward(dy)
            return y.detach(), x.grad

        return {"LSTM": run}

    def stream(self, case: Case) -> dict[str, Run]:
        """Return T calls of the LSTM, and of an LSTMCell."""
        (lstm, _), x = self.model(case), self.torch.tensor(case.draw_arrays()[0])
        cell = self.torch.nn.LSTMCell(case.I, case.H, dtype=getattr(self.torch, case.dtype))
        cell.load_state_dict({n: self.torch.tensor(w) for n, w in case.draw_cell_weights().items()})
        steps, rows = x.split(1), x.unbind()

        def call(row: Any, states: Any) -> tuple[Any, Any]:
            states = cell(row, states)
            return states[0], states

        mode = self.torch.inference_mode
        return {
            "LSTM": within(mode, lambda: carry(lstm, steps)),
            "LSTMCell": within(mode, lambda: carry(call, rows)),
        }


class Bridge(Torch):
    """The package as a module of PyTorch, with the engine asked for."""

    def __init__(self, threads: int, engine: str) -> None:
        super().__init__(threads, engine)
        import cupy_lstm
        from cupy_lstm.torch import LSTM

        cupy_lstm.engine(engine).__enter__()  # for the life of the process
        self.kind = LSTM
        self.version = f"cupy_lstm.torch {cupy_lstm.__version__}"

    def stream(self, case: Case) -> dict[str, Run]:
        """Return T calls of the LSTM; it has no cell of its own."""
        return {"LSTM": super().stream(case)["LSTM"]}


class Paddle:
    """Paddle, in which training needs the gradient of the input to be asked for."""

    def __init__(self, threads: int, engine: str) -> None:
        import paddle

        paddle.set_device("cpu")
        paddle.base.core.set_num_threads(threads)
        self.paddle = paddle
        self.version = f"paddle {paddle.__version__}"

    def model(self, case: Case) -> tuple[Any, Callable[[Any], Any]]:
        """Return the LSTM of a case, and the function of the input that gives the output."""
        self.paddle.set_default_dtype(case.dtype)
        lstm = self.paddle.nn.LSTM(case.I, case.H, case.L, case.direction, case.time_major)
        lstm.set_state_dict(case.draw_weights())
        lengths = self.paddle.to_tensor(case.draw_lengths()) if case.lengths else None
        return lstm, lambda x: lstm(x, None, lengths)[0]

    def inference(self, case: Case) -> dict[str, Run]:
        """Return the call under no_grad."""
        (_, forward), x = self.model(case), self.paddle.to_tensor(case.draw_arrays()[0])
        return {"LSTM": within(self.paddle.no_grad, lambda: (forward(x),))}

    def training(self, case: Case) -> dict[str, Run]:
        """Return forward and backward, from cleared gradients."""
        (lstm, forward), (x, dy) = self.model(case), map(self.paddle.to_tensor, case.draw_arrays())
        x.stop_gradient = False

        def run() -> Sequence[Any]:
            lstm.clear_gradients(set_to_zero=False)
            x.clear_gradient(set_to_zero=False)
            y = forward(x)
            self.paddle.autograd.backward([y], [dy])
            return y.detach(), x.grad

        return {"LSTM": run}

    def stream(self, case: Case) -> dict[str, Run]:
        """Return T calls of the LSTM, and of an LSTMCell."""
        (lstm, _), x = self.model(case), self.paddle.to_tensor(case.draw_arrays()[0])
        cell = self.paddle.nn.LSTMCell(case.I, case.H)
        cell.set_state_dict(case.draw_cell_weights())
        steps, rows = x.split(case.T), x.unbind()
        mode = self.paddle.no_grad
        return {
            "LSTM": within(mode, lambda: carry(lstm, steps)),
            "LSTMCell": within(mode, lambda: carry(cell, rows)),
        }


class OnnxRuntime:
    """ONNX Runtime; it has no training."""

    def __init__(self, threads: int, engine: str) -> None:
        import onnx
        import onnxruntime

        self.onnx = onnx
        self.runtime = onnxruntime
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        self.options.log_severity_level = 4  # what it refuses is in its exception
        self.version = f"onnxruntime {onnxruntime.__version__}"

    def session(self, case: Case, steps: int, stateful: bool) -> Any:
        """Return the session of x to y, and of x, h, c to y, hn, cn if `stateful`."""
        helper, numpy_helper = self.onnx.helper, self.onnx.numpy_helper
        states = {"h": "hn", "c": "cn"} if stateful else {}
        constants = onnx_weights(case) | {"joined": np.array([steps, case.B, case.D * case.H])}
        if case.lengths:
            constants["lengths"] = case.draw_lengths().astype("int32")
        nodes = []

        def apply(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
            outputs = [output, *states.values()] if operator == "LSTM" else [output]
            nodes.append(helper.make_node(operator, inputs, outputs, **attributes))
            return output

        layer = "x" if case.time_major else apply("Transpose", ["x"], "xt", perm=[1, 0, 2])
        for k in range(case.L):
            inputs = [layer, f"W{k}", f"R{k}", f"B{k}", "lengths" if case.lengths else "", *states]
            layer = apply("LSTM", inputs, f"Y{k}", hidden_size=case.H, direction=case.direction)
            if case.D > 1:  # [T,D,B,H] to [T,B,D,H]
                layer = apply("Transpose", [layer], f"Z{k}", perm=[0, 2, 1, 3])
            done = k == case.L - 1 and case.time_major
            layer = apply("Reshape", [layer, "joined"], "y" if done else f"y{k}")
        if not case.time_major:
            apply("Transpose", [layer], "y", perm=[1, 0, 2])

        element = helper.np_dtype_to_tensor_dtype(np.dtype(case.dtype))

        def declared(names: Iterable[str]) -> list[Any]:
            return [helper.make_tensor_value_info(name, element, [None] * 3) for name in names]

        graph = helper.make_graph(
            nodes,
            "lstm",
            declared(["x", *states]),
            declared(["y", *states.values()]),
            [numpy_helper.from_array(array, name) for name, array in constants.items()],
        )
        # Old enough versions for every runtime of the last years.
        opsets = [helper.make_opsetid("", 17)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return self.runtime.InferenceSession(
            model.SerializeToString(), self.options, ["CPUExecutionProvider"]
        )

    def inference(self, case: Case) -> dict[str, Run]:
        """Return the call of a session."""
        session, (x, _) = self.session(case, case.T, stateful=False), case.draw_arrays()
        return {"run": lambda: session.run(["y"], {"x": x})}

    def stream(self, case: Case) -> dict[str, Run]:
        """Return T calls of a session of one step, and of one bound to fixed memory."""
        session, (x, _) = self.session(case, 1, stateful=True), case.draw_arrays()
        steps = np.split(x, case.T)
        zeros = np.zeros((1, case.B, case.H), case.dtype)
        ends = [{"h": zeros.copy(), "c": zeros.copy()} for _ in range(2)]
        x_step, y_step = np.empty_like(steps[0]), zeros.copy()
        bindings = [self.bind(session, x_step, y_step, *order) for order in (ends, ends[::-1])]

        def call(step: np.ndarray, states: Any) -> tuple[Any, Any]:
            h, c = states or (zeros, zeros)
            y, *states = session.run(None, {"x": step, "h": h, "c": c})
            return y, states

        def run_bound() -> Sequence[Any]:
            outputs = []
            for state in ends[0].values():
                state[...] = 0
            for t, step in enumerate(steps):
                x_step[...] = step
                session.run_with_iobinding(bindings[t % 2])
                outputs.append(y_step.copy())
            return outputs

        return {"run": lambda: carry(call, steps), "run_with_iobinding": run_bound}

    def bind(self, session: Any, x: Any, y: Any, before: dict[str, Any], after: Any) -> Any:
        """Return a binding of a session to the memory of arrays."""
        binding = session.io_binding()
        for name, array in {"x": x, **before}.items():
            binding.bind_cpu_input(name, array)
        for name, array in {"y": y, "hn": after["h"], "cn": after["c"]}.items():
            address = array.ctypes.data
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, address)
        return binding


def onnx_weights(case: Case) -> dict[str, np.ndarray]:
    """Return the weights of each layer as the operator wants them: gates i, o, f, c."""
    weights = case.draw_weights()

    def joined(kind: str, suffixes: list[str]) -> np.ndarray:
        gates = [np.split(weights[kind + suffix], 4) for suffix in suffixes]
        return np.stack([np.concatenate([i, o, f, g]) for i, f, g, o in gates])

    constants = {}
    for k, ends in enumerate(case.suffixes):
        constants[f"W{k}"] = joined("weight_ih", ends)
        constants[f"R{k}"] = joined("weight_hh", ends)
        constants[f"B{k}"] = np.hstack([joined("bias_ih", ends), joined("bias_hh", ends)])
    return constants


LIBRARIES = {"ours": Ours, "torch": Torch, "onnxruntime": OnnxRuntime, "paddle": Paddle}

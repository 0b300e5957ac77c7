"""ONNX files for the tests: made by hand, and run with the oracle as the operator LSTM."""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from oracle import lstm_oracle

OURS = [0, 2, 3, 1]  # our gates i, f, g, o among ONNX's i, o, f, c


def gates(weight):
    """Return [4H,...] in our order of the gates from ONNX's."""
    return np.concatenate([np.split(weight, 4)[block] for block in OURS])


def named(W, R, B=None):
    """Return weights of one layer by our names, from those of a node."""
    weights = {}
    for d, end in zip(range(len(W)), ("_l0", "_l0_reverse"), strict=False):
        weights |= {f"weight_ih{end}": gates(W[d]), f"weight_hh{end}": gates(R[d])}
        if B is not None:
            first, second = np.split(B[d], 2)
            weights |= {f"bias_ih{end}": gates(first), f"bias_hh{end}": gates(second)}
    return weights


class LSTM(OpRun):
    """The operator, computed by the oracle; what it leaves open is NaN.

    That are the final states of a row of length 0.
    """

    op_domain = ""

    def _run(
        self, X, W, R, B=None, lengths=None, h0=None, c0=None, P=None, *,
        direction=None, hidden_size=None, layout=None, **rest,
    ):  # fmt: skip
        assert not layout
        assert hidden_size == R.shape[2]
        assert set(rest.values()) <= {None, 0}, rest
        result = lstm_oracle(
            X,
            named(W, R, B),
            bidirectional=direction == "bidirectional",
            time_major=True,
            states=None if h0 is None else (h0, c0),
            lengths=lengths,
            dtype=X.dtype,
        )
        h, c = result.h, result.c
        if lengths is not None:
            h[:, lengths == 0] = c[:, lengths == 0] = np.nan
        y = result.y.reshape(*X.shape[:2], len(W), hidden_size)
        return y.transpose(0, 2, 1, 3), h, c


def run(path, **inputs):
    """Run a file with the oracle; return its outputs."""
    return ReferenceEvaluator(str(path), new_ops=[LSTM]).run(None, inputs)


def drawn(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("float32")


def weights_of(I=3, H=4, D=1, bias=True, seed=0):  # noqa: E741
    """Return W, R and B of a node."""
    B = drawn(D, 8 * H, seed=seed) if bias else None
    return drawn(D, 4 * H, I, seed=seed), drawn(D, 4 * H, H, seed=seed), B


class File:
    """A file that grows node by node."""

    def __init__(self, path: Path):
        self.path = path
        self.nodes, self.constants = [], []
        self.inputs = ["x"]

    def constant(self, name, value):
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator, *inputs, outputs=1, **attributes):
        names = [f"{operator}{len(self.nodes)}.{n}" for n in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, names[0], **attributes))
        return names[0]

    def lstm(self, x, W, R, B=None, *rest, hidden_size=None, **attributes):
        """Add an LSTM node with these weights; return the name of its output."""
        k = len(self.nodes)
        names = [
            self.constant(f"{letter}{k}", array) if array is not None else ""
            for letter, array in (("W", W), ("R", R), ("B", B))
        ]
        return self.node(
            "LSTM", x, *names, *rest, outputs=3, hidden_size=hidden_size or R.shape[2], **attributes
        )

    def joined(self, y):
        """Add what brings an output [T,D,B,H] to [T,B,D*H]."""
        moved = self.node("Transpose", y, perm=[0, 2, 1, 3])
        shape = self.constant(f"shape{len(self.nodes)}", np.array([0, 0, -1]))
        return self.node("Reshape", moved, shape)

    def model(self):
        kind = onnx.TensorProto.FLOAT
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                "made",
                [helper.make_tensor_value_info(name, kind, None) for name in self.inputs],
                [helper.make_tensor_value_info(self.nodes[-1].output[0], kind, None)],
                self.constants,
            ),
            opset_imports=[helper.make_opsetid("", 17)],
            ir_version=8,
        )

    def write(self):
        self.path.write_bytes(self.model().SerializeToString())
        return self.path

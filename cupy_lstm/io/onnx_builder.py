"""A graph of ONNX that grows node by node, and becomes the bytes of a file."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Self

import numpy

from cupy_lstm.backend import HostArray

OPSET, IR_VERSION = 17, 8
"""Old enough for every runtime in use; the operator LSTM is that of opset 14."""

Sizes = Sequence[int | str]
"""Sizes, and names of those that are free."""


class Builder:
    """The graph of a model, or the body of one of its nodes.

    Parameters
    ----------
    onnx : module
        The package.
    dtype : numpy.dtype
        Of inputs and outputs, where nothing else is said.
    outer : Builder, optional
        The graph that this one is the body in.
    """

    def __init__(
        self, onnx: ModuleType, dtype: "numpy.dtype[Any]", outer: "Builder | None" = None
    ) -> None:
        self.onnx, self.dtype = onnx, dtype
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        # What a body reads may lie in the graph around it, where no two things have one name.
        self._constants: dict[str, Any] = {} if outer is None else outer._constants
        self._counts: dict[str, int] = {} if outer is None else outer._counts

    def body(self) -> Self:
        """Return an empty graph for the body of a node."""
        return type(self)(self.onnx, self.dtype, self)

    def input(self, name: str, shape: Sizes, kind: int | None = None) -> str:
        """Add an input of this graph and return its name."""
        self._inputs.append(self._described(name, shape, kind))
        return name

    def output(self, source: str, name: str, shape: Sizes) -> None:
        """Make a value an output of this graph, under this name."""
        self._nodes.append(self.onnx.helper.make_node("Identity", [source], [name]))
        self._outputs.append(self._described(name, shape))

    def constant(self, name: str, value: HostArray) -> str:
        """Add a constant, once for each name, and return the name."""
        self._constants[name] = self.tensor(name, value)
        return name

    def tensor(self, name: str, value: HostArray) -> Any:
        """Return an array as ONNX has it; integers as int64, which its sizes and indices are."""
        dtype = "int64" if value.dtype.kind == "i" else value.dtype
        contiguous = numpy.ascontiguousarray(value, dtype).reshape(value.shape)
        return self.onnx.numpy_helper.from_array(contiguous, name)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return its name."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        self._counts[operator] = count = self._counts.get(operator, -1) + 1
        stem = f"{operator}_{count}"
        names = [f"{stem}_{n}" for n in range(outputs)]
        self._nodes.append(self.onnx.helper.make_node(operator, inputs, names, stem, **attributes))
        return names

    def as_graph(self, name: str, constants: bool = False) -> Any:
        """Return the graph, with the constants if they are not those of another one."""
        tensors = list(self._constants.values()) if constants else []
        return self.onnx.helper.make_graph(self._nodes, name, self._inputs, self._outputs, tensors)

    def as_bytes(self, metadata: dict[str, str]) -> bytes:
        """Return the model as the bytes of a file."""
        from cupy_lstm import __version__

        helper = self.onnx.helper
        model = helper.make_model(
            self.as_graph("LSTM", constants=True),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="cupy_lstm",
            producer_version=__version__,
        )
        helper.set_model_props(model, metadata)
        contents: bytes = model.SerializeToString(deterministic=True)
        return contents

    def _described(self, name: str, shape: Sizes, kind: int | None = None) -> Any:
        helper = self.onnx.helper
        return helper.make_tensor_value_info(
            name, kind or helper.np_dtype_to_tensor_dtype(self.dtype), shape
        )

"""Values in an ONNX graph that follow from others by nothing but moving elements.

Exporters transpose, cut and join weights, and they rearrange what one layer hands to the next. Both
are followed here with a few operators in NumPy. Only what is asked for is computed, in the order of
the file, so neither a cycle nor a long chain is a danger, and joining has a budget.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy

from cupy_lstm.backend import HostArray

GROWTH = 4
"""What may be made of the elements that were read, as a multiple: weights are used about once."""

Known = Mapping[str, Callable[[], HostArray]]
"""Values by name that are made when they are asked for."""


class Graph:
    """A graph of ONNX, and what its constants say.

    Parameters
    ----------
    onnx : module
        The package.
    graph : GraphProto
        Of a model without its external data.
    folder : Path
        Where external data may lie; onnx refuses paths that lead out of it, and links.
    """

    def __init__(self, onnx: ModuleType, graph: Any, folder: Path) -> None:
        self._onnx = onnx
        self._folder = folder
        self.nodes = list(graph.node)
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and is_standard(node) and node.output:
                self._tensors |= {node.output[0]: node}
        self._producers = {
            name: index for index, node in enumerate(self.nodes) for name in node.output if name
        }
        self._names = {value.name for value in graph.input} | self._producers.keys()
        self._read: dict[str, HostArray] = {}
        self._budget = 2**20

    @property
    def constants(self) -> list[str]:
        """Names of the constants that the graph holds as such."""
        return list(self._tensors)

    def attributes(self, node: Any) -> dict[str, Any]:
        """Return the attributes of a node by name; text as str."""
        found = {a.name: self._onnx.helper.get_attribute_value(a) for a in node.attribute}
        return {
            name: value.decode(errors="replace") if isinstance(value, bytes) else value
            for name, value in found.items()
        }

    def knows(self, name: str) -> bool:
        """Say whether the graph has a value of this name."""
        return name in self._names or name in self._tensors

    def is_constant(self, name: str) -> bool:
        """Say whether the graph holds a value as a constant."""
        return name in self._tensors

    def producer(self, name: str) -> Any:
        """Return the node that a value comes from; None for an input of the model."""
        index = self._producers.get(name)
        return None if index is None else self.nodes[index]

    def constant(self, name: str) -> HostArray | None:
        """Return a constant that the graph holds as such; None if it is none.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        tensor = self._tensors.get(name)
        if tensor is None or name in self._read:
            return self._read.get(name)
        try:
            if isinstance(tensor, self._onnx.NodeProto):
                ((kind, value),) = self.attributes(tensor).items()
                if kind != "value":
                    return numpy.asarray(value)
                tensor = value
            if self._onnx.external_data_helper.uses_external_data(tensor):
                copy = self._onnx.TensorProto()
                copy.CopyFrom(tensor)
                tensor = copy
                self._onnx.external_data_helper.load_external_data_for_tensor(
                    tensor, str(self._folder)
                )
            array = numpy.asarray(self._onnx.numpy_helper.to_array(tensor))
        # onnx has errors of its own for a bad place, and Python's for bad contents.
        except Exception as error:
            raise ValueError(f"the constant {name!r} cannot be read: {error}") from None
        self._budget += GROWTH * array.size
        self._read[name] = array
        return array

    def filler(self, node: Any) -> HostArray:
        """Return the one element that a node ConstantOfShape repeats.

        Raises
        ------
        ValueError
            If it cannot be read.
        """
        tensor = self.attributes(node).get("value")
        if tensor is None:
            return numpy.zeros(1, "float32")
        try:
            return numpy.asarray(self._onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # as above
            raise ValueError(f"the node {describe(node)} cannot be read: {error}") from None

    def charge(self, elements: int) -> None:
        """Count elements that are copied; raise a ValueError if they are out of all proportion."""
        self._budget -= elements
        if self._budget < 0:
            raise ValueError("far more would be made of its constants than it holds")

    def value(self, name: str, known: Known | None = None) -> HostArray | None:
        """Return a value that follows from constants, and from values that are known.

        Parameters
        ----------
        name : str
            Of the value.
        known : mapping of str to function, optional
            Other values that are known.

        Returns
        -------
        array or None
            None if it depends on an input of the model, or on an operator that computes.

        Raises
        ------
        ValueError
            If an operator or a constant on the way is malformed, or far too much is joined.
        """
        given = known or {}
        needed: set[int] = set()
        waiting = [name]
        while waiting:
            wanted = waiting.pop()
            if wanted in given or wanted in self._tensors:
                continue
            index = self._producers.get(wanted)
            if index is None:
                return None
            if index not in needed:
                node = self.nodes[index]
                if node.op_type not in MOVES or not is_standard(node) or not node.input:
                    return None
                needed.add(index)
                waiting += node.input if node.op_type == "Concat" else node.input[:1]
        moves = MOVES if known is None else MOVES | {"Reshape": _joined}
        made: dict[str, HostArray] = {}

        def found(name: str) -> HostArray | None:
            if name in made:
                return made[name]
            return given[name]() if name in given else self.constant(name)

        for index in sorted(needed):
            moved = self._moved(self.nodes[index], found, moves)
            if moved is None:
                return None
            made[self.nodes[index].output[0]] = moved
        return found(name)

    def _moved(
        self,
        node: Any,
        found: Callable[[str], HostArray | None],
        moves: Mapping[str, "Move"],
    ) -> HostArray | None:
        """Return the first output of a node that moves elements; None if the graph computes how."""
        move = moves[node.op_type]
        count = len(node.input) if node.op_type == "Concat" else 1
        data = [found(name) for name in node.input[:count]]
        how = [self.constant(name) for name in node.input[count:]]
        computed = any(n and a is None for n, a in zip(node.input[count:], how, strict=True))
        if computed and move is not _joined:
            return None
        try:
            if any(array is None for array in data):
                raise ValueError("its input comes after it")
            if node.op_type in ("Concat", "Reshape"):
                self.charge(sum(array.size for array in data if array is not None))
            return move(data, how, self.attributes(node))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ValueError(f"the node {describe(node)} cannot be followed: {error}") from None


def is_standard(node: Any) -> bool:
    """Say whether a node's operator is one of ONNX itself."""
    return node.domain in ("", "ai.onnx")


def describe(node: Any) -> str:
    """Return how a message calls a node."""
    return repr(node.name or f"{node.op_type} of {', '.join(filter(None, node.output))}")


def _integers(how: Sequence[HostArray | None], place: int, attributes: Any, name: str) -> Any:
    """Return integers given as an input, or in older opsets as an attribute; None if absent."""
    if place < len(how):
        array = how[place]
        return None if array is None else [int(number) for number in array.reshape(-1)]
    return attributes.get(name)


def _squeezed(data: Any, how: Any, attributes: Any) -> HostArray:
    axes = _integers(how, 0, attributes, "axes")
    return numpy.asarray(numpy.squeeze(data[0], None if axes is None else tuple(axes)))


def _unsqueezed(data: Any, how: Any, attributes: Any) -> HostArray:
    return numpy.asarray(numpy.expand_dims(data[0], tuple(_integers(how, 0, attributes, "axes"))))


def _sliced(data: Any, how: Any, attributes: Any) -> HostArray:
    starts = _integers(how, 0, attributes, "starts")
    ends = _integers(how, 1, attributes, "ends")
    axes = _integers(how, 2, attributes, "axes") or range(len(starts))
    steps = _integers(how, 3, attributes, "steps") or [1] * len(starts)
    where = [slice(None)] * data[0].ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        where[axis] = slice(start, end, step)
    return numpy.asarray(data[0][tuple(where)])


def _reshaped(data: Any, how: Any, attributes: Any) -> HostArray:
    value, shape = data[0], _integers(how, 0, attributes, "shape")
    reshaped: HostArray = value.reshape(
        [value.shape[axis] if size == 0 else size for axis, size in enumerate(shape)]
    )
    return reshaped


def _joined(data: Any, how: Any, attributes: Any) -> HostArray:
    """Join the features of both directions, whatever sizes the other two axes have.

    A model exported for one number of rows and steps says them in the shape, one exported for any
    may compute the shape.
    """
    value, shape = data[0], _integers(how, 0, attributes, "shape")
    if value.ndim == 4:
        single = value.shape[1] == 1  # one direction, in front of the rows
        value = value[:, 0] if single else value.reshape(*value.shape[:2], -1)
    if value.ndim != 3 or (shape and (len(shape) != 3 or shape[2] not in (-1, value.shape[2]))):
        raise ValueError("it does more than to join directions")
    joined: HostArray = value
    return joined


Move = Callable[[Any, Any, Any], HostArray]
"""A function of data, further inputs and attributes."""

MOVES: dict[str, Move] = {
    "Identity": lambda data, how, attributes: data[0],
    "Dropout": lambda data, how, attributes: data[0],
    "Transpose": lambda data, how, attributes: numpy.transpose(data[0], attributes.get("perm")),
    "Concat": lambda data, how, attributes: numpy.concatenate(data, attributes["axis"]),
    "Squeeze": _squeezed,
    "Unsqueeze": _unsqueezed,
    "Slice": _sliced,
    "Reshape": _reshaped,
}
"""Operators that move elements."""

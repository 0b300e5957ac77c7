"""Weights from and to `torch.nn.LSTM`: the same names, a projection transposed.

What is known of PyTorch's layout here holds for `cupy_lstm.torch.weights`, too, which reads it from
a module's own tensors.
"""

from types import ModuleType
from typing import Any

from cupy_lstm.backend import HostArray
from cupy_lstm.io.assembly import assembled_lstm
from cupy_lstm.io.host import host_state, host_weights, module_at, require_lstm, setting
from cupy_lstm.io.optional import optional_module
from cupy_lstm.lstm import LSTM


def from_torch(
    source: Any, *, prefix: str = "", xp: str | ModuleType = "numpy", dtype: Any = None
) -> LSTM:
    """Return an LSTM with the weights of one of PyTorch, copied through the host.

    Parameters
    ----------
    source : torch.nn.LSTM, or mapping of str to tensor or array
        The module, or its ``state_dict``; `load_state_dict` reads one from a safetensors file.
        From the module layout, dropout and mode are taken, too; a state dict does not know them,
        and the LSTM is batch-major, without dropout and in training mode until that is set.
    prefix : str
        What names in `source` begin with, where it is a larger model or its state dict:
        ``"encoder.lstm."``.
    xp : module or str
        ``numpy`` or ``cupy``: where the weights go.
    dtype : dtype-like, optional
        What to convert the weights to; default: keep theirs.

    Raises
    ------
    TypeError
        If `source` is neither, or holds no tensors.
    ValueError
        If a weight is missing or unknown, or a shape or dtype does not fit.
    ImportError
        If CuPy is asked for and cannot be imported.
    """
    weights = {
        name.replace("weight_hr", "weight_ho"): weight.T if "weight_hr" in name else weight
        for name, weight in host_state("source", source, prefix).items()
    }
    module = module_at(source, prefix)
    lstm = assembled_lstm(
        weights,
        f"state dict of torch{f', names with {prefix!r}' if prefix else ''}",
        time_major=not setting(module, "batch_first", True),
        dropout=setting(module, "dropout", 0.0),
        xp=xp,
        dtype=dtype,
    )
    return lstm if setting(module, "training", True) else lstm.eval()


def to_torch(lstm: LSTM) -> Any:
    """Return a `torch.nn.LSTM` with copies of the weights, on the CPU.

    Layout, dropout and mode go with them. PyTorch has both biases or none: one that is absent here
    is zero there. Its random state is not touched.

    Parameters
    ----------
    lstm : LSTM
        Of any dtype and device; a GPU is waited for.

    Returns
    -------
    torch.nn.LSTM
        In the dtype of `lstm`.

    Raises
    ------
    TypeError
        If `lstm` is none.
    ImportError
        If PyTorch is not installed.
    """
    require_lstm(lstm)
    torch = optional_module("torch", "to_torch", "torch")
    dtype = getattr(torch, lstm.dtype.name)
    module = torch.nn.LSTM(
        lstm.input_size,
        lstm.hidden_size,
        lstm.num_layers,
        bias=lstm.bias_ih_l0 is not None or lstm.bias_hh_l0 is not None,
        batch_first=not lstm.time_major,
        dropout=lstm.dropout if lstm.num_layers > 1 else 0.0,  # it warns of one without effect
        bidirectional=lstm.num_directions == 2,
        proj_size=lstm.proj_size,
        dtype=dtype,
        device="meta",  # where nothing is drawn
    ).to_empty(device="cpu")
    module.load_state_dict(
        {
            # PyTorch does not know NumPy's bfloat16; float32 holds every value of it.
            name: torch.tensor(w.astype("float32") if w.dtype.itemsize == 2 else w, dtype=dtype)
            for name, w in torch_state(lstm).items()
        }
    )
    return module.train(lstm.training)


def torch_state(lstm: LSTM) -> dict[str, HostArray]:
    """Return the weights on the host, in the names, shapes and order of a state dict of PyTorch."""
    return {
        name.replace("weight_ho", "weight_hr"): weight.T if "weight_ho" in name else weight
        for name, weight in host_weights(lstm).items()
    }

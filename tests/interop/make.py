"""Write the files in this folder: ``python tests/interop/make.py torch|paddle|keras``.

Each library writes its own, so each needs an environment with that library, and no GPU:

- ``torch``: torch, onnx, onnxscript, safetensors;
- ``paddle``: paddlepaddle;
- ``keras``: tensorflow (which brings keras) and tf2onnx.

README.md says which versions wrote the files that are stored. Weights and inputs are drawn in
float32; a library computes its outputs from them in float64.
"""

import sys
import warnings
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
T, B, I, H, P = 5, 2, 3, 4, 2  # noqa: E741


def drawn(*shape, rng=np.random.default_rng(2026)):  # noqa: B008 - one stream for all files
    return (0.5 * rng.standard_normal(shape)).astype("float32")


def doubled(arrays):
    return {name: array.astype("float64") for name, array in arrays.items()}


def write(name, weights, **arrays):
    weights = {f"w.{key}": value for key, value in weights.items()}
    np.savez(FOLDER / f"{name}.npz", **weights, **arrays)
    print(f"{name}.npz: {len(weights)} weights, {', '.join(arrays)}")


def make_torch():
    import torch
    from safetensors.torch import save_file

    print("torch", torch.__version__)
    options = {
        "torch_bi2": {"num_layers": 2, "bidirectional": True, "batch_first": True},
        "torch_projection": {"num_layers": 2, "proj_size": P},
        "torch_no_bias": {"bias": False},
    }
    for name, chosen in options.items():
        module = torch.nn.LSTM(I, H, **chosen).double().eval()
        weights = {key: drawn(*w.shape) for key, w in module.state_dict().items()}
        module.load_state_dict({key: torch.tensor(w) for key, w in weights.items()})
        rows = (B, T) if module.batch_first else (T, B)
        layers = module.num_layers * (1 + module.bidirectional)
        x = drawn(*rows, I)
        states = [drawn(layers, B, module.proj_size or H), drawn(layers, B, H)]
        with torch.no_grad():
            y, (h, c) = module(torch.tensor(x).double(), [torch.tensor(s).double() for s in states])
        outputs = {"y": y.numpy(), "h": h.numpy(), "c": c.numpy()}
        write(name, weights, x=x, h0=states[0], c0=states[1], **outputs)
        if name == "torch_bi2":
            module = module.float()
            save_file(module.state_dict(), FOLDER / f"{name}.safetensors")
            export_torch(torch, module, torch.tensor(x))


def export_torch(torch, module, x):
    warnings.simplefilter("ignore")
    torch.onnx.export(module, (x,), FOLDER / "torch_exported.onnx", dynamo=True)
    torch.onnx.export(
        module,
        (x,),
        FOLDER / "torch_traced.onnx",
        dynamo=False,
        do_constant_folding=False,
        input_names=["x"],
        dynamic_axes={"x": {0: "batch", 1: "time"}},
    )
    for name in ("torch_exported.onnx", "torch_traced.onnx"):
        without_traces(FOLDER / name)
        print(name)


def without_traces(path):
    """Take out where in the exporter's own source each node comes from."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    del model.metadata_props[:], model.graph.metadata_props[:]
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input):
        part.doc_string = ""
        del part.metadata_props[:]
    for part in (*model.graph.output, *model.graph.initializer):
        del part.metadata_props[:]
    path.write_bytes(model.SerializeToString())


def make_paddle():
    import paddle

    print("paddle", paddle.__version__)
    paddle.set_default_dtype("float64")
    for name, projection in (("paddle_bi2", 0), ("paddle_projection", P)):
        layer = paddle.nn.LSTM(I, H, 2, "bidirect", proj_size=projection)
        # Through the parameters: by name, those of a projection would go astray.
        for parameter in layer.parameters():
            parameter.set_value(drawn(*parameter.shape).astype("float64"))
        x, states = drawn(B, T, I), [drawn(4, B, projection or H), drawn(4, B, H)]
        lengths = np.array([T, 2])
        y, (h, c) = layer(
            paddle.to_tensor(x.astype("float64")),
            tuple(paddle.to_tensor(s.astype("float64")) for s in states),
            paddle.to_tensor(lengths),
        )
        y = y.numpy()
        y[1, 2:] = 0  # with a projection, Paddle leaves anything in padding
        weights = {key: w.numpy().astype("float32") for key, w in layer.state_dict().items()}
        outputs = {"y": y, "h": h.numpy(), "c": c.numpy()}
        write(name, weights, x=x, h0=states[0], c0=states[1], lengths=lengths, **outputs)


def make_keras():
    import keras
    import tensorflow
    import tf2onnx

    print("keras", keras.__version__, "tensorflow", tensorflow.__version__, tf2onnx.__version__)

    def model(dtype, biased):
        layers = [
            keras.layers.LSTM(H, return_sequences=True, use_bias=biased, dtype=dtype)
            for _ in range(2)
        ]
        if biased:
            layers = [keras.layers.Bidirectional(layer, dtype=dtype) for layer in layers]
        return keras.Sequential([keras.layers.Input((None, I), dtype=dtype), *layers])

    for name, biased in (("keras_bi2", True), ("keras_no_bias", False)):
        double, single = model("float64", biased), model("float32", biased)
        weights, x = {}, drawn(B, T, I)
        for k, (layer, twin) in enumerate(zip(double.layers, single.layers, strict=True)):
            arrays = [drawn(*w.shape) for w in layer.get_weights()]
            layer.set_weights(arrays)
            twin.set_weights(arrays)
            weights |= {f"{k}.{n}": array for n, array in enumerate(arrays)}
        write(name, weights, x=x, y=double(x.astype("float64")).numpy())
        signature = [tensorflow.TensorSpec((None, None, I), tensorflow.float32, name="x")]
        tf2onnx.convert.from_function(
            tensorflow.function(lambda x, single=single: single(x), input_signature=signature),
            input_signature=signature,
            opset=17,
            output_path=str(FOLDER / f"{name}.onnx"),
        )
        print(f"{name}.onnx")


if __name__ == "__main__":
    {"torch": make_torch, "paddle": make_paddle, "keras": make_keras}[sys.argv[1]]()

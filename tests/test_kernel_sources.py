"""The CUDA sources reach every kind of install, and the cell they hold computes the cell.

`cuda/cell.cuh` is compiled as it is with the host's C++ compiler and compared with exact
arithmetic: decimals of 150 digits. What a GPU's compiler makes of it is not tested here.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from decimal import Context, Decimal, localcontext
from pathlib import Path

import numpy as np
import pytest

from cupy_lstm import kernels

ROOT = Path(__file__).resolve().parent.parent
DTYPES = ("float32", "float64")


# --- every kind of install -------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


def found_from_elsewhere(import_path, cwd):
    """Return the package, the folder of its sources and a source, as another process finds them."""
    code = (
        "import cupy_lstm, cupy_lstm.kernels as kernels\n"
        "print(cupy_lstm.__file__, kernels.source_folder(), sep='\\n')\n"
        "print(kernels.source('cell.cuh'), end='')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(import_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    package, folder, text = done.stdout.split("\n", 2)
    return Path(package).parent, Path(folder), text


def test_wheel_holds_every_source_and_the_type_marker(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"cupy_lstm/cuda/{path.name}" for path in (ROOT / "cuda").glob("*.cu*")}
    assert "cupy_lstm/cuda/cell.cuh" in sources
    assert sources <= names
    assert "cupy_lstm/py.typed" in names


def test_wheel_holds_the_package_and_nothing_beside_it(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"cupy_lstm", next(top for top in tops if top.endswith(".dist-info"))}
    assert not [name for name in names if "__pycache__" in name]


def test_unpacked_wheel_finds_the_sources_inside_the_package(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    package, folder, text = found_from_elsewhere(site, elsewhere)
    assert package == site / "cupy_lstm"
    assert folder == site / "cupy_lstm" / "cuda"
    assert text == (ROOT / "cuda" / "cell.cuh").read_text()


def test_source_tree_finds_the_sources_beside_the_package(tmp_path):
    package, folder, text = found_from_elsewhere(ROOT, tmp_path)
    assert package == ROOT / "cupy_lstm"
    assert folder == ROOT / "cuda"
    assert text == (ROOT / "cuda" / "cell.cuh").read_text()


def test_the_tree_has_no_cuda_package():
    # It would hide the namespace package of that name, which CuPy imports from.
    assert not (ROOT / "cuda" / "__init__.py").exists()


def test_another_project_s_cuda_package_is_not_taken_for_ours(tmp_path, monkeypatch):
    (tmp_path / "cuda" / "bindings").mkdir(parents=True)
    monkeypatch.setattr(kernels, "PACKAGE", tmp_path / "cupy_lstm")
    with pytest.raises(FileNotFoundError) as raised:
        kernels.source_folder()
    assert str(raised.value) == (
        "the CUDA sources of cupy_lstm (a folder with cell.cuh) are neither in "
        f"{tmp_path / 'cupy_lstm' / 'cuda'} nor in {tmp_path / 'cuda'}: install the package again"
    )


@pytest.mark.parametrize("name", ["none.cu", "../pyproject.toml", ""])
def test_a_source_that_is_not_there(name):
    with pytest.raises(FileNotFoundError, match=r"there is no CUDA source .* only \['cell\.cuh'"):
        kernels.source(name)


# --- the cell against exact arithmetic -------------------------------------------------------

WRAPPER = """
#include <math.h>
#define __device__
#define __forceinline__
#include "cell.cuh"

#define WRAP(T)                                                                              \\
    extern "C" void sigmoid_##T(long n, const T* x, T* y) {                                  \\
        for (long k = 0; k < n; ++k) y[k] = sigmoid(x[k]);                                   \\
    }                                                                                        \\
    extern "C" void tanh_##T(long n, const T* x, T* y) {                                     \\
        for (long k = 0; k < n; ++k) y[k] = hyperbolic_tangent(x[k]);                        \\
    }                                                                                        \\
    extern "C" void forward_##T(long n, const T* in, T* out) {                               \\
        for (long k = 0; k < n; ++k, in += 5, out += 6) {                                    \\
            const Gates<T> z = {in[0], in[1], in[2], in[3]};                                 \\
            const CellForward<T> cell = cell_forward(z, in[4]);                              \\
            const T values[] = {cell.gates.i, cell.gates.f, cell.gates.g, cell.gates.o,      \\
                                cell.c,       cell.m};                                       \\
            for (int j = 0; j < 6; ++j) out[j] = values[j];                                  \\
        }                                                                                    \\
    }                                                                                        \\
    extern "C" void backward_##T(long n, const T* in, T* out) {                              \\
        for (long k = 0; k < n; ++k, in += 8, out += 5) {                                    \\
            const Gates<T> gates = {in[0], in[1], in[2], in[3]};                             \\
            const CellBackward<T> gradient =                                                 \\
                cell_backward(gates, in[4], in[5], in[6], in[7]);                            \\
            const T values[] = {gradient.dz.i, gradient.dz.f, gradient.dz.g, gradient.dz.o,  \\
                                gradient.dc_prev};                                           \\
            for (int j = 0; j < 5; ++j) out[j] = values[j];                                  \\
        }                                                                                    \\
    }

WRAP(float)
WRAP(double)
"""

C_TYPE = {"float32": "float", "float64": "double"}


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    """Compile cell.cuh, as it is, and return a function that runs one of its functions on rows."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or what CXX names): cell.cuh cannot be run on this host")
    folder = tmp_path_factory.mktemp("cell")
    (folder / "cell.cuh").write_text(kernels.source("cell.cuh"))
    (folder / "wrapper.cpp").write_text(WRAPPER)
    # -Wdouble-promotion: a float that becomes a double would be accurate, and slow on a GPU.
    flags = "-std=c++17 -O2 -shared -fPIC -Wall -Wextra -Wconversion -Wdouble-promotion -Werror"
    command = [compiler, *flags.split(), "wrapper.cpp", "-o", "cell.so", "-lm"]
    compiled = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr
    library = ctypes.CDLL(str(folder / "cell.so"))

    def run(name, rows, results):
        rows = np.ascontiguousarray(rows)
        out = np.empty((len(rows), results), rows.dtype)
        function = library[f"{name}_{C_TYPE[rows.dtype.name]}"]
        function(ctypes.c_long(len(rows)), *(ctypes.c_void_p(a.ctypes.data) for a in (rows, out)))
        return out

    return run


@pytest.fixture
def exact():
    """150 digits: enough for what cancels in 1 - exp(-2|x|) and in the central differences."""
    context = Context(prec=150, Emin=-(10**9), Emax=10**9)
    context.traps = dict.fromkeys(context.traps, False)
    with localcontext(context):
        yield


def exact_sigmoid(x):
    return 1 / (1 + (-x).exp())


def exact_tanh(x):
    if abs(x) < Decimal("1e-20"):
        return x - x**3 / 3 + 2 * x**5 / 15  # the next term is below 1e-120 of it
    e = (-2 * abs(x)).exp()
    return ((1 - e) / (1 + e)).copy_sign(x)


def exact_forward(z_i, z_f, z_g, z_o, c_prev):
    """Return what CellForward holds, from the equations of the LSTM alone."""
    i, f, g, o = exact_sigmoid(z_i), exact_sigmoid(z_f), exact_tanh(z_g), exact_sigmoid(z_o)
    c = f * c_prev + i * g
    return i, f, g, o, c, o * exact_tanh(c)


def decimals(row):
    return [Decimal(float(value)) for value in row]


def differences(computed, exact_values):
    """Return |computed - exact| as float64, the subtraction done in decimals."""
    pairs = zip(computed.ravel(), exact_values, strict=True)
    return np.array([float(abs(Decimal(float(ours)) - truth)) for ours, truth in pairs])


def every_binade(dtype, count=3000, seed=0):
    """Return finite numbers of both signs, every exponent alike: subnormal to the largest."""
    info = np.finfo(dtype)
    bits = np.dtype(dtype).itemsize * 8
    patterns = np.random.default_rng(seed).integers(0, 2**63, count, dtype=np.uint64)
    numbers = (patterns << np.uint64(1) >> np.uint64(64 - bits)).astype(f"uint{bits}").view(dtype)
    edges = [info.smallest_subnormal, info.tiny, info.eps, 0.5, 1.0, np.log(info.max), info.max]
    numbers = np.concatenate([numbers[np.isfinite(numbers)], np.array([0.0, *edges], dtype)])
    return np.concatenate([numbers, -numbers])


def where_it_bends(dtype, count=3000, seed=1):
    """Return numbers between saturation on either side, where the functions are not constant."""
    limit = -np.log(float(np.finfo(dtype).smallest_subnormal))
    return np.random.default_rng(seed).uniform(-limit, limit, count).astype(dtype)


# Errors are counted in eps, the spacing of numbers at 1; an ulp of x lies between eps |x| / 2 and
# eps |x|, so k ulp are at most k eps |x|. The host's exp is accurate to 1 ulp and its tanh to 2
# (the figures glibc states), and an arithmetic operation to half an ulp.
EXP = 1
TANH = 2
# s = n / (1 + e) with n = 1 or n = e: the error of e enters at most once (where n = e it enters
# with 1 - e / (1 + e)), the addition and the division add a half each.
SIGMOID = EXP + 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "truth", "bound"),
    [("sigmoid", exact_sigmoid, SIGMOID), ("tanh", exact_tanh, TANH)],
)
def test_activation_is_within_its_bound_everywhere(cell, exact, name, truth, bound, dtype):
    x = np.concatenate([every_binade(dtype), where_it_bends(dtype)])
    expected = [truth(value) for value in decimals(x)]
    error = differences(cell(name, x, 1), expected)
    magnitude = np.array([abs(float(value)) for value in expected])
    info = np.finfo(dtype)
    # Below the smallest normal number a rounding is absolute: half a subnormal step, twice.
    allowed = bound * float(info.eps) * magnitude + float(info.smallest_subnormal)
    worst = int(np.argmax(error - allowed))
    assert error[worst] <= allowed[worst], (x[worst], expected[worst])


@pytest.mark.parametrize("dtype", DTYPES)
def test_activation_at_infinity_zero_and_nan(cell, dtype):
    x = np.array([np.inf, -np.inf, 0.0, -0.0, np.nan, -np.nan], dtype)
    np.testing.assert_array_equal(cell("sigmoid", x, 1)[:, 0], [1, 0, 0.5, 0.5, np.nan, np.nan])
    tanh = cell("tanh", x, 1)[:, 0]
    np.testing.assert_array_equal(tanh, [1, -1, 0, 0, np.nan, np.nan])
    np.testing.assert_array_equal(np.signbit(tanh[:4]), [False, True, False, True])


def pre_activations(dtype, count=400, seed=2):
    """Return rows z_i, z_f, z_g, z_o, c_prev, from gates half open to closed by exp(-42)."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((count, 5)) * rng.choice([0.01, 1, 4, 12], (count, 5))
    return rows.astype(dtype)


def bounds_forward(exact_row, c_prev):
    """Return the first-order error bounds of i, f, g, o, c, m in eps, for the naive order.

    c is two products, each of a gate, and one sum; m is a product with a tanh, whose derivative
    (at most 1) passes the error of c on.
    """
    i, f, g, o, c, _ = (abs(float(value)) for value in exact_row)
    tanh_c = abs(np.tanh(c))
    c_bound = f * abs(c_prev) * (SIGMOID + 1) + i * abs(g) * (SIGMOID + TANH + 1)
    m_bound = o * tanh_c * (SIGMOID + TANH + 0.5) + o * c_bound
    return np.array([SIGMOID * i, SIGMOID * f, TANH * abs(g), SIGMOID * o, c_bound, m_bound])


@pytest.mark.parametrize("dtype", DTYPES)
def test_cell_forward_against_the_equations(cell, exact, dtype):
    rows = pre_activations(dtype)
    info = np.finfo(dtype)
    for row, computed in zip(rows, cell("forward", rows, 6), strict=True):
        truth = exact_forward(*decimals(row))
        bound = float(info.eps) * bounds_forward(truth, float(row[4])) + float(info.tiny)
        assert np.all(differences(computed, truth) <= bound), row


def central_differences(row, dm, dc):
    """Return the gradient of dm * m + dc * c for z_i, z_f, z_g, z_o, c_prev.

    With a step of 1e-60 both errors, of the formula (1e-120) and of the rounding (1e-90), are far
    below an eps of the smallest gradient, that of three gates closed by exp(-42).
    """
    step = Decimal("1e-60")

    def loss(values):
        *_, c, m = exact_forward(*values)
        return dm * m + dc * c

    gradient = []
    for k in range(5):
        high, low = list(row), list(row)
        high[k] += step
        low[k] -= step
        gradient.append((loss(high) - loss(low)) / (2 * step))
    return gradient


def bounds_backward(exact_row, c_prev, dm, dc):
    """Return the first-order error bounds of dz_i, dz_f, dz_g, dz_o, dc_prev in eps.

    Gates, c and tanh(c) come with the errors of the forward pass. 1 - s inherits the whole error
    of s however small it is itself, so s (1 - s) is bounded by multiples of s, and 1 - tanh^2,
    for the same reason, by multiples of 1. Every product and sum adds a half of its result.
    """
    i, f, g, o, c, _ = (abs(float(value)) for value in exact_row)
    c_prev, dm, dc = abs(c_prev), abs(dm), abs(dc)
    c_bound = bounds_forward(exact_row, c_prev)[4]
    tanh_c, tanh_bound = np.tanh(c), TANH * np.tanh(c) + c_bound
    slope_s = SIGMOID + 1  # of s (1 - s), times s: |1 - 2 s| <= 1, one difference, one product
    slope_tanh = 2 * tanh_bound + 1  # of 1 - tanh^2: one square, one difference
    total = dc + dm * o * (1 - tanh_c**2)
    total_bound = 0.5 * total + dm * o * (SIGMOID + 1 + slope_tanh)
    return np.array(
        [
            g * i * (total_bound + total * (slope_s + TANH + 1)),
            c_prev * f * (total_bound + total * (slope_s + 1)),
            i * (total_bound + total * (2 * TANH + 1 + SIGMOID + 1)),
            dm * o * (tanh_bound + tanh_c * (slope_s + 1)),
            f * (total_bound + total * (SIGMOID + 0.5)),
        ]
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_cell_backward_against_central_differences(cell, exact, dtype):
    rows = pre_activations(dtype, 200)
    upstream = pre_activations(dtype, 200, seed=3)[:, :2]
    forward = cell("forward", rows, 6)
    backward = cell(
        "backward", np.column_stack([forward[:, :4], rows[:, 4], forward[:, 4], upstream]), 5
    )
    info = np.finfo(dtype)
    for row, (dm, dc), computed in zip(rows, upstream, backward, strict=True):
        values = decimals(row)
        truth = central_differences(values, *decimals((dm, dc)))
        # A product below the smallest normal number may lose all its digits.
        bound = bounds_backward(exact_forward(*values), float(row[4]), float(dm), float(dc))
        allowed = float(info.eps) * bound + float(info.tiny)
        assert np.all(differences(computed, truth) <= allowed), (row, dm, dc)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_cell_is_exact(cell, dtype):
    inf = np.inf
    # z_i, z_f, z_g, z_o, c_prev: a gate at infinity is 0 or 1, and passes or stops exactly.
    rows = np.array([[inf, -inf, inf, inf, 3], [-inf, inf, 1, inf, 3], [1, 1, 1, -inf, 3]], dtype)
    i, f, g, o, c, m = cell("forward", rows, 6).T
    np.testing.assert_array_equal(i[:2], [1, 0])
    np.testing.assert_array_equal(f[:2], [0, 1])
    np.testing.assert_array_equal(o, [1, 1, 0])
    np.testing.assert_array_equal(c[:2], [1, 3])
    assert m[2] == 0
    upstream = np.ones((3, 2), dtype)
    gradient = cell("backward", np.column_stack([i, f, g, o, rows[:, 4], c, upstream]), 5)
    np.testing.assert_array_equal(gradient[0], [0, 0, 0, 0, 0])
    np.testing.assert_array_equal(gradient[1, :4], [0, 0, 0, 0])
    assert gradient[2, 3] == 0
    assert gradient[2, 4] == f[2]  # o = 0 stops what comes through m; dc = 1 passes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("position", range(5))
def test_nan_reaches_what_depends_on_it_and_nothing_else(cell, position, dtype):
    row = np.array([[0.1, 0.2, 0.3, 0.4, 0.5]], dtype)
    row[0, position] = np.nan
    found = np.isnan(cell("forward", row, 6))[0]
    expected = np.zeros(6, bool)
    if position < 4:
        expected[position] = True
    expected[4] = position != 3  # o does not enter c
    expected[5] = True
    np.testing.assert_array_equal(found, expected)

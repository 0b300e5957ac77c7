"""The scripts that predict and measure GPU time: what they count, read, draw and refuse."""

# ruff: noqa: E402 - the modules of the scripts are on no path

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "profiling"))

import model
from gpu import sass
from gpu.capacity import capacity_table
from gpu.published import POINTS
from gpu.rows import SIZES, predicted, read_csv, table, write_csv

from cupy_lstm.cost import STEP_INSTRUCTIONS
from cupy_lstm.device import CARDS
from cupy_lstm.notation import Shape
from cupy_lstm.persistent import team_cost
from cupy_lstm.persistent.teams import LANES, TENSOR
from cupy_lstm.persistent.tiles import TILES
from cupy_lstm.plan import plan_sweep

LISTING = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P1 BRA `(.L_x_2) ;
.L_x_1:
        /*0020*/                   LDS.128 R4, [R2] ;
        /*0030*/                   FFMA R0, R4, R5, R0 ;
.L_x_3:
        /*0040*/                   FFMA.FTZ R0, R4, R5, R0 ;
        /*0050*/               @P0 BRA `(.L_x_3) ;
        /*0060*/                   SHFL.BFLY PT, R7, R0, 0x2, 0x1f ;
        /*0070*/                   STS [R2+0x10], R7 ;
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0090*/              @!UP0 BRA `(.L_x_1) ;
.L_x_2:
        /*00a0*/                   EXIT ;
        /*00b0*/                   NOP ;
"""


def test_machine_code_is_read_by_classes_and_loops():
    code = sass.instructions(LISTING)
    assert [one.opcode for one in code][:3] == ["LDC", "BRA", "LDS"]
    assert [one.target for one in code if one.opcode == "BRA"] == [0xA0, 0x40, 0x20]
    assert sass.classify(code) == {
        "FFMA": 2, "LDS": 1, "STS": 1, "SHFL": 1, "BAR": 1, "other": 5,
    }  # fmt: skip
    outer, inner = sass.loops(code)
    assert (outer.start, outer.stop, inner.start, inner.stop) == (0x20, 0x90, 0x40, 0x50)
    assert inner.counts == {"FFMA": 1, "other": 1}
    assert sass.step_loop(code) == outer.counts
    assert outer.counts["FFMA"] == 2
    assert sass.step_loop(code[:2]) == {}
    once = {"FFMA": 1, "LDS": 1, "STS": 1, "SHFL": 1, "BAR": 1, "other": 1}
    assert sass.once_a_step(code) == once  # without the loop from .L_x_3
    assert sass.once_a_step(code[:2]) == {}


def test_without_a_disassembler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(model, "find_nvdisasm", lambda: None)
    text = model.sass_table("sm_90", ["float32"])
    assert text == (
        "no instructions are counted: there is no nvdisasm here: pip install nvidia-cuda-nvdisasm"
    )


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_compiled_kernels_have_the_instructions_the_model_counts(dtype, backward):
    """Registers are full of weights: 16 FFMA a term, and about as many others as is assumed."""
    if sass.find_nvdisasm() is None:
        pytest.skip(sass.MISSING)
    pytest.importorskip("cupy_backends")
    tile = TILES[4 if dtype == "float32" else 2][2]
    terms = tile.backward_terms if backward else tile.forward_terms
    name, expression, file = model.kernel_of(dtype, tile, backward)
    code = sass.compile_cubin(file, expression, "sm_90")
    found = sass.step_loop(sass.instructions(sass.disassemble(code, sass.find_nvdisasm())))
    assert found["LDL, STL"] == 0
    assert found["BAR"] == 1
    # The products of the terms in registers, a few terms of the loop over the others, the gates.
    assert 16 * terms <= found["FFMA"] <= 16 * (terms + 4) + 64
    assert found["SHFL"] == (15 if backward else 12)
    rest = sum(found.values()) - 16 * terms - found["LDS"]
    assert rest == pytest.approx(STEP_INSTRUCTIONS[name], rel=0.25)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("dtype", "form"), [("float32", LANES), ("float16", TENSOR)])
def test_the_compiled_kernels_of_teams_have_the_instructions_the_model_counts(
    dtype, form, backward
):
    """Products and exchanges are all there, and about as many others as the model counts."""
    if sass.find_nvdisasm() is None:
        pytest.skip(sass.MISSING)
    pytest.importorskip("cupy_backends")
    expression, file = model.team_kernel_of(dtype, form, backward)
    code = sass.instructions(
        sass.disassemble(sass.compile_cubin(file, expression, "sm_90"), sass.find_nvdisasm())
    )
    whole, once = sass.step_loop(code), sass.once_a_step(code)
    assert whole["LDL, STL"] == 0
    assert (once["BAR"], once["MEMBAR"]) == (4, 1)
    terms = form.kept_terms
    if form == LANES:
        assert 32 * terms <= once["FFMA"] < whole["FFMA"] <= 32 * (terms + 1) + 64
        assert once["SHFL"] == 31  # sums of a warp: 16, 8, 4, 2 and 1
        kept = terms * team_cost.TERM_INSTRUCTIONS
    else:
        assert terms <= once["HMMA"] <= terms + 1 < whole["HMMA"]
        assert once["SHFL"] == 0
        kept = terms * team_cost.FRAGMENT_INSTRUCTIONS
    expected = team_cost.STEP_INSTRUCTIONS[form.kind] + team_cost.CELL_INSTRUCTIONS
    # More by what compilers unroll of the loops over partial sums, for four gates each.
    assert 0.8 * expected <= sum(once.values()) - kept <= 1.8 * expected


def test_teams_have_their_kernels_by_architecture():
    def forms(sm, dtype):
        kernels = model.team_kernels(sm, [dtype])
        return {(re.search(r"(\w+)Product", one[0])[1], *one[2]) for one in kernels}

    assert forms("sm_70", "float32") == set()
    assert forms("sm_75", "float16") == {("Lane",)}
    assert forms("sm_80", "float16") == {("Tensor",)}
    assert forms("sm_80", "float32") == {("Lane",), ("Tensor",)}
    assert forms("sm_120", "bfloat16") == {("Tensor",), ("Tensor", "-DCLUSTER=8")}


def test_a_row_is_what_the_plan_says():
    device, shape = CARDS["A100"], Shape(1024, 16, 64, 64, 64, 1)
    row = predicted(device, "float32", shape, "both")
    found = plan_sweep(shape, "float32", "cupy", True, device=device)
    costs = found.cost(), found.cost(backward=True)
    assert row.us == sum(cost.predicted_us for cost in costs)
    assert row.floor_us == sum(cost.floor_us for cost in costs)
    assert row.flops == sum(cost.flops for cost in costs)
    assert (row.engine, row.kind, row.barriers) == ("persistent", "predicted", 2)
    lean = predicted(device, "float32", shape, "forward")
    assert lean.us < costs[0].predicted_us + 1e-9
    assert lean.memory_bytes < costs[0].memory_bytes
    team = predicted(device, "float32", Shape(1024, 16, 512, 512, 512, 1), "both")
    assert (row.tier, team.engine, team.tier) == ("block", "persistent", "grid")
    assert team.us > row.us
    beyond = predicted(device, "float32", Shape(1024, 16, 2048, 2048, 2048, 1), "both")
    assert (beyond.engine, beyond.tier, beyond.us) == ("stepwise", "", None)
    assert beyond.floor_us > team.floor_us


def test_rows_come_back_from_their_file(tmp_path):
    rows = table(CARDS["T4"], ["float32", "float16"], [4], [32, 512])
    rows.append(replace(rows[0], kind="measured", us=1.25))
    write_csv(rows, tmp_path / "rows.csv")
    assert read_csv(tmp_path / "rows.csv") == rows
    assert {row.us is None for row in rows} == {True, False}


def test_published_points_have_their_source():
    for point in POINTS:
        assert point.source
        assert point.card
        assert point.forward_us is None or 0.5 < point.forward_us < 50
        assert point.both_us is None or point.both_us > point.forward_us
    (cudnn,) = (p for p in POINTS if p.what == "cuDNN (torch.nn.LSTM)")
    assert (round(cudnn.forward_us, 2), round(cudnn.both_us, 2)) == (1.96, 5.07)


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    model.main(["--device", "L4", "--batch", "4", "--dtype", "bfloat16", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert text.startswith("L4: microseconds a step by the model, not measured")
    assert "stepwise (" in text
    rows = read_csv(tmp_path / "model.csv")
    assert rows == table(CARDS["L4"], ["bfloat16"], [4])
    assert {row.H for row in rows} == set(SIZES)
    assert (tmp_path / "model.png").read_bytes().startswith(b"\x89PNG")


def test_every_time_in_the_picture_is_labelled(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    from gpu import picture
    from matplotlib.figure import Figure

    labels = []

    def saved(figure, path, **_):
        (legend,) = figure.legends
        labels.extend(text.get_text() for text in legend.get_texts())

    monkeypatch.setattr(Figure, "savefig", saved)
    rows = table(CARDS["H100"], ["float32"], [4, 16])
    measured = [replace(row, kind="measured", us=3.0) for row in rows[:2]]
    measured.append(replace(measured[0], what="torch.nn.LSTM"))
    picture.draw([*rows, *measured], tmp_path / "x.png", "heading")
    assert labels[:2] == ["predicted, B = 4", "predicted, B = 16"]
    assert labels[2:6] == ["block tier", "cluster tier", "grid tier", "floor of the device"]
    assert labels[6:8] == ["measured: cupy_lstm", "measured: torch.nn.LSTM"]
    assert labels[8:]
    assert all(label.startswith("published: ") for label in labels[8:])
    assert any("haste" in label for label in labels)
    assert not any("16, B" in label for label in labels)  # those of half types are elsewhere


def test_where_there_is_no_gpu_the_device_here_is_refused(monkeypatch):
    def missing():
        raise RuntimeError("no driver")

    monkeypatch.setattr(model, "current_device", missing)
    with pytest.raises(SystemExit, match="--device here needs a GPU and CuPy: no driver"):
        model.main(["--device", "here"])


def test_the_capacities_in_the_documentation_are_those_of_the_code(capsys):
    model.main(["--capacity"])
    text = capsys.readouterr().out.strip()
    assert text == capacity_table()
    assert len(re.findall(r"^\| ", text, re.MULTILINE)) == 1 + len(CARDS)
    assert text in (ROOT / "docs/engines.md").read_text(encoding="utf-8")

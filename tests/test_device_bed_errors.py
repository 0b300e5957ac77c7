"""The test bed for kernels, tested: what it refuses, and the mistakes it catches."""

import re
from pathlib import Path

import numpy as np
import pytest
from gpu_on_cpu import device
from gpu_on_cpu.device import A100, B200, H100, L4, LAPTOP, T4, KernelFacts, build, sanitize
from gpu_on_cpu.kernels import samples
from gpu_on_cpu.kernels.samples import HERE, load, run

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="the test bed needs g++")

ORDERS = ("forward", "reverse", "random")

# --- every way to fail, and its line -------------------------------------------------------------

FAULTS = (HERE / "faults.cu").read_text()
NUMBER_OF = {
    name: number
    for number, name in enumerate(
        re.findall(r"^    (\w+),$", FAULTS[FAULTS.index("enum Fault") :], re.MULTILINE)
    )
}
EXPECTED = {
    "misaligned_vector": (device.MisalignedError, r"'struct float4'.*no multiple of 16"),
    "index_past_the_end": (device.OutOfBoundsError, r"index \d+ out of bounds of 'float \[4\]'"),
    "past_dynamic_memory": (device.OutOfBoundsError, "past the end of its extern __shared__"),
    "shared_store_to_global": (device.OutOfBoundsError, "global memory, given shared memory"),
    "null_pointer": (device.MemoryFaultError, "null pointer"),
    "no_such_memory": (device.MemoryFaultError, "illegal memory access"),
    "division_by_zero": (device.MemoryFaultError, "integer division by zero"),
    "failed_assert": (device.KernelError, "failed: i < 3"),
    "trap": (device.KernelError, "trapped"),
    "more_than_the_stack": (device.MemoryFaultError, "more than 252 KiB of stack"),
    "barriers_in_two_branches": (device.DivergenceError, r"thread \(\d, 0, 0\) came to __sync"),
    "left_before_the_barrier": (device.DivergenceError, r"thread \(5, 0, 0\) left the kernel"),
    "left_before_the_others_came": (device.DivergenceError, "after 1 thread had left the kernel"),
    "shuffle_in_two_branches": (device.DivergenceError, "divergent warp"),
    "lane_outside_its_mask": (device.DivergenceError, "not in its own mask"),
    "lane_that_takes_no_part": (device.DivergenceError, r"reads lane \d+, which takes no part"),
    "waits_forever": (device.DeadlockError, "8 threads wait in load_acquire"),
    "waits_for_a_later_block": (device.DeadlockError, r"\d+ blocks have not started: only a coop"),
    "barrier_while_polled": (device.DeadlockError, r"1 thread waits in atomicCAS"),
    "volatile_spin": (device.HangError, "a wait on a plain or volatile load"),
    "grid_barrier_alone": (device.DivergenceError, "not cooperative"),
    "grid_barrier_missed": (device.DivergenceError, "left the kernel|had left the kernel"),
    "block_scope_to_another_block": (device.ScopeError, "a scope must hold both threads"),
    "cluster_arrives_twice": (device.DivergenceError, "arrived before and has not waited"),
    "cluster_waits_first": (device.DivergenceError, "waits without having arrived"),
    "no_such_block_in_cluster": (device.OutOfBoundsError, "block 2 of a cluster of 2"),
    "address_is_not_shared": (device.OutOfBoundsError, "not in this block's shared memory"),
    "leaves_without_waiting": (device.DivergenceError, "without waiting at the cluster barrier"),
}
OF_THE_GRID = ("grid_barrier_alone", "grid_barrier_missed", "block_scope_to_another_block")
OF_A_CLUSTER = (
    "cluster_arrives_twice",
    "cluster_waits_first",
    "no_such_block_in_cluster",
    "address_is_not_shared",
    "leaves_without_waiting",
)


def test_every_fault_is_expected():
    assert list(NUMBER_OF) == list(EXPECTED)


def _commit(fault, **settings):
    kernels, which = load("faults.cu").kernels, np.int32(NUMBER_OF[fault])
    words, cells = np.zeros(4, np.uint32), np.zeros(64, np.float32)
    if fault in OF_A_CLUSTER:
        run(kernels["cluster_fault"], (2,), (2,), which, cells, **settings)
    elif fault in OF_THE_GRID:
        cooperative = fault != "grid_barrier_alone"
        run(kernels["grid_fault"], (2,), (2,), which, words, cooperative=cooperative, **settings)
    else:
        grid = (40,) if fault == "waits_for_a_later_block" else (1,)
        block = (16,) if fault == "lane_that_takes_no_part" else (8,)
        arguments = (which, cells, words, np.int32(0))
        run(kernels["fault"], grid, block, *arguments, shared_bytes=16, **settings)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", EXPECTED)
def test_a_fault_ends_the_launch_and_names_the_line(fault, order, monkeypatch):
    monkeypatch.setenv("GPU_ON_CPU_HANG_SECONDS", "0.3" if fault == "volatile_spin" else "60")
    kind, message = EXPECTED[fault]
    lines = [n for n, text in enumerate(FAULTS.splitlines(), 1) if text.endswith(f"// {fault}")]
    with pytest.raises(kind, match=message) as error:
        _commit(fault, order=order)
    assert type(error.value) is kind
    # In front of the colon stands the kernel and where it begins.
    told = re.findall(r"faults\.cu:(\d+)", str(error.value).partition("): ")[2])
    if fault == "past_dynamic_memory":  # seen when the block has ended; AddressSanitizer tells
        assert not told
    else:
        assert set(map(int, told)) & set(lines), error.value


@pytest.mark.parametrize("order", ORDERS)
def test_blocks_of_a_cooperative_launch_may_wait_for_each_other(order):
    kernel, which = load("faults.cu").kernels["fault"], NUMBER_OF["waits_for_a_later_block"]
    words = np.zeros(2, np.uint32)
    arguments = (np.int32(which), words, words, np.int32(0))
    run(kernel, (40,), (8,), *arguments, cooperative=True, order=order)
    assert words.tolist() == [1, 1]


def test_an_index_that_overflows_is_found_by_ubsan():
    kernel = load("facilities.cu", sanitizer="ubsan").kernels["overflows"]
    out = np.zeros(1, np.int64)
    run(kernel, (1,), (1,), np.int32(2**29 - 1), out)
    assert out[0] == 2**31 - 4
    with pytest.raises(device.KernelError, match=r"signed overflow in 'int' at facilities\.cu:\d+"):
        run(kernel, (1,), (1,), np.int32(2**29), out)


def test_the_next_launch_is_unharmed():
    for fault in ("no_such_memory", "waits_forever", "more_than_the_stack", "failed_assert"):
        with pytest.raises(device.LaunchError):
            _commit(fault)
        assert samples.outcome("recurrence") == "right"


# --- what a device would refuse ------------------------------------------------------------------


@pytest.mark.parametrize(
    "profile, grid, block, settings, message",
    [
        (T4, (1,), (1025,), {}, "1025 threads in a block"),
        (T4, (1,), (1, 1, 65), {}, "z 64"),
        (T4, (0,), (1,), {}, "must be at least 1"),
        (T4, (1, 70000), (1,), {}, "grid .* is larger"),
        (T4, (1,), (1,), {"shared_bytes": 65537}, "65537 bytes .* T4 has 65536"),
        (LAPTOP, (1,), (1,), {"shared_bytes": 100 * 1024}, "has 101376 a block"),
        (A100, (1,), (1,), {"cluster": (1, 1, 1)}, "A100 cannot launch clusters"),
        (H100, (16,), (1,), {"cluster": (16, 1, 1)}, "16 blocks in a cluster; portable are 8"),
        (H100, (6,), (1,), {"cluster": (4, 1, 1)}, r"\(6, 1, 1\) is no multiple of the cluster"),
        (
            T4,
            (41,),
            (1024,),
            {"cooperative": True},
            "41 blocks is not resident: T4 holds 1 on each of 40 SMs, 40 in all",
        ),
    ],
)
def test_a_launch_beyond_the_device(profile, grid, block, settings, message):
    kernel = load("facilities.cu").kernels["indices"]
    with pytest.raises(device.LaunchError, match=rf"^indices \(facilities\.cu:\d+\): .*{message}"):
        run(kernel, grid, block, np.zeros(1, np.int32), profile=profile, **settings)
    out = np.zeros(6 * 64, np.int32)
    run(kernel, (1,), (64,), out, profile=profile)


def test_a_launch_that_contradicts_its_kernel():
    kernel = load("cluster_sum.cu").kernels["cluster_sum"]
    x = np.zeros(256, np.float32)
    with pytest.raises(device.LaunchError, match=r"the kernel declares \(4, 1, 1\)"):
        run(kernel, (8,), (32,), x, x, cluster=(2, 1, 1))
    with pytest.raises(device.LaunchError, match="1 arguments for 2 parameters"):
        run(kernel, (8,), (32,), x)
    with pytest.raises(ValueError, match="sanitizer is 'msan'"):
        device.compile_module("", sanitizer="msan")


@pytest.mark.parametrize(
    "profile, kernel, threads, shared, blocks",
    [
        # By hand from the programming guide's table of limits.
        (A100, KernelFacts(32), 256, 0, 8),  # 2048 threads
        (LAPTOP, KernelFacts(32), 256, 0, 6),  # 1536 threads
        (T4, KernelFacts(16), 32, 0, 16),  # blocks
        (A100, KernelFacts(16), 32, 0, 32),
        (L4, KernelFacts(16), 32, 0, 24),
        (H100, KernelFacts(64), 1024, 0, 1),  # 64 Ki registers
        (H100, KernelFacts(65), 1024, 0, 0),  # 72 each, in units of 8
        (H100, KernelFacts(128), 128, 0, 4),
        (A100, KernelFacts(33), 128, 0, 12),  # 40 each, in units of 8; warps in fours
        (B200, KernelFacts(32), 128, 113 * 1024, 2),  # 228 KiB with 1 for each block
        (B200, KernelFacts(32), 128, 114 * 1024, 1),
        (H100, KernelFacts(32, 1024), 128, 226 * 1024, 1),
        (H100, KernelFacts(32, 1025), 128, 226 * 1024, 0),
        (T4, KernelFacts(32), 128, 32 * 1024, 2),  # nothing is reserved
        (A100, KernelFacts(32, 0, 128), 129, 0, 0),  # __launch_bounds__
    ],
)
def test_blocks_that_an_sm_holds(profile, kernel, threads, shared, blocks):
    assert profile.max_active_blocks(kernel, threads, shared) == blocks


# --- broken kernels ------------------------------------------------------------------------------

IN_EVERY_ORDER = "in every order"
BY_RACE = "tsan"  # some order may give the right result by luck: ThreadSanitizer tells always
BY_ADDRESS = "asan"
BROKEN = {
    ("tiled_matmul", "BUG_NO_BARRIER_BEFORE_USE"): (IN_EVERY_ORDER, BY_RACE),
    ("tiled_matmul", "BUG_NO_BARRIER_AFTER_USE"): (IN_EVERY_ORDER, BY_RACE),
    ("tiled_matmul", "BUG_TILE_TOO_NARROW"): (IN_EVERY_ORDER,),
    ("tiled_matmul", "BUG_BOUND_OFF_BY_ONE"): (BY_ADDRESS,),
    ("recurrence", "BUG_SINGLE_BUFFER"): (IN_EVERY_ORDER, BY_RACE),
    ("recurrence", "BUG_BLOCK_SCOPE"): (IN_EVERY_ORDER,),
    ("recurrence", "BUG_WAITS_FOR_THE_NEXT_STEP"): (IN_EVERY_ORDER,),
    ("recurrence", "BUG_NO_WAIT"): (BY_RACE,),
    ("recurrence", "BUG_NO_BARRIER_BEFORE_FLAG"): (BY_RACE,),
    ("recurrence", "BUG_RELAXED_LOAD"): (BY_RACE,),
    ("recurrence", "WITH_GRID_SYNC", "BUG_NO_WAIT"): (IN_EVERY_ORDER, BY_RACE),
    ("cluster_sum", "BUG_NO_BARRIER_BEFORE_READING"): (IN_EVERY_ORDER, BY_RACE),
    ("cluster_sum", "BUG_NO_BARRIER_BEFORE_LEAVING"): (IN_EVERY_ORDER, BY_ADDRESS),
    ("cluster_sum", "BUG_ARRIVES_RELAXED"): (BY_RACE,),
    ("warp_scan", "BUG_NO_SYNCWARP"): (IN_EVERY_ORDER, BY_RACE),
    ("warp_scan", "BUG_SHUFFLE_FOR_SYNCWARP"): (BY_RACE,),
    ("cluster_push", "BUG_WRITES_BEFORE_THE_OTHERS_BEGIN"): (IN_EVERY_ORDER,),
    ("block_sum", "BUG_HALF_MASK"): (IN_EVERY_ORDER,),
    ("block_sum", "BUG_STARTS_AT_32"): (IN_EVERY_ORDER,),
    ("block_sum", "BUG_NO_BARRIER"): (BY_RACE,),
    ("block_sum", "BUG_NO_ATOMIC"): (BY_RACE,),
}
CORRECT = [(name,) for name in samples.SAMPLES] + [("recurrence", "WITH_GRID_SYNC")]
EVERY_ORDER = [{"order": "forward"}, {"order": "reverse"}] + [
    {"order": "random", "seed": seed} for seed in range(3)
]


@pytest.mark.parametrize("sample", CORRECT, ids=",".join)
def test_a_correct_kernel_is_right_in_every_order(sample):
    assert [samples.outcome(*sample, **order) for order in EVERY_ORDER] == ["right"] * 5


@pytest.mark.parametrize("sample", [s for s in BROKEN if IN_EVERY_ORDER in BROKEN[s]], ids=",".join)
def test_a_broken_kernel_is_caught_in_every_order(sample):
    assert "right" not in [samples.outcome(*sample, **order) for order in EVERY_ORDER]


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    module = load("recurrence.cu")
    switches = []
    for seed in (1, 2, 1):
        assert samples.recurrence(module, order="random", seed=seed)
        switches.append(module.kernels["recurrence"].switches)
    assert switches[0] == switches[2] != switches[1]


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_what_a_sanitizer_sees(sanitizer):
    if reason := sanitize.missing(sanitizer):
        pytest.skip(f"{sanitizer} cannot run: {reason}")
    broken = [sample for sample in BROKEN if sanitizer in BROKEN[sample]]
    wanted = [",".join(sample) for sample in CORRECT + broken]
    done = sanitize.run_sanitized(Path(samples.__file__), sanitizer, *wanted)
    assert not done.clean
    parts = done.output.split("=== ")[1:]
    assert [part.splitlines()[0] for part in parts] == wanted, done.output[-3000:]
    found = dict(zip(wanted, map(sanitize.reports_in, parts), strict=True))
    for sample in CORRECT:
        assert found[",".join(sample)] == (), "a correct kernel is accused"
    for sample in broken:
        reports = found[",".join(sample)]
        assert reports, f"{sample} is not caught"
        file = samples.SAMPLES[sample[0]][0]
        assert all(re.search(rf"{file}:\d+$", report) for report in reports), reports
    lines = (HERE / "tiled_matmul.cu").read_text().splitlines()
    if sanitizer == "asan":
        (report,) = found["tiled_matmul,BUG_BOUND_OFF_BY_ONE"]
        place = int(report.rpartition(":")[2])
        assert report.startswith("AddressSanitizer: heap-buffer-overflow")
        assert "INSIDE K" in lines[place - 1]


def test_a_clean_run_under_a_sanitizer_is_clean():
    if reason := sanitize.missing("tsan"):
        pytest.skip(f"tsan cannot run: {reason}")
    program = "from gpu_on_cpu.kernels import samples; print(samples.outcome('block_sum'))"
    done = sanitize.run_sanitized(program, "tsan")
    assert (done.output, done.clean) == ("right\n", True)

"""Device profiles: the limits of a card, without the card."""

from dataclasses import dataclass

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class KernelFacts:
    """What a kernel asks of a device: registers per thread, bytes, threads."""

    registers: int = 32
    static_shared_bytes: int = 0
    max_threads: int = 1024


@dataclass(frozen=True)
class DeviceProfile:
    """One card as its driver describes it.

    Attributes
    ----------
    shared_per_block, shared_per_block_optin, shared_per_sm : int
        Bytes: without asking, after asking for more, and all that an SM has.
    shared_reserved_per_block : int
        Bytes the system takes for each block in flight.
    l2_bytes, clock_khz, memory_clock_khz, memory_bus_bits : int
        What a program may ask for, and the bed itself does not use.
    max_cluster : int
        Blocks in the largest portable cluster; 1 where there are no clusters.
    """

    name: str
    compute_capability: tuple[int, int]
    sm_count: int
    shared_per_block_optin: int
    shared_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    l2_bytes: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    shared_reserved_per_block: int = 1 * KIB
    shared_per_block: int = 48 * KIB
    registers_per_sm: int = 64 * KIB
    registers_per_block: int = 64 * KIB
    warp: int = 32
    max_threads_per_block: int = 1024
    max_cluster: int = 1

    @property
    def cluster_launch(self) -> bool:
        """Whether the card can launch clusters."""
        return self.max_cluster > 1

    def max_active_blocks(self, kernel: KernelFacts, threads: int, shared_bytes: int) -> int:
        """Return how many blocks one SM holds at once, 0 where it cannot hold one.

        The rules of NVIDIA's occupancy calculator: registers are dealt to a warp in units of 256,
        warps in fours (one for each scheduler), shared memory in units of 128 bytes.
        """
        if not 0 < threads <= min(self.max_threads_per_block, kernel.max_threads):
            return 0
        shared = _round_up(kernel.static_shared_bytes + shared_bytes, 128)
        if shared > self.shared_per_block_optin:
            return 0
        warps = -(-threads // self.warp)
        registers_per_warp = _round_up(kernel.registers * self.warp, 256)
        if registers_per_warp * _round_up(warps, 4) > self.registers_per_block:
            return 0
        warps_by_registers = self.registers_per_sm // registers_per_warp // 4 * 4
        limits = [
            self.blocks_per_sm,
            self.threads_per_sm // (warps * self.warp),
            warps_by_registers // warps,
        ]
        per_block = shared + self.shared_reserved_per_block
        if per_block:
            limits.append(self.shared_per_sm // per_block)
        return min(limits)


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


# fmt: off
T4 = DeviceProfile(
    "T4", (7, 5), 40, 64 * KIB, 64 * KIB, 1024, 16,
    4 * MIB, 1_590_000, 5_001_000, 256, shared_reserved_per_block=0,
)
A100 = DeviceProfile(
    "A100", (8, 0), 108, 163 * KIB, 164 * KIB, 2048, 32,
    40 * MIB, 1_410_000, 1_215_000, 5120,
)
LAPTOP = DeviceProfile(
    "RTX 3050 Laptop", (8, 6), 16, 99 * KIB, 100 * KIB, 1536, 16,
    2 * MIB, 1_740_000, 6_001_000, 128,
)
L4 = DeviceProfile(
    "L4", (8, 9), 58, 99 * KIB, 100 * KIB, 1536, 24,
    48 * MIB, 2_040_000, 6_251_000, 192,
)
H100 = DeviceProfile(
    "H100", (9, 0), 132, 227 * KIB, 228 * KIB, 2048, 32,
    50 * MIB, 1_980_000, 2_619_000, 5120, max_cluster=8,
)
B200 = DeviceProfile(
    "B200", (10, 0), 148, 227 * KIB, 228 * KIB, 2048, 32,
    126 * MIB, 1_980_000, 3_906_000, 8192, max_cluster=8,
)
# fmt: on
PROFILES = {"T4": T4, "A100": A100, "LAPTOP": LAPTOP, "L4": L4, "H100": H100, "B200": B200}

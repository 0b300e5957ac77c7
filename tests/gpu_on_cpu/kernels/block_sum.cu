// The sum of x, by shuffles in a warp, shared memory in a block and an atomic in the grid.
#ifdef BUG_HALF_MASK
#define LANES 0x0000ffffu
#else
#define LANES 0xffffffffu
#endif
#ifdef BUG_STARTS_AT_32
#define WIDEST 32
#else
#define WIDEST 16
#endif

__device__ __forceinline__ int warp_sum(int value) {
    for (int delta = WIDEST; delta; delta /= 2) value += __shfl_xor_sync(LANES, value, delta);
    return value;
}

// Adds to every number those before it, 32 at a time, through shared memory.
extern "C" __global__ void warp_scan(const int* x, int* y) {
    __shared__ int held[2][32];
    const int lane = threadIdx.x;
    held[0][lane] = x[lane];
    int from = 0;
    for (int delta = 1; delta < 32; delta *= 2, from ^= 1) {
#if defined(BUG_SHUFFLE_FOR_SYNCWARP)  // it brings the lanes together, and orders no memory
        __shfl_sync(0xffffffffu, lane, 0);
#elif !defined(BUG_NO_SYNCWARP)
        __syncwarp();
#endif
        held[1 - from][lane] = held[from][lane] + (lane >= delta ? held[from][lane - delta] : 0);
    }
    y[lane] = held[from][lane];
}

extern "C" __global__ void block_sum(const int* x, int* total, int n) {
    __shared__ int of_warp[32];
    int sum = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sum;
#ifndef BUG_NO_BARRIER
    __syncthreads();
#endif
    if (threadIdx.x < 32) {
        sum = threadIdx.x < (blockDim.x + 31) / 32 ? of_warp[threadIdx.x] : 0;
        sum = warp_sum(sum);
#ifdef BUG_NO_ATOMIC
        if (threadIdx.x == 0) *total += sum;
#else
        if (threadIdx.x == 0) atomicAdd(total, sum);
#endif
    }
}

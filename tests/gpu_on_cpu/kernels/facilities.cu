// One small kernel for each thing the test bed offers. The tests know what each must compute.
#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include "sync.cuh"
namespace cg = cooperative_groups;

__constant__ int factors[3] = {2, 3, 5};
__device__ double accumulator;

// --- indices, barriers ---------------------------------------------------------------------------

// At [block,thread]: the indices of both, in six numbers.
extern "C" __global__ void indices(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int* at = out + 6 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    at[0] = blockIdx.x, at[1] = blockIdx.y, at[2] = blockIdx.z;
    at[3] = threadIdx.x, at[4] = threadIdx.y, at[5] = threadIdx.z;
}

extern "C" __global__ void votes(int* out) {  // [3], one block
    const int odd = threadIdx.x % 2;
    const int count = __syncthreads_count(odd), any = __syncthreads_or(threadIdx.x == 77),
              all = __syncthreads_and(threadIdx.x < 64);
    if (threadIdx.x == 0) out[0] = count, out[1] = any, out[2] = all;
}

// Reverses n numbers through memory whose size only the launch knows.
extern "C" __global__ void reversed(const int* x, int* y) {  // [n] each, one block of n threads
    extern __shared__ __align__(16) unsigned char bytes[];
    int* held = reinterpret_cast<int*>(bytes);
    held[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = held[blockDim.x - 1 - threadIdx.x];
}

// Shared memory that nobody has written: NaN as a float, -1 as an int.
extern "C" __global__ void unwritten(float* floats, int* ints) {
    __shared__ float f[2];
    __shared__ alignas(16) int i[2], unused;
    floats[threadIdx.x] = f[threadIdx.x];
    ints[threadIdx.x] = i[threadIdx.x] + 0 * unused;
}

extern "C" __global__ void all_blocks_meet(int* cells, int* out) {  // [blocks] each, cooperative
    const cg::grid_group grid = cg::this_grid();
    for (int round = 0; round < 3; ++round) {
        if (threadIdx.x == 0) cells[blockIdx.x] = 10 * round + blockIdx.x;
        grid.sync();
        if (threadIdx.x == 0) {
            int sum = 0;
            for (int i = 0; i < gridDim.x; ++i) sum += __ldcg(cells + i);
            out[blockIdx.x] = sum;
        }
        grid.sync();
    }
}

// Who comes first: every thread draws a number.
extern "C" __global__ void tickets(int* next, int* out) {  // [1], [blocks,threads]
    out[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

// --- warps ---------------------------------------------------------------------------------------

extern "C" __global__ void warp_functions(const int* x, int* out) {  // [32], [32,14]
    const int v = x[threadIdx.x];
    int* at = out + 14 * threadIdx.x;
    at[0] = __shfl_sync(~0u, v, 5);
    at[1] = __shfl_sync(~0u, v, 1, 8);
    at[2] = __shfl_up_sync(~0u, v, 3);
    at[3] = __shfl_down_sync(~0u, v, 3, 16);
    at[4] = __shfl_xor_sync(~0u, v, 9);
    at[5] = __ballot_sync(~0u, v & 1);
    at[6] = __any_sync(~0u, v == 31) + 2 * __all_sync(~0u, v >= 0);
    at[7] = __match_any_sync(~0u, v % 3);
    int all;
    at[8] = __match_all_sync(~0u, v / 64, &all) + all;
    at[9] = __reduce_add_sync(~0u, v);
    at[10] = __reduce_min_sync(~0u, v - 40);
    at[11] = __reduce_max_sync(~0u, static_cast<unsigned>(v));
    at[12] = threadIdx.x % 4 == 1 ? __activemask() : 0;
    const cg::thread_block_tile<8> tile = cg::tiled_partition<8>(cg::this_thread_block());
    at[13] = tile.shfl_down(v, 1) + 100 * tile.thread_rank() + tile.any(v == 31);
}

extern "C" __global__ void groups(int* out) {  // [32,4]
    int* at = out + 4 * threadIdx.x;
    const auto block = cg::this_thread_block();
    const auto pair = cg::tiled_partition<2>(block);
    at[0] = cg::reduce(pair, static_cast<int>(threadIdx.x), cg::plus<int>());
    at[1] = cg::reduce(cg::tiled_partition<16>(block), at[0], cg::greater<int>());
    cg::sync(pair);
    if (threadIdx.x % 3 == 0) {
        const auto together = cg::coalesced_threads();
        at[2] = 100 * together.size() + together.thread_rank();
        at[3] = together.shfl(threadIdx.x, 2);
    }
}

// Half of a warp exchanges while the other half has left.
extern "C" __global__ void half_a_warp(int* out) {
    if (threadIdx.x >= 16) return;
    out[threadIdx.x] = __shfl_xor_sync(~0u, static_cast<int>(threadIdx.x), 8);
}

// --- atomics, signals ----------------------------------------------------------------------------

extern "C" __global__ void atomics(int* i, unsigned* u, unsigned long long* l, float* f) {
    const int t = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(i, t), atomicSub(i + 1, t), atomicMin(i + 2, -t), atomicMax(i + 3, t);
    atomicAnd(i + 4, ~(1 << t)), atomicOr(i + 5, 1 << t), atomicXor(i + 6, 1 << t);
    atomicExch(i + 7, 7), atomicCAS(i + 8, 0, 1);
    atomicInc(u, 5), atomicDec(u + 1, 5);
    atomicAdd(l, 1ull << 40), atomicAdd(f, 0.5f), atomicAdd(&accumulator, 0.25);
}

extern "C" __global__ void locked(int* lock, int* sum) {
    bool done = false;
    while (!done)
        if (atomicCAS(lock, 0, 1) == 0) {
            *sum += 1;
            atomicExch(lock, 0);
            done = true;
        }
}

// Thread 0 waits in turn for every way in which another may signal.
extern "C" __global__ void signals(unsigned* words, unsigned* out) {  // [7] zeros, [1]; 7 threads
    volatile unsigned* plain = words + 6;
    if (threadIdx.x == 0) {
        while (load_acquire<Scope::device>(words + 1) != 1) continue;
        while (atomicAdd(words + 2, 0) != 2) continue;
        while (__ldcg(words + 3) != 3) continue;
        while (load_relaxed<Scope::block>(words + 4) != 4 &&
               load_acquire<Scope::block>(words) != 1)
            continue;
        while (*plain != 6) __nanosleep(100);
        *out = words[1] + words[2] + words[3] + words[5] + words[6];
    } else if (threadIdx.x == 1) {
        store_release<Scope::device>(words + 1, 1);
    } else if (threadIdx.x == 5) {
        words[5] = 5;
        store_release<Scope::block>(words, 1);
    } else if (threadIdx.x == 6) {
        *plain = 6;
    } else if (threadIdx.x == 2 || threadIdx.x == 3) {
        add_release<Scope::device>(words + threadIdx.x, threadIdx.x);
    }
}

// Thread 0 waits for either of two words, of which only the second comes, and late.
extern "C" __global__ void either_word(unsigned* words, unsigned* out) {  // [2] zeros, [1]
    if (threadIdx.x == 0) {
        while (load_acquire<Scope::block>(words) != 1 &&
               load_acquire<Scope::block>(words + 1) != 1)
            continue;
        *out = 1;
    } else {
        for (int i = 0; i < 50; ++i) __nanosleep(100);
        store_release<Scope::block>(words + 1, 1);
    }
}

// What is waited for comes with the data: sixteen bytes of which the last four are not 0.
extern "C" __global__ void data_as_signal(uint4* cells, unsigned* out) {  // [2] zeros, [2]
    if (threadIdx.x == 0) {
        uint4 got;
        do got = __ldcg(cells);
        while (got.w == 0);
        out[0] = got.x + got.w;
    } else if (threadIdx.x == 1) {
        uint4 got;
        do got = load_relaxed<Scope::device>(cells + 1);
        while (got.w == 0);
        out[1] = got.y + got.w;
    } else if (threadIdx.x == 2) {
        __stcg(cells, make_uint4(10, 0, 0, 1));
        cells[1] = make_uint4(0, 20, 0, 2);  // a plain store: nothing tells the bed of it
    }
}

// One thread waits for more words than it can remember.
extern "C" __global__ void many_words(unsigned* words, unsigned* out, unsigned n) {
    if (threadIdx.x == 0) {
        bool all = false;
        while (!all) {
            all = true;
            for (unsigned i = 1; i < n; ++i) all &= load_acquire<Scope::block>(words + i) == i;
        }
        *out = n;
    } else if (threadIdx.x < n) {
        store_release<Scope::block>(words + threadIdx.x, threadIdx.x);
    }
}

// --- clusters ------------------------------------------------------------------------------------

extern "C" __global__ void around_the_cluster(int* out) {  // [blocks,3]
    __shared__ int mine;
    const cg::cluster_group cluster = cg::this_cluster();
    if (threadIdx.x == 0) mine = blockIdx.x;
    cluster.barrier_wait(cluster.barrier_arrive());
    const unsigned next = (cluster.block_rank() + 1) % cluster.num_blocks();
    const int seen = *cluster.map_shared_rank(&mine, next);
    cluster.sync();
    int* at = out + 3 * blockIdx.x;
    at[0] = seen, at[1] = cluster.block_rank(), at[2] = cluster.num_blocks();
}

// --- numbers -------------------------------------------------------------------------------------

extern "C" __global__ void bits(const unsigned long long* x,
                                unsigned long long* out) {  // [2], [12]
    const unsigned a = x[0], b = x[1];
    out[0] = __umul64hi(x[0], x[1]), out[1] = __umulhi(a, b), out[2] = __popc(a);
    out[3] = __clz(a), out[4] = __ffs(a), out[5] = __brev(a), out[6] = __byte_perm(a, b, 0x5240);
    out[7] = __float_as_uint(-2.5f), out[8] = __float_as_int(__uint_as_float(a & 0x7fffff));
    out[9] = __funnelshift_l(a, b, 5), out[10] = __double_as_longlong(__longlong_as_double(x[1]));
    out[11] = min(3, 4u) + max(-1.0f, 2.0f) + factors[blockIdx.x + 2];
}

struct Pair {
    short first;
    double second;
};
template <typename T, int N>
__global__ void __launch_bounds__(32 * N, 2) scale(const T* x, T* y, Pair by) {
    __shared__ T held[32 * N];
    held[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = held[threadIdx.x] * static_cast<T>(by.first + by.second);
}

extern "C" __global__ void vectors(const float4* x, uint2* y) {
    const float4 v = __ldcg(x + threadIdx.x);
    y[threadIdx.x] = make_uint2(v.x + v.y, v.z + v.w);
}

extern "C" __global__ void overflows(int n, long long* out) {
    *out = n * 4;  // the product is an int
}

extern "C" __global__ void product(const float* x, float* y) { *y = x[0] * x[1]; }

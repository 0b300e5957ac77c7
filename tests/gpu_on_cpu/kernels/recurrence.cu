// A recurrence over all blocks of the grid, as a persistent kernel runs it: every block owns some
// units, and every step needs the units of all. Whole numbers, so that the result is exact:
//
//     h[t+1][u] = (t + sum over k of (1 + (u + k) % 3) h[t][k]) % 1021
//
// The blocks exchange h through global memory. Each says in a flag of its own which step it has
// finished; nobody else writes that flag.
#ifdef WITH_GRID_SYNC
#include <cooperative_groups.h>
#endif
#include "sync.cuh"

#ifdef BUG_BLOCK_SCOPE
constexpr Scope flag_scope = Scope::block;
#else
constexpr Scope flag_scope = Scope::device;
#endif

extern "C" __global__ void recurrence(const unsigned* h0,  // [H]
                                      unsigned* exchange,  // [2,H]
                                      unsigned* flags,     // [blocks], zero before the launch
                                      unsigned* h,         // [H], after the last step
                                      int steps, int H) {
    const int units = H / gridDim.x, first = blockIdx.x * units;
    for (int t = 0; t < steps; ++t) {
        const unsigned* before = t ? exchange + t % 2 * H : h0;
        unsigned* after = exchange + (t + 1) % 2 * H;
#ifdef BUG_SINGLE_BUFFER
        before = t ? exchange : h0;
        after = exchange;
#endif
        for (int u = first + threadIdx.x; u < first + units; u += blockDim.x) {
            unsigned sum = t;
            for (int k = 0; k < H; ++k) sum += (1 + (u + k) % 3) * __ldcg(before + k);
            after[u] = sum % 1021;
            if (t + 1 == steps) h[u] = sum % 1021;
        }
#ifdef WITH_GRID_SYNC
#ifndef BUG_NO_WAIT
        cooperative_groups::this_grid().sync();
#endif
#else
#ifndef BUG_NO_BARRIER_BEFORE_FLAG
        __syncthreads();
#endif
        if (threadIdx.x == 0) store_release<flag_scope>(flags + blockIdx.x, t + 1);
#ifndef BUG_NO_WAIT
        for (int i = threadIdx.x; i < gridDim.x; i += blockDim.x)
#if defined(BUG_RELAXED_LOAD)
            while (load_relaxed<Scope::device>(flags + i) < t + 1) continue;
#elif defined(BUG_WAITS_FOR_THE_NEXT_STEP)
            while (load_acquire<Scope::device>(flags + i) < t + 2) continue;
#else
            while (load_acquire<Scope::device>(flags + i) < t + 1) continue;
#endif
#endif
        __syncthreads();
#endif
    }
}

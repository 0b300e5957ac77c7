// What the kernels of the block tier share: a block of threads that holds the recurrent weights of
// one direction and runs four batch rows through all steps.
//
// Four neighbouring lanes share a hidden unit, one for each row: thread 4 u + r finishes unit u of
// row r. Before that the lanes share the work of a product with the weights the other way round:
// each takes a part of the sum, for four outputs and all four rows at once, so that a value of the
// exchanged vector, loaded for four rows at once, meets four weights: 16 products for two loads.
// The parts are added by shuffles, in an order that is always the same.
#pragma once
#include "scalar.cuh"
#include "times.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int ROWS = 4;   // batch rows of a block
constexpr int GROUP = 2;  // terms in registers that are taken or left together

// Terms of a lane for sums of `length` values over `lanes` lanes.
__device__ __forceinline__ int terms_of(int length, int lanes) {
    return (length + lanes - 1) / lanes;
}

// Entries of the exchanged vector, each of four rows; zeros where a group has no term.
__device__ __forceinline__ int entries_of(int terms, int lanes) {
    return (terms + GROUP - 1) / GROUP * GROUP * lanes;
}

// The weights of a lane: terms of four weights, the first in registers, the rest in shared memory.
// In registers halves are wide, too: they would be widened anew at every step, or, as compilers
// see it, once before all steps.
template <typename S, int kept_terms>
struct Terms {
    using Four = Vector<S, 4>;
    static_assert(kept_terms % GROUP == 0, "registers hold whole groups");

    Vector<float, 4> kept[kept_terms > 0 ? kept_terms : 1];
    Four* rest;  // [terms - kept_terms, threads], this lane's first
    int terms;

    // weights(j) returns the four weights of term j, zeros where there is none.
    template <typename Weights>
    __device__ __forceinline__ void fetch(int count, Four* shared, const Weights& weights) {
        terms = count, rest = shared + threadIdx.x;
#pragma unroll
        for (int j = 0; j < kept_terms; ++j) kept[j] = widened(weights(j));
        for (int j = kept_terms; j < terms; ++j)
            store_shared(rest + (j - kept_terms) * blockDim.x, weights(j));
    }

    // use(w, v) for the four weights w of every term and the value v of all rows it is for.
    // vector: this lane's first entry; the next is `lanes` further.
    template <typename Use>
    __device__ __forceinline__ void for_each(const Vector<float, ROWS>* vector, int lanes,
                                             const Use& use) const {
#pragma unroll
        for (int j = 0; j < kept_terms; ++j) {
            if (j % GROUP == 0 && j >= terms) break;
            use(kept[j], loaded(vector[j * lanes]));
        }
        const Four* here = rest;
        // Two loads from shared memory take longer than what a loop adds; more would spill.
#pragma unroll 1
        for (int j = kept_terms; j < terms; ++j) {
            use(widened(loaded(*here)), loaded(vector[j * lanes]));
            here += blockDim.x;
        }
    }

    static __device__ __forceinline__ Vector<float, 4> widened(const Four& weights) {
        Vector<float, 4> wide;
#pragma unroll
        for (int n = 0; n < 4; ++n) wide[n] = widen(weights[n]);
        return wide;
    }
};

// Steps of the longest row of the block, from those of this thread's: every warp has all rows.
__device__ __forceinline__ int longest_of(int count) {
#pragma unroll
    for (int bit = 1; bit < ROWS; bit *= 2) {
        const int other = __shfl_xor_sync(ALL, count, bit);
        count = other > count ? other : count;
    }
    return count;
}

// Sums over the lanes of a warp, by shuffles: the order is always the same.
#pragma once

constexpr int WARP = 32;
constexpr unsigned ALL = 0xFFFFFFFFu;

// Add the sums of two lanes that differ in `bit` and leave each with half of them, the lane that
// has the bit with the upper half.
template <int N, typename A>
__device__ __forceinline__ void halve(const A (&from)[2 * N], A (&to)[N], int bit) {
    const bool upper = threadIdx.x & bit;
#pragma unroll
    for (int n = 0; n < N; ++n) {
        const A kept = upper ? from[n + N] : from[n], sent = upper ? from[n] : from[n + N];
        to[n] = kept + __shfl_xor_sync(ALL, sent, bit);
    }
}

// Add N sums over the lanes of a warp; lane l returns number l / (32 / N).
template <int bit = WARP / 2, typename A, int N>
__device__ __forceinline__ A spread_sums(const A (&sums)[N]) {
    if constexpr (bit == 0) {
        return sums[0];
    } else if constexpr (N == 1) {
        const A sum[1] = {sums[0] + __shfl_xor_sync(ALL, sums[0], bit)};
        return spread_sums<bit / 2>(sum);
    } else {
        A half[N / 2];
        halve<N / 2>(sums, half, bit);
        return spread_sums<bit / 2>(half);
    }
}

// Dropout whose mask is a function of logical position, bit for bit the one of
// cupy_lstm/dropout.py, where the layout of key and counter is described.
//
// Philox4x64-10: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011; the constants are theirs.
#include "scalar.cuh"
#include "vector.cuh"

struct Words {
    unsigned long long w[4];
};

__device__ __forceinline__ Words philox(Words counter, unsigned long long key0,
                                        unsigned long long key1) {
    const unsigned long long multiplier0 = 0xD2E7470EE14C6C93ull, multiplier1 = 0xCA5A826395121157ull;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned long long high0 = __umul64hi(multiplier0, counter.w[0]),
                                 low0 = multiplier0 * counter.w[0],
                                 high1 = __umul64hi(multiplier1, counter.w[2]),
                                 low1 = multiplier1 * counter.w[2];
        counter = {{high1 ^ counter.w[1] ^ key0, low1, high0 ^ counter.w[3] ^ key1, low0}};
        key0 += 0x9E3779B97F4A7C15ull, key1 += 0xBB67AE8584CAA73Bull;
    }
    return counter;
}

// One thread for the eight neighbouring features that share a Philox block, moved N at a time. N
// divides F, so what is moved together is all there or not at all.
template <typename S, int N>
__global__ void dropout(
    S* x,  // [T,B,F], changed in place
    unsigned long long seed, unsigned long long call, unsigned long long layer,
    unsigned long long first_row,
    unsigned long long threshold,  // values below it, of 32 bits, are dropped
    double scale,                  // of what is kept
    long long T, long long B, long long F) {
    const long long blocks = (F + 7) / 8, count = T * B * blocks;
    const Sum<S> kept = static_cast<Sum<S>>(scale);
    for (long long item = blockIdx.x * (long long)blockDim.x + threadIdx.x; item < count;
         item += (long long)gridDim.x * blockDim.x) {
        const long long block = item % blocks, row = item / blocks % B, t = item / blocks / B;
        const unsigned long long at = (first_row + row) * blocks + block;
        const Words random =
            philox({{at, static_cast<unsigned long long>(t), layer, 0ull}}, seed, call);
        S* features = x + (t * B + row) * F + block * 8;
        const long long present = F - block * 8;
#pragma unroll
        for (int first = 0; first < 8; first += N) {
            if (first >= present) continue;
            Vector<S, N> here = load<N>(features + first);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const int lane = first + n;
                const unsigned long long value =
                    random.w[lane / 2] >> (lane % 2 * 32) & 0xFFFFFFFFull;
                // Multiplied by zero as on the host, where a dropped -1 is a -0.
                here[n] = rounded<S>(widen(here[n]) * (value >= threshold ? kept : Sum<S>(0)));
            }
            store(features + first, here);
        }
    }
}

// The product of a block's part of the recurrent weights with an exchanged vector of all rows:
// sums[output][row] = sum over k < length of weight[output][k] vector[k][row].
//
// Both forms give each of THREADS threads `terms` terms of the weights, kept for all steps: the
// first in registers, the rest in shared memory. The threads share the sum over k, so that a vector
// of few outputs keeps them all busy: a term of all threads has `span` values of k for every output.
// What they find for one output are parts() sums, which the reader adds in their order. `outputs`
// is a power of two times 8 or 16.
//
// The vector lies in memory as the form reads it, `place` says where an element is. It holds
// entries() values of k, those from `length` on are zero.
#pragma once
#include "mma.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int THREADS = 512;  // of a block of a team

// In float32, on every architecture: a thread has eight outputs and four rows, 32 products for two
// loads at most. A warp's sums are added by shuffles.
template <typename S, int kept_terms>
struct LaneProduct {
    static constexpr int ROWS = 4, OUTPUTS = 8;  // rows of a vector; outputs of a thread
    static constexpr int TERM_BYTES = OUTPUTS * sizeof(S);
    using Values = Vector<S, ROWS>;

    float kept[kept_terms][OUTPUTS];
    uint4* rest;  // [terms - kept_terms, TERM_BYTES / 16, THREADS], this thread's first
    int outputs, terms, slices, octet, slice;

    __device__ __forceinline__ LaneProduct(int outputs, int terms, int span, uint4* shared)
        : rest(shared + threadIdx.x), outputs(outputs), terms(terms), slices(span),
          octet(threadIdx.x / span), slice(threadIdx.x % span) {}

    __device__ __forceinline__ int entries() const { return terms * slices; }
    __device__ __forceinline__ int parts() const { return slices > WARP ? slices / WARP : 1; }
    __device__ __forceinline__ uint4* behind_weights() const {
        const int in_memory = terms > kept_terms ? terms - kept_terms : 0;
        return rest - threadIdx.x + in_memory * (TERM_BYTES / 16) * THREADS;
    }
    static __device__ __forceinline__ int place(int k, int row) { return k * ROWS + row; }
    static __device__ __forceinline__ S operand(S value) { return value; }

    // weight(output, k) returns one weight, zero where there is none.
    template <typename Weight>
    __device__ __forceinline__ void fetch(const Weight& weight) {
#pragma unroll
        for (int j = 0; j < kept_terms; ++j)
#pragma unroll
            for (int n = 0; n < OUTPUTS; ++n)
                kept[j][n] =
                    j < terms ? widen(weight(octet * OUTPUTS + n, slice + j * slices)) : 0.0f;
#pragma unroll 1
        for (int j = kept_terms; j < terms; ++j) {
            Vector<S, 16 / sizeof(S)> words[TERM_BYTES / 16];
#pragma unroll
            for (int n = 0; n < OUTPUTS; ++n)
                words[n / (16 / sizeof(S))][n % (16 / sizeof(S))] =
                    weight(octet * OUTPUTS + n, slice + j * slices);
#pragma unroll
            for (int i = 0; i < TERM_BYTES / 16; ++i)
                store_shared(reinterpret_cast<Vector<S, 16 / sizeof(S)>*>(
                                 rest + ((j - kept_terms) * (TERM_BYTES / 16) + i) * THREADS),
                             words[i]);
        }
    }

    // sums: [parts,outputs,ROWS]
    __device__ __forceinline__ void multiply(const S* vector, float* sums) const {
        const Values* values = reinterpret_cast<const Values*>(vector) + slice;
        float sum[OUTPUTS * ROWS] = {};
#pragma unroll
        for (int j = 0; j < kept_terms; ++j) {
            if (j >= terms) break;
            add(kept[j], loaded(values[j * slices]), sum);
        }
        const uint4* here = rest;
#pragma unroll 1
        for (int j = kept_terms; j < terms; ++j) {
            float wide[OUTPUTS];
#pragma unroll
            for (int i = 0; i < TERM_BYTES / 16; ++i) {
                const auto words =
                    loaded(*reinterpret_cast<const Vector<S, 16 / sizeof(S)>*>(here));
#pragma unroll
                for (int n = 0; n < int(16 / sizeof(S)); ++n)
                    wide[i * (16 / sizeof(S)) + n] = widen(words[n]);
                here += THREADS;
            }
            add(wide, loaded(values[j * slices]), sum);
        }
        reduce(sum, sums);
    }

private:
    static __device__ __forceinline__ void add(const float (&weights)[OUTPUTS],
                                               const Values& values,
                                               float (&sum)[OUTPUTS * ROWS]) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const float value = widen(values[r]);
#pragma unroll
            for (int n = 0; n < OUTPUTS; ++n) sum[n * ROWS + r] += weights[n] * value;
        }
    }

    // Eight lanes or more share an octet: each is left with its part of the 32 sums.
    __device__ __forceinline__ void reduce(const float (&sum)[32], float* sums) const {
        const int lanes = slices < WARP ? slices : WARP, lane = slice % lanes;
        float* here = sums + (slice / lanes * outputs + octet * OUTPUTS) * ROWS;
        float sixteen[16], eight[8], four[4], two[2], one[1];
        halve<16>(sum, sixteen, lanes / 2);
        halve<8>(sixteen, eight, lanes / 4);
        halve<4>(eight, four, lanes / 8);
        if (lanes == 8) {
            store_shared(reinterpret_cast<Vector<float, 4>*>(here) + lane,
                         Vector<float, 4>{four[0], four[1], four[2], four[3]});
            return;
        }
        halve<2>(four, two, lanes / 16);
        if (lanes == 16) {
            store_shared(reinterpret_cast<Vector<float, 2>*>(here) + lane,
                         Vector<float, 2>{two[0], two[1]});
            return;
        }
        halve<1>(two, one, 1);
        here[lane] = one[0];
    }
};

// On the tensor cores: a warp has 16 outputs and eight rows, and a part of k. A term is a fragment
// of weights, four registers of a lane.
template <typename S, int kept_terms>
struct TensorProduct {
    static constexpr int ROWS = 8, OUTPUTS = 16, E = TensorCores<S>::E, K = 8 * E;  // of a fragment
    using Fragment = Vector<unsigned, 4>;
    using Pair = Vector<unsigned, 2>;

    Fragment kept[kept_terms];
    Fragment* rest;  // [terms - kept_terms, THREADS], this thread's first
    int outputs, terms, many, part, first;

    __device__ __forceinline__ TensorProduct(int outputs, int terms, int span, uint4* shared)
        : rest(reinterpret_cast<Fragment*>(shared) + threadIdx.x), outputs(outputs), terms(terms),
          many(span / K), part(threadIdx.x / WARP % many),
          first(threadIdx.x / WARP / many * OUTPUTS) {}

    __device__ __forceinline__ int entries() const { return terms * many * K; }
    __device__ __forceinline__ int parts() const { return many; }
    __device__ __forceinline__ uint4* behind_weights() const {
        const int in_memory = terms > kept_terms ? terms - kept_terms : 0;
        return reinterpret_cast<uint4*>(rest - threadIdx.x + in_memory * THREADS);
    }
    // Fragments of the vector one after another, each as its lanes hold it.
    static __device__ __forceinline__ int place(int k, int row) {
        const int inside = k % K, lane = row * 4 + inside % (4 * E) / E;
        return (k / K * WARP + lane) * (2 * E) + inside / (4 * E) * E + inside % E;
    }
    static __device__ __forceinline__ S operand(S value) {
        return TensorCores<S>::operand(value);
    }

    template <typename Weight>
    __device__ __forceinline__ void fetch(const Weight& weight) {
#pragma unroll
        for (int j = 0; j < kept_terms; ++j) kept[j] = j < terms ? fragment(weight, j) : Fragment{};
#pragma unroll 1
        for (int j = kept_terms; j < terms; ++j)
            store_shared(rest + (j - kept_terms) * THREADS, fragment(weight, j));
    }

    __device__ __forceinline__ void multiply(const S* vector, float* sums) const {
        const int lane = threadIdx.x % WARP;
        const Pair* values = reinterpret_cast<const Pair*>(vector) + part * WARP + lane;
        float sum[2][4] = {};  // two chains, so that an instruction need not wait for the last one
#pragma unroll
        for (int j = 0; j < kept_terms; ++j) {
            if (j >= terms) break;
            add(kept[j], loaded(values[j * many * WARP]), sum[j % 2]);
        }
        int j = kept_terms;
#pragma unroll 1
        for (; j + 1 < terms; j += 2)
#pragma unroll
            for (int i = 0; i < 2; ++i)
                add(loaded(rest[(j + i - kept_terms) * THREADS]),
                    loaded(values[(j + i) * many * WARP]), sum[i]);
        if (j < terms)
            add(loaded(rest[(j - kept_terms) * THREADS]), loaded(values[j * many * WARP]), sum[0]);
        float* here = sums + (part * outputs + first + lane / 4) * ROWS + lane % 4 * 2;
#pragma unroll
        for (int i = 0; i < 4; i += 2)
            store_shared(reinterpret_cast<Vector<float, 2>*>(here + i * 4 * ROWS),
                         Vector<float, 2>{sum[0][i] + sum[1][i], sum[0][i + 1] + sum[1][i + 1]});
    }

private:
    static __device__ __forceinline__ void add(const Fragment& weights, const Pair& values,
                                               float (&sum)[4]) {
        TensorCores<S>::multiply(sum, weights.values, values.values);
    }

    template <typename Weight>
    __device__ __forceinline__ Fragment fragment(const Weight& weight, int j) const {
        const int lane = threadIdx.x % WARP, k = (part + j * many) * K + lane % 4 * E;
        Fragment of_lane;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            S pair[E];
#pragma unroll
            for (int e = 0; e < E; ++e)
                pair[e] = operand(weight(first + lane / 4 + i % 2 * 8, k + i / 2 * 4 * E + e));
            memcpy(&of_lane[i], pair, sizeof pair);
        }
        return of_lane;
    }
};

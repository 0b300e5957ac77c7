// One step of a layer in one launch, without a product of cuBLAS.
//
// A warp takes one hidden unit and up to `rows` batch rows. Its lanes read the unit's gate rows of
// both weights, neighbouring elements in one load, and multiply them with h and x: so every weight
// is read once for all those rows. The parts of a sum are added by shuffles, in an order that is
// the same for every number of rows: a row's result does not depend on the others in its batch.
//
// D directions, B batch rows, I inputs, H units, P outputs; the gates in the order i, f, g, o.
// Arrays over time are [T,B,...] with any strides, in elements; all others are contiguous. Row b
// takes part at times before lengths[b]: else it keeps its state, and puts zeros out.
#include "cell.cuh"
#include "scalar.cuh"
#include "vector.cuh"
#include "warp.cuh"

constexpr int UNITS = 4;  // of a block of step_gates, a warp each
constexpr int PARTS = 8;  // of a sum of step_projection, a warp each

// The part of the batch that a block takes, and the time of its direction.
struct Rows {
    long long first, present;  // present: at least one
    long long t;
    bool backwards;

    __device__ __forceinline__ Rows(long long tile, int rows, long long B, int reverse,
                                    long long step, long long T) {
        first = tile * rows;
        present = B - first < rows ? B - first : rows;
        backwards = reverse >> blockIdx.y & 1;
        t = backwards ? T - 1 - step : step;
    }
    __device__ __forceinline__ bool held(const long long* lengths, long long row) const {
        return lengths != nullptr && t >= lengths[row];
    }
};

// Add to sums [rows,4] what this lane has of the products of four weight rows, `gate` elements
// apart, with the vectors of length K of all rows. Rows that are absent repeat the last one.
template <int width, int rows, typename S>
__device__ __forceinline__ void add_products(const S* __restrict__ weight, long long gate,
                                             const S* vector, long long row_stride,
                                             long long present, long long K,
                                             Sum<S> (&sums)[4 * rows]) {
    for (long long k = threadIdx.x % WARP * width; k < K; k += WARP * width) {
        Vector<S, width> weights[4];
#pragma unroll
        for (int g = 0; g < 4; ++g) weights[g] = load<width>(weight + g * gate + k);
#pragma unroll
        for (int r = 0; r < rows; ++r) {
            const long long row = r < present ? r : present - 1;
            const Vector<S, width> values = load<width>(vector + row * row_stride + k);
#pragma unroll
            for (int g = 0; g < 4; ++g)
#pragma unroll
                for (int n = 0; n < width; ++n)
                    sums[4 * r + g] += widen(weights[g][n]) * widen(values[n]);
        }
    }
}

template <typename S>
__device__ __forceinline__ void add_bias(Gates<Sum<S>>& z, const S* bias, long long gate,
                                         long long H) {
    if (bias == nullptr) return;
    z.i += widen(bias[gate]), z.f += widen(bias[gate + H]);
    z.g += widen(bias[gate + 2 * H]), z.o += widen(bias[gate + 3 * H]);
}

// The gates and the cell. Block (i, d) runs units 4 (i % n) to 4 (i % n) + 3 of direction d, where n
// blocks have all units, for rows from i / n * rows on. `wide`: whether rows of the weights, of x
// and of h can be loaded 16 bytes at a time.
template <typename S, int rows>
__global__ void __launch_bounds__(128, 3) step_gates(
    const S* __restrict__ weight_ih,        // [D,4H,I]
    const S* __restrict__ weight_hh,        // [D,4H,P]
    const S* __restrict__ bias_ih,          // [D,4H], or null
    const S* __restrict__ bias_hh,          // [D,4H], or null
    const S* __restrict__ x,                // [T,B,I], features next to each other
    const long long* __restrict__ lengths,  // [B], or null
    const S* h_before,       // [D,B,P]
    const Sum<S>* c_before,  // [D,B,H]
    S* m,                    // [D,B,H] receives the cell output: h after the step if P is H
    Sum<S>* c_after,         // [D,B,H], may be c_before
    S* y,                    // [T,B,D,H] receives h if P is H, or null
    Sum<S>* cells,           // [T,B,D,H] receives c, or null
    long long x_time, long long x_row,
    long long y_time, long long y_row, long long y_direction, long long y_unit,
    long long cells_time, long long cells_row, long long cells_direction, long long cells_unit,
    int wide_x, int wide_h,
    int reverse,  // a bit for each reverse direction
    long long step, long long T, long long B, long long I, long long H, long long P) {
    using A = Sum<S>;
    constexpr int width = 16 / sizeof(S), lanes = WARP / (4 * rows);  // lanes that share a sum
    const long long unit_blocks = (H + UNITS - 1) / UNITS, d = blockIdx.y;
    const long long unit = blockIdx.x % unit_blocks * UNITS + threadIdx.x / WARP;
    const Rows batch(blockIdx.x / unit_blocks, rows, B, reverse, step, T);
    if (unit >= H) return;  // the whole warp

    // One lane finishes each row. What it needs beside the sums is on its way while they are made.
    const int row = threadIdx.x % WARP / (4 * lanes), first = row * 4 * lanes;
    const bool finishes = threadIdx.x % WARP == first && row < batch.present;
    const long long b = batch.first + row, gate = d * 4 * H + unit, state = (d * B + b) * H + unit;
    Gates<A> z = {};
    A c = {};
    bool held = false;
    if (finishes) {
        c = c_before[state], held = batch.held(lengths, b);
        add_bias(z, bias_ih, gate, H);
        add_bias(z, bias_hh, gate, H);
    }

    const S* x_rows = x + (batch.t * x_time + batch.first * x_row);
    const S* h_rows = h_before + (d * B + batch.first) * P;
    const S *weight_x = weight_ih + gate * I, *weight_h = weight_hh + gate * P;
    A sums[4 * rows] = {};
    if (wide_h)
        add_products<width, rows>(weight_h, H * P, h_rows, P, batch.present, P, sums);
    else
        add_products<1, rows>(weight_h, H * P, h_rows, P, batch.present, P, sums);
    if (wide_x)
        add_products<width, rows>(weight_x, H * I, x_rows, x_row, batch.present, I, sums);
    else
        add_products<1, rows>(weight_x, H * I, x_rows, x_row, batch.present, I, sums);
    const A sum = spread_sums(sums);
    z.i += __shfl_sync(ALL, sum, first), z.f += __shfl_sync(ALL, sum, first + lanes);
    z.g += __shfl_sync(ALL, sum, first + 2 * lanes), z.o += __shfl_sync(ALL, sum, first + 3 * lanes);
    if (!finishes) return;

    const CellForward<A> cell = cell_forward<A>(z, c);
    const S h = rounded<S>(cell.m);
    c_after[state] = held ? c : cell.c;
    // Where a projection follows, that is what holds h.
    m[state] = held && P == H ? h_before[state] : h;
    if (y != nullptr)
        y[batch.t * y_time + b * y_row + d * y_direction + unit * y_unit] = held ? S{} : h;
    if (cells != nullptr)
        cells[batch.t * cells_time + b * cells_row + d * cells_direction + unit * cells_unit] =
            held ? A(0) : cell.c;
}

// The projection h = m W_ho. A lane has one output, so that a warp reads neighbouring weights; eight
// warps share the sum over the units, and their parts are added in the order of the warps. Block
// (i, d) runs outputs 32 (i % n) to 32 (i % n) + 31, where n blocks have all outputs.
template <typename S, int rows>
__global__ void __launch_bounds__(256) step_projection(
    const S* __restrict__ weight_ho,        // [D,H,P]
    const long long* __restrict__ lengths,  // [B], or null
    const S* m,         // [D,B,H]
    const S* h_before,  // [D,B,P]
    S* h_after,         // [D,B,P]
    S* y,               // [T,B,D,P] receives h, or null
    long long y_time, long long y_row, long long y_direction, long long y_unit,
    int reverse,
    long long step, long long T, long long B, long long H, long long P) {
    using A = Sum<S>;
    __shared__ A parts[PARTS][rows][WARP];
    const long long output_blocks = (P + WARP - 1) / WARP, d = blockIdx.y;
    const int lane = threadIdx.x % WARP, part = threadIdx.x / WARP;
    const long long p = blockIdx.x % output_blocks * WARP + lane;
    const Rows batch(blockIdx.x / output_blocks, rows, B, reverse, step, T);
    A sums[rows] = {};
    if (p < P)
        for (long long k = part; k < H; k += PARTS) {
            const A weight = widen(weight_ho[(d * H + k) * P + p]);
#pragma unroll
            for (int r = 0; r < rows; ++r) {
                const long long row = batch.first + (r < batch.present ? r : batch.present - 1);
                sums[r] += weight * widen(m[(d * B + row) * H + k]);
            }
        }
#pragma unroll
    for (int r = 0; r < rows; ++r) parts[part][r][lane] = sums[r];
    __syncthreads();
    // Warp r finishes row r.
    if (part >= rows || part >= batch.present || p >= P) return;
    A sum = parts[0][part][lane];
#pragma unroll
    for (int n = 1; n < PARTS; ++n) sum += parts[n][part][lane];
    const long long b = batch.first + part, state = (d * B + b) * P + p;
    const bool held = batch.held(lengths, b);
    const S h = rounded<S>(sum);
    h_after[state] = held ? h_before[state] : h;
    if (y != nullptr)
        y[batch.t * y_time + b * y_row + d * y_direction + p * y_unit] = held ? S{} : h;
}

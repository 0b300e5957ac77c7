// The forward pass of the block tier: all steps of a sequence in one launch.
//
// Block (i, d) runs rows 4 i to 4 i + 3 of direction d and never waits for another. h goes around
// in shared memory, of float32 whatever it is stored as; c stays in a register. Two copies of h,
// that before a step and that after it, make one barrier a step enough.
//
// Arrays of the caller are [T,B,...] with any strides, in elements. z is [n,B,D,4H] or [B,n,D,4H],
// contiguous: `z_time` and `z_row` lead from one time and from one row to the next, in units of
// D*4H, and it begins with the first of the steps `z_start` to `z_stop`.
#include "cell.cuh"
#include "recurrence_block.cuh"

template <typename S, int register_terms, int threads>
__global__ void __launch_bounds__(threads, 1) recurrence_forward(
    const S* __restrict__ weight_hh,        // [D,4H,H]
    const S* __restrict__ weight_ih,        // [D,4H,I], or null where z has the projection
    const S* __restrict__ bias_ih,          // [D,4H], or null
    const S* __restrict__ bias_hh,          // [D,4H], or null
    const S* __restrict__ x,                // [T,B,I], or null where z has the projection
    const long long* __restrict__ lengths,  // [B], or null
    float* z,        // [n,B,D,4H] x W_ih^T, may become the activated gates; null if neither
    S* y,            // [T,B,D,H] receives h of all steps
    float* c_steps,  // [n,B,D,H] receives c of all steps, or null
    const S* h_before, const float* c_before,  // [D,B,H]
    S* h_after, float* c_after,                // [D,B,H], may be those before
    long long x_time, long long x_row, long long x_feature,
    long long y_time, long long y_row, long long y_direction, long long y_unit,
    long long c_time, long long c_row, long long c_direction, long long c_unit,
    long long z_time, long long z_row,
    int z_start, int z_stop,           // the steps whose times are in z and c_steps
    int start, int stop,               // the steps to run
    int reverse,                       // a bit for each reverse direction
    int keep,                          // whether the gates are kept in z
    int T, int B, int I, int H, int D) {
    extern __shared__ uint4 memory[];
    const int unit = threadIdx.x / ROWS, row = threadIdx.x % ROWS, d = blockIdx.y;
    const long long b = static_cast<long long>(blockIdx.x) * ROWS + row;
    const bool backwards = reverse >> d & 1, inside = weight_ih != nullptr;
    const bool is_unit = unit < H && b < B, is_feature = inside && unit < I && b < B;
    const Times times(lengths, b, B, T, start, stop, backwards);
    const int longest = longest_of(times.count);

    const int lane = threadIdx.x % 4, length = inside ? H + I : H;
    const int terms = terms_of(length, 4), entries = entries_of(terms, 4);
    float* vector = reinterpret_cast<float*>(memory);  // [2,entries,ROWS]: h, then x
    Vector<float, 4>* bias = reinterpret_cast<Vector<float, 4>*>(memory) + 2 * entries;  // [units]
    Terms<S, register_terms> weights;
    weights.fetch(terms, reinterpret_cast<Vector<S, 4>*>(bias + blockDim.x / ROWS), [&](int j) {
        const int k = 4 * j + lane;
        Vector<S, 4> term = {};
        if (unit < H && k < length)
#pragma unroll
            for (int g = 0; g < 4; ++g) {
                const long long gate = (d * 4ll + g) * H + unit;
                term[g] = k < H ? weight_hh[gate * H + k] : weight_ih[gate * I + k - H];
            }
        return term;
    });
    if (row == 0) {
        Vector<float, 4> sum = {};
        if (unit < H)
#pragma unroll
            for (int g = 0; g < 4; ++g) {
                const long long gate = (d * 4ll + g) * H + unit;
                if (bias_ih != nullptr) sum[g] = widen(bias_ih[gate]);
                if (bias_hh != nullptr) sum[g] += widen(bias_hh[gate]);
            }
        bias[unit] = sum;
    }

    // Where this thread reads and writes at its row's first step.
    const long long first = times.first, origin = backwards ? T - z_stop : z_start;
    const S* x_here = x + (first * x_time + b * x_row + unit * x_feature);
    S* y_here = y + (first * y_time + b * y_row + d * y_direction + unit * y_unit);
    float* c_here = c_steps + ((first - origin) * c_time + b * c_row + d * c_direction +
                               unit * c_unit);
    float* z_here = z + ((((first - origin) * z_time + b * z_row) * D + d) * 4 * H + unit);
    float z_next[4] = {};

    for (int i = threadIdx.x; i < 2 * entries * ROWS; i += blockDim.x) vector[i] = 0.0f;
    const long long state = (static_cast<long long>(d) * B + b) * H + unit;
    S h = {};
    float c = 0.0f;
    if (is_unit) h = h_before[state], c = c_before[state];
    __syncthreads();
    if (is_unit) vector[threadIdx.x] = widen(h);
    if (is_feature && times.count > 0) vector[H * ROWS + threadIdx.x] = widen(*x_here);
    if (is_unit && times.count > 0 && !inside)
#pragma unroll
        for (int g = 0; g < 4; ++g) z_next[g] = z_here[g * H];
    __syncthreads();

    for (int step = 0; step < longest; ++step) {
        const float* before = vector + step % 2 * entries * ROWS;
        float* after = vector + (step + 1) % 2 * entries * ROWS;
        // What the next step needs is on its way during this one.
        S x_next = {};
        x_here += times.sign * x_time;
        if (is_feature && step + 1 < times.count) x_next = *x_here;

        float sums[16] = {}, half[8], quarter[4];  // [row,gate]
        weights.for_each(
            reinterpret_cast<const Vector<float, ROWS>*>(before) + lane, 4,
            [&](const Vector<float, 4>& weight, const Vector<float, ROWS>& value) {
#pragma unroll
                for (int r = 0; r < ROWS; ++r)
#pragma unroll
                    for (int g = 0; g < 4; ++g) sums[r * 4 + g] += weight[g] * value[r];
            });
        halve<8>(sums, half, 2);
        halve<4>(half, quarter, 1);

        if (is_unit && step < times.count) {
            const Vector<float, 4> add = loaded(bias[unit]);
            const CellForward<float> cell = cell_forward<float>(
                {z_next[0] + add[0] + quarter[0], z_next[1] + add[1] + quarter[1],
                 z_next[2] + add[2] + quarter[2], z_next[3] + add[3] + quarter[3]}, c);
            c = cell.c, h = rounded<S>(cell.m);
            *y_here = h;
            if (c_steps != nullptr) *c_here = c;
            if (keep) {
                z_here[0] = cell.gates.i, z_here[H] = cell.gates.f;
                z_here[2 * H] = cell.gates.g, z_here[3 * H] = cell.gates.o;
            }
            y_here += times.sign * y_time, c_here += times.sign * c_time;
            z_here += times.sign * z_time * D * 4 * H;
            // A product and a barrier before it is used.
            if (step + 1 < times.count && !inside)
#pragma unroll
                for (int g = 0; g < 4; ++g) z_next[g] = z_here[g * H];
        }
        if (is_unit) after[threadIdx.x] = widen(h);
        if (is_feature) after[H * ROWS + threadIdx.x] = widen(x_next);
        __syncthreads();
    }
    if (is_unit) h_after[state] = h, c_after[state] = c;
}

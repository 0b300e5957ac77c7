// The forward pass of the grid and cluster tiers: all steps of a sequence in one launch, the
// recurrent weights of a direction spread over the blocks of a team.
//
// Block (blocks * i + r, d) is member r of team i of direction first_direction + d. It has `units`
// hidden units, of which it computes gates and states, and runs the tiles of slice i one after
// another through a step. c stays in shared memory. Arrays of the caller are [T,B,...] with any
// strides, in elements. z is [n,B,D,4H] or [B,n,D,4H], contiguous: `z_time` and `z_row` lead from
// one time and from one row to the next, in units of D*4H, and it begins with the first of the
// steps `z_start` to `z_stop`.
#include "cell.cuh"
#include "team.cuh"
#include "team_product.cuh"

template <typename S, typename Product>
__global__ void PLACED __launch_bounds__(THREADS, 1) recurrence_forward(
    const S* __restrict__ weight_hh,        // [D,4H,H]
    const S* __restrict__ bias_ih,          // [D,4H], or null
    const S* __restrict__ bias_hh,          // [D,4H], or null
    const long long* __restrict__ lengths,  // [B], or null
    float* z,        // [n,B,D,4H] x W_ih^T, may become the activated gates
    S* y,            // [T,B,D,H] receives h of all steps
    float* c_steps,  // [n,B,D,H] receives c of all steps, or null
    const S* h_before, const float* c_before,  // [D,B,H]
    S* h_after, float* c_after,                // [D,B,H], may be those before
    S* exchange,          // [teams of all directions,2,tiles,vector], zeros; null in a cluster
    unsigned int* flags,  // [teams of all directions,tiles,blocks], zeros; null in a cluster
    long long y_time, long long y_row, long long y_direction, long long y_unit,
    long long c_time, long long c_row, long long c_direction, long long c_unit,
    long long z_time, long long z_row,
    int z_start, int z_stop,  // the steps whose times are in z and c_steps
    int start, int stop,      // the steps to run
    int reverse,              // a bit for each reverse direction
    int keep,                 // whether the gates are kept in z
    int first_direction, int blocks, int units, int tiles,
    int terms, int span,  // of the product
    int T, int B, int H, int D) {
    constexpr int ROWS = Product::ROWS;
    extern __shared__ uint4 memory[];
    const int rank = blockIdx.x % blocks, team = blockIdx.x / blocks;
    const int d = first_direction + blockIdx.y, first_unit = rank * units;
    const bool backwards = reverse >> d & 1;
    const int first_row = team * tiles * ROWS;

    Product product(4 * units, terms, span, memory);
    const int size = product.entries() * ROWS;
    S* vectors = reinterpret_cast<S*>(product.behind_weights());
    float* sums = reinterpret_cast<float*>(vectors + Exchange<S>::shared_vectors(tiles) * size);
    float* cells = sums + product.parts() * 4 * units * ROWS;       // [tiles,units,ROWS]: c
    float* bias = cells + tiles * units * ROWS;                     // [4,units]
    Slice slice;
    slice.rows = reinterpret_cast<Row*>(bias + 4 * units);
    slice.longest = reinterpret_cast<int*>(slice.rows + tiles * ROWS);

    Exchange<S> others(exchange, flags, vectors, d * (gridDim.x / blocks) + team, size, tiles,
                       blocks, rank);
    slice.fill<ROWS>(lengths, first_row, tiles, B, T, start, stop, start, stop, backwards);
    product.fetch([&](int output, int k) {
        const int unit = first_unit + output % units;
        return unit < H && k < H
                   ? weight_hh[((d * 4ll + output / units) * H + unit) * H + k] : S(0.0f);
    });
    for (int i = threadIdx.x; i < 4 * units; i += THREADS) {
        const int unit = first_unit + i % units;
        const long long gate = (d * 4ll + i / units) * H + unit;
        bias[i] = unit < H && bias_ih != nullptr ? widen(bias_ih[gate]) : 0.0f;
        if (unit < H && bias_hh != nullptr) bias[i] += widen(bias_hh[gate]);
    }
    others.begin();

    // The cell of this thread: a row and a unit, the same in every tile.
    const int own = threadIdx.x / ROWS, unit = first_unit + own, row = threadIdx.x % ROWS;
    const bool is_unit = own < units && unit < H;
    for (int tile = 0; tile < tiles; ++tile) {
        const int b = first_row + tile * ROWS + row;
        const long long state = (static_cast<long long>(d) * B + b) * H + unit;
        if (is_unit && b < B) {
            const S h = h_before[state];
            const float c = c_before[state];
            cells[tile * units * ROWS + threadIdx.x] = c;
            others.publish(tile, 1, Product::place(unit, row), Product::operand(h));
            h_after[state] = h, c_after[state] = c;
        }
        others.signal(tile, 1);
    }
    __syncthreads();

    const int origin = backwards ? T - z_stop : z_start;
    const auto gates_at = [&](const Row& times, int step, int b) {
        const int t = backwards ? times.first - step : times.first + step;
        return (((t - origin) * z_time + b * z_row) * D + d) * 4 * H + unit;
    };
    bool is_over = false;
    for (int step = 0; !is_over; ++step) {
        is_over = true;
        for (int tile = 0; tile < tiles; ++tile) {
            if (step >= slice.longest[tile]) continue;
            is_over = false;
            // Where the cell is is found twice: registers are short during the product.
            float gates[4] = {};
            {
                const Row times = slice.rows[tile * ROWS + row];
                if (is_unit && step < times.count) {
                    // On its way while this block waits for the others and multiplies.
                    const float* z_here =
                        z + gates_at(times, step, first_row + tile * ROWS + row);
#pragma unroll
                    for (int g = 0; g < 4; ++g) gates[g] = z_here[g * H];
                }
            }

            product.multiply(others.received(tile, step + 1), sums);
            __syncthreads();
            const Row times = slice.rows[tile * ROWS + row];
            const bool active = is_unit && step < times.count;
            CellForward<float> cell = {};
            S h = {};
            if (active) {
#pragma unroll
                for (int g = 0; g < 4; ++g) gates[g] += bias[g * units + own];
                for (int part = 0; part < product.parts(); ++part)
#pragma unroll
                    for (int g = 0; g < 4; ++g)
                        gates[g] += sums[(part * 4 + g) * units * ROWS + threadIdx.x];
                float* c = cells + tile * units * ROWS + threadIdx.x;
                cell = cell_forward<float>({gates[0], gates[1], gates[2], gates[3]}, *c);
                h = rounded<S>(cell.m);
                *c = cell.c;
                others.publish(tile, step + 2, Product::place(unit, row), Product::operand(h));
            }
            others.signal(tile, step + 2);
            // What the others need is on its way; the signal waits for no other store.
            if (active) {
                const int b = first_row + tile * ROWS + row;
                const int t = backwards ? times.first - step : times.first + step;
                y[t * y_time + b * y_row + d * y_direction + unit * y_unit] = h;
                if (c_steps != nullptr)
                    c_steps[(t - origin) * c_time + b * c_row + d * c_direction + unit * c_unit] =
                        cell.c;
                if (keep) {
                    float* z_here = z + gates_at(times, step, b);
                    z_here[0] = cell.gates.i, z_here[H] = cell.gates.f;
                    z_here[2 * H] = cell.gates.g, z_here[3 * H] = cell.gates.o;
                }
                if (step + 1 == times.count) {
                    const long long state = (static_cast<long long>(d) * B + b) * H + unit;
                    h_after[state] = h, c_after[state] = cell.c;
                }
            }
        }
    }
    others.end();
}

// The backward pass of the grid and cluster tiers: all steps of a sequence in one launch, the
// recurrent weights of a direction spread over the blocks of a team.
//
// Block (blocks * i + r, d) is member r of team i of direction first_direction + d. Of its `units`
// it computes the gradients of gates and states; what goes around is dz, rounded to what it is
// stored as. dh of a step is the product of dz of the step after it, so it is computed when that
// step's dz of all units is there; dc stays in shared memory.
//
// Gates and c are those a forward pass kept, and dz and h_prev lie as they do: [n,B,D,F] or
// [B,n,D,F], contiguous. `kept_time` and `kept_row`, `time` and `row_stride`, lead from one time
// and from one row to the next, in units of D*F; the arrays begin with the first of the steps
// `kept_start` to `kept_stop`, or `start` to `stop`. Arrays of the caller are [T,B,D,H] with any
// strides.
#include "cell.cuh"
#include "team.cuh"
#include "team_product.cuh"

// A row and a unit at a step.
struct Cell {
    long long state;  // its place in [D,B,H]
    int b, t;         // row of the batch, time
    int kept;         // number of the step among those kept, negative before them
    bool has_begun;   // whether the row has this step, or has one after it
    bool is_last;     // whether it is the row's last
};

template <typename S, typename Product>
__global__ void PLACED __launch_bounds__(THREADS, 1) recurrence_backward(
    const S* __restrict__ weight_hh,        // [D,4H,H]
    const long long* __restrict__ lengths,  // [B], or null
    const float* __restrict__ gates,        // [kept,B,D,4H] activated
    const float* __restrict__ c_steps,      // [kept,B,D,H] c after each step
    const S* __restrict__ h_first,          // [D,B,H] before the first of the steps kept
    const float* __restrict__ c_first,      // [D,B,H]
    const float* __restrict__ dcells,       // [T,B,D,H] added to dc, or null
    const S* __restrict__ dy,               // [T,B,D,H] added to dh, or null
    S* dz,                // [n,B,D,4H] receives the gradient of the pre-activations
    S* h_prev,            // [n,B,D,H] receives h before each step
    float* dh,            // [D,B,H] gradient of h after the steps, becomes that before them
    float* dc,            // [D,B,H]
    S* exchange,          // [teams of all directions,2,tiles,vector], zeros; null in a cluster
    unsigned int* flags,  // [teams of all directions,tiles,blocks], zeros; null in a cluster
    long long dy_time, long long dy_row, long long dy_direction, long long dy_unit,
    long long dcells_time, long long dcells_row, long long dcells_direction, long long dcells_unit,
    long long kept_time, long long kept_row, long long time, long long row_stride,
    int kept_start, int kept_stop,  // the steps of gates and c
    int start, int stop,            // the steps to run, and those of dz and h_prev
    int reverse,                    // a bit for each reverse direction
    int first_direction, int blocks, int units, int tiles,
    int terms, int span,  // of the product
    int T, int B, int H, int D) {
    constexpr int ROWS = Product::ROWS;
    extern __shared__ uint4 memory[];
    const int rank = blockIdx.x % blocks, team = blockIdx.x / blocks;
    const int d = first_direction + blockIdx.y, first_unit = rank * units;
    const bool backwards = reverse >> d & 1;
    const int sign = backwards ? -1 : 1;
    const int first_row = team * tiles * ROWS;

    Product product(units, terms, span, memory);
    const int size = product.entries() * ROWS;
    S* vectors = reinterpret_cast<S*>(product.behind_weights());
    float* sums = reinterpret_cast<float*>(vectors + Exchange<S>::shared_vectors(tiles) * size);
    float* cells = sums + product.parts() * units * ROWS;  // [tiles,units,ROWS]: dc
    Slice slice;
    slice.rows = reinterpret_cast<Row*>(cells + tiles * units * ROWS);
    slice.longest = reinterpret_cast<int*>(slice.rows + tiles * ROWS);

    Exchange<S> others(exchange, flags, vectors, d * (gridDim.x / blocks) + team, size, tiles,
                       blocks, rank);
    slice.fill<ROWS>(lengths, first_row, tiles, B, T, start, stop, kept_start, kept_stop,
                     backwards);
    product.fetch([&](int output, int k) {
        const int unit = first_unit + output;
        return unit < H && k < 4 * H ? weight_hh[(d * 4ll * H + k) * H + unit] : S(0.0f);
    });
    others.begin();

    // The cell of this thread: a row and a unit, the same in every tile.
    const int own = threadIdx.x / ROWS, unit = first_unit + own, row = threadIdx.x % ROWS;
    const bool is_unit = own < units && unit < H;
    for (int tile = 0; tile < tiles; ++tile) {
        const int b = first_row + tile * ROWS + row;
        if (is_unit && b < B)
            cells[tile * units * ROWS + threadIdx.x] =
                dc[(static_cast<long long>(d) * B + b) * H + unit];
    }
    __syncthreads();

    const int kept_origin = backwards ? T - kept_stop : kept_start;
    const int origin = backwards ? T - stop : start;
    // Where the cell is at a step: found before and after a product, during which registers are short.
    const auto cell_at = [&](int tile, int step) {
        const Row times = slice.rows[tile * ROWS + row];
        Cell cell;
        cell.b = first_row + tile * ROWS + row;
        cell.t = times.first + sign * step;
        cell.has_begun = is_unit && cell.b < B && step < times.count;
        cell.is_last = step + 1 == times.count;
        cell.kept = times.before + step;
        cell.state = (static_cast<long long>(d) * B + cell.b) * H + unit;
        return cell;
    };
    // Each tile begins with its own last step. Step -1 is none: it finds the gradient of the states
    // before the first one.
    bool is_over = false;
    for (int round = 0; !is_over; ++round) {
        is_over = true;
        for (int tile = 0; tile < tiles; ++tile) {
            const int step = slice.longest[tile] - 1 - round;
            if (step < -1 || slice.longest[tile] == 0) continue;
            is_over = false;

            // On its way while this block waits for the others and multiplies.
            Gates<float> gate = {};
            float c = 0.0f, c_prev = 0.0f, dh_here = 0.0f, dm = 0.0f, dc_here = 0.0f;
            {
                const Cell cell = cell_at(tile, step);
                const int b = cell.b, t = cell.t;
                const long long place = ((t - kept_origin) * kept_time + b * kept_row) * D + d;
                if (cell.has_begun && cell.kept >= 0) {
                    const float* here = gates + (place * 4 * H + unit);
                    gate = {here[0], here[H], here[2 * H], here[3 * H]};
                    c = c_steps[place * H + unit];
                }
                if (cell.has_begun && step >= 0) {
                    c_prev = cell.kept > 0
                        ? c_steps[(place - sign * kept_time * D) * H + unit] : c_first[cell.state];
                    if (dy != nullptr)
                        dm = widen(
                            dy[t * dy_time + b * dy_row + d * dy_direction + unit * dy_unit]);
                    if (dcells != nullptr)
                        dc_here = dcells[t * dcells_time + b * dcells_row + d * dcells_direction +
                                         unit * dcells_unit];
                }
                if (cell.has_begun && cell.is_last) dh_here = dh[cell.state];
            }

            if (round > 0) {
                product.multiply(others.received(tile, round), sums);
                __syncthreads();
            }
            const Cell cell = cell_at(tile, step);
            const bool active = cell.has_begun && step >= 0;
            if (round > 0 && cell.has_begun && !cell.is_last)
                for (int part = 0; part < product.parts(); ++part)
                    dh_here += sums[part * units * ROWS + threadIdx.x];
            float& dc_carried = cells[tile * units * ROWS + threadIdx.x];
            S gradient[4] = {};
            if (active) {
                const CellBackward<float> found = cell_backward<float>(
                    gate, c_prev, c, dh_here + dm, dc_carried + dc_here);
                dc_carried = found.dc_prev;
                gradient[0] = rounded<S>(found.dz.i), gradient[1] = rounded<S>(found.dz.f);
                gradient[2] = rounded<S>(found.dz.g), gradient[3] = rounded<S>(found.dz.o);
#pragma unroll
                for (int g = 0; g < 4; ++g)
                    others.publish(tile, round + 1, Product::place(g * H + unit, row),
                                   Product::operand(gradient[g]));
            }
            if (step >= 0) others.signal(tile, round + 1);
            // What the others need is on its way; the signal waits for no other store.
            const long long place = ((cell.t - origin) * time + cell.b * row_stride) * D + d;
            if (active) {
#pragma unroll
                for (int g = 0; g < 4; ++g) dz[(place * 4 + g) * H + unit] = gradient[g];
            } else if (cell.has_begun) {
                dh[cell.state] = dh_here, dc[cell.state] = dc_carried;
            }
            // h after this step is that before the next one.
            if (cell.has_begun && !cell.is_last)
                h_prev[(place + sign * time * D) * H + unit] =
                    cell.kept >= 0 ? rounded<S>(gate.o * hyperbolic_tangent(c))
                                   : h_first[cell.state];
        }
    }
    others.end();
}

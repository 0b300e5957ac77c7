// The backward pass of the block tier: all steps of a sequence in one launch.
//
// Block (i, d) runs rows 4 i to 4 i + 3 of direction d back from their last step. dz goes around in
// shared memory, of float32 but rounded to what it is stored as; dh and dc stay in registers. Here
// sixteen lanes share the sums of four units, so that a lane's work is that of the forward pass:
// four weights meet four rows.
//
// Gates and c are those a forward pass kept, and dz and h_prev lie as they do: [n,B,D,F] or
// [B,n,D,F], contiguous. `kept_time` and `kept_row`, `time` and `row`, lead from one time and from
// one row to the next, in units of D*F; the arrays begin with the first of the steps `kept_start`
// to `kept_stop`, or `start` to `stop`. Arrays of the caller are [T,B,D,H] with any strides.
#include "cell.cuh"
#include "recurrence_block.cuh"

template <typename S, int register_terms, int threads>
__global__ void __launch_bounds__(threads, 1) recurrence_backward(
    const S* __restrict__ weight_hh,        // [D,4H,H]
    const long long* __restrict__ lengths,  // [B], or null
    const float* __restrict__ gates,        // [kept,B,D,4H] activated
    const float* __restrict__ c_steps,      // [kept,B,D,H] c after each step
    const S* __restrict__ h_first,          // [D,B,H] before the first of the steps kept
    const float* __restrict__ c_first,      // [D,B,H]
    const float* __restrict__ dcells,       // [T,B,D,H] added to dc, or null
    const S* __restrict__ dy,               // [T,B,D,H] added to dh, or null
    S* dz,      // [n,B,D,4H] receives the gradient of the pre-activations
    S* h_prev,  // [n,B,D,H] receives h before each step
    float* dh,  // [D,B,H] gradient of h after the steps, becomes that before them
    float* dc,  // [D,B,H]
    long long dy_time, long long dy_row, long long dy_direction, long long dy_unit,
    long long dcells_time, long long dcells_row, long long dcells_direction, long long dcells_unit,
    long long kept_time, long long kept_row, long long time, long long row_stride,
    int kept_start, int kept_stop,  // the steps of gates and c
    int start, int stop,            // the steps to run, and those of dz and h_prev
    int reverse,                    // a bit for each reverse direction
    int T, int B, int H, int D) {
    extern __shared__ uint4 memory[];
    const int unit = threadIdx.x / ROWS, row = threadIdx.x % ROWS, d = blockIdx.y;
    const long long b = static_cast<long long>(blockIdx.x) * ROWS + row;
    const bool backwards = reverse >> d & 1, is_unit = unit < H && b < B;
    const Times times(lengths, b, B, T, start, stop, backwards);
    const Times kept(lengths, b, B, T, kept_start, kept_stop, backwards);
    const int longest = longest_of(times.count);

    const int lane = threadIdx.x % 16, first_unit = threadIdx.x / 16 * 4;
    const int terms = terms_of(4 * H, 16), entries = entries_of(terms, 16);
    float* vector = reinterpret_cast<float*>(memory);  // [2,entries,ROWS]: dz
    Terms<S, register_terms> weights;
    weights.fetch(terms, reinterpret_cast<Vector<S, 4>*>(memory + 2 * entries), [&](int j) {
        const int gate = 16 * j + lane;
        Vector<S, 4> term = {};
        if (gate < 4 * H)
#pragma unroll
            for (int n = 0; n < 4; ++n)
                if (first_unit + n < H)
                    term[n] = weight_hh[(d * 4ll * H + gate) * H + first_unit + n];
        return term;
    });

    // Where this thread reads and writes at its row's last step here. Steps are counted from the
    // row's first one kept: at step 0 of those the state before it is the initial one.
    const int sign = times.sign, count = times.count;
    const long long last = times.first + sign * (count - 1);
    const long long kept_origin = backwards ? T - kept_stop : kept_start,
                    origin = backwards ? T - stop : start;
    long long kept_place = ((last - kept_origin) * kept_time + b * kept_row) * D + d;
    long long place = ((last - origin) * time + b * row_stride) * D + d;
    const float* gates_at = gates + (kept_place * 4 * H + unit);
    const float* c_at = c_steps + (kept_place * H + unit);
    S* dz_at = dz + (place * 4 * H + unit);
    S* h_at = h_prev + (place * H + unit);
    const S* dy_at = dy + (last * dy_time + b * dy_row + d * dy_direction + unit * dy_unit);
    const float* dcells_at = dcells + (last * dcells_time + b * dcells_row +
                                         d * dcells_direction + unit * dcells_unit);
    const long long state = (static_cast<long long>(d) * B + b) * H + unit;
    const int steps_before = sign * (times.first - kept.first);

    for (int i = threadIdx.x; i < 2 * entries * ROWS; i += blockDim.x) vector[i] = 0.0f;
    float dh_here = 0.0f, dc_here = 0.0f, dy_here = 0.0f, dcells_here = 0.0f;
    float c = 0.0f, c_prev = 0.0f;
    Gates<float> gate = {};
    if (is_unit) dh_here = dh[state], dc_here = dc[state];
    if (is_unit && count > 0) {
        gate = {gates_at[0], gates_at[H], gates_at[2 * H], gates_at[3 * H]};
        c = *c_at;
        c_at -= sign * kept_time * D * H;
        c_prev = steps_before + count > 1 ? *c_at : c_first[state];
        if (dy != nullptr) dy_here = widen(*dy_at);
        if (dcells != nullptr) dcells_here = *dcells_at;
    }
    __syncthreads();

    for (int step = longest - 1; step >= 0; --step) {
        float* now = vector + step % 2 * entries * ROWS;
        const bool active = is_unit && step < count;
        Gates<float> gradient = {};
        if (active) {
            // h after this step is that before the next one.
            if (step + 1 < count) {
                *h_at = rounded<S>(gate.o * hyperbolic_tangent(c));
                h_at -= sign * time * D * H;
            }
            const CellBackward<float> cell =
                cell_backward<float>(gate, c_prev, c, dh_here + dy_here, dc_here + dcells_here);
            dc_here = cell.dc_prev;
            const S dz_rounded[4] = {rounded<S>(cell.dz.i), rounded<S>(cell.dz.f),
                                     rounded<S>(cell.dz.g), rounded<S>(cell.dz.o)};
#pragma unroll
            for (int g = 0; g < 4; ++g) dz_at[g * H] = dz_rounded[g];
            gradient = {widen(dz_rounded[0]), widen(dz_rounded[1]), widen(dz_rounded[2]),
                        widen(dz_rounded[3])};
            dz_at -= sign * time * D * 4 * H;
            // What the step before this one needs is on its way during a product and a barrier.
            c = c_prev;
            if (steps_before + step > 0) {
                gates_at -= sign * kept_time * D * 4 * H, c_at -= sign * kept_time * D * H;
                gate = {gates_at[0], gates_at[H], gates_at[2 * H], gates_at[3 * H]};
                c_prev = steps_before + step > 1 ? *c_at : c_first[state];
            }
            if (step > 0) {
                dy_at -= sign * dy_time, dcells_at -= sign * dcells_time;
                if (dy != nullptr) dy_here = widen(*dy_at);
                if (dcells != nullptr) dcells_here = *dcells_at;
            }
        }
        if (unit < H) {
            float* mine = now + threadIdx.x;
            mine[0] = gradient.i, mine[H * ROWS] = gradient.f;
            mine[2 * H * ROWS] = gradient.g, mine[3 * H * ROWS] = gradient.o;
        }
        __syncthreads();
        float sums[16] = {}, half[8], quarter[4], pair[2], whole[1];  // [unit,row]
        weights.for_each(
            reinterpret_cast<const Vector<float, ROWS>*>(now) + lane, 16,
            [&](const Vector<float, 4>& weight, const Vector<float, ROWS>& value) {
#pragma unroll
                for (int n = 0; n < 4; ++n)
#pragma unroll
                    for (int r = 0; r < ROWS; ++r) sums[n * ROWS + r] += weight[n] * value[r];
            });
        halve<8>(sums, half, 8);
        halve<4>(half, quarter, 4);
        halve<2>(quarter, pair, 2);
        halve<1>(pair, whole, 1);
        if (active) dh_here = whole[0];
    }
    if (!is_unit) return;
    dh[state] = dh_here, dc[state] = dc_here;
    // h before the first step: of the step before it, if there is one.
    if (count > 0)
        *h_at = steps_before > 0 ? rounded<S>(gate.o * hyperbolic_tangent(c)) : h_first[state];
}

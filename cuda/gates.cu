// The gates of a step-wise sweep: one thread for N neighbouring units of one row.
//
// D directions, B batch rows, H units; gates in the order i, f, g, o. S is the type of h and of
// the weights, Sum<S> that of everything that is summed or kept.
//
// Arrays of one step are [D,B,F] with contiguous rows. They are parts of chunks [D,n,B,F], so a
// stride, in elements, leads from one direction to the next. Offsets are 64-bit: T*B*4H passes
// 2^31 on the cards of today.
//
// A row in padding keeps its state in a forward pass and hands its gradient on in a backward pass.
// `padding` [D,B] says which rows those are; it is null where there are no lengths.
#include "cell.cuh"
#include "scalar.cuh"
#include "vector.cuh"

// Where a thread works: `units` and `gates` are offsets into [B,H] and [B,4H] of direction d.
struct Place {
    long long d, row, units, gates;
};

template <int N>
__device__ __forceinline__ Place place(long long item, long long B, long long H) {
    const long long in_row = H / N, unit = item % in_row * N, row = item / in_row % B;
    return {item / in_row / B, row, row * H + unit, row * 4 * H + unit};
}

#define FOR_EACH_ITEM(item, count)                                             \
    for (long long item = blockIdx.x * (long long)blockDim.x + threadIdx.x;    \
         item < (count); item += (long long)gridDim.x * blockDim.x)

// The four gates of N units.
template <typename A, int N>
struct GateVectors {
    Vector<A, N> i, f, g, o;

    __device__ __forceinline__ void load_from(const A* z, long long H) {
        i = load<N>(z), f = load<N>(z + H), g = load<N>(z + 2 * H), o = load<N>(z + 3 * H);
    }
    template <typename S>
    __device__ __forceinline__ void store_to(S* z, long long H) const {
        store_one(z, i), store_one(z + H, f), store_one(z + 2 * H, g), store_one(z + 3 * H, o);
    }
    template <typename S>
    static __device__ __forceinline__ void store_one(S* to, const Vector<A, N>& from) {
        Vector<S, N> out;
#pragma unroll
        for (int n = 0; n < N; ++n) out[n] = rounded<S>(from[n]);
        store(to, out);
    }
    __device__ __forceinline__ Gates<A> unit(int n) const { return {i[n], f[n], g[n], o[n]}; }
    __device__ __forceinline__ void set(int n, const Gates<A>& gates) {
        i[n] = gates.i, f[n] = gates.f, g[n] = gates.g, o[n] = gates.o;
    }
};

// One step forward.
template <typename S, int N>
__global__ void gates_forward(
    Sum<S>* z,              // [D,B,4H] pre-activations, become the activated gates
    const Sum<S>* c_prev,   // [D,B,H]
    Sum<S>* c,              // [D,B,H] receives the cell state
    const S* h_prev,        // [D,B,H], or null where a projection follows
    S* h,                   // [D,B,H] receives the cell output
    const bool* padding,    // [D,B], or null
    long long z_stride, long long c_prev_stride, long long c_stride, long long h_prev_stride,
    long long h_stride, long long padding_stride,
    long long D, long long B, long long H) {
    using A = Sum<S>;
    FOR_EACH_ITEM(item, D * B * (H / N)) {
        const Place at = place<N>(item, B, H);
        A* z_here = z + at.d * z_stride + at.gates;
        GateVectors<A, N> gates;
        gates.load_from(z_here, H);
        Vector<A, N> c_here = load<N>(c_prev + at.d * c_prev_stride + at.units);
        Vector<S, N> h_here;
        const bool held = padding != nullptr && padding[at.d * padding_stride + at.row];
        if (held && h_prev != nullptr) h_here = load<N>(h_prev + at.d * h_prev_stride + at.units);
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const CellForward<A> cell = cell_forward<A>(gates.unit(n), c_here[n]);
            gates.set(n, cell.gates);
            if (!held) c_here[n] = cell.c;
            if (!held || h_prev == nullptr) h_here[n] = rounded<S>(cell.m);
        }
        gates.store_to(z_here, H);
        store(c + at.d * c_stride + at.units, c_here);
        store(h + at.d * h_stride + at.units, h_here);
    }
}

// The cell outputs of n steps again, from their gates and cell states; zero in padding.
template <typename S, int N>
__global__ void gates_output(
    const Sum<S>* gates,    // [D,n,B,4H] activated
    const Sum<S>* c,        // [D,n,B,H] after each step
    S* m,                   // [D,n,B,H] receives o * tanh(c)
    const bool* padding,    // [D,n,B], or null
    long long gates_stride, long long c_stride, long long m_stride, long long padding_stride,
    long long D, long long rows, long long H) {
    using A = Sum<S>;
    // The steps of a chunk follow each other in memory: n*B rows.
    FOR_EACH_ITEM(item, D * rows * (H / N)) {
        const Place at = place<N>(item, rows, H);
        const bool empty = padding != nullptr && padding[at.d * padding_stride + at.row];
        Vector<S, N> m_here = {};  // zeros
        // Loaded inside the branch: a choice at each element would have the loads split.
        if (!empty) {
            const Vector<A, N> o = load<N>(gates + at.d * gates_stride + at.gates + 3 * H),
                               c_here = load<N>(c + at.d * c_stride + at.units);
#pragma unroll
            for (int n = 0; n < N; ++n)
                m_here[n] = rounded<S>(o[n] * hyperbolic_tangent(c_here[n]));
        }
        store(m + at.d * m_stride + at.units, m_here);
    }
}

// One step back. dz may be the memory of gates: a thread reads what it overwrites.
template <typename S, int N>
__global__ void gates_backward(
    const Sum<S>* gates,    // [D,B,4H] activated
    S* dz,                  // [D,B,4H] receives the gradient of the pre-activations
    const Sum<S>* c_prev,   // [D,B,H]
    const Sum<S>* c,        // [D,B,H]
    Sum<S>* dm,             // [D,B,H] gradient of the cell output
    const Sum<S>* carried,  // [D,B,H] added to dm, or null
    Sum<S>* dc,             // [D,B,H] gradient of c, becomes that of c_prev
    const Sum<S>* dcells,   // [D,B,H] added to dc, or null
    const bool* padding,    // [D,B], or null
    long long gates_stride, long long dz_stride, long long c_prev_stride, long long c_stride,
    long long dm_stride, long long carried_stride, long long dc_stride, long long dcells_stride,
    long long padding_stride,
    long long D, long long B, long long H) {
    using A = Sum<S>;
    FOR_EACH_ITEM(item, D * B * (H / N)) {
        const Place at = place<N>(item, B, H);
        GateVectors<A, N> gate;
        gate.load_from(gates + at.d * gates_stride + at.gates, H);
        const Vector<A, N> before = load<N>(c_prev + at.d * c_prev_stride + at.units),
                           after = load<N>(c + at.d * c_stride + at.units);
        Vector<A, N> dm_here = load<N>(dm + at.d * dm_stride + at.units),
                     dc_here = load<N>(dc + at.d * dc_stride + at.units);
        if (carried != nullptr) {
            const Vector<A, N> more = load<N>(carried + at.d * carried_stride + at.units);
#pragma unroll
            for (int n = 0; n < N; ++n) dm_here[n] += more[n];
            store(dm + at.d * dm_stride + at.units, dm_here);
        }
        if (dcells != nullptr) {
            const Vector<A, N> more = load<N>(dcells + at.d * dcells_stride + at.units);
#pragma unroll
            for (int n = 0; n < N; ++n) dc_here[n] += more[n];
        }
        const bool held = padding != nullptr && padding[at.d * padding_stride + at.row];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const CellBackward<A> cell =
                cell_backward<A>(gate.unit(n), before[n], after[n], dm_here[n], dc_here[n]);
            gate.set(n, held ? Gates<A>{A(0), A(0), A(0), A(0)} : cell.dz);
            if (!held) dc_here[n] = cell.dc_prev;
        }
        gate.store_to(dz + at.d * dz_stride + at.gates, H);
        store(dc + at.d * dc_stride + at.units, dc_here);
    }
}

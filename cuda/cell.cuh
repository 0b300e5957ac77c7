// The point-wise mathematics of one LSTM cell: one element of one batch row at one step.
//
//     i, f, o = sigmoid(z_i), sigmoid(z_f), sigmoid(z_o)        g = tanh(z_g)
//     c = f * c_prev + i * g                                    m = o * tanh(c)
//
// Everything here is a scalar of T, which is float or double: a kernel that stores half types
// converts where it loads and stores, and computes in float. Kernels differ in how they fetch
// these scalars, never in what they do with them.
//
// No approximate intrinsics (__expf, tanh.approx) and no fast-math flag: tanh.approx is wrong by
// 5e-4, and __expf loses digits as its argument grows; a recurrence feeds such errors back to
// itself at every step. The exp and tanh of the device library and an IEEE division
// (-prec-div=true, the compiler's default) are accurate to 2 ulp and 1/2 ulp. CuPy compiles with
// -ftz=true: on the device a float result below 1.2e-38 is zero, on a host it is subnormal.
//
// No header is needed: NVRTC declares exp and tanh itself, and comes with no toolkit headers. With
// __device__ and __forceinline__ defined away and <math.h> before it, this file is plain C++.
#pragma once

// Overloads, so that a float never becomes a double unnoticed: FP64 is up to 64 times slower.
__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

// 1 / (1 + exp(-z)), written so that the exponential never overflows: for z < 0 it is
// exp(z) / (1 + exp(z)), which keeps its relative accuracy where a gate is nearly closed.
// (1 + tanh(z / 2)) / 2 would be cheaper and lose it.
template <typename T>
__device__ __forceinline__ T sigmoid(T z) {
    const T e = exponential(z < T(0) ? z : -z);  // exp(-|z|); NaN stays NaN
    return (z < T(0) ? e : T(1)) / (T(1) + e);
}

// One value for each gate, in the order of the 4H rows of every weight.
template <typename T>
struct Gates {
    T i, f, g, o;
};

template <typename T>
struct CellForward {
    Gates<T> gates;  // activated
    T c;             // cell state after the step
    T m;             // cell output; it is h unless the layer has a projection
};

template <typename T>
struct CellBackward {
    Gates<T> dz;  // gradient of the pre-activations
    T dc_prev;    // gradient of the cell state before the step
};

// z: pre-activations. c_prev: cell state before the step.
template <typename T>
__device__ __forceinline__ CellForward<T> cell_forward(const Gates<T>& z, T c_prev) {
    CellForward<T> cell;
    cell.gates.i = sigmoid(z.i);
    cell.gates.f = sigmoid(z.f);
    cell.gates.g = hyperbolic_tangent(z.g);
    cell.gates.o = sigmoid(z.o);
    cell.c = cell.gates.f * c_prev + cell.gates.i * cell.gates.g;
    cell.m = cell.gates.o * hyperbolic_tangent(cell.c);
    return cell;
}

// The chain rule through cell_forward. With sigmoid' = s (1 - s), tanh' = 1 - tanh^2, and dc the
// whole gradient of c once the share that comes through m is added:
//
//     dc  += dm * o * (1 - tanh(c)^2)           dc_prev = dc * f
//     dz_i = dc * g * i * (1 - i)               dz_g    = dc * i * (1 - g^2)
//     dz_f = dc * c_prev * f * (1 - f)          dz_o    = dm * tanh(c) * o * (1 - o)
//
// gates: activated, as cell_forward returned them. c_prev, c: cell state before and after the
// step. dm: gradient of m. dc: gradient of c from everywhere but m. tanh(c) is computed again:
// that is cheaper than to store and load it.
template <typename T>
__device__ __forceinline__ CellBackward<T> cell_backward(
    const Gates<T>& gates, T c_prev, T c, T dm, T dc) {
    const T tanh_c = hyperbolic_tangent(c);
    dc += dm * gates.o * (T(1) - tanh_c * tanh_c);
    CellBackward<T> gradient;
    gradient.dz.i = dc * gates.g * gates.i * (T(1) - gates.i);
    gradient.dz.f = dc * c_prev * gates.f * (T(1) - gates.f);
    gradient.dz.g = dc * gates.i * (T(1) - gates.g * gates.g);
    gradient.dz.o = dm * tanh_c * gates.o * (T(1) - gates.o);
    gradient.dc_prev = dc * gates.f;
    return gradient;
}

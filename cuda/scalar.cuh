// The four storage types, and what is computed and kept for each.
//
// S is the type of h, of the weights and of a GEMM's operands; Sum<S> is that of sums, cell states
// and gradients: float for the half types, S itself otherwise.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename S> struct Summed { using type = S; };
template <> struct Summed<__half> { using type = float; };
template <> struct Summed<__nv_bfloat16> { using type = float; };
template <typename S> using Sum = typename Summed<S>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

// To the nearest value of S, ties to even.
template <typename S> __device__ __forceinline__ S rounded(Sum<S> x);
template <> __device__ __forceinline__ float rounded<float>(float x) { return x; }
template <> __device__ __forceinline__ double rounded<double>(double x) { return x; }
template <> __device__ __forceinline__ __half rounded<__half>(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 rounded<__nv_bfloat16>(float x) {
    return __float2bfloat16(x);
}

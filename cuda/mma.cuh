// Products of small matrices on the tensor cores, for one warp: d += a b.
//
// The only inline PTX of this kind; under the test bed (CUDA_ON_CPU) the instructions are C++. Which
// lane holds which element is the PTX ISA's ("Matrix Fragments for mma.m16n8k16" and "m16n8k8").
// A register holds E neighbours along k: two halves, or one TF32. With group = lane / 4 and
// quarter = lane % 4, and k counted in registers (k / E):
//
//     a [16,8E]  a[0]: row group,     k quarter      a[1]: row group + 8, k quarter
//                a[2]: row group,     k quarter + 4  a[3]: row group + 8, k quarter + 4
//     b [8E,8]   b[0]: column group,  k quarter      b[1]: column group,  k quarter + 4
//     d [16,8]   d[0], d[1]: row group, columns 2 quarter and 2 quarter + 1;
//                d[2], d[3]: the same of row group + 8
#pragma once
#include "scalar.cuh"

// What the tensor cores make of a storage type.
template <typename S> struct TensorCores;

// Only what is there is defined, so that a kernel for another architecture does not compile.
#if defined(CUDA_ON_CPU) || __CUDA_ARCH__ >= 800
#ifdef CUDA_ON_CPU
#include <cuda_on_cpu/mma.h>
#else

#define MMA(NAME, INSTRUCTION)                                                              \
    __device__ __forceinline__ void NAME(float (&d)[4], const unsigned (&a)[4],             \
                                         const unsigned (&b)[2], const float (&c)[4]) {     \
        asm("mma.sync.aligned." INSTRUCTION                                                 \
            " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"          \
            : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                                \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),             \
              "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));                                  \
    }
MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MMA

#endif

// A float as TF32: its mantissa rounded to 10 bits, ties away from zero as cvt.rna.tf32 has them.
// The tensor cores would cut it off. Infinities and NaN stay what they are.
__device__ __forceinline__ float as_tf32(float x) {
    const unsigned bits = __float_as_uint(x);
    return (bits & 0x7F800000u) == 0x7F800000u ? x : __uint_as_float((bits + 0x1000u) & ~0x1FFFu);
}

template <> struct TensorCores<float> {
    static constexpr int E = 1;
    static __device__ __forceinline__ float operand(float x) { return as_tf32(x); }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2]) {
        mma_m16n8k8_tf32(d, a, b, d);
    }
};
template <> struct TensorCores<__half> {
    static constexpr int E = 2;
    static __device__ __forceinline__ __half operand(__half x) { return x; }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2]) {
        mma_m16n8k16_f16(d, a, b, d);
    }
};
template <> struct TensorCores<__nv_bfloat16> {
    static constexpr int E = 2;
    static __device__ __forceinline__ __nv_bfloat16 operand(__nv_bfloat16 x) { return x; }
    static __device__ __forceinline__ void multiply(float (&d)[4], const unsigned (&a)[4],
                                                    const unsigned (&b)[2]) {
        mma_m16n8k16_bf16(d, a, b, d);
    }
};
#endif

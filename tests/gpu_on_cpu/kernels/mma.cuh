// D = A B + C on the tensor cores, for one warp. The same pattern as sync.cuh.
#pragma once

#ifdef CUDA_ON_CPU
#include <cuda_on_cpu/mma.h>
#else

#define MMA(NAME, INSTRUCTION)                                                              \
    __device__ __forceinline__ void NAME(float (&d)[4], const unsigned (&a)[4],             \
                                         const unsigned (&b)[2], const float (&c)[4]) {     \
        asm volatile("mma.sync.aligned." INSTRUCTION                                        \
                     " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" \
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])                       \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),    \
                       "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));                         \
    }
MMA(mma_m16n8k16_f16, "m16n8k16.row.col.f32.f16.f16.f32")
MMA(mma_m16n8k16_bf16, "m16n8k16.row.col.f32.bf16.bf16.f32")
MMA(mma_m16n8k8_tf32, "m16n8k8.row.col.f32.tf32.tf32.f32")
#undef MMA

#endif

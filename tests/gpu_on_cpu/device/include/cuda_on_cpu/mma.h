// The C++ twins of mma.sync: D = A B + C for one warp, 32 fragments at once.
//
//     mma_m16n8k16_f16(d, a, b, c)     mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32
//     mma_m16n8k16_bf16(d, a, b, c)    mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32
//     mma_m16n8k8_tf32(d, a, b, c)     mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32
//
// a and b hold registers: two 16-bit floats in each, or one float32 as TF32 (the last 13 bits are
// ignored). runtime/mma.cpp has the layout of the fragments, and adds in float32, k by k; a device
// may add in another order and keep fewer bits between.
#pragma once
#include <cuda_on_cpu/runtime.h>

#define BED_MMA(name, operation)                                                                \
    inline void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],             \
                     const float (&c)[4], BED_CALLER) {                                         \
        const bed::MatrixFragments fragments{d, a, b, c};                                       \
        bed::warp_collective(bed::WarpOperation::operation, 0xffffffffu, BED_SITE(#name), 0, 0, \
                             &fragments);                                                       \
    }
BED_MMA(mma_m16n8k16_f16, multiply_f16)
BED_MMA(mma_m16n8k16_bf16, multiply_bf16)
BED_MMA(mma_m16n8k8_tf32, multiply_tf32)
#undef BED_MMA

// One product of matrices on the tensor cores, with the registers of every lane as they are.
#include "mma.cuh"

#define PRODUCT(name)                                                                           \
    extern "C" __global__ void name##_raw(const unsigned* a, const unsigned* b, const float* c, \
                                          float* d) {                                           \
        unsigned a_registers[4], b_registers[2];                                                \
        float c_registers[4], d_registers[4];                                                   \
        for (int i = 0; i < 4; ++i) a_registers[i] = a[4 * threadIdx.x + i];                    \
        for (int i = 0; i < 2; ++i) b_registers[i] = b[2 * threadIdx.x + i];                    \
        for (int i = 0; i < 4; ++i) c_registers[i] = c[4 * threadIdx.x + i];                    \
        name(d_registers, a_registers, b_registers, c_registers);                               \
        for (int i = 0; i < 4; ++i) d[4 * threadIdx.x + i] = d_registers[i];                    \
    }
PRODUCT(mma_m16n8k16_f16)
PRODUCT(mma_m16n8k16_bf16)
PRODUCT(mma_m16n8k8_tf32)

// The matrix products of a warp: mma.sync in plain C++.
//
// Lane l holds, of A (16 x K, row-major), B (K x 8, column-major) and D = A B + C (16 x 8), the
// elements the PTX ISA gives it. With group = l / 4 and member = l % 4:
//
//   C, D   element i: row group + 8 (i / 2), column 2 member + i % 2                   (i < 4)
//   A, 16-bit, K = 16
//          element i: row group + 8 (i / 2 % 2), column 2 member + i % 2 + 8 (i / 4)   (i < 8)
//   B      element i: row 2 member + i % 2 + 8 (i / 2), column group                   (i < 4)
//   A, TF32, K = 8
//          element i: row group + 8 (i % 2), column member + 4 (i / 2)                 (i < 4)
//   B      element i: row member + 4 i, column group                                   (i < 2)
//
// A register holds two 16-bit elements, the lower index in its lower half. TF32 is a float32 whose
// last 13 bits the hardware ignores.
#include <string.h>

#include "../include/cuda_on_cpu/float16.h"
#include "state.h"

namespace bed {

namespace {

float half_word(WarpOperation operation, const uint32_t* registers, int element) {
    const auto bits = static_cast<uint16_t>(registers[element / 2] >> 16 * (element % 2));
    return operation == WarpOperation::multiply_f16 ? float_from_bits<Half>(bits)
                                                    : float_from_bits<Bfloat16>(bits);
}

float tf32(uint32_t bits) {
    bits &= ~0x1fffu;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace

void multiply_fragments(WarpOperation operation, const Thread* lanes) {
    const bool wide = operation == WarpOperation::multiply_tf32;
    const int depth = wide ? 8 : 16;
    float a[16][16], b[16][8];
    for (int lane = 0; lane < 32; ++lane) {
        const int group = lane / 4, member = lane % 4;
        if (wide) {
            for (int i = 0; i < 4; ++i)
                a[group + 8 * (i % 2)][member + 4 * (i / 2)] = tf32(lanes[lane].fragments->a[i]);
            for (int i = 0; i < 2; ++i)
                b[member + 4 * i][group] = tf32(lanes[lane].fragments->b[i]);
        } else {
            for (int i = 0; i < 8; ++i)
                a[group + 8 * (i / 2 % 2)][2 * member + i % 2 + 8 * (i / 4)] =
                    half_word(operation, lanes[lane].fragments->a, i);
            for (int i = 0; i < 4; ++i)
                b[2 * member + i % 2 + 8 * (i / 2)][group] =
                    half_word(operation, lanes[lane].fragments->b, i);
        }
    }
    for (int lane = 0; lane < 32; ++lane)
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
            float sum = lanes[lane].fragments->c[i];
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][column];
            lanes[lane].fragments->d[i] =
                sum;  // d may be c: every element depends on its own c only
        }
}

}  // namespace bed

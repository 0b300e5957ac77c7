// The two 16-bit floats: one conversion for both, correctly rounded in every case.
#pragma once
#include <stdint.h>
#include <string.h>

namespace bed {

template <int exponent, int mantissa>
struct Float16Format {
    static constexpr int exponent_bits = exponent, mantissa_bits = mantissa;
    static constexpr int bias = (1 << (exponent - 1)) - 1;
    static constexpr uint16_t infinity = ((1 << exponent) - 1) << mantissa;
};
using Half = Float16Format<5, 10>;
using Bfloat16 = Float16Format<8, 7>;

// To the nearest, ties to even. From a double, because every value and every sum or product of two
// 16-bit floats is one, so nothing is ever rounded twice.
template <class Format>
inline uint16_t round_to_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    const auto sign = static_cast<uint16_t>(bits >> 63 << 15);
    bits &= ~(1ull << 63);
    if (bits > 0x7ffull << 52) return 0x7fff;  // NaN, in the form the device gives it
    // Value = significand * 2^(exponent - 52); the result keeps mantissa_bits of it, fewer where
    // it is subnormal.
    const int exponent = static_cast<int>(bits >> 52) - 1023;
    if (exponent > Format::bias) return sign | Format::infinity;
    const int smallest = 1 - Format::bias;  // exponent of the subnormal numbers
    int dropped = 52 - Format::mantissa_bits;
    if (exponent < smallest) dropped += smallest - exponent;
    if (dropped > 54) return sign;  // less than half of the least subnormal
    const uint64_t significand = (bits & ((1ull << 52) - 1)) | 1ull << 52;
    const uint64_t half = 1ull << (dropped - 1), rest = significand & (2 * half - 1);
    uint64_t kept = significand >> dropped;
    kept += rest > half || (rest == half && (kept & 1));
    if (exponent >=
        smallest) {  // a carry out of the mantissa is the next exponent, as it should be
        kept += static_cast<uint64_t>(exponent - smallest) << Format::mantissa_bits;
    }
    return sign | static_cast<uint16_t>(kept);
}

template <class Format>
inline float float_from_bits(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits >> 15) << 31;
    uint32_t exponent = (bits & 0x7fff) >> Format::mantissa_bits;
    uint32_t mantissa = bits & ((1u << Format::mantissa_bits) - 1);
    if (exponent == (1u << Format::exponent_bits) - 1) {
        exponent = 255;
        if (mantissa) mantissa |= 1u << (Format::mantissa_bits - 1);  // NaN becomes a quiet one
    } else if (exponent == 0) {
        // Exact: a small integer times a power of two that float32 holds.
        const int power = 1 - Format::bias - Format::mantissa_bits;
        const float value =
            static_cast<float>(static_cast<double>(mantissa) * __builtin_ldexp(1.0, power));
        return sign ? -value : value;
    } else {
        exponent += 127 - Format::bias;
    }
    const uint32_t word = sign | exponent << 23 | mantissa << (23 - Format::mantissa_bits);
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
}

// a b + c, rounded once: the product is exact in a double, and the sum is rounded to odd, which
// keeps the later rounding to 16 bits from being a second one.
template <class Format>
inline uint16_t fused_multiply_add(float a, float b, float c) {
    const double product = static_cast<double>(a) * b, addend = c;
    double sum = product + addend;
    const double part = sum - product;
    const double error = (product - (sum - part)) + (addend - part);  // 2Sum, exact
    if (error != 0) {                                                 // false for NaN as well
        uint64_t bits;
        memcpy(&bits, &sum, sizeof bits);
        if (!(bits & 1)) {
            bits += (error > 0) == (sum > 0) ? 1 : -1;
            memcpy(&sum, &bits, sizeof sum);
        }
    }
    return round_to_bits<Format>(sum);
}

}  // namespace bed

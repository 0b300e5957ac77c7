// CUDA's vector types. Their alignment is what a vector load needs; every access is checked for it.
#pragma once

#define BED_VECTOR(T, N, WIDEST)                                     \
    struct N##1 { T x; };                                            \
    struct __attribute__((aligned(2 * sizeof(T)))) N##2 { T x, y; }; \
    struct N##3 { T x, y, z; };                                      \
    struct __attribute__((aligned(WIDEST))) N##4 { T x, y, z, w; };  \
    inline N##1 make_##N##1(T x) { return {x}; }                     \
    inline N##2 make_##N##2(T x, T y) { return {x, y}; }             \
    inline N##3 make_##N##3(T x, T y, T z) { return {x, y, z}; }     \
    inline N##4 make_##N##4(T x, T y, T z, T w) { return {x, y, z, w}; }

BED_VECTOR(signed char, char, 4)
BED_VECTOR(unsigned char, uchar, 4)
BED_VECTOR(short, short, 8)
BED_VECTOR(unsigned short, ushort, 8)
BED_VECTOR(int, int, 16)
BED_VECTOR(unsigned, uint, 16)
BED_VECTOR(long long, longlong, 16)
BED_VECTOR(unsigned long long, ulonglong, 16)
BED_VECTOR(float, float, 16)
BED_VECTOR(double, double, 16)
#undef BED_VECTOR

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

// One 16-bit float type and its pair. Included once for each type, by cuda_fp16.h and cuda_bf16.h,
// with BED_T, BED_T2, BED_RAW, BED_RAW2 and BED_FORMAT defined.
//
// Arithmetic goes through float and is rounded once more: float has more than twice the digits, so
// the result of +, -, *, / and sqrt is the correctly rounded one.

struct BED_RAW {
    unsigned short x;
};
struct BED_RAW2 {
    unsigned short x, y;
};

struct BED_T {
    BED_T() = default;
    template <class N, std::enable_if_t<std::is_arithmetic<N>::value, int> = 0>
    BED_T(N value) : bits_(bed::round_to_bits<BED_FORMAT>(static_cast<double>(value))) {}
    BED_T(BED_RAW raw) : bits_(raw.x) {}
    operator BED_RAW() const { return {bits_}; }
    operator float() const { return bed::float_from_bits<BED_FORMAT>(bits_); }

    BED_T& operator+=(BED_T other) { return *this = BED_T(float(*this) + float(other)); }
    BED_T& operator-=(BED_T other) { return *this = BED_T(float(*this) - float(other)); }
    BED_T& operator*=(BED_T other) { return *this = BED_T(float(*this) * float(other)); }
    BED_T& operator/=(BED_T other) { return *this = BED_T(float(*this) / float(other)); }

private:
    unsigned short bits_;
};

struct __attribute__((aligned(4))) BED_T2 {
    BED_T x, y;
    BED_T2() = default;
    BED_T2(BED_T x_, BED_T y_) : x(x_), y(y_) {}
    BED_T2(BED_RAW2 raw) : x(BED_RAW{raw.x}), y(BED_RAW{raw.y}) {}
};

inline BED_T operator+(BED_T a, BED_T b) { return BED_T(float(a) + float(b)); }
inline BED_T operator-(BED_T a, BED_T b) { return BED_T(float(a) - float(b)); }
inline BED_T operator*(BED_T a, BED_T b) { return BED_T(float(a) * float(b)); }
inline BED_T operator/(BED_T a, BED_T b) { return BED_T(float(a) / float(b)); }
inline BED_T operator-(BED_T a) {
    return BED_RAW{static_cast<unsigned short>(BED_RAW(a).x ^ 0x8000)};
}
inline bool operator==(BED_T a, BED_T b) { return float(a) == float(b); }
inline bool operator!=(BED_T a, BED_T b) { return float(a) != float(b); }
inline bool operator<(BED_T a, BED_T b) { return float(a) < float(b); }
inline bool operator<=(BED_T a, BED_T b) { return float(a) <= float(b); }
inline bool operator>(BED_T a, BED_T b) { return float(a) > float(b); }
inline bool operator>=(BED_T a, BED_T b) { return float(a) >= float(b); }

inline BED_T __hadd(BED_T a, BED_T b) { return a + b; }
inline BED_T __hsub(BED_T a, BED_T b) { return a - b; }
inline BED_T __hmul(BED_T a, BED_T b) { return a * b; }
inline BED_T __hdiv(BED_T a, BED_T b) { return a / b; }
inline BED_T __hneg(BED_T a) { return -a; }
inline BED_T __habs(BED_T a) {
    return BED_RAW{static_cast<unsigned short>(BED_RAW(a).x & 0x7fff)};
}
inline BED_T __hfma(BED_T a, BED_T b, BED_T c) {
    return BED_RAW{bed::fused_multiply_add<BED_FORMAT>(a, b, c)};
}
inline bool __hisnan(BED_T a) { return float(a) != float(a); }
inline int __hisinf(BED_T a) {
    const unsigned short bits = BED_RAW(a).x;
    return (bits & 0x7fff) == BED_FORMAT::infinity ? (bits >> 15 ? -1 : 1) : 0;
}
inline BED_T __hmax(BED_T a, BED_T b) { return float(a) >= float(b) || __hisnan(b) ? a : b; }
inline BED_T __hmin(BED_T a, BED_T b) { return float(a) <= float(b) || __hisnan(b) ? a : b; }
inline bool __heq(BED_T a, BED_T b) { return a == b; }
inline bool __hne(BED_T a, BED_T b) { return a != b; }
inline bool __hlt(BED_T a, BED_T b) { return a < b; }
inline bool __hle(BED_T a, BED_T b) { return a <= b; }
inline bool __hgt(BED_T a, BED_T b) { return a > b; }
inline bool __hge(BED_T a, BED_T b) { return a >= b; }
inline BED_T hsqrt(BED_T a) { return BED_T(sqrtf(a)); }
inline BED_T hexp(BED_T a) { return BED_T(exp(static_cast<double>(float(a)))); }
inline BED_T hlog(BED_T a) { return BED_T(log(static_cast<double>(float(a)))); }
inline BED_T hrcp(BED_T a) { return BED_T(1.0 / float(a)); }
inline BED_T hrsqrt(BED_T a) { return BED_T(1.0 / sqrt(static_cast<double>(float(a)))); }

inline BED_T2 operator+(BED_T2 a, BED_T2 b) { return {a.x + b.x, a.y + b.y}; }
inline BED_T2 operator-(BED_T2 a, BED_T2 b) { return {a.x - b.x, a.y - b.y}; }
inline BED_T2 operator*(BED_T2 a, BED_T2 b) { return {a.x * b.x, a.y * b.y}; }
inline BED_T2 operator/(BED_T2 a, BED_T2 b) { return {a.x / b.x, a.y / b.y}; }
inline BED_T2 __hadd2(BED_T2 a, BED_T2 b) { return a + b; }
inline BED_T2 __hsub2(BED_T2 a, BED_T2 b) { return a - b; }
inline BED_T2 __hmul2(BED_T2 a, BED_T2 b) { return a * b; }
inline BED_T2 __h2div(BED_T2 a, BED_T2 b) { return a / b; }
inline BED_T2 __hneg2(BED_T2 a) { return {-a.x, -a.y}; }
inline BED_T2 __habs2(BED_T2 a) { return {__habs(a.x), __habs(a.y)}; }
inline BED_T2 __hmax2(BED_T2 a, BED_T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }
inline BED_T2 __hmin2(BED_T2 a, BED_T2 b) { return {__hmin(a.x, b.x), __hmin(a.y, b.y)}; }
inline BED_T2 __hfma2(BED_T2 a, BED_T2 b, BED_T2 c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

inline float __low2float(BED_T2 a) { return a.x; }
inline float __high2float(BED_T2 a) { return a.y; }

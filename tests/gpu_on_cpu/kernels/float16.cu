// The 16-bit floats: every conversion and operation whose rounding the tests check.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

template <typename T>
__global__ void from_float(const float* x, T* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = T(x[i]);
}
template <typename T>
__global__ void from_double(const double* x, T* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = T(x[i]);
}
template <typename T>
__global__ void to_float(const T* x, float* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = static_cast<float>(x[i]);
}
template <typename T>
__global__ void arithmetic(const T* a, const T* b, T* y, int n) {  // [n], [n], [4,n]
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        y[i] = a[i] + b[i], y[n + i] = a[i] - b[i];
        y[2 * n + i] = a[i] * b[i], y[3 * n + i] = a[i] / b[i];
    }
}
template <typename T>
__global__ void fused(const T* a, const T* b, const T* c, T* y, int n) {
    for (int i = threadIdx.x; i < n; i += blockDim.x) y[i] = __hfma(a[i], b[i], c[i]);
}
extern "C" __global__ void pairs(const __half2* x, const __nv_bfloat162* z, float2* y) {
    const float2 a = __half22float2(__hfma2(x[0], x[1], __float2half2_rn(1.0f)));
    const float2 b = __bfloat1622float2(__hadd2(z[0], z[1]));
    y[0] = make_float2(a.x + __low2float(x[0]), a.y + __high2float(x[0]));
    y[1] = make_float2(b.x, b.y);
}

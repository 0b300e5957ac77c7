// N neighbouring values that one instruction loads or stores.
#pragma once

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T values[N];
    __device__ __forceinline__ T& operator[](int n) { return values[n]; }
    __device__ __forceinline__ const T& operator[](int n) const { return values[n]; }
};

// The address must be a multiple of the vector's size.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
    return *reinterpret_cast<const Vector<T, N>*>(from);
}

template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
    *reinterpret_cast<Vector<T, N>*>(to) = vector;
}

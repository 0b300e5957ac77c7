// N neighbouring values that one instruction loads or stores.
//
// Memory is moved as words of the vector's size: the compiler splits the assignment of a struct
// into its members, and does not always put the stores together again.
#pragma once

template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
    T values[N];
    __device__ __forceinline__ T& operator[](int n) { return values[n]; }
    __device__ __forceinline__ const T& operator[](int n) const { return values[n]; }
};

template <int bytes> struct Word;
template <> struct Word<2> { using type = unsigned short; };
template <> struct Word<4> { using type = unsigned int; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

// The address must be a multiple of the vector's size.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load(const T* from) {
    return *reinterpret_cast<const Vector<T, N>*>(from);
}

// To global memory only: __stwb is the instruction st.global, which a plain store becomes there, too.
template <typename T, int N>
__device__ __forceinline__ void store(T* to, const Vector<T, N>& vector) {
    typename Word<sizeof(T) * N>::type word;
    memcpy(&word, &vector, sizeof word);
    __stwb(reinterpret_cast<decltype(word)*>(to), word);
}

// To shared memory.
template <typename T, int N>
__device__ __forceinline__ void store_shared(Vector<T, N>* to, const Vector<T, N>& vector) {
    typename Word<sizeof(T) * N>::type word;
    memcpy(&word, &vector, sizeof word);
    *reinterpret_cast<decltype(word)*>(to) = word;
}

// A vector in one load: from a reference the compiler would load each value where it is used.
template <typename T, int N>
__device__ __forceinline__ Vector<T, N> loaded(const Vector<T, N>& from) {
    const auto word = *reinterpret_cast<const typename Word<sizeof(T) * N>::type*>(&from);
    Vector<T, N> vector;
    memcpy(&vector, &word, sizeof word);
    return vector;
}

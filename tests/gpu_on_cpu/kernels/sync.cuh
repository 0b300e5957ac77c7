// How blocks signal each other: acquire and release at a scope, and the barrier of a cluster.
//
// The pattern for a header of inline PTX: the same functions twice, chosen by CUDA_ON_CPU. On a
// device they are single instructions; under the test bed they are its C++ twins, which park a
// thread that polls, check that a scope holds both threads, and are visible to ThreadSanitizer.
#pragma once

#ifdef CUDA_ON_CPU
#include <cuda_on_cpu/sync.h>
#else

enum class Scope { block, cluster, device };

// One instruction for each scope: an asm string must be a literal.
#define PER_SCOPE(BEFORE, AFTER, ...)                     \
    if constexpr (scope == Scope::block)                  \
        asm volatile(BEFORE "cta" AFTER __VA_ARGS__);     \
    else if constexpr (scope == Scope::cluster)           \
        asm volatile(BEFORE "cluster" AFTER __VA_ARGS__); \
    else                                                  \
        asm volatile(BEFORE "gpu" AFTER __VA_ARGS__)

template <Scope scope>
__device__ __forceinline__ unsigned load_acquire(const unsigned* address) {
    unsigned value;
    PER_SCOPE("ld.acquire.", ".global.u32 %0, [%1];", : "=r"(value) : "l"(address) : "memory");
    return value;
}
template <Scope scope>
__device__ __forceinline__ unsigned load_relaxed(const unsigned* address) {
    unsigned value;
    PER_SCOPE("ld.relaxed.", ".global.u32 %0, [%1];", : "=r"(value) : "l"(address) : "memory");
    return value;
}
template <Scope scope>
__device__ __forceinline__ void store_release(unsigned* address, unsigned value) {
    PER_SCOPE("st.release.", ".global.u32 [%0], %1;", ::"l"(address), "r"(value) : "memory");
}
template <Scope scope>
__device__ __forceinline__ void add_release(unsigned* address, unsigned value) {
    PER_SCOPE("red.release.", ".global.add.u32 [%0], %1;", ::"l"(address), "r"(value) : "memory");
}
#undef PER_SCOPE

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void cluster_arrive_release() {
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait_acquire() {
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ unsigned cluster_rank() {
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// Where the block `rank` of the cluster keeps what this block keeps at `pointer`.
template <typename T>
__device__ __forceinline__ T* map_shared(T* pointer, unsigned rank) {
    unsigned long long mapped;
    asm("mapa.u64 %0, %1, %2;" : "=l"(mapped) : "l"(pointer), "r"(rank));
    return reinterpret_cast<T*>(mapped);
}
#endif

#endif

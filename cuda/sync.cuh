// How blocks signal each other: acquire and release on the device, and the barrier of a cluster.
//
// The only inline PTX of this kind. Under the test bed (CUDA_ON_CPU) the same functions are C++,
// which ThreadSanitizer sees. No fence and no volatile: a flag that is released after a block's
// barrier orders all that its threads wrote before it, and one that is acquired before a block's
// barrier all that its threads read after it (PTX ISA, "Memory Consistency Model").
#pragma once

#ifdef CUDA_ON_CPU
#include <cuda_on_cpu/sync.h>
#else

enum class Scope { block, cluster, device };

// An asm string must be a literal, so there is an instruction for each scope.
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
__device__ __forceinline__ void store_release(unsigned* address, unsigned value) {
    PER_SCOPE("st.release.", ".global.u32 [%0], %1;", ::"l"(address), "r"(value) : "memory");
}
#undef PER_SCOPE

#if __CUDA_ARCH__ >= 900
// All threads of a warp together, as .aligned demands, wherever they come from.
__device__ __forceinline__ void cluster_arrive_release() {
    __syncwarp();
    asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait_acquire() {
    __syncwarp();
    asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
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

// Every block of a cluster sums what all of them hold in shared memory.
#include "sync.cuh"

#define THREADS 32

#ifdef BUG_NO_BARRIER_BEFORE_READING
#define BEFORE_READING() __syncthreads()
#elif defined(BUG_ARRIVES_RELAXED)
#define BEFORE_READING()      \
    cluster_arrive_relaxed(); \
    cluster_wait_acquire()
#else
#define BEFORE_READING()      \
    cluster_arrive_release(); \
    cluster_wait_acquire()
#endif
#ifdef BUG_NO_BARRIER_BEFORE_LEAVING
#define BEFORE_LEAVING()
#else
#define BEFORE_LEAVING()      \
    cluster_arrive_relaxed(); \
    cluster_wait_acquire()
#endif

extern "C" __global__ void __cluster_dims__(4, 1, 1)
    cluster_sum(const float* x,  // [blocks,THREADS]
                float* y) {      // [blocks,THREADS]
    __shared__ float mine[THREADS];
    const int i = threadIdx.x;
    mine[i] = x[blockIdx.x * THREADS + i];
    BEFORE_READING();
    float sum = 0.0f;
    for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += map_shared(mine, rank)[i];
    BEFORE_LEAVING();
    y[blockIdx.x * THREADS + i] = sum;
}

// The same, where each block writes into the memory of the others. It may not begin before they
// have: a barrier comes first.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_push(const float* x, float* y) {
    __shared__ float received[4][THREADS];
    const int i = threadIdx.x;
#ifndef BUG_WRITES_BEFORE_THE_OTHERS_BEGIN
    cluster_arrive_relaxed();
    cluster_wait_acquire();
#endif
    for (unsigned rank = 0; rank < cluster_size(); ++rank)
        map_shared(&received[cluster_rank()][i], rank)[0] = x[blockIdx.x * THREADS + i];
    cluster_arrive_release();
    cluster_wait_acquire();
    float sum = 0.0f;
    for (int k = 0; k < 4; ++k) sum += received[k][i];
    y[blockIdx.x * THREADS + i] = sum;
}

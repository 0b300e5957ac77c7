// Everything that must end a launch. The comment with a fault's name marks the line that the error
// must give; the name's place in the enumeration is the kernel's first argument.
#include <cooperative_groups.h>

#include "sync.cuh"

__device__ __noinline__ void use_stack(int n) {  // more_than_the_stack
    volatile char big[1 << 20];
    for (int i = 0; i < 1 << 20; i += 64) big[i] = n;
}

enum Fault {
    misaligned_vector,
    index_past_the_end,
    past_dynamic_memory,
    shared_store_to_global,
    null_pointer,
    no_such_memory,
    division_by_zero,
    failed_assert,
    trap,
    more_than_the_stack,
    barriers_in_two_branches,
    left_before_the_barrier,
    left_before_the_others_came,
    shuffle_in_two_branches,
    lane_outside_its_mask,
    lane_that_takes_no_part,
    waits_forever,
    waits_for_a_later_block,
    barrier_while_polled,
    volatile_spin,
    grid_barrier_alone,
    grid_barrier_missed,
    block_scope_to_another_block,
    cluster_arrives_twice,
    cluster_waits_first,
    no_such_block_in_cluster,
    address_is_not_shared,
    leaves_without_waiting,
};

extern "C" __global__ void fault(int which, float* p, unsigned* words, int zero) {
    __shared__ float held[4];
    extern __shared__ float dynamic[];
    const int i = threadIdx.x;
    if (which == misaligned_vector)
        p[0] = reinterpret_cast<float4*>(p + 1)->x;                  // misaligned_vector
    if (which == index_past_the_end) held[i] = 1;                    // index_past_the_end
    if (which == past_dynamic_memory) dynamic[i] = 1;                // past_dynamic_memory
    if (which == shared_store_to_global) __stwb(held, 1.0f);         // shared_store_to_global
    if (which == null_pointer) *reinterpret_cast<float*>(zero) = 1;  // null_pointer
    if (which == no_such_memory) p[(1ll << 44) + zero] = 1;          // no_such_memory
    if (which == division_by_zero) p[0] = 7 / zero;                  // division_by_zero
    if (which == failed_assert) assert(i < 3);                       // failed_assert
    if (which == trap) __trap();                                     // trap
    if (which == more_than_the_stack) use_stack(zero);
    if (which == barriers_in_two_branches) {
        if (i < 3)
            __syncthreads();
        else
            __syncthreads();  // barriers_in_two_branches
    }
    if (which == left_before_the_barrier) {
        if (i == 5) return;
        __syncthreads();  // left_before_the_barrier
    }
    if (which == left_before_the_others_came) {
        if (i == 0 || i == 7) return;
        __syncthreads();  // left_before_the_others_came
    }
    if (which == shuffle_in_two_branches) {
        if (i < 3)
            p[i] = __shfl_sync(~0u, 1.0f, 0);
        else
            p[i] = __shfl_xor_sync(~0u, 1.0f, 1);  // shuffle_in_two_branches
    }
    if (which == lane_outside_its_mask) __syncwarp(1 << 3);  // lane_outside_its_mask
    if (which == lane_that_takes_no_part)
        p[i] = __shfl_xor_sync(~0u, 1.0f, 16);  // lane_that_takes_no_part
    if (which == waits_forever)
        while (load_acquire<Scope::device>(words) != 1) continue;  // waits_forever
    if (which == waits_for_a_later_block) {
        const bool first = blockIdx.x == 0, last = blockIdx.x == gridDim.x - 1;
        if (first || last) {
            store_release<Scope::device>(words + first, 1);
            unsigned* other = words + last;
            while (load_acquire<Scope::device>(other) != 1) continue;  // waits_for_a_later_block
        }
    }
    if (which == barrier_while_polled) {
        if (i == 0)
            while (atomicCAS(words, 1, 2) != 1) continue;
        __syncthreads();  // barrier_while_polled
        words[0] = 1;
    }
    if (which == volatile_spin)
        while (*static_cast<volatile unsigned*>(words) != 1) continue;  // volatile_spin
}

extern "C" __global__ void grid_fault(int which, unsigned* words) {
    const auto grid = cooperative_groups::this_grid();
    if (which == grid_barrier_alone) grid.sync();  // grid_barrier_alone
    if (which == grid_barrier_missed) {
        if (blockIdx.x == 1) return;
        grid.sync();  // grid_barrier_missed
    }
    if (which == block_scope_to_another_block) {
        if (blockIdx.x == 1) store_release<Scope::block>(words, 1);
        if (blockIdx.x == 1) return;
        while (load_acquire<Scope::device>(words) != 1) continue;  // block_scope_to_another_block
    }
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_fault(int which, int* out) {
    __shared__ int mine;
    int* held = &mine;
    if (which == cluster_arrives_twice) {
        cluster_arrive_release();
        cluster_arrive_release();  // cluster_arrives_twice
    }
    if (which == cluster_waits_first) cluster_wait_acquire();  // cluster_waits_first
    if (which == no_such_block_in_cluster)
        *out = *map_shared(held, 2);                                 // no_such_block_in_cluster
    if (which == address_is_not_shared) *out = *map_shared(out, 1);  // address_is_not_shared
    if (which == leaves_without_waiting) cluster_arrive_release();   // leaves_without_waiting
}

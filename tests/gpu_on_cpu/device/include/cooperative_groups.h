// The part of cooperative_groups.h that kernels use: blocks, the grid, clusters, tiles of a warp.
#pragma once
#include <cuda_on_cpu/memory.h>
#include <cuda_on_cpu/warp.h>

namespace cooperative_groups {

namespace details {
inline unsigned count(const dim3& extent) { return extent.x * extent.y * extent.z; }
}  // namespace details

struct thread_block {
    void sync(BED_CALLER) const { bed::block_barrier(BED_SITE("thread_block::sync"), false); }
    static unsigned thread_rank() { return bed::current->thread_rank; }
    static unsigned num_threads() { return details::count(bed::shape.block); }
    static unsigned size() { return num_threads(); }
    static dim3 dim_threads() { return bed::shape.block; }
    static dim3 group_dim() { return bed::shape.block; }
    static dim3 group_index() { return bed::current->block_index; }
    static dim3 thread_index() { return bed::current->thread_index; }
};
inline thread_block this_thread_block() { return {}; }

struct grid_group {
    static bool is_valid() { return bed::shape.cooperative; }
    void sync(BED_CALLER) const { bed::grid_barrier(BED_SITE("grid_group::sync")); }
    static unsigned long long num_blocks() { return details::count(bed::shape.grid); }
    static unsigned long long block_rank() { return bed::current->block_rank; }
    static unsigned long long num_threads() { return num_blocks() * thread_block::size(); }
    static unsigned long long size() { return num_threads(); }
    static unsigned long long thread_rank() {
        return block_rank() * thread_block::size() + bed::current->thread_rank;
    }
    static dim3 dim_blocks() { return bed::shape.grid; }
    static dim3 group_dim() { return bed::shape.grid; }
    static dim3 block_index() { return bed::current->block_index; }
};
inline grid_group this_grid() { return {}; }

struct cluster_group {
    struct arrival_token {};
    void sync(BED_CALLER) const {
        bed::cluster_arrive(BED_SITE("cluster_group::sync"), true);
        bed::cluster_wait(BED_SITE("cluster_group::sync"));
    }
    arrival_token barrier_arrive(BED_CALLER) const {
        bed::cluster_arrive(BED_SITE("cluster_group::barrier_arrive"), true);
        return {};
    }
    void barrier_wait(arrival_token&& = {}, BED_CALLER) const {
        bed::cluster_wait(BED_SITE("cluster_group::barrier_wait"));
    }
    template <class T>
    T* map_shared_rank(T* address, int rank, BED_CALLER) const {
        return static_cast<T*>(
            bed::map_shared(address, rank, BED_SITE("cluster_group::map_shared_rank")));
    }
    static unsigned block_rank() { return bed::current->rank_in_cluster; }
    static unsigned num_blocks() { return details::count(bed::shape.cluster); }
    static unsigned num_threads() { return num_blocks() * thread_block::size(); }
    static unsigned size() { return num_threads(); }
    static unsigned thread_rank() {
        return block_rank() * thread_block::size() + bed::current->thread_rank;
    }
    static dim3 dim_blocks() { return bed::shape.cluster; }
    static dim3 block_index() {
        const dim3 block = bed::current->block_index, size = bed::shape.cluster;
        return {block.x % size.x, block.y % size.y, block.z % size.z};
    }
};
inline cluster_group this_cluster() { return {}; }

// --- parts of a warp -----------------------------------------------------------------------------

template <unsigned N, class Parent = void>
struct thread_block_tile {
    static_assert(N && N <= 32 && (N & (N - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads");
    thread_block_tile() = default;
    template <class Other>  // thread_block_tile<N> may forget what it is a part of
    thread_block_tile(const thread_block_tile<N, Other>&) {}
    static unsigned first_lane() { return bed::current->lane & ~(N - 1); }
    static unsigned mask() {
        return N == 32 ? 0xffffffffu : ((1u << (N & 31)) - 1) << first_lane();
    }
    static unsigned thread_rank() { return bed::current->lane & (N - 1); }
    static constexpr unsigned num_threads() { return N; }
    static constexpr unsigned size() { return N; }
    static unsigned meta_group_rank() { return bed::current->thread_rank / N; }
    static unsigned meta_group_size() { return (thread_block::size() + N - 1) / N; }

    void sync(BED_CALLER) const { __syncwarp(mask(), BED_PASS_CALLER); }
    template <class T>
    T shfl(T value, int rank, BED_CALLER) const {
        return __shfl_sync(mask(), value, rank, N, BED_PASS_CALLER);
    }
    template <class T>
    T shfl_down(T value, unsigned delta, BED_CALLER) const {
        return __shfl_down_sync(mask(), value, delta, N, BED_PASS_CALLER);
    }
    template <class T>
    T shfl_up(T value, unsigned delta, BED_CALLER) const {
        return __shfl_up_sync(mask(), value, delta, N, BED_PASS_CALLER);
    }
    template <class T>
    T shfl_xor(T value, unsigned bits, BED_CALLER) const {
        return __shfl_xor_sync(mask(), value, bits, N, BED_PASS_CALLER);
    }
    unsigned ballot(int predicate, BED_CALLER) const {
        return __ballot_sync(mask(), predicate, BED_PASS_CALLER) >> first_lane();
    }
    int any(int predicate, BED_CALLER) const {
        return __any_sync(mask(), predicate, BED_PASS_CALLER);
    }
    int all(int predicate, BED_CALLER) const {
        return __all_sync(mask(), predicate, BED_PASS_CALLER);
    }
    template <class T>
    unsigned match_any(T value, BED_CALLER) const {
        return __match_any_sync(mask(), value, BED_PASS_CALLER) >> first_lane();
    }
};
template <unsigned N, class Parent>
thread_block_tile<N, Parent> tiled_partition(const Parent&) {
    return {};
}

// The lanes that came here together.
struct coalesced_group {
    explicit coalesced_group(unsigned mask) : mask_(mask) {}
    unsigned num_threads() const { return __popc(mask_); }
    unsigned size() const { return num_threads(); }
    unsigned thread_rank() const { return __popc(mask_ & ((1u << bed::current->lane) - 1)); }
    void sync(BED_CALLER) const { __syncwarp(mask_, BED_PASS_CALLER); }
    template <class T>
    T shfl(T value, unsigned rank, BED_CALLER) const {
        unsigned lanes = mask_;
        for (; rank; --rank) lanes &= lanes - 1;
        return __shfl_sync(mask_, value, __ffs(lanes) - 1, 32, BED_PASS_CALLER);
    }

private:
    unsigned mask_;
};
inline coalesced_group coalesced_threads(BED_CALLER) {
    return coalesced_group(__activemask(BED_PASS_CALLER));
}

template <class Group>
void sync(const Group& group, BED_CALLER) {
    group.sync(BED_PASS_CALLER);
}

// --- reductions (cooperative_groups/reduce.h) ----------------------------------------------------

template <class T>
struct plus {
    T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct less {
    T operator()(T a, T b) const { return b < a ? b : a; }
};
template <class T>
struct greater {
    T operator()(T a, T b) const { return a < b ? b : a; }
};
template <unsigned N, class P, class T, class F>
T reduce(const thread_block_tile<N, P>& tile, T value, F combine, BED_CALLER) {
    for (unsigned bits = N / 2; bits; bits /= 2)
        value = combine(value, tile.shfl_xor(value, bits, BED_PASS_CALLER));
    return value;
}

}  // namespace cooperative_groups

// Barriers of a block, and what the lanes of a warp do together.
#pragma once
#include <cuda_on_cpu/runtime.h>
#include <string.h>
#include <type_traits>

inline void __syncthreads(BED_CALLER) { bed::block_barrier(BED_SITE("__syncthreads"), false); }
inline int __syncthreads_count(int predicate, BED_CALLER) {
    return bed::block_barrier(BED_SITE("__syncthreads_count"), predicate != 0);
}
inline int __syncthreads_or(int predicate, BED_CALLER) {
    return bed::block_barrier(BED_SITE("__syncthreads_or"), predicate != 0) != 0;
}
inline int __syncthreads_and(int predicate, BED_CALLER) {
    return bed::block_barrier(BED_SITE("__syncthreads_and"), predicate == 0) == 0;
}

inline void __syncwarp(unsigned mask = 0xffffffffu, BED_CALLER) {
    bed::warp_collective(bed::WarpOperation::synchronise, mask, BED_SITE("__syncwarp"));
}
inline unsigned __activemask(BED_CALLER) { return bed::active_mask(BED_SITE("__activemask")); }

// --- shuffles ------------------------------------------------------------------------------------

namespace bed {
template <class T>
uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable<T>::value,
                  "a lane hands over at most 8 bytes");
    uint64_t bits = 0;
    memcpy(&bits, static_cast<const void*>(&value), sizeof value);
    return bits;
}
template <class T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(static_cast<void*>(&value), &bits, sizeof value);
    return value;
}
template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site site) {
    return from_bits<T>(
        warp_collective(WarpOperation::shuffle, mask, site, to_bits(value), source));
}
}  // namespace bed

// A source outside the lane's own segment of `width` lanes means the lane itself.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, BED_CALLER) {
    const int segment = bed::current->lane & ~(width - 1);
    return bed::shuffle(mask, value, segment | (source & (width - 1)), BED_SITE("__shfl_sync"));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, BED_CALLER) {
    const unsigned lane = bed::current->lane, first = lane & ~(width - 1);
    return bed::shuffle(mask, value, lane >= first + delta ? lane - delta : lane,
                        BED_SITE("__shfl_up_sync"));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, BED_CALLER) {
    const unsigned lane = bed::current->lane, last = lane | (width - 1);
    return bed::shuffle(mask, value, lane + delta <= last ? lane + delta : lane,
                        BED_SITE("__shfl_down_sync"));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32, BED_CALLER) {
    const unsigned lane = bed::current->lane, last = lane | (width - 1);
    const unsigned source = lane ^ static_cast<unsigned>(bits);
    return bed::shuffle(mask, value, source <= last ? source : lane, BED_SITE("__shfl_xor_sync"));
}

// --- votes, matches, sums ------------------------------------------------------------------------

inline unsigned __ballot_sync(unsigned mask, int predicate, BED_CALLER) {
    return bed::warp_collective(bed::WarpOperation::ballot, mask, BED_SITE("__ballot_sync"),
                                predicate != 0);
}
inline int __any_sync(unsigned mask, int predicate, BED_CALLER) {
    return bed::warp_collective(bed::WarpOperation::ballot, mask, BED_SITE("__any_sync"),
                                predicate != 0) != 0;
}
inline int __all_sync(unsigned mask, int predicate, BED_CALLER) {
    return bed::warp_collective(bed::WarpOperation::ballot, mask, BED_SITE("__all_sync"),
                                predicate == 0) == 0;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value, BED_CALLER) {
    return bed::warp_collective(bed::WarpOperation::match_any, mask, BED_SITE("__match_any_sync"),
                                bed::to_bits(value));
}
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all_match, BED_CALLER) {
    const unsigned lanes = bed::warp_collective(bed::WarpOperation::match_all, mask,
                                                BED_SITE("__match_all_sync"), bed::to_bits(value));
    *all_match = lanes != 0;
    return lanes;
}

#define BED_REDUCE(name, T, operation)                                                 \
    inline T name(unsigned mask, T value, BED_CALLER) {                                \
        return static_cast<T>(                                                         \
            bed::warp_collective(bed::WarpOperation::operation, mask, BED_SITE(#name), \
                                 static_cast<uint64_t>(static_cast<int64_t>(value)))); \
    }
BED_REDUCE(__reduce_add_sync, unsigned, add)
BED_REDUCE(__reduce_add_sync, int, add)
BED_REDUCE(__reduce_min_sync, unsigned, minimum_unsigned)
BED_REDUCE(__reduce_min_sync, int, minimum_signed)
BED_REDUCE(__reduce_max_sync, unsigned, maximum_unsigned)
BED_REDUCE(__reduce_max_sync, int, maximum_signed)
BED_REDUCE(__reduce_and_sync, unsigned, bit_and)
BED_REDUCE(__reduce_or_sync, unsigned, bit_or)
BED_REDUCE(__reduce_xor_sync, unsigned, bit_xor)
#undef BED_REDUCE

// A team: the blocks that hold the recurrent weights of one direction together, and run a slice of
// the batch through all steps.
//
// Each block of a team has some units, and at every step gives what it computed of them to all the
// others: h forward, the gradient of the gates backward. A slice is cut into tiles of as many rows
// as a product takes at once. A tile's exchange is its own, so while it is under way a block works
// on its other tiles.
//
// Blocks of different teams never meet. Those of a team do through memory (GridExchange: all blocks
// of the launch must run at once, which a cooperative launch ensures), or, where CLUSTER is
// defined, through the shared memory of a cluster of so many blocks (ClusterExchange).
#pragma once
#include "sync.cuh"
#include "times.cuh"
#include "warp.cuh"

#ifdef CLUSTER
#define PLACED __cluster_dims__(CLUSTER, 1, 1)
#else
#define PLACED
#endif

// A vector of every tile, twice: that a block writes while others may still read the one before.
// Published vectors are counted from 1 in each tile.
template <typename S>
struct GridExchange {
    S* vectors;       // [2,tiles,size] of the team, zeros where nobody writes
    unsigned* flags;  // [tiles,blocks] the last vector each block has published, zero at first
    S* copy;          // [size] in shared memory
    int size, tiles, blocks, rank;

    static __device__ __forceinline__ int shared_vectors(int) { return 1; }

    // exchange: [teams of all directions,2,tiles,size]; flags: [teams of all directions,tiles,blocks]
    __device__ __forceinline__ GridExchange(S* exchange, unsigned* all_flags, S* shared, int team,
                                            int size, int tiles, int blocks, int rank)
        : vectors(exchange + 2ll * team * tiles * size),
          flags(all_flags + static_cast<long long>(team) * tiles * blocks), copy(shared),
          size(size), tiles(tiles), blocks(blocks), rank(rank) {}

    __device__ __forceinline__ void begin() {}

    __device__ __forceinline__ void publish(int tile, int count, int place, S value) {
        vectors[(static_cast<long long>(count % 2) * tiles + tile) * size + place] = value;
    }

    // All threads of the block, after they have published.
    __device__ __forceinline__ void signal(int tile, int count) {
        __syncthreads();
        if (threadIdx.x == 0) store_release<Scope::device>(flags + tile * blocks + rank, count);
    }

    // The vector a tile's blocks have published, the same for all threads.
    __device__ __forceinline__ const S* received(int tile, int count) {
        if (threadIdx.x < WARP)
            for (int i = threadIdx.x; i < blocks; i += WARP)
                while (load_acquire<Scope::device>(flags + tile * blocks + i) < count) continue;
        __syncthreads();
        const S* from = vectors + (static_cast<long long>(count % 2) * tiles + tile) * size;
        const int words = size * sizeof(S) / sizeof(uint4);
        for (int i = threadIdx.x; i < words; i += blockDim.x)
            reinterpret_cast<uint4*>(copy)[i] = __ldcg(reinterpret_cast<const uint4*>(from) + i);
        __syncthreads();
        return copy;
    }

    __device__ __forceinline__ void end() {}
};

#ifdef CLUSTER
// The barrier of the cluster stands for the flags. It has two halves: a block arrives when it has
// published, and waits only before it needs what others have, or before it arrives again.
template <typename S>
struct ClusterExchange {
    S* vectors;  // [2,tiles,size] in shared memory
    int size, tiles;
    int latest = -1;  // the tile that was published last, if nobody has waited since

    static __device__ __forceinline__ int shared_vectors(int tiles) { return 2 * tiles; }

    __device__ __forceinline__ ClusterExchange(S*, unsigned*, S* shared, int, int size, int tiles,
                                               int, int)
        : vectors(shared), size(size), tiles(tiles) {}

    // Nobody may write into a block that has not begun, or that still clears its memory.
    __device__ __forceinline__ void begin() {
        for (int i = threadIdx.x; i < 2 * tiles * size; i += blockDim.x) vectors[i] = S(0.0f);
        cluster_arrive_release();
        cluster_wait_acquire();
    }

    __device__ __forceinline__ void publish(int tile, int count, int place, S value) {
        S* mine = vectors + (count % 2 * tiles + tile) * size + place;
#pragma unroll 2
        for (int rank = 0; rank < CLUSTER; ++rank) *map_shared(mine, rank) = value;
    }

    __device__ __forceinline__ void signal(int tile, int) {
        if (latest >= 0) cluster_wait_acquire();
        cluster_arrive_release();
        latest = tile;
    }

    // Where another tile has been published since, that signal waited for this one. The barrier is
    // for the sums of the tile before, which some threads may still read.
    __device__ __forceinline__ const S* received(int tile, int count) {
        if (latest == tile) {
            cluster_wait_acquire();
            latest = -1;
        }
        __syncthreads();
        return vectors + (count % 2 * tiles + tile) * size;
    }

    // Nobody may leave while others write to it.
    __device__ __forceinline__ void end() {
        if (latest >= 0) cluster_wait_acquire();
    }
};
template <typename S> using Exchange = ClusterExchange<S>;
#else
template <typename S> using Exchange = GridExchange<S>;
#endif

// The steps of a row.
struct Row {
    int first;   // time of its first step
    int count;   // of steps
    int before;  // steps of those kept before its first
};

// The rows of a team's slice, in shared memory: those of tile i are ROWS * i to ROWS * i + ROWS - 1.
struct Slice {
    Row* rows;
    int* longest;  // [tiles] steps of the longest row

    // Followed by a barrier of the block. The first row of the slice is row `begin` of the batch.
    template <int ROWS>
    __device__ __forceinline__ void fill(const long long* lengths, long long begin, int tiles,
                                         int B, int T, int start, int stop, int kept_start,
                                         int kept_stop, bool backwards) {
        for (int tile = threadIdx.x; tile < tiles; tile += blockDim.x) {
            int most = 0;
            for (int i = tile * ROWS; i < (tile + 1) * ROWS; ++i) {
                const Times row(lengths, begin + i, B, T, start, stop, backwards);
                const Times kept(lengths, begin + i, B, T, kept_start, kept_stop, backwards);
                rows[i] = {row.first, row.count, row.sign * (row.first - kept.first)};
                most = row.count > most ? row.count : most;
            }
            longest[tile] = most;
        }
    }
};

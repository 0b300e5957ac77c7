// What a kernel compiled for the CPU and the runtime that executes it know of each other.
//
// Every CUDA thread of a launch is a fiber, and all fibers run on one operating system thread. A
// fiber gives way only inside the functions declared here, so a run is repeatable: the same order
// and seed visit the same places in the same sequence.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <cuda_on_cpu/vector_types.h>

namespace bed {

// A place in a .cu file. Every operation takes one as its last arguments, by default the caller's.
struct Site {
    const char* operation;
    const char* file;
    int line;
};
#define BED_CALLER const char *bed_file = __builtin_FILE(), int bed_line = __builtin_LINE()
#define BED_SITE(operation) (::bed::Site{operation, bed_file, bed_line})
#define BED_PASS_CALLER bed_file, bed_line

// The CUDA thread that is running, as the kernel sees it.
struct ThreadView {
    uint3 thread_index, block_index;
    unsigned thread_rank;      // in its block
    unsigned block_rank;       // in the grid
    unsigned lane;             // in its warp
    unsigned rank_in_cluster;  // of its block
};
extern ThreadView* current;

struct LaunchShape {
    dim3 grid, block, cluster;
    bool cooperative;
};
extern LaunchShape shape;

enum class Scope { block, cluster, device, system };

// --- barriers ------------------------------------------------------------------------------------

// Returns how many threads of the block brought a predicate.
int block_barrier(Site site, bool predicate);
void grid_barrier(Site site);
void cluster_arrive(Site site, bool release);
void cluster_wait(Site site);

// --- warps ---------------------------------------------------------------------------------------

enum class WarpOperation {
    synchronise,  // no answer
    shuffle,      // the value that lane `source` brought
    ballot,       // the lanes that brought a value other than 0
    match_any,    // the lanes that brought the same value
    match_all,    // all lanes if all brought the same value, else none
    add,          // the sum of all values, and so on
    minimum_signed,
    minimum_unsigned,
    maximum_signed,
    maximum_unsigned,
    bit_and,
    bit_or,
    bit_xor,
    multiply_f16,  // matrix products, `fragments` are its operands
    multiply_bf16,
    multiply_tf32,
};
struct MatrixFragments {
    float* d;
    const uint32_t *a, *b;
    const float* c;
};

// Waits for every lane of the mask that has not exited and returns this lane's answer.
uint64_t warp_collective(WarpOperation operation, unsigned mask, Site site, uint64_t value = 0,
                         unsigned source = 0, const MatrixFragments* fragments = nullptr);
unsigned active_mask(Site site);  // the lanes that reach the same place together

// --- memory that several threads use to signal each other ----------------------------------------

// Told of every such load: it returns true after the fiber has slept, and the load is to be
// repeated. A fiber sleeps where it comes back to an address and finds what it found before.
bool loaded(const volatile void* address, uint64_t bits, Scope scope, Site site);
// The same of a load that may be of data: only the same word twice in a row is polling.
bool loaded_again(const volatile void* address, uint64_t bits, Site site);
// Told of every such store and of every atomic that changed its word: wakes the sleepers.
void stored(const volatile void* address, Scope scope, Site site);
// Lets another thread run: always, or (random order only) sometimes.
void sleep(Site site);
void maybe_yield_in_random_order(Site site);
extern bool random_order;
inline void maybe_yield(Site site) {
    if (random_order) maybe_yield_in_random_order(site);
}

// --- shared memory -------------------------------------------------------------------------------

void* dynamic_shared();
void* static_shared(int slot);
// Where the block `rank` of this cluster keeps what this block keeps at `address`.
void* map_shared(const void* address, unsigned rank, Site site);
// For what is an instruction for global memory: fails if the address is in shared memory.
void require_global(const volatile void* address, Site site);

// --- errors --------------------------------------------------------------------------------------

[[noreturn]] void kernel_error(Site site, const char* message);

}  // namespace bed

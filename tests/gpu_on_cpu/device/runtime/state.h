// What the parts of the runtime share: the launch that is running, its blocks, warps and threads.
#pragma once
#include <cuda_on_cpu/runtime.h>

#include <string>
#include <vector>

#include "fiber.h"

namespace bed {

enum class ErrorKind {  // the numbers module.py maps to exceptions
    none,
    deadlock,
    divergence,
    out_of_bounds,
    misaligned,
    scope,
    memory_fault,
    hang,
    kernel,
};

enum class Order { forward, reverse, random };

struct Block;
struct Warp;

// Intrusive: a list of threads that needs no allocation. Memory that one fiber allocates and
// another frees would look like a race to ThreadSanitizer.
struct Thread;
struct ThreadList {
    Thread *first = nullptr, *last = nullptr;
    void append(Thread* thread);
    Thread* take_first();
};

struct Barrier {
    unsigned expected = 0, arrived = 0, exited = 0;
    int votes = 0, result = 0;
    unsigned phase = 0;
    Site site{};  // where those who wait arrived
    ThreadList waiting;
    char happens_before[2];  // by phase: the next phase must not leak into this one
};

struct Remembered {
    const volatile void* address = nullptr;
    uint64_t bits = 0;
};

struct Thread : ThreadView {
    Block* block;
    Warp* warp;
    Fiber* fiber = nullptr;
    Thread* next = nullptr;
    bool done = false;
    Site at{"the start of the kernel", nullptr, 0};  // its last operation
    bool asks_for_active_mask = false;
    // What it brought to a warp collective, and what it got.
    uint64_t value = 0, answer = 0;
    unsigned source = 0;
    const MatrixFragments* fragments = nullptr;
    // What its last loads found, to notice that it is polling.
    Remembered remembered[16], last_data;
    const volatile void* awaited = nullptr;  // while it sleeps until somebody stores there
    unsigned loads_in_a_row = 0;
    bool just_woken = false;
    unsigned cluster_arrivals = 0, cluster_waits = 0;
};

// Lanes that named the same mask meet here. A lane waits in one place at a time, so at most 32 of
// these are in use; the lane that came first lends its own.
struct Collective {
    unsigned mask = 0, arrived = 0;
    WarpOperation operation{};
    Site site{};
    unsigned phase = 0;
    char happens_before[2];  // of __syncwarp, by phase
};
struct Warp {
    Thread* threads = nullptr;  // by lane
    unsigned living = 0;        // lanes that have not exited
    Collective collective[32];
};

struct Cluster {
    Barrier barrier;
    std::vector<Block*> blocks;
};

struct Block {
    uint3 index;
    unsigned rank = 0;
    bool started = false;
    unsigned living = 0;
    Barrier barrier;
    Cluster* cluster = nullptr;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    char* dynamic = nullptr;
    std::vector<char*>
        slots;  // its static shared variables, in the order of the module's registry
};

struct SharedSlot {
    size_t bytes, alignment;  // 0 bytes: it belongs to another kernel
};

// What module.py hands over. The two sides are checked against each other by its size.
struct LaunchRequest {
    void* function;
    void (*invoke)(void* function, void** arguments);
    void** arguments;
    unsigned grid[3], block[3], cluster[3];
    uint64_t dynamic_shared;
    int cooperative;
    int order;
    uint64_t seed;
    unsigned blocks_in_flight;  // of a launch that is not cooperative, at least one cluster
    const SharedSlot* slots;
    unsigned slot_count;
    int flush_to_zero;
    double hang_seconds;
    // Answers.
    uint64_t fault_address;  // of the instruction, for addr2line
    uint64_t switches;
};

struct Launch {
    LaunchRequest* request = nullptr;
    Order order = Order::forward;
    uint64_t random_state = 1;
    ErrorKind error = ErrorKind::none;
    std::string message;
    Barrier grid_barrier;
    unsigned asking_for_active_mask = 0;
    unsigned blocks_not_started = 0;
    std::vector<Block*> blocks;  // those in flight
};
extern Launch* launch;

inline Thread* running() { return static_cast<Thread*>(current); }
uint64_t random_number();

// --- scheduler.cpp -------------------------------------------------------------------------------

void make_ready(Thread* thread);
void make_ready(ThreadList& threads);
void pause_running();       // the running thread waits for somebody to make it ready
void something_happened();  // progress: what was polled may have changed
void run_until_nothing_is_ready();
void reserve_scheduler(size_t threads);

[[noreturn]] void fail(ErrorKind kind, const std::string& message);  // ends the launch
void fail_from_main(ErrorKind kind, const std::string& message);
std::string show(const Site& site);
std::string show(const Thread& thread);
std::string waiting_places();

// --- barriers.cpp, warp.cpp ----------------------------------------------------------------------

void thread_leaves_barriers(Thread* thread);
void thread_leaves_warp(Thread* thread);
bool answer_active_masks();

// --- shared_memory.cpp ---------------------------------------------------------------------------

void open_shared_memory(Block* block);
void block_starts_on_shared_memory(Block* block);
void check_shared_memory(const Block& block);
void close_shared_memory(Block* block);

// --- faults.cpp ----------------------------------------------------------------------------------

void watch_for_faults(bool on);
void forget_signals();  // a new launch: nobody has stored anything yet

}  // namespace bed

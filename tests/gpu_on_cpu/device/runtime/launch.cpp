// One launch from its first block to its last.
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>

#include "state.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace bed {

namespace {

unsigned product(const unsigned (&v)[3]) { return v[0] * v[1] * v[2]; }
dim3 to_dim3(const unsigned (&v)[3]) { return {v[0], v[1], v[2]}; }

uint3 position(unsigned rank, const dim3& extent) {
    return {rank % extent.x, rank / extent.x % extent.y, rank / (extent.x * extent.y)};
}
unsigned rank_of(const uint3& at, const dim3& extent) {
    return at.x + extent.x * (at.y + extent.y * at.z);
}

// CuPy compiles with -ftz=true. The processor's own switch does the same, for float64 too (which
// keeps its subnormals on a GPU).
class FlushToZero {
public:
    explicit FlushToZero(bool on) : saved_(read()) {
        if (on) write(saved_ | bits);
    }
    ~FlushToZero() { write(saved_); }

private:
#if defined(__x86_64__)
    static constexpr uint64_t bits = 0x8040;  // flush results, and take subnormal inputs as zero
    static uint64_t read() { return _mm_getcsr(); }
    static void write(uint64_t value) { _mm_setcsr(static_cast<unsigned>(value)); }
#elif defined(__aarch64__)
    static constexpr uint64_t bits = 1u << 24;
    static uint64_t read() {
        uint64_t value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void write(uint64_t value) { asm volatile("msr fpcr, %0" ::"r"(value)); }
#else
    static constexpr uint64_t bits = 0;
    static uint64_t read() { return 0; }
    static void write(uint64_t) {}
#endif
    uint64_t saved_;
};

class Grid {
public:
    explicit Grid(LaunchRequest& request) : request_(request) {
        threads_per_block_ = product(request.block);
        blocks_per_cluster_ = product(request.cluster);
        clusters_ = {request.grid[0] / request.cluster[0], request.grid[1] / request.cluster[1],
                     request.grid[2] / request.cluster[2]};
        order_.resize(clusters_.x * clusters_.y * clusters_.z);
        std::iota(order_.begin(), order_.end(), 0u);
        arrange(order_);
    }

    void run() {
        const size_t blocks = product(request_.grid);
        size_t at_once = request_.cooperative ? blocks : request_.blocks_in_flight;
        at_once = std::max<size_t>(1, std::min(at_once, blocks) / blocks_per_cluster_);
        launch->grid_barrier.expected = blocks * threads_per_block_;
        for (size_t i = 0; i < order_.size() && launch->error == ErrorKind::none; i += at_once) {
            const size_t end = std::min(i + at_once, order_.size());
            launch->blocks_not_started = (order_.size() - end) * blocks_per_cluster_;
            run_clusters(i, end);
        }
        close_finished();
    }

private:
    // Reverse order is the mirror image of forward order: what matters is who comes first.
    template <class T>
    void arrange(std::vector<T>& items) {
        if (launch->order == Order::reverse) std::reverse(items.begin(), items.end());
        if (launch->order == Order::random)
            for (size_t i = items.size(); i > 1; --i)
                std::swap(items[i - 1], items[random_number() % i]);
    }

    void run_clusters(size_t begin, size_t end) {
        reserve_scheduler((end - begin) * blocks_per_cluster_ * threads_per_block_);
        std::vector<Block*> opened;
        for (size_t i = begin; i < end; ++i) open_cluster(order_[i], opened);
        launch->blocks = opened;
        arrange(opened);
        for (Block* block : opened) {
            std::vector<Thread*> threads;
            for (Thread& thread : block->threads) threads.push_back(&thread);
            arrange(threads);
            for (Thread* thread : threads) make_ready(thread);
        }
        run_until_nothing_is_ready();
        for (Block* block : opened)
            for (Thread& thread : block->threads)
                if (thread.fiber) give_fiber_back(thread.fiber);  // the launch ended early
#ifndef BED_TSAN
        close_finished();  // ThreadSanitizer must not think that these blocks came before the next
#endif
    }

    void open_cluster(unsigned cluster_rank, std::vector<Block*>& opened) {
        const uint3 at = position(cluster_rank, clusters_);
        const dim3 size = to_dim3(request_.cluster);
        cluster_storage_.push_back(std::make_unique<Cluster>());
        Cluster* cluster = cluster_storage_.back().get();
        cluster->barrier.expected = blocks_per_cluster_ * threads_per_block_;
        for (unsigned i = 0; i < blocks_per_cluster_; ++i) {
            const uint3 inside = position(i, size);
            block_storage_.push_back(std::make_unique<Block>());
            Block* block = block_storage_.back().get();
            block->cluster = cluster;
            block->index = {at.x * size.x + inside.x, at.y * size.y + inside.y,
                            at.z * size.z + inside.z};
            open_block(block, i);
            cluster->blocks.push_back(block);
            opened.push_back(block);
        }
    }

    void open_block(Block* block, unsigned rank_in_cluster) {
        const unsigned n = threads_per_block_;
        block->rank = rank_of(block->index, shape.grid);
        block->living = block->barrier.expected = n;
        block->threads.resize(n);
        block->warps.resize((n + 31) / 32);
        open_shared_memory(block);
        for (unsigned i = 0; i < n; ++i) {
            Thread& thread = block->threads[i];
            thread.thread_index = position(i, shape.block);
            thread.block_index = block->index;
            thread.thread_rank = i;
            thread.block_rank = block->rank;
            thread.lane = i % 32;
            thread.rank_in_cluster = rank_in_cluster;
            thread.block = block;
            thread.warp = &block->warps[i / 32];
            if (thread.lane == 0) thread.warp->threads = &thread;
            thread.warp->living |= 1u << thread.lane;
        }
        BED_RELEASE(block);
    }

    void close_finished() {
        BED_ACQUIRE(&main_fiber);
        for (auto& block : block_storage_) close_shared_memory(block.get());
        block_storage_.clear();
        cluster_storage_.clear();
        launch->blocks.clear();
    }

    LaunchRequest& request_;
    unsigned threads_per_block_, blocks_per_cluster_;
    dim3 clusters_;
    std::vector<unsigned> order_;  // of the clusters
    std::vector<std::unique_ptr<Block>> block_storage_;
    std::vector<std::unique_ptr<Cluster>> cluster_storage_;
};

}  // namespace
}  // namespace bed

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT size_t bed_request_bytes() { return sizeof(bed::LaunchRequest); }
EXPORT const char* bed_fiber_kind() { return bed::fiber_kind(); }

// Returns the kind of error, or 0; its text goes to `message`.
EXPORT int bed_launch(bed::LaunchRequest* request, char* message, size_t message_bytes) {
    using namespace bed;
    Launch this_launch;
    launch = &this_launch;
    launch->request = request;
    launch->order = static_cast<Order>(request->order);
    launch->random_state = (request->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    random_order = launch->order == Order::random;
    shape = {to_dim3(request->grid), to_dim3(request->block), to_dim3(request->cluster),
             request->cooperative != 0};
    request->switches = request->fault_address = 0;
    forget_signals();
    begin_switching();
    {
        FlushToZero flush(request->flush_to_zero);
        watch_for_faults(true);
        Grid(*request).run();
        watch_for_faults(false);
    }
    snprintf(message, message_bytes, "%s", launch->message.c_str());
    launch = nullptr;
    return static_cast<int>(this_launch.error);
}

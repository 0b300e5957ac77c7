// Shared memory of the blocks in flight, and the words through which threads signal each other.
#include <stdlib.h>
#include <string.h>

#include "state.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace bed {

namespace {

// NaN in every float format: what was never written shows in the result. A read of it is no error.
constexpr int nan_byte = 0xff;
// Behind every allocation. AddressSanitizer has its own and names the line; this one is free.
constexpr size_t fence_bytes = 64;
constexpr unsigned char fence_byte = 0xa5;

void fill_with_nan(char* memory, size_t bytes) {
#ifdef BED_TSAN
    // Not memset, which ThreadSanitizer watches: it would take this for an access of the kernel.
    for (volatile char* at = memory; at < memory + bytes; ++at) *at = static_cast<char>(nan_byte);
#else
    memset(memory, nan_byte, bytes);
#endif
}

char* allocate(size_t bytes, size_t alignment) {
    void* memory = nullptr;
#ifdef __SANITIZE_ADDRESS__
    const size_t whole = bytes ? bytes : 1;
#else
    const size_t whole = bytes + fence_bytes;
#endif
    if (posix_memalign(&memory, alignment, whole)) abort();
    fill_with_nan(static_cast<char*>(memory), bytes);
#ifndef __SANITIZE_ADDRESS__
    memset(static_cast<char*>(memory) + bytes, fence_byte, fence_bytes);
#endif
    return static_cast<char*>(memory);
}

bool fence_broken(const char* memory, size_t bytes) {
#ifndef __SANITIZE_ADDRESS__
    for (size_t i = 0; i < fence_bytes; ++i)
        if (static_cast<unsigned char>(memory[bytes + i]) != fence_byte) return true;
#else
    (void)memory, (void)bytes;
#endif
    return false;
}

template <class F>
void for_each_allocation(const Block& block, F act) {
    act(block.dynamic, launch->request->dynamic_shared, "extern __shared__");
    for (unsigned i = 0; i < launch->request->slot_count; ++i)
        if (block.slots[i])
            act(block.slots[i], launch->request->slots[i].bytes, "static __shared__");
}

}  // namespace

void open_shared_memory(Block* block) {
    block->dynamic = allocate(launch->request->dynamic_shared, 1024);
    for (unsigned i = 0; i < launch->request->slot_count; ++i) {
        const SharedSlot& slot = launch->request->slots[i];
        const size_t alignment = slot.alignment < 16 ? 16 : slot.alignment;
        block->slots.push_back(slot.bytes ? allocate(slot.bytes, alignment) : nullptr);
    }
}

// A neighbour of the cluster that wrote before this block began has written nothing.
void block_starts_on_shared_memory(Block* block) {
    block->started = true;
    if (block->cluster->blocks.size() == 1) return;
    for_each_allocation(
        *block, [](char* memory, size_t bytes, const char*) { fill_with_nan(memory, bytes); });
}

void check_shared_memory(const Block& block) {
    for_each_allocation(block, [&](char* memory, size_t bytes, const char* which) {
        if (fence_broken(memory, bytes))
            fail_from_main(ErrorKind::out_of_bounds, "block " + std::to_string(block.rank) +
                                                         " wrote past the end of its " + which +
                                                         " memory of " + std::to_string(bytes) +
                                                         " bytes; an asan build names the line");
        if (block.cluster->blocks.size() == 1) return;
        // The memory is gone with the block: a neighbour that still reads it finds NaN.
        fill_with_nan(memory, bytes);
#ifdef __SANITIZE_ADDRESS__
        ASAN_POISON_MEMORY_REGION(memory, bytes);
#endif
    });
}

void close_shared_memory(Block* block) {
    for_each_allocation(*block, [](char* memory, size_t bytes, const char*) {
#ifdef __SANITIZE_ADDRESS__
        ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
#endif
        (void)bytes;
        free(memory);
    });
    block->slots.clear();
}

void* dynamic_shared() { return running()->block->dynamic; }
void* static_shared(int slot) { return running()->block->slots[slot]; }

void* map_shared(const void* address, unsigned rank, Site site) {
    const Block& own = *running()->block;
    const auto& blocks = own.cluster->blocks;
    if (rank >= blocks.size())
        fail(ErrorKind::out_of_bounds, show(site) + ": block " + std::to_string(rank) +
                                           " of a cluster of " + std::to_string(blocks.size()));
    const Block& other = *blocks[rank];
    const auto* wanted = static_cast<const char*>(address);
    auto inside = [&](const char* memory, size_t bytes) {
        return wanted >= memory && wanted <= memory + bytes;
    };
    const LaunchRequest& request = *launch->request;
    if (request.dynamic_shared && inside(own.dynamic, request.dynamic_shared))
        return other.dynamic + (wanted - own.dynamic);
    for (unsigned i = 0; i < request.slot_count; ++i)
        if (own.slots[i] && inside(own.slots[i], request.slots[i].bytes))
            return other.slots[i] + (wanted - own.slots[i]);
    fail(ErrorKind::out_of_bounds,
         show(site) + ": the address is not in this block's shared memory");
}

void require_global(const volatile void* address, Site site) {
    const Block& own = *running()->block;
    const LaunchRequest& request = *launch->request;
    const auto* place = static_cast<const volatile char*>(address);
    auto inside = [&](const char* memory, size_t bytes) {
        return memory && place >= memory && place < memory + bytes;
    };
    bool shared = inside(own.dynamic, request.dynamic_shared);
    for (unsigned i = 0; i < request.slot_count; ++i)
        shared = shared || inside(own.slots[i], request.slots[i].bytes);
    if (shared)
        fail(ErrorKind::out_of_bounds,
             show(site) + ": an instruction for global memory, given shared memory");
}

// --- signals -------------------------------------------------------------------------------------

bool poll(const volatile void* address, uint64_t bits, Site site);  // scheduler.cpp
void wake_sleepers_at(const volatile void* address);

namespace {

struct LastStore {
    const volatile void* address = nullptr;
    Scope scope{};
    Site site{};
    unsigned block_rank = 0;
    const Cluster* cluster = nullptr;
};
// A newer store to another address may take the place of an older one; then nothing is checked.
LastStore last_stores[4096];

LastStore& last_store_to(const volatile void* address) {
    const auto bits = reinterpret_cast<uintptr_t>(address) >> 2;
    return last_stores[(bits ^ bits >> 12) % (sizeof last_stores / sizeof last_stores[0])];
}

bool reaches(Scope scope, const LastStore& store) {
    if (scope == Scope::block) return store.block_rank == running()->block_rank;
    if (scope == Scope::cluster) return store.cluster == running()->block->cluster;
    return true;
}

const char* name_of(Scope scope) {
    const char* names[] = {"block", "cluster", "device", "system"};
    return names[static_cast<int>(scope)];
}

}  // namespace

void forget_signals() {
    for (LastStore& store : last_stores) store.address = nullptr;
}

bool loaded(const volatile void* address, uint64_t bits, Scope scope, Site site) {
    const LastStore& store = last_store_to(address);
    if (store.address == address && !(reaches(scope, store) && reaches(store.scope, store)))
        fail(ErrorKind::scope, show(site) + " (" + name_of(scope) + " scope, " + show(*running()) +
                                   ") reads what block " + std::to_string(store.block_rank) +
                                   " stored by " + show(store.site) + " (" + name_of(store.scope) +
                                   " scope): a scope must hold both threads");
    return poll(address, bits, site);
}

void stored(const volatile void* address, Scope scope, Site site) {
    Thread* thread = running();
    last_store_to(address) = {address, scope, site, thread->block_rank, thread->block->cluster};
    wake_sleepers_at(address);
}

}  // namespace bed

// Which CUDA thread runs next, which ones wait, and when nobody can go on.
#include <algorithm>

#include "state.h"

namespace bed {

ThreadView* current = nullptr;
LaunchShape shape;
bool random_order = false;
Launch* launch = nullptr;

void ThreadList::append(Thread* thread) {
    thread->next = nullptr;
    (last ? last->next : first) = thread;
    last = thread;
}
Thread* ThreadList::take_first() {
    Thread* thread = first;
    if (thread) {
        first = thread->next;
        if (!first) last = nullptr;
    }
    return thread;
}

uint64_t random_number() {  // xorshift64*
    uint64_t& x = launch->random_state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    return (x * 0x2545f4914f6cdd1dull) >> 16;
}

namespace {

// A thread is in one of these at most once, so both are reserved for all threads in flight and
// never allocate while fibers run.
class ReadyThreads {  // first in, first out; or any one, in random order
public:
    void reserve(size_t threads) {
        ring_.assign(threads + 1, nullptr);
        head_ = count_ = 0;
    }
    void push(Thread* thread) { ring_[(head_ + count_++) % ring_.size()] = thread; }
    Thread* pop() {
        if (!count_) return nullptr;
        if (launch->order == Order::random)
            std::swap(ring_[head_], ring_[(head_ + random_number() % count_) % ring_.size()]);
        Thread* thread = ring_[head_];
        head_ = (head_ + 1) % ring_.size();
        --count_;
        return thread;
    }

private:
    std::vector<Thread*> ring_;
    size_t head_ = 0, count_ = 0;
} ready;

std::vector<Thread*> sleepers;  // they poll, and wait for a store

// Sleepers are also woken when nothing else can run: the store they wait for may be one that the
// bed cannot see. If that happens this often and nothing comes of it, nothing ever will.
size_t wakes_in_vain = 0, most_wakes_in_vain = 0;

bool wake_all_sleepers() {
    if (sleepers.empty() || wakes_in_vain > most_wakes_in_vain) return false;
    wakes_in_vain += sleepers.size();
    for (Thread* thread : sleepers) make_ready(thread);
    sleepers.clear();
    return true;
}

void finish(Thread* thread) {
    thread->done = true;
    --thread->block->living;
    something_happened();
    BED_RELEASE(&main_fiber);
    thread_leaves_warp(thread);
    thread_leaves_barriers(thread);
}

void run_kernel() {
    entered_fiber();
    BED_ACQUIRE(running()->block);
    launch->request->invoke(launch->request->function, launch->request->arguments);
    finish(running());
    switch_fiber(*running()->fiber, main_fiber);
    __builtin_unreachable();
}

void check_stack(const Thread& thread) {
    if (stack_overflowed(*thread.fiber))
        fail_from_main(ErrorKind::memory_fault,
                       show(thread) + " used more than 252 KiB of stack, " + show(thread.at));
}

}  // namespace

void reserve_scheduler(size_t threads) {
    ready.reserve(threads);
    sleepers.clear();
    sleepers.reserve(threads);
    wakes_in_vain = 0;
    most_wakes_in_vain = 1'000'000 + 1000 * threads;
}

void make_ready(Thread* thread) {
    thread->awaited = nullptr;
    ready.push(thread);
}
void make_ready(ThreadList& threads) {
    while (Thread* thread = threads.take_first()) make_ready(thread);
}

void pause_running() {
    ++launch->request->switches;
    switch_fiber(*running()->fiber, main_fiber);
}

void something_happened() { wakes_in_vain = 0; }

void run_until_nothing_is_ready() {
    while (launch->error == ErrorKind::none) {
        Thread* thread = ready.pop();
        if (!thread) {
            if (answer_active_masks() || wake_all_sleepers()) continue;
            break;
        }
        if (!thread->fiber) {
            thread->fiber = take_fiber(run_kernel);
            if (!thread->block->started) block_starts_on_shared_memory(thread->block);
        }
        current = thread;
        switch_fiber(main_fiber, *thread->fiber);
        check_stack(*thread);
        if (thread->done) {
            give_fiber_back(thread->fiber);
            thread->fiber = nullptr;
            if (!thread->block->living) check_shared_memory(*thread->block);
        }
    }
    current = nullptr;
    if (launch->error != ErrorKind::none) return;
    for (const Block* block : launch->blocks)
        if (block->living)
            return fail_from_main(ErrorKind::deadlock, "deadlock: " + waiting_places());
}

// --- giving way ----------------------------------------------------------------------------------

void maybe_yield_in_random_order(Site site) {
    if (random_number() % 4) return;
    running()->at = site;
    make_ready(running());
    pause_running();
}

void sleep(Site site) {
    Thread* thread = running();
    thread->at = site;
    sleepers.push_back(thread);
    pause_running();
}

namespace {

void sleep_until_store(Thread* thread, const volatile void* address, Site site) {
    thread->at = site;
    thread->awaited = address;
    sleepers.push_back(thread);
    pause_running();
    thread->just_woken = true;
}

Remembered& memory_of(Thread* thread, const volatile void* address) {
    constexpr size_t places = sizeof thread->remembered / sizeof thread->remembered[0];
    const auto bits = reinterpret_cast<uintptr_t>(address);
    return thread->remembered[(bits >> 2 ^ bits >> 7) % places];
}

}  // namespace

bool poll(const volatile void* address, uint64_t bits, Site site) {
    // A loop over more words than a thread remembers is polling too, if it does nothing else.
    constexpr unsigned many_loads = 256;
    Thread* thread = running();
    Remembered& last = memory_of(thread, address);
    const bool unchanged = last.address == address && last.bits == bits;
    if (last.address == address && !unchanged) something_happened();
    last.address = address;
    last.bits = bits;
    if (thread->just_woken) {  // let the kernel look: it may wait for one of several words
        thread->just_woken = false;
        return false;
    }
    if (!unchanged && ++thread->loads_in_a_row < many_loads) return false;
    thread->loads_in_a_row = 0;
    sleep_until_store(thread, address, site);
    return true;
}

// A load of data counts as polling only where it is repeated at once: reading a megabyte is not.
bool loaded_again(const volatile void* address, uint64_t bits, Site site) {
    Thread* thread = running();
    Remembered& last = thread->last_data;
    const bool unchanged = last.address == address && last.bits == bits;
    if (last.address == address && !unchanged) something_happened();
    last = {address, bits};
    if (!unchanged) return false;
    last.address = nullptr;  // the next look is the kernel's
    sleep_until_store(thread, address, site);
    thread->just_woken = false;
    return true;
}

void wake_sleepers_at(const volatile void* address) {
    something_happened();
    running()->just_woken = false;
    running()->loads_in_a_row = 0;
    size_t kept = 0;
    for (Thread* thread : sleepers) {
        if (thread->awaited == address)
            make_ready(thread);
        else
            sleepers[kept++] = thread;
    }
    sleepers.resize(kept);
}

// --- how a launch ends early ---------------------------------------------------------------------

void fail_from_main(ErrorKind kind, const std::string& message) {
    if (launch->error != ErrorKind::none) return;
    launch->error = kind;
    launch->message = message;
}

void fail(ErrorKind kind, const std::string& message) {
    fail_from_main(kind, message);
    BED_RELEASE(&main_fiber);
    switch_fiber(*running()->fiber, main_fiber);  // nobody comes back here
    __builtin_unreachable();
}

void kernel_error(Site site, const char* message) {
    fail(ErrorKind::kernel, show(site) + ": " + message + " (" + show(*running()) + ")");
}

std::string show(const Site& site) {
    if (!site.file) return site.operation;
    return std::string(site.operation) + " at " + site.file + ":" + std::to_string(site.line);
}

std::string show(const Thread& thread) {
    auto tuple = [](uint3 v) {
        return "(" + std::to_string(v.x) + ", " + std::to_string(v.y) + ", " +
               std::to_string(v.z) + ")";
    };
    return "block " + tuple(thread.block_index) + " thread " + tuple(thread.thread_index);
}

std::string waiting_places() {
    // Most threads wait in the same few places: one line for each.
    struct Place {
        const Thread* first;
        size_t threads;
    };
    std::vector<Place> places;
    for (const Block* block : launch->blocks)
        for (const Thread& thread : block->threads) {
            if (thread.done) continue;
            auto same = [&](const Place& place) {
                return place.first->at.line == thread.at.line &&
                       place.first->at.operation == thread.at.operation;
            };
            auto found = std::find_if(places.begin(), places.end(), same);
            if (found == places.end())
                places.push_back({&thread, 1});
            else
                ++found->threads;
        }
    std::string text = "nothing can go on";
    for (size_t i = 0; i < places.size() && i < 12; ++i) {
        const Place& place = places[i];
        text += "\n  " + std::to_string(place.threads) +
                (place.threads == 1 ? " thread waits in " : " threads wait in ") +
                show(place.first->at);
        if (place.first->awaited) text += ", for a store";
        text += ", the first is " + show(*place.first);
    }
    if (launch->blocks_not_started)
        text += "\n  " + std::to_string(launch->blocks_not_started) +
                " blocks have not started: only a cooperative launch promises that all blocks run "
                "at once";
    return text;
}

}  // namespace bed

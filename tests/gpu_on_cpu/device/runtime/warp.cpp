// What the lanes of a warp do together: the last lane to arrive computes every lane's answer.
#include <string.h>

#include <algorithm>

#include "state.h"

namespace bed {

void multiply_fragments(WarpOperation operation, const Thread* lanes);  // mma.cpp

namespace {

template <class F>
void for_each_lane(unsigned lanes, F act) {
    for (; lanes; lanes &= lanes - 1) act(static_cast<unsigned>(__builtin_ctz(lanes)));
}

template <class F>
uint64_t reduce(const Thread* lanes, unsigned arrived, F combine) {
    uint64_t result = lanes[__builtin_ctz(arrived)].value;
    for_each_lane(arrived & (arrived - 1),
                  [&](unsigned lane) { result = combine(result, lanes[lane].value); });
    return result;
}

uint64_t same_answer_for_all(const Thread* lanes, const Collective& meeting) {
    switch (meeting.operation) {
        case WarpOperation::ballot: {
            unsigned voted = 0;
            for_each_lane(meeting.arrived, [&](unsigned lane) {
                if (lanes[lane].value) voted |= 1u << lane;
            });
            return voted;
        }
        case WarpOperation::match_all: {
            bool all = true;
            const uint64_t first = lanes[__builtin_ctz(meeting.arrived)].value;
            for_each_lane(meeting.arrived, [&](unsigned l) { all &= lanes[l].value == first; });
            return all ? meeting.arrived : 0;
        }
        case WarpOperation::add:
            return reduce(lanes, meeting.arrived, [](uint64_t a, uint64_t b) { return a + b; });
        case WarpOperation::minimum_signed:
            return reduce(lanes, meeting.arrived,
                          [](int64_t a, int64_t b) { return std::min(a, b); });
        case WarpOperation::minimum_unsigned:
            return reduce(lanes, meeting.arrived,
                          [](uint32_t a, uint32_t b) { return std::min(a, b); });
        case WarpOperation::maximum_signed:
            return reduce(lanes, meeting.arrived,
                          [](int64_t a, int64_t b) { return std::max(a, b); });
        case WarpOperation::maximum_unsigned:
            return reduce(lanes, meeting.arrived,
                          [](uint32_t a, uint32_t b) { return std::max(a, b); });
        case WarpOperation::bit_and:
            return reduce(lanes, meeting.arrived, [](uint64_t a, uint64_t b) { return a & b; });
        case WarpOperation::bit_or:
            return reduce(lanes, meeting.arrived, [](uint64_t a, uint64_t b) { return a | b; });
        case WarpOperation::bit_xor:
            return reduce(lanes, meeting.arrived, [](uint64_t a, uint64_t b) { return a ^ b; });
        default:
            return 0;
    }
}

void check_sources(const Thread* lanes, const Collective& meeting) {
    for_each_lane(meeting.arrived, [&](unsigned lane) {
        const unsigned source = lanes[lane].source;
        if (!(meeting.arrived >> source & 1))
            fail(ErrorKind::divergence, show(meeting.site) + ": lane " + std::to_string(lane) +
                                            " reads lane " + std::to_string(source) +
                                            ", which takes no part (" + show(*running()) + ")");
    });
}

void complete(Warp& warp, Collective& meeting, const Thread* last) {
    Thread* lanes = warp.threads;
    if (meeting.operation == WarpOperation::shuffle) check_sources(lanes, meeting);
    if (meeting.operation >= WarpOperation::multiply_f16) {
        if (meeting.arrived != 0xffffffffu)
            fail(ErrorKind::divergence, show(meeting.site) + ": needs all 32 lanes of the warp");
        multiply_fragments(meeting.operation, lanes);
    }
    const uint64_t common = same_answer_for_all(lanes, meeting);
    for_each_lane(meeting.arrived, [&](unsigned lane) {
        Thread& thread = lanes[lane];
        thread.answer = common;
        if (meeting.operation == WarpOperation::shuffle)
            thread.answer = lanes[thread.source].value;
        if (meeting.operation == WarpOperation::match_any)
            for_each_lane(meeting.arrived, [&](unsigned other) {
                if (lanes[other].value == thread.value) thread.answer |= 1u << other;
            });
        if (&thread != last) make_ready(&thread);
    });
    meeting.arrived = 0;
    ++meeting.phase;
}

Collective& meeting_of(Warp& warp, unsigned mask, unsigned lane) {
    for (Collective& meeting : warp.collective)
        if (meeting.arrived && meeting.mask == mask) return meeting;
    return warp.collective[lane];
}

void check_arrival(const Collective& meeting, WarpOperation operation, Site site) {
    if (!meeting.arrived) return;
    // Lanes may come to one __syncwarp from several places; any other operation must be the same
    // one in the program's text, or its result is undefined.
    const bool same =
        operation == WarpOperation::synchronise
            ? meeting.operation == operation
            : meeting.site.line == site.line && !strcmp(meeting.site.operation, site.operation);
    if (!same)
        fail(ErrorKind::divergence, "divergent warp: " + show(*running()) + " came to " +
                                        show(site) + " while lanes of the same mask wait in " +
                                        show(meeting.site));
}

}  // namespace

uint64_t warp_collective(WarpOperation operation, unsigned mask, Site site, uint64_t value,
                         unsigned source, const MatrixFragments* fragments) {
    Thread* thread = running();
    Warp& warp = *thread->warp;
    thread->at = site;
    if (!(mask >> thread->lane & 1))
        fail(ErrorKind::divergence, show(site) + ": the calling lane " +
                                        std::to_string(thread->lane) +
                                        " is not in its own mask (" + show(*thread) + ")");
    Collective& meeting = meeting_of(warp, mask, thread->lane);
    check_arrival(meeting, operation, site);
    meeting.mask = mask;
    meeting.operation = operation;
    meeting.site = site;
    thread->value = value;
    thread->source = source;
    thread->fragments = fragments;
    // Only __syncwarp orders memory; a shuffle or a vote does not.
    const bool orders = operation == WarpOperation::synchronise;
    char* order = &meeting.happens_before[meeting.phase & 1];
    if (orders) BED_RELEASE(order);
    meeting.arrived |= 1u << thread->lane;
    if (meeting.arrived == (mask & warp.living)) {
        complete(warp, meeting, thread);
        maybe_yield(site);
    } else {
        pause_running();
    }
    if (orders) BED_ACQUIRE(order);
    return thread->answer;
}

void thread_leaves_warp(Thread* thread) {
    Warp& warp = *thread->warp;
    warp.living &= ~(1u << thread->lane);
    // Lanes that have exited are not waited for.
    for (Collective& meeting : warp.collective)
        if (meeting.arrived && meeting.arrived == (meeting.mask & warp.living))
            complete(warp, meeting, nullptr);
}

unsigned active_mask(Site site) {
    Thread* thread = running();
    thread->at = site;
    thread->asks_for_active_mask = true;
    ++launch->asking_for_active_mask;
    pause_running();
    return static_cast<unsigned>(thread->answer);
}

// Lanes that stopped at the same __activemask are converged when nothing else can run: no other
// lane could still join them.
bool answer_active_masks() {
    if (!launch->asking_for_active_mask) return false;
    launch->asking_for_active_mask = 0;
    for (Block* block : launch->blocks)
        for (Warp& warp : block->warps)
            for_each_lane(warp.living, [&](unsigned lane) {
                Thread& first = warp.threads[lane];
                if (!first.asks_for_active_mask) return;
                unsigned together = 0;
                for_each_lane(warp.living, [&](unsigned other) {
                    const Thread& t = warp.threads[other];
                    if (t.asks_for_active_mask && t.at.line == first.at.line)
                        together |= 1u << other;
                });
                for_each_lane(together, [&](unsigned other) {
                    warp.threads[other].answer = together;
                    warp.threads[other].asks_for_active_mask = false;
                    make_ready(&warp.threads[other]);
                });
            });
    return true;
}

}  // namespace bed

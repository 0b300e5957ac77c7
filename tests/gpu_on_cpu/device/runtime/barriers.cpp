// Barriers of a block, a cluster and the grid.
#include <string.h>

#include "state.h"

namespace bed {

namespace {

bool same_place(const Site& a, const Site& b) {
    return a.line == b.line && !strcmp(a.operation, b.operation) && !strcmp(a.file, b.file);
}

std::string count(unsigned threads, const char* verb) {
    return std::to_string(threads) + (threads == 1 ? " thread " : " threads ") + verb;
}

void open(Barrier& barrier) {
    barrier.result = barrier.votes;
    barrier.votes = 0;
    barrier.arrived = 0;
    ++barrier.phase;
    make_ready(barrier.waiting);
}

void check_arrival(const Barrier& barrier, Site site) {
    if (barrier.arrived && !same_place(barrier.site, site))
        fail(ErrorKind::divergence, "divergent barrier: " + show(*running()) + " came to " +
                                        show(site) + " while " +
                                        count(barrier.arrived, "wait in ") + show(barrier.site));
    if (barrier.exited)
        fail(ErrorKind::divergence, "divergent barrier: " + show(*running()) + " came to " +
                                        show(site) + " after " +
                                        count(barrier.exited, "had left the kernel"));
}

int arrive_and_wait(Barrier& barrier, Site site, bool predicate) {
    Thread* thread = running();
    thread->at = site;
    check_arrival(barrier, site);
    barrier.site = site;
    barrier.votes += predicate;
    char* order = &barrier.happens_before[barrier.phase & 1];
    BED_RELEASE(order);
    if (++barrier.arrived == barrier.expected) {
        open(barrier);
        maybe_yield(site);
    } else {
        barrier.waiting.append(thread);
        pause_running();
    }
    BED_ACQUIRE(order);
    return barrier.result;
}

void thread_leaves(Barrier& barrier) {
    ++barrier.exited;
    if (barrier.arrived)
        fail(ErrorKind::divergence, "divergent barrier: " + show(*running()) +
                                        " left the kernel while " +
                                        count(barrier.arrived, "wait in ") + show(barrier.site));
}

}  // namespace

int block_barrier(Site site, bool predicate) {
    return arrive_and_wait(running()->block->barrier, site, predicate);
}

void grid_barrier(Site site) {
    if (!shape.cooperative)
        fail(ErrorKind::divergence, show(site) + ": the launch is not cooperative");
    arrive_and_wait(launch->grid_barrier, site, false);
}

// A cluster's barrier has two halves, and a thread may work between them. Threads that have exited
// are not waited for; those that arrived need not wait for others to wait.
void cluster_arrive(Site site, bool release) {
    Thread* thread = running();
    Barrier& barrier = thread->block->cluster->barrier;
    thread->at = site;
    if (thread->cluster_arrivals != thread->cluster_waits)
        fail(ErrorKind::divergence,
             show(site) + ": " + show(*thread) + " arrived before and has not waited since");
    if (barrier.exited)
        fail(ErrorKind::divergence, "divergent barrier: " + show(*thread) + " came to " +
                                        show(site) + " after " +
                                        count(barrier.exited, "had left the kernel"));
    ++thread->cluster_arrivals;
    barrier.site = site;
    if (release) BED_RELEASE(&barrier.happens_before[barrier.phase & 1]);
    if (++barrier.arrived == barrier.expected) open(barrier);
    maybe_yield(site);
}

void cluster_wait(Site site) {
    Thread* thread = running();
    Barrier& barrier = thread->block->cluster->barrier;
    thread->at = site;
    if (thread->cluster_arrivals == thread->cluster_waits)
        fail(ErrorKind::divergence,
             show(site) + ": " + show(*thread) + " waits without having arrived");
    const unsigned phase = thread->cluster_waits++;
    if (barrier.phase == phase) {
        barrier.waiting.append(thread);
        pause_running();
    }
    BED_ACQUIRE(&barrier.happens_before[phase & 1]);
}

void thread_leaves_barriers(Thread* thread) {
    Barrier& cluster = thread->block->cluster->barrier;
    if (thread->cluster_arrivals != thread->cluster_waits)
        fail(ErrorKind::divergence, show(*thread) +
                                        " left the kernel without waiting at the cluster barrier "
                                        "it arrived at, in " +
                                        show(cluster.site));
    thread_leaves(thread->block->barrier);
    thread_leaves(launch->grid_barrier);
    thread_leaves(cluster);
}

}  // namespace bed

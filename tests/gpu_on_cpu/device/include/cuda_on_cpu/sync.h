// The C++ twin of a header of inline PTX through which blocks signal each other.
//
// A kernel's own header holds the PTX and includes this instead where CUDA_ON_CPU is defined; the
// README shows the pattern. The functions have the names and meaning of their PTX instructions:
//
//     load_acquire<scope>(address)           ld.acquire.SCOPE.global
//     load_relaxed<scope>(address)           ld.relaxed.SCOPE.global
//     store_release<scope>(address, value)   st.release.SCOPE.global
//     store_relaxed<scope>(address, value)   st.relaxed.SCOPE.global
//     add_release<scope>(address, value)     red.release.SCOPE.global.add
//     fetch_add_relaxed, _acquire, _release, _acq_rel<scope>(address, value)
//                                            atom.ORDER.SCOPE.global.add
//     cluster_arrive_release(), cluster_arrive_relaxed(), cluster_wait_acquire()
//                                            barrier.cluster.arrive and .wait
//     cluster_rank(), cluster_size()         %cluster_ctarank, %cluster_nctarank
//     map_shared(pointer, rank)              mapa.u64 of a generic address
//
// with .cta, .cluster, .gpu for Scope::block, cluster, device. ThreadSanitizer sees the
// happens-before of acquire and release, and the bed checks that a scope holds both threads.
#pragma once
#include <cuda_on_cpu/memory.h>

using bed::Scope;

template <Scope scope, class T>
T load_acquire(const T* address, BED_CALLER) {
    return bed::atomic_load(address, __ATOMIC_ACQUIRE, scope, BED_SITE("load_acquire"));
}
template <Scope scope, class T>
T load_relaxed(const T* address, BED_CALLER) {
    return bed::atomic_load(address, __ATOMIC_RELAXED, scope, BED_SITE("load_relaxed"));
}
template <Scope scope, class T>
void store_release(T* address, bed::same<T> value, BED_CALLER) {
    bed::atomic_store<T>(address, value, __ATOMIC_RELEASE, scope, BED_SITE("store_release"));
}
template <Scope scope, class T>
void store_relaxed(T* address, bed::same<T> value, BED_CALLER) {
    bed::atomic_store<T>(address, value, __ATOMIC_RELAXED, scope, BED_SITE("store_relaxed"));
}

#define BED_FETCH_ADD(name, order)                                                            \
    template <Scope scope, class T>                                                           \
    T name(T* address, bed::same<T> value, BED_CALLER) {                                      \
        return bed::atomic_update(                                                            \
            address, [=](T old) -> T { return old + value; }, order, scope, BED_SITE(#name)); \
    }
BED_FETCH_ADD(fetch_add_relaxed, __ATOMIC_RELAXED)
BED_FETCH_ADD(fetch_add_acquire, __ATOMIC_ACQUIRE)
BED_FETCH_ADD(fetch_add_release, __ATOMIC_RELEASE)
BED_FETCH_ADD(fetch_add_acq_rel, __ATOMIC_ACQ_REL)
#undef BED_FETCH_ADD
template <Scope scope, class T>
void add_release(T* address, bed::same<T> value, BED_CALLER) {
    bed::atomic_update(
        address, [=](T old) -> T { return old + value; }, __ATOMIC_RELEASE, scope,
        BED_SITE("add_release"));
}

inline void cluster_arrive_release(BED_CALLER) {
    bed::cluster_arrive(BED_SITE("cluster_arrive_release"), true);
}
inline void cluster_arrive_relaxed(BED_CALLER) {
    bed::cluster_arrive(BED_SITE("cluster_arrive_relaxed"), false);
}
inline void cluster_wait_acquire(BED_CALLER) {
    bed::cluster_wait(BED_SITE("cluster_wait_acquire"));
}
inline unsigned cluster_rank() { return bed::current->rank_in_cluster; }
inline unsigned cluster_size() {
    return bed::shape.cluster.x * bed::shape.cluster.y * bed::shape.cluster.z;
}
template <class T>
T* map_shared(T* pointer, unsigned rank, BED_CALLER) {
    return static_cast<T*>(bed::map_shared(pointer, rank, BED_SITE("map_shared")));
}

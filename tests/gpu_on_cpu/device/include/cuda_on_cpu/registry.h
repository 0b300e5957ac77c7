// What a compiled module tells about itself: its kernels, their declared limits and the static
// shared memory of each function. source.py writes the calls into the .cu; all of it is collected
// when the module is loaded and read by module.py through bed_describe.
#pragma once
#include <cuda_on_cpu/runtime.h>
#include <stdio.h>
#include <string.h>
#include <type_traits>
#include <typeinfo>
#include <utility>

#pragma GCC visibility push(hidden)  // each module has a registry of its own
namespace bed::registry {

// Nodes are static objects that link themselves into a list: no allocation, no <vector>, which
// would double the time g++ needs for a small kernel.
struct Slot {  // one static __shared__ variable of one function
    size_t bytes, alignment;
    const char* owner;  // mangled name of a type local to the function
    int index;
    Slot* next;
};
inline Slot* slots = nullptr;
inline int slot_count = 0;

struct Facts {  // of one kernel
    const char* file;
    int line;
    int max_threads, min_blocks;
    dim3 cluster;
    const char* owner;
    Facts* next;
};
inline Facts* facts = nullptr;

struct Kernel {  // one that can be launched by name
    const char* name;
    void* function;
    void (*invoke)(void* function, void** arguments);
    const char* signature;
    Kernel* next;
};
inline Kernel* kernels = nullptr;

// The member of type T of S, the k-th. S is local to the function that declares the variable,
// and as aligned as the variable asks to be.
template <class S, class T, int k>
struct SlotOf {
    static inline const int index = [] {
        static Slot slot{sizeof(T), alignof(S), typeid(S).name(), slot_count++, slots};
        slots = &slot;
        return slot.index;
    }();
};

template <class K>
struct FactsOf {
    static inline const bool known = [] {
        static Facts f = K::facts();
        f.owner = typeid(K).name();
        f.next = facts;
        facts = &f;
        return true;
    }();
};

struct LaunchBounds {
    int max_threads = 0, min_blocks = 0;
    constexpr LaunchBounds(int threads = 0, int blocks = 0, int = 0)
        : max_threads(threads), min_blocks(blocks) {}
};

// --- for each parameter a letter, its size and its alignment: "p8/8 i4/4 " ------------------------

template <class A>
constexpr char kind() {
    if (std::is_pointer<A>::value) return 'p';
    if (std::is_same<A, bool>::value) return 'b';
    if (std::is_floating_point<A>::value) return 'f';
    if (std::is_integral<A>::value) return std::is_signed<A>::value ? 'i' : 'u';
    return 's';
}

template <class... A>
struct Invoke {
    template <size_t... I>
    static void spread(void* function, void** arguments, std::index_sequence<I...>) {
        reinterpret_cast<void (*)(A...)>(function)(
            *static_cast<std::remove_const_t<A>*>(arguments[I])...);
    }
    static void call(void* function, void** arguments) {
        spread(function, arguments, std::index_sequence_for<A...>());
    }
};

template <class... A>
bool add_kernel(Kernel& node, const char* name, void (*function)(A...)) {
    static char signature[16 * sizeof...(A) + 1];
    char* end = signature;
    ((end += sprintf(end, "%c%zu/%zu ", kind<A>(), sizeof(A), alignof(A))), ...);
    node = {name, reinterpret_cast<void*>(function), &Invoke<A...>::call, signature, kernels};
    kernels = &node;
    return true;
}

}  // namespace bed::registry
#pragma GCC visibility pop

namespace bed {
template <class S, class T, int k>
T& shared() {
    return *static_cast<T*>(static_shared(registry::SlotOf<S, T, k>::index));
}
template <class K>
void declare_kernel() {
    (void)&registry::FactsOf<K>::known;  // naming the member makes the compiler emit it
}
}  // namespace bed

// Writes one line for each thing known, fields separated by tabs; returns the length it needs.
extern "C" __attribute__((visibility("default"), used)) inline size_t bed_describe(char* text,
                                                                                   size_t size) {
    namespace r = bed::registry;
    size_t n = 0;
    auto left = [&] { return n < size ? size - n : 0; };
    for (auto* k = r::kernels; k; k = k->next)
        n += snprintf(text + n, left(), "kernel\t%s\t%zu\t%zu\t%s\n", k->name, (size_t)k->function,
                      (size_t)(void*)k->invoke, k->signature);
    for (auto* f = r::facts; f; f = f->next)
        n += snprintf(text + n, left(), "facts\t%s\t%s\t%d\t%d\t%d\t%u\t%u\t%u\n", f->owner,
                      f->file, f->line, f->max_threads, f->min_blocks, f->cluster.x, f->cluster.y,
                      f->cluster.z);
    for (auto* s = r::slots; s; s = s->next)
        n += snprintf(text + n, left(), "shared\t%s\t%d\t%zu\t%zu\n", s->owner, s->index, s->bytes,
                      s->alignment);
    return n;
}

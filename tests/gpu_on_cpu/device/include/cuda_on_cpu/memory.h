// Loads, stores and atomics that threads use to signal each other, and the cache hints.
#pragma once
#include <cuda_on_cpu/runtime.h>
#include <cuda_on_cpu/warp.h>
#include <type_traits>

namespace bed {
template <class T>
struct SameAs {
    using type = T;
};
template <class T>
using same = typename SameAs<T>::type;  // a parameter that takes no part in deduction

template <size_t bytes>
struct WordOf;
template <>
struct WordOf<1> {
    using type = uint8_t;
};
template <>
struct WordOf<2> {
    using type = uint16_t;
};
template <>
struct WordOf<4> {
    using type = uint32_t;
};
template <>
struct WordOf<8> {
    using type = uint64_t;
};

// What is wider than 8 bytes goes in words of 8, each indivisible by itself, as on a device.
template <class T>
using Word = typename WordOf<(sizeof(T) < 8 ? sizeof(T) : 8)>::type;
template <class T>
constexpr size_t words = (sizeof(T) + 7) / 8;

// Tells one value from another, nearly always: enough to notice that a word has not changed.
template <class T>
uint64_t fingerprint(const T& value) {
    Word<T> parts[words<T>] = {};
    memcpy(parts, static_cast<const void*>(&value), sizeof value);
    uint64_t bits = 0;
    for (Word<T> part : parts) bits = (bits << 7 | bits >> 57) ^ part;
    return bits;
}

template <class T>
T atomic_load(const T* address, int order, Scope scope, Site site) {
    static_assert(sizeof(T) % sizeof(Word<T>) == 0, "no instruction has this width");
    auto* from = reinterpret_cast<const Word<T>*>(address);
    maybe_yield(site);
    T value;
    do {
        Word<T> parts[words<T>];
        for (size_t i = 0; i < words<T>; ++i) parts[i] = __atomic_load_n(from + i, order);
        memcpy(static_cast<void*>(&value), parts, sizeof value);
    } while (loaded(address, fingerprint(value), scope, site));
    return value;
}
template <class T>
void atomic_store(T* address, T value, int order, Scope scope, Site site) {
    static_assert(sizeof(T) % sizeof(Word<T>) == 0, "no instruction has this width");
    maybe_yield(site);
    Word<T> parts[words<T>];
    memcpy(parts, static_cast<const void*>(&value), sizeof value);
    auto* to = reinterpret_cast<Word<T>*>(address);
    for (size_t i = 0; i < words<T>; ++i) __atomic_store_n(to + i, parts[i], order);
    stored(address, scope, site);
}
// Returns the value before. The new value is change(old); an unchanged word counts as a load, so
// a lock that is tried again and again does not hide a deadlock.
template <class T, class F>
T atomic_update(T* address, F change, int order, Scope scope, Site site) {
    auto* word = reinterpret_cast<Word<T>*>(address);
    for (;;) {
        maybe_yield(site);
        Word<T> before = __atomic_load_n(word, __ATOMIC_RELAXED), after;
        do after = static_cast<Word<T>>(to_bits<T>(change(from_bits<T>(before))));
        while (!__atomic_compare_exchange_n(word, &before, after, false, order, __ATOMIC_RELAXED));
        if (after != before) {
            stored(address, scope, site);
        } else if (loaded(address, before, scope, site)) {
            continue;
        }
        return from_bits<T>(before);
    }
}
}  // namespace bed

// --- atomics: relaxed, at device scope, or at the scope that the suffix names --------------------
//
// The types each operation has on a device, no more: a kernel that compiles here compiles there.

struct __half;
struct __half2;
struct __nv_bfloat16;
struct __nv_bfloat162;
namespace bed {
template <class T, class... Types>
using if_one_of = std::enable_if_t<(std::is_same<T, Types>::value || ...), int>;
}

#define BED_ATOMIC_AT(name, suffix, scope, expression, ...)                                       \
    template <class T, bed::if_one_of<T, __VA_ARGS__> = 0>                                        \
    T name##suffix(T* address, bed::same<T> value, BED_CALLER) {                                  \
        return bed::atomic_update(                                                                \
            address, [=](T old) -> T { return expression; }, __ATOMIC_RELAXED, bed::Scope::scope, \
            BED_SITE(#name #suffix));                                                             \
    }
#define BED_ATOMIC(name, expression, ...)                       \
    BED_ATOMIC_AT(name, , device, expression, __VA_ARGS__)      \
    BED_ATOMIC_AT(name, _block, block, expression, __VA_ARGS__) \
    BED_ATOMIC_AT(name, _system, system, expression, __VA_ARGS__)
#define BED_WORDS int, unsigned, unsigned long long
#define BED_SIGNED_WORDS int, unsigned, long long, unsigned long long

BED_ATOMIC(atomicAdd, T(old + value), BED_WORDS, float, double, __half, __half2, __nv_bfloat16,
           __nv_bfloat162)
BED_ATOMIC(atomicSub, old - value, int, unsigned)
BED_ATOMIC(atomicExch, (void(old), value), BED_WORDS, float)
BED_ATOMIC(atomicMin, old < value ? old : value, BED_SIGNED_WORDS)
BED_ATOMIC(atomicMax, old > value ? old : value, BED_SIGNED_WORDS)
BED_ATOMIC(atomicAnd, old& value, BED_WORDS)
BED_ATOMIC(atomicOr, old | value, BED_WORDS)
BED_ATOMIC(atomicXor, old ^ value, BED_WORDS)
BED_ATOMIC(atomicInc, old >= value ? 0 : old + 1, unsigned)
BED_ATOMIC(atomicDec, (old == 0 || old > value) ? value : old - 1, unsigned)
#undef BED_ATOMIC
#undef BED_ATOMIC_AT

#define BED_COMPARE_AND_SWAP(suffix, scope)                                                       \
    template <class T, bed::if_one_of<T, BED_WORDS, unsigned short> = 0>                          \
    T atomicCAS##suffix(T* address, bed::same<T> expected, bed::same<T> value, BED_CALLER) {      \
        return bed::atomic_update(                                                                \
            address, [=](T old) -> T { return old == expected ? value : old; }, __ATOMIC_RELAXED, \
            bed::Scope::scope, BED_SITE("atomicCAS" #suffix));                                    \
    }
BED_COMPARE_AND_SWAP(, device)
BED_COMPARE_AND_SWAP(_block, block)
BED_COMPARE_AND_SWAP(_system, system)
#undef BED_COMPARE_AND_SWAP

// --- fences: a hand-written barrier is built from acquire and release instead (see sync.h) -------

inline void __threadfence(BED_CALLER) { bed::maybe_yield(BED_SITE("__threadfence")); }
inline void __threadfence_block(BED_CALLER) { bed::maybe_yield(BED_SITE("__threadfence_block")); }
inline void __threadfence_system(BED_CALLER) {
    bed::maybe_yield(BED_SITE("__threadfence_system"));
}
inline void __nanosleep(unsigned, BED_CALLER) { bed::sleep(BED_SITE("__nanosleep")); }

// --- cache hints: plain loads and stores to ThreadSanitizer, as they are to the memory model -----

namespace bed {
template <class T>
T hinted_load(const T* address, Site site) {
    require_global(address, site);
    maybe_yield(site);
    T value = *address;
    // The data may be the signal, and be polled.
    while (loaded_again(address, fingerprint(value), site)) value = *address;
    return value;
}
}  // namespace bed
#define BED_LOAD(name)                                     \
    template <class T>                                     \
    T name(const T* address, BED_CALLER) {                 \
        return bed::hinted_load(address, BED_SITE(#name)); \
    }
#define BED_STORE(name)                                            \
    template <class T>                                             \
    void name(T* address, bed::same<T> value, BED_CALLER) {        \
        bed::require_global(address, BED_SITE(#name));             \
        *address = value;                                          \
        bed::stored(address, bed::Scope::device, BED_SITE(#name)); \
    }
BED_LOAD(__ldcg)
BED_LOAD(__ldcv)
BED_STORE(__stcg)
BED_STORE(__stwt)
// These may be served by an SM's own cache, so they can poll nothing.
template <class T>
T __ldg(const T* address, BED_CALLER) {
    bed::require_global(address, BED_SITE("__ldg"));
    return *address;
}
template <class T>
T __ldca(const T* address, BED_CALLER) {
    bed::require_global(address, BED_SITE("__ldca"));
    return *address;
}
template <class T>
T __ldcs(const T* address, BED_CALLER) {
    bed::require_global(address, BED_SITE("__ldcs"));
    return *address;
}
template <class T>
T __ldlu(const T* address, BED_CALLER) {
    bed::require_global(address, BED_SITE("__ldlu"));
    return *address;
}
template <class T>
void __stwb(T* address, bed::same<T> value, BED_CALLER) {
    bed::require_global(address, BED_SITE("__stwb"));
    *address = value;
}
template <class T>
void __stcs(T* address, bed::same<T> value, BED_CALLER) {
    bed::require_global(address, BED_SITE("__stcs"));
    *address = value;
}
#undef BED_LOAD
#undef BED_STORE

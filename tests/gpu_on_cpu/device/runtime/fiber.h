// One fiber for each CUDA thread: a stack, and a way to leave it and come back.
#pragma once
#include <stddef.h>

#if defined(BED_PORTABLE_FIBERS) || !(defined(__x86_64__) || defined(__aarch64__))
#define BED_UCONTEXT 1
#include <ucontext.h>
#endif

#ifdef BED_TSAN
// The runtime itself is never instrumented: its bookkeeping is no part of the kernel. It only tells
// ThreadSanitizer which fiber runs and which operations order two of them.
#include <sanitizer/tsan_interface.h>
#define BED_RELEASE(address) __tsan_release(address)
#define BED_ACQUIRE(address) __tsan_acquire(address)
#else
#define BED_RELEASE(address) ((void)(address))
#define BED_ACQUIRE(address) ((void)(address))
#endif

namespace bed {

struct Fiber {
    char* stack = nullptr;
    void* stack_pointer = nullptr;
    bool guarded = false;
    // For the sanitizers, which keep their own idea of where the stack is.
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t size = 0;
    void* tsan = nullptr;
#ifdef BED_UCONTEXT
    ucontext_t context;
#endif
};

// A fiber from the pool that will begin with entry(), which never returns.
Fiber* take_fiber(void (*entry)());
void give_fiber_back(Fiber* fiber);

// The operating system thread's own stack takes part in the switches as one more fiber.
extern Fiber main_fiber;
void begin_switching();
void switch_fiber(Fiber& from, Fiber& to);
void entered_fiber();  // the first thing on a fresh stack

bool stack_overflowed(const Fiber& fiber);
const char* fiber_kind();

}  // namespace bed

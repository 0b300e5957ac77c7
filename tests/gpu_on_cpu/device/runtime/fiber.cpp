#include "fiber.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#ifndef BED_UCONTEXT
// Saves what a function call must preserve, then continues where `to` was saved. swapcontext would
// also save the signal mask, a system call each time: 40 times slower.
extern "C" __attribute__((visibility("hidden"))) void bed_switch(void** from, void* to);
#if defined(__x86_64__)
asm(R"(
.text
.type bed_switch,@function
bed_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.size bed_switch,.-bed_switch
)");
constexpr int saved_words = 6, return_address = 6, frame_words = 8;
#else
asm(R"(
.text
.type bed_switch,%function
bed_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size bed_switch,.-bed_switch
)");
constexpr int return_address = 11, frame_words = 20;
#endif
#endif

namespace bed {

Fiber main_fiber;

namespace {

constexpr size_t stack_bytes = 256 * 1024;
constexpr size_t page = 4096;
// A guard page splits a memory mapping in two, and Linux allows 65,530 mappings. The fibers beyond
// have a canary under their stack, which finds an overflow too, if later.
constexpr size_t most_guards = 16 * 1024;
constexpr size_t most_kept = 32 * 1024;  // a stack that was used holds 8 KiB and more
constexpr uint64_t canary = 0x5afe57acc5afe57a;

std::vector<Fiber*> pool;
size_t guards = 0;

uint64_t* canary_of(const Fiber& fiber) { return reinterpret_cast<uint64_t*>(fiber.stack + page); }

void begin_at(Fiber* fiber, void (*entry)()) {
    if (!fiber->guarded) *canary_of(*fiber) = canary;
#ifdef BED_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber->context, entry, 0);
#else
    // A frame as bed_switch leaves it, with entry() as the place to return to. On entry to a
    // function x86-64 wants the stack 8 bytes off a multiple of 16, aarch64 on it.
    void** frame = reinterpret_cast<void**>(fiber->stack + stack_bytes) - frame_words;
    memset(frame, 0, frame_words * sizeof(void*));
    frame[return_address] = reinterpret_cast<void*>(entry);
    fiber->stack_pointer = frame;
#endif
#ifdef BED_TSAN
    fiber->tsan = __tsan_create_fiber(0);
#endif
}

}  // namespace

Fiber* take_fiber(void (*entry)()) {
    Fiber* fiber;
    if (!pool.empty()) {
        fiber = pool.back();
        pool.pop_back();
    } else {
        fiber = new Fiber();
        void* memory = mmap(nullptr, stack_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            perror("cuda_on_cpu: no memory for the stack of a CUDA thread");
            abort();
        }
        fiber->stack = static_cast<char*>(memory);
        fiber->guarded = guards < most_guards && mprotect(memory, page, PROT_NONE) == 0;
        guards += fiber->guarded;
        fiber->bottom = fiber->stack;
        fiber->size = stack_bytes;
    }
    begin_at(fiber, entry);
    return fiber;
}

void give_fiber_back(Fiber* fiber) {
#ifdef BED_TSAN
    __tsan_destroy_fiber(fiber->tsan);
    const bool keep = false;  // two CUDA threads on one stack would look like a race
#else
    const bool keep = pool.size() < most_kept;
#endif
    if (keep) {
        pool.push_back(fiber);
    } else {
        munmap(fiber->stack, stack_bytes);
        guards -= fiber->guarded;
        delete fiber;
    }
}

void begin_switching() {
#ifdef BED_TSAN
    main_fiber.tsan = __tsan_get_current_fiber();
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#ifdef BED_TSAN
    __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef BED_UCONTEXT
    swapcontext(&from.context, &to.context);
#else
    bed_switch(&from.stack_pointer, to.stack_pointer);
#endif
#ifdef __SANITIZE_ADDRESS__
    const void* bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(from.fake_stack, &bottom, &size);
    if (&from != &main_fiber) {
        main_fiber.bottom = bottom;
        main_fiber.size = size;
    }
#endif
}

void entered_fiber() {
#ifdef __SANITIZE_ADDRESS__
    __sanitizer_finish_switch_fiber(nullptr, &main_fiber.bottom, &main_fiber.size);
#endif
}

bool stack_overflowed(const Fiber& fiber) { return !fiber.guarded && *canary_of(fiber) != canary; }

const char* fiber_kind() {
#ifdef BED_UCONTEXT
    return "ucontext";
#else
    return "assembly";
#endif
}

}  // namespace bed

// What would kill the process, turned into an error that names the line: the checks g++ compiles
// into the kernel, and the signals of the processor.
#include <errno.h>
#include <stdio.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "state.h"

// --- the functions UndefinedBehaviorSanitizer's instrumentation calls ----------------------------

namespace {

struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
struct TypeDescriptor {
    uint16_t kind, info;
    char name[1];  // continues
};
struct TypeMismatch {
    SourceLocation at;
    const TypeDescriptor* type;
    unsigned char log_alignment, access;
};
struct OutOfBounds {
    SourceLocation at;
    const TypeDescriptor *array, *index;
};
struct Overflow {
    SourceLocation at;
    const TypeDescriptor* type;
};

std::string place(const SourceLocation& at) {
    const char* slash = strrchr(at.file, '/');
    return std::string(" at ") + (slash ? slash + 1 : at.file) + ":" + std::to_string(at.line) +
           " (" + show(*bed::running()) + ")";
}

std::string hexadecimal(const void* address) {
    char text[20];
    snprintf(text, sizeof text, "%p", address);
    return text;
}

[[noreturn]] void fail_at(bed::ErrorKind kind, const SourceLocation& at, const std::string& what) {
    bed::fail(kind, what + place(at));
}

}  // namespace

// Declared as GCC declares them itself. `data` lies in the kernel's read-only memory.
#define HANDLER extern "C" __attribute__((visibility("default"), noreturn)) void

HANDLER __ubsan_handle_type_mismatch_v1_abort(void* data, void* address) {
    using bed::ErrorKind;
    const auto& access = *static_cast<const TypeMismatch*>(data);
    if (!address) fail_at(ErrorKind::memory_fault, access.at, "access through a null pointer");
    fail_at(ErrorKind::misaligned, access.at,
            std::string("misaligned access: ") + access.type->name + " at address " +
                hexadecimal(address) + ", which is no multiple of " +
                std::to_string(1 << access.log_alignment));
}
HANDLER __ubsan_handle_out_of_bounds_abort(void* data, void* index) {
    const auto& access = *static_cast<const OutOfBounds*>(data);
    fail_at(bed::ErrorKind::out_of_bounds, access.at,
            "index " + std::to_string(reinterpret_cast<intptr_t>(index)) + " out of bounds of " +
                access.array->name);
}
HANDLER __ubsan_handle_divrem_overflow_abort(void* data, void*, void*) {
    fail_at(bed::ErrorKind::memory_fault, static_cast<const Overflow*>(data)->at,
            "integer division by zero or overflow");
}
#define OVERFLOW_HANDLER(function, what, ...)                       \
    HANDLER function(void* data, __VA_ARGS__) {                     \
        const auto& overflow = *static_cast<const Overflow*>(data); \
        fail_at(bed::ErrorKind::kernel, overflow.at,                \
                std::string(what) + " in " + overflow.type->name);  \
    }
OVERFLOW_HANDLER(__ubsan_handle_add_overflow_abort, "signed overflow", void*, void*)
OVERFLOW_HANDLER(__ubsan_handle_sub_overflow_abort, "signed overflow", void*, void*)
OVERFLOW_HANDLER(__ubsan_handle_mul_overflow_abort, "signed overflow", void*, void*)
OVERFLOW_HANDLER(__ubsan_handle_negate_overflow_abort, "signed overflow", void*)
OVERFLOW_HANDLER(__ubsan_handle_shift_out_of_bounds_abort, "shift out of range", void*, void*)

// --- signals -------------------------------------------------------------------------------------

namespace bed {

#if defined(__SANITIZE_ADDRESS__) || defined(BED_TSAN)
// The sanitizers catch signals themselves, and tell more.
void watch_for_faults(bool) {}
#else

namespace {

constexpr int fatal[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
const int tick = SIGRTMIN + 7;
struct sigaction before[NSIG];
stack_t stack_before;
timer_t timer;
bool timing = false;
int ticks_without_switch = 0;
uint64_t switches_at_tick = 0;
pid_t launching_thread = 0;  // of the operating system
const Thread* thread_at_tick = nullptr;

alignas(16) char handler_stack[64 * 1024];
alignas(16) char landing_stack[64 * 1024];
int caught = 0;
bool out_of_stack = false;

// Where a thread goes on after its signal: on a stack of its own, for the fiber's may be what ran
// out. The fiber is abandoned.
[[noreturn]] void land() {
    const Thread& thread = *running();
    const std::string who = " (" + show(thread) + ", last seen in " + show(thread.at) + ")";
    if (caught == tick)
        fail(ErrorKind::hang,
             "a loop without end, or a wait on a plain or volatile load: no operation of the bed "
             "since long" +
                 who);
    if (caught == SIGFPE) fail(ErrorKind::memory_fault, "integer division by zero" + who);
    if (out_of_stack) fail(ErrorKind::memory_fault, "more than 252 KiB of stack" + who);
    fail(ErrorKind::memory_fault, "illegal memory access" + who);
}

bool below_stack(uintptr_t stack_pointer) {
    const auto usable = reinterpret_cast<uintptr_t>(running()->fiber->stack) + 4096;
    return stack_pointer < usable + 256 && stack_pointer + (1u << 26) > usable;
}

void divert(ucontext_t* context) {
    char* top = landing_stack + sizeof landing_stack;
#if defined(__x86_64__)
    auto* registers = context->uc_mcontext.gregs;
    launch->request->fault_address = registers[REG_RIP];
    out_of_stack = below_stack(registers[REG_RSP]);
    registers[REG_RSP] = reinterpret_cast<greg_t>(top) - 8;
    registers[REG_RIP] = reinterpret_cast<greg_t>(&land);
#elif defined(__aarch64__)
    launch->request->fault_address = context->uc_mcontext.pc;
    out_of_stack = below_stack(context->uc_mcontext.sp);
    context->uc_mcontext.sp = reinterpret_cast<uintptr_t>(top);
    context->uc_mcontext.pc = reinterpret_cast<uintptr_t>(&land);
#endif
}

void on_signal(int signal, siginfo_t*, void* context) {
    const int saved_errno = errno;
    if (signal == tick) {
        // Twice the same thread with no switch between: then it has had half of the time and more.
        const bool moved = launch->request->switches != switches_at_tick ||
                           running() != thread_at_tick || !running();
        switches_at_tick = launch->request->switches;
        thread_at_tick = running();
        ticks_without_switch = moved ? 0 : ticks_without_switch + 1;
        if (ticks_without_switch < 2) {
            errno = saved_errno;
            return;
        }
    } else if (!running() || gettid() != launching_thread) {  // not a kernel's fault
        sigaction(signal, &before[signal], nullptr);
        return;
    }
    caught = signal;
    divert(static_cast<ucontext_t*>(context));
}

void start_timer() {
    ticks_without_switch = 0;
    thread_at_tick = nullptr;
    sigevent event{};
    event.sigev_notify = SIGEV_THREAD_ID;  // the thread that runs the kernel, no other
    event.sigev_signo = tick;
    event._sigev_un._tid = launching_thread;
    timing = timer_create(CLOCK_MONOTONIC, &event, &timer) == 0;
    if (!timing) return;
    const double period = launch->request->hang_seconds / 3;
    itimerspec times{};
    times.it_interval.tv_sec = static_cast<time_t>(period);
    times.it_interval.tv_nsec = static_cast<long>((period - times.it_interval.tv_sec) * 1e9);
    times.it_value = times.it_interval;
    timer_settime(timer, 0, &times, nullptr);
}

}  // namespace

void watch_for_faults(bool on) {
    if (on) {
        launching_thread = gettid();
        stack_t stack{};
        stack.ss_sp = handler_stack;
        stack.ss_size = sizeof handler_stack;
        sigaltstack(&stack, &stack_before);
        struct sigaction action{};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK;
        for (int signal : fatal) sigaction(signal, &action, &before[signal]);
        sigaction(tick, &action, &before[tick]);
        if (launch->request->hang_seconds > 0) start_timer();
    } else {
        if (timing) timer_delete(timer);
        timing = false;
        for (int signal : fatal) sigaction(signal, &before[signal], nullptr);
        sigaction(tick, &before[tick], nullptr);
        sigaltstack(&stack_before, nullptr);
    }
}

#endif

}  // namespace bed

// In front of the system's: a failed assert ends the launch, not the process. No include guard, so
// that NDEBUG can be set and unset as the standard has it.
#include <cuda_on_cpu/runtime.h>
#undef assert
#ifdef NDEBUG
#define assert(condition) ((void)0)
#else
#define assert(condition)  \
    ((condition) ? (void)0 \
                 : ::bed::kernel_error({"assert", __FILE__, __LINE__}, "failed: " #condition))
#endif
#ifndef __cplusplus
#define static_assert _Static_assert
#endif

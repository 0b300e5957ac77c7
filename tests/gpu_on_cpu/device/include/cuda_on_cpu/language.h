// The CUDA language itself: qualifiers and built-in variables.
#pragma once
#include <cuda_on_cpu/runtime.h>

// What NVRTC defines. CUDA_ON_CPU is ours: by it a header of inline PTX chooses its C++ twin.
#define CUDA_ON_CPU 1
#define __CUDACC__ 1
#define __CUDACC_RTC__ 1
#define __CUDACC_VER_MAJOR__ 12
#define __CUDACC_VER_MINOR__ 9
#ifndef __CUDA_ARCH__
#define __CUDA_ARCH__ 800  // build.py defines it where the options name an architecture
#endif

// Not __global__, __shared__, __launch_bounds__ and __cluster_dims__: source.py looks for them in
// the preprocessed text and takes them out.
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __builtin_assume(condition) ((void)0)
#define __align__(n) __attribute__((aligned(n)))
// Not asm itself: system headers that come later use __asm__, kernels use asm.
#define asm INLINE_PTX_NEEDS_A_CPP_TWIN_CHOSEN_BY_CUDA_ON_CPU

#define threadIdx (::bed::current->thread_index)
#define blockIdx (::bed::current->block_index)
#define blockDim (::bed::shape.block)
#define gridDim (::bed::shape.grid)
#define warpSize 32

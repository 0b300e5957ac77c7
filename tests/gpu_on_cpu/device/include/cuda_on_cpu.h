// Included by g++ before every .cu: what a CUDA compiler provides without any #include.
#pragma once
// Of each compilation, a tenth was the special functions of C++17, which CUDA does not have.
#include <bits/c++config.h>
#undef _GLIBCXX_USE_STD_SPEC_FUNCS
#include <initializer_list>
#include <utility>

#include <cuda_on_cpu/language.h>
#include <cuda_on_cpu/math.h>
#include <cuda_on_cpu/memory.h>
#include <cuda_on_cpu/registry.h>
#include <cuda_on_cpu/warp.h>

#include <assert.h>
#include <stdio.h>
inline void __trap(BED_CALLER) { bed::kernel_error(BED_SITE("__trap"), "the kernel trapped"); }

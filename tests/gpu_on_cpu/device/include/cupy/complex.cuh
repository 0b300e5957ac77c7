// In front of CuPy's own, which is CUDA's thrust and more than g++ can take. CuPy includes it in
// every kernel it writes; complex numbers are the one thing of CuPy that does not run here.
#pragma once
template <class T>
struct complex {
    T re, im;
};

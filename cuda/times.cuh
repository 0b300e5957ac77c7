// The times of one row that lie in a range of steps. A reverse direction begins at the row's own
// last valid time.
#pragma once

struct Times {
    int first;  // of the first step
    int count;
    int sign;   // from one step to the next

    __device__ __forceinline__ Times(const long long* lengths, long long row, int B, int T,
                                     int start, int stop, bool backwards) {
        const int low = backwards ? T - stop : start, high = backwards ? T - start : stop;
        long long end = 0;
        if (row < B) end = lengths == nullptr || lengths[row] > high ? high : lengths[row];
        count = end > low ? static_cast<int>(end) - low : 0;
        first = backwards ? static_cast<int>(end) - 1 : low;
        sign = backwards ? -1 : 1;
    }
};

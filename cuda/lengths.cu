// Looks for a length outside [0, T] without the host waiting for the answer.
//
// One block. The first bad row is written into mapped host memory, where a later call finds it;
// a report that nobody has read yet stays. A template only because every kernel here is one.
template <typename Length>
__global__ void check_lengths(
    const Length* lengths,  // [B]
    long long* report,      // [3]: row + 1 (0 while all is well), its length, T
    long long B, long long T) {
    __shared__ long long first[256];
    long long found = B;
    for (long long row = threadIdx.x; row < B; row += blockDim.x)
        if ((lengths[row] < 0 || lengths[row] > T) && row < found) found = row;
    first[threadIdx.x] = found;
    for (int half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half && first[threadIdx.x + half] < first[threadIdx.x])
            first[threadIdx.x] = first[threadIdx.x + half];
    }
    if (threadIdx.x == 0 && first[0] < B && report[0] == 0) {
        report[1] = lengths[first[0]];
        report[2] = T;
        __threadfence_system();  // the row last: it says that the others are there
        report[0] = first[0] + 1;
    }
}

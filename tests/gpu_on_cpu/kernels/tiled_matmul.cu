// C = A B through tiles in shared memory. A[M,K], B[K,N], C[M,N]; a block is TILE x TILE threads.
#define TILE 8

#ifdef BUG_NO_BARRIER_BEFORE_USE
#define BEFORE_USE()
#else
#define BEFORE_USE() __syncthreads()
#endif
#ifdef BUG_NO_BARRIER_AFTER_USE
#define AFTER_USE()
#else
#define AFTER_USE() __syncthreads()
#endif
#ifdef BUG_TILE_TOO_NARROW
#define COLUMNS (TILE - 1)
#else
#define COLUMNS TILE
#endif
#ifdef BUG_BOUND_OFF_BY_ONE
#define INSIDE <=
#else
#define INSIDE <
#endif

extern "C" __global__ void __launch_bounds__(TILE* TILE)
    tiled_matmul(const float* __restrict__ a,  // [M,K]
                 const float* __restrict__ b,  // [K,N]
                 float* __restrict__ c,        // [M,N]
                 int M, int N, int K) {
    __shared__ float a_tile[TILE][TILE], b_tile[TILE][COLUMNS];
    const int x = threadIdx.x, y = threadIdx.y;
    const int row = blockIdx.y * TILE + y, column = blockIdx.x * TILE + x;
    float sum = 0.0f;
    for (int k = 0; k < K; k += TILE) {
        a_tile[y][x] = row < M && k + x < K ? a[row * K + k + x] : 0.0f;
        b_tile[y][x] = k + y INSIDE K && column < N ? b[(k + y) * N + column] : 0.0f;
        BEFORE_USE();
        for (int i = 0; i < TILE; ++i) sum += a_tile[y][i] * b_tile[i][x];
        AFTER_USE();
    }
    if (row < M && column < N) c[row * N + column] = sum;
}

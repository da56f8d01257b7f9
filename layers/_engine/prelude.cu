// What every kernel's text begins with. Compiled once per scalar type:
//   scalar_t  float, double, __half or __nv_bfloat16: what tensors hold
//   acc_t     float, or double for double: what sums and arithmetic are in
// Conversions are casts: acc_t(x[i]) reads, scalar_t(sum) rounds to nearest.
// The tests plant faults in every line, which they must catch. "unseen: why" at a line's end says why
// a fault there would change no result.
#ifdef CORTADO_INCLUDE
#include CORTADO_INCLUDE
#endif

typedef CORTADO_SCALAR scalar_t;
typedef CORTADO_ACC acc_t;

#define WARP 32
#define ALL_LANES 0xffffffffu

// for (i in [0, n)) shared among all threads of a one-dimensional grid, whatever its size
#define GRID_STRIDE(i, n)                                                                   \
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < (n);           \
         i += (long long)gridDim.x * blockDim.x)

// N neighbouring scalars, moved by one instruction; the address must be a multiple of its size
template <int N>
struct alignas(sizeof(scalar_t) * N) Pack {
    scalar_t at[N];
};

template <int N>
__device__ inline Pack<N> load(const scalar_t* from) {
    return *reinterpret_cast<const Pack<N>*>(from);
}

template <int N>
__device__ inline void store(scalar_t* to, const Pack<N>& pack) {
    *reinterpret_cast<Pack<N>*>(to) = pack;
}

// The same value, hidden from the optimiser: what follows from it is computed again rather than
// kept in registers.
__device__ inline long long again(long long value) {
#ifdef __CUDA_ARCH__
    asm volatile("" : "+l"(value));
#endif
    return value;
}

__device__ inline acc_t infinity() { return acc_t(__longlong_as_double(0x7ff0000000000000ll)); }

// The sum over a warp's lanes, in lane 0; all 32 lanes take part. Always the same order.
template <class T>
__device__ inline T warp_sum(T value) {
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_down_sync(ALL_LANES, value, step);
    return value;
}

// The sum over a block of one dimension (a multiple of 32 threads), in every thread; scratch holds
// 32 values. All threads take part, always in the same order.
template <class T>
__device__ inline T block_sum(T value, T* scratch) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    value = warp_sum(value);
    __syncthreads();  // scratch may still be read from an earlier sum
    if (lane == 0) scratch[warp] = value;
    __syncthreads();
    value = T(0);
    for (int i = 0; i < int(blockDim.x) / WARP; ++i) value += scratch[i];
    return value;
}

// The sum over the threads of equal threadIdx.x % stride, in each of them; stride and the block's
// threads are powers of two, scratch holds one value a thread. Always the same order.
template <class T>
__device__ inline T strided_sum(T value, T* scratch, int stride) {
    __syncthreads();  // scratch may still be read from an earlier sum
    scratch[threadIdx.x] = value;
    for (int half = blockDim.x / 2; half >= stride; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) scratch[threadIdx.x] += scratch[threadIdx.x + half];
    }
    __syncthreads();
    return scratch[threadIdx.x % stride];
}

// sums[at] += value for every lane of a warp, one after the other where `at` is the same, nothing
// where it is negative; all 32 lanes take part. Always the same order.
template <class T>
__device__ inline void add_in_turn(T* sums, int at, T value) {
    const unsigned lower = (1u << threadIdx.x % WARP) - 1;
    const unsigned same = __match_any_sync(ALL_LANES, at);
    const int turn = at < 0 ? -1 : __popc(same & lower);
    for (int i = 0; __any_sync(ALL_LANES, i <= turn); ++i) {
        if (i == turn) sums[at] += value;
        __syncwarp();  // unseen: the vote waits too, but does not order memory
    }
}

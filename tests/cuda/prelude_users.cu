// What the prelude offers, each used once: for the mutants of the prelude.
extern "C" __global__ void block_sums(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long n) {
    __shared__ acc_t scratch[32];
    const acc_t value = blockIdx.x * blockDim.x + threadIdx.x < n ? acc_t(x[blockIdx.x * blockDim.x + threadIdx.x]) : acc_t(0);
    const acc_t sum = block_sum(value, scratch), twice = block_sum(2 * value, scratch);
    GRID_STRIDE(i, n) y[i] = scalar_t(sum + twice);
}

extern "C" __global__ void strided_sums(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long n) {
    __shared__ acc_t scratch[128];
    const acc_t value = acc_t(x[threadIdx.x]);
    const acc_t sum = strided_sum(value, scratch, 4), twice = strided_sum(2 * value, scratch, 8);
    y[threadIdx.x] = scalar_t(sum + twice);
}

extern "C" __global__ void copy(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long n) {
    GRID_STRIDE(i, n / 2) {
        Pack<2> pack = load<2>(x + 2 * i);
        if (acc_t(pack.at[0]) == infinity()) pack.at[1] = scalar_t(again(3));
        store<2>(y + 2 * i, pack);
    }
}

extern "C" __global__ void turns(const scalar_t* __restrict__ x, scalar_t* __restrict__ y, long long n) {
    __shared__ acc_t sums[4][5];
    const int lane = threadIdx.x % WARP;
    const acc_t far = lane < 6 ? 1e17 : -1e17;  // swallows what is added before it is gone again
    acc_t* own = sums[threadIdx.x / WARP];
    if (lane < 5) own[lane] = 0;
    __syncwarp();
    add_in_turn(own, lane % 6 - 1, lane < 6 || lane / 6 == 2 ? far : acc_t(x[threadIdx.x]));
    y[threadIdx.x] = scalar_t(own[lane % 5]);
}

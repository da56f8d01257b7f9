// All but the matrix products, which are cuBLAS's: a block for each descriptor, or elementwise.

// unit = x / length, length = max(|x|, eps)
extern "C" __global__ void __launch_bounds__(256) rectified_cosine_unit(
    const scalar_t* __restrict__ x, acc_t* __restrict__ unit, acc_t* __restrict__ length, int size,
    acc_t eps) {
    __shared__ acc_t scratch[WARP];
    const scalar_t* from = x + (long long)blockIdx.x * size;
    acc_t* to = unit + (long long)blockIdx.x * size;
    acc_t square = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) square += acc_t(from[i]) * acc_t(from[i]);
    acc_t d = sqrt(block_sum(square, scratch));
    d = d < eps ? eps : d;  // NaN stays; unseen: equal is equal
    for (int i = threadIdx.x; i < size; i += blockDim.x) to[i] = acc_t(from[i]) / d;
    length[blockIdx.x] = d;
}

// cosine = max(cosine, 0), top = cosine^exponent, where there is a top of its own
extern "C" __global__ void __launch_bounds__(256) rectified_cosine_rectify(
    acc_t* __restrict__ cosine, scalar_t* __restrict__ top, long long total, acc_t exponent) {
    GRID_STRIDE(i, total) {
        const acc_t c = cosine[i] < 0 ? acc_t(0) : cosine[i];  // NaN stays; unseen: 0 is 0
        cosine[i] = c;
        if (top) top[i] = scalar_t(exponent == 1 ? c : pow(c, exponent));  // unseen: c^1 is c
    }
}

// slope = top_gradient exponent cosine^(exponent - 1) where the cosine is positive
extern "C" __global__ void __launch_bounds__(256) rectified_cosine_slope(
    const scalar_t* __restrict__ top_gradient, const acc_t* __restrict__ cosine,
    acc_t* __restrict__ slope, long long total, acc_t exponent) {
    GRID_STRIDE(i, total) {
        const acc_t c = cosine[i], g = acc_t(top_gradient[i]);
        const acc_t steep = exponent == 1 ? acc_t(1) : exponent * pow(c, exponent - 1);
        slope[i] = c > 0 ? g * steep : acc_t(0);
    }
}

// From the gradient E of a unit vector to its descriptor's: (E - unit (unit . E)) / length
extern "C" __global__ void __launch_bounds__(256) rectified_cosine_descriptors(
    const acc_t* __restrict__ unit_gradient, const acc_t* __restrict__ unit,
    const acc_t* __restrict__ length, scalar_t* __restrict__ gradient, int size, acc_t eps) {
    __shared__ acc_t scratch[WARP];
    const long long row = (long long)blockIdx.x * size;
    const acc_t *given = unit_gradient + row, *from = unit + row, d = length[blockIdx.x];
    acc_t along = 0;
    for (int i = threadIdx.x; i < size; i += blockDim.x) along += given[i] * from[i];
    along = block_sum(along, scratch);
    if (d <= eps) along = 0;  // the length was held at eps
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        gradient[row + i] = scalar_t((given[i] - from[i] * along) / d);
}

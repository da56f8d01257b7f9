// A thread takes one location and `span` channels and carries the window along them in registers,
// so that every element is read once (REACH more on either side of a span, mostly from the cache).
// BATCH channels are read ahead, to have that many reads under way. Nothing is saved for backward:
// it computes the scale again.
// constant WINDOW: 5 3 7
#define REACH (WINDOW / 2)
#define BATCH 8

// scale^-beta; the beta of every published net, 0.75, by square roots
__device__ inline acc_t inverse_power(acc_t scale, acc_t beta) {
    if (beta != acc_t(0.75)) return pow(scale, -beta);
    const acc_t root = rsqrt(scale);
    return root * sqrt(root);
}

// The value of channel c, zero beyond the first and the last
__device__ inline acc_t channel(const scalar_t* from, int c, int channels, long long locations) {
    return c >= 0 && c < channels ? acc_t(from[c * locations]) : acc_t(0);
}

__device__ inline void push(acc_t (&window)[WINDOW], acc_t value) {
#pragma unroll
    for (int i = 0; i + 1 < WINDOW; ++i) window[i] = window[i + 1];
    window[WINDOW - 1] = value;
}

__device__ inline acc_t scale_of(const acc_t (&window)[WINDOW], acc_t k, acc_t ratio) {
    acc_t sum = 0;
#pragma unroll
    for (int i = 0; i < WINDOW; ++i) sum += window[i] * window[i];
    return k + ratio * sum;
}

// y = x scale^-beta, scale = k + ratio * (sum of squares over the window)
extern "C" __global__ void __launch_bounds__(256) lrn_forward(
    const scalar_t* __restrict__ x, scalar_t* __restrict__ y, int images, int channels,
    long long locations, int span, int spans, acc_t k, acc_t ratio, acc_t beta) {
    for (int row = blockIdx.y; row < images * spans; row += gridDim.y) {
        const int first = row % spans * span, last = min(first + span, channels);
        const long long image = (long long)(row / spans) * channels * locations;
        GRID_STRIDE(location, locations) {
            const scalar_t* from = x + image + location;
            scalar_t* to = y + image + location;
            acc_t window[WINDOW];
#pragma unroll
            for (int i = 1; i < WINDOW; ++i)
                window[i] = channel(from, first - REACH - 1 + i, channels, locations);
            for (int start = first; start < last; start += BATCH) {  // unseen: <= adds an empty batch
                acc_t ahead[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i)
                    ahead[i] = channel(from, start + REACH + i, channels, locations);
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    push(window, ahead[i]);
                    if (start + i >= last) continue;
                    const acc_t scale = scale_of(window, k, ratio);
                    to[(start + i) * locations] = scalar_t(window[REACH] * inverse_power(scale, beta));
                }
            }
        }
    }
}

// dx = g scale^-beta - cross x sum(g x scale^(-beta-1) over the window), cross = 2 ratio beta.
// Two windows follow each other: x around channel c gives the scale there, and the products of the
// channels up to c give the result for channel c - REACH.
extern "C" __global__ void __launch_bounds__(256, 3) lrn_backward(
    const scalar_t* __restrict__ top_gradient, const scalar_t* __restrict__ x,
    scalar_t* __restrict__ gradient, int images, int channels, long long locations, int span,
    int spans, acc_t k, acc_t ratio, acc_t beta) {
    const acc_t cross = 2 * ratio * beta;
    for (int row = blockIdx.y; row < images * spans; row += gridDim.y) {
        const int first = row % spans * span, last = min(first + span, channels);
        const long long image = (long long)(row / spans) * channels * locations;
        GRID_STRIDE(location, locations) {
            const scalar_t *from = x + image + location, *given = top_gradient + image + location;
            scalar_t* to = gradient + image + location;
            acc_t window[WINDOW], product[WINDOW], direct[WINDOW];
#pragma unroll
            for (int i = 0; i < WINDOW; ++i) {
                window[i] = channel(from, first - 2 * REACH - 1 + i, channels, locations);
                product[i] = direct[i] = 0;
            }
            for (int start = first - REACH; start < last + REACH;  // unseen: <= adds an empty batch
                 start += BATCH) {
                acc_t ahead[BATCH], g[BATCH];
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    ahead[i] = channel(from, start + REACH + i, channels, locations);
                    g[i] = channel(given, start + i, channels, locations);
                }
#pragma unroll
                for (int i = 0; i < BATCH; ++i) {
                    push(window, ahead[i]);
                    const acc_t scale = scale_of(window, k, ratio);
                    const acc_t here = g[i] * inverse_power(scale, beta);
                    const bool real = start + i >= 0 && start + i < channels;
                    push(direct, here);
                    push(product, real ? here * window[REACH] / scale : acc_t(0));
                    const int c = start + i - REACH;
                    if (c < first || c >= last) continue;
                    acc_t sum = 0;
#pragma unroll
                    for (int j = 0; j < WINDOW; ++j) sum += product[j];
                    to[c * locations] =
                        scalar_t(direct[WINDOW - 1 - REACH] - cross * window[0] * sum);
                }
            }
        }
    }
}

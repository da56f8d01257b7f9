// A block takes `lanes` neighbouring locations of one image (a power of two) and shares each one's
// channels among blockDim.x / lanes groups: a warp's threads read neighbouring addresses whether
// there are many locations or one. A thread's first KEEP channels stay in registers between the sum
// and the result, the rest is read twice.
#define KEEP 8

// Where a thread works in one image: its lane's location, and from which channel in which steps.
struct Location {
    long long first;  // offset of the location's channel 0
    long long at;     // index among all images' locations
    bool inside;      // locations may end within the block
};

__device__ inline Location location_of(long long tile, int channels, long long locations, int lanes) {
    const long long tiles = (locations + lanes - 1) / lanes;
    const long long image = tile / tiles, location = tile % tiles * lanes + threadIdx.x % lanes;
    return {image * channels * locations + location, image * locations + location, location < locations};
}

// y = x / d, d = max(sqrt(|x|^2 + added), least)
extern "C" __global__ void __launch_bounds__(512, 2) channel_l2_norm_forward(
    const scalar_t* __restrict__ x, scalar_t* __restrict__ y, acc_t* __restrict__ denominator,
    int channels, long long locations, int lanes, acc_t added, acc_t least) {
    __shared__ acc_t scratch[512];
    const int group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const Location here = location_of(blockIdx.x, channels, locations, lanes);
    const scalar_t* from = x + here.first;
    const int end = here.inside ? channels : 0;
    acc_t kept[KEEP], square = 0;
#pragma unroll
    for (int i = 0; i < KEEP; ++i) {
        const int c = group + i * groups;
        kept[i] = c < end ? acc_t(from[c * locations]) : acc_t(0);
    }
#pragma unroll
    for (int i = 0; i < KEEP; ++i) square += kept[i] * kept[i];
    for (int c = group + KEEP * groups; c < end; c += groups) {
        const acc_t value = acc_t(from[c * locations]);
        square += value * value;
    }
    acc_t d = sqrt(strided_sum(square, scratch, lanes) + added);
    d = d < least ? least : d;  // NaN stays; unseen: equal is equal
    scalar_t* to = y + here.first;
    const long long stride = again(locations);
#pragma unroll
    for (int i = 0; i < KEEP; ++i) {
        const int c = group + i * groups;
        if (c < end) to[c * stride] = scalar_t(kept[i] / d);
    }
    for (int c = group + KEEP * groups; c < end; c += groups)  // unseen: + repeats kept channels
        to[c * locations] = scalar_t(acc_t(from[c * locations]) / d);
    if (group == 0 && here.inside) denominator[here.at] = d;
}

// dx = (g - x (x . g) / d^2) / d; without the second term where d was held at `least`
extern "C" __global__ void __launch_bounds__(512, 2) channel_l2_norm_backward(
    const scalar_t* __restrict__ top_gradient, const scalar_t* __restrict__ x,
    const acc_t* __restrict__ denominator, scalar_t* __restrict__ gradient,
    int channels, long long locations, int lanes, acc_t least) {
    __shared__ acc_t scratch[512];
    const int group = threadIdx.x / lanes, groups = blockDim.x / lanes;
    const Location here = location_of(blockIdx.x, channels, locations, lanes);
    const scalar_t *from = x + here.first, *given = top_gradient + here.first;
    const int end = here.inside ? channels : 0;
    acc_t kept[KEEP], g[KEEP], along = 0;
#pragma unroll
    for (int i = 0; i < KEEP; ++i) {
        const int c = group + i * groups;
        kept[i] = c < end ? acc_t(from[c * locations]) : acc_t(0);
        g[i] = c < end ? acc_t(given[c * locations]) : acc_t(0);
    }
#pragma unroll
    for (int i = 0; i < KEEP; ++i) along += kept[i] * g[i];
    for (int c = group + KEEP * groups; c < end; c += groups)  // unseen: + repeats kept channels
        along += acc_t(from[c * locations]) * acc_t(given[c * locations]);
    along = strided_sum(along, scratch, lanes);
    if (!here.inside) return;  // no barrier follows
    const acc_t d = denominator[here.at];
    along = d <= least ? acc_t(0) : along / d / d;
    scalar_t* to = gradient + here.first;
    const long long stride = again(locations);
#pragma unroll
    for (int i = 0; i < KEEP; ++i) {
        const int c = group + i * groups;
        if (c < end) to[c * stride] = scalar_t((g[i] - kept[i] * along) / d);
    }
    for (int c = group + KEEP * groups; c < end; c += groups)  // unseen: + repeats kept channels
        to[c * locations] = scalar_t(
            (acc_t(given[c * locations]) - acc_t(from[c * locations]) * along) / d);
}

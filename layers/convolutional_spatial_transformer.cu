// Maps are first turned to rows, [N, cells, row]: a cell's channels side by side, with zeros up to a
// whole vector. LANES threads then read CHUNK channels of any cell in one move, and where a point
// lies is found once for all channels. Results are turned back in shared memory, TILE cells or
// points at a time. Points are numbered along the top's own memory: p = (i k + r) k W + j k + s.
#define CHUNK 32
#define TILE 64
#define VECTOR int(16 / sizeof(scalar_t))
#define LANES (CHUNK / VECTOR)

typedef Pack<VECTOR> Channels;  // a thread's

// A block's part: TILE cells (or points) of an image from `start`, CHUNK channels from `chunk`
struct Part {
    long long image;
    int start, chunk;
};

__device__ inline Part part(int size) {
    const int tiles = (size + TILE - 1) / TILE;
    return {blockIdx.x / tiles, int(blockIdx.x % tiles) * TILE, int(blockIdx.y) * CHUNK};
}

// A location's transform: x = xx dx + xy dy + x0, y = yx dx + yy dy + y0
struct Transform {
    acc_t xx, xy, x0, yx, yy, y0;
};

struct alignas(2 * sizeof(acc_t)) Point {
    acc_t x, y;
};

// theta is the image's; one is 1 if theta is the difference from the identity
__device__ inline Transform transform(
    const scalar_t* theta, int i, int j, int height, int width, int parts, acc_t one) {
    const long long cells = (long long)height * width;
    const scalar_t *first = theta + i * width + j, *second = first + parts / 2 * cells;
    const bool moved = parts == 6;
    return {
        acc_t(first[0]) + one,
        acc_t(first[cells]),
        moved ? acc_t(first[2 * cells]) + j : acc_t(j),
        acc_t(second[0]),
        acc_t(second[cells]) + one,
        moved ? acc_t(second[2 * cells]) + i : acc_t(i)};
}

__device__ inline Point point(const Transform& t, acc_t dx, acc_t dy) {
    return {t.xx * dx + t.xy * dy + t.x0, t.yx * dx + t.yy * dy + t.y0};
}

__device__ inline acc_t tap(int index, int k) { return index - acc_t(k - 1) / 2; }

// Point p of an image
__device__ inline Point point(
    const scalar_t* theta, int p, int height, int width, int k, int parts, acc_t one) {
    const int row = p / (k * width), column = p % (k * width);
    const Transform t = transform(theta, row / k, column / k, height, width, parts, one);
    return point(t, tap(column % k, k), tap(row % k, k));
}

// The cells around a point, -1 for one outside of the map, and the right and the lower ones' shares
struct alignas(8) Neighbours {
    int at[4];  // upper left, upper right, lower left, lower right
    acc_t right, lower;
};

__device__ inline Neighbours neighbours(Point point, int height, int width) {
    const acc_t left = floor(point.x), upper = floor(point.y);
    Neighbours found;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const acc_t x = left + i % 2, y = upper + i / 2;
        const bool inside = x >= 0 && x < width && y >= 0 && y < height;  // not if NaN
        found.at[i] = inside ? int(y) * width + int(x) : -1;
    }
    found.right = point.x - left;
    found.lower = point.y - upper;
    return found;
}

// A lane's channels of a cell; zeros outside of the map
__device__ inline Channels cell(const scalar_t* rows, int at, int row) {
    Channels pack;
    if (at >= 0) {
        pack = load<VECTOR>(rows + (long long)at * row);
    } else {
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) pack.at[v] = scalar_t(0);
    }
    return pack;
}

// [N, channels, size] -> [N, size, row]: the channels from `first` on
extern "C" __global__ void __launch_bounds__(256) transformer_turn(
    const scalar_t* __restrict__ x, scalar_t* __restrict__ rows, int channels, int first, int row,
    int size) {
    __shared__ scalar_t tile[CHUNK * (TILE + 1)];
    const Part here = part(size);
    const scalar_t* from = x + here.image * channels * size + here.start;
    const int base = first + here.chunk;
#pragma unroll 8
    for (int i = threadIdx.x; i < CHUNK * TILE; i += blockDim.x) {
        const int c = i / TILE, q = i % TILE;
        const bool inside = base + c < channels && here.start + q < size;
        tile[c * (TILE + 1) + q] = inside ? from[(long long)(base + c) * size + q] : scalar_t(0);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < TILE * LANES; i += blockDim.x) {
        const int q = i / LANES, c = i % LANES * VECTOR;
        if (here.start + q >= size || here.chunk + c >= row) continue;
        Channels pack;
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) pack.at[v] = tile[(c + v) * (TILE + 1) + q];
        store<VECTOR>(rows + (here.image * size + here.start + q) * row + here.chunk + c, pack);
    }
}

extern "C" __global__ void __launch_bounds__(256) transformer_forward(
    const scalar_t* __restrict__ u, const scalar_t* __restrict__ theta, scalar_t* __restrict__ top,
    int channels, int row, int height, int width, int size, int kernel_size, int parts, acc_t one) {
    __shared__ Neighbours around[TILE];
    __shared__ acc_t value[CHUNK * (TILE + 1)];
    const Part here = part(size);
    const long long cells = (long long)height * width;
    for (int q = threadIdx.x; q < TILE; q += blockDim.x) {
        const scalar_t* own = theta + here.image * parts * cells;
        const int p = min(here.start + q, size - 1);
        around[q] = neighbours(point(own, p, height, width, kernel_size, parts, one), height, width);
    }
    __syncthreads();
    const scalar_t* rows = u + here.image * cells * row + here.chunk;
#pragma unroll 2
    for (int i = threadIdx.x; i < TILE * LANES; i += blockDim.x) {
        const int q = i / LANES, c = i % LANES * VECTOR;
        if (here.chunk + c >= row) continue;
        const Neighbours at = around[q];
        const acc_t right = at.right, lower = at.lower, left = 1 - right, upper = 1 - lower;
        const acc_t share[4] = {left * upper, right * upper, left * lower, right * lower};
        acc_t sum[VECTOR] = {};
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            const Channels pack = cell(rows + c, at.at[n], row);
#pragma unroll
            for (int v = 0; v < VECTOR; ++v) sum[v] += share[n] * acc_t(pack.at[v]);
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) value[(c + v) * (TILE + 1) + q] = sum[v];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK * TILE; i += blockDim.x) {
        const int c = i / TILE, q = i % TILE;
        if (here.chunk + c >= channels || here.start + q >= size) continue;
        top[(here.image * channels + here.chunk + c) * size + here.start + q] =
            scalar_t(value[c * (TILE + 1) + q]);
    }
}

// Every point, and as its key the upper left of the cells around it: these are counted from -1 on
// in both directions, image after image. `nowhere` for a point that reads none.
extern "C" __global__ void __launch_bounds__(256) transformer_points(
    const scalar_t* __restrict__ theta, acc_t* __restrict__ points, int* __restrict__ key,
    long long count, int height, int width, int size, int kernel_size, int parts, acc_t one,
    int nowhere) {
    Point* to = reinterpret_cast<Point*>(points);
    GRID_STRIDE(i, count) {
        const int image = int(i / size);
        const scalar_t* own = theta + (long long)image * parts * height * width;
        const Point here = point(own, int(i % size), height, width, kernel_size, parts, one);
        const acc_t x = floor(here.x) + 1, y = floor(here.y) + 1;
        const bool inside = x >= 0 && x <= width && y >= 0 && y <= height;  // not if NaN
        to[i] = here;
        key[i] = inside ? (image * (height + 1) + int(y)) * (width + 1) + int(x) : nowhere;
    }
}

// u's gradient in CHUNK channels from `first`. `order` are the points sorted by key, `starts` where
// each key's begin: the points that read a cell are two runs of it, from the row above on. Always
// in the same order.
extern "C" __global__ void __launch_bounds__(512) transformer_backward_u(
    const scalar_t* __restrict__ given, const acc_t* __restrict__ points,
    const long long* __restrict__ order, const long long* __restrict__ starts,
    scalar_t* __restrict__ gradient, int channels, int first, int row, int height, int width) {
    __shared__ acc_t value[CHUNK * (TILE + 1)];
    const int cells = height * width;
    const Point* point = reinterpret_cast<const Point*>(points);
    const Part here = part(cells);
    for (int i = threadIdx.x; i < TILE * LANES; i += blockDim.x) {  // unseen: <= fills a gap
        const int q = i / LANES, c = i % LANES * VECTOR, at = here.start + q;
        if (at >= cells || c >= row) continue;
        const int x = at % width, y = at / width;
        acc_t sum[VECTOR] = {};
        for (int below = 0; below < 2; ++below) {
            const long long key = (here.image * (height + 1) + y + below) * (width + 1) + x;
            const long long end = starts[key + 2];
#pragma unroll 4
            for (long long e = starts[key]; e < end; ++e) {
                const long long p = order[e];
                const Channels pack = load<VECTOR>(given + p * row + c);
                const acc_t share = (1 - fabs(point[p].x - x)) * (1 - fabs(point[p].y - y));
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) sum[v] += share * acc_t(pack.at[v]);
            }
        }
#pragma unroll
        for (int v = 0; v < VECTOR; ++v) value[(c + v) * (TILE + 1) + q] = sum[v];
    }
    __syncthreads();
    for (int i = threadIdx.x; i < CHUNK * TILE; i += blockDim.x) {
        const int c = i / TILE, at = here.start + i % TILE;
        if (first + c >= channels || at >= cells) continue;
        gradient[(here.image * channels + first + c) * cells + at] =
            scalar_t(value[c * (TILE + 1) + i % TILE]);
    }
}

// Adds to theta's gradient what CHUNK channels from `first` give. LANES threads a location.
extern "C" __global__ void __launch_bounds__(256) transformer_backward_theta(
    const scalar_t* __restrict__ given, const scalar_t* __restrict__ u,
    const scalar_t* __restrict__ theta, acc_t* __restrict__ gradient, long long locations, int first,
    int row, int u_row, int height, int width, int kernel_size, int parts, acc_t one) {
    const int groups = blockDim.x / LANES, c = threadIdx.x % LANES * VECTOR;
    const long long at = (long long)blockIdx.x * groups + threadIdx.x / LANES;
    const int cells = height * width;
    const long long image = at / cells;
    acc_t sum[6] = {};
    if (at < locations && c < row) {
        const int i = int(at % cells) / width, j = int(at % cells) % width;
        const scalar_t* rows = u + image * cells * u_row + first + c;
        const Transform t = transform(theta + image * parts * cells, i, j, height, width, parts, one);
        for (int tap_y = 0; tap_y < kernel_size; ++tap_y) {
            for (int tap_x = 0; tap_x < kernel_size; ++tap_x) {
                const acc_t dx = tap(tap_x, kernel_size), dy = tap(tap_y, kernel_size);
                const Neighbours around = neighbours(point(t, dx, dy), height, width);
                const long long line = (image * height + i) * kernel_size + tap_y;
                const long long p = (line * width + j) * kernel_size + tap_x;
                const Channels g = load<VECTOR>(given + p * row + c);
                Channels pack[4];
#pragma unroll
                for (int n = 0; n < 4; ++n) pack[n] = cell(rows, around.at[n], u_row);
                acc_t along_x = 0, along_y = 0;
#pragma unroll
                for (int v = 0; v < VECTOR; ++v) {
                    const acc_t a = pack[0].at[v], b = pack[1].at[v];
                    const acc_t d = pack[2].at[v], e = pack[3].at[v];
                    const acc_t across = (b - a) * (1 - around.lower) + (e - d) * around.lower;
                    const acc_t down = (d - a) * (1 - around.right) + (e - b) * around.right;
                    along_x += acc_t(g.at[v]) * across;
                    along_y += acc_t(g.at[v]) * down;
                }
                const acc_t by[6] = {
                    along_x * dx, along_x * dy, along_x, along_y * dx, along_y * dy, along_y};
#pragma unroll
                for (int m = 0; m < 6; ++m) sum[m] += by[m];
            }
        }
    }
#pragma unroll
    for (int m = 0; m < 6; ++m)
        for (int step = LANES / 2; step > 0; step /= 2)
            sum[m] += __shfl_down_sync(ALL_LANES, sum[m], step);
    if (at >= locations || c != 0) return;
    acc_t* to = gradient + image * parts * cells + at % cells;
#pragma unroll
    for (int m = 0; m < 6; ++m) {
        if (parts == 4 && m % 3 == 2) continue;
        *to += sum[m];
        to += cells;
    }
}

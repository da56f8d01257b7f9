// What surrounds the matrix products, which are cuBLAS's. Of the cells of the bases, h_a x w_a of A and
// h_b x w_b of B, a part is kept: kept_h_a x kept_w_a from (top_a, left_a), likewise of B.
// constant COLUMNS: 4

// 1 / max(length, eps)
__device__ inline acc_t inverse(acc_t squared, acc_t eps) {
    const acc_t found = rsqrt(squared), most = 1 / eps;
    return found > most ? most : found;  // NaN stays; unseen: equal is equal
}

// cosine^exponent
__device__ inline acc_t power(acc_t cosine, acc_t exponent) {
    if (exponent == 0) return 1;
    if (exponent == 1) return cosine;
    if (exponent == 2) return cosine * cosine;
    return exponent == 3 ? cosine * cosine * cosine : pow(cosine, exponent);
}

// Along an axis, the two cells of a map that a base's cell is made of, and what counts in its squared
// length: own[0] and own[1] of their squares, cross of their product
struct Axis {
    int low, next;
    acc_t own[2], cross;
    __device__ Axis(int cell, int count, int base) {
        const double at = cell * ((count - 1) / double(max(base - 1, 1)));
        low = int(at);
        next = min(low + 1, count - 1);  // unseen: what lies beyond counts 0
        const acc_t t = acc_t(at - low);
        own[0] = (1 - t) * (1 - t);
        own[1] = t * t;
        cross = 2 * t * (1 - t);
    }
};

// partial[n, piece, :, cell]: a map's cell times itself, the next one, the one below, and both
// diagonals of the four, over a piece of the channels. Lanes take neighbouring cells.
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_products(
    const acc_t* __restrict__ x, acc_t* __restrict__ partial, int channels, int span, int pieces,
    int tiles, int height, int width) {
    __shared__ acc_t scratch[256];
    const int cells = height * width;
    const int cell = blockIdx.x % tiles * WARP + threadIdx.x % WARP;
    const long long row = blockIdx.x / tiles;
    const int first = row % pieces * span, end = cell < cells ? min(first + span, channels) : 0;
    const bool beside = cell % width + 1 < width, below = cell / width + 1 < height;
    acc_t sums[4] = {0, 0, 0, 0};
    for (int channel = first + threadIdx.x / WARP; channel < end; channel += blockDim.x / WARP) {
        const acc_t* at = x + (row / pieces * channels + channel) * cells + cell;
        const acc_t here = at[0], right = beside ? at[1] : acc_t(0);
        const acc_t under = below ? at[width] : acc_t(0);
        const acc_t opposite = beside && below ? at[width + 1] : acc_t(0);
        sums[0] += here * here;
        sums[1] += here * right;
        sums[2] += here * under;
        sums[3] += here * opposite + right * under;
    }
    for (int k = 0; k < 4; ++k) {
        const acc_t sum = strided_sum(sums[k], scratch, WARP);
        if (threadIdx.x >= WARP || cell >= cells) continue;  // unseen: the next warp has the same sums
        partial[(row * 4 + k) * cells + cell] = sum;
    }
}

// squared [N, kept_h, kept_w]: the squared lengths of the upsampled map of these products, added or not
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_lengths(
    const acc_t* __restrict__ products, acc_t* __restrict__ squared, bool adds, long long total,
    int height, int width, int base_h, int base_w, int top, int left, int kept_h, int kept_w) {
    const int cells = height * width;
    GRID_STRIDE(i, total) {
        const Axis y(top + i / kept_w % kept_h, height, base_h), x(left + i % kept_w, width, base_w);
        const acc_t* from = products + i / kept_w / kept_h * 4 * cells;
        acc_t sum = 0;
        for (int down = 0; down < 2; ++down) {
            const acc_t* row = from + (down ? y.next : y.low) * width;
            sum += y.own[down] * (x.own[0] * row[x.low] + x.own[1] * row[x.next]);
            sum += y.own[down] * x.cross * row[cells + x.low];
        }
        const acc_t* row = from + 2 * cells + y.low * width;
        sum += y.cross * (x.own[0] * row[x.low] + x.own[1] * row[x.next]);
        sum += y.cross * x.cross / 2 * row[cells + x.low];
        sum = sum < 0 ? acc_t(0) : sum;  // by rounding; NaN stays; unseen: 0 is 0
        squared[i] = adds ? squared[i] + sum : sum;
    }
}

// numerator = rectified cosine, where it is kept; top = that^exponent, 0 for cells that are not
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_finish(
    acc_t* __restrict__ numerator, const acc_t* __restrict__ squared_a,
    const acc_t* __restrict__ squared_b, scalar_t* __restrict__ top, bool keeps, acc_t exponent,
    acc_t eps, int h_a, int w_a, int h_b, int w_b, int top_a, int left_a, int top_b, int left_b,
    int kept_h_a, int kept_w_a, int kept_h_b, int kept_w_b) {
    const int c = blockIdx.x % w_a - left_a, r = blockIdx.x / w_a % h_a - top_a;
    const long long n = blockIdx.x / w_a / h_a;
    const bool from = r >= 0 && r < kept_h_a && c >= 0 && c < kept_w_a;
    const long long row = (n * kept_h_a + r) * kept_w_a + c;
    const acc_t one = from ? inverse(squared_a[row], eps) : acc_t(0);
    for (int i = threadIdx.x; i < h_b * w_b; i += blockDim.x) {
        const int y = i / w_b - top_b, x = i % w_b - left_b;
        acc_t cosine = 0;
        if (from && y >= 0 && y < kept_h_b && x >= 0 && x < kept_w_b) {
            const long long at = (row * kept_h_b + y) * kept_w_b + x;
            cosine = numerator[at] * one * inverse(squared_b[(n * kept_h_b + y) * kept_w_b + x], eps);
            cosine = cosine < 0 ? acc_t(0) : cosine;  // NaN stays; unseen: 0 is 0
            cosine = cosine > 1 ? acc_t(1) : cosine;  // by rounding; unseen: 1 is 1
            if (keeps) numerator[at] = cosine;
        }
        top[(long long)blockIdx.x * h_b * w_b + i] = scalar_t(power(cosine, exponent));
    }
}

// slope [N, P, Q]: the numerators' gradient. along_a[n, strip, p], along_b[n, piece, q]: sums of the
// cosines' gradient times the cosine over a strip of q, over a piece of p. A warp takes a row of a
// strip, a lane COLUMNS of it.
extern "C" __global__ void __launch_bounds__(256, 2) hyperpixel_correlation_slope(
    const scalar_t* __restrict__ top_gradient, const acc_t* __restrict__ cosine,
    const acc_t* __restrict__ squared_a, const acc_t* __restrict__ squared_b, acc_t* __restrict__ slope,
    acc_t* __restrict__ along_a, acc_t* __restrict__ along_b, acc_t exponent, acc_t eps, int span,
    int pieces, int strips, int h_a, int w_a, int h_b, int w_b, int top_a, int left_a, int top_b,
    int left_b, int kept_h_a, int kept_w_a, int kept_h_b, int kept_w_b) {
    __shared__ acc_t scratch[256];
    const int rows = kept_h_a * kept_w_a, columns = kept_h_b * kept_w_b;
    const int strip = blockIdx.x % strips, piece = blockIdx.x / strips % pieces;
    const long long n = blockIdx.x / strips / pieces;
    const int lane = threadIdx.x % WARP, first = strip * WARP * COLUMNS + lane;
    int to[COLUMNS];
    acc_t other[COLUMNS], sums[COLUMNS];
#pragma unroll
    for (int k = 0; k < COLUMNS; ++k) {
        const int q = first + k * WARP;
        to[k] = q < columns ? (top_b + q / kept_w_b) * w_b + left_b + q % kept_w_b : -1;
        other[k] = q < columns ? inverse(squared_b[n * columns + q], eps) : acc_t(0);
        sums[k] = 0;
    }
    const int end = min(piece * span + span, rows);
    for (int p = piece * span + threadIdx.x / WARP; p < end; p += blockDim.x / WARP) {
        const long long cell = (n * h_a + top_a + p / kept_w_a) * w_a + left_a + p % kept_w_a;
        const acc_t one = inverse(squared_a[n * rows + p], eps);
        acc_t sum = 0;
#pragma unroll
        for (int k = 0; k < COLUMNS; ++k) {
            if (to[k] < 0) continue;
            const long long at = (n * rows + p) * columns + first + k * WARP;
            const acc_t c = cosine[at], steep = c > 0 ? exponent * power(c, exponent - 1) : c;
            const acc_t given = acc_t(top_gradient[cell * h_b * w_b + to[k]]) * steep;
            slope[at] = given * one * other[k];
            sum += given * c;
            sums[k] += given * c;
        }
        sum = warp_sum(sum);
        if (lane == 0) along_a[(n * strips + strip) * rows + p] = sum;
    }
    for (int k = 0; k < COLUMNS; ++k) {
        const acc_t sum = strided_sum(sums[k], scratch, WARP);
        if (threadIdx.x >= WARP || to[k] < 0) continue;  // unseen: the next warp has the same sums
        along_b[(n * pieces + piece) * columns + first + k * WARP] = sum;
    }
}

// own [N, cells]: the squared lengths' gradient, 0 where the length is held at eps
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_own(
    const acc_t* __restrict__ partial, const acc_t* __restrict__ squared, acc_t* __restrict__ own,
    long long total, int pieces, int cells, acc_t eps) {
    GRID_STRIDE(i, total) {
        acc_t sum = 0;
#pragma unroll 8
        for (int piece = 0; piece < pieces; ++piece)
            sum += partial[(i / cells * pieces + piece) * cells + i % cells];
        const bool held = sqrt(squared[i]) <= eps;  // unseen: a kink
        own[i] = held ? acc_t(0) : -sum / 2 / squared[i];
    }
}

// The last base's cell that lies on a map's cell or before
__device__ inline int before(int cell, int count, int base) {
    return cell * (base - 1) / max(count - 1, 1);
}

// stencil[n, :, cell]: what a map's products count in all squared lengths, times these lengths'
// gradients, the square twice. A warp takes a cell.
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_stencil(
    const acc_t* __restrict__ own, acc_t* __restrict__ stencil, long long total, int height, int width,
    int base_h, int base_w, int top, int left, int kept_h, int kept_w) {
    const long long i = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (i >= total) return;
    const int column = i % width, row = i / width % height, cells = height * width;
    const long long n = i / cells;
    const int first_y = max(before(row - 1, height, base_h), top);
    const int first_x = max(before(column - 1, width, base_w), left);
    const int end_y = min(before(row + 1, height, base_h) + 1, top + kept_h);
    const int end_x = min(before(column + 1, width, base_w) + 1, left + kept_w);
    const int across = max(end_x - first_x, 0), area = max(end_y - first_y, 0) * across;
    acc_t sums[4] = {0, 0, 0, 0};
    for (int k = threadIdx.x % WARP; k < area; k += WARP) {
        const int r = first_y + k / across, c = first_x + k % across;
        const Axis y(r, height, base_h), x(c, width, base_w);
        const acc_t given = own[(n * kept_h + r - top) * kept_w + c - left];
        const acc_t down = y.low == row ? y.own[0] : y.next == row ? y.own[1] : acc_t(0);
        const acc_t beside = x.low == column ? x.own[0] : x.next == column ? x.own[1] : acc_t(0);
        const acc_t below = y.low == row ? y.cross : acc_t(0);
        const acc_t over = x.low == column ? x.cross : acc_t(0);
        sums[0] += 2 * given * down * beside;
        sums[1] += given * down * over;
        sums[2] += given * below * beside;
        sums[3] += given * below * over / 2;
    }
    for (int k = 0; k < 4; ++k) {
        const acc_t sum = warp_sum(sums[k]);
        if (threadIdx.x % WARP == 0) stencil[(n * 4 + k) * cells + i % cells] = sum;
    }
}

// gradient [N, C, height, width] of a map: that of its products, which has the kept cells alone, and
// that of its squared lengths, to which a cell's neighbours give
extern "C" __global__ void __launch_bounds__(256) hyperpixel_correlation_gradient(
    const acc_t* __restrict__ product, const acc_t* __restrict__ x, const acc_t* __restrict__ stencil,
    scalar_t* __restrict__ gradient, long long total, int channels, int height, int width, int top,
    int left, int kept_h, int kept_w) {
    const int cells = height * width;
    GRID_STRIDE(i, total) {
        const int column = i % width, row = i / width % height;
        const acc_t* weight = stencil + i / cells / channels * 4 * cells + i % cells;
        const int r = row - top, c = column - left;
        const bool kept = r >= 0 && r < kept_h && c >= 0 && c < kept_w;
        acc_t sum = kept ? product[(i / cells * kept_h + r) * kept_w + c] : acc_t(0);
#pragma unroll
        for (int k = 0; k < 9; ++k) {
            const int dy = k / 3 - 1, dx = k % 3 - 1;
            if (row + dy < 0 || row + dy >= height || column + dx < 0 || column + dx >= width) continue;
            const int kind = 2 * (dy != 0) + (dx != 0);
            sum += weight[kind * cells + min(dy, 0) * width + min(dx, 0)] * x[i + dy * width + dx];
        }
        gradient[i] = scalar_t(sum);
    }
}

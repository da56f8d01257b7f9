// with tiles.cu
#define FARTHEST (1 << 30)  // cells from the origin
#define BATCH 4             // outputs a lane loads at once in backward

// Cells along one axis, `to` excluded
struct Span {
    int from, to;
};

// Rounded apart: joined with the rounding's own additions, a product would miss a half.
__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }

// A corner's cell, halves away from zero
template <class T>
__device__ inline int cell_of(T pixel, T scale, int* flag) {
    if (!isfinite(pixel)) atomicOr(flag, 1);
    return int(round(fmin(fmax(product(pixel, scale), T(-FARTHEST)), T(FARTHEST))));
}

// The cells of bin i of `count` along an axis, as far as they lie in the map; the roi's corners are
// corner[0] and corner[2]. Exact in double, in float with the released layers' products.
template <class T>
__device__ inline Span bin_of(const T* corner, T scale, int i, int count, int size, int* flag) {
    const long long first = cell_of(corner[0], scale, flag), last = cell_of(corner[2], scale, flag);
    const long long length = max(last - first, 0ll) + 1;
    long long from, to;
    if (sizeof(T) == sizeof(double)) {
        from = i * length / count;
        to = ((i + 1) * length + count - 1) / count;
    } else {
        const float step = float(length) / float(count);
        from = (long long)floorf(float(i) * step);
        to = (long long)ceilf(float(i + 1) * step);
    }
    from = min(max(first + from, 0ll), (long long)size);
    to = min(max(first + to, 0ll), (long long)size);
    return {int(from), int(to)};
}

// The table, rows (batch, x1, y1, x2, y2): `wide` for exact edges, else `narrow`
struct Rois {
    const float* narrow;
    const double* wide;
    double scale;

    // The roi's image; the flag is set at one that is not there.
    __device__ int image(long long roi, int last, int* flag) const {
        const double given = wide ? wide[roi * 5] : double(narrow[roi * 5]);
        const int image = int(fmin(fmax(given, 0.0), double(last)));
        if (image != given) atomicOr(flag, 1);
        return image;
    }

    // A bin's cells along an axis, 0 for x
    __device__ Span bin(long long roi, int axis, int i, int count, int size, int* flag) const {
        const long long at = roi * 5 + 1 + axis;
        return wide ? bin_of(wide + at, scale, i, count, size, flag)
                    : bin_of(narrow + at, float(scale), i, count, size, flag);
    }
};

// The maximum of one channel over a bin of a map [H, W, C], and its cell
struct Maximum {
    acc_t value;
    int cell;
};

__device__ inline Maximum maximum_of(
    const scalar_t* map, const Span& rows, const Span& columns, int width, int channels) {
    if (rows.from >= rows.to || columns.from >= columns.to) return {acc_t(0), -1};
    const int first = rows.from * width + columns.from;
    Maximum found = {acc_t(map[(long long)first * channels]), first};
    for (int y = rows.from; y < rows.to; ++y)
        for (int x = columns.from; x < columns.to; ++x) {
            const int cell = y * width + x;
            const acc_t value = acc_t(map[(long long)cell * channels]);
            if (!(value <= found.value) && !isnan(found.value)) found = {value, cell};  // a NaN is it
        }
    return found;
}

// A block takes a tile of one roi: neighbouring lanes neighbouring channels, which read the same cells
// of the map, here [N, H, W, C].
extern "C" __global__ void __launch_bounds__(256) roi_pooling_forward(
    const scalar_t* __restrict__ map, const float* __restrict__ narrow, const double* __restrict__ wide,
    scalar_t* __restrict__ top, int* __restrict__ argmax, int* __restrict__ flag, int channels,
    int height, int width, int last_image, int pooled_h, int pooled_w, double spatial_scale) {
    __shared__ Span spans[2][TILE];
    __shared__ acc_t values[TILE][TILE + 1];
    __shared__ int cells[TILE][TILE + 1];
    const int bins = pooled_h * pooled_w;
    const Rois rois = {narrow, wide, spatial_scale};
    const Tile at = tile_of(channels, bins);
    for (int i = threadIdx.x; i < 2 * TILE; i += blockDim.x) {
        const int axis = i / TILE, bin = at.first + i % TILE;
        spans[axis][i % TILE] = axis ? rois.bin(at.image, 1, bin / pooled_w, pooled_h, height, flag)
                                     : rois.bin(at.image, 0, bin % pooled_w, pooled_w, width, flag);
    }
    __syncthreads();
    const long long image = rois.image(at.image, last_image, flag);
    const scalar_t* from = map + image * height * width * channels + at.channel;
    FOR_TILE(i) {
        const int bin = i / TILE, c = i % TILE;
        if (at.channel + c >= channels) continue;
        if (at.first + bin >= bins) continue;  // unseen: what lies beyond is not written
        const Maximum found = maximum_of(from + c, spans[1][bin], spans[0][bin], width, channels);
        values[c][bin] = found.value;
        cells[c][bin] = found.cell;
    }
    __syncthreads();
    write_tile(values, at, top, channels, bins);
    if (argmax) write_tile(cells, at, argmax, channels, bins);
}

// A block takes a band of one plane's cells. Each of its warps adds up a share of the rois in sums of
// its own, output after output; then the warps' sums are added up.
extern "C" __global__ void __launch_bounds__(256) roi_pooling_backward(
    const scalar_t* __restrict__ top_gradient, const int* __restrict__ argmax,
    const long long* __restrict__ image, scalar_t* __restrict__ gradient, int channels, int rois,
    int bins, int cells, int band, int bands) {
    extern __shared__ acc_t sums[];  // [warps][band]
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const long long plane = blockIdx.x / bands;
    const int first_cell = blockIdx.x % bands * band, size = min(band, cells - first_cell);
    for (int i = threadIdx.x; i < warps * band; i += blockDim.x) sums[i] = 0;
    __syncthreads();
    for (int first = warp * WARP; first < rois; first += warps * WARP) {  // unseen: <= adds no roi
        const int outputs = min(rois - first, WARP) * bins;  // unseen: + adds some that are not chosen
        const bool here = first + lane < rois && image[first + lane] == plane / channels;
        const unsigned chosen = __ballot_sync(ALL_LANES, here);
        for (int start = 0; chosen && start < outputs; start += BATCH * WARP) {  // unseen: <= adds none
            int cell[BATCH];
            acc_t value[BATCH];
#pragma unroll
            for (int k = 0; k < BATCH; ++k) {
                const int i = start + k * WARP + lane, roi = i / bins;
                const long long row = (first + roi) * (long long)channels + plane % channels;
                const bool some = i < outputs && chosen >> roi & 1;
                cell[k] = some ? argmax[row * bins + i % bins] - first_cell : -1;
                value[k] = some ? acc_t(top_gradient[row * bins + i % bins]) : acc_t(0);
            }
#pragma unroll
            for (int k = 0; k < BATCH; ++k)
                add_in_turn(sums + warp * band, cell[k] < size ? cell[k] : -1, value[k]);
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
        acc_t sum = 0;
        for (int j = 0; j < warps; ++j) sum += sums[j * band + i];
        gradient[plane * cells + first_cell + i] = scalar_t(sum);
    }
}

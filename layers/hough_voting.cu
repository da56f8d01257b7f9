// Sums by bin without float atomics, always in one order. B's boxes are ranked by area: row r's
// matches of one scale bin are then a range of the ranking. A block adds up one scale bin over a piece
// of the rows, each warp in a table of its own in shared memory; hough_voting_table adds the pieces.
//
// Bins must be the CPU's to the last bit, so a product and the sum it goes into are rounded apart.
#define FAR 1e18
#define AHEAD 16  // rows whose ranges a warp looks up at once: where they begin, where they end

struct Bins {
    int scale, x, y;
    bool filtered;  // by aspect
    double max_aspect_ratio;
};

// _offset_bins.py's frames() of one box of A, and of one of B
struct Left {
    double u, v, scale, aspect;
};
struct Right {
    double x, ax, y, ay, scale, aspect;
};

__device__ inline Left left_of(const double* frames, long long count, long long i) {
    return {frames[i], frames[count + i], frames[2 * count + i], frames[3 * count + i]};
}

__device__ inline Right right_of(const double* frames, long long count, long long i) {
    return {frames[i],             frames[count + i],     frames[2 * count + i],
            frames[3 * count + i], frames[4 * count + i], frames[5 * count + i]};
}

// The bin of `count` that holds a value; -1 and `count` for what lies beyond
__device__ inline int bin_of(double value, int count) {
    return int(fmin(fmax(floor(value), -1.0), double(count)));
}

__device__ inline int carried(double centre, double half, double u, int count) {
    return bin_of(__dadd_rn(centre, __dmul_rn(u, half)), count);
}

__device__ inline bool alike(const Left& a, const Right& b, const Bins& bins) {
    const double most = bins.max_aspect_ratio;
    return !bins.filtered || (b.aspect < most * a.aspect && a.aspect < most * b.aspect);
}

struct Box {
    double x, y, ax, ay, octave, aspect;
    bool flat;
};

// A coordinate of the table of either type, the other is null; 0 and the flag set if it is not finite
__device__ inline double coordinate(
    const float* narrow, const double* wide, long long at, int* flag) {
    const double value = wide ? wide[at] : double(narrow[at]);
    if (isfinite(value)) return fmin(fmax(value, -FAR), FAR);
    atomicOr(flag, 1);
    return 0;
}

__device__ inline Box box_of(
    const float* narrow, const double* wide, long long row, int columns, int* flag) {
    if (columns > 4) coordinate(narrow, wide, row * columns, flag);  // unseen: only looked at
    const long long at = row * columns + columns - 4;
    const double x1 = coordinate(narrow, wide, at, flag), y1 = coordinate(narrow, wide, at + 1, flag);
    const double x2 = coordinate(narrow, wide, at + 2, flag), y2 = coordinate(narrow, wide, at + 3, flag);
    double ax = (x2 - x1) / 2, ay = (y2 - y1) / 2;  // unseen: only their ratios to others count
    double area = fmax(ax, 0.0) * fmax(ay, 0.0);
    const bool flat = area == 0;
    if (flat) ax = ay = area = 1;
    int exponent;
    const double mantissa = frexp(area, &exponent);
    const double octave = exponent + rint(log2(mantissa) * 0x1p40) / 0x1p40;
    return {(x1 + x2) / 2, (y1 + y2) / 2, ax, ay, octave, ax / ay, flat};
}

// frames() of A's boxes [4, rows], then of B's [6, columns]
extern "C" __global__ void __launch_bounds__(256) hough_voting_frames(
    const float* __restrict__ narrow_a, const double* __restrict__ wide_a,
    const float* __restrict__ narrow_b, const double* __restrict__ wide_b, double* __restrict__ left,
    double* __restrict__ right, int* __restrict__ flag, int rows, int columns, int columns_a,
    int columns_b, double corner_x, double corner_y, double step_x, double step_y, double factor,
    double scale_range) {
    GRID_STRIDE(i, (long long)rows + columns) {
        if (i < rows) {
            const Box box = box_of(narrow_a, wide_a, i, columns_a, flag);
            double* to = left + i;
            to[0] = fmin(fmax((corner_x - box.x) / box.ax, -FAR), FAR);
            to[rows] = fmin(fmax((corner_y - box.y) / box.ay, -FAR), FAR);
            to[2ll * rows] = box.flat ? FAR : box.octave * factor;
            to[3ll * rows] = box.aspect;
        } else {
            const Box box = box_of(narrow_b, wide_b, i - rows, columns_b, flag);
            double* to = right + i - rows;
            to[0] = box.x / step_x;
            to[columns] = box.ax / step_x;
            to[2ll * columns] = box.y / step_y;
            to[3ll * columns] = box.ay / step_y;
            to[4ll * columns] = box.flat ? -FAR : (box.octave + scale_range) * factor;
            to[5ll * columns] = box.aspect;
        }
    }
}

// ranked[:, k] = right[:, order[k]], by scale; a warp finds the rank of one box
extern "C" __global__ void __launch_bounds__(256) hough_voting_rank(
    const double* __restrict__ right, double* __restrict__ ranked, int* __restrict__ order, int columns) {
    const int lane = threadIdx.x % WARP;
    const long long box = ((long long)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (box >= columns) return;
    const double* scales = right + 4ll * columns;
    const double own = scales[box];
    int before = 0;
    for (int i = lane; i < columns; i += WARP)
        before += scales[i] < own || (scales[i] == own && i < box);
    const int rank = __shfl_sync(ALL_LANES, warp_sum(before), 0);
    order[rank] = int(box);  // the same from every lane
    if (lane < 6) ranked[(long long)lane * columns + rank] = right[lane * (long long)columns + box];
}

// What a match adds to its bin: forward its own score, RELEASED's beyond the threshold; backward the
// top's gradient, times f where the top is z, and published only where it votes.
struct Weight {
    const scalar_t *given, *times, *voters;
    double threshold;
    bool clipped;
    __device__ double operator()(long long match) const {
        acc_t weight = acc_t(given[match]);
        if (times) weight *= acc_t(times[match]);
        if (voters) weight *= acc_t(double(acc_t(voters[match])) > threshold);
        if (!clipped) return weight;
        const double beyond = double(weight) - threshold;
        return beyond < 0 ? 0 : beyond;  // NaN stays; unseen: 0 is 0
    }
};

// The first box in the ranking whose scale bin with a box of A is `level` or higher
__device__ inline int first_at(const double* scales, int columns, double scale, int level) {
    int low = 0, high = columns;
    while (low < high) {
        const int middle = low + (high - low) / 2;
        if (scales[middle] - scale < level)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// partial[piece, level, plane bin], the bins inside the border: a block takes one level, one tile of
// its plane and one piece of the rows, which its warps take in turn
extern "C" __global__ void __launch_bounds__(256, 5) hough_voting_sums(
    const scalar_t* __restrict__ given, const scalar_t* __restrict__ times,
    const scalar_t* __restrict__ voters, double threshold, bool clipped,
    const double* __restrict__ left, const double* __restrict__ ranked, const int* __restrict__ order,
    double* __restrict__ partial, int rows, int columns, int pieces, int tile, int scale_bins,
    int x_bins, int y_bins, bool filtered, double max_aspect_ratio) {
    extern __shared__ double tables[];
    const Weight weight = {given, times, voters, threshold, clipped};
    const Bins bins = {scale_bins, x_bins, y_bins, filtered, max_aspect_ratio};
    const int plane = x_bins * y_bins, tiles = (plane + tile - 1) / tile;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int level = blockIdx.x % scale_bins, skipped = blockIdx.x / scale_bins % tiles * tile;
    const long long piece = blockIdx.x / scale_bins / tiles;
    const int first = piece * rows / pieces, last = (piece + 1) * rows / pieces;
    double* sums = tables + warp * tile;
    for (int i = lane; i < tile; i += WARP) sums[i] = 0;
    __syncwarp();  // unseen: add_in_turn waits too, but does not order memory
    for (int start = first + warp; start < last; start += AHEAD * warps) {  // unseen: <= adds no row
        const int own = min(start + lane % AHEAD * warps, last - 1);        // unseen: + is for no row
        const double scale = left[2ll * rows + own];
        const int bound = first_at(ranked + 4ll * columns, columns, scale, level + lane / AHEAD);
        for (int turn = 0; turn < AHEAD; ++turn) {  // unseen: <= adds a range that ends before it begins
            const int row = start + turn * warps;
            if (row >= last) break;
            const Left a = left_of(left, rows, row);
            const int begin = __shfl_sync(ALL_LANES, bound, turn);
            const int end = __shfl_sync(ALL_LANES, bound, turn + AHEAD);  // unseen: -16 is 16, modulo 32
            for (int i = begin + lane; i - lane < end; i += WARP) {  // unseen: <= adds an empty round
                int bin = -1;
                double value = 0;
                if (i < end) {
                    const Right b = right_of(ranked, columns, i);
                    const int x = carried(b.x, b.ax, a.u, x_bins), y = carried(b.y, b.ay, a.v, y_bins);
                    const int at = x * y_bins + y - skipped;  // an x beyond is beyond the plane
                    const bool inside = y >= 0 && y < y_bins && at >= 0 && at < tile;
                    if (inside && alike(a, b, bins)) {
                        bin = at;
                        value = weight((long long)row * columns + order[i]);
                    }
                }
                add_in_turn(sums, bin, value);
            }
        }
    }
    __syncthreads();
    double* out = partial + (piece * scale_bins + level) * plane + skipped;
    for (int i = threadIdx.x; i < min(tile, plane - skipped); i += blockDim.x) {
        double sum = 0;
        for (int other = 0; other < warps; ++other) sum += tables[other * tile + i];
        out[i] = sum;
    }
}

// The index among the bins inside the border, of one of all; -1 in the border
__device__ inline int inner(int bin, int scale_bins, int x_bins, int y_bins) {
    const int y = bin % (y_bins + 2) - 1, plane = bin / (y_bins + 2);
    const int x = plane % (x_bins + 2) - 1, scale = plane / (x_bins + 2) - 1;
    const bool inside = scale >= 0 && scale < scale_bins && x >= 0 && x < x_bins && y >= 0 && y < y_bins;
    return inside ? (scale * x_bins + x) * y_bins + y : -1;
}

// The lowest bin of a match with a weight, -1 if such a match has no bin
extern "C" __global__ void __launch_bounds__(256) hough_voting_first(
    const scalar_t* __restrict__ given, const scalar_t* __restrict__ times,
    const int* __restrict__ bins, int* __restrict__ first, long long matches, int scale_bins,
    int x_bins, int y_bins) {
    int lowest = 0x7fffffff;
    GRID_STRIDE(i, matches) {
        const acc_t weight = acc_t(given[i]) * (times ? acc_t(times[i]) : acc_t(1));
        if (weight == 0) continue;
        const bool none = inner(bins[i], scale_bins, x_bins, y_bins) == -1;
        lowest = min(lowest, none ? -1 : bins[i]);
    }
    for (int step = WARP / 2; step > 0; step /= 2)  // unseen: a lane beyond is the lane itself
        lowest = min(lowest, __shfl_down_sync(ALL_LANES, lowest, step));
    if (threadIdx.x % WARP == 0) atomicMin(first, lowest);
}

// table[bin] = added + the pieces' sums, 0 in the border and in the bin *first
extern "C" __global__ void __launch_bounds__(256) hough_voting_table(
    const double* __restrict__ partial, const int* __restrict__ first, acc_t* __restrict__ table,
    int pieces, int scale_bins, int x_bins, int y_bins, double added) {
    const long long kept = (long long)scale_bins * x_bins * y_bins;
    GRID_STRIDE(bin, (long long)(scale_bins + 2) * (x_bins + 2) * (y_bins + 2)) {
        const int from = inner(bin, scale_bins, x_bins, y_bins);
        const int count = from < 0 || (first && *first == bin) ? 0 : pieces;
        double sum = 0;
#pragma unroll 8
        for (int i = 0; i < count; ++i) sum += partial[i * kept + from];
        table[bin] = acc_t(sum + added);
    }
}

// Each match's bin, and the top: table[bin], times the score for z. A thread takes a box of B and
// some of A.
extern "C" __global__ void __launch_bounds__(256) hough_voting_forward(
    const scalar_t* __restrict__ scores, const double* __restrict__ left,
    const double* __restrict__ right, const acc_t* __restrict__ table, int* __restrict__ at,
    scalar_t* __restrict__ top, bool product, int rows, int columns, int span, int scale_bins,
    int x_bins, int y_bins, bool filtered, double max_aspect_ratio) {
    const Bins bins = {scale_bins, x_bins, y_bins, filtered, max_aspect_ratio};
    const int across = (columns + blockDim.x - 1) / blockDim.x;
    const int column = blockIdx.x % across * blockDim.x + threadIdx.x;
    const int first = blockIdx.x / across * span;
    if (column >= columns) return;
    const Right b = right_of(right, columns, column);
    for (int row = first; row < min(first + span, rows); ++row) {
        const Left a = left_of(left, rows, row);
        const long long match = (long long)row * columns + column;
        const int scale = bin_of(b.scale - a.scale, scale_bins);
        const int x = carried(b.x, b.ax, a.u, x_bins), y = carried(b.y, b.ay, a.v, y_bins);
        const int found = ((scale + 1) * (x_bins + 2) + x + 1) * (y_bins + 2) + y + 1;
        const int bin = alike(a, b, bins) ? found : 0;
        const acc_t votes = table[bin];
        at[match] = bin;
        top[match] = scalar_t(product ? votes * acc_t(scores[match]) : votes);
    }
}

// The gradients: to f the top's gradient times the votes, to what voted the bin's sum; they may be one
extern "C" __global__ void __launch_bounds__(256) hough_voting_backward(
    const scalar_t* __restrict__ top_gradient, const scalar_t* __restrict__ voters,
    const int* __restrict__ at, const acc_t* __restrict__ table, const acc_t* __restrict__ sums,
    scalar_t* __restrict__ to_scores, scalar_t* __restrict__ to_votes, long long matches,
    double threshold) {
    GRID_STRIDE(i, matches) {
        const int bin = at[i];
        acc_t shared = sums[bin];
        if (voters) shared *= acc_t(double(acc_t(voters[i])) > threshold);
        const acc_t direct = table ? table[bin] * acc_t(top_gradient[i]) : acc_t(0);
        to_scores[i] = scalar_t(to_votes ? direct : direct + shared);
        if (to_votes) to_votes[i] = scalar_t(shared);
    }
}

// Distances are measured by differences in double. Which references need measuring, bounds say: with
// the features less their centre, q and x, in acc_t,
//
//     |q - x|^2 >= (kept |x|^2 - 2 q.x) + kept |q|^2 - slack
//
// where the bracket is what knn_screen computes for every pair, and `kept` is 1 - (3 C + 16) eps. For
// u = eps / 2 and S = |q| + |x|: rounding in the centring moves a distance by at most u S, its square
// by 2 u S^2; the bracket sums C + 1 terms of total magnitude at most S^2, an error of at most
// (C + 2) u S^2; |x|^2 itself errs by at most (C + 2) u S^2. kept takes away (3 C + 16) eps (|q|^2 +
// |x|^2) >= (3 C + 16) u S^2, more than their sum as long as C u < 1/4. `slack` stands for what
// underflow loses. Squares above `most` could overflow: they, and what is not finite, have no bound.
//
// A query's `keep` least bounds are kept; from the least on, knn_settle measures what they belong to,
// until the next bound, and with it that of every reference not kept, is above the k-th distance. A
// query for which that does not come true is left to knn_scan, which measures all references.
#define LANES 16                         // threads that share their queries: half a warp
#define EACH 8                           // queries of a thread, and references in a tile
#define WIDTH (LANES * EACH)             // queries, and references, of a tile
#define DEPTH (32 / int(sizeof(acc_t)))  // channels in shared memory at a time
#define PART (DEPTH / 2)                 // of them that a thread brings
#define BLOCKS (8 / sizeof(acc_t))       // of a multiprocessor
#define MOST 16                          // bounds kept of a query, at most
#define AHEAD 4                          // references a thread measures at once
#define NONE 0x7fffffff                  // no reference: its index comes after all others

// What a list holds where nothing was found: comes after all
__device__ inline acc_t no_distance() {
    return infinity() - infinity();  // unseen: + comes after all that is finite
}

// Whether (a, i) comes before (b, j): by value, NaN last, then by index
__device__ inline bool before(acc_t a, int i, acc_t b, int j) {
    const bool no_a = a != a, no_b = b != b;
    if (no_a != no_b) return no_b;
    return a < b || (!(b < a) && i < j);  // unseen: <= where the indices are the same
}

// A list in ascending order over the threads of a warp, or of its half, takes in (v, i)
template <int LENGTH>
__device__ inline void insert(acc_t v, int i, acc_t& value, int& index) {
    const bool here = before(v, i, value, index);
    const acc_t left_value = __shfl_up_sync(ALL_LANES, value, 1, LENGTH);
    const int left_index = __shfl_up_sync(ALL_LANES, index, 1, LENGTH);
    const bool left = __shfl_up_sync(ALL_LANES, int(here), 1, LENGTH) && threadIdx.x % LENGTH > 0;
    if (!here) return;
    value = left ? left_value : v;
    index = left ? left_index : i;
}

// The warp's list takes in each thread's (v, i) that is `wanted`
__device__ inline void insert_all(bool wanted, acc_t v, int i, acc_t& value, int& index) {
    const acc_t last = __shfl_sync(ALL_LANES, value, WARP - 1);
    const int last_index = __shfl_sync(ALL_LANES, index, WARP - 1);  // unseen: ties this deep
    unsigned votes = __ballot_sync(ALL_LANES, wanted && before(v, i, last, last_index));
    for (; votes; votes &= votes - 1) {
        const int from = __ffs(votes) - 1;
        insert<WARP>(__shfl_sync(ALL_LANES, v, from), __shfl_sync(ALL_LANES, i, from), value, index);
    }
}

// bound = kept |x|^2 of each reference
extern "C" __global__ void __launch_bounds__(256) knn_bounds(
    const scalar_t* __restrict__ reference, const acc_t* __restrict__ centre,
    acc_t* __restrict__ bound, int channels, int references, long long total, double kept,
    double most) {
    GRID_STRIDE(i, total) {
        const long long image = i / references, r = i % references;
        const scalar_t* from = reference + image * channels * references + r;
        double square = 0;
        for (int c = 0; c < channels; ++c) {
            const double x = acc_t(from[(long long)c * references]) - centre[image * channels + c];
            square += x * x;  // unseen: too low a bound costs time
        }
        const bool safe = square <= most;  // unseen: < at the very edge
        bound[i] = safe ? acc_t(kept * square) : -infinity();
    }
}

// Some channels of one column, less the centre: every second one from the first; 0 beyond the last
struct Part {
    acc_t at[PART];
};

__device__ inline Part read_part(
    const scalar_t* column, long long stride, const acc_t* centre, int first, int channels,
    bool inside) {
    Part part;
#pragma unroll
    for (int i = 0; i < PART; ++i) {
        const int c = first + 2 * i;
        part.at[i] =
            inside && c < channels ? acc_t(column[again(c) * stride]) - centre[c] : acc_t(0);
    }
    return part;
}

__device__ inline void write_part(
    const Part& part, acc_t (&tile)[DEPTH][WIDTH], int row, int column, acc_t factor) {
#pragma unroll
    for (int i = 0; i < PART; ++i) tile[row + 2 * i][column] = factor * part.at[i];
}

// Four neighbours in shared memory
struct alignas(16) Four {
    acc_t at[4];
};

__device__ inline void read_eight(const acc_t* low, const acc_t* high, acc_t (&values)[EACH]) {
    const Four a = *reinterpret_cast<const Four*>(low), b = *reinterpret_cast<const Four*>(high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        values[i] = a.at[i];
        values[i + 4] = b.at[i];
    }
}

// A thread's reference j of a tile: neighbours lie in fours
__device__ inline int reference_of(int j, int lane) { return j / 4 * (WIDTH / 2) + lane * 4 + j % 4; }

// The lists of two queries, one of each half of the warp, take in what of a row of bounds is less
// than their last. NaN is no bound: less than all.
__device__ inline void offer(
    const acc_t (&row)[EACH], acc_t* values, int* indices, int keep, int first) {
    const int lane = threadIdx.x % LANES;
    const acc_t last = values[keep - 1];  // unseen: more are kept than samples need
    unsigned low = 0;
#pragma unroll
    for (int j = 0; j < EACH; ++j) low |= unsigned(!(row[j] >= last)) << j;
    unsigned votes = __ballot_sync(ALL_LANES, low);
    if (!votes) return;
    acc_t value = values[lane];
    int index = indices[lane];
    for (; votes; votes = __ballot_sync(ALL_LANES, low)) {  // each half's first thread with any
        const unsigned half = votes >> (threadIdx.x & LANES) & 0xffff;
        const int from = half ? __ffs(half) - 1 : 0, mine = __ffs(low) - 1;
        acc_t v = infinity();
#pragma unroll
        for (int j = 0; j < EACH; ++j) v = j == mine ? row[j] : v;  // unseen: none has a ninth
        if (v != v) v = -infinity();  // unseen: without bounds knn_scan decides
        const int i = low ? first + reference_of(mine, lane) : NONE;
        const acc_t offered = __shfl_sync(ALL_LANES, v, from, LANES);
        insert<LANES>(offered, __shfl_sync(ALL_LANES, i, from, LANES), value, index);
        if (lane == from) low &= low - 1;
    }
    values[lane] = value;
    indices[lane] = index;
}

// least, candidate [N, P, slices, keep]: the least bounds, without the query's own part, of each query
// and slice of the references. A block of 2 WIDTH threads takes WIDTH queries and a slice, in tiles of
// WIDTH; half a warp takes EACH queries and all of a tile's references. Two buffers: while one is
// summed, the next channels are on their way.
extern "C" __global__ void __launch_bounds__(256, BLOCKS) knn_screen(
    const scalar_t* __restrict__ query, const scalar_t* __restrict__ reference,
    const acc_t* __restrict__ centre, const acc_t* __restrict__ bound,
    const long long* __restrict__ num_reference, acc_t* __restrict__ least,
    int* __restrict__ candidate, int channels, int queries, int references, int slices, int span,
    int keep) {
    __shared__ __align__(16) acc_t q[2][DEPTH][WIDTH];  // unseen: a third
    __shared__ __align__(16) acc_t x[2][DEPTH][WIDTH];  // unseen: a third
    __shared__ acc_t values[WIDTH][MOST];
    __shared__ int indices[WIDTH][MOST];
    const int tile = blockIdx.x * WIDTH, slice = blockIdx.y;
    const long long image = blockIdx.z;
    const int start = slice * span;
    const int end = min(int(num_reference[image]), min(references, start + span));
    const int lane = threadIdx.x % LANES, group = threadIdx.x / LANES * EACH;
    const int row = threadIdx.x / WIDTH, column = threadIdx.x % WIDTH;
    const scalar_t* from_query = query + image * channels * queries + tile + column;
    const scalar_t* from_reference = reference + image * channels * references + column;
    const acc_t* middle = centre + image * channels;
    const acc_t* base = bound + image * references;
    for (int i = 0; i < EACH; ++i) {
        values[group + i][lane] = infinity();
        indices[group + i][lane] = NONE;
    }
    const bool has_query = tile + column < queries;
    const bool busy = tile + threadIdx.x / WARP * 2 * EACH < queries;  // the warp; unseen: idle work
    Part next_q = read_part(from_query, queries, middle, row, channels, has_query);
    Part next_x = read_part(
        from_reference + start, references, middle, row, channels, start + column < end);
    int buffer = 0;
    for (int first = start; first < end; first += WIDTH) {  // unseen: <= adds an empty tile
        acc_t sum[EACH][EACH];
#pragma unroll
        for (int j = 0; j < EACH; ++j) {
            const int r = first + reference_of(j, lane);
            const acc_t own = r < end ? base[r] : infinity();
#pragma unroll
            for (int i = 0; i < EACH; ++i) sum[i][j] = own;
        }
        for (int c = 0; c < channels; c += DEPTH) {  // unseen: <= adds zeros
            write_part(next_q, q[buffer], row, column, acc_t(-2));
            write_part(next_x, x[buffer], row, column, acc_t(1));
            __syncthreads();
            const bool turn = c + DEPTH >= channels;
            const int next = turn ? first + WIDTH : first, channel = turn ? row : c + DEPTH + row;
            next_q = read_part(from_query, queries, middle, channel, channels, has_query);
            next_x = read_part(
                from_reference + next, references, middle, channel, channels, next + column < end);
#pragma unroll
            for (int d = 0; busy && d < DEPTH; ++d) {
                acc_t a[EACH], b[EACH];
                read_eight(&q[buffer][d][group], &q[buffer][d][group + 4], a);
                read_eight(&x[buffer][d][lane * 4], &x[buffer][d][WIDTH / 2 + lane * 4], b);
#pragma unroll
                for (int i = 0; i < EACH; ++i)
#pragma unroll
                    for (int j = 0; j < EACH; ++j) sum[i][j] += a[i] * b[j];
            }
            buffer ^= 1;
        }
#pragma unroll
        for (int i = 0; busy && i < EACH; ++i)
            offer(sum[i], values[group + i], indices[group + i], keep, first);
    }
    for (int i = 0; i < EACH && tile + group + i < queries; ++i) {
        const long long at = (image * queries + tile + group + i) * slices + slice;
        if (lane >= keep) continue;
        least[at * keep + lane] = values[group + i][lane];
        candidate[at * keep + lane] = indices[group + i][lane];
    }
}

// |q - x| by all threads of a warp
__device__ inline acc_t measure(
    const scalar_t* q, const scalar_t* x, int channels, int queries, int references) {
    double square = 0;
    for (int c = threadIdx.x % WARP; c < channels; c += WARP) {
        const double apart =
            double(acc_t(q[(long long)c * queries])) - double(acc_t(x[(long long)c * references]));
        square += apart * apart;
    }
    return acc_t(__shfl_sync(ALL_LANES, sqrt(warp_sum(square)), 0));
}

// The tops of query p: entry j has what thread j - done has found
__device__ inline void write_found(
    acc_t d, int r, int done, int k, int p, int queries, scalar_t* distance, long long* index) {
    const int j = done + threadIdx.x % WARP;
    if (j >= k) return;
    distance[(long long)j * queries + p] = scalar_t(r == NONE ? infinity() : d);
    index[(long long)j * queries + p] = r == NONE ? -1 : r;
}

// A warp takes a query. Writes its number to `pending` where the bounds do not prove the result.
extern "C" __global__ void __launch_bounds__(256) knn_settle(
    const scalar_t* __restrict__ query, const scalar_t* __restrict__ reference,
    const acc_t* __restrict__ centre, const long long* __restrict__ num_query,
    const acc_t* __restrict__ least, const int* __restrict__ candidate,
    scalar_t* __restrict__ distance, long long* __restrict__ index, int* __restrict__ pending,
    int* __restrict__ count, int total, int channels, int queries, int references, int k, int slices,
    int keep, double kept, double slack, double most, double reach) {
    const int lane = threadIdx.x % WARP;
    const int number = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (number >= total) return;
    const long long image = number / queries, top = image * k * queries;
    const int p = number % queries;
    acc_t nearest = no_distance();
    int nearest_index = NONE;
    if (p >= num_query[image]) {
        write_found(nearest, nearest_index, 0, k, p, queries, distance + top, index + top);
        return;
    }
    acc_t value = infinity(), rest = infinity();  // rest: no bound that is not kept is lower
    int r = NONE;
    for (int slice = 0; slice < slices; ++slice) {
        const long long at = ((long long)number * slices + slice) * keep + lane;
        const acc_t v = lane < keep ? least[at] : infinity();
        const int i = lane < keep ? candidate[at] : NONE;
        rest = min(rest, __shfl_sync(ALL_LANES, v, keep - 1));
        insert_all(true, v, i, value, r);
    }
    rest = min(rest, __shfl_sync(ALL_LANES, value, WARP - 1));  // unseen: too low costs time
    const scalar_t* from_query = query + image * channels * queries + p;
    const scalar_t* from_reference = reference + image * channels * references;
    double square = 0;
    for (int c = lane; c < channels; c += WARP) {
        const double q = acc_t(from_query[(long long)c * queries]) - centre[image * channels + c];
        square += q * q;  // unseen: too low costs time
    }
    square = __shfl_sync(ALL_LANES, warp_sum(square), 0);
    bool proven = false;
    if (square <= most) {  // unseen: < at the very edge
        for (int i = 0; !proven && i < WARP; ++i) {  // unseen: <= measures one again
            const int at = __shfl_sync(ALL_LANES, r, i);
            if (at == NONE) break;
            const acc_t d = measure(from_query, from_reference + at, channels, queries, references);
            insert<WARP>(d, at, nearest, nearest_index);
            const int following = min(i + 1, WARP - 1);  // unseen: a lower one costs time
            const acc_t next = min(rest, __shfl_sync(ALL_LANES, value, following));
            const acc_t last = __shfl_sync(ALL_LANES, nearest, k - 1);  // unseen: so does a farther
            const double limit = reach * last;                         // unseen: and a higher limit
            proven = next + (kept * square - slack) > limit * limit;   // unseen: likewise
        }
        proven = proven || rest == infinity();  // all references were kept; unseen: scanned else
    }
    if (proven)
        write_found(nearest, nearest_index, 0, k, p, queries, distance + top, index + top);
    else if (lane == 0)
        pending[atomicAdd(count, 1)] = number;
}

// A block takes a query and measures all of its references, once for every 32 entries of the tops. The
// queries are those of `pending`, or all where it is null.
extern "C" __global__ void __launch_bounds__(256) knn_scan(
    const scalar_t* __restrict__ query, const scalar_t* __restrict__ reference,
    const long long* __restrict__ num_query, const long long* __restrict__ num_reference,
    const int* __restrict__ pending, const int* __restrict__ count, scalar_t* __restrict__ distance,
    long long* __restrict__ index, int total, int channels, int queries, int references, int k) {
    __shared__ acc_t found[8][WARP];
    __shared__ int found_index[8][WARP];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int todo = pending ? *count : total;
    for (int turn = blockIdx.x; turn < todo; turn += gridDim.x) {
        const int number = pending ? pending[turn] : turn, p = number % queries;
        const long long image = number / queries, top = image * k * queries;
        const int end = p < num_query[image] ? int(num_reference[image]) : 0;
        const scalar_t* from_query = query + image * channels * queries + p;
        const scalar_t* from_reference = reference + image * channels * references;
        acc_t last = -infinity();
        int last_index = -1;
        for (int done = 0; done < k; done += WARP) {  // unseen: <= finds for no entry
            acc_t nearest = no_distance();
            int nearest_index = NONE;
            const int stride = AHEAD * blockDim.x;
            for (int first = threadIdx.x; first - lane < end; first += stride) {  // unseen: <=
                double square[AHEAD] = {}, nothing = 0;  // NaN for a query that is not finite
                for (int c = 0; c < channels; ++c) {
                    const double q = acc_t(from_query[(long long)c * queries]);
                    nothing += q - q;  // unseen: of either sign
                    const scalar_t* x = from_reference + (long long)c * references;
#pragma unroll
                    for (int j = 0; j < AHEAD; ++j) {
                        const int r = min(first + j * int(blockDim.x), references - 1);
                        const double apart = double(acc_t(x[r])) - q;
                        square[j] += apart * apart;
                    }
                }
#pragma unroll
                for (int j = 0; j < AHEAD; ++j) {
                    const int r = first + j * int(blockDim.x);
                    const acc_t d = acc_t(sqrt(square[j]) + nothing);  // unseen: of either sign
                    insert_all(
                        r < end && before(last, last_index, d, r), d, r, nearest, nearest_index);
                }
            }
            found[warp][lane] = nearest;
            found_index[warp][lane] = nearest_index;
            __syncthreads();
            nearest = no_distance();
            nearest_index = NONE;
            for (int i = 0; i < warps; ++i)
                insert_all(true, found[i][lane], found_index[i][lane], nearest, nearest_index);
            last = __shfl_sync(ALL_LANES, nearest, WARP - 1);
            last_index = __shfl_sync(ALL_LANES, nearest_index, WARP - 1);
            if (warp == 0)
                write_found(nearest, nearest_index, done, k, p, queries, distance + top, index + top);
            __syncthreads();
        }
    }
}

// weight = g / |q - x|, 0 where the distance is 0 or nothing was found; then the query's gradient
extern "C" __global__ void __launch_bounds__(256) knn_backward_query(
    const scalar_t* __restrict__ top_gradient, const scalar_t* __restrict__ query,
    const scalar_t* __restrict__ reference, const long long* __restrict__ index,
    acc_t* __restrict__ weight, scalar_t* __restrict__ gradient, int channels, int queries,
    int references, int k) {
    __shared__ acc_t scratch[256];
    const int group = threadIdx.x / WARP, groups = blockDim.x / WARP;
    const int p = blockIdx.x * WARP + threadIdx.x % WARP;
    const long long image = blockIdx.y, top = image * k * queries + p;
    const long long plane = image * channels;
    const bool inside = p < queries;
    for (int j = 0; j < k; ++j) {
        const long long at = inside ? index[top + (long long)j * queries] : -1;
        acc_t square = 0;
        for (int c = group; at >= 0 && c < channels; c += groups) {
            const acc_t apart = acc_t(query[(plane + c) * queries + p]) -
                                acc_t(reference[(plane + c) * references + at]);
            square += apart * apart;
        }
        square = strided_sum(square, scratch, WARP);
        if (group > 0 || !inside) continue;
        const acc_t g = acc_t(top_gradient[top + (long long)j * queries]);
        weight[top + (long long)j * queries] = square == 0 ? acc_t(0) : g / sqrt(square);
    }
    __syncthreads();  // the weights are there
    for (int c = group; inside && c < channels; c += groups) {
        const acc_t q = acc_t(query[(plane + c) * queries + p]);
        acc_t sum = 0;
        for (int j = 0; j < k; ++j) {
            const long long at = index[top + (long long)j * queries];
            if (at < 0) break;  // nor has any entry after it a reference
            const acc_t apart = q - acc_t(reference[(plane + c) * references + at]);
            sum += weight[top + (long long)j * queries] * apart;
        }
        gradient[(plane + c) * queries + p] = scalar_t(sum);
    }
}

// The gradient of each reference from the entries of the tops that have found it: order[start[r]] to
// order[start[r + 1]], an entry being j P + p
extern "C" __global__ void __launch_bounds__(256) knn_backward_reference(
    const scalar_t* __restrict__ query, const scalar_t* __restrict__ reference,
    const acc_t* __restrict__ weight, const long long* __restrict__ order,
    const int* __restrict__ start, scalar_t* __restrict__ gradient, long long total, int channels,
    int queries, int references, int k) {
    GRID_STRIDE(i, total) {
        const long long plane = i / references, image = plane / channels, r = i % references;
        const long long top = image * k * queries, at = image * (references + 1ll) + r;
        const acc_t x = acc_t(reference[i]);
        acc_t sum = 0;
        for (int j = start[at]; j < start[at + 1]; ++j) {
            const long long entry = order[top + j];
            sum += weight[top + entry] * (x - acc_t(query[plane * queries + entry % queries]));
        }
        gradient[i] = scalar_t(sum);
    }
}

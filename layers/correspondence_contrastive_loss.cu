// with tiles.cu
// with geometry.cu
#define COLUMNS 5  // x1, y1, x2, y2, s

// The sums of one block's pairs: costs of true and of false matches, pairs, true matches
#define SUMS 4

__device__ inline double label_at(const float* narrow, const double* wide, long long pair) {
    return wide ? wide[pair * COLUMNS + 4] : double(narrow[pair * COLUMNS + 4]);
}

// max(0, slack), where NaN stays
__device__ inline acc_t hinge(acc_t slack) {
    return slack < 0 ? acc_t(0) : slack;  // unseen: equal is equal
}

// A block takes TILE pairs and all of their channels: differences as rows, distances, sums.
extern "C" __global__ void __launch_bounds__(256) contrastive_forward(
    const scalar_t* __restrict__ feature1, const scalar_t* __restrict__ feature2,
    const float* __restrict__ narrow, const double* __restrict__ wide,
    acc_t* __restrict__ difference, acc_t* __restrict__ distance, double* __restrict__ sums,
    int* __restrict__ flag, int channels, int points, bool rows, int cells1, int cells2, int height1,
    int width1, int height2, int width2, double downsampling_factor, double coordinate_offset,
    bool bilinear_interpolation, bool plain, acc_t margin) {
    __shared__ Spot spots[2][TILE];
    __shared__ acc_t tile[TILE][TILE + 1];
    __shared__ acc_t square[TILE];
    const Map map1 = {height1, width1, downsampling_factor, coordinate_offset, bilinear_interpolation};
    const Map map2 = {height2, width2, downsampling_factor, coordinate_offset, bilinear_interpolation};
    const Layout layout1 = {rows, channels, cells1};
    const Layout layout2 = {rows, channels, cells2};
    const Tile at = tile_of(1, points);
    const long long base = at.image * points + at.first;
    const int here = min(TILE, points - at.first);
    for (int i = threadIdx.x; i < TILE; i += blockDim.x) {
        square[i] = 0;
        if (i >= here) continue;
        const long long from = (base + i) * COLUMNS;
        spots[0][i] = spot_at(narrow, wide, from, map1, flag);
        spots[1][i] = spot_at(narrow, wide, from + 2, map2, flag);
    }
    for (int channel = 0; channel < channels; channel += TILE) {  // unseen: <= adds an empty round
        __syncthreads();
        FOR_TILE(i) {
            const int line = i / TILE, lane = i % TILE;
            const int c = rows ? lane : line, p = rows ? line : lane;
            if (channel + c < channels && p < here)
                tile[c][p] =
                    value_at(feature1, layout1, at.image, channel + c, spots[0][p], map1.bilinear) -
                    value_at(feature2, layout2, at.image, channel + c, spots[1][p], map2.bilinear);
        }
        __syncthreads();
        FOR_TILE(i) {  // a warp takes a pair
            const int p = i / TILE, c = channel + i % TILE;
            const bool inside = p < here && c < channels;
            const acc_t apart = inside ? tile[i % TILE][p] : acc_t(0);
            if (inside) difference[(base + p) * channels + c] = apart;
            const acc_t sum = warp_sum(apart * apart);
            if (i % TILE == 0) square[p] += sum;
        }
    }
    __syncthreads();
    if (threadIdx.x >= WARP) return;  // no barrier follows
    double found[SUMS] = {0, 0, 0, 0};
    if (threadIdx.x < here) {
        const acc_t squared = square[threadIdx.x], d = sqrt(squared);
        distance[base + threadIdx.x] = d;
        const double s = label_at(narrow, wide, base + threadIdx.x);
        const bool counted = !(s < 0), match = s == 1, other = s == 0;
        if (counted != (match || other)) atomicOr(flag, 1);
        const acc_t slack = hinge(margin - (plain ? squared : d));
        if (match) found[0] = squared;
        if (other) found[1] = plain ? slack : slack * slack;
        found[2] = counted;
        found[3] = match;
    }
    for (int i = 0; i < SUMS; ++i) {
        const double sum = warp_sum(found[i]);
        if (threadIdx.x == 0) sums[(long long)blockIdx.x * SUMS + i] = sum;
    }
}

// One block: the tops from the blocks' sums
extern "C" __global__ void __launch_bounds__(256) contrastive_tops(
    const double* __restrict__ sums, acc_t* __restrict__ loss, acc_t* __restrict__ num_pairs,
    acc_t* __restrict__ positive_part,
    acc_t* __restrict__ negative_part, acc_t* __restrict__ positive_only_loss,
    long long* __restrict__ num_positives, int blocks) {
    __shared__ double scratch[32];
    double total[SUMS];
    for (int i = 0; i < SUMS; ++i) {
        double sum = 0;
        for (int block = threadIdx.x; block < blocks; block += blockDim.x)
            sum += sums[(long long)block * SUMS + i];
        total[i] = block_sum(sum, scratch);
    }
    if (threadIdx.x > 0) return;  // unseen: all threads have the sums
    const double share = 0.5 / fmax(total[2], 1.0);
    *num_pairs = acc_t(total[2]);
    *positive_part = acc_t(total[0] * share);
    *negative_part = acc_t(total[1] * share);
    *loss = acc_t((total[0] + total[1]) * share);
    const long long matches = (long long)total[3];
    *num_positives = matches;
    *positive_only_loss = acc_t(0.5 * total[0] / fmax(double(matches), 1.0));
}

// What each pair's difference is multiplied by, and the pair's two cells and their shares; a pair
// without a gradient lies in no cell
extern "C" __global__ void __launch_bounds__(256) contrastive_pulls(
    const float* __restrict__ narrow, const double* __restrict__ wide,
    const acc_t* __restrict__ distance, const acc_t* __restrict__ loss_gradient,
    const acc_t* __restrict__ num_pairs, acc_t* __restrict__ pull, int* __restrict__ keys,
    acc_t* __restrict__ along, acc_t* __restrict__ below, long long total, int height1, int width1,
    int height2, int width2, double downsampling_factor, double coordinate_offset,
    bool bilinear_interpolation, bool plain, bool published, acc_t margin) {
    const long long pair = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (pair >= total) return;
    const acc_t scale = *loss_gradient / fmax(*num_pairs, acc_t(1));
    const Map maps[2] = {
        {height1, width1, downsampling_factor, coordinate_offset, bilinear_interpolation},
        {height2, width2, downsampling_factor, coordinate_offset, bilinear_interpolation}};
    const double s = label_at(narrow, wide, pair);
    const acc_t d = distance[pair];
    acc_t weight = s == 1;
    if (s == 0 && plain)
        weight = -acc_t((published ? d : d * d) < margin);  // unseen: samples keep off the kink
    else if (published && s == 0)
        weight = -hinge(margin - d) / (d + acc_t(1e-8));
    else if (s == 0)
        weight = -hinge(margin - d) / (d > 0 ? d : acc_t(1));  // unseen: samples keep off the kink
    pull[pair] = weight * scale;
    for (int i = 0; i < 2; ++i) {
        const Spot spot = spot_at(narrow, wide, pair * COLUMNS + 2 * i, maps[i], nullptr);
        const int nowhere = maps[i].height * maps[i].width;  // unseen: elsewhere they add 0
        keys[i * total + pair] = weight == 0 ? nowhere : spot.cell;
        along[i * total + pair] = spot.along;
        below[i * total + pair] = spot.below;
    }
}

struct Pull {
    const acc_t *difference, *pull;
    acc_t sign;
    int channels, points;
    __device__ acc_t operator()(long long image, long long point, int channel) const {
        const long long pair = image * points + point;
        return sign * pull[pair] * difference[pair * channels + channel];
    }
};

// The gradient of one map: sign is 1 for the first, -1 for the second
extern "C" __global__ void __launch_bounds__(256) contrastive_backward(
    const acc_t* __restrict__ difference, const acc_t* __restrict__ pull,
    const long long* __restrict__ order, const int* __restrict__ start,
    const acc_t* __restrict__ along, const acc_t* __restrict__ below, scalar_t* __restrict__ gradient,
    int channels, int points, int height, int width, bool bilinear_interpolation, acc_t sign) {
    const Map map = {height, width, 1, 0, bilinear_interpolation};
    const Pull value = {difference, pull, sign, channels, points};
    gather(value, true, order, start, along, below, gradient, channels, points, map);
}

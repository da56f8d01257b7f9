// with tiles.cu
// with geometry.cu

// top[n, c, p] = feature[n, c] at point p
extern "C" __global__ void __launch_bounds__(256) extract_feature_forward(
    const scalar_t* __restrict__ feature, const float* __restrict__ narrow,
    const double* __restrict__ wide, scalar_t* __restrict__ top, int* __restrict__ flag,
    int num_coord_elements, int coord_start_ind, int channels, int points, bool rows, int cells,
    int height, int width, double downsampling_factor, double coordinate_offset, bool bilinear_interpolation) {
    __shared__ Spot spots[TILE];
    __shared__ acc_t tile[TILE][TILE + 1];
    const Map map = {height, width, downsampling_factor, coordinate_offset, bilinear_interpolation};
    const Layout layout = {rows, channels, cells};
    const Tile at = tile_of(channels, points);
    for (int i = threadIdx.x; i < TILE && at.first + i < points; i += blockDim.x) {
        const long long point = at.image * points + at.first + i;
        spots[i] = spot_at(narrow, wide, point * num_coord_elements + coord_start_ind, map, flag);
    }
    __syncthreads();
    FOR_TILE(i) {
        const int line = i / TILE, lane = i % TILE;
        const int c = rows ? lane : line, p = rows ? line : lane;
        if (at.channel + c < channels && at.first + p < points)
            tile[c][p] = value_at(feature, layout, at.image, at.channel + c, spots[p], map.bilinear);
    }
    __syncthreads();
    write_tile(tile, at, top, channels, points);
}

// Each point's cell and shares
extern "C" __global__ void __launch_bounds__(256) extract_feature_points(
    const float* __restrict__ narrow, const double* __restrict__ wide, int* __restrict__ keys,
    acc_t* __restrict__ along, acc_t* __restrict__ below, long long total,
    int num_coord_elements, int coord_start_ind, int height, int width, double downsampling_factor,
    double coordinate_offset, bool bilinear_interpolation) {
    const Map map = {height, width, downsampling_factor, coordinate_offset, bilinear_interpolation};
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= total) return;
    const Spot spot = spot_at(narrow, wide, i * num_coord_elements + coord_start_ind, map, nullptr);
    keys[i] = spot.cell;
    along[i] = spot.along;
    below[i] = spot.below;
}

struct TopGradient {
    const scalar_t* from;
    Layout layout;
    __device__ acc_t operator()(long long image, long long point, int channel) const {
        return acc_t(from[layout.first(image, channel) + point * layout.spread()]);
    }
};

extern "C" __global__ void __launch_bounds__(256) extract_feature_backward(
    const scalar_t* __restrict__ top_gradient, const long long* __restrict__ order,
    const int* __restrict__ start, const acc_t* __restrict__ along, const acc_t* __restrict__ below,
    scalar_t* __restrict__ gradient, int channels, int points, bool rows, int height, int width,
    bool bilinear_interpolation) {
    const Map map = {height, width, 1, 0, bilinear_interpolation};
    const TopGradient value = {top_gradient, {rows, channels, points}};
    gather(value, rows, order, start, along, below, gradient, channels, points, map);
}

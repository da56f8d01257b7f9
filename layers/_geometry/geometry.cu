// Maps read at image points, and the adjoint: geometry.py's rules on the device. With tiles.cu.
//
// A map or a gradient is either [N, C, L], where neighbouring threads take neighbouring points or
// cells, or rows [N, L, C], where they take neighbouring channels; the tile turns the one into the
// other.

struct Map {
    int height, width;
    double factor, offset;
    bool bilinear;
};

// Where a point reads a map
struct Spot {
    int cell;            // v W + u; of a 2 x 2 read the upper left
    int right, down;     // from there to its neighbours, 0 at the map's edge
    acc_t along, below;  // the neighbours' shares
};

template <class T>
__device__ inline Spot spot_of(T x, T y, const Map& map, int* flag) {
    if (flag && !isfinite(x)) atomicOr(flag, 1);
    if (flag && !isfinite(y)) atomicOr(flag, 1);
    const T offset = T(map.offset), factor = T(map.factor);  // fmax makes a NaN 0
    const T u = fmin(fmax((x - offset) / factor, T(0)), T(map.width - 1));
    const T v = fmin(fmax((y - offset) / factor, T(0)), T(map.height - 1));
    if (!map.bilinear)
        return {int(v + T(0.5)) * map.width + int(u + T(0.5)), 0, 0, acc_t(0), acc_t(0)};
    const int column = int(u), row = int(v);
    return {row * map.width + column, column + 1 < map.width, row + 1 < map.height ? map.width : 0,
            acc_t(u - T(column)), acc_t(v - T(row))};
}

// The spot of the point at table[at], table[at + 1]; of the table's two types one is null. Sets the
// flag, if there is one, at a coordinate that is not finite.
__device__ inline Spot spot_at(
    const float* narrow, const double* wide, long long at, const Map& map, int* flag) {
    if (wide) return spot_of(wide[at], wide[at + 1], map, flag);
    return spot_of(narrow[at], narrow[at + 1], map, flag);
}

// A map in either layout; `spread` is from a cell to the next
struct Layout {
    bool rows;
    int channels, cells;
    __device__ long long first(long long image, int channel) const {
        const long long plane = image * channels;
        return rows ? plane * cells + channel : (plane + channel) * cells;
    }
    __device__ long long spread() const { return rows ? channels : 1; }
};

// The value that a point reads in one channel
__device__ inline acc_t value_at(
    const scalar_t* map, const Layout& layout, long long image, int channel, const Spot& spot, bool bilinear) {
    const long long spread = layout.spread();
    const scalar_t* at = map + layout.first(image, channel) + spot.cell * spread;
    if (!bilinear) return acc_t(*at);
    const scalar_t* under = at + spot.down * spread;
    const long long right = spot.right * spread;
    const acc_t upper = acc_t(at[0]) * (1 - spot.along) + acc_t(at[right]) * spot.along;
    const acc_t lower = acc_t(under[0]) * (1 - spot.along) + acc_t(under[right]) * spot.along;
    return upper * (1 - spot.below) + lower * spot.below;
}

// start[n, cell] = how many of image n's keys, which ascend, lie below the cell; cells + 1 of them
extern "C" __global__ void __launch_bounds__(256) cell_starts(
    const int* __restrict__ keys, int* __restrict__ start, long long images, int points, int cells) {
    const long long row = cells + 1ll;
    GRID_STRIDE(i, images * row) {
        const int* of = keys + i / row * points;
        int low = 0, high = points;
        while (low < high) {
            const int middle = low + (high - low) / 2;
            if (of[middle] < i % row)
                low = middle + 1;
            else
                high = middle;
        }
        start[i] = low;
    }
}

// Of the points in the order of their cells, those that read a cell from its own row or from the row
// above: [first, middle) lie left of it, [middle, last) at it
struct Range {
    int first, middle, last;
};

__device__ inline Range range_of(const int* start, int cell, int above, const Map& map) {
    const int from = cell - above * map.width;
    if (from < 0 || (above && !map.bilinear)) return {0, 0, 0};
    const int middle = start[from];
    const bool left = map.bilinear && cell % map.width > 0;
    return {left ? start[from - 1] : middle, middle, start[from + 1]};
}

// The adjoint of value_at: a tile of the map's gradient, summed per cell in the order of the points'
// cells. value(image, point, channel) is what the point got; `rows`: it is nearest along channels.
template <class Value>
__device__ inline void gather(
    const Value& value, bool rows, const long long* order, const int* start, const acc_t* along,
    const acc_t* below, scalar_t* to, int channels, int points, const Map& map) {
    __shared__ acc_t tile[TILE][TILE + 1];
    __shared__ Range ranges[2][TILE];
    const int cells = map.height * map.width;
    const Tile at = tile_of(channels, cells);
    for (int i = threadIdx.x; i < 2 * TILE; i += blockDim.x) {
        const int cell = at.first + i % TILE;
        const int* of = start + at.image * (cells + 1ll);
        ranges[i / TILE][i % TILE] = cell < cells ? range_of(of, cell, i / TILE, map) : Range{0, 0, 0};
    }
    __syncthreads();
    FOR_TILE(i) {
        const int line = i / TILE, lane = i % TILE;
        const int c = rows ? lane : line, cell = rows ? line : lane;
        if (at.channel + c >= channels) continue;
        acc_t sum = 0;
        for (int above = 0; above < 2; ++above) {
            const Range range = ranges[above][cell];
#pragma unroll 4
            for (int j = range.first; j < range.last; ++j) {
                const long long from = at.image * points, point = from + order[from + j];
                const acc_t across = j < range.middle ? along[point] : 1 - along[point];
                const acc_t down = above ? below[point] : 1 - below[point];
                sum += across * down * value(at.image, point - from, at.channel + c);
            }
        }
        tile[c][cell] = sum;
    }
    __syncthreads();
    write_tile(tile, at, to, channels, cells);
}

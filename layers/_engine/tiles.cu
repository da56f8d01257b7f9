// Blocks that compute a tile of [N, C, L] each, TILE channels by TILE of the L places, in shared
// memory: it turns what is computed along channels into what is written along places.
#define TILE 32
#define FOR_TILE(i) for (int i = threadIdx.x; i < TILE * TILE; i += blockDim.x)

struct Tile {
    long long image;
    int channel, first;
};

// The tile of a block: of one image's neighbouring tiles, those of the same channels come first
__device__ inline Tile tile_of(int channels, int length) {
    const int lines = (channels + TILE - 1) / TILE, columns = (length + TILE - 1) / TILE;
    const int line = blockIdx.x / columns, column = blockIdx.x % columns;
    return {line / lines, line % lines * TILE, column * TILE};
}

// A tile [channel][place] written to [N, C, L]
template <class From, class To>
__device__ inline void write_tile(
    const From (&tile)[TILE][TILE + 1], const Tile& at, To* to, int channels, int length) {
    FOR_TILE(i) {
        const int channel = at.channel + i / TILE, place = at.first + i % TILE;
        if (channel < channels && place < length)
            to[(at.image * channels + channel) * length + place] = To(tile[i / TILE][i % TILE]);
    }
}

// [N, C, L] -> [N, L, C]
extern "C" __global__ void __launch_bounds__(256) to_rows(
    const scalar_t* __restrict__ source, scalar_t* __restrict__ target, int channels, int length) {
    __shared__ acc_t tile[TILE][TILE + 1];
    const Tile at = tile_of(channels, length);
    FOR_TILE(i) {
        const int channel = at.channel + i / TILE, place = at.first + i % TILE;
        if (channel < channels && place < length)
            tile[i / TILE][i % TILE] = acc_t(source[(at.image * channels + channel) * length + place]);
    }
    __syncthreads();
    FOR_TILE(i) {
        const int channel = at.channel + i % TILE, place = at.first + i / TILE;
        if (channel < channels && place < length)
            target[(at.image * length + place) * channels + channel] = scalar_t(tile[i % TILE][i / TILE]);
    }
}

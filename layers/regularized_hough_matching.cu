// Matches of cells (r, c) of A with (r', c') of B, [N, h_a, w_a, h_b, w_b], of which a part counts: from
// (top_a, left_a) kept_h_a x kept_w_a cells of A, likewise of B.

// partial[n, piece, dy, dx]: what matches of one displacement add up to over a piece of A's rows. A block
// takes one dy, a thread one dx, so that neighbours read neighbours.
extern "C" __global__ void __launch_bounds__(256) regularized_hough_matching_sums(
    const scalar_t* __restrict__ given, const scalar_t* __restrict__ times, double* __restrict__ partial,
    int pieces, int down, int across, int h_a, int w_a, int h_b, int w_b, int top_a, int left_a,
    int top_b, int left_b, int kept_h_a, int kept_w_a, int kept_h_b, int kept_w_b) {
    const int strips = (across + blockDim.x - 1) / blockDim.x;
    const int dx = blockIdx.x % strips * blockDim.x + threadIdx.x;
    const long long row = blockIdx.x / strips;
    const int dy = row % down, piece = row / down % pieces;
    const long long n = row / down / pieces;
    if (dx >= across) return;
    const int first = piece * kept_h_a / pieces, last = (piece + 1) * kept_h_a / pieces;
    const int low = max(kept_w_a - 1 - dx, 0), high = min(kept_w_a - 1 - dx + kept_w_b, kept_w_a);
    double sum = 0;
    for (int r = first; r < last; ++r) {
        const int to = r + dy - (kept_h_a - 1);
        if (to < 0 || to >= kept_h_b) continue;
        for (int c = low; c < high; ++c) {
            const long long cell = ((n * h_a + top_a + r) * w_a + left_a + c) * h_b + top_b + to;
            const long long match = cell * w_b + left_b + c + dx - (kept_w_a - 1);
            sum += double(acc_t(given[match]) * (times ? acc_t(times[match]) : acc_t(1)));
        }
    }
    partial[row * across + dx] = sum;
}

// Where a match's displacement lies among the sums, -1 for a match that does not count
struct Displacement {
    int top_b, left_b, kept_h_a, kept_w_a, kept_h_b, kept_w_b, r, c;
    long long n;
    __device__ long long operator()(int to_row, int to_column) const {
        const int y = to_row - top_b, x = to_column - left_b;
        const bool from = r >= 0 && r < kept_h_a && c >= 0 && c < kept_w_a;
        if (!from || y < 0 || y >= kept_h_b || x < 0 || x >= kept_w_b) return -1;
        const int down = kept_h_a + kept_h_b - 1, across = kept_w_a + kept_w_b - 1;
        return (n * down + y - r + kept_h_a - 1) * across + x - c + kept_w_a - 1;
    }
};

// A block's cell of A
__device__ inline Displacement of_block(
    int h_a, int w_a, int top_a, int left_a, int top_b, int left_b, int kept_h_a, int kept_w_a,
    int kept_h_b, int kept_w_b) {
    const int c = blockIdx.x % w_a - left_a, r = blockIdx.x / w_a % h_a - top_a;
    return {top_b, left_b, kept_h_a, kept_w_a, kept_h_b, kept_w_b, r, c, (long long)blockIdx.x / w_a / h_a};
}

// top = similarity votes
extern "C" __global__ void __launch_bounds__(256) regularized_hough_matching_forward(
    const scalar_t* __restrict__ similarity, const acc_t* __restrict__ votes, scalar_t* __restrict__ top,
    int h_a, int w_a, int h_b, int w_b, int top_a, int left_a, int top_b, int left_b, int kept_h_a,
    int kept_w_a, int kept_h_b, int kept_w_b) {
    const Displacement at = of_block(
        h_a, w_a, top_a, left_a, top_b, left_b, kept_h_a, kept_w_a, kept_h_b, kept_w_b);
    const long long cell = (long long)blockIdx.x * h_b * w_b;
    for (int i = threadIdx.x; i < h_b * w_b; i += blockDim.x) {
        const long long from = at(i / w_b, i % w_b);
        top[cell + i] = scalar_t(from < 0 ? acc_t(0) : acc_t(similarity[cell + i]) * votes[from]);
    }
}

// gradient = top_gradient votes + indirect
extern "C" __global__ void __launch_bounds__(256) regularized_hough_matching_backward(
    const scalar_t* __restrict__ top_gradient, const acc_t* __restrict__ votes,
    const acc_t* __restrict__ indirect, scalar_t* __restrict__ gradient, int h_a, int w_a, int h_b,
    int w_b, int top_a, int left_a, int top_b, int left_b, int kept_h_a, int kept_w_a, int kept_h_b,
    int kept_w_b) {
    const Displacement at = of_block(
        h_a, w_a, top_a, left_a, top_b, left_b, kept_h_a, kept_w_a, kept_h_b, kept_w_b);
    const long long cell = (long long)blockIdx.x * h_b * w_b;
    for (int i = threadIdx.x; i < h_b * w_b; i += blockDim.x) {
        const long long from = at(i / w_b, i % w_b);
        const acc_t g = from < 0 ? acc_t(0) : acc_t(top_gradient[cell + i]);
        gradient[cell + i] = scalar_t(from < 0 ? acc_t(0) : g * votes[from] + indirect[from]);
    }
}

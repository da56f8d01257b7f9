// CUDA's built-ins on the host, for kernels compiled by a plain C++ compiler.
//
// Blocks run one after the other. The threads of a block are fibers: each runs until it ends or
// waits (at __syncthreads, in a warp operation), then the next one does, in ascending, descending or
// random order. A warp operation goes on once all lanes of its mask have arrived, the block's barrier
// once every thread has; anything else is reported as an error.
//
// Shared memory is fresh, exactly sized and filled with NaN in every block. The program serves
// launches over stdin and stdout; each tensor is copied into its own allocation.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

struct uint3_ {
    unsigned x, y, z;
};
static uint3_ threadIdx, blockIdx, blockDim, gridDim;
static const int warpSize = 32;

namespace cuda_host {

[[noreturn]] inline void fail(const char* text) {
    fprintf(stderr, "cuda_host: %s\n", text);
    fflush(stderr);
    _exit(70);
}

// ------------------------------------------------------------------------------------- fibers

#if defined(__x86_64__)
struct Context {
    void* stack_pointer;
};
extern "C" void cuda_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_host_switch
cuda_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
inline void switch_context(Context& from, Context& to) {
    cuda_host_switch(&from.stack_pointer, to.stack_pointer);
}
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + size) - 3;  // at entry 8 over a multiple of 16
    *top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    context.stack_pointer = top;
}
#else
struct Context {
    ucontext_t context;
};
inline void switch_context(Context& from, Context& to) { swapcontext(&from.context, &to.context); }
inline void prepare(Context& context, char* stack, size_t size, void (*entry)()) {
    getcontext(&context.context);
    context.context.uc_stack.ss_sp = stack;
    context.context.uc_stack.ss_size = size;
    context.context.uc_link = nullptr;
    makecontext(&context.context, entry, 0);
}
#endif

enum State { NEW, READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    Context context;
    char* stack;
    State state;
    uint3_ index;
    int line;           // of the operation it waits in
    unsigned mask;      // of the warp operation
    unsigned rounds;    // warp operations so far; its low bit chooses the buffer
    uint64_t lane[2];   // what it gives to the warp
};

struct Argument {
    uint64_t kind, bytes, offset;
    char* at;  // a pointer's target, or the value itself
};

static const size_t STACK = 128 * 1024;
static std::vector<Fiber> fibers;
static std::vector<char*> free_stacks;
static Context scheduler;
static Fiber* current;
static Argument* arguments;
static void (*kernel)(Argument*);

inline void run_fiber() {
    kernel(arguments);
    current->state = DONE;
    switch_context(current->context, scheduler);
}

inline void resume(Fiber& fiber) {
    if (fiber.state == NEW) {
        if (free_stacks.empty()) {
            void* stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (stack == MAP_FAILED) fail("no memory for a fiber's stack");
            mprotect(stack, 4096, PROT_NONE);
            free_stacks.push_back(static_cast<char*>(stack));
        }
        fiber.stack = free_stacks.back();
        free_stacks.pop_back();
        prepare(fiber.context, fiber.stack, STACK, run_fiber);
    }
    fiber.state = READY;
    threadIdx = fiber.index;
    current = &fiber;
    switch_context(scheduler, fiber.context);
    if (fiber.state == DONE) free_stacks.push_back(fiber.stack);
}

inline void wait(State state, int line, unsigned mask = 0) {
    current->state = state;
    current->line = line;
    current->mask = mask;
    Fiber* self = current;
    switch_context(self->context, scheduler);
}

// ---------------------------------------------------------------------------------- scheduling

static uint64_t random_state;
inline uint64_t random_bits() {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

enum Order { ASCENDING, DESCENDING, RANDOM };

inline void arrange(std::vector<size_t>& order, unsigned how) {
    const size_t n = order.size();
    for (size_t i = 0; i < n; ++i) order[i] = how == DESCENDING ? n - 1 - i : i;
    if (how == RANDOM)
        for (size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random_bits() % i]);
}

inline void stuck() {
    size_t at_block = 0, done = 0;
    int line = 0, warp_line = 0;
    for (const Fiber& fiber : fibers) {
        done += fiber.state == DONE;
        at_block += fiber.state == AT_BLOCK;
        if (fiber.state == AT_BLOCK) line = fiber.line;
        if (fiber.state == AT_WARP) warp_line = fiber.line;
    }
    char text[200];
    if (warp_line)
        snprintf(text, sizeof text, "line %d: not all lanes of the mask take part in the warp operation", warp_line);
    else
        snprintf(text, sizeof text, "line %d: __syncthreads reached by %zu of %zu threads (%zu have ended)",
                 line, at_block, fibers.size(), done);
    fail(text);
}

// Lets the lanes of a warp go on whose operation has all of its mask.
inline bool release_warp(size_t first) {
    bool released = false;
    for (size_t i = first; i < first + 32 && i < fibers.size(); ++i) {
        if (fibers[i].state != AT_WARP) continue;
        const unsigned mask = fibers[i].mask;
        if (!(mask >> (i - first) & 1)) fail("a lane outside of its own mask");
        bool complete = true;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1)
                complete &= first + lane < fibers.size() && fibers[first + lane].state == AT_WARP &&
                            fibers[first + lane].line == fibers[i].line && fibers[first + lane].mask == mask;
        if (!complete) continue;
        for (unsigned lane = 0; lane < 32; ++lane)
            if (mask >> lane & 1) fibers[first + lane].state = READY;
        released = true;
    }
    return released;
}

inline bool runnable(const Fiber& fiber) { return fiber.state == NEW || fiber.state == READY; }

// One round: every thread runs until it ends or waits. Warp by warp, each as far ahead of the others
// as the block's barriers let it; in random order sometimes all threads mixed instead.
inline void run_round(std::vector<size_t>& threads, unsigned how) {
    arrange(threads, how);
    if (how == RANDOM && random_bits() % 2)
        for (size_t i : threads)
            if (runnable(fibers[i])) resume(fibers[i]);
    static std::vector<size_t> warps;
    warps.resize((threads.size() + 31) / 32);
    arrange(warps, how);
    for (size_t warp : warps) {
        bool again = true;
        while (again) {
            for (size_t i : threads)
                if (i / 32 == warp && runnable(fibers[i])) resume(fibers[i]);
            again = release_warp(warp * 32);
        }
    }
}

inline void run_block(unsigned how) {
    static std::vector<size_t> threads;
    threads.resize(fibers.size());
    for (Fiber& fiber : fibers) fiber.state = NEW, fiber.rounds = 0;
    while (true) {
        run_round(threads, how);
        size_t done = 0, at_block = 0;
        for (const Fiber& fiber : fibers) {
            done += fiber.state == DONE;
            at_block += fiber.state == AT_BLOCK && fiber.line == fibers[0].line;
        }
        if (done == fibers.size()) return;
        if (at_block != fibers.size()) stuck();
        for (Fiber& fiber : fibers) fiber.state = READY;
    }
}

// ------------------------------------------------------------------------------- shared memory

struct Shared {
    char* at = nullptr;
    char* get(size_t bytes);
};
static std::vector<Shared*> shared_in_use;
static size_t dynamic_bytes;
static Shared dynamic;

inline char* Shared::get(size_t bytes) {
    if (!at) {
        at = static_cast<char*>(malloc(bytes));
        memset(at, 0xff, bytes);  // NaN in every floating type
        shared_in_use.push_back(this);
    }
    return at;
}
inline void free_shared() {
    for (Shared* shared : shared_in_use) free(shared->at), shared->at = nullptr;
    shared_in_use.clear();
}
template <class T, int id>
T& shared() {
    static Shared memory;
    return *reinterpret_cast<T*>(memory.get(sizeof(T)));
}
template <class T>
T* dynamic_shared() {
    return reinterpret_cast<T*>(dynamic.get(dynamic_bytes));
}

// -------------------------------------------------------------------------------- warp operations

inline unsigned lane_index() { return unsigned(current - fibers.data()) % 32; }

// Gives `value` to the warp and waits for the other lanes of the mask; their values are then in
// lane[buffer]. Two buffers: nobody overwrites one before all have left the operation that reads it.
template <class T>
unsigned exchange(int line, unsigned mask, T value) {
    static_assert(sizeof(T) <= 8, "a warp exchanges up to 8 bytes");
    const unsigned buffer = current->rounds++ & 1;
    memcpy(&current->lane[buffer], &value, sizeof(T));
    wait(AT_WARP, line, mask);
    return buffer;
}
template <class T>
T from_lane(unsigned mask, unsigned lane, unsigned buffer) {
    const size_t first = size_t(current - fibers.data()) / 32 * 32;
    if (lane >= 32 || !(mask >> lane & 1)) fail("a shuffle reads a lane outside of the mask");
    T value;
    memcpy(&value, &fibers[first + lane].lane[buffer], sizeof(T));
    return value;
}
template <class T>
T shfl(int line, unsigned mask, T value, int source, int width = 32) {
    const unsigned buffer = exchange(line, mask, value), lane = lane_index();
    return from_lane<T>(mask, lane / width * width + unsigned(source) % width, buffer);
}
template <class T>
T shfl_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned buffer = exchange(line, mask, value), lane = lane_index();
    return lane % width + delta >= unsigned(width) ? value : from_lane<T>(mask, lane + delta, buffer);
}
template <class T>
T shfl_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned buffer = exchange(line, mask, value), lane = lane_index();
    return lane % width < delta ? value : from_lane<T>(mask, lane - delta, buffer);
}
template <class T>
T shfl_xor(int line, unsigned mask, T value, unsigned bits, int width = 32) {
    const unsigned buffer = exchange(line, mask, value), lane = lane_index();
    return from_lane<T>(mask, lane ^ bits, buffer);
}
inline unsigned ballot(int line, unsigned mask, int predicate) {
    const unsigned buffer = exchange(line, mask, predicate);
    unsigned votes = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) votes |= unsigned(from_lane<int>(mask, lane, buffer) != 0) << lane;
    return votes;
}

template <class T>
unsigned match_any(int line, unsigned mask, T value) {
    const unsigned buffer = exchange(line, mask, value);
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane)
        if (mask >> lane & 1) same |= unsigned(from_lane<T>(mask, lane, buffer) == value) << lane;
    return same;
}

// ------------------------------------------------------------------------------------- halves

inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}
inline float float_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
inline uint16_t half_bits(float value) {  // to nearest, ties to even
    const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000)  // below 2^-14: adding 0.5 leaves multiples of 2^-24
        return uint16_t(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000));
    const uint32_t rounded = magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1);
    return uint16_t(sign | rounded >> 13);
}
inline float half_value(uint16_t half) {
    const uint32_t sign = uint32_t(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | rest << 13);
    if (rest < 0x400) return float_of(sign | bits_of(float(rest) * 0x1p-24f));
    return float_of(sign | ((rest << 13) + 0x38000000));
}
inline uint16_t bfloat_bits(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace cuda_host

struct __half {
    uint16_t bits;
    __half() = default;
    __half(float value) : bits(cuda_host::half_bits(value)) {}
    operator float() const { return cuda_host::half_value(bits); }
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    __nv_bfloat16(float value) : bits(cuda_host::bfloat_bits(value)) {}
    operator float() const { return cuda_host::float_of(uint32_t(bits) << 16); }
};

// --------------------------------------------------------------------------- CUDA's own names

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

#define __syncthreads() cuda_host::wait(cuda_host::AT_BLOCK, __LINE__)
#define __syncwarp(...) cuda_host::exchange(__LINE__, cuda_host::mask_or_all(__VA_ARGS__), 0)
#define __shfl_sync(...) cuda_host::shfl(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cuda_host::shfl_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cuda_host::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cuda_host::shfl_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, predicate) cuda_host::ballot(__LINE__, mask, predicate)
#define __match_any_sync(...) cuda_host::match_any(__LINE__, __VA_ARGS__)
#define __any_sync(mask, predicate) int(cuda_host::ballot(__LINE__, mask, predicate) != 0)
#define __all_sync(mask, predicate) int(cuda_host::ballot(__LINE__, mask, predicate) == (mask))

namespace cuda_host {
inline unsigned mask_or_all(unsigned mask = 0xffffffffu) { return mask; }
}  // namespace cuda_host

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T> T __ldg(const T* at) { return *at; }
template <class T> T __ldcs(const T* at) { return *at; }
template <class T> void __stcs(T* at, T value) { *at = value; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
    return y;
}

template <class To, class From> To cuda_host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float __int_as_float(int x) { return cuda_host_bits<float>(x); }
inline int __float_as_int(float x) { return cuda_host_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return cuda_host_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cuda_host_bits<unsigned>(x); }
inline double __longlong_as_double(long long x) { return cuda_host_bits<double>(x); }
inline long long __double_as_longlong(double x) { return cuda_host_bits<long long>(x); }

// Saturating conversions, as the hardware does them; NaN gives 0.
template <class I> I cuda_host_saturate(double x) {
    const double low = sizeof(I) == 4 ? -0x1p31 : -0x1p63, high = -low;
    if (x != x) return 0;
    if (x < low) return I(low);
    return x >= high ? I(~(I(1) << (8 * sizeof(I) - 1))) : I(x);
}
inline int __float2int_rd(float x) { return cuda_host_saturate<int>(floor(x)); }
inline int __float2int_ru(float x) { return cuda_host_saturate<int>(ceil(x)); }
inline int __float2int_rn(float x) { return cuda_host_saturate<int>(nearbyint(x)); }
inline int __float2int_rz(float x) { return cuda_host_saturate<int>(trunc(x)); }
inline int __double2int_rd(double x) { return cuda_host_saturate<int>(floor(x)); }
inline int __double2int_ru(double x) { return cuda_host_saturate<int>(ceil(x)); }
inline int __double2int_rn(double x) { return cuda_host_saturate<int>(nearbyint(x)); }
inline int __double2int_rz(double x) { return cuda_host_saturate<int>(trunc(x)); }
inline long long __float2ll_rn(float x) { return cuda_host_saturate<long long>(nearbyint(x)); }
inline long long __double2ll_rn(double x) { return cuda_host_saturate<long long>(nearbyint(x)); }

inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }

using std::isfinite;
using std::isinf;
using std::isnan;
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1 / sqrtf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }

namespace cuda_host {
template <class A, class B, class C = std::common_type_t<A, B>>
C least(A a, B b) {
    if constexpr (std::is_floating_point_v<C>) return fmin(C(a), C(b));
    else return C(a) < C(b) ? C(a) : C(b);
}
template <class A, class B, class C = std::common_type_t<A, B>>
C greatest(A a, B b) {
    if constexpr (std::is_floating_point_v<C>) return fmax(C(a), C(b));
    else return C(a) > C(b) ? C(a) : C(b);
}
}  // namespace cuda_host
template <class A, class B> auto min(A a, B b) { return cuda_host::least(a, b); }
template <class A, class B> auto max(A a, B b) { return cuda_host::greatest(a, b); }

// Integer atomics only: a kernel that adds floats atomically does not compile here.
template <class T, class Change> T cuda_host_atomic(T* at, Change change) {
    static_assert(std::is_integral_v<T> && sizeof(T) >= 4, "integer atomics of 32 or 64 bits");
    const T before = *at;
    *at = change(before);
    return before;
}
#define CUDA_HOST_ATOMIC(name, result)                                                   \
    template <class T> T name(T* at, std::common_type_t<T> value) {                        \
        return cuda_host_atomic(at, [value](T before) { return T(result); });            \
    }
CUDA_HOST_ATOMIC(atomicAdd, before + value)
CUDA_HOST_ATOMIC(atomicSub, before - value)
CUDA_HOST_ATOMIC(atomicMin, before < value ? before : value)
CUDA_HOST_ATOMIC(atomicMax, before > value ? before : value)
CUDA_HOST_ATOMIC(atomicOr, before | value)
CUDA_HOST_ATOMIC(atomicAnd, before & value)
CUDA_HOST_ATOMIC(atomicXor, before ^ value)
CUDA_HOST_ATOMIC(atomicExch, (void(before), value))
template <class T> T atomicCAS(T* at, std::common_type_t<T> compare, std::common_type_t<T> value) {
    return cuda_host_atomic(at, [=](T before) { return before == compare ? value : before; });
}

// ------------------------------------------------------------------------------------ serving

namespace cuda_host {

enum Kind : uint64_t { VALUE, READ, WRITTEN, NOTHING };

template <class P>
P as(const Argument& argument) {
    if constexpr (std::is_pointer_v<P>) {
        return reinterpret_cast<P>(argument.at);
    } else {
        P value;
        memcpy(&value, argument.at, sizeof value);
        return value;
    }
}

// A kernel by its real type: what the compiler says its parameters are, not what a parser read.
template <auto function>
struct Call;
template <class... P, void (*function)(P...)>
struct Call<function> {
    static constexpr size_t count = sizeof...(P);
    static bool fits(const Argument* given) {
        const bool pointer[] = {std::is_pointer_v<P>..., false};
        const bool constant[] = {std::is_const_v<std::remove_pointer_t<P>>..., false};
        const size_t size[] = {sizeof(P)..., 0};
        for (size_t i = 0; i < count; ++i) {
            if (pointer[i] != (given[i].kind != VALUE)) return false;
            if (given[i].kind == VALUE && given[i].bytes != size[i]) return false;
            if (given[i].kind == READ && !constant[i]) return false;
        }
        return true;
    }
    template <size_t... I>
    static void expand(Argument* given, std::index_sequence<I...>) {
        function(as<P>(given[I])...);
    }
    static void call(Argument* given) { expand(given, std::make_index_sequence<count>()); }
};

struct Entry {
    const char* name;
    size_t count;
    bool (*fits)(const Argument*);
    void (*call)(Argument*);
};
#define CUDA_HOST_ENTRY(name, function)                                                     \
    {                                                                                      \
        name, cuda_host::Call<&function>::count, cuda_host::Call<&function>::fits,           \
            cuda_host::Call<&function>::call                                               \
    }

inline bool receive(void* to, size_t bytes) { return bytes == 0 || fread(to, 1, bytes, stdin) == bytes; }

struct Launch {
    uint32_t kernel, count, grid[3], block[3], shared, order;
    uint64_t seed, seconds;
};

inline void run(const Launch& launch) {
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    dynamic_bytes = launch.shared;
    random_state = launch.seed * 2654435761u + 88172645463325252ull;
    fibers.resize(size_t(blockDim.x) * blockDim.y * blockDim.z);
    for (size_t i = 0; i < fibers.size(); ++i)
        fibers[i].index = {unsigned(i % blockDim.x), unsigned(i / blockDim.x % blockDim.y),
                           unsigned(i / blockDim.x / blockDim.y)};
    std::vector<size_t> blocks(size_t(gridDim.x) * gridDim.y * gridDim.z);
    arrange(blocks, launch.order);
    for (size_t i : blocks) {
        blockIdx = {unsigned(i % gridDim.x), unsigned(i / gridDim.x % gridDim.y),
                    unsigned(i / gridDim.x / gridDim.y)};
        run_block(launch.order);
        free_shared();
    }
}

inline int serve(const Entry* entries, size_t number) {
    Launch launch;
    while (receive(&launch, sizeof launch)) {
        if (launch.kernel >= number) fail("no such kernel");
        const Entry& entry = entries[launch.kernel];
        std::vector<Argument> given(launch.count);
        std::vector<char*> allocations;
        for (Argument& argument : given) {
            if (!receive(&argument, 3 * sizeof(uint64_t))) return 1;
            // malloc's addresses are multiples of 16: the offset keeps the tensor's own alignment
            allocations.push_back(static_cast<char*>(malloc(argument.offset + argument.bytes)));
            argument.at = argument.kind == NOTHING ? nullptr : allocations.back() + argument.offset;
            if (!receive(argument.at, argument.bytes)) return 1;
        }
        if (launch.count != entry.count || !entry.fits(given.data()))
            fail("the arguments do not fit the compiled kernel's parameters");
        arguments = given.data();
        kernel = entry.call;
        alarm(unsigned(launch.seconds));
        run(launch);
        alarm(0);
        for (const Argument& argument : given)
            if (argument.kind == WRITTEN && argument.bytes) fwrite(argument.at, 1, argument.bytes, stdout);
        fputc('.', stdout);
        fflush(stdout);
        for (char* allocation : allocations) free(allocation);
    }
    return 0;
}

}  // namespace cuda_host

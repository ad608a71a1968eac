// Put in front of a CUDA C++ source when g++ compiles it: CUDA's words, on one core.
//
// Blocks run one after another. The threads of a block take turns on one core, each on a stack of its own, and change
// at barriers only; so atomics are plain reads and writes, and a missing barrier shows as a wrong result in one of the
// three orders below.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <math.h>
#include <utility>
#include <vector>

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#undef __constant__
#undef __device__
#undef __forceinline__
#undef __global__
#undef __grid_constant__
#undef __host__
#undef __launch_bounds__
#undef __managed__
#undef __noinline__
#undef __shared__
#define __constant__
#define __device__
#define __forceinline__ inline
#define __global__
#define __grid_constant__
#define __host__
#define __launch_bounds__(...)
#define __managed__
#define __noinline__
#define __shared__ static  // of one block at a time

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

// -- threads ---------------------------------------------------------------------------------------------------------
// void host_switch(void** save, void* load): keep this stack in *save, go on with another. Six registers belong to
// the caller by the convention of x86-64; the rest the compiler saves by itself.
asm(R"(
    .text
    .type host_switch, @function
host_switch:
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
extern "C" __attribute__((visibility("hidden"))) void host_switch(void** save, void* load);

namespace host {

enum Order { FORWARD, BACKWARD, WARP_BY_WARP };
enum State { READY, AT_BLOCK, AT_WARP, ENDED };

struct Thread {
    void* stack_pointer;
    char* stack;
    State state;
    uint3 index;
};

const size_t STACK = 64 << 10, SHARED = 48 << 10;
static std::vector<Thread> threads;
static void* scheduler;                 // its stack pointer, while a thread runs
static int running;                     // index of the thread that runs
static bool has_barriers;
static void (*kernel)(void**);
static void** arguments;
static char exchange[1024][16];         // what each thread shows to its warp
alignas(16) static char dynamic_shared[SHARED];

[[noreturn]] static void stop(const char* why) {
    fprintf(stderr, "hostcuda: %s\n", why);
    abort();
}

static void begin_thread() {
    kernel(arguments);
    memset(exchange[running], 0, sizeof exchange[running]);
    threads[running].state = ENDED;
    void* nowhere;
    host_switch(&nowhere, scheduler);
    stop("a thread that had ended went on");
}

static void wait(State at) {
    if (!has_barriers) stop("a barrier in a kernel in whose source none was seen");
    Thread& me = threads[running];
    me.state = at;
    host_switch(&me.stack_pointer, scheduler);
    threadIdx = me.index;
}

static uint3 index_of(int i) {
    uint3 t;
    t.x = i % blockDim.x;
    t.y = i / blockDim.x % blockDim.y;
    t.z = i / (blockDim.x * blockDim.y);
    return t;
}

static void make_threads(int n) {
    while ((int)threads.size() < n) {
        threads.emplace_back();
        threads.back().stack = (char*)aligned_alloc(64, STACK);
    }
    for (int i = 0; i < n; i++) {
        // As host_switch left it: six registers, then where to return to. A function begins with its stack 8 off 16.
        void** top = (void**)(threads[i].stack + STACK) - 1;
        *--top = (void*)begin_thread;
        for (int r = 0; r < 6; r++) *--top = nullptr;
        threads[i].stack_pointer = top;
        threads[i].state = READY;
        threads[i].index = index_of(i);
    }
}

static int count(int first, int last, State state) {
    int n = 0;
    for (int i = first; i < last; i++) n += threads[i].state == state;
    return n;
}

static void open(int first, int last, State barrier) {
    for (int i = first; i < last; i++)
        if (threads[i].state == barrier) threads[i].state = READY;
}

// Let warps go on whose threads have all arrived or ended; tell whether there was one.
static bool open_warps(int n) {
    bool any = false;
    for (int first = 0; first < n; first += 32) {
        int last = first + 32 < n ? first + 32 : n, waiting = count(first, last, AT_WARP);
        if (waiting && waiting + count(first, last, ENDED) == last - first) {
            open(first, last, AT_WARP);
            any = true;
        }
    }
    return any;
}

// FORWARD and BACKWARD: each thread in turn until its next barrier. WARP_BY_WARP: one warp until none of it can go
// on; so a warp that reads what another is still to write, or writes what another is still to read, is found out.
static void run_block(int n, int order) {
    make_threads(n);
    memset(exchange, 0, sizeof exchange);
    for (;;) {
        int first = 0, last = n;
        if (order == WARP_BY_WARP) {
            int ready = 0;
            while (ready < n && threads[ready].state != READY) ready++;
            first = ready / 32 * 32;
            last = first + 32 < n ? first + 32 : n;
        }
        for (int step = first; step < last; step++) {
            int i = order == BACKWARD ? n - 1 - step : step;
            if (threads[i].state != READY) continue;
            running = i;
            threadIdx = threads[i].index;
            host_switch(&scheduler, threads[i].stack_pointer);
        }
        int ended = count(0, n, ENDED);
        if (ended == n) return;
        if (open_warps(n) || count(0, n, READY)) continue;
        if (count(0, n, AT_BLOCK) + ended < n) stop("some threads of a warp wait where others do not");
        open(0, n, AT_BLOCK);
    }
}

static void launch(void (*body)(void**), void** given, const unsigned* grid, const unsigned* block, unsigned shared,
                   int order, bool barriers) {
    kernel = body;
    arguments = given;
    has_barriers = barriers;
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    const int n = block[0] * block[1] * block[2];
    const long long blocks = (long long)grid[0] * grid[1] * grid[2];
    for (long long step = 0; step < blocks; step++) {
        const long long b = order == BACKWARD ? blocks - 1 - step : step;
        blockIdx.x = b % grid[0];
        blockIdx.y = b / grid[0] % grid[1];
        blockIdx.z = b / ((long long)grid[0] * grid[1]);
        memset(dynamic_shared, 0xA5, shared);  // nobody may count on zeros there
        if (barriers) {
            run_block(n, order);
            continue;
        }
        for (int i = 0; i < n; i++) {
            threadIdx = index_of(order == BACKWARD ? n - 1 - i : i);
            kernel(arguments);
        }
    }
}

// CUDA hands a kernel an array of pointers to its arguments; here is the call with their types back.
template <class T> struct Bare { typedef typename std::remove_cv<typename std::remove_reference<T>::type>::type type; };
template <class... A, size_t... I>
static void unpack(void (*f)(A...), void** given, std::index_sequence<I...>) {
    f(*(typename Bare<A>::type*)given[I]...);
}
template <class... A>
static void unpack(void (*f)(A...), void** given) {
    unpack(f, given, std::index_sequence_for<A...>());
}

// How many arguments a kernel takes, and the bytes of each, for a graph that keeps them.
struct Sizes { size_t value[65]; };
template <class... A>
constexpr Sizes sizes_of(void (*)(A...)) {
    return Sizes{{sizeof...(A), sizeof(A)...}};
}

// -- warps -----------------------------------------------------------------------------------------------------------
static int lane() { return running % 32; }

template <class T>
static T from_lane(T mine, int other) {
    static_assert(sizeof(T) <= sizeof exchange[0], "what a warp exchanges has at most 16 bytes");
    memcpy(exchange[running], &mine, sizeof mine);
    wait(AT_WARP);
    memcpy(&mine, exchange[running / 32 * 32 + other], sizeof mine);
    wait(AT_WARP);
    return mine;
}

static unsigned votes(int mine) {
    exchange[running][0] = mine != 0;
    wait(AT_WARP);
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= (unsigned)exchange[running / 32 * 32 + i][0] << i;
    wait(AT_WARP);
    return bits;
}

}  // namespace host

static inline void __syncthreads() { host::wait(host::AT_BLOCK); }
static inline void __syncwarp(unsigned = ~0u) { host::wait(host::AT_WARP); }
static inline void __threadfence() {}
static inline void __threadfence_block() {}

template <class T>
static T __shfl_sync(unsigned, T v, int from, int width = 32) {
    return host::from_lane(v, host::lane() / width * width + from % width);
}
template <class T>
static T __shfl_xor_sync(unsigned, T v, int mask, int width = 32) {
    const int other = host::lane() ^ mask;
    return host::from_lane(v, other / width > host::lane() / width ? host::lane() : other);
}
template <class T>
static T __shfl_down_sync(unsigned, T v, unsigned by, int width = 32) {
    const int other = host::lane() + (int)by;
    return host::from_lane(v, other / width == host::lane() / width ? other : host::lane());
}
template <class T>
static T __shfl_up_sync(unsigned, T v, unsigned by, int width = 32) {
    return host::from_lane(v, host::lane() % width >= (int)by ? host::lane() - (int)by : host::lane());
}
static unsigned __ballot_sync(unsigned mask, int p) { return host::votes(p) & mask; }
static int __any_sync(unsigned mask, int p) { return (host::votes(p) & mask) != 0; }
static int __all_sync(unsigned mask, int p) { return (~host::votes(p) & mask) == 0; }

// -- bits ------------------------------------------------------------------------------------------------------------
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
static inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}

template <class To, class From>
static inline To host_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
static inline int __float_as_int(float x) { return host_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return host_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return host_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return host_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return host_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return host_bits<double>(x); }
static inline int __double2hiint(double x) { return (int)(host_bits<unsigned long long>(x) >> 32); }
static inline int __double2loint(double x) { return (int)host_bits<unsigned long long>(x); }
static inline double __hiloint2double(int hi, int lo) {
    return host_bits<double>((unsigned long long)(unsigned)hi << 32 | (unsigned)lo);
}

// Half precision, as CuPy's own float16 class asks for it.
static inline unsigned short __float2half_rn(float x) { return host_bits<unsigned short>((_Float16)x); }
static inline float __half2float(unsigned short x) { return (float)host_bits<_Float16>(x); }
template <class Half>
static inline unsigned short __half_as_ushort(Half x) { return host_bits<unsigned short>(x); }
#define __ushort_as_half(bits) half(__half_raw{bits})

// -- arithmetic: the quick forms of a GPU are exact here ---------------------------------------------------------------
template <class T>
static inline T __ldg(const T* p) { return *p; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float rsqrt(float x) { return 1 / sqrtf(x); }
static inline double rsqrt(double x) { return 1 / sqrt(x); }
static inline float rcbrt(float x) { return 1 / cbrtf(x); }
static inline float __expf(float x) { return expf(x); }
static inline float __logf(float x) { return logf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __frcp_rn(float x) { return 1 / x; }
static inline double normcdf(double x) { return erfc(-x * M_SQRT1_2) / 2; }
static inline float normcdff(float x) { return (float)normcdf(x); }

#define HOST_LEAST_AND_GREATEST(T)                          \
    static inline T min(T a, T b) { return b < a ? b : a; } \
    static inline T max(T a, T b) { return a < b ? b : a; }
HOST_LEAST_AND_GREATEST(int)
HOST_LEAST_AND_GREATEST(long)
HOST_LEAST_AND_GREATEST(long long)
HOST_LEAST_AND_GREATEST(unsigned)
HOST_LEAST_AND_GREATEST(unsigned long)
HOST_LEAST_AND_GREATEST(unsigned long long)
static inline float min(float a, float b) { return fminf(a, b); }  // a number beats a NaN, as in CUDA
static inline float max(float a, float b) { return fmaxf(a, b); }
static inline double min(double a, double b) { return fmin(a, b); }
static inline double max(double a, double b) { return fmax(a, b); }

#define HOST_ATOMIC(name, T, made)      \
    static inline T name(T* at, T v) { \
        T old = *at;                   \
        *at = made;                    \
        return old;                    \
    }
#define HOST_ATOMIC_SWAP(T)                            \
    static inline T atomicCAS(T* at, T expected, T v) { \
        T old = *at;                                   \
        if (old == expected) *at = v;                  \
        return old;                                    \
    }
#define HOST_INTEGER_ATOMICS(T)                  \
    HOST_ATOMIC(atomicAdd, T, old + v)           \
    HOST_ATOMIC(atomicExch, T, v)                \
    HOST_ATOMIC(atomicMax, T, old > v ? old : v) \
    HOST_ATOMIC(atomicMin, T, old < v ? old : v) \
    HOST_ATOMIC(atomicAnd, T, old& v)            \
    HOST_ATOMIC(atomicOr, T, old | v)            \
    HOST_ATOMIC(atomicXor, T, old ^ v)           \
    HOST_ATOMIC_SWAP(T)
HOST_INTEGER_ATOMICS(int)
HOST_INTEGER_ATOMICS(unsigned)
HOST_INTEGER_ATOMICS(unsigned long long)
HOST_ATOMIC_SWAP(unsigned short)
HOST_ATOMIC(atomicAdd, float, old + v)
HOST_ATOMIC(atomicAdd, double, old + v)
HOST_ATOMIC(atomicExch, float, v)

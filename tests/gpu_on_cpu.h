// What kernels.cu needs of a GPU, on the CPU: a thread each, blocks one after the other.
// test_kernels.py compiles this, the kernels and one `launch` with a C++ compiler.
#include <barrier>
#include <cmath>
#include <cstring>
#include <deque>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static

struct Index { int x, y, z; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) ushort4 { unsigned short x, y, z, w; };
struct alignas(4) ushort2 { unsigned short x, y; };
struct Warp { std::barrier<> together{32}; unsigned long long said[32]; };

static thread_local Index threadIdx, blockIdx;
static thread_local Warp* warp_of_thread;
static Index blockDim;
static std::barrier<>* block;

static float __uint_as_float(unsigned bits) { float f; memcpy(&f, &bits, 4); return f; }
static unsigned __float_as_uint(float f) { unsigned bits; memcpy(&bits, &f, 4); return bits; }
static float half_to_float(unsigned short bits) { _Float16 h; memcpy(&h, &bits, 2); return h; }
static unsigned short float_to_half(float f) {
    _Float16 h = f;
    unsigned short bits;
    memcpy(&bits, &h, 2);
    return bits;
}
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static void __syncthreads() { block->arrive_and_wait(); }

template <class T> T __shfl_sync(unsigned, T value, int from) {
    Warp& warp = *warp_of_thread;
    memcpy(&warp.said[threadIdx.x % 32], &value, sizeof value);
    warp.together.arrive_and_wait();
    memcpy(&value, &warp.said[from], sizeof value);
    warp.together.arrive_and_wait();
    return value;
}

template <class T> T __shfl_xor_sync(unsigned mask, T value, int far) {
    return __shfl_sync(mask, value, threadIdx.x % 32 ^ far);
}

template <class Work> void launch(int blocks, int threads, Work work) {
    blockDim = {threads, 1, 1};
    for (int b = 0; b < blocks; b++) {
        std::barrier<> together(threads);
        std::deque<Warp> warps(threads / 32);
        std::vector<std::thread> running;
        block = &together;
        for (int t = 0; t < threads; t++)
            running.emplace_back([&, t] {
                threadIdx = {t, 0, 0};
                blockIdx = {b, 0, 0};
                warp_of_thread = &warps[t / 32];
                work();
            });
        for (std::thread& thread : running) thread.join();
    }
}

// What a decoder's step and the vision encoder do between matrix products, each in one pass over
// memory. kernels.py compiles them with HALF_IS_BF16 and the sizes that each is for.

typedef unsigned short half_t;  // the bits of a number in half precision
const unsigned ALL = 0xffffffff;
const float NEVER = -3e38f;

__device__ inline float wide(half_t bits) {
#if HALF_IS_BF16
    return __uint_as_float((unsigned)bits << 16);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#endif
}

__device__ inline half_t narrow(float value) {
#if HALF_IS_BF16
    // To the nearest, ties to even; GPUs before Ampere have no instruction for it.
    unsigned bits = __float_as_uint(value);
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
#else
    half_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#endif
}

__device__ inline float summed(float value) {
    for (int far = 16; far; far /= 2) value += __shfl_xor_sync(ALL, value, far);
    return value;
}

__device__ inline float largest(float value) {
    for (int far = 16; far; far /= 2) value = fmaxf(value, __shfl_xor_sync(ALL, value, far));
    return value;
}

#ifdef WIDTH
// One warp a row: normed = layer norm of (x + added). kept: the sum (KEEP_SUM), or the norm in fp32.
// All (rows, WIDTH), WIDTH a multiple of 128; kept may be x itself.
extern "C" __global__ void add_norm(const float* x, const half_t* added, const float* weight,
                                    const float* bias, float* kept, half_t* normed, int rows,
                                    double epsilon) {
    const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    const long long start = (long long)row * WIDTH + 4 * lane;
    float4 values[WIDTH / 128];
    float sum = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < WIDTH / 128; i++) {
        float4 value = *(const float4*)(x + start + 128 * i);
        ushort4 more = *(const ushort4*)(added + start + 128 * i);
        value.x += wide(more.x);
        value.y += wide(more.y);
        value.z += wide(more.z);
        value.w += wide(more.w);
        sum += value.x + value.y + value.z + value.w;
        values[i] = value;
    }
    const float mean = summed(sum) / WIDTH;
#pragma unroll
    for (int i = 0; i < WIDTH / 128; i++) {
        const float4 value = values[i];
        squares += (value.x - mean) * (value.x - mean) + (value.y - mean) * (value.y - mean)
                 + (value.z - mean) * (value.z - mean) + (value.w - mean) * (value.w - mean);
    }
    const float scale = rsqrtf(summed(squares) / WIDTH + (float)epsilon);
#pragma unroll
    for (int i = 0; i < WIDTH / 128; i++) {
        const float4 value = values[i];
        const float4 by = *(const float4*)(weight + 4 * lane + 128 * i);
        const float4 plus = *(const float4*)(bias + 4 * lane + 128 * i);
        float4 out;
        out.x = (value.x - mean) * scale * by.x + plus.x;
        out.y = (value.y - mean) * scale * by.y + plus.y;
        out.z = (value.z - mean) * scale * by.z + plus.z;
        out.w = (value.w - mean) * scale * by.w + plus.w;
        ushort4 bits;
        bits.x = narrow(out.x);
        bits.y = narrow(out.y);
        bits.z = narrow(out.z);
        bits.w = narrow(out.w);
        *(float4*)(kept + start + 128 * i) = KEEP_SUM ? value : out;
        *(ushort4*)(normed + start + 128 * i) = bits;
    }
}
#endif

#ifdef PATCHES
// Attention of the ROWS rows of a picture to its patches; 256 threads a picture and head.
//   query  (batch, ROWS, HEADS, 64), and out
//   seen   (batch, PATCHES, 2, HEADS, 64)            keys and values
__device__ inline void read8(const half_t* from, float* to) {
    const uint4 bits = *(const uint4*)from;
    const unsigned pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        to[2 * i] = wide(pairs[i] & 0xffff);
        to[2 * i + 1] = wide(pairs[i] >> 16);
    }
}

extern "C" __global__ void attend_picture(const half_t* query, const half_t* seen, half_t* out) {
    __shared__ float weights[ROWS][PATCHES];
    __shared__ float totals[8][ROWS][64];
    const int picture = blockIdx.x / HEADS, head = blockIdx.x % HEADS;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    // Eight threads have eight numbers each of one patch, the block 32 patches at a time.
    const int place = threadIdx.x / 8, part = 8 * (threadIdx.x % 8), stride = 2 * HEADS * 64;
    const long long mine = ((long long)picture * ROWS * HEADS + head) * 64;
    const half_t* keys = seen + ((long long)picture * PATCHES * 2 * HEADS + head) * 64 + part;
    const half_t* values = keys + HEADS * 64;

    float asked[ROWS][8], sums[ROWS][8] = {};
#pragma unroll
    for (int r = 0; r < ROWS; r++) read8(query + mine + r * HEADS * 64 + part, asked[r]);
#pragma unroll 4
    for (int first = 0; first < PATCHES; first += 32) {
        const int p = first + place;
        float key[8];
        read8(keys + (p < PATCHES ? p : 0) * stride, key);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float product = 0;
            for (int i = 0; i < 8; i++) product += asked[r][i] * key[i];
            for (int far = 4; far; far /= 2) product += __shfl_xor_sync(ALL, product, far);
            if (part == 0 && p < PATCHES) weights[r][p] = product * 0.125f;  // 64 ** -0.5
        }
    }
    __syncthreads();
    if (warp < ROWS) {  // a softmax each; there are no more rows than warps
        float top = NEVER, total = 0;
        for (int p = lane; p < PATCHES; p += 32) top = fmaxf(top, weights[warp][p]);
        top = largest(top);
        for (int p = lane; p < PATCHES; p += 32) {
            const float weight = expf(weights[warp][p] - top);
            weights[warp][p] = weight;
            total += weight;
        }
        total = summed(total);
        for (int p = lane; p < PATCHES; p += 32) weights[warp][p] /= total;
    }
    __syncthreads();
#pragma unroll 4
    for (int first = 0; first < PATCHES; first += 32) {
        const int p = first + place;
        if (p >= PATCHES) continue;
        float value[8];
        read8(values + p * stride, value);
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            for (int i = 0; i < 8; i++) sums[r][i] += weights[r][p] * value[i];
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sums[r][i] += __shfl_xor_sync(ALL, sums[r][i], 8);
            sums[r][i] += __shfl_xor_sync(ALL, sums[r][i], 16);
            if (lane < 8) totals[warp][r][part + i] = sums[r][i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * 64; i += 256) {
        float total = 0;
        for (int w = 0; w < 8; w++) total += totals[w][i / 64][i % 64];
        out[mine + i / 64 * HEADS * 64 + i % 64] = narrow(total);
    }
}
#elif defined(HEADS)
// Self-attention of one new word a row to the words on the row's path, of heads 64 wide; one warp a
// row and head.
//   qkv    (batch, ROWS, 3, HEADS, 64)               of the new words, at position `start`
//   keys   (batch, HEADS, length * ROWS, 64)         of the word at p in row r at p * ROWS + r
//   values the same; the new words' are written to both
//   paths  (batch, ROWS, length)                     the row that said each word; start < 128
//   out    (batch, ROWS, HEADS, 64)
extern "C" __global__ void attend_path(const half_t* qkv, half_t* keys, half_t* values,
                                       const long long* paths, half_t* out, int batch, int length,
                                       int start) {
    const int warp = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (warp >= batch * ROWS * HEADS) return;
    const int head = warp % HEADS, row = warp / HEADS % ROWS, picture = warp / HEADS / ROWS;
    const half_t* query = qkv + ((long long)(picture * ROWS + row) * 3 * HEADS + head) * 64;
    const half_t* key = query + HEADS * 64;
    const half_t* value = key + HEADS * 64;
    const long long past = (long long)(picture * HEADS + head) * length * ROWS * 64;
    const long long* path = paths + (long long)(picture * ROWS + row) * length;

    // A lane has the words at its number, 32 further on, and so on.
    float scores[4];
    const half_t* said[4];
    float top = NEVER;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int p = lane + 32 * i;
        scores[i] = NEVER;
        said[i] = value;
        if (p > start) continue;
        const long long slot = past + (p * ROWS + (p < start ? path[p] : row)) * 64;
        const half_t* other = p < start ? keys + slot : key;
        if (p < start) said[i] = values + slot;
        float product = 0;
        for (int d = 0; d < 64; d += 4) {
            const ushort4 a = *(const ushort4*)(query + d), b = *(const ushort4*)(other + d);
            product += wide(a.x) * wide(b.x) + wide(a.y) * wide(b.y)
                     + wide(a.z) * wide(b.z) + wide(a.w) * wide(b.w);
        }
        scores[i] = product * 0.125f;  // 64 ** -0.5
        top = fmaxf(top, scores[i]);
    }
    top = largest(top);
    float total = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        scores[i] = expf(scores[i] - top);
        total += scores[i];
    }
    total = summed(total);

    // Now a lane has two of the 64 numbers.
    float first = 0, second = 0;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        for (int p = 32 * i; p < 32 * i + 32 && p <= start; p++) {
            const float weight = __shfl_sync(ALL, scores[i], p % 32);
            const half_t* from = (const half_t*)__shfl_sync(
                ALL, (unsigned long long)said[i], p % 32);
            const ushort2 numbers = *(const ushort2*)(from + 2 * lane);
            first += weight * wide(numbers.x);
            second += weight * wide(numbers.y);
        }
    }
    ushort2 bits;
    bits.x = narrow(first / total);
    bits.y = narrow(second / total);
    *(ushort2*)(out + ((long long)(picture * ROWS + row) * HEADS + head) * 64 + 2 * lane) = bits;
    const long long here = past + (start * ROWS + row) * 64 + 2 * lane;
    *(ushort2*)(keys + here) = *(const ushort2*)(key + 2 * lane);
    *(ushort2*)(values + here) = *(const ushort2*)(value + 2 * lane);
}
#endif

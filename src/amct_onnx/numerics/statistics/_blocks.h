/* What _counting.c and _tally.c share: blocks, vectors, extremes, and the threads that a caller lends. */
#ifndef AMCT_ONNX_BLOCKS_H
#define AMCT_ONNX_BLOCKS_H
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024
#define MOST_PARTS 16

#define INFINITY_KEY 0x7f800000

static float float_of(int32_t key)
{
    float value;
    key ^= (key >> 31) & INT32_MAX;
    memcpy(&value, &key, sizeof value);
    return value;
}

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST_VECTORS
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define PREFETCH(address) ((void)(address))
#endif

/* Widen [smallest, largest] to `n` values, as integers in the order of the floats: NaN lies beyond the infinities. */
static inline void find_extremes(const float *x, Py_ssize_t n, int32_t *smallest, int32_t *largest)
{
    int32_t low = *smallest, high = *largest;
    for (Py_ssize_t i = 0; i < n; i++) {
        int32_t key;
        memcpy(&key, x + i, sizeof key);
        key ^= (key >> 31) & INT32_MAX;
        low = key < low ? key : low;
        high = key > high ? key : high;
    }
    *smallest = low;
    *largest = high;
}

/* What runs the parts: `run` calls task(data, i) for each i < count, on threads of its own. `_operators.c` has the same
 * declaration and lends ONNX Runtime's threads, which are warm and otherwise idle. */
typedef struct Runner {
    int (*run)(const struct Runner *, void (*task)(void *, size_t), void *data, size_t count);
} Runner;

#endif

/* An accumulator: the histogram of one tensor, which keeps its bins from call to call. `NumpyAccumulator` in
 * accumulator.py counts the same without a compiler.
 *
 * Values are added up in tables of MAX_BINS bins, one for each thread that counts at a time. A table is large enough
 * for all values so far, on the grid that histogram.py gives to their extremes. When the range grows, the bins are
 * moved or added up, which is exact; so no value is looked at twice.
 *
 * Arrays come as addresses, since the stable ABI of Python 3.10 has no buffer protocol. accumulator.py owns them.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <math.h>
#include <pythread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 1024
#define MOST_PARTS 16
#define MAX_BINS 16384
#define INDEX_BITS 23
#define MIN_EXPONENT (-120)
#define SPREAD 16 /* bin 0 is counted in this many places in turn: rows of zeros would wait for their own last store */
#define LINE 16   /* floats in a cache line */
#define PER_THREAD (1 << 17)
#define NOT_FINITE 1
#define NO_MEMORY 4
#define INFINITY_KEY 0x7f800000

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define WIDEST_VECTORS __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define WIDEST_VECTORS
#endif

#if defined(__GNUC__)
#define PREFETCH(address) __builtin_prefetch(address)
#define THREAD_LOCAL __thread
#else
#define PREFETCH(address) ((void)(address))
#define THREAD_LOCAL __declspec(thread)
#endif

typedef struct {
    PyThread_type_lock busy;
    int32_t exponent, first;
    int32_t smallest, largest; /* as find_extremes gives them */
    uint32_t *recent;          /* [MAX_BINS + SPREAD], NULL as long as nothing was counted */
    int64_t *counts;           /* [MAX_BINS], what `recent` held before it could overflow; NULL if it never could */
    uint64_t filled;           /* how many values are in `recent` */
} Table;

typedef struct {
    Table tables[MOST_PARTS];
    int parts;
    volatile int wrong; /* flags: what was wrong with the values of any call */
} Accumulator;

/* What runs the parts of one call: `run` calls task(data, i) for each i < count, on threads of its own. `_operators.c`
 * has the same declaration and lends ONNX Runtime's threads, which are warm and otherwise idle. */
typedef struct Runner {
    int (*run)(const struct Runner *, void (*task)(void *, size_t), void *data, size_t count);
} Runner;

/* The threads that the operator lends which runs in this thread; NULL outside of one. */
static THREAD_LOCAL const Runner *lent = NULL;

static float float_of(int32_t key)
{
    float value;
    key ^= (key >> 31) & INT32_MAX;
    memcpy(&value, &key, sizeof value);
    return value;
}

/* Widen [smallest, largest] to `n` values, as integers in the order of the floats: NaN lies beyond the infinities. */
WIDEST_VECTORS static void find_extremes(const float *x, Py_ssize_t n, int32_t *smallest, int32_t *largest)
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

static int32_t index_of(double value, int exponent)
{
    return (int32_t)ldexp(value, -exponent);
}

/* The smallest exponent at which [low, high] needs at most MAX_BINS bins: `_exponent` of histogram.py. */
static int exponent_of(double low, double high)
{
    const double most = -low > high ? -low : high;
    int exponent, power;
    if (most == 0)
        return MIN_EXPONENT;
    frexp(most, &power);
    exponent = power - INDEX_BITS > MIN_EXPONENT ? power - INDEX_BITS : MIN_EXPONENT;
    if (high - low > 0) {
        frexp(high - low, &power);
        exponent = power - 15 > exponent ? power - 15 : exponent; /* 15 bits are what MAX_BINS takes */
    }
    while (index_of(high, exponent) - index_of(low, exponent) >= MAX_BINS)
        exponent++;
    return exponent;
}

/* Add `recent` to int64[MAX_BINS]. */
static void add_recent(const Table *table, int64_t *counts)
{
    for (int i = 0; i < MAX_BINS; i++)
        counts[i] += table->recent[i];
    for (int i = 0; i < SPREAD && table->first <= 0 && table->first + MAX_BINS > 0; i++)
        counts[-table->first] += table->recent[MAX_BINS + i];
}

/* Empty `recent` into `counts`. */
static int flush_table(Table *table)
{
    if (table->counts == NULL && (table->counts = calloc(MAX_BINS, sizeof(int64_t))) == NULL)
        return NO_MEMORY;
    add_recent(table, table->counts);
    memset(table->recent, 0, (MAX_BINS + SPREAD) * sizeof(uint32_t));
    table->filled = 0;
    return 0;
}

/* Let the bins of a table reach the extremes, which have grown. */
static int widen(Table *table, int32_t smallest, int32_t largest)
{
    const double minimum = float_of(smallest), maximum = float_of(largest);
    const int exponent = exponent_of(minimum, maximum);
    const int32_t low = index_of(minimum, exponent), high = index_of(maximum, exponent);
    const int empty = table->smallest > table->largest;
    table->smallest = smallest;
    table->largest = largest;
    if (!empty && exponent == table->exponent && low >= table->first && high < table->first + MAX_BINS)
        return 0;
    const int32_t spare = MAX_BINS - (high - low + 1);
    const int32_t first = low - (minimum == 0 ? 0 : maximum == 0 ? spare : spare / 2);
    if (!empty) {
        const int shift = exponent - table->exponent > 31 ? 31 : exponent - table->exponent;
        int64_t *old, *moved = calloc(MAX_BINS, sizeof(int64_t));
        if (moved == NULL || flush_table(table)) {
            free(moved);
            return NO_MEMORY;
        }
        old = table->counts;
        for (int32_t i = 0; i < MAX_BINS; i++)
            if (old[i] != 0) {
                const int64_t index = (int64_t)table->first + i;
                moved[(index < 0 ? -(-index >> shift) : index >> shift) - first] += old[i];
            }
        table->counts = moved;
        free(old);
    }
    table->exponent = exponent;
    table->first = first;
    return 0;
}

/* Count BLOCK values that lie within the bins of a table, or `n` if fewer. Those at `next` are asked for meanwhile: it
 * takes longer to get them from memory than to count them, and asking beyond their end is harmless. */
WIDEST_VECTORS static void count_block(const float *x, int n, float factor, int32_t first, uint32_t *bins,
                                       const float *next)
{
    int32_t index[BLOCK];
    int i;
    for (i = 0; i < n; i++) {
        const int32_t bin = (int32_t)(x[i] * factor);
        index[i] = bin == 0 ? MAX_BINS + (i & (SPREAD - 1)) : bin - first;
    }
    for (i = 0; i + LINE <= n; i += LINE) {
        PREFETCH(next + i);
        for (int j = 0; j < LINE; j++)
            bins[index[i + j]]++;
    }
    for (; i < n; i++)
        bins[index[i]]++;
}

static int add_to_table(Table *table, const float *x, Py_ssize_t n)
{
    int32_t smallest = table->smallest, largest = table->largest;
    int wrong = 0;
    if (table->recent == NULL) { /* the whole range at once, not block by block */
        if ((table->recent = calloc(MAX_BINS + SPREAD, sizeof(uint32_t))) == NULL)
            return NO_MEMORY;
        find_extremes(x, n, &smallest, &largest);
    }
    for (Py_ssize_t start = 0; start < n && !wrong; start += BLOCK) {
        const int length = (int)(n - start < BLOCK ? n - start : BLOCK);
        find_extremes(x + start, length, &smallest, &largest);
        if (largest >= INFINITY_KEY || smallest <= ~INFINITY_KEY)
            return NOT_FINITE;
        if (smallest < table->smallest || largest > table->largest)
            wrong = widen(table, smallest, largest);
        if (!wrong && table->filled + BLOCK > UINT32_MAX)
            wrong = flush_table(table);
        if (!wrong)
            count_block(x + start, length, (float)ldexp(1.0, -table->exponent), table->first, table->recent,
                        x + (start + BLOCK < n ? start + BLOCK : start));
        table->filled += (uint64_t)length;
    }
    return wrong;
}

typedef struct {
    Accumulator *accumulator;
    const float *x;
    Py_ssize_t n, parts;
} Addition;

/* Count one part in the first table that nobody uses. */
static void add_part(void *data, size_t index)
{
    const Addition *job = data;
    Accumulator *accumulator = job->accumulator;
    const Py_ssize_t i = (Py_ssize_t)index, begin = job->n / job->parts * i;
    const Py_ssize_t end = i + 1 == job->parts ? job->n : job->n / job->parts * (i + 1);
    int free_one = 0;
    while (free_one < accumulator->parts && !PyThread_acquire_lock(accumulator->tables[free_one].busy, NOWAIT_LOCK))
        free_one++;
    if (free_one == accumulator->parts)
        PyThread_acquire_lock(accumulator->tables[free_one = 0].busy, WAIT_LOCK);
    const int wrong = add_to_table(&accumulator->tables[free_one], job->x + begin, end - begin);
    if (wrong)
        accumulator->wrong |= wrong;
    PyThread_release_lock(accumulator->tables[free_one].busy);
}

/* Count `n` values, in as many parts as the accumulator has tables if threads were lent. Does not need the GIL;
 * `_operators.c` calls it. */
static void add_values(void *handle, const float *x, size_t n)
{
    Accumulator *accumulator = handle;
    Addition job = {accumulator, x, (Py_ssize_t)n, (Py_ssize_t)(n / PER_THREAD)};
    job.parts = job.parts > accumulator->parts ? accumulator->parts : job.parts < 1 ? 1 : job.parts;
    if (n == 0)
        return; /* a tensor may have no elements in some runs */
    if (lent == NULL || job.parts == 1 || !lent->run(lent, add_part, &job, (size_t)job.parts)) {
        job.parts = 1;
        add_part(&job, 0);
    }
}

/* Let this thread count on the threads of `runner`, which must live until it is called with NULL. */
static void lend_threads(const Runner *runner)
{
    lent = runner;
}

static void free_accumulator(Accumulator *accumulator)
{
    for (int i = 0; i < accumulator->parts; i++) {
        free(accumulator->tables[i].recent);
        free(accumulator->tables[i].counts);
        if (accumulator->tables[i].busy != NULL)
            PyThread_free_lock(accumulator->tables[i].busy);
    }
    free(accumulator);
}

static void destroy_accumulator(PyObject *capsule)
{
    free_accumulator(PyCapsule_GetPointer(capsule, NULL));
}

static PyObject *new_accumulator(PyObject *module, PyObject *args)
{
    int parts;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &parts))
        return NULL;
    if (parts < 1 || parts > MOST_PARTS) {
        PyErr_SetString(PyExc_ValueError, "between 1 and 16 parts");
        return NULL;
    }
    Accumulator *accumulator = calloc(1, sizeof(Accumulator));
    if (accumulator == NULL)
        return PyErr_NoMemory();
    accumulator->parts = parts;
    for (int i = 0; i < parts; i++) {
        accumulator->tables[i].smallest = INT32_MAX;
        accumulator->tables[i].largest = INT32_MIN;
        if ((accumulator->tables[i].busy = PyThread_allocate_lock()) == NULL) {
            free_accumulator(accumulator);
            return PyErr_NoMemory();
        }
    }
    PyObject *capsule = PyCapsule_New(accumulator, NULL, destroy_accumulator);
    if (capsule == NULL)
        free_accumulator(accumulator);
    return capsule;
}

static PyObject *address_of(PyObject *module, PyObject *capsule)
{
    (void)module;
    Accumulator *accumulator = PyCapsule_GetPointer(capsule, NULL);
    return accumulator == NULL ? NULL : PyLong_FromVoidPtr(accumulator);
}

static PyObject *add(PyObject *module, PyObject *args)
{
    PyObject *capsule, *address;
    Py_ssize_t n;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOn", &capsule, &address, &n))
        return NULL;
    Accumulator *accumulator = PyCapsule_GetPointer(capsule, NULL);
    const float *x = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    add_values(accumulator, x, (size_t)n);
    Py_END_ALLOW_THREADS
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *wrong_of(PyObject *module, PyObject *capsule)
{
    (void)module;
    const Accumulator *accumulator = PyCapsule_GetPointer(capsule, NULL);
    return accumulator == NULL ? NULL : PyLong_FromLong(accumulator->wrong);
}

static PyObject *read_table(PyObject *module, PyObject *args)
{
    PyObject *capsule, *address;
    int part;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiO", &capsule, &part, &address))
        return NULL;
    Accumulator *accumulator = PyCapsule_GetPointer(capsule, NULL);
    int64_t *counts = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    if (part < 0 || part >= accumulator->parts || accumulator->tables[part].recent == NULL) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    const Table *table = &accumulator->tables[part];
    if (table->counts == NULL)
        memset(counts, 0, MAX_BINS * sizeof(int64_t));
    else
        memcpy(counts, table->counts, MAX_BINS * sizeof(int64_t));
    add_recent(table, counts);
    return Py_BuildValue("iidd", (int)table->exponent, (int)table->first, (double)float_of(table->smallest),
                         (double)float_of(table->largest));
}

static PyObject *clear(PyObject *module, PyObject *capsule)
{
    (void)module;
    Accumulator *accumulator = PyCapsule_GetPointer(capsule, NULL);
    if (accumulator == NULL)
        return NULL;
    for (int i = 0; i < accumulator->parts; i++) {
        Table *table = &accumulator->tables[i];
        free(table->recent);
        free(table->counts);
        *table = (Table){.busy = table->busy, .smallest = INT32_MAX, .largest = INT32_MIN};
    }
    accumulator->wrong = 0;
    Py_INCREF(Py_None);
    return Py_None;
}

static PyMethodDef methods[] = {
    {"new", new_accumulator, METH_VARARGS, "new(parts) -> accumulator, which `parts` threads can add to at a time"},
    {"address", address_of, METH_O, "address(accumulator) -> what `add_function` takes; the accumulator owns it"},
    {"add", add, METH_VARARGS, "add(accumulator, address, n): count n float32 values"},
    {"wrong", wrong_of, METH_O,
     "wrong(accumulator) -> flags: 1 for NaN or Inf, 2 for no values at all, 4 for no memory"},
    {"read", read_table, METH_VARARGS,
     "read(accumulator, part, counts_address) -> (exponent, first, minimum, maximum), or None if it counted nothing\n\n"
     "Writes int64[16384]. Nobody may add meanwhile."},
    {"clear", clear, METH_O, "clear(accumulator): it has counted nothing. Nobody may add meanwhile."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_accumulator", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

static int add_address(PyObject *module, const char *name, uintptr_t address)
{
    PyObject *number = PyLong_FromVoidPtr((void *)address);
    if (number != NULL && PyModule_AddObject(module, name, number) == 0)
        return 0;
    Py_XDECREF(number);
    return -1;
}

PyMODINIT_FUNC PyInit__accumulator(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (add_address(module, "add_function", (uintptr_t)add_values) ||
                           add_address(module, "lend_function", (uintptr_t)lend_threads))) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}

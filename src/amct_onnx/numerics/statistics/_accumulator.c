/* A tally: the histogram of one tensor, which keeps its bins from call to call. The twin of `Tally` in tally.py.
 *
 * Values are added up in tables of MAX_BINS bins, one for each thread that counts at a time. A table is large enough for
 * all values so far, on the grid that histogram.py gives to their extremes. When the range grows, the bins are moved or
 * added up, which is exact; so no value is looked at twice.
 */
#include "_blocks.h"
#include <math.h>
#include <pythread.h>

#define MAX_BINS 16384
#define INDEX_BITS 23
#define MIN_EXPONENT (-120)
#define SPREAD 16 /* bin 0 is counted in this many places in turn: rows of zeros would wait for their own last store */
#define LINE 16   /* floats in a cache line */
#define PER_THREAD (1 << 17)
#define NOT_FINITE 1
#define EMPTY 2
#define NO_MEMORY 4

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
} Tally;

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

/* Empty `recent` into `counts`. */
static int flush_table(Table *table)
{
    if (table->counts == NULL && (table->counts = calloc(MAX_BINS, sizeof(int64_t))) == NULL)
        return NO_MEMORY;
    for (int i = 0; i < MAX_BINS; i++)
        table->counts[i] += table->recent[i];
    for (int i = 0; i < SPREAD && table->first <= 0 && table->first + MAX_BINS > 0; i++)
        table->counts[-table->first] += table->recent[MAX_BINS + i];
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

WIDEST_VECTORS static void block_extremes(const float *x, Py_ssize_t n, int32_t *smallest, int32_t *largest)
{
    find_extremes(x, n, smallest, largest);
}

static int add_to_table(Table *table, const float *x, Py_ssize_t n)
{
    int32_t smallest = table->smallest, largest = table->largest;
    int wrong = 0;
    if (table->recent == NULL) { /* the whole range at once, not block by block */
        if ((table->recent = calloc(MAX_BINS + SPREAD, sizeof(uint32_t))) == NULL)
            return NO_MEMORY;
        block_extremes(x, n, &smallest, &largest);
    }
    for (Py_ssize_t start = 0; start < n && !wrong; start += BLOCK) {
        const int length = (int)(n - start < BLOCK ? n - start : BLOCK);
        block_extremes(x + start, length, &smallest, &largest);
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
    Tally *tally;
    const float *x;
    Py_ssize_t n, parts;
} Addition;

/* Count one part in the first table that nobody uses. */
static void add_part(void *data, size_t index)
{
    const Addition *job = data;
    Tally *tally = job->tally;
    const Py_ssize_t i = (Py_ssize_t)index, begin = job->n / job->parts * i;
    const Py_ssize_t end = i + 1 == job->parts ? job->n : job->n / job->parts * (i + 1);
    int free_one = 0;
    while (free_one < tally->parts && !PyThread_acquire_lock(tally->tables[free_one].busy, NOWAIT_LOCK))
        free_one++;
    if (free_one == tally->parts)
        PyThread_acquire_lock(tally->tables[free_one = 0].busy, WAIT_LOCK);
    const int wrong = add_to_table(&tally->tables[free_one], job->x + begin, end - begin);
    if (wrong)
        tally->wrong |= wrong;
    PyThread_release_lock(tally->tables[free_one].busy);
}

/* Count `n` values on at most as many threads as the tally has tables. Does not need the GIL; `_operators.c` calls it. */
static void tally_add(void *handle, const float *x, size_t n, const Runner *runner)
{
    Tally *tally = handle;
    Addition job = {tally, x, (Py_ssize_t)n, (Py_ssize_t)(n / PER_THREAD)};
    job.parts = job.parts > tally->parts ? tally->parts : job.parts < 1 ? 1 : job.parts;
    if (n == 0)
        tally->wrong |= EMPTY;
    else if (runner == NULL || job.parts == 1 || !runner->run(runner, add_part, &job, (size_t)job.parts))
        for (Py_ssize_t i = 0; i < job.parts; i++)
            add_part(&job, (size_t)i);
}

static void free_tally(Tally *tally)
{
    for (int i = 0; i < tally->parts; i++) {
        free(tally->tables[i].recent);
        free(tally->tables[i].counts);
        if (tally->tables[i].busy != NULL)
            PyThread_free_lock(tally->tables[i].busy);
    }
    free(tally);
}

static void destroy_tally(PyObject *capsule)
{
    free_tally(PyCapsule_GetPointer(capsule, NULL));
}

static PyObject *tally_new(PyObject *module, PyObject *args)
{
    int parts;
    (void)module;
    if (!PyArg_ParseTuple(args, "i", &parts))
        return NULL;
    if (parts < 1 || parts > MOST_PARTS) {
        PyErr_SetString(PyExc_ValueError, "between 1 and 16 parts");
        return NULL;
    }
    Tally *tally = calloc(1, sizeof(Tally));
    if (tally == NULL)
        return PyErr_NoMemory();
    tally->parts = parts;
    for (int i = 0; i < parts; i++) {
        tally->tables[i].smallest = INT32_MAX;
        tally->tables[i].largest = INT32_MIN;
        if ((tally->tables[i].busy = PyThread_allocate_lock()) == NULL) {
            free_tally(tally);
            return PyErr_NoMemory();
        }
    }
    PyObject *capsule = PyCapsule_New(tally, NULL, destroy_tally);
    if (capsule == NULL)
        free_tally(tally);
    return capsule;
}

static PyObject *tally_address(PyObject *module, PyObject *capsule)
{
    (void)module;
    Tally *tally = PyCapsule_GetPointer(capsule, NULL);
    return tally == NULL ? NULL : PyLong_FromVoidPtr(tally);
}

static PyObject *tally_show(PyObject *module, PyObject *args)
{
    PyObject *capsule, *address;
    Py_ssize_t n;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOn", &capsule, &address, &n))
        return NULL;
    Tally *tally = PyCapsule_GetPointer(capsule, NULL);
    const float *x = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    tally_add(tally, x, (size_t)n, NULL);
    Py_END_ALLOW_THREADS
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *tally_wrong(PyObject *module, PyObject *capsule)
{
    (void)module;
    const Tally *tally = PyCapsule_GetPointer(capsule, NULL);
    return tally == NULL ? NULL : PyLong_FromLong(tally->wrong);
}

static PyObject *tally_read(PyObject *module, PyObject *args)
{
    PyObject *capsule, *address;
    int part;
    (void)module;
    if (!PyArg_ParseTuple(args, "OiO", &capsule, &part, &address))
        return NULL;
    Tally *tally = PyCapsule_GetPointer(capsule, NULL);
    int64_t *counts = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred())
        return NULL;
    if (part < 0 || part >= tally->parts || tally->tables[part].recent == NULL) {
        Py_INCREF(Py_None);
        return Py_None;
    }
    Table *table = &tally->tables[part];
    if (flush_table(table))
        return PyErr_NoMemory();
    memcpy(counts, table->counts, MAX_BINS * sizeof(int64_t));
    return Py_BuildValue("iidd", (int)table->exponent, (int)table->first, (double)float_of(table->smallest),
                         (double)float_of(table->largest));
}

static PyMethodDef methods[] = {
    {"new", tally_new, METH_VARARGS, "new(parts) -> tally, which `parts` threads can add to at a time"},
    {"address", tally_address, METH_O, "address(tally) -> what `tally_function` takes; the tally owns it"},
    {"show", tally_show, METH_VARARGS, "show(tally, address, n): count n float32 values"},
    {"wrong", tally_wrong, METH_O,
     "wrong(tally) -> flags: 1 for NaN or Inf, 2 for no values at all, 4 for no memory"},
    {"read", tally_read, METH_VARARGS,
     "read(tally, part, counts_address) -> (exponent, first, minimum, maximum), or None if it counted nothing\n\n"
     "Writes int64[16384]. Nobody may add meanwhile."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_accumulator", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__accumulator(void)
{
    PyObject *module = PyModule_Create(&definition);
    PyObject *function = PyLong_FromVoidPtr((void *)(uintptr_t)tally_add);
    if (module == NULL || function == NULL || PyModule_AddObject(module, "function", function) < 0) {
        Py_XDECREF(function);
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}

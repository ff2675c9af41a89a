/* Count float32 values in bins of a dyadic histogram: the compiled twin of `_count_numpy` in counting.py.
 *
 * One pass over memory gives counts and extremes. Arrays come as addresses, since the stable ABI of Python 3.10 has no
 * buffer protocol; counting.py is the only caller and owns the arrays. Four interleaved sub-histograms keep runs of
 * equal values (zeros behind a Relu) from waiting for their own last store.
 */
#include "_blocks.h"

#define LANES 4

WIDEST_VECTORS static int count_values(const float *x, Py_ssize_t n, float factor, int32_t low, int32_t size, int64_t *counts,
                        float *extremes)
{
    /* Bin 0 and bin size+1 catch what lies outside and what is NaN. */
    const float lower = (float)low - 1.0f, upper = (float)low + (float)size;
    const size_t bins = (size_t)size + 2;
    int32_t smallest = INT32_MAX, largest = INT32_MIN;
    int32_t index[BLOCK];
    uint32_t *lanes = calloc(bins * LANES, sizeof(uint32_t));
    if (lanes == NULL)
        return -1;
    for (Py_ssize_t start = 0; start < n; start += BLOCK) {
        const float *block = x + start;
        const int length = (int)(n - start < BLOCK ? n - start : BLOCK);
        int i;
        find_extremes(block, length, &smallest, &largest);
        if (size == 0)
            continue;
        for (i = 0; i < length; i++) {
            float f = block[i] * factor;
            f = f > lower ? f : lower; /* false for NaN */
            f = f < upper ? f : upper;
            index[i] = (int32_t)f - low + 1;
        }
        for (i = 0; i + LANES <= length; i += LANES) {
            lanes[index[i]]++;
            lanes[bins + index[i + 1]]++;
            lanes[2 * bins + index[i + 2]]++;
            lanes[3 * bins + index[i + 3]]++;
        }
        for (; i < length; i++)
            lanes[index[i]]++;
    }
    for (int32_t b = 0; b < size; b++)
        counts[b] += (int64_t)lanes[b + 1] + lanes[bins + b + 1] + lanes[2 * bins + b + 1] + lanes[3 * bins + b + 1];
    free(lanes);
    if (largest > INFINITY_KEY || smallest < ~INFINITY_KEY)
        smallest = largest = INFINITY_KEY;
    extremes[0] = float_of(smallest);
    extremes[1] = float_of(largest);
    return 0;
}

/* One call in parts of nearly equal length, each with counts and extremes of its own. */
typedef struct {
    const float *x;
    Py_ssize_t n, parts;
    float factor;
    int32_t low, size;
    int64_t *counts;
    float extremes[MOST_PARTS][2];
    int failed[MOST_PARTS];
} Job;

static void count_part(void *data, size_t index)
{
    Job *job = data;
    const Py_ssize_t i = (Py_ssize_t)index, begin = job->n / job->parts * i;
    const Py_ssize_t end = i + 1 == job->parts ? job->n : job->n / job->parts * (i + 1);
    job->failed[i] = count_values(job->x + begin, end - begin, job->factor, job->low, job->size,
                                  job->counts + i * job->size, job->extremes[i]);
}


static PyObject *count(PyObject *module, PyObject *args)
{
    PyObject *address, *target, *threads;
    Job job;
    double factor;
    (void)module;
    if (!PyArg_ParseTuple(args, "OndiiOnO", &address, &job.n, &factor, &job.low, &job.size, &target, &job.parts,
                          &threads))
        return NULL;
    job.x = PyLong_AsVoidPtr(address);
    job.counts = PyLong_AsVoidPtr(target);
    job.factor = (float)factor;
    const Runner *runner = PyLong_AsVoidPtr(threads);
    if (PyErr_Occurred())
        return NULL;
    if (job.parts < 1 || job.parts > MOST_PARTS || job.n < job.parts || job.n > UINT32_MAX || job.size < 0) {
        PyErr_SetString(PyExc_ValueError, "between 1 and 2^32-1 values, at most 16 parts, no negative number of bins");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    if (runner == NULL || job.parts == 1 || !runner->run(runner, count_part, &job, (size_t)job.parts))
        for (Py_ssize_t i = 0; i < job.parts; i++)
            count_part(&job, (size_t)i);
    Py_END_ALLOW_THREADS
    float smallest = job.extremes[0][0], largest = job.extremes[0][1];
    int failed = 0;
    for (Py_ssize_t i = 0; i < job.parts; i++) {
        smallest = job.extremes[i][0] < smallest ? job.extremes[i][0] : smallest;
        largest = job.extremes[i][1] > largest ? job.extremes[i][1] : largest;
        failed |= job.failed[i];
    }
    if (failed)
        return PyErr_NoMemory();
    return Py_BuildValue("dd", (double)smallest, (double)largest);
}

static PyMethodDef methods[] = {
    {"count", count, METH_VARARGS,
     "count(address, n, factor, low, size, counts_address, parts, runner) -> (minimum, maximum)\n\n"
     "Add 1 to counts[part, trunc(x * factor) - low] for each float32 x for which that is within [0, size). The "
     "maximum is inf if x holds NaN. `runner` is the address of a Runner, or 0."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_counting", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__counting(void)
{
    return PyModule_Create(&definition);
}

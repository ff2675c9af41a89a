/* The calibration operators of the domain amct.customop without a copy of the tensor.
 *
 * It is built as custom_op/libamct_onnx_ops.so, AMCT's name for its own library, and is a Python module as well. A script
 * may give that path to `register_custom_ops_library` itself; it then asks Python to connect it (`get_ready`).
 *
 * ONNX Runtime calls a kernel with a pointer to the tensor; this module wraps it in a memoryview and hands it with the
 * shape to the Python function given to `set_callback`. The same operators exist as Python operators of onnxruntime-extensions
 * (operators.py), which copy every tensor first; they are what runs where this module was not compiled.
 *
 * ONNX Runtime's C interface is a table of functions to which later versions only append, so the few positions used
 * here are declared by hand and one build serves every runtime. No runtime header is needed.
 */
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <stdint.h>
#include <string.h>

#ifndef PyBUF_READ
#define PyBUF_READ 0x100 /* part of the stable ABI, missing from its headers before Python 3.11 */
#endif

#ifdef _WIN32
#define ORT_CALL __stdcall
#define EXPORT __declspec(dllexport)
#else
#define ORT_CALL
#define EXPORT __attribute__((visibility("default")))
#endif

/* Positions in the runtime's function table, and the version of the interface that has them all. */
enum {
    CREATE_STATUS = 0,
    CREATE_CUSTOM_OP_DOMAIN = 26,
    CUSTOM_OP_DOMAIN_ADD = 27,
    ADD_CUSTOM_OP_DOMAIN = 28,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_DIMENSIONS_COUNT = 61,
    GET_DIMENSIONS = 62,
    GET_TENSOR_SHAPE_ELEMENT_COUNT = 64,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    ATTRIBUTE_FLOAT = 85,
    ATTRIBUTE_INT = 86,
    ATTRIBUTE_STRING = 87,
    CONTEXT_GET_INPUT = 90,
    CONTEXT_GET_OUTPUT = 91,
    RELEASE_STATUS = 93,
    RELEASE_TENSOR_TYPE_AND_SHAPE = 99,
    CONTEXT_PARALLEL_FOR = 274,
};
#define INTERFACE_VERSION 17
#define OPERATOR_VERSION 12 /* of the description of an operator below; a later one would have more fields */
#define ELEMENT_FLOAT 1
#define FAIL 1 /* the runtime's code of an error of no special kind */
#define MOST_AXES 64 /* of an array in numpy; Python is not shown a tensor of more */

typedef void *Handle;
typedef Handle Status; /* NULL is success */
typedef void(ORT_CALL *Function)(void);

typedef struct {
    const Function *(ORT_CALL *get_functions)(uint32_t version);
    const char *(ORT_CALL *get_version)(void);
} Base;

/* Lends the runtime's threads to `_accumulator.c`, which has the same declaration of the first member. */
typedef struct Runner {
    int (*run)(const struct Runner *, void (*task)(void *, size_t), void *data, size_t count);
    const Function *functions;
    Handle context;
} Runner;

/* An operator as the runtime wants it described. Fields of later interface versions stay NULL and are not read. */
typedef struct Operator {
    uint32_t version;
    Handle(ORT_CALL *create)(const struct Operator *, const Function *, Handle info);
    const char *(ORT_CALL *name)(const struct Operator *);
    const char *(ORT_CALL *provider)(const struct Operator *);
    int(ORT_CALL *input_type)(const struct Operator *, size_t);
    size_t(ORT_CALL *input_count)(const struct Operator *);
    int(ORT_CALL *output_type)(const struct Operator *, size_t);
    size_t(ORT_CALL *output_count)(const struct Operator *);
    void(ORT_CALL *compute)(Handle kernel, Handle context);
    void(ORT_CALL *destroy)(Handle kernel);
    int(ORT_CALL *input_characteristic)(const struct Operator *, size_t);
    int(ORT_CALL *output_characteristic)(const struct Operator *, size_t);
    void *later[32];
    const char *op_type;
} Operator;

typedef struct {
    const Function *functions;
    const char *op_type;
    PyObject *attributes;
    void *accumulator; /* of a node `Show`: where `add_values` counts; NULL if Python reads the tensor */
} Kernel;

static PyObject *callback = NULL;
static PyObject *accumulators = NULL; /* dict: number of a node `Show` -> address of its accumulator */
/* Functions of `_accumulator.c`; NULL without it. */
static void (*add_values)(void *accumulator, const float *x, size_t n) = NULL;
static void (*lend_threads)(const Runner *runner) = NULL;

/* Read an attribute into `attributes`; one that is missing is left out. Needs the GIL. */
static void read_attribute(const Function *f, Handle info, PyObject *attributes, const char *name, char kind)
{
    Status status;
    PyObject *value = NULL;
    if (kind == 'i') {
        int64_t number = 0;
        status = ((Status(ORT_CALL *)(Handle, const char *, int64_t *))f[ATTRIBUTE_INT])(info, name, &number);
        if (status == NULL)
            value = PyLong_FromLongLong(number);
    } else if (kind == 'f') {
        float number = 0;
        status = ((Status(ORT_CALL *)(Handle, const char *, float *))f[ATTRIBUTE_FLOAT])(info, name, &number);
        if (status == NULL)
            value = PyFloat_FromDouble(number);
    } else {
        typedef Status(ORT_CALL * ReadString)(Handle, const char *, char *, size_t *);
        const ReadString read = (ReadString)f[ATTRIBUTE_STRING];
        size_t size = 0;
        char *text;
        status = read(info, name, NULL, &size);
        text = status == NULL && size > 0 ? PyMem_Malloc(size) : NULL;
        if (text != NULL) {
            status = read(info, name, text, &size);
            if (status == NULL)
                value = PyUnicode_DecodeUTF8(text, (Py_ssize_t)size - 1, "replace");
            PyMem_Free(text);
        }
    }
    if (status != NULL)
        ((void(ORT_CALL *)(Status))f[RELEASE_STATUS])(status);
    if (value != NULL) {
        PyDict_SetItemString(attributes, name, value);
        Py_DECREF(value);
    }
    PyErr_Clear();
}

/* The accumulator of the number in `input_index`, NULL if there is none. Needs the GIL. */
static void *find_accumulator(PyObject *attributes)
{
    PyObject *number = PyDict_GetItemString(attributes, "input_index");
    PyObject *address = number == NULL || accumulators == NULL ? NULL : PyDict_GetItem(accumulators, number);
    return address == NULL ? NULL : PyLong_AsVoidPtr(address);
}

static Handle ORT_CALL create(const Operator *op, const Function *functions, Handle info)
{
    static const struct {
        const char *name;
        char kind;
    } known[] = {
        {"input_stamp", 's'},  {"batch_num", 'i'},  {"num_bits", 'i'},       {"with_offset", 'i'},
        {"start_ratio", 'f'},  {"end_ratio", 'f'},  {"step", 'f'},           {"max_percentile", 'f'},
        {"min_percentile", 'f'}, {"nbins", 'i'},    {"record_file_path", 's'}, {"object_layers", 's'},
        {"observers", 'i'},    {"input_index", 'i'}, {"calibration", 's'},    {"settings", 's'},
        {"joint_group", 's'},  {"joint_members", 'i'}, {"fakequant_precision_mode", 's'}, {"op_data_type", 's'},
    };
    const PyGILState_STATE state = PyGILState_Ensure();
    Kernel *kernel = PyMem_Malloc(sizeof(Kernel));
    if (kernel != NULL) {
        kernel->functions = functions;
        kernel->op_type = op->op_type;
        kernel->accumulator = NULL;
        kernel->attributes = PyDict_New();
        for (size_t i = 0; kernel->attributes != NULL && i < sizeof known / sizeof known[0]; i++)
            read_attribute(functions, info, kernel->attributes, known[i].name, known[i].kind);
        if (kernel->attributes != NULL && strcmp(op->op_type, "Show") == 0)
            kernel->accumulator = find_accumulator(kernel->attributes);
    }
    PyGILState_Release(state);
    return kernel;
}

static void ORT_CALL destroy(Handle handle)
{
    Kernel *kernel = handle;
    if (kernel == NULL || !Py_IsInitialized())
        return;
    const PyGILState_STATE state = PyGILState_Ensure();
    Py_XDECREF(kernel->attributes);
    PyMem_Free(kernel);
    PyGILState_Release(state);
}

typedef struct {
    float *data;
    size_t count, rank;
    int64_t sizes[MOST_AXES];
} Tensor;

/* Where a tensor lies, and its shape; 0 if the runtime cannot tell. Sizes of more than MOST_AXES axes are left out. */
static int describe(const Function *f, Handle value, Tensor *tensor)
{
    Handle shape = NULL;
    Status status = ((Status(ORT_CALL *)(Handle, float **))f[GET_TENSOR_MUTABLE_DATA])(value, &tensor->data);
    if (status == NULL)
        status = ((Status(ORT_CALL *)(Handle, Handle *))f[GET_TENSOR_TYPE_AND_SHAPE])(value, &shape);
    if (status == NULL)
        status = ((Status(ORT_CALL *)(Handle, size_t *))f[GET_TENSOR_SHAPE_ELEMENT_COUNT])(shape, &tensor->count);
    if (status == NULL)
        status = ((Status(ORT_CALL *)(Handle, size_t *))f[GET_DIMENSIONS_COUNT])(shape, &tensor->rank);
    if (status == NULL && tensor->rank <= MOST_AXES)
        status = ((Status(ORT_CALL *)(Handle, int64_t *, size_t))f[GET_DIMENSIONS])(shape, tensor->sizes, tensor->rank);
    if (shape != NULL)
        ((void(ORT_CALL *)(Handle))f[RELEASE_TENSOR_TYPE_AND_SHAPE])(shape);
    if (status != NULL)
        ((void(ORT_CALL *)(Status))f[RELEASE_STATUS])(status);
    return status == NULL;
}

static int run_parallel(const Runner *runner, void (*task)(void *, size_t), void *data, size_t count)
{
    typedef Status(ORT_CALL * ParallelFor)(Handle, void (*)(void *, size_t), size_t, size_t, void *);
    const Status status =
        ((ParallelFor)runner->functions[CONTEXT_PARALLEL_FOR])(runner->context, task, count, count, data);
    if (status != NULL)
        ((void(ORT_CALL *)(Status))runner->functions[RELEASE_STATUS])(status);
    return status == NULL;
}

/* Hand a tensor to the callback. */
static void show_to_python(const Kernel *kernel, const Tensor *x)
{
    const PyGILState_STATE state = PyGILState_Ensure();
    static float nothing; /* a tensor without elements may have no address, and a memoryview needs one */
    PyObject *view = PyMemoryView_FromMemory((char *)(x->count ? x->data : &nothing),
                                             (Py_ssize_t)(x->count * sizeof(float)), PyBUF_READ);
    PyObject *shape = x->rank > MOST_AXES ? NULL : PyTuple_New((Py_ssize_t)x->rank);
    for (size_t i = 0; shape != NULL && i < x->rank; i++)
        PyTuple_SetItem(shape, (Py_ssize_t)i, PyLong_FromLongLong(x->sizes[i]));
    if (view != NULL && shape != NULL && callback != NULL && kernel->attributes != NULL)
        Py_XDECREF(PyObject_CallFunction(callback, "sOOO", kernel->op_type, view, shape, kernel->attributes));
    Py_XDECREF(view);
    Py_XDECREF(shape);
    /* Nothing may leave a kernel, and the callback raises nothing else: Ctrl-C, which Python handles wherever its code
       runs next, is passed on to the code around the session. */
    const int interrupted = PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
    PyErr_Clear();
    if (interrupted)
        PyErr_SetInterrupt();
    PyGILState_Release(state);
}

static void ORT_CALL compute(Handle handle, Handle context)
{
    typedef Status(ORT_CALL * GetInput)(Handle, size_t, Handle *);
    typedef Status(ORT_CALL * GetOutput)(Handle, size_t, const int64_t *, size_t, Handle *);
    const Kernel *kernel = handle;
    const Function *f = kernel->functions;
    const int64_t one = 1;
    const Runner runner = {run_parallel, f, context};
    Handle input = NULL, output = NULL;
    Tensor x, y;
    Status status = ((GetOutput)f[CONTEXT_GET_OUTPUT])(context, 0, &one, 1, &output);
    if (status == NULL && describe(f, output, &y) && y.count == 1)
        *y.data = 0.0f;
    if (status == NULL)
        status = ((GetInput)f[CONTEXT_GET_INPUT])(context, 0, &input);
    if (status != NULL) {
        ((void(ORT_CALL *)(Status))f[RELEASE_STATUS])(status);
        return;
    }
    if (!describe(f, input, &x))
        return;
    if (lend_threads != NULL)
        lend_threads(&runner);
    if (kernel->accumulator != NULL)
        add_values(kernel->accumulator, x.data, x.count);
    else
        show_to_python(kernel, &x);
    if (lend_threads != NULL)
        lend_threads(NULL);
}

static const char *ORT_CALL name(const Operator *op)
{
    return op->op_type;
}
static const char *ORT_CALL provider(const Operator *op)
{
    (void)op;
    return NULL; /* CPU */
}
static int ORT_CALL element_type(const Operator *op, size_t index)
{
    (void)op;
    (void)index;
    return ELEMENT_FLOAT;
}
static size_t ORT_CALL single(const Operator *op)
{
    (void)op;
    return 1;
}
static int ORT_CALL required(const Operator *op, size_t index)
{
    (void)op;
    (void)index;
    return 0;
}

#define OPERATOR(type)                                                                                                 \
    {OPERATOR_VERSION, create,  name,     provider, element_type, single, element_type, single,                       \
     compute,           destroy, required, required, {NULL},       type}
static Operator operators[] = {OPERATOR("IFMR"), OPERATOR("HFMG"), OPERATOR("DMQBalancer"),
                               OPERATOR("Compare"), OPERATOR("Moments"), OPERATOR("Show")};

static PyObject *set_callback(PyObject *module, PyObject *function)
{
    PyObject *old = callback;
    (void)module;
    Py_INCREF(function);
    callback = function;
    Py_XDECREF(old);
    Py_INCREF(Py_None);
    return Py_None;
}

static PyObject *set_accumulators(PyObject *module, PyObject *args)
{
    PyObject *addresses, *add, *lend;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO", &addresses, &add, &lend))
        return NULL;
    void *const functions[] = {PyLong_AsVoidPtr(add), PyLong_AsVoidPtr(lend)};
    if (PyErr_Occurred())
        return NULL;
    Py_INCREF(addresses);
    Py_XDECREF(accumulators);
    accumulators = addresses;
    add_values = (void (*)(void *, const float *, size_t))(uintptr_t)functions[0];
    lend_threads = (void (*)(const Runner *))(uintptr_t)functions[1];
    Py_INCREF(Py_None);
    return Py_None;
}

static PyMethodDef methods[] = {
    {"set_callback", set_callback, METH_O,
     "set_callback(function): call function(op_type, view, shape, attributes) for each tensor an observer sees.\n\n"
     "`view` is a memoryview of its float32 bytes, which holds during the call only."},
    {"set_accumulators", set_accumulators, METH_VARARGS,
     "set_accumulators(addresses, add, lend): nodes `Show` whose number is in the dict `addresses` when a session\n"
     "opens are counted without Python. The others go to the callback.\n\n"
     "`add` and `lend` are addresses of the functions add_values and lend_threads of `_accumulator.c`, or 0."},
    {NULL, NULL, 0, NULL},
};

/* Have Python connect this library, if a script registers it without AMCT_SO; 0 if that fails. */
static int get_ready(void)
{
    if (!Py_IsInitialized())
        return 0;
    const PyGILState_STATE state = PyGILState_Ensure();
    if (callback == NULL) {
        PyObject *module = PyImport_ImportModule("amct_onnx.observe.operators");
        PyObject *first = PyCFunction_NewEx(&methods[0], NULL, NULL), *second = PyCFunction_NewEx(&methods[1], NULL, NULL);
        if (module != NULL && first != NULL && second != NULL)
            Py_XDECREF(PyObject_CallMethod(module, "connect", "OO", first, second));
        Py_XDECREF(module);
        Py_XDECREF(first);
        Py_XDECREF(second);
        if (PyErr_Occurred())
            PyErr_Print();
    }
    const int ready = callback != NULL;
    PyGILState_Release(state);
    return ready;
}

/* The name that SessionOptions.register_custom_ops_library looks up. */
EXPORT Status ORT_CALL RegisterCustomOps(Handle options, const Base *base)
{
    typedef Status(ORT_CALL * CreateStatus)(int code, const char *message);
    const Function *f = base->get_functions(INTERFACE_VERSION);
    Handle domain = NULL;
    if (f == NULL)
        return NULL;
    if (!get_ready())
        return ((CreateStatus)f[CREATE_STATUS])(FAIL, "the operators of amct_onnx need Python's amct_onnx, which cannot be imported");
    /* The domain is never released: sessions may use it until the process ends. */
    Status status = ((Status(ORT_CALL *)(const char *, Handle *))f[CREATE_CUSTOM_OP_DOMAIN])("amct.customop", &domain);
    for (size_t i = 0; status == NULL && i < sizeof operators / sizeof operators[0]; i++)
        status = ((Status(ORT_CALL *)(Handle, const Operator *))f[CUSTOM_OP_DOMAIN_ADD])(domain, &operators[i]);
    if (status == NULL)
        status = ((Status(ORT_CALL *)(Handle, Handle))f[ADD_CUSTOM_OP_DOMAIN])(options, domain);
    return status;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "libamct_onnx_ops", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_libamct_onnx_ops(void)
{
    return PyModule_Create(&definition);
}

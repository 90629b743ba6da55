/* The compiled helper's module, and what the client's thread does between tokens and a request. */
#include "rowpath.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

/* A contiguous buffer of 64-bit (or, if `size` is 4, 32-bit) integers. */
static bool hold(PyObject *object, Py_buffer *view, int flags, Py_ssize_t size) {
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | flags) < 0) return false;
    const char *formats = size == 8 ? "lq" : "i";
    if (view->itemsize == size && view->format && view->format[0] && strchr(formats, view->format[0])) return true;
    PyErr_Format(PyExc_TypeError, "an array of format %s; signed integers of %zd bytes are expected",
                 view->format ? view->format : "?", size);
    PyBuffer_Release(view);
    return false;
}

static int compare(const void *left, const void *right) {
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

/* Sort `ids` in place and leave each once; how many there are. */
static Py_ssize_t make_distinct(int64_t *ids, Py_ssize_t count) {
    Py_ssize_t sorted = 1;
    while (sorted < count && ids[sorted - 1] < ids[sorted]) sorted++;
    if (sorted >= count) return count;
    qsort(ids, count, sizeof *ids, compare);
    Py_ssize_t kept = 1;
    for (Py_ssize_t i = 1; i < count; i++)
        if (ids[i] != ids[kept - 1]) ids[kept++] = ids[i];
    return kept;
}

static PyObject *distinct(PyObject *module, PyObject *arg) {
    (void)module;
    Py_buffer ids;
    if (!hold(arg, &ids, PyBUF_WRITABLE, 8)) return NULL;
    Py_ssize_t kept = make_distinct(ids.buf, ids.len / 8);
    PyBuffer_Release(&ids);
    return PyLong_FromSsize_t(kept);
}

/* The rows of ids; returns how many are missing, whose ids stand in `missing`, or -1 for an id outside the map. */
static Py_ssize_t find(const Py_buffer *row_of, const Py_buffer *ids, int32_t *rows, int64_t *missing) {
    const int32_t *map = row_of->buf;
    const int64_t *id = ids->buf;
    uint64_t size = row_of->len / 4;
    Py_ssize_t num_missing = 0;
    for (Py_ssize_t i = 0; i < ids->len / 8; i++) {
        if ((uint64_t)id[i] >= size) return -1;
        rows[i] = map[id[i]];
        if (rows[i] < 0) missing[num_missing++] = id[i];
    }
    return num_missing;
}

static PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    (void)module;
    static const Py_ssize_t sizes[4] = {4, 8, 4, 8};
    Py_buffer views[4];
    int held = 0;
    PyObject *result = NULL;
    if (num_args != 4) return PyErr_Format(PyExc_TypeError, "look_up(row_of, ids, rows, missing)");
    while (held < 4 && hold(args[held], &views[held], held > 1 ? PyBUF_WRITABLE : 0, sizes[held])) held++;
    if (held == 4) {
        Py_ssize_t count = views[1].len / 8;
        if (views[2].len / 4 < count || views[3].len / 8 < count) {
            PyErr_SetString(PyExc_ValueError, "rows and missing must be as long as ids");
        } else {
            Py_ssize_t missing = find(&views[0], &views[1], views[2].buf, views[3].buf);
            if (missing < 0)
                PyErr_SetString(PyExc_IndexError, "an id is outside the vocabulary");
            else
                result = Py_BuildValue("(nn)", missing, make_distinct(views[3].buf, missing));
        }
    }
    while (held) PyBuffer_Release(&views[--held]);
    return result;
}

enum { MAX_WAITING = 256 };

/* Look without sleeping for `spin_us`, then sleep for at most `timeout_ms`; whether one is readable. */
static PyObject *wait_readable(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *fds;
    double spin_us;
    int timeout_ms;
    if (!PyArg_ParseTuple(args, "O!di", &PyTuple_Type, &fds, &spin_us, &timeout_ms)) return NULL;
    Py_ssize_t count = PyTuple_Size(fds);
    if (count > MAX_WAITING) return PyErr_Format(PyExc_ValueError, "%zd connections at once", count);
    struct pollfd waiting[MAX_WAITING];
    for (Py_ssize_t i = 0; i < count; i++) {
        long fd = PyLong_AsLong(PyTuple_GetItem(fds, i));
        if (fd == -1 && PyErr_Occurred()) return NULL;
        waiting[i] = (struct pollfd){.fd = (int)fd, .events = POLLIN};
    }
    int found = 0;
    Py_BEGIN_ALLOW_THREADS
    int64_t until = now_ns() + (int64_t)(spin_us * 1e3);
    do {
        found = poll(waiting, count, 0);
    } while (found == 0 && now_ns() < until);
    if (found == 0 && timeout_ms > 0) found = poll(waiting, count, timeout_ms);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(found > 0);
}

static PyMethodDef functions[] = {
    {"distinct", distinct, METH_O, "distinct(ids): sort int64 ids in place, each once at the front; how many."},
    {"look_up", (PyCFunction)(void (*)(void))look_up, METH_FASTCALL,
     "look_up(row_of, ids, rows, missing) -> (missing ids, distinct ones among them, which stand in `missing`)."},
    {"wait_readable", wait_readable, METH_VARARGS, "wait_readable(fds, spin_us, timeout_ms): whether one is readable."},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    PyObject *type = PyType_FromSpec(&lanes_spec);
    int failed = type ? PyModule_AddObjectRef(module, "Lanes", type) : -1;
    Py_XDECREF(type);
    return failed;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_rowpath", .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__rowpath(void) { return PyModuleDef_Init(&definition); }

/* The compiled helper's module, and waiting for several connections. */
#include "rowpath.h"

#include <poll.h>

enum { MAX_WAITING = 256 };

/* Look without sleeping for `spin_us`, then sleep for at most `timeout_ms`; whether one is readable. */
static PyObject *wait_readable(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *fds;
    double spin_us;
    int timeout_ms;
    if (!PyArg_ParseTuple(args, "O!di", &PyTuple_Type, &fds, &spin_us, &timeout_ms)) return NULL;
    Py_ssize_t count = PyTuple_Size(fds);
    if (count > MAX_WAITING) count = MAX_WAITING;
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
    {"settle", (PyCFunction)(void (*)(void))settle, METH_FASTCALL,
     "settle(row_of, ids, rows, readers, slots, first): missing rows are filled in, slots counted as read; how many slots."},
    {"let_go", (PyCFunction)(void (*)(void))let_go, METH_FASTCALL, "let_go(readers, slots): read once less."},
    {"match", (PyCFunction)(void (*)(void))match, METH_FASTCALL,
     "match(ids, index, tokens, rows): distinct tokens, or -1 where one is not among the ids."},
    {"wait_readable", wait_readable, METH_VARARGS,
     "wait_readable(fds, spin_us, timeout_ms): whether one is readable; of very many, the first 256 are looked at."},
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

/* The compiled helper's module. */
#include "rowpath.h"

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
    {"receive", receive, METH_VARARGS,
     "receive(fd, parts, needed, head, spin_us, timeout_ms): bytes that came into the parts; None at the stream's end."},
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

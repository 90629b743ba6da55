/* Connections of a row server while their requests are without fault, as Python sees them. */
#include "rowpath.h"

#include <sys/epoll.h>
#include <unistd.h>

static bool is_idle(lanes_t *self) {
    if (self->running || !self->open)
        PyErr_SetString(PyExc_RuntimeError, "these lanes are being served by a thread, or closed");
    return !self->running && self->open;
}

static PyObject *lanes_run(lanes_t *self, PyObject *args) {
    long long spin_us, tick_ms;
    if (!PyArg_ParseTuple(args, "LL", &spin_us, &tick_ms) || !is_idle(self)) return NULL;
    leaving_t leaving = {0};
    self->running = true;
    Py_BEGIN_ALLOW_THREADS
    serve(self, spin_us * 1000, tick_ms * 1000000, &leaving);
    Py_END_ALLOW_THREADS
    self->running = false;
    free_tables(self, false);
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < leaving.count; i++) {
        PyObject *pair = Py_BuildValue("(iO)", leaving.fds[i], leaving.gone[i] ? Py_True : Py_False);
        if (!pair || PyList_Append(list, pair) < 0) Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *lanes_watch(lanes_t *self, PyObject *arg) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    long fd = PyLong_AsLong(arg);
    if ((fd == -1 && PyErr_Occurred()) || !is_idle(self)) return NULL;
    if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, (int)fd, &event) < 0) return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *lanes_add(lanes_t *self, PyObject *args) {
    int fd;
    PyObject *buffer;
    Py_ssize_t filled;
    if (!PyArg_ParseTuple(args, "iOn", &fd, &buffer, &filled) || !is_idle(self)) return NULL;
    lane_t *lane = PyMem_Calloc(1, sizeof *lane);
    if (!lane) return PyErr_NoMemory();
    if (PyObject_GetBuffer(buffer, &lane->inbox, PyBUF_WRITABLE) < 0) {
        PyMem_Free(lane);
        return NULL;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = lane};
    size_t least = REQUEST_BYTES + 4 * (size_t)self->max_ids;
    if ((size_t)lane->inbox.len < least || filled < 0 || filled > lane->inbox.len) {
        PyErr_Format(PyExc_ValueError, "%zd of %zd bytes are filled; %zu are needed", filled, lane->inbox.len, least);
    } else if (epoll_ctl(self->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        lane->fd = fd;
        lane->filled = filled;
        lane->fresh = filled > 0;
        self->any_fresh |= lane->fresh;
        lane->events = EPOLLIN;
        lane->moved_at = now_ns();
        lane->next = self->lanes;
        self->lanes = lane;
        Py_RETURN_NONE;
    }
    PyBuffer_Release(&lane->inbox);
    PyMem_Free(lane);
    return NULL;
}

static void forget(lanes_t *self, lane_t **link) {
    lane_t *lane = *link;
    *link = lane->next;
    epoll_ctl(self->epoll, EPOLL_CTL_DEL, lane->fd, NULL);
    PyBuffer_Release(&lane->inbox);
    PyMem_Free(lane);
}

static PyObject *lanes_remove(lanes_t *self, PyObject *arg) {
    long fd = PyLong_AsLong(arg);
    if ((fd == -1 && PyErr_Occurred()) || !is_idle(self)) return NULL;
    for (lane_t **link = &self->lanes; *link; link = &(*link)->next) {
        if ((*link)->fd != fd) continue;
        Py_ssize_t filled = (*link)->filled;
        cool_down(self);
        forget(self, link);
        return PyLong_FromSsize_t(filled);
    }
    return PyErr_Format(PyExc_KeyError, "connection %ld has no lane", fd);
}

static PyObject *lanes_stuck(lanes_t *self, PyObject *arg) {
    double limit_s = PyFloat_AsDouble(arg);
    if (PyErr_Occurred() || !is_idle(self)) return NULL;
    int64_t since = now_ns() - (int64_t)(limit_s * 1e9);
    PyObject *list = PyList_New(0);
    for (lane_t *lane = self->lanes; list && lane; lane = lane->next) {
        if (!lane->answering || lane->moved_at > since) continue;
        PyObject *fd = PyLong_FromLong(lane->fd);
        if (!fd || PyList_Append(list, fd) < 0) Py_CLEAR(list);
        Py_XDECREF(fd);
    }
    return list;
}

static PyObject *lanes_counters(lanes_t *self, PyObject *unused) {
    (void)unused;
    return Py_BuildValue("(KKK)", __atomic_load_n(&self->num_requests, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->num_rows, __ATOMIC_RELAXED),
                         __atomic_load_n(&self->num_bytes, __ATOMIC_RELAXED));
}

static void close_all(lanes_t *self) {
    cool_down(self);
    while (self->lanes) forget(self, &self->lanes);
    if (self->open) close(self->epoll);
    self->open = false;
    free_tables(self, true);
}

static PyObject *lanes_close(lanes_t *self, PyObject *unused) {
    (void)unused;
    if (self->open && !is_idle(self)) return NULL;
    close_all(self);
    Py_RETURN_NONE;
}

static int lanes_init(lanes_t *self, PyObject *args, PyObject *named) {
    static char *names[] = {"max_ids", NULL};
    if (self->open) {
        PyErr_SetString(PyExc_RuntimeError, "made already");
        return -1;
    }
    if (!PyArg_ParseTupleAndKeywords(args, named, "I", names, &self->max_ids)) return -1;
    self->epoll = epoll_create1(EPOLL_CLOEXEC);
    self->open = self->epoll >= 0;
    if (!self->open) PyErr_SetFromErrno(PyExc_OSError);
    return self->open ? 0 : -1;
}

static void lanes_dealloc(lanes_t *self) {
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    close_all(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef lanes_methods[] = {
    {"run", (PyCFunction)lanes_run, METH_VARARGS, "run(spin_us, tick_ms) -> [(fd, is_gone)] of those that need Python."},
    {"hold", (PyCFunction)(void (*)(void))lanes_hold, METH_VARARGS | METH_KEYWORDS,
     "hold(identity, vocab_size, partition, bands, num_cyclic=0): answer from these rows too; whether there was room."},
    {"withdraw", (PyCFunction)lanes_withdraw, METH_O, "withdraw(identity): begin no answer from its rows any more."},
    {"holds", (PyCFunction)lanes_holds, METH_O, "holds(identity): whether answers begin from its rows."},
    {"watch", (PyCFunction)lanes_watch, METH_O, "watch(fd): `run` returns when it is readable."},
    {"add", (PyCFunction)lanes_add, METH_VARARGS, "add(fd, buffer, filled): serve this connection."},
    {"remove", (PyCFunction)lanes_remove, METH_O, "remove(fd) -> filled: no more."},
    {"stuck", (PyCFunction)lanes_stuck, METH_O, "stuck(limit_s) -> fds whose client has taken nothing for so long."},
    {"counters", (PyCFunction)lanes_counters, METH_NOARGS, "(requests, rows, bytes) answered; any thread may ask."},
    {"close", (PyCFunction)lanes_close, METH_NOARGS, "Give everything back; the connections stay open."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot lanes_slots[] = {
    {Py_tp_doc, "Connections answered without Python; one thread uses it."},
    {Py_tp_init, lanes_init},
    {Py_tp_dealloc, lanes_dealloc},
    {Py_tp_methods, lanes_methods},
    {0, NULL},
};

PyType_Spec lanes_spec = {
    .name = "tolserve.native._rowpath.Lanes",
    .basicsize = sizeof(lanes_t),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = lanes_slots,
};

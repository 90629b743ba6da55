/* Waiting for answers and receiving them. */
#include "rowpath.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { MAX_WAITING = 256, MAX_PARTS = 66 };

typedef struct {
    int64_t spin_ns;
    int timeout_ms;
} patience_t;

/* Look without sleeping, then sleep; as `poll`. */
static int wait_for(struct pollfd *waiting, nfds_t count, patience_t patience) {
    int found = 0;
    if (patience.spin_ns > 0) {
        int64_t until = now_ns() + patience.spin_ns;
        do {
            found = poll(waiting, count, 0);
        } while (found == 0 && now_ns() < until);
    }
    return found == 0 && patience.timeout_ms > 0 ? poll(waiting, count, patience.timeout_ms) : found;
}

PyObject *wait_readable(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *fds;
    double spin_us;
    patience_t patience;
    if (!PyArg_ParseTuple(args, "O!di", &PyTuple_Type, &fds, &spin_us, &patience.timeout_ms)) return NULL;
    patience.spin_ns = (int64_t)(spin_us * 1e3);
    Py_ssize_t count = PyTuple_Size(fds);
    if (count > MAX_WAITING) count = MAX_WAITING;
    struct pollfd waiting[MAX_WAITING];
    for (Py_ssize_t i = 0; i < count; i++) {
        long fd = PyLong_AsLong(PyTuple_GetItem(fds, i));
        if (fd == -1 && PyErr_Occurred()) return NULL;
        waiting[i] = (struct pollfd){.fd = (int)fd, .events = POLLIN};
    }
    int found;
    Py_BEGIN_ALLOW_THREADS
    found = wait_for(waiting, count, patience);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(found > 0);
}

/* Where to receive: parts one after another, of which the first `done` bytes have come. */
typedef struct {
    struct iovec parts[MAX_PARTS];
    int num_parts;
    size_t done;
} inbox_t;

static void advance(inbox_t *inbox, size_t count) {
    inbox->done += count;
    int first = 0;
    while (first < inbox->num_parts && count >= inbox->parts[first].iov_len) count -= inbox->parts[first++].iov_len;
    inbox->num_parts -= first;
    memmove(inbox->parts, inbox->parts + first, inbox->num_parts * sizeof *inbox->parts);
    if (inbox->num_parts) {
        inbox->parts[0].iov_base = (char *)inbox->parts[0].iov_base + count;
        inbox->parts[0].iov_len -= count;
    }
}

/* Receive until `needed` bytes are there, nothing comes for longer than `patience`, or the head is not `expected`;
   0, or what was wrong with nothing received: an errno, or -1 where the peer has closed the connection. */
static int receive_all(int fd, inbox_t *inbox, size_t needed, const uint8_t *head, const uint8_t *expected,
                       patience_t patience) {
    struct pollfd waiting = {.fd = fd, .events = POLLIN};
    while (inbox->done < needed && inbox->num_parts) {
        struct msghdr message = {.msg_iov = inbox->parts, .msg_iovlen = inbox->num_parts};
        ssize_t count = recvmsg(fd, &message, MSG_DONTWAIT);
        if (count > 0) {
            bool had_head = inbox->done >= RESPONSE_BYTES;
            advance(inbox, count);
            if (expected && !had_head && inbox->done >= RESPONSE_BYTES && memcmp(head, expected, RESPONSE_BYTES)) break;
        } else if (count == 0) {
            return inbox->done ? 0 : -1;
        } else if (errno != EAGAIN && errno != EINTR) {
            return inbox->done ? 0 : errno;
        } else if (errno == EINTR || wait_for(&waiting, 1, patience) <= 0) {
            break;
        }
    }
    return 0;
}

/* Arguments: fd, parts (list of writable buffers), bytes needed, expected head (the first part's, or empty), spin_us,
   timeout_ms. */
PyObject *receive(PyObject *module, PyObject *args) {
    (void)module;
    int fd, timeout_ms, fault = 0;
    PyObject *parts;
    Py_ssize_t needed, length, held = 0;
    const char *expected;
    double spin_us;
    if (!PyArg_ParseTuple(args, "iO!ny#di", &fd, &PyList_Type, &parts, &needed, &expected, &length, &spin_us, &timeout_ms))
        return NULL;
    Py_buffer views[MAX_PARTS];
    inbox_t inbox = {.done = 0};
    Py_ssize_t num_parts = PyList_Size(parts);
    if (num_parts > MAX_PARTS || (length != 0 && length != RESPONSE_BYTES))
        return PyErr_Format(PyExc_ValueError, "%zd parts and a head of %zd bytes", num_parts, length);
    for (; held < num_parts; held++) {
        if (PyObject_GetBuffer(PyList_GetItem(parts, held), &views[held], PyBUF_WRITABLE) < 0) break;
        if (views[held].len) inbox.parts[inbox.num_parts++] = (struct iovec){views[held].buf, views[held].len};
    }
    bool is_head = length == 0 || (held && views[0].len == RESPONSE_BYTES);
    if (held == num_parts && is_head) {
        const uint8_t *wanted = length ? (const uint8_t *)expected : NULL;
        patience_t patience = {(int64_t)(spin_us * 1e3), timeout_ms};
        Py_BEGIN_ALLOW_THREADS
        fault = receive_all(fd, &inbox, needed, held ? views[0].buf : NULL, wanted, patience);
        Py_END_ALLOW_THREADS
    } else if (held == num_parts) {
        PyErr_SetString(PyExc_ValueError, "the first part is not as long as a head");
    }
    while (held) PyBuffer_Release(&views[--held]);
    if (PyErr_Occurred()) return NULL;
    if (fault == -1) Py_RETURN_NONE;
    if (fault) {
        errno = fault;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSize_t(inbox.done);
}

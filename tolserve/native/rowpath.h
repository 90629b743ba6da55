/* What the two halves of the compiled helper share. See tolserve/native/__init__.py. */
#ifndef TOLSERVE_ROWPATH_H
#define TOLSERVE_ROWPATH_H

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifndef __linux__
#error "the compiled helper is for Linux; elsewhere NumPy and the Python server do its work"
#endif

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

static inline int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* A table version's rows in memory, as requests are answered from them. Once it stands among the tables of lanes only
   `withdrawn` changes, until nothing is answered from it any more. */
typedef struct {
    bool withdrawn;
    uint8_t identity[16];
    uint64_t vocab_size;
    uint32_t partition;
    uint32_t num_partitions;
    uint64_t num_cyclic; /* rows repeat after so many ids; 0: they do not */
    int num_bands;
    Py_buffer bands[64];
    size_t row_bytes[64];
} table_t;

enum { REQUEST_BYTES = 48, RESPONSE_BYTES = 24, BLOCK_ROWS = 64 };

/* A request at the front of a connection's buffer, and how much of its answer has left. */
typedef struct {
    const table_t *table;
    uint64_t band_mask;
    uint32_t num_ids;
    const uint8_t *ids; /* little-endian uint32, unaligned */
    uint8_t head[RESPONSE_BYTES];
    uint64_t length; /* of head and rows */
    uint64_t sent;
} answer_t;

/* Send at most about `budget` bytes; how many left, or -1 with errno. */
ssize_t send_some(int fd, answer_t *answer, size_t budget);

enum { MAX_HOT = 64, MAX_EVENTS = 64, MAX_TABLES = 16 };

typedef struct lane {
    struct lane *next;
    int fd;
    Py_buffer inbox;
    size_t filled;
    uint32_t events;
    int64_t moved_at;
    bool answering;
    bool fresh; /* its buffer has not been looked at yet */
    bool hot;
    answer_t answer;
} lane_t;

typedef struct {
    PyObject_HEAD
    uint32_t max_ids;
    table_t *tables[MAX_TABLES]; /* set by any thread that has Python's lock, cleared by the one that serves */
    int epoll;
    bool open;
    bool running;
    bool any_fresh;
    int64_t active_at;
    lane_t *lanes;
    lane_t *hot[MAX_HOT];
    int num_hot;
    uint64_t num_requests, num_rows, num_bytes;
} lanes_t;

/* The version with this identity that answers may begin from; NULL where there is none. */
table_t *find_table(lanes_t *self, const uint8_t *identity);

enum { INCOMPLETE, READY, ODD };

/* READY where `data` starts with a whole rows request that is right in every respect; ODD where Python has to look. */
int parse_request(lanes_t *self, const uint8_t *data, size_t filled, answer_t *answer);

/* Connections that `serve` is done with. */
typedef struct {
    int count;
    int fds[MAX_EVENTS];
    bool gone[MAX_EVENTS];
} leaving_t;

/* Answer requests until the tick is over, what is watched wants attention, or connections have to leave. */
void serve(lanes_t *self, int64_t spin_ns, int64_t tick_ns, leaving_t *leaving);

void cool_down(lanes_t *self);

/* The methods `hold`, `withdraw` and `holds` of `Lanes`: see tolserve/transport/lanes.py. */
PyObject *lanes_hold(lanes_t *self, PyObject *args, PyObject *named);
PyObject *lanes_withdraw(lanes_t *self, PyObject *arg);
PyObject *lanes_holds(lanes_t *self, PyObject *arg);

/* Let go withdrawn tables from which nothing is answered; all of them if `all`. Not while `serve` runs. */
void free_tables(lanes_t *self, bool all);

extern PyType_Spec lanes_spec;

PyObject *distinct(PyObject *module, PyObject *arg);
PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t num_args);
PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t num_args);
PyObject *let_go(PyObject *module, PyObject *const *args, Py_ssize_t num_args);
PyObject *match(PyObject *module, PyObject *const *args, Py_ssize_t num_args);
PyObject *wait_readable(PyObject *module, PyObject *args);
PyObject *receive(PyObject *module, PyObject *args);

#endif

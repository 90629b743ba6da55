/* What a client's thread does with token ids around a request. See tolserve/native/lookups.py for what is promised. */
#include "rowpath.h"

#include <stdlib.h>
#include <string.h>

/* A contiguous array of signed integers, of 8 bytes or 4. */
static bool hold(PyObject *object, Py_buffer *view, bool writable, Py_ssize_t size) {
    int flags = PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0);
    if (PyObject_GetBuffer(object, view, flags) < 0) return false;
    const char *formats = size == 8 ? "lq" : "i";
    if (view->itemsize == size && view->format && view->format[0] && strchr(formats, view->format[0])) return true;
    PyErr_Format(PyExc_TypeError, "an array of format %s; signed integers of %zd bytes are expected",
                 view->format ? view->format : "?", size);
    PyBuffer_Release(view);
    return false;
}

/* Hold arguments of the item sizes and directions in `kinds`, as "8", "4", and "w" behind one that is written. */
static bool hold_all(PyObject *const *args, Py_ssize_t num_args, const char *kinds, Py_buffer *views, Py_ssize_t *held) {
    *held = 0;
    for (; *kinds && *held < num_args; ++*held) {
        Py_ssize_t size = *kinds++ - '0';
        bool writable = *kinds == 'w';
        kinds += writable;
        if (!hold(args[*held], &views[*held], writable, size)) return false;
    }
    if (!*kinds && *held == num_args) return true;
    PyErr_SetString(PyExc_TypeError, "another number of arguments");
    return false;
}

static PyObject *release(Py_buffer *views, Py_ssize_t held, PyObject *result) {
    while (held) PyBuffer_Release(&views[--held]);
    return result;
}

static bool is_long_enough(bool is_it) {
    if (!is_it) PyErr_SetString(PyExc_ValueError, "what is written must be as long as the ids");
    return is_it;
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

PyObject *distinct(PyObject *module, PyObject *arg) {
    (void)module;
    Py_buffer ids;
    if (!hold(arg, &ids, true, 8)) return NULL;
    PyObject *kept = PyLong_FromSsize_t(make_distinct(ids.buf, ids.len / 8));
    return release(&ids, 1, kept);
}

PyObject *look_up(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    (void)module;
    Py_buffer views[4];
    Py_ssize_t held, num_missing = 0;
    if (!hold_all(args, num_args, "484w8w", views, &held)) return release(views, held, NULL);
    Py_ssize_t count = views[1].len / 8;
    if (!is_long_enough(views[2].len / 4 >= count && views[3].len / 8 >= count)) return release(views, held, NULL);
    const int32_t *row_of = views[0].buf;
    const int64_t *ids = views[1].buf;
    int32_t *rows = views[2].buf;
    int64_t *missing = views[3].buf;
    uint64_t size = views[0].len / 4;
    for (Py_ssize_t i = 0; i < count; i++) {
        if ((uint64_t)ids[i] >= size) {
            PyErr_SetString(PyExc_IndexError, "an id is outside the vocabulary");
            return release(views, held, NULL);
        }
        rows[i] = row_of[ids[i]];
        if (rows[i] < 0) missing[num_missing++] = ids[i];
    }
    Py_ssize_t num_distinct = make_distinct(missing, num_missing);
    return release(views, held, Py_BuildValue("(nn)", num_missing, num_distinct));
}

/* Arguments: row_of, ids, rows, readers, slots, and the row that is slot 0. */
PyObject *settle(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    (void)module;
    Py_buffer views[5];
    Py_ssize_t held = 0, num_slots = 0;
    if (num_args != 6) return PyErr_Format(PyExc_TypeError, "%zd arguments; 6 are expected", num_args);
    if (!hold_all(args, 5, "484w4w4w", views, &held)) return release(views, held, NULL);
    Py_ssize_t first = PyLong_AsSsize_t(args[5]);
    Py_ssize_t count = views[1].len / 8, num_readers = views[3].len / 4;
    if (first == -1 && PyErr_Occurred()) return release(views, held, NULL);
    if (!is_long_enough(views[2].len / 4 >= count && views[4].len / 4 >= count)) return release(views, held, NULL);
    const int32_t *row_of = views[0].buf;
    const int64_t *ids = views[1].buf;
    int32_t *rows = views[2].buf, *readers = views[3].buf, *slots = views[4].buf;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (rows[i] < 0 && (uint64_t)ids[i] < (uint64_t)views[0].len / 4) rows[i] = row_of[ids[i]];
        if (rows[i] < first || rows[i] - first >= num_readers) continue;
        slots[num_slots++] = (int32_t)(rows[i] - first);
        readers[rows[i] - first]++;
    }
    return release(views, held, PyLong_FromSsize_t(num_slots));
}

PyObject *let_go(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    (void)module;
    Py_buffer views[2];
    Py_ssize_t held;
    if (!hold_all(args, num_args, "4w4", views, &held)) return release(views, held, NULL);
    int32_t *readers = views[0].buf;
    const int32_t *slots = views[1].buf;
    for (Py_ssize_t i = 0; i < views[1].len / 4; i++)
        if ((uint64_t)slots[i] < (uint64_t)views[0].len / 4) readers[slots[i]]--;
    return release(views, held, Py_NewRef(Py_None));
}

static Py_ssize_t place_in(const int64_t *ids, Py_ssize_t count, int64_t wanted) {
    Py_ssize_t low = 0;
    for (Py_ssize_t high = count; low < high;) {
        Py_ssize_t middle = low + (high - low) / 2;
        if (ids[middle] < wanted)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && ids[low] == wanted ? low : -1;
}

PyObject *match(PyObject *module, PyObject *const *args, Py_ssize_t num_args) {
    (void)module;
    Py_buffer views[4];
    Py_ssize_t held, num_used = 0;
    if (!hold_all(args, num_args, "8484w", views, &held)) return release(views, held, NULL);
    const int64_t *ids = views[0].buf, *tokens = views[2].buf;
    const int32_t *index = views[1].buf;
    int32_t *rows = views[3].buf;
    Py_ssize_t num_ids = views[0].len / 8, count = views[2].len / 8;
    if (!is_long_enough(views[1].len / 4 >= num_ids && views[3].len / 4 >= count)) return release(views, held, NULL);
    uint8_t *used = PyMem_Calloc(num_ids + 1, 1);
    if (!used) return release(views, held, PyErr_NoMemory());
    for (Py_ssize_t i = 0; i < count && num_used >= 0; i++) {
        Py_ssize_t place = place_in(ids, num_ids, tokens[i]);
        if (place < 0) {
            num_used = -1;
            break;
        }
        rows[i] = index[place];
        num_used += !used[place];
        used[place] = 1;
    }
    PyMem_Free(used);
    return release(views, held, PyLong_FromSsize_t(num_used));
}

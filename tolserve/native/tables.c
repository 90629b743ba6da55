/* Table versions that lanes answer from. They come and go while connections are served. */
#include "rowpath.h"

#include <string.h>

enum { IDENTITY_BYTES = 16 };

/* Rows that every id of this partition needs together. */
static uint64_t num_rows(const table_t *table) {
    uint64_t blocks = (table->vocab_size + BLOCK_ROWS - 1) / BLOCK_ROWS;
    if (table->num_cyclic) return table->num_cyclic;
    if (table->partition >= blocks) return 0;
    uint64_t own = (blocks - 1 - table->partition) / table->num_partitions;
    uint64_t last = own * table->num_partitions + table->partition;
    uint64_t in_last = last == blocks - 1 ? table->vocab_size - last * BLOCK_ROWS : BLOCK_ROWS;
    return own * BLOCK_ROWS + in_last;
}

/* Take hold of the rows of each band, checked to be as long as every id of this partition needs. */
static bool hold_bands(table_t *table, PyObject *bands) {
    Py_ssize_t num_bands = PySequence_Size(bands);
    if (num_bands < 1 || num_bands > 64) {
        if (!PyErr_Occurred()) PyErr_Format(PyExc_ValueError, "%zd bands; 1 to 64 are possible", num_bands);
        return false;
    }
    uint64_t least = num_rows(table);
    for (; table->num_bands < num_bands; table->num_bands++) {
        Py_buffer *rows = &table->bands[table->num_bands];
        PyObject *band = PySequence_GetItem(bands, table->num_bands);
        if (!band) return false;
        int failed = PyObject_GetBuffer(band, rows, PyBUF_C_CONTIGUOUS);
        Py_DECREF(band);
        if (failed) return false;
        bool fits = rows->ndim == 2 && rows->itemsize == 1 && rows->shape[1] > 0 && (uint64_t)rows->shape[0] >= least;
        if (!fits) {
            PyErr_Format(PyExc_ValueError, "band %d is no uint8 [at least %llu rows, bytes]", table->num_bands,
                         (unsigned long long)least);
            PyBuffer_Release(rows);
            return false;
        }
        table->row_bytes[table->num_bands] = rows->shape[1];
    }
    return true;
}

static void free_table(table_t *table) {
    if (!table) return;
    for (int band = 0; band < table->num_bands; band++) PyBuffer_Release(&table->bands[band]);
    PyMem_Free(table);
}

table_t *find_table(lanes_t *self, const uint8_t *identity) {
    for (int i = 0; i < MAX_TABLES; i++) {
        table_t *table = __atomic_load_n(&self->tables[i], __ATOMIC_ACQUIRE);
        bool is_it = table && !memcmp(table->identity, identity, IDENTITY_BYTES);
        if (is_it && !__atomic_load_n(&table->withdrawn, __ATOMIC_ACQUIRE)) return table;
    }
    return NULL;
}

static bool is_answering(lanes_t *self, const table_t *table) {
    for (lane_t *lane = self->lanes; lane; lane = lane->next)
        if (lane->answering && lane->answer.table == table) return true;
    return false;
}

void free_tables(lanes_t *self, bool all) {
    for (int i = 0; i < MAX_TABLES; i++) {
        table_t *table = self->tables[i];
        if (!table || !(all || (table->withdrawn && !is_answering(self, table)))) continue;
        self->tables[i] = NULL;
        free_table(table);
    }
}

static void withdraw(lanes_t *self, const uint8_t *identity) {
    table_t *table = find_table(self, identity);
    if (table) __atomic_store_n(&table->withdrawn, true, __ATOMIC_RELEASE);
}

/* A table as the arguments say, checked; NULL with a Python error where they cannot be. */
static table_t *parse_table(PyObject *args, PyObject *named) {
    static char *names[] = {"identity", "vocab_size", "partition", "bands", "num_cyclic", NULL};
    const char *identity;
    Py_ssize_t length;
    unsigned long long vocab_size, num_cyclic = 0;
    PyObject *bands;
    table_t *table = PyMem_Calloc(1, sizeof *table);
    if (!table) return (table_t *)PyErr_NoMemory();
    if (PyArg_ParseTupleAndKeywords(args, named, "y#K(II)O|K", names, &identity, &length, &vocab_size, &table->partition,
                                    &table->num_partitions, &bands, &num_cyclic)) {
        table->vocab_size = vocab_size;
        table->num_cyclic = num_cyclic;
        if (length != IDENTITY_BYTES || table->partition >= table->num_partitions) {
            PyErr_SetString(PyExc_ValueError, "an identity has 16 bytes, a partition a number below how many there are");
        } else {
            memcpy(table->identity, identity, IDENTITY_BYTES);
            if (hold_bands(table, bands)) return table;
        }
    }
    free_table(table);
    return NULL;
}

PyObject *lanes_hold(lanes_t *self, PyObject *args, PyObject *named) {
    table_t *table = parse_table(args, named);
    if (!table) return NULL;
    for (int i = 0; self->open && i < MAX_TABLES; i++) {
        if (self->tables[i]) continue;
        withdraw(self, table->identity);
        __atomic_store_n(&self->tables[i], table, __ATOMIC_RELEASE);
        Py_RETURN_TRUE;
    }
    free_table(table);
    Py_RETURN_FALSE;
}

static const uint8_t *identity_of(PyObject *arg) {
    char *identity;
    Py_ssize_t length;
    if (PyBytes_AsStringAndSize(arg, &identity, &length) < 0) return NULL;
    if (length == IDENTITY_BYTES) return (const uint8_t *)identity;
    PyErr_SetString(PyExc_ValueError, "an identity has 16 bytes");
    return NULL;
}

PyObject *lanes_withdraw(lanes_t *self, PyObject *arg) {
    const uint8_t *identity = identity_of(arg);
    if (!identity) return NULL;
    withdraw(self, identity);
    Py_RETURN_NONE;
}

PyObject *lanes_holds(lanes_t *self, PyObject *arg) {
    const uint8_t *identity = identity_of(arg);
    return identity ? PyBool_FromLong(find_table(self, identity) != NULL) : NULL;
}

/* Rows requests and their answers: the protocol of tolserve/transport/frames.py for requests without fault. */
#include "rowpath.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif

enum { MAX_VIEWS = 512, FIRST_BYTES = 64 << 10, VERSION = 1, ROWS = 2 };

static uint32_t read_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t read_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static bool owns_all(const table_t *table, const uint8_t *ids, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t id = read_u32(ids + 4 * (size_t)i);
        if (id >= table->vocab_size || id / BLOCK_ROWS % table->num_partitions != table->partition) return false;
    }
    return true;
}

static uint64_t place_of(const table_t *table, uint64_t id) {
    if (table->num_cyclic) return id % table->num_cyclic;
    uint64_t stride = (uint64_t)BLOCK_ROWS * table->num_partitions;
    return id / stride * BLOCK_ROWS + id % BLOCK_ROWS;
}

int parse_request(lanes_t *self, const uint8_t *data, size_t filled, answer_t *answer) {
    static const uint8_t start[8] = {'T', 'o', 'L', 'q', VERSION, ROWS, 0, 0};
    if (filled < REQUEST_BYTES) return INCOMPLETE;
    const table_t *table = find_table(self, data + 8);
    if (!table) return ODD;
    uint64_t mask = read_u64(data + 32);
    uint32_t count = read_u32(data + 40);
    bool known = table->num_bands == 64 || mask >> table->num_bands == 0;
    if (memcmp(data, start, 8) || !mask || !known || !count || count > self->max_ids || read_u32(data + 44)) return ODD;
    if (filled < REQUEST_BYTES + 4 * (size_t)count) return INCOMPLETE;
    if (!owns_all(table, data + REQUEST_BYTES, count)) return ODD;
    uint64_t length = 0;
    for (int band = 0; band < table->num_bands; band++)
        if (mask >> band & 1) length += (uint64_t)count * table->row_bytes[band];
    answer->table = table;
    answer->band_mask = mask;
    answer->num_ids = count;
    answer->ids = data + REQUEST_BYTES;
    answer->length = RESPONSE_BYTES + length;
    answer->sent = 0;
    memcpy(answer->head, "ToLr\x01\0\0\0", 8);
    memcpy(answer->head + 8, data + 24, 8);
    memcpy(answer->head + 16, &length, 8);
    return READY;
}

/* Rows of different tokens lie far apart: without this the system's copy waits for memory at the start of each. Of a
   long row the processor fetches the rest by itself. */
static void fetch_ahead(const uint8_t *row, size_t size) {
    size_t end = size < 2048 ? size : 2048;
    for (size_t at = 0; at < end; at += 64) __builtin_prefetch(row + at, 0, 2);
}

/* Buffers of the rows of one band from byte `skip` of it on; updates how many there are and their bytes. */
static void add_band(const answer_t *answer, int band, uint64_t skip, size_t limit, struct iovec *views,
                     int *num_views, size_t *bytes) {
    const table_t *table = answer->table;
    const uint8_t *rows = table->bands[band].buf;
    size_t size = table->row_bytes[band];
    size_t offset = skip % size;
    for (uint64_t i = skip / size; i < answer->num_ids && *num_views < MAX_VIEWS && *bytes < limit; i++) {
        const uint8_t *row = rows + place_of(table, read_u32(answer->ids + 4 * i)) * size;
        fetch_ahead(row + offset, size - offset);
        views[*num_views].iov_base = (void *)(row + offset);
        views[*num_views].iov_len = size - offset;
        *bytes += size - offset;
        ++*num_views;
        offset = 0;
    }
}

ssize_t send_some(int fd, answer_t *answer, size_t budget) {
    const table_t *table = answer->table;
    struct iovec views[MAX_VIEWS];
    int num_views = 0;
    size_t bytes = 0;
    uint64_t position = RESPONSE_BYTES;
    bool is_first = true;
    if (answer->sent < RESPONSE_BYTES) {
        views[0].iov_base = answer->head + answer->sent;
        views[0].iov_len = bytes = RESPONSE_BYTES - answer->sent;
        num_views = 1;
    }
    for (int band = 0; band < table->num_bands && num_views < MAX_VIEWS && bytes < budget; band++) {
        if (!(answer->band_mask >> band & 1)) continue;
        uint64_t band_bytes = (uint64_t)answer->num_ids * table->row_bytes[band];
        uint64_t skip = answer->sent > position ? answer->sent - position : 0;
        if (skip < band_bytes) add_band(answer, band, skip, budget, views, &num_views, &bytes);
        if (is_first && skip < band_bytes && band_bytes >= FIRST_BYTES) break; /* a step waits for it first */
        is_first = false;
        position += band_bytes;
    }
    struct msghdr message = {.msg_iov = views, .msg_iovlen = num_views};
    ssize_t count = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0) answer->sent += count;
    return count;
}

/* The loop over connections whose requests are without fault. It runs without Python and without its lock. */
#include "rowpath.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum { TURN_BYTES = 1 << 20, TURNS_A_LOOK = 8 };

enum { IDLE, MOVED, GIVE_BACK, GONE };

static void count(uint64_t *counter, uint64_t amount) { __atomic_fetch_add(counter, amount, __ATOMIC_RELAXED); }

static bool listen_for(lanes_t *self, lane_t *lane, uint32_t events) {
    if (lane->events == events) return true;
    struct epoll_event event = {.events = events, .data.ptr = lane};
    lane->events = events;
    return epoll_ctl(self->epoll, EPOLL_CTL_MOD, lane->fd, &event) == 0;
}

static void begin_answer(lanes_t *self, lane_t *lane) {
    lane->answering = true;
    count(&self->num_requests, 1);
    count(&self->num_rows, lane->answer.num_ids);
    count(&self->num_bytes, lane->answer.length - RESPONSE_BYTES);
}

static void end_answer(lane_t *lane) {
    uint8_t *data = lane->inbox.buf;
    size_t used = REQUEST_BYTES + 4 * (size_t)lane->answer.num_ids;
    memmove(data, data + used, lane->filled - used);
    lane->filled -= used;
    lane->answering = false;
}

/* Send of the answer, at most `budget`; negative where the turn is over, then `*result` says why. */
static ssize_t send_turn(lanes_t *self, lane_t *lane, size_t budget, int *result) {
    ssize_t sent = send_some(lane->fd, &lane->answer, budget);
    if (sent < 0) {
        bool is_full = errno == EAGAIN || errno == EINTR;
        if (!is_full || !listen_for(self, lane, EPOLLOUT)) *result = GONE;
        return -1;
    }
    *result = MOVED;
    if (lane->answer.sent == lane->answer.length) end_answer(lane);
    return sent;
}

/* Receive; negative where the turn is over, then `*result` says why. */
static ssize_t receive_turn(lanes_t *self, lane_t *lane, int *result) {
    uint8_t *data = lane->inbox.buf;
    ssize_t count = recv(lane->fd, data + lane->filled, lane->inbox.len - lane->filled, MSG_DONTWAIT);
    if (count > 0) {
        lane->filled += count;
        *result = MOVED;
        return count;
    }
    bool is_empty = count < 0 && (errno == EAGAIN || errno == EINTR);
    if (!is_empty || !listen_for(self, lane, EPOLLIN)) *result = GONE;
    return -1;
}

/* Receive, answer and send as far as it goes without waiting, and not much at once, so that others have their turn. */
static int take_turn(lanes_t *self, lane_t *lane) {
    ssize_t budget = TURN_BYTES;
    int result = IDLE;
    lane->fresh = false;
    while (budget > 0) {
        if (!lane->answering) {
            int state = parse_request(self, lane->inbox.buf, lane->filled, &lane->answer);
            if (state == ODD) return GIVE_BACK;
            if (state == READY) begin_answer(self, lane);
        }
        bool was_answering = lane->answering;
        ssize_t moved = was_answering ? send_turn(self, lane, budget, &result) : receive_turn(self, lane, &result);
        if (moved < 0) break;
        budget -= was_answering ? moved : 0;
        if (was_answering && !lane->answering && lane->filled == 0) break;
    }
    if (result == MOVED) lane->moved_at = now_ns();
    if (result == GONE) return GONE;
    uint32_t wanted = lane->answering ? EPOLLOUT : EPOLLIN;
    if (lane->filled && !lane->answering && budget <= 0) lane->fresh = self->any_fresh = true;
    return listen_for(self, lane, wanted) ? result : GONE;
}

/* One turn of one connection; whether it moved. */
static bool serve_one(lanes_t *self, lane_t *lane, leaving_t *leaving, bool keep_hot) {
    int result = take_turn(self, lane);
    if (result >= GIVE_BACK) {
        leaving->fds[leaving->count] = lane->fd;
        leaving->gone[leaving->count++] = result == GONE;
        return true;
    }
    if (result == MOVED && keep_hot && !lane->hot && self->num_hot < MAX_HOT) {
        lane->hot = true;
        self->hot[self->num_hot++] = lane;
    }
    return result == MOVED;
}

void cool_down(lanes_t *self) {
    for (int i = 0; i < self->num_hot; i++) self->hot[i]->hot = false;
    self->num_hot = 0;
}

/* Connections that a look at the system finds; whether what is watched beside them wants attention. */
static bool look(lanes_t *self, int timeout_ms, bool keep_hot, leaving_t *leaving, bool *moved) {
    struct epoll_event events[MAX_EVENTS];
    bool called = false;
    int found = epoll_wait(self->epoll, events, MAX_EVENTS, timeout_ms);
    for (int i = 0; i < found; i++) {
        lane_t *lane = events[i].data.ptr;
        if (lane == NULL)
            called = true;
        else if (!lane->hot && serve_one(self, lane, leaving, keep_hot))
            *moved = true;
    }
    return called || (found < 0 && errno != EINTR);
}

static bool serve_fresh(lanes_t *self, leaving_t *leaving, bool keep_hot) {
    bool moved = false;
    self->any_fresh = false;
    for (lane_t *lane = self->lanes; lane; lane = lane->next) {
        if (!lane->fresh) continue;
        if (leaving->count < MAX_EVENTS) moved |= serve_one(self, lane, leaving, keep_hot);
        self->any_fresh |= lane->fresh;
    }
    return moved;
}

/* Until the tick is over, what is watched wants attention, or connections have to leave. */
void serve(lanes_t *self, int64_t spin_ns, int64_t tick_ns, leaving_t *leaving) {
    int64_t begin = now_ns();
    for (unsigned turn = 1;; turn++) {
        bool moved = self->any_fresh && serve_fresh(self, leaving, spin_ns > 0);
        if (leaving->count) return;
        for (int i = 0; i < self->num_hot; i++) moved |= serve_one(self, self->hot[i], leaving, false);
        if (leaving->count) return;
        if (self->num_hot && moved && turn % TURNS_A_LOOK) continue;
        int64_t now = now_ns();
        if (moved) self->active_at = now;
        if (now - self->active_at >= spin_ns) cool_down(self);
        if (self->num_hot && turn % TURNS_A_LOOK) continue;
        int64_t left_ms = (tick_ns - (now - begin)) / 1000000;
        if (left_ms <= 0) return;
        moved = false;
        bool called = look(self, self->num_hot || self->any_fresh ? 0 : (int)left_ms, spin_ns > 0, leaving, &moved);
        if (moved) self->active_at = now_ns();
        if (called || leaving->count) return;
    }
}

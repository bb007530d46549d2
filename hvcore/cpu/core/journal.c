/* What a lane has written, so that it can be undone. */
#include "lane.h"

static void set(struct hv_journal *j, void *at, const void *value, size_t size) {
    if (unlikely(j->used == JOURNAL_SIZE)) {
        j->is_full = true; /* nothing more is written, and the lane ends as not mine */
        return;
    }
    j->written[j->used].at = at;
    j->written[j->used].size = size;
    memcpy(&j->written[j->used].old, at, size);
    memcpy(at, value, size);
    j->used++;
}

void hv_set8(struct hv_call *c, void *at, uint8_t value) { set(c->j, at, &value, sizeof value); }
void hv_set32(struct hv_call *c, void *at, uint32_t value) { set(c->j, at, &value, sizeof value); }
void hv_set64(struct hv_call *c, void *at, uint64_t value) { set(c->j, at, &value, sizeof value); }
void hv_count_up(struct hv_call *c, void *counter) { hv_set64(c, counter, *(const uint64_t *)counter + 1); }

/* Take back what was written since `used` was `down_to`. */
void hv_undo(struct hv_call *c, uint64_t down_to) {
    struct hv_journal *j = c->j;
    while (j->used > down_to) {
        j->used--;
        memcpy(j->written[j->used].at, &j->written[j->used].old, j->written[j->used].size);
    }
    j->is_full = false;
}

/* What a lane has written, so that it can be undone. */
#include "lane.h"

static bool note(struct hv_journal *j, void *at, uint64_t old, uint64_t size) {
    if (unlikely(j->used == JOURNAL_SIZE)) {
        j->is_full = true; /* nothing more is written, and the lane ends as not mine */
        return false;
    }
    j->written[j->used].at = at;
    j->written[j->used].old = old;
    j->written[j->used].size = size;
    j->used++;
    return true;
}

void hv_set8(struct hv_journal *j, void *at, uint8_t value) {
    if (note(j, at, *(uint8_t *)at, 1))
        *(uint8_t *)at = value;
}

void hv_set32(struct hv_journal *j, void *at, uint32_t value) {
    uint32_t old;
    memcpy(&old, at, sizeof old);
    if (note(j, at, old, 4))
        memcpy(at, &value, sizeof value);
}

void hv_set64(struct hv_journal *j, void *at, uint64_t value) {
    uint64_t old;
    memcpy(&old, at, sizeof old);
    if (note(j, at, old, 8))
        memcpy(at, &value, sizeof value);
}

/* Take back what was written since `used` was `down_to`. */
void hv_undo(struct hv_journal *j, uint64_t down_to) {
    while (j->used > down_to) {
        j->used--;
        memcpy(j->written[j->used].at, &j->written[j->used].old, j->written[j->used].size);
    }
    j->is_full = false;
}

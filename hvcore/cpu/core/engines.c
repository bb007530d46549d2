/* Which engines of this process are ours: what is put into the library's jump slots is called for all. */
#include "blocks.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 256 };
enum { PAGE_SIZE = 4096, PLACE_IN_PAGE = 0x100 };

struct node { /* never freed, so that other threads may look while Python enters and leaves */
    struct node *next;
    const void *key;
    struct hv_engine *engine; /* NULL: of one that is gone */
};

static struct node *buckets[BUCKETS];

static struct node **bucket_of(const void *key) {
    return &buckets[((uintptr_t)key >> 4) * UINT64_C(0x9E3779B97F4A7C15) >> 56];
}

struct hv_engine *hv_engine_of(const void *key) {
    struct node *node = __atomic_load_n(bucket_of(key), __ATOMIC_ACQUIRE);
    while (node && node->key != key)
        node = node->next;
    return node ? node->engine : NULL;
}

static bool enter(const void *key, struct hv_engine *engine) {
    struct node **bucket = bucket_of(key), *node = *bucket;
    while (node && node->key != key)
        node = node->next;
    if (node) {
        node->engine = engine;
        return true;
    }
    node = malloc(sizeof *node);
    if (!node)
        return false;
    *node = (struct node){.next = *bucket, .key = key, .engine = engine};
    __atomic_store_n(bucket, node, __ATOMIC_RELEASE);
    return true;
}

/* Each block of guest code stores to `left`, and a load from an address with the same lower twelve bits waits for a
 * store (4K aliasing). At the end of a page, where kernels have their stack, that made a boot a third slower; here,
 * 3,840 bytes below the top of a stack, few loads are.
 */
HV_EXPORT struct hv_engine *hv_new_words(void) {
    uint8_t *pages = aligned_alloc(PAGE_SIZE, PAGE_SIZE + FOUND_BLOCKS_SIZE);
    if (!pages)
        return NULL;
    memset(pages, 0, PAGE_SIZE + FOUND_BLOCKS_SIZE);
    struct hv_engine *e = (struct hv_engine *)(pages + PLACE_IN_PAGE);
    e->found_blocks = (uintptr_t)(pages + PAGE_SIZE);
    return e;
}

HV_EXPORT void hv_free_words(struct hv_engine *e) { free((uint8_t *)e - PLACE_IN_PAGE); }

/* Make an engine known by its handle and its CPUState. Called under Python's lock; 0 without memory. */
HV_EXPORT int hv_register(struct hv_engine *e) {
    return enter((void *)e->uc, e) && (!e->cpu || enter((void *)e->cpu, e));
}

/* Forget an engine, before its addresses become another's. */
HV_EXPORT void hv_unregister(struct hv_engine *e) {
    if (hv_engine_of((void *)e->uc) == e)
        enter((void *)e->uc, NULL);
    if (e->cpu && hv_engine_of((void *)e->cpu) == e)
        enter((void *)e->cpu, NULL);
}

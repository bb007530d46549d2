/* Which engines of this process are ours: what is put into the library's jump slots is called for all. */
#include "blocks.h"
#include "tlb.h"
#include "x86.h"

#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 256 };

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

/* Each block of guest code loads and stores `left` by RBP, the address of the processor's state, and a displacement.
 * AMD's processors (Zen 4 here) take a load for one of what was stored last by the same base register when the
 * displacements agree in their lower ten bits, and begin again when that was wrong. Where these were the ones of RIP
 * or of another register of the guest's, a boot took 4.1 s instead of 2.7, and the heap decides where the state lies.
 * So the distance is chosen: `left` and `limit` meet nothing there that kernels use, and no half of an SSE register.
 */
enum { DISPLACEMENT_BITS = 0x3FF, DISPLACEMENT = 0x1D0 };
_Static_assert(DISPLACEMENT_BITS + sizeof(struct hv_engine) <= PAGE_SIZE, "the words are in their page");

HV_EXPORT struct hv_engine *hv_new_words(uintptr_t env) {
    enum { SIZE = PAGE_SIZE + FOUND_BLOCKS_SIZE + sizeof(struct hv_found_code) };
    uint8_t *pages = aligned_alloc(PAGE_SIZE, (SIZE + PAGE_SIZE - 1) & -PAGE_SIZE);
    if (!pages)
        return NULL;
    memset(pages, 0, SIZE);
    struct hv_engine *e = (struct hv_engine *)(pages + ((env + DISPLACEMENT) & DISPLACEMENT_BITS));
    e->found_blocks = (uintptr_t)(pages + PAGE_SIZE);
    return e;
}

HV_EXPORT void hv_free_words(struct hv_engine *e) {
    hv_free_spaces(e);
    free((void *)((uintptr_t)e & -(uintptr_t)PAGE_SIZE));
}

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

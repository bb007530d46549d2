/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * From Xen's entry to main(), and out again.
 */
#include "guest.h"

struct start_info *start_info;
static u8 shared_info_page[PAGE_SIZE] PAGE_ALIGNED;
struct shared_info *shared_info = (struct shared_info *)shared_info_page;

void guest_main(struct start_info *si) __attribute__((noreturn));

void guest_main(struct start_info *si)
{
    start_info = si;
    memory_init();
    set_va(shared_info_page, si->shared_info | PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY, UVMF_INVLPG);
    console_init();
    traps_init();
    events_init();
    shutdown((u32)main());
}

void shutdown(u32 reason)
{
    console_drain();
    for (;;)
        HYPERCALL2(sched_op, SCHEDOP_shutdown, &reason);
}

static const char *find_word(const char *word, char end)
{
    ulong length = strlen(word);
    for (const char *at = start_info->cmd_line; *at;) {
        if (!strncmp(at, word, length) && (at[length] == end || (end == ' ' && !at[length])))
            return at + length + 1;
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return NULL;
}

int on_command_line(const char *word)
{
    return find_word(word, ' ') != NULL;
}

/* The number in KEY=NUMBER on the command line (decimal), or `otherwise`. */
long command_line_number(const char *key, long otherwise)
{
    const char *at = find_word(key, '=');
    long value = 0;
    if (!at)
        return otherwise;
    for (; *at >= '0' && *at <= '9'; at++)
        value = value * 10 + *at - '0';
    return value;
}

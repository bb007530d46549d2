/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * A first guest: it tells what Xen gave it, counts a few ticks of a timer, and answers what is typed.
 * On the command line, ticks=N (default 3) says how many.
 */
#include "guest.h"

#define TICK_NS 10000000ull

static volatile u32 ticks;

static void on_timer(u32 port)
{
    (void)port;
    ticks++;
}

static void set_timer(u64 deadline)
{
#ifdef __x86_64__
    HYPERCALL1(set_timer_op, deadline);
#else
    HYPERCALL2(set_timer_op, deadline, deadline >> 32);
#endif
}

static void about(void)
{
    long version = HYPERCALL2(xen_version, XENVER_version, 0);
    char capabilities[1024] = "";
    HYPERCALL2(xen_version, XENVER_capabilities, capabilities);
    printf("Xen %ld.%ld: %s\n", version >> 16, version & 0xffff, capabilities);
    printf("magic         %s\n", start_info->magic);
    printf("memory        %lu MiB, %lu pages\n", start_info->nr_pages >> 8, start_info->nr_pages);
    printf("command line  \"%s\"\n", start_info->cmd_line);
    printf("ramdisk       %lu bytes\n", start_info->mod_len);
    printf("start_info    %p\n", (void *)start_info);
    printf("page tables   %p, %lu frames\n", (void *)start_info->pt_base, start_info->nr_pt_frames);
    printf("this page is  pfn %lx, which Xen keeps in machine frame %lx\n",
           ((ulong)start_info - VIRT_BASE) >> PAGE_SHIFT, virt_to_mfn(start_info));
}

static void count_ticks(long wanted)
{
    u64 start = system_time();
    if (event_bind_virq(VIRQ_TIMER, on_timer) < 0)
        printf("no timer\n");
    for (u32 seen = 0; seen < (u32)wanted;) {
        set_timer(start + (seen + 1) * TICK_NS);
        while (ticks == seen)
            event_wait();
        seen++;
        printf("tick %u, %u ms later\n", seen, (u32)((system_time() - start) >> 6) / 15625);
        ticks = seen;
    }
}

static void touch_nothing(void *argument)
{
    *(volatile u32 *)argument = 1;
}

static void trap(void)
{
    struct trap trap = probe(touch_nothing, (void *)0x1000);
    printf("writing to 0x1000: trap %lu, error code %lx, cr2 %lx\n", trap.vector, trap.error_code, trap.cr2);
    trap = probe(touch_nothing, (void *)start_info->pt_base);
    printf("writing to a page table: trap %lu, error code %lx, cr2 %lx\n", trap.vector, trap.error_code, trap.cr2);
}

static void now(void)
{
    printf("%llu ns since boot\n", system_time());
}

static void halt(void)
{
    printf("bye\n");
    shutdown(SHUTDOWN_poweroff);
}

static void reboot(void)
{
    shutdown(SHUTDOWN_reboot);
}

static void crash(void)
{
    *(volatile u32 *)16 = 0;
}

static void help(void);

static const struct {
    const char *name, *what;
    void (*run)(void);
} commands[] = {
    { "help", "this list", help },
    { "about", "what Xen gave this guest", about },
    { "time", "the time, from the TSC and the page Xen shares", now },
    { "trap", "two forbidden stores, and what came of them", trap },
    { "crash", "die of a page fault", crash },
    { "reboot", "end, asking for a reboot", reboot },
    { "halt", "power off", halt },
};

static void help(void)
{
    for (ulong i = 0; i < ARRAY_SIZE(commands); i++)
        printf("  %s\t%s\n", commands[i].name, commands[i].what);
}

static void answer(const char *line)
{
    for (ulong i = 0; i < ARRAY_SIZE(commands); i++)
        if (!strcmp(line, commands[i].name)) {
            commands[i].run();
            return;
        }
    if (*line)
        printf("no such command: %s\n", line);
}

int main(void)
{
    char line[80];
    printf("\nHello from a paravirtual guest.\n");
    about();
    count_ticks(command_line_number("ticks", 3));
    printf("Type help, or halt to power off.\n");
    for (;;) {
        printf("hello> ");
        if (console_read_line(line, sizeof(line)) < 0)
            return SHUTDOWN_poweroff;
        answer(line);
    }
}

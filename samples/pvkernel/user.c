/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The program of both processes, in ring 3. It knows nothing of Xen and includes nothing of the kernel; the
 * linker script keeps it apart (.user), and its first function is where it starts.
 */
typedef unsigned long ulong;

#define SYS_exit 1
#define SYS_write 4
#define SYS_time 13
#define SYS_getpid 20
#define SYS_sched_yield 158
#define SYS_nanosleep 162
#define SYS_set_thread_area 243

#define HEAP 0x08100000ul
#define KERNEL_ADDRESS 0xc0100000ul
#define NAP_NS 20000000ul
#define SPIN_MS 60

static void program(void) __attribute__((used));

__asm__(".section .text._start, \"ax\", @progbits\n\t"
        "call program\n\t"
        "ud2\n\t"
        ".text");

static int counter = 41; /* one page of data, two processes: each is to see its own 42 */

static long system_call(ulong nr, ulong a, ulong b, ulong c)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "0"(nr), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

/* "[pid] text number", in one write. */
static void say(const char *text, ulong number)
{
    char line[80], digits[12];
    ulong length = 0, count = 0;
    line[length++] = '[';
    line[length++] = (char)('0' + system_call(SYS_getpid, 0, 0, 0));
    line[length++] = ']';
    line[length++] = ' ';
    while (*text)
        line[length++] = *text++;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        line[length++] = digits[--count];
    line[length++] = '\r';
    line[length++] = '\n';
    system_call(SYS_write, 1, (ulong)line, length);
}

static ulong ring(void)
{
    ulong cs;
    __asm__("movl %%cs, %0" : "=r"(cs));
    return cs & 3;
}

static ulong read_tls(void)
{
    ulong value;
    __asm__ volatile("movl %%gs:0, %0" : "=r"(value));
    return value;
}

static void write_tls(ulong value)
{
    __asm__ volatile("movl %0, %%gs:0" : : "r"(value));
}

static void tls(ulong pid)
{
    ulong base = HEAP + pid * 0x1000; /* a page that nobody has touched yet */
    long selector = system_call(SYS_set_thread_area, base, 0, 0);
    __asm__ volatile("movl %0, %%gs" : : "r"(selector));
    write_tls(pid * 1111);
    system_call(SYS_sched_yield, 0, 0, 0); /* the other one does the same with the same descriptor */
    say("thread-local value after a switch: ", read_tls());
}

static void spin(ulong milliseconds)
{
    ulong start = (ulong)system_call(SYS_time, 0, 0, 0);
    while ((ulong)system_call(SYS_time, 0, 0, 0) - start < milliseconds)
        for (volatile int i = 0; i < 20000; i++)
            ;
}

static void program(void)
{
    ulong pid = (ulong)system_call(SYS_getpid, 0, 0, 0);
    say("hello from ring ", ring());
    tls(pid);
    counter++;
    say("my copy of the counter: ", (ulong)counter);
    say("an unknown system call gives minus ", (ulong)-system_call(999, 0, 0, 0));
    say("writing from the kernel's memory gives minus ", (ulong)-system_call(SYS_write, 1, KERNEL_ADDRESS, 4));
    system_call(SYS_sched_yield, 0, 0, 0);
    if (pid == 1) {
        system_call(SYS_nanosleep, NAP_NS, 0, 0);
        say("slept while the other one computed; my TLS is still ", read_tls());
        system_call(SYS_exit, 0, 0, 0);
    }
    spin(SPIN_MS);
    say("computed; my TLS is still ", read_tls());
    *(volatile ulong *)KERNEL_ADDRESS = 0;
}

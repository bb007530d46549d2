/*
 * What the processor and the kernel owe to a user program, seen from one: faults as signals, state that
 * survives them, single steps, segments, system calls by every gate. Built twice, for x86_64 and i386; prints
 * "ok NAME" or "FAIL NAME DETAIL" for each check and "probes N" at the end.
 */
#define _GNU_SOURCE
#include <asm/ldt.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifdef __x86_64__
#define IP REG_RIP
#else
#define IP REG_EIP
#endif
#define PAGE 4096

static int probes;

static void check(const char *name, int good, long detail)
{
    probes++;
    if (good)
        printf("ok %s\n", name);
    else
        printf("FAIL %s %ld\n", name, detail);
    fflush(stdout);
}

/* -- faults */

static sigjmp_buf back;
static volatile sig_atomic_t seen_signal, seen_code;
static void *volatile seen_address;

static void escape(int signal, siginfo_t *info, void *context)
{
    seen_signal = signal;
    seen_code = info->si_code;
    seen_address = info->si_addr;
    (void)context;
    siglongjmp(back, 1);
}

static void handle(int signal, void (*handler)(int, siginfo_t *, void *))
{
    struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    sigaction(signal, &action, NULL);
}

#define FAULTS(name, statement, signal, code)                                             \
    do {                                                                                  \
        seen_signal = 0;                                                                  \
        if (!sigsetjmp(back, 1)) { statement; }                                           \
        check(name, seen_signal == (signal) && seen_code == (code), seen_signal * 1000 + seen_code); \
    } while (0)

static void faults(void)
{
    char *page = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    static const int signals[] = { SIGSEGV, SIGFPE, SIGILL, SIGBUS };
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        handle(signals[i], escape);
    FAULTS("null", *(volatile int *)16 = 1, SIGSEGV, SEGV_MAPERR);
    check("null_address", seen_address == (void *)16, (long)seen_address);
    FAULTS("read_only", *(volatile char *)(page + 5) = 1, SIGSEGV, SEGV_ACCERR);
    check("read_only_address", seen_address == page + 5, (long)seen_address);
    FAULTS("not_executable", ((void (*)(void))page)(), SIGSEGV, SEGV_ACCERR);
    munmap(page + PAGE, PAGE);
    FAULTS("unmapped", *(volatile char *)(page + PAGE), SIGSEGV, SEGV_MAPERR);
    FAULTS("divide", __asm__ volatile("xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax; div %%ecx"
                                      ::: "eax", "ecx", "edx"), SIGFPE, FPE_INTDIV);
    FAULTS("undefined", __asm__ volatile("ud2"), SIGILL, ILL_ILLOPN);
    FAULTS("sysenter", __asm__ volatile("sysenter"), SIGILL, ILL_ILLOPN); /* AMD's have none in long mode */
    FAULTS("cli", __asm__ volatile("cli"), SIGSEGV, SI_KERNEL);
    FAULTS("in", __asm__ volatile("inb $0x70, %%al" ::: "eax"), SIGSEGV, SI_KERNEL);
    FAULTS("hlt", __asm__ volatile("hlt"), SIGSEGV, SI_KERNEL);
    FAULTS("lgdt", __asm__ volatile("lgdt (%0)" ::"r"(page)), SIGSEGV, SI_KERNEL);
    FAULTS("null_selector", __asm__ volatile("mov %0, %%ss" ::"r"(0)), SIGSEGV, SI_KERNEL);
    FAULTS("bad_selector", __asm__ volatile("mov %0, %%es" ::"r"(0xfff7)), SIGSEGV, SI_KERNEL);
#ifdef __x86_64__
    FAULTS("not_canonical", *(volatile char *)0x1234567890123456 = 1, SIGSEGV, SI_KERNEL);
#endif
    FAULTS("kernel_memory", *(volatile char *)(sizeof(long) == 8 ? -0x7e000000L : -0x1000L), SIGSEGV,
           SEGV_MAPERR);
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        signal(signals[i], SIG_DFL);
}

/* -- traps: the program goes on behind them */

static volatile sig_atomic_t steps, last_code;
static volatile uintptr_t last_ip;

static void count_step(int signal, siginfo_t *info, void *context)
{
    (void)signal;
    steps++;
    last_code = info->si_code;
    last_ip = ((ucontext_t *)context)->uc_mcontext.gregs[IP];
}

static void traps(void)
{
    uintptr_t behind;
    handle(SIGTRAP, count_step);
#ifdef __x86_64__
    __asm__ volatile("int3; 1: lea 1b(%%rip), %0" : "=r"(behind)::"memory");
#else
    __asm__ volatile("int3; 1: call 2f; 2: pop %0; sub $(2b - 1b), %0" : "=r"(behind)::"memory");
#endif
    check("int3", steps == 1 && last_code == SI_KERNEL && last_ip == behind, last_code);
    steps = 0;
#ifdef __x86_64__
    __asm__ volatile("sub $128, %%rsp; pushf; orl $0x100, (%%rsp); popf; nop; nop; nop;"
                     "pushf; andl $~0x100, (%%rsp); popf; add $128, %%rsp" ::: "memory", "cc");
#else
    __asm__ volatile("pushf; orl $0x100, (%%esp); popf; nop; nop; nop; pushf; andl $~0x100, (%%esp); popf"
                     ::: "memory", "cc");
#endif
    check("single_step", steps == 6 && last_code == TRAP_TRACE, steps * 100 + last_code); /* 3 nops and 3 more */
    signal(SIGTRAP, SIG_DFL);
}

/* -- floating point through signals and switches */

static void spoil(int signal)
{
    (void)signal;
    __asm__ volatile("fninit; fldpi; fldz; pcmpeqd %%xmm0, %%xmm0; pcmpeqd %%xmm7, %%xmm7" ::
                     : "xmm0", "xmm7", "st");
}

static int floating_loop(long rounds)
{
    volatile double sum = 0;
    double expected = 0;
    for (long i = 1; i <= rounds; i++)
        sum += 0.5 * (double)i;
    expected = 0.25 * (double)rounds * (double)(rounds + 1);
    return sum == expected;
}

static void floating(void)
{
    static const uint64_t pattern[2] = { 0x0123456789abcdef, 0xfedcba9876543210 };
    uint64_t after[2];
    double loaded = 1.5, popped = 0;
    signal(SIGUSR1, spoil);
    pid_t self = getpid();
    long done;
#ifdef __x86_64__
    __asm__ volatile("movdqu (%[p]), %%xmm7; fldl %[l]; mov $62, %%eax; syscall; movdqu %%xmm7, %[a]; fstpl %[o]"
                     : "=&a"(done), [a] "=m"(after), [o] "=m"(popped)
                     : [p] "r"(pattern), [l] "m"(loaded), "D"((long)self), "S"((long)SIGUSR1)
                     : "xmm0", "xmm7", "rcx", "r11", "memory");
#else
    __asm__ volatile("movdqu %[p], %%xmm7; fldl %[l]; mov $37, %%eax; int $0x80; movdqu %%xmm7, %[a]; fstpl %[o]"
                     : "=&a"(done), [a] "=m"(after), [o] "=m"(popped)
                     : [p] "m"(pattern), [l] "m"(loaded), "b"(self), "c"(SIGUSR1)
                     : "xmm0", "xmm7", "memory");
#endif
    check("sse_through_a_signal", done == 0 && !memcmp(pattern, after, 16), (long)after[0]);
    check("x87_through_a_signal", popped == 1.5, (long)(popped * 1000));
    struct itimerval tick = { { 0, 4000 }, { 0, 4000 } };
    signal(SIGALRM, spoil);
    setitimer(ITIMER_REAL, &tick, NULL);
    check("floating_under_a_timer", floating_loop(300000), 0);
    memset(&tick, 0, sizeof tick);
    setitimer(ITIMER_REAL, &tick, NULL);
    int good = 1, status;
    for (int i = 0; i < 3; i++)
        if (!fork())
            _exit(!floating_loop(200000));
    good = floating_loop(200000);
    for (int i = 0; i < 3; i++)
        good &= wait(&status) > 0 && status == 0;
    check("floating_in_four_processes", good, status);
}

/* -- memory, threads */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long counter;
static __thread long own;

static void *count(void *argument)
{
    for (int i = 0; i < 2000; i++) {
        pthread_mutex_lock(&lock);
        counter++;
        pthread_mutex_unlock(&lock);
        own++;
        if (i % 100 == 0)
            sched_yield();
    }
    return (void *)(own == 2000 ? argument : NULL);
}

static void memory(void)
{
    size_t size = 64 * PAGE;
    char *data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    long *shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status;
    for (size_t i = 0; i < size; i += PAGE)
        data[i] = (char)(i / PAGE);
    if (!fork()) {
        for (size_t i = 0; i < size; i += PAGE)
            data[i]++;
        *shared = data[5 * PAGE];
        _exit(0);
    }
    wait(&status);
    check("copy_on_write", status == 0 && data[5 * PAGE] == 5 && *shared == 6, *shared);
    char *moved = mremap(data, size, 4 * size, MREMAP_MAYMOVE);
    check("mremap", moved != MAP_FAILED && moved[63 * PAGE] == 63 && moved[100 * PAGE] == 0, errno);
    check("mprotect", !mprotect(moved, PAGE, PROT_READ) && moved[0] == 0, errno);
    madvise(moved, 4 * size, MADV_DONTNEED);
    check("dontneed", moved[63 * PAGE] == 0, moved[63 * PAGE]);
    munmap(moved, 4 * size);
    pthread_t thread[4];
    int good = 1;
    void *result;
    for (int i = 0; i < 4; i++)
        pthread_create(&thread[i], NULL, count, &lock);
    for (int i = 0; i < 4; i++)
        good &= !pthread_join(thread[i], &result) && result == &lock;
    check("threads", good && counter == 8000, counter);
}

/* -- system calls by every gate, and segments */

#ifdef __x86_64__
#define SEGMENT "%%gs" /* the C library keeps threads' data in the other one */
#define LOW 0x40       /* MAP_32BIT */
#else
#define SEGMENT "%%fs"
#define LOW 0
#endif
#define LDT_SELECTOR(entry) ((entry) << 3 | 7)

static void *low_page(const void *contents, size_t size, int protection)
{
    void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | LOW, -1, 0);
    memcpy(page, contents, size);
    mprotect(page, PAGE, protection);
    return page;
}

static long set_ldt(unsigned entry, void *base, unsigned limit)
{
    struct user_desc d = { .entry_number = entry, .base_addr = (unsigned)(uintptr_t)base, .limit = limit,
                           .seg_32bit = 1 };
    return syscall(SYS_modify_ldt, 1, &d, sizeof d);
}

static void load_segment(int selector)
{
    __asm__ volatile("mov %0, " SEGMENT ::"r"(selector));
}

static int segment_byte(uintptr_t offset)
{
    int value;
    __asm__ volatile("movzbl " SEGMENT ":(%1), %0" : "=r"(value) : "r"(offset));
    return value;
}

static void local_descriptors(void)
{
    void *page = low_page("local", 6, PROT_READ);
    long rc = set_ldt(3, page, 15);
    int status, saved;
    check("modify_ldt", rc == 0, errno);
    __asm__ volatile("mov " SEGMENT ", %0" : "=r"(saved));
    load_segment(LDT_SELECTOR(3));
    check("ldt_segment", segment_byte(1) == 'o', segment_byte(1));
    for (int i = 0; i < 5; i++)
        sched_yield();
    check("ldt_after_switches", segment_byte(2) == 'c', segment_byte(2));
    if (!fork())
        _exit(segment_byte(3) != 'a');
    wait(&status);
    check("ldt_in_a_child", status == 0, status);
    load_segment(saved);
}

static void gates(void)
{
    long pid = getpid(), got;
    __asm__ volatile("int $0x80" : "=a"(got) : "a"(20) : "memory"
#ifdef __x86_64__
                     , "r8", "r9", "r10", "r11"
#endif
    );
    check("int80", got == pid, got);
#ifdef __x86_64__
    /* 32-bit code in a 64-bit program: getpid by int 0x80, and back by a far return */
    static const unsigned char code[] = { 0xb8, 20, 0, 0, 0, 0xcd, 0x80, 0xcb };
    char *target = low_page(code, sizeof code, PROT_READ | PROT_EXEC);
    char *stack = low_page("", 1, PROT_READ | PROT_WRITE);
    static struct { uint32_t offset; uint16_t selector; } far;
    far.offset = (uint32_t)(uintptr_t)target;
    far.selector = 0x23;
    __asm__ volatile("mov %%rsp, %%r12; mov %[s], %%rsp; lcall *%[f]; mov %%r12, %%rsp"
                     : "=&a"(got) : [s] "r"(stack + PAGE - 64), [f] "m"(far)
                     : "r8", "r9", "r10", "r11", "r12", "memory", "cc");
    check("compat_segment", got == pid, got);
    struct timeval now = { 0 };
    ((int (*)(struct timeval *, void *))0xffffffffff600000)(&now, NULL);
    check("vsyscall", labs(now.tv_sec - time(NULL)) < 2, now.tv_sec);
    static long word = 0x5eed;
    syscall(SYS_arch_prctl, 0x1001 /* ARCH_SET_GS */, &word);
    for (int i = 0; i < 5; i++)
        sched_yield();
    __asm__ volatile("mov %%gs:0, %0" : "=r"(got));
    check("gs_base", got == word, got);
    syscall(SYS_arch_prctl, 0x1004 /* ARCH_GET_GS */, &got);
    check("gs_base_read", got == (long)&word, got);
    syscall(SYS_arch_prctl, 0x1001, 0);
#else
    const unsigned char *vdso = (const unsigned char *)getauxval(AT_SYSINFO);
    check("vdso", vdso != NULL, 0);
    if (vdso)
        __asm__ volatile("call *%1" : "=a"(got) : "r"(vdso), "a"(20) : "memory");
    check("vdso_call", got == pid, got);
    int kind = 0;
    for (int i = 0; vdso && i < 16 && !kind; i++)
        if (vdso[i] == 0x0f && (vdso[i + 1] == 0x05 || vdso[i + 1] == 0x34))
            kind = vdso[i + 1];
    printf("vdso gate %s\n", kind == 5 ? "syscall" : kind ? "sysenter" : "int80");
#endif
    unsigned char room[16];
    got = syscall(SYS_kexec_load, 0, 1, &room, 1 /* KEXEC_ON_CRASH */);
    check("crash_kexec_refused", got == -1, errno);
}

/* -- a debugger */

static volatile int visited;

__attribute__((noinline)) static void visit(void)
{
    visited++;
}

static long debug_offset(int number)
{
    return (long)(offsetof(struct user, u_debugreg) + (size_t)number * sizeof(long));
}

static void debugger(void)
{
    int status, stepped = 0;
    pid_t child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        for (int i = 0; i < 3; i++)
            visit();
        _exit(visited);
    }
    waitpid(child, &status, 0);
    for (; stepped < 200; stepped++) {
        ptrace(PTRACE_SINGLESTEP, child, NULL, NULL);
        if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
            break;
    }
    check("ptrace_single_steps", stepped == 200 || (WIFEXITED(status) && stepped > 10), stepped);
    kill(child, SIGKILL);
    waitpid(child, &status, 0);

    child = fork();
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, NULL, NULL);
        raise(SIGSTOP);
        for (int i = 0; i < 3; i++)
            visit();
        _exit(visited);
    }
    waitpid(child, &status, 0);
    long set = ptrace(PTRACE_POKEUSER, child, debug_offset(0), visit);
    set |= ptrace(PTRACE_POKEUSER, child, debug_offset(7), 1);
    check("set_breakpoint", set == 0, errno);
    int hits = 0;
    while (ptrace(PTRACE_CONT, child, NULL, NULL) == 0 && waitpid(child, &status, 0) == child &&
           WIFSTOPPED(status) && WSTOPSIG(status) == SIGTRAP && hits < 10)
        hits += ptrace(PTRACE_PEEKUSER, child, debug_offset(6), NULL) & 1;
    check("hardware_breakpoint", hits == 3 && WIFEXITED(status) && WEXITSTATUS(status) == 3, hits * 1000 + status);
}

/* -- time */

static void clocks(void)
{
    struct timespec last = { 0 }, now;
    int backwards = 0;
    for (int i = 0; i < 3000; i++) {
        if (i % 2)
            clock_gettime(CLOCK_MONOTONIC, &now);
        else
            syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
        backwards += now.tv_sec < last.tv_sec || (now.tv_sec == last.tv_sec && now.tv_nsec < last.tv_nsec);
        last = now;
    }
    check("monotonic_clock", backwards == 0, backwards);
    struct timespec nap = { 0, 30000000 };
    nanosleep(&nap, NULL);
    clock_gettime(CLOCK_MONOTONIC, &now);
    long slept = (now.tv_sec - last.tv_sec) * 1000000 + (now.tv_nsec - last.tv_nsec) / 1000;
    check("nanosleep", slept >= 30000 && slept < 45000, slept);
}

int main(void)
{
    faults();
    traps();
    floating();
    memory();
    local_descriptors();
    gates();
    debugger();
    clocks();
    printf("probes %d\n", probes);
    return 0;
}

/*
 * Runs code on this processor: reads lines of hexadecimal, puts each at CODE with an int3 behind it, jumps there and
 * prints vector, error code and RIP - CODE of the exception that ends it. The argument are the bytes at DATA.
 */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#define CODE 0x10000
#define DATA 0x14000
#define SIZE 0x10000

static sigjmp_buf back;
static volatile unsigned long vector, error, rip;

static void ended(int signal, siginfo_t *info, void *context)
{
    const greg_t *gregs = ((ucontext_t *)context)->uc_mcontext.gregs;
    vector = (unsigned long)gregs[REG_TRAPNO];
    error = (unsigned long)gregs[REG_ERR];
    rip = (unsigned long)gregs[REG_RIP] - CODE;
    (void)signal, (void)info;
    siglongjmp(back, 1);
}

static size_t bytes(uint8_t *to, const char *hex)
{
    size_t count = 0;
    unsigned byte;
    for (; sscanf(hex, "%2x", &byte) == 1; hex += 2)
        to[count++] = (uint8_t)byte;
    return count;
}

static void enter(void)
{
    __asm__ volatile("mov $0x12000, %%esp; mov $0x14000, %%ebx; mov $0x14000, %%esi; mov $0x14000, %%edi;"
                     "mov $0x12000, %%ebp; xor %%eax, %%eax; xor %%ecx, %%ecx; mov $0x10000, %%edx; jmp *%%rdx"
                     ::: "memory");
}

int main(int argc, char **argv)
{
    static const int signals[] = { SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP };
    uint8_t *page = mmap((void *)CODE, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    stack_t stack = { .ss_sp = malloc(1 << 16), .ss_size = 1 << 16 };
    struct sigaction action = { .sa_sigaction = ended, .sa_flags = SA_SIGINFO | SA_ONSTACK };
    char line[256];

    if (argc != 2 || page != (void *)CODE)
        return 1;
    sigaltstack(&stack, NULL);
    for (size_t i = 0; i < sizeof(signals) / sizeof(*signals); i++)
        sigaction(signals[i], &action, NULL);
    while (fgets(line, sizeof(line), stdin)) {
        memset(page, 0, SIZE);
        page[bytes(page, line)] = 0xcc;
        bytes(page + DATA - CODE, argv[1]);
        if (!sigsetjmp(back, 1))
            enter();
        printf("%lx %lx %lx\n", vector, error, rip);
    }
    return 0;
}

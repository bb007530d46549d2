/* SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The frame of a conformance guest: counts the checks and prints the result.
 */
#include "conform.h"

static unsigned checks, failures, refusals;

static void counts(void)
{
    printf("%u checks, %u of them of refusals, %u failed\n", checks, refusals, failures);
}

static void end(const char *result)
{
    counts();
    printf("Test result: %s\n", result);
    shutdown(SHUTDOWN_poweroff);
}

void count_refusal(void)
{
    refusals++;
}

void check_equal(const char *file, int line, const char *what, long got, long expected)
{
    checks++;
    if (got == expected)
        return;
    failures++;
    printf("Fail: %s:%d: %s is %ld (%lx), not %ld (%lx)\n", file, line, what, got, (ulong)got, expected,
           (ulong)expected);
}

void check_true(const char *file, int line, const char *what, int holds)
{
    checks++;
    if (holds)
        return;
    failures++;
    printf("Fail: %s:%d: %s does not hold\n", file, line, what);
}

void check_trap(const char *file, int line, const char *what, struct trap trap, ulong vector, ulong error)
{
    checks++;
    if (trap.vector == vector && (vector == NO_TRAP || trap.error_code == error))
        return;
    failures++;
    if (trap.vector == NO_TRAP)
        printf("Fail: %s:%d: %s ended without trap %lu\n", file, line, what, vector);
    else
        printf("Fail: %s:%d: %s ended with trap %lu, error code %lx, cr2 %lx at %lx\n", file, line, what,
               trap.vector, trap.error_code, trap.cr2, trap.ip);
}

void expect_end(const char *how)
{
    checks++;
    refusals += !strcmp(how, "crashed");
    counts();
    if (failures) {
        printf("Test result: FAILURE\n");
        shutdown(SHUTDOWN_poweroff);
    }
    printf("Expected end: %s\n", how);
    console_drain();
}

void skip(const char *why)
{
    printf("Skip: %s\n", why);
    end("SKIP");
    for (;;)
        ;
}

void give_up(const char *why)
{
    printf("Error: %s\n", why);
    end("ERROR");
    for (;;)
        ;
}

int main(void)
{
    printf("--- %s (%s)\n", test_title, start_info->magic);
    conform();
    end(failures ? "FAILURE" : checks ? "SUCCESS" : "ERROR");
    return 0;
}

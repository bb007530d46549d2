/* A handler of SIGFPE that steps over one division of the library's (hvcore/cpu/division.py tells why). */
#define _GNU_SOURCE
#include "core.h"

#include <signal.h>

#if defined(__x86_64__) && defined(__linux__)
#include <ucontext.h>

static uintptr_t division;
static size_t division_size;
static struct sigaction otherwise;

static void on_sigfpe(int number, siginfo_t *info, void *context) {
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if ((uintptr_t)*rip == division) {
        *rip += (greg_t)division_size; /* RAX still holds the dividend, which the helper takes for the overflow */
    } else if (otherwise.sa_flags & SA_SIGINFO) {
        otherwise.sa_sigaction(number, info, context);
    } else if (otherwise.sa_handler != SIG_DFL && otherwise.sa_handler != SIG_IGN) {
        otherwise.sa_handler(number);
    } else {
        signal(number, SIG_DFL);
        raise(number);
    }
}

/* Step over the `size` bytes at `idiv` from now on; what is raised elsewhere goes where it went. 0 if refused. */
HV_EXPORT int hv_guard_division(void *idiv, size_t size) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = on_sigfpe;
    division = (uintptr_t)idiv;
    division_size = size;
    return !sigaction(SIGFPE, &action, &otherwise);
}

/* Whoever had the signal before has it again, unless somebody came after us: he hands on what he does not know. */
HV_EXPORT void hv_unguard_division(void) {
    struct sigaction now;
    if (!sigaction(SIGFPE, NULL, &now) && now.sa_sigaction == on_sigfpe)
        sigaction(SIGFPE, &otherwise, NULL);
}

#else

HV_EXPORT int hv_guard_division(void *idiv, size_t size) {
    (void)idiv, (void)size;
    return 0;
}

HV_EXPORT void hv_unguard_division(void) {
}

#endif

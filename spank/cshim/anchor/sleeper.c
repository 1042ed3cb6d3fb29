/*
 * Up to Slurm 25.05 the extern step runs `sleep 100000000`, and ends, with all
 * that is in it, five seconds after that has. Whoever signals a job (scancel
 * --signal, srun --signal) signals it too, with SIGUSR1 for example: a plain
 * job goes on without its extern step, a sealed one lives in it. So the sleeper
 * is made to ignore signals, but those by which Slurm ends a job, or stops it.
 *
 * It is slurmstepd's child, which sets all signals to their defaults before it
 * becomes sleep. What a process ignores it alone can say, so it is made to, by
 * ptrace(2): while it sleeps, the system call instruction that it is in is run
 * again for sigaction(2), and then its registers are what they were; the kernel
 * goes on with the sleep.
 */
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sleeper.h"

static int for_the_sleeper(int sig)
{
	switch (sig) {
	case SIGTRAP: /* each step below sets it back */
	case SIGKILL:
	case SIGTERM:
	case SIGCHLD:
	case SIGCONT:
	case SIGSTOP:
	case SIGTSTP:
	case SIGTTIN:
	case SIGTTOU:
		return 1;
	default:
		return 0;
	}
}

/* The process of a pidfd (pidfd_open(2)), or -1. */
static pid_t process_of(int pidfd)
{
	char path[64], line[128];
	int pid = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", pidfd);
	f = fopen(path, "re");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "Pid: %d", &pid) == 1)
			break;
	fclose(f);
	return pid;
}

#ifdef __x86_64__

/* As the kernel has it (rt_sigaction(2)). */
struct kernel_sigaction {
	uint64_t handler;
	uint64_t flags;
	uint64_t restorer;
	uint64_t mask;
};

#define SYSCALL_BYTES 2
#define SYSCALL_CODE 0x050f
/* Bytes below the stack pointer that the process may use (x86-64 psABI 3.2.2).
 */
#define RED_ZONE 128

static int stopped(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, __WALL) < 0)
		if (errno != EINTR)
			return 0;
	return WIFSTOPPED(status);
}

/* Where the process can be given a struct kernel_sigaction, or 0. */
static uint64_t write_ignore(pid_t pid, const struct user_regs_struct *r)
{
	struct kernel_sigaction ignore = {.handler = (uintptr_t) SIG_IGN};
	uint64_t at = (r->rsp - RED_ZONE - sizeof(ignore)) & ~UINT64_C(15);
	uint64_t words[sizeof(ignore) / sizeof(uint64_t)];

	memcpy(words, &ignore, sizeof(ignore));
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (ptrace(PTRACE_POKEDATA, pid, at + i * sizeof(words[0]),
			   words[i]))
			return 0;
	return at;
}

static int ignores(pid_t pid, const struct user_regs_struct *was, uint64_t at,
		   int sig)
{
	struct user_regs_struct r = *was;

	r.rip = was->rip - SYSCALL_BYTES;
	r.rax = SYS_rt_sigaction;
	r.orig_rax = UINT64_MAX; /* nothing to restart */
	r.rdi = (unsigned) sig;
	r.rsi = at;
	r.rdx = 0;
	r.r10 = sizeof(uint64_t);
	return !ptrace(PTRACE_SETREGS, pid, NULL, &r) &&
	       !ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) && stopped(pid) &&
	       !ptrace(PTRACE_GETREGS, pid, NULL, &r) && r.rax == 0;
}

static int make_ignore(pid_t pid)
{
	struct user_regs_struct was;
	uint64_t at;
	long code;
	int rc = -1;

	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL))
		return -1;
	if (ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) || !stopped(pid))
		goto detach;
	if (ptrace(PTRACE_GETREGS, pid, NULL, &was))
		goto detach;
	errno = 0;
	code = ptrace(PTRACE_PEEKTEXT, pid, was.rip - SYSCALL_BYTES, NULL);
	/* It sleeps, and by the 64-bit system call. */
	if (errno || (int64_t) was.orig_rax < 0 ||
	    (code & 0xffff) != SYSCALL_CODE || was.cs != 0x33)
		goto detach;
	at = write_ignore(pid, &was);
	rc = at ? 0 : -1;
	for (int sig = 1; at && sig < NSIG; sig++)
		if (!for_the_sleeper(sig) && !ignores(pid, &was, at, sig))
			rc = -1;
	if (ptrace(PTRACE_SETREGS, pid, NULL, &was))
		rc = -1;
detach:
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return rc;
}

#else

static int make_ignore(pid_t pid)
{
	(void) pid;
	errno = ENOSYS;
	return -1;
}

#endif

int sleeper_stays(int pidfd)
{
	char path[32], name[16] = "";
	pid_t pid = process_of(pidfd);
	FILE *f;

	if (pid <= 1)
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int) pid);
	f = fopen(path, "re");
	if (!f)
		return -1;
	if (!fgets(name, sizeof(name), f))
		name[0] = '\0';
	fclose(f);
	/* Not yet, or something else: what it does with signals is its own. */
	if (strcmp(name, "sleep\n") != 0)
		return -1;
	return make_ignore(pid);
}

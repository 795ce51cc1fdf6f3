/* SPDX-License-Identifier: GPL-3.0-or-later */
/* For user-mode Linux up to 6.9 on processors with AMX, whose registers are more than it has room for.
 *
 * It hands a process the first 2,696 bytes of the registers (FP_SIZE, arch/x86/um/asm/ptrace.h), which is all but AMX.
 * The kernel that it runs on takes all of them or none (xstateregs_set, arch/x86/kernel/fpu/regset.c), so the first
 * process is killed. Here the rest is added as nothing, which is what it is: a process has no AMX before it asks for it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

static long (*next)(int, ...);

__attribute__((constructor)) static void find(void)
{
	next = (long (*)(int, ...)) dlsym(RTLD_NEXT, "ptrace");
}

long ptrace(enum __ptrace_request request, ...)
{
	static char whole[1 << 16];
	static size_t size;
	va_list rest;

	va_start(rest, request);
	int process = va_arg(rest, int);
	void *address = va_arg(rest, void *);
	struct iovec *given = va_arg(rest, void *);
	va_end(rest);
	if (request != PTRACE_SETREGSET || (long) address != NT_X86_XSTATE)
		return next(request, process, address, given);
	if (!size) {
		struct iovec all = { whole, sizeof whole };

		if (next(PTRACE_GETREGSET, process, address, &all) < 0)
			return -1;
		size = all.iov_len;
		memset(whole, 0, sizeof whole);
	}
	if (given->iov_len >= size)
		return next(request, process, address, given);
	memcpy(whole, given->iov_base, given->iov_len);
	struct iovec all = { whole, size };
	return next(request, process, address, &all);
}

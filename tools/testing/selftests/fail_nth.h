/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Making each allocation of a call fail, one after the other, for which the kernel
 * has CONFIG_FAILSLAB, CONFIG_FAULT_INJECTION_DEBUG_FS and, for more of them,
 * CONFIG_FAIL_PAGE_ALLOC and CONFIG_FAULT_INJECTION_USERCOPY:
 *
 *	if (!fail_nth_setup())
 *		SKIP(return, "no fault injection for slabs, or no debugfs");
 *	for (nth = 1; left == 0; nth++) {
 *		fail_nth(nth);
 *		ret = the_call();
 *		left = fail_nth_left();
 *		...
 *	}
 *	fail_nth_restore();
 */
#ifndef SELFTESTS_FAIL_NTH_H
#define SELFTESTS_FAIL_NTH_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "kselftest.h"

static int fail_nth_file = -1;

/* The settings of the whole system that are changed, and what they were */
static struct {
	const char *name;
	char old;
} fail_nth_knob[] = {
	{ "failslab/ignore-gfp-wait" }, { "failslab/verbose" },
	{ "fail_page_alloc/ignore-gfp-wait" }, { "fail_page_alloc/verbose" },
	{ "fail_usercopy/verbose" },
};

/* Returns what was there, 0 for nothing */
static inline char fail_nth_set(const char *name, char value)
{
	char path[80], old = 0;
	int fd;

	snprintf(path, sizeof(path), "/sys/kernel/debug/%s", name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (pread(fd, &old, 1, 0) != 1 || pwrite(fd, &value, 1, 0) != 1)
		old = 0;
	close(fd);
	return old;
}

/* The file is that of the thread which opens it: others call this for themselves */
static inline bool fail_nth_open(void)
{
	fail_nth_file = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	return fail_nth_file >= 0;
}

static inline void fail_nth_restore(void)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(fail_nth_knob); i++)
		if (fail_nth_knob[i].old)
			fail_nth_set(fail_nth_knob[i].name, fail_nth_knob[i].old);
	if (fail_nth_file >= 0)
		close(fail_nth_file);
	fail_nth_file = -1;
}

/* Lets allocations that may wait fail, too, without a trace each */
static inline bool fail_nth_setup(void)
{
	size_t i;

	if (!fail_nth_open())
		return false;
	for (i = 0; i < ARRAY_SIZE(fail_nth_knob); i++)
		fail_nth_knob[i].old = fail_nth_set(fail_nth_knob[i].name, '0');
	if (fail_nth_knob[0].old)
		return true;
	fail_nth_restore();
	return false;
}

/* The nth allocation or copy from here on fails; 0: none */
static inline void fail_nth(int n)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%d", n);

	/* Disarming can be what fails, once */
	while (pwrite(fail_nth_file, text, len, 0) != len)
		if (errno != EFAULT && errno != ENOMEM)
			abort();
}

/* Disarms. Has the nth not been reached? */
static inline bool fail_nth_left(void)
{
	char text[16] = "";
	ssize_t ret = pread(fail_nth_file, text, sizeof(text) - 1, 0);

	/* copy_to_user() can be what fails, here */
	if (ret <= 0 && errno != EFAULT)
		abort();
	fail_nth(0);
	return ret <= 0 || atoi(text) > 0;
}

#endif

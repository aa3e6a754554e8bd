/* SPDX-License-Identifier: GPL-2.0 */
/* Derived files in KUnit tests */
#ifndef _ST_DERIVE_H
#define _ST_DERIVE_H

#include <linux/fdtable.h>
#include <linux/file.h>
#include <kunit/test.h>
#include <uapi/linux/dma-buf.h>

#include "st-importer.h"

static inline void put_fd(void *fd)
{
	close_fd((long)fd);
}

static inline int until_the_end(struct kunit *test, int fd)
{
	KUNIT_ASSERT_GE(test, fd, 0);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_fd, (void *)(long)fd), 0);
	return fd;
}

/* Returns a derived fd, which is closed when the test ends */
static inline int st_derive(struct kunit *test, int fd, int flags)
{
	struct dma_buf_derive arg = { .flags = flags | O_CLOEXEC };
	struct file *file = fget(fd);
	long ret;

	KUNIT_ASSERT_NOT_NULL(test, file);
	ret = st_file_ioctl(test, file, DMA_BUF_IOCTL_DERIVE, &arg, sizeof(arg));
	fput(file);
	KUNIT_ASSERT_EQ(test, ret, 0);
	return until_the_end(test, arg.fd);
}

#endif

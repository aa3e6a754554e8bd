// SPDX-License-Identifier: GPL-2.0
/* Derived files, from the side of the kernel: who gets a buffer by one, and how long it lives */
#include <linux/dma-buf.h>
#include <linux/file.h>
#include <linux/sizes.h>

#include "st-derive.h"

static const enum dma_data_direction st_dirs[] = {
	DMA_BIDIRECTIONAL, DMA_TO_DEVICE, DMA_FROM_DEVICE,
};

/* What an fd has to grant for accesses of each of st_dirs */
static const int st_modes[] = { O_RDWR, O_RDONLY, O_WRONLY };

static void close_before_the_end(struct kunit *test, int fd)
{
	kunit_release_action(test, put_fd, (void *)(long)fd);
}

static int st_fd(struct kunit *test, struct dma_buf *buf)
{
	int fd;

	get_dma_buf(buf);
	fd = dma_buf_fd(buf, O_CLOEXEC);
	if (fd < 0)
		dma_buf_put(buf);
	return until_the_end(test, fd);
}

static bool within(int mode, int limit)
{
	return limit == O_RDWR || mode == limit;
}

/* By which fd who gets the buffer: whoever makes no promise needs full access */
static void st_derive_get(struct kunit *test)
{
	struct dma_buf *buf = st_dma_buf_alloc(test, PAGE_SIZE), *got;
	int primary = st_fd(test, buf), fd, i, j;

	for (i = 0; i < ARRAY_SIZE(st_modes); i++) {
		fd = st_derive(test, primary, st_modes[i]);
		for (j = 0; j < ARRAY_SIZE(st_dirs); j++) {
			got = dma_buf_get_dir(fd, st_dirs[j]);
			if (within(st_modes[j], st_modes[i])) {
				KUNIT_EXPECT_PTR_EQ(test, got, buf);
				if (!IS_ERR(got))
					dma_buf_put(got);
			} else {
				KUNIT_EXPECT_EQ(test, PTR_ERR(got), -EACCES);
			}
		}
		got = dma_buf_get(fd);
		if (st_modes[i] == O_RDWR) {
			KUNIT_EXPECT_PTR_EQ(test, got, buf);
			if (!IS_ERR(got))
				dma_buf_put(got);
		} else {
			KUNIT_EXPECT_EQ(test, PTR_ERR(got), -EACCES);
		}
		got = dma_buf_get_dir(fd, DMA_NONE);
		KUNIT_EXPECT_PTR_EQ(test, got, buf);
		if (!IS_ERR(got))
			dma_buf_put(got);
		got = dma_buf_get_dir(fd, DMA_NONE + 1);
		KUNIT_EXPECT_EQ(test, PTR_ERR(got), -EINVAL);
	}
	KUNIT_EXPECT_EQ(test, PTR_ERR(dma_buf_get_dir(-1, DMA_TO_DEVICE)), -EBADF);
}

/* A mapping that the limit does not allow is refused, with a WARN: only a bug can ask for it */
static void st_derive_limit(struct kunit *test)
{
	struct dma_buf *buf = st_dma_buf_alloc(test, PAGE_SIZE);
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	int i, j;

	for (i = 0; i < ARRAY_SIZE(st_dirs); i++) {
		attach = st_attach(test, buf, test->param_value);
		KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, st_dirs[i]), 0);
		for (j = 0; j < ARRAY_SIZE(st_dirs); j++) {
			bool good = within(st_modes[j], st_modes[i]);

			kunit_warning_suppress(test) {
				sgt = dma_buf_map_attachment_unlocked(attach, st_dirs[j]);
				KUNIT_EXPECT_SUPPRESSED_WARNING_COUNT(test, !good);
			}
			if (!IS_ERR(sgt))
				dma_buf_unmap_attachment_unlocked(attach, sgt, st_dirs[j]);
			KUNIT_EXPECT_EQ_MSG(test, PTR_ERR_OR_ZERO(sgt), good ? 0 : -EACCES,
					    "limit %d, direction %d", st_dirs[i], st_dirs[j]);
		}
		st_detach(test, attach);
	}
}

static void st_derive_limit_narrows(struct kunit *test)
{
	struct dma_buf *buf = st_dma_buf_alloc(test, PAGE_SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);

	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_NONE), -EINVAL);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_BIDIRECTIONAL), 0);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_TO_DEVICE), 0);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_TO_DEVICE), 0);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_FROM_DEVICE), -EACCES);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_BIDIRECTIONAL), -EACCES);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(attach, DMA_NONE), -EINVAL);
	KUNIT_EXPECT_EQ(test, attach->limit, DMA_TO_DEVICE);
}

/* What a converted importer does: the device reads what the holder may read */
static void st_derive_import(struct kunit *test)
{
	struct dma_buf *buf = st_dma_buf_alloc(test, SZ_64K), *got;
	struct dma_buf_attachment *writer, *reader;
	int fd = st_derive(test, st_fd(test, buf), O_RDONLY);
	struct sg_table *sgt;

	writer = st_attach(test, buf, test->param_value);
	sgt = dma_buf_map_attachment_unlocked(writer, DMA_FROM_DEVICE);
	KUNIT_ASSERT_FALSE(test, IS_ERR(sgt));
	st_device_write(writer, sgt, 0x5a);
	dma_buf_unmap_attachment_unlocked(writer, sgt, DMA_FROM_DEVICE);

	got = dma_buf_get_dir(fd, DMA_TO_DEVICE);
	KUNIT_ASSERT_PTR_EQ(test, got, buf);
	reader = st_attach(test, got, test->param_value);
	KUNIT_EXPECT_EQ(test, dma_buf_attachment_limit(reader, DMA_TO_DEVICE), 0);
	sgt = dma_buf_map_attachment_unlocked(reader, DMA_TO_DEVICE);
	KUNIT_EXPECT_FALSE(test, IS_ERR(sgt));
	if (!IS_ERR(sgt)) {
		KUNIT_EXPECT_TRUE(test, st_device_reads(reader, sgt, 0x5a));
		dma_buf_unmap_attachment_unlocked(reader, sgt, DMA_TO_DEVICE);
	}
	st_detach(test, reader);
	dma_buf_put(got);
}

/* Files that a kernel thread closes end later, and may close others then */
static int buffers(void)
{
	int i;

	for (i = 0; i < 3; i++)
		flush_delayed_fput();
	return st_dma_buf_count();
}

/* The last of a reference, the fd and two derived ones ends the buffer, and no other does */
static void st_derive_lifetime(struct kunit *test)
{
	int before = buffers(), i, j, fd[4];

	for (i = 0; i < 4 * 3 * 2; i++) {
		struct dma_buf *buf = st_dma_buf_alloc(test, PAGE_SIZE);
		unsigned int left[] = { 0, 1, 2, 3 }, n = i;

		fd[1] = st_fd(test, buf);
		fd[2] = st_derive(test, fd[1], O_RDONLY);
		fd[3] = st_derive(test, fd[2], O_RDONLY);
		/* the ith order: each step takes one of those that are left */
		for (j = 4; j; n /= j, j--) {
			unsigned int *next = &left[n % j];

			KUNIT_EXPECT_EQ(test, buffers(), before + 1);
			if (*next)
				close_before_the_end(test, fd[*next]);
			else
				st_dma_buf_put(test, buf);
			*next = left[j - 1];
		}
		KUNIT_EXPECT_EQ_MSG(test, buffers(), before, "order %d", i);
	}
}

static struct kunit_case st_derive_cases[] = {
	KUNIT_CASE(st_derive_get),
	KUNIT_CASE_PARAM(st_derive_limit, st_device_gen_params),
	KUNIT_CASE_PARAM(st_derive_limit_narrows, st_device_gen_params),
	KUNIT_CASE_PARAM(st_derive_import, st_device_gen_params),
	KUNIT_CASE(st_derive_lifetime),
	{}
};

static struct kunit_suite dma_buf_derive_test_suite = {
	.name = "dma-buf-derive",
	.test_cases = st_derive_cases,
};

kunit_test_suite(dma_buf_derive_test_suite);

// SPDX-License-Identifier: GPL-2.0
/* The heaps and the devices that import their buffers */
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/fcntl.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <kunit/test.h>
#include <uapi/linux/dma-heap.h>

#include "../st-importer.h"

static struct dma_buf *st_heap_alloc(struct kunit *test, size_t size)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	KUNIT_ASSERT_EQ(test, st_ioctl(test, DMA_HEAP_IOCTL_ALLOC, &data, sizeof(data)), 0);
	return st_buffer_of_fd(test, data.fd);
}

static int st_init(struct kunit *test)
{
	test->priv = st_heap_alloc;
	return 0;
}

static int st_system_init(struct kunit_suite *suite)
{
	return st_open("/dev/dma_heap/system");
}

static int st_cma_init(struct kunit_suite *suite)
{
	return st_open("/dev/dma_heap/default_cma_region");
}

static struct kunit_case st_cases[] = {
	ST_EXPORTER_CASES,
	{}
};

static struct kunit_case st_cma_cases[] = {
	ST_EXPORTER_CASES,
	{}
};

static struct kunit_suite system_heap_test_suite = {
	.name = "dma-heap-system",
	.suite_init = st_system_init,
	.suite_exit = st_close,
	.init = st_init,
	.test_cases = st_cases,
};

static struct kunit_suite cma_heap_test_suite = {
	.name = "dma-heap-cma",
	.suite_init = st_cma_init,
	.suite_exit = st_close,
	.init = st_init,
	.test_cases = st_cma_cases,
};

kunit_test_suites(&system_heap_test_suite, &cma_heap_test_suite);

MODULE_DESCRIPTION("KUnit tests for the dma-buf heaps");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");

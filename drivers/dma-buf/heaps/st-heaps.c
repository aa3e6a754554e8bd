// SPDX-License-Identifier: GPL-2.0
/* The heaps and the devices that import their buffers */
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <kunit/test.h>

#include "../st-importer.h"

static int st_init(struct kunit *test)
{
	st_need_exporter(test);
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

/* An array for each suite: KUnit writes the results into it */
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

#if IS_ENABLED(CONFIG_DMABUF_HEAPS_SYSTEM_CC_SHARED)
/*
 * There is a heap system_cc_shared only where memory is encrypted. What makes its
 * buffers what they are is a flag in the data of the heap: the system heap's is set
 * while this suite runs.
 */
static struct file *system_heap;

static void st_set_cc_shared(bool value)
{
	bool *cc_shared = dma_heap_get_drvdata(system_heap->private_data);

	WRITE_ONCE(*cc_shared, value);
}

static int st_cc_shared_init(struct kunit_suite *suite)
{
	system_heap = filp_open("/dev/dma_heap/system", O_RDWR, 0);
	if (IS_ERR(system_heap))
		return st_open(NULL);
	if (!S_ISCHR(file_inode(system_heap)->i_mode) ||
	    strcmp(dma_heap_get_name(system_heap->private_data), "system")) {
		fput(system_heap);
		system_heap = NULL;
		return st_open(NULL);
	}
	st_set_cc_shared(true);
	return st_open("/dev/dma_heap/system");
}

static void st_cc_shared_exit(struct kunit_suite *suite)
{
	st_close(suite);
	if (IS_ERR_OR_NULL(system_heap))
		return;
	st_set_cc_shared(false);
	fput(system_heap);
}

/* What is mapped for each direction is unmapped with the same attributes */
static void st_cc_shared_unmap(struct kunit *test)
{
	static const struct st_device device = {
		"coherent", DMA_BIT_MASK(64), UINT_MAX, true,
	};
	struct dma_buf_attachment *attach;
	enum dma_data_direction dir;
	u32 errors;

	st_need_dma_errors(test);
	attach = st_attach(test, st_heap_alloc(test, SZ_64K), &device);
	errors = st_dma_errors(test);

	for (dir = DMA_BIDIRECTIONAL; dir < DMA_NONE; dir++) {
		struct sg_table *sgt = dma_buf_map_attachment_unlocked(attach, dir);

		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
		dma_buf_unmap_attachment_unlocked(attach, sgt, dir);
	}
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}

static struct kunit_case st_cc_shared_cases[] = {
	KUNIT_CASE(st_cc_shared_unmap),
	{}
};

static struct kunit_suite cc_shared_test_suite = {
	.name = "dma-heap-system-cc-shared",
	.suite_init = st_cc_shared_init,
	.suite_exit = st_cc_shared_exit,
	.init = st_init,
	.test_cases = st_cc_shared_cases,
};

kunit_test_suite(cc_shared_test_suite);
#endif

kunit_test_suites(&system_heap_test_suite, &cma_heap_test_suite);

MODULE_DESCRIPTION("KUnit tests for the dma-buf heaps");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("DMA_BUF_HEAP");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

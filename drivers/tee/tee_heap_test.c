// SPDX-License-Identifier: GPL-2.0
/* The heap of a TEE that comes and goes, while a file of the heap stays open */
#include <linux/delay.h>
#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/gfp.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/swiotlb.h>
#include <linux/tee_core.h>
#include <linux/workqueue.h>
#include <kunit/test.h>
#include <uapi/linux/dma-heap.h>

#include "../dma-buf/st-importer.h"

#define POOL_SIZE	SZ_256K
#define BUFFER_SIZE	SZ_64K

/* What the heap has is memory like any other */
static void *memory;

static void tee_heap_test_get_version(struct tee_device *teedev,
				      struct tee_ioctl_version_data *vers)
{
	*vers = (struct tee_ioctl_version_data){};
}

static int tee_heap_test_open(struct tee_context *ctx)
{
	return 0;
}

static void tee_heap_test_release(struct tee_context *ctx)
{
}

static const struct tee_driver_ops tee_heap_test_ops = {
	.get_version = tee_heap_test_get_version,
	.open = tee_heap_test_open,
	.release = tee_heap_test_release,
};

static const struct tee_desc tee_heap_test_desc = {
	.name = "tee-heap-test",
	.ops = &tee_heap_test_ops,
	.owner = THIS_MODULE,
};

static struct tee_device *tee_heap_test_add(void)
{
	struct tee_protmem_pool *pool;
	struct tee_device *teedev;
	int ret;

	teedev = tee_device_alloc(&tee_heap_test_desc, NULL, NULL, NULL);
	if (IS_ERR(teedev))
		return teedev;
	ret = tee_device_register(teedev);
	if (ret)
		goto err_teedev;
	pool = tee_protmem_static_pool_alloc(virt_to_phys(memory), POOL_SIZE);
	if (IS_ERR(pool)) {
		ret = PTR_ERR(pool);
		goto err_teedev;
	}
	/* from here on the pool ends with the device, or its last buffer */
	ret = tee_device_register_dma_heap(teedev, TEE_DMA_HEAP_SECURE_VIDEO_PLAY, pool);
	if (ret)
		goto err_pool;
	return teedev;

err_pool:
	pool->ops->destroy_pool(pool);
err_teedev:
	tee_device_unregister(teedev);
	return ERR_PTR(ret);
}

KUNIT_DEFINE_ACTION_WRAPPER(tee_heap_test_del, tee_device_unregister, struct tee_device *);
KUNIT_DEFINE_ACTION_WRAPPER(tee_heap_test_put, dma_buf_put, struct dma_buf *);

/* The heap can be opened from the first device on, and stays when that goes */
static int tee_heap_test_suite_init(struct kunit_suite *suite)
{
	struct tee_device *teedev;
	int ret;

	memory = alloc_pages_exact(POOL_SIZE, GFP_KERNEL);
	if (!memory)
		return -ENOMEM;
	teedev = tee_heap_test_add();
	if (teedev == ERR_PTR(-EBUSY))
		return st_open(NULL);
	if (IS_ERR(teedev)) {
		free_pages_exact(memory, POOL_SIZE);
		memory = NULL;
		return PTR_ERR(teedev);
	}
	ret = st_open("/dev/dma_heap/protected,secure-video");
	tee_device_unregister(teedev);
	return ret;
}

static void tee_heap_test_suite_exit(struct kunit_suite *suite)
{
	st_close(suite);
	if (memory)
		free_pages_exact(memory, POOL_SIZE);
	memory = NULL;
}

static int tee_heap_test_init(struct kunit *test)
{
	st_need_exporter(test);
	return 0;
}

static struct tee_device *tee_heap_test_device(struct kunit *test)
{
	struct tee_device *teedev = tee_heap_test_add();

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, teedev);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, tee_heap_test_del, teedev), 0);
	return teedev;
}

/* Returns 0, with the buffer until the end of the test, or a negative errno */
static long tee_heap_test_alloc(struct kunit *test, size_t size, struct dma_buf **buf)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	long ret = st_ioctl(test, DMA_HEAP_IOCTL_ALLOC, &data, sizeof(data));

	if (ret)
		return ret;
	*buf = dma_buf_get(data.fd);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, *buf);
	close_fd(data.fd);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, tee_heap_test_put, *buf), 0);
	return 0;
}

static void tee_heap_test_free(struct kunit *test, struct dma_buf *buf)
{
	kunit_release_action(test, tee_heap_test_put, buf);
	/* a file that a kernel thread closes ends later */
	flush_delayed_fput();
}

/* What a device writes to a buffer is in the memory of the heap */
static void tee_heap_test_map(struct kunit *test)
{
	static const struct st_device device = {
		"coherent", DMA_BIT_MASK(64), UINT_MAX, true,
	};
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	struct dma_buf *buf;

	tee_heap_test_device(test);
	memset(memory, 0, POOL_SIZE);
	KUNIT_ASSERT_EQ(test, tee_heap_test_alloc(test, POOL_SIZE, &buf), 0);
	KUNIT_EXPECT_EQ(test, buf->size, POOL_SIZE);
	attach = st_attach(test, buf, &device);
	sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	st_device_write(attach, sgt, 0x5a);
	dma_buf_unmap_attachment_unlocked(attach, sgt, DMA_BIDIRECTIONAL);
	/* The heap leaves out the copying of bounce buffers: the CPU cannot reach such memory */
	if (!is_swiotlb_force_bounce(attach->dev))
		KUNIT_EXPECT_NULL(test, memchr_inv(memory, 0x5a, POOL_SIZE));
}

/* All of the memory can be had, no more, and again what has been given back */
static void tee_heap_test_exhaustion(struct kunit *test)
{
	struct dma_buf *buf[POOL_SIZE / BUFFER_SIZE], *more;
	int round, i;

	tee_heap_test_device(test);
	for (round = 0; round < 2; round++) {
		for (i = 0; i < ARRAY_SIZE(buf); i++)
			KUNIT_ASSERT_EQ(test, tee_heap_test_alloc(test, BUFFER_SIZE, &buf[i]), 0);
		KUNIT_EXPECT_EQ(test, tee_heap_test_alloc(test, PAGE_SIZE, &more), -ENOMEM);
		for (i = 0; i < ARRAY_SIZE(buf); i++)
			tee_heap_test_free(test, buf[i]);
	}
}

static void tee_heap_test_busy(struct kunit *test)
{
	struct tee_device *other;

	tee_heap_test_device(test);
	other = tee_heap_test_add();
	KUNIT_EXPECT_EQ(test, PTR_ERR_OR_ZERO(other), -EBUSY);
	if (!IS_ERR(other))
		tee_device_unregister(other);
}

struct tee_heap_test_work {
	struct work_struct work;
	struct tee_device *teedev;
};

static void tee_heap_test_unregister(struct work_struct *work)
{
	tee_device_unregister(container_of(work, struct tee_heap_test_work, work)->teedev);
}

KUNIT_DEFINE_ACTION_WRAPPER(tee_heap_test_flush, flush_work, struct work_struct *);

/*
 * A device that goes waits for its buffers. Meanwhile and from then on the open file
 * of the heap has no memory, until the next device comes. That all has been given
 * back before is what the end of the pool checks, with a BUG().
 */
static void tee_heap_test_device_goes(struct kunit *test)
{
	struct tee_heap_test_work *going;
	struct dma_buf *buf, *more;
	long ret;
	int i;

	going = kunit_kzalloc(test, sizeof(*going), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, going);
	INIT_WORK(&going->work, tee_heap_test_unregister);
	going->teedev = tee_heap_test_device(test);
	/* should the test end early: after the buffers, which the work waits for */
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, tee_heap_test_flush,
							&going->work), 0);
	KUNIT_ASSERT_EQ(test, tee_heap_test_alloc(test, BUFFER_SIZE, &buf), 0);
	kunit_remove_action(test, tee_heap_test_del, going->teedev);
	schedule_work(&going->work);
	for (i = 0; i < 500; i++) {
		ret = tee_heap_test_alloc(test, BUFFER_SIZE, &more);
		if (ret)
			break;
		tee_heap_test_free(test, more);
		msleep(20);
	}
	KUNIT_EXPECT_EQ(test, ret, -EINVAL);
	msleep(50);
	KUNIT_EXPECT_TRUE(test, work_busy(&going->work));
	tee_heap_test_free(test, buf);
	kunit_release_action(test, tee_heap_test_flush, &going->work);

	KUNIT_EXPECT_EQ(test, tee_heap_test_alloc(test, BUFFER_SIZE, &more), -EINVAL);
	tee_heap_test_device(test);
	KUNIT_EXPECT_EQ(test, tee_heap_test_alloc(test, POOL_SIZE, &more), 0);
}

static struct kunit_case tee_heap_test_cases[] = {
	KUNIT_CASE(tee_heap_test_map),
	KUNIT_CASE(tee_heap_test_exhaustion),
	KUNIT_CASE(tee_heap_test_busy),
	KUNIT_CASE(tee_heap_test_device_goes),
	{}
};

static struct kunit_suite tee_heap_test_suite = {
	.name = "tee-heap",
	.suite_init = tee_heap_test_suite_init,
	.suite_exit = tee_heap_test_suite_exit,
	.init = tee_heap_test_init,
	.test_cases = tee_heap_test_cases,
};

kunit_test_suite(tee_heap_test_suite);

MODULE_DESCRIPTION("KUnit tests for the heaps of TEEs");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

// SPDX-License-Identifier: GPL-2.0
/* udmabuf and the devices that import its buffers */
#include <linux/dma-buf.h>
#include <linux/dma-map-ops.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/module.h>
#include <linux/shmem_fs.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <kunit/test.h>

#include "st-importer.h"

KUNIT_DEFINE_ACTION_WRAPPER(put_file, fput, struct file *);

static void put_fd(void *fd)
{
	close_fd((long)fd);
}

/* A memfd, as far as udmabuf can tell */
static struct file *new_memfd(struct kunit *test, size_t size)
{
	struct file *memfd = shmem_file_setup("st-udmabuf", size, EMPTY_VMA_FLAGS);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, memfd);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_file, memfd), 0);
	SHMEM_I(file_inode(memfd))->seals = F_SEAL_SHRINK;
	return memfd;
}

/* Of @count items, each of which is the first @size bytes of the memfd */
static struct dma_buf *create(struct kunit *test, struct file *memfd, size_t size,
			      unsigned int count)
{
	struct udmabuf_create_list *list;
	size_t len = struct_size(list, list, count);
	long ret, fd = get_unused_fd_flags(O_CLOEXEC);

	KUNIT_ASSERT_GE(test, fd, 0);
	fd_install(fd, get_file(memfd));
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_fd, (void *)fd), 0);
	list = kunit_kzalloc(test, len, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, list);
	list->flags = UDMABUF_FLAGS_CLOEXEC;
	list->count = count;
	while (count--) {
		list->list[count].memfd = fd;
		list->list[count].size = size;
	}
	ret = st_ioctl(test, UDMABUF_CREATE_LIST, list, len);
	kunit_release_action(test, put_fd, (void *)fd);
	KUNIT_ASSERT_GE(test, ret, 0);
	return st_buffer_of_fd(test, ret);
}

static struct dma_buf *st_udmabuf_alloc(struct kunit *test, size_t size)
{
	return create(test, new_memfd(test, size), size, 1);
}

static void memfd_write(struct kunit *test, struct file *memfd, u8 value)
{
	struct page *page = shmem_read_mapping_page(memfd->f_mapping, 0);
	void *addr;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, page);
	addr = kmap_local_page(page);
	memset(addr, value, PAGE_SIZE);
	kunmap_local(addr);
	put_page(page);
}

static bool memfd_reads(struct kunit *test, struct file *memfd, u8 value)
{
	struct page *page = shmem_read_mapping_page(memfd->f_mapping, 0);
	void *addr;
	bool ret;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, page);
	addr = kmap_local_page(page);
	ret = !memchr_inv(addr, value, PAGE_SIZE);
	kunmap_local(addr);
	put_page(page);
	return ret;
}

/* What is written through the memfd outside of SYNC stays, and a map passes it on */
static void st_memfd_writes(struct kunit *test)
{
	struct file *memfd = new_memfd(test, PAGE_SIZE);
	struct dma_buf *buf = create(test, memfd, PAGE_SIZE, 1);
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;

	KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, DMA_BIDIRECTIONAL), 0);
	memfd_write(test, memfd, 0x11);
	KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, DMA_BIDIRECTIONAL), 0);
	memfd_write(test, memfd, 0x22);
	KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, DMA_FROM_DEVICE), 0);
	KUNIT_EXPECT_TRUE(test, memfd_reads(test, memfd, 0x22));
	KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, DMA_FROM_DEVICE), 0);

	memfd_write(test, memfd, 0x33);
	attach = st_attach(test, buf, test->param_value);
	sgt = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	KUNIT_EXPECT_TRUE(test, st_device_reads(attach, sgt, 0x33));
	st_device_write(attach, sgt, 0x44);
	dma_buf_unmap_attachment_unlocked(attach, sgt, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_TRUE(test, memfd_reads(test, memfd, 0x44));
}

/* No mapping is taken for another one where the same page is mapped more than once */
static void st_page_twice(struct kunit *test)
{
	struct file *memfd = new_memfd(test, PAGE_SIZE);
	struct dma_buf *buf = create(test, memfd, PAGE_SIZE, 3);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	u32 errors = st_dma_errors(test);
	enum dma_data_direction dir, cpu;

	for (dir = DMA_BIDIRECTIONAL; dir < DMA_NONE; dir++) {
		struct sg_table *one, *two;

		one = dma_buf_map_attachment_unlocked(attach, dir);
		KUNIT_ASSERT_NOT_ERR_OR_NULL(test, one);
		two = dma_buf_map_attachment_unlocked(attach, dir);
		KUNIT_EXPECT_NOT_ERR_OR_NULL(test, two);
		for (cpu = DMA_BIDIRECTIONAL; cpu < DMA_NONE; cpu++) {
			/* see dma_buf_sync_for_device() */
			if (dir == DMA_BIDIRECTIONAL && cpu == DMA_FROM_DEVICE &&
			    !dev_is_dma_coherent(attach->dev))
				continue;
			KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, cpu), 0);
			KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, cpu), 0);
		}
		if (!IS_ERR_OR_NULL(two))
			dma_buf_unmap_attachment_unlocked(attach, two, dir);
		dma_buf_unmap_attachment_unlocked(attach, one, dir);
	}
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}

/* An importer may map more than once */
static void st_mapped_twice(struct kunit *test)
{
	struct dma_buf *buf = st_udmabuf_alloc(test, SZ_64K);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	u32 errors = st_dma_errors(test);
	struct sg_table *to, *from;

	to = dma_buf_map_attachment_unlocked(attach, DMA_TO_DEVICE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, to);
	from = dma_buf_map_attachment_unlocked(attach, DMA_FROM_DEVICE);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, from);
	st_device_write(attach, from, 0x55);
	KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, DMA_BIDIRECTIONAL), 0);
	KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, DMA_BIDIRECTIONAL), 0);
	KUNIT_EXPECT_TRUE(test, st_device_reads(attach, to, 0x55));
	dma_buf_unmap_attachment_unlocked(attach, from, DMA_FROM_DEVICE);
	dma_buf_unmap_attachment_unlocked(attach, to, DMA_TO_DEVICE);
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}

static int st_init(struct kunit *test)
{
	st_need_exporter(test);
	test->priv = st_udmabuf_alloc;
	return 0;
}

static int st_suite_init(struct kunit_suite *suite)
{
	return st_open("/dev/udmabuf");
}

static struct kunit_case st_cases[] = {
	ST_EXPORTER_CASES,
	KUNIT_CASE_PARAM(st_memfd_writes, st_device_gen_params),
	KUNIT_CASE_PARAM(st_page_twice, st_device_gen_params),
	KUNIT_CASE_PARAM(st_mapped_twice, st_device_gen_params),
	{}
};

static struct kunit_suite udmabuf_test_suite = {
	.name = "udmabuf",
	.suite_init = st_suite_init,
	.suite_exit = st_close,
	.init = st_init,
	.test_cases = st_cases,
};

kunit_test_suite(udmabuf_test_suite);

MODULE_DESCRIPTION("KUnit tests for udmabuf");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");

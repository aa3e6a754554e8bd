// SPDX-License-Identifier: GPL-2.0
/* udmabuf and the devices that import its buffers */
#include <linux/dma-buf.h>
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

/* A memfd, as far as udmabuf can tell */
static struct file *new_memfd(struct kunit *test, size_t size)
{
	struct file *memfd = shmem_file_setup("st-udmabuf", size, EMPTY_VMA_FLAGS);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, memfd);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_file, memfd), 0);
	SHMEM_I(file_inode(memfd))->seals = F_SEAL_SHRINK;
	return memfd;
}

static struct dma_buf *create(struct kunit *test, struct file *memfd, size_t size)
{
	struct udmabuf_create create = { .size = size };
	int fd = get_unused_fd_flags(O_CLOEXEC);
	long ret;

	KUNIT_ASSERT_GE(test, fd, 0);
	fd_install(fd, get_file(memfd));
	create.memfd = fd;
	ret = st_ioctl(test, UDMABUF_CREATE, &create, sizeof(create));
	close_fd(fd);
	KUNIT_ASSERT_GE(test, ret, 0);
	return st_buffer_of_fd(test, ret);
}

static struct dma_buf *st_udmabuf_alloc(struct kunit *test, size_t size)
{
	return create(test, new_memfd(test, size), size);
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
	struct dma_buf *buf = create(test, memfd, PAGE_SIZE);
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

/* An importer may map more than once */
static void st_mapped_twice(struct kunit *test)
{
	struct dma_buf *buf = st_udmabuf_alloc(test, SZ_64K);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
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
}

static int st_init(struct kunit *test)
{
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

// SPDX-License-Identifier: GPL-2.0
/* What every heap promises: the system heap, the default CMA heap, one of coherent memory */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>

#include "../fail_nth.h"
#include "../kselftest_harness.h"
#include "heap.h"

static size_t page;

static long sum_of(const char *pattern)
{
	long n, sum = 0;
	glob_t found;
	FILE *file;
	size_t i;

	if (glob(pattern, 0, NULL, &found))
		return 0;
	for (i = 0; i < found.gl_pathc; i++) {
		file = fopen(found.gl_pathv[i], "r");
		if (file && fscanf(file, "%ld", &n) == 1)
			sum += n;
		if (file)
			fclose(file);
	}
	globfree(&found);
	return sum;
}

/* Pages that are allocated from CMA areas, for drivers too; -1 without CONFIG_CMA_SYSFS */
static long cma_used(void)
{
	if (access("/sys/kernel/mm/cma", F_OK))
		return -1;
	return sum_of("/sys/kernel/mm/cma/*/alloc_pages_success") -
	       sum_of("/sys/kernel/mm/cma/*/release_pages_success");
}

FIXTURE(heap) {
	int dev;
};

FIXTURE_VARIANT(heap) {
	const char *name;
	int cma, pool;
};

FIXTURE_VARIANT_ADD(heap, system) { .name = "system" };
FIXTURE_VARIANT_ADD(heap, cma) { .name = "default_cma_region", .cma = 1, .pool = 1 };
FIXTURE_VARIANT_ADD(heap, coherent) { .pool = 1 };

FIXTURE_SETUP(heap)
{
	const char *name = variant->name ?: coherent_heap();

	page = getpagesize();
	if (!name)
		SKIP(return, "no heap of coherent reserved memory");
	self->dev = open_heap(name);
	if (self->dev < 0)
		SKIP(return, "%s: %s", name, strerror(errno));
}

FIXTURE_TEARDOWN(heap)
{
	close(self->dev);
}

static int sync_cpu(int buf, uint64_t flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return ioctl(buf, DMA_BUF_IOCTL_SYNC, &sync) ? -errno : 0;
}

/* The system heap took it, if the memory was not too fragmented for that */
TEST_F(heap, private_mapping)
{
	size_t size = 1024 * 1024, len;
	int buf = alloc(self->dev, size);

	ASSERT_GE(buf, 0);
	for (len = page; len <= size; len *= 4) {
		EXPECT_EQ(MAP_FAILED, mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE, buf, 0));
		EXPECT_EQ(EINVAL, errno);
		EXPECT_EQ(MAP_FAILED, mmap(NULL, len, PROT_READ, MAP_PRIVATE, buf, 0));
		EXPECT_EQ(EINVAL, errno);
	}
	close(buf);
}

TEST_F(heap, lengths)
{
	uint64_t ram = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
	int buf;

	EXPECT_EQ(-EINVAL, alloc(self->dev, 0));
	EXPECT_EQ(-EINVAL, alloc(self->dev, UINT64_MAX));
	EXPECT_EQ(-EINVAL, alloc(self->dev, UINT64_MAX - page + 2));
	if (variant->pool && 2 * ram <= SIZE_MAX)
		EXPECT_EQ(-ENOMEM, alloc(self->dev, 2 * ram));
	/* The kernel's bits: one of 64 would try that for user space of 32, too */
	if (sum_of("/sys/kernel/address_bits") == 32) {
		buf = alloc(self->dev, (1ULL << 32) + page);
		EXPECT_TRUE(buf == -EINVAL || buf == -ENOMEM) TH_LOG("%d", buf);
	}
	buf = alloc(self->dev, page + 1);
	ASSERT_GE(buf, 0);
	EXPECT_EQ(2 * (off_t)page, lseek(buf, 0, SEEK_END));
	close(buf);
}

TEST_F(heap, bad_requests)
{
	struct dma_heap_allocation_data data = { .len = page, .fd = 1 };

	EXPECT_EQ(-1, ioctl(self->dev, DMA_HEAP_IOCTL_ALLOC, &data));
	EXPECT_EQ(EINVAL, errno);
	data = (struct dma_heap_allocation_data){ .len = page, .fd_flags = O_NONBLOCK };
	EXPECT_EQ(-1, ioctl(self->dev, DMA_HEAP_IOCTL_ALLOC, &data));
	EXPECT_EQ(EINVAL, errno);
	data = (struct dma_heap_allocation_data){ .len = page, .heap_flags = 1 };
	EXPECT_EQ(-1, ioctl(self->dev, DMA_HEAP_IOCTL_ALLOC, &data));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, ioctl(self->dev, DMA_HEAP_IOCTL_ALLOC, NULL));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(-1, ioctl(self->dev, _IO(DMA_HEAP_IOC_MAGIC, 1)));
	EXPECT_EQ(EINVAL, errno);
}

/* Memory that has been written to and given back comes as zeroes */
TEST_F(heap, zeroed)
{
	static const size_t sizes[] = { 4096, 65536, 1048576, 1048576 + 4096 };
	size_t i, j, round;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (round = 0; round < 4; round++) {
			int buf = alloc(self->dev, sizes[i]);
			uint64_t *p;

			ASSERT_GE(buf, 0);
			p = mmap(NULL, sizes[i], PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
			ASSERT_NE(MAP_FAILED, p);
			for (j = 0; j < sizes[i] / 8 && !p[j]; j++)
				;
			EXPECT_EQ(sizes[i] / 8, j);
			memset(p, 0xff, sizes[i]);
			munmap(p, sizes[i]);
			close(buf);
		}
	}
}

/* Each page is where it belongs, also if another mapping begins in the middle */
TEST_F(heap, offsets)
{
	size_t size = 1024 * 1024 + page, i;
	int buf = alloc(self->dev, size);
	uint8_t *p, *q;

	ASSERT_GE(buf, 0);
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < size / page; i++)
		*(uint32_t *)(p + i * page) = i;
	for (i = 0; i < size / page; i += 13) {
		q = mmap(NULL, size - i * page, PROT_READ, MAP_SHARED, buf, i * page);
		ASSERT_NE(MAP_FAILED, q);
		EXPECT_EQ(i, *(uint32_t *)q);
		EXPECT_EQ(size / page - 1, *(uint32_t *)(q + size - (i + 1) * page));
		munmap(q, size - i * page);
	}
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, buf, size - page));
	EXPECT_EQ(EINVAL, errno);
	munmap(p, size);
	close(buf);
}

/* Without an importer a SYNC has nothing to do; an END needs no START */
TEST_F(heap, sync)
{
	int buf = alloc(self->dev, page);

	ASSERT_GE(buf, 0);
	EXPECT_EQ(0, sync_cpu(buf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, sync_cpu(buf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ));
	EXPECT_EQ(0, sync_cpu(buf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE));
	EXPECT_EQ(0, sync_cpu(buf, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ));
	EXPECT_EQ(-EINVAL, sync_cpu(buf, DMA_BUF_SYNC_START));
	EXPECT_EQ(-EINVAL, sync_cpu(buf, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW | 1 << 3));
	close(buf);
}

TEST_F(heap, no_more_fds)
{
	long before = cma_used();
	struct rlimit old, limit;
	int fd = dup(self->dev);

	close(fd);
	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	limit = old;
	limit.rlim_cur = fd;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(-EMFILE, alloc(self->dev, 1024 * 1024));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	if (variant->cma)
		EXPECT_EQ(before, cma_used());
}

/* A process that is killed while it allocates leaves nothing behind */
TEST_F(heap, killed)
{
	size_t size = 64 * 1024 * 1024;
	long before = cma_used();
	int i, status, buf;
	pid_t pid;

	/* The largest that there is */
	do {
		size /= 2;
		buf = alloc(self->dev, size);
		close(buf);
	} while (buf == -ENOMEM && size > page);
	ASSERT_GE(buf, 0);
	for (i = 0; i < 20; i++) {
		pid = fork();
		ASSERT_GE(pid, 0);
		while (!pid) {
			buf = alloc(self->dev, size);
			if (buf >= 0)
				close(buf);
			else if (buf != -ENOMEM)
				_exit(1);
		}
		usleep(10000 + 3000 * i);
		EXPECT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	}
	if (variant->cma)
		EXPECT_EQ(before, cma_used());
	/* That was all of it, if it is no power of two more */
	buf = alloc(self->dev, size);
	EXPECT_GE(buf, 0) TH_LOG("%zu bytes: %d", size, buf);
}

/* Each allocation that can fail gives back what was there, and an errno */
TEST_F_TIMEOUT(heap, fail_nth, 300)
{
	long before = cma_used();
	int fd, ret, nth, left = 0;

	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	fd = dup(self->dev);
	close(fd);
	for (nth = 1; nth < 1000 && !left; nth++) {
		fail_nth(nth);
		ret = alloc(self->dev, 1024 * 1024 + page);
		left = fail_nth_left();
		if (ret >= 0) {
			EXPECT_EQ(fd, ret);
			close(ret);
		} else {
			EXPECT_TRUE(ret == -ENOMEM || ret == -EFAULT)
				TH_LOG("allocation %d: %d", nth, ret);
			EXPECT_FALSE(left);
		}
		if (variant->cma)
			EXPECT_EQ(before, cma_used()) TH_LOG("allocation %d", nth);
	}
	EXPECT_GT(nth, 3);
	EXPECT_TRUE(left);
	fail_nth_restore();
}

/* All of an area can be had, and again after it has been given back in pieces */
TEST(exhaustion)
{
	int dev = open_heap("default_cma_region");
	int buf[1024], n, total = 0, round;
	long before = cma_used();

	if (dev < 0)
		SKIP(return, "no default CMA area");
	for (round = 0; round < 2; round++) {
		for (n = 0; n < (int)ARRAY_SIZE(buf); n++) {
			buf[n] = alloc(dev, 1024 * 1024);
			if (buf[n] < 0)
				break;
		}
		if (n == ARRAY_SIZE(buf) || buf[n] == -EMFILE) {
			while (n--)
				close(buf[n]);
			SKIP(return, "the area is too large for this");
		}
		EXPECT_EQ(-ENOMEM, buf[n]);
		EXPECT_GT(n, 1);
		/* a page that is pinned elsewhere can be in the way for a while */
		if (round)
			EXPECT_LE(abs(total - n), 1);
		total = n;
		/* every other one first */
		for (n = 0; n < total; n += 2)
			close(buf[n]);
		for (n = 1; n < total; n += 2)
			close(buf[n]);
		EXPECT_EQ(before, cma_used());
	}
	close(dev);
}

/* Both names of the default area are of one pool: what one has taken the other has not */
TEST(one_area_two_names)
{
	int dev = open_heap("default_cma_region"), other, buf, last = -1;
	size_t size = 1024UL * 1024 * 1024;

	other = open_heap("reserved");
	if (other < 0)
		other = open_heap("linux,cma");
	if (dev < 0 || other < 0)
		SKIP(return, "no default CMA area");
	/* Down to the last MiB. The buffers are closed when the test ends. */
	while (size >= 1024 * 1024) {
		buf = alloc(dev, size);
		if (buf >= 0) {
			last = buf;
			continue;
		}
		ASSERT_EQ(-ENOMEM, buf);
		size /= 2;
	}
	ASSERT_GE(last, 0);
	EXPECT_EQ(-ENOMEM, alloc(other, 1024 * 1024));
	close(last);
	buf = alloc(other, 1024 * 1024);
	EXPECT_GE(buf, 0);
}

TEST_HARNESS_MAIN

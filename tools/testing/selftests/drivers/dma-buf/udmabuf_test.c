// SPDX-License-Identifier: GPL-2.0
/* What udmabuf promises to whoever makes and syncs a buffer */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* before sys/mman.h, which leaves its names alone then */
#include <linux/memfd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/falloc.h>
#include <linux/udmabuf.h>

#include "../../fail_nth.h"
#include "../../kselftest_harness.h"

#define DMA_API "/sys/kernel/debug/dma-api/"
#define PARAM	"/sys/module/udmabuf/parameters/"

#define START	DMA_BUF_SYNC_START
#define END	DMA_BUF_SYNC_END
#define READ	DMA_BUF_SYNC_READ
#define WRITE	DMA_BUF_SYNC_WRITE
#define RW	DMA_BUF_SYNC_RW

static size_t page;

/* The calls return what they do, or -errno */
static int result(int ret)
{
	return ret < 0 ? -errno : ret;
}

static int sync_cpu(int buf, uint64_t flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return result(ioctl(buf, DMA_BUF_IOCTL_SYNC, &sync));
}

static int new_memfd(off_t size, unsigned int flags, int seals)
{
	int fd = memfd_create("udmabuf_test", MFD_ALLOW_SEALING | flags);

	if (fd >= 0 && (ftruncate(fd, size) || fcntl(fd, F_ADD_SEALS, seals))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* -1 if there is none: without CONFIG_DMA_API_DEBUG errors are neither made nor counted */
static long read_number(const char *path)
{
	FILE *file = fopen(path, "r");
	long n = -1;

	if (file && fscanf(file, "%ld", &n) != 1)
		n = -1;
	if (file)
		fclose(file);
	return n;
}

static int write_number(const char *path, long n)
{
	FILE *file = fopen(path, "w");
	int ret;

	if (!file)
		return -errno;
	ret = fprintf(file, "%ld\n", n) < 0;
	return fclose(file) || ret ? -errno : 0;
}

static long vmstat(const char *name)
{
	FILE *file = fopen("/proc/vmstat", "r");
	char line[128], key[128];
	long n, found = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%127s %ld", key, &n) == 2 && !strcmp(key, name))
			found = n;
	if (file)
		fclose(file);
	return found;
}

/* Pages that are pinned and not released */
static long pinned(void)
{
	read_number("/proc/sys/vm/stat_refresh");
	return vmstat("nr_foll_pin_acquired") - vmstat("nr_foll_pin_released");
}

/* What the DMA API has mapped for udmabuf itself */
static int entries(void)
{
	FILE *file = fopen(DMA_API "dump", "r");
	char line[512];
	int n = 0;

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		n += !!strstr(line, "udmabuf");
	fclose(file);
	return n;
}

FIXTURE(udmabuf) {
	int dev;
};

FIXTURE_SETUP(udmabuf)
{
	page = getpagesize();
	self->dev = open("/dev/udmabuf", O_RDWR);
	if (self->dev < 0)
		SKIP(return, "/dev/udmabuf: %s", strerror(errno));
}

FIXTURE_TEARDOWN(udmabuf)
{
	close(self->dev);
}

static int create(int dev, int memfd, uint64_t offset, uint64_t size)
{
	struct udmabuf_create arg = {
		.memfd = memfd,
		.flags = UDMABUF_FLAGS_CLOEXEC,
		.offset = offset,
		.size = size,
	};

	return result(ioctl(dev, UDMABUF_CREATE, &arg));
}

/* A buffer with a memfd of its own, which is closed */
static int new_buffer(int dev, size_t size)
{
	int memfd = new_memfd(size, 0, F_SEAL_SHRINK);
	int buf = create(dev, memfd, 0, size);

	close(memfd);
	return buf;
}

/* U1: the first SYNC decided about the direction of all later ones */
TEST_F(udmabuf, sync_directions)
{
	static const uint64_t access[] = { WRITE, READ, RW };
	long before = read_number(DMA_API "error_count");
	int buf, i, j;

	for (i = 0; i < 3; i++) {
		buf = new_buffer(self->dev, page);
		ASSERT_GE(buf, 0);
		for (j = 0; j < 9; j++) {
			EXPECT_EQ(0, sync_cpu(buf, START | access[(i + j / 3) % 3]));
			EXPECT_EQ(0, sync_cpu(buf, END | access[(i + j) % 3]));
		}
		close(buf);
	}
	EXPECT_EQ(before, read_number(DMA_API "error_count"));
}

/* U3: with bounce buffers, a SYNC for reading brought back what had been there before */
TEST_F(udmabuf, memfd_writes_stay)
{
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK);
	int buf = create(self->dev, memfd, 0, page);
	uint8_t *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	uint8_t value = 0x22;

	ASSERT_GE(buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(0, sync_cpu(buf, START | RW));
	memset(p, 0x11, page);
	EXPECT_EQ(0, sync_cpu(buf, END | RW));
	EXPECT_EQ(1, pwrite(memfd, &value, 1, page / 2));
	EXPECT_EQ(0, sync_cpu(buf, START | READ));
	EXPECT_EQ(0x11, p[0]);
	EXPECT_EQ(0x22, p[page / 2]);
	EXPECT_EQ(0, sync_cpu(buf, END | READ));
	munmap(p, page);
	close(buf);
	close(memfd);
}

#define BUFFERS	300
#define THREADS	8

static struct {
	int buf[BUFFERS];
	pthread_barrier_t barrier;
} race;

static void *sync_first(void *no_errors)
{
	long i, errors = (long)no_errors;

	for (i = 0; i < BUFFERS; i++) {
		pthread_barrier_wait(&race.barrier);
		errors += sync_cpu(race.buf[i], START | RW) != 0;
		errors += sync_cpu(race.buf[i], END | RW) != 0;
	}
	return (void *)errors;
}

/* U4: of several threads that call SYNC first, each made a mapping, which leaked */
TEST_F_TIMEOUT(udmabuf, first_sync_race, 300)
{
	pthread_t thread[THREADS];
	void *errors;
	int i;

	for (i = 0; i < BUFFERS; i++) {
		race.buf[i] = new_buffer(self->dev, page);
		ASSERT_GE(race.buf[i], 0);
	}
	pthread_barrier_init(&race.barrier, NULL, THREADS);
	for (i = 0; i < THREADS; i++)
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, sync_first, NULL));
	for (i = 0; i < THREADS; i++) {
		pthread_join(thread[i], &errors);
		EXPECT_EQ(NULL, errors);
	}
	for (i = 0; i < BUFFERS; i++)
		close(race.buf[i]);
	/* without DMA_API_DEBUG, it is kmemleak that finds them */
	EXPECT_LE(entries(), 0);
}

/* U5: pages next to each other were one segment, of more than the device said it takes */
TEST_F(udmabuf, sync_of_huge_pages)
{
	long before = read_number(DMA_API "error_count");
	size_t size = 2 * 1024 * 1024;
	int memfd = new_memfd(size, MFD_HUGETLB | MFD_HUGE_2MB, F_SEAL_SHRINK);
	int buf = create(self->dev, memfd, 0, size);

	if (memfd < 0 || buf == -ENOMEM)
		SKIP(return, "no huge pages of 2 MiB");
	ASSERT_GE(buf, 0);
	EXPECT_EQ(0, sync_cpu(buf, START | RW));
	EXPECT_EQ(0, sync_cpu(buf, END | RW));
	EXPECT_EQ(before, read_number(DMA_API "error_count"));
	close(buf);
	close(memfd);
}

/* U6: a WARN for more than INT_MAX bytes of pointers, whatever the size of the memfd */
TEST_F(udmabuf, huge_size)
{
	const uint64_t size = (1ULL << 29) * page;
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[2];
	} arg = { .head.count = 2 };
	int memfd = new_memfd(16 * page, 0, F_SEAL_SHRINK);
	int sparse = -1;

	if (sizeof(long) > 4)
		sparse = new_memfd(size, 0, F_SEAL_SHRINK);
	ASSERT_GE(memfd, 0);
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, size));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, size, 16 * page));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, -page, page));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, page, -page));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 16 * page, page));
	arg.item[0] = (struct udmabuf_create_item){ .memfd = memfd, .size = page };
	arg.item[1] = (struct udmabuf_create_item){ .memfd = memfd, .size = size };
	EXPECT_EQ(-EINVAL, result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg)));
	/* It could be, but there is no memory for as many pointers */
	if (sparse >= 0)
		EXPECT_EQ(-ENOMEM, create(self->dev, sparse, 0, size));
	close(sparse);
	close(memfd);
}

/* U8: only udmabuf wanted to see a START first */
TEST_F(udmabuf, end_before_start)
{
	int buf = new_buffer(self->dev, page);

	ASSERT_GE(buf, 0);
	EXPECT_EQ(0, sync_cpu(buf, END | RW));
	EXPECT_EQ(0, sync_cpu(buf, END | READ));
	EXPECT_EQ(-EINVAL, sync_cpu(buf, START));
	EXPECT_EQ(-EINVAL, sync_cpu(buf, START | RW | 1 << 3));
	close(buf);
}

/* U9: the size of a list was truncated, and what stands behind it taken for more items */
TEST_F(udmabuf, limits)
{
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[3];
	} arg = { .head.flags = UDMABUF_FLAGS_CLOEXEC };
	long list = read_number(PARAM "list_limit"), mib = read_number(PARAM "size_limit_mb");
	int memfd = new_memfd(2 * 1024 * 1024, 0, F_SEAL_SHRINK), i, buf;

	ASSERT_GE(memfd, 0);
	if (write_number(PARAM "list_limit", list))
		SKIP(return, PARAM "list_limit cannot be written");
	for (i = 0; i < 3; i++)
		arg.item[i] = (struct udmabuf_create_item){ .memfd = memfd, .size = page };

	EXPECT_EQ(0, write_number(PARAM "list_limit", 2));
	arg.head.count = 3;
	EXPECT_EQ(-EINVAL, result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg)));
	arg.head.count = 2;
	buf = result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg));
	EXPECT_GE(buf, 0);
	close(buf);
	EXPECT_EQ(0, write_number(PARAM "list_limit", -1));
	arg.head.count = 0x10000001;
	/* as many items are no memory for them, or more than a size_t can tell */
	i = result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg));
	EXPECT_TRUE(i == -ENOMEM || i == -EOVERFLOW) TH_LOG("%d", i);
	EXPECT_EQ(0, write_number(PARAM "list_limit", 0));
	arg.head.count = 1;
	EXPECT_EQ(-EINVAL, result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg)));
	EXPECT_EQ(0, write_number(PARAM "list_limit", list));
	arg.head.count = 0;
	EXPECT_EQ(-EINVAL, result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg)));

	EXPECT_EQ(0, write_number(PARAM "size_limit_mb", 1));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, 1024 * 1024 + page));
	buf = create(self->dev, memfd, 0, 1024 * 1024);
	EXPECT_GE(buf, 0);
	close(buf);
	EXPECT_EQ(0, write_number(PARAM "size_limit_mb", 0));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, page));
	EXPECT_EQ(0, write_number(PARAM "size_limit_mb", -1));
	buf = create(self->dev, memfd, 0, 2 * 1024 * 1024);
	EXPECT_GE(buf, 0);
	close(buf);
	EXPECT_EQ(0, write_number(PARAM "size_limit_mb", mib));
	close(memfd);
}

/* Which memfds are taken */
TEST_F(udmabuf, seals)
{
	static const struct {
		int seals, ret;
	} want[] = {
		{ 0, -EINVAL },
		{ F_SEAL_SEAL, -EINVAL },
		{ F_SEAL_GROW, -EINVAL },
		{ F_SEAL_SHRINK, 0 },
		{ F_SEAL_SHRINK | F_SEAL_GROW, 0 },
		{ F_SEAL_SHRINK | F_SEAL_SEAL, 0 },
		{ F_SEAL_WRITE, -EINVAL },
		{ F_SEAL_SHRINK | F_SEAL_WRITE, -EINVAL },
		{ F_SEAL_SHRINK | F_SEAL_FUTURE_WRITE, -EINVAL },
	};
	int pipes[2], fd, ret;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(want); i++) {
		fd = new_memfd(page, 0, want[i].seals);
		ASSERT_GE(fd, 0);
		ret = create(self->dev, fd, 0, page);
		EXPECT_EQ(want[i].ret, ret < 0 ? ret : 0) TH_LOG("seals %#x", want[i].seals);
		if (ret >= 0)
			close(ret);
		close(fd);
	}
	ASSERT_EQ(0, pipe(pipes));
	EXPECT_EQ(-EBADFD, create(self->dev, pipes[0], 0, page));
	EXPECT_EQ(-EBADFD, create(self->dev, self->dev, 0, page));
	EXPECT_EQ(-EBADFD, create(self->dev, -1, 0, page));
	close(pipes[0]);
	close(pipes[1]);
}

/* Who may only read a memfd, or only write it, gets no buffer that can be both */
TEST_F(udmabuf, read_only_memfd)
{
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK), fd;
	char path[64];

	ASSERT_GE(memfd, 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	fd = open(path, O_RDONLY);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, page, PROT_WRITE, MAP_SHARED, fd, 0));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-EACCES, create(self->dev, fd, 0, page));
	close(fd);
	fd = open(path, O_WRONLY);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EACCES, create(self->dev, fd, 0, page));
	close(fd);
	fd = open(path, O_RDWR);
	ASSERT_GE(fd, 0);
	close(memfd);
	memfd = create(self->dev, fd, 0, page);
	EXPECT_GE(memfd, 0);
	close(memfd);
	close(fd);
}

/* A buffer does not keep its memfd from being sealed against more writers of it */
TEST_F(udmabuf, sealed_later)
{
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK);
	int buf = create(self->dev, memfd, 0, page);
	uint8_t *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);

	ASSERT_GE(buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	/* its pages are pinned, which is what keeps F_SEAL_WRITE off */
	EXPECT_EQ(-EBUSY, result(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE)));
	EXPECT_EQ(0, result(fcntl(memfd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE)));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, page));
	p[0] = 1;
	munmap(p, page);
	close(buf);
	EXPECT_EQ(0, result(fcntl(memfd, F_ADD_SEALS, F_SEAL_WRITE)));
	close(memfd);
}

TEST_F(udmabuf, ranges)
{
	int memfd = new_memfd(4 * page, 0, F_SEAL_SHRINK), buf;

	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, 0));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, 0, page / 2));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, page / 2, page));
	EXPECT_EQ(-EINVAL, create(self->dev, memfd, page, 4 * page));
	buf = create(self->dev, memfd, page, 3 * page);
	ASSERT_GE(buf, 0);
	EXPECT_EQ(3 * (off_t)page, lseek(buf, 0, SEEK_END));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, page, PROT_READ, MAP_PRIVATE, buf, 0));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, page, PROT_READ, MAP_SHARED, buf, 3 * page));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, buf, 0));
	EXPECT_EQ(EINVAL, errno);
	close(buf);
	close(memfd);
}

/* The memfd can grow; a hole in it gets new pages, the buffer keeps those it has */
TEST_F(udmabuf, memfd_changes)
{
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK);
	int buf = create(self->dev, memfd, 0, page);
	uint8_t *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	uint8_t value = 7;

	ASSERT_GE(buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(-EPERM, result(ftruncate(memfd, 0)));
	EXPECT_EQ(0, result(ftruncate(memfd, 2 * page)));
	EXPECT_EQ(1, pwrite(memfd, &value, 1, 0));
	EXPECT_EQ(7, p[0]);
	ASSERT_EQ(0, result(fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				      0, page)));
	EXPECT_EQ(1, pread(memfd, &value, 1, 0));
	EXPECT_EQ(0, value);
	EXPECT_EQ(7, p[0]);
	munmap(p, page);
	close(buf);
	close(memfd);
}

/* The same page many times, several memfds, and pages out of the middle of huge ones */
TEST_F(udmabuf, lists)
{
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[64];
	} arg = { .head = { .flags = UDMABUF_FLAGS_CLOEXEC, .count = 64 } };
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK), buf, i;
	int huge = new_memfd(2 * 1024 * 1024, MFD_HUGETLB | MFD_HUGE_2MB, F_SEAL_SHRINK);
	long before = pinned();
	uint8_t *p, *h;

	for (i = 0; i < 64; i++)
		arg.item[i] = (struct udmabuf_create_item){ .memfd = memfd, .size = page };
	buf = result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg));
	ASSERT_GE(buf, 0);
	p = mmap(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	p[5 * page + 3] = 9;
	for (i = 0; i < 64; i++)
		EXPECT_EQ(9, p[i * page + 3]);
	munmap(p, 64 * page);
	close(buf);
	EXPECT_EQ(before, pinned());

	h = mmap(NULL, 2 * 1024 * 1024, PROT_READ | PROT_WRITE, MAP_SHARED, huge, 0);
	if (huge < 0 || h == MAP_FAILED)
		SKIP(return, "no huge pages of 2 MiB");
	for (i = 0; i < 64; i += 2)
		arg.item[i] = (struct udmabuf_create_item){
			.memfd = huge, .offset = (i + 3) * page, .size = page };
	buf = result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg));
	ASSERT_GE(buf, 0);
	p = mmap(NULL, 64 * page, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	for (i = 0; i < 64; i += 2) {
		h[(i + 3) * page] = i + 1;
		EXPECT_EQ(i + 1, p[i * page]);
		EXPECT_EQ(9, p[(i + 1) * page + 3]);
	}
	munmap(p, 64 * page);
	munmap(h, 2 * 1024 * 1024);
	close(buf);
	EXPECT_EQ(before, pinned());
	close(huge);
	close(memfd);
}

#define PINS	16384

/* U7: each item of a list takes a pin, of which a page bears 2^21, and a WARN comes next */
TEST_F_TIMEOUT(udmabuf, pins_of_one_page, 300)
{
	long limit = read_number(PARAM "list_limit"), before = pinned();
	int memfd = new_memfd(page, 0, F_SEAL_SHRINK), buf[129], n, i;
	struct udmabuf_create_list *arg;

	arg = calloc(1, sizeof(*arg) + PINS * sizeof(arg->list[0]));
	ASSERT_NE(NULL, arg);
	if (write_number(PARAM "list_limit", PINS))
		SKIP(return, PARAM "list_limit cannot be written");
	arg->count = PINS;
	for (i = 0; i < PINS; i++)
		arg->list[i] = (struct udmabuf_create_item){ .memfd = memfd, .size = page };
	for (n = 0; n < 129; n++) {
		buf[n] = result(ioctl(self->dev, UDMABUF_CREATE_LIST, arg));
		if (buf[n] < 0)
			break;
	}
	/* half of them: 64 of these buffers are one pin too much */
	EXPECT_EQ(63, n);
	if (n < 129)
		EXPECT_EQ(-ENOMEM, buf[n]);
	/* Nothing is left of the one that was refused, and others are not affected */
	EXPECT_EQ(before + (long)n * PINS, pinned());
	i = new_buffer(self->dev, page);
	EXPECT_GE(i, 0);
	close(i);
	while (n)
		close(buf[--n]);
	EXPECT_EQ(before, pinned());
	i = create(self->dev, memfd, 0, page);
	EXPECT_GE(i, 0);
	close(i);
	close(memfd);
	free(arg);
	EXPECT_EQ(0, write_number(PARAM "list_limit", limit));
}

/* Each allocation that can fail gives back what was there, and an errno */
TEST_F_TIMEOUT(udmabuf, fail_nth, 300)
{
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[3];
	} arg = { .head = { .flags = UDMABUF_FLAGS_CLOEXEC, .count = 3 } };
	int memfd = new_memfd(16 * page, 0, F_SEAL_SHRINK), lowest, ret, nth, left, i;
	long before = pinned();

	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (i = 0; i < 3; i++)
		arg.item[i] = (struct udmabuf_create_item){
			.memfd = memfd, .offset = 4 * i * page, .size = 4 * page };
	lowest = dup(memfd);
	close(lowest);
	for (i = 0; i < 2; i++) {
		for (nth = 1; nth < 1000; nth++) {
			fail_nth(nth);
			if (i)
				ret = result(ioctl(self->dev, UDMABUF_CREATE_LIST, &arg));
			else
				ret = create(self->dev, memfd, 0, 16 * page);
			left = fail_nth_left();
			if (ret >= 0) {
				EXPECT_EQ(lowest, ret);
				close(ret);
			} else {
				EXPECT_TRUE(ret == -ENOMEM || ret == -EFAULT)
					TH_LOG("allocation %d: %d", nth, ret);
			}
			EXPECT_EQ(before, pinned()) TH_LOG("allocation %d", nth);
			if (ret >= 0 && left)
				break;
		}
		EXPECT_GT(nth, 3);
		EXPECT_LT(nth, 1000);
	}
	close(memfd);
	fail_nth_restore();
}

TEST_HARNESS_MAIN

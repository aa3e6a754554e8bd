// SPDX-License-Identifier: GPL-2.0
/*
 * Run in the guest by bin/bench, on a clock of which a nanosecond is an instruction. A line for each
 * measurement: INSTRUCTIONS <tab> BOUND <tab> NAME, where BOUND is what the series may take of what the base takes.
 */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/udmabuf.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void report(uint64_t instructions, const char *bound, const char *name)
{
	printf("%llu\t%s\t%s\n", (unsigned long long)instructions, bound, name);
}

/* The average of COUNT runs of ACTION, after one that is not counted */
#define BENCH(bound, count, action, name)				\
do {									\
	uint64_t start = 0;						\
	for (int i = 0; i <= (count); i++) {				\
		if (i == 1)						\
			start = now();					\
		action;							\
	}								\
	report((now() - start) / (count), bound, name);			\
} while (0)

static int udmabuf(off_t size)
{
	int memfd = memfd_create("bench", MFD_ALLOW_SEALING);
	struct udmabuf_create create = { .memfd = memfd, .size = size };
	int dev = open("/dev/udmabuf", O_RDWR), fd;

	if (memfd < 0 || ftruncate(memfd, size) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		err(1, "memfd");
	fd = ioctl(dev, UDMABUF_CREATE, &create);
	if (fd < 0)
		err(1, "UDMABUF_CREATE");
	close(dev);
	close(memfd);
	return fd;
}

static void sync_rw(int fd)
{
	struct dma_buf_sync start = { DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	struct dma_buf_sync end = { DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW };

	if (ioctl(fd, DMA_BUF_IOCTL_SYNC, &start) || ioctl(fd, DMA_BUF_IOCTL_SYNC, &end))
		err(1, "DMA_BUF_IOCTL_SYNC");
}

static void allocate(int heap, size_t size)
{
	struct dma_heap_allocation_data data = { .len = size, .fd_flags = O_RDWR | O_CLOEXEC };

	if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data))
		err(1, "DMA_HEAP_IOCTL_ALLOC of %zu", size);
	close(data.fd);
}

int main(void)
{
	static const struct { const char *name; size_t size; int count; } sizes[] = {
		{ "4 KiB", 4096, 2000 }, { "1 MiB", 1 << 20, 100 }, { "64 MiB", 64 << 20, 4 },
	};
	static const char *const heaps[] = { "system", "default_cma_region" };
	uint64_t first = 0;
	int fd;

	for (int i = 0; i < 4; i++) {
		fd = udmabuf(64 << 20);
		first -= now();
		sync_rw(fd);
		first += now();
		close(fd);
	}
	report(first / 4, "0.1", "udmabuf of 64 MiB without importers: first START and END");
	fd = udmabuf(64 << 20);
	/* what it takes to wait for the fences in time, on a coherent machine */
	BENCH("1.25", 1000, sync_rw(fd), "udmabuf of 64 MiB without importers: START and END");
	close(fd);
	for (int h = 0; h < 2; h++) {
		char path[64];

		snprintf(path, sizeof(path), "/dev/dma_heap/%s", heaps[h]);
		fd = open(path, O_RDWR);
		if (fd < 0)
			err(1, "%s", path);
		for (int s = 0; s < 3; s++) {
			char name[96];

			snprintf(name, sizeof(name), "%s: allocate and free %s", heaps[h],
				 sizes[s].name);
			BENCH("1.02", sizes[s].count, allocate(fd, sizes[s].size), name);
		}
		close(fd);
	}
	return 0;
}

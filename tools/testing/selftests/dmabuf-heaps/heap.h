/* SPDX-License-Identifier: GPL-2.0 */
/* What the tests of heaps share */
#ifndef SELFTESTS_HEAP_H
#define SELFTESTS_HEAP_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>

#include <linux/dma-heap.h>

/* An fd, or -errno */
static inline int alloc(int dev, uint64_t len)
{
	struct dma_heap_allocation_data data = { .len = len, .fd_flags = O_RDWR | O_CLOEXEC };

	return ioctl(dev, DMA_HEAP_IOCTL_ALLOC, &data) ? -errno : (int)data.fd;
}

/*
 * The name of a heap of coherent reserved memory is that of a region of the machine:
 * the first that the heap's module has been told, or NULL.
 */
static inline const char *coherent_heap(void)
{
	FILE *file = fopen("/sys/module/coherent_heap/parameters/regions", "r");
	static char name[80];
	int n = file ? fscanf(file, "%79[^,\n]", name) : 0;

	if (file)
		fclose(file);
	return n == 1 ? name : NULL;
}

static inline int open_heap(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "/dev/dma_heap/%s", name);
	return open(path, O_RDWR | O_CLOEXEC);
}

#endif

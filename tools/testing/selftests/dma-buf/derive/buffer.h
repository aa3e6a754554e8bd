/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of importers share: a buffer of the system heap with fds of less
 * access, what is in it, and who uses it.
 */
#ifndef SELFTESTS_DMA_BUF_BUFFER_H
#define SELFTESTS_DMA_BUF_BUFFER_H

#include <poll.h>

#include "derive.h"

/* The derived fds are negative on kernels without */
struct buffer {
	int fd, r, w, rw;
	size_t size;
	uint32_t *map;
};

/* By a file of that mode, as the exporter makes it */
static inline bool buffer_alloc(struct buffer *b, size_t size, int mode)
{
	int prot = mode == O_RDWR ? PROT_READ | PROT_WRITE : PROT_READ;

	b->size = size;
	b->fd = heap_alloc("system", size, mode | O_CLOEXEC);
	b->r = derive(b->fd, O_RDONLY | O_CLOEXEC);
	b->w = derive(b->fd, O_WRONLY | O_CLOEXEC);
	b->rw = derive(b->fd, O_RDWR | O_CLOEXEC);
	b->map = mmap(NULL, size, prot, MAP_SHARED, b->fd, 0);
	return b->fd >= 0 && b->map != MAP_FAILED;
}

static inline bool buffer_derived(const struct buffer *b)
{
	return b->r >= 0 && b->w >= 0 && b->rw >= 0;
}

static inline void buffer_free(struct buffer *b)
{
	if (b->map != MAP_FAILED)
		munmap(b->map, b->size);
	close(b->rw);
	close(b->w);
	close(b->r);
	close(b->fd);
}

/* The data of a seed: no word of it stands twice, or in the same place in that of another */
static inline uint32_t word(uint32_t i, uint32_t seed)
{
	return (i + 1) * 2654435761u ^ seed * 40503u;
}

static inline void fill_words(uint32_t *words, size_t size, uint32_t seed)
{
	size_t i;

	for (i = 0; i < size / 4; i++)
		words[i] = word(i, seed);
}

/* How many bytes are not those of the seed */
static inline long wrong_bytes(const void *data, size_t len, uint32_t seed)
{
	const uint8_t *byte = data;
	long wrong = 0;
	size_t i;

	for (i = 0; i < len; i++) {
		uint32_t want = word(i / 4, seed);

		wrong += byte[i] != ((uint8_t *)&want)[i % 4];
	}
	return wrong;
}

static inline int buffer_fill(struct buffer *b, uint32_t seed)
{
	int ret = sync_cpu(b->fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE);

	if (ret)
		return ret;
	fill_words(b->map, b->size, seed);
	return sync_cpu(b->fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
}

/* How many bytes at its beginning are not those of the seed, or -1 */
static inline long buffer_wrong(const struct buffer *b, size_t len, uint32_t seed)
{
	long wrong;

	if (sync_cpu(b->fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ))
		return -1;
	wrong = wrong_bytes(b->map, len, seed);
	return sync_cpu(b->fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ) ? -1 : wrong;
}

/* How many users the buffer has, according to its fdinfo */
static inline int users(int fd)
{
	char path[64], line[128];
	int count = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "count: %d", &count);
	if (f)
		fclose(f);
	return count;
}

/* Those that it has after ms at most: what an importer holds may be given back by a worker */
static inline int users_become(int fd, int count, int ms)
{
	for (; ms > 0 && users(fd) != count; ms -= 10)
		usleep(10000);
	return users(fd);
}

/* Have all fences of the buffer signaled, after ms at most? */
static inline bool idle(int fd, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, ms) == 1 && p.revents == POLLOUT;
}

/* Has one of them not yet? */
static inline bool busy(int fd)
{
	struct pollfd p = { .fd = fd, .events = POLLOUT };

	return poll(&p, 1, 0) == 0;
}

#endif

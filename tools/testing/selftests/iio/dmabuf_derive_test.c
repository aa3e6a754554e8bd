// SPDX-License-Identifier: GPL-2.0
/*
 * Output buffers that only read from DMABUFs take those that were derived for
 * reading, and do with them what they do with others. All other buffers refuse
 * them, with EACCES, whatever fd the DMABUF was attached with.
 *
 * Needs the module iio_dmabuf_loopback.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/iio/buffer.h>

#include "../kselftest_harness.h"

#define SIZE	(256 * 1024)
#define CYCLIC	IIO_BUFFER_DMABUF_CYCLIC

/* The buffers of the device: what OUT sends IN receives; CLEAR writes, too */
enum { OUT, IN, CLEAR, BUFFERS };

/* A DMABUF, with fds of less access, and a mapping */
struct memory {
	int fd, r, w, rw;
	uint32_t *map;
};

static int call(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? errno : 0;
}

static int attach(int buffer, int fd)
{
	return call(buffer, IIO_BUFFER_DMABUF_ATTACH_IOCTL, &fd);
}

static int detach(int buffer, int fd)
{
	return call(buffer, IIO_BUFFER_DMABUF_DETACH_IOCTL, &fd);
}

static int enqueue_some(int buffer, int fd, uint64_t bytes, uint32_t flags)
{
	struct iio_dmabuf arg = { .fd = fd, .flags = flags, .bytes_used = bytes };

	return call(buffer, IIO_BUFFER_DMABUF_ENQUEUE_IOCTL, &arg);
}

static int enqueue(int buffer, int fd)
{
	return enqueue_some(buffer, fd, SIZE, 0);
}

static int derive(int fd, unsigned int mode)
{
	struct dma_buf_derive arg = { .flags = mode | O_CLOEXEC };

	return ioctl(fd, DMA_BUF_IOCTL_DERIVE, &arg) ? -1 : arg.fd;
}

static int heap_alloc(int mode)
{
	struct dma_heap_allocation_data data = {
		.len = SIZE, .fd_flags = mode | O_CLOEXEC,
	};
	int heap = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC);
	int ret = ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data);

	if (heap >= 0)
		close(heap);
	return ret ? -1 : (int)data.fd;
}

static bool memory_alloc(struct memory *m)
{
	m->fd = heap_alloc(O_RDWR);
	m->r = derive(m->fd, O_RDONLY);
	m->w = derive(m->fd, O_WRONLY);
	m->rw = derive(m->fd, O_RDWR);
	m->map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, m->fd, 0);
	return m->r >= 0 && m->w >= 0 && m->rw >= 0 && m->map != MAP_FAILED;
}

static void memory_free(struct memory *m)
{
	munmap(m->map, SIZE);
	close(m->rw);
	close(m->w);
	close(m->r);
	close(m->fd);
}

static uint32_t sample(uint32_t i, uint32_t seed)
{
	return (i + seed) * 2654435761u;
}

/* Around what the CPU does, for devices with a bounce buffer */
static int cpu_sync(const struct memory *m, uint64_t flags)
{
	struct dma_buf_sync arg = { .flags = flags };

	return call(m->fd, DMA_BUF_IOCTL_SYNC, &arg);
}

static void fill(struct memory *m, uint32_t seed)
{
	size_t i;

	if (cpu_sync(m, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE))
		return;
	for (i = 0; i < SIZE / 4; i++)
		m->map[i] = sample(i, seed);
	cpu_sync(m, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
}

static void clear(struct memory *m)
{
	if (cpu_sync(m, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE))
		return;
	memset(m->map, 0, SIZE);
	cpu_sync(m, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
}

static int samples_not_from(const struct memory *m, uint32_t seed)
{
	int wrong = 0;
	size_t i;

	if (cpu_sync(m, DMA_BUF_SYNC_START | DMA_BUF_SYNC_READ))
		return -1;
	for (i = 0; i < SIZE / 4; i++)
		wrong += m->map[i] != sample(i, seed);
	cpu_sync(m, DMA_BUF_SYNC_END | DMA_BUF_SYNC_READ);
	return wrong;
}

/* How many users the DMABUF has, according to its fdinfo */
static int users(const struct memory *m)
{
	char path[64], line[128];
	int count = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", m->fd);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "count: %d", &count);
	if (f)
		fclose(f);
	return count;
}

/* What a transfer held is given back by a worker, some time after its end */
static int users_in_the_end(const struct memory *m, int expected)
{
	int i;

	for (i = 0; i < 2000 && users(m) != expected; i++)
		usleep(10000);
	return users(m);
}

/* Whether all transfers of the DMABUF end */
static bool idle(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };

	return poll(&pfd, 1, 10000) == 1 && pfd.revents == POLLOUT;
}

/* Whether there is one now */
static bool busy(int fd)
{
	struct pollfd pfd = { .fd = fd, .events = POLLOUT };

	return poll(&pfd, 1, 0) == 0;
}

static int set(int device, int buffer, const char *name, const char *value)
{
	char path[128];
	int fd, ret;

	snprintf(path, sizeof(path), "/sys/bus/iio/devices/iio:device%d/buffer%d/%s",
		 device, buffer, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	ret = write(fd, value, strlen(value)) < 0 ? errno : 0;
	close(fd);
	return ret;
}

static int find_device(void)
{
	char path[64], name[64];
	FILE *f;
	int i;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/sys/bus/iio/devices/iio:device%d/name", i);
		f = fopen(path, "r");
		if (!f)
			continue;
		if (fscanf(f, "%63s", name) != 1)
			name[0] = 0;
		fclose(f);
		if (!strcmp(name, "dmabuf-loopback"))
			return i;
	}
	return -1;
}

FIXTURE(loopback) {
	int device;
	int buffer[BUFFERS];
	struct memory src, dst;
};

static bool open_buffers(FIXTURE_DATA(loopback) *self)
{
	char path[32];
	bool ok = true;
	int i, fd;

	snprintf(path, sizeof(path), "/dev/iio:device%d", self->device);
	fd = open(path, O_RDWR | O_CLOEXEC);
	for (i = 0; i < BUFFERS; i++) {
		self->buffer[i] = i;
		ok &= !call(fd, IIO_BUFFER_GET_FD_IOCTL, &self->buffer[i]);
	}
	if (fd >= 0)
		close(fd);
	return ok;
}

static void close_buffers(FIXTURE_DATA(loopback) *self)
{
	int i;

	for (i = 0; i < BUFFERS; i++)
		close(self->buffer[i]);
}

/* Ends all transfers. What is enqueued in a buffer that is off waits for it to be on. */
static void disable(FIXTURE_DATA(loopback) *self)
{
	int i;

	for (i = 0; i < BUFFERS; i++)
		set(self->device, i, "enable", "0");
}

static int enable(FIXTURE_DATA(loopback) *self, int buffer)
{
	return set(self->device, buffer, buffer == IN ? "in_voltage0_en" : "out_voltage0_en",
		   "1") ?: set(self->device, buffer, "enable", "1");
}

/* Attaches src for sending, by that fd of it, and dst for receiving */
static int start(FIXTURE_DATA(loopback) *self, int src)
{
	return attach(self->buffer[OUT], src) ?: attach(self->buffer[IN], self->dst.fd) ?:
	       enable(self, OUT) ?: enable(self, IN);
}

/* One transfer, which leaves dst with what was in src */
static int transfer(FIXTURE_DATA(loopback) *self, int src)
{
	clear(&self->dst);
	return enqueue(self->buffer[OUT], src) ?: enqueue(self->buffer[IN], self->dst.fd) ?:
	       idle(self->dst.fd) && idle(self->src.fd) ? 0 : ETIME;
}

/* Does the device miss what is written without a SYNC? Leaves all buffers off. */
static bool has_bounce_buffer(FIXTURE_DATA(loopback) *self)
{
	bool missed;

	fill(&self->src, 9);
	missed = !start(self, self->src.fd);
	self->src.map[0] = ~sample(0, 9);
	missed = missed && !transfer(self, self->src.fd) &&
		 !samples_not_from(&self->dst, 9);
	disable(self);
	return missed;
}

FIXTURE_SETUP(loopback)
{
	memset(self, 0, sizeof(*self));
	self->device = find_device();
	if (self->device < 0)
		SKIP(return, "no iio_dmabuf_loopback");
	ASSERT_TRUE(memory_alloc(&self->src));
	ASSERT_TRUE(memory_alloc(&self->dst));
	ASSERT_TRUE(open_buffers(self));
}

FIXTURE_TEARDOWN(loopback)
{
	disable(self);
	close_buffers(self);
	memory_free(&self->src);
	memory_free(&self->dst);
}

/* Without derived fds, to know what the others are compared with */
TEST_F(loopback, exported)
{
	ASSERT_EQ(0, start(self, self->src.fd));
	fill(&self->src, 1);
	ASSERT_EQ(0, transfer(self, self->src.fd));
	EXPECT_EQ(0, samples_not_from(&self->dst, 1));
	EXPECT_EQ(0, samples_not_from(&self->src, 1));
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.fd));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.fd));
}

/* The same is received, and nothing is changed that was sent */
/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F(loopback, exported_read_only)
{
	struct memory own = self->dst;

	self->dst.fd = heap_alloc(O_RDONLY);
	ASSERT_LE(0, self->dst.fd);
	self->dst.map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->dst.fd, 0);
	ASSERT_NE(MAP_FAILED, self->dst.map);
	fill(&self->src, 11);
	ASSERT_EQ(0, start(self, self->src.fd));
	ASSERT_EQ(0, enqueue(self->buffer[OUT], self->src.fd));
	ASSERT_EQ(0, enqueue(self->buffer[IN], self->dst.fd));
	ASSERT_TRUE(idle(self->dst.fd));
	EXPECT_EQ(0, samples_not_from(&self->dst, 11));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.fd));
	munmap(self->dst.map, SIZE);
	close(self->dst.fd);
	self->dst = own;
}

TEST_F_TIMEOUT(loopback, read_only, 300)
{
	uint32_t i;

	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		fill(&self->src, i);
		ASSERT_EQ(0, transfer(self, self->src.r));
		EXPECT_EQ(0, samples_not_from(&self->dst, i));
		EXPECT_EQ(0, samples_not_from(&self->src, i));
	}
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.r));
	EXPECT_EQ(0, samples_not_from(&self->src, 2));
}

TEST_F(loopback, read_write)
{
	fill(&self->src, 3);
	ASSERT_EQ(0, start(self, self->src.rw));
	ASSERT_EQ(0, transfer(self, self->src.rw));
	EXPECT_EQ(0, samples_not_from(&self->dst, 3));
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.rw));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.rw));
}

/* Each time it is the fd of the call that counts, and each that suffices will do */
TEST_F_TIMEOUT(loopback, alternating_fds, 300)
{
	int *b = self->buffer;
	int fds[] = { self->src.fd, self->src.r, self->src.rw };
	uint32_t i, j;

	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		for (j = 0; j < 3; j++) {
			fill(&self->src, i * 3 + j);
			EXPECT_EQ(EBUSY, attach(b[OUT], fds[j]));
			EXPECT_EQ(EACCES, attach(b[OUT], self->src.w));
			EXPECT_EQ(EACCES, enqueue(b[OUT], self->src.w));
			EXPECT_EQ(EACCES, detach(b[OUT], self->src.w));
			ASSERT_EQ(0, transfer(self, fds[j]));
			EXPECT_EQ(0, samples_not_from(&self->dst, i * 3 + j));
		}
		/* attached by one, detached by another */
		ASSERT_EQ(0, detach(b[OUT], fds[i]));
		EXPECT_EQ(EPERM, detach(b[OUT], fds[i]));
		EXPECT_EQ(EPERM, enqueue(b[OUT], fds[i]));
		EXPECT_EQ(EACCES, enqueue(b[OUT], self->src.w));
		ASSERT_EQ(0, attach(b[OUT], fds[(i + 1) % 3]));
	}
}

/* An attachment needs no fd, nor one that it was made with */
TEST_F(loopback, closed_fd)
{
	ASSERT_EQ(0, start(self, self->src.r));
	close(self->src.r);
	self->src.r = derive(self->src.rw, O_RDONLY);
	ASSERT_LE(0, self->src.r);
	fill(&self->src, 4);
	ASSERT_EQ(0, transfer(self, self->src.r));
	EXPECT_EQ(0, samples_not_from(&self->dst, 4));
}

/* Nobody writes by an fd that cannot, whatever was attached by one that can */
TEST_F_TIMEOUT(loopback, input, 300)
{
	int *b = self->buffer;
	int fds[] = { self->dst.r, self->dst.w };
	int i, j;

	for (j = 0; j < 2; j++) {
		EXPECT_EQ(EACCES, attach(b[IN], fds[j]));
		EXPECT_EQ(EACCES, enqueue(b[IN], fds[j]));
		EXPECT_EQ(EACCES, detach(b[IN], fds[j]));
	}

	/* before a bounce buffer gets a copy of it */
	fill(&self->dst, 5);
	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		/* there is something to receive */
		fill(&self->src, 6 + i);
		ASSERT_EQ(0, enqueue(b[OUT], self->src.r));
		for (j = 0; j < 2; j++) {
			EXPECT_EQ(EACCES, attach(b[IN], fds[j]));
			EXPECT_EQ(EACCES, enqueue(b[IN], fds[j]));
			EXPECT_EQ(EACCES, detach(b[IN], fds[j]));
		}
		EXPECT_TRUE(busy(self->src.fd));
		EXPECT_EQ(0, samples_not_from(&self->dst, 5 + i));
		/* and the attachment is still there */
		ASSERT_EQ(0, enqueue(b[IN], i ? self->dst.rw : self->dst.fd));
		ASSERT_TRUE(idle(self->dst.fd));
		EXPECT_EQ(0, samples_not_from(&self->dst, 6 + i));
	}
}

/* In an output buffer and an input buffer at once, each has its own attachment */
TEST_F(loopback, both_directions)
{
	int *b = self->buffer;

	ASSERT_EQ(0, attach(b[IN], self->src.fd));
	EXPECT_EQ(EPERM, enqueue(b[OUT], self->src.r));
	EXPECT_EQ(EPERM, detach(b[OUT], self->src.r));
	ASSERT_EQ(0, attach(b[OUT], self->src.r));
	EXPECT_EQ(EACCES, enqueue(b[IN], self->src.r));
	EXPECT_EQ(EACCES, detach(b[IN], self->src.r));
	EXPECT_EQ(0, detach(b[OUT], self->src.r));
	EXPECT_EQ(EACCES, detach(b[IN], self->src.r));
	EXPECT_EQ(0, detach(b[IN], self->src.rw));
}

/* An output buffer that has not been said to only read */
TEST_F(loopback, output_that_writes)
{
	int *b = self->buffer;
	int fds[] = { self->src.r, self->src.w };
	bool bounces = has_bounce_buffer(self);
	int i, j;

	fill(&self->src, 7);
	for (i = 0; i < 2; i++) {
		for (j = 0; j < 2; j++) {
			EXPECT_EQ(EACCES, attach(b[CLEAR], fds[j]));
			EXPECT_EQ(EACCES, enqueue(b[CLEAR], fds[j]));
			EXPECT_EQ(EACCES, detach(b[CLEAR], fds[j]));
		}
		if (!i)
			ASSERT_EQ(0, attach(b[CLEAR], self->src.fd));
	}
	ASSERT_EQ(0, enable(self, CLEAR));
	EXPECT_EQ(EACCES, enqueue(b[CLEAR], self->src.r));
	EXPECT_EQ(0, samples_not_from(&self->src, 7));

	/* This is why. From a bounce buffer nothing is copied back. */
	ASSERT_EQ(0, enqueue(b[CLEAR], self->src.rw));
	ASSERT_TRUE(idle(self->src.fd));
	if (bounces)
		return;
	EXPECT_EQ(0, self->src.map[0]);
	EXPECT_EQ(0, self->src.map[SIZE / 4 - 1]);
}

TEST_F_TIMEOUT(loopback, cyclic, 300)
{
	int *b = self->buffer;
	int i;

	EXPECT_EQ(EINVAL, enqueue_some(b[IN], self->dst.r, SIZE, CYCLIC));
	ASSERT_EQ(0, start(self, self->src.r));
	EXPECT_EQ(EACCES, enqueue_some(b[OUT], self->src.w, SIZE, CYCLIC));
	fill(&self->src, 8);
	ASSERT_EQ(0, enqueue_some(b[OUT], self->src.r, SIZE, CYCLIC));
	for (i = 0; i < 3; i++) {
		clear(&self->dst);
		ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
		ASSERT_TRUE(idle(self->dst.fd));
		EXPECT_EQ(0, samples_not_from(&self->dst, 8));
		EXPECT_TRUE(busy(self->src.r));
		EXPECT_EQ(EACCES, enqueue(b[OUT], self->src.w));
		EXPECT_EQ(EACCES, detach(b[OUT], self->src.w));
	}
	EXPECT_EQ(0, samples_not_from(&self->src, 8));

	/* Detached while it goes on, which it does until the buffer is off */
	EXPECT_EQ(0, detach(b[OUT], self->src.r));
	EXPECT_TRUE(busy(self->src.r));
	disable(self);
	EXPECT_TRUE(idle(self->src.r));
	EXPECT_EQ(0, samples_not_from(&self->src, 8));
}

/* What is wrong with a request is what it would be for another fd */
TEST_F(loopback, other_errors)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	int *b = self->buffer;
	int fds[] = { self->src.fd, self->src.rw, self->src.r };
	int i;

	for (i = OUT; i < BUFFERS; i++) {
		EXPECT_EQ(EBADF, attach(b[i], -1));
		EXPECT_EQ(EBADF, enqueue(b[i], -1));
		EXPECT_EQ(EBADF, detach(b[i], -1));
		EXPECT_EQ(EBADF, attach(b[i], path));
		EXPECT_EQ(EINVAL, attach(b[i], file));
		EXPECT_EQ(EINVAL, enqueue(b[i], file));
		EXPECT_EQ(EINVAL, detach(b[i], file));
		EXPECT_EQ(EFAULT, call(b[i], IIO_BUFFER_DMABUF_ATTACH_IOCTL, NULL));
	}
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EPERM, enqueue(b[OUT], fds[i]));
		EXPECT_EQ(EPERM, detach(b[OUT], fds[i]));
		EXPECT_EQ(EINVAL, enqueue_some(b[OUT], fds[i], 0, 0));
		EXPECT_EQ(EINVAL, enqueue_some(b[OUT], fds[i], SIZE + 1, 0));
		EXPECT_EQ(EINVAL, enqueue_some(b[OUT], fds[i], SIZE, 1U << 31));
	}
	close(path);
	close(file);
}

/* Enqueued twice. The first transfer goes on, and those who want to write wait for it. */
TEST_F(loopback, enqueued)
{
	ASSERT_EQ(0, start(self, self->src.r));
	ASSERT_EQ(0, enqueue(self->buffer[OUT], self->src.r));
	EXPECT_EQ(EBUSY, enqueue(self->buffer[OUT], self->src.r));
	EXPECT_TRUE(busy(self->src.fd));
	EXPECT_EQ(EACCES, enqueue(self->buffer[OUT], self->src.w));
	ASSERT_EQ(0, enqueue(self->buffer[IN], self->dst.fd));
	EXPECT_TRUE(idle(self->src.fd));
}

/* No call leaves a reference behind */
TEST_F_TIMEOUT(loopback, references, 300)
{
	int src = users(&self->src), dst = users(&self->dst), held, i;
	int *b = self->buffer;

	ASSERT_LT(0, src);
	ASSERT_LT(0, dst);
	ASSERT_EQ(0, start(self, self->src.r));
	held = users(&self->src);
	EXPECT_LT(src, held);
	for (i = 0; i < 10; i++) {
		EXPECT_EQ(EBUSY, attach(b[OUT], self->src.r));
		EXPECT_EQ(EACCES, attach(b[OUT], self->src.w));
		EXPECT_EQ(EACCES, attach(b[IN], self->src.r));
		EXPECT_EQ(EACCES, attach(b[CLEAR], self->src.r));
		EXPECT_EQ(EACCES, enqueue(b[IN], self->dst.r));
		EXPECT_EQ(EACCES, detach(b[IN], self->dst.r));
		EXPECT_EQ(EINVAL, enqueue_some(b[OUT], self->src.r, 0, 0));
		ASSERT_EQ(0, transfer(self, self->src.r));
		EXPECT_EQ(held, users_in_the_end(&self->src, held));
	}

	/* Detached, and by the end of the buffers */
	ASSERT_EQ(0, detach(b[OUT], self->src.r));
	EXPECT_EQ(src, users_in_the_end(&self->src, src));
	ASSERT_EQ(0, attach(b[OUT], self->src.r));
	EXPECT_EQ(held, users(&self->src));
	disable(self);
	close_buffers(self);
	EXPECT_EQ(src, users_in_the_end(&self->src, src));
	EXPECT_EQ(dst, users_in_the_end(&self->dst, dst));
	ASSERT_TRUE(open_buffers(self));
}

TEST_HARNESS_MAIN

// SPDX-License-Identifier: GPL-2.0
/*
 * Output buffers that only read from DMABUFs take those that were derived for
 * reading, and do with them what they do with others. All other buffers refuse
 * them, with EACCES, whatever fd the DMABUF was attached with. And what is enqueued
 * ends, whatever becomes of the buffer.
 *
 * The same buffers are used with read() and write() as well, for which no DMABUF may be
 * attached.
 *
 * Needs the module iio_dmabuf_loopback.
 */
#include <linux/iio/buffer.h>
#include <linux/sync_file.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "../dma-buf/derive/buffer.h"
#include "../fail_nth.h"
#include "../kselftest_harness.h"

#define SIZE	(256 * 1024)
#define CYCLIC	IIO_BUFFER_DMABUF_CYCLIC
#define NO_DERIVE	"no DMA_BUF_IOCTL_DERIVE"
/* What a transfer held is given back by a worker, some time after its end */
#define IDLE_MS		10000
#define USERS_MS	20000
/* A buffer has two blocks for read() or write(). Its length is in samples of 4 bytes. */
#define LENGTH	"2048"
#define BLOCK	4096

/* The buffers of the device: what OUT sends IN receives; CLEAR writes, too */
enum { OUT, IN, CLEAR, BUFFERS };

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

/* 0 if it is not signaled, 1 or a negative error if it is */
static int fence_status(int sync_file)
{
	struct sync_file_info info = { };

	return ioctl(sync_file, SYNC_IOC_FILE_INFO, &info) ? -errno : info.status;
}

static void clear(struct buffer *b)
{
	if (sync_cpu(b->fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_WRITE))
		return;
	memset(b->map, 0, SIZE);
	sync_cpu(b->fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_WRITE);
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
	struct buffer src, dst;
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

static bool derived(FIXTURE_DATA(loopback) *self)
{
	return buffer_derived(&self->src) && buffer_derived(&self->dst);
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
	       idle(self->dst.fd, IDLE_MS) && idle(self->src.fd, IDLE_MS) ? 0 : ETIME;
}

/*
 * For write() to OUT and read() from IN, as long as no DMABUF is attached, which those that
 * were may still be for a moment. They cannot be then. Never blocks.
 */
static bool start_fileio(FIXTURE_DATA(loopback) *self)
{
	int *b = self->buffer, i;

	for (i = 0; i < USERS_MS; i += 100) {
		if (fcntl(b[OUT], F_SETFL, O_NONBLOCK) || fcntl(b[IN], F_SETFL, O_NONBLOCK) ||
		    enable(self, OUT) || enable(self, IN))
			return false;
		if (attach(b[OUT], self->src.fd) == EBUSY && attach(b[IN], self->dst.fd) == EBUSY)
			return true;
		detach(b[OUT], self->src.fd);
		detach(b[IN], self->dst.fd);
		disable(self);
		usleep(100000);
	}
	return false;
}

static int set_lengths(FIXTURE_DATA(loopback) *self, const char *length)
{
	return set(self->device, OUT, "length", length) ?:
	       set(self->device, IN, "length", length);
}

/* Does the device miss what is written without a SYNC? Leaves all buffers off. */
static bool has_bounce_buffer(FIXTURE_DATA(loopback) *self)
{
	bool missed;

	buffer_fill(&self->src, 9);
	missed = !start(self, self->src.fd);
	self->src.map[0] = ~word(0, 9);
	missed = missed && !transfer(self, self->src.fd) &&
		 !buffer_wrong(&self->dst, SIZE, 9);
	disable(self);
	return missed;
}

FIXTURE_SETUP(loopback)
{
	memset(self, 0, sizeof(*self));
	self->device = find_device();
	if (self->device < 0)
		SKIP(return, "no iio_dmabuf_loopback");
	/* A test that was killed may have left them on */
	disable(self);
	ASSERT_TRUE(buffer_alloc(&self->src, SIZE, O_RDWR));
	ASSERT_TRUE(buffer_alloc(&self->dst, SIZE, O_RDWR));
	ASSERT_TRUE(open_buffers(self));
}

FIXTURE_TEARDOWN(loopback)
{
	disable(self);
	close_buffers(self);
	buffer_free(&self->src);
	buffer_free(&self->dst);
}

/* Without derived fds, to know what the others are compared with */
TEST_F(loopback, exported)
{
	ASSERT_EQ(0, start(self, self->src.fd));
	buffer_fill(&self->src, 1);
	ASSERT_EQ(0, transfer(self, self->src.fd));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 1));
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 1));
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.fd));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.fd));
}

/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F(loopback, exported_read_only)
{
	struct buffer own = self->dst;

	ASSERT_TRUE(buffer_alloc(&self->dst, SIZE, O_RDONLY));
	buffer_fill(&self->src, 11);
	ASSERT_EQ(0, start(self, self->src.fd));
	ASSERT_EQ(0, enqueue(self->buffer[OUT], self->src.fd));
	ASSERT_EQ(0, enqueue(self->buffer[IN], self->dst.fd));
	ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 11));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.fd));
	buffer_free(&self->dst);
	self->dst = own;
}

/* The same is received, and nothing is changed that was sent */
TEST_F_TIMEOUT(loopback, read_only, 300)
{
	uint32_t i;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		buffer_fill(&self->src, i);
		ASSERT_EQ(0, transfer(self, self->src.r));
		EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, i));
		EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, i));
	}
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.r));
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 2));
}

TEST_F(loopback, read_write)
{
	if (!derived(self))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->src, 3);
	ASSERT_EQ(0, start(self, self->src.rw));
	ASSERT_EQ(0, transfer(self, self->src.rw));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 3));
	EXPECT_EQ(0, detach(self->buffer[OUT], self->src.rw));
	EXPECT_EQ(0, detach(self->buffer[IN], self->dst.rw));
}

/* Each time it is the fd of the call that counts, and each that suffices will do */
TEST_F_TIMEOUT(loopback, alternating_fds, 300)
{
	int *b = self->buffer;
	int fds[] = { self->src.fd, self->src.r, self->src.rw };
	uint32_t i, j;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		for (j = 0; j < 3; j++) {
			buffer_fill(&self->src, i * 3 + j);
			EXPECT_EQ(EBUSY, attach(b[OUT], fds[j]));
			EXPECT_EQ(EACCES, attach(b[OUT], self->src.w));
			EXPECT_EQ(EACCES, enqueue(b[OUT], self->src.w));
			EXPECT_EQ(EACCES, detach(b[OUT], self->src.w));
			ASSERT_EQ(0, transfer(self, fds[j]));
			EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, i * 3 + j));
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
	if (!derived(self))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, start(self, self->src.r));
	close(self->src.r);
	self->src.r = derive(self->src.rw, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, self->src.r);
	buffer_fill(&self->src, 4);
	ASSERT_EQ(0, transfer(self, self->src.r));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 4));
}

/* Nobody writes by an fd that cannot, whatever was attached by one that can */
TEST_F_TIMEOUT(loopback, input, 300)
{
	int *b = self->buffer;
	int fds[] = { self->dst.r, self->dst.w };
	int i, j;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	for (j = 0; j < 2; j++) {
		EXPECT_EQ(EACCES, attach(b[IN], fds[j]));
		EXPECT_EQ(EACCES, enqueue(b[IN], fds[j]));
		EXPECT_EQ(EACCES, detach(b[IN], fds[j]));
	}

	/* before a bounce buffer gets a copy of it */
	buffer_fill(&self->dst, 5);
	ASSERT_EQ(0, start(self, self->src.r));
	for (i = 0; i < 3; i++) {
		/* there is something to receive */
		buffer_fill(&self->src, 6 + i);
		ASSERT_EQ(0, enqueue(b[OUT], self->src.r));
		for (j = 0; j < 2; j++) {
			EXPECT_EQ(EACCES, attach(b[IN], fds[j]));
			EXPECT_EQ(EACCES, enqueue(b[IN], fds[j]));
			EXPECT_EQ(EACCES, detach(b[IN], fds[j]));
		}
		EXPECT_TRUE(busy(self->src.fd));
		EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 5 + i));
		/* and the attachment is still there */
		ASSERT_EQ(0, enqueue(b[IN], i ? self->dst.rw : self->dst.fd));
		ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
		EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 6 + i));
	}
}

/* In an output buffer and an input buffer at once, each has its own attachment */
TEST_F(loopback, both_directions)
{
	int *b = self->buffer;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
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

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->src, 7);
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
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 7));

	/* This is why. From a bounce buffer nothing is copied back. */
	ASSERT_EQ(0, enqueue(b[CLEAR], self->src.rw));
	ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
	if (bounces)
		return;
	EXPECT_EQ(0, self->src.map[0]);
	EXPECT_EQ(0, self->src.map[SIZE / 4 - 1]);
}

TEST_F_TIMEOUT(loopback, cyclic, 300)
{
	int *b = self->buffer;
	int i;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	EXPECT_EQ(EINVAL, enqueue_some(b[IN], self->dst.r, SIZE, CYCLIC));
	ASSERT_EQ(0, start(self, self->src.r));
	EXPECT_EQ(EACCES, enqueue_some(b[OUT], self->src.w, SIZE, CYCLIC));
	buffer_fill(&self->src, 8);
	ASSERT_EQ(0, enqueue_some(b[OUT], self->src.r, SIZE, CYCLIC));
	for (i = 0; i < 3; i++) {
		clear(&self->dst);
		ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
		ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
		EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 8));
		EXPECT_TRUE(busy(self->src.r));
		EXPECT_EQ(EACCES, enqueue(b[OUT], self->src.w));
		EXPECT_EQ(EACCES, detach(b[OUT], self->src.w));
	}
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 8));

	/* Detached while it goes on, which it does until the buffer is off */
	EXPECT_EQ(0, detach(b[OUT], self->src.r));
	EXPECT_TRUE(busy(self->src.r));
	disable(self);
	EXPECT_TRUE(idle(self->src.r, IDLE_MS));
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 8));
}

/* What is wrong with a request is what it would be for another fd */
TEST_F(loopback, other_errors)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	int *b = self->buffer;
	int fds[] = { self->src.fd, self->src.rw, self->src.r };
	int i;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
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
	if (!derived(self))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, start(self, self->src.r));
	ASSERT_EQ(0, enqueue(self->buffer[OUT], self->src.r));
	EXPECT_EQ(EBUSY, enqueue(self->buffer[OUT], self->src.r));
	EXPECT_TRUE(busy(self->src.fd));
	EXPECT_EQ(EACCES, enqueue(self->buffer[OUT], self->src.w));
	ASSERT_EQ(0, enqueue(self->buffer[IN], self->dst.fd));
	EXPECT_TRUE(idle(self->src.fd, IDLE_MS));
}

/*
 * What waits for the buffer to be on does so also while others are attached. Enabling one
 * buffer ends what runs in the others.
 */
TEST_F_TIMEOUT(loopback, enqueued_while_off, 300)
{
	int *b = self->buffer;
	struct buffer other;

	ASSERT_TRUE(buffer_alloc(&other, SIZE, O_RDWR));
	buffer_fill(&self->src, 12);
	ASSERT_EQ(0, attach(b[OUT], self->src.fd));
	ASSERT_EQ(0, attach(b[IN], self->dst.fd));

	ASSERT_EQ(0, enqueue(b[OUT], self->src.fd));
	ASSERT_EQ(0, attach(b[OUT], other.fd));
	EXPECT_EQ(EPERM, enqueue(b[OUT], self->src.fd));
	ASSERT_EQ(0, enable(self, IN));
	ASSERT_EQ(0, enable(self, OUT));
	EXPECT_TRUE(busy(self->src.fd));
	ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
	ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
	ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 12));

	disable(self);
	clear(&self->dst);
	ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
	ASSERT_EQ(0, attach(b[IN], other.fd));
	ASSERT_EQ(0, enable(self, OUT));
	ASSERT_EQ(0, enable(self, IN));
	EXPECT_TRUE(busy(self->dst.fd));
	ASSERT_EQ(0, enqueue(b[OUT], self->src.fd));
	ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
	ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 12));
	buffer_free(&other);
}

/* And not longer than somebody could want it */
TEST_F_TIMEOUT(loopback, cancelled, 300)
{
	int src = users(self->src.fd), dst = users(self->dst.fd), fence, i;
	int *b = self->buffer;

	ASSERT_LT(0, src);
	for (i = 0; i < BUFFERS; i++) {
		ASSERT_EQ(0, attach(b[i], self->src.fd));
		ASSERT_EQ(0, enqueue(b[i], self->src.fd));
		fence = export_sync_file(self->src.fd, DMA_BUF_SYNC_WRITE);
		ASSERT_LE(0, fence);
		EXPECT_EQ(0, fence_status(fence));
		EXPECT_EQ(0, detach(b[i], self->src.fd));
		ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
		EXPECT_EQ(-ECANCELED, fence_status(fence));
		EXPECT_EQ(EPERM, enqueue(b[i], self->src.fd));
		EXPECT_EQ(src, users_become(self->src.fd, src, USERS_MS));
		close(fence);
	}

	ASSERT_EQ(0, attach(b[OUT], self->src.fd));
	ASSERT_EQ(0, attach(b[IN], self->dst.fd));
	ASSERT_EQ(0, enqueue(b[OUT], self->src.fd));
	ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
	EXPECT_TRUE(busy(self->src.fd));
	close_buffers(self);
	ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
	ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
	EXPECT_EQ(src, users_become(self->src.fd, src, USERS_MS));
	EXPECT_EQ(dst, users_become(self->dst.fd, dst, USERS_MS));

	/* The buffers are as good as before */
	ASSERT_TRUE(open_buffers(self));
	buffer_fill(&self->src, 14);
	ASSERT_EQ(0, start(self, self->src.fd));
	ASSERT_EQ(0, transfer(self, self->src.fd));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 14));
}

/* What cannot be started is said so, and can be enqueued again */
TEST_F_TIMEOUT(loopback, second_cyclic, 300)
{
	int *b = self->buffer, fence;
	struct buffer other;

	ASSERT_TRUE(buffer_alloc(&other, SIZE, O_RDWR));
	buffer_fill(&other, 13);
	ASSERT_EQ(0, start(self, self->src.fd));
	ASSERT_EQ(0, attach(b[OUT], other.fd));
	ASSERT_EQ(0, enqueue_some(b[OUT], self->src.fd, SIZE, CYCLIC));
	EXPECT_EQ(EBUSY, enqueue_some(b[OUT], other.fd, SIZE, CYCLIC));
	EXPECT_TRUE(idle(other.fd, IDLE_MS));
	EXPECT_TRUE(busy(self->src.fd));
	ASSERT_EQ(0, enqueue(b[OUT], other.fd));
	ASSERT_EQ(0, enqueue(b[IN], self->dst.fd));
	ASSERT_TRUE(idle(self->dst.fd, IDLE_MS));
	EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 13));
	ASSERT_TRUE(idle(self->src.fd, IDLE_MS));
	ASSERT_TRUE(idle(other.fd, IDLE_MS));

	/* The fence says so, if it was enqueued before */
	disable(self);
	ASSERT_EQ(0, enqueue_some(b[OUT], self->src.fd, SIZE, CYCLIC));
	ASSERT_EQ(0, enqueue_some(b[OUT], other.fd, SIZE, CYCLIC));
	fence = export_sync_file(other.fd, DMA_BUF_SYNC_WRITE);
	ASSERT_LE(0, fence);
	ASSERT_EQ(0, enable(self, OUT));
	EXPECT_TRUE(idle(other.fd, IDLE_MS));
	EXPECT_EQ(-EBUSY, fence_status(fence));
	EXPECT_TRUE(busy(self->src.fd));
	EXPECT_EQ(0, enqueue(b[OUT], other.fd));
	close(fence);
	disable(self);
	EXPECT_TRUE(idle(self->src.fd, IDLE_MS));
	EXPECT_TRUE(idle(other.fd, IDLE_MS));
	buffer_free(&other);
}

/* The DMABUF is detached while ENQUEUE, which has found it, waits for another transfer */
TEST_F_TIMEOUT(loopback, detached_meanwhile, 300)
{
	int users_before = users(self->src.fd), status;
	int *b = self->buffer;
	pid_t child;

	ASSERT_EQ(0, attach(b[OUT], self->src.fd));
	ASSERT_EQ(0, attach(b[IN], self->src.fd));
	ASSERT_EQ(0, enqueue(b[OUT], self->src.fd));
	child = fork();
	if (!child)
		_exit(enqueue(b[IN], self->src.fd));
	/* It waits for 5 seconds */
	sleep(1);
	EXPECT_EQ(0, detach(b[IN], self->src.fd));
	EXPECT_EQ(0, detach(b[OUT], self->src.fd));
	ASSERT_EQ(child, waitpid(child, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(EBUSY, WEXITSTATUS(status));
	EXPECT_TRUE(idle(self->src.fd, IDLE_MS));
	EXPECT_EQ(users_before, users_become(self->src.fd, users_before, USERS_MS));
}

/* What write() sends read() receives, in pieces of any size, and whatever was before */
TEST_F_TIMEOUT(loopback, fileio, 300)
{
	uint32_t sent[3 * BLOCK / 4], got[3 * BLOCK / 4];
	char *in = (char *)sent, *out = (char *)got;
	int *b = self->buffer;
	ssize_t ret, n;
	int i;

	ASSERT_EQ(0, set_lengths(self, LENGTH));
	for (i = 0; i < 4; i++) {
		ASSERT_TRUE(start_fileio(self));
		fill_words(sent, sizeof(sent), 15 + i);
		ASSERT_EQ(100, write(b[OUT], in, 100));
		ASSERT_EQ(sizeof(sent) - 100, write(b[OUT], in + 100, sizeof(sent) - 100));
		for (n = 0; n < sizeof(got); n += ret) {
			ret = read(b[IN], out + n, n ? sizeof(got) - n : 1000);
			ASSERT_LT(0, ret);
		}
		EXPECT_EQ(0, wrong_bytes(got, sizeof(got), 15 + i));
		EXPECT_EQ(-1, read(b[IN], out, BLOCK));
		EXPECT_EQ(EAGAIN, errno);
		disable(self);
	}
}

struct writer {
	pthread_t thread;
	int buffer;
	void *data;
	ssize_t ret;
};

static void *write_block(void *arg)
{
	struct writer *w = arg;

	w->ret = write(w->buffer, w->data, BLOCK);
	return NULL;
}

/* write() waits for a page of its data. Others do not wait for that, and can free the block. */
TEST_F_TIMEOUT(loopback, fileio_fault, 120)
{
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct pollfd fault = { .fd = uffd, .events = POLLIN };
	struct writer w = { .buffer = self->buffer[OUT] };
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_zeropage zero = { };

	if (uffd < 0)
		SKIP(return, "no userfaultfd");
	reg.range.len = getpagesize();
	w.data = mmap(NULL, reg.range.len, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, w.data);
	reg.range.start = (uintptr_t)w.data;
	zero.range = reg.range;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_API, &api));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));

	ASSERT_EQ(0, set_lengths(self, LENGTH));
	ASSERT_TRUE(start_fileio(self));
	ASSERT_EQ(0, pthread_create(&w.thread, NULL, write_block, &w));
	ASSERT_EQ(1, poll(&fault, 1, IDLE_MS));
	EXPECT_EQ(EBUSY, attach(w.buffer, self->src.fd));
	disable(self);
	EXPECT_EQ(0, attach(w.buffer, self->src.fd));
	EXPECT_EQ(0, ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	ASSERT_EQ(0, pthread_join(w.thread, NULL));
	EXPECT_EQ(BLOCK, w.ret);
	EXPECT_EQ(0, detach(w.buffer, self->src.fd));
	close(uffd);
}

static bool dma_debug(void)
{
	int fd = open("/sys/kernel/debug/dma-api/disabled", O_RDONLY | O_CLOEXEC);
	char disabled = 'Y';

	if (fd >= 0 && read(fd, &disabled, 1) != 1)
		disabled = 'Y';
	close(fd);
	return disabled == 'N';
}

/* A buffer that could not be enabled is off, and as good as before */
TEST_F_TIMEOUT(loopback, enable_fails, 600)
{
	static const char * const lengths[] = { LENGTH, "8192" };
	int buffer, nth, ret;
	bool left;

	/* They are off for good once they cannot allocate something */
	if (dma_debug())
		SKIP(return, "the checks of the DMA API would be lost");
	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (buffer = OUT; buffer <= IN; buffer++) {
		left = false;
		for (nth = 1; !left; nth++) {
			/* There are blocks, of another size than those to come */
			ASSERT_EQ(0, set_lengths(self, lengths[nth % 2]));
			ASSERT_TRUE(start_fileio(self));
			disable(self);
			ASSERT_EQ(0, set_lengths(self, lengths[(nth + 1) % 2]));
			fail_nth(nth);
			ret = set(self->device, buffer, "enable", "1");
			left = fail_nth_left();
			if (!ret) {
				disable(self);
				continue;
			}
			EXPECT_TRUE(ret == ENOMEM || ret == EFAULT);
			EXPECT_EQ(0, attach(self->buffer[buffer], self->src.fd));
			EXPECT_EQ(0, detach(self->buffer[buffer], self->src.fd));
		}
		EXPECT_EQ(0, ret);
	}
	fail_nth_restore();
}

/* The CPU finds nothing in a buffer that is used with DMABUFs */
TEST_F(loopback, nothing_to_read)
{
	char data[64];

	ASSERT_EQ(0, start(self, self->src.fd));
	ASSERT_EQ(0, fcntl(self->buffer[IN], F_SETFL, O_NONBLOCK));
	EXPECT_EQ(-1, read(self->buffer[IN], data, sizeof(data)));
	EXPECT_EQ(EAGAIN, errno);
}

/* No call leaves a reference behind */
TEST_F_TIMEOUT(loopback, references, 300)
{
	int src = users(self->src.fd), dst = users(self->dst.fd), held, i;
	int *b = self->buffer;

	if (!derived(self))
		SKIP(return, NO_DERIVE);
	ASSERT_LT(0, src);
	ASSERT_LT(0, dst);
	ASSERT_EQ(0, start(self, self->src.r));
	held = users(self->src.fd);
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
		EXPECT_EQ(held, users_become(self->src.fd, held, USERS_MS));
	}

	/* Detached, and by the end of the buffers */
	ASSERT_EQ(0, detach(b[OUT], self->src.r));
	EXPECT_EQ(src, users_become(self->src.fd, src, USERS_MS));
	ASSERT_EQ(0, attach(b[OUT], self->src.r));
	EXPECT_EQ(held, users(self->src.fd));
	disable(self);
	close_buffers(self);
	EXPECT_EQ(src, users_become(self->src.fd, src, USERS_MS));
	EXPECT_EQ(dst, users_become(self->dst.fd, dst, USERS_MS));
	ASSERT_TRUE(open_buffers(self));
}

TEST_HARNESS_MAIN

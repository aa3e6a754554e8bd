// SPDX-License-Identifier: GPL-2.0
/*
 * Endpoints of functionfs that send take dma-bufs that were derived for reading;
 * those that receive refuse them, with EACCES, whatever fd of the buffer was
 * attached before. What is sent arrives at the host, and the other way round.
 */
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

#include <linux/sync_file.h>

#include "../../../dma-buf/derive/buffer.h"
#include "../../../kselftest_harness.h"
#include "gadget.h"

/* No power of two, so that the system heap allocates more than one piece */
#define SIZE	(92 * 1024)
#define LONG	5000	/* ms that nothing takes */
#define SHORT	300	/* ms that something is waited for that does not come */
#define TIMEOUT	120	/* s of a test: the host alone may take 20 to see the device */
/* Tests that use derived fds are skipped without it; the others are for any kernel */
#define NO_DERIVE	"no DMA_BUF_IOCTL_DERIVE"

static int attach(int ep, int fd)
{
	return ioctl(ep, FUNCTIONFS_DMABUF_ATTACH, &fd) ? errno : 0;
}

static int detach(int ep, int fd)
{
	return ioctl(ep, FUNCTIONFS_DMABUF_DETACH, &fd) ? errno : 0;
}

static int transfer(int ep, int fd, uint64_t len)
{
	struct usb_ffs_dmabuf_transfer_req req = { .fd = fd, .length = len };

	return ioctl(ep, FUNCTIONFS_DMABUF_TRANSFER, &req) ? errno : 0;
}

/* A transfer by a thread, as it may have to wait */
struct waiting {
	pthread_t thread;
	int ep, fd, ret;
};

static void *waiting_transfer(void *arg)
{
	struct waiting *w = arg;

	w->ret = transfer(w->ep, w->fd, SIZE);
	return NULL;
}

/* The call is what has the buffer as well when this returns */
static int waiting_start(struct waiting *w, int ep, int fd)
{
	int held = users(fd), ret;

	w->ep = ep;
	w->fd = fd;
	ret = pthread_create(&w->thread, NULL, waiting_transfer, w);
	if (ret)
		return ret;
	return users_become(fd, held + 1, LONG) == held + 1 ? 0 : ETIMEDOUT;
}

static int waiting_end(struct waiting *w)
{
	return pthread_join(w->thread, NULL) ?: w->ret;
}

/* Something else is busy with the buffer, until what is returned is closed */
static int busy_start(int fd)
{
	struct {
		uint32_t value;
		char name[32];
		int32_t fence;
	} fence = { .value = 1, .name = "busy" };
	struct dma_buf_import_sync_file arg = { .flags = DMA_BUF_SYNC_WRITE };
	int timeline = open("/sys/kernel/debug/sync/sw_sync", O_RDWR | O_CLOEXEC);

	if (timeline < 0)
		return -1;
	if (ioctl(timeline, _IOWR('W', 0, fence), &fence)) {
		close(timeline);
		return -1;
	}
	arg.fd = fence.fence;
	if (ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg)) {
		close(timeline);
		timeline = -1;
	}
	close(fence.fence);
	return timeline;
}

/* 0 if it is pending, 1 if it has ended, or the error that it has ended with */
static int fence_status(int sync_file)
{
	struct sync_fence_info fence = {};
	struct sync_file_info info = {
		.num_fences = 1,
		.sync_fence_info = (uintptr_t)&fence,
	};

	return ioctl(sync_file, SYNC_IOC_FILE_INFO, &info) ? -errno : fence.status;
}

FIXTURE(ffs) {
	struct gadget g;
	struct buffer buf;
	uint32_t host[SIZE / 4];
};

FIXTURE_SETUP(ffs)
{
	int ret;

	memset(&self->buf, 0, sizeof(self->buf));
	ret = gadget_start(&self->g);
	if (ret == ENODEV) {
		gadget_stop(&self->g);
		SKIP(return, "no " UDC ", or no functionfs for it");
	}
	ASSERT_EQ(0, ret)
		gadget_stop(&self->g);
	ASSERT_TRUE(buffer_alloc(&self->buf, SIZE, O_RDWR))
		gadget_stop(&self->g);

	ret = attach(self->g.in, self->buf.fd);
	if (ret == EPERM) {
		gadget_stop(&self->g);
		SKIP(return, UDC " does not support scatterlists");
	}
	ASSERT_EQ(0, ret)
		gadget_stop(&self->g);
	ASSERT_EQ(0, detach(self->g.in, self->buf.fd))
		gadget_stop(&self->g);
}

FIXTURE_TEARDOWN(ffs)
{
	gadget_stop(&self->g);
	buffer_free(&self->buf);
}

static int ended(FIXTURE_DATA(ffs) *self)
{
	return idle(self->buf.fd, LONG) ? 0 : ETIMEDOUT;
}

/* The host gets the data of seed from a transfer that was started */
static int is_sent(FIXTURE_DATA(ffs) *self, size_t len, uint32_t seed)
{
	size_t got = len;
	int ret;

	memset(self->host, 0, SIZE);
	ret = host_bulk(&self->g, self->g.in_addr, self->host, &got, LONG);
	if (ret)
		return ret;
	return got == len && !wrong_bytes(self->host, len, seed) ? 0 : EBADMSG;
}

/* The buffer, which holds the data of seed, arrives at the host */
static int sends(FIXTURE_DATA(ffs) *self, int fd, size_t len, uint32_t seed)
{
	return transfer(self->g.in, fd, len) ?: is_sent(self, len, seed) ?:
	       ended(self);
}

/* The host sends the data of seed to a transfer that was started */
static int arrives(FIXTURE_DATA(ffs) *self, size_t len, uint32_t seed)
{
	size_t got = len;
	int ret;

	fill_words(self->host, SIZE, seed);
	ret = host_bulk(&self->g, self->g.out_addr, self->host, &got, LONG) ?:
	      ended(self);
	if (ret)
		return ret;
	return got == len && !buffer_wrong(&self->buf, len, seed) ? 0 : EBADMSG;
}

static int receives(FIXTURE_DATA(ffs) *self, int fd, size_t len, uint32_t seed)
{
	return transfer(self->g.out, fd, len) ?: arrives(self, len, seed);
}

/* There is nothing that takes what the host sends */
static int arrives_not(FIXTURE_DATA(ffs) *self)
{
	size_t len = 512;

	memset(self->host, 0xff, SIZE);
	return host_bulk(&self->g, self->g.out_addr, self->host, &len, SHORT);
}

/* The same with each fd that may be read */
TEST_F_TIMEOUT(ffs, in, TIMEOUT)
{
	int fds[] = { self->buf.fd, self->buf.rw, self->buf.r }, i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, attach(self->g.in, fds[i]));
		buffer_fill(&self->buf, i);
		EXPECT_EQ(0, sends(self, fds[i], SIZE, i));
		EXPECT_EQ(0, sends(self, fds[i], SIZE, i));
		EXPECT_EQ(0, detach(self->g.in, fds[i]));
		EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, i));
	}
}

/*
 * From what fits into a FIFO to what ends in the middle of a packet, of a page,
 * or of a segment
 */
TEST_F_TIMEOUT(ffs, in_lengths, TIMEOUT)
{
	size_t len[] = { 1, 64, 65, 511, 512, 4096, 4097, 65536, 65537, 69632, SIZE - 1 };
	unsigned int i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->buf, 7);
	ASSERT_EQ(0, attach(self->g.in, self->buf.r));
	for (i = 0; i < ARRAY_SIZE(len); i++) {
		EXPECT_EQ(0, sends(self, self->buf.r, len[i], 7))
			TH_LOG("%zu bytes", len[i]);
	}
	EXPECT_EQ(EINVAL, transfer(self->g.in, self->buf.r,
				   lseek(self->buf.fd, 0, SEEK_END) + 1));
	EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, 7));
}

/*
 * Transfers of one buffer that are queued at once: it is busy until all have
 * ended, also if more are refused meanwhile
 */
TEST_F_TIMEOUT(ffs, in_queued, TIMEOUT)
{
	int i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->buf, 100);
	ASSERT_EQ(0, attach(self->g.in, self->buf.r));
	for (i = 0; i < 5; i++) {
		EXPECT_FALSE(busy(self->buf.fd));
		ASSERT_EQ(0, transfer(self->g.in, self->buf.r, SIZE));
		ASSERT_EQ(0, transfer(self->g.in, self->buf.fd, 4097));
		EXPECT_TRUE(busy(self->buf.fd));
		EXPECT_EQ(EINVAL, transfer(self->g.in, self->buf.r, 0));
		EXPECT_EQ(EACCES, transfer(self->g.in, self->buf.w, SIZE));
		EXPECT_TRUE(busy(self->buf.fd));
		EXPECT_EQ(0, is_sent(self, SIZE, 100));
		EXPECT_TRUE(busy(self->buf.fd));
		EXPECT_EQ(0, is_sent(self, 4097, 100));
		EXPECT_EQ(0, ended(self));
	}
}

TEST_F_TIMEOUT(ffs, out, TIMEOUT)
{
	int fds[] = { self->buf.fd, self->buf.rw }, i, before = users(self->buf.fd);

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	EXPECT_EQ(EACCES, attach(self->g.out, self->buf.r));
	EXPECT_EQ(EACCES, attach(self->g.out, self->buf.w));
	EXPECT_EQ(EPERM, transfer(self->g.out, self->buf.fd, SIZE));
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, attach(self->g.out, fds[i]));
		buffer_fill(&self->buf, 0);
		EXPECT_EQ(0, receives(self, fds[i], SIZE, 10 + i));
		EXPECT_EQ(0, detach(self->g.out, fds[i]));
		EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
	}
}

/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F_TIMEOUT(ffs, exported_read_only, TIMEOUT)
{
	struct buffer own = self->buf;

	ASSERT_TRUE(buffer_alloc(&self->buf, SIZE, O_RDONLY));
	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	EXPECT_EQ(0, receives(self, self->buf.fd, SIZE, 15));
	EXPECT_EQ(0, detach(self->g.out, self->buf.fd));
	buffer_free(&self->buf);
	self->buf = own;
}

/*
 * What ends in a later segment, and what follows stays. It is attached after it
 * was filled: a bounce buffer for receiving has what was there then.
 */
TEST_F_TIMEOUT(ffs, out_lengths, TIMEOUT)
{
	size_t len[] = { 512, 65536, 65537, 69632, SIZE - 1 };
	int before = users(self->buf.fd);
	unsigned int i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	for (i = 0; i < ARRAY_SIZE(len); i++) {
		buffer_fill(&self->buf, 90);
		ASSERT_EQ(0, attach(self->g.out, self->buf.rw));
		EXPECT_EQ(0, receives(self, self->buf.rw, len[i], 91 + i))
			TH_LOG("%zu bytes", len[i]);
		EXPECT_EQ(buffer_wrong(&self->buf, len[i], 90),
			  buffer_wrong(&self->buf, SIZE, 90));
		EXPECT_EQ(0, detach(self->g.out, self->buf.rw));
		EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
	}
}

/* What was attached for writing is not for the holder of another fd */
TEST_F_TIMEOUT(ffs, out_attached, TIMEOUT)
{
	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->buf, 20);
	ASSERT_EQ(0, attach(self->g.out, self->buf.rw));
	EXPECT_EQ(EACCES, attach(self->g.out, self->buf.r));
	EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.r, SIZE));
	EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.w, SIZE));
	EXPECT_EQ(ETIMEDOUT, arrives_not(self));
	EXPECT_EQ(EACCES, detach(self->g.out, self->buf.r));
	EXPECT_EQ(EACCES, detach(self->g.out, self->buf.w));
	EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, 20));

	EXPECT_EQ(0, receives(self, self->buf.fd, SIZE, 21));
	EXPECT_EQ(0, detach(self->g.out, self->buf.rw));
}

/* Nor is a transfer that was started */
TEST_F_TIMEOUT(ffs, out_started, TIMEOUT)
{
	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	buffer_fill(&self->buf, 30);
	ASSERT_EQ(0, transfer(self->g.out, self->buf.fd, SIZE));
	EXPECT_EQ(EACCES, detach(self->g.out, self->buf.r));
	EXPECT_EQ(0, arrives(self, SIZE, 31));
}

/* One buffer for both endpoints: what it is attached to counts for itself */
TEST_F_TIMEOUT(ffs, both, TIMEOUT)
{
	int i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	ASSERT_EQ(0, attach(self->g.in, self->buf.r));
	EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.r, SIZE));
	EXPECT_EQ(EPERM, transfer(self->g.out, self->buf.fd, SIZE));
	ASSERT_EQ(0, attach(self->g.out, self->buf.rw));
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, receives(self, self->buf.rw, SIZE, 40 + i));
		/* A bounce buffer of the other endpoint is filled by this only */
		sync_cpu(self->buf.fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW);
		sync_cpu(self->buf.fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW);
		EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.r, SIZE));
		EXPECT_EQ(0, sends(self, self->buf.r, SIZE, 40 + i));
		EXPECT_EQ(ETIMEDOUT, arrives_not(self));
		EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, 40 + i));
	}
	EXPECT_EQ(0, detach(self->g.in, self->buf.r));
	EXPECT_EQ(EACCES, detach(self->g.out, self->buf.r));
	EXPECT_EQ(0, receives(self, self->buf.rw, SIZE, 50));
}

/* Without dma-bufs: long enough for functionfs to make scatterlists of its own */
TEST_F_TIMEOUT(ffs, plain, TIMEOUT)
{
	size_t in = SIZE, out = SIZE;
	int status, ret;
	pid_t pid;

	fill_words(self->host, SIZE, 90);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (write(self->g.in, self->host, SIZE) != SIZE ||
		    read(self->g.out, self->host, SIZE) != SIZE)
			_exit(1);
		_exit(wrong_bytes(self->host, SIZE, 91) ? 2 : 0);
	}
	memset(self->host, 0, SIZE);
	ret = host_bulk(&self->g, self->g.in_addr, self->host, &in, LONG);
	EXPECT_EQ(0, ret);
	EXPECT_EQ(SIZE, in);
	EXPECT_EQ(0, wrong_bytes(self->host, SIZE, 90));
	fill_words(self->host, SIZE, 91);
	ret = ret ?: host_bulk(&self->g, self->g.out_addr, self->host, &out, LONG);
	EXPECT_EQ(0, ret);
	EXPECT_EQ(SIZE, out);
	/* The child waits for what has not come */
	if (ret)
		kill(pid, SIGKILL);
	EXPECT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* It is the fd of each call that counts */
TEST_F_TIMEOUT(ffs, in_alternating_fds, TIMEOUT)
{
	int fds[] = { self->buf.r, self->buf.fd, self->buf.rw }, i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->buf, 60);
	for (i = 0; i < 9; i++) {
		EXPECT_EQ(EACCES, attach(self->g.in, self->buf.w));
		ASSERT_EQ(0, attach(self->g.in, fds[i % 3]));
		EXPECT_EQ(EACCES, transfer(self->g.in, self->buf.w, SIZE));
		EXPECT_EQ(0, sends(self, fds[(i + 1) % 3], SIZE, 60));
		EXPECT_EQ(EACCES, detach(self->g.in, self->buf.w));
		EXPECT_EQ(0, sends(self, fds[i % 3], SIZE, 60));
		EXPECT_EQ(0, detach(self->g.in, fds[(i + i / 3) % 3]));
		EXPECT_EQ(EPERM, detach(self->g.in, fds[i % 3]));
	}
	EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, 60));
}

/* Endpoints that were disabled and enabled are what they were */
TEST_F_TIMEOUT(ffs, reconfigured, TIMEOUT)
{
	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	buffer_fill(&self->buf, 70);
	ASSERT_EQ(0, attach(self->g.in, self->buf.r));
	ASSERT_EQ(0, attach(self->g.out, self->buf.rw));
	ASSERT_EQ(0, release(&self->g));
	ASSERT_EQ(0, set_configuration(&self->g, -1));
	ASSERT_EQ(0, set_configuration(&self->g, 1));
	ASSERT_EQ(0, claim(&self->g));

	EXPECT_EQ(0, sends(self, self->buf.r, SIZE, 70));
	EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.r, SIZE));
	EXPECT_EQ(ETIMEDOUT, arrives_not(self));
	EXPECT_EQ(0, buffer_wrong(&self->buf, SIZE, 70));
	EXPECT_EQ(0, receives(self, self->buf.rw, SIZE, 71));
}

/* Another fd than one of a dma-buf that is attached, or a wrong length */
TEST_F_TIMEOUT(ffs, errors, TIMEOUT)
{
	uint64_t beyond = lseek(self->buf.fd, 0, SEEK_END) + 1;
	int file = open("/dev/null", O_RDWR | O_CLOEXEC), i;
	int ep[] = { self->g.in, self->g.out };

	for (i = 0; i < 2; i++) {
		EXPECT_EQ(EINVAL, attach(ep[i], file));
		EXPECT_EQ(EINVAL, transfer(ep[i], file, SIZE));
		EXPECT_EQ(EINVAL, detach(ep[i], file));
		EXPECT_EQ(EBADF, attach(ep[i], -1));
		EXPECT_EQ(EPERM, detach(ep[i], self->buf.fd));
		ASSERT_EQ(0, attach(ep[i], self->buf.fd));
		EXPECT_EQ(EINVAL, transfer(ep[i], self->buf.fd, 0));
		EXPECT_EQ(EINVAL, transfer(ep[i], self->buf.fd, beyond));
	}
	close(file);
}

/* No call leaves a reference behind, and none takes one away */
TEST_F_TIMEOUT(ffs, references, TIMEOUT)
{
	int before = users(self->buf.fd), held, i;

	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 80);
	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, attach(self->g.in, self->buf.r));
		ASSERT_EQ(0, attach(self->g.out, self->buf.rw));
		held = users(self->buf.fd);
		EXPECT_LT(before, held);
		EXPECT_EQ(EACCES, attach(self->g.in, self->buf.w));
		EXPECT_EQ(EACCES, attach(self->g.out, self->buf.r));
		EXPECT_EQ(EACCES, transfer(self->g.in, self->buf.w, SIZE));
		EXPECT_EQ(EACCES, transfer(self->g.out, self->buf.r, SIZE));
		EXPECT_EQ(EACCES, detach(self->g.in, self->buf.w));
		EXPECT_EQ(EACCES, detach(self->g.out, self->buf.r));
		EXPECT_EQ(EINVAL, transfer(self->g.in, self->buf.r, 0));
		EXPECT_EQ(0, sends(self, self->buf.r, SIZE, 80));
		EXPECT_EQ(held, users_become(self->buf.fd, held, LONG));
		EXPECT_EQ(0, detach(self->g.in, self->buf.r));
		EXPECT_EQ(0, detach(self->g.out, self->buf.rw));
		EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
	}

	/* The endpoint lets go of what was not detached, and of what was started */
	ASSERT_EQ(0, attach(self->g.in, self->buf.r));
	ASSERT_EQ(0, transfer(self->g.in, self->buf.r, SIZE));
	close(self->g.in);
	self->g.in = -1;
	EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
}

/* All that is pending ends when the buffer is detached, or the endpoint closed */
TEST_F_TIMEOUT(ffs, cancelled, TIMEOUT)
{
	int before = users(self->buf.fd), i, j;
	size_t len = 512;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, attach(self->g.in, self->buf.fd));
		for (j = 0; j < 300; j++)
			ASSERT_EQ(0, transfer(self->g.in, self->buf.fd, j % 2 ? 4097 : SIZE));
		EXPECT_TRUE(busy(self->buf.fd));
		if (i) {
			close(self->g.in);
			self->g.in = -1;
		} else {
			EXPECT_EQ(0, detach(self->g.in, self->buf.fd));
		}
		EXPECT_EQ(0, ended(self));
		EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
		EXPECT_EQ(ETIMEDOUT, host_bulk(&self->g, self->g.in_addr,
					       self->host, &len, SHORT));
	}
}

/* Who waits for somebody else keeps nobody from the buffer meanwhile */
TEST_F_TIMEOUT(ffs, waits_unlocked, TIMEOUT)
{
	struct waiting w[3];
	int timeline, i;
	time_t start;

	if (access("/sys/kernel/debug/sync/sw_sync", F_OK))
		SKIP(return, "no sw_sync");
	buffer_fill(&self->buf, 110);
	ASSERT_EQ(0, attach(self->g.in, self->buf.fd));
	timeline = busy_start(self->buf.fd);
	ASSERT_LE(0, timeline);
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, waiting_start(&w[i], self->g.in, self->buf.fd));
	usleep(SHORT * 1000);

	start = time(NULL);
	EXPECT_EQ(0, attach(self->g.out, self->buf.fd));
	EXPECT_EQ(0, detach(self->g.out, self->buf.fd));
	EXPECT_GT(3, time(NULL) - start);

	close(timeline);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, waiting_end(&w[i]));
		EXPECT_EQ(0, is_sent(self, SIZE, 110));
	}
	EXPECT_EQ(0, ended(self));
}

/* One that waits for another to end is not started when the buffer is detached */
TEST_F_TIMEOUT(ffs, detached_meanwhile, TIMEOUT)
{
	int before = users(self->buf.fd);
	struct waiting w;

	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	ASSERT_EQ(0, transfer(self->g.out, self->buf.fd, SIZE));
	ASSERT_EQ(0, waiting_start(&w, self->g.out, self->buf.fd));
	EXPECT_EQ(0, detach(self->g.out, self->buf.fd));
	EXPECT_NE(0, waiting_end(&w));
	EXPECT_EQ(0, ended(self));
	EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
	EXPECT_EQ(ETIMEDOUT, arrives_not(self));
}

/* The fence of a transfer is there for longer than what it was made for */
TEST_F_TIMEOUT(ffs, sync_file, TIMEOUT)
{
	int before = users(self->buf.fd), file, i;

	buffer_fill(&self->buf, 120);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, attach(self->g.in, self->buf.fd));
		ASSERT_EQ(0, transfer(self->g.in, self->buf.fd, SIZE));
		file = export_sync_file(self->buf.fd, DMA_BUF_SYNC_WRITE);
		ASSERT_LE(0, file);
		EXPECT_EQ(0, fence_status(file));
		if (i) {
			EXPECT_EQ(0, is_sent(self, SIZE, 120));
			EXPECT_EQ(0, ended(self));
		}
		EXPECT_EQ(0, detach(self->g.in, self->buf.fd));
		EXPECT_EQ(0, ended(self));
		EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
		EXPECT_EQ(i ? 1 : -ECONNRESET, fence_status(file));
		close(file);
	}
}

/* Unbinding the function detaches everything, also what is in use */
TEST_F_TIMEOUT(ffs, unbound, TIMEOUT)
{
	int ep[] = { self->g.in, self->g.out }, before = users(self->buf.fd), i;

	buffer_fill(&self->buf, 110);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, attach(ep[i], self->buf.fd));
	ASSERT_EQ(0, transfer(self->g.in, self->buf.fd, SIZE));
	ASSERT_EQ(0, transfer(self->g.in, self->buf.fd, 4097));
	ASSERT_EQ(0, gadget_unbind(&self->g));
	EXPECT_FALSE(busy(self->buf.fd));
	EXPECT_EQ(before, users(self->buf.fd));
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(EPERM, attach(ep[i], self->buf.fd));
		EXPECT_EQ(EPERM, transfer(ep[i], self->buf.fd, SIZE));
		EXPECT_EQ(EPERM, detach(ep[i], self->buf.fd));
	}

	ASSERT_EQ(0, gadget_bind(&self->g));
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(EPERM, transfer(ep[i], self->buf.fd, SIZE));
		EXPECT_EQ(EPERM, detach(ep[i], self->buf.fd));
		ASSERT_EQ(0, attach(ep[i], self->buf.fd));
	}
	EXPECT_EQ(0, sends(self, self->buf.fd, SIZE, 110));
	EXPECT_EQ(0, receives(self, self->buf.fd, SIZE, 111));
}

/* A transfer that waits for the endpoint has nothing attached meanwhile */
TEST_F_TIMEOUT(ffs, unbound_disabled, TIMEOUT)
{
	int before = users(self->buf.fd);
	struct waiting w;

	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	ASSERT_EQ(0, release(&self->g));
	ASSERT_EQ(0, set_configuration(&self->g, -1));
	ASSERT_EQ(0, waiting_start(&w, self->g.out, self->buf.fd));
	ASSERT_EQ(0, gadget_unbind(&self->g));
	EXPECT_EQ(before + 1, users(self->buf.fd));
	ASSERT_EQ(0, gadget_bind(&self->g));
	EXPECT_EQ(EPERM, waiting_end(&w));
	EXPECT_EQ(before, users(self->buf.fd));
}

/* One that waits for another to end does so no longer */
TEST_F_TIMEOUT(ffs, unbound_waiting, TIMEOUT)
{
	int before = users(self->buf.fd);
	struct waiting w;

	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	ASSERT_EQ(0, transfer(self->g.out, self->buf.fd, SIZE));
	ASSERT_EQ(0, waiting_start(&w, self->g.out, self->buf.fd));
	ASSERT_EQ(0, gadget_unbind(&self->g));
	EXPECT_NE(0, waiting_end(&w));
	EXPECT_FALSE(busy(self->buf.fd));
	EXPECT_EQ(before, users(self->buf.fd));
}

/* Whoever waits for something else may go on for seconds, but not one after the other */
TEST_F_TIMEOUT(ffs, unbound_busy, TIMEOUT)
{
	int before = users(self->buf.fd), timeline, i;
	struct waiting w[3];
	time_t start;

	if (access("/sys/kernel/debug/sync/sw_sync", F_OK))
		SKIP(return, "no sw_sync");
	timeline = busy_start(self->buf.fd);
	ASSERT_LE(0, timeline);
	ASSERT_EQ(0, attach(self->g.out, self->buf.fd));
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, waiting_start(&w[i], self->g.out, self->buf.fd));
	start = time(NULL);
	ASSERT_EQ(0, gadget_unbind(&self->g));
	EXPECT_GT(9, time(NULL) - start);
	for (i = 0; i < 3; i++)
		EXPECT_NE(0, waiting_end(&w[i]));
	EXPECT_TRUE(busy(self->buf.fd));
	close(timeline);
	EXPECT_EQ(before, users_become(self->buf.fd, before, LONG));
}

/* The same function on a UDC that is made anew, with a parameter for its module */
static int bind_anew(FIXTURE_DATA(ffs) *self, const char *parameter)
{
	char command[128];

	snprintf(command, sizeof(command),
		 "rmmod dummy_hcd && modprobe dummy_hcd %s", parameter);
	return system(command) ? ENXIO : gadget_bind(&self->g);
}

/*
 * If the driver of the UDC does not promise to only read what it sends, a file
 * for reading is refused as by OUT endpoints, and taken again when there is
 * another UDC. (The last part is done in any case, for the tests that follow.)
 */
TEST_F_TIMEOUT(ffs, in_written, TIMEOUT)
{
	if (!buffer_derived(&self->buf))
		SKIP(return, NO_DERIVE);
	/* Only what can be unloaded has a state */
	if (access("/sys/module/dummy_hcd/parameters/only_reads_in_bufs", F_OK) ||
	    access("/sys/module/dummy_hcd/initstate", F_OK))
		SKIP(return, "dummy_hcd is built in, or has no parameter only_reads_in_bufs");
	buffer_fill(&self->buf, 200);

	EXPECT_EQ(0, gadget_unbind(&self->g));
	EXPECT_EQ(0, bind_anew(self, "only_reads_in_bufs=0"));
	EXPECT_EQ(EACCES, attach(self->g.in, self->buf.r));
	EXPECT_EQ(EACCES, attach(self->g.in, self->buf.w));
	EXPECT_EQ(0, attach(self->g.in, self->buf.rw));
	EXPECT_EQ(EACCES, transfer(self->g.in, self->buf.r, SIZE));
	EXPECT_EQ(0, sends(self, self->buf.fd, SIZE, 200));
	EXPECT_EQ(EACCES, detach(self->g.in, self->buf.r));
	EXPECT_EQ(0, sends(self, self->buf.rw, SIZE, 200));
	EXPECT_EQ(0, detach(self->g.in, self->buf.fd));

	EXPECT_EQ(0, attach(self->g.out, self->buf.rw));
	EXPECT_EQ(0, receives(self, self->buf.fd, SIZE, 201));
	EXPECT_EQ(EACCES, detach(self->g.out, self->buf.r));

	EXPECT_EQ(0, gadget_unbind(&self->g));
	EXPECT_EQ(EPERM, attach(self->g.in, self->buf.r));
	EXPECT_EQ(EPERM, transfer(self->g.in, self->buf.r, SIZE));
	EXPECT_EQ(EPERM, detach(self->g.in, self->buf.r));
	EXPECT_EQ(0, bind_anew(self, ""));
	EXPECT_EQ(EPERM, transfer(self->g.in, self->buf.r, SIZE));
	EXPECT_EQ(0, attach(self->g.in, self->buf.r));
	EXPECT_EQ(0, sends(self, self->buf.r, SIZE, 201));
	EXPECT_EQ(0, detach(self->g.in, self->buf.r));
}

/* The same before it is bound for the first time: it can be open already */
TEST(not_yet_bound)
{
	struct buffer buf;
	struct gadget g;
	int ret, i;

	ret = gadget_prepare(&g);
	if (ret == ENODEV) {
		gadget_stop(&g);
		SKIP(return, "no " UDC ", or no functionfs for it");
	}
	EXPECT_EQ(0, ret);
	EXPECT_TRUE(buffer_alloc(&buf, SIZE, O_RDWR));
	for (i = 0; !ret && i < 2; i++) {
		int ep = i ? g.out : g.in;

		EXPECT_EQ(EPERM, attach(ep, buf.fd));
		EXPECT_EQ(EPERM, transfer(ep, buf.fd, SIZE));
		EXPECT_EQ(EPERM, detach(ep, buf.fd));
	}
	gadget_stop(&g);
	buffer_free(&buf);
}

TEST_HARNESS_MAIN

// SPDX-License-Identifier: GPL-2.0
/*
 * DMA_BUF_IOCTL_DERIVE: every row of what a derived fd may do and may not, on
 * each exporter that this machine offers, the errnos, and that nothing is left
 * behind. The tests of the fixture "legacy" hold on a kernel without the ioctl
 * too: what the files do that were not derived.
 */
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <linux/kcmp.h>
#include <linux/mount.h>

#include "../../kselftest_harness.h"
#include "derive.h"

#define SIZE (64 * 1024)

/* A page-sized argument whose write-back fails */
static struct dma_buf_derive *readonly_arg(unsigned int flags)
{
	struct dma_buf_derive *arg;

	arg = mmap(NULL, getpagesize(), PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (arg == MAP_FAILED)
		return NULL;
	arg->flags = flags;
	return mprotect(arg, getpagesize(), PROT_READ) ? NULL : arg;
}

FIXTURE(derive)
{
	int buf, ro, wo, rw;
};

/* The exporters; qxl stands for those that have ->access(), by TTM */
FIXTURE_VARIANT(derive)
{
	int (*alloc)(void);
};

static int system_alloc(void)
{
	return heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
}

static int cma_alloc(void)
{
	return heap_alloc("default_cma_region", SIZE, O_RDWR | O_CLOEXEC);
}

static int udma_alloc(void)
{
	return udmabuf_alloc(SIZE);
}

static int vgem_alloc(void)
{
	return drm_alloc("vgem", SIZE);
}

static int ttm_alloc(void)
{
	return drm_alloc("qxl", SIZE);
}

FIXTURE_VARIANT_ADD(derive, system_heap) { .alloc = system_alloc };
FIXTURE_VARIANT_ADD(derive, cma_heap) { .alloc = cma_alloc };
FIXTURE_VARIANT_ADD(derive, udmabuf) { .alloc = udma_alloc };
FIXTURE_VARIANT_ADD(derive, vgem) { .alloc = vgem_alloc };
FIXTURE_VARIANT_ADD(derive, ttm) { .alloc = ttm_alloc };

FIXTURE_SETUP(derive)
{
	self->buf = variant->alloc();
	if (no_exporter(self->buf))
		SKIP(return, "no such exporter");
	ASSERT_GE(self->buf, 0);
	self->ro = derive(self->buf, O_RDONLY | O_CLOEXEC);
	ASSERT_GE(self->ro, 0) {
		TH_LOG("DMA_BUF_IOCTL_DERIVE: %s", strerrorname_np(-self->ro));
	}
	self->wo = derive(self->buf, O_WRONLY | O_CLOEXEC);
	ASSERT_GE(self->wo, 0);
	self->rw = derive(self->buf, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->rw, 0);
}

FIXTURE_TEARDOWN(derive)
{
	close(self->rw);
	close(self->wo);
	close(self->ro);
	close(self->buf);
}

TEST_F(derive, flags)
{
	unsigned int bit;
	int fd;

	for (bit = 0; bit < 32; bit++) {
		unsigned int flag = 1u << bit;

		if (flag & (O_ACCMODE | O_CLOEXEC))
			continue;
		EXPECT_EQ(-EINVAL, derive(self->buf, flag));
		EXPECT_EQ(-EINVAL, derive(self->buf, flag | O_RDWR | O_CLOEXEC));
	}
	EXPECT_EQ(-EINVAL, derive(self->buf, O_ACCMODE));
	EXPECT_EQ(-EINVAL, derive(self->buf, O_ACCMODE | O_CLOEXEC));
	/* The flags come first, whatever the access of the fd */
	EXPECT_EQ(-EINVAL, derive(self->ro, O_RDWR | O_NONBLOCK));

	fd = derive(self->buf, O_RDONLY);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, fcntl(fd, F_GETFD));
	close(fd);
	EXPECT_EQ(FD_CLOEXEC, fcntl(self->ro, F_GETFD));
	/* Nothing but the access mode (and O_LARGEFILE) in the file's flags */
	EXPECT_EQ(0, fcntl(self->ro, F_GETFL) & (O_ACCMODE | O_NONBLOCK | O_CLOEXEC));
	EXPECT_EQ(O_WRONLY, fcntl(self->wo, F_GETFL) & O_ACCMODE);
	EXPECT_EQ(O_RDWR, fcntl(self->rw, F_GETFL) & O_ACCMODE);
}

TEST_F(derive, fd_on_input_is_ignored)
{
	struct dma_buf_derive arg = { .flags = O_RDONLY, .fd = self->buf };

	ASSERT_EQ(0, ioctl(self->buf, DMA_BUF_IOCTL_DERIVE, &arg));
	EXPECT_NE(self->buf, arg.fd);
	EXPECT_EQ((unsigned int)O_RDONLY, arg.flags);
	close(arg.fd);
}

TEST_F(derive, efault)
{
	struct dma_buf_derive *arg = readonly_arg(O_RDONLY);
	int next = lowest_fd(), i;

	ASSERT_NE(NULL, arg);
	EXPECT_EQ(-EFAULT, buf_ioctl(self->buf, DMA_BUF_IOCTL_DERIVE, NULL));
	EXPECT_EQ(-EFAULT, buf_ioctl(self->buf, DMA_BUF_IOCTL_DERIVE, (void *)-4096UL));
	/* The fd is reserved, and the file made, when the copy out fails */
	for (i = 0; i < 100; i++)
		ASSERT_EQ(-EFAULT, buf_ioctl(self->buf, DMA_BUF_IOCTL_DERIVE, arg));
	EXPECT_EQ(next, lowest_fd());
	munmap(arg, getpagesize());
}

TEST_F(derive, not_a_dma_buf)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), closed = lowest_fd();

	EXPECT_EQ(-EBADF, derive(-1, O_RDONLY));
	EXPECT_EQ(-EBADF, derive(closed, O_RDONLY));
	EXPECT_EQ(-ENOTTY, derive(null, O_RDONLY));
	close(null);
}

TEST_F(derive, emfile)
{
	struct rlimit old, limit;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	limit = old;
	limit.rlim_cur = lowest_fd();
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &limit));
	EXPECT_EQ(-EMFILE, derive(self->buf, O_RDONLY));
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
}

/* No sequence of derivations leads up */
TEST_F(derive, lattice)
{
	static const int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };
	const int from[] = { self->ro, self->wo, self->rw };
	int i, j, fd;

	for (i = 0; i < 3; i++) {
		for (j = 0; j < 3; j++) {
			bool within = mode[i] == O_RDWR || mode[i] == mode[j];

			fd = derive(from[i], mode[j]);
			if (within) {
				ASSERT_GE(fd, 0);
				EXPECT_EQ(mode[j], fcntl(fd, F_GETFL) & O_ACCMODE);
				if (mode[j] != O_RDWR)
					EXPECT_EQ(-EACCES, derive(fd, O_RDWR));
				close(fd);
			} else {
				EXPECT_EQ(-EACCES, fd);
			}
		}
	}
}

TEST_F(derive, mmap)
{
	const int ro = PROT_READ, wo = PROT_WRITE, rw = PROT_READ | PROT_WRITE;

	EXPECT_EQ(0, try_mmap(self->ro, SIZE, ro, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->ro, SIZE, rw, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->ro, SIZE, wo, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->ro, SIZE, rw, MAP_SHARED_VALIDATE));

	EXPECT_EQ(-EACCES, try_mmap(self->wo, SIZE, ro, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->wo, SIZE, wo, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->wo, SIZE, rw, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->wo, SIZE, ro, MAP_PRIVATE));

	EXPECT_EQ(0, try_mmap(self->rw, SIZE, ro, MAP_SHARED));
	EXPECT_EQ(0, try_mmap(self->rw, SIZE, rw, MAP_SHARED));

	/* The end of the buffer is where it was */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, SIZE + getpagesize(), ro, MAP_SHARED, self->ro, 0));
	EXPECT_EQ(EINVAL, errno);
}

/* A mapping stays as it is, whatever is done to it */
TEST_F(derive, mapping_stays_readonly)
{
	volatile uint8_t *p, *q;
	char byte = 0x55;

	q = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->buf, 0);
	ASSERT_NE(MAP_FAILED, (void *)q);
	q[0] = 0x11;
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->ro, 0);
	ASSERT_NE(MAP_FAILED, (void *)p);
	EXPECT_EQ(0x11, p[0]);

	EXPECT_EQ(-1, mprotect((void *)p, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, mprotect((void *)p, SIZE, PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	/* gone, and back no wider */
	EXPECT_EQ(0, mprotect((void *)p, SIZE, PROT_NONE));
	EXPECT_EQ(-1, mprotect((void *)p, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(0, mprotect((void *)p, SIZE, PROT_READ));
	EXPECT_EQ(-EIO, write_proc_mem((void *)p, byte));
	EXPECT_EQ(0x11, p[0]);
	EXPECT_EQ(0x11, q[0]);

	munmap((void *)p, SIZE);
	munmap((void *)q, SIZE);
}

TEST_F(derive, store_faults)
{
	volatile uint8_t *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->ro, 0);
	int status;
	pid_t pid;

	ASSERT_NE(MAP_FAILED, (void *)p);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		p[0] = 1;
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGSEGV, WTERMSIG(status));
	munmap((void *)p, SIZE);
}

/* fork() of a mapping: TTM warns if the file has not the exporter's mapping */
TEST_F(derive, fork)
{
	volatile uint8_t *q, *p;
	int status;
	pid_t pid;

	q = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->buf, 0);
	ASSERT_NE(MAP_FAILED, (void *)q);
	q[SIZE - 1] = 0x11;
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->ro, 0);
	ASSERT_NE(MAP_FAILED, (void *)p);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(p[SIZE - 1] != 0x11 || write_proc_mem((void *)p, 0x22) != -EIO);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	EXPECT_NE(0x22, q[0]);
	munmap((void *)p, SIZE);
	munmap((void *)q, SIZE);
}

/* Whatever the exporter does with those of other files */
TEST_F(derive, private_mapping)
{
	const int ro = PROT_READ, rw = PROT_READ | PROT_WRITE;

	EXPECT_EQ(-EINVAL, try_mmap(self->ro, SIZE, ro, MAP_PRIVATE));
	EXPECT_EQ(-EINVAL, try_mmap(self->ro, SIZE, rw, MAP_PRIVATE));
	EXPECT_EQ(-EINVAL, try_mmap(self->rw, SIZE, ro, MAP_PRIVATE));
	EXPECT_EQ(-EINVAL, try_mmap(self->rw, SIZE, rw, MAP_PRIVATE));
}

TEST_F(derive, sync)
{
	static const unsigned int when[] = { DMA_BUF_SYNC_START, DMA_BUF_SYNC_END };
	int i;

	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, sync_cpu(self->ro, DMA_BUF_SYNC_READ | when[i]));
		EXPECT_EQ(-EACCES, sync_cpu(self->ro, DMA_BUF_SYNC_WRITE | when[i]));
		EXPECT_EQ(-EACCES, sync_cpu(self->ro, DMA_BUF_SYNC_RW | when[i]));

		EXPECT_EQ(-EACCES, sync_cpu(self->wo, DMA_BUF_SYNC_READ | when[i]));
		EXPECT_EQ(0, sync_cpu(self->wo, DMA_BUF_SYNC_WRITE | when[i]));
		EXPECT_EQ(-EACCES, sync_cpu(self->wo, DMA_BUF_SYNC_RW | when[i]));

		EXPECT_EQ(0, sync_cpu(self->rw, DMA_BUF_SYNC_RW | when[i]));
	}
	/* Bad flags are bad flags first */
	EXPECT_EQ(-EINVAL, sync_cpu(self->ro, DMA_BUF_SYNC_WRITE | 8));
	EXPECT_EQ(-EINVAL, sync_cpu(self->ro, DMA_BUF_SYNC_START));
}

TEST_F(derive, fences)
{
	const int fds[] = { self->ro, self->wo, self->rw };
	struct pollfd pfd = { .events = POLLIN | POLLOUT };
	int i, fd;

	for (i = 0; i < 3; i++) {
		fd = export_sync_file(fds[i], DMA_BUF_SYNC_RW);
		EXPECT_GE(fd, 0);
		close(fd);
		EXPECT_EQ(0, import_sync_file(fds[i], DMA_BUF_SYNC_READ));
		pfd.fd = fds[i];
		EXPECT_EQ(1, poll(&pfd, 1, 1000));
		EXPECT_EQ(POLLIN | POLLOUT, pfd.revents);
	}
	EXPECT_EQ(-EACCES, import_sync_file(self->ro, DMA_BUF_SYNC_WRITE));
	EXPECT_EQ(-EACCES, import_sync_file(self->ro, DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, import_sync_file(self->wo, DMA_BUF_SYNC_WRITE));
	EXPECT_EQ(0, import_sync_file(self->rw, DMA_BUF_SYNC_RW));
}

TEST_F(derive, name)
{
	EXPECT_EQ(0, set_name(self->buf, "first"));
	EXPECT_EQ(-EACCES, set_name(self->ro, "second"));
	EXPECT_EQ(-EACCES, buf_ioctl(self->ro, DMA_BUF_SET_NAME_A, "second"));
	EXPECT_STREQ("first", fdinfo(self->ro, "name"));
	EXPECT_EQ(0, set_name(self->wo, "third"));
	EXPECT_STREQ("third", fdinfo(self->ro, "name"));
	EXPECT_EQ(0, set_name(self->rw, "fourth"));
	EXPECT_STREQ("fourth", fdinfo(self->buf, "name"));
}

TEST_F(derive, same_buffer_other_file)
{
	const int fds[] = { self->ro, self->wo, self->rw };
	off_t size = lseek(self->buf, 0, SEEK_END);
	struct stat primary, st;
	int i;

	EXPECT_LE(SIZE, size);
	ASSERT_EQ(0, fstat(self->buf, &primary));
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, fstat(fds[i], &st));
		EXPECT_EQ(primary.st_ino, st.st_ino);
		EXPECT_EQ(primary.st_dev, st.st_dev);
		EXPECT_EQ(size, lseek(fds[i], 0, SEEK_END));
		EXPECT_LT(0, syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE,
				     self->buf, fds[i]));
	}
	EXPECT_STREQ("", fdinfo(self->buf, "derived"));
	EXPECT_STREQ("r", fdinfo(self->ro, "derived"));
	EXPECT_STREQ("w", fdinfo(self->wo, "derived"));
	EXPECT_STREQ("rw", fdinfo(self->rw, "derived"));
}

/* "count" is the users of the buffer: the fd itself and the three derived */
TEST_F(derive, fdinfo_count)
{
	int again;

	EXPECT_STREQ("4", fdinfo(self->buf, "count"));
	EXPECT_STREQ("4", fdinfo(self->ro, "count"));
	again = derive(self->ro, O_RDONLY);
	EXPECT_STREQ("5", fdinfo(self->buf, "count"));
	EXPECT_STREQ("5", fdinfo(again, "count"));
	close(again);
	EXPECT_STREQ("4", fdinfo(self->ro, "count"));
}

TEST_F(derive, reopen)
{
	static const int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };
	int i, path;

	for (i = 0; i < 3; i++)
		EXPECT_EQ(-ENXIO, reopen(self->ro, mode[i]));

	/* O_PATH gives no access, and no way back to a dma-buf */
	path = reopen(self->ro, O_PATH);
	ASSERT_GE(path, 0);
	EXPECT_EQ(-EBADF, derive(path, O_RDONLY));
	EXPECT_EQ(-EBADF, try_mmap(path, SIZE, PROT_READ, MAP_SHARED));
	for (i = 0; i < 3; i++)
		EXPECT_EQ(-ENXIO, reopen(path, mode[i]));
	close(path);
}

/*
 * A driver that was not taught to keep the promise gets no reference. Imports
 * are where a mix-up of files would show: one that took its reference on the
 * one file and dropped it on the other frees the buffer under its users.
 */
TEST_F(derive, import)
{
	volatile uint8_t *p;
	int vgem = open_drm("vgem"), i;

	if (vgem < 0)
		SKIP(return, "no vgem");
	p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->buf, 0);
	ASSERT_NE(MAP_FAILED, (void *)p);
	p[0] = 0x42;

	for (i = 0; i < 10; i++) {
		EXPECT_EQ(-EACCES, prime_import(vgem, self->ro));
		EXPECT_EQ(-EACCES, prime_import(vgem, self->wo));
		EXPECT_EQ(0, prime_import(vgem, self->rw));
		EXPECT_EQ(0, prime_import(vgem, self->buf));
	}
	EXPECT_STREQ("5", fdinfo(self->buf, "count"));	/* and the mapping */
	EXPECT_EQ(0x42, p[0]);
	EXPECT_EQ(0, sync_cpu(self->buf, DMA_BUF_SYNC_RW));
	munmap((void *)p, SIZE);
	close(vgem);
}

/* A driver that gets its own buffer back makes a handle of it, with all rights */
TEST(import_into_the_exporter)
{
	int qxl = open_drm("qxl"), buf, ro, wo, rw;

	if (qxl < 0)
		SKIP(return, "no qxl");
	buf = ttm_alloc();
	ASSERT_GE(buf, 0);
	ro = derive(buf, O_RDONLY);
	ASSERT_GE(ro, 0);
	wo = derive(buf, O_WRONLY);
	ASSERT_GE(wo, 0);
	rw = derive(buf, O_RDWR);
	ASSERT_GE(rw, 0);
	EXPECT_EQ(-EACCES, prime_import(qxl, ro));
	EXPECT_EQ(-EACCES, prime_import(qxl, wo));
	EXPECT_EQ(0, prime_import(qxl, rw));
	EXPECT_EQ(0, prime_import(qxl, buf));
	EXPECT_STREQ("4", fdinfo(buf, "count"));
	close(rw);
	close(wo);
	close(ro);
	close(buf);
	close(qxl);
}

/* iommufd must not go on and take the fd for one of a memfd */
TEST_F(derive, import_into_iommufd)
{
	const uint32_t r = IOMMU_IOAS_MAP_READABLE, rw = r | IOMMU_IOAS_MAP_WRITEABLE;
	int ret;

	if (access("/dev/iommu", R_OK | W_OK))
		SKIP(return, "no /dev/iommu");
	if (ioas_import(self->buf, SIZE, rw) == -ENOTTY)
		SKIP(return, "iommufd has no ioctls for 32-bit programs");
	/* An iommufd that keeps to reading takes it, but not the memory of heaps */
	ret = ioas_import(self->ro, SIZE, r);
	if (ret != -EOPNOTSUPP)
		EXPECT_EQ(-EACCES, ret);
	EXPECT_EQ(-EACCES, ioas_import(self->ro, SIZE, rw));
	EXPECT_EQ(-EACCES, ioas_import(self->ro, SIZE, rw & ~r));
	EXPECT_EQ(-EACCES, ioas_import(self->wo, SIZE, rw));
	EXPECT_EQ(-EACCES, ioas_import(self->wo, SIZE, rw & ~r));
	EXPECT_NE(-EACCES, ioas_import(self->rw, SIZE, rw));
	EXPECT_NE(-EACCES, ioas_import(self->buf, SIZE, rw));
	EXPECT_STREQ("4", fdinfo(self->buf, "count"));
}

/* Each of the fds, and a mapping, keeps the buffer alive, the last one ends it */
TEST_F(derive, closing_order)
{
	static const uint8_t order[24][4] = {
		{0, 1, 2, 3}, {0, 1, 3, 2}, {0, 2, 1, 3}, {0, 2, 3, 1}, {0, 3, 1, 2}, {0, 3, 2, 1},
		{1, 0, 2, 3}, {1, 0, 3, 2}, {1, 2, 0, 3}, {1, 2, 3, 0}, {1, 3, 0, 2}, {1, 3, 2, 0},
		{2, 0, 1, 3}, {2, 0, 3, 1}, {2, 1, 0, 3}, {2, 1, 3, 0}, {2, 3, 0, 1}, {2, 3, 1, 0},
		{3, 0, 1, 2}, {3, 0, 2, 1}, {3, 1, 0, 2}, {3, 1, 2, 0}, {3, 2, 0, 1}, {3, 2, 1, 0},
	};
	int i, j, fd[4];
	uint8_t *p;
	ino_t ino;

	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to see buffers come and go");
	for (i = 0; i < 24; i++) {
		fd[0] = variant->alloc();
		ASSERT_GE(fd[0], 0);
		ino = inode_of(fd[0]);
		fd[1] = derive(fd[0], O_RDONLY);
		ASSERT_GE(fd[1], 0);
		fd[2] = derive(fd[1], O_RDONLY);
		ASSERT_GE(fd[2], 0);
		p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd[2], 0);
		ASSERT_NE(MAP_FAILED, p);
		for (j = 0; j < 4; j++) {
			EXPECT_EQ(1, buffer_exists(ino));
			if (order[i][j] == 3)
				munmap(p, SIZE);
			else
				close(fd[order[i][j]]);
		}
		EXPECT_EQ(0, buffer_exists(ino));
	}
}

/* What else can be the last user: an import, a fd in a socket, but no O_PATH fd */
TEST_F(derive, last_user)
{
	int sock[2], vgem = open_drm("vgem"), buf, fd, path;
	uint32_t handle;
	ino_t ino;

	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to see buffers come and go");

	buf = variant->alloc();
	ASSERT_GE(buf, 0);
	ino = inode_of(buf);
	fd = derive(buf, O_RDWR);
	ASSERT_GE(fd, 0);
	if (vgem >= 0 && !prime_handle(vgem, fd, &handle)) {
		close(fd);
		close(buf);
		EXPECT_EQ(1, buffer_exists(ino));
		EXPECT_EQ(0, close_handle(vgem, handle));
	} else {
		close(buf);
		close(fd);
	}
	EXPECT_EQ(0, buffer_exists(ino));

	buf = variant->alloc();
	ASSERT_GE(buf, 0);
	ino = inode_of(buf);
	fd = derive(buf, O_RDONLY);
	ASSERT_GE(fd, 0);
	path = reopen(fd, O_PATH);
	ASSERT_GE(path, 0);
	close(buf);
	EXPECT_EQ(1, buffer_exists(ino));
	close(fd);
	EXPECT_EQ(0, buffer_exists(ino));
	EXPECT_EQ(ino, inode_of(path));
	close(path);

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock));
	buf = variant->alloc();
	ASSERT_GE(buf, 0);
	ino = inode_of(buf);
	fd = derive(buf, O_RDONLY);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, send_fd(sock[0], fd));
	ASSERT_EQ(0, send_fd(sock[0], fd));
	close(fd);
	close(buf);
	EXPECT_EQ(1, buffer_exists(ino));
	fd = recv_fd(sock[1]);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, try_mmap(fd, SIZE, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(-EACCES, derive(fd, O_RDWR));
	close(fd);
	/* the second one is never received */
	EXPECT_EQ(1, buffer_exists(ino));
	close(sock[1]);
	close(sock[0]);
	EXPECT_EQ(0, buffer_exists(ino));
	close(vgem);
}

/* An epoll item belongs to its file, not to the buffer */
TEST_F(derive, epoll)
{
	struct epoll_event ev = { .events = EPOLLIN }, got;
	int ep = epoll_create1(EPOLL_CLOEXEC), buf, fd, i;

	ASSERT_GE(ep, 0);
	for (i = 0; i < 2; i++) {
		buf = variant->alloc();
		ASSERT_GE(buf, 0);
		fd = derive(buf, O_RDONLY);
		ASSERT_GE(fd, 0);
		ev.data.fd = fd;
		ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev));
		ev.data.fd = buf;
		ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, buf, &ev));
		if (i) {
			/* the buffer lives, and so does the primary's item */
			close(fd);
			ASSERT_EQ(1, epoll_wait(ep, &got, 1, 1000));
			EXPECT_EQ(buf, got.data.fd);
			close(buf);
		} else {
			ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_DEL, buf, NULL));
			close(buf);
			ASSERT_EQ(1, epoll_wait(ep, &got, 1, 1000));
			EXPECT_EQ(fd, got.data.fd);
			close(fd);
		}
		EXPECT_EQ(0, epoll_wait(ep, &got, 1, 0));
	}
	close(ep);
}

#define THREADS 4

struct worker {
	pthread_t thread;
	int (*alloc)(void);
	int shared, error;
};

/* Derive, derive again, map, touch, and close in an order that changes */
static int one_round(int from, int round)
{
	volatile uint8_t *p;
	int a, b;

	a = derive(from, round & 1 ? O_RDONLY : O_RDWR);
	if (a < 0)
		return a;
	b = derive(a, O_RDONLY | O_CLOEXEC);
	if (b < 0)
		return b;
	if (round & 2)
		close(a);
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, b, 0);
	if (p == MAP_FAILED)
		return -errno;
	if (round & 4)
		close(b);
	(void)p[(round * 4096) % SIZE];
	munmap((void *)p, SIZE);
	if (!(round & 4))
		close(b);
	if (!(round & 2))
		close(a);
	return 0;
}

static void *work(void *arg)
{
	struct worker *w = arg;
	int i, own, n = rounds(2500);

	/* Mostly on a buffer that all threads share, at times on its own */
	for (i = 0; i < n && !w->error; i++) {
		if (i % 50) {
			w->error = one_round(w->shared, i);
			continue;
		}
		own = w->alloc();
		w->error = own < 0 ? own : one_round(own, i);
		close(own);
	}
	return NULL;
}

/* The limit that counts is that of settings */
TEST_F_TIMEOUT(derive, ten_thousand_rounds, 36000)
{
	struct worker w[THREADS];
	struct counts before, after;
	int i;

	count_objects();
	before = count_objects();
	if (before.buffers < 0)
		SKIP(return, "debugfs is needed to count the buffers");
	ASSERT_GT(before.files, 0);
	ASSERT_GT(before.dentries, 0);
	ASSERT_GT(before.inodes, 0);
	for (i = 0; i < THREADS; i++) {
		w[i] = (struct worker){ .alloc = variant->alloc, .shared = self->buf };
		ASSERT_EQ(0, pthread_create(&w[i].thread, NULL, work, &w[i]));
	}
	for (i = 0; i < THREADS; i++) {
		pthread_join(w[i].thread, NULL);
		EXPECT_EQ(0, w[i].error);
	}
	after = count_objects();
	TH_LOG("before and after %d rounds: files %ld %ld, dentries %ld %ld",
	       THREADS * rounds(2500), before.files, after.files, before.dentries,
	       after.dentries);
	TH_LOG("inodes %ld %ld, dma-bufs %ld %ld", before.inodes, after.inodes,
	       before.buffers, after.buffers);
	EXPECT_STREQ("4", fdinfo(self->buf, "count"));
	/* The rest of the system lives too; a leak would be hundreds or more */
	EXPECT_LE(after.buffers, before.buffers + 16);
	EXPECT_LE(after.files, before.files + 16);
	EXPECT_LE(after.dentries, before.dentries + 64);
	EXPECT_LE(after.inodes, before.inodes + 64);
}

/*
 * Files that were not derived: their access mode limits how they are mapped,
 * and nothing else. User space gets O_RDONLY files from VIDIOC_EXPBUF and PRIME
 * by default, and lets devices write through them.
 */
FIXTURE(legacy)
{
	int ro, wo;
};

FIXTURE_SETUP(legacy)
{
	self->ro = heap_alloc("system", SIZE, O_RDONLY | O_CLOEXEC);
	if (no_exporter(self->ro))
		SKIP(return, "no system heap");
	ASSERT_GE(self->ro, 0);
	self->wo = heap_alloc("system", SIZE, O_WRONLY | O_CLOEXEC);
	ASSERT_GE(self->wo, 0);
}

FIXTURE_TEARDOWN(legacy)
{
	close(self->wo);
	close(self->ro);
}

TEST_F(legacy, rdonly_is_for_mmap_only)
{
	int vgem = open_drm("vgem");

	EXPECT_EQ(0, try_mmap(self->ro, SIZE, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EACCES, try_mmap(self->ro, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(0, sync_cpu(self->ro, DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, sync_cpu(self->ro, DMA_BUF_SYNC_RW | DMA_BUF_SYNC_END));
	EXPECT_EQ(0, import_sync_file(self->ro, DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, set_name(self->ro, "legacy"));
	EXPECT_EQ(-ENXIO, reopen(self->ro, O_RDWR));
	if (vgem < 0)
		SKIP(return, "no vgem");
	EXPECT_EQ(0, prime_import(vgem, self->ro));
	EXPECT_STREQ("1", fdinfo(self->ro, "count"));
	close(vgem);
}

/* An O_RDONLY dma-buf of TTM: /proc/self/mem went round the mapping's access */
TEST(proc_mem_of_rdonly_primary)
{
	struct drm_mode_create_dumb dumb = { .width = 1024, .height = 16, .bpp = 32 };
	struct drm_prime_handle prime = { .flags = DRM_CLOEXEC };
	int drm = open_drm("qxl");
	volatile uint8_t *p;

	if (drm < 0)
		SKIP(return, "no qxl");
	ASSERT_EQ(0, buf_ioctl(drm, DRM_IOCTL_MODE_CREATE_DUMB, &dumb));
	prime.handle = dumb.handle;
	ASSERT_EQ(0, buf_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime));
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, prime.fd, 0);
	ASSERT_NE(MAP_FAILED, (void *)p);
	EXPECT_EQ(-EIO, write_proc_mem((void *)p, ~p[0]));
	munmap((void *)p, SIZE);
	close(prime.fd);
	close(drm);
}

TEST_F(legacy, wronly_is_for_mmap_only)
{
	int vgem = open_drm("vgem");

	EXPECT_EQ(-EACCES, try_mmap(self->wo, SIZE, PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(0, sync_cpu(self->wo, DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, import_sync_file(self->wo, DMA_BUF_SYNC_RW));
	EXPECT_EQ(0, set_name(self->wo, "legacy"));
	if (vgem < 0)
		SKIP(return, "no vgem");
	EXPECT_EQ(0, prime_import(vgem, self->wo));
	close(vgem);
}

/* Deriving never gives more than the file has, derived or not */
TEST(derive_from_restricted_primary)
{
	int ro = heap_alloc("system", SIZE, O_RDONLY | O_CLOEXEC);
	int wo = heap_alloc("system", SIZE, O_WRONLY | O_CLOEXEC);
	int fd;

	if (no_exporter(ro))
		SKIP(return, "no system heap");
	ASSERT_GE(ro, 0);
	ASSERT_GE(wo, 0);
	fd = derive(ro, O_RDONLY);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(-EACCES, set_name(fd, "no"));
	close(fd);
	EXPECT_EQ(-EACCES, derive(ro, O_WRONLY));
	EXPECT_EQ(-EACCES, derive(ro, O_RDWR));
	EXPECT_EQ(-EACCES, derive(wo, O_RDONLY));
	EXPECT_EQ(-EACCES, derive(wo, O_RDWR));
	close(wo);
	close(ro);
}

/* A mount of its own: where others have mounted it, if at all, does not matter */
static int open_tracefs(void)
{
	int fs = syscall(SYS_fsopen, "tracefs", FSOPEN_CLOEXEC), dir = -1;

	if (fs >= 0 && !syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		dir = syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, 0);
	if (dir < 0)
		dir = -errno;
	close(fs);
	return dir;
}

static int enable_event(int dir, const char *yes)
{
	int fd = openat(dir, "events/dma_buf/dma_buf_derive/enable", O_WRONLY | O_CLOEXEC);
	int ret = 0;

	if (fd < 0 || write(fd, yes, 1) != 1)
		ret = -errno;
	close(fd);
	return ret;
}

/* The lines of the event in an instance's trace, of which the last is copied */
static int read_trace(int dir, char *last, int size)
{
	FILE *f = fdopen(openat(dir, "trace", O_RDONLY | O_CLOEXEC), "r");
	char line[512], *event;
	int n = 0;

	if (!f)
		return -errno;
	while (fgets(line, sizeof(line), f)) {
		event = strstr(line, "dma_buf_derive: ");
		if (*line == '#' || !event)
			continue;
		snprintf(last, size, "%s", event);
		n++;
	}
	fclose(f);
	return n;
}

/* A line for each fd that was made, and none for a call that failed */
TEST(trace_event)
{
	int tracefs = open_tracefs(), dir, buf, fd;
	char line[256] = "", want[256];

	if (tracefs < 0)
		SKIP(return, "tracefs: %s", strerrorname_np(-tracefs));
	if (faccessat(tracefs, "events/dma_buf", F_OK, 0))
		SKIP(return, "no trace events of dma-bufs");
	buf = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
	if (no_exporter(buf))
		SKIP(return, "no system heap");
	ASSERT_GE(buf, 0);

	/* A buffer for this test alone */
	unlinkat(tracefs, "instances/derive", AT_REMOVEDIR);
	ASSERT_EQ(0, mkdirat(tracefs, "instances/derive", 0700));
	dir = openat(tracefs, "instances/derive", O_PATH | O_DIRECTORY | O_CLOEXEC);
	ASSERT_GE(dir, 0);
	EXPECT_EQ(0, enable_event(dir, "1"));
	EXPECT_EQ(-EINVAL, derive(buf, O_ACCMODE));
	EXPECT_EQ(-EFAULT, buf_ioctl(buf, DMA_BUF_IOCTL_DERIVE, readonly_arg(O_RDONLY)));
	fd = derive(buf, O_RDONLY);
	EXPECT_GE(fd, 0);
	EXPECT_EQ(0, enable_event(dir, "0"));
	close(derive(buf, O_RDONLY));

	snprintf(want, sizeof(want), "dma_buf_derive: exp_name=%s size=%d ino=%llu fd=%d",
		 fdinfo(buf, "exp_name"), SIZE, (unsigned long long)inode_of(buf), fd);
	EXPECT_EQ(1, read_trace(dir, line, sizeof(line)));
	line[strcspn(line, "\n")] = 0;
	EXPECT_STREQ(want, line);

	close(dir);
	EXPECT_EQ(0, unlinkat(tracefs, "instances/derive", AT_REMOVEDIR));
	close(fd);
	close(buf);
	close(tracefs);
}

/* ENOTTY is how a program finds out that the kernel has no DERIVE */
TEST(probe)
{
	int fd = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC), ro;

	if (no_exporter(fd))
		SKIP(return, "no system heap");
	ASSERT_GE(fd, 0);
	ro = derive(fd, O_RDONLY);
	EXPECT_GE(ro, 0) {
		TH_LOG("DMA_BUF_IOCTL_DERIVE: %s", strerrorname_np(-ro));
	}
	close(ro);
	close(fd);
}

TEST_HARNESS_MAIN

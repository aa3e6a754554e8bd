// SPDX-License-Identifier: GPL-2.0
/*
 * The holder of a dma-buf fd that was derived read-only tries to write to the
 * buffer. Every attempt has to end as it says here, and the whole buffer has to be
 * what the producer made it, as seen in the producer's own mapping. The attacker
 * has the fd and a PROT_READ mapping of it, no more.
 *
 * An attempt that could fail for want of something else is made on memory of the
 * attacker's own first, where it has to work.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <time.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <linux/aio_abi.h>
#include <linux/capability.h>
#include <linux/elf.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/kcmp.h>
#include <linux/userfaultfd.h>
#include <linux/vfio.h>
#include <linux/videodev2.h>

#include "../../kselftest_harness.h"
#include "derive.h"

#define SIZE (64 * 1024)

/* The buffer begins with zeros, for what reads an argument where it is to write */
#define ZEROS 512

/* What not every C library has yet */
#ifndef O_EMPTYPATH
#define O_EMPTYPATH (1 << 26)
#endif
#ifndef AT_HANDLE_FID
#define AT_HANDLE_FID 0x200
#endif
#ifndef MAP_DROPPABLE
#define MAP_DROPPABLE 0x08
#endif
#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

/* The producer's mapping, and what it holds */
static uint8_t *rw, want[SIZE];

FIXTURE(escape)
{
	int buf, ro;
	uint8_t *p;	/* the attacker's mapping */
	uint8_t *own;	/* memory like it that the attacker may write to */
};

/* The exporters; qxl stands for those that have ->access(), by TTM */
FIXTURE_VARIANT(escape)
{
	int (*alloc)(void);
	const char *drm;
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

FIXTURE_VARIANT_ADD(escape, system_heap) { .alloc = system_alloc };
FIXTURE_VARIANT_ADD(escape, cma_heap) { .alloc = cma_alloc };
FIXTURE_VARIANT_ADD(escape, udmabuf) { .alloc = udma_alloc };
FIXTURE_VARIANT_ADD(escape, vgem) { .alloc = vgem_alloc, .drm = "vgem" };
FIXTURE_VARIANT_ADD(escape, ttm) { .alloc = ttm_alloc, .drm = "qxl" };

static void fill(int fd)
{
	size_t i;

	for (i = ZEROS; i < SIZE; i++)
		want[i] = i * 7 + (i >> 8) + 1;
	sync_cpu(fd, DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW);
	memcpy(rw, want, SIZE);
	sync_cpu(fd, DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW);
}

FIXTURE_SETUP(escape)
{
	self->buf = variant->alloc();
	if (no_exporter(self->buf))
		SKIP(return, "no such exporter");
	ASSERT_GE(self->buf, 0);
	rw = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->buf, 0);
	ASSERT_TRUE(rw != MAP_FAILED);
	fill(self->buf);

	self->ro = derive(self->buf, O_RDONLY | O_CLOEXEC);
	ASSERT_GE(self->ro, 0) {
		TH_LOG("DMA_BUF_IOCTL_DERIVE: %s", strerrorname_np(-self->ro));
	}
	self->p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->ro, 0);
	ASSERT_TRUE(self->p != MAP_FAILED);
	/* Shared, as it is, so that a child's writes are seen */
	self->own = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(self->own != MAP_FAILED);
	memcpy(self->own, want, SIZE);
}

FIXTURE_TEARDOWN(escape)
{
	close(self->ro);
	close(self->buf);
}

static const char *result(long ret)
{
	const char *name = ret < 0 ? strerrorname_np(-ret) : "worked";

	return name ?: "?";
}

static long first_change(void)
{
	long i;

	if (!memcmp(rw, want, SIZE))
		return -1;
	for (i = 0; i < SIZE && rw[i] == want[i]; i++)
		;
	return i;
}

static void attempt(struct __test_metadata *_metadata, const char *what, long expected, long ret)
{
	EXPECT_EQ(expected, ret) {
		TH_LOG("%s: %s, expected %s", what, result(ret), result(expected));
	}
	EXPECT_EQ(-1, first_change()) {
		TH_LOG("%s: WROTE TO THE BUFFER", what);
	}
}

/* expected is a negative errno, or what the call returns otherwise */
#define ATTEMPT(expected, call) \
	attempt(_metadata, #call, expected, call)

/* For calls that have -1 and errno */
static long sys(long ret)
{
	return ret < 0 ? -errno : ret;
}

/* Not in this kernel, or switched off */
static bool absent(long ret)
{
	return ret == -ENOSYS || ret == -EPERM;
}

static long map_fd(void *addr, int prot, int flags, int fd)
{
	return mmap(addr, SIZE, prot, flags, fd, 0) == MAP_FAILED ? -errno : 0;
}

static long remap(void *p, size_t old, size_t new, int flags, void *to)
{
	return mremap(p, old, new, flags, to) == MAP_FAILED ? -errno : 0;
}

/* A word of the buffer that the producer is made to write */
static void plant(size_t offset, uint32_t value)
{
	memcpy(rw + offset, &value, sizeof(value));
	memcpy(want + offset, &value, sizeof(value));
}

static int word(const uint8_t *p, size_t offset)
{
	int value;

	memcpy(&value, p + offset, sizeof(value));
	return value;
}

static int same_file(int a, int b)
{
	return sys(syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, a, b));
}

/* What to expect of a child: a status of 0, or its death by the signal */
static int exit_of(pid_t pid)
{
	int status;

	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -ECHILD;
	return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

/* A child that does nothing, until its parent ends or kills it */
static pid_t idle_child(void)
{
	pid_t pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	return pid;
}

static void end_child(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static int store(volatile uint8_t *p)
{
	pid_t pid = fork();

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		*p ^= 0xff;
		_exit(0);
	}
	return exit_of(pid);
}

/* An fd is, still, good for reading only */
static void readonly(struct __test_metadata *_metadata, int fd)
{
	ATTEMPT(O_RDONLY, fcntl(fd, F_GETFL) & O_ACCMODE);
	ATTEMPT(-EACCES, derive(fd, O_WRONLY));
	ATTEMPT(-EACCES, derive(fd, O_RDWR));
	ATTEMPT(-EACCES, map_fd(NULL, PROT_READ | PROT_WRITE, MAP_SHARED, fd));
	ATTEMPT(-EACCES, map_fd(NULL, PROT_WRITE, MAP_SHARED, fd));
	ATTEMPT(-EACCES, sync_cpu(fd, DMA_BUF_SYNC_WRITE));
	ATTEMPT(-EACCES, import_sync_file(fd, DMA_BUF_SYNC_WRITE));
	ATTEMPT(-EACCES, set_name(fd, "mine"));
	ATTEMPT(0, try_mmap(fd, SIZE, PROT_READ, MAP_SHARED));
}

/* Every sequence of modes, of which only those within the last one are given */
static void climb(struct __test_metadata *_metadata, int from, int depth)
{
	static const int mode[] = { O_RDONLY, O_WRONLY, O_RDWR };
	int had = fcntl(from, F_GETFL) & O_ACCMODE;
	int i, fd;

	for (i = 0; i < 3; i++) {
		fd = derive(from, mode[i] | O_CLOEXEC);
		if (mode[i] != had) {
			ATTEMPT(-EACCES, fd);
			continue;
		}
		ASSERT_GE(fd, 0);
		if (had == O_RDONLY)
			readonly(_metadata, fd);
		if (depth > 1)
			climb(_metadata, fd, depth - 1);
		close(fd);
	}
}

TEST_F(escape, derive_chains)
{
	int wo = derive(self->buf, O_WRONLY), fd;

	ASSERT_GE(wo, 0);
	climb(_metadata, self->ro, 4);
	climb(_metadata, wo, 4);
	close(wo);

	/* Nor does it help if the one that it comes from is gone */
	fd = derive(self->ro, O_RDONLY);
	ASSERT_GE(fd, 0);
	close(self->ro);
	close(self->buf);
	climb(_metadata, fd, 2);
	close(fd);
}

/* Encodings of the ioctl's number that are not the ioctl */
TEST_F(escape, ioctl_encodings)
{
	static const int size[] = { 0, 1, 4, 8, 12, 16, 24, 4096 };
	struct dma_buf_derive arg = { .flags = O_RDWR };
	unsigned int dir, i;

	for (dir = 0; dir < 4; dir++) {
		for (i = 0; i < ARRAY_SIZE(size); i++) {
			unsigned long cmd = _IOC(dir, DMA_BUF_BASE, 4, size[i]);
			bool same = cmd == DMA_BUF_IOCTL_DERIVE;

			ATTEMPT(same ? -EACCES : -ENOTTY, buf_ioctl(self->ro, cmd, &arg));
		}
	}
}

/*
 * What a driver gives back of an import is the primary file. A driver that was
 * not converted gets none of an fd with less than that, and of one with full
 * access it makes what it makes of the primary.
 */
static void reexport(struct __test_metadata *_metadata, int drm, int buf, int ro)
{
	struct drm_prime_handle prime = { .flags = DRM_RDWR | DRM_CLOEXEC };
	int ret, rw = derive(buf, O_RDWR);

	ASSERT_GE(rw, 0);
	ATTEMPT(-EACCES, prime_import(drm, ro));
	ret = prime_import(drm, buf);
	ATTEMPT(ret, prime_handle(drm, rw, &prime.handle));
	if (ret) {
		TH_LOG("the import of the primary file: %s", result(ret));
		goto out;
	}
	/* There is a handle now, which the fd does not lead to */
	ATTEMPT(-EACCES, prime_import(drm, ro));

	ASSERT_EQ(0, buf_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime));
	EXPECT_EQ(0, same_file(prime.fd, buf));
	EXPECT_EQ(O_RDWR, fcntl(prime.fd, F_GETFL) & O_ACCMODE);
	close(prime.fd);
	EXPECT_EQ(0, close_handle(drm, prime.handle));
	ATTEMPT(-EACCES, prime_import(drm, ro));
out:
	close(rw);
}

TEST_F(escape, reexport_by_vgem)
{
	int drm = open_drm("vgem");

	if (drm < 0)
		SKIP(return, "no vgem");
	reexport(_metadata, drm, self->buf, self->ro);
	close(drm);
}

TEST_F(escape, reexport_by_vkms)
{
	int drm = open_drm("vkms");

	if (drm < 0)
		SKIP(return, "no vkms");
	reexport(_metadata, drm, self->buf, self->ro);
	close(drm);
}

/* Without blobs it takes no buffers but its own */
TEST_F(escape, reexport_by_virtio_gpu)
{
	int drm = open_drm("virtio_gpu"), buf, ro;

	if (drm < 0)
		SKIP(return, "no virtio-gpu");
	reexport(_metadata, drm, self->buf, self->ro);
	buf = drm_alloc("virtio_gpu", SIZE);
	ASSERT_GE(buf, 0);
	ro = derive(buf, O_RDONLY);
	ASSERT_GE(ro, 0);
	EXPECT_EQ(0, prime_import(drm, buf));
	reexport(_metadata, drm, buf, ro);
	close(ro);
	close(buf);
	close(drm);
}

/* Of buffers that are not its own qxl has no use, which it says with a WARN */
TEST_F(escape, reexport_by_qxl)
{
	int drm = open_drm("qxl");

	if (drm < 0)
		SKIP(return, "no qxl");
	if (variant->drm && !strcmp(variant->drm, "qxl"))
		reexport(_metadata, drm, self->buf, self->ro);
	else
		ATTEMPT(-EACCES, prime_import(drm, self->ro));
	close(drm);
}

static long map_offset(int drm, uint32_t handle, uint64_t *offset)
{
	struct drm_mode_map_dumb map = { .handle = handle };
	int ret = buf_ioctl(drm, DRM_IOCTL_MODE_MAP_DUMB, &map);

	*offset = map.offset;
	return ret;
}

/* The producer has a handle, of this or another file of the driver */
TEST_F(escape, gem_handle_of_the_producer)
{
	const char *driver = variant->drm ?: "vgem";
	int theirs = open_drm(driver), ours = open_drm(driver);
	struct drm_prime_handle prime = { .flags = DRM_RDWR };
	uint32_t handle;
	uint64_t offset;
	void *map;

	if (theirs < 0 || ours < 0)
		SKIP(return, "no DRM device");
	ASSERT_EQ(0, prime_handle(theirs, self->buf, &prime.handle));
	ATTEMPT(-EACCES, prime_handle(theirs, self->ro, &handle));
	ATTEMPT(-EACCES, prime_handle(ours, self->ro, &handle));
	ATTEMPT(-ENOENT, map_offset(ours, prime.handle, &offset));
	ATTEMPT(-ENOENT, buf_ioctl(ours, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime));

	if (variant->drm) {
		/* The exporter's own handle can be mapped, by who has it */
		ATTEMPT(0, map_offset(theirs, prime.handle, &offset));
		map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, ours, offset);
		ATTEMPT(-EACCES, map == MAP_FAILED ? -errno : 0);
		map = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->ro, offset);
		ATTEMPT(map == MAP_FAILED && (errno == EACCES || errno == EOVERFLOW), 1);
	} else {
		/* Not even the producer maps an import by its handle */
		ATTEMPT(-EINVAL, map_offset(theirs, prime.handle, &offset));
	}
	EXPECT_EQ(0, close_handle(theirs, prime.handle));
	close(ours);
	close(theirs);
}

/* A udmabuf is made of memfds, which a dma-buf is not */
TEST_F(escape, udmabuf_of_it)
{
	struct udmabuf_create create = { .memfd = self->ro, .size = SIZE };
	int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);

	if (dev < 0)
		SKIP(return, "no udmabuf");
	ATTEMPT(-EBADFD, buf_ioctl(dev, UDMABUF_CREATE, &create));
	ATTEMPT(-EPERM, sys(fcntl(self->ro, F_ADD_SEALS, F_SEAL_SHRINK)));
	close(dev);
}

static const int writing[] = {
	O_RDWR, O_WRONLY, O_RDONLY, O_ACCMODE, O_RDWR | O_TRUNC, O_RDWR | O_APPEND,
};

static void reopen_path(struct __test_metadata *_metadata, const char *path)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(writing); i++)
		ATTEMPT(-ENXIO, sys(open(path, writing[i] | O_CLOEXEC)));
}

TEST_F(escape, reopen)
{
	char name[64];
	int path, fd;
	pid_t pid;
	size_t i;

	snprintf(name, sizeof(name), "/proc/self/fd/%d", self->ro);
	reopen_path(_metadata, name);
	ATTEMPT(-EINVAL, sys(truncate(name, 0)));

	pid = idle_child();
	ASSERT_GT(pid, 0);
	snprintf(name, sizeof(name), "/proc/%d/fd/%d", pid, self->ro);
	reopen_path(_metadata, name);
	end_child(pid);

	path = reopen(self->ro, O_PATH);
	ASSERT_GE(path, 0);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", path);
	reopen_path(_metadata, name);
	for (i = 0; i < ARRAY_SIZE(writing); i++) {
		ATTEMPT(-ENXIO, sys(openat(self->ro, "", writing[i] | O_EMPTYPATH)));
		ATTEMPT(-ENXIO, sys(openat(path, "", writing[i] | O_EMPTYPATH)));
	}
	ATTEMPT(-EBADF, derive(path, O_RDWR));
	ATTEMPT(-EBADF, map_fd(NULL, PROT_READ | PROT_WRITE, MAP_SHARED, path));
	close(path);

	/* The mode of the inode is that of the buffer, and opens nothing */
	fd = fchmod(self->ro, 0666);
	ATTEMPT(-ENXIO, reopen(self->ro, O_RDWR));
	TH_LOG("fchmod(): %s", result(sys(fd)));
}

TEST_F(escape, file_handle)
{
	struct {
		struct file_handle head;
		char id[MAX_HANDLE_SZ];
	} handle = { .head.handle_bytes = MAX_HANDLE_SZ };
	struct file_handle *h = &handle.head;
	int mount, i;

	ATTEMPT(-EOPNOTSUPP, sys(name_to_handle_at(self->ro, "", h, &mount, AT_EMPTY_PATH)));
	/* There are handles that only tell files apart */
	ATTEMPT(0, sys(name_to_handle_at(self->ro, "", h, &mount,
					 AT_EMPTY_PATH | AT_HANDLE_FID)));
	for (i = 0; i < 4; i++)
		ATTEMPT(-ESTALE, sys(open_by_handle_at(self->ro, h, writing[i])));
}

/* No exporter here has a file of its own in the mapping: it is the dma-buf again */
TEST_F(escape, map_files)
{
	unsigned long start = (unsigned long)self->p;
	char name[80], link[64];
	int path;
	pid_t pid;

	snprintf(name, sizeof(name), "/proc/self/map_files/%lx-%lx", start, start + SIZE);
	ASSERT_LT(0, readlink(name, link, sizeof(link)));
	EXPECT_EQ(0, strncmp(link, "/dmabuf:", 8));
	path = open(name, O_PATH | O_CLOEXEC);
	if (path < 0 && errno == EPERM)
		SKIP(return, "CAP_CHECKPOINT_RESTORE is needed");
	ASSERT_GE(path, 0);
	EXPECT_EQ(inode_of(self->buf), inode_of(path));
	reopen_path(_metadata, name);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", path);
	reopen_path(_metadata, name);
	close(path);

	pid = idle_child();
	ASSERT_GT(pid, 0);
	snprintf(name, sizeof(name), "/proc/%d/map_files/%lx-%lx", pid, start, start + SIZE);
	reopen_path(_metadata, name);
	end_child(pid);
}

/* Other places in the file system, and other ways to be opened */
TEST_F(escape, mount_and_link)
{
	char name[64], target[] = "/tmp/derive.XXXXXX";
	char *const argv[] = { "x", NULL };
	int fd = mkstemp(target);

	ASSERT_GE(fd, 0);
	close(fd);
	snprintf(name, sizeof(name), "/proc/self/fd/%d", self->ro);
	ATTEMPT(-EINVAL, sys(syscall(SYS_open_tree, self->ro, "",
				     AT_EMPTY_PATH | 1 /* OPEN_TREE_CLONE */)));
	ATTEMPT(-EINVAL, sys(mount(name, target, NULL, MS_BIND, NULL)));
	unlink(target);
	ATTEMPT(-EXDEV, sys(linkat(self->ro, "", AT_FDCWD, target, AT_EMPTY_PATH)));
	ATTEMPT(-EXDEV, sys(linkat(AT_FDCWD, name, AT_FDCWD, target, AT_SYMLINK_FOLLOW)));
	ATTEMPT(-EACCES, sys(syscall(SYS_execveat, self->ro, "", argv, NULL, AT_EMPTY_PATH)));
	ATTEMPT(-EACCES, sys(prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, self->ro, 0, 0)));
}

TEST_F(escape, duplicates)
{
	static const int flags[] = { O_RDWR, O_WRONLY, O_RDWR | O_APPEND, O_RDWR | O_NONBLOCK };
	size_t i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		ATTEMPT(0, sys(fcntl(self->ro, F_SETFL, flags[i])));
		readonly(_metadata, self->ro);
	}
	ATTEMPT(-EINVAL, sys(fcntl(self->ro, F_SETFL, O_RDWR | O_DIRECT)));
	ATTEMPT(0, sys(fcntl(self->ro, F_SETFL, O_RDONLY)));

	fd = fcntl(self->ro, F_DUPFD_CLOEXEC, 50);
	ASSERT_GE(fd, 50);
	readonly(_metadata, fd);
	close(fd);
	fd = fcntl(self->ro, F_DUPFD, 50);
	ASSERT_GE(fd, 50);
	readonly(_metadata, fd);
	close(fd);
	ASSERT_EQ(50, dup2(self->ro, 50));
	readonly(_metadata, 50);
	ATTEMPT(-EINVAL, sys(dup3(self->ro, 50, O_RDWR)));
	ASSERT_EQ(50, dup3(self->ro, 50, O_CLOEXEC));
	readonly(_metadata, 50);
	EXPECT_EQ(0, same_file(self->ro, 50));
	close(50);
}

TEST_F(escape, pidfd_getfd)
{
	pid_t pid = idle_child();
	int pidfd, fd;

	ASSERT_GT(pid, 0);
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	ASSERT_GE(pidfd, 0);
	ATTEMPT(-EINVAL, sys(syscall(SYS_pidfd_getfd, pidfd, self->ro, O_RDWR)));
	fd = syscall(SYS_pidfd_getfd, pidfd, self->ro, 0);
	ASSERT_GE(fd, 0);
	readonly(_metadata, fd);
	EXPECT_EQ(0, same_file(self->ro, fd));
	close(fd);
	close(pidfd);
	end_child(pid);
}

TEST_F(escape, scm_rights_twice)
{
	int sock[2], fd;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		fd = recv_fd(sock[1]);
		_exit(send_fd(sock[1], fd) || derive(fd, O_RDWR) != -EACCES);
	}
	ASSERT_EQ(0, send_fd(sock[0], self->ro));
	fd = recv_fd(sock[0]);
	ASSERT_GE(fd, 0);
	EXPECT_EQ(0, exit_of(pid));
	readonly(_metadata, fd);
	EXPECT_EQ(0, same_file(self->ro, fd));
	close(fd);
}

TEST_F(escape, mmap)
{
	const int r = PROT_READ, w = PROT_WRITE, x = PROT_EXEC;
	const struct {
		const char *what;
		int prot, flags;
		long expected;
	} maps[] = {
		{ "rw", r | w, MAP_SHARED, -EACCES },
		{ "w", w, MAP_SHARED, -EACCES },
		{ "rwx", r | w | x, MAP_SHARED, -EACCES },
		{ "rw validate", r | w, MAP_SHARED_VALIDATE, -EACCES },
		{ "rw sync", r | w, MAP_SHARED | MAP_SYNC, -EACCES },
		{ "rw validate sync", r | w, MAP_SHARED_VALIDATE | MAP_SYNC, -EOPNOTSUPP },
		{ "r validate sync", r, MAP_SHARED_VALIDATE | MAP_SYNC, -EOPNOTSUPP },
		{ "rw growsdown", r | w, MAP_SHARED | MAP_GROWSDOWN, -EACCES },
		{ "r growsdown", r, MAP_SHARED | MAP_GROWSDOWN, -EINVAL },
		{ "rw populate", r | w, MAP_SHARED | MAP_POPULATE, -EACCES },
		{ "rw locked", r | w, MAP_SHARED | MAP_LOCKED, -EACCES },
		{ "rw hugetlb", r | w, MAP_SHARED | MAP_HUGETLB, -EINVAL },
		{ "rw droppable", r | w, MAP_DROPPABLE, -EINVAL },
		{ "rw no type", r | w, 0, -EINVAL },
		/* A private mapping would be a copy; these exporters have none */
		{ "rw private", r | w, MAP_PRIVATE, -EINVAL },
		{ "r private", r, MAP_PRIVATE, -EINVAL },
		{ "rw private populate", r | w, MAP_PRIVATE | MAP_POPULATE, -EINVAL },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(maps); i++)
		attempt(_metadata, maps[i].what, maps[i].expected,
			map_fd(NULL, maps[i].prot, maps[i].flags, self->ro));

	/* Over the mapping that there is, which stays if the new one is refused */
	ATTEMPT(-EACCES, map_fd(self->p, r | w, MAP_SHARED | MAP_FIXED, self->ro));
	ATTEMPT(-EEXIST, map_fd(self->p, r, MAP_SHARED | MAP_FIXED_NOREPLACE, self->ro));
	EXPECT_EQ(0, memcmp(self->p, want, SIZE));
	/* and is gone if it is not */
	ATTEMPT(0, map_fd(self->p, r | w, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1));
	memset(self->p, 0xff, SIZE);
	ATTEMPT(0, map_fd(self->p, r, MAP_SHARED | MAP_FIXED, self->ro));
	EXPECT_EQ(0, memcmp(self->p, want, SIZE));
	ATTEMPT(SIGSEGV, store(self->p));
}

TEST_F(escape, mremap)
{
	const size_t page = getpagesize();
	uint8_t *p = self->p, *to = self->own;

	ATTEMPT(-EFAULT, remap(p, SIZE, SIZE + page, 0, NULL));
	ATTEMPT(-EFAULT, remap(p, SIZE, 2 * SIZE, MREMAP_MAYMOVE, NULL));
	ATTEMPT(-EFAULT, remap(p + SIZE - page, page, 2 * page, MREMAP_MAYMOVE, NULL));
	/* a second one of the same pages */
	ATTEMPT(-EFAULT, remap(p, 0, SIZE, MREMAP_MAYMOVE, NULL));
	ATTEMPT(-EFAULT, remap(p, 0, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	ATTEMPT(-EINVAL, remap(p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, NULL));

	/* into the place of memory that could be written */
	ATTEMPT(0, remap(p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_EQ(0, memcmp(to, want, SIZE));
	ATTEMPT(SIGSEGV, store(to));
	ATTEMPT(-EACCES, sys(mprotect(to, SIZE, PROT_READ | PROT_WRITE)));
	ATTEMPT(-EIO, write_proc_mem(to, 0x55));
	ATTEMPT(0, remap(to, SIZE, page, 0, NULL));
	ATTEMPT(-EFAULT, remap(to, page, SIZE, MREMAP_MAYMOVE, NULL));
	ATTEMPT(SIGSEGV, store(to));
}

TEST_F(escape, mprotect)
{
	const int rw = PROT_READ | PROT_WRITE;
	uint8_t *p = self->p;
	long ret;

	ATTEMPT(-EACCES, sys(mprotect(p, SIZE, rw)));
	ATTEMPT(-EACCES, sys(mprotect(p, SIZE, PROT_WRITE)));
	ATTEMPT(-EACCES, sys(mprotect(p, SIZE, rw | PROT_EXEC)));
	ATTEMPT(-EACCES, sys(mprotect(p + SIZE / 2, getpagesize(), rw)));
	ATTEMPT(-EINVAL, sys(mprotect(p, SIZE, rw | PROT_GROWSDOWN)));
	ATTEMPT(0, sys(mprotect(p, SIZE, PROT_NONE)));
	ATTEMPT(-EACCES, sys(mprotect(p, SIZE, rw)));
	ATTEMPT(0, sys(mprotect(p, SIZE, PROT_READ)));
	ATTEMPT(SIGSEGV, store(p));

	/* key -1 is mprotect(); the call is there on architectures with keys */
	ret = sys(syscall(SYS_pkey_mprotect, p, SIZE, rw, -1));
	ATTEMPT(absent(ret) ? ret : -EACCES, ret);
	ATTEMPT(-EINVAL, sys(syscall(SYS_remap_file_pages, p, SIZE, 0, 0, 0)));
	ATTEMPT(-EINVAL, sys(syscall(SYS_remap_file_pages, p, getpagesize(), 0, 1, 0)));
	ATTEMPT(SIGSEGV, store(p));

	/* A range that begins in other memory gets as far as that */
	p = mmap(NULL, 2 * SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(p != MAP_FAILED);
	ATTEMPT(0, map_fd(p + SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, self->ro));
	ATTEMPT(-EACCES, sys(mprotect(p, 2 * SIZE, rw)));
	ATTEMPT(0, store(p));
	ATTEMPT(SIGSEGV, store(p + SIZE));
	munmap(p, 2 * SIZE);
}

/* Of an fd that survives exec(), in a program that has nothing else */
static int exec_attempts(int fd)
{
	void *p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);

	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY || p == MAP_FAILED)
		return 1;
	if (try_mmap(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED) != -EACCES)
		return 2;
	if (derive(fd, O_WRONLY) != -EACCES || derive(fd, O_RDWR) != -EACCES)
		return 3;
	if (!mprotect(p, SIZE, PROT_READ | PROT_WRITE) || errno != EACCES)
		return 4;
	if (write_proc_mem(p, 0x55) != -EIO || store(p) != SIGSEGV)
		return 5;
	return reopen(fd, O_RDWR) == -ENXIO ? 0 : 6;
}

static __attribute__((constructor)) void exec_child(void)
{
	const char *fd = getenv("DERIVE_ESCAPE_FD");

	if (fd)
		_exit(exec_attempts(atoi(fd)));
}

static int fork_attempts(uint8_t *none, uint8_t *p)
{
	if (!mprotect(none, SIZE, PROT_READ | PROT_WRITE) || errno != EACCES)
		return 1;
	if (!mprotect(p, SIZE, PROT_READ | PROT_WRITE) || errno != EACCES)
		return 2;
	if (mprotect(none, SIZE, PROT_READ) || memcmp(none, want, SIZE))
		return 3;
	if (write_proc_mem(none, 0x55) != -EIO || write_proc_mem(p, 0x55) != -EIO)
		return 4;
	return store(none) == SIGSEGV && store(p) == SIGSEGV ? 0 : 5;
}

TEST_F(escape, fork_and_exec)
{
	uint8_t *none = mmap(NULL, SIZE, PROT_NONE, MAP_SHARED, self->ro, 0);
	char env[32], *envp[] = { env, NULL }, *argv[] = { "x", NULL };
	pid_t pid;
	int fd;

	ASSERT_TRUE(none != MAP_FAILED);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(fork_attempts(none, self->p));
	ATTEMPT(0, exit_of(pid));

	fd = dup(self->ro);
	ASSERT_GE(fd, 0);
	snprintf(env, sizeof(env), "DERIVE_ESCAPE_FD=%d", fd);
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		execve("/proc/self/exe", argv, envp);
		_exit(127);
	}
	ATTEMPT(0, exit_of(pid));
	close(fd);
}

TEST_F(escape, file_operations)
{
	char bytes[8] = "derived";
	struct iovec iov = { bytes, sizeof(bytes) };
	int memfd = memfd_create("escape", MFD_CLOEXEC), ro = self->ro;
	loff_t zero = 0;

	ASSERT_EQ(8, write(memfd, bytes, sizeof(bytes)));
	ATTEMPT(-EBADF, sys(write(ro, bytes, 8)));
	ATTEMPT(-EBADF, sys(writev(ro, &iov, 1)));
	ATTEMPT(-ESPIPE, sys(pwrite(ro, bytes, 8, 0)));
	ATTEMPT(-ESPIPE, sys(pwritev2(ro, &iov, 1, 0, 0)));
	ATTEMPT(-EBADF, sys(fallocate(ro, 0, 0, SIZE)));
	ATTEMPT(-EBADF, sys(fallocate(ro, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, SIZE)));
	ATTEMPT(-EBADF, sys(fallocate(ro, FALLOC_FL_ZERO_RANGE, 0, SIZE)));
	ATTEMPT(-EINVAL, sys(ftruncate(ro, 0)));
	ATTEMPT(-EBADF, sys(sendfile(ro, memfd, &zero, 8)));
	zero = 0;
	ATTEMPT(-EINVAL, sys(copy_file_range(memfd, &zero, ro, NULL, 8, 0)));
	ATTEMPT(-EXDEV, buf_ioctl(ro, FICLONE, (void *)(long)memfd));
	ATTEMPT(-EINVAL, sys(read(ro, bytes, 8)));
	close(memfd);
}

TEST_F(escape, splice)
{
	int memfd = memfd_create("escape", MFD_CLOEXEC), in[2], out[2];
	struct iovec iov = { self->own, 64 };

	ASSERT_EQ(0, pipe2(in, O_CLOEXEC | O_NONBLOCK));
	ASSERT_EQ(0, pipe2(out, O_CLOEXEC | O_NONBLOCK));

	/* The pages of the mapping as those of a pipe, and a pipe's content to it */
	ASSERT_EQ(64, vmsplice(in[1], &iov, 1, 0));
	ASSERT_EQ(64, vmsplice(in[0], &iov, 1, 0));
	ASSERT_EQ(64, write(in[1], self->own + 1024, 64));
	iov.iov_base = self->p;
	ATTEMPT(-EFAULT, sys(vmsplice(out[1], &iov, 1, 0)));
	ATTEMPT(-EFAULT, sys(vmsplice(out[1], &iov, 1, SPLICE_F_GIFT)));
	ATTEMPT(-EFAULT, sys(vmsplice(in[0], &iov, 1, 0)));

	ASSERT_EQ(64, write(in[1], self->own + 1024, 64));
	ATTEMPT(-EBADF, sys(splice(in[0], NULL, self->ro, NULL, 64, 0)));
	ATTEMPT(-EINVAL, sys(splice(self->ro, NULL, out[1], NULL, 64, 0)));
	ATTEMPT(-EBADF, sys(tee(in[0], self->ro, 64, 0)));
	ATTEMPT(-EINVAL, sys(tee(self->ro, out[1], 64, 0)));
	ATTEMPT(-EINVAL, sys(sendfile(out[1], self->ro, NULL, 64)));
	ATTEMPT(-EINVAL, sys(copy_file_range(self->ro, NULL, memfd, NULL, 64, 0)));
	close(memfd);
}

/* What system calls are given as the place for what they have to tell */
enum { MEMFD = 100, PIPE, SOCK, EPOLL, CLONE_OF_RO };

static struct iovec dest = { .iov_len = 64 };
static struct msghdr msg = { .msg_iov = &dest, .msg_iovlen = 1 };
static struct __user_cap_header_struct caps = { .version = _LINUX_CAPABILITY_VERSION_3 };
static long no_time[4], sock_len = sizeof(int);

/* stand for the address that is tried, and for other memory */
#define P	0x7ead0001L
#define OTHER	0x7ead0002L

static const struct {
	const char *what;
	long nr, arg[6];
} copies[] = {
	{ "read", SYS_read, { PIPE, P, 64 } },
	{ "pread", SYS_pread64, { MEMFD, P, 64 } },
	{ "readv", SYS_readv, { MEMFD, (long)&dest, 1 } },
	{ "preadv", SYS_preadv, { MEMFD, (long)&dest, 1 } },
	{ "recvfrom", SYS_recvfrom, { SOCK, P, 64, MSG_PEEK } },
	{ "recvmsg", SYS_recvmsg, { SOCK, (long)&msg, MSG_PEEK } },
	{ "getrandom", SYS_getrandom, { P, 64, 0 } },
	{ "getcwd", SYS_getcwd, { P, 64 } },
	{ "readlinkat", SYS_readlinkat, { AT_FDCWD, (long)"/proc/self/exe", P, 64 } },
	{ "uname", SYS_uname, { P } },
	{ "sysinfo", SYS_sysinfo, { P } },
	{ "statx", SYS_statx, { AT_FDCWD, (long)"/", 0, STATX_BASIC_STATS, P } },
	{ "clock_gettime", SYS_clock_gettime, { CLOCK_MONOTONIC, P } },
	{ "gettimeofday", SYS_gettimeofday, { P, 0 } },
	{ "times", SYS_times, { P } },
	{ "getrusage", SYS_getrusage, { RUSAGE_SELF, P } },
	{ "prlimit", SYS_prlimit64, { 0, RLIMIT_NOFILE, 0, P } },
	{ "getitimer", SYS_getitimer, { ITIMER_REAL, P } },
	{ "sched_getaffinity", SYS_sched_getaffinity, { 0, 64, P } },
	{ "sched_getparam", SYS_sched_getparam, { 0, P } },
	{ "rt_sigprocmask", SYS_rt_sigprocmask, { SIG_BLOCK, 0, P, 8 } },
	{ "rt_sigpending", SYS_rt_sigpending, { P, 8 } },
	{ "rt_sigaction", SYS_rt_sigaction, { SIGUSR1, 0, P, 8 } },
	{ "sigaltstack", SYS_sigaltstack, { 0, P } },
	{ "capget", SYS_capget, { (long)&caps, P } },
	{ "getsockname", SYS_getsockname, { SOCK, P, (long)&sock_len } },
	{ "getsockopt", SYS_getsockopt, { SOCK, SOL_SOCKET, SO_TYPE, P, (long)&sock_len } },
	{ "socketpair", SYS_socketpair, { AF_UNIX, SOCK_STREAM, 0, P } },
	{ "pipe2", SYS_pipe2, { P, 0 } },
	{ "ppoll", SYS_ppoll, { P, 1, (long)no_time, 0, 8 } },
	{ "pselect6", SYS_pselect6, { 1, P, 0, 0, (long)no_time, 0 } },
	{ "epoll_pwait", SYS_epoll_pwait, { EPOLL, P, 1, 0, 0, 8 } },
	{ "mincore", SYS_mincore, { OTHER, SIZE, P } },
	{ "get_robust_list", SYS_get_robust_list, { 0, P, (long)no_time } },
	{ "FIONREAD", SYS_ioctl, { PIPE, FIONREAD, P } },
	{ "DERIVE", SYS_ioctl, { CLONE_OF_RO, (long)DMA_BUF_IOCTL_DERIVE, P } },
	{ "FS_IOC_GETFLAGS", SYS_ioctl, { MEMFD, (long)FS_IOC_GETFLAGS, P } },
};

static long copy_to(size_t i, uint8_t *p, uint8_t *other)
{
	long arg[6];
	int j;

	for (j = 0; j < 6; j++) {
		arg[j] = copies[i].arg[j];
		if (arg[j] == P)
			arg[j] = (long)p;
		if (arg[j] == OTHER)
			arg[j] = (long)other;
	}
	dest.iov_base = p;
	sock_len = sizeof(int);
	return sys(syscall(copies[i].nr, arg[0], arg[1], arg[2], arg[3], arg[4], arg[5]));
}

/* The fds of the table; each of them has something to read */
static bool copy_sources(int ro)
{
	struct epoll_event event = { .events = EPOLLIN };
	int pipefd[2], sock[2];

	if (pipe2(pipefd, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_STREAM, 0, sock))
		return false;
	if (write(pipefd[1], want + 1024, 256) != 256 || write(sock[1], want + 1024, 256) != 256)
		return false;
	dup2(memfd_create("escape", 0), MEMFD);
	dup2(pipefd[0], PIPE);
	dup2(sock[0], SOCK);
	dup2(epoll_create1(0), EPOLL);
	dup2(ro, CLONE_OF_RO);
	return write(MEMFD, want + 1024, 4096) == 4096 && !lseek(MEMFD, 0, SEEK_SET) &&
	       !epoll_ctl(EPOLL, EPOLL_CTL_ADD, PIPE, &event);
}

TEST_F(escape, kernel_copies)
{
	size_t i;

	ASSERT_TRUE(copy_sources(self->ro));
	for (i = 0; i < ARRAY_SIZE(copies); i++) {
		EXPECT_LE(0, copy_to(i, self->own, self->own)) {
			TH_LOG("%s does not work anyway", copies[i].what);
		}
		memcpy(self->own, want, SIZE);
		attempt(_metadata, copies[i].what, -EFAULT,
			copy_to(i, self->p, self->own));
	}
}

TEST_F(escape, direct_io)
{
	char name[] = "/tmp/derive.XXXXXX";
	int fd = mkostemp(name, O_DIRECT | O_CLOEXEC), page = getpagesize();

	if (fd < 0 && errno == EINVAL)
		SKIP(return, "no O_DIRECT in /tmp");
	ASSERT_GE(fd, 0);
	unlink(name);
	memset(self->own, 0x55, page);
	ASSERT_EQ(page, pwrite(fd, self->own, page, 0));
	ASSERT_EQ(page, pread(fd, self->own, page, 0));
	ATTEMPT(-EFAULT, sys(pread(fd, self->p, page, 0)));
	/* Here it would be the source */
	memset(self->own, 0, page);
	close(fd);
}

static long aio_read(int fd, void *p)
{
	struct iocb cb = {
		.aio_lio_opcode = IOCB_CMD_PREAD,
		.aio_fildes = fd,
		.aio_buf = (uintptr_t)p,
		.aio_nbytes = 64,
	}, *list = &cb;
	struct io_event event = {};
	aio_context_t ctx = 0;
	long ret;

	if (syscall(SYS_io_setup, 1, &ctx))
		return -errno;
	if (syscall(SYS_io_submit, ctx, 1, &list) != 1)
		ret = -errno;
	else if (syscall(SYS_io_getevents, ctx, 1, 1, &event, NULL) != 1)
		ret = -errno;
	else
		ret = event.res;
	syscall(SYS_io_destroy, ctx);
	return ret;
}

TEST_F(escape, aio)
{
	int fd = memfd_create("escape", MFD_CLOEXEC);
	long ret;

	ASSERT_EQ(64, write(fd, want + 1024, 64));
	ret = aio_read(fd, self->own);
	if (absent(ret))
		SKIP(return, "no AIO");
	EXPECT_EQ(64, ret);
	ATTEMPT(-EFAULT, aio_read(fd, self->p));
	ATTEMPT(-EFAULT, sys(syscall(SYS_io_setup, 1, self->p)));
	close(fd);
}

struct ring {
	int fd;
	uint8_t *rings;
	struct io_uring_sqe *sqes;
	struct io_uring_params p;
};

static int ring_setup(struct ring *r)
{
	size_t size;

	memset(r, 0, sizeof(*r));
	r->fd = syscall(SYS_io_uring_setup, 4, &r->p);
	if (r->fd < 0)
		return -errno;
	size = r->p.cq_off.cqes + r->p.cq_entries * sizeof(struct io_uring_cqe);
	if (size < r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t))
		size = r->p.sq_off.array + r->p.sq_entries * sizeof(uint32_t);
	r->rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
			IORING_OFF_SQ_RING);
	r->sqes = mmap(NULL, r->p.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE,
		       MAP_SHARED, r->fd, IORING_OFF_SQES);
	return r->rings == MAP_FAILED || r->sqes == MAP_FAILED ? -ENOMEM : 0;
}

static uint32_t *ring_word(struct ring *r, uint32_t offset)
{
	return (uint32_t *)(r->rings + offset);
}

/* One operation, and its result */
static long ring_run(struct ring *r, struct io_uring_sqe sqe)
{
	uint32_t tail = *ring_word(r, r->p.sq_off.tail);
	uint32_t mask = *ring_word(r, r->p.sq_off.ring_mask);
	uint32_t head = *ring_word(r, r->p.cq_off.head);
	struct io_uring_cqe *cqes = (void *)(r->rings + r->p.cq_off.cqes);
	long res;

	r->sqes[tail & mask] = sqe;
	ring_word(r, r->p.sq_off.array)[tail & mask] = tail & mask;
	__atomic_store_n(ring_word(r, r->p.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) != 1)
		return -errno;
	if (__atomic_load_n(ring_word(r, r->p.cq_off.tail), __ATOMIC_ACQUIRE) == head)
		return -ENODATA;
	res = cqes[head & *ring_word(r, r->p.cq_off.ring_mask)].res;
	__atomic_store_n(ring_word(r, r->p.cq_off.head), head + 1, __ATOMIC_RELEASE);
	return res;
}

static long ring_op(struct ring *r, int op, int fd, void *addr, unsigned int len)
{
	return ring_run(r, (struct io_uring_sqe) {
		.opcode = op, .fd = fd, .addr = (uintptr_t)addr, .len = len,
	});
}

static long ring_register(struct ring *r, int op, void *arg, unsigned int n)
{
	return sys(syscall(SYS_io_uring_register, r->fd, op, arg, n));
}

TEST_F(escape, uring_registered_buffers)
{
	struct iovec iov = { self->p, SIZE };
	struct io_uring_rsrc_update2 update = {
		.data = (uintptr_t)&iov,
		.nr = 1,
	};
	struct io_uring_rsrc_register sparse = {
		.nr = 1,
		.flags = IORING_RSRC_REGISTER_SPARSE,
	};
	int memfd = memfd_create("escape", MFD_CLOEXEC);
	struct ring r;
	long err;

	err = ring_setup(&r);
	if (absent(err))
		SKIP(return, "no io_uring");
	ASSERT_EQ(0, err);
	ASSERT_EQ(64, write(memfd, want + 1024, 64));
	ATTEMPT(-EFAULT, ring_register(&r, IORING_REGISTER_BUFFERS, &iov, 1));
	ATTEMPT(0, ring_register(&r, IORING_REGISTER_BUFFERS2, &sparse, sizeof(sparse)));
	ATTEMPT(-EFAULT, ring_register(&r, IORING_REGISTER_BUFFERS_UPDATE, &update,
				       sizeof(update)));
	ATTEMPT(-EFAULT, ring_op(&r, IORING_OP_READ_FIXED, memfd, self->p, 64));

	/* Other memory that is registered stays that, whatever comes in its place */
	iov.iov_base = self->own;
	ATTEMPT(1, ring_register(&r, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof(update)));
	ATTEMPT(0, map_fd(self->own, PROT_READ, MAP_SHARED | MAP_FIXED, self->ro));
	ATTEMPT(64, ring_op(&r, IORING_OP_READ_FIXED, memfd, self->own, 64));
	EXPECT_EQ(0, memcmp(self->own, want, SIZE));
	close(memfd);
}

TEST_F(escape, uring_reads)
{
	int memfd = memfd_create("escape", MFD_CLOEXEC), sock[2];
	struct iovec iov = { self->p, 64 };
	struct ring r;
	long err;

	err = ring_setup(&r);
	if (absent(err))
		SKIP(return, "no io_uring");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock));
	ASSERT_EQ(64, write(memfd, want + 1024, 64));
	ASSERT_EQ(64, write(sock[1], want + 1024, 64));
	ASSERT_EQ(64, ring_op(&r, IORING_OP_READ, memfd, self->own, 64));
	ATTEMPT(-EFAULT, ring_op(&r, IORING_OP_READ, memfd, self->p, 64));
	ATTEMPT(-EFAULT, ring_op(&r, IORING_OP_READV, memfd, &iov, 1));
	ATTEMPT(-EFAULT, ring_op(&r, IORING_OP_RECV, sock[0], self->p, 64));
	ATTEMPT(-EFAULT, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_STATX, .fd = AT_FDCWD, .addr = (uintptr_t)"/",
		.len = STATX_BASIC_STATS, .off = (uintptr_t)self->p }));

	/* as one of the buffers that the kernel is to choose from */
	ATTEMPT(0, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_PROVIDE_BUFFERS, .fd = 1, .addr = (uintptr_t)self->p,
		.len = 64, .buf_group = 1 }));
	ATTEMPT(-EFAULT, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_READ, .fd = memfd, .len = 64, .buf_group = 1,
		.flags = IOSQE_BUFFER_SELECT }));
	close(memfd);
}

TEST_F(escape, uring_registered_files)
{
	struct ring r;
	long err;
	char name[32];
	int fd;

	err = ring_setup(&r);
	if (absent(err))
		SKIP(return, "no io_uring");
	ASSERT_EQ(0, err);
	ATTEMPT(0, ring_register(&r, IORING_REGISTER_FILES, &self->ro, 1));
	ATTEMPT(-EBADF, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_WRITE, .flags = IOSQE_FIXED_FILE,
		.addr = (uintptr_t)self->own, .len = 64 }));
	ATTEMPT(-EBADF, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_FALLOCATE, .flags = IOSQE_FIXED_FILE, .addr = SIZE }));
	ATTEMPT(-EINVAL, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_FTRUNCATE, .flags = IOSQE_FIXED_FILE }));
	ATTEMPT(-EOPNOTSUPP, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_URING_CMD, .flags = IOSQE_FIXED_FILE,
		.cmd_op = DMA_BUF_IOCTL_DERIVE }));
	snprintf(name, sizeof(name), "/proc/self/fd/%d", self->ro);
	ATTEMPT(-ENXIO, ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uintptr_t)name,
		.open_flags = O_RDWR }));

	fd = ring_run(&r, (struct io_uring_sqe) {
		.opcode = IORING_OP_FIXED_FD_INSTALL, .flags = IOSQE_FIXED_FILE });
	ASSERT_GE(fd, 0);
	readonly(_metadata, fd);
	EXPECT_EQ(0, same_file(self->ro, fd));
	close(fd);
}

/* Rings in memory of the program's, which the kernel writes to */
static long rings_at(void *rings, void *sqes)
{
	struct io_uring_params p = {
		.flags = IORING_SETUP_NO_MMAP,
		.cq_off.user_addr = (uintptr_t)rings,
		.sq_off.user_addr = (uintptr_t)sqes,
	};
	int fd = syscall(SYS_io_uring_setup, 4, &p);

	if (fd < 0)
		return -errno;
	close(fd);
	return 0;
}

TEST_F(escape, uring_in_the_mapping)
{
	const unsigned int page = getpagesize();
	struct io_uring_buf_reg buf = { .ring_entries = 4, .bgid = 1 };
	struct io_uring_region_desc desc = {
		.user_addr = (uintptr_t)self->own,
		.size = page,
		.flags = IORING_MEM_REGION_TYPE_USER,
	};
	struct io_uring_mem_region_reg region = { .region_uptr = (uintptr_t)&desc };
	struct ring r;
	long err;

	err = ring_setup(&r);
	if (absent(err))
		SKIP(return, "no io_uring");
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, rings_at(self->own, self->own + page));
	ATTEMPT(-EFAULT, rings_at(self->p, self->own + page));
	ATTEMPT(-EFAULT, rings_at(self->own, self->p + page));

	buf.ring_addr = (uintptr_t)self->p;
	ATTEMPT(-EFAULT, ring_register(&r, IORING_REGISTER_PBUF_RING, &buf, 1));
	buf.ring_addr = (uintptr_t)self->own;
	EXPECT_EQ(0, ring_register(&r, IORING_REGISTER_PBUF_RING, &buf, 1));

	desc.user_addr = (uintptr_t)self->p;
	ATTEMPT(-EFAULT, ring_register(&r, IORING_REGISTER_MEM_REGION, &region, 1));
	desc.user_addr = (uintptr_t)self->own;
	EXPECT_EQ(0, ring_register(&r, IORING_REGISTER_MEM_REGION, &region, 1));
}

static long poke(int request, pid_t pid, void *p)
{
	return sys(ptrace(request, pid, p, (void *)0x5555L));
}

TEST_F(escape, ptrace_child)
{
	int status;
	pid_t pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSTOPPED(status));
	ASSERT_EQ(0, poke(PTRACE_POKEDATA, pid, self->own));
	ATTEMPT(-EIO, poke(PTRACE_POKEDATA, pid, self->p));
	ATTEMPT(-EIO, poke(PTRACE_POKETEXT, pid, self->p));
	ATTEMPT(-EIO, poke(PTRACE_POKEDATA, pid, self->p + SIZE - sizeof(long)));

	/* The tracer's own mapping, as the place for the registers */
	dest = (struct iovec) { self->own, 1024 };
	ASSERT_EQ(0, ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &dest));
	dest = (struct iovec) { self->p, 1024 };
	ATTEMPT(-EFAULT, sys(ptrace(PTRACE_GETREGSET, pid, NT_PRSTATUS, &dest)));
	end_child(pid);
}

/* The same from a child: 0 if the parent's mapping is not written */
static int trace_parent(pid_t pid, void *own, void *p)
{
	int status, ret = 0;

	if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) || ptrace(PTRACE_INTERRUPT, pid, NULL, NULL) ||
	    waitpid(pid, &status, __WALL) != pid)
		return errno;
	if (poke(PTRACE_POKEDATA, pid, own))
		ret = 101;
	else if (poke(PTRACE_POKEDATA, pid, p) != -EIO)
		ret = 102;
	else if (poke(PTRACE_POKETEXT, pid, p) != -EIO)
		ret = 103;
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return ret;
}

TEST_F(escape, ptrace_parent)
{
	pid_t parent = getpid(), pid = fork();

	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(trace_parent(parent, self->own, self->p));
	ATTEMPT(0, exit_of(pid));
}

static long write_mem_of(pid_t pid, void *p)
{
	char name[32];
	long ret;
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/mem", pid);
	fd = open(name, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = sys(pwrite(fd, "x", 1, (uintptr_t)p));
	close(fd);
	return ret;
}

static long vm_write(pid_t pid, void *p)
{
	struct iovec from = { "x", 1 }, to = { p, 1 };

	return sys(process_vm_writev(pid, &from, 1, &to, 1, 0));
}

static long vm_read(pid_t pid, void *to, void *from)
{
	struct iovec local = { to, 64 }, remote = { from, 64 };

	return sys(process_vm_readv(pid, &local, 1, &remote, 1, 0));
}

static int write_parent(pid_t pid, void *own, void *p)
{
	if (write_mem_of(pid, own) != 1 || write_mem_of(pid, p) != -EIO)
		return 1;
	return vm_write(pid, own) == 1 && vm_write(pid, p) == -EFAULT ? 0 : 2;
}

TEST_F(escape, other_process)
{
	pid_t parent = getpid(), pid = idle_child();

	ASSERT_GT(pid, 0);
	ASSERT_EQ(1, write_mem_of(pid, self->own));
	ATTEMPT(-EIO, write_mem_of(pid, self->p));
	ATTEMPT(-EIO, write_mem_of(getpid(), self->p));
	ASSERT_EQ(1, vm_write(pid, self->own));
	ATTEMPT(-EFAULT, vm_write(pid, self->p));
	ATTEMPT(-EFAULT, vm_write(getpid(), self->p));
	ASSERT_EQ(64, vm_read(pid, self->own, self->own + 1024));
	ATTEMPT(-EFAULT, vm_read(pid, self->p, self->own + 1024));
	end_child(pid);

	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid)
		_exit(write_parent(parent, self->own, self->p));
	ATTEMPT(0, exit_of(pid));
}

TEST_F(escape, madvise)
{
	static const struct {
		const char *what;
		int advice;
		long expected;
	} advices[] = {
		{ "MADV_REMOVE", MADV_REMOVE, -EACCES },
		{ "MADV_POPULATE_WRITE", MADV_POPULATE_WRITE, -EINVAL },
		{ "MADV_DONTNEED", MADV_DONTNEED, -EINVAL },
		{ "MADV_DONTNEED_LOCKED", MADV_DONTNEED_LOCKED, -EINVAL },
		{ "MADV_FREE", MADV_FREE, -EINVAL },
		{ "MADV_COLD", MADV_COLD, -EINVAL },
		{ "MADV_PAGEOUT", MADV_PAGEOUT, -EINVAL },
		{ "MADV_COLLAPSE", MADV_COLLAPSE, -EINVAL },
		{ "MADV_WIPEONFORK", MADV_WIPEONFORK, -EINVAL },
		{ "MADV_DOFORK", MADV_DOFORK, -EINVAL },
		{ "MADV_DODUMP", MADV_DODUMP, -EINVAL },
		{ "MADV_GUARD_INSTALL", MADV_GUARD_INSTALL, -EINVAL },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(advices); i++)
		attempt(_metadata, advices[i].what, advices[i].expected,
			sys(madvise(self->p, SIZE, advices[i].advice)));
	EXPECT_EQ(0, memcmp(self->p, want, SIZE));
	ATTEMPT(SIGSEGV, store(self->p));
}

/* With as many of the features as the kernel has that change what can be done */
static int uffd_open(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	int probe = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY), fd;

	if (probe < 0)
		return -errno;
	if (ioctl(probe, UFFDIO_API, &api))
		return -errno;
	close(probe);
	fd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	api.features &= UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_MOVE | UFFD_FEATURE_RWP;
	return ioctl(fd, UFFDIO_API, &api) ? -errno : fd;
}

static long uffd_register(int fd, void *p, uint64_t mode)
{
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)p, .len = SIZE },
		.mode = mode,
	};

	return buf_ioctl(fd, UFFDIO_REGISTER, &reg);
}

static long uffd_copy(int fd, void *to, void *from)
{
	struct uffdio_copy copy = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = getpagesize(),
	};

	return buf_ioctl(fd, UFFDIO_COPY, &copy);
}

static long uffd_move(int fd, void *to, void *from)
{
	struct uffdio_move move = {
		.dst = (uintptr_t)to,
		.src = (uintptr_t)from,
		.len = getpagesize(),
	};

	return buf_ioctl(fd, UFFDIO_MOVE, &move);
}

TEST_F(escape, userfaultfd_register)
{
	int fd = uffd_open();

	if (absent(fd))
		SKIP(return, "no userfaultfd");
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, uffd_register(fd, self->own, UFFDIO_REGISTER_MODE_MISSING));
	ATTEMPT(-EINVAL, uffd_register(fd, self->p, UFFDIO_REGISTER_MODE_MISSING));
	ATTEMPT(-EINVAL, uffd_register(fd, self->p, UFFDIO_REGISTER_MODE_WP));
	ATTEMPT(-EINVAL, uffd_register(fd, self->p, UFFDIO_REGISTER_MODE_MINOR));
	ATTEMPT(-EINVAL, uffd_register(fd, self->p, UFFDIO_REGISTER_MODE_RWP));
	ATTEMPT(-EINVAL, uffd_register(fd, self->p, UFFDIO_REGISTER_MODE_MISSING |
						    UFFDIO_REGISTER_MODE_WP));
	close(fd);
}

TEST_F(escape, userfaultfd_fill)
{
	const int rw = PROT_READ | PROT_WRITE;
	struct uffdio_range range = { .start = (uintptr_t)self->p, .len = getpagesize() };
	struct uffdio_zeropage zero = { .range = range };
	struct uffdio_continue cont = { .range = range };
	struct uffdio_writeprotect unprotect = { .range = range };
	struct uffdio_poison poison = { .range = range };
	int fd = uffd_open();
	uint8_t *anon;

	if (absent(fd))
		SKIP(return, "no userfaultfd");
	ASSERT_GE(fd, 0);
	ATTEMPT(-ENOENT, uffd_copy(fd, self->p, self->own));
	ATTEMPT(-ENOENT, buf_ioctl(fd, UFFDIO_ZEROPAGE, &zero));
	ATTEMPT(-ENOENT, buf_ioctl(fd, UFFDIO_CONTINUE, &cont));
	ATTEMPT(-ENOENT, buf_ioctl(fd, UFFDIO_WRITEPROTECT, &unprotect));
	ATTEMPT(-ENOENT, buf_ioctl(fd, UFFDIO_POISON, &poison));

	/* Pages moved into the mapping, and those of it out to where they could be written */
	anon = mmap(NULL, 2 * SIZE, rw, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(anon != MAP_FAILED);
	anon[SIZE] = 1;
	ASSERT_EQ(0, uffd_register(fd, anon, UFFDIO_REGISTER_MODE_MISSING));
	ATTEMPT(-EINVAL, uffd_move(fd, self->p, anon + SIZE));
	ATTEMPT(-EINVAL, uffd_move(fd, anon, self->p));
	ASSERT_EQ(0, uffd_move(fd, anon, anon + SIZE));
	close(fd);
}

static long futex(void *addr, int op, uint32_t val, long val2, void *addr2, uint32_t val3)
{
	return sys(syscall(SYS_futex, addr, op, val, val2, addr2, val3));
}

TEST_F(escape, futex)
{
	static const int private[] = { FUTEX_PRIVATE_FLAG, 0 };
	const uint32_t set = FUTEX_OP(FUTEX_OP_SET, 0x55, FUTEX_OP_CMP_EQ, 0);
	uint8_t *own = self->own, *p = self->p;
	int i;

	/* The lock that is to be opened is one that this thread holds */
	plant(64, syscall(SYS_gettid));
	for (i = 0; i < 2; i++) {
		int flag = private[i];

		ASSERT_EQ(0, futex(own + 128, FUTEX_WAKE_OP | flag, 1, 1, own, set));
		ASSERT_EQ(0x55, word(own, 0));
		ATTEMPT(-EFAULT, futex(own, FUTEX_WAKE_OP | flag, 1, 1, p, set));

		ASSERT_EQ(0, futex(own + 64, FUTEX_LOCK_PI | flag, 0, 0, NULL, 0));
		ASSERT_EQ(0, futex(own + 64, FUTEX_UNLOCK_PI | flag, 0, 0, NULL, 0));
		ATTEMPT(-EFAULT, futex(p, FUTEX_LOCK_PI | flag, 0, 0, NULL, 0));
		ATTEMPT(-EFAULT, futex(p, FUTEX_TRYLOCK_PI | flag, 0, 0, NULL, 0));
		ATTEMPT(-EFAULT, futex(p + 64, FUTEX_UNLOCK_PI | flag, 0, 0, NULL, 0));
	}
}

struct robust {
	struct robust_list_head head;
	struct robust_list entry;
};

/* Dies holding the lock at futex, which the kernel then marks, if it can */
static pid_t robust_child(int sock, uint8_t *futex)
{
	static struct robust r;
	pid_t pid = fork();
	char byte;

	if (pid)
		return pid;
	r.entry.next = &r.head.list;
	r.head.list.next = &r.entry;
	r.head.futex_offset = (long)futex - (long)&r.entry;
	if (syscall(SYS_set_robust_list, &r.head, sizeof(r.head)) || read(sock, &byte, 1) != 1)
		_exit(1);
	_exit(0);
}

TEST_F(escape, robust_list)
{
	int sock[2];
	uint32_t tid;

	ASSERT_EQ(0, pipe2(sock, O_CLOEXEC));
	tid = robust_child(sock[0], self->own);
	memcpy(self->own, &tid, sizeof(tid));
	ASSERT_EQ(1, write(sock[1], "", 1));
	ASSERT_EQ(0, exit_of(tid));
	ASSERT_EQ(FUTEX_OWNER_DIED, word(self->own, 0));

	tid = robust_child(sock[0], self->p);
	plant(0, tid);
	ASSERT_EQ(1, write(sock[1], "", 1));
	ATTEMPT(0, exit_of(tid));
}

static int no_op(void *arg)
{
	(void)arg;
	return 0;
}

/* A child in the same address space, whose exit writes to what it gave as its tid */
static long clone_with(int flags, int (*fn)(void *arg), void *arg, uint8_t *parent_tid,
		       uint8_t *child_tid)
{
	static uint8_t *stack;
	pid_t pid;

	if (!stack)
		stack = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	pid = clone(fn, stack + SIZE, CLONE_VM | SIGCHLD | flags, arg, parent_tid, NULL, child_tid);

	return pid < 0 ? -errno : exit_of(pid);
}

static int set_tid_address(void *arg)
{
	syscall(SYS_set_tid_address, arg);
	return 0;
}

/* None of these tells that it could not write, but for the pidfd */
TEST_F(escape, thread_ids)
{
	const int set = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID, clear = CLONE_CHILD_CLEARTID;
	uint8_t *own = self->own, *p = self->p;

	memset(own, 0xff, 64);
	ASSERT_EQ(0, clone_with(set, no_op, NULL, own, own + 8));
	ASSERT_NE(-1, word(own, 0));
	ASSERT_NE(-1, word(own, 8));
	ATTEMPT(0, clone_with(set, no_op, NULL, p, p + 8));

	ASSERT_EQ(0, clone_with(clear, no_op, NULL, NULL, own + 16));
	ASSERT_EQ(0, word(own, 16));
	ATTEMPT(0, clone_with(clear, no_op, NULL, NULL, p + 1024));
	ASSERT_EQ(0, clone_with(0, set_tid_address, own + 24, NULL, NULL));
	ASSERT_EQ(0, word(own, 24));
	ATTEMPT(0, clone_with(0, set_tid_address, p + 1024, NULL, NULL));
	ATTEMPT(-EFAULT, clone_with(CLONE_PIDFD, no_op, NULL, p, NULL));
}

struct rseq_try {
	void *p;
	long ret;
};

/* A thread of its own, for which the C library has not registered one */
static int rseq_register(void *arg)
{
	struct rseq_try *try = arg;

	try->ret = sys(syscall(SYS_rseq, try->p, 32, 0, 0x53053053));
	return 0;
}

TEST_F(escape, rseq)
{
	struct rseq_try try = { .p = self->own };

	ASSERT_EQ(0, clone_with(0, rseq_register, &try, NULL, NULL));
	if (absent(try.ret))
		SKIP(return, "no rseq");
	ASSERT_EQ(0, try.ret);
	try.p = self->p;
	ASSERT_EQ(0, clone_with(0, rseq_register, &try, NULL, NULL));
	ATTEMPT(-EFAULT, try.ret);
}

static void on_signal(int sig)
{
	(void)sig;
	_exit(0);
}

/* The frame of a signal handler, on a stack in the mapping */
static int signal_on(uint8_t *stack)
{
	struct sigaction act = { .sa_handler = on_signal, .sa_flags = SA_ONSTACK };
	stack_t ss = { .ss_sp = stack, .ss_size = SIZE };
	pid_t pid = fork();

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		if (sigaltstack(&ss, NULL) || sigaction(SIGUSR1, &act, NULL))
			_exit(1);
		raise(SIGUSR1);
		_exit(2);
	}
	return exit_of(pid);
}

TEST_F(escape, signal_stack)
{
	ASSERT_EQ(0, signal_on(self->own));
	ATTEMPT(SIGSEGV, signal_on(self->p));
}

/* It can write-protect pages, and undo that, and has a list to tell of them */
static long pagemap_scan(int fd, void *p, void *list, uint64_t flags)
{
	struct page_region *regions = list;
	struct pm_scan_arg arg = {
		.size = sizeof(arg),
		.flags = flags,
		.start = (uintptr_t)p,
		.end = (uintptr_t)p + SIZE,
		.vec = (uintptr_t)regions,
		.vec_len = regions ? 4 : 0,
		.category_anyof_mask = PAGE_IS_PRESENT | PAGE_IS_WRITTEN,
		.return_mask = PAGE_IS_PRESENT,
	};

	return sys(ioctl(fd, PAGEMAP_SCAN, &arg));
}

TEST_F(escape, pagemap_scan)
{
	int fd = open("/proc/self/pagemap", O_RDWR | O_CLOEXEC);

	if (fd < 0)
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ASSERT_GE(fd, 0);
	ASSERT_LT(0, pagemap_scan(fd, self->own, self->own, 0));
	ATTEMPT(-EFAULT, pagemap_scan(fd, self->own, self->p, 0));
	ATTEMPT(-EPERM, pagemap_scan(fd, self->p, NULL,
				     PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC));
	close(fd);
}

struct race {
	pthread_t thread;
	volatile bool stop;
	volatile int faults;
	int fd[2];
	uint8_t *p;
};

/* One number, in turns the fd of the buffer and one of a buffer of the attacker's */
#define RACE_FD 90

static void *swap_fds(void *arg)
{
	struct race *r = arg;
	int i;

	for (i = 0; !r->stop; i ^= 1) {
		dup2(r->fd[i], RACE_FD);
		sched_yield();
	}
	return NULL;
}

static int reexport_number(int drm, int fd)
{
	struct drm_prime_handle prime = { .flags = DRM_RDWR | DRM_CLOEXEC };
	int ret = prime_handle(drm, fd, &prime.handle);

	if (ret)
		return ret;
	ret = buf_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);
	close_handle(drm, prime.handle);
	return ret ?: prime.fd;
}

/* What is checked has to be what is given away */
TEST_F(escape, race_of_fds)
{
	struct race r = { .fd = { self->ro, udmabuf_alloc(SIZE) } };
	int drm = open_drm("vgem"), i, fd, given = 0, refused = 0;
	ino_t ino = inode_of(self->ro);

	if (drm < 0 || r.fd[1] < 0)
		SKIP(return, "vgem and udmabuf are needed");
	ASSERT_EQ(RACE_FD, dup2(self->ro, RACE_FD));
	ASSERT_EQ(0, pthread_create(&r.thread, NULL, swap_fds, &r));
	/* as long as it takes to see some of both */
	for (i = 0; i < rounds(500) || (i < 100000 && (given < 20 || refused < 20)); i++) {
		fd = i & 1 ? derive(RACE_FD, O_RDWR) : reexport_number(drm, RACE_FD);
		if (fd >= 0) {
			EXPECT_NE(ino, inode_of(fd));
			close(fd);
			given++;
		} else {
			EXPECT_EQ(-EACCES, fd);
			refused++;
		}
		if (!(i % 4))
			sched_yield();
	}
	r.stop = true;
	pthread_join(r.thread, NULL);
	EXPECT_LE(20, given);
	EXPECT_LE(20, refused);
	ATTEMPT(-1, first_change());
	close(r.fd[1]);
	close(drm);
}

static __thread sigjmp_buf back;

static void to_back(int sig)
{
	siglongjmp(back, sig);
}

static void *keep_storing(void *arg)
{
	struct race *r = arg;
	volatile uint8_t *p = r->p;

	while (!r->stop) {
		if (sigsetjmp(back, 1))
			r->faults++;
		else
			while (!r->stop)
				p[1024] = 0x55;
	}
	return NULL;
}

/* A thread that writes to an address at which memory and the buffer take turns */
TEST_F(escape, race_of_mappings)
{
	const int rw_prot = PROT_READ | PROT_WRITE;
	const int anon = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
	struct race r = { .p = self->p };
	int i;

	signal(SIGSEGV, to_back);
	ASSERT_EQ(0, pthread_create(&r.thread, NULL, keep_storing, &r));
	/* as long as it takes to see some stores fail */
	for (i = 0; i < rounds(200) || (i < 100000 && r.faults < 20); i++) {
		ASSERT_EQ(0, map_fd(self->p, rw_prot, anon, -1));
		sched_yield();
		ASSERT_EQ(0, map_fd(self->p, PROT_READ, MAP_SHARED | MAP_FIXED, self->ro));
		sched_yield();
		ATTEMPT(-EACCES, sys(mprotect(self->p, SIZE, rw_prot)));
		ASSERT_EQ(0, remap(self->p, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, self->own));
		ASSERT_EQ(0, remap(self->own, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, self->p));
	}
	r.stop = true;
	pthread_join(r.thread, NULL);
	EXPECT_LE(20, r.faults);
	ATTEMPT(-1, first_change());
}

/* Without a device there is nothing that a mapping is made for: it is a note only */
static long ioas_map(int iommufd, uint32_t ioas, void *p, uint32_t flags)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = flags,
		.ioas_id = ioas,
		.user_va = (uintptr_t)p,
		.length = SIZE,
	};

	return buf_ioctl(iommufd, IOMMU_IOAS_MAP, &map);
}

static long ioas_map_file(int iommufd, uint32_t ioas, int fd, uint32_t flags)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = flags,
		.ioas_id = ioas,
		.fd = fd,
		.length = SIZE,
	};

	return buf_ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map);
}

/* -ENODEV where there is no iommufd, as for 32-bit programs */
static int ioas_open(uint32_t *ioas)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC), ret;

	if (fd < 0)
		return -ENODEV;
	ret = buf_ioctl(fd, IOMMU_IOAS_ALLOC, &alloc);
	*ioas = alloc.out_ioas_id;
	return ret == -ENOTTY ? -ENODEV : ret ?: fd;
}

#define READABLE	IOMMU_IOAS_MAP_READABLE
#define WRITEABLE	IOMMU_IOAS_MAP_WRITEABLE

TEST_F(escape, iommufd_file)
{
	uint32_t ioas;
	int iommufd = ioas_open(&ioas);

	if (iommufd == -ENODEV)
		SKIP(return, "no iommufd, or none for this program");
	ASSERT_GE(iommufd, 0);
	ATTEMPT(-EACCES, ioas_map_file(iommufd, ioas, self->ro, WRITEABLE));
	ATTEMPT(-EACCES, ioas_map_file(iommufd, ioas, self->ro, READABLE | WRITEABLE));
	close(iommufd);
}

static long edu_bind(int device, int iommufd)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };

	return buf_ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind);
}

static long edu_attach(int device, uint32_t ioas)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = ioas,
	};

	return buf_ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

/* With a device the pages are looked up, when both are there */
TEST_F(escape, iommufd_mapping)
{
	uint32_t ioas, lazy = 0;
	int device = vfio_cdev("VMTEST_EDU_BDF"), iommufd = ioas_open(&ioas), fd;

	if (device < 0 || iommufd == -ENODEV)
		SKIP(return, "no device for iommufd");
	ASSERT_GE(iommufd, 0);
	ASSERT_EQ(0, edu_bind(device, iommufd));
	ASSERT_EQ(0, edu_attach(device, ioas));
	ASSERT_EQ(0, ioas_map(iommufd, ioas, self->own, READABLE | WRITEABLE));
	ATTEMPT(-EFAULT, ioas_map(iommufd, ioas, self->p, READABLE | WRITEABLE));
	ATTEMPT(-EFAULT, ioas_map(iommufd, ioas, self->p, WRITEABLE));
	ATTEMPT(-EFAULT, ioas_map(iommufd, ioas, self->p, READABLE));
	ATTEMPT(-EACCES, ioas_map_file(iommufd, ioas, self->ro, READABLE | WRITEABLE));
	close(device);
	close(iommufd);

	/* and the other way round */
	device = vfio_cdev("VMTEST_EDU_BDF");
	ASSERT_GE(device, 0);
	fd = ioas_open(&lazy);
	ASSERT_GE(fd, 0);
	ASSERT_EQ(0, edu_bind(device, fd));
	ATTEMPT(0, ioas_map(fd, lazy, self->p, READABLE | WRITEABLE));
	ATTEMPT(-EFAULT, edu_attach(device, lazy));
	close(device);
	close(fd);
}

static int container_open(int *group)
{
	const char *bdf = getenv("VMTEST_EDU_BDF");
	char path[300], link[256];
	struct vfio_group_status status = { .argsz = sizeof(status) };
	int container, n;

	if (!bdf)
		return -ENODEV;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.*s/iommu_group",
		 (int)strcspn(bdf, " "), bdf);
	n = readlink(path, link, sizeof(link) - 1);
	container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (n < 0 || container < 0)
		return -ENODEV;
	link[n] = 0;
	snprintf(path, sizeof(path), "/dev/vfio%s", strrchr(link, '/'));
	*group = open(path, O_RDWR | O_CLOEXEC);
	if (*group < 0)
		return -ENODEV;
	if (buf_ioctl(*group, VFIO_GROUP_GET_STATUS, &status) ||
	    !(status.flags & VFIO_GROUP_FLAGS_VIABLE))
		return -ENODEV;
	return container;
}

static long dma_map(int container, void *p, uint32_t flags)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = flags,
		.vaddr = (uintptr_t)p,
		.iova = flags * 0x1000000,
		.size = SIZE,
	};

	return buf_ioctl(container, VFIO_IOMMU_MAP_DMA, &map);
}

/* This one takes mappings of memory without pages too, by what is in the page table */
TEST_F(escape, vfio_type1)
{
	const uint32_t r = VFIO_DMA_MAP_FLAG_READ, w = VFIO_DMA_MAP_FLAG_WRITE;
	int group, container = container_open(&group);

	if (container < 0)
		SKIP(return, "no device for a VFIO container");
	ASSERT_EQ(0, buf_ioctl(group, VFIO_GROUP_SET_CONTAINER, &container));
	ASSERT_EQ(0, sys(ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)));
	ASSERT_EQ(0, dma_map(container, self->own, r | w));
	ATTEMPT(-EFAULT, dma_map(container, self->p, w));
	/* with the entries of the page table there, and without */
	EXPECT_EQ(0, memcmp(self->p, want, SIZE));
	ATTEMPT(-EFAULT, dma_map(container, self->p, w));
	close(group);
	close(container);
}

/* A camera that is told to capture into the buffer; vivid is one of software */
static long camera_setup(int camera, uint32_t memory)
{
	struct v4l2_format format = {
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.fmt.pix.width = 320,
		.fmt.pix.height = 180,
		.fmt.pix.pixelformat = V4L2_PIX_FMT_GREY,
	};
	struct v4l2_requestbuffers req = {
		.count = 2,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = memory,
	};

	int ret = buf_ioctl(camera, VIDIOC_S_FMT, &format);

	if (!ret && format.fmt.pix.sizeimage > SIZE)
		ret = -EMSGSIZE;
	return ret ?: buf_ioctl(camera, VIDIOC_REQBUFS, &req);
}

static long camera_queue(int camera, int index, uint32_t memory, void *p, int fd)
{
	struct v4l2_buffer buf = {
		.index = index,
		.type = V4L2_BUF_TYPE_VIDEO_CAPTURE,
		.memory = memory,
		.length = SIZE,
	};

	if (memory == V4L2_MEMORY_USERPTR)
		buf.m.userptr = (unsigned long)p;
	else
		buf.m.fd = fd;
	return buf_ioctl(camera, VIDIOC_QBUF, &buf);
}

TEST_F(escape, camera_userptr)
{
	const uint32_t memory = V4L2_MEMORY_USERPTR;
	int camera = open_vivid(O_NONBLOCK);

	if (camera < 0)
		SKIP(return, "no vivid");
	ASSERT_EQ(0, camera_setup(camera, memory));
	ASSERT_EQ(0, camera_queue(camera, 0, memory, self->own, 0));
	ATTEMPT(-EFAULT, camera_queue(camera, 1, memory, self->p, 0));
	close(camera);
}

/* videobuf2 has made EINVAL of every error */
TEST_F(escape, camera_dmabuf)
{
	const uint32_t memory = V4L2_MEMORY_DMABUF;
	int camera = open_vivid(O_NONBLOCK);
	long ret;

	if (camera < 0)
		SKIP(return, "no vivid");
	ASSERT_EQ(0, camera_setup(camera, memory));
	ret = camera_queue(camera, 0, memory, NULL, self->ro);
	ATTEMPT(ret == -EACCES ? ret : -EINVAL, ret);
	/* It is the fd that is refused, not the buffer */
	ret = camera_queue(camera, 0, memory, NULL, self->buf);
	EXPECT_EQ(0, ret);
	ret = camera_queue(camera, 1, memory, NULL, self->ro);
	ATTEMPT(ret == -EACCES ? ret : -EINVAL, ret);
	close(camera);
}

/* Allowed, and it is no way to get at what the producer has ended its writing of */
TEST_F(escape, sync_for_reading)
{
	const unsigned int start = DMA_BUF_SYNC_START, end = DMA_BUF_SYNC_END;
	int i;

	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, sync_cpu(self->buf, start | DMA_BUF_SYNC_RW));
		plant(4096, 0x01010101 * (i + 1));
		ASSERT_EQ(0, sync_cpu(self->buf, end | DMA_BUF_SYNC_RW));
		ATTEMPT(0, sync_cpu(self->ro, start | DMA_BUF_SYNC_READ));
		ATTEMPT(0, sync_cpu(self->ro, end | DMA_BUF_SYNC_READ));
		ATTEMPT(-EACCES, sync_cpu(self->ro, end | DMA_BUF_SYNC_WRITE));
		ATTEMPT(-EACCES, sync_cpu(self->ro, end | DMA_BUF_SYNC_RW));
	}
	ATTEMPT(-1, first_change());
}

TEST_HARNESS_MAIN

// SPDX-License-Identifier: GPL-2.0
/*
 * How long a buffer lives that has derived files: until its last user is gone,
 * whichever that is and whatever is in flight then, also if an allocation fails,
 * or if many threads and processes do everything at once. What lives longer, an
 * O_PATH fd, is no user, and nobody may find the buffer by it.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/wait.h>

#include "../../fail_nth.h"
#include "../../kselftest_harness.h"
#include "derive.h"

#define SIZE	(16 * 1024)
#define BIT(n)	(1U << (n))

/* The ioctls of sw_sync are in no header of the kernel */
struct sw_sync_create_fence_data {
	uint32_t value;
	char name[32];
	int32_t fence;
};

#define SW_SYNC_IOC_CREATE_FENCE _IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC		 _IOW('W', 1, uint32_t)

/* At most one of its fences is pending */
struct timeline {
	int fd;
	uint32_t seqno;
};

static int open_timeline(struct timeline *t)
{
	t->seqno = 0;
	t->fd = open("/sys/kernel/debug/sync/sw_sync", O_RDWR | O_CLOEXEC);
	return t->fd < 0 ? -errno : 0;
}

/* Give the buffer a fence that has not signalled */
static int import_pending(const struct timeline *t, int buf, unsigned int flags)
{
	struct sw_sync_create_fence_data data = { .value = t->seqno + 1, .name = "derive" };
	struct dma_buf_import_sync_file import = { .flags = flags };
	int ret = buf_ioctl(t->fd, SW_SYNC_IOC_CREATE_FENCE, &data);

	if (ret)
		return ret;
	import.fd = data.fence;
	ret = buf_ioctl(buf, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import);
	close(data.fence);
	return ret;
}

static int signal_fence(struct timeline *t)
{
	uint32_t one = 1;

	t->seqno++;
	return buf_ioctl(t->fd, SW_SYNC_IOC_INC, &one);
}

static int poll_now(int fd, short events)
{
	struct pollfd pfd = { .fd = fd, .events = events };

	return poll(&pfd, 1, 0);
}

/*
 * No buffer is left, and of the rest no more than what the system does meanwhile
 * explains, which is less than what was done.
 */
static bool nothing_left(const struct counts *before, long slack)
{
	struct counts after = count_objects();
	int i;

	/* the last reference of a file can be put by a worker */
	for (i = 0; i < 500 && after.buffers != before->buffers; i++) {
		usleep(10000);
		after = count_objects();
	}
	if (after.buffers == before->buffers && after.files <= before->files + slack &&
	    after.dentries <= before->dentries + slack &&
	    after.inodes <= before->inodes + slack)
		return true;
	printf("# left: %ld buffers, %ld files, %ld dentries, %ld inodes\n",
	       after.buffers - before->buffers, after.files - before->files,
	       after.dentries - before->dentries, after.inodes - before->inodes);
	return false;
}

static uint32_t xorshift(uint32_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 17;
	*seed ^= *seed << 5;
	return *seed;
}

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

/* One open of the device does for all, looking for it takes longer than the rest */
static int vgem_alloc(void)
{
	struct drm_mode_create_dumb dumb = { .width = 1024, .height = SIZE / 4096, .bpp = 32 };
	struct drm_prime_handle prime = { .flags = DRM_RDWR | DRM_CLOEXEC };
	static int vgem = -1;
	int ret;

	if (vgem < 0)
		vgem = open_drm("vgem");
	if (vgem < 0)
		return vgem;
	ret = buf_ioctl(vgem, DRM_IOCTL_MODE_CREATE_DUMB, &dumb);
	if (ret)
		return ret;
	prime.handle = dumb.handle;
	ret = buf_ioctl(vgem, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);
	close_handle(vgem, dumb.handle);
	return ret ?: prime.fd;
}

/*
 * What is closed, in all kinds of order. The first ones are users of the buffer:
 * it lives as long as one of them is left, and no longer.
 */
enum {
	PRIMARY, DERIVED, AGAIN, MAPPING, IMPORT, POLL, SOCKET, CHILD,
	EPOLL, SYNC_FILE, PATH, KINDS
};

#define USERS	(BIT(EPOLL) - 1)
#define ALL	(BIT(KINDS) - 1)

static const char * const kind_name[KINDS] = {
	[PRIMARY] = "primary fd", [DERIVED] = "derived fd", [AGAIN] = "fd derived of that",
	[MAPPING] = "mapping", [IMPORT] = "import", [POLL] = "poll callback",
	[SOCKET] = "fd in a socket", [CHILD] = "child", [EPOLL] = "epoll",
	[SYNC_FILE] = "sync file", [PATH] = "O_PATH fd",
};

FIXTURE(orders) {
	struct timeline timeline;
	int drm;
};

FIXTURE_VARIANT(orders) {
	int (*alloc)(void);
	const char *importer;
};

FIXTURE_VARIANT_ADD(orders, system_heap) { .alloc = system_alloc, .importer = "vgem" };
FIXTURE_VARIANT_ADD(orders, cma_heap) { .alloc = cma_alloc, .importer = "vgem" };
FIXTURE_VARIANT_ADD(orders, udmabuf) { .alloc = udma_alloc, .importer = "vgem" };
FIXTURE_VARIANT_ADD(orders, vgem) { .alloc = vgem_alloc, .importer = "vkms" };
/* An exporter that gets its buffer back makes no attachment, but a handle */
FIXTURE_VARIANT_ADD(orders, vgem_self) { .alloc = vgem_alloc, .importer = "vgem" };

FIXTURE_SETUP(orders)
{
	int buf = variant->alloc();

	self->drm = -1;
	if (no_exporter(buf))
		SKIP(return, "no such exporter");
	ASSERT_GE(buf, 0);
	close(buf);
	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to see buffers come and go");
	if (open_timeline(&self->timeline))
		SKIP(return, "no sw_sync");
	self->drm = open_drm(variant->importer);
	if (self->drm < 0)
		SKIP(return, "no %s to import the buffer", variant->importer);
}

FIXTURE_TEARDOWN(orders)
{
	if (self->drm < 0)
		return;
	close(self->drm);
	close(self->timeline.fd);
}

struct buffer {
	int (*alloc)(void);
	struct timeline *timeline;
	int drm;

	/* nr varies what can be done in two ways; left: the kinds that are */
	unsigned int nr, left;
	ino_t ino;
	int fd[AGAIN + 1], ep, sync_file, sock[2], path, go;
	volatile uint32_t *map;
	uint32_t handle;
	pid_t child;
};

static char error[128];

static int fault(const char *what, long value)
{
	snprintf(error, sizeof(error), "%s: %ld", what, value);
	return -1;
}

static uint32_t pattern(const struct buffer *b)
{
	return b->nr ^ 0xa5a5a5a5;
}

static bool mapping_is_right(const struct buffer *b)
{
	return b->map[0] == pattern(b) && b->map[SIZE / 4 - 1] == ~pattern(b);
}

static int fill(struct buffer *b)
{
	uint32_t *p = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, b->fd[PRIMARY], 0);

	if (p == MAP_FAILED)
		return -errno;
	p[0] = pattern(b);
	p[SIZE / 4 - 1] = ~pattern(b);
	munmap(p, SIZE);
	return 0;
}

/* The child has copies of all that there is, until it is let go, or the test ends */
static int make_child(struct buffer *b)
{
	int go[2], fd;
	char byte;

	if (pipe2(go, O_CLOEXEC))
		return -errno;
	b->child = fork();
	if (b->child < 0)
		return -errno;
	if (!b->child) {
		close(go[1]);
		if (read(go[0], &byte, 1))
			_exit(1);
		fd = derive(b->fd[DERIVED], O_RDONLY);
		_exit(fd < 0 || inode_of(fd) != b->ino || (b->map && !mapping_is_right(b)));
	}
	close(go[0]);
	b->go = go[1];
	return 0;
}

static int add_item(struct buffer *b, int kind)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = kind };

	return epoll_ctl(b->ep, EPOLL_CTL_ADD, b->fd[kind], &ev) ? -errno : 0;
}

/* A buffer, and those kinds of users and others that left tells */
static int make(struct buffer *b)
{
	int i, rw, ret;

	b->fd[PRIMARY] = b->alloc();
	if (b->fd[PRIMARY] < 0)
		return fault("allocation", b->fd[PRIMARY]);
	b->ino = inode_of(b->fd[PRIMARY]);
	for (i = DERIVED; i <= AGAIN; i++) {
		b->fd[i] = derive(b->fd[i - 1], O_RDONLY | O_CLOEXEC);
		if (b->fd[i] < 0)
			return fault("derive", b->fd[i]);
	}
	rw = derive(b->fd[PRIMARY], O_RDWR | O_CLOEXEC);
	if (rw < 0)
		return fault("derive O_RDWR", rw);

	b->map = NULL;
	if (b->left & BIT(MAPPING)) {
		ret = fill(b);
		if (ret)
			return fault("mmap", ret);
		b->map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, b->fd[DERIVED], 0);
		if (b->map == MAP_FAILED)
			return fault("mmap", -errno);
	}
	if (b->left & BIT(IMPORT)) {
		ret = prime_handle(b->drm, rw, &b->handle);
		if (ret)
			return fault("import", ret);
	}
	/* before there is a fence: an item that waits for one would be a user */
	if (b->left & BIT(EPOLL)) {
		b->ep = epoll_create1(EPOLL_CLOEXEC);
		ret = add_item(b, PRIMARY) ?: add_item(b, DERIVED);
		if (ret)
			return fault("EPOLL_CTL_ADD", ret);
	}
	if (b->left & BIT(POLL)) {
		ret = import_pending(b->timeline, rw, DMA_BUF_SYNC_RW);
		if (ret)
			return fault("IMPORT_SYNC_FILE", ret);
		ret = poll_now(b->fd[b->nr % 3], POLLIN | POLLOUT);
		if (ret)
			return fault("poll with a pending fence", ret);
	}
	close(rw);
	if (b->left & BIT(SYNC_FILE)) {
		b->sync_file = export_sync_file(b->fd[DERIVED], DMA_BUF_SYNC_READ);
		if (b->sync_file < 0)
			return fault("EXPORT_SYNC_FILE", b->sync_file);
	}
	if (b->left & BIT(SOCKET)) {
		if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, b->sock))
			return fault("socketpair", -errno);
		ret = send_fd(b->sock[0], b->fd[DERIVED]);
		if (ret)
			return fault("sendmsg", ret);
	}
	if (b->left & BIT(PATH)) {
		b->path = reopen(b->fd[b->nr % 3], O_PATH);
		if (b->path < 0)
			return fault("O_PATH", b->path);
	}
	if (b->left & BIT(CHILD)) {
		ret = make_child(b);
		if (ret)
			return fault("fork", ret);
	}
	for (i = PRIMARY; i <= AGAIN; i++)
		if (!(b->left & BIT(i)))
			close(b->fd[i]);
	return 0;
}

static int release_poll(struct buffer *b)
{
	int i, ret;

	for (i = PRIMARY; i <= AGAIN; i++) {
		ret = b->left & BIT(i) ? poll_now(b->fd[i], POLLIN | POLLOUT) : 0;
		if (ret)
			return fault("poll before the fence signals", ret);
	}
	ret = signal_fence(b->timeline);
	if (ret)
		return fault("SW_SYNC_IOC_INC", ret);
	for (i = PRIMARY; i <= AGAIN; i++) {
		ret = b->left & BIT(i) ? poll_now(b->fd[i], POLLIN | POLLOUT) : 1;
		if (ret != 1)
			return fault("poll after the fence signalled", ret);
	}
	return 0;
}

static int release_socket(struct buffer *b)
{
	int fd;

	if (b->nr & 1) {
		fd = recv_fd(b->sock[1]);
		if (fd < 0 || inode_of(fd) != b->ino)
			return fault("recvmsg", fd);
		close(fd);
	}
	close(b->sock[b->nr & 1]);
	close(b->sock[!(b->nr & 1)]);
	return 0;
}

static int release(struct buffer *b, int kind)
{
	int status, ret;

	switch (kind) {
	case PRIMARY:
	case DERIVED:
	case AGAIN:
		close(b->fd[kind]);
		return 0;
	case MAPPING:
		if (!mapping_is_right(b))
			return fault("what the mapping has", b->map[0]);
		munmap((void *)b->map, SIZE);
		return 0;
	case IMPORT:
		ret = close_handle(b->drm, b->handle);
		return ret ? fault("DRM_IOCTL_GEM_CLOSE", ret) : 0;
	case POLL:
		return release_poll(b);
	case SOCKET:
		return release_socket(b);
	case CHILD:
		close(b->go);
		if (waitpid(b->child, &status, 0) != b->child || status)
			return fault("child", status);
		return 0;
	case EPOLL:
		close(b->ep);
		return 0;
	case SYNC_FILE:
		ret = poll_now(b->sync_file, POLLIN);
		if (ret != !(b->left & BIT(POLL)))
			return fault("poll of the sync file", ret);
		close(b->sync_file);
		return 0;
	case PATH:
		if (inode_of(b->path) != b->ino)
			return fault("inode of the O_PATH fd", inode_of(b->path));
		ret = derive(b->path, O_RDONLY);
		if (ret != -EBADF)
			return fault("deriving from the O_PATH fd", ret);
		close(b->path);
		return 0;
	}
	return fault("kind", kind);
}

/* Items go with their file. They are ready unless the fence is pending */
static int check_epoll(struct buffer *b)
{
	static const unsigned int derived =
		BIT(DERIVED) | BIT(MAPPING) | BIT(SOCKET) | BIT(CHILD);
	unsigned int want = 0, got = 0;
	struct epoll_event ev[3];
	int i, n;

	if (!(b->left & BIT(POLL))) {
		want |= b->left & USERS ? BIT(PRIMARY) : 0;
		want |= b->left & derived ? BIT(DERIVED) : 0;
	}
	n = epoll_wait(b->ep, ev, 3, 0);
	for (i = 0; i < n; i++)
		got |= BIT(ev[i].data.u32);
	return got == want ? 0 : fault("items that are ready", got);
}

static int check(struct buffer *b)
{
	int exists = buffer_exists(b->ino);

	if (exists != !!(b->left & USERS))
		return fault("the buffer exists", exists);
	return b->left & BIT(EPOLL) ? check_epoll(b) : 0;
}

static int close_in_order(struct buffer *b, const uint8_t *order, int n)
{
	int i, ret;

	b->left = 0;
	for (i = 0; i < n; i++)
		b->left |= BIT(order[i]);
	ret = make(b) ?: check(b);
	for (i = 0; i < n && !ret; i++) {
		ret = release(b, order[i]);
		b->left &= ~BIT(order[i]);
		ret = ret ?: check(b);
	}
	return ret;
}

static void print_order(const uint8_t *order, int n)
{
	int i;

	printf("# order:");
	for (i = 0; i < n; i++)
		printf("%s %s", i ? "," : "", kind_name[order[i]]);
	printf("\n");
}

/* Every order of every three of them, of every four if there is the time for more */
TEST_F_TIMEOUT(orders, of_three, 36000)
{
	struct buffer b = {
		.alloc = variant->alloc, .timeline = &self->timeline, .drm = self->drm,
	};
	int n = factor("VMTEST_SCALE") > 1 ? 4 : 3, total = 1, valid = 0, i, j, rest;
	struct counts before = {};
	unsigned int seen;
	uint8_t order[4];

	for (i = 0; i < n; i++)
		total *= KINDS;
	for (i = 0; i < total; i++) {
		seen = 0;
		for (j = 0, rest = i; j < n; j++, rest /= KINDS) {
			order[j] = rest % KINDS;
			if (seen & BIT(order[j]))
				break;
			seen |= BIT(order[j]);
		}
		/* where this is slow, others have all of them */
		if (j < n || valid++ % factor("VMTEST_SLOW"))
			continue;
		b.nr++;
		ASSERT_EQ(0, close_in_order(&b, order, n)) {
			print_order(order, n);
			TH_LOG("%s", error);
		}
		/* after the first ones, what is cached is */
		if (b.nr == 20)
			before = count_objects();
	}
	EXPECT_TRUE(nothing_left(&before, 64)) TH_LOG("after %u orders", b.nr);
}

/* All of them, with each as the first and each as the last to go */
TEST_F_TIMEOUT(orders, of_all, 36000)
{
	struct buffer b = {
		.alloc = variant->alloc, .timeline = &self->timeline, .drm = self->drm,
	};
	/* where this is slow, others have all of them */
	const int lasts = factor("VMTEST_SLOW") > 1 ? 3 : KINDS;
	uint8_t order[KINDS], other;
	struct counts before = {};
	int round, first, last, i, n;
	uint32_t seed = 1;

	for (round = 0; round < rounds(1); round++) {
		for (i = 0; i < KINDS * KINDS; i++) {
			first = i / KINDS;
			last = i % KINDS;
			if (first == last || (last + KINDS - first) % KINDS > lasts)
				continue;
			order[0] = first;
			order[KINDS - 1] = last;
			/* the others are put in at any place */
			for (n = 1, other = 0; other < KINDS; other++) {
				int at = 1 + xorshift(&seed) % n;

				if (other == first || other == last)
					continue;
				order[n] = order[at];
				order[at] = other;
				n++;
			}
			b.nr++;
			ASSERT_EQ(0, close_in_order(&b, order, KINDS)) {
				print_order(order, KINDS);
				TH_LOG("%s", error);
			}
			if (b.nr == 20)
				before = count_objects();
		}
	}
	EXPECT_TRUE(nothing_left(&before, 64)) TH_LOG("after %u orders", b.nr);
}

FIXTURE(faults) {};

FIXTURE_SETUP(faults)
{
	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
}

FIXTURE_TEARDOWN(faults)
{
	fail_nth_restore();
}

#define NOT_REACHED	0x80
#define WRONG		0x7f

/*
 * In a process of its own, whose table of fds is full, so that it has to be
 * enlarged. The exit status is the errno, and if the nth was reached.
 */
static int derive_and_fail(int from, int nth)
{
	int last = -1, fd, left;
	char line[64];
	FILE *f = fopen("/proc/self/status", "r");

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "FDSize: %d", &last) == 1)
			last--;
	if (f)
		fclose(f);
	if (!fail_nth_open())
		return WRONG;
	do {
		fd = dup(0);
	} while (fd >= 0 && fd < last);
	if (fd != last)
		return WRONG;
	fail_nth(nth);
	fd = derive(from, O_RDONLY | O_CLOEXEC);
	left = fail_nth_left() ? NOT_REACHED : 0;
	if (fd >= 0 && (fd != last + 1 || close(fd)))
		return WRONG;
	return lowest_fd() == last + 1 ? left | (fd < 0 ? -fd : 0) : WRONG;
}

#define REPEAT 16

/* Each allocation and copy of DERIVE that can fail gives an errno, and leaves nothing */
TEST_F_TIMEOUT(faults, fail_nth, 36000)
{
	int from, nth, i, buf, ro, status, ret = 0, failed, points;
	struct counts before;

	buf = system_alloc();
	if (no_exporter(buf))
		SKIP(return, "no system heap");
	close(buf);
	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to count the buffers");
	count_objects();
	before = count_objects();
	for (from = PRIMARY; from <= DERIVED; from++) {
		points = 0;
		for (nth = 1; nth < 1000; nth++) {
			failed = 0;
			for (i = 0; i < REPEAT; i++) {
				pid_t pid;

				/* one each: what stays behind keeps it */
				buf = system_alloc();
				ASSERT_GE(buf, 0);
				ro = derive(buf, O_RDONLY);
				ASSERT_GE(ro, 0);
				pid = fork();
				ASSERT_GE(pid, 0);
				if (!pid)
					_exit(derive_and_fail(from == PRIMARY ? buf : ro, nth));
				ASSERT_EQ(pid, waitpid(pid, &status, 0));
				ASSERT_TRUE(WIFEXITED(status));
				ret = WEXITSTATUS(status) & ~NOT_REACHED;
				EXPECT_TRUE(!ret || ret == ENOMEM || ret == ENFILE ||
					    ret == EMFILE || ret == EFAULT)
					TH_LOG("allocation %d: %d", nth, ret);
				failed += !!ret;
				EXPECT_STREQ("2", fdinfo(buf, "count"))
					TH_LOG("allocation %d", nth);
				close(ro);
				close(buf);
			}
			points += !!failed;
			if (!failed && WEXITSTATUS(status) & NOT_REACHED)
				break;
		}
		TH_LOG("%d of the first %d allocations and copies make it fail", points, nth - 1);
		EXPECT_LT(nth, 1000);
		EXPECT_GE(points, 3);
	}
	EXPECT_TRUE(nothing_left(&before, REPEAT - 1));
}

/* The limit of the system's files, which does not hold for CAP_SYS_ADMIN */
TEST(enfile)
{
	int buf = system_alloc(), limit, status, go[2], len;
	char old[32] = "", byte;
	pid_t pid;

	if (no_exporter(buf))
		SKIP(return, "no system heap");
	ASSERT_GE(buf, 0);
	limit = open("/proc/sys/fs/file-max", O_RDWR | O_CLOEXEC);
	if (limit < 0 || geteuid())
		SKIP(return, "not root");
	len = read(limit, old, sizeof(old) - 1);
	ASSERT_GT(len, 0);
	ASSERT_EQ(0, pipe(go));
	pid = fork();
	ASSERT_GE(pid, 0);
	if (!pid) {
		close(go[1]);
		if (setresuid(65534, 65534, 65534) || read(go[0], &byte, 1))
			_exit(WRONG);
		_exit(-derive(buf, O_RDONLY));
	}
	close(go[0]);
	ASSERT_EQ(1, pwrite(limit, "0", 1, 0));
	close(go[1]);
	waitpid(pid, &status, 0);
	EXPECT_EQ(len, pwrite(limit, old, len, 0));
	ASSERT_TRUE(WIFEXITED(status));
	EXPECT_EQ(ENFILE, WEXITSTATUS(status));
	EXPECT_STREQ("1", fdinfo(buf, "count"));
	close(limit);
	close(buf);
}

/* Everything at once, by threads and processes, on a few buffers that come and go */
#define SLOTS		4
#define THREADS		4
#define PROCESSES	2
#define WORKERS		(THREADS + PROCESSES)

/* A copy per process, of which the threads share one */
static struct {
	pthread_mutex_t lock;
	int (*alloc[SLOTS])(void);
	int fd[SLOTS];
} slots = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* From any worker to any other */
static int post[2];

struct worker {
	pthread_t thread;
	uint32_t seed;
	int rounds, drm;
	struct timeline timeline;
	/* the first result that was not one of those which may be */
	const char *what;
	long got;
	unsigned int done[16];
};

static uint32_t rnd(struct worker *w, uint32_t n)
{
	return (xorshift(&w->seed) >> 8) % n;
}

static void want(struct worker *w, bool right, const char *what, long got)
{
	if (right || w->what)
		return;
	w->got = got;
	w->what = what;
}

/* Another fd of a shared buffer */
static int take(int slot)
{
	int fd;

	pthread_mutex_lock(&slots.lock);
	fd = fcntl(slots.fd[slot], F_DUPFD_CLOEXEC, 0);
	pthread_mutex_unlock(&slots.lock);
	return fd < 0 ? -errno : fd;
}

static void put(int slot, int fd)
{
	int old;

	pthread_mutex_lock(&slots.lock);
	old = slots.fd[slot];
	slots.fd[slot] = fd;
	pthread_mutex_unlock(&slots.lock);
	close(old);
}

/* Primary files are O_RDWR here, so this is what there is, derived or not */
static bool may_read(int fd)
{
	return (fcntl(fd, F_GETFL) & O_ACCMODE) != O_WRONLY;
}

static bool may_write(int fd)
{
	return (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY;
}

static void close_two(struct worker *w, int a, int b)
{
	bool swap = rnd(w, 2);

	close(swap ? b : a);
	close(swap ? a : b);
}

static void do_derive(struct worker *w, int fd)
{
	static const int modes[] = { O_RDONLY, O_WRONLY, O_RDWR };
	int mode = modes[rnd(w, 3)], new, again;
	bool right = (mode == O_WRONLY || may_read(fd)) && (mode == O_RDONLY || may_write(fd));

	new = derive(fd, mode | O_CLOEXEC);
	want(w, right ? new >= 0 : new == -EACCES, "derive", new);
	if (new < 0) {
		close(fd);
		return;
	}
	again = derive(new, mode);
	want(w, again >= 0, "derive the same", again);
	close_two(w, fd, again);
	if (rnd(w, 4))
		close(new);
	else
		put(rnd(w, SLOTS), new);
}

static void do_map(struct worker *w, int fd)
{
	volatile uint8_t *p;
	int ret;

	ret = try_mmap(fd, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED);
	want(w, ret == (may_read(fd) && may_write(fd) ? 0 : -EACCES), "mmap for writing", ret);
	p = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) {
		want(w, errno == EACCES && !may_read(fd), "mmap", -errno);
		close(fd);
		return;
	}
	want(w, may_read(fd), "mmap without read access", 0);
	ret = rnd(w, 2);
	if (ret)
		close(fd);
	(void)p[rnd(w, SIZE)];
	munmap((void *)p, SIZE);
	if (!ret)
		close(fd);
}

static void do_epoll(struct worker *w, int fd)
{
	struct epoll_event ev = { .events = EPOLLIN | EPOLLOUT }, got[2];
	int ep = epoll_create1(EPOLL_CLOEXEC), ret;

	ret = epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
	want(w, !ret, "EPOLL_CTL_ADD", ret);
	if (rnd(w, 2)) {
		ret = epoll_wait(ep, got, 2, rnd(w, 2));
		want(w, ret == 0 || ret == 1, "epoll_wait", ret);
	}
	if (rnd(w, 2)) {
		ret = epoll_ctl(ep, EPOLL_CTL_DEL, fd, NULL);
		want(w, !ret, "EPOLL_CTL_DEL", ret);
	}
	close_two(w, fd, ep);
}

static void do_poll(struct worker *w, int fd)
{
	unsigned int flags = may_write(fd) && rnd(w, 2) ? DMA_BUF_SYNC_WRITE : DMA_BUF_SYNC_READ;
	struct pollfd pfd = { .events = POLLIN | POLLOUT };
	int other = -1, ret;

	ret = import_pending(&w->timeline, fd, flags);
	want(w, !ret, "import a pending fence", ret);
	ret = poll_now(fd, POLLOUT);
	want(w, ret == 0, "poll with a pending fence", ret);
	if (rnd(w, 2)) {
		other = derive(fd, fcntl(fd, F_GETFL) & O_ACCMODE);
		close(fd);
		fd = other;
	}
	if (rnd(w, 4) == 0) {
		/* the fence signals when the fd is closed already */
		close(fd);
		fd = -1;
	}
	ret = signal_fence(&w->timeline);
	want(w, !ret, "signal", ret);
	if (fd < 0)
		return;
	/* others can have added fences, which signal soon */
	pfd.fd = fd;
	ret = poll(&pfd, 1, 600 * 1000);
	want(w, ret == 1 && !(pfd.revents & ~(POLLIN | POLLOUT)), "poll", ret);
	close(fd);
}

static void do_sync_file(struct worker *w, int fd)
{
	struct dma_buf_import_sync_file arg = { .flags = DMA_BUF_SYNC_READ };
	int ret;

	arg.fd = export_sync_file(fd, DMA_BUF_SYNC_RW);
	want(w, arg.fd >= 0, "export", arg.fd);
	ret = buf_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
	want(w, !ret, "import for reading", ret);
	arg.flags = DMA_BUF_SYNC_WRITE;
	ret = buf_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
	want(w, ret == (may_write(fd) ? 0 : -EACCES), "import for writing", ret);
	close_two(w, fd, arg.fd);
}

static void do_send(struct worker *w, int fd)
{
	int ret = send_fd(post[0], fd);

	want(w, ret == 0 || ret == -EAGAIN, "send", ret);
	close(fd);
}

static void do_receive(struct worker *w, int fd)
{
	int new = recv_fd(post[1]), ret;

	want(w, new >= 0 || new == -EAGAIN, "receive", new);
	close(fd);
	if (new < 0)
		return;
	ret = derive(new, fcntl(new, F_GETFL) & O_ACCMODE);
	want(w, ret >= 0, "derive from a received fd", ret);
	close(ret);
	if (rnd(w, 4))
		close(new);
	else
		put(rnd(w, SLOTS), new);
}

/* Sent, and never received */
static void do_discard(struct worker *w, int fd)
{
	int sock[2] = { -1, -1 }, ret, i;

	ret = socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sock);
	want(w, !ret, "socketpair", ret);
	for (i = 0; i < 3; i++) {
		ret = send_fd(sock[i & 1], fd);
		want(w, !ret, "send to a pair", ret);
	}
	close_two(w, fd, sock[0]);
	close(sock[1]);
}

static void do_path(struct worker *w, int fd)
{
	int path = reopen(fd, O_PATH), ret;

	want(w, path >= 0, "O_PATH", path);
	ret = derive(path, O_RDONLY);
	want(w, ret == -EBADF, "derive from an O_PATH fd", ret);
	ret = reopen(path, O_RDONLY);
	want(w, ret == -ENXIO, "reopen", ret);
	close_two(w, fd, path);
}

static void do_import(struct worker *w, int fd)
{
	uint32_t handle;
	int ret = prime_handle(w->drm, fd, &handle);

	want(w, ret == (may_read(fd) && may_write(fd) ? 0 : -EACCES), "PRIME import", ret);
	close(fd);
	if (!ret)
		ret = close_handle(w->drm, handle);
	want(w, ret == 0 || ret == -EACCES, "GEM_CLOSE", ret);
}

/* Not fdinfo(), which is for one thread */
static void do_fdinfo(struct worker *w, int fd)
{
	char path[64], text[512], *found;
	long users = -1;
	int info, len;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	info = open(path, O_RDONLY | O_CLOEXEC);
	len = read(info, text, sizeof(text) - 1);
	text[len < 0 ? 0 : len] = 0;
	found = strstr(text, "\ncount:");
	if (found)
		sscanf(found, "\ncount: %ld", &users);
	want(w, users >= 1 && users < 10000, "users in fdinfo", users);
	close_two(w, fd, info);
}

static void do_fork(struct worker *w, int fd)
{
	bool first = rnd(w, 2), right = may_read(fd);
	int status = -1, child_fd;
	pid_t pid = fork();

	if (!pid) {
		child_fd = derive(fd, O_RDONLY);
		_exit(right ? child_fd < 0 : child_fd != -EACCES);
	}
	if (first)
		close(fd);
	waitpid(pid, &status, 0);
	want(w, pid > 0 && !status, "child", status);
	if (!first)
		close(fd);
}

static void do_renew(struct worker *w, int fd)
{
	int slot = rnd(w, SLOTS), new = slots.alloc[slot]();

	want(w, new >= 0, "allocation", new);
	if (new >= 0)
		put(slot, new);
	close(fd);
}

static const struct {
	const char *name;
	void (*call)(struct worker *w, int fd);
} operation[] = {
	{ "derive", do_derive }, { "map", do_map }, { "epoll", do_epoll }, { "poll", do_poll },
	{ "sync_file", do_sync_file }, { "send", do_send }, { "receive", do_receive },
	{ "discard", do_discard }, { "path", do_path }, { "import", do_import },
	{ "fdinfo", do_fdinfo }, { "fork", do_fork }, { "renew", do_renew },
};

static void *work(void *arg)
{
	struct worker *w = arg;
	int i, op, fd, ret;

	w->drm = open_drm("vgem");
	want(w, w->drm >= 0, "open vgem", w->drm);
	ret = open_timeline(&w->timeline);
	want(w, !ret, "open sw_sync", ret);
	for (i = 0; i < w->rounds && !w->what; i++) {
		fd = take(rnd(w, SLOTS));
		want(w, fd >= 0, "dup", fd);
		op = rnd(w, ARRAY_SIZE(operation));
		if (fd >= 0)
			operation[op].call(w, fd);
		w->done[op]++;
	}
	close(w->timeline.fd);
	close(w->drm);
	return NULL;
}

FIXTURE(stress) {
};

FIXTURE_SETUP(stress)
{
}

FIXTURE_TEARDOWN(stress)
{
}

TEST_F_TIMEOUT(stress, everything_at_once, 36000)
{
	int (*const exporters[])(void) = { system_alloc, cma_alloc, udma_alloc, vgem_alloc };
	struct worker *w = mmap(NULL, WORKERS * sizeof(*w), PROT_READ | PROT_WRITE,
				MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	const int share = rounds(4000) / (int)ARRAY_SIZE(operation);
	int i, j, fd, done, nr = 0, drm = open_drm("vgem");
	struct timeline timeline;
	struct counts before;
	pid_t pid[PROCESSES];

	ASSERT_TRUE((void *)w != MAP_FAILED);
	if (drm < 0)
		SKIP(return, "no vgem");
	close(drm);
	if (open_timeline(&timeline))
		SKIP(return, "no sw_sync");
	close(timeline.fd);
	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to count the buffers");
	count_objects();
	before = count_objects();

	/* vgem is there, and stands for those that are not */
	for (i = 0; i < SLOTS; i++) {
		slots.alloc[i] = exporters[i];
		slots.fd[i] = exporters[i]();
		if (no_exporter(slots.fd[i])) {
			slots.alloc[i] = vgem_alloc;
			slots.fd[i] = vgem_alloc();
		}
		ASSERT_GE(slots.fd[i], 0);
	}
	fd = derive(slots.fd[0], O_RDONLY);
	ASSERT_GE(fd, 0);
	close(fd);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, post));
	for (i = 0; i < WORKERS; i++) {
		w[i].seed = i + 1;
		w[i].rounds = rounds(4000) / WORKERS + 1;
	}
	for (i = 0; i < PROCESSES; i++) {
		pid[i] = fork();
		ASSERT_GE(pid[i], 0);
		if (!pid[i]) {
			work(&w[THREADS + i]);
			_exit(0);
		}
	}
	for (i = 0; i < THREADS; i++)
		ASSERT_EQ(0, pthread_create(&w[i].thread, NULL, work, &w[i]));
	for (i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	for (i = 0; i < PROCESSES; i++) {
		int status;

		EXPECT_EQ(pid[i], waitpid(pid[i], &status, 0));
		EXPECT_EQ(0, status);
	}
	for (i = 0; i < WORKERS; i++)
		EXPECT_TRUE(!w[i].what) {
			TH_LOG("worker %d: %s: %ld", i, w[i].what, w[i].got);
		}
	for (j = 0; j < (int)ARRAY_SIZE(operation); j++) {
		for (i = 0, done = 0; i < WORKERS; i++)
			done += w[i].done[j];
		EXPECT_GE(done, share / 2) TH_LOG("%s: only %d", operation[j].name, done);
		nr += done;
	}
	for (i = 0; i < SLOTS; i++)
		close(slots.fd[i]);
	close(post[0]);
	close(post[1]);
	EXPECT_TRUE(nothing_left(&before, 64)) TH_LOG("after %d operations", nr);
	munmap(w, WORKERS * sizeof(*w));
}

/*
 * VFIO walks the list of the dma-bufs of a device, and takes a reference of the
 * file of each. O_PATH fds made that a file which was freed, and was another's.
 */
FIXTURE(vfio) {
	struct timeline timeline;
	int device;
};

FIXTURE_VARIANT(vfio) {
	const char *bdf;
	int bar;
	bool device_first;
};

FIXTURE_VARIANT_ADD(vfio, ivshmem) { .bdf = "VMTEST_IVSHMEM_BDF", .bar = 2 };
FIXTURE_VARIANT_ADD(vfio, ivshmem_device_first) {
	.bdf = "VMTEST_IVSHMEM_BDF", .bar = 2, .device_first = true,
};

/* This one has a reset */
FIXTURE_VARIANT_ADD(vfio, nvme) { .bdf = "VMTEST_NVME_BDF", .bar = 4 };
FIXTURE_VARIANT_ADD(vfio, nvme_device_first) {
	.bdf = "VMTEST_NVME_BDF", .bar = 4, .device_first = true,
};

static int reset_device(int device)
{
	struct vfio_device_info info = { .argsz = sizeof(info) };
	int ret = buf_ioctl(device, VFIO_DEVICE_GET_INFO, &info);

	if (ret || !(info.flags & VFIO_DEVICE_FLAGS_RESET))
		return ret;
	return buf_ioctl(device, VFIO_DEVICE_RESET, NULL);
}

FIXTURE_SETUP(vfio)
{
	self->device = -1;
	if (count_buffers() < 0)
		SKIP(return, "debugfs is needed to see buffers come and go");
	if (open_timeline(&self->timeline))
		SKIP(return, "no sw_sync");
	self->device = vfio_open(variant->bdf);
	if (self->device == -ENODEV || self->device == -ENOENT)
		SKIP(return, "no device of $%s, or no iommufd for it", variant->bdf);
	ASSERT_GE(self->device, 0);
}

FIXTURE_TEARDOWN(vfio)
{
	if (self->device >= 0)
		close(self->device);
}

struct toggle {
	pthread_t thread;
	int device, ret;
	bool done;
};

static bool is_done(const struct toggle *t)
{
	return __atomic_load_n(&t->done, __ATOMIC_ACQUIRE);
}

static void *memory_off(void *arg)
{
	struct toggle *t = arg;

	t->ret = vfio_set_memory(t->device, false);
	__atomic_store_n(&t->done, true, __ATOMIC_RELEASE);
	return NULL;
}

#define FILES 64

/* Memory of a file that was freed is used for the next one on the same CPU */
static int stay_on_cpu(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	return sched_setaffinity(0, sizeof(set), &set);
}

/* Buffers of a heap show in fdinfo when somebody else has a reference of them */
static int with_another_user(const int *fd)
{
	int i;

	for (i = 0; i < FILES; i++)
		if (strcmp(fdinfo(fd[i], "count"), "1"))
			return i;
	return -1;
}

TEST_F_TIMEOUT(vfio, opath_outlives_file, 36000)
{
	int heap = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC);
	struct toggle toggle = { .device = self->device };
	int other[FILES], buf, path, i, found = -1;
	long before = count_buffers();
	ino_t ino;

	if (heap < 0)
		SKIP(return, "no system heap");
	buf = vfio_export(self->device, variant->bar, getpagesize(),
			  O_RDWR | O_CLOEXEC);
	ASSERT_GE(buf, 0);
	ino = inode_of(buf);
	/* With this the walk stops at the buffer, should it come there */
	ASSERT_EQ(0, import_pending(&self->timeline, buf, DMA_BUF_SYNC_RW));
	ASSERT_EQ(0, stay_on_cpu());
	path = reopen(buf, O_PATH);
	ASSERT_GE(path, 0);
	ASSERT_EQ(0, close(buf));
	EXPECT_EQ(0, buffer_exists(ino));

	/* RCU may have to let go of the file first */
	usleep(300 * 1000);
	for (i = 0; i < FILES; i++) {
		struct dma_heap_allocation_data data = {
			.len = getpagesize(), .fd_flags = O_RDWR | O_CLOEXEC,
		};

		ASSERT_EQ(0, buf_ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data));
		other[i] = data.fd;
	}
	EXPECT_EQ(-1, with_another_user(other));

	ASSERT_EQ(0, pthread_create(&toggle.thread, NULL, memory_off, &toggle));
	for (i = 0; i < 1000 && found < 0 && !is_done(&toggle); i++) {
		found = with_another_user(other);
		usleep(10000);
	}
	EXPECT_TRUE(is_done(&toggle))
		TH_LOG("VFIO waits for the fence of a buffer that has no user");
	EXPECT_EQ(-1, found) {
		TH_LOG("VFIO has taken a reference of the file of buffer %d of the heap", found);
	}
	if (found >= 0) {
		ino = inode_of(other[found]);
		close(other[found]);
		other[found] = -1;
		EXPECT_EQ(0, buffer_exists(ino)) {
			TH_LOG("which stays after its close");
		}
	}
	EXPECT_EQ(0, signal_fence(&self->timeline));
	pthread_join(toggle.thread, NULL);
	EXPECT_EQ(0, toggle.ret);
	EXPECT_EQ(0, vfio_set_memory(self->device, true));
	EXPECT_EQ(0, reset_device(self->device));

	if (variant->device_first) {
		close(self->device);
		self->device = vfio_open(variant->bdf);
		ASSERT_GE(self->device, 0);
		buf = vfio_export(self->device, variant->bar, getpagesize(),
				  O_RDWR | O_CLOEXEC);
		ASSERT_GE(buf, 0);
		EXPECT_EQ(0, vfio_set_memory(self->device, false));
		EXPECT_EQ(0, vfio_set_memory(self->device, true));
		EXPECT_EQ(0, reset_device(self->device));
		close(self->device);
		self->device = -1;
		close(buf);
		close(path);
	} else {
		close(path);
		EXPECT_EQ(0, vfio_set_memory(self->device, false));
		EXPECT_EQ(0, vfio_set_memory(self->device, true));
	}
	for (i = 0; i < FILES; i++)
		if (other[i] >= 0)
			close(other[i]);
	EXPECT_EQ(before, count_buffers());
	close(heap);
}

/* A derived fd alone is a user like any other, to VFIO too */
TEST_F_TIMEOUT(vfio, derived_is_last, 36000)
{
	int buf = vfio_export(self->device, variant->bar, getpagesize(),
				  O_RDWR | O_CLOEXEC), ro, path;
	long before = count_buffers();
	ino_t ino;

	ASSERT_GE(buf, 0);
	ino = inode_of(buf);
	ro = derive(buf, O_RDONLY | O_CLOEXEC);
	ASSERT_GE(ro, 0);
	path = reopen(ro, O_PATH);
	ASSERT_GE(path, 0);
	close(buf);
	EXPECT_EQ(0, vfio_set_memory(self->device, false));
	EXPECT_EQ(0, vfio_set_memory(self->device, true));
	EXPECT_EQ(0, reset_device(self->device));
	EXPECT_EQ(1, buffer_exists(ino));
	EXPECT_STREQ("1", fdinfo(ro, "count"));
	if (variant->device_first) {
		close(self->device);
		self->device = -1;
		EXPECT_EQ(1, buffer_exists(ino));
	}
	close(ro);
	EXPECT_EQ(0, buffer_exists(ino));
	EXPECT_EQ(before - 1, count_buffers());
	if (!variant->device_first) {
		EXPECT_EQ(0, vfio_set_memory(self->device, false));
		EXPECT_EQ(0, vfio_set_memory(self->device, true));
	}
	close(path);
}

TEST_HARNESS_MAIN

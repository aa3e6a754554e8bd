// SPDX-License-Identifier: GPL-2.0
/*
 * Heaps that are modules come and go, and stay while anything of theirs is in use.
 * HEAP_MODULE_CYCLES in the environment is how often they do so in the storm.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#include <drm/drm.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/module.h>
#include <linux/netlink.h>

#include "../fail_nth.h"
#include "../kselftest_harness.h"
#include "heap.h"
#include "module.h"

#define TEE_NODE "/dev/dma_heap/protected,secure-video"

/* Slow: every cycle of a module waits for RCU, and for its kobjects to be released */
#define TIMEOUT 900

struct names {
	char text[4096];
};

static int env(const char *name, int otherwise)
{
	const char *s = getenv(name);

	return s && atoi(s) > 0 ? atoi(s) : otherwise;
}

static void names_of(const char *dir, struct names *names)
{
	size_t len = strlen(names->text);
	struct dirent **found;
	int n, i;

	n = scandir(dir, &found, NULL, alphasort);
	for (i = 0; i < n; i++) {
		if (found[i]->d_name[0] != '.' && len < sizeof(names->text))
			len += snprintf(names->text + len, sizeof(names->text) - len, "%s/%s ",
					dir, found[i]->d_name);
		free(found[i]);
	}
	if (n >= 0)
		free(found);
}

/* All that tells user space of heaps */
static struct names heap_names(void)
{
	struct names names = {};

	names_of("/dev/dma_heap", &names);
	names_of("/sys/class/dma_heap", &names);
	names_of("/sys/devices/virtual/dma_heap", &names);
	return names;
}

/* The file of a module, or -errno; -ENOENT if it has been built in */
static int open_module(const char *module)
{
	size_t size = 0, len = strlen(module);
	char path[4096], *line = NULL, *name;
	struct utsname u;
	int ret = -ENOENT;
	FILE *deps;

	uname(&u);
	snprintf(path, sizeof(path), "/lib/modules/%s/modules.dep", u.release);
	deps = fopen(path, "r");
	while (deps && ret == -ENOENT && getline(&line, &size, deps) > 0) {
		line[strcspn(line, ":")] = 0;
		name = strrchr(line, '/');
		if (!name++ || strncmp(name, module, len) || strncmp(name + len, ".ko", 3))
			continue;
		snprintf(path, sizeof(path), "/lib/modules/%s/%s", u.release, line);
		ret = open(path, O_RDONLY | O_CLOEXEC);
		if (ret < 0)
			ret = -errno;
	}
	free(line);
	if (deps)
		fclose(deps);
	return ret;
}

static int load_file(int file, const char *args)
{
	static int flags;
	int ret;

	ret = syscall(SYS_finit_module, file, args, flags) ? -errno : 0;
	if (ret == -ENOEXEC && !flags) {
		flags = MODULE_INIT_COMPRESSED_FILE;
		ret = syscall(SYS_finit_module, file, args, flags) ? -errno : 0;
	}
	return ret;
}

static bool loaded(const char *module)
{
	char path[128];

	snprintf(path, sizeof(path), "/sys/module/%s", module);
	return !access(path, F_OK);
}

static int users(const char *module)
{
	char path[128];
	int n = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", module);
	f = fopen(path, "r");
	if (f && fscanf(f, "%d", &n) != 1)
		n = -1;
	if (f)
		fclose(f);
	return n;
}

/* Does CONFIG_DEBUG_KOBJECT_RELEASE let things be released when their module is gone? */
static bool late_release(void)
{
	return !system("zcat /proc/config.gz | grep -q ^CONFIG_DEBUG_KOBJECT_RELEASE=y");
}

static int reopen(int fd, int flags)
{
	char path[64];
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = open(path, flags | O_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

/* A heap and its module, and all heaps while that one is loaded */
struct heap_module {
	const char *module;
	char path[128];
	char args[512];
	int file;
	int dev;
	struct names names;
};

static int load(const struct heap_module *m)
{
	return load_file(m->file, m->args);
}

/* With what the module has been loaded that is there: modprobe has it from elsewhere */
static void get_regions(char *args, size_t size)
{
	int fd = open("/sys/module/coherent_heap/parameters/regions", O_RDONLY | O_CLOEXEC);
	ssize_t n, len = snprintf(args, size, "regions=");

	n = read(fd, args + len, size - len - 1);
	args[len + (n > 0 ? n : 0)] = 0;
	args[strcspn(args, "\n")] = 0;
	close(fd);
}

FIXTURE(module) {
	struct heap_module m;
};

FIXTURE_VARIANT(module) {
	const char *module;
	const char *alias;
	const char *heap;
};

FIXTURE_VARIANT_ADD(module, system) {
	.module = "system_heap",
	.alias = "dma-heap-system",
	.heap = "system",
};

FIXTURE_VARIANT_ADD(module, cma) {
	.module = "cma_heap",
	.alias = "dma-heap-cma",
	.heap = "default_cma_region",
};

FIXTURE_VARIANT_ADD(module, coherent) {
	.module = "coherent_heap",
	.alias = "dma-heap-coherent",
};

FIXTURE_SETUP(module)
{
	const char *heap;

	self->m.module = variant->module;
	self->m.dev = -1;
	self->m.file = open_module(self->m.module);
	if (self->m.file < 0)
		SKIP(return, "%s is no module here", self->m.module);
	if (modprobe(self->m.module))
		SKIP(return, "%s can't be loaded", self->m.module);
	if (users(self->m.module))
		SKIP(return, "%s is in use", self->m.module);
	heap = variant->heap ?: coherent_heap();
	if (!heap)
		SKIP(return, "no heap of %s", self->m.module);
	if (!variant->heap)
		get_regions(self->m.args, sizeof(self->m.args));
	snprintf(self->m.path, sizeof(self->m.path), "/dev/dma_heap/%s", heap);
	self->m.dev = open(self->m.path, O_RDWR | O_CLOEXEC);
	if (self->m.dev < 0)
		SKIP(return, "%s: %s", self->m.path, strerror(errno));
	self->m.names = heap_names();
}

FIXTURE_TEARDOWN(module)
{
	if (self->m.file >= 0)
		modprobe(self->m.module);
}

/* What a test still holds is all that is left of the heap: the module stays, and works */
static void stays(struct __test_metadata *_metadata, struct heap_module *m)
{
	int dev, buf;

	EXPECT_EQ(-EWOULDBLOCK, unload(m->module));
	dev = open(m->path, O_RDWR | O_CLOEXEC);
	EXPECT_GE(dev, 0) TH_LOG("%s: %s", m->path, strerror(errno));
	buf = alloc(dev, 4096);
	EXPECT_GE(buf, 0);
	close(buf);
	close(dev);
	EXPECT_EQ(-EWOULDBLOCK, unload(m->module));
}

static void gone(struct __test_metadata *_metadata, struct heap_module *m)
{
	struct names names = heap_names();

	EXPECT_FALSE(loaded(m->module));
	EXPECT_EQ(NULL, strstr(names.text, strrchr(m->path, '/')));
	EXPECT_EQ(-1, open(m->path, O_RDWR | O_CLOEXEC));
	EXPECT_EQ(ENOENT, errno);
}

/* Now there is nothing left: the module goes, and its heaps go with it. And all come back. */
static void goes(struct __test_metadata *_metadata, struct heap_module *m)
{
	struct names names;

	ASSERT_EQ(0, unload_soon(m->module));
	gone(_metadata, m);
	EXPECT_EQ(0, load(m));
	names = heap_names();
	EXPECT_STREQ(m->names.text, names.text);
}

/* The heap is closed for a buffer of it */
static int only_buffer(struct __test_metadata *_metadata, struct heap_module *m)
{
	int buf = alloc(m->dev, 65536);

	EXPECT_GE(buf, 0);
	close(m->dev);
	return buf;
}

TEST_F_TIMEOUT(module, idle, TIMEOUT)
{
	int i;

	close(self->m.dev);
	for (i = 0; i < 3; i++) {
		/* at once: what its process closes has ended when close() returns */
		ASSERT_EQ(0, unload(self->m.module));
		EXPECT_EQ(-ENOENT, unload(self->m.module));
		gone(_metadata, &self->m);
		ASSERT_EQ(0, load(&self->m));
		EXPECT_EQ(-EEXIST, load(&self->m));
		self->m.dev = open(self->m.path, O_RDWR | O_CLOEXEC);
		close(only_buffer(_metadata, &self->m));
	}
	goes(_metadata, &self->m);
}

TEST_F_TIMEOUT(module, heap_file, TIMEOUT)
{
	stays(_metadata, &self->m);
	close(self->m.dev);
	goes(_metadata, &self->m);
}

/* A path to the node does not hold the module, but what is opened through it does */
TEST_F_TIMEOUT(module, path, TIMEOUT)
{
	int path = open(self->m.path, O_PATH | O_CLOEXEC), dev;

	ASSERT_GE(path, 0);
	close(self->m.dev);
	dev = reopen(path, O_RDWR);
	ASSERT_GE(dev, 0);
	close(path);
	stays(_metadata, &self->m);
	close(dev);
	goes(_metadata, &self->m);
}

TEST_F_TIMEOUT(module, buffer, TIMEOUT)
{
	int buf = only_buffer(_metadata, &self->m);

	stays(_metadata, &self->m);
	close(buf);
	goes(_metadata, &self->m);
}

TEST_F_TIMEOUT(module, mapping, TIMEOUT)
{
	int buf = only_buffer(_metadata, &self->m);
	char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);

	ASSERT_NE(MAP_FAILED, p);
	close(buf);
	stays(_metadata, &self->m);
	p[4096] = 1;
	/* a part of it will do */
	munmap(p, 32768);
	stays(_metadata, &self->m);
	munmap(p + 32768, 32768);
	goes(_metadata, &self->m);
}

/* On its way to another process, which never receives it */
TEST_F_TIMEOUT(module, in_flight, TIMEOUT)
{
	union {
		struct cmsghdr head;
		char space[CMSG_SPACE(sizeof(int))];
	} control = {};
	struct iovec iov = { .iov_base = "", .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	int buf = only_buffer(_metadata, &self->m), pair[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	control.head.cmsg_level = SOL_SOCKET;
	control.head.cmsg_type = SCM_RIGHTS;
	control.head.cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(&control.head), &buf, sizeof(int));
	ASSERT_EQ(1, sendmsg(pair[0], &msg, 0));
	close(buf);
	close(pair[0]);
	stays(_metadata, &self->m);
	close(pair[1]);
	goes(_metadata, &self->m);
}

TEST_F_TIMEOUT(module, derived, TIMEOUT)
{
	struct dma_buf_derive arg = { .flags = O_RDONLY | O_CLOEXEC, .fd = -1 };
	int buf = only_buffer(_metadata, &self->m);
	char *p;

	if (ioctl(buf, DMA_BUF_IOCTL_DERIVE, &arg)) {
		ASSERT_EQ(ENOTTY, errno);
		SKIP(return, "no DMA_BUF_IOCTL_DERIVE");
	}
	p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	ASSERT_NE(MAP_FAILED, p);
	*p = 0x55;
	munmap(p, 65536);
	close(buf);
	stays(_metadata, &self->m);
	/* which is what a derived fd is on any other buffer */
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_SHARED, arg.fd, 0));
	EXPECT_EQ(EACCES, errno);
	p = mmap(NULL, 65536, PROT_READ, MAP_SHARED, arg.fd, 0);
	ASSERT_NE(MAP_FAILED, p);
	EXPECT_EQ(0x55, *p);
	EXPECT_EQ(-1, mprotect(p, 65536, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	close(arg.fd);
	stays(_metadata, &self->m);
	munmap(p, 65536);
	goes(_metadata, &self->m);
}

static int open_vgem(void)
{
	char path[32], name[8];
	int i, fd;

	for (i = 0; i < 16; i++) {
		struct drm_version version = { .name = name, .name_len = sizeof(name) };

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, DRM_IOCTL_VERSION, &version) && version.name_len == 4 &&
		    !memcmp(name, "vgem", 4))
			return fd;
		close(fd);
	}
	return -1;
}

TEST_F_TIMEOUT(module, importer, TIMEOUT)
{
	struct drm_prime_handle prime = {};
	struct drm_gem_close gem = {};
	int drm = open_vgem(), buf;

	if (drm < 0)
		SKIP(return, "no vgem");
	buf = only_buffer(_metadata, &self->m);
	prime.fd = buf;
	ASSERT_EQ(0, ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime));
	close(buf);
	stays(_metadata, &self->m);
	gem.handle = prime.handle;
	EXPECT_EQ(0, ioctl(drm, DRM_IOCTL_GEM_CLOSE, &gem));
	goes(_metadata, &self->m);
}

/* An inode that has been opened knows its device; it forgets one that goes */
TEST_F_TIMEOUT(module, old_inode, TIMEOUT)
{
	int path = open(self->m.path, O_PATH | O_CLOEXEC), dev;

	ASSERT_GE(path, 0);
	close(self->m.dev);
	dev = reopen(path, O_RDWR);
	ASSERT_GE(dev, 0);
	close(dev);
	ASSERT_EQ(0, unload_soon(self->m.module));
	/* until its cdev is released, what an inode has to ask is the module, which is gone */
	if (late_release())
		sleep(10);
	EXPECT_EQ(-ENXIO, reopen(path, O_RDWR));
	EXPECT_EQ(0, load(&self->m));
	/* who has the number of the old one now is another question */
	dev = reopen(path, O_RDWR);
	EXPECT_TRUE(dev >= 0 || dev == -ENXIO) TH_LOG("%d", dev);
	close(dev);
	self->m.dev = open(self->m.path, O_RDWR | O_CLOEXEC);
	ASSERT_GE(self->m.dev, 0);
	stays(_metadata, &self->m);
	close(self->m.dev);
	goes(_metadata, &self->m);
}

/* Nothing finds a heap for udev, so the list of modules to load at boot may have this name */
TEST_F_TIMEOUT(module, alias, TIMEOUT)
{
	struct names names;

	close(self->m.dev);
	ASSERT_EQ(0, unload_soon(self->m.module));
	EXPECT_EQ(0, modprobe(variant->alias));
	EXPECT_TRUE(loaded(self->m.module));
	names = heap_names();
	EXPECT_STREQ(self->m.names.text, names.text);
}

/* How often the kernel has told of the device of a heap that it did what action says */
static int uevents(int sock, const char *action, const char *heap)
{
	char start[128], node[128], msg[4096];
	ssize_t len;
	int n = 0;

	snprintf(start, sizeof(start), "%s@/devices/virtual/dma_heap/%s", action, heap);
	snprintf(node, sizeof(node), "DEVNAME=dma_heap/%s", heap);
	while ((len = recv(sock, msg, sizeof(msg) - 1, MSG_DONTWAIT)) > 0) {
		msg[len] = 0;
		if (!strcmp(msg, start))
			n += !!memmem(msg, len + 1, node, strlen(node) + 1);
	}
	return n;
}

TEST_F_TIMEOUT(module, uevents, TIMEOUT)
{
	struct sockaddr_nl addr = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	const char *heap = strrchr(self->m.path, '/') + 1;
	int sock = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);

	ASSERT_GE(sock, 0);
	ASSERT_EQ(0, bind(sock, (struct sockaddr *)&addr, sizeof(addr)));
	close(self->m.dev);
	ASSERT_EQ(0, unload_soon(self->m.module));
	EXPECT_EQ(1, uevents(sock, "remove", heap));
	ASSERT_EQ(0, load(&self->m));
	EXPECT_EQ(1, uevents(sock, "add", heap));
}

/* Of which module a heap is does not depend on which one has been loaded first */
TEST_F_TIMEOUT(module, other_order, TIMEOUT)
{
	const char *other = strcmp(self->m.module, "system_heap") ? "system_heap" : "cma_heap";
	struct names names;

	close(self->m.dev);
	if (modprobe(other) || users(other))
		SKIP(return, "no module %s, or it is in use", other);
	self->m.names = heap_names();
	EXPECT_EQ(0, unload_soon(other));
	EXPECT_EQ(0, unload_soon(self->m.module));
	EXPECT_EQ(0, modprobe(self->m.module));
	EXPECT_EQ(0, modprobe(other));
	names = heap_names();
	EXPECT_STREQ(self->m.names.text, names.text);
}

/*
 * Each thing that can fail when the module is loaded. Where one of them does no harm,
 * such as the node in /dev, the module is there without.
 */
TEST_F_TIMEOUT(module, fail_nth, TIMEOUT)
{
	int step = env("VMTEST_SLOW", 1) / env("VMTEST_SCALE", 1) ?: 1;
	int nth, ret, left = 0, failed = 0;
	struct names before, names;

	close(self->m.dev);
	ASSERT_EQ(0, unload_soon(self->m.module));
	before = heap_names();
	/* the module and its kobjects wait for seconds each time */
	if (late_release())
		step *= 8;
	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (nth = 1; nth < 10000 && !left; nth += step) {
		fail_nth(nth);
		ret = load(&self->m);
		left = fail_nth_left();
		if (ret) {
			EXPECT_TRUE(ret == -ENOMEM || ret == -EFAULT)
				TH_LOG("allocation %d: %d", nth, ret);
			EXPECT_FALSE(left);
			EXPECT_FALSE(loaded(self->m.module)) TH_LOG("allocation %d", nth);
			names = heap_names();
			EXPECT_STREQ(before.text, names.text) TH_LOG("allocation %d", nth);
			EXPECT_EQ(0, load(&self->m)) TH_LOG("allocation %d", nth);
			names = heap_names();
			EXPECT_STREQ(self->m.names.text, names.text) TH_LOG("allocation %d", nth);
			failed++;
		}
		ASSERT_EQ(0, unload_soon(self->m.module)) TH_LOG("allocation %d", nth);
	}
	EXPECT_TRUE(left);
	EXPECT_GT(failed, 0);
	fail_nth_restore();
	TH_LOG("%d of %d failures were the module's", failed, (nth - 1) / step);
}

#define NR_USERS 3

/* Users of a heap that comes and goes. What they see, by errno. */
static struct {
	const char *path;
	atomic_bool stop, pause;
	atomic_int opens[256], allocs[256], failed;
} storm;

static void *use_heap(void *arg)
{
	unsigned int i;
	int dev, buf;
	char *p;

	for (i = (uintptr_t)arg; !storm.stop; i++) {
		while (storm.pause && !storm.stop)
			usleep(1000);
		dev = open(storm.path, O_RDWR | O_CLOEXEC);
		if (dev < 0) {
			storm.opens[errno & 255]++;
			usleep(100);
			continue;
		}
		storm.opens[0]++;
		if (ioctl(dev, DMA_HEAP_IOCTL_ALLOC, NULL) != -1 || errno != EFAULT)
			storm.failed++;
		buf = alloc(dev, 4096 << i % 4);
		if (buf < 0) {
			storm.allocs[-buf & 255]++;
			close(dev);
			continue;
		}
		storm.allocs[0]++;
		/* the buffer, or its mapping, is the last that is left */
		if (i & 1)
			close(dev);
		p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
		if (p == MAP_FAILED) {
			storm.failed++;
		} else {
			if (*p)
				storm.failed++;
			*p = 1;
		}
		close(buf);
		if (p != MAP_FAILED)
			munmap(p, 4096);
		if (!(i & 1))
			close(dev);
		/* now and then all of them are away, or about to come back */
		usleep(i * 7919 % 5000);
	}
	return NULL;
}

/* Whether none but these errors were seen, and how often each was */
static bool only(const char *what, const atomic_int *seen, int error1, int error2, int error3)
{
	bool good = true;
	int i;

	for (i = 0; i < 256; i++) {
		if (!seen[i])
			continue;
		ksft_print_msg("%s: %d times %s\n", what, seen[i], i ? strerror(i) : "good");
		good &= !i || i == error1 || i == error2 || i == error3;
	}
	return good;
}

TEST_F_TIMEOUT(module, storm, 3 * TIMEOUT)
{
	int cycles = env("HEAP_MODULE_CYCLES", 100 * env("VMTEST_SCALE", 1) /
						env("VMTEST_SLOW", 1) ?: 1);
	pthread_t threads[NR_USERS];
	atomic_int unloads[256];
	int i, ret, opened;

	close(self->m.dev);
	ASSERT_EQ(0, unload_soon(self->m.module));
	memset(&storm, 0, sizeof(storm));
	memset(unloads, 0, sizeof(unloads));
	storm.path = self->m.path;
	for (i = 0; i < NR_USERS; i++)
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, use_heap, (void *)(uintptr_t)i));

	while (unloads[0] < cycles && !storm.failed) {
		ASSERT_EQ(0, load(&self->m));
		/* used each time, and left alone if it is never idle otherwise */
		opened = storm.opens[0];
		while (storm.opens[0] == opened)
			usleep(100);
		for (i = 0; (ret = unload(self->m.module)); i++) {
			unloads[-ret & 255]++;
			ASSERT_EQ(-EWOULDBLOCK, ret);
			storm.pause = i > 100;
			usleep(100);
		}
		unloads[0]++;
		storm.pause = false;
	}

	storm.stop = true;
	for (i = 0; i < NR_USERS; i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	EXPECT_EQ(0, storm.failed);
	EXPECT_TRUE(only("open", storm.opens, ENOENT, ENXIO, ENODEV));
	EXPECT_TRUE(only("allocate", storm.allocs, ENODEV, 0, 0));
	EXPECT_TRUE(only("unload", unloads, EWOULDBLOCK, 0, 0));
}

/* The heap of a TEE, which stays when its device goes, but not when tee goes */
FIXTURE(tee) {
	bool was_loaded;
	struct names names;
};

FIXTURE_SETUP(tee)
{
	int file = open_module("tee_heap_test"), ret;

	if (file < 0)
		SKIP(return, "no module tee_heap_test");
	close(file);
	if (late_release())
		SKIP(return, "the class of tee, which is in tee, would be released too late");
	self->was_loaded = loaded("tee");
	unload("tee_heap_test");
	ret = unload_soon("tee");
	if (ret && ret != -ENOENT)
		SKIP(return, "tee is in use, or built in");
	self->names = heap_names();
	/* nobody must open what is here nevertheless */
	ASSERT_EQ(-1, access(TEE_NODE, F_OK));
	ASSERT_EQ(0, modprobe("tee_heap_test"));
	EXPECT_EQ(0, access(TEE_NODE, F_OK));
	EXPECT_EQ(-EWOULDBLOCK, unload("tee"));
	ASSERT_EQ(0, unload_soon("tee_heap_test"));
	EXPECT_EQ(0, access(TEE_NODE, F_OK));
}

FIXTURE_TEARDOWN(tee)
{
	if (self->was_loaded)
		modprobe("tee");
}

static void tee_goes(struct __test_metadata *_metadata, const struct names *before)
{
	struct names names;

	ASSERT_EQ(0, unload_soon("tee"));
	EXPECT_EQ(-1, access(TEE_NODE, F_OK));
	names = heap_names();
	EXPECT_STREQ(before->text, names.text);
}

TEST_F_TIMEOUT(tee, idle, TIMEOUT)
{
	tee_goes(_metadata, &self->names);
	ASSERT_EQ(0, modprobe("tee_heap_test"));
	EXPECT_EQ(0, access(TEE_NODE, F_OK));
	ASSERT_EQ(0, unload_soon("tee_heap_test"));
	tee_goes(_metadata, &self->names);
}

TEST_F_TIMEOUT(tee, heap_file, TIMEOUT)
{
	int dev = open(TEE_NODE, O_RDWR | O_CLOEXEC);

	ASSERT_GE(dev, 0);
	EXPECT_EQ(-EWOULDBLOCK, unload("tee"));
	EXPECT_EQ(-EINVAL, alloc(dev, 4096));
	EXPECT_EQ(-EWOULDBLOCK, unload("tee"));
	close(dev);
	tee_goes(_metadata, &self->names);
}

TEST_HARNESS_MAIN

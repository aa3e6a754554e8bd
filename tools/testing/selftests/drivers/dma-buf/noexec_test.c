// SPDX-License-Identifier: GPL-2.0
/*
 * Nothing that a file of the dma-buf file system, or of another one that exists in
 * the kernel only, holds can be executed, and no such file can be opened again.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/dma-heap.h>
#include <linux/udmabuf.h>

#include "../../kselftest_harness.h"

static size_t page;

static int heap(const char *path)
{
	struct dma_heap_allocation_data data = {
		.len = page,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};
	int fd = open(path, O_RDWR), ret;

	if (fd < 0)
		return -errno;
	ret = ioctl(fd, DMA_HEAP_IOCTL_ALLOC, &data);
	close(fd);
	return ret ? -errno : (int)data.fd;
}

static int system_heap(void)
{
	return heap("/dev/dma_heap/system");
}

static int cma_heap(void)
{
	return heap("/dev/dma_heap/default_cma_region");
}

static int udmabuf(void)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC, .size = page };
	int dev = open("/dev/udmabuf", O_RDWR), ret;

	if (dev < 0)
		return -errno;
	create.memfd = memfd_create("noexec", MFD_ALLOW_SEALING);
	if (ftruncate(create.memfd, page) || fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		return -errno;
	ret = ioctl(dev, UDMABUF_CREATE, &create);
	close(create.memfd);
	close(dev);
	return ret < 0 ? -errno : ret;
}

static int secret(void)
{
	int fd = syscall(SYS_memfd_secret, 0);

	if (fd < 0 || ftruncate(fd, page))
		return -errno;
	return fd;
}

static int event(void)
{
	return eventfd(0, 0);
}

FIXTURE(noexec) {
	int fd;
};

/* mmap: it can be mapped for reading at least */
FIXTURE_VARIANT(noexec) {
	int (*open)(void);
	int mmap;
};

FIXTURE_VARIANT_ADD(noexec, system_heap) { .open = system_heap, .mmap = 1 };
FIXTURE_VARIANT_ADD(noexec, cma_heap) { .open = cma_heap, .mmap = 1 };
FIXTURE_VARIANT_ADD(noexec, udmabuf) { .open = udmabuf, .mmap = 1 };
FIXTURE_VARIANT_ADD(noexec, memfd_secret) { .open = secret, .mmap = 1 };
FIXTURE_VARIANT_ADD(noexec, eventfd) { .open = event };

FIXTURE_SETUP(noexec)
{
	page = getpagesize();
	self->fd = variant->open();
	if (self->fd < 0)
		SKIP(return, "%s", strerror(-self->fd));
}

FIXTURE_TEARDOWN(noexec)
{
	close(self->fd);
}

/* The x of the first mapping that has it, of an address in it */
static int is_executable(const void *addr)
{
	FILE *file = fopen("/proc/self/maps", "r");
	unsigned long start, end;
	char line[512], prot[8];
	int found = -1;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "%lx-%lx %7s", &start, &end, prot) == 3 &&
		    (unsigned long)addr >= start && (unsigned long)addr < end)
			found = prot[2] == 'x';
	if (file)
		fclose(file);
	return found;
}

TEST_F(noexec, mmap_exec)
{
	static const int prot[] = {
		PROT_EXEC, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE | PROT_EXEC,
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(prot); i++) {
		EXPECT_EQ(MAP_FAILED, mmap(NULL, page, prot[i], MAP_SHARED, self->fd, 0));
		EXPECT_TRUE(errno == EPERM || (errno == ENODEV && !variant->mmap))
			TH_LOG("%s", strerror(errno));
		EXPECT_EQ(MAP_FAILED, mmap(NULL, page, prot[i], MAP_PRIVATE, self->fd, 0));
	}
}

TEST_F(noexec, mprotect_exec)
{
	void *p = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);

	ASSERT_EQ(variant->mmap, p != MAP_FAILED);
	if (!variant->mmap)
		return;
	EXPECT_EQ(-1, mprotect(p, page, PROT_READ | PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(-1, mprotect(p, page, PROT_EXEC));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(0, is_executable(p));
	munmap(p, page);
}

/* An old program for which all that can be read can be executed */
TEST_F(noexec, read_implies_exec)
{
	int old = personality(0xffffffff);
	void *p, *other;

	ASSERT_NE(-1, personality(old | READ_IMPLIES_EXEC));
	p = mmap(NULL, page, PROT_READ, MAP_SHARED, self->fd, 0);
	other = mmap(NULL, page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	personality(old);
	ASSERT_EQ(variant->mmap, p != MAP_FAILED);
	/* it does work, for other memory */
	EXPECT_EQ(1, is_executable(other));
	if (variant->mmap)
		EXPECT_EQ(0, is_executable(p));
}

TEST_F(noexec, execveat)
{
	char *argv[] = { "noexec", NULL };

	EXPECT_EQ(-1, syscall(SYS_execveat, self->fd, "", argv, NULL, AT_EMPTY_PATH));
	EXPECT_EQ(EACCES, errno);
}

TEST_F(noexec, set_mm_exe_file)
{
	EXPECT_EQ(-1, prctl(PR_SET_MM, PR_SET_MM_EXE_FILE, self->fd, 0, 0));
	if (errno == EPERM)
		SKIP(return, "it takes CAP_SYS_RESOURCE");
	EXPECT_EQ(EACCES, errno);
}

TEST_F(noexec, reopen)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	EXPECT_EQ(-1, open(path, O_RDONLY));
	EXPECT_EQ(ENXIO, errno);
	EXPECT_EQ(-1, open(path, O_RDWR));
	EXPECT_EQ(ENXIO, errno);
	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_FALSE(S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode));
}

TEST_HARNESS_MAIN

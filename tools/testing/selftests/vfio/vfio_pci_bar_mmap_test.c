// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of the BARs of a PCI function through its vfio device fd: what can be
 * mapped and how, what user space sees of such a mapping, and that it is gone
 * (SIGBUS, nothing else) whenever the function cannot answer, and works again
 * afterwards.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/io.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/bars.h>

#include "../fail_nth.h"
#include "../kselftest_harness.h"

/* ---- The ABI of the mapping itself, by both ways to a device fd */

FIXTURE(bar_mmap) {
	struct dut dut;
};

FIXTURE_VARIANT(bar_mmap) {
	const char *mode;
};

FIXTURE_VARIANT_ADD(bar_mmap, cdev) { .mode = MODE_IOMMUFD };
FIXTURE_VARIANT_ADD(bar_mmap, group) { .mode = MODE_VFIO_TYPE1V2_IOMMU };

FIXTURE_SETUP(bar_mmap)
{
	dut_open(&self->dut, variant->mode);
	ASSERT_LT(0, self->dut.nr_bars);
}

FIXTURE_TEARDOWN(bar_mmap)
{
	dut_close(&self->dut);
}

static int mmap_errno(struct dut *dut, u64 off, u64 len, int flags)
{
	void *map = mmap(NULL, len, PROT_READ, flags, dut->device->fd, off);

	if (map == MAP_FAILED)
		return errno;
	unmap(map, len);
	return 0;
}

BAR_TEST(bar_mmap, private_mapping)
{
	struct dut *dut = &self->dut;
	int i;

	for (i = 0; i < dut->nr_bars; i++) {
		struct bar *bar = &dut->bars[i];

		EXPECT_EQ(0, mmap_errno(dut, bar->offset, bar->len, MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset, bar->len, MAP_PRIVATE));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset, page, MAP_PRIVATE));
	}
}

BAR_TEST(bar_mmap, bounds)
{
	struct dut *dut = &self->dut;
	u64 next = 1ULL << 40;
	int i;

	for (i = 0; i < dut->nr_bars; i++) {
		struct bar *bar = &dut->bars[i];
		u64 end = bar->offset + bar->len;

		EXPECT_EQ(0, mmap_errno(dut, end - page, page, MAP_SHARED));
		EXPECT_EQ(0, mmap_errno(dut, end - page, 1, MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, end, page, MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, end - page, 2 * page, MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset, bar->len + page,
					     MAP_SHARED));
		/* Into the next region, and up to its start */
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset + next - page, page,
					     MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset + next - page, 2 * page,
					     MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset + 1, page, MAP_SHARED));
		EXPECT_EQ(EINVAL, mmap_errno(dut, bar->offset, 0, MAP_SHARED));
	}
	EXPECT_EQ(EOVERFLOW, mmap_errno(dut, -page, page, MAP_SHARED));
	EXPECT_EQ(EOVERFLOW, mmap_errno(dut, -page, 2 * page, MAP_SHARED));
}

/* What is no BAR of memory, or no region at all */
BAR_TEST(bar_mmap, other_regions)
{
	struct dut *dut = &self->dut;
	struct vfio_region_info info;
	u32 i;

	for (i = 0; i < dut->device->info.num_regions; i++) {
		info = (struct vfio_region_info) { .argsz = sizeof(info), .index = i };
		if (!ioctl(dut->device->fd, VFIO_DEVICE_GET_REGION_INFO, &info) &&
		    info.flags & VFIO_REGION_INFO_FLAG_MMAP)
			continue;
		EXPECT_EQ(EINVAL, mmap_errno(dut, (u64)i << 40, page, MAP_SHARED))
			TH_LOG("region %u", i);
	}
	EXPECT_EQ(EINVAL, mmap_errno(dut, (u64)i << 40, page, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(dut, (u64)255 << 40, page, MAP_SHARED));
	/* An index that is a BAR's in its lower 8, 16 or 20 bits */
	for (i = 8; i <= 20; i += 4)
		EXPECT_EQ(EINVAL, mmap_errno(dut, (1ULL << (40 + i)) |
					     dut->bars[0].offset, page, MAP_SHARED));
}

/* MAP_SHARED of a fd that cannot write is no VM_SHARED, which is asked for */
BAR_TEST(bar_mmap, read_only_fd)
{
	struct dut *dut = &self->dut;
	struct vfio_pci_device *device = dut->device;
	const char *path;
	void *map;

	if (device->group_fd)
		SKIP(return, "the fd of a group is O_RDWR");
	close_fds(device);
	path = vfio_pci_get_cdev_path(device_bdf);
	device->fd = open(path, O_RDONLY);
	ASSERT_LE(0, device->fd);
	ASSERT_EQ(0, __vfio_device_bind_iommufd(device->fd, dut->iommu->iommufd, NULL));
	map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, device->fd,
		   dut->bars[0].offset);
	EXPECT_EQ(MAP_FAILED, map);
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(EINVAL, mmap_errno(dut, dut->bars[0].offset, page, MAP_SHARED));
}

/*
 * Off and on again with each BAR mapped in windows at several offsets: a mapping of
 * what is beyond the length of the mapping must go like others.
 */
BAR_TEST(bar_mmap, memory_off_and_on)
{
	struct dut *dut = &self->dut;
	int i, round;

	map_windows(dut);
	EXPECT_ALIVE(dut);
	for (round = 0; round < 2; round++) {
		memory_off(dut);
		EXPECT_DEAD(dut);
		for (i = 0; i < dut->nr_windows; i++)
			EXPECT_FALSE(poke(dut->windows[i].map + 4, 0));
		/* Off once more */
		memory_off(dut);
		EXPECT_DEAD(dut);
		memory_on(dut);
		EXPECT_ALIVE(dut);
		memory_on(dut);
		EXPECT_ALIVE(dut);
	}
}

BAR_TEST(bar_mmap, mmap_while_off)
{
	struct dut *dut = &self->dut;

	memory_off(dut);
	map_windows(dut);
	EXPECT_DEAD(dut);
	memory_on(dut);
	EXPECT_ALIVE(dut);
	memory_off(dut);
	EXPECT_DEAD(dut);
	memory_on(dut);
}

BAR_TEST(bar_mmap, smaller_than_a_page)
{
	struct dut *dut = &self->dut;
	struct bar *bar = dut->bars;
	void *map;

	while (bar < &dut->bars[dut->nr_bars] && bar->size >= page)
		bar++;
	if (bar == &dut->bars[dut->nr_bars])
		SKIP(return, "no such BAR");
	map = map_bar(dut, bar, 0, bar->size);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, page));
	memory_off(dut);
	EXPECT_EQ(0, not_as(DEAD, bar, map, 0, page));
	memory_on(dut);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, page));
	unmap(map, bar->size);
}

/* A mapping holds the device open, when nothing else does */
BAR_TEST(bar_mmap, outlives_its_fd)
{
	struct dut *dut = &self->dut;
	struct iommu *again = iommu_init(variant->mode);
	struct vfio_pci_device *device = vfio_pci_device_alloc(device_bdf, again);

	map_windows(dut);
	close_fds(dut->device);
	EXPECT_ALIVE(dut);
	iommu_cleanup(dut->iommu);
	dut->shared_iommu = true;
	EXPECT_ALIVE(dut);

	EXPECT_EQ(again->iommufd ? -EINVAL : -EBUSY, try_open(device));
	close_fds(device);
	EXPECT_ALIVE(dut);
	while (dut->nr_windows > 1) {
		struct window *w = &dut->windows[--dut->nr_windows];

		unmap(w->map, w->len);
	}
	EXPECT_EQ(again->iommufd ? -EINVAL : -EBUSY, try_open(device));
	close_fds(device);

	unmap_windows(dut);
	EXPECT_EQ(0, try_open(device));
	close_fds(device);
	vfio_pci_device_free(device);
	iommu_cleanup(again);
}

struct maps_line {
	unsigned long start, end, offset;
	char perms[8], name[PATH_MAX];
};

static bool find_maps_line(const void *map, struct maps_line *m)
{
	char line[PATH_MAX + 128];
	FILE *file = fopen("/proc/self/maps", "r");
	bool found = false;

	VFIO_ASSERT_NOT_NULL(file);
	while (!found && fgets(line, sizeof(line), file)) {
		m->name[0] = 0;
		found = sscanf(line, "%lx-%lx %7s %lx %*s %*s %4095[^\n]", &m->start,
			       &m->end, m->perms, &m->offset, m->name) >= 4 &&
			m->start == (unsigned long)map;
	}
	fclose(file);
	return found;
}

/* The line "VmFlags:" of a mapping */
static void vm_flags(const void *map, char *flags, size_t size)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	unsigned long start, end;
	bool here = false;
	char line[512];

	VFIO_ASSERT_NOT_NULL(file);
	flags[0] = 0;
	while (!flags[0] && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%lx-%lx ", &start, &end) == 2)
			here = start == (unsigned long)map;
		if (here && !strncmp(line, "VmFlags:", 8))
			snprintf(flags, size, "%s", line + 8);
	}
	fclose(file);
}

BAR_TEST(bar_mmap, proc_maps)
{
	static const char * const flags[] = { " sh ", " io ", " pf ", " de ", " dd " };
	struct dut *dut = &self->dut;
	char path[80], link[PATH_MAX], line[512];
	struct maps_line m;
	size_t f;
	int i;

	map_windows(dut);
	for (i = 0; i < dut->nr_windows; i++) {
		struct window *w = &dut->windows[i];
		ssize_t len;

		ASSERT_TRUE(find_maps_line(w->map, &m));
		EXPECT_EQ(((u64)w->bar->index << 40) + w->off, m.offset);
		EXPECT_EQ((unsigned long)w->map + w->len, m.end);
		EXPECT_STREQ("rw-s", m.perms);
		EXPECT_NE(0, m.name[0]);
		ksft_print_msg("BAR%d is mapped as '%s'\n", w->bar->index, m.name);

		snprintf(path, sizeof(path), "/proc/self/map_files/%lx-%lx", m.start,
			 m.end);
		len = readlink(path, link, sizeof(link) - 1);
		ASSERT_LT(0, len);
		link[len] = 0;
		EXPECT_STREQ(m.name, link);

		vm_flags(w->map, line, sizeof(line));
		for (f = 0; f < ARRAY_SIZE(flags); f++)
			EXPECT_NE(NULL, strstr(line, flags[f])) TH_LOG("%s", line);
	}
}

/* ---- Mappings that are cut up and moved */

BAR_TEST(bar_mmap, hole)
{
	struct dut *dut = &self->dut;
	struct bar *bar = sixteen_pages(dut);
	struct piece piece[2];
	void *map;

	if (!bar)
		SKIP(return, "no BAR with sixteen pages");
	map = map_bar(dut, bar, 4 * page, 8 * page);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 4 * page, 8 * page));
	unmap(map + 3 * page, 2 * page);
	piece[0] = (struct piece) { map, 4 * page, 3 * page };
	piece[1] = (struct piece) { map + 5 * page, 9 * page, 3 * page };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(piece[0].map, piece[0].len);
	EXPECT_EQ(0, check_pieces(dut, bar, &piece[1], 1));
	unmap(piece[1].map, piece[1].len);
}

BAR_TEST(bar_mmap, mprotect)
{
	struct dut *dut = &self->dut;
	struct bar *bar = sixteen_pages(dut);
	struct piece piece[2];
	void *map;

	if (!bar)
		SKIP(return, "no BAR with sixteen pages");
	map = map_bar(dut, bar, 0, 8 * page);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, 8 * page));
	ASSERT_EQ(0, mprotect(map + 3 * page, 2 * page, PROT_NONE));
	piece[0] = (struct piece) { map, 0, 3 * page };
	piece[1] = (struct piece) { map + 5 * page, 5 * page, 3 * page };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	ASSERT_EQ(0, mprotect(map + 3 * page, 2 * page, PROT_READ));
	piece[0].len = 8 * page;
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 1));
	ASSERT_EQ(0, mprotect(map, 8 * page, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 1));
	unmap(map, 8 * page);
}

BAR_TEST(bar_mmap, mremap)
{
	struct dut *dut = &self->dut;
	struct bar *bar = sixteen_pages(dut);
	struct piece piece[2];
	void *map, *to;

	if (!bar)
		SKIP(return, "no BAR with sixteen pages");
	map = map_bar(dut, bar, 0, 8 * page);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, 8 * page));
	/* The middle goes elsewhere */
	to = mmap_reserve(3 * page, SZ_2M, page);
	ASSERT_EQ(to, mremap(map + 2 * page, 3 * page, 3 * page,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	piece[0] = (struct piece) { map, 0, 2 * page };
	piece[1] = (struct piece) { to, 2 * page, 3 * page };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	/* Shrunk, and not as long again */
	ASSERT_EQ(to, mremap(to, 3 * page, page, 0));
	piece[1].len = page;
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	EXPECT_EQ(MAP_FAILED, mremap(to, page, 2 * page, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(MAP_FAILED, mremap(to, page, 2 * page, 0));
	EXPECT_EQ(EFAULT, errno);
	/* Nor doubled */
	EXPECT_EQ(MAP_FAILED, mremap(to, 0, page, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(to, page);
	unmap(map, 8 * page);
}

/* The same with mappings of a huge page each */
BAR_TEST(bar_mmap, cut_huge_pages)
{
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true);
	struct piece piece[3];
	void *map, *to;

	if (!bar || bar->len < SZ_4M)
		SKIP(return, "no BAR of 4 MiB that is RAM");
	map = map_at(dut, bar, mmap_reserve(SZ_4M, SZ_2M, 0), 0, SZ_4M);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_4M));
	/* A hole in the first, the second to where it cannot be one */
	unmap(map + 4 * page, 2 * page);
	to = mmap_reserve(SZ_2M, SZ_2M, page);
	ASSERT_EQ(to, mremap(map + SZ_2M, SZ_2M, SZ_2M, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to));
	piece[0] = (struct piece) { map, 0, 4 * page };
	piece[1] = (struct piece) { map + 6 * page, 6 * page, SZ_2M - 6 * page };
	piece[2] = (struct piece) { to, SZ_2M, SZ_2M };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 3));
	/* And back to where it can */
	ASSERT_EQ(map + SZ_2M, mremap(to, SZ_2M, SZ_2M, MREMAP_MAYMOVE | MREMAP_FIXED,
				      map + SZ_2M));
	piece[2].map = map + SZ_2M;
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 3));
	unmap(map, SZ_4M);
}

static sigjmp_buf on_segv_env;

static void on_segv(int sig)
{
	siglongjmp(on_segv_env, 1);
}

/* No mapping is there, also for a CPU that had it in its TLB a moment ago */
static bool is_gone(const void *addr)
{
	if (!sigsetjmp(on_segv_env, 1)) {
		signal(SIGSEGV, on_segv);
		readl(addr);
		signal(SIGSEGV, SIG_DFL);
		return false;
	}
	signal(SIGSEGV, SIG_DFL);
	return true;
}

/* And with one of 1 GiB: moved as a whole, to where it cannot be one, in part, cut */
BAR_TEST(bar_mmap, cut_largest_page)
{
	size_t page = getpagesize();
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true);
	struct piece piece[2];
	void *map, *to;
	int i;

	if (!bar || bar->len < SZ_1G)
		SKIP(return, "no BAR of 1 GiB that is RAM");
	for (i = 0; i < 2; i++) {
		map = map_at(dut, bar, mmap_reserve(SZ_1G, SZ_1G, 0), 0, SZ_1G);
		EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_1G));
		to = mmap_reserve(SZ_1G, SZ_1G, i ? SZ_2M : 0);
		readl(map);
		ASSERT_EQ(to, mremap(map, SZ_1G, SZ_1G, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		EXPECT_TRUE(is_gone(map));
		piece[0] = (struct piece) { to, 0, SZ_1G };
		EXPECT_EQ(0, check_pieces(dut, bar, piece, 1));
		unmap(to, SZ_1G);
	}

	/* Its end, then its middle */
	map = map_at(dut, bar, mmap_reserve(SZ_1G, SZ_1G, 0), 0, SZ_1G);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_1G));
	to = mmap_reserve(SZ_4M, SZ_2M, 0);
	readl(map + SZ_1G - SZ_4M);
	ASSERT_EQ(to, mremap(map + SZ_1G - SZ_4M, SZ_4M, SZ_4M,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_TRUE(is_gone(map + SZ_1G - SZ_4M));
	piece[0] = (struct piece) { map, 0, SZ_1G - SZ_4M };
	piece[1] = (struct piece) { to, SZ_1G - SZ_4M, SZ_4M };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(to, SZ_4M);
	unmap(map, SZ_1G - SZ_4M);

	map = map_at(dut, bar, mmap_reserve(SZ_1G, SZ_1G, 0), 0, SZ_1G);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_1G));
	unmap(map + SZ_4M, SZ_4M);
	piece[0] = (struct piece) { map, 0, SZ_4M };
	piece[1] = (struct piece) { map + 2 * SZ_4M, 2 * SZ_4M, SZ_1G - 2 * SZ_4M };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(piece[0].map, piece[0].len);
	unmap(piece[1].map, piece[1].len);

	/* Not even where the entry of a PMD could begin */
	map = map_at(dut, bar, mmap_reserve(SZ_1G, SZ_1G, 0), 0, SZ_1G);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_1G));
	unmap(map + page, page);
	piece[0] = (struct piece) { map, 0, page };
	piece[1] = (struct piece) { map + 2 * page, 2 * page, SZ_1G - 2 * page };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(piece[0].map, piece[0].len);
	unmap(piece[1].map, piece[1].len);

	map = map_at(dut, bar, mmap_reserve(SZ_1G, SZ_1G, 0), 0, SZ_1G);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, SZ_1G));
	ASSERT_EQ(0, mprotect(map + SZ_4M, SZ_4M, PROT_NONE));
	piece[0].len = SZ_4M;
	piece[1].off = 2 * SZ_4M;
	piece[1].len = SZ_1G - 2 * SZ_4M;
	piece[0].map = map;
	piece[1].map = map + 2 * SZ_4M;
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 2));
	unmap(map, SZ_1G);
}

/* ---- Access by other means than an instruction of the process */

static int vmsplice_errno(const void *addr)
{
	struct iovec iov = { (void *)addr, 4 };
	int fd[2], ret;

	VFIO_ASSERT_EQ(pipe(fd), 0);
	ret = vmsplice(fd[1], &iov, 1, 0) == 4 ? 0 : errno;
	close(fd[0]);
	close(fd[1]);
	return ret;
}

/* Of a child that has the mapping too */
static int ptrace_errno(const void *addr)
{
	pid_t pid = fork();
	int status, ret;

	if (!pid) {
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		_exit(0);
	}
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_TRUE(WIFSTOPPED(status));
	errno = 0;
	ptrace(PTRACE_PEEKDATA, pid, addr, NULL);
	ret = errno;
	kill(pid, SIGKILL);
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	return ret;
}

BAR_TEST(bar_mmap, access_from_outside)
{
	struct dut *dut = &self->dut;
	int i, off;

	map_windows(dut);
	EXPECT_ALIVE(dut);
	for (off = 0; off < 2; off++) {
		for (i = 0; i < dut->nr_windows; i++) {
			void *map = dut->windows[i].map;

			EXPECT_EQ(EIO, proc_mem_errno(map));
			EXPECT_EQ(EIO, ptrace_errno(map));
			EXPECT_EQ(EFAULT, process_vm_errno(map, false));
			EXPECT_EQ(EFAULT, process_vm_errno(map, true));
			EXPECT_EQ(EFAULT, vmsplice_errno(map));
		}
		memory_off(dut);
	}
	memory_on(dut);
	EXPECT_ALIVE(dut);
}

/* The kernel's own access to what the process gives it as a buffer */
BAR_TEST(bar_mmap, buffer_of_a_system_call)
{
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true);
	u32 word = 0, spare = 0x12345678;
	void *map;
	int fd[2];

	if (!bar)
		SKIP(return, "no BAR that is RAM");
	ASSERT_EQ(0, pipe(fd));
	map = map_bar(dut, bar, 0, page);
	EXPECT_EQ(4, write(fd[1], map, 4));
	EXPECT_EQ(4, read(fd[0], &word, 4));
	EXPECT_EQ(tag(bar, 0), word);
	EXPECT_EQ(4, write(fd[1], &spare, 4));
	EXPECT_EQ(4, read(fd[0], map + 8, 4));
	EXPECT_TRUE(peek(map + 8, &word));
	EXPECT_EQ(spare, word);

	memory_off(dut);
	EXPECT_EQ(-1, write(fd[1], map, 4));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(4, write(fd[1], &spare, 4));
	EXPECT_EQ(-1, read(fd[0], map + 8, 4));
	EXPECT_EQ(EFAULT, errno);
	memory_on(dut);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, page));
	unmap(map, page);
	close(fd[0]);
	close(fd[1]);
}

/* ---- What a mapping costs, and nothing is left of it */

BAR_TEST(bar_mmap, cycles)
{
	struct dut *dut = &self->dut;
	long bufs = dma_bufs(), files = open_files();
	struct bar *bar;
	void *map;
	int i;

	for (i = 0; i < rounds(2000); i++) {
		bar = &dut->bars[i % dut->nr_bars];
		map = map_bar(dut, bar, 0, page);
		ASSERT_EQ(ALIVE, page_state(bar, map, 0));
		unmap(map, page);
	}
	EXPECT_EQ(bufs, dma_bufs());
	/* Others may open some at the same time */
	EXPECT_GE(files + 100, open_files());
	map_windows(dut);
	EXPECT_ALIVE(dut);
}

/* One mapping, with the nth allocation failing; 0, or what it failed with */
static int fail_map(struct dut *dut, struct bar *bar, int nth, bool *left)
{
	struct maps_line m;
	void *at = mmap_reserve(bar->len, SZ_2M, 0), *map;
	int ret = 0;

	unmap(at, bar->len);
	fail_nth(nth);
	map = mmap(at, bar->len, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_FIXED_NOREPLACE, dut->device->fd, bar->offset);
	if (map == MAP_FAILED)
		ret = errno;
	*left = fail_nth_left();
	if (ret) {
		VFIO_ASSERT_FALSE(find_maps_line(at, &m));
	} else {
		VFIO_ASSERT_EQ(not_as(ALIVE, bar, map, 0, bar->len), 0);
		unmap(map, bar->len);
	}
	return ret;
}

BAR_TEST(bar_mmap, mmap_without_memory)
{
	struct dut *dut = &self->dut;
	long bufs = dma_bufs(), files = open_files();
	bool left = false;
	int nth, ret, failed = 0;

	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (nth = 1; !left; nth++) {
		ret = fail_map(dut, &dut->bars[0], nth, &left);
		EXPECT_TRUE(!ret || ret == ENOMEM || ret == ENFILE)
			TH_LOG("%d: %s", nth, strerror(ret));
		failed += !!ret;
	}
	fail_nth_restore();
	ksft_print_msg("%d of %d allocations make mmap() fail\n", failed, nth - 2);
	EXPECT_LT(0, failed);
	EXPECT_EQ(bufs, dma_bufs());
	EXPECT_GE(files + 16, open_files());
	map_windows(dut);
	EXPECT_ALIVE(dut);
}

/* The first touch finds its way, or is a SIGBUS, and then works */
BAR_TEST(bar_mmap, fault_without_memory)
{
	struct dut *dut = &self->dut;
	bool left = false;
	int nth, state;

	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (nth = 1; !left; nth++) {
		struct bar *bar = &dut->bars[nth % dut->nr_bars];
		/* Where no page table is, most likely */
		void *at = mmap_reserve(page, SZ_1G, 0);
		void *map = map_at(dut, bar, at, 0, page);

		fail_nth(nth);
		state = word_state(bar, map, 0, false);
		left = fail_nth_left();
		EXPECT_NE(WRONG, state);
		EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, page));
		unmap(map, page);
		ASSERT_GT(100, nth);
	}
	fail_nth_restore();
	ksft_print_msg("%d allocations in a fault\n", nth - 2);
}

/* ---- Huge pages */

FIXTURE(huge) {
	struct dut dut;
	struct bar *bar;
	struct window window;
};

FIXTURE_VARIANT(huge) {
	struct huge_window window;
};

FIXTURE_VARIANT_ADD(huge, aligned) { .window = { .align = SZ_2M } };
FIXTURE_VARIANT_ADD(huge, va_misaligned) {
	.window = { .align = SZ_2M, .va = SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, offset_misaligned) {
	.window = { .align = SZ_2M, .off = SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, both_misaligned) {
	.window = { .align = SZ_2M, .va = SZ_4K, .off = SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, different) {
	.window = { .align = SZ_2M, .va = SZ_8K, .off = SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, short) {
	.window = { .align = SZ_2M, .len = SZ_2M - SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, straddling) {
	.window = { .align = SZ_2M, .va = SZ_1M, .off = SZ_1M, .len = SZ_2M },
};

FIXTURE_VARIANT_ADD(huge, tail) {
	.window = { .align = SZ_2M, .len = SZ_2M + SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, second_block) {
	.window = { .align = SZ_2M, .off = SZ_2M },
};

FIXTURE_VARIANT_ADD(huge, aligned_1g) { .window = { .align = SZ_1G } };
FIXTURE_VARIANT_ADD(huge, va_misaligned_1g) {
	.window = { .align = SZ_1G, .va = SZ_2M },
};

FIXTURE_VARIANT_ADD(huge, offset_misaligned_1g) {
	.window = { .align = SZ_1G, .off = SZ_2M },
};

FIXTURE_VARIANT_ADD(huge, short_1g) {
	.window = { .align = SZ_1G, .len = SZ_1G - SZ_4K },
};

FIXTURE_SETUP(huge)
{
	const char *reason;

	dut_open(&self->dut, MODE_IOMMUFD);
	reason = map_huge(&self->dut, &self->window, &variant->window);
	if (reason)
		SKIP(return, "%s", reason);
}

FIXTURE_TEARDOWN(huge)
{
	unmap(self->window.map, self->window.len);
	dut_close(&self->dut);
}

BAR_TEST(huge, faults)
{
	struct window *w = &self->window;
	long want = expected_faults(w), got;
	int round;

	for (round = 0; round < 2; round++) {
		got = faults_of_reading(w);
		ksft_print_msg("%ld faults, expected %ld\n", got, want);
		EXPECT_LE(want, got);
		EXPECT_GE(want + OTHER_FAULTS, got);
		EXPECT_GE(OTHER_FAULTS, faults_of_reading(w));
		memory_off(&self->dut);
		EXPECT_EQ(0, not_as(DEAD, w->bar, w->map, w->off, w->len));
		memory_on(&self->dut);
	}
}

/* What the number of faults cannot tell: the size of each, what it is of, the attributes */
BAR_TEST(huge, entries)
{
	struct window *w = &self->window;
	struct entry entry;
	u32 word;

	EXPECT_TRUE(peek(w->map, &word));
	if (!get_entry(w->map, &entry))
		SKIP(return, "no module vfio_pci_dmabuf_test");
	EXPECT_EQ(0, entries_not_as_expected(w));
}

/* ---- What a mapping is dead in, or over */

FIXTURE_VARIANT(revoke) {
	const struct revoke_kind *kind;
};

/* The device under test, and what is reset together with it */
FIXTURE(revoke) {
	struct dut dut[1 + MAX_SIBLINGS];
	int nr;
};

FIXTURE_VARIANT_ADD(revoke, memory) { .kind = &revoke_kinds[REVOKE_MEMORY] };
FIXTURE_VARIANT_ADD(revoke, d3hot) { .kind = &revoke_kinds[REVOKE_D3HOT] };
FIXTURE_VARIANT_ADD(revoke, flr) { .kind = &revoke_kinds[REVOKE_FLR] };
FIXTURE_VARIANT_ADD(revoke, reset) { .kind = &revoke_kinds[REVOKE_RESET] };
FIXTURE_VARIANT_ADD(revoke, hot_reset) { .kind = &revoke_kinds[REVOKE_HOT_RESET] };
FIXTURE_VARIANT_ADD(revoke, low_power) { .kind = &revoke_kinds[REVOKE_LOW_POWER] };

FIXTURE_VARIANT_ADD(revoke, low_power_woken_by_host) {
	.kind = &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_HOST]
};

FIXTURE_VARIANT_ADD(revoke, low_power_woken_by_ioctl) {
	.kind = &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_IOCTL]
};

FIXTURE_VARIANT_ADD(revoke, sysfs_reset) { .kind = &revoke_kinds[REVOKE_SYSFS_RESET] };

FIXTURE_SETUP(revoke)
{
	int i;

	self->nr = open_with_siblings(self->dut, variant->kind);
	if (!self->nr)
		SKIP(return, "%s has no such thing", device_bdf);
	for (i = 0; i < self->nr; i++)
		map_windows(&self->dut[i]);
}

FIXTURE_TEARDOWN(revoke)
{
	while (self->nr)
		dut_close(&self->dut[--self->nr]);
}

BAR_TEST(revoke, dead_and_alive_again)
{
	struct dut *dut = self->dut;
	int i, round;

	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
	for (round = 0; round < 2; round++) {
		variant->kind->enter(dut);
		if (variant->kind->leave) {
			EXPECT_EQ(0, all_not_as(DEAD, self->dut, self->nr));
			for (i = 0; i < dut->nr_windows; i++)
				EXPECT_FALSE(poke(dut->windows[i].map + 4, 0));
			variant->kind->leave(dut);
		}
		EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
	}
}

/* Memory that is off stays off, and turning it on is not the end of the rest */
BAR_TEST(revoke, with_memory_off)
{
	struct dut *dut = self->dut;

	memory_off(dut);
	variant->kind->enter(dut);
	if (variant->kind->sticky) {
		memory_on(dut);
		EXPECT_DEAD(dut);
		memory_off(dut);
	}
	EXPECT_DEAD(dut);
	if (variant->kind->leave)
		variant->kind->leave(dut);
	if (variant->kind->leave != memory_on)
		EXPECT_DEAD(dut);
	memory_on(dut);
	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
}

/* Mapped, and never touched before */
BAR_TEST(revoke, mapped_in_between)
{
	struct dut *dut = self->dut;

	unmap_windows(dut);
	if (variant->kind->leave) {
		variant->kind->enter(dut);
		map_windows(dut);
		/* As far as mmap() itself has not woken the function */
		EXPECT_DEAD(dut);
		variant->kind->leave(dut);
	} else {
		map_windows(dut);
		variant->kind->enter(dut);
	}
	EXPECT_ALIVE(dut);
}

/* Whoever reads meanwhile gets what is there, or a SIGBUS */
BAR_TEST(revoke, readers)
{
	struct reader reader[1 + MAX_SIBLINGS];
	int i, n;

	for (n = 0; n < self->nr; n++)
		reader_start(&reader[n], &self->dut[n]);
	for (i = 0; i < rounds(5); i++) {
		usleep(2000);
		variant->kind->enter(self->dut);
		if (variant->kind->leave) {
			usleep(2000);
			variant->kind->leave(self->dut);
		}
	}
	usleep(2000);
	while (n--) {
		reader_stop(&reader[n]);
		ksft_print_msg("%lu alive, %lu dead, %lu wrong\n", reader[n].count[2],
			       reader[n].count[1], reader[n].count[0]);
		EXPECT_EQ(0UL, reader[n].count[0]);
		EXPECT_LT(0UL, reader[n].count[2]);
	}
	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
}

/* ---- Low power beside that */

FIXTURE(power) {
	struct dut dut;
};

FIXTURE_SETUP(power)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	if (!has_runtime_pm(&self->dut))
		SKIP(return, "no runtime power management");
	map_windows(&self->dut);
	EXPECT_ALIVE(&self->dut);
}

FIXTURE_TEARDOWN(power)
{
	dut_close(&self->dut);
}

/* Without an eventfd nothing but LOW_POWER_EXIT ends it, whoever wakes the function */
BAR_TEST(power, host_does_not_end_it)
{
	struct dut *dut = &self->dut;

	low_power(dut);
	host_wake(dut);
	EXPECT_DEAD(dut);
	low_power_exit(dut);
	EXPECT_ALIVE(dut);
}

/* The config write itself wakes the function, with an eventfd for good */
BAR_TEST(power, config_write_wakes)
{
	struct dut *dut = &self->dut;

	low_power_with_wakeup(dut);
	EXPECT_DEAD(dut);
	EXPECT_FALSE(was_woken());
	memory_off(dut);
	EXPECT_TRUE(was_woken());
	EXPECT_DEAD(dut);
	memory_on(dut);
	EXPECT_ALIVE(dut);
}

/* A touch wakes nothing */
BAR_TEST(power, touch_does_not_wake)
{
	struct dut *dut = &self->dut;
	int i;

	low_power_with_wakeup(dut);
	for (i = 0; i < 3; i++)
		EXPECT_DEAD(dut);
	EXPECT_FALSE(was_woken());
	EXPECT_TRUE(sysfs_is(device_bdf, "power/runtime_status", "suspended"));
	low_power_exit(dut);
	EXPECT_ALIVE(dut);
}

/* Twice is EINVAL, and changes nothing */
BAR_TEST(power, entry_twice)
{
	struct dut *dut = &self->dut;

	low_power(dut);
	EXPECT_EQ(-EINVAL, feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0));
	EXPECT_DEAD(dut);
	low_power_exit(dut);
	EXPECT_ALIVE(dut);
	low_power_exit(dut);
	EXPECT_ALIVE(dut);
}

/* A reset in low power ends neither */
BAR_TEST(power, reset_does_not_end_it)
{
	struct dut *dut = &self->dut;

	if (!has_reset(dut))
		SKIP(return, "no reset");
	low_power(dut);
	reset(dut);
	EXPECT_DEAD(dut);
	low_power_exit(dut);
	EXPECT_ALIVE(dut);
}

/* ---- Much at the same time */

FIXTURE(storm) {
	struct dut dut;
};

FIXTURE_SETUP(storm)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	map_windows(&self->dut);
}

FIXTURE_TEARDOWN(storm)
{
	dut_close(&self->dut);
	bind_again();
}

BAR_TEST(storm, readers)
{
	struct dut *dut = &self->dut;
	struct reader reader[4];
	unsigned long dead = 0;
	int i;

	for (i = 0; i < 4; i++)
		reader_start(&reader[i], dut);
	for (i = 0; i < rounds(100); i++) {
		memory_off(dut);
		usleep(500);
		memory_on(dut);
		usleep(500);
		if (!(i % 50) && has_reset(dut))
			reset(dut);
	}
	for (i = 0; i < 4; i++) {
		reader_stop(&reader[i]);
		EXPECT_EQ(0UL, reader[i].count[0]);
		EXPECT_LT(0UL, reader[i].count[2]);
		dead += reader[i].count[1];
	}
	EXPECT_LT(0UL, dead);
	EXPECT_ALIVE(dut);
}

struct mapper {
	pthread_t thread;
	struct dut *dut;
	int rounds, wrong;
};

static void *mapper_main(void *arg)
{
	struct mapper *m = arg;
	int i;

	for (i = 0; i < m->rounds; i++) {
		struct window *w = &m->dut->windows[i % m->dut->nr_windows];
		void *map = map_bar(m->dut, w->bar, w->off, w->len);

		m->wrong += word_state(w->bar, map, w->off, false) == WRONG;
		unmap(map, w->len);
	}
	return NULL;
}

/* New mappings, and the end of mappings, against the revokes */
BAR_TEST(storm, mmap_and_munmap)
{
	struct mapper mapper[3] = {};
	struct dut *dut = &self->dut;
	struct toggler toggler;
	int i;

	toggler_start(&toggler, dut);
	for (i = 0; i < 3; i++) {
		mapper[i].dut = dut;
		mapper[i].rounds = rounds(500);
		ASSERT_EQ(0, pthread_create(&mapper[i].thread, NULL, mapper_main,
					    &mapper[i]));
	}
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, pthread_join(mapper[i].thread, NULL));
		EXPECT_EQ(0, mapper[i].wrong);
	}
	toggler_stop(&toggler);
	EXPECT_LT(0UL, atomic_load(&toggler.rounds));
	EXPECT_ALIVE(dut);
}

/* An entry that is moved as a whole can go meanwhile */
BAR_TEST(storm, mremap)
{
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true);
	struct toggler toggler;
	void *map, *to;
	size_t len;
	int i;

	if (!bar)
		SKIP(return, "no BAR that is RAM");
	len = bar->len < SZ_1G ? bar->len : SZ_1G;
	toggler_start(&toggler, dut);
	for (i = 0; i < rounds(500); i++) {
		map = map_at(dut, bar, mmap_reserve(len, len, 0), 0, len);
		EXPECT_NE(WRONG, word_state(bar, map, 0, false));
		to = mmap_reserve(len, len, 0);
		ASSERT_EQ(to, mremap(map, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to));
		EXPECT_NE(WRONG, word_state(bar, to, 0, false));
		unmap(to, len);
	}
	toggler_stop(&toggler);
	EXPECT_LT(0UL, atomic_load(&toggler.rounds));
	EXPECT_ALIVE(dut);
}

/*
 * A write to COMMAND has the memory_lock and goes to config space, a reset by sysfs has
 * that blocked and wants the lock
 */
BAR_TEST(storm, command_and_sysfs_reset)
{
	struct dut *dut = &self->dut;
	struct toggler toggler;
	struct reader reader;
	int i;

	if (!has_sysfs_reset(dut))
		SKIP(return, "%s has no reset", device_bdf);
	reader_start(&reader, dut);
	toggler_start(&toggler, dut);
	for (i = 0; i < rounds(20); i++)
		sysfs_reset(dut);
	toggler_stop(&toggler);
	reader_stop(&reader);
	EXPECT_EQ(0UL, reader.count[0]);
	EXPECT_LT(0UL, atomic_load(&toggler.rounds));
	EXPECT_ALIVE(dut);
}

static void *sleeper_main(void *arg)
{
	struct toggler *t = arg;

	while (!atomic_load(&t->stop)) {
		feature(t->dut, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0);
		usleep(1000);
		feature(t->dut, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0);
		atomic_fetch_add(&t->rounds, 1);
	}
	return NULL;
}

/* Both save the config space, put the device to sleep or reset it, and restore it */
BAR_TEST(storm, low_power_and_bus_reset)
{
	struct dut *dut = &self->dut;
	struct toggler sleeper = { .dut = dut };
	char port[32];
	int i;

	snprintf(port, sizeof(port), "%s/..", dut->device->bdf);
	if (!has_runtime_pm(dut) || !sysfs_has(port, "reset_subordinate"))
		SKIP(return, "no runtime PM, or no bus of its own");
	if (try_sysfs_write(port, "reset_subordinate", "1") == -ENOTTY)
		SKIP(return, "no reset of its bus, or no link after it");
	ASSERT_EQ(0, pthread_create(&sleeper.thread, NULL, sleeper_main, &sleeper));
	for (i = 0; i < rounds(30); i++)
		ASSERT_EQ(0, try_sysfs_write(port, "reset_subordinate", "1"));
	toggler_stop(&sleeper);
	EXPECT_LT(0UL, atomic_load(&sleeper.rounds));
	EXPECT_ALIVE(dut);
}

/* The last munmap() closes the device while its last pwrite() may be under way */
BAR_TEST(storm, last_close)
{
	struct dut *dut = &self->dut;
	struct toggler toggler;
	int i;

	for (i = 0; i < rounds(4); i++) {
		toggler_start(&toggler, dut);
		usleep(1000 * (i % 8));
		close(dut->device->fd);
		dut->device->fd = -1;
		unmap_windows(dut);
		ASSERT_EQ(0, pthread_join(toggler.thread, NULL));
		dut_close(dut);

		dut_open(dut, MODE_IOMMUFD);
		map_windows(dut);
		EXPECT_ALIVE(dut);
	}
}

/* The other process has the mapping by fork(), what was touched before too */
static int forked_main(struct dut *dut, int fd)
{
	int want, wrong;

	while (read(fd, &want, sizeof(want)) == sizeof(want)) {
		wrong = windows_not_as(want, dut);
		if (write(fd, &wrong, sizeof(wrong)) != sizeof(wrong))
			break;
	}
	return 0;
}

BAR_TEST(storm, fork)
{
	struct dut *dut = &self->dut;
	int fd[2], i, status;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, fd));
	EXPECT_ALIVE(dut);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(fd[0]);
		_exit(forked_main(dut, fd[1]));
	}
	close(fd[1]);
	for (i = 0; i < rounds(5); i++) {
		memory_off(dut);
		EXPECT_DEAD(dut);
		EXPECT_EQ(0, ask_not_as(fd[0], DEAD));
		memory_on(dut);
		EXPECT_EQ(0, ask_not_as(fd[0], ALIVE));
		EXPECT_ALIVE(dut);
	}
	/* It does without the parent's mappings and fds */
	unmap_windows(dut);
	close_fds(dut->device);
	EXPECT_EQ(0, ask_not_as(fd[0], ALIVE));
	close(fd[0]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

/* Forks against revokes */
BAR_TEST(storm, fork_and_toggle)
{
	struct dut *dut = &self->dut;
	struct toggler toggler;
	int i, n, status;
	pid_t pid;

	toggler_start(&toggler, dut);
	for (i = 0; i < rounds(30); i++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			for (n = 0; n < dut->nr_windows; n++)
				if (word_state(dut->windows[n].bar, dut->windows[n].map,
					       dut->windows[n].off, false) == WRONG)
					_exit(1);
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_EQ(0, status);
	}
	toggler_stop(&toggler);
	EXPECT_LT(0UL, atomic_load(&toggler.rounds));
	EXPECT_ALIVE(dut);
}

/* Of the device's file, with its own BAR as the buffer */
BAR_TEST(storm, own_mapping_as_buffer)
{
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true);
	struct toggler toggler;
	int i, ok = 0;
	ssize_t ret;
	void *map;

	if (!bar)
		SKIP(return, "no BAR that is RAM");
	map = map_bar(dut, bar, 0, page);
	toggler_start(&toggler, dut);
	/* All of it can fit between two turns of the toggler: until both were seen */
	for (i = 0; i < rounds(500) || !ok || !atomic_load(&toggler.rounds); i++) {
		ret = pread(dut->device->fd, map + 64, 64, bar->offset + 128);
		EXPECT_TRUE(ret >= 0 || errno == EIO || errno == EFAULT)
			TH_LOG("%s", strerror(errno));
		ok += ret == 64;
		ret = pwrite(dut->device->fd, map + 64, 64, bar->offset + 192);
		EXPECT_TRUE(ret >= 0 || errno == EIO || errno == EFAULT)
			TH_LOG("%s", strerror(errno));
		ok += ret == 64;
		/* And the config space, into the BAR */
		ret = pread(dut->device->fd, map + 64, 4,
			    dut->device->config_space.offset);
		EXPECT_TRUE(ret == 4 || errno == EFAULT) TH_LOG("%s", strerror(errno));
	}
	toggler_stop(&toggler);
	EXPECT_LT(0UL, atomic_load(&toggler.rounds));
	EXPECT_LT(0, ok);
	EXPECT_EQ(4, pread(dut->device->fd, map + 64, 4,
			   dut->device->config_space.offset));
	EXPECT_EQ(vfio_pci_config_readl(dut->device, 0), readl(map + 64));
	EXPECT_ALIVE(dut);
	unmap(map, page);
}

/* Opens the device, says so, and resets it until it is killed */
static void killed_main(int fd)
{
	struct reader reader;
	struct dut dut;
	int i;

	dut_open(&dut, MODE_IOMMUFD);
	map_windows(&dut);
	reader_start(&reader, &dut);
	if (write(fd, "", 1) != 1)
		_exit(1);
	for (i = 0; ; i++) {
		memory_off(&dut);
		memory_on(&dut);
		if (!(i % 8) && has_reset(&dut))
			reset(&dut);
	}
}

BAR_TEST(storm, killed)
{
	struct dut *dut = &self->dut;
	int i;

	dut_close(dut);
	for (i = 0; i < rounds(5); i++)
		run_and_kill(killed_main, 7000 * (i % 16));
	dut_open(dut, MODE_IOMMUFD);
	map_windows(dut);
	EXPECT_ALIVE(dut);
}

static int request_eventfd(struct dut *dut)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} arg = {
		.set = {
			.argsz = sizeof(arg),
			.flags = VFIO_IRQ_SET_ACTION_TRIGGER |
				 VFIO_IRQ_SET_DATA_EVENTFD,
			.index = VFIO_PCI_REQ_IRQ_INDEX,
			.count = 1,
		},
		.fd = eventfd(0, EFD_CLOEXEC),
	};

	VFIO_ASSERT_LE(0, arg.fd);
	ioctl_assert(dut->device->fd, VFIO_DEVICE_SET_IRQS, &arg);
	return arg.fd;
}

/* The driver lets go only when the mapping does, which it asks for */
BAR_TEST(storm, unbind)
{
	struct dut *dut = &self->dut;
	struct unbinder unbinder;
	struct pollfd request = { .events = POLLIN };

	request.fd = request_eventfd(dut);
	close_fds(dut->device);
	unbinder_start(&unbinder);
	EXPECT_EQ(1, poll(&request, 1, 20000));
	EXPECT_ALIVE(dut);
	usleep(300000);
	EXPECT_FALSE(atomic_load(&unbinder.done));
	EXPECT_ALIVE(dut);

	unmap_windows(dut);
	EXPECT_EQ(0, unbinder_join(&unbinder));
	EXPECT_FALSE(sysfs_has(device_bdf, "driver"));
	dut_close(dut);
	close(request.fd);

	bind_again();
	dut_open(dut, MODE_IOMMUFD);
	map_windows(dut);
	EXPECT_ALIVE(dut);
}

/* A function that nobody has open goes through the reset of its neighbours */
BAR_TEST(storm, closed_sibling_in_hot_reset)
{
	struct dut *dut = &self->dut, sibling[MAX_SIBLINGS] = {};
	struct hot_reset_set set;
	int i, nr;

	if (!get_hot_reset_set(dut, &set) || set.info.count < 2)
		SKIP(return, "nothing is reset together with %s", device_bdf);
	for (i = 0; i < 2; i++) {
		hot_reset(dut);
		EXPECT_ALIVE(dut);
	}
	nr = open_siblings(dut, sibling);
	EXPECT_LT(0, nr);
	for (i = 0; i < nr; i++) {
		map_windows(&sibling[i]);
		EXPECT_ALIVE(&sibling[i]);
		memory_off(&sibling[i]);
		EXPECT_DEAD(&sibling[i]);
		/* Of its neighbours it is no concern */
		EXPECT_ALIVE(dut);
		memory_on(&sibling[i]);
		EXPECT_ALIVE(&sibling[i]);
	}
	hot_reset(dut);
	EXPECT_ALIVE(dut);
	for (i = 0; i < nr; i++) {
		EXPECT_ALIVE(&sibling[i]);
		dut_close(&sibling[i]);
	}
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	page = getpagesize();
	catch_sigbus();
	return test_harness_run(argc, argv);
}

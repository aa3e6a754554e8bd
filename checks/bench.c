// SPDX-License-Identifier: GPL-2.0
/*
 * Run in the guest by bin/bench, on a clock of which a nanosecond is an instruction. A line for each
 * measurement: INSTRUCTIONS <tab> BOUND <tab> NAME, where BOUND is what the series may take of what the base takes,
 * or with ":OTHER" behind it, of what OTHER, a line before this one, takes in the same run. "-" is no bound.
 */
#define _GNU_SOURCE
#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/iommufd.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* The bound of what others are compared with, and the base does not have */
#define REFERENCE "-"

static void report(uint64_t instructions, const char *bound, const char *name)
{
	printf("%llu\t%s\t%s\n", (unsigned long long)instructions, bound, name);
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return (x > y) - (x < y);
}

#define BATCHES 20

/*
 * What a run of ACTION takes, after one that is not counted: of the averages of BATCHES batches, which
 * have COUNT runs in all, the one in the middle. A tick of the clock is in few of them.
 */
#define BENCH(bound, count, action, name)				\
do {									\
	const int each = ((count) + BATCHES - 1) / BATCHES;		\
	uint64_t batch[BATCHES];					\
	action;								\
	for (int b = 0; b < BATCHES; b++) {				\
		batch[b] = now();					\
		for (int i = 0; i < each; i++)				\
			action;						\
		batch[b] = (now() - batch[b]) / each;			\
	}								\
	qsort(batch, BATCHES, sizeof(batch[0]), compare);		\
	report(batch[BATCHES / 2], bound, name);			\
} while (0)

static int udmabuf(off_t size)
{
	int memfd = memfd_create("bench", MFD_ALLOW_SEALING);
	struct udmabuf_create create = { .memfd = memfd, .size = size };
	int dev = open("/dev/udmabuf", O_RDWR), fd;

	if (memfd < 0 || ftruncate(memfd, size) || fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		err(1, "memfd");
	fd = ioctl(dev, UDMABUF_CREATE, &create);
	if (fd < 0)
		err(1, "UDMABUF_CREATE");
	close(dev);
	close(memfd);
	return fd;
}

static void sync_rw(int fd)
{
	struct dma_buf_sync start = { DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	struct dma_buf_sync end = { DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW };

	if (ioctl(fd, DMA_BUF_IOCTL_SYNC, &start) || ioctl(fd, DMA_BUF_IOCTL_SYNC, &end))
		err(1, "DMA_BUF_IOCTL_SYNC");
}

static void allocate(int heap, size_t size)
{
	struct dma_heap_allocation_data data = { .len = size, .fd_flags = O_RDWR | O_CLOEXEC };

	if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data))
		err(1, "DMA_HEAP_IOCTL_ALLOC of %zu", size);
	close(data.fd);
}

static int heap_buffer(size_t size)
{
	struct dma_heap_allocation_data data = { .len = size, .fd_flags = O_RDWR | O_CLOEXEC };
	int heap = open("/dev/dma_heap/system", O_RDWR);

	if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data))
		err(1, "DMA_HEAP_IOCTL_ALLOC of %zu", size);
	close(heap);
	return data.fd;
}

static int derive(int fd)
{
	struct dma_buf_derive arg = { .flags = O_RDONLY | O_CLOEXEC };

	return ioctl(fd, DMA_BUF_IOCTL_DERIVE, &arg) ? -1 : arg.fd;
}

static int reopen(const char *path)
{
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void close_new(int fd)
{
	if (fd < 0)
		err(1, "an fd to close");
	close(fd);
}

/* What an fd with less access costs, whatever the buffer, and against what is like it */
static void bench_derive(void)
{
	struct rlimit limit = { 4096, 4096 };
	int fd = heap_buffer(4096), large, memfd = memfd_create("bench", 0), aliases[1000];
	char path[32];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	BENCH("1.02", 2000, close_new(eventfd(0, EFD_CLOEXEC)), "eventfd() and close()");
	BENCH("1.02", 2000, close_new(reopen(path)), "open() of a memfd's link and close()");
	close(memfd);
	/* the base */
	memfd = derive(fd);
	if (memfd < 0 && errno == ENOTTY)
		return;
	close(memfd);
	BENCH("1.5:eventfd() and close()", 2000, close_new(derive(fd)), "DERIVE and close()");
	BENCH("1:open() of a memfd's link and close()", 2000, close_new(derive(fd)),
	      "DERIVE and close(), again");
	large = heap_buffer(64 << 20);
	BENCH("1.01:DERIVE and close()", 2000, close_new(derive(large)),
	      "DERIVE and close(), 64 MiB");
	close(large);
	setrlimit(RLIMIT_NOFILE, &limit);
	for (int i = 0; i < 1000; i++)
		aliases[i] = derive(fd);
	BENCH("1.01:DERIVE and close()", 2000, close_new(derive(fd)),
	      "DERIVE and close(), of a buffer with 1000 derived files");
	for (int i = 0; i < 1000; i++)
		close(aliases[i]);
	close(fd);
}

/* dma_buf_get() and dma_buf_put(), and little else: the exporter finds its own handle */
static void bench_get(void)
{
	struct drm_mode_create_dumb dumb = { .width = 1024, .height = 1, .bpp = 32 };
	struct drm_prime_handle prime = { .flags = DRM_RDWR | DRM_CLOEXEC };
	int drm = -1;

	for (int i = 0; i < 16 && drm < 0; i++) {
		struct drm_version version = { .name_len = 0 };
		char path[32], name[16] = "";

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		drm = open(path, O_RDWR | O_CLOEXEC);
		version.name = name;
		version.name_len = sizeof(name) - 1;
		if (drm >= 0 && (ioctl(drm, DRM_IOCTL_VERSION, &version) || strcmp(name, "vgem"))) {
			close(drm);
			drm = -1;
		}
	}
	if (drm < 0 || ioctl(drm, DRM_IOCTL_MODE_CREATE_DUMB, &dumb))
		err(1, "vgem");
	prime.handle = dumb.handle;
	if (ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime))
		err(1, "DRM_IOCTL_PRIME_HANDLE_TO_FD");
	BENCH("1.02", 2000, ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime),
	      "dma_buf_get() and dma_buf_put(), in PRIME_FD_TO_HANDLE");
	close(prime.fd);
	close(drm);
}

struct bar {
	int fd, iommufd;
	off_t offset;
	size_t size;
};

/* A BAR of the function number NR of those whose addresses the runner has in VARIABLE. Its device stays open. */
static struct bar vfio_bar(const char *variable, int nr, int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	char bdf[2][16] = { "", "" }, path[128];
	const char *list = getenv(variable);
	struct bar bar;
	glob_t found;

	if (!list || sscanf(list, "%15s %15s", bdf[0], bdf[1]) <= nr)
		errx(1, "%s has no function %d", variable, nr);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/vfio-dev/vfio*", bdf[nr]);
	if (glob(path, 0, NULL, &found))
		errx(1, "%s", path);
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s", strrchr(found.gl_pathv[0], '/') + 1);
	globfree(&found);
	bar.fd = open(path, O_RDWR | O_CLOEXEC);
	bind.iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (ioctl(bar.fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) || ioctl(bar.fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		err(1, "%s", path);
	bar.iommufd = bind.iommufd;
	bar.offset = info.offset;
	bar.size = info.size;
	return bar;
}

/* Maps a BAR OFFSET bytes behind a multiple of 1 GiB, the same at each call. */
static char *map_bar(const struct bar *bar, uintptr_t offset)
{
	static uintptr_t room;
	void *map;

	if (!room) {
		map = mmap(NULL, 3ul << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (map == MAP_FAILED || munmap(map, 3ul << 30))
			err(1, "room for BARs");
		room = ((uintptr_t)map + (1ul << 30) - 1) & -(1ul << 30);
	}
	map = mmap((void *)(room + offset), bar->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED_NOREPLACE,
		   bar->fd, bar->offset);
	if (map == MAP_FAILED)
		err(1, "mmap() of a BAR");
	/* the guest has huge pages for those who ask */
	if (bar->size > 4096 && madvise(map, bar->size, MADV_HUGEPAGE))
		err(1, "MADV_HUGEPAGE of a BAR");
	return map;
}

static void unmap_bar(const struct bar *bar, char *map)
{
	if (munmap(map, bar->size))
		err(1, "munmap() of a BAR");
}

static void touch(char *map, size_t size)
{
	for (size_t i = 0; i < size; i += 4096)
		(void)*(volatile char *)(map + i);
}

static void map_touch_unmap(const struct bar *bar)
{
	char *map = map_bar(bar, 0);

	touch(map, 1);
	unmap_bar(bar, map);
}

static long minor_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/* What it takes to touch all pages of a mapped BAR, and how many faults: the least of five times, as it is long */
static uint64_t bench_touch(const struct bar *bar, uintptr_t offset, uint64_t *faults)
{
	uint64_t least = UINT64_MAX;

	for (int i = 0; i < 5; i++) {
		char *map = map_bar(bar, offset);
		uint64_t time;

		*faults = -minor_faults();
		time = -now();
		touch(map, bar->size);
		time += now();
		*faults += minor_faults();
		unmap_bar(bar, map);
		if (time < least)
			least = time;
	}
	return least;
}

/* What VFIO does for a BAR: of a page, of 4 MiB at an address where no huge page fits, of 1 GiB */
static void bench_vfio(void)
{
	struct bar page = vfio_bar("VMTEST_BOCHS_BDF", 0, 2);
	struct bar small = vfio_bar("VMTEST_IVSHMEM_BDF", 0, 2);
	struct bar large = vfio_bar("VMTEST_IVSHMEM_BDF", 1, 2);
	uint64_t time, faults;

	BENCH("2.0", 2000, unmap_bar(&page, map_bar(&page, 0)), "BAR of 4 KiB: mmap() and munmap()");
	BENCH("2.0", 2000, map_touch_unmap(&page), "BAR of 4 KiB: mmap(), access, munmap()");
	time = bench_touch(&small, 4096, &faults);
	report(faults, "1.00", "BAR of 4 MiB: faults, without huge pages");
	report(time / (small.size / 4096), "1.05", "BAR of 4 MiB: a fault, without huge pages");
	BENCH("2.0", 2000, unmap_bar(&large, map_bar(&large, 0)), "BAR of 1 GiB: mmap() and munmap()");
	BENCH("2.0", 2000, map_touch_unmap(&large), "BAR of 1 GiB: mmap(), access, munmap()");
	time = bench_touch(&large, 0, &faults);
	report(faults, "1.00", "BAR of 1 GiB: faults");
	report(time, "1.05", "BAR of 1 GiB: access to each page");
	close(page.fd);
	close(small.fd);
	close(large.fd);
}

static int vfio_feature(int device, uint32_t flags, void *data, size_t size)
{
	struct {
		struct vfio_device_feature feature;
		char data[64];
	} arg = { .feature.argsz = sizeof(arg.feature) + size, .feature.flags = flags };

	memcpy(arg.data, data, size);
	return ioctl(device, VFIO_DEVICE_FEATURE, &arg);
}

static int lend(const struct bar *bar, size_t size)
{
	struct {
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} arg = {
		.buf = { .region_index = 2, .open_flags = O_RDWR | O_CLOEXEC, .nr_ranges = 1 },
		.range = { .length = size },
	};
	int fd = vfio_feature(bar->fd, VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF, &arg, sizeof(arg));

	if (fd < 0)
		err(1, "export of a BAR");
	return fd;
}

/* What REVOKE takes for a dma-buf of SIZE bytes with MAPPINGS mappings, each with its first PAGES pages touched */
static uint64_t bench_revoke(const struct bar *bar, size_t size, int mappings, size_t pages)
{
	struct vfio_device_feature_dma_buf_revoke revoke = { .dmabuf_fd = lend(bar, size) };
	char **map = calloc(mappings, sizeof(*map));
	uint64_t time;

	for (int i = 0; i < mappings; i++) {
		map[i] = mmap(NULL, size, PROT_READ, MAP_SHARED, revoke.dmabuf_fd, 0);
		if (map[i] == MAP_FAILED)
			err(1, "mmap() of a dma-buf");
		touch(map[i], pages * 4096);
	}
	time = -now();
	if (vfio_feature(bar->fd, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, &revoke, sizeof(revoke)))
		err(1, "REVOKE");
	time += now();
	for (int i = 0; i < mappings; i++)
		munmap(map[i], size);
	free(map);
	close(revoke.dmabuf_fd);
	return time;
}

/* The same for a dma-buf that is in an IOAS IMPORTS times */
static uint64_t bench_revoke_imports(const struct bar *bar, int imports)
{
	struct vfio_device_feature_dma_buf_revoke revoke = { .dmabuf_fd = lend(bar, 4096) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct iommu_ioas_unmap unmap = { .size = sizeof(unmap), .length = UINT64_MAX };
	uint64_t time;

	if (ioctl(bar->iommufd, IOMMU_IOAS_ALLOC, &alloc))
		err(1, "IOMMU_IOAS_ALLOC");
	for (int i = 0; i < imports; i++) {
		struct iommu_ioas_map_file map = {
			.size = sizeof(map), .flags = IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
			.ioas_id = alloc.out_ioas_id, .fd = revoke.dmabuf_fd, .length = 4096,
		};

		if (ioctl(bar->iommufd, IOMMU_IOAS_MAP_FILE, &map))
			err(1, "IOMMU_IOAS_MAP_FILE");
	}
	time = -now();
	if (vfio_feature(bar->fd, VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, &revoke, sizeof(revoke)))
		err(1, "REVOKE");
	time += now();
	unmap.ioas_id = destroy.id = alloc.out_ioas_id;
	if (ioctl(bar->iommufd, IOMMU_IOAS_UNMAP, &unmap) || ioctl(bar->iommufd, IOMMU_DESTROY, &destroy))
		err(1, "the end of an IOAS");
	close(revoke.dmabuf_fd);
	return time;
}

/*
 * REVOKE, which the base does not have: it is to be linear in entries and importers. With the size grows only
 * what there is of page tables to look through, of which each has 512 slots: twelve times as much is for one of
 * 262144 times the size.
 */
static void bench_vfio_revoke(void)
{
	static const struct {
		size_t size;
		int mappings;
		size_t pages;
		int each;
		const char *bound, *name;
	} revokes[] = {
		{ 4096, 1, 1, 1, REFERENCE, "REVOKE of 4 KiB, one entry" },
		{ 4 << 20, 1, 1, 1, "4.0:REVOKE of 4 KiB, one entry", "REVOKE of 4 MiB, one entry" },
		{ 1 << 30, 1, 1, 1, "12.0:REVOKE of 4 KiB, one entry", "REVOKE of 1 GiB, one entry" },
		{ 4096, 10, 1, 10, REFERENCE, "REVOKE, 10 mappings: each" },
		{ 4096, 100, 1, 100, "1.1:REVOKE, 10 mappings: each", "REVOKE, 100 mappings: each" },
		{ 4096, 1000, 1, 1000, "1.1:REVOKE, 10 mappings: each", "REVOKE, 1000 mappings: each" },
		{ 1 << 20, 1, 16, 16, REFERENCE, "REVOKE, 16 entries: each" },
		{ 1 << 20, 1, 256, 256, "1.1:REVOKE, 16 entries: each", "REVOKE, 256 entries: each" },
	};
	struct bar large = vfio_bar("VMTEST_IVSHMEM_BDF", 1, 2);
	int fd = -1;

	if (vfio_feature(large.fd, VFIO_DEVICE_FEATURE_PROBE | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE, &fd, sizeof(fd)))
		return;
	bench_revoke(&large, 4096, 10, 1);
	for (size_t i = 0; i < sizeof(revokes) / sizeof(revokes[0]); i++)
		report(bench_revoke(&large, revokes[i].size, revokes[i].mappings, revokes[i].pages) / revokes[i].each,
		       revokes[i].bound, revokes[i].name);
	bench_revoke_imports(&large, 1);
	report(bench_revoke_imports(&large, 10) / 10, REFERENCE, "REVOKE, 10 imports: each");
	report(bench_revoke_imports(&large, 100) / 100, "1.1:REVOKE, 10 imports: each", "REVOKE, 100 imports: each");
	report(bench_revoke_imports(&large, 1000) / 1000, "1.1:REVOKE, 10 imports: each", "REVOKE, 1000 imports: each");
	close(large.fd);
}

int main(void)
{
	static const struct { const char *name; size_t size; int count; } sizes[] = {
		{ "4 KiB", 4096, 2000 }, { "1 MiB", 1 << 20, 100 }, { "64 MiB", 64 << 20, 4 },
	};
	static const char *const heaps[] = { "system", "default_cma_region" };
	uint64_t first = 0;
	int fd;

	for (int i = 0; i < 4; i++) {
		fd = udmabuf(64 << 20);
		first -= now();
		sync_rw(fd);
		first += now();
		close(fd);
	}
	report(first / 4, "0.1", "udmabuf of 64 MiB without importers: first START and END");
	fd = udmabuf(64 << 20);
	/* what it takes to wait for the fences in time, on a coherent machine */
	BENCH("1.3", 1000, sync_rw(fd), "udmabuf of 64 MiB without importers: START and END");
	close(fd);
	for (int h = 0; h < 2; h++) {
		char path[64];

		snprintf(path, sizeof(path), "/dev/dma_heap/%s", heaps[h]);
		fd = open(path, O_RDWR);
		if (fd < 0)
			err(1, "%s", path);
		for (int s = 0; s < 3; s++) {
			char name[96];

			snprintf(name, sizeof(name), "%s: allocate and free %s", heaps[h],
				 sizes[s].name);
			BENCH("1.02", sizes[s].count, allocate(fd, sizes[s].size), name);
		}
		close(fd);
	}
	bench_derive();
	bench_get();
	bench_vfio();
	bench_vfio_revoke();
	return 0;
}

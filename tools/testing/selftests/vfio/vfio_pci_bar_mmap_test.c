// SPDX-License-Identifier: GPL-2.0-only
/*
 * mmap() of the BARs of a PCI function through its vfio device fd: what can be
 * mapped and how, what user space sees of such a mapping, and that it is gone
 * (SIGBUS, nothing else) whenever the function cannot answer, and works again
 * afterwards.
 *
 * All that a function has is mapped in several windows: each BAR as a whole, its
 * first and last page, its upper half. Of a BAR that is known to be RAM each page
 * that is looked at has a word of its own, which nothing but this BAR at this
 * offset has; of known registers it is an id register. A read of a function that
 * does not answer gives ~0, so a stray access is seen.
 */
#include <dirent.h>
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
#include <time.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/io.h>
#include <linux/limits.h>
#include <linux/log2.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../fail_nth.h"
#include "../kselftest_harness.h"

#define MAX_WINDOWS (4 * PCI_STD_NUM_BARS)
#define MAX_SIBLINGS 8

/* Faults of a thread beside those that are counted: its stack, code, data */
#define OTHER_FAULTS 8

static const char *device_bdf;
static u64 page;

/* What the environment says, or 1 */
static int factor(const char *name)
{
	const char *s = getenv(name);

	return s && atoi(s) > 1 ? atoi(s) : 1;
}

/*
 * How often to do what a test does n times: VMTEST_SCALE (of dma-buf/vm/vmtest.sh)
 * asks for more, and where all takes VMTEST_SLOW times as long, there is less.
 */
static int rounds(int n)
{
	return n * factor("VMTEST_SCALE") / factor("VMTEST_SLOW") ?: 1;
}

/* Long enough for a kernel with sanitizers in an emulated machine */
#define BAR_TEST(_fixture, _name) \
	TEST_F_TIMEOUT(_fixture, _name, 120 * factor("VMTEST_SCALE"))

/*
 * What is known of the BARs of some functions. @reg is a register that reads as @id
 * where @mask is set, always.
 */
struct known_bar {
	u16 vendor, device;
	int index;
	bool ram;
	u32 reg, mask, id;
};

static const struct known_bar known_bars[] = {
	/* edu */
	{ 0x1234, 0x11e8, 0, .reg = 0x0, .mask = ~0U, .id = 0x010000ed },
	/* ivshmem-plain: its peer id, RAM */
	{ 0x1af4, 0x1110, 0, .reg = 0x8, .mask = ~0U, .id = 0 },
	{ 0x1af4, 0x1110, 2, .ram = true },
	/* nvme: its version, the persistent memory region */
	{ 0x1b36, 0x0010, 0, .reg = 0x8, .mask = 0xffff0000, .id = 0x00010000 },
	{ 0x1b36, 0x0010, 4, .ram = true },
	/* bochs-display: RAM, the id of its registers */
	{ 0x1234, 0x1111, 0, .ram = true },
	{ 0x1234, 0x1111, 2, .reg = 0x500, .mask = 0xfff0, .id = 0xb0c0 },
};

#define NVME_PMRCTL 0xe04
#define NVME_PMRCTL_EN 1

struct bar {
	int index;
	u64 offset;	/* of the region */
	u64 size;	/* as the function has it */
	u64 len;	/* as it can be mapped */
	struct known_bar known;
};

struct window {
	struct bar *bar;
	u64 off, len;
	void *map;
};

/* The device under test */
struct dut {
	struct iommu *iommu;
	bool shared_iommu;
	struct vfio_pci_device *device;
	struct bar bars[PCI_STD_NUM_BARS];
	int nr_bars;
	struct window windows[MAX_WINDOWS];
	int nr_windows;
};

/* ---- Words, and the SIGBUS that they can be */

static __thread struct {
	sigjmp_buf env;
	atomic_bool armed;
	int code;
	void *addr;
} fault;

static void on_sigbus(int sig, siginfo_t *info, void *context)
{
	if (!atomic_exchange(&fault.armed, false)) {
		signal(sig, SIG_DFL);
		return;
	}
	fault.code = info->si_code;
	fault.addr = info->si_addr;
	siglongjmp(fault.env, 1);
}

static void catch_sigbus(void)
{
	struct sigaction act = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO | SA_NODEFER,
	};

	VFIO_ASSERT_EQ(sigaction(SIGBUS, &act, NULL), 0);
}

/* After the longjmp: it was a fault of this very access */
static bool was_sigbus(const void *addr)
{
	VFIO_ASSERT_EQ(fault.code, BUS_ADRERR);
	VFIO_ASSERT_EQ((u64)fault.addr, (u64)addr);
	return false;
}

/* False for a SIGBUS */
static bool peek(const void *addr, u32 *value)
{
	if (sigsetjmp(fault.env, 0))
		return was_sigbus(addr);
	atomic_store(&fault.armed, true);
	*value = readl(addr);
	atomic_store(&fault.armed, false);
	return true;
}

static bool poke(void *addr, u32 value)
{
	if (sigsetjmp(fault.env, 0))
		return was_sigbus(addr);
	atomic_store(&fault.armed, true);
	writel(value, addr);
	atomic_store(&fault.armed, false);
	return true;
}

/* ---- BARs, windows, pages */

/* What a RAM BAR has at an offset; never ~0 */
static u32 tag(const struct bar *bar, u64 off)
{
	return ((off >> 2) * 0x9e3779b1U ^ bar->index) & 0x7fffffff;
}

/*
 * Of a BAR that may have a million pages these are looked at: the first sixteen, and
 * four of each block of 512, of all blocks up to the fourth, then of the first and the
 * last of each 64. Whatever the size of the BAR, its first page, its last and the one in
 * the middle are among them.
 */
static bool is_looked_at(u64 nr)
{
	u64 in_block = nr % 512, block = nr / 512;

	if (nr < 16 || is_power_of_2(nr) || is_power_of_2(nr + 1))
		return true;
	if (block >= 4 && block % 64 && block % 64 != 63)
		return false;
	return in_block < 2 || in_block == 255 || in_block == 511;
}

/* The offset of such a page, from here on */
static u64 next_page(u64 off)
{
	u64 nr = off / page;

	/* Behind the first block only what ends a half of one can follow */
	while (!is_looked_at(nr))
		nr = nr < 512 || nr % 256 == 255 ? nr + 1 : nr | 255;
	return nr * page;
}

enum { WRONG = -1, DEAD, ALIVE };

static const char * const state_name[] = { "wrong", "dead", "alive" };

/* A word of a page; of those of RAM the first and the last are tagged */
static int word_state(const struct bar *bar, const void *map, u64 off, bool last)
{
	const struct known_bar *known = &bar->known;
	u32 value, mask = known->mask, want = known->id;
	u64 at = last ? page - 4 : 0;

	if (known->ram) {
		want = tag(bar, off + at);
		mask = ~0U;
	} else if (off || last) {
		mask = 0;
		want = 0;
	} else {
		at = known->reg;
	}
	if (!peek(map + at, &value))
		return DEAD;
	return (value & mask) == want ? ALIVE : WRONG;
}

static int page_state(const struct bar *bar, const void *map, u64 off)
{
	int first = word_state(bar, map, off, false);

	if (bar->known.ram && word_state(bar, map, off, true) != first)
		return WRONG;
	return first;
}

/* The number of pages at @map, which is what is at @off, that are not as wanted */
static int not_as(int want, const struct bar *bar, const void *map, u64 off, u64 len)
{
	int state, wrong = 0;
	u64 at;

	for (at = next_page(off); at < off + len; at = next_page(at + page)) {
		state = page_state(bar, map + (at - off), at);
		if (state == want)
			continue;
		if (!wrong++)
			ksft_print_msg("BAR%d + %#lx at %p is %s, not %s\n",
				       bar->index, at, map + (at - off),
				       state_name[state + 1], state_name[want + 1]);
	}
	return wrong;
}

static int windows_not_as(int want, struct dut *dut)
{
	struct window *w = dut->windows;
	int i, wrong = 0;

	for (i = 0; i < dut->nr_windows; i++, w++)
		wrong += not_as(want, w->bar, w->map, w->off, w->len);
	return wrong;
}

#define EXPECT_ALIVE(_dut) EXPECT_EQ(0, windows_not_as(ALIVE, _dut))
#define EXPECT_DEAD(_dut) EXPECT_EQ(0, windows_not_as(DEAD, _dut))

static void *map_at(struct dut *dut, struct bar *bar, void *at, u64 off, u64 len)
{
	void *map = mmap(at, len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | (at ? MAP_FIXED : 0), dut->device->fd,
			 bar->offset + off);

	VFIO_ASSERT_NE(map, MAP_FAILED, "BAR%d + %#lx, %#lx long\n", bar->index,
		       off, len);
	return map;
}

static void *map_bar(struct dut *dut, struct bar *bar, u64 off, u64 len)
{
	return map_at(dut, bar, NULL, off, len);
}

static void unmap(void *map, u64 len)
{
	VFIO_ASSERT_EQ(munmap(map, len), 0);
}

static void map_window(struct dut *dut, struct bar *bar, u64 off, u64 len)
{
	struct window *w = &dut->windows[dut->nr_windows++];

	*w = (struct window) {
		.bar = bar, .off = off, .len = len, .map = map_bar(dut, bar, off, len),
	};
}

static void map_windows(struct dut *dut)
{
	struct bar *bar;

	for (bar = dut->bars; bar < &dut->bars[dut->nr_bars]; bar++) {
		map_window(dut, bar, 0, bar->len);
		if (bar->len == page)
			continue;
		map_window(dut, bar, 0, page);
		map_window(dut, bar, bar->len / 2, bar->len / 2);
		map_window(dut, bar, bar->len - page, page);
	}
}

static void unmap_windows(struct dut *dut)
{
	while (dut->nr_windows) {
		struct window *w = &dut->windows[--dut->nr_windows];

		unmap(w->map, w->len);
	}
}

/* The biggest BAR that is known to be RAM, or simply the biggest */
static struct bar *biggest(struct dut *dut, bool ram)
{
	struct bar *bar, *best = NULL;

	for (bar = dut->bars; bar < &dut->bars[dut->nr_bars]; bar++)
		if ((bar->known.ram || !ram) && (!best || bar->size > best->size))
			best = bar;
	return best;
}

/* ---- Devices */

static void get_region(struct dut *dut, int index, struct vfio_region_info *info)
{
	*info = (struct vfio_region_info) { .argsz = sizeof(*info), .index = index };
	ioctl_assert(dut->device->fd, VFIO_DEVICE_GET_REGION_INFO, info);
}

static struct known_bar look_up(struct dut *dut, int index)
{
	size_t i;

	for (i = 0; i < ARRAY_SIZE(known_bars); i++) {
		const struct known_bar *known = &known_bars[i];

		if (known->index == index &&
		    vfio_pci_device_match(dut->device, known->vendor, known->device))
			return *known;
	}
	return (struct known_bar) {};
}

static void find_bars(struct dut *dut)
{
	struct vfio_region_info info;
	int i;

	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		get_region(dut, i, &info);
		if (!(info.flags & VFIO_REGION_INFO_FLAG_MMAP))
			continue;
		VFIO_ASSERT_TRUE(is_power_of_2(info.size));
		dut->bars[dut->nr_bars++] = (struct bar) {
			.index = i,
			.offset = info.offset,
			.size = info.size,
			.len = info.size < page ? page : info.size,
			.known = look_up(dut, i),
		};
	}
}

/* The RAM of nvme is off at first */
static void enable_ram(struct dut *dut)
{
	struct vfio_region_info info;
	u32 on = NVME_PMRCTL_EN;

	if (!vfio_pci_device_match(dut->device, 0x1b36, 0x0010))
		return;
	get_region(dut, 0, &info);
	VFIO_ASSERT_EQ(pwrite(dut->device->fd, &on, 4, info.offset + NVME_PMRCTL), 4);
}

static void tag_bar(struct dut *dut, struct bar *bar)
{
	void *map = map_bar(dut, bar, 0, bar->len);
	u32 word;
	u64 off;

	for (off = 0; off < bar->len; off = next_page(off + page)) {
		writel(tag(bar, off), map + off);
		writel(tag(bar, off + page - 4), map + off + page - 4);
	}
	unmap(map, bar->len);
	/* By another way than through a mapping */
	for (off = 0; off < bar->len; off += bar->len / 2) {
		VFIO_ASSERT_EQ(pread(dut->device->fd, &word, 4, bar->offset + off), 4);
		VFIO_ASSERT_EQ(word, tag(bar, off));
	}
}

/* Opens the function and binds it, which can fail with an errno */
static int try_open(struct vfio_pci_device *device)
{
	char group[32];
	int fd;

	device->fd = -1;
	if (!device->iommu->mode->container_path) {
		vfio_pci_cdev_open(device, device->bdf);
		return __vfio_device_bind_iommufd(device->fd, device->iommu->iommufd,
						  NULL);
	}
	snprintf_assert(group, sizeof(group), "/dev/vfio/%d",
			sysfs_iommu_group_get(device->bdf));
	fd = open(group, O_RDWR);
	if (fd < 0)
		return -errno;
	close(fd);
	vfio_pci_group_setup(device, device->bdf);
	vfio_container_set_iommu(device);
	__vfio_pci_group_get_device_fd(device, device->bdf, NULL);
	return device->fd < 0 ? -errno : 0;
}

static void close_fds(struct vfio_pci_device *device)
{
	if (device->fd >= 0)
		close(device->fd);
	if (device->group_fd > 0)
		close(device->group_fd);
	device->fd = -1;
	device->group_fd = 0;
}

static void dut_setup(struct dut *dut, const char *bdf)
{
	struct vfio_pci_device *device = vfio_pci_device_alloc(bdf, dut->iommu);
	int i;

	dut->device = device;
	VFIO_ASSERT_EQ(try_open(device), 0, "%s cannot be opened\n", bdf);
	device->info.argsz = sizeof(device->info);
	ioctl_assert(device->fd, VFIO_DEVICE_GET_INFO, &device->info);
	get_region(dut, VFIO_PCI_CONFIG_REGION_INDEX, &device->config_space);
	find_bars(dut);
	enable_ram(dut);
	for (i = 0; i < dut->nr_bars; i++)
		if (dut->bars[i].known.ram)
			tag_bar(dut, &dut->bars[i]);
}

static void dut_open(struct dut *dut, const char *mode)
{
	memset(dut, 0, sizeof(*dut));
	dut->iommu = iommu_init(mode);
	dut_setup(dut, device_bdf);
}

static void dut_close(struct dut *dut)
{
	unmap_windows(dut);
	close_fds(dut->device);
	vfio_pci_device_free(dut->device);
	if (!dut->shared_iommu)
		iommu_cleanup(dut->iommu);
}

static void memory_off(struct dut *dut)
{
	vfio_pci_cmd_clear(dut->device, PCI_COMMAND_MEMORY);
}

static void memory_on(struct dut *dut)
{
	vfio_pci_cmd_set(dut->device, PCI_COMMAND_MEMORY);
}

/* ---- Files of /proc and /sys */

static int try_sysfs_write(const char *bdf, const char *name, const char *text)
{
	char path[PATH_MAX];
	int fd, ret = 0;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;
	if (write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		ret = -errno;
	close(fd);
	return ret;
}

static bool sysfs_is(const char *bdf, const char *name, const char *text)
{
	char path[PATH_MAX], got[64] = "";
	int fd;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return false;
	if (read(fd, got, sizeof(got) - 1) < 0)
		got[0] = 0;
	close(fd);
	got[strcspn(got, "\n")] = 0;
	return !strcmp(got, text);
}

static bool sysfs_has(const char *bdf, const char *name)
{
	char path[PATH_MAX];

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	return !access(path, F_OK);
}

static long open_files(void)
{
	FILE *file = fopen("/proc/sys/fs/file-nr", "r");
	long nr;
	int got;

	VFIO_ASSERT_NOT_NULL(file);
	got = fscanf(file, "%ld", &nr);
	VFIO_ASSERT_EQ(got, 1);
	fclose(file);
	return nr;
}

/* 0 too where nothing can tell */
static long dma_bufs(void)
{
	FILE *file = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	char line[256];
	long nr = 0;

	while (file && fgets(line, sizeof(line), file))
		sscanf(line, "Total %ld objects", &nr);
	if (file)
		fclose(file);
	return nr;
}

/* ---- Threads that read while something happens */

struct reader {
	pthread_t thread;
	struct dut *dut;
	atomic_bool stop;
	unsigned long count[3];
};

static void read_words(struct reader *r, struct window *w)
{
	u64 off, end = w->off + w->len;
	int state;

	for (off = next_page(w->off); off < end; off = next_page(off + page)) {
		state = word_state(w->bar, w->map + (off - w->off), off, false);
		if (state == WRONG && !r->count[0])
			ksft_print_msg("BAR%d + %#lx is wrong\n", w->bar->index, off);
		r->count[state + 1]++;
		if (atomic_load(&r->stop))
			break;
	}
}

static void *reader_main(void *arg)
{
	struct reader *r = arg;
	int i;

	while (!atomic_load(&r->stop))
		for (i = 0; i < r->dut->nr_windows; i++)
			read_words(r, &r->dut->windows[i]);
	return NULL;
}

static void reader_start(struct reader *r, struct dut *dut)
{
	memset(r, 0, sizeof(*r));
	r->dut = dut;
	VFIO_ASSERT_EQ(pthread_create(&r->thread, NULL, reader_main, r), 0);
}

static void reader_stop(struct reader *r)
{
	atomic_store(&r->stop, true);
	VFIO_ASSERT_EQ(pthread_join(r->thread, NULL), 0);
}

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

/* A BAR with sixteen pages at least, RAM if there is one */
static struct bar *sixteen_pages(struct dut *dut)
{
	struct bar *bar = biggest(dut, true) ?: biggest(dut, false);

	return bar->len >= 16 * page ? bar : NULL;
}

struct piece {
	void *map;
	u64 off, len;
};

static int pieces_not_as(int want, struct bar *bar, struct piece *p, int nr)
{
	int wrong = 0;

	for (; nr--; p++)
		wrong += not_as(want, bar, p->map, p->off, p->len);
	return wrong;
}

/* Each piece is alive, dead while the memory is off, and alive again */
static int check_pieces(struct dut *dut, struct bar *bar, struct piece *p, int nr)
{
	int wrong = pieces_not_as(ALIVE, bar, p, nr);

	memory_off(dut);
	wrong += pieces_not_as(DEAD, bar, p, nr);
	memory_on(dut);
	return wrong + pieces_not_as(ALIVE, bar, p, nr);
}

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

/* ---- Access by other means than an instruction of the process */

static int proc_mem_errno(const void *addr)
{
	int fd = open("/proc/self/mem", O_RDONLY), ret = 0;
	u32 word;

	VFIO_ASSERT_LE(0, fd);
	if (pread(fd, &word, 4, (off_t)addr) != 4)
		ret = errno;
	close(fd);
	return ret;
}

static int process_vm_errno(const void *addr, bool write)
{
	u32 word = 0;
	struct iovec here = { &word, 4 }, there = { (void *)addr, 4 };
	ssize_t ret;

	ret = write ? process_vm_writev(getpid(), &here, 1, &there, 1, 0) :
		process_vm_readv(getpid(), &here, 1, &there, 1, 0);
	return ret == 4 ? 0 : errno;
}

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

/*
 * @va: where the mapping starts in a block of @align, @off: in the BAR; its length is
 * @len, or up to the end of the BAR, or of 4 MiB if @align is of 2 MiB.
 */
FIXTURE_VARIANT(huge) {
	u64 align, va, off, len;
};

FIXTURE_VARIANT_ADD(huge, aligned) { .align = SZ_2M };
FIXTURE_VARIANT_ADD(huge, va_misaligned) { .align = SZ_2M, .va = SZ_4K };
FIXTURE_VARIANT_ADD(huge, offset_misaligned) { .align = SZ_2M, .off = SZ_4K };
FIXTURE_VARIANT_ADD(huge, both_misaligned) {
	.align = SZ_2M, .va = SZ_4K, .off = SZ_4K,
};

FIXTURE_VARIANT_ADD(huge, different) { .align = SZ_2M, .va = SZ_8K, .off = SZ_4K };
FIXTURE_VARIANT_ADD(huge, short) { .align = SZ_2M, .len = SZ_2M - SZ_4K };
FIXTURE_VARIANT_ADD(huge, straddling) {
	.align = SZ_2M, .va = SZ_1M, .off = SZ_1M, .len = SZ_2M,
};

FIXTURE_VARIANT_ADD(huge, tail) { .align = SZ_2M, .len = SZ_2M + SZ_4K };
FIXTURE_VARIANT_ADD(huge, second_block) { .align = SZ_2M, .off = SZ_2M };
FIXTURE_VARIANT_ADD(huge, aligned_1g) { .align = SZ_1G };
FIXTURE_VARIANT_ADD(huge, va_misaligned_1g) { .align = SZ_1G, .va = SZ_2M };
FIXTURE_VARIANT_ADD(huge, offset_misaligned_1g) { .align = SZ_1G, .off = SZ_2M };
FIXTURE_VARIANT_ADD(huge, short_1g) { .align = SZ_1G, .len = SZ_1G - SZ_4K };

FIXTURE_SETUP(huge)
{
	struct window *w = &self->window;
	u64 end = variant->align == SZ_2M ? SZ_4M : SZ_1G;

	if (page != SZ_4K || access("/sys/kernel/mm/transparent_hugepage", F_OK))
		SKIP(return, "no huge pages of 2 MiB");
	dut_open(&self->dut, MODE_IOMMUFD);
	w->bar = biggest(&self->dut, true);
	if (!w->bar || w->bar->len < end)
		SKIP(return, "no BAR of %lu MiB that is RAM", end >> 20);
	w->off = variant->off;
	w->len = variant->len ?: end - variant->off;
	w->map = map_at(&self->dut, w->bar,
			mmap_reserve(w->len, variant->align, variant->va),
			w->off, w->len);
}

FIXTURE_TEARDOWN(huge)
{
	unmap(self->window.map, self->window.len);
	dut_close(&self->dut);
}

/* Whether a whole block around this is in the window, and aligned in the BAR */
static bool fits(struct window *w, u64 off, u64 block)
{
	u64 va = (u64)w->map + (off - w->off), start = va & ~(block - 1);
	u64 bar_start = off - (va - start);

	return start >= (u64)w->map && start + block <= (u64)w->map + w->len &&
		!(bar_start & (block - 1));
}

/* The faults that it takes to read all pages that are looked at */
static long expected_faults(struct window *w)
{
#if defined(__x86_64__)
	static const u64 blocks[] = { SZ_1G, SZ_2M };
#else
	static const u64 blocks[] = { SZ_2M };
#endif
	u64 off, block, last = 0, end = w->off + w->len;
	long faults = 0;
	size_t i;

	for (off = next_page(w->off); off < end; off = next_page(off + page)) {
		block = page;
		for (i = 0; i < ARRAY_SIZE(blocks) && block == page; i++)
			if (fits(w, off, blocks[i]))
				block = blocks[i];
		block = ((u64)w->map + (off - w->off)) & ~(block - 1);
		faults += block != last;
		last = block;
	}
	return faults;
}

static long minor_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_minflt;
}

static long faults_of_reading(struct window *w)
{
	long before = minor_faults();

	if (not_as(ALIVE, w->bar, w->map, w->off, w->len))
		return -1;
	return minor_faults() - before;
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

/* ---- What a mapping is dead in, or over */

static int feature(struct dut *dut, u32 nr, void *data, size_t size)
{
	struct {
		struct vfio_device_feature feature;
		u8 data[64];
	} arg = {
		.feature.argsz = sizeof(arg.feature) + size,
		.feature.flags = VFIO_DEVICE_FEATURE_SET | nr,
	};

	if (size)
		memcpy(arg.data, data, size);
	return ioctl(dut->device->fd, VFIO_DEVICE_FEATURE, &arg) ? -errno : 0;
}

static u8 find_cap(struct dut *dut, u8 id)
{
	u8 pos = vfio_pci_config_readb(dut->device, PCI_CAPABILITY_LIST);
	int i;

	for (i = 0; pos && i < 48; i++) {
		if (vfio_pci_config_readb(dut->device, pos) == id)
			return pos;
		pos = vfio_pci_config_readb(dut->device, pos + PCI_CAP_LIST_NEXT);
	}
	return 0;
}

static bool has_power_management(struct dut *dut)
{
	return find_cap(dut, PCI_CAP_ID_PM);
}

static void set_power_state(struct dut *dut, u16 state)
{
	u8 reg = find_cap(dut, PCI_CAP_ID_PM) + PCI_PM_CTRL;
	u16 value = vfio_pci_config_readw(dut->device, reg);

	value &= ~PCI_PM_CTRL_STATE_MASK;
	vfio_pci_config_writew(dut->device, reg, value | state);
}

static void d3hot(struct dut *dut)
{
	set_power_state(dut, 3);
}

static void d0(struct dut *dut)
{
	set_power_state(dut, 0);
}

static bool has_flr(struct dut *dut)
{
	u8 cap = find_cap(dut, PCI_CAP_ID_EXP);

	return cap && vfio_pci_config_readl(dut->device, cap + PCI_EXP_DEVCAP) &
		PCI_EXP_DEVCAP_FLR;
}

static void flr(struct dut *dut)
{
	u8 reg = find_cap(dut, PCI_CAP_ID_EXP) + PCI_EXP_DEVCTL;
	u16 value = vfio_pci_config_readw(dut->device, reg);

	vfio_pci_config_writew(dut->device, reg, value | PCI_EXP_DEVCTL_BCR_FLR);
}

static bool has_reset(struct dut *dut)
{
	return dut->device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

static void reset(struct dut *dut)
{
	vfio_pci_device_reset(dut->device);
}

/*
 * ENOTTY is said of a reset that does not work, and after a reset if the link of the
 * port does not come up, as that of an emulated one may not. The function goes on to
 * work all the same.
 */
static void check_bus_reset(int ret)
{
	if (ret == -ENOTTY)
		ksft_print_msg("no reset, or no link after it\n");
	else
		VFIO_ASSERT_EQ(ret, 0);
}

struct hot_reset_set {
	struct vfio_pci_hot_reset_info info;
	struct vfio_pci_dependent_device devices[MAX_SIBLINGS];
};

static bool get_hot_reset_set(struct dut *dut, struct hot_reset_set *set)
{
	*set = (struct hot_reset_set) { .info.argsz = sizeof(*set) };
	return !ioctl(dut->device->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, set);
}

static bool has_hot_reset(struct dut *dut)
{
	struct hot_reset_set set;

	return get_hot_reset_set(dut, &set);
}

static int try_hot_reset(struct dut *dut)
{
	struct vfio_pci_hot_reset arg = { .argsz = sizeof(arg) };

	return ioctl(dut->device->fd, VFIO_DEVICE_PCI_HOT_RESET, &arg) ? -errno : 0;
}

/* It does not wait for whoever else is at one of the functions, such as a fault */
static void hot_reset(struct dut *dut)
{
	int i, ret = -EBUSY;

	for (i = 0; i < 1000 && (ret == -EBUSY || ret == -EAGAIN); i++) {
		ret = try_hot_reset(dut);
		if (ret)
			usleep(1000);
	}
	check_bus_reset(ret);
}

static bool has_sysfs_reset(struct dut *dut)
{
	return sysfs_has(dut->device->bdf, "reset");
}

static void sysfs_reset(struct dut *dut)
{
	check_bus_reset(try_sysfs_write(dut->device->bdf, "reset", "1"));
}

static bool has_runtime_pm(struct dut *dut)
{
	return sysfs_has(dut->device->bdf, "power/runtime_status") &&
		!sysfs_is(dut->device->bdf, "power/runtime_status", "unsupported");
}

static void wait_for_power(struct dut *dut, const char *status)
{
	int i;

	for (i = 0; i < 2000; i++) {
		if (sysfs_is(dut->device->bdf, "power/runtime_status", status))
			return;
		usleep(5000);
	}
	VFIO_FAIL("%s is not %s\n", dut->device->bdf, status);
}

static void low_power(struct dut *dut)
{
	VFIO_ASSERT_EQ(feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0), 0);
	wait_for_power(dut, "suspended");
}

static void low_power_exit(struct dut *dut)
{
	VFIO_ASSERT_EQ(feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0), 0);
}

static int wakeup = -1;

static void low_power_with_wakeup(struct dut *dut)
{
	struct vfio_device_low_power_entry_with_wakeup arg = {};

	if (wakeup < 0)
		wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	VFIO_ASSERT_LE(0, wakeup);
	arg.wakeup_eventfd = wakeup;
	VFIO_ASSERT_EQ(feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
			       &arg, sizeof(arg)), 0);
	wait_for_power(dut, "suspended");
}

static bool was_woken(void)
{
	u64 count;

	return read(wakeup, &count, 8) == 8;
}

/* As the host does who wants the function for something */
static void host_wake(struct dut *dut)
{
	VFIO_ASSERT_EQ(try_sysfs_write(dut->device->bdf, "power/control", "on"), 0);
	wait_for_power(dut, "active");
	VFIO_ASSERT_EQ(try_sysfs_write(dut->device->bdf, "power/control", "auto"), 0);
}

static void wake_by_host(struct dut *dut)
{
	VFIO_ASSERT_FALSE(was_woken());
	host_wake(dut);
	VFIO_ASSERT_TRUE(was_woken());
}

static void wake_by_ioctl(struct dut *dut)
{
	VFIO_ASSERT_FALSE(was_woken());
	ioctl_assert(dut->device->fd, VFIO_DEVICE_GET_INFO, &dut->device->info);
	VFIO_ASSERT_TRUE(was_woken());
}

/*
 * Once @enter has returned all mappings are dead, until @leave does, whatever is
 * written to COMMAND if @sticky; without @leave it is over when @enter returns.
 */
FIXTURE_VARIANT(revoke) {
	bool (*supported)(struct dut *dut);
	void (*enter)(struct dut *dut);
	void (*leave)(struct dut *dut);
	bool sticky, with_siblings;
};

/* The device under test, and what is reset together with it */
FIXTURE(revoke) {
	struct dut dut[1 + MAX_SIBLINGS];
	int nr;
};

FIXTURE_VARIANT_ADD(revoke, memory) { .enter = memory_off, .leave = memory_on };
FIXTURE_VARIANT_ADD(revoke, d3hot) {
	.supported = has_power_management, .enter = d3hot, .leave = d0, .sticky = true,
};

FIXTURE_VARIANT_ADD(revoke, flr) { .supported = has_flr, .enter = flr };
FIXTURE_VARIANT_ADD(revoke, reset) { .supported = has_reset, .enter = reset };
FIXTURE_VARIANT_ADD(revoke, hot_reset) {
	.supported = has_hot_reset, .enter = hot_reset, .with_siblings = true,
};

FIXTURE_VARIANT_ADD(revoke, low_power) {
	.supported = has_runtime_pm, .enter = low_power, .leave = low_power_exit,
	.sticky = true,
};

FIXTURE_VARIANT_ADD(revoke, low_power_woken_by_host) {
	.supported = has_runtime_pm, .enter = low_power_with_wakeup,
	.leave = wake_by_host,
};

FIXTURE_VARIANT_ADD(revoke, low_power_woken_by_ioctl) {
	.supported = has_runtime_pm, .enter = low_power_with_wakeup,
	.leave = wake_by_ioctl,
};

FIXTURE_VARIANT_ADD(revoke, sysfs_reset) {
	.supported = has_sysfs_reset, .enter = sysfs_reset,
};

/* Opens what is reset together with the device, with its iommufd */
static int open_siblings(struct dut *dut, struct dut *sibling)
{
	struct hot_reset_set set;
	static char bdf[MAX_SIBLINGS][16];
	int nr = 0;
	u32 i;

	VFIO_ASSERT_TRUE(get_hot_reset_set(dut, &set));
	for (i = 0; i < set.info.count; i++) {
		struct vfio_pci_dependent_device *d = &set.devices[i];

		snprintf(bdf[nr], sizeof(bdf[nr]), "%04x:%02x:%02x.%x", d->segment,
			 d->bus, d->devfn >> 3, d->devfn & 7);
		if (!strcmp(bdf[nr], dut->device->bdf))
			continue;
		sibling[nr].iommu = dut->iommu;
		sibling[nr].shared_iommu = true;
		dut_setup(&sibling[nr], bdf[nr]);
		nr++;
	}
	return nr;
}

FIXTURE_SETUP(revoke)
{
	int i;

	dut_open(self->dut, MODE_IOMMUFD);
	if (variant->supported && !variant->supported(self->dut))
		SKIP(return, "%s has no such thing", device_bdf);
	self->nr = 1;
	if (variant->with_siblings)
		self->nr += open_siblings(self->dut, &self->dut[1]);
	for (i = 0; i < self->nr; i++)
		map_windows(&self->dut[i]);
}

FIXTURE_TEARDOWN(revoke)
{
	while (self->nr)
		dut_close(&self->dut[--self->nr]);
}

static int all_not_as(int want, struct dut *dut, int nr)
{
	int wrong = 0;

	while (nr)
		wrong += windows_not_as(want, &dut[--nr]);
	return wrong;
}

BAR_TEST(revoke, dead_and_alive_again)
{
	struct dut *dut = self->dut;
	int i, round;

	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
	for (round = 0; round < 2; round++) {
		variant->enter(dut);
		if (variant->leave) {
			EXPECT_EQ(0, all_not_as(DEAD, self->dut, self->nr));
			for (i = 0; i < dut->nr_windows; i++)
				EXPECT_FALSE(poke(dut->windows[i].map + 4, 0));
			variant->leave(dut);
		}
		EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
	}
}

/* Memory that is off stays off, and turning it on is not the end of the rest */
BAR_TEST(revoke, with_memory_off)
{
	struct dut *dut = self->dut;

	memory_off(dut);
	variant->enter(dut);
	if (variant->sticky) {
		memory_on(dut);
		EXPECT_DEAD(dut);
		memory_off(dut);
	}
	EXPECT_DEAD(dut);
	if (variant->leave)
		variant->leave(dut);
	if (variant->leave != memory_on)
		EXPECT_DEAD(dut);
	memory_on(dut);
	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
}

/* Mapped, and never touched before */
BAR_TEST(revoke, mapped_in_between)
{
	struct dut *dut = self->dut;

	unmap_windows(dut);
	if (variant->leave) {
		variant->enter(dut);
		map_windows(dut);
		/* As far as mmap() itself has not woken the function */
		EXPECT_DEAD(dut);
		variant->leave(dut);
	} else {
		map_windows(dut);
		variant->enter(dut);
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
		variant->enter(self->dut);
		if (variant->leave) {
			usleep(2000);
			variant->leave(self->dut);
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
	if (!sysfs_has(device_bdf, "driver"))
		try_sysfs_write(device_bdf, "subsystem/drivers_probe", device_bdf);
}

/* Memory off and on until it is told to stop, or until the fd is closed */
struct toggler {
	pthread_t thread;
	struct dut *dut;
	int fd;
	u64 command;
	u16 off, on;
	atomic_bool stop;
	atomic_ulong rounds;
};

static void *toggler_main(void *arg)
{
	struct toggler *t = arg;

	while (!atomic_load(&t->stop)) {
		if (pwrite(t->fd, &t->off, 2, t->command) != 2)
			break;
		usleep(200);
		if (pwrite(t->fd, &t->on, 2, t->command) != 2)
			break;
		usleep(200);
		atomic_fetch_add(&t->rounds, 1);
	}
	return NULL;
}

static void toggler_start(struct toggler *t, struct dut *dut)
{
	memset(t, 0, sizeof(*t));
	t->fd = dut->device->fd;
	t->command = dut->device->config_space.offset + PCI_COMMAND;
	t->on = vfio_pci_config_readw(dut->device, PCI_COMMAND) | PCI_COMMAND_MEMORY;
	t->off = t->on & ~PCI_COMMAND_MEMORY;
	VFIO_ASSERT_EQ(pthread_create(&t->thread, NULL, toggler_main, t), 0);
}

static void toggler_stop(struct toggler *t)
{
	atomic_store(&t->stop, true);
	VFIO_ASSERT_EQ(pthread_join(t->thread, NULL), 0);
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

static int forked_not_as(int fd, int want)
{
	int wrong = -1;

	VFIO_ASSERT_EQ(write(fd, &want, sizeof(want)), sizeof(want));
	VFIO_ASSERT_EQ(read(fd, &wrong, sizeof(wrong)), sizeof(wrong));
	return wrong;
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
		EXPECT_EQ(0, forked_not_as(fd[0], DEAD));
		memory_on(dut);
		EXPECT_EQ(0, forked_not_as(fd[0], ALIVE));
		EXPECT_ALIVE(dut);
	}
	/* It does without the parent's mappings and fds */
	unmap_windows(dut);
	close_fds(dut->device);
	EXPECT_EQ(0, forked_not_as(fd[0], ALIVE));
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
	for (i = 0; i < rounds(500); i++) {
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
	int i, fd[2], status;
	pid_t pid;
	char c;

	dut_close(dut);
	for (i = 0; i < rounds(5); i++) {
		ASSERT_EQ(0, pipe(fd));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			killed_main(fd[1]);
			_exit(1);
		}
		close(fd[1]);
		ASSERT_EQ(1, read(fd[0], &c, 1));
		usleep(7000 * (i % 16));
		ASSERT_EQ(0, kill(pid, SIGKILL));
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
		close(fd[0]);
	}
	dut_open(dut, MODE_IOMMUFD);
	map_windows(dut);
	EXPECT_ALIVE(dut);
}

struct unbinder {
	pthread_t thread;
	atomic_bool done;
	int ret;
};

static void *unbinder_main(void *arg)
{
	struct unbinder *u = arg;

	u->ret = try_sysfs_write(device_bdf, "driver/unbind", device_bdf);
	atomic_store(&u->done, true);
	return NULL;
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
	struct unbinder unbinder = {};
	struct pollfd request = { .events = POLLIN };

	request.fd = request_eventfd(dut);
	close_fds(dut->device);
	ASSERT_EQ(0, pthread_create(&unbinder.thread, NULL, unbinder_main, &unbinder));
	EXPECT_EQ(1, poll(&request, 1, 20000));
	EXPECT_ALIVE(dut);
	usleep(300000);
	EXPECT_FALSE(atomic_load(&unbinder.done));
	EXPECT_ALIVE(dut);

	unmap_windows(dut);
	ASSERT_EQ(0, pthread_join(unbinder.thread, NULL));
	EXPECT_EQ(0, unbinder.ret);
	EXPECT_FALSE(sysfs_has(device_bdf, "driver"));
	dut_close(dut);
	close(request.fd);

	ASSERT_EQ(0, try_sysfs_write(device_bdf, "subsystem/drivers_probe", device_bdf));
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

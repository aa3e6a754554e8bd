// SPDX-License-Identifier: GPL-2.0-only
/* See bars.h */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/io.h>
#include <linux/limits.h>
#include <linux/log2.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/bars.h>

#include "../../kselftest.h"

const char *device_bdf;
u64 page;

/* What the environment says, or 1 */
int factor(const char *name)
{
	const char *s = getenv(name);

	return s && atoi(s) > 1 ? atoi(s) : 1;
}

/*
 * How often to do what a test does n times: VMTEST_SCALE (of dma-buf/vm/vmtest.sh)
 * asks for more, and where all takes VMTEST_SLOW times as long, there is less.
 */
int rounds(int n)
{
	return n * factor("VMTEST_SCALE") / factor("VMTEST_SLOW") ?: 1;
}

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

void catch_sigbus(void)
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
bool peek(const void *addr, u32 *value)
{
	if (sigsetjmp(fault.env, 0))
		return was_sigbus(addr);
	atomic_store(&fault.armed, true);
	*value = readl(addr);
	atomic_store(&fault.armed, false);
	return true;
}

bool poke(void *addr, u32 value)
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
u32 tag(const struct bar *bar, u64 off)
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
u64 next_page(u64 off)
{
	u64 nr = off / page;

	/* Behind the first block only what ends a half of one can follow */
	while (!is_looked_at(nr))
		nr = nr < 512 || nr % 256 == 255 ? nr + 1 : nr | 255;
	return nr * page;
}

static const char * const state_name[] = { "wrong", "dead", "alive" };

/* A word of a page; of those of RAM the first and the last are tagged */
int word_state(const struct bar *bar, const void *map, u64 off, bool last)
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

int page_state(const struct bar *bar, const void *map, u64 off)
{
	int first = word_state(bar, map, off, false);

	if (bar->known.ram && word_state(bar, map, off, true) != first)
		return WRONG;
	return first;
}

/* The number of pages at @map, which is what is at @off, that are not as wanted */
int not_as(int want, const struct bar *bar, const void *map, u64 off, u64 len)
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

int windows_not_as(int want, struct dut *dut)
{
	struct window *w = dut->windows;
	int i, wrong = 0;

	for (i = 0; i < dut->nr_windows; i++, w++)
		wrong += not_as(want, w->bar, w->map, w->off, w->len);
	return wrong;
}

void *map_fd(int fd, void *at, u64 off, u64 len)
{
	void *map = mmap(at, len, PROT_READ | PROT_WRITE,
			 MAP_SHARED | (at ? MAP_FIXED : 0), fd, off);

	VFIO_ASSERT_NE(map, MAP_FAILED, "%#lx, %#lx long\n", off, len);
	return map;
}

void *map_at(struct dut *dut, struct bar *bar, void *at, u64 off, u64 len)
{
	void *map;
	int fd;

	if (!dut->lend)
		return map_fd(dut->device->fd, at, bar->offset + off, len);

	fd = vfio_pci_dma_buf_export(dut->device, bar->index, off, len);
	map = map_fd(fd, at, 0, len);
	close(fd);
	return map;
}

void *map_bar(struct dut *dut, struct bar *bar, u64 off, u64 len)
{
	return map_at(dut, bar, NULL, off, len);
}

void unmap(void *map, u64 len)
{
	VFIO_ASSERT_EQ(munmap(map, len), 0);
}

void map_window(struct dut *dut, struct bar *bar, u64 off, u64 len)
{
	struct window *w = &dut->windows[dut->nr_windows++];

	*w = (struct window) {
		.bar = bar, .off = off, .len = len, .map = map_bar(dut, bar, off, len),
	};
}

void map_windows(struct dut *dut)
{
	struct bar *bar;

	for (bar = dut->bars; bar < &dut->bars[dut->nr_bars]; bar++) {
		if (dut->lend && bar->size < page)
			continue;
		map_window(dut, bar, 0, bar->len);
		if (bar->len == page)
			continue;
		map_window(dut, bar, 0, page);
		map_window(dut, bar, bar->len / 2, bar->len / 2);
		map_window(dut, bar, bar->len - page, page);
	}
}

void unmap_windows(struct dut *dut)
{
	while (dut->nr_windows) {
		struct window *w = &dut->windows[--dut->nr_windows];

		unmap(w->map, w->len);
	}
}

/* The biggest BAR that is known to be RAM, or simply the biggest */
struct bar *biggest(struct dut *dut, bool ram)
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
int try_open(struct vfio_pci_device *device)
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

void close_fds(struct vfio_pci_device *device)
{
	if (device->fd >= 0)
		close(device->fd);
	if (device->group_fd > 0)
		close(device->group_fd);
	device->fd = -1;
	device->group_fd = 0;
}

void dut_setup(struct dut *dut, const char *bdf)
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

void dut_open(struct dut *dut, const char *mode)
{
	memset(dut, 0, sizeof(*dut));
	dut->iommu = iommu_init(mode);
	dut_setup(dut, device_bdf);
}

void dut_close(struct dut *dut)
{
	unmap_windows(dut);
	close_fds(dut->device);
	vfio_pci_device_free(dut->device);
	if (!dut->shared_iommu)
		iommu_cleanup(dut->iommu);
}

void memory_off(struct dut *dut)
{
	vfio_pci_cmd_clear(dut->device, PCI_COMMAND_MEMORY);
}

void memory_on(struct dut *dut)
{
	vfio_pci_cmd_set(dut->device, PCI_COMMAND_MEMORY);
}

/* ---- Files of /proc and /sys */

int try_sysfs_write(const char *bdf, const char *name, const char *text)
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

bool sysfs_is(const char *bdf, const char *name, const char *text)
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

bool sysfs_has(const char *bdf, const char *name)
{
	char path[PATH_MAX];

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/%s", bdf, name);
	return !access(path, F_OK);
}

long open_files(void)
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
long dma_bufs(void)
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

void reader_start(struct reader *r, struct dut *dut)
{
	memset(r, 0, sizeof(*r));
	r->dut = dut;
	VFIO_ASSERT_EQ(pthread_create(&r->thread, NULL, reader_main, r), 0);
}

void reader_stop(struct reader *r)
{
	atomic_store(&r->stop, true);
	VFIO_ASSERT_EQ(pthread_join(r->thread, NULL), 0);
}

/* ---- Mappings that are cut up and moved */

/* A BAR with sixteen pages at least, RAM if there is one */
struct bar *sixteen_pages(struct dut *dut)
{
	struct bar *bar = biggest(dut, true) ?: biggest(dut, false);

	return bar->len >= 16 * page ? bar : NULL;
}

int pieces_not_as(int want, struct bar *bar, struct piece *p, int nr)
{
	int wrong = 0;

	for (; nr--; p++)
		wrong += not_as(want, bar, p->map, p->off, p->len);
	return wrong;
}

/* Each piece is alive, dead while the memory is off, and alive again */
int check_pieces(struct dut *dut, struct bar *bar, struct piece *p, int nr)
{
	int wrong = pieces_not_as(ALIVE, bar, p, nr);

	memory_off(dut);
	wrong += pieces_not_as(DEAD, bar, p, nr);
	memory_on(dut);
	return wrong + pieces_not_as(ALIVE, bar, p, nr);
}

/* ---- Huge pages */

/* Whether a whole block around this is in the window, and aligned in the BAR */
static bool fits(struct window *w, u64 off, u64 block)
{
	u64 va = (u64)w->map + (off - w->off), start = va & ~(block - 1);
	u64 bar_start = off - (va - start);

	return start >= (u64)w->map && start + block <= (u64)w->map + w->len &&
		!(bar_start & (block - 1));
}

const char *map_huge(struct dut *dut, struct window *w, const struct huge_window *huge)
{
	u64 end = huge->align == SZ_2M ? SZ_4M : SZ_1G;

	if (page != SZ_4K || access("/sys/kernel/mm/transparent_hugepage", F_OK))
		return "no huge pages of 2 MiB";
	w->bar = biggest(dut, true);
	if (!w->bar || w->bar->len < end)
		return end == SZ_4M ? "no BAR of 4 MiB that is RAM" :
			"no BAR of 1024 MiB that is RAM";
	w->off = huge->off;
	w->len = huge->len ?: end - huge->off;
	w->map = map_at(dut, w->bar, mmap_reserve(w->len, huge->align, huge->va), w->off,
			w->len);
	return NULL;
}

/* The size of the entry that such a page has */
static u64 expected_size(struct window *w, u64 off)
{
#if defined(__x86_64__)
	static const u64 blocks[] = { SZ_1G, SZ_2M };
#else
	static const u64 blocks[] = { SZ_2M };
#endif
	size_t i;

	for (i = 0; i < ARRAY_SIZE(blocks); i++)
		if (fits(w, off, blocks[i]))
			return blocks[i];
	return page;
}

/* The faults that it takes to read all pages that are looked at */
long expected_faults(struct window *w)
{
	u64 off, block, last = 0, end = w->off + w->len;
	long faults = 0;

	for (off = next_page(w->off); off < end; off = next_page(off + page)) {
		block = ((u64)w->map + (off - w->off)) & ~(expected_size(w, off) - 1);
		faults += block != last;
		last = block;
	}
	return faults;
}

int load_module(const char *name)
{
	char command[64];

	snprintf_assert(command, sizeof(command), "modprobe %s", name);
	return system(command);
}

/* False if there is none, or no module that tells */
bool get_entry(const void *addr, struct entry *entry)
{
	static int fd = -1;
	char text[64];
	ssize_t len;

	if (fd < 0 && load_module("vfio_pci_dmabuf_test"))
		return false;
	if (fd < 0)
		fd = open("/sys/kernel/debug/vfio_pci_dmabuf_test", O_RDONLY | O_CLOEXEC);
	len = pread(fd, text, sizeof(text) - 1, (off_t)addr);
	if (len <= 0)
		return false;
	text[len] = 0;
	return sscanf(text, "%lx %lx %lx", &entry->pfn, &entry->size, &entry->prot) == 3;
}

int entry_attr(const struct entry *entry)
{
#if defined(__x86_64__)
	/* _PAGE_PWT, _PAGE_PCD: UC- is the latter, WC the former */
	static const int attrs[] = { ATTR_OTHER, ATTR_WC, ATTR_NC, ATTR_OTHER };

	return attrs[(entry->prot >> 3) & 3];
#elif defined(__aarch64__)
	/* The index: MT_NORMAL_NC, MT_DEVICE_nGnRnE */
	int index = (entry->prot >> 2) & 7;

	return index == 2 ? ATTR_WC : index == 3 ? ATTR_NC : ATTR_OTHER;
#else
	return ATTR_OTHER;
#endif
}

static u64 bar_start(const struct bar *bar)
{
	char path[PATH_MAX];
	u64 start = 0;
	FILE *file;
	int i;

	snprintf_assert(path, sizeof(path), "/sys/bus/pci/devices/%s/resource",
			device_bdf);
	file = fopen(path, "r");
	VFIO_ASSERT_NOT_NULL(file);
	for (i = 0; i <= bar->index; i++)
		if (fscanf(file, "%lx %*x %*x", &start) != 1)
			break;
	fclose(file);
	return start;
}

/* The number of pages that have another entry than they should, once they have one */
int entries_not_as_expected(struct window *w)
{
	u64 off, size, start = bar_start(w->bar), end = w->off + w->len;
	struct entry entry;
	int wrong = 0, seen = 0, huge = 0;

	for (off = next_page(w->off); off < end; off = next_page(off + page)) {
		size = expected_size(w, off);
		if (word_state(w->bar, w->map + (off - w->off), off, false) != ALIVE ||
		    !get_entry(w->map + (off - w->off), &entry)) {
			wrong++;
			continue;
		}
		if (entry.size != size || entry_attr(&entry) != ATTR_NC ||
		    entry.pfn * page != ((start + off) & ~(page - 1))) {
			if (!wrong++)
				ksft_print_msg("BAR%d + %#lx: %#lx, %#lx long, attributes %#lx\n",
					       w->bar->index, off, entry.pfn * page,
					       entry.size, entry.prot);
		}
		seen++;
		huge += entry.size > page;
	}
	ksft_print_msg("%d entries looked at, %d of them huge, the last one %#lx long\n",
		       seen, huge, seen ? entry.size : 0);
	return wrong;
}

long minor_faults(void)
{
	struct rusage usage;

	VFIO_ASSERT_EQ(getrusage(RUSAGE_THREAD, &usage), 0);
	return usage.ru_minflt;
}

long faults_of_reading(struct window *w)
{
	long before = minor_faults();

	if (not_as(ALIVE, w->bar, w->map, w->off, w->len))
		return -1;
	return minor_faults() - before;
}

/* ---- What a mapping is dead in, or over */

int feature(struct dut *dut, u32 nr, void *data, size_t size)
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

bool has_reset(struct dut *dut)
{
	return dut->device->info.flags & VFIO_DEVICE_FLAGS_RESET;
}

void reset(struct dut *dut)
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

bool get_hot_reset_set(struct dut *dut, struct hot_reset_set *set)
{
	*set = (struct hot_reset_set) { .info.argsz = sizeof(*set) };
	return !ioctl(dut->device->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, set);
}

static bool has_hot_reset(struct dut *dut)
{
	struct hot_reset_set set;

	return get_hot_reset_set(dut, &set);
}

int try_hot_reset(struct dut *dut)
{
	struct vfio_pci_hot_reset arg = { .argsz = sizeof(arg) };

	return ioctl(dut->device->fd, VFIO_DEVICE_PCI_HOT_RESET, &arg) ? -errno : 0;
}

/* It does not wait for whoever else is at one of the functions, such as a fault */
void hot_reset(struct dut *dut)
{
	int i, ret = -EBUSY;

	for (i = 0; i < 1000 && (ret == -EBUSY || ret == -EAGAIN); i++) {
		ret = try_hot_reset(dut);
		if (ret)
			usleep(1000);
	}
	check_bus_reset(ret);
}

bool has_sysfs_reset(struct dut *dut)
{
	return sysfs_has(dut->device->bdf, "reset");
}

void sysfs_reset(struct dut *dut)
{
	check_bus_reset(try_sysfs_write(dut->device->bdf, "reset", "1"));
}

bool has_runtime_pm(struct dut *dut)
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

void low_power(struct dut *dut)
{
	VFIO_ASSERT_EQ(feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY, NULL, 0), 0);
	wait_for_power(dut, "suspended");
}

void low_power_exit(struct dut *dut)
{
	VFIO_ASSERT_EQ(feature(dut, VFIO_DEVICE_FEATURE_LOW_POWER_EXIT, NULL, 0), 0);
}

static int wakeup = -1;

void low_power_with_wakeup(struct dut *dut)
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

bool was_woken(void)
{
	u64 count;

	return read(wakeup, &count, 8) == 8;
}

/* As the host does who wants the function for something */
void host_wake(struct dut *dut)
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

const struct revoke_kind revoke_kinds[NR_REVOKE_KINDS] = {
	[REVOKE_MEMORY] = { "memory", .enter = memory_off, .leave = memory_on },
	[REVOKE_D3HOT] = {
		"d3hot", has_power_management, d3hot, d0, .sticky = true,
	},
	[REVOKE_FLR] = { "flr", has_flr, flr },
	[REVOKE_RESET] = { "reset", has_reset, reset },
	[REVOKE_HOT_RESET] = {
		"hot_reset", has_hot_reset, hot_reset, .with_siblings = true,
	},
	[REVOKE_LOW_POWER] = {
		"low_power", has_runtime_pm, low_power, low_power_exit, .sticky = true,
	},
	[REVOKE_LOW_POWER_WOKEN_BY_HOST] = {
		"low_power_woken_by_host", has_runtime_pm, low_power_with_wakeup,
		wake_by_host,
	},
	[REVOKE_LOW_POWER_WOKEN_BY_IOCTL] = {
		"low_power_woken_by_ioctl", has_runtime_pm, low_power_with_wakeup,
		wake_by_ioctl,
	},
	[REVOKE_SYSFS_RESET] = { "sysfs_reset", has_sysfs_reset, sysfs_reset },
};

/* Opens what is reset together with the device, with its iommufd */
int open_siblings(struct dut *dut, struct dut *sibling)
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

/* ---- Memory that goes off and on */

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

void toggler_start(struct toggler *t, struct dut *dut)
{
	memset(t, 0, sizeof(*t));
	t->fd = dut->device->fd;
	t->command = dut->device->config_space.offset + PCI_COMMAND;
	t->on = vfio_pci_config_readw(dut->device, PCI_COMMAND) | PCI_COMMAND_MEMORY;
	t->off = t->on & ~PCI_COMMAND_MEMORY;
	VFIO_ASSERT_EQ(pthread_create(&t->thread, NULL, toggler_main, t), 0);
}

void toggler_stop(struct toggler *t)
{
	atomic_store(&t->stop, true);
	VFIO_ASSERT_EQ(pthread_join(t->thread, NULL), 0);
}

int open_with_siblings(struct dut *dut, const struct revoke_kind *kind)
{
	dut_open(dut, MODE_IOMMUFD);
	if (kind->supported && !kind->supported(dut))
		return 0;
	return 1 + (kind->with_siblings ? open_siblings(dut, &dut[1]) : 0);
}

int all_not_as(int want, struct dut *dut, int nr)
{
	int wrong = 0;

	while (nr)
		wrong += windows_not_as(want, &dut[--nr]);
	return wrong;
}

/* ---- Other processes */

int proc_mem_errno(const void *addr)
{
	int fd = open("/proc/self/mem", O_RDONLY), ret = 0;
	u32 word;

	VFIO_ASSERT_LE(0, fd);
	if (pread(fd, &word, 4, (off_t)addr) != 4)
		ret = errno;
	close(fd);
	return ret;
}

int process_vm_errno(const void *addr, bool write)
{
	u32 word = 0;
	struct iovec here = { &word, 4 }, there = { (void *)addr, 4 };
	ssize_t ret;

	ret = write ? process_vm_writev(getpid(), &here, 1, &there, 1, 0) :
		process_vm_readv(getpid(), &here, 1, &there, 1, 0);
	return ret == 4 ? 0 : errno;
}

int ask_not_as(int sock, int want)
{
	int wrong = -1;

	VFIO_ASSERT_EQ(write(sock, &want, sizeof(want)), sizeof(want));
	VFIO_ASSERT_EQ(read(sock, &wrong, sizeof(wrong)), sizeof(wrong));
	return wrong;
}

void run_and_kill(void (*main)(int fd), unsigned int usec)
{
	int fd[2], status;
	pid_t pid;
	char c;

	VFIO_ASSERT_EQ(pipe(fd), 0);
	pid = fork();
	VFIO_ASSERT_LE(0, pid);
	if (!pid) {
		main(fd[1]);
		_exit(1);
	}
	close(fd[1]);
	VFIO_ASSERT_EQ(read(fd[0], &c, 1), 1);
	usleep(usec);
	VFIO_ASSERT_EQ(kill(pid, SIGKILL), 0);
	VFIO_ASSERT_EQ(waitpid(pid, &status, 0), pid);
	VFIO_ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
	close(fd[0]);
}

/* ---- The driver goes, and comes */

static void *unbinder_main(void *arg)
{
	struct unbinder *u = arg;

	u->ret = try_sysfs_write(device_bdf, "driver/unbind", device_bdf);
	atomic_store(&u->done, true);
	return NULL;
}

void unbinder_start(struct unbinder *u)
{
	memset(u, 0, sizeof(*u));
	VFIO_ASSERT_EQ(pthread_create(&u->thread, NULL, unbinder_main, u), 0);
}

int unbinder_join(struct unbinder *u)
{
	VFIO_ASSERT_EQ(pthread_join(u->thread, NULL), 0);
	return u->ret;
}

void bind_again(void)
{
	if (!sysfs_has(device_bdf, "driver"))
		VFIO_ASSERT_EQ(try_sysfs_write(device_bdf, "subsystem/drivers_probe",
					       device_bdf), 0);
}

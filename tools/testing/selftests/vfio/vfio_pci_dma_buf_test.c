// SPDX-License-Identifier: GPL-2.0-only
/*
 * Parts of BARs that are lent as dma-bufs: what can be exported and mapped, that all
 * who have one lose the memory when it is out of reach for a time, and get it again,
 * and that VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE takes back one of them, from everybody
 * and for good, while others go on.
 *
 * A second function that the library has a driver for, if one is given, has DMA to
 * what is lent.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <linux/dma-buf.h>
#include <linux/io.h>
#include <linux/iommufd.h>
#include <linux/limits.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/bars.h>

#include "../fail_nth.h"
#include "../kselftest_harness.h"

static const char *dma_bdf;

static int mmap_errno(int fd, u64 off, u64 len, int prot, int flags)
{
	void *map = mmap(NULL, len, prot, flags, fd, off);

	if (map == MAP_FAILED)
		return errno;
	unmap(map, len);
	return 0;
}

static int derive(int fd, u32 flags)
{
	struct dma_buf_derive arg = { .flags = flags | O_CLOEXEC };

	return ioctl(fd, DMA_BUF_IOCTL_DERIVE, &arg) ? -errno : arg.fd;
}

static int lend(struct dut *dut, struct bar *bar, u64 off, u64 len)
{
	return vfio_pci_dma_buf_export(dut->device, bar->index, off, len);
}

static int take_back(struct dut *dut, int fd)
{
	return __vfio_pci_dma_buf_revoke(dut->device, fd);
}

static int new_udmabuf(void)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC, .size = page };
	int dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC), fd = -1;

	create.memfd = memfd_create("revoke", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	if (dev >= 0 && !ftruncate(create.memfd, page) &&
	    !fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK))
		fd = ioctl(dev, UDMABUF_CREATE, &create);
	close(create.memfd);
	close(dev);
	return fd;
}

/* ---- To and from the IOAS of the device */

static int map_iova(struct dut *dut, int fd, u64 len, u64 *iova)
{
	*iova = 0;
	return iommu_map_dma_buf(dut->iommu, fd, len, 0, iova);
}

static int unmap_iova(struct dut *dut, u64 iova, u64 len)
{
	return iommu_unmap_dma_buf(dut->iommu, iova, len);
}

/* ---- Exports, and mappings of them */

FIXTURE(lent) {
	struct dut dut;
	struct bar *bar;
};

FIXTURE_SETUP(lent)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
}

FIXTURE_TEARDOWN(lent)
{
	dut_close(&self->dut);
}

static int export_errno(struct dut *dut, u32 region, u32 nr,
			const struct vfio_region_dma_range *ranges)
{
	int fd = __vfio_pci_dma_buf_export(dut->device, region, O_RDWR | O_CLOEXEC,
					   nr, ranges);

	if (fd < 0)
		return -fd;
	close(fd);
	return 0;
}

static int export_range_errno(struct dut *dut, u32 region, u64 off, u64 len)
{
	const struct vfio_region_dma_range range = { off, len };

	return export_errno(dut, region, 1, &range);
}

BAR_TEST(lent, export_errors)
{
	static const struct vfio_region_dma_range many[1024];
	struct vfio_region_dma_range two[2] = { { 0, page }, { page, page } };
	struct dut *dut = &self->dut;
	struct bar *bar = self->bar, *other;
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} arg = {
		.feature.argsz = sizeof(arg),
		.feature.flags = VFIO_DEVICE_FEATURE_GET |
				 VFIO_DEVICE_FEATURE_DMA_BUF,
		.buf = { .region_index = bar->index, .flags = 1, .nr_ranges = 1 },
		.range = { 0, page },
	};
	u32 i;

	EXPECT_EQ(0, export_range_errno(dut, bar->index, 0, bar->size));
	EXPECT_EQ(0, export_errno(dut, bar->index, 2, two));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, 0, 0));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, 0, page / 2));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, page / 2, page));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, bar->size, page));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, 0, bar->size + page));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, bar->size - page,
					     2 * page));
	EXPECT_EQ(EOVERFLOW, export_range_errno(dut, bar->index, -page, page));
	EXPECT_EQ(EINVAL, export_range_errno(dut, bar->index, page, -page));
	EXPECT_EQ(EINVAL, export_errno(dut, bar->index, 0, NULL));
	EXPECT_EQ(EINVAL, export_errno(dut, bar->index, 1024, many));
	two[1].length = 0;
	EXPECT_EQ(EINVAL, export_errno(dut, bar->index, 2, two));
	two[1].length = -page;
	EXPECT_EQ(EINVAL, export_errno(dut, bar->index, 2, two));

	EXPECT_EQ(-1, ioctl(dut->device->fd, VFIO_DEVICE_FEATURE, &arg));
	EXPECT_EQ(EINVAL, errno);
	arg.buf.flags = 0;
	arg.feature.argsz -= sizeof(arg.range) + 1;
	EXPECT_EQ(-1, ioctl(dut->device->fd, VFIO_DEVICE_FEATURE, &arg));
	EXPECT_EQ(EINVAL, errno);

	/* No memory, or no BAR */
	for (i = 0; i < PCI_STD_NUM_BARS; i++) {
		for (other = dut->bars; other < &dut->bars[dut->nr_bars]; other++)
			if (other->index == (int)i)
				break;
		if (other == &dut->bars[dut->nr_bars]) {
			EXPECT_NE(0, export_range_errno(dut, i, 0, page))
				TH_LOG("BAR%u", i);
		} else if (other->size < page) {
			EXPECT_EQ(EINVAL, export_range_errno(dut, i, 0, page))
				TH_LOG("BAR%u", i);
		}
	}
	EXPECT_EQ(ENODEV, export_range_errno(dut, VFIO_PCI_ROM_REGION_INDEX, 0, page));
	EXPECT_EQ(ENODEV, export_range_errno(dut, VFIO_PCI_CONFIG_REGION_INDEX, 0,
					     page));
	EXPECT_EQ(ENODEV, export_range_errno(dut, VFIO_PCI_NUM_REGIONS, 0, page));
	EXPECT_EQ(ENODEV, export_range_errno(dut, -1, 0, page));
}

/* Each BAR, and what is written by one way is there by the other */
BAR_TEST(lent, each_bar)
{
	struct dut *dut = &self->dut;
	struct bar *bar;
	u32 word;

	for (bar = dut->bars; bar < &dut->bars[dut->nr_bars]; bar++) {
		void *direct, *map;
		int fd;

		if (bar->size < page)
			continue;
		fd = lend(dut, bar, 0, bar->size);
		EXPECT_EQ((off_t)bar->size, lseek(fd, 0, SEEK_END));
		map = map_fd(fd, NULL, 0, bar->size);
		direct = map_bar(dut, bar, 0, bar->size);
		EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, bar->size));
		if (bar->known.ram) {
			EXPECT_TRUE(poke(map + 8, 0x5eed));
			EXPECT_TRUE(peek(direct + 8, &word));
			EXPECT_EQ(0x5eedU, word);
			EXPECT_TRUE(poke(direct + bar->size - 8, 0xf00d));
			EXPECT_TRUE(peek(map + bar->size - 8, &word));
			EXPECT_EQ(0xf00dU, word);
		}
		memory_off(dut);
		EXPECT_EQ(0, not_as(DEAD, bar, map, 0, bar->size));
		EXPECT_EQ(0, not_as(DEAD, bar, direct, 0, bar->size));
		memory_on(dut);
		EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, bar->size));
		unmap(direct, bar->size);
		unmap(map, bar->size);
		close(fd);
	}
}

BAR_TEST(lent, offsets)
{
	int fd = lend(&self->dut, self->bar, 4 * page, 8 * page), i, n;

	for (i = 0; i < 8; i++) {
		for (n = 1; n <= 8 - i; n++) {
			void *map = map_fd(fd, NULL, i * page, n * page);

			EXPECT_EQ(0, not_as(ALIVE, self->bar, map, (4 + i) * page,
					    n * page));
			memory_off(&self->dut);
			EXPECT_EQ(0, not_as(DEAD, self->bar, map, (4 + i) * page,
					    n * page));
			memory_on(&self->dut);
			unmap(map, n * page);
		}
	}
	close(fd);
}

BAR_TEST(lent, mmap_errors)
{
	int fd = lend(&self->dut, self->bar, 4 * page, 4 * page);

	EXPECT_EQ(0, mmap_errno(fd, 0, 4 * page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(0, mmap_errno(fd, 3 * page, 1, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 0, 4 * page, PROT_READ, MAP_PRIVATE));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 0, 5 * page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 3 * page, 2 * page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 4 * page, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 1, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 0, 0, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EOVERFLOW, mmap_errno(fd, -page, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(EOVERFLOW, mmap_errno(fd, -page, 2 * page, PROT_READ, MAP_SHARED));
	close(fd);
}

/* ---- Access that is less than that of the device's fd */

BAR_TEST(lent, read_only_export)
{
	const struct vfio_region_dma_range range = { 0, 2 * page };
	int fd = __vfio_pci_dma_buf_export(self->dut.device, self->bar->index,
					   O_RDONLY | O_CLOEXEC, 1, &range);
	void *map;

	ASSERT_LE(0, fd);
	EXPECT_EQ(EACCES, mmap_errno(fd, 0, page, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(EACCES, mmap_errno(fd, 0, page, PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(fd, 0, page, PROT_READ, MAP_PRIVATE));
	map = mmap(NULL, 2 * page, PROT_READ, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 2 * page));
	EXPECT_EQ(-1, mprotect(map, page, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(0, take_back(&self->dut, fd));
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, 2 * page));
	unmap(map, 2 * page);
	close(fd);
}

BAR_TEST(lent, derived)
{
	int fd = lend(&self->dut, self->bar, 0, 4 * page);
	int r = derive(fd, O_RDONLY), w = derive(fd, O_WRONLY), both = derive(fd, O_RDWR);
	void *map;

	ASSERT_LE(0, r);
	ASSERT_LE(0, w);
	ASSERT_LE(0, both);
	close(fd);
	EXPECT_EQ(EACCES, mmap_errno(r, 0, page, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(EACCES, mmap_errno(w, 0, page, PROT_READ | PROT_WRITE, MAP_SHARED));
	EXPECT_EQ(EINVAL, mmap_errno(r, 0, page, PROT_READ, MAP_PRIVATE));
	map = mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, r, 0);
	ASSERT_NE(MAP_FAILED, map) TH_LOG("%s", strerror(errno));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 4 * page));
	EXPECT_EQ(-1, mprotect(map, page, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(0, mmap_errno(both, 0, page, PROT_READ | PROT_WRITE, MAP_SHARED));
	memory_off(&self->dut);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, 4 * page));
	memory_on(&self->dut);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 4 * page));
	unmap(map, 4 * page);
	close(r);
	close(w);
	close(both);
}

/* ---- Several ranges */

#define MAX_RANGES 16

FIXTURE(ranges) {
	struct dut dut;
	struct bar *bar;
	struct vfio_region_dma_range range[MAX_RANGES];
	u64 len;
	int fd;
};

/* In pages */
FIXTURE_VARIANT(ranges) {
	u32 nr;
	struct {
		u64 off, len;
	} range[MAX_RANGES];
};

FIXTURE_VARIANT_ADD(ranges, in_order) { 2, { { 0, 4 }, { 4, 4 } } };
FIXTURE_VARIANT_ADD(ranges, reversed) { 3, { { 8, 2 }, { 4, 4 }, { 0, 3 } } };
FIXTURE_VARIANT_ADD(ranges, with_gaps) { 3, { { 1, 2 }, { 5, 1 }, { 9, 3 } } };
FIXTURE_VARIANT_ADD(ranges, overlapping) { 2, { { 0, 6 }, { 3, 6 } } };
FIXTURE_VARIANT_ADD(ranges, the_same_twice) { 2, { { 5, 3 }, { 5, 3 } } };
FIXTURE_VARIANT_ADD(ranges, single_pages) {
	16, { { 15, 1 }, { 3, 1 }, { 11, 1 }, { 7, 1 }, { 0, 1 }, { 1, 1 }, { 2, 1 },
	      { 14, 1 }, { 13, 1 }, { 12, 1 }, { 4, 1 }, { 5, 1 }, { 6, 1 }, { 10, 1 },
	      { 9, 1 }, { 8, 1 } },
};

FIXTURE_SETUP(ranges)
{
	u32 i;

	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
	for (i = 0; i < variant->nr; i++) {
		self->range[i].offset = variant->range[i].off * page;
		self->range[i].length = variant->range[i].len * page;
		self->len += self->range[i].length;
	}
	self->fd = __vfio_pci_dma_buf_export(self->dut.device, self->bar->index,
					     O_RDWR | O_CLOEXEC, variant->nr,
					     self->range);
	ASSERT_LE(0, self->fd);
}

FIXTURE_TEARDOWN(ranges)
{
	close(self->fd);
	dut_close(&self->dut);
}

/* Where in the BAR a page of the dma-buf is */
static u64 bar_offset(const struct vfio_region_dma_range *range, u64 off)
{
	for (; off >= range->length; range++)
		off -= range->length;
	return range->offset + off;
}

static int ranges_not_as(int want, struct bar *bar,
			 const struct vfio_region_dma_range *range, void *map, u64 off,
			 u64 len)
{
	int wrong = 0;
	u64 at;

	for (at = 0; at < len; at += page)
		wrong += not_as(want, bar, map + at, bar_offset(range, off + at), page);
	return wrong;
}

BAR_TEST(ranges, all)
{
	void *map = map_fd(self->fd, NULL, 0, self->len);

	EXPECT_EQ(0, ranges_not_as(ALIVE, self->bar, self->range, map, 0, self->len));
	memory_off(&self->dut);
	EXPECT_EQ(0, ranges_not_as(DEAD, self->bar, self->range, map, 0, self->len));
	memory_on(&self->dut);
	EXPECT_EQ(0, ranges_not_as(ALIVE, self->bar, self->range, map, 0, self->len));
	vfio_pci_dma_buf_revoke(self->dut.device, self->fd);
	EXPECT_EQ(0, ranges_not_as(DEAD, self->bar, self->range, map, 0, self->len));
	unmap(map, self->len);
}

BAR_TEST(ranges, parts)
{
	u64 off, len;

	for (off = 0; off < self->len; off += page) {
		for (len = page; off + len <= self->len; len += page) {
			void *map = map_fd(self->fd, NULL, off, len);

			EXPECT_EQ(0, ranges_not_as(ALIVE, self->bar, self->range, map,
						   off, len));
			unmap(map, len);
		}
	}
	EXPECT_EQ(EINVAL, mmap_errno(self->fd, 0, self->len + page, PROT_READ,
				     MAP_SHARED));
}

/* A hole where one range may end */
BAR_TEST(ranges, cut_up)
{
	u64 at;

	for (at = page; at < self->len - page; at += page) {
		void *map = map_fd(self->fd, NULL, 0, self->len);

		unmap(map + at, page);
		EXPECT_EQ(0, ranges_not_as(ALIVE, self->bar, self->range, map, 0, at));
		EXPECT_EQ(0, ranges_not_as(ALIVE, self->bar, self->range,
					   map + at + page, at + page,
					   self->len - at - page));
		unmap(map, at);
		unmap(map + at + page, self->len - at - page);
	}
}

/* iommufd takes one range alone */
BAR_TEST(ranges, iommufd)
{
	u64 iova;

	EXPECT_EQ(-EOPNOTSUPP, map_iova(&self->dut, self->fd, self->len, &iova));
}

/* ---- Mappings that are cut up and moved, and huge ones */

BAR_TEST(lent, cut_up)
{
	struct dut *dut = &self->dut;
	struct bar *bar = self->bar;
	struct piece piece[4];
	void *map, *to;

	dut->lend = true;
	map = map_bar(dut, bar, 4 * page, 12 * page);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 4 * page, 12 * page));
	unmap(map + 3 * page, page);
	ASSERT_EQ(0, mprotect(map + 6 * page, page, PROT_READ));
	to = mmap_reserve(2 * page, SZ_2M, page);
	ASSERT_EQ(to, mremap(map + 8 * page, 2 * page, 2 * page,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
	EXPECT_EQ(MAP_FAILED, mremap(to, 2 * page, 4 * page, MREMAP_MAYMOVE));
	EXPECT_EQ(EFAULT, errno);
	piece[0] = (struct piece) { map, 4 * page, 3 * page };
	piece[1] = (struct piece) { map + 4 * page, 8 * page, 4 * page };
	piece[2] = (struct piece) { to, 12 * page, 2 * page };
	piece[3] = (struct piece) { map + 10 * page, 14 * page, 2 * page };
	EXPECT_EQ(0, check_pieces(dut, bar, piece, 4));
	unmap(map, 12 * page);
	EXPECT_EQ(0, check_pieces(dut, bar, &piece[2], 1));
	unmap(to, 2 * page);
}

FIXTURE(huge) {
	struct dut dut;
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

FIXTURE_VARIANT_ADD(huge, short) {
	.window = { .align = SZ_2M, .len = SZ_2M - SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, tail) {
	.window = { .align = SZ_2M, .len = SZ_2M + SZ_4K },
};

FIXTURE_VARIANT_ADD(huge, aligned_1g) { .window = { .align = SZ_1G } };
FIXTURE_VARIANT_ADD(huge, offset_misaligned_1g) {
	.window = { .align = SZ_1G, .off = SZ_2M },
};

FIXTURE_SETUP(huge)
{
	const char *reason;

	dut_open(&self->dut, MODE_IOMMUFD);
	self->dut.lend = true;
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
	long want = expected_faults(w), got = faults_of_reading(w);

	ksft_print_msg("%ld faults, expected %ld\n", got, want);
	EXPECT_LE(want, got);
	EXPECT_GE(want + OTHER_FAULTS, got);
	memory_off(&self->dut);
	EXPECT_EQ(0, not_as(DEAD, w->bar, w->map, w->off, w->len));
	memory_on(&self->dut);
	EXPECT_EQ(0, not_as(ALIVE, w->bar, w->map, w->off, w->len));
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

/*
 * Two ranges of 2 MiB, of which the second comes first: two entries. From the middle of
 * the one to the middle of the other: none that is huge, as none is of one range.
 */
BAR_TEST(lent, huge_ranges)
{
	const struct vfio_region_dma_range range[2] = { { SZ_2M, SZ_2M }, { 0, SZ_2M } };
	struct bar *bar = biggest(&self->dut, true);
	long before, faults;
	void *map;
	int fd;

	if (page != SZ_4K || access("/sys/kernel/mm/transparent_hugepage", F_OK) ||
	    !bar || bar->len < SZ_4M)
		SKIP(return, "no huge pages of 2 MiB, or no BAR of 4 MiB that is RAM");
	fd = __vfio_pci_dma_buf_export(self->dut.device, bar->index,
				       O_RDWR | O_CLOEXEC, 2, range);
	ASSERT_LE(0, fd);
	map = map_fd(fd, mmap_reserve(SZ_4M, SZ_2M, 0), 0, SZ_4M);
	before = minor_faults();
	EXPECT_EQ(0, not_as(ALIVE, bar, map, SZ_2M, SZ_2M));
	EXPECT_EQ(0, not_as(ALIVE, bar, map + SZ_2M, 0, SZ_2M));
	faults = minor_faults() - before;
	EXPECT_LE(2, faults);
	EXPECT_GE(2 + OTHER_FAULTS, faults);
	unmap(map, SZ_4M);

	map = map_fd(fd, mmap_reserve(SZ_2M, SZ_2M, 0), SZ_1M, SZ_2M);
	before = minor_faults();
	EXPECT_EQ(0, not_as(ALIVE, bar, map, SZ_2M + SZ_1M, SZ_1M));
	EXPECT_EQ(0, not_as(ALIVE, bar, map + SZ_1M, 0, SZ_1M));
	faults = minor_faults() - before;
	EXPECT_LE(16, faults);
	unmap(map, SZ_2M);
	close(fd);
}

/* ---- How long they live */

/* The mapping does without its fd, but not without the device */
BAR_TEST(lent, device_is_closed)
{
	struct dut *dut = &self->dut;
	int fd = lend(dut, self->bar, 0, 4 * page), derived = derive(fd, O_RDONLY), copy;
	void *map = map_fd(fd, NULL, 0, 4 * page), *again;
	u64 iova;

	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 4 * page));
	copy = dup(fd);
	close(fd);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 4 * page));
	close_fds(dut->device);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, 4 * page));
	EXPECT_EQ(ENODEV, mmap_errno(copy, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(ENODEV, mmap_errno(derived, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ((off_t)(4 * page), lseek(copy, 0, SEEK_END));
	dut_close(dut);

	/* Another user of the device has nothing to do with them */
	dut_open(dut, MODE_IOMMUFD);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, 4 * page));
	EXPECT_EQ(ENODEV, mmap_errno(copy, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-ENODEV, map_iova(dut, copy, 4 * page, &iova));
	EXPECT_EQ(-ENODEV, take_back(dut, copy));
	EXPECT_EQ(-ENODEV, take_back(dut, derived));
	fd = lend(dut, self->bar, 0, 4 * page);
	again = map_fd(fd, NULL, 0, 4 * page);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, again, 0, 4 * page));
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, 4 * page));
	unmap(again, 4 * page);
	unmap(map, 4 * page);
	close(fd);
	close(copy);
	close(derived);
}

BAR_TEST(lent, cycles)
{
	long bufs = dma_bufs(), files = open_files();
	struct dut *dut = &self->dut;
	int i;

	dut->lend = true;
	for (i = 0; i < rounds(1000); i++) {
		u64 off = i % 16 * page;
		int fd = lend(dut, self->bar, off, page);
		void *map = map_fd(fd, NULL, 0, page);

		if (i % 2)
			close(fd);
		ASSERT_EQ(0, not_as(ALIVE, self->bar, map, off, page));
		if (i % 4 == 2)
			vfio_pci_dma_buf_revoke(dut->device, fd);
		if (!(i % 2))
			close(fd);
		unmap(map, page);
	}
	EXPECT_EQ(bufs, dma_bufs());
	/* Others may open some at the same time */
	EXPECT_GE(files + 100, open_files());
}

BAR_TEST(lent, no_more_fds)
{
	const struct vfio_region_dma_range range = { 0, page };
	struct rlimit old, none = {};
	long bufs = dma_bufs();
	int ret;

	ASSERT_EQ(0, getrlimit(RLIMIT_NOFILE, &old));
	none.rlim_max = old.rlim_max;
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &none));
	ret = __vfio_pci_dma_buf_export(self->dut.device, self->bar->index,
					O_RDWR | O_CLOEXEC, 1, &range);
	ASSERT_EQ(0, setrlimit(RLIMIT_NOFILE, &old));
	EXPECT_EQ(-EMFILE, ret);
	EXPECT_EQ(bufs, dma_bufs());
}

/* Export, mapping, first touch and revoke, with the nth allocation of each failing */
BAR_TEST(lent, without_memory)
{
	struct vfio_region_dma_range range = { 0, page };
	struct dut *dut = &self->dut;
	long bufs = dma_bufs();
	bool left = false;
	int nth, fd, state, ret;
	void *map;

	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (nth = 1; !left; nth++) {
		fail_nth(nth);
		fd = __vfio_pci_dma_buf_export(dut->device, self->bar->index,
					       O_RDWR | O_CLOEXEC, 1, &range);
		left = fail_nth_left();
		EXPECT_TRUE(fd >= 0 || fd == -ENOMEM || fd == -ENFILE || fd == -EMFILE ||
			    fd == -EFAULT) TH_LOG("%d: %s", nth, strerror(-fd));
		if (fd >= 0)
			close(fd);
		ASSERT_GT(200, nth);
	}
	ksft_print_msg("%d allocations in an export\n", nth - 2);
	EXPECT_LT(3, nth);
	for (nth = 1, left = false; !left; nth++) {
		void *at = mmap_reserve(page, SZ_1G, 0);

		fd = lend(dut, self->bar, 0, page);
		fail_nth(nth);
		map = mmap(at, page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
			   0);
		state = map == MAP_FAILED ? DEAD :
			word_state(self->bar, map, 0, false);
		left = fail_nth_left();
		EXPECT_NE(WRONG, state);
		if (map != MAP_FAILED) {
			EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, page));
			/* There is nothing to fail in it, but for the argument */
			fail_nth(1);
			ret = take_back(dut, fd);
			fail_nth_left();
			if (ret == -EFAULT)
				ret = take_back(dut, fd);
			EXPECT_EQ(0, ret);
			EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
		}
		munmap(at, page);
		close(fd);
		ASSERT_GT(200, nth);
	}
	fail_nth_restore();
	ksft_print_msg("%d allocations in a mapping and its first touch\n", nth - 2);
	EXPECT_EQ(bufs, dma_bufs());
}

/* As with the mapping of a BAR nobody gets pages, or anything, from outside */
BAR_TEST(lent, access_from_outside)
{
	void *map;

	self->dut.lend = true;
	map = map_bar(&self->dut, self->bar, 0, page);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, page));
	EXPECT_EQ(EIO, proc_mem_errno(map));
	EXPECT_EQ(EFAULT, process_vm_errno(map, false));
	unmap(map, page);
}

/* ---- Out of reach for a time */

FIXTURE_VARIANT(temporary) {
	const struct revoke_kind *kind;
};

FIXTURE(temporary) {
	struct dut dut[1 + MAX_SIBLINGS];
	int nr;
	struct bar *bar;
};

FIXTURE_VARIANT_ADD(temporary, memory) { .kind = &revoke_kinds[REVOKE_MEMORY] };
FIXTURE_VARIANT_ADD(temporary, d3hot) { .kind = &revoke_kinds[REVOKE_D3HOT] };
FIXTURE_VARIANT_ADD(temporary, flr) { .kind = &revoke_kinds[REVOKE_FLR] };
FIXTURE_VARIANT_ADD(temporary, reset) { .kind = &revoke_kinds[REVOKE_RESET] };
FIXTURE_VARIANT_ADD(temporary, hot_reset) { .kind = &revoke_kinds[REVOKE_HOT_RESET] };
FIXTURE_VARIANT_ADD(temporary, low_power) { .kind = &revoke_kinds[REVOKE_LOW_POWER] };

FIXTURE_VARIANT_ADD(temporary, low_power_woken_by_host) {
	.kind = &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_HOST]
};

FIXTURE_VARIANT_ADD(temporary, low_power_woken_by_ioctl) {
	.kind = &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_IOCTL]
};

FIXTURE_VARIANT_ADD(temporary, sysfs_reset) { .kind = &revoke_kinds[REVOKE_SYSFS_RESET] };

FIXTURE_SETUP(temporary)
{
	int i;

	self->nr = open_with_siblings(self->dut, variant->kind);
	if (!self->nr)
		SKIP(return, "%s has no such thing", device_bdf);
	self->bar = sixteen_pages(self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
	for (i = 0; i < self->nr; i++) {
		self->dut[i].lend = true;
		map_windows(&self->dut[i]);
	}
}

FIXTURE_TEARDOWN(temporary)
{
	while (self->nr)
		dut_close(&self->dut[--self->nr]);
}

/* An export, too */
static bool woken_by_ioctl(const struct revoke_kind *kind)
{
	return kind == &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_HOST] ||
		kind == &revoke_kinds[REVOKE_LOW_POWER_WOKEN_BY_IOCTL];
}

static void enter_and_leave(const struct revoke_kind *kind, struct dut *dut)
{
	kind->enter(dut);
	if (kind->leave)
		kind->leave(dut);
}

BAR_TEST(temporary, dead_and_alive_again)
{
	struct dut *dut = self->dut;
	int round;

	EXPECT_EQ(0, all_not_as(ALIVE, dut, self->nr));
	for (round = 0; round < 2; round++) {
		variant->kind->enter(dut);
		if (variant->kind->leave) {
			EXPECT_EQ(0, all_not_as(DEAD, dut, self->nr));
			variant->kind->leave(dut);
		}
		EXPECT_EQ(0, all_not_as(ALIVE, dut, self->nr));
	}
	/* With the memory off, not before that is on */
	memory_off(dut);
	enter_and_leave(variant->kind, dut);
	if (variant->kind->leave != memory_on)
		EXPECT_DEAD(dut);
	memory_on(dut);
	EXPECT_EQ(0, all_not_as(ALIVE, dut, self->nr));
}

/* Exported and mapped meanwhile: to be alive when the rest is */
BAR_TEST(temporary, lent_meanwhile)
{
	struct dut *dut = self->dut;
	int fd;
	void *map, *early;

	fd = lend(dut, self->bar, page, page);
	early = map_fd(fd, NULL, 0, page);
	variant->kind->enter(dut);
	map = map_fd(fd, NULL, 0, page);
	if (variant->kind->leave) {
		if (!woken_by_ioctl(variant->kind)) {
			unmap_windows(dut);
			map_windows(dut);
		}
		EXPECT_DEAD(dut);
		EXPECT_EQ(0, not_as(DEAD, self->bar, map, page, page));
		EXPECT_EQ(0, not_as(DEAD, self->bar, early, page, page));
		variant->kind->leave(dut);
	}
	EXPECT_ALIVE(dut);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, page, page));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, early, page, page));
	unmap(map, page);
	unmap(early, page);
	close(fd);
}

/* What has been taken back for good stays so, before, within and after it */
BAR_TEST(temporary, does_not_revive)
{
	struct dut *dut = self->dut;
	int before = lend(dut, self->bar, 0, page), meanwhile = -1;
	void *map = map_fd(before, NULL, 0, page), *other = NULL;

	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, page));
	vfio_pci_dma_buf_revoke(dut->device, before);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	if (variant->kind->leave) {
		meanwhile = lend(dut, self->bar, page, page);
		other = map_fd(meanwhile, NULL, 0, page);
		EXPECT_EQ(0, not_as(ALIVE, self->bar, other, page, page));
	}
	variant->kind->enter(dut);
	if (variant->kind->leave) {
		EXPECT_EQ(0, not_as(DEAD, self->bar, other, page, page));
		vfio_pci_dma_buf_revoke(dut->device, meanwhile);
		EXPECT_EQ(-EBADFD, take_back(dut, meanwhile));
		EXPECT_EQ(-EBADFD, take_back(dut, before));
		EXPECT_EQ(ENODEV, mmap_errno(meanwhile, 0, page, PROT_READ, MAP_SHARED));
		if (!woken_by_ioctl(variant->kind))
			variant->kind->leave(dut);
		else
			EXPECT_TRUE(was_woken());
	}
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	EXPECT_EQ(-EBADFD, take_back(dut, before));
	EXPECT_EQ(ENODEV, mmap_errno(before, 0, page, PROT_READ, MAP_SHARED));
	if (other) {
		EXPECT_EQ(0, not_as(DEAD, self->bar, other, page, page));
		unmap(other, page);
		close(meanwhile);
	}
	EXPECT_EQ(0, all_not_as(ALIVE, dut, self->nr));
	unmap(map, page);
	close(before);
}

/* Whoever reads meanwhile gets what is there, or a SIGBUS */
BAR_TEST(temporary, readers)
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
		EXPECT_EQ(0UL, reader[n].count[0]);
		EXPECT_LT(0UL, reader[n].count[2]);
	}
	EXPECT_EQ(0, all_not_as(ALIVE, self->dut, self->nr));
}

/*
 * An IOVA that has lost its dma-buf does not get it again by itself: it is to be
 * unmapped and mapped.
 */
BAR_TEST(temporary, iova)
{
	struct dut *dut = self->dut;
	int fd = lend(dut, self->bar, 0, page);
	u64 iova, other;

	ASSERT_EQ(0, map_iova(dut, fd, page, &iova));
	variant->kind->enter(dut);
	if (variant->kind->leave) {
		EXPECT_EQ(-ENODEV, map_iova(dut, fd, page, &other));
		variant->kind->leave(dut);
	}
	EXPECT_EQ(0, unmap_iova(dut, iova, page));
	EXPECT_EQ(0, map_iova(dut, fd, page, &iova));
	EXPECT_EQ(0, unmap_iova(dut, iova, page));
	close(fd);
}

/* ---- Revoked for good */

FIXTURE(revoke) {
	struct dut dut;
	struct bar *bar;
	int fd;
	void *map;
	u64 len;
};

FIXTURE_SETUP(revoke)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
	self->len = 4 * page;
	self->fd = lend(&self->dut, self->bar, 0, self->len);
	self->map = map_fd(self->fd, NULL, 0, self->len);
	ASSERT_EQ(0, not_as(ALIVE, self->bar, self->map, 0, self->len));
}

FIXTURE_TEARDOWN(revoke)
{
	unmap(self->map, self->len);
	close(self->fd);
	dut_close(&self->dut);
}

#define EXPECT_LENT(_want) \
	EXPECT_EQ(0, not_as(_want, self->bar, self->map, 0, self->len))

static int revoke_ioctl(int device, u32 argsz, u32 flags, void *data, size_t size)
{
	struct {
		struct vfio_device_feature feature;
		u8 data[16];
	} arg = {
		.feature = { argsz, flags | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE },
	};

	memcpy(arg.data, data, size);
	return ioctl(device, VFIO_DEVICE_FEATURE, &arg) ? errno : 0;
}

BAR_TEST(revoke, argument)
{
	const u32 get = VFIO_DEVICE_FEATURE_GET, set = VFIO_DEVICE_FEATURE_SET;
	const u32 probe = VFIO_DEVICE_FEATURE_PROBE;
	int device = self->dut.device->fd, *fd = &self->fd;
	char *pages;

	EXPECT_EQ(0, revoke_ioctl(device, 8, probe, fd, 4));
	EXPECT_EQ(0, revoke_ioctl(device, 8, probe | set, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 8, probe | get, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 8, probe | get | set, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 12, get, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 12, get | set, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 12, 0, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 8, set, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 11, set, fd, 4));
	EXPECT_EQ(EINVAL, revoke_ioctl(device, 0, set, fd, 4));
	EXPECT_LENT(ALIVE);

	/* The head can be read, what follows it not */
	pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)pages);
	unmap(pages + page, page);
	*(struct vfio_device_feature *)(pages + page - 8) = (struct vfio_device_feature) {
		12, set | VFIO_DEVICE_FEATURE_DMA_BUF_REVOKE,
	};
	EXPECT_EQ(-1, ioctl(device, VFIO_DEVICE_FEATURE, pages + page - 8));
	EXPECT_EQ(EFAULT, errno);
	unmap(pages, page);
	EXPECT_LENT(ALIVE);

	/* More than is known of is left alone */
	EXPECT_EQ(0, revoke_ioctl(device, 16, set, fd, 4));
	EXPECT_LENT(DEAD);
}

BAR_TEST(revoke, other_fds)
{
	char path[32];
	int fd[2];

	EXPECT_EQ(-EBADF, take_back(&self->dut, -1));
	EXPECT_EQ(-EBADF, take_back(&self->dut, 1000000));
	ASSERT_EQ(0, pipe(fd));
	EXPECT_EQ(-EINVAL, take_back(&self->dut, fd[0]));
	EXPECT_EQ(-EINVAL, take_back(&self->dut, fd[1]));
	close(fd[0]);
	close(fd[1]);
	EXPECT_EQ(-EBADF, take_back(&self->dut, fd[0]));
	EXPECT_EQ(-EINVAL, take_back(&self->dut, self->dut.device->fd));
	EXPECT_EQ(-EINVAL, take_back(&self->dut, self->dut.iommu->iommufd));
	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->fd);
	fd[0] = open(path, O_PATH | O_CLOEXEC);
	ASSERT_LE(0, fd[0]);
	EXPECT_EQ(-EBADF, take_back(&self->dut, fd[0]));
	close(fd[0]);
	EXPECT_LENT(ALIVE);
}

BAR_TEST(revoke, of_another_exporter)
{
	int fd = new_udmabuf();

	if (fd < 0)
		SKIP(return, "no udmabuf");
	EXPECT_EQ(-ENODEV, take_back(&self->dut, fd));
	EXPECT_EQ(0, mmap_errno(fd, 0, page, PROT_READ | PROT_WRITE, MAP_SHARED));
	close(fd);
	EXPECT_LENT(ALIVE);
}

BAR_TEST(revoke, of_another_device)
{
	struct dut other = { .iommu = self->dut.iommu, .shared_iommu = true };

	if (!dma_bdf)
		SKIP(return, "no second device");
	dut_setup(&other, dma_bdf);
	EXPECT_EQ(-ENODEV, take_back(&other, self->fd));
	EXPECT_LENT(ALIVE);
	EXPECT_EQ(0, take_back(&self->dut, self->fd));
	EXPECT_EQ(-ENODEV, take_back(&other, self->fd));
	EXPECT_LENT(DEAD);
	dut_close(&other);
}

BAR_TEST(revoke, all_that_there_is_of_it)
{
	struct dut *dut = &self->dut;
	int alias = lend(dut, self->bar, 0, self->len), zombie = dup(self->fd), again;
	void *other = map_fd(alias, NULL, 0, self->len), *new;
	void *direct = map_bar(dut, self->bar, 0, self->len);
	void *part = map_fd(self->fd, NULL, page, page);
	u64 iova, off;
	int fd;

	EXPECT_EQ(0, take_back(dut, self->fd));
	EXPECT_LENT(DEAD);
	for (off = 0; off < self->len; off += page)
		EXPECT_FALSE(poke(self->map + off, 0));
	EXPECT_EQ(0, not_as(DEAD, self->bar, part, page, page));
	EXPECT_EQ(ENODEV, mmap_errno(self->fd, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(ENODEV, mmap_errno(zombie, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-ENODEV, map_iova(dut, self->fd, self->len, &iova));
	EXPECT_EQ(-EBADFD, take_back(dut, self->fd));
	EXPECT_EQ(-EBADFD, take_back(dut, zombie));
	/* One that is derived of it is no way back */
	fd = derive(zombie, O_RDWR);
	ASSERT_LE(0, fd);
	EXPECT_EQ(ENODEV, mmap_errno(fd, 0, page, PROT_READ, MAP_SHARED));
	EXPECT_EQ(-EBADFD, take_back(dut, fd));
	close(fd);

	/* Others have what they had */
	EXPECT_EQ(0, not_as(ALIVE, self->bar, other, 0, self->len));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, direct, 0, self->len));
	EXPECT_EQ(0, map_iova(dut, alias, self->len, &iova));
	EXPECT_EQ(0, unmap_iova(dut, iova, self->len));

	/* And it can be lent again */
	again = lend(dut, self->bar, 0, self->len);
	new = map_fd(again, NULL, 0, self->len);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, new, 0, self->len));
	EXPECT_LENT(DEAD);
	EXPECT_EQ(0, take_back(dut, again));
	EXPECT_EQ(0, not_as(DEAD, self->bar, new, 0, self->len));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, other, 0, self->len));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, direct, 0, self->len));

	unmap(part, page);
	unmap(other, self->len);
	unmap(direct, self->len);
	unmap(new, self->len);
	close(alias);
	close(again);
	close(zombie);
}

/* By any fd of it, and for the mappings of all */
BAR_TEST(revoke, by_any_fd)
{
	static const u32 flags[] = { O_RDONLY, O_WRONLY, O_RDWR };
	struct dut *dut = &self->dut;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		int fd = lend(dut, self->bar, 0, self->len);
		int derived = derive(fd, flags[i]), reader = derive(fd, O_RDONLY);
		void *map = map_fd(fd, NULL, 0, self->len);
		void *other = mmap(NULL, self->len, PROT_READ, MAP_SHARED, reader, 0);

		ASSERT_LE(0, derived);
		ASSERT_NE(MAP_FAILED, other);
		EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, self->len));
		EXPECT_EQ(0, not_as(ALIVE, self->bar, other, 0, self->len));
		EXPECT_EQ(0, take_back(dut, derived));
		EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, self->len));
		EXPECT_EQ(0, not_as(DEAD, self->bar, other, 0, self->len));
		EXPECT_EQ(-EBADFD, take_back(dut, fd));
		EXPECT_EQ(ENODEV, mmap_errno(reader, 0, page, PROT_READ, MAP_SHARED));
		unmap(map, self->len);
		unmap(other, self->len);
		close(fd);
		close(derived);
		close(reader);
	}
	EXPECT_LENT(ALIVE);
}

/*
 * Another process: it has one mapping by fork(), and another one of an fd that it is
 * sent, and says how many pages are not as wanted.
 */
static int borrower_main(struct bar *bar, void *forked, u64 len, int sock)
{
	int fd = receive_fd(sock), want, wrong;
	void *map = map_fd(fd, NULL, 0, len);

	while (read(sock, &want, sizeof(want)) == sizeof(want)) {
		wrong = not_as(want, bar, forked, 0, len) +
			not_as(want, bar, map, 0, len);
		if (want == DEAD)
			wrong += mmap_errno(fd, 0, page, PROT_READ, MAP_SHARED) !=
				ENODEV;
		if (write(sock, &wrong, sizeof(wrong)) != sizeof(wrong))
			return 1;
	}
	return 0;
}

BAR_TEST(revoke, other_processes)
{
	int sock[2][2], i, status;
	pid_t pid[2];

	/* One that has touched it before fork(), and one that has not */
	for (i = 0; i < 2; i++) {
		void *map = i ? map_fd(self->fd, NULL, 0, self->len) : self->map;

		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock[i]));
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (!pid[i]) {
			close(sock[i][0]);
			if (i)
				close(sock[0][0]);
			close_fds(self->dut.device);
			close(self->fd);
			_exit(borrower_main(self->bar, map, self->len, sock[i][1]));
		}
		close(sock[i][1]);
		send_fd(sock[i][0], self->fd);
		EXPECT_EQ(0, ask_not_as(sock[i][0], ALIVE));
		if (i)
			unmap(map, self->len);
	}
	memory_off(&self->dut);
	memory_on(&self->dut);
	for (i = 0; i < 2; i++)
		EXPECT_EQ(0, ask_not_as(sock[i][0], ALIVE));
	EXPECT_EQ(0, take_back(&self->dut, self->fd));
	EXPECT_LENT(DEAD);
	for (i = 0; i < 2; i++)
		EXPECT_EQ(0, ask_not_as(sock[i][0], DEAD));
	memory_off(&self->dut);
	memory_on(&self->dut);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, ask_not_as(sock[i][0], DEAD));
		close(sock[i][0]);
		ASSERT_EQ(pid[i], waitpid(pid[i], &status, 0));
		EXPECT_EQ(0, status);
	}
}

BAR_TEST(revoke, cut_up_mapping)
{
	struct piece piece[3];
	void *to = mmap_reserve(page, SZ_2M, page);
	void *map = map_fd(self->fd, NULL, 0, self->len);

	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, self->len));
	ASSERT_EQ(to, mremap(map + page, page, page, MREMAP_MAYMOVE | MREMAP_FIXED, to));
	piece[0] = (struct piece) { map, 0, page };
	piece[1] = (struct piece) { to, page, page };
	piece[2] = (struct piece) { map + 2 * page, 2 * page, 2 * page };
	EXPECT_EQ(0, pieces_not_as(ALIVE, self->bar, piece, 3));
	EXPECT_EQ(0, take_back(&self->dut, self->fd));
	EXPECT_EQ(0, pieces_not_as(DEAD, self->bar, piece, 3));
	EXPECT_LENT(DEAD);
	unmap(map, self->len);
	unmap(to, page);
}

/* Nor does an IOVA of it, which stays until it is unmapped */
BAR_TEST(revoke, iova)
{
	struct dut *dut = &self->dut;
	u64 iova, other;
	int again;

	ASSERT_EQ(0, map_iova(dut, self->fd, self->len, &iova));
	EXPECT_EQ(0, take_back(dut, self->fd));
	EXPECT_EQ(-ENODEV, map_iova(dut, self->fd, self->len, &other));
	memory_off(dut);
	memory_on(dut);
	EXPECT_EQ(-ENODEV, map_iova(dut, self->fd, self->len, &other));
	again = lend(dut, self->bar, 0, self->len);
	ASSERT_EQ(0, map_iova(dut, again, self->len, &other));
	EXPECT_NE(iova, other);
	EXPECT_EQ(0, unmap_iova(dut, iova, self->len));
	EXPECT_EQ(0, unmap_iova(dut, other, self->len));
	close(again);
}

/* ---- Page frames that somebody has looked up, which nothing would take back */

FIXTURE(type1) {
	struct dut dut;
	struct bar *bar;
	int fd;
	struct dma_region region;
};

FIXTURE_VARIANT(type1) {
	const char *mode;
	bool touched;
};

FIXTURE_VARIANT_ADD(type1, type1) { .mode = MODE_VFIO_TYPE1_IOMMU };
FIXTURE_VARIANT_ADD(type1, type1_touched) {
	.mode = MODE_VFIO_TYPE1_IOMMU, .touched = true,
};

FIXTURE_VARIANT_ADD(type1, type1v2_touched) {
	.mode = MODE_VFIO_TYPE1V2_IOMMU, .touched = true,
};

FIXTURE_VARIANT_ADD(type1, iommufd_touched) { .mode = MODE_IOMMUFD, .touched = true };

FIXTURE_SETUP(type1)
{
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };

	dut_open(&self->dut, variant->mode);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
	self->fd = lend(&self->dut, self->bar, 0, 4 * page);
	self->region.size = 4 * page;
	self->region.iova = 0xd0000000;
	/* Without a domain iommufd does not look at the memory */
	if (self->dut.iommu->iommufd) {
		attach.pt_id = self->dut.iommu->ioas_id;
		ioctl_assert(self->dut.device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
	}
}

FIXTURE_TEARDOWN(type1)
{
	close(self->fd);
	dut_close(&self->dut);
}

/* By its address, as if it were memory of the borrower's */
BAR_TEST(type1, address)
{
	struct dma_region *region = &self->region;
	int r = derive(self->fd, O_RDONLY);
	void *map = map_fd(self->fd, NULL, 0, 4 * page);
	void *read_only = mmap(NULL, 4 * page, PROT_READ, MAP_SHARED, r, 0);

	ASSERT_NE(MAP_FAILED, read_only);
	if (variant->touched) {
		EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, 4 * page));
		EXPECT_EQ(0, not_as(ALIVE, self->bar, read_only, 0, 4 * page));
	}
	region->vaddr = map;
	EXPECT_EQ(-EFAULT, __iommu_map(self->dut.iommu, region));
	region->vaddr = read_only;
	EXPECT_EQ(-EFAULT, __iommu_map(self->dut.iommu, region));
	unmap(map, 4 * page);
	unmap(read_only, 4 * page);
	close(r);

	/* The lender's own mapping is another thing, but not for iommufd */
	if (self->dut.iommu->iommufd)
		return;
	region->vaddr = map_bar(&self->dut, self->bar, 0, 4 * page);
	ASSERT_EQ(0, __iommu_map(self->dut.iommu, region));
	iommu_unmap(self->dut.iommu, region);
	unmap(region->vaddr, 4 * page);
}

/* ---- Fences that importers have */

/* The ioctls of sw_sync are in no header of the kernel */
struct sw_sync_create_fence_data {
	__u32 value;
	char name[32];
	__s32 fence;
};

#define SW_SYNC_IOC_CREATE_FENCE _IOWR('W', 0, struct sw_sync_create_fence_data)
#define SW_SYNC_IOC_INC		 _IOW('W', 1, __u32)

struct thread {
	pthread_t thread;
	struct dut *dut;
	struct bar *bar;
	int fd, ret;
	atomic_bool done, stop;
	atomic_ulong rounds;
};

static void *revoker_main(void *arg)
{
	struct thread *t = arg;

	t->ret = take_back(t->dut, t->fd);
	atomic_store(&t->done, true);
	return NULL;
}

static void thread_start(struct thread *t, void *(*main)(void *), struct dut *dut,
			 struct bar *bar, int fd)
{
	*t = (struct thread) { .dut = dut, .bar = bar, .fd = fd };
	VFIO_ASSERT_EQ(pthread_create(&t->thread, NULL, main, t), 0);
}

static void thread_join(struct thread *t)
{
	VFIO_ASSERT_EQ(pthread_join(t->thread, NULL), 0);
}

static void thread_stop(struct thread *t)
{
	atomic_store(&t->stop, true);
	thread_join(t);
}

/*
 * An importer that is at work is waited for. Meanwhile the memory is gone already, a
 * touch of it does not wait, nor does anything with other memory.
 */
BAR_TEST(revoke, importer_at_work)
{
	struct sw_sync_create_fence_data data = { .value = 1, .name = "revoke" };
	struct dma_buf_import_sync_file import = { .flags = DMA_BUF_SYNC_WRITE };
	int timeline = open("/sys/kernel/debug/sync/sw_sync", O_RDWR | O_CLOEXEC);
	struct dut *dut = &self->dut;
	struct thread first, second;
	void *other, *direct;
	__u32 one = 1;
	int fd, i;

	if (timeline < 0)
		SKIP(return, "no sw_sync");
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_CREATE_FENCE, &data));
	import.fd = data.fence;
	ASSERT_EQ(0, ioctl(self->fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &import));
	close(data.fence);
	fd = lend(dut, self->bar, 0, self->len);
	other = map_fd(fd, NULL, 0, self->len);
	direct = map_bar(dut, self->bar, 0, self->len);

	thread_start(&first, revoker_main, dut, NULL, self->fd);
	while (mmap_errno(self->fd, 0, page, PROT_READ, MAP_SHARED) != ENODEV)
		usleep(1000);
	/* From the state to the mappings it is not far */
	while (word_state(self->bar, self->map, 0, false) != DEAD)
		usleep(1000);
	thread_start(&second, revoker_main, dut, NULL, self->fd);
	for (i = 0; i < 20; i++) {
		EXPECT_LENT(DEAD);
		EXPECT_EQ(0, not_as(ALIVE, self->bar, other, 0, self->len));
		EXPECT_EQ(0, not_as(ALIVE, self->bar, direct, 0, self->len));
		usleep(10000);
	}
	EXPECT_FALSE(atomic_load(&first.done));
	EXPECT_FALSE(atomic_load(&second.done));
	ASSERT_EQ(0, ioctl(timeline, SW_SYNC_IOC_INC, &one));
	thread_join(&first);
	thread_join(&second);
	EXPECT_EQ(0, first.ret);
	EXPECT_EQ(-EBADFD, second.ret);
	EXPECT_LENT(DEAD);
	EXPECT_EQ(0, not_as(ALIVE, self->bar, other, 0, self->len));
	unmap(other, self->len);
	unmap(direct, self->len);
	close(fd);
	close(timeline);
}

/* ---- At the same time */

#define NR_THREADS 4

/* Exactly one of them does it */
BAR_TEST(revoke, several_at_once)
{
	struct thread t[NR_THREADS];
	int i, n, ok;

	for (n = 0; n < rounds(200); n++) {
		int fd = lend(&self->dut, self->bar, 0, self->len);
		void *map = map_fd(fd, NULL, 0, self->len);

		ASSERT_EQ(0, not_as(ALIVE, self->bar, map, 0, self->len));
		for (i = 0; i < NR_THREADS; i++)
			thread_start(&t[i], revoker_main, &self->dut, NULL, fd);
		for (i = ok = 0; i < NR_THREADS; i++) {
			thread_join(&t[i]);
			ok += !t[i].ret;
			if (t[i].ret)
				EXPECT_EQ(-EBADFD, t[i].ret);
		}
		ASSERT_EQ(1, ok);
		ASSERT_EQ(0, not_as(DEAD, self->bar, map, 0, self->len));
		unmap(map, self->len);
		close(fd);
	}
	EXPECT_LENT(ALIVE);
}

static void *reset_main(void *arg)
{
	struct thread *t = arg;

	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		if (has_reset(t->dut))
			reset(t->dut);
		usleep(1000);
	}
	return NULL;
}

/* As the fds of a process go when it ends, which is no reason for anything */
static void *hot_reset_main(void *arg)
{
	struct thread *t = arg;
	int ret, busy = 0;

	while (!atomic_load(&t->stop)) {
		ret = try_hot_reset(t->dut);
		if (ret == -EBUSY || ret == -EAGAIN) {
			t->ret = ++busy > t->ret ? busy : t->ret;
			usleep(200);
			continue;
		}
		VFIO_ASSERT_TRUE(!ret || ret == -ENOTTY);
		busy = 0;
		atomic_fetch_add(&t->rounds, 1);
		usleep(1000);
	}
	return NULL;
}

static void *memory_main(void *arg)
{
	struct thread *t = arg;

	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		memory_off(t->dut);
		usleep(200);
		memory_on(t->dut);
		usleep(200);
	}
	return NULL;
}

static void *iommufd_main(void *arg)
{
	struct thread *t = arg;
	u64 iova;

	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		int fd = lend(t->dut, t->bar, 8 * page, page), ret;
		struct thread revoker;

		thread_start(&revoker, revoker_main, t->dut, NULL, fd);
		ret = map_iova(t->dut, fd, page, &iova);
		VFIO_ASSERT_TRUE(!ret || ret == -ENODEV, "%s\n", strerror(-ret));
		thread_join(&revoker);
		VFIO_ASSERT_EQ(revoker.ret, 0);
		if (!ret)
			VFIO_ASSERT_EQ(unmap_iova(t->dut, iova, page), 0);
		close(fd);
	}
	return NULL;
}

/* The device goes from one domain to another, with what is mapped in them */
static void *attach_main(void *arg)
{
	struct thread *t = arg;
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_destroy destroy = { .size = sizeof(destroy) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct vfio_device_detach_iommufd_pt detach = { .argsz = sizeof(detach) };
	int iommufd = t->dut->iommu->iommufd;

	ioctl_assert(iommufd, IOMMU_IOAS_ALLOC, &alloc);
	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		attach.pt_id = t->dut->iommu->ioas_id;
		ioctl_assert(t->dut->device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
		attach.pt_id = alloc.out_ioas_id;
		ioctl_assert(t->dut->device->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
	}
	ioctl_assert(t->dut->device->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach);
	destroy.id = alloc.out_ioas_id;
	ioctl_assert(iommufd, IOMMU_DESTROY, &destroy);
	return NULL;
}

/* Others that lend, map, touch and take back */
static void *lender_main(void *arg)
{
	struct thread *t = arg;

	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		int fd = lend(t->dut, t->bar, 12 * page, page);
		void *map = map_fd(fd, NULL, 0, page);

		VFIO_ASSERT_NE(word_state(t->bar, map, 12 * page, false), WRONG);
		if (atomic_load(&t->rounds) % 2)
			VFIO_ASSERT_EQ(take_back(t->dut, fd), 0);
		close(fd);
		unmap(map, page);
	}
	return NULL;
}

FIXTURE(against) {
	struct dut dut;
	struct bar *bar;
};

/* @nr threads beside those that revoke and touch */
FIXTURE_VARIANT(against) {
	void *(*main)(void *arg);
	int nr;
	bool (*supported)(struct dut *dut);
};

static bool has_hot_reset(struct dut *dut)
{
	struct hot_reset_set set;

	return get_hot_reset_set(dut, &set);
}

FIXTURE_VARIANT_ADD(against, memory) { .main = memory_main, .nr = 1 };
FIXTURE_VARIANT_ADD(against, reset) {
	.main = reset_main, .nr = 1, .supported = has_reset,
};

FIXTURE_VARIANT_ADD(against, hot_reset) {
	.main = hot_reset_main, .nr = 1, .supported = has_hot_reset,
};

FIXTURE_VARIANT_ADD(against, iommufd) { .main = iommufd_main, .nr = 2 };
FIXTURE_VARIANT_ADD(against, attach) { .main = attach_main, .nr = 1 };
FIXTURE_VARIANT_ADD(against, lenders) { .main = lender_main, .nr = 3 };

FIXTURE_SETUP(against)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
	if (variant->supported && !variant->supported(&self->dut))
		SKIP(return, "%s has no such thing", device_bdf);
}

FIXTURE_TEARDOWN(against)
{
	dut_close(&self->dut);
}

BAR_TEST(against, revoke)
{
	struct dut *dut = &self->dut;
	struct thread t[3];
	struct reader reader;
	int i, n, tries = 0;
	time_t end;
	u64 iova;

	map_window(dut, self->bar, 0, page);
	dut->lend = true;
	map_window(dut, self->bar, 4 * page, 4 * page);
	reader_start(&reader, dut);
	for (i = 0; i < variant->nr; i++)
		thread_start(&t[i], variant->main, dut, self->bar, -1);
	/* A hot reset can take seconds, and all of this waits for it */
	end = time(NULL) + 10 * factor("VMTEST_SCALE");
	for (n = 0; n < 5 || (n < rounds(200) && time(NULL) < end) ||
	     !atomic_load(&t[0].rounds); n++) {
		int fd = lend(dut, self->bar, 0, 4 * page), ret;
		void *map = map_fd(fd, NULL, 0, 4 * page);

		for (i = 0; i < 4; i++)
			ASSERT_NE(WRONG, word_state(self->bar, map + i * page, i * page,
						    false));
		ret = map_iova(dut, fd, 4 * page, &iova);
		ASSERT_TRUE(!ret || ret == -ENODEV) TH_LOG("%s", strerror(-ret));
		ASSERT_EQ(0, take_back(dut, fd));
		ASSERT_EQ(0, not_as(DEAD, self->bar, map, 0, 4 * page));
		ASSERT_EQ(-EBADFD, take_back(dut, fd));
		if (!ret)
			ASSERT_EQ(0, unmap_iova(dut, iova, 4 * page));
		unmap(map, 4 * page);
		close(fd);
	}
	for (i = 0; i < variant->nr; i++) {
		thread_stop(&t[i]);
		tries = t[i].ret;
	}
	reader_stop(&reader);
	ksft_print_msg("%d rounds, %lu of the other, at most %d tries\n", n,
		       atomic_load(&t[0].rounds), tries);
	EXPECT_EQ(0UL, reader.count[0]);
	EXPECT_LT(0UL, reader.count[2]);
	EXPECT_ALIVE(dut);
}

/* New mappings, and the end of the device, while one is taken back */
static void *mapper_main(void *arg)
{
	struct thread *t = arg;

	for (; !atomic_load(&t->stop); atomic_fetch_add(&t->rounds, 1)) {
		void *map = mmap(NULL, page, PROT_READ, MAP_SHARED, t->fd, 0);

		if (map == MAP_FAILED) {
			VFIO_ASSERT_EQ(errno, ENODEV);
			break;
		}
		VFIO_ASSERT_NE(word_state(t->bar, map, 0, false), WRONG);
		unmap(map, page);
	}
	return NULL;
}

BAR_TEST(lent, mmap_and_the_end)
{
	struct dut *dut = &self->dut;
	struct thread t[3];
	int i, n;

	for (n = 0; n < rounds(30); n++) {
		int fd = lend(dut, self->bar, 0, page);
		void *map = map_fd(fd, NULL, 0, page);

		for (i = 0; i < 2; i++)
			thread_start(&t[i], mapper_main, NULL, self->bar, fd);
		while (!atomic_load(&t[0].rounds))
			sched_yield();
		if (n % 3)
			thread_start(&t[2], revoker_main, dut, NULL, fd);
		if (n % 3 == 1)
			thread_join(&t[2]);
		/* By one fd less in the third case */
		if (n % 3 == 2) {
			thread_join(&t[2]);
			ASSERT_EQ(0, t[2].ret);
		}
		if (!(n % 3) || n % 2) {
			dut_close(dut);
			ASSERT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
			dut_open(dut, MODE_IOMMUFD);
		}
		for (i = 0; i < 2; i++)
			thread_join(&t[i]);
		ASSERT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
		unmap(map, page);
		close(fd);
	}
}

/*
 * ---- The promise: once REVOKE has returned nobody sees what the lender writes
 *
 * Holders of each kind touch the page without a break. The lender revokes it, writes
 * another word into it, and waits until each of them has had a SIGBUS.
 */
#define SECRET 0x5ec4e7

enum { BY_DUP, BY_DERIVE, BY_FORK, BY_SOCKET, NR_HOLDERS };

struct holder {
	atomic_int mapped, dead;	/* The round in which it was */
	atomic_int seen;		/* The secret, how often */
	atomic_ulong alive;
	pthread_t thread;
	int fd, sock;
	struct promise *promise;
};

struct promise {
	atomic_int round;
	atomic_bool stop;
	struct holder holder[NR_HOLDERS];
};

static void hold(struct holder *h, const void *map, int round)
{
	u32 word;

	while (peek(map, &word)) {
		if (word == SECRET)
			atomic_fetch_add(&h->seen, 1);
		atomic_fetch_add(&h->alive, 1);
		atomic_store(&h->mapped, round);
	}
	/* A round in which it never was alive counts as well */
	atomic_store(&h->mapped, round);
	atomic_store(&h->dead, round);
}

static void *holder_main(void *arg)
{
	struct holder *h = arg;
	struct promise *p = h->promise;
	int round = 0;

	while (!atomic_load(&p->stop)) {
		void *map;

		if (atomic_load(&p->round) == round) {
			sched_yield();
			continue;
		}
		round++;
		map = mmap(NULL, page, PROT_READ, MAP_SHARED, h->fd, 0);
		VFIO_ASSERT_NE(map, MAP_FAILED);
		hold(h, map, round);
		unmap(map, page);
	}
	return NULL;
}

/* With a thread more in the process, for its page tables */
static void socket_holder_main(struct holder *h)
{
	int fd, round;

	for (round = 1; (fd = receive_fd(h->sock)) >= 0; round++) {
		void *map = map_fd(fd, NULL, 0, page);

		close(fd);
		hold(h, map, round);
		unmap(map, page);
	}
}

static void wait_for(struct promise *p, bool dead, int round, int first, int last)
{
	int i, tries = 0;

	for (i = first; i <= last; i++) {
		struct holder *h = &p->holder[i];

		while (atomic_load(dead ? &h->dead : &h->mapped) != round) {
			sched_yield();
			VFIO_ASSERT_LT(++tries, 50000000, "holder %d is stuck\n", i);
		}
	}
}

TEST_F_TIMEOUT(lent, promise, 600 * factor("VMTEST_SCALE"))
{
	struct promise *p = mmap(NULL, page, PROT_READ | PROT_WRITE,
				 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int round, i, sock[2], status, nr = rounds(1000);
	struct dut *dut = &self->dut;
	void *direct, *map;
	pid_t pid, child;
	u32 old;

	ASSERT_NE(MAP_FAILED, (void *)p);
	if (!self->bar->known.ram)
		SKIP(return, "no BAR that is RAM");
	direct = map_bar(dut, self->bar, 0, page);
	ASSERT_TRUE(peek(direct, &old));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, sock));
	p->holder[BY_SOCKET].sock = sock[1];
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(sock[0]);
		close_fds(dut->device);
		socket_holder_main(&p->holder[BY_SOCKET]);
		_exit(0);
	}
	close(sock[1]);
	for (i = 0; i < NR_HOLDERS; i++)
		p->holder[i].promise = p;
	for (i = BY_DUP; i <= BY_DERIVE; i++)
		ASSERT_EQ(0, pthread_create(&p->holder[i].thread, NULL, holder_main,
					    &p->holder[i]));

	for (round = 1; round <= nr; round++) {
		int fd = lend(dut, self->bar, 0, page), last = BY_SOCKET;
		bool forked = !(round % 16);

		p->holder[BY_DUP].fd = dup(fd);
		p->holder[BY_DERIVE].fd = derive(fd, O_RDONLY);
		map = map_fd(fd, NULL, 0, page);
		send_fd(sock[0], fd);
		atomic_store(&p->round, round);
		if (forked) {
			ASSERT_TRUE(peek(map, &old));
			child = fork();
			ASSERT_LE(0, child);
			if (!child) {
				hold(&p->holder[BY_FORK], map, round);
				_exit(0);
			}
			wait_for(p, false, round, BY_FORK, BY_FORK);
		}
		wait_for(p, false, round, BY_DUP, BY_DERIVE);
		wait_for(p, false, round, BY_SOCKET, last);
		ASSERT_EQ(0, take_back(dut, fd));
		writel(SECRET, direct);
		ASSERT_FALSE(peek(map, &old));
		wait_for(p, true, round, BY_DUP, BY_DERIVE);
		wait_for(p, true, round, BY_SOCKET, last);
		if (forked) {
			wait_for(p, true, round, BY_FORK, BY_FORK);
			ASSERT_EQ(child, waitpid(child, &status, 0));
			ASSERT_EQ(0, status);
		}
		writel(tag(self->bar, 0), direct);
		unmap(map, page);
		close(p->holder[BY_DUP].fd);
		close(p->holder[BY_DERIVE].fd);
		close(fd);
	}
	atomic_store(&p->stop, true);
	for (i = BY_DUP; i <= BY_DERIVE; i++)
		ASSERT_EQ(0, pthread_join(p->holder[i].thread, NULL));
	close(sock[0]);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	for (i = 0; i < NR_HOLDERS; i++) {
		struct holder *h = &p->holder[i];

		ksft_print_msg("holder %d: %lu times alive\n", i, atomic_load(&h->alive));
		EXPECT_EQ(0, atomic_load(&h->seen));
		EXPECT_LT(0UL, atomic_load(&h->alive));
	}
	unmap(direct, page);
	munmap(p, page);
}

/* ---- The driver goes */

/* It waits for the device to be closed, not for what has been lent */
BAR_TEST(lent, unbind)
{
	struct dut *dut = &self->dut;
	int fd = lend(dut, self->bar, 0, page), dead = lend(dut, self->bar, 0, page);
	void *map = map_fd(fd, NULL, 0, page), *gone = map_fd(dead, NULL, 0, page);
	struct unbinder u;

	EXPECT_EQ(0, not_as(ALIVE, self->bar, gone, 0, page));
	vfio_pci_dma_buf_revoke(dut->device, dead);
	unbinder_start(&u);
	usleep(300000);
	EXPECT_FALSE(atomic_load(&u.done));
	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, page));
	close_fds(dut->device);
	EXPECT_EQ(0, unbinder_join(&u));
	EXPECT_FALSE(sysfs_has(device_bdf, "driver"));
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	EXPECT_EQ(0, not_as(DEAD, self->bar, gone, 0, page));
	EXPECT_EQ(ENODEV, mmap_errno(fd, 0, page, PROT_READ, MAP_SHARED));

	dut_close(dut);
	bind_again();
	dut_open(dut, MODE_IOMMUFD);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	EXPECT_EQ(-ENODEV, take_back(dut, fd));
	unmap(map, page);
	unmap(gone, page);
	close(fd);
	close(dead);
}

/* With somebody touching what is lent all the time */
BAR_TEST(lent, unbind_while_touched)
{
	struct dut *dut = &self->dut;
	struct reader reader;
	struct unbinder u;
	int i;

	for (i = 0; i < rounds(5); i++) {
		dut->lend = true;
		map_window(dut, self->bar, 0, 4 * page);
		EXPECT_ALIVE(dut);
		reader_start(&reader, dut);
		unbinder_start(&u);
		usleep(2000 * i);
		close_fds(dut->device);
		EXPECT_EQ(0, unbinder_join(&u));
		EXPECT_DEAD(dut);
		reader_stop(&reader);
		EXPECT_EQ(0UL, reader.count[0]);
		dut_close(dut);
		bind_again();
		dut_open(dut, MODE_IOMMUFD);
	}
}

static int module_refs(const char *name)
{
	char path[PATH_MAX];
	FILE *file;
	int refs;

	snprintf_assert(path, sizeof(path), "/sys/module/%s/refcnt", name);
	file = fopen(path, "r");
	if (!file)
		return -1;
	if (fscanf(file, "%d", &refs) != 1)
		refs = -1;
	fclose(file);
	return refs;
}

/*
 * What is lent keeps the module that its operations are in, not that of the driver. All
 * devices of that get it back when it is loaded again.
 */
BAR_TEST(lent, driver_is_unloaded)
{
	struct dut *dut = &self->dut;
	int fd = lend(dut, self->bar, 0, page), refs, i;
	void *map = map_fd(fd, NULL, 0, page);

	EXPECT_EQ(0, not_as(ALIVE, self->bar, map, 0, page));
	if (module_refs("vfio_pci") < 0 || module_refs("vfio_pci_core") < 0)
		SKIP(return, "the drivers are no modules");
	close_fds(dut->device);
	/* Others may be just about to close theirs */
	for (i = 0; i < 100 && syscall(SYS_delete_module, "vfio_pci", O_NONBLOCK); i++)
		usleep(10000);
	if (i == 100)
		SKIP(return, "vfio-pci is in use");
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	EXPECT_EQ(ENODEV, mmap_errno(fd, 0, page, PROT_READ, MAP_SHARED));
	refs = module_refs("vfio_pci_core");
	EXPECT_LT(0, refs);
	EXPECT_EQ(-1, syscall(SYS_delete_module, "vfio_pci_core", O_NONBLOCK));
	EXPECT_EQ(EWOULDBLOCK, errno);
	close(fd);
	EXPECT_EQ(0, not_as(DEAD, self->bar, map, 0, page));
	unmap(map, page);
	EXPECT_EQ(refs - 1, module_refs("vfio_pci_core"));
	EXPECT_EQ(0, load_module("vfio-pci"));
	dut_close(dut);
	bind_again();
	dut_open(dut, MODE_IOMMUFD);
}

/* The lender dies in the middle of it */
static void killed_main(int fd)
{
	struct dut dut;
	struct bar *bar;
	int i;

	dut_open(&dut, MODE_IOMMUFD);
	bar = sixteen_pages(&dut);
	if (write(fd, "", 1) != 1)
		_exit(1);
	for (i = 0; ; i++) {
		int buf = lend(&dut, bar, 0, 4 * page);
		void *map = map_fd(buf, NULL, 0, 4 * page);
		u64 iova;

		not_as(ALIVE, bar, map, 0, 4 * page);
		if (i % 2)
			map_iova(&dut, buf, 4 * page, &iova);
		take_back(&dut, buf);
		if (i % 2)
			unmap_iova(&dut, iova, 4 * page);
		unmap(map, 4 * page);
		close(buf);
	}
}

BAR_TEST(lent, lender_is_killed)
{
	long bufs;
	int i;

	dut_close(&self->dut);
	bufs = dma_bufs();
	for (i = 0; i < rounds(10); i++)
		run_and_kill(killed_main, 3000 * (i % 16));
	EXPECT_EQ(bufs, dma_bufs());
	dut_open(&self->dut, MODE_IOMMUFD);
	map_windows(&self->dut);
	EXPECT_ALIVE(&self->dut);
}

/* ---- DMA of another device to what is lent */

FIXTURE(dma) {
	struct dut dut;
	struct bar *bar;
	struct vfio_pci_device *device;
	struct iova_allocator *iovas;
	struct dma_region ram;
	int log;
};

FIXTURE_SETUP(dma)
{
	if (!dma_bdf)
		SKIP(return, "no second device");
	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = biggest(&self->dut, true);
	if (!self->bar)
		SKIP(return, "no BAR that is RAM");
	self->device = vfio_pci_device_init(dma_bdf, self->dut.iommu);
	if (!self->device->driver.ops)
		SKIP(return, "no driver for %s", dma_bdf);
	self->iovas = iova_allocator_init(self->dut.iommu);
	region_setup(self->dut.iommu, self->iovas, &self->device->driver.region, SZ_2M);
	region_setup(self->dut.iommu, self->iovas, &self->ram, page);
	vfio_pci_driver_init(self->device);
	self->log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
}

FIXTURE_TEARDOWN(dma)
{
	close(self->log);
	vfio_pci_driver_remove(self->device);
	region_teardown(self->dut.iommu, &self->ram);
	region_teardown(self->dut.iommu, &self->device->driver.region);
	iova_allocator_cleanup(self->iovas);
	vfio_pci_device_cleanup(self->device);
	dut_close(&self->dut);
}

#define DMA_LEN 512
#define DMA_WORDS (DMA_LEN / 4)

static int copy_out(struct vfio_pci_device *device, struct dma_region *ram, u64 iova,
		    u32 seed)
{
	u32 *word = ram->vaddr;
	int i;

	for (i = 0; i < DMA_WORDS; i++)
		word[i] = seed + i * 0x01010101;
	return vfio_pci_driver_memcpy(device, ram->iova, iova, DMA_LEN);
}

static int words_not_from(const void *map, u32 seed)
{
	int i, wrong = 0;

	for (i = 0; i < DMA_WORDS; i++)
		wrong += readl(map + 4 * i) != seed + i * 0x01010101;
	return wrong;
}

/* Where vmtest.sh expects faults */
static u64 dma_iova = 0xd0000000;

/*
 * Skips what is in the log, and reports whether it was about a fault of DMA to that.
 * What logs it is an interrupt, which may be late.
 */
static bool fault_was_logged(int log)
{
	static const char * const fault[] = { "fault addr 0xd0000", "iova: 0xd0000" };
	char line[1024];
	bool found = false;
	ssize_t len;
	int tries;
	size_t i;

	for (tries = 0; tries < 20 && !found; tries++) {
		while ((len = read(log, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
			line[len > 0 ? len : 0] = 0;
			for (i = 0; i < ARRAY_SIZE(fault); i++)
				found |= !!strstr(line, fault[i]);
		}
		usleep(10000);
	}
	return found;
}

static int map_dma_iova(struct dut *dut, int fd)
{
	return iommu_map_dma_buf(dut->iommu, fd, page, IOMMU_IOAS_MAP_FIXED_IOVA,
				 &dma_iova);
}

/* Of the guest of dma-buf/vm: what its host is to find in the file behind the BAR */
static void tell_host(u64 off, const void *map)
{
	static const char * const name[][2] = {
		{ "VMTEST_IVSHMEM1_BDF", "ivshmem" },
		{ "VMTEST_IVSHMEM2_BDF", "ivshmem2" },
	};
	char hex[2 * DMA_LEN + 1];
	const char *bdf;
	size_t n;
	int i;

	for (i = 0; i < DMA_LEN; i++)
		sprintf(hex + 2 * i, "%02x", readb(map + i));
	for (n = 0; n < ARRAY_SIZE(name); n++) {
		bdf = getenv(name[n][0]);
		if (bdf && !strcmp(bdf, device_bdf))
			ksft_print_msg("host-file %s %#lx %s\n", name[n][1], off, hex);
	}
}

BAR_TEST(dma, revoked)
{
	struct dut *dut = &self->dut;
	u64 off = self->bar->size - page;
	void *direct = map_bar(dut, self->bar, off, page);
	int fd = lend(dut, self->bar, off, page), new;

	ASSERT_EQ(0, map_dma_iova(dut, fd));
	ASSERT_EQ(0, copy_out(self->device, &self->ram, dma_iova + 1024, 0x11223344));
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	fault_was_logged(self->log);

	EXPECT_EQ(0, take_back(dut, fd));
	copy_out(self->device, &self->ram, dma_iova + 1024, 0x55667788);
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	EXPECT_TRUE(fault_was_logged(self->log));

	/* Neither the memory that comes back nor another loan is a way back */
	memory_off(dut);
	memory_on(dut);
	new = lend(dut, self->bar, off, page);
	copy_out(self->device, &self->ram, dma_iova + 1024, 0x55667788);
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	/* If there were too many just before it is not logged, which is no matter */
	fault_was_logged(self->log);

	ASSERT_EQ(0, unmap_iova(dut, dma_iova, page));
	ASSERT_EQ(0, map_dma_iova(dut, new));
	ASSERT_EQ(0, copy_out(self->device, &self->ram, dma_iova + 2048, 0x0badcafe));
	EXPECT_EQ(0, words_not_from(direct + 2048, 0x0badcafe));
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	EXPECT_FALSE(fault_was_logged(self->log));
	tell_host(off + 1024, direct + 1024);
	tell_host(off + 2048, direct + 2048);
	EXPECT_EQ(0, unmap_iova(dut, dma_iova, page));
	unmap(direct, page);
	close(fd);
	close(new);
}

/* A reset takes the IOVA away for good as well, though not the dma-buf */
BAR_TEST(dma, memory_off_and_on)
{
	struct dut *dut = &self->dut;
	void *direct = map_bar(dut, self->bar, 0, page);
	int fd = lend(dut, self->bar, 0, page);

	ASSERT_EQ(0, map_dma_iova(dut, fd));
	ASSERT_EQ(0, copy_out(self->device, &self->ram, dma_iova + 1024, 0x11223344));
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	memory_off(dut);
	memory_on(dut);
	copy_out(self->device, &self->ram, dma_iova + 1024, 0x55667788);
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x11223344));
	ASSERT_EQ(0, unmap_iova(dut, dma_iova, page));
	ASSERT_EQ(0, map_dma_iova(dut, fd));
	ASSERT_EQ(0, copy_out(self->device, &self->ram, dma_iova + 1024, 0x55667788));
	EXPECT_EQ(0, words_not_from(direct + 1024, 0x55667788));
	EXPECT_EQ(0, unmap_iova(dut, dma_iova, page));
	unmap(direct, page);
	close(fd);
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr);
	device_bdf = bdfs[0];
	dma_bdf = nr > 1 ? bdfs[1] : NULL;
	page = getpagesize();
	catch_sigbus();
	return test_harness_run(argc, argv);
}

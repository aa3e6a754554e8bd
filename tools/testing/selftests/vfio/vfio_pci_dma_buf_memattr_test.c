// SPDX-License-Identifier: GPL-2.0-only
/*
 * VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR: the attributes that mappings of a dma-buf have,
 * by the entries of the page table. The module vfio_pci_dmabuf_test shows them.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include <sys/ioctl.h>

#include <linux/dma-buf.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>
#include <libvfio/bars.h>

#include "../kselftest_harness.h"

FIXTURE(memattr) {
	struct dut dut;
	struct bar *bar;
};

FIXTURE_SETUP(memattr)
{
	dut_open(&self->dut, MODE_IOMMUFD);
	self->bar = sixteen_pages(&self->dut);
	if (!self->bar)
		SKIP(return, "no BAR with sixteen pages");
}

FIXTURE_TEARDOWN(memattr)
{
	dut_close(&self->dut);
}

static int memattr_ioctl(struct dut *dut, u32 flags, u32 argsz, int fd, u32 memattr)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf_memattr memattr;
	} arg = {
		.feature = { argsz, flags | VFIO_DEVICE_FEATURE_DMA_BUF_MEMATTR },
		.memattr = { fd, memattr },
	};

	return ioctl(dut->device->fd, VFIO_DEVICE_FEATURE, &arg) ? errno : 0;
}

static int set_memattr(struct dut *dut, int fd, u32 memattr)
{
	return memattr_ioctl(dut, VFIO_DEVICE_FEATURE_SET, 16, fd, memattr);
}

BAR_TEST(memattr, errors)
{
	const u32 get = VFIO_DEVICE_FEATURE_GET, set = VFIO_DEVICE_FEATURE_SET;
	const u32 probe = VFIO_DEVICE_FEATURE_PROBE;
	const u32 nc = VFIO_DEVICE_DMA_BUF_MEMATTR_NC;
	struct dut *dut = &self->dut;
	int fd = vfio_pci_dma_buf_export(dut->device, self->bar->index, 0, page);
	int other[2];

	EXPECT_EQ(0, memattr_ioctl(dut, probe, 8, fd, nc));
	EXPECT_EQ(0, memattr_ioctl(dut, probe | set, 8, fd, nc));
	EXPECT_EQ(EINVAL, memattr_ioctl(dut, probe | get, 8, fd, nc));
	EXPECT_EQ(EINVAL, memattr_ioctl(dut, get, 16, fd, nc));
	EXPECT_EQ(EINVAL, memattr_ioctl(dut, set, 15, fd, nc));
	EXPECT_EQ(ENOENT, set_memattr(dut, fd, 2));
	EXPECT_EQ(ENOENT, set_memattr(dut, fd, -1));
	EXPECT_EQ(EBADF, set_memattr(dut, -1, nc));
	ASSERT_EQ(0, pipe(other));
	EXPECT_EQ(EINVAL, set_memattr(dut, other[0], nc));
	close(other[0]);
	close(other[1]);
	EXPECT_EQ(0, set_memattr(dut, fd, nc));
	vfio_pci_dma_buf_revoke(dut->device, fd);
	EXPECT_EQ(EBADFD, set_memattr(dut, fd, nc));
	EXPECT_EQ(EBADFD, set_memattr(dut, fd, 2));
	close(fd);
}

static int attr_of(const void *map)
{
	struct entry entry;
	u32 word;

	return peek(map, &word) && get_entry(map, &entry) ? entry_attr(&entry) : -1;
}

static int attr_of_new(int fd)
{
	void *map = map_fd(fd, NULL, 0, page);
	int attr = attr_of(map);

	unmap(map, page);
	return attr;
}

/* What the page table says, before and after, of this dma-buf, and of others */
BAR_TEST(memattr, page_table)
{
#if defined(__aarch64__)
	const int want = 0;
#else
	const int want = EOPNOTSUPP;
#endif
	struct dut *dut = &self->dut;
	struct bar *bar = biggest(dut, true) ?: self->bar;
	int fd = vfio_pci_dma_buf_export(dut->device, bar->index, 0, bar->size);
	int other = vfio_pci_dma_buf_export(dut->device, bar->index, 0, bar->size);
	struct dma_buf_derive derived = { .flags = O_RDWR };
	void *early = map_fd(fd, NULL, 0, page), *map, *direct;
	struct entry entry;
	u32 word;
	int ret;

	ASSERT_EQ(0, ioctl(fd, DMA_BUF_IOCTL_DERIVE, &derived));
	if (attr_of(early) < 0)
		SKIP(return, "no module vfio_pci_dmabuf_test");
	EXPECT_EQ(ATTR_NC, attr_of(early));
	EXPECT_EQ(ATTR_NC, attr_of_new(derived.fd));
	ret = set_memattr(dut, derived.fd, VFIO_DEVICE_DMA_BUF_MEMATTR_WC);
	EXPECT_EQ(want, ret);
	EXPECT_EQ(ret ? ATTR_NC : ATTR_WC, attr_of_new(fd));
	EXPECT_EQ(ret ? ATTR_NC : ATTR_WC, attr_of_new(derived.fd));
	EXPECT_EQ(ATTR_NC, attr_of(early));
	EXPECT_EQ(ATTR_NC, attr_of_new(other));
	direct = map_bar(dut, bar, 0, page);
	EXPECT_EQ(ATTR_NC, attr_of(direct));

	map = map_fd(fd, mmap_reserve(bar->size, SZ_2M, 0), 0, bar->size);
	EXPECT_EQ(0, not_as(ALIVE, bar, map, 0, bar->size));
	EXPECT_EQ(ret ? ATTR_NC : ATTR_WC, attr_of(map));
	if (get_entry(map, &entry))
		ksft_print_msg("%#lx long, attributes %#lx\n", entry.size, entry.prot);
	if (bar->known.ram) {
		EXPECT_TRUE(poke(map + 16, 0x1234567));
		EXPECT_TRUE(peek(map + 16, &word));
		EXPECT_TRUE(peek(direct + 16, &word));
		EXPECT_EQ(0x1234567U, word);
	}
	/* It comes back as it was */
	memory_off(dut);
	EXPECT_EQ(0, not_as(DEAD, bar, map, 0, bar->size));
	memory_on(dut);
	EXPECT_EQ(ret ? ATTR_NC : ATTR_WC, attr_of(map));
	EXPECT_EQ(0, set_memattr(dut, fd, VFIO_DEVICE_DMA_BUF_MEMATTR_NC));
	EXPECT_EQ(ATTR_NC, attr_of_new(fd));
	EXPECT_EQ(ret ? ATTR_NC : ATTR_WC, attr_of(map));
	unmap(map, bar->size);
	unmap(early, page);
	unmap(direct, page);
	close(fd);
	close(other);
	close(derived.fd);
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	page = getpagesize();
	catch_sigbus();
	return test_harness_run(argc, argv);
}

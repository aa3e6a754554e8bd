// SPDX-License-Identifier: GPL-2.0
/*
 * The PCI functions that vmtest.sh gives its guest are there and do what the
 * tests of VFIO and dma-buf need from them. Each variable VMTEST_NAME_BDF has
 * the addresses of the functions of a kind; without them the tests skip.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/io.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/sizes.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../../kselftest_harness.h"

/* The registers of edu, and its buffer as its DMA engine addresses it */
#define EDU_DMA_SRC	0x80
#define EDU_DMA_DST	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_CMD	0x98
#define EDU_DMA_START	1
#define EDU_DMA_TO_BUS	2	/* from the buffer; without it into the buffer */
#define EDU_BUFFER	0x40000

#define LEN		1024	/* QEMU 7.2 aborts on 4096 */
#define WORDS		(LEN / 8)

static const char *bdf(const char *name, int nr)
{
	const char *list = getenv(name);
	static char copy[256];
	char *one;

	if (!list)
		return NULL;
	snprintf(copy, sizeof(copy), "%s", list);
	for (one = strtok(copy, " "); one && nr; one = strtok(NULL, " "))
		nr--;
	return one ? strdup(one) : NULL;
}

/* A function's device fd, bound to the iommufd, nothing of it mapped */
static struct vfio_pci_device *open_device(const char *name, int nr,
					   struct iommu *iommu)
{
	const char *addr = bdf(name, nr);
	struct vfio_pci_device *device;

	if (!addr)
		return NULL;
	device = vfio_pci_device_alloc(addr, iommu);
	vfio_pci_cdev_open(device, addr);
	VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(device->fd, iommu->iommufd, NULL), 0);
	return device;
}

static void close_device(struct vfio_pci_device *device)
{
	close(device->fd);
	vfio_pci_device_free(device);
}

static struct vfio_region_info region(struct vfio_pci_device *device, int index)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = index };

	if (ioctl(device->fd, VFIO_DEVICE_GET_REGION_INFO, &info))
		info.size = 0;
	return info;
}

static int export_bar(struct vfio_pci_device *device, int index, uint64_t offset,
		      uint64_t length)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} arg = {
		.feature.argsz = sizeof(arg),
		.feature.flags = VFIO_DEVICE_FEATURE_GET |
				 VFIO_DEVICE_FEATURE_DMA_BUF,
		.buf = {
			.region_index = index,
			.open_flags = O_RDWR | O_CLOEXEC,
			.nr_ranges = 1,
		},
		.range = { .offset = offset, .length = length },
	};

	return ioctl(device->fd, VFIO_DEVICE_FEATURE, &arg);
}

/* 0, or -1 if it takes more than 10 seconds */
static int edu_dma(struct vfio_pci_device *edu, uint64_t src, uint64_t dst,
		   uint64_t cmd)
{
	void *reg = edu->bars[0].vaddr;
	int i;

	writeq(src, reg + EDU_DMA_SRC);
	writeq(dst, reg + EDU_DMA_DST);
	writeq(LEN, reg + EDU_DMA_COUNT);
	writeq(cmd | EDU_DMA_START, reg + EDU_DMA_CMD);
	for (i = 0; i < 10000; i++) {
		if (!(readq(reg + EDU_DMA_CMD) & EDU_DMA_START))
			return 0;
		usleep(1000);
	}
	return -1;
}

/* A BAR is device memory: whole words only, which memset() and others may not use */
static void write_bar(void *bar, const uint64_t *data, size_t words)
{
	size_t i;

	for (i = 0; i < words; i++)
		writeq(data ? data[i] : 0, bar + 8 * i);
}

static void read_bar(uint64_t *data, const void *bar, size_t words)
{
	size_t i;

	for (i = 0; i < words; i++)
		data[i] = readq(bar + 8 * i);
}

/* What vmtest.sh compares with the file behind the function, after the run */
static void expect_host_file(const char *name, uint64_t offset,
			     const unsigned char *data, size_t len)
{
	char hex[2 * LEN + 1] = "";
	size_t i;

	for (i = 0; i < len; i++)
		sprintf(hex + 2 * i, "%02x", data[i]);
	ksft_print_msg("host-file %s 0x%llx %s\n", name,
		       (unsigned long long)offset, hex);
}

FIXTURE(devices) {
	struct iommu *iommu;
};

FIXTURE_SETUP(devices)
{
	if (!getenv("VMTEST_EDU_BDF"))
		SKIP(return, "not in a guest of vmtest.sh");
	self->iommu = iommu_init(MODE_IOMMUFD);
}

FIXTURE_TEARDOWN(devices)
{
	iommu_cleanup(self->iommu);
}

/* The BARs that the functions are there for, each mapped as a whole */
TEST_F(devices, bars)
{
	static const struct {
		const char *name;
		int nr, bar;
		uint64_t size;
	} want[] = {
		{ "VMTEST_EDU_BDF", 0, 0, SZ_1M, true },
		{ "VMTEST_EDU_BDF", 1, 0, SZ_1M, true },
		{ "VMTEST_IVSHMEM_BDF", 0, 0, 256, true },
		{ "VMTEST_IVSHMEM_BDF", 0, 2, SZ_4M, true },
		{ "VMTEST_IVSHMEM_BDF", 1, 2, SZ_1G, true },
		{ "VMTEST_NVME_BDF", 0, 4, SZ_16M, true },
		{ "VMTEST_BOCHS_BDF", 0, 0, SZ_16M, true },
		{ "VMTEST_BOCHS_BDF", 0, 2, SZ_4K, true },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(want); i++) {
		struct vfio_pci_device *device;
		struct vfio_region_info info;
		uint64_t size;
		void *bar;

		device = open_device(want[i].name, want[i].nr, self->iommu);
		ASSERT_NE(NULL, device) TH_LOG("%s %d", want[i].name, want[i].nr);
		info = region(device, want[i].bar);
		ASSERT_EQ(want[i].size, info.size)
			TH_LOG("%s %d BAR%d", want[i].name, want[i].nr, want[i].bar);
		size = want[i].size < SZ_4K ? SZ_4K : want[i].size;
		bar = mmap(NULL, size, PROT_READ, MAP_SHARED, device->fd, info.offset);
		ASSERT_NE(MAP_FAILED, bar)
			TH_LOG("%s %d BAR%d", want[i].name, want[i].nr, want[i].bar);
		readl(bar);
		readl(bar + want[i].size - 4);
		munmap(bar, size);
		close_device(device);
	}
}

TEST_F(devices, function_level_reset)
{
	struct vfio_pci_device *nvme = open_device("VMTEST_NVME_BDF", 0, self->iommu);
	char path[128], methods[64] = "";
	FILE *file;

	ASSERT_NE(NULL, nvme);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/reset_method",
		 bdf("VMTEST_NVME_BDF", 0));
	file = fopen(path, "r");
	ASSERT_NE(NULL, file);
	ASSERT_NE(NULL, fgets(methods, sizeof(methods), file));
	fclose(file);
	EXPECT_NE(NULL, strstr(methods, "flr")) TH_LOG("%s", methods);
	EXPECT_EQ(0, __vfio_pci_device_reset(nvme));
	close_device(nvme);
}

/* The two functions of a slot can only be reset together */
TEST_F(devices, hot_reset)
{
	static const char * const name[] = { "VMTEST_EDU_BDF", "VMTEST_IVSHMEM_BDF" };
	struct {
		struct vfio_pci_hot_reset_info info;
		struct vfio_pci_dependent_device devices[8];
	} set = { .info.argsz = sizeof(set) };
	struct vfio_pci_hot_reset reset = { .argsz = sizeof(reset) };
	struct vfio_pci_device *device[2];
	char address[32];
	int i;

	for (i = 0; i < 2; i++) {
		device[i] = open_device(name[i], 1, self->iommu);
		ASSERT_NE(NULL, device[i]);
	}
	ASSERT_EQ(0, ioctl(device[0]->fd, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, &set));
	ASSERT_EQ(2U, set.info.count);
	for (i = 0; i < 2; i++) {
		snprintf(address, sizeof(address), "%04x:%02x:%02x.%x",
			 set.devices[i].segment, set.devices[i].bus,
			 set.devices[i].devfn >> 3, set.devices[i].devfn & 7);
		EXPECT_STREQ(bdf(name[i], 1), address);
	}
	EXPECT_EQ(0, ioctl(device[0]->fd, VFIO_DEVICE_PCI_HOT_RESET, &reset));
	for (i = 0; i < 2; i++)
		close_device(device[i]);
}

FIXTURE(p2p) {
	struct iommu *iommu;
	struct iova_allocator *iovas;
	struct vfio_pci_device *edu, *peer;
	struct dma_region ram;
	int buf;
};

/* The peer behind a root port of its own, and in the slot of the edu */
FIXTURE_VARIANT(p2p) {
	int edu, peer, same_slot;
	const char *file;
	uint64_t offset;
};

FIXTURE_VARIANT_ADD(p2p, ports) {
	.edu = 0, .peer = 0, .file = "ivshmem", .offset = 0x3000,
};

FIXTURE_VARIANT_ADD(p2p, slot) {
	.edu = 1, .peer = 1, .same_slot = 1, .file = "ivshmem2", .offset = 0x3ffff000,
};

FIXTURE_SETUP(p2p)
{
	const char *edu = bdf("VMTEST_EDU_BDF", variant->edu);
	const char *peer = bdf("VMTEST_IVSHMEM_BDF", variant->peer);

	if (!getenv("VMTEST_EDU_BDF"))
		SKIP(return, "not in a guest of vmtest.sh");
	ASSERT_EQ(SZ_4K, getpagesize());
	ASSERT_NE(NULL, edu);
	ASSERT_NE(NULL, peer);
	ASSERT_EQ(variant->same_slot, !strncmp(edu, peer, strcspn(edu, ".")));
	self->iommu = iommu_init(MODE_IOMMUFD);
	self->edu = vfio_pci_device_init(edu, self->iommu);
	self->iovas = iova_allocator_init(self->iommu);
	vfio_pci_cmd_set(self->edu, PCI_COMMAND_MASTER);
	self->peer = open_device("VMTEST_IVSHMEM_BDF", variant->peer, self->iommu);
	self->ram = (struct dma_region) {
		.size = SZ_4K,
		.iova = iova_allocator_alloc(self->iovas, SZ_4K),
		.vaddr = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	};
	ASSERT_NE(MAP_FAILED, self->ram.vaddr);
	iommu_map(self->iommu, &self->ram);
	self->buf = export_bar(self->peer, 2, variant->offset, SZ_4K);
	ASSERT_LE(0, self->buf);
}

FIXTURE_TEARDOWN(p2p)
{
	close(self->buf);
	iommu_unmap(self->iommu, &self->ram);
	munmap(self->ram.vaddr, SZ_4K);
	close_device(self->peer);
	vfio_pci_device_cleanup(self->edu);
	iova_allocator_cleanup(self->iovas);
	iommu_cleanup(self->iommu);
}

/* edu writes through the IOMMU into the BAR of its peer, and reads it again */
TEST_F_TIMEOUT(p2p, write, 120)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = self->iommu->ioas_id,
		.fd = self->buf,
		.length = SZ_4K,
		.iova = iova_allocator_alloc(self->iovas, SZ_4K),
	};
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = self->iommu->ioas_id,
		.iova = map.iova,
		.length = map.length,
	};
	struct vfio_region_info info = region(self->peer, 2);
	uint64_t copy[WORDS], other[WORDS], page[SZ_4K / 8];
	void *bar, *data = self->ram.vaddr;
	uint64_t iova = map.iova;
	size_t i;

	ASSERT_EQ(0, ioctl(self->iommu->iommufd, IOMMU_IOAS_MAP_FILE, &map));
	bar = mmap(NULL, SZ_4K, PROT_READ | PROT_WRITE, MAP_SHARED, self->peer->fd,
		   info.offset + variant->offset);
	ASSERT_NE(MAP_FAILED, bar);
	write_bar(bar, NULL, SZ_4K / 8);

	for (i = 0; i < WORDS; i++) {
		copy[i] = i * 0x0123456789abcdf1 + variant->peer;
		other[i] = ~copy[i];
	}
	memcpy(data, copy, LEN);
	ASSERT_EQ(0, edu_dma(self->edu, self->ram.iova, EDU_BUFFER, 0));
	ASSERT_EQ(0, edu_dma(self->edu, EDU_BUFFER, iova + 1024, EDU_DMA_TO_BUS));

	read_bar(page, bar, SZ_4K / 8);
	for (i = 0; i < SZ_4K / 8; i++)
		EXPECT_EQ(i < WORDS || i >= 2 * WORDS ? 0 : copy[i - WORDS], page[i])
			TH_LOG("word %zu", i);
	expect_host_file(variant->file, variant->offset + 1024,
			 (unsigned char *)copy, LEN);

	/* and back from the BAR into memory, what edu has not had before */
	write_bar(bar + 2048, other, WORDS);
	ASSERT_EQ(0, edu_dma(self->edu, iova + 2048, EDU_BUFFER, 0));
	ASSERT_EQ(0, edu_dma(self->edu, EDU_BUFFER, self->ram.iova, EDU_DMA_TO_BUS));
	EXPECT_EQ(0, memcmp(data, other, LEN));

	munmap(bar, SZ_4K);
	EXPECT_EQ(0, ioctl(self->iommu->iommufd, IOMMU_IOAS_UNMAP, &unmap));
}

TEST_HARNESS_MAIN

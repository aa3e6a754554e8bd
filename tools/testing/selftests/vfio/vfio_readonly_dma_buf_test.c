// SPDX-License-Identifier: GPL-2.0
/*
 * The holder of a dma-buf that was derived for reading lets a device of its own
 * read it, and no more: the IOMMU keeps the device to that. The dma-buf is of the
 * BAR of an ivshmem of QEMU, the first device that is named; the second is an edu,
 * which copies from and to whatever it is told, with dma_mask=0xffffffffffffffff.
 */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include <linux/dma-buf.h>
#include <linux/io.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#include <libvfio.h>

#include "../kselftest_harness.h"

#define IVSHMEM	0x11101af4
#define EDU	0x11e81234

#define EDU_DMA_SRC	0x80
#define EDU_DMA_DST	0x88
#define EDU_DMA_COUNT	0x90
#define EDU_DMA_CMD	0x98
#define EDU_DMA_START	1
#define EDU_DMA_TO_BUS	2	/* from its buffer; without it into the buffer */
#define EDU_BUFFER	0x40000

#define R	IOMMU_IOAS_MAP_READABLE
#define W	IOMMU_IOAS_MAP_WRITEABLE
#define RW	(R | W)

#define LEN	512
#define WORDS	(LEN / 8)

/* Where dma-buf/vm expects faults */
#define IOVA	0xd0000000ull
#define IOVA_RW	0xe0000000ull

static const char *bar_bdf, *edu_bdf;
static size_t page;

FIXTURE(derived) {
	struct iommu *iommu;
	struct vfio_pci_device *owner, *edu;
	struct iova_allocator *iovas;
	struct dma_region ram;
	void *bar;
	int buf, r, w, rw, log;
};

/* Bound to the iommufd, and nothing of it mapped */
static struct vfio_pci_device *owner_open(struct iommu *iommu)
{
	struct vfio_pci_device *device = vfio_pci_device_alloc(bar_bdf, iommu);

	vfio_pci_cdev_open(device, bar_bdf);
	VFIO_ASSERT_EQ(__vfio_device_bind_iommufd(device->fd, iommu->iommufd, NULL), 0);
	return device;
}

static void owner_close(struct vfio_pci_device *device)
{
	close(device->fd);
	vfio_pci_device_free(device);
}

static void *map_bar(int device)
{
	struct vfio_region_info info = { .argsz = sizeof(info), .index = 2 };

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &info))
		return MAP_FAILED;
	return mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_SHARED, device, info.offset);
}

static int export_page(int device, int mode)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} arg = {
		.feature.argsz = sizeof(arg),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.buf.region_index = 2,
		.buf.open_flags = mode | O_CLOEXEC,
		.buf.nr_ranges = 1,
		.range.length = page,
	};

	return ioctl(device, VFIO_DEVICE_FEATURE, &arg);
}

static int derive(int fd, unsigned int mode)
{
	struct dma_buf_derive arg = { .flags = mode | O_CLOEXEC };

	return ioctl(fd, DMA_BUF_IOCTL_DERIVE, &arg) ? -1 : arg.fd;
}

/* Vendor and device of a function, or 0 */
static u32 id_of(const char *bdf)
{
	char path[64];
	u32 id = 0;
	int fd;

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/config", bdf);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || pread(fd, &id, sizeof(id), 0) != sizeof(id))
		id = 0;
	close(fd);
	return id;
}

FIXTURE_SETUP(derived)
{
	/* Others would take harm from what is written to their BARs */
	if (!edu_bdf || id_of(bar_bdf) != IVSHMEM || id_of(edu_bdf) != EDU)
		SKIP(return, "not an ivshmem and an edu");
	self->iommu = iommu_init(MODE_IOMMUFD);
	self->edu = vfio_pci_device_init(edu_bdf, self->iommu);
	vfio_pci_cmd_set(self->edu, PCI_COMMAND_MASTER);
	self->iovas = iova_allocator_init(self->iommu);
	self->owner = owner_open(self->iommu);
	self->ram = (struct dma_region) {
		.size = page,
		.iova = iova_allocator_alloc(self->iovas, page),
		.vaddr = mmap(NULL, page, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
	};
	ASSERT_NE(MAP_FAILED, self->ram.vaddr);
	iommu_map(self->iommu, &self->ram);
	self->bar = map_bar(self->owner->fd);
	ASSERT_NE(MAP_FAILED, self->bar);
	self->buf = export_page(self->owner->fd, O_RDWR);
	self->r = derive(self->buf, O_RDONLY);
	self->w = derive(self->buf, O_WRONLY);
	self->rw = derive(self->buf, O_RDWR);
	ASSERT_LE(0, self->buf);
	ASSERT_LE(0, self->r);
	ASSERT_LE(0, self->w);
	ASSERT_LE(0, self->rw);
	self->log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	ASSERT_LE(0, self->log);
}

FIXTURE_TEARDOWN(derived)
{
	close(self->log);
	close(self->rw);
	close(self->w);
	close(self->r);
	close(self->buf);
	iommu_unmap(self->iommu, &self->ram);
	munmap(self->ram.vaddr, page);
	iova_allocator_cleanup(self->iovas);
	munmap(self->bar, page);
	owner_close(self->owner);
	vfio_pci_device_cleanup(self->edu);
	iommu_cleanup(self->iommu);
}

/* 0 or an errno */
static int map_file(struct iommu *iommu, int fd, u64 iova, u32 flags)
{
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | flags,
		.ioas_id = iommu->ioas_id,
		.fd = fd,
		.length = page,
		.iova = iova,
	};

	return ioctl(iommu->iommufd, IOMMU_IOAS_MAP_FILE, &map) ? errno : 0;
}

static int copy_mapping(struct iommu *iommu, u64 iova, u64 to, u32 flags)
{
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | flags,
		.dst_ioas_id = iommu->ioas_id,
		.src_ioas_id = iommu->ioas_id,
		.length = page,
		.dst_iova = to,
		.src_iova = iova,
	};

	return ioctl(iommu->iommufd, IOMMU_IOAS_COPY, &copy) ? errno : 0;
}

static int unmap(struct iommu *iommu, u64 iova)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = iommu->ioas_id,
		.iova = iova,
		.length = page,
	};

	return ioctl(iommu->iommufd, IOMMU_IOAS_UNMAP, &unmap) ? errno : 0;
}

static int edu_dma(struct vfio_pci_device *edu, u64 src, u64 dst, u64 cmd)
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

/* By edu, from or to what it has in RAM */
static int dma_read(FIXTURE_DATA(derived) *self, u64 iova)
{
	memset(self->ram.vaddr, 0, LEN);
	return edu_dma(self->edu, iova, EDU_BUFFER, 0) ?:
	       edu_dma(self->edu, EDU_BUFFER, self->ram.iova, EDU_DMA_TO_BUS);
}

static int dma_write(FIXTURE_DATA(derived) *self, u64 iova, u64 seed)
{
	u64 *word = self->ram.vaddr;
	int i;

	for (i = 0; i < WORDS; i++)
		word[i] = seed + i;
	return edu_dma(self->edu, self->ram.iova, EDU_BUFFER, 0) ?:
	       edu_dma(self->edu, EDU_BUFFER, iova, EDU_DMA_TO_BUS);
}

static void fill_bar(void *bar, u64 seed)
{
	int i;

	for (i = 0; i < WORDS; i++)
		writeq(seed + i, bar + 8 * i);
}

static int bar_not_from(const void *bar, u64 seed)
{
	int i, wrong = 0;

	for (i = 0; i < WORDS; i++)
		wrong += readq(bar + 8 * i) != seed + i;
	return wrong;
}

static int ram_not_from(const u64 *word, u64 seed)
{
	int i, wrong = 0;

	for (i = 0; i < WORDS; i++)
		wrong += word[i] != seed + i;
	return wrong;
}

/* A write to IOVA that was refused for the lack of the right, by VT-d or by an SMMU */
static bool is_fault(const char *line)
{
	return (strstr(line, "[DMA Write ") && strstr(line, "fault addr 0xd0000000 ") &&
		strstr(line, "Write access is not set")) ||
	       (strstr(line, "F_PERMISSION") && strstr(line, "iova: 0xd0000"));
}

/* It is logged by an interrupt, which may be late */
static bool fault_was_logged(int log)
{
	bool found = false;
	char line[1024];
	ssize_t len;
	int tries;

	for (tries = 0; tries < 20 && !found; tries++) {
		while ((len = read(log, line, sizeof(line) - 1)) > 0 || errno == EPIPE) {
			line[len > 0 ? len : 0] = 0;
			found |= is_fault(line);
		}
		usleep(10000);
	}
	return found;
}

/*
 * Tries to write there by DMA until it is told that this failed. Nothing may have
 * been read there: what QEMU's VT-d has in its IOTLB is refused without a report.
 */
static bool write_faults(FIXTURE_DATA(derived) *self)
{
	int i;

	/* how many may be logged in 5 seconds may have been used up before */
	for (i = 0; i < 10; i++) {
		sleep(!!i);
		lseek(self->log, 0, SEEK_END);
		if (dma_write(self, IOVA, 0xdeadbeef))
			return false;
		if (fault_was_logged(self->log))
			return true;
	}
	return false;
}

TEST_F(derived, device_reads)
{
	fill_bar(self->bar, 0x1122334455667788);
	ASSERT_EQ(0, map_file(self->iommu, self->r, IOVA, R));
	ASSERT_EQ(0, dma_read(self, IOVA));
	EXPECT_EQ(0, ram_not_from(self->ram.vaddr, 0x1122334455667788));

	/* the mapping is not one of the fd */
	close(self->r);
	fill_bar(self->bar, 0x8877665544332211);
	ASSERT_EQ(0, dma_read(self, IOVA));
	EXPECT_EQ(0, ram_not_from(self->ram.vaddr, 0x8877665544332211));
	EXPECT_EQ(0, unmap(self->iommu, IOVA));
}

TEST_F(derived, device_cannot_write)
{
	fill_bar(self->bar, 0x1122334455667788);
	ASSERT_EQ(0, map_file(self->iommu, self->r, IOVA, R));
	EXPECT_TRUE(write_faults(self));
	EXPECT_EQ(0, bar_not_from(self->bar, 0x1122334455667788));

	/* it still reads */
	ASSERT_EQ(0, dma_read(self, IOVA));
	EXPECT_EQ(0, ram_not_from(self->ram.vaddr, 0x1122334455667788));
	EXPECT_EQ(0, unmap(self->iommu, IOVA));
}

/* One with full access is not bound by what others have mapped, nor they by it */
TEST_F(derived, device_of_another_holder)
{
	ASSERT_EQ(0, map_file(self->iommu, self->r, IOVA, R));
	ASSERT_EQ(0, map_file(self->iommu, self->rw, IOVA_RW, RW));
	fill_bar(self->bar, 0);
	ASSERT_EQ(0, dma_write(self, IOVA_RW, 0x5555555500000000));
	EXPECT_EQ(0, bar_not_from(self->bar, 0x5555555500000000));
	EXPECT_TRUE(write_faults(self));
	EXPECT_EQ(0, bar_not_from(self->bar, 0x5555555500000000));
	ASSERT_EQ(0, dma_read(self, IOVA));
	EXPECT_EQ(0, ram_not_from(self->ram.vaddr, 0x5555555500000000));
	EXPECT_EQ(0, unmap(self->iommu, IOVA_RW));
	EXPECT_EQ(0, unmap(self->iommu, IOVA));
}

TEST_F(derived, copied_mapping)
{
	fill_bar(self->bar, 0x1122334455667788);
	ASSERT_EQ(0, map_file(self->iommu, self->r, IOVA_RW, R));
	EXPECT_EQ(EPERM, copy_mapping(self->iommu, IOVA_RW, IOVA, RW));
	EXPECT_EQ(EPERM, copy_mapping(self->iommu, IOVA_RW, IOVA, W));
	ASSERT_EQ(0, copy_mapping(self->iommu, IOVA_RW, IOVA, R));
	EXPECT_EQ(0, unmap(self->iommu, IOVA_RW));
	EXPECT_TRUE(write_faults(self));
	EXPECT_EQ(0, bar_not_from(self->bar, 0x1122334455667788));
	ASSERT_EQ(0, dma_read(self, IOVA));
	EXPECT_EQ(0, ram_not_from(self->ram.vaddr, 0x1122334455667788));
	EXPECT_EQ(0, unmap(self->iommu, IOVA));
}

TEST_F(derived, refused)
{
	const u32 flags[] = { R, W, RW };
	size_t i;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		EXPECT_EQ(EACCES, map_file(self->iommu, self->w, IOVA, flags[i]))
			TH_LOG("flags %#x", flags[i]);
		EXPECT_EQ(flags[i] == R ? 0 : EACCES,
			  map_file(self->iommu, self->r, IOVA, flags[i]))
			TH_LOG("flags %#x", flags[i]);
		if (flags[i] == R)
			EXPECT_EQ(0, unmap(self->iommu, IOVA));
	}
	/* nothing of it stays */
	EXPECT_EQ(ENOENT, unmap(self->iommu, IOVA));
}

/* What exporters make means what it meant, whatever it was opened for */
TEST_F(derived, primary_files)
{
	int fd, i;

	for (i = 0; i < 2; i++) {
		fd = export_page(self->owner->fd, i ? O_RDONLY : O_RDWR);
		ASSERT_LE(0, fd);
		ASSERT_EQ(0, map_file(self->iommu, fd, IOVA, R));
		EXPECT_EQ(0, unmap(self->iommu, IOVA));
		ASSERT_EQ(0, map_file(self->iommu, fd, IOVA, RW));
		ASSERT_EQ(0, dma_write(self, IOVA, 0x0badcafe00000000 + i));
		EXPECT_EQ(0, bar_not_from(self->bar, 0x0badcafe00000000 + i));
		EXPECT_EQ(0, unmap(self->iommu, IOVA));
		close(fd);
	}
}

int main(int argc, char *argv[])
{
	char **bdfs;
	int nr;

	bdfs = vfio_selftests_get_bdfs(&argc, argv, &nr);
	bar_bdf = bdfs[0];
	edu_bdf = nr > 1 ? bdfs[1] : NULL;
	page = getpagesize();
	return test_harness_run(argc, argv);
}

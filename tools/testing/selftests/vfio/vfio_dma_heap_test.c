// SPDX-License-Identifier: GPL-2.0-only
/*
 * Buffers of heaps that are mapped for DMA by their address, as if they were memory of
 * the process: that would be theirs for longer than the buffer.
 */
#include <errno.h>
#include <fcntl.h>
#include <unistd.h>
#include <sys/mman.h>

#include <libvfio.h>

#include "../dmabuf-heaps/heap.h"
#include "../kselftest_harness.h"

static const char *device_bdf;

FIXTURE(dma_heap) {
	struct iommu *iommu;
	struct vfio_pci_device *device;
	struct dma_region region;
};

FIXTURE_VARIANT(dma_heap) {
	const char *mode, *heap;
};

FIXTURE_VARIANT_ADD(dma_heap, system_type1) {
	.mode = MODE_VFIO_TYPE1V2_IOMMU,
	.heap = "system",
};

FIXTURE_VARIANT_ADD(dma_heap, system_iommufd) {
	.mode = MODE_IOMMUFD,
	.heap = "system",
};

FIXTURE_VARIANT_ADD(dma_heap, cma_type1) {
	.mode = MODE_VFIO_TYPE1V2_IOMMU,
	.heap = "default_cma_region",
};

FIXTURE_VARIANT_ADD(dma_heap, cma_iommufd) {
	.mode = MODE_IOMMUFD,
	.heap = "default_cma_region",
};

FIXTURE_VARIANT_ADD(dma_heap, coherent_type1) {
	.mode = MODE_VFIO_TYPE1V2_IOMMU,
};

FIXTURE_VARIANT_ADD(dma_heap, coherent_iommufd) {
	.mode = MODE_IOMMUFD,
};

FIXTURE_SETUP(dma_heap)
{
	const char *name = variant->heap ?: coherent_heap();
	struct dma_region *region = &self->region;
	int heap, buf;

	if (!name)
		SKIP(return, "no heap of coherent reserved memory");
	heap = open_heap(name);
	if (heap < 0)
		SKIP(return, "%s: %s", name, strerror(errno));
	region->size = 16 * getpagesize();
	region->iova = 0xd0000000;
	buf = alloc(heap, region->size);
	ASSERT_LE(0, buf);
	region->vaddr = mmap(NULL, region->size, PROT_READ | PROT_WRITE, MAP_SHARED, buf, 0);
	ASSERT_NE(MAP_FAILED, region->vaddr);
	close(buf);
	close(heap);
	self->iommu = iommu_init(variant->mode);
	self->device = vfio_pci_device_init(device_bdf, self->iommu);
}

FIXTURE_TEARDOWN(dma_heap)
{
	vfio_pci_device_cleanup(self->device);
	iommu_cleanup(self->iommu);
	munmap(self->region.vaddr, self->region.size);
}

TEST_F(dma_heap, address)
{
	EXPECT_EQ(-EFAULT, __iommu_map(self->iommu, &self->region));
	/* Not if it has been touched, either */
	memset(self->region.vaddr, 1, self->region.size);
	EXPECT_EQ(-EFAULT, __iommu_map(self->iommu, &self->region));
}

int main(int argc, char *argv[])
{
	device_bdf = vfio_selftests_get_bdf(&argc, argv);
	return test_harness_run(argc, argv);
}

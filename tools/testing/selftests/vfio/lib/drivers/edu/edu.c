// SPDX-License-Identifier: GPL-2.0-only
/*
 * The educational device of QEMU (docs/specs/edu.txt there). Its DMA engine
 * moves data between memory and a buffer of the device, so a copy is two
 * transfers, of which each takes 100 ms.
 *
 * The device cuts DMA addresses off at its property dma_mask, 28 bits by
 * default, so dma_mask has to cover the IOVAs that are used.
 */
#include <stdint.h>
#include <unistd.h>

#include <linux/bits.h>
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/sizes.h>

#include <libvfio.h>

#define PCI_VENDOR_ID_QEMU_EDU	0x1234
#define PCI_DEVICE_ID_QEMU_EDU	0x11e8

/* Registers below 0x80 take accesses of 4 bytes, those above of 4 or 8 bytes */
#define EDU_ID			0x00
#define   EDU_ID_MASK		0xffff
#define   EDU_ID_EDU		0x00ed
#define EDU_STATUS		0x20
#define EDU_IRQ_STATUS		0x24
#define EDU_IRQ_RAISE		0x60
#define EDU_IRQ_ACK		0x64
#define EDU_DMA_SRC		0x80
#define EDU_DMA_DST		0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_CMD		0x98
#define   EDU_DMA_CMD_RUN	BIT(0)
#define   EDU_DMA_CMD_TO_RAM	BIT(1)

/* The address of the buffer, as EDU_DMA_SRC or EDU_DMA_DST */
#define EDU_BUFFER		0x40000

/*
 * The buffer has 4096 bytes. QEMU aborts on a transfer that leaves it, and some
 * versions, 7.2 among them, also on one that ends where the buffer ends.
 */
#define EDU_MAX_MEMCPY_SIZE	SZ_2K

/* About 3 seconds */
#define EDU_MAX_MEMCPY_COUNT	16

#define EDU_MSI			0

struct edu_state {
	/* The copies that memcpy_wait() has to complete */
	iova_t src;
	iova_t dst;
	u64 size;
	u64 count;
};

static inline struct edu_state *to_edu_state(struct vfio_pci_device *device)
{
	return device->driver.region.vaddr;
}

static int edu_probe(struct vfio_pci_device *device)
{
	u32 id;

	if (!vfio_pci_device_match(device, PCI_VENDOR_ID_QEMU_EDU,
				   PCI_DEVICE_ID_QEMU_EDU))
		return -EINVAL;

	VFIO_ASSERT_NOT_NULL(device->bars[0].vaddr);

	id = readl(device->bars[0].vaddr + EDU_ID);
	if ((id & EDU_ID_MASK) != EDU_ID_EDU) {
		dev_err(device, "edu: Unsupported identification: 0x%x\n", id);
		return -EINVAL;
	}

	return 0;
}

static void edu_dma_start(struct vfio_pci_device *device, u64 src, u64 dst,
			  u64 size, u64 direction)
{
	void *bar0 = device->bars[0].vaddr;

	writeq(src, bar0 + EDU_DMA_SRC);
	writeq(dst, bar0 + EDU_DMA_DST);
	writeq(size, bar0 + EDU_DMA_COUNT);
	writeq(EDU_DMA_CMD_RUN | direction, bar0 + EDU_DMA_CMD);
}

static void edu_dma_wait(struct vfio_pci_device *device)
{
	u32 sleep_ms = 1, attempts = 10000 / sleep_ms;

	while (readq(device->bars[0].vaddr + EDU_DMA_CMD) & EDU_DMA_CMD_RUN) {
		VFIO_ASSERT_GT(--attempts, 0);
		usleep(sleep_ms * 1000);
	}
}

static void edu_memcpy_read(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	edu_dma_start(device, edu->src, EDU_BUFFER, edu->size, 0);
}

static void edu_memcpy_write(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	edu_dma_start(device, EDU_BUFFER, edu->dst, edu->size, EDU_DMA_CMD_TO_RAM);
}

static void edu_init(struct vfio_pci_device *device)
{
	void *bar0 = device->bars[0].vaddr;

	VFIO_ASSERT_GE(device->driver.region.size, sizeof(struct edu_state));

	/*
	 * No reset ends a transfer, and what has been left running must not
	 * reach memory: wait for it before the device becomes bus master.
	 */
	edu_dma_wait(device);

	/* Nor does a reset clear the interrupts that were raised or asked for. */
	writel(0, bar0 + EDU_STATUS);
	writel(readl(bar0 + EDU_IRQ_STATUS), bar0 + EDU_IRQ_ACK);

	vfio_pci_cmd_set(device, PCI_COMMAND_MASTER);
	vfio_pci_msi_enable(device, EDU_MSI, 1);

	device->driver.max_memcpy_size = EDU_MAX_MEMCPY_SIZE;
	device->driver.max_memcpy_count = EDU_MAX_MEMCPY_COUNT;
	device->driver.msi = EDU_MSI;
}

static void edu_remove(struct vfio_pci_device *device)
{
	vfio_pci_msi_disable(device);
	vfio_pci_cmd_clear(device, PCI_COMMAND_MASTER);
}

/*
 * The device takes one transfer at a time. The first one is started here, the
 * others are started by memcpy_wait().
 */
static void edu_memcpy_start(struct vfio_pci_device *device,
			     iova_t src, iova_t dst, u64 size, u64 count)
{
	struct edu_state *edu = to_edu_state(device);

	/* QEMU aborts on a transfer of nothing, too. */
	VFIO_ASSERT_GT(size, 0);
	VFIO_ASSERT_GT(count, 0);

	edu->src = src;
	edu->dst = dst;
	edu->size = size;
	edu->count = count;

	edu_memcpy_read(device);
}

/* The device does not tell if its access to an IOVA failed: there are no errors. */
static int edu_memcpy_wait(struct vfio_pci_device *device)
{
	struct edu_state *edu = to_edu_state(device);

	for (;;) {
		edu_dma_wait(device);
		edu_memcpy_write(device);
		edu_dma_wait(device);

		if (!--edu->count)
			break;

		edu_memcpy_read(device);
	}

	return 0;
}

/*
 * Raising the interrupt sends the MSI. It would be sent again only by raising
 * it again, acknowledged or not.
 */
static void edu_send_msi(struct vfio_pci_device *device)
{
	void *bar0 = device->bars[0].vaddr;

	writel(1, bar0 + EDU_IRQ_RAISE);
	writel(1, bar0 + EDU_IRQ_ACK);
}

const struct vfio_pci_driver_ops edu_ops = {
	.name = "edu",
	.probe = edu_probe,
	.init = edu_init,
	.remove = edu_remove,
	.memcpy_start = edu_memcpy_start,
	.memcpy_wait = edu_memcpy_wait,
	.send_msi = edu_send_msi,
};

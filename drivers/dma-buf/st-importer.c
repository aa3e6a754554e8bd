// SPDX-License-Identifier: GPL-2.0
/*
 * Devices that import dma-bufs, for the KUnit suites of exporters. What such a
 * device reads and writes, it reads and writes at the DMA addresses that it got:
 * in a bounce buffer if there is one.
 */
#include <linux/delay.h>
#include <linux/dma-direct.h>
#include <linux/dma-fence.h>
#include <linux/dma-map-ops.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/io.h>
#include <linux/iommu-dma.h>
#include <linux/ioport.h>
#include <linux/kthread.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/sizes.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <kunit/device.h>
#include <kunit/visibility.h>
#include <uapi/linux/dma-heap.h>

#include "st-importer.h"

#define SIZE	SZ_64K

static const struct st_device st_devices[] = {
	{ "coherent", DMA_BIT_MASK(64), UINT_MAX, true },
	{ "noncoherent", DMA_BIT_MASK(64), UINT_MAX, false },
	{ "segments of 64 KiB", DMA_BIT_MASK(64), SZ_64K, false },
	/* its DMA to memory beyond 4 GiB is bounced */
	{ "mask of 32 bits", DMA_BIT_MASK(32), SZ_64K, false },
	{}
};

/**
 * st_device_gen_params() - for KUNIT_CASE_PARAM(): each of st_devices
 * @test: the test
 * @prev: the device before
 * @desc: takes the name of this one
 *
 * Context: The thread of a test.
 * Return: the device, or NULL after the last one.
 */
const void *st_device_gen_params(struct kunit *test, const void *prev, char *desc)
{
	const struct st_device *next = prev;

	next = next ? next + 1 : st_devices;
	if (!next->name)
		return NULL;
	strscpy(desc, next->name, KUNIT_PARAM_DESC_SIZE);
	return next;
}
EXPORT_SYMBOL_IF_KUNIT(st_device_gen_params);

KUNIT_DEFINE_ACTION_WRAPPER(put_buffer, dma_buf_put, struct dma_buf *);

static void detach(void *data)
{
	struct dma_buf_attachment *attach = data;

	dma_buf_detach(attach->dmabuf, attach);
}

static struct device *new_device(struct kunit *test, const struct st_device *params)
{
	static atomic_t number;
	struct device *dev;
	char name[32];

	snprintf(name, sizeof(name), "importer%d", atomic_inc_return(&number));
	dev = kunit_device_register(test, name);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	if (get_dma_ops(dev) || use_dma_iommu(dev))
		kunit_skip(test, "its DMA addresses are not known to be those of memory");
	dev->dma_parms = kunit_kzalloc(test, sizeof(*dev->dma_parms), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, dev->dma_parms);
	dma_set_max_seg_size(dev, params->max_seg_size);
	dev_assign_dma_coherent(dev, params->coherent);
	if (dma_set_mask_and_coherent(dev, params->dma_mask))
		kunit_skip(test, "no DMA with this mask here");
	return dev;
}

/**
 * st_attach() - attach a new device to a buffer
 * @test: the test
 * @buf: the buffer
 * @params: what kind of device
 *
 * Until the end of the test, or st_detach().
 *
 * Context: The thread of a test.
 * Return: the attachment.
 */
struct dma_buf_attachment *st_attach(struct kunit *test, struct dma_buf *buf,
				     const struct st_device *params)
{
	struct dma_buf_attachment *attach = dma_buf_attach(buf, new_device(test, params));

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, attach);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, detach, attach), 0);
	return attach;
}
EXPORT_SYMBOL_IF_KUNIT(st_attach);

/**
 * st_detach() - end an attachment before the end of the test
 * @test: the test
 * @attach: of st_attach()
 *
 * Context: The thread of a test.
 */
void st_detach(struct kunit *test, struct dma_buf_attachment *attach)
{
	kunit_release_action(test, detach, attach);
}
EXPORT_SYMBOL_IF_KUNIT(st_detach);

/*
 * What a device sees that does not see the caches of the CPU is memory itself. All
 * that the test lets the CPU have in its caches goes by another mapping.
 */
static bool is_mapped(phys_addr_t phys)
{
	return region_intersects(PAGE_ALIGN_DOWN(phys), PAGE_SIZE, IORESOURCE_SYSTEM_RAM,
				 IORES_DESC_NONE) != REGION_DISJOINT;
}

static void *map_as_device(struct device *dev, phys_addr_t phys)
{
	struct page *page;

	if (!is_mapped(phys))
		return memremap(PAGE_ALIGN_DOWN(phys), PAGE_SIZE, MEMREMAP_WC);
	page = pfn_to_page(PHYS_PFN(phys));
	if (dev_is_dma_coherent(dev))
		return kmap_local_page(page);
	return vmap(&page, 1, VM_MAP, pgprot_dmacoherent(PAGE_KERNEL));
}

static void unmap_as_device(struct device *dev, phys_addr_t phys, void *addr)
{
	if (!is_mapped(phys))
		memunmap(addr);
	else if (dev_is_dma_coherent(dev))
		kunmap_local(addr);
	else
		vunmap(addr);
}

/* Call @func for each page that the device reaches, until it returns false */
static bool dma_pages(struct dma_buf_attachment *attach, struct sg_table *sgt,
		      bool (*func)(void *addr, size_t len, u8 value), u8 value)
{
	struct scatterlist *sg;
	bool more = true;
	int i;

	for_each_sgtable_dma_sg(sgt, sg, i) {
		phys_addr_t phys = dma_to_phys(attach->dev, sg_dma_address(sg));
		phys_addr_t end = phys + sg_dma_len(sg);
		size_t len;
		void *addr;

		for (; more && phys < end; phys += len) {
			len = min_t(size_t, end - phys, PAGE_SIZE - offset_in_page(phys));
			addr = map_as_device(attach->dev, phys);
			more = addr && func(addr + offset_in_page(phys), len, value);
			unmap_as_device(attach->dev, phys, addr);
		}
	}
	return more;
}

static bool fill(void *addr, size_t len, u8 value)
{
	memset(addr, value, len);
	return true;
}

static bool holds(void *addr, size_t len, u8 value)
{
	return !memchr_inv(addr, value, len);
}

/**
 * st_device_write() - the device writes to all of the buffer
 * @attach: of st_attach()
 * @sgt: what the device has mapped
 * @value: of each byte
 *
 * Context: The thread of a test.
 */
void st_device_write(struct dma_buf_attachment *attach, struct sg_table *sgt, u8 value)
{
	dma_pages(attach, sgt, fill, value);
}
EXPORT_SYMBOL_IF_KUNIT(st_device_write);

/**
 * st_device_reads() - the device reads all of the buffer
 * @attach: of st_attach()
 * @sgt: what the device has mapped
 * @value: of each byte
 *
 * Context: The thread of a test.
 * Return: whether each byte has the value.
 */
bool st_device_reads(struct dma_buf_attachment *attach, struct sg_table *sgt, u8 value)
{
	return dma_pages(attach, sgt, holds, value);
}
EXPORT_SYMBOL_IF_KUNIT(st_device_reads);

/* A suite's threads have no file system, so this is opened for them */
static struct file *exporter, *error_count;

/**
 * st_open() - open what a suite needs
 * @path: of the device that exports the buffers of the suite, or NULL
 *
 * To be called as suite_init.
 *
 * Context: The process that runs the suite.
 * Return: 0.
 */
int st_open(const char *path)
{
	exporter = path ? filp_open(path, O_RDWR, 0) : NULL;
	error_count = filp_open("/sys/kernel/debug/dma-api/error_count", O_RDONLY, 0);
	return 0;
}
EXPORT_SYMBOL_IF_KUNIT(st_open);

/**
 * st_close() - the suite_exit that goes with st_open()
 * @suite: the suite
 *
 * Context: The process that runs the suite.
 */
void st_close(struct kunit_suite *suite)
{
	if (!IS_ERR_OR_NULL(exporter))
		fput(exporter);
	if (!IS_ERR_OR_NULL(error_count))
		fput(error_count);
	exporter = NULL;
	error_count = NULL;
}
EXPORT_SYMBOL_IF_KUNIT(st_close);

/**
 * st_need_exporter() - skip the test if st_open() has not found the device
 * @test: the test
 *
 * Context: The thread of a test that has taken nothing yet.
 */
void st_need_exporter(struct kunit *test)
{
	if (IS_ERR_OR_NULL(exporter))
		kunit_skip(test, "no device, error %ld", PTR_ERR(exporter));
}
EXPORT_SYMBOL_IF_KUNIT(st_need_exporter);

/**
 * st_file_ioctl() - call ioctl() of a file, as user space does
 * @test: the test
 * @file: the file
 * @cmd: the command
 * @arg: its argument, which is copied to user memory and back
 * @size: of the argument, in bytes
 *
 * Context: The thread of a test.
 * Return: what the ioctl returns.
 */
long st_file_ioctl(struct kunit *test, struct file *file, unsigned int cmd, void *arg,
		   size_t size)
{
	unsigned long user;
	long ret;

	user = kunit_vm_mmap(test, NULL, 0, PAGE_ALIGN(size), PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_FALSE(test, !user || IS_ERR_VALUE(user));
	KUNIT_ASSERT_EQ(test, copy_to_user((void __user *)user, arg, size), 0);
	ret = file->f_op->unlocked_ioctl(file, cmd, user);
	KUNIT_ASSERT_EQ(test, copy_from_user(arg, (void __user *)user, size), 0);
	return ret;
}
EXPORT_SYMBOL_IF_KUNIT(st_file_ioctl);

/**
 * st_ioctl() - st_file_ioctl() of the device of st_open()
 * @test: the test
 * @cmd: the command
 * @arg: its argument
 * @size: of the argument, in bytes
 *
 * Context: The thread of a test.
 * Return: what the ioctl returns.
 */
long st_ioctl(struct kunit *test, unsigned int cmd, void *arg, size_t size)
{
	return st_file_ioctl(test, exporter, cmd, arg, size);
}
EXPORT_SYMBOL_IF_KUNIT(st_ioctl);

/**
 * st_buffer_of_fd() - take the buffer of an fd, which is closed
 * @test: the test
 * @fd: of the thread of the test
 *
 * Context: The thread of a test.
 * Return: the buffer, until the end of the test.
 */
struct dma_buf *st_buffer_of_fd(struct kunit *test, int fd)
{
	struct dma_buf *buf = dma_buf_get(fd);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, buf);
	close_fd(fd);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_buffer, buf), 0);
	return buf;
}
EXPORT_SYMBOL_IF_KUNIT(st_buffer_of_fd);

/**
 * st_put_buffer() - drop the reference of st_buffer_of_fd() before the end of the test
 * @test: the test
 * @buf: the buffer, whose exporter has released it on return if this was the last one
 *
 * Context: The thread of a test.
 */
void st_put_buffer(struct kunit *test, struct dma_buf *buf)
{
	kunit_release_action(test, put_buffer, buf);
	flush_delayed_fput();
}
EXPORT_SYMBOL_IF_KUNIT(st_put_buffer);

/**
 * st_heap_alloc() - allocate from the heap of st_open(), for test->priv
 * @test: the test
 * @size: of the buffer, in bytes
 *
 * Context: The thread of a test.
 * Return: the buffer, until the end of the test, or st_put_buffer().
 */
struct dma_buf *st_heap_alloc(struct kunit *test, size_t size)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = O_RDWR | O_CLOEXEC,
	};

	KUNIT_ASSERT_EQ(test, st_ioctl(test, DMA_HEAP_IOCTL_ALLOC, &data, sizeof(data)), 0);
	return st_buffer_of_fd(test, data.fd);
}
EXPORT_SYMBOL_IF_KUNIT(st_heap_alloc);

/**
 * st_need_dma_errors() - skip the test if errors are not counted
 * @test: the test
 *
 * Context: The thread of a test that has taken nothing yet.
 */
void st_need_dma_errors(struct kunit *test)
{
	if (IS_ERR_OR_NULL(error_count))
		kunit_skip(test, "no CONFIG_DMA_API_DEBUG, or no debugfs");
}
EXPORT_SYMBOL_IF_KUNIT(st_need_dma_errors);

/**
 * st_dma_errors() - how many errors CONFIG_DMA_API_DEBUG has counted
 * @test: the test
 *
 * Context: The thread of a test.
 * Return: their number, 0 without it.
 */
u32 st_dma_errors(struct kunit *test)
{
	unsigned long user;
	char text[16] = "";
	loff_t pos = 0;
	u32 count = 0;

	if (IS_ERR_OR_NULL(error_count))
		return 0;
	user = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_EXPECT_FALSE(test, !user || IS_ERR_VALUE(user));
	KUNIT_EXPECT_GT(test, error_count->f_op->read(error_count, (char __user *)user,
						      sizeof(text) - 1, &pos), 0);
	KUNIT_EXPECT_EQ(test, copy_from_user(text, (void __user *)user, sizeof(text) - 1), 0);
	KUNIT_EXPECT_EQ(test, kstrtou32(strim(text), 10, &count), 0);
	return count;
}
EXPORT_SYMBOL_IF_KUNIT(st_dma_errors);

static struct dma_buf *new_buffer(struct kunit *test, size_t size)
{
	st_alloc_t alloc = test->priv;

	return alloc(test, size);
}

/* The mapping of the buffer by a process, for cpu_write() and cpu_reads() */
static void __user *map_for_cpu(struct kunit *test, struct dma_buf *buf)
{
	unsigned long addr = kunit_vm_mmap(test, buf->file, 0, buf->size,
					   PROT_READ | PROT_WRITE, MAP_SHARED, 0);

	KUNIT_ASSERT_FALSE(test, !addr || IS_ERR_VALUE(addr));
	return (void __user *)addr;
}

static void cpu_write(struct kunit *test, void __user *addr, u8 value)
{
	void *data = kunit_kmalloc(test, SIZE, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, data);
	memset(data, value, SIZE);
	KUNIT_EXPECT_EQ(test, copy_to_user(addr, data, SIZE), 0);
	kunit_kfree(test, data);
}

static bool cpu_reads(struct kunit *test, void __user *addr, u8 value)
{
	void *data = kunit_kmalloc(test, SIZE, GFP_KERNEL);
	bool ret;

	KUNIT_ASSERT_NOT_NULL(test, data);
	KUNIT_EXPECT_EQ(test, copy_from_user(data, addr, SIZE), 0);
	ret = holds(data, SIZE, value);
	kunit_kfree(test, data);
	return ret;
}

static struct sg_table *map(struct kunit *test, struct dma_buf_attachment *attach,
			    enum dma_data_direction dir)
{
	struct sg_table *sgt = dma_buf_map_attachment_unlocked(attach, dir);

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, sgt);
	return sgt;
}

#define unmap dma_buf_unmap_attachment_unlocked
#define begin(test, buf, dir) \
	KUNIT_EXPECT_EQ(test, dma_buf_begin_cpu_access(buf, dir), 0)
#define end(test, buf, dir) \
	KUNIT_EXPECT_EQ(test, dma_buf_end_cpu_access(buf, dir), 0)

/**
 * st_case_sync() - no direction of device or CPU is an error of the DMA API
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_sync(struct kunit *test)
{
	static const enum dma_data_direction dirs[] = {
		DMA_BIDIRECTIONAL, DMA_TO_DEVICE, DMA_FROM_DEVICE,
	};
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	u32 before, after;
	int dev, cpu;

	for (dev = 0; dev < ARRAY_SIZE(dirs); dev++) {
		for (cpu = 0; cpu < ARRAY_SIZE(dirs); cpu++) {
			struct sg_table *sgt;

			before = st_dma_errors(test);
			begin(test, buf, dirs[cpu]);
			sgt = map(test, attach, dirs[dev]);
			end(test, buf, dirs[cpu]);
			begin(test, buf, dirs[cpu]);
			begin(test, buf, dirs[cpu]);
			end(test, buf, dirs[cpu]);
			end(test, buf, dirs[cpu]);
			begin(test, buf, dirs[cpu]);
			unmap(attach, sgt, dirs[dev]);
			end(test, buf, dirs[cpu]);
			after = st_dma_errors(test);
			KUNIT_EXPECT_EQ_MSG(test, before, after, "device %d, CPU %d",
					    dirs[dev], dirs[cpu]);
		}
	}
}
EXPORT_SYMBOL_IF_KUNIT(st_case_sync);

/**
 * st_case_device_writes() - the CPU sees what the device has written, in a SYNC and after the unmap
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_device_writes(struct kunit *test)
{
	static const enum dma_data_direction dirs[] = { DMA_FROM_DEVICE, DMA_BIDIRECTIONAL };
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	void __user *addr = map_for_cpu(test, buf);
	struct sg_table *sgt;
	int i;

	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		begin(test, buf, DMA_BIDIRECTIONAL);
		cpu_write(test, addr, 0x11);
		end(test, buf, DMA_BIDIRECTIONAL);
		sgt = map(test, attach, dirs[i]);
		st_device_write(attach, sgt, 0x22);
		begin(test, buf, DMA_FROM_DEVICE);
		KUNIT_EXPECT_TRUE_MSG(test, cpu_reads(test, addr, 0x22), "direction %d", dirs[i]);
		end(test, buf, DMA_FROM_DEVICE);
		st_device_write(attach, sgt, 0x33);
		unmap(attach, sgt, dirs[i]);
		KUNIT_EXPECT_TRUE_MSG(test, cpu_reads(test, addr, 0x33), "direction %d", dirs[i]);
	}
}
EXPORT_SYMBOL_IF_KUNIT(st_case_device_writes);

/**
 * st_case_cpu_writes() - the device sees what the CPU has written, from the map on and after a SYNC
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_cpu_writes(struct kunit *test)
{
	static const enum dma_data_direction dirs[] = { DMA_TO_DEVICE, DMA_BIDIRECTIONAL };
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	void __user *addr = map_for_cpu(test, buf);
	struct sg_table *sgt;
	int i;

	for (i = 0; i < ARRAY_SIZE(dirs); i++) {
		cpu_write(test, addr, 0x44);
		sgt = map(test, attach, dirs[i]);
		KUNIT_EXPECT_TRUE_MSG(test, st_device_reads(attach, sgt, 0x44), "direction %d",
				      dirs[i]);
		begin(test, buf, DMA_TO_DEVICE);
		cpu_write(test, addr, 0x55);
		end(test, buf, DMA_TO_DEVICE);
		KUNIT_EXPECT_TRUE_MSG(test, st_device_reads(attach, sgt, 0x55), "direction %d",
				      dirs[i]);
		unmap(attach, sgt, dirs[i]);
		KUNIT_EXPECT_TRUE(test, cpu_reads(test, addr, 0x55));
	}
}
EXPORT_SYMBOL_IF_KUNIT(st_case_cpu_writes);

/**
 * st_case_reading_keeps() - a CPU that reads does not overwrite what the device writes meanwhile
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_reading_keeps(struct kunit *test)
{
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	void __user *addr = map_for_cpu(test, buf);
	struct sg_table *sgt = map(test, attach, DMA_BIDIRECTIONAL);

	begin(test, buf, DMA_FROM_DEVICE);
	st_device_write(attach, sgt, 0x66);
	end(test, buf, DMA_FROM_DEVICE);
	KUNIT_EXPECT_TRUE(test, st_device_reads(attach, sgt, 0x66));
	begin(test, buf, DMA_FROM_DEVICE);
	KUNIT_EXPECT_TRUE(test, cpu_reads(test, addr, 0x66));
	end(test, buf, DMA_FROM_DEVICE);
	unmap(attach, sgt, DMA_BIDIRECTIONAL);
}
EXPORT_SYMBOL_IF_KUNIT(st_case_reading_keeps);

/**
 * st_case_two_importers() - one device writes, another one reads what a SYNC has passed on
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_two_importers(struct kunit *test)
{
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *writer = st_attach(test, buf, test->param_value);
	struct dma_buf_attachment *reader = st_attach(test, buf, &st_devices[0]);
	void __user *addr = map_for_cpu(test, buf);
	u32 errors = st_dma_errors(test);
	struct sg_table *from, *to, *both;

	from = map(test, writer, DMA_FROM_DEVICE);
	to = map(test, reader, DMA_TO_DEVICE);
	st_device_write(writer, from, 0x77);
	begin(test, buf, DMA_BIDIRECTIONAL);
	end(test, buf, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_TRUE(test, st_device_reads(reader, to, 0x77));
	unmap(reader, to, DMA_TO_DEVICE);

	/* one that could have written does not hide what the other one has */
	both = map(test, reader, DMA_BIDIRECTIONAL);
	st_device_write(writer, from, 0x88);
	begin(test, buf, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_TRUE(test, cpu_reads(test, addr, 0x88));
	end(test, buf, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_TRUE(test, st_device_reads(reader, both, 0x88));
	unmap(writer, from, DMA_FROM_DEVICE);
	from = map(test, writer, DMA_FROM_DEVICE);
	st_device_write(writer, from, 0x99);
	begin(test, buf, DMA_FROM_DEVICE);
	KUNIT_EXPECT_TRUE(test, cpu_reads(test, addr, 0x99));
	end(test, buf, DMA_FROM_DEVICE);
	unmap(reader, both, DMA_BIDIRECTIONAL);
	unmap(writer, from, DMA_FROM_DEVICE);
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}
EXPORT_SYMBOL_IF_KUNIT(st_case_two_importers);

/**
 * st_case_segments() - no segment is too long for the device, and none is missing
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_segments(struct kunit *test)
{
	const struct st_device *params = test->param_value;
	size_t size = SZ_1M + PAGE_SIZE, sum = 0;
	struct dma_buf *buf = new_buffer(test, size);
	struct dma_buf_attachment *attach = st_attach(test, buf, params);
	u32 errors = st_dma_errors(test);
	struct scatterlist *sg;
	struct sg_table *sgt;
	int i;

	sgt = map(test, attach, DMA_BIDIRECTIONAL);
	for_each_sgtable_dma_sg(sgt, sg, i) {
		KUNIT_EXPECT_LE(test, sg_dma_len(sg), params->max_seg_size);
		sum += sg_dma_len(sg);
	}
	KUNIT_EXPECT_EQ(test, sum, size);
	unmap(attach, sgt, DMA_BIDIRECTIONAL);
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}
EXPORT_SYMBOL_IF_KUNIT(st_case_segments);

static const char *st_fence_name(struct dma_fence *fence)
{
	return "st-importer";
}

static const struct dma_fence_ops st_fence_ops = {
	.get_driver_name = st_fence_name,
	.get_timeline_name = st_fence_name,
};

struct st_job {
	struct dma_buf_attachment *attach;
	struct sg_table *sgt;
	struct dma_fence *fence;
};

/* A device that is done with its job after a while */
static int run_job(void *data)
{
	struct st_job *job = data;

	msleep(20);
	st_device_write(job->attach, job->sgt, 0xaa);
	dma_fence_signal(job->fence);
	while (!kthread_should_stop())
		schedule_timeout_interruptible(HZ);
	return 0;
}

static void stop_thread(void *task)
{
	kthread_stop(task);
}

KUNIT_DEFINE_ACTION_WRAPPER(put_fence, dma_fence_put, struct dma_fence *);

/**
 * st_case_waits() - the CPU sees what a device writes that is still busy when the SYNC begins
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_waits(struct kunit *test)
{
	struct dma_buf *buf = new_buffer(test, SIZE);
	struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
	void __user *addr = map_for_cpu(test, buf);
	struct st_job *job = kunit_kzalloc(test, sizeof(*job), GFP_KERNEL);
	struct task_struct *task;

	KUNIT_ASSERT_NOT_NULL(test, job);
	job->attach = attach;
	/* the fence outlives the test, in the buffer */
	job->fence = kzalloc_obj(*job->fence);
	KUNIT_ASSERT_NOT_NULL(test, job->fence);
	dma_fence_init(job->fence, &st_fence_ops, NULL, dma_fence_context_alloc(1), 1);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, put_fence, job->fence), 0);
	job->sgt = map(test, attach, DMA_FROM_DEVICE);
	dma_resv_lock(buf->resv, NULL);
	if (!dma_resv_reserve_fences(buf->resv, 1))
		dma_resv_add_fence(buf->resv, job->fence, DMA_RESV_USAGE_WRITE);
	dma_resv_unlock(buf->resv);

	task = kthread_run(run_job, job, "st-job");
	if (IS_ERR(task))
		dma_fence_signal(job->fence);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, task);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, stop_thread, task), 0);
	begin(test, buf, DMA_FROM_DEVICE);
	KUNIT_EXPECT_TRUE(test, dma_fence_is_signaled(job->fence));
	KUNIT_EXPECT_TRUE(test, cpu_reads(test, addr, 0xaa));
	end(test, buf, DMA_FROM_DEVICE);
	kunit_release_action(test, stop_thread, task);
	unmap(attach, job->sgt, DMA_FROM_DEVICE);
}
EXPORT_SYMBOL_IF_KUNIT(st_case_waits);

static int sync_all_the_time(void *data)
{
	struct dma_buf *buf = data;
	unsigned int i;

	for (i = 0; !kthread_should_stop(); i++) {
		enum dma_data_direction dir = i % DMA_NONE;

		dma_buf_begin_cpu_access(buf, dir);
		dma_buf_end_cpu_access(buf, dir);
		cond_resched();
	}
	return 0;
}

/**
 * st_case_map_while_syncing() - a SYNC meets attachments and mappings that come and go
 * @test: the test
 *
 * Context: The thread of a test.
 */
void st_case_map_while_syncing(struct kunit *test)
{
	struct dma_buf *buf = new_buffer(test, SIZE);
	u32 errors = st_dma_errors(test);
	struct task_struct *task;
	int i;

	task = kthread_run(sync_all_the_time, buf, "st-sync");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, task);
	KUNIT_ASSERT_EQ(test, kunit_add_action_or_reset(test, stop_thread, task), 0);
	for (i = 0; i < 20; i++) {
		enum dma_data_direction dir = i % DMA_NONE;
		struct dma_buf_attachment *attach = st_attach(test, buf, test->param_value);
		struct device *dev = attach->dev;
		struct sg_table *sgt;
		int j;

		for (j = 0; j < 5; j++) {
			sgt = dma_buf_map_attachment_unlocked(attach, dir);
			if (IS_ERR(sgt)) {
				KUNIT_FAIL(test, "map: error %ld", PTR_ERR(sgt));
				break;
			}
			cond_resched();
			unmap(attach, sgt, dir);
		}
		st_detach(test, attach);
		kunit_device_unregister(test, dev);
	}
	kunit_release_action(test, stop_thread, task);
	KUNIT_EXPECT_EQ(test, errors, st_dma_errors(test));
}
EXPORT_SYMBOL_IF_KUNIT(st_case_map_while_syncing);

MODULE_DESCRIPTION("KUnit importers of dma-bufs");
MODULE_LICENSE("GPL");
MODULE_IMPORT_NS("DMA_BUF");

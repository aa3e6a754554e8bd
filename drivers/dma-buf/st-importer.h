/* SPDX-License-Identifier: GPL-2.0 */
/*
 * For the KUnit suites of exporters: devices that import their buffers and reach
 * them by DMA address, and cases that every exporter has to pass.
 */
#ifndef ST_IMPORTER_H
#define ST_IMPORTER_H

#include <linux/dma-buf.h>
#include <linux/fs.h>
#include <linux/types.h>
#include <kunit/test.h>

/**
 * struct st_device - a device that imports dma-bufs
 * @name:		of the test case
 * @dma_mask:		addresses that it can reach
 * @max_seg_size:	of one segment, in bytes
 * @coherent:		it sees the caches of the CPU, where the architecture
 *			lets a device not do so
 */
struct st_device {
	const char *name;
	u64 dma_mask;
	unsigned int max_seg_size;
	bool coherent;
};

/* The exporter under test: what test->priv has to be for the cases below */
typedef struct dma_buf *(*st_alloc_t)(struct kunit *test, size_t size);

struct dma_buf_attachment *st_attach(struct kunit *test, struct dma_buf *buf,
				     const struct st_device *params);
void st_detach(struct kunit *test, struct dma_buf_attachment *attach);
void st_device_write(struct dma_buf_attachment *attach, struct sg_table *sgt,
		     u8 value);
bool st_device_reads(struct dma_buf_attachment *attach, struct sg_table *sgt,
		     u8 value);

struct dma_buf *st_dma_buf_alloc(struct kunit *test, size_t size);
void st_dma_buf_put(struct kunit *test, struct dma_buf *buf);
int st_dma_buf_count(void);

int st_open(const char *path);
void st_close(struct kunit_suite *suite);
void st_need_exporter(struct kunit *test);
long st_ioctl(struct kunit *test, unsigned int cmd, void *arg, size_t size);
long st_file_ioctl(struct kunit *test, struct file *file, unsigned int cmd, void *arg,
		   size_t size);
struct dma_buf *st_buffer_of_fd(struct kunit *test, int fd);
void st_put_buffer(struct kunit *test, struct dma_buf *buf);
struct dma_buf *st_heap_alloc(struct kunit *test, size_t size);
void st_need_dma_errors(struct kunit *test);
u32 st_dma_errors(struct kunit *test);

const void *st_device_gen_params(struct kunit *test, const void *prev, char *desc);
void st_case_sync(struct kunit *test);
void st_case_device_writes(struct kunit *test);
void st_case_cpu_writes(struct kunit *test);
void st_case_reading_keeps(struct kunit *test);
void st_case_two_importers(struct kunit *test);
void st_case_waits(struct kunit *test);
void st_case_segments(struct kunit *test);
void st_case_map_while_syncing(struct kunit *test);

/* All of them, for the kunit_case array of a suite */
#define ST_EXPORTER_CASES						\
	KUNIT_CASE_PARAM(st_case_sync, st_device_gen_params),		\
	KUNIT_CASE_PARAM(st_case_device_writes, st_device_gen_params),	\
	KUNIT_CASE_PARAM(st_case_cpu_writes, st_device_gen_params),	\
	KUNIT_CASE_PARAM(st_case_reading_keeps, st_device_gen_params),	\
	KUNIT_CASE_PARAM(st_case_two_importers, st_device_gen_params),	\
	KUNIT_CASE_PARAM(st_case_waits, st_device_gen_params),		\
	KUNIT_CASE_PARAM(st_case_segments, st_device_gen_params),	\
	KUNIT_CASE_PARAM(st_case_map_while_syncing, st_device_gen_params)

#endif

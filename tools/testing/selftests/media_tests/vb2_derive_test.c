// SPDX-License-Identifier: GPL-2.0
/*
 * Output queues of drivers that only read from them take dma-bufs that were
 * derived for reading, and do with them what they do with others. Capture queues
 * refuse them, with EACCES, whatever fd of the buffer was queued before.
 */
#include <linux/media.h>

#include "../kselftest_harness.h"
#include "vb2_derive.h"

FIXTURE(queue) {
	int node;
	struct buffer src, dst;
};

FIXTURE_VARIANT(queue) {
	const char *driver;
	uint32_t caps, out, cap;
	bool mem2mem;
};

FIXTURE_VARIANT_ADD(queue, vim2m) {
	.driver = "vim2m",
	.caps = V4L2_CAP_VIDEO_M2M,
	.mem2mem = true,
	.out = V4L2_PIX_FMT_RGB565,
	.cap = V4L2_PIX_FMT_RGB565,
};

FIXTURE_VARIANT_ADD(queue, vicodec_encoder) {
	.driver = "vicodec",
	.caps = V4L2_CAP_VIDEO_M2M,
	.mem2mem = true,
	.out = V4L2_PIX_FMT_YUV420,
	.cap = V4L2_PIX_FMT_FWHT,
};

FIXTURE_VARIANT_ADD(queue, vivid) {
	.driver = "vivid",
	.caps = V4L2_CAP_VIDEO_OUTPUT,
	.out = V4L2_PIX_FMT_YUYV,
};

static int open_variant(const FIXTURE_VARIANT(queue) *variant)
{
	return open_node(variant->driver, variant->caps, variant->out, variant->cap);
}

/* Sets up the queues that there are */
static int start(FIXTURE_DATA(queue) *self, const FIXTURE_VARIANT(queue) *variant)
{
	int ret = set_format(self->node, OUT, variant->out) ?: request(self->node, OUT);

	if (!ret && variant->mem2mem)
		ret = set_format(self->node, CAP, variant->cap) ?: request(self->node, CAP);
	return ret;
}

FIXTURE_SETUP(queue)
{
	memset(self, 0, sizeof(*self));
	self->node = open_variant(variant);
	if (self->node < 0)
		SKIP(return, "no %s", variant->driver);
	ASSERT_TRUE(buffer_alloc(&self->src, SIZE, O_RDWR));
	ASSERT_TRUE(buffer_alloc(&self->dst, SIZE, O_RDWR));
	ASSERT_EQ(0, start(self, variant));
}

FIXTURE_TEARDOWN(queue)
{
	close(self->node);
	buffer_free(&self->src);
	buffer_free(&self->dst);
}

/* One frame from src, by that fd of it, into dst */
static int process(FIXTURE_DATA(queue) *self, const FIXTURE_VARIANT(queue) *variant,
		   int src)
{
	int node = self->node, ret;

	ret = queue(node, OUT, 0, src);
	if (ret)
		return ret;
	if (!variant->mem2mem) {
		/* vivid keeps the last one that it has */
		ret = queue(node, OUT, 1, src) ?: stream(node, OUT, true) ?:
		      dequeue(node, OUT);
		return stream(node, OUT, false) ?: ret;
	}
	ret = queue(node, CAP, 0, self->dst.fd) ?:
	      stream(node, OUT, true) ?: stream(node, CAP, true) ?:
	      dequeue(node, OUT) ?: dequeue(node, CAP);
	return stream(node, OUT, false) ?: stream(node, CAP, false) ?: ret;
}

/* The same comes out, and nothing is changed that went in */
TEST_F(queue, frame)
{
	static uint32_t want[SIZE / 4];

	buffer_fill(&self->src, 1);
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	memcpy(want, self->dst.map, SIZE);
	if (variant->mem2mem)
		EXPECT_NE(0, want[0]);

	memset(self->dst.map, 0, SIZE);
	ASSERT_EQ(0, process(self, variant, self->src.r));
	EXPECT_EQ(0, memcmp(want, self->dst.map, SIZE));
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 1));
}

/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F(queue, exported_read_only)
{
	static uint32_t want[SIZE / 4];
	struct buffer own = self->dst;

	buffer_fill(&self->src, 6);
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	memcpy(want, self->dst.map, SIZE);

	ASSERT_TRUE(buffer_alloc(&self->dst, SIZE, O_RDONLY));
	if (variant->mem2mem) {
		ASSERT_EQ(0, process(self, variant, self->src.fd));
		EXPECT_EQ(0, memcmp(want, self->dst.map, SIZE));
	}
	EXPECT_EQ(0, queue(self->node, OUT, 0, self->dst.fd));
	buffer_free(&self->dst);
	self->dst = own;
}

/* Each time that it is queued it is the fd that counts */
TEST_F(queue, alternating_fds)
{
	int i;

	buffer_fill(&self->src, 2);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, process(self, variant, self->src.r));
		EXPECT_EQ(EACCES, process(self, variant, self->src.w));
		ASSERT_EQ(0, process(self, variant, self->src.rw));
		EXPECT_EQ(EACCES, process(self, variant, self->src.w));
	}
	EXPECT_EQ(0, buffer_wrong(&self->src, SIZE, 2));
}

TEST_F(queue, capture)
{
	int node = self->node, i;

	if (!variant->mem2mem)
		SKIP(return, "no capture queue");
	buffer_fill(&self->dst, 3);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EACCES, queue(node, CAP, 0, self->dst.r));
		EXPECT_EQ(EACCES, queue(node, CAP, 0, self->dst.w));
		EXPECT_EQ(EACCES, queue_by(VIDIOC_PREPARE_BUF, node, CAP, 0, self->dst.r));
		EXPECT_EQ(0, buffer_wrong(&self->dst, SIZE, 3));
		/* with what the queue holds of the buffer, too */
		ASSERT_EQ(0, process(self, variant, self->src.fd));
		buffer_fill(&self->dst, 3);
	}
	EXPECT_EQ(EACCES, queue(node, CAP, 0, self->dst.r));
	EXPECT_EQ(0, queue(node, CAP, 0, self->dst.rw));
}

TEST_F(queue, prepared)
{
	EXPECT_EQ(EACCES, queue_by(VIDIOC_PREPARE_BUF, self->node, OUT, 0, self->src.w));
	ASSERT_EQ(0, queue_by(VIDIOC_PREPARE_BUF, self->node, OUT, 0, self->src.r));
	EXPECT_EQ(0, queue(self->node, OUT, 0, self->src.r));
}

/* What is no dma-buf is EINVAL, as ever */
TEST_F(queue, other_fds)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/proc/self/exe", O_PATH | O_CLOEXEC);

	EXPECT_EQ(EINVAL, queue(self->node, OUT, 0, file));
	EXPECT_EQ(EINVAL, queue(self->node, OUT, 0, path));
	EXPECT_EQ(EINVAL, queue(self->node, OUT, 0, -1));
	close(path);
	close(file);
}

/* A buffer is not the worse for an fd that was refused */
TEST_F(queue, refused_fd)
{
	int before = users(self->src.fd), held;

	ASSERT_LT(0, before);
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	held = users(self->src.fd);
	EXPECT_LT(before, held);
	EXPECT_EQ(EINVAL, queue(self->node, OUT, 0, -1));
	EXPECT_EQ(held, users(self->src.fd));
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	EXPECT_EQ(held, users(self->src.fd));
}

/* No call leaves a reference behind */
TEST_F(queue, references)
{
	int before = users(self->src.fd), held, i;

	ASSERT_LT(0, before);
	ASSERT_EQ(0, process(self, variant, self->src.r));
	held = users(self->src.fd);
	for (i = 0; i < 10; i++) {
		EXPECT_EQ(EACCES, queue(self->node, OUT, 0, self->src.w));
		ASSERT_EQ(0, process(self, variant, self->src.r));
		EXPECT_EQ(held, users(self->src.fd));
	}
	close(self->node);
	self->node = open_variant(variant);
	EXPECT_EQ(before, users(self->src.fd));
}

/* Of a dma-buf that is shorter than it is said to be */
TEST_F(queue, too_short)
{
	struct v4l2_buffer buf = {
		.type = OUT,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = self->src.fd,
		.length = 2 * SIZE,
		.bytesused = 1,
	};
	int before = users(self->src.fd), i;

	ASSERT_LT(0, before);
	for (i = 0; i < 10; i++)
		EXPECT_EQ(EFAULT, call(self->node, VIDIOC_QBUF, &buf));
	EXPECT_EQ(before, users(self->src.fd));

	/* also if it takes the place of one that was good, and then that again */
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	EXPECT_EQ(EFAULT, call(self->node, VIDIOC_QBUF, &buf));
	EXPECT_EQ(0, process(self, variant, self->src.fd));
}

/* What counts is the length of this dma-buf, not that of the last one */
TEST_F(queue, bytesused)
{
	struct v4l2_format format = { .type = OUT };
	struct v4l2_buffer buf = { .type = OUT, .memory = V4L2_MEMORY_DMABUF };
	int small;

	ASSERT_EQ(0, call(self->node, VIDIOC_G_FMT, &format));
	small = heap_alloc("system", format.fmt.pix.sizeimage, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, small);
	ASSERT_EQ(0, process(self, variant, self->src.fd));
	buf.m.fd = small;
	buf.bytesused = SIZE;
	EXPECT_EQ(EINVAL, call(self->node, VIDIOC_QBUF, &buf));
	buf.length = format.fmt.pix.sizeimage;
	EXPECT_EQ(EINVAL, call(self->node, VIDIOC_QBUF, &buf));
	buf.bytesused = format.fmt.pix.sizeimage;
	EXPECT_EQ(0, call(self->node, VIDIOC_QBUF, &buf));
	close(small);
}

static int open_media(const char *driver)
{
	struct media_device_info info;
	char path[32];
	int i, fd;

	for (i = 0; i < 16; i++) {
		snprintf(path, sizeof(path), "/dev/media%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd >= 0 && !ioctl(fd, MEDIA_IOC_DEVICE_INFO, &info) &&
		    !strcmp(info.driver, driver))
			return fd;
		close(fd);
	}
	return -1;
}

static int add_to_request(int node, int req, int index, int fd)
{
	struct v4l2_buffer buf = {
		.type = OUT,
		.index = index,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = fd,
		.length = SIZE,
		.field = V4L2_FIELD_NONE,
		.flags = V4L2_BUF_FLAG_REQUEST_FD,
		.request_fd = req,
	};

	return call(node, VIDIOC_QBUF, &buf);
}

/* Nothing is left in its buffers of a request that was refused */
TEST_F(queue, refused_request)
{
	struct v4l2_requestbuffers bufs = {
		.count = 2, .type = OUT, .memory = V4L2_MEMORY_DMABUF,
	};
	int media = open_media(variant->driver), node = self->node, req;
	static uint32_t want[SIZE / 4];
	struct buffer other;

	ASSERT_EQ(0, call(node, VIDIOC_REQBUFS, &bufs));
	if (media < 0 || !(bufs.capabilities & V4L2_BUF_CAP_SUPPORTS_REQUESTS)) {
		close(media);
		SKIP(return, "no requests");
	}
	ASSERT_EQ(0, call(media, MEDIA_IOC_REQUEST_ALLOC, &req));
	close(media);
	ASSERT_TRUE(buffer_alloc(&other, SIZE, O_RDWR));
	buffer_fill(&self->src, 14);
	buffer_fill(&other, 15);
	ASSERT_EQ(0, process(self, variant, other.fd));
	memcpy(want, self->dst.map, SIZE);
	memset(self->dst.map, 0, SIZE);

	ASSERT_EQ(0, add_to_request(node, req, 0, self->src.fd));
	ASSERT_EQ(0, add_to_request(node, req, 1, -1));
	EXPECT_EQ(EINVAL, call(req, MEDIA_REQUEST_IOC_QUEUE, NULL));
	ASSERT_EQ(0, call(req, MEDIA_REQUEST_IOC_REINIT, NULL));
	ASSERT_EQ(0, add_to_request(node, req, 0, self->src.w));
	EXPECT_EQ(EACCES, call(req, MEDIA_REQUEST_IOC_QUEUE, NULL));
	/* vivid keeps what it sends */
	if (!variant->mem2mem)
		goto out;

	ASSERT_EQ(0, call(req, MEDIA_REQUEST_IOC_REINIT, NULL));
	ASSERT_EQ(0, add_to_request(node, req, 0, self->src.fd));
	ASSERT_EQ(0, add_to_request(node, req, 1, -1));
	EXPECT_EQ(EINVAL, call(req, MEDIA_REQUEST_IOC_QUEUE, NULL));
	ASSERT_EQ(0, call(req, MEDIA_REQUEST_IOC_REINIT, NULL));
	ASSERT_EQ(0, add_to_request(node, req, 0, other.fd));
	ASSERT_EQ(0, call(req, MEDIA_REQUEST_IOC_QUEUE, NULL));
	ASSERT_EQ(0, queue(node, CAP, 0, self->dst.fd));
	ASSERT_EQ(0, stream(node, OUT, true));
	ASSERT_EQ(0, stream(node, CAP, true));
	EXPECT_EQ(0, dequeue(node, OUT));
	EXPECT_EQ(0, dequeue(node, CAP));
	EXPECT_EQ(0, memcmp(want, self->dst.map, SIZE));
out:
	close(req);
	buffer_free(&other);
}

/* Planes with buffers of their own, the second of which is the longer one */
FIXTURE(planes) {
	bool loaded;
	int cap, out;
};

/* If nobody uses it. Modules that it needs may be used, which some modprobes fail for. */
static bool load_vivid(const char *parameters)
{
	char cmd[128];

	snprintf(cmd, sizeof(cmd), "{ modprobe -r vivid; modprobe vivid %s; } >/dev/null 2>&1",
		 parameters);
	return !system(cmd);
}

static bool open_planes(FIXTURE_DATA(planes) *self)
{
	self->cap = open_node("vivid", V4L2_CAP_VIDEO_CAPTURE_MPLANE, 0, 0);
	self->out = open_node("vivid", V4L2_CAP_VIDEO_OUTPUT_MPLANE, 0, 0);
	return self->cap >= 0 && self->out >= 0;
}

static void close_planes(FIXTURE_DATA(planes) *self)
{
	close(self->cap);
	close(self->out);
	if (self->loaded)
		load_vivid("");
}

FIXTURE_SETUP(planes)
{
	self->loaded = false;
	if (open_planes(self))
		return;
	/* The module does not go while one of them is open. */
	close_planes(self);
	self->loaded = load_vivid("multiplanar=2");
	if (!open_planes(self)) {
		close_planes(self);
		SKIP(return, "no vivid with multiplanar=2");
	}
}

FIXTURE_TEARDOWN(planes)
{
	close_planes(self);
}

static int start_planes(int node, struct v4l2_format *format)
{
	struct v4l2_pix_format_mplane *pix = &format->fmt.pix_mp;

	pix->width = WIDTH;
	pix->height = HEIGHT;
	pix->pixelformat = V4L2_PIX_FMT_NV16M;
	pix->plane_fmt[1].bytesperline = 4 * WIDTH;
	return call(node, VIDIOC_S_FMT, format) ?: request(node, format->type);
}

/* All planes in one dma-buf */
static int queue_planes(int node, const struct v4l2_format *format, int fd,
			const uint32_t *length, uint32_t bytesused)
{
	struct v4l2_plane planes[2] = {
		{ .m.fd = fd, .length = length[0], .bytesused = bytesused },
		{ .m.fd = fd, .length = length[1], .bytesused = bytesused },
	};
	struct v4l2_buffer buf = {
		.type = format->type,
		.memory = V4L2_MEMORY_DMABUF,
		.field = format->fmt.pix_mp.field,
		.m.planes = planes,
		.length = 2,
	};

	return call(node, VIDIOC_QBUF, &buf);
}

/* Each of them has to fit in, also those that share the dma-buf of another one */
TEST_F(planes, shared)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE_MPLANE };
	struct v4l2_plane planes[2];
	struct v4l2_buffer buf = {
		.type = format.type, .memory = V4L2_MEMORY_DMABUF,
		.m.planes = planes, .length = 2,
	};
	uint32_t length[2];
	int small, large, before, i;

	ASSERT_EQ(0, start_planes(self->cap, &format));
	for (i = 0; i < 2; i++)
		length[i] = format.fmt.pix_mp.plane_fmt[i].sizeimage;
	ASSERT_LT(length[0] + getpagesize(), length[1]);
	small = heap_alloc("system", length[0], O_RDWR | O_CLOEXEC);
	large = heap_alloc("system", length[1], O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, small);
	ASSERT_LE(0, large);

	before = users(small);
	ASSERT_EQ(EFAULT, queue_planes(self->cap, &format, small, length, 0));
	length[0] = 0;
	ASSERT_EQ(EFAULT, queue_planes(self->cap, &format, small, length, 0));
	EXPECT_EQ(before, users(small));

	/* One that is longer than the first one, and does */
	length[0] = format.fmt.pix_mp.plane_fmt[0].sizeimage;
	before = users(large);
	ASSERT_EQ(0, queue_planes(self->cap, &format, large, length, 0));
	ASSERT_EQ(0, stream(self->cap, format.type, true));
	EXPECT_EQ(0, call(self->cap, VIDIOC_DQBUF, &buf));
	EXPECT_EQ(0, buf.flags & V4L2_BUF_FLAG_ERROR);
	EXPECT_EQ(0, stream(self->cap, format.type, false));
	close(self->cap);
	self->cap = -1;
	EXPECT_EQ(before, users(large));
	close(large);
	close(small);
}

/* Those that give no length have that of the dma-buf */
TEST_F(planes, bytesused)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_OUTPUT_MPLANE };
	uint32_t length[2] = { };
	int fd;

	ASSERT_EQ(0, start_planes(self->out, &format));
	fd = heap_alloc("system", 4 * SIZE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(EINVAL, queue_planes(self->out, &format, fd, length, 4 * SIZE + 1));
	EXPECT_EQ(0, queue_planes(self->out, &format, fd, length, 4 * SIZE));
	close(fd);
}

TEST_HARNESS_MAIN

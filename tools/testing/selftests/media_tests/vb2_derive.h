/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the programs share that queue dma-bufs of the system heap in video devices.
 * Functions return 0 or an errno, or an fd or -1.
 */
#ifndef SELFTESTS_MEDIA_VB2_DERIVE_H
#define SELFTESTS_MEDIA_VB2_DERIVE_H

#include "../dma-buf/derive/buffer.h"

#define OUT	V4L2_BUF_TYPE_VIDEO_OUTPUT
#define CAP	V4L2_BUF_TYPE_VIDEO_CAPTURE
#define WIDTH	640
#define HEIGHT	360
#define SIZE	(1024 * 1024)

static inline int call(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) ? errno : 0;
}

static inline int set_format(int node, unsigned int type, uint32_t pixelformat)
{
	struct v4l2_format format = {
		.type = type,
		.fmt.pix.width = WIDTH,
		.fmt.pix.height = HEIGHT,
		.fmt.pix.pixelformat = pixelformat,
		.fmt.pix.field = V4L2_FIELD_NONE,
	};
	int ret = call(node, VIDIOC_S_FMT, &format);

	if (ret)
		return ret;
	return format.fmt.pix.pixelformat == pixelformat && format.fmt.pix.sizeimage <= SIZE ?
	       0 : EMSGSIZE;
}

static inline int request(int node, unsigned int type)
{
	struct v4l2_requestbuffers req = {
		.count = 2, .type = type, .memory = V4L2_MEMORY_DMABUF,
	};

	return call(node, VIDIOC_REQBUFS, &req);
}

static inline int queue_by(unsigned long cmd, int node, unsigned int type, int index, int fd)
{
	struct v4l2_format format = { .type = type };
	struct v4l2_buffer buf = {
		.type = type,
		.index = index,
		.memory = V4L2_MEMORY_DMABUF,
		.m.fd = fd,
		.length = SIZE,
		.field = V4L2_FIELD_NONE,
	};
	int ret = call(node, VIDIOC_G_FMT, &format);

	if (type == OUT)
		buf.bytesused = format.fmt.pix.sizeimage;
	return ret ?: call(node, cmd, &buf);
}

static inline int queue(int node, unsigned int type, int index, int fd)
{
	return queue_by(VIDIOC_QBUF, node, type, index, fd);
}

static inline int dequeue(int node, unsigned int type)
{
	struct v4l2_buffer buf = { .type = type, .memory = V4L2_MEMORY_DMABUF };

	return call(node, VIDIOC_DQBUF, &buf) ?: buf.flags & V4L2_BUF_FLAG_ERROR ? EIO : 0;
}

static inline int stream(int node, unsigned int type, bool on)
{
	return call(node, on ? VIDIOC_STREAMON : VIDIOC_STREAMOFF, &type);
}

static inline bool has_format(int node, unsigned int type, uint32_t pixelformat)
{
	struct v4l2_fmtdesc desc = { .type = type };

	for (; !ioctl(node, VIDIOC_ENUM_FMT, &desc); desc.index++)
		if (desc.pixelformat == pixelformat)
			return true;
	return false;
}

/* The node of a driver that has these capabilities and formats (0: none) */
static inline int open_node(const char *driver, uint32_t caps, uint32_t out, uint32_t cap)
{
	struct v4l2_capability own;
	char path[32];
	int i, fd;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/dev/video%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, VIDIOC_QUERYCAP, &own) &&
		    !strcmp((char *)own.driver, driver) && own.device_caps & caps &&
		    (!out || has_format(fd, OUT, out)) && (!cap || has_format(fd, CAP, cap)))
			return fd;
		close(fd);
	}
	return -1;
}

#endif

/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of DMA_BUF_IOCTL_DERIVE share. Functions return 0 or an fd, or
 * a negative errno.
 */
#ifndef SELFTESTS_DMA_BUF_DERIVE_H
#define SELFTESTS_DMA_BUF_DERIVE_H

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <drm/drm.h>
#include <drm/drm_mode.h>
#include <linux/dma-buf.h>
#include <linux/dma-heap.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/udmabuf.h>
#include <linux/vfio.h>
#include <linux/videodev2.h>

/* What the environment says, or 1 */
static inline int factor(const char *name)
{
	const char *s = getenv(name);

	return s && atoi(s) > 1 ? atoi(s) : 1;
}

/*
 * How often to do what a test does n times: VMTEST_SCALE (of vm/vmtest.sh) asks for
 * more, and where all takes VMTEST_SLOW times as long, there is less.
 */
static inline int rounds(int n)
{
	return n * factor("VMTEST_SCALE") / factor("VMTEST_SLOW") ?: 1;
}

static inline int buf_ioctl(int fd, unsigned long cmd, void *arg)
{
	return ioctl(fd, cmd, arg) < 0 ? -errno : 0;
}

/* Not there, or not for this user */
static inline bool no_exporter(int fd)
{
	return fd == -ENOENT || fd == -ENODEV || fd == -EACCES || fd == -EPERM;
}

static inline int lowest_fd(void)
{
	int fd = dup(0);

	close(fd);
	return fd;
}

static inline int derive(int fd, unsigned int flags)
{
	struct dma_buf_derive arg = { .flags = flags, .fd = -1 };
	int ret = buf_ioctl(fd, DMA_BUF_IOCTL_DERIVE, &arg);

	return ret ?: arg.fd;
}

static inline int heap_alloc(const char *heap, size_t size, int fd_flags)
{
	struct dma_heap_allocation_data data = {
		.len = size,
		.fd_flags = fd_flags,
	};
	char path[64];
	int fd, ret;

	snprintf(path, sizeof(path), "/dev/dma_heap/%s", heap);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = buf_ioctl(fd, DMA_HEAP_IOCTL_ALLOC, &data);
	close(fd);
	return ret ?: (int)data.fd;
}

/* A udmabuf of a memfd that has these seals */
static inline int udmabuf_seal(size_t size, int seals)
{
	struct udmabuf_create create = { .flags = UDMABUF_FLAGS_CLOEXEC };
	int dev, memfd, fd = -1;

	dev = open("/dev/udmabuf", O_RDWR | O_CLOEXEC);
	memfd = memfd_create("derive", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (dev >= 0 && memfd >= 0 && !ftruncate(memfd, size) &&
	    !fcntl(memfd, F_ADD_SEALS, seals)) {
		create.memfd = memfd;
		create.size = size;
		fd = ioctl(dev, UDMABUF_CREATE, &create);
	}
	if (fd < 0)
		fd = -errno;
	close(memfd);
	close(dev);
	return fd;
}

static inline int udmabuf_alloc(size_t size)
{
	return udmabuf_seal(size, F_SEAL_SHRINK);
}

static inline int try_mmap(int fd, size_t size, int prot, int flags)
{
	void *p = mmap(NULL, size, prot, flags, fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	munmap(p, size);
	return 0;
}

static inline int sync_cpu(int fd, unsigned int flags)
{
	struct dma_buf_sync sync = { .flags = flags };

	return buf_ioctl(fd, DMA_BUF_IOCTL_SYNC, &sync);
}

static inline int export_sync_file(int fd, unsigned int flags)
{
	struct dma_buf_export_sync_file arg = { .flags = flags, .fd = -1 };
	int ret = buf_ioctl(fd, DMA_BUF_IOCTL_EXPORT_SYNC_FILE, &arg);

	return ret ?: arg.fd;
}

/* The fence that is imported is one that has signalled */
static inline int import_sync_file(int fd, unsigned int flags)
{
	struct dma_buf_import_sync_file arg = { .flags = flags };
	int ret;

	arg.fd = export_sync_file(fd, DMA_BUF_SYNC_READ);
	if (arg.fd < 0)
		return arg.fd;
	ret = buf_ioctl(fd, DMA_BUF_IOCTL_IMPORT_SYNC_FILE, &arg);
	close(arg.fd);
	return ret;
}

static inline int set_name(int fd, const char *name)
{
	return buf_ioctl(fd, DMA_BUF_SET_NAME_B, (void *)name);
}

static inline int open_drm(const char *driver)
{
	char path[32], name[16];
	int i, fd;

	for (i = 0; i < 16; i++) {
		struct drm_version version = {
			.name = name,
			.name_len = sizeof(name),
		};

		snprintf(path, sizeof(path), "/dev/dri/card%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, DRM_IOCTL_VERSION, &version) &&
		    version.name_len == strlen(driver) &&
		    !memcmp(name, driver, strlen(driver)))
			return fd;
		close(fd);
	}
	return -ENODEV;
}

/* A dma-buf of a DRM device's dumb buffer of (at least) size bytes */
static inline int drm_export(const char *driver, size_t size, uint32_t flags)
{
	struct drm_mode_create_dumb dumb = {
		.width = 1024, .height = size / 4096, .bpp = 32,
	};
	struct drm_prime_handle prime = { .flags = flags };
	int drm = open_drm(driver), ret;

	if (drm < 0)
		return drm;
	ret = buf_ioctl(drm, DRM_IOCTL_MODE_CREATE_DUMB, &dumb);
	if (!ret) {
		prime.handle = dumb.handle;
		ret = buf_ioctl(drm, DRM_IOCTL_PRIME_HANDLE_TO_FD, &prime);
	}
	close(drm);
	return ret ?: prime.fd;
}

static inline int drm_alloc(const char *driver, size_t size)
{
	return drm_export(driver, size, DRM_RDWR | DRM_CLOEXEC);
}

static inline int prime_handle(int drm, int fd, uint32_t *handle)
{
	struct drm_prime_handle prime = { .fd = fd };
	int ret = buf_ioctl(drm, DRM_IOCTL_PRIME_FD_TO_HANDLE, &prime);

	*handle = prime.handle;
	return ret;
}

static inline int close_handle(int drm, uint32_t handle)
{
	struct drm_gem_close close = { .handle = handle };

	return buf_ioctl(drm, DRM_IOCTL_GEM_CLOSE, &close);
}

/* Import a dma-buf into a DRM device and release it again */
static inline int prime_import(int drm, int fd)
{
	uint32_t handle;

	return prime_handle(drm, fd, &handle) ?: close_handle(drm, handle);
}

/* Map a dma-buf into an IOAS that has no domain; nothing is pinned there yet */
static inline int ioas_import(int fd, size_t size, uint32_t flags)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_ioas_map_file map = {
		.size = sizeof(map),
		.flags = flags,
		.fd = fd,
		.length = size,
	};
	int iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC), ret;

	if (iommufd < 0)
		return -errno;
	ret = buf_ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc);
	if (!ret) {
		map.ioas_id = alloc.out_ioas_id;
		ret = buf_ioctl(iommufd, IOMMU_IOAS_MAP_FILE, &map);
	}
	close(iommufd);
	return ret;
}

/* The camera of vivid */
static inline int open_vivid(int flags)
{
	struct v4l2_capability cap;
	char path[32];
	int i, fd;

	for (i = 0; i < 64; i++) {
		snprintf(path, sizeof(path), "/dev/video%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC | flags);
		if (fd < 0)
			continue;
		if (!ioctl(fd, VIDIOC_QUERYCAP, &cap) &&
		    !strcmp((char *)cap.driver, "vivid") &&
		    cap.device_caps & V4L2_CAP_VIDEO_CAPTURE)
			return fd;
		close(fd);
	}
	return -ENODEV;
}

/* The cdev of the first function that the variable of the environment names */
static inline int vfio_cdev(const char *name)
{
	const char *bdf = getenv(name);
	char path[128];
	glob_t found;
	int fd;

	if (!bdf)
		return -ENODEV;
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%.*s/vfio-dev/vfio*",
		 (int)strcspn(bdf, " "), bdf);
	if (glob(path, 0, NULL, &found))
		return -ENODEV;
	snprintf(path, sizeof(path), "/dev/vfio/devices/%s",
		 strrchr(found.gl_pathv[0], '/') + 1);
	globfree(&found);
	fd = open(path, O_RDWR | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

static inline int vfio_attach(int device, int iommufd)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	int ret = buf_ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc);

	if (ret)
		return ret;
	attach.pt_id = alloc.out_ioas_id;
	return buf_ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind) ?:
	       buf_ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

/* Memory access of the device; its dma-bufs are revoked while it is off */
static inline int vfio_set_memory(int device, bool on)
{
	struct vfio_region_info config = {
		.argsz = sizeof(config),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	int ret = buf_ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config);
	off_t offset = config.offset + PCI_COMMAND;
	uint16_t command;

	if (ret)
		return ret;
	if (pread(device, &command, 2, offset) != 2)
		return -errno;
	command &= ~PCI_COMMAND_MEMORY;
	command |= on ? PCI_COMMAND_MEMORY : 0;
	return pwrite(device, &command, 2, offset) == 2 ? 0 : -errno;
}

/* The device of vfio_cdev(), ready for use; -ENODEV also where there is no iommufd for it */
static inline int vfio_open(const char *name)
{
	int device = vfio_cdev(name), iommufd, ret;

	if (device < 0)
		return device;
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ret = iommufd < 0 ? -errno : vfio_attach(device, iommufd) ?:
				     vfio_set_memory(device, true);
	close(iommufd);
	if (!ret)
		return device;
	close(device);
	/* iommufd has no ioctls for 32-bit programs */
	return ret == -ENOTTY && sizeof(long) == 4 ? -ENODEV : ret;
}

static inline int vfio_export(int device, int bar, size_t size, uint32_t open_flags)
{
	struct {
		struct vfio_device_feature feature;
		struct vfio_device_feature_dma_buf buf;
		struct vfio_region_dma_range range;
	} arg = {
		.feature.argsz = sizeof(arg),
		.feature.flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
		.buf.region_index = bar,
		.buf.open_flags = open_flags,
		.buf.nr_ranges = 1,
		.range.length = size,
	};
	int fd = ioctl(device, VFIO_DEVICE_FEATURE, &arg);

	return fd < 0 ? -errno : fd;
}

/* A dma-buf of a BAR of RAM, whose device stays open as long as the process */
static inline int vfio_alloc(size_t size, uint32_t open_flags)
{
	static int device = -1;

	if (device < 0)
		device = vfio_open("VMTEST_IVSHMEM_BDF");
	if (device < 0)
		return device;
	return vfio_export(device, VFIO_PCI_BAR2_REGION_INDEX, size, open_flags);
}

static inline int reopen(int fd, int flags)
{
	char path[32];
	int ret;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ret = open(path, flags | O_CLOEXEC);
	return ret < 0 ? -errno : ret;
}

/* Write one byte at addr with an interface that does not care for PROT_WRITE */
static inline int write_proc_mem(void *addr, char byte)
{
	int fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	int ret = 0;

	if (fd < 0)
		return -errno;
	if (pwrite(fd, &byte, 1, (uintptr_t)addr) != 1)
		ret = -errno;
	close(fd);
	return ret;
}

/* The value of a line of fdinfo, empty if there is no such line */
static inline const char *fdinfo(int fd, const char *key)
{
	static char value[64];
	char path[64], line[128], name[32];
	FILE *f;

	value[0] = 0;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%31[^:]:", name) == 1 && !strcmp(name, key))
			sscanf(line, "%*[^:]: %63s", value);
	}
	if (f)
		fclose(f);
	return value;
}

/* How many dma-bufs there are in the system, -1 if debugfs does not tell */
static inline long count_buffers(void)
{
	FILE *f = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	char line[256];
	long total = -1;

	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "Total %ld objects", &total);
	if (f)
		fclose(f);
	return total;
}

static inline long proc_number(const char *path)
{
	FILE *f = fopen(path, "r");
	long n = -1;

	if (f) {
		if (fscanf(f, "%ld", &n) != 1)
			n = -1;
		fclose(f);
	}
	return n;
}

struct counts {
	long files, dentries, inodes, buffers;
};

/* Kernel objects, without those that are cached */
static inline struct counts count_objects(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY);
	struct counts c;

	if (fd >= 0) {
		if (write(fd, "2", 1) < 0)
			perror("drop_caches");
		close(fd);
	}
	c.files = proc_number("/proc/sys/fs/file-nr");
	c.dentries = proc_number("/proc/sys/fs/dentry-state");
	c.inodes = proc_number("/proc/sys/fs/inode-nr");
	c.buffers = count_buffers();
	return c;
}

/* Is there a dma-buf with this inode number? -1 if debugfs does not tell */
static inline int buffer_exists(ino_t ino)
{
	FILE *f = fopen("/sys/kernel/debug/dma_buf/bufinfo", "r");
	unsigned long long this;
	char line[256];
	int found = 0;

	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "%*u %*x %*x %*d %*s %llu", &this) == 1 &&
		    this == ino)
			found = 1;
	fclose(f);
	return found;
}

static inline ino_t inode_of(int fd)
{
	struct stat st;

	return fstat(fd, &st) ? 0 : st.st_ino;
}

static inline int send_fd(int sock, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	char byte = 0;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf, .msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
	return sendmsg(sock, &msg, 0) < 0 ? -errno : 0;
}

static inline int recv_fd(int sock)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	char byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control.buf, .msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg;
	int fd;

	if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) < 0)
		return -errno;
	cmsg = CMSG_FIRSTHDR(&msg);
	if (!cmsg || cmsg->cmsg_type != SCM_RIGHTS)
		return -EPROTO;
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	return fd;
}

#endif /* SELFTESTS_DMA_BUF_DERIVE_H */

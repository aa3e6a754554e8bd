/* SPDX-License-Identifier: GPL-2.0 */
/*
 * A gadget of one function on dummy_udc.0, and the same device as the host sees
 * it, through usbfs. The function is one of functionfs, with an IN and an OUT
 * endpoint, unless a test makes another one with gadget_make().
 * Functions return 0 or an errno if not said otherwise.
 */
#ifndef SELFTESTS_FUNCTIONFS_GADGET_H
#define SELFTESTS_FUNCTIONFS_GADGET_H

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include <linux/usb/ch9.h>
#include <linux/usb/functionfs.h>
#include <linux/usbdevice_fs.h>

#define CONFIGFS	"/sys/kernel/config"
#define GADGET		CONFIGFS "/usb_gadget/selftest"
#define FUNCTION	GADGET "/functions/ffs.dmabuf"
#define CONFIG		GADGET "/configs/c.1"
#define FFS		"/tmp/ffs_dmabuf"
#define UDC		"dummy_udc.0"
/* of the Linux Foundation; the product is nobody's */
#define VENDOR		0x1d6b
#define PRODUCT		0xffdb

struct gadget {
	int ep0, in, out;	/* of functionfs */
	int host;		/* of usbfs */
	uint8_t in_addr, out_addr;
};

struct ep_descs {
	struct usb_interface_descriptor intf;
	struct usb_endpoint_descriptor_no_audio in, out;
};

static inline int put(const char *path, const char *value)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = fd < 0 || write(fd, value, strlen(value)) < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	return ret;
}

static inline int make_dir(const char *path)
{
	return mkdir(path, 0755) && errno != EEXIST ? errno : 0;
}

static inline struct usb_endpoint_descriptor_no_audio bulk(uint8_t addr, uint16_t size)
{
	return (struct usb_endpoint_descriptor_no_audio) {
		.bLength = sizeof(struct usb_endpoint_descriptor_no_audio),
		.bDescriptorType = USB_DT_ENDPOINT,
		.bEndpointAddress = addr,
		.bmAttributes = USB_ENDPOINT_XFER_BULK,
		.wMaxPacketSize = htole16(size),
	};
}

static inline struct ep_descs ep_descs(uint16_t size)
{
	return (struct ep_descs) {
		.intf = {
			.bLength = sizeof(struct usb_interface_descriptor),
			.bDescriptorType = USB_DT_INTERFACE,
			.bNumEndpoints = 2,
			.bInterfaceClass = USB_CLASS_VENDOR_SPEC,
		},
		.in = bulk(1 | USB_DIR_IN, size),
		.out = bulk(2 | USB_DIR_OUT, size),
	};
}

static inline int write_descs(int ep0)
{
	struct all_descs {
		struct usb_functionfs_descs_head_v2 head;
		__le32 fs_count, hs_count;
		struct ep_descs fs, hs;
	};
	/* without what is there for the alignment of the next one */
	const size_t length = offsetof(struct all_descs, hs) + sizeof(struct ep_descs);
	struct all_descs descs = {
		.head = {
			.magic = htole32(FUNCTIONFS_DESCRIPTORS_MAGIC_V2),
			.length = htole32(length),
			.flags = htole32(FUNCTIONFS_HAS_FS_DESC | FUNCTIONFS_HAS_HS_DESC),
		},
		.fs_count = htole32(3),
		.hs_count = htole32(3),
		.fs = ep_descs(64),
		.hs = ep_descs(512),
	};
	struct usb_functionfs_strings_head strings = {
		.magic = htole32(FUNCTIONFS_STRINGS_MAGIC),
		.length = htole32(sizeof(strings)),
	};

	if (write(ep0, &descs, length) < 0 ||
	    write(ep0, &strings, sizeof(strings)) < 0)
		return errno;
	return 0;
}

/* Of a file of sysfs; -1 if there is none */
static inline long sysfs_value(const char *dev, const char *name, int base)
{
	char path[512], value[32] = "";
	long ret = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/sys/bus/usb/devices/%s/%s", dev, name);
	f = fopen(path, "r");
	if (f && fgets(value, sizeof(value), f) && *value != '\n')
		ret = strtol(value, NULL, base);
	if (f)
		fclose(f);
	return ret;
}

/* The fd of the device once the host has configured it, or -1 */
static inline int open_host(void)
{
	char path[64];
	struct dirent *d;
	int fd = -1;
	DIR *dir = opendir("/sys/bus/usb/devices");

	while (dir && fd < 0 && (d = readdir(dir))) {
		if (sysfs_value(d->d_name, "idVendor", 16) != VENDOR ||
		    sysfs_value(d->d_name, "idProduct", 16) != PRODUCT ||
		    sysfs_value(d->d_name, "bConfigurationValue", 10) != 1)
			continue;
		snprintf(path, sizeof(path), "/dev/bus/usb/%03ld/%03ld",
			 sysfs_value(d->d_name, "busnum", 10),
			 sysfs_value(d->d_name, "devnum", 10));
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	if (dir)
		closedir(dir);
	return fd;
}

/* Also from a driver that has it */
static inline int claim(struct gadget *g)
{
	struct usbdevfs_disconnect_claim intf = { .interface = 0 };

	return ioctl(g->host, USBDEVFS_DISCONNECT_CLAIM, &intf) ? errno : 0;
}

static inline int release(struct gadget *g)
{
	unsigned int intf = 0;

	return ioctl(g->host, USBDEVFS_RELEASEINTERFACE, &intf) ? errno : 0;
}

static inline int set_configuration(struct gadget *g, int config)
{
	return ioctl(g->host, USBDEVFS_SETCONFIGURATION, &config) ? errno : 0;
}

/* The host's side of a transfer; the length is changed to what it was */
static inline int host_bulk(struct gadget *g, uint8_t addr, void *data, size_t *len, int ms)
{
	struct usbdevfs_bulktransfer bulk = {
		.ep = addr, .len = *len, .timeout = ms, .data = data,
	};
	int ret = ioctl(g->host, USBDEVFS_BULK, &bulk);

	if (ret < 0)
		return errno;
	*len = ret;
	return 0;
}

/* Waits for the endpoint to be enabled */
static inline int address(int ep, uint8_t *addr)
{
	struct usb_endpoint_descriptor desc;

	if (ioctl(ep, FUNCTIONFS_ENDPOINT_DESC, &desc))
		return errno;
	*addr = desc.bEndpointAddress;
	return 0;
}

/* All but what is in the configuration. ENODEV: no dummy_udc, or no such function */
static inline int gadget_make(const char *function)
{
	int ret = ENODEV;

	if (access("/sys/class/udc/" UDC, F_OK))
		return ret;
	if (access(CONFIGFS "/usb_gadget", F_OK) &&
	    mount("configfs", CONFIGFS, "configfs", 0, NULL))
		return ret;
	ret = make_dir(GADGET) ?: make_dir(CONFIG) ?: make_dir(function);
	if (ret == ENOENT)
		ret = ENODEV;
	return ret ?: put(GADGET "/idVendor", "0x1d6b") ?:
	       put(GADGET "/idProduct", "0xffdb");
}

/* Of what gadget_make() has made, with an empty configuration */
static inline void gadget_remove(const char *function)
{
	rmdir(function);
	rmdir(CONFIG);
	rmdir(GADGET);
}

/* The host has configured the device, and nothing but the test uses it */
static inline int gadget_connect(struct gadget *g)
{
	int ret = put(GADGET "/UDC", UDC), i;

	for (i = 0; !ret && i < 1000 && g->host < 0; i++) {
		usleep(20000);
		g->host = open_host();
	}
	if (!ret && g->host < 0)
		ret = ENXIO;
	return ret ?: claim(g);
}

/* The host has seen that the device is gone when this returns */
static inline int gadget_unbind(struct gadget *g)
{
	int ret = put(GADGET "/UDC", "\n"), i, fd = 0;

	if (g->host >= 0)
		close(g->host);
	g->host = -1;
	for (i = 0; fd >= 0 && i < 1000; i++) {
		fd = open_host();
		if (fd >= 0) {
			close(fd);
			usleep(20000);
		}
	}
	return fd < 0 ? ret : ETIMEDOUT;
}

/* Also of what was started in part, or by a test that was killed */
static inline void gadget_stop(struct gadget *g)
{
	int i, fds[] = { g->in, g->out, g->ep0 };

	gadget_unbind(g);
	for (i = 0; i < 3; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	unlink(CONFIG "/dmabuf");
	umount(FFS);
	gadget_remove(FUNCTION);
	rmdir(FFS);
}

/* All but the UDC: the endpoints are open, and not enabled */
static inline int gadget_prepare(struct gadget *g)
{
	int ret;

	*g = (struct gadget) { .ep0 = -1, .in = -1, .out = -1, .host = -1 };
	gadget_stop(g);
	ret = gadget_make(FUNCTION) ?: make_dir(FFS);
	if (ret)
		return ret;
	if (mount("dmabuf", FFS, "functionfs", 0, NULL))
		return errno;
	g->ep0 = open(FFS "/ep0", O_RDWR | O_CLOEXEC);
	if (g->ep0 < 0)
		return errno;
	ret = write_descs(g->ep0);
	if (ret)
		return ret;
	if (symlink(FUNCTION, CONFIG "/dmabuf"))
		return errno;
	g->in = open(FFS "/ep1", O_RDWR | O_CLOEXEC);
	g->out = open(FFS "/ep2", O_RDWR | O_CLOEXEC);
	return g->in < 0 || g->out < 0 ? ENXIO : 0;
}

static inline int gadget_bind(struct gadget *g)
{
	return gadget_connect(g) ?: address(g->in, &g->in_addr) ?:
	       address(g->out, &g->out_addr);
}

static inline int gadget_start(struct gadget *g)
{
	return gadget_prepare(g) ?: gadget_bind(g);
}

#endif

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The end of a vfio_device that others have references of
 */
#include <linux/atomic.h>
#include <linux/iopoll.h>
#include <linux/module.h>
#include <linux/vfio.h>

#include <kunit/device.h>
#include <kunit/test.h>

/* CONFIG_DEBUG_KOBJECT_RELEASE delays the release of a device by up to 4 s */
#define RELEASE_TIMEOUT_US	(10 * USEC_PER_SEC)

static atomic_t releases;

static void test_release(struct vfio_device *vdev)
{
	atomic_inc(&releases);
}

static const struct vfio_device_ops test_ops = {
	.name = "vfio-test",
	.release = test_release,
};

static void driver_goes_before_last_reference(struct kunit *test)
{
	struct vfio_device *vdev;
	struct device *parent, *dev;
	int n;

	parent = kunit_device_register(test, "vfio_test");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, parent);
	vdev = _vfio_alloc_device(sizeof(*vdev), parent, &test_ops);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, vdev);
	atomic_set(&releases, 0);

	/* As a file of the cdev has it, which is just being closed */
	dev = get_device(&vdev->device);
	vfio_put_device(vdev);
	KUNIT_EXPECT_EQ(test, atomic_read(&releases), 1);
	put_device(dev);

	/* A release that comes late needs the ops, which go with this module. */
	read_poll_timeout(atomic_read, n, n, 20 * USEC_PER_MSEC, RELEASE_TIMEOUT_US,
			  false, &releases);
	KUNIT_EXPECT_EQ(test, n, 1);
}

static struct kunit_case vfio_cases[] = {
	KUNIT_CASE(driver_goes_before_last_reference),
	{}
};

static struct kunit_suite vfio_suite = {
	.name = "vfio",
	.test_cases = vfio_cases,
};

kunit_test_suite(vfio_suite);

MODULE_DESCRIPTION("KUnit test for the VFIO core");
MODULE_LICENSE("GPL");

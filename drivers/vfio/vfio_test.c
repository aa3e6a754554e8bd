// SPDX-License-Identifier: GPL-2.0-only
/*
 * The end of a vfio_device that others have references of
 */
#include <linux/atomic.h>
#include <linux/iopoll.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/vfio.h>

#include <kunit/device.h>
#include <kunit/test.h>

/* CONFIG_DEBUG_KOBJECT_RELEASE delays the release of a device by up to 4 s */
#define RELEASE_TIMEOUT_US	(10 * USEC_PER_SEC)

static atomic_t releases;

static int test_init(struct vfio_device *vdev)
{
	return vfio_assign_device_set(vdev, &releases);
}

static void test_release(struct vfio_device *vdev)
{
	atomic_inc(&releases);
}

static const struct vfio_device_ops test_ops = {
	.name = "vfio-test",
	.init = test_init,
	.release = test_release,
};

static struct vfio_device *new_device(struct kunit *test, const char *parent_name)
{
	struct device *parent = kunit_device_register(test, parent_name);
	struct vfio_device *vdev;

	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, parent);
	vdev = _vfio_alloc_device(sizeof(*vdev), parent, &test_ops);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, vdev);
	return vdev;
}

/* As a driver looks for what a reset of the whole set hits */
static bool in_set(struct vfio_device_set *dev_set, struct device *parent)
{
	guard(mutex)(&dev_set->lock);
	return vfio_find_device_in_devset(dev_set, parent);
}

static void driver_goes_before_last_reference(struct kunit *test)
{
	struct vfio_device *vdev = new_device(test, "vfio_test");
	struct vfio_device *other = new_device(test, "vfio_test_other");
	struct vfio_device_set *dev_set = other->dev_set;
	struct device *parent = vdev->dev;
	struct device *dev;
	int n;

	atomic_set(&releases, 0);
	KUNIT_EXPECT_TRUE(test, in_set(dev_set, parent));

	/* As a file of the cdev has it, which is just being closed */
	dev = get_device(&vdev->device);
	vfio_put_device(vdev);
	KUNIT_EXPECT_EQ(test, atomic_read(&releases), 1);
	KUNIT_EXPECT_FALSE(test, in_set(dev_set, parent));
	KUNIT_EXPECT_TRUE(test, in_set(dev_set, other->dev));
	put_device(dev);
	vfio_put_device(other);

	/* A release that comes late needs the ops, which go with this module. */
	read_poll_timeout(atomic_read, n, n >= 2, 20 * USEC_PER_MSEC, RELEASE_TIMEOUT_US,
			  false, &releases);
	KUNIT_EXPECT_EQ(test, n, 2);
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

// SPDX-License-Identifier: GPL-2.0-only
/*
 * The end of a vfio_device that others have references of
 */
#include <linux/completion.h>
#include <linux/module.h>
#include <linux/vfio.h>

#include <kunit/device.h>
#include <kunit/test.h>

struct test_device {
	struct vfio_device vdev;
	struct completion *released;
};

static void test_release(struct vfio_device *vdev)
{
	complete(container_of(vdev, struct test_device, vdev)->released);
}

static const struct vfio_device_ops test_ops = {
	.name = "vfio-test",
	.release = test_release,
};

static void driver_goes_before_last_reference(struct kunit *test)
{
	DECLARE_COMPLETION_ONSTACK(released);
	struct test_device *td;
	struct device *dev;

	dev = kunit_device_register(test, "vfio_test");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	td = vfio_alloc_device(test_device, vdev, dev, &test_ops);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, td);
	td->released = &released;

	/* As a file of the cdev has it, which is just being closed */
	dev = get_device(&td->vdev.device);
	vfio_put_device(&td->vdev);
	KUNIT_EXPECT_TRUE(test, completion_done(&released));
	put_device(dev);

	/* What failed may not use what is gone when this has returned. */
	wait_for_completion(&released);
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

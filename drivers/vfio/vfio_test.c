// SPDX-License-Identifier: GPL-2.0-only
/*
 * The life of a vfio_device that others have references of
 */
#include <linux/completion.h>
#include <linux/module.h>
#include <linux/vfio.h>
#include <linux/workqueue.h>

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

/* A reference as a file of the cdev has it, which closes late */
struct late_put {
	struct delayed_work work;
	struct device *dev;
};

static void put_late(struct work_struct *work)
{
	put_device(container_of(work, struct late_put, work.work)->dev);
}

static void put_waits_for_the_last_reference(struct kunit *test)
{
	DECLARE_COMPLETION_ONSTACK(released);
	struct late_put late;
	struct test_device *td;
	struct device *dev;

	dev = kunit_device_register(test, "vfio_test");
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, dev);
	td = vfio_alloc_device(test_device, vdev, dev, &test_ops);
	KUNIT_ASSERT_NOT_ERR_OR_NULL(test, td);
	td->released = &released;

	late.dev = get_device(&td->vdev.device);
	INIT_DELAYED_WORK_ONSTACK(&late.work, put_late);
	schedule_delayed_work(&late.work, HZ / 10);
	vfio_put_device(&td->vdev);
	KUNIT_EXPECT_TRUE(test, completion_done(&released));

	/* What failed may not call test_release() of a module that is gone. */
	flush_delayed_work(&late.work);
	destroy_delayed_work_on_stack(&late.work);
	wait_for_completion(&released);
}

static struct kunit_case vfio_cases[] = {
	KUNIT_CASE(put_waits_for_the_last_reference),
	{}
};

static struct kunit_suite vfio_suite = {
	.name = "vfio",
	.test_cases = vfio_cases,
};
kunit_test_suite(vfio_suite);

MODULE_DESCRIPTION("KUnit test for the VFIO core");
MODULE_LICENSE("GPL");

// SPDX-License-Identifier: GPL-2.0
/*
 * The story of a frame that may be read: a camera fills a buffer, and its service
 * hands out an fd for reading. Who gets it has a mirror look at the frame, but
 * cannot have it write there. Each comment line tells what was observed, and is
 * followed by the verdict on it.
 */
#define _GNU_SOURCE
#include "vb2_derive.h"

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "../kselftest.h"

#define FORMAT	V4L2_PIX_FMT_RGB565
#define PIXELS	(WIDTH * HEIGHT)

static void pass_fd(int sock, int fd)
{
	char control[CMSG_SPACE(sizeof(int))] = {};
	struct iovec iov = { "", 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &fd, sizeof(fd));
	sendmsg(sock, &msg, 0);
}

static int receive_fd(int sock)
{
	char control[CMSG_SPACE(sizeof(int))] = {}, byte;
	struct iovec iov = { &byte, 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg;
	int fd = -1;

	if (recvmsg(sock, &msg, 0) == 1) {
		cmsg = CMSG_FIRSTHDR(&msg);
		if (cmsg)
			memcpy(&fd, CMSG_DATA(cmsg), sizeof(fd));
	}
	return fd;
}

static const char *result(int error)
{
	return error ? strerrorname_np(error) : "done";
}

/* Of the whole frame */
static uint64_t checksum(const uint16_t *pixel)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < PIXELS; i++)
		sum = sum * 31 + pixel[i];
	return sum;
}

static int wrong_in_mirror(const uint16_t *frame, const uint16_t *mirror)
{
	int wrong = 0, x, y;

	for (y = 0; y < HEIGHT; y++)
		for (x = 0; x < WIDTH; x++)
			wrong += mirror[y * WIDTH + x] != frame[y * WIDTH + WIDTH - 1 - x];
	return wrong;
}

static int capture(int buf)
{
	int cam = open_node("vivid", V4L2_CAP_VIDEO_CAPTURE, 0, FORMAT);
	int ret = cam < 0 ? ENODEV : 0;

	ret = ret ?: set_format(cam, CAP, FORMAT) ?: request(cam, CAP) ?:
	      queue(cam, CAP, 0, buf) ?: stream(cam, CAP, true) ?: dequeue(cam, CAP);
	if (cam >= 0)
		close(cam);
	return ret;
}

/* What the consumer succeeded in, as its exit status */
#define READ_BY_DEVICE	1
#define PROCESSED	2
#define WRITE_REFUSED	4

static int consumer(int sock)
{
	struct v4l2_control flip = { .id = V4L2_CID_HFLIP, .value = 1 };
	int mirror = open_node("vim2m", V4L2_CAP_VIDEO_M2M, FORMAT, FORMAT);
	int buf = receive_fd(sock), own = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
	int ret, wrong, status = 0;
	const uint16_t *frame, *out;

	frame = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, buf, 0);
	out = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, own, 0);
	if (frame == MAP_FAILED || out == MAP_FAILED)
		return 0;
	ret = call(mirror, VIDIOC_S_CTRL, &flip) ?:
	      set_format(mirror, OUT, FORMAT) ?: set_format(mirror, CAP, FORMAT) ?:
	      request(mirror, OUT) ?: request(mirror, CAP);
	ksft_print_msg("consumer: sets up vim2m as a mirror: %s\n", result(ret));
	if (ret)
		return 0;

	ret = queue(mirror, OUT, 0, buf);
	ksft_print_msg("consumer: queues the frame as input of vim2m: %s\n", result(ret));
	if (!ret)
		status |= READ_BY_DEVICE;

	ret = ret ?: queue(mirror, CAP, 0, own) ?: stream(mirror, OUT, true) ?:
	      stream(mirror, CAP, true) ?: dequeue(mirror, OUT) ?: dequeue(mirror, CAP);
	wrong = ret ? PIXELS : wrong_in_mirror(frame, out);
	ksft_print_msg("consumer: of %d pixels, mirrored in its own buffer, %d are wrong\n",
		       PIXELS, wrong);
	if (!wrong)
		status |= PROCESSED;

	ret = queue(mirror, CAP, 1, buf);
	ksft_print_msg("consumer: queues the frame as output of vim2m: %s\n", result(ret));
	if (ret == EACCES)
		status |= WRITE_REFUSED;
	return status;
}

int main(void)
{
	int buf, r, ret, mirror, status, sock[2];
	const uint16_t *frame;
	uint64_t sum;
	pid_t pid;

	ksft_print_header();
	buf = heap_alloc("system", SIZE, O_RDWR | O_CLOEXEC);
	r = derive(buf, O_RDONLY | O_CLOEXEC);
	frame = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, buf, 0);
	if (r < 0 || frame == MAP_FAILED || socketpair(AF_UNIX, SOCK_STREAM, 0, sock))
		ksft_exit_fail_msg("producer: no buffer, or none for reading: %s\n",
				   strerror(errno));
	ret = capture(buf);
	mirror = open_node("vim2m", V4L2_CAP_VIDEO_M2M, FORMAT, FORMAT);
	if (ret == ENODEV || mirror < 0)
		ksft_exit_skip("no vivid, or no vim2m\n");
	close(mirror);
	sum = checksum(frame);
	ksft_set_plan(5);
	ksft_print_msg("producer: vivid captures a frame of %d x %d, checksum %016llx: %s\n",
		       WIDTH, HEIGHT, (unsigned long long)sum, result(ret));
	ksft_test_result(!ret && sum, "producer: a frame is captured\n");

	/* The consumer has nothing but what it is given */
	fflush(stdout);
	pid = fork();
	if (!pid) {
		munmap((void *)frame, SIZE);
		close(buf);
		close(r);
		close(sock[1]);
		alarm(60);
		status = consumer(sock[0]);
		fflush(stdout);
		_exit(status);
	}
	pass_fd(sock[1], r);
	ksft_print_msg("producer: hands out an fd for reading\n");
	waitpid(pid, &status, 0);
	status = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
	ksft_test_result(status & READ_BY_DEVICE, "consumer: a device may read the frame\n");
	ksft_test_result(status & PROCESSED, "consumer: the frame is processed\n");
	ksft_test_result(status & WRITE_REFUSED, "consumer: no device may write to it\n");
	ksft_print_msg("producer: checksum %016llx\n", (unsigned long long)checksum(frame));
	ksft_test_result(checksum(frame) == sum, "producer: the frame is what it was\n");
	ksft_finished();
}

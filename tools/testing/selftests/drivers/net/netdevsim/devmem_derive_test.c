// SPDX-License-Identifier: GPL-2.0
/*
 * Devmem TCP with dma-bufs of the system heap that were derived with less access,
 * sent from one netdevsim to another, each in its own network namespace. The
 * sending one reads the data by their DMA addresses. netdevsim cannot receive
 * into a dma-buf: binding one for that gets as far as the queue.
 */
#include <arpa/inet.h>
#include <net/if.h>
#include <net/route.h>
#include <sched.h>
#include <netinet/in.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <linux/errqueue.h>
#include <linux/ethtool.h>
#include <linux/genetlink.h>
#include <linux/io_uring.h>
#include <linux/netdev.h>
#include <linux/netlink.h>
#include <linux/sock_diag.h>
#include <linux/sockios.h>
#include <linux/tcp.h>

#include "../../../dma-buf/derive/buffer.h"
#include "../../../fail_nth.h"
#include "kselftest_harness.h"

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef SCM_DEVMEM_DMABUF
#define SCM_DEVMEM_DMABUF 79
#endif

#define BUS	"/sys/bus/netdevsim/"
#define SIZE	(1024 * 1024)
#define PAGE	4096
#define PORT	5201
#define WAIT_MS	10000
#define MEMORY	UINT32_MAX	/* instead of a binding */

/* Is the condition true, in the end? Timers of TCP may have to try again for it. */
#define becomes(condition) ({						\
	int ms;								\
	bool ret;							\
									\
	for (ms = 4 * WAIT_MS; !(ret = (condition)) && ms > 0; ms -= 10) \
		usleep(10000);						\
	ret;								\
})

/* A netlink request, and then what came back */
struct message {
	struct nlmsghdr nl;
	union {
		struct {
			struct genlmsghdr genl;
			char attrs[4096];
		};
		struct nlmsgerr err;
	};
};

static struct nlattr *put(struct message *msg, int type, const void *data, int len)
{
	struct nlattr *attr = (void *)msg + NLMSG_ALIGN(msg->nl.nlmsg_len);

	attr->nla_type = type;
	attr->nla_len = NLA_HDRLEN + len;
	memcpy((void *)attr + NLA_HDRLEN, data, len);
	msg->nl.nlmsg_len = NLMSG_ALIGN(msg->nl.nlmsg_len) + NLA_ALIGN(attr->nla_len);
	return attr;
}

static void put_u32(struct message *msg, int type, uint32_t value)
{
	put(msg, type, &value, sizeof(value));
}

/* The data of the attribute of that type, in what is from start to the end */
static void *find(struct message *msg, void *start, int type)
{
	void *end = (void *)msg + msg->nl.nlmsg_len;
	struct nlattr *attr;

	for (attr = start; (void *)attr + NLA_HDRLEN <= end && attr->nla_len >= NLA_HDRLEN;
	     attr = (void *)attr + NLA_ALIGN(attr->nla_len))
		if ((attr->nla_type & NLA_TYPE_MASK) == type)
			return (void *)attr + NLA_HDRLEN;
	return NULL;
}

static struct message request(int family, int cmd)
{
	struct message msg = {
		.nl.nlmsg_len = NLMSG_HDRLEN + GENL_HDRLEN,
		.nl.nlmsg_type = family,
		.nl.nlmsg_flags = NLM_F_REQUEST,
		.genl.cmd = cmd,
		.genl.version = 1,
	};

	return msg;
}

/* Returns 0 or an errno, and then the message that explains it in why */
static int call(int nl, struct message *msg, char why[128])
{
	const char *text;

	why[0] = 0;
	if (send(nl, msg, msg->nl.nlmsg_len, 0) < 0 || recv(nl, msg, sizeof(*msg), 0) < 0)
		return errno;
	if (msg->nl.nlmsg_type != NLMSG_ERROR)
		return 0;
	text = find(msg, &msg->err + 1, NLMSGERR_ATTR_MSG);
	if (text)
		snprintf(why, 128, "%s", text);
	return -msg->err.error;
}

static int nl_open(void)
{
	int one = 1, nl = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);

	setsockopt(nl, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof(one));
	setsockopt(nl, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof(one));
	return nl;
}

static int nl_family(int nl)
{
	struct message msg = request(GENL_ID_CTRL, CTRL_CMD_GETFAMILY);
	char why[128];
	uint16_t *id;

	put(&msg, CTRL_ATTR_FAMILY_NAME, NETDEV_FAMILY_NAME, sizeof(NETDEV_FAMILY_NAME));
	if (call(nl, &msg, why))
		return -1;
	id = find(&msg, msg.attrs, CTRL_ATTR_FAMILY_ID);
	return id ? *id : -1;
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = write(fd, text, strlen(text)) < 0 ? errno : 0;

	close(fd);
	return ret;
}

static int write_id(const char *path, int id)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", id);
	return write_file(path, text);
}

static int set_address(const char *name, const char *address)
{
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;
	struct ifreq ifr = {};
	struct sockaddr_in *in = (void *)&ifr.ifr_addr;

	strcpy(ifr.ifr_name, name);
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr(address);
	ret = ioctl(sock, SIOCSIFADDR, &ifr);
	if (!ret) {
		in->sin_addr.s_addr = inet_addr("255.255.255.0");
		ret = ioctl(sock, SIOCSIFNETMASK, &ifr);
	}
	if (!ret) {
		ifr.ifr_flags = IFF_UP;
		ret = ioctl(sock, SIOCSIFFLAGS, &ifr);
	}
	close(sock);
	return ret ? errno : 0;
}

/* What one side has */
struct side {
	int id, net, ifindex;
};

/* In the namespace of the caller, where it gets this name */
static int side_add(struct side *side, int id, const char *name, const char *address)
{
	int ret = write_id(BUS "new_device", id);

	if (ret)
		return ret;
	side->id = id;
	side->ifindex = if_nametoindex(name);
	return side->ifindex ? set_address(name, address) : ENODEV;
}

/* Leaves the caller in the new namespace */
static int side_open(struct side *side, int id, const char *address)
{
	if (unshare(CLONE_NEWNET))
		return errno;
	side->net = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
	return side_add(side, id, "eth0", address);
}

static int side_link(const struct side *a, const struct side *b)
{
	char text[64];

	snprintf(text, sizeof(text), "%d:%d %d:%d", a->net, a->ifindex, b->net, b->ifindex);
	return write_file(BUS "link_device", text);
}

static int side_delete(struct side *side)
{
	int ret = side->id ? write_id(BUS "del_device", side->id) : 0;

	side->id = 0;
	return ret;
}

static void side_close(struct side *side)
{
	side_delete(side);
	close(side->net);
}

/* How many packets the device of the caller's namespace, or who sends by it, has dropped */
static long tx_dropped(const char *name)
{
	FILE *f = fopen("/proc/thread-self/net/dev", "r");
	long dropped = -1;
	char line[512], *p;
	int i;

	while (f && fgets(line, sizeof(line), f)) {
		p = strstr(line, name);
		if (!p)
			continue;
		p += strlen(name) + 1;
		for (i = 0; i < 12; i++)
			dropped = strtol(p, &p, 10);
	}
	if (f)
		fclose(f);
	return dropped;
}

/* Of a device in the caller's namespace */
static int set_feature(const char *name, unsigned int cmd, bool on)
{
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ethtool_value value = { .cmd = cmd, .data = on };
	struct ifreq ifr = { .ifr_data = (void *)&value };
	int ret;

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	ret = ioctl(sock, SIOCETHTOOL, &ifr) ? errno : 0;
	close(sock);
	return ret;
}

/* Of the caller's namespace */
static long mtu_probes(void)
{
	FILE *f = fopen("/proc/thread-self/net/netstat", "r");
	char *names = NULL, *values = NULL, *n, *v, *next_n, *next_v;
	size_t n_size = 0, v_size = 0;
	long probes = 0;

	while (f && getline(&names, &n_size, f) > 0 && getline(&values, &v_size, f) > 0) {
		n = strtok_r(names, "\n ", &next_n);
		v = strtok_r(values, "\n ", &next_v);
		while (n && v) {
			if (!strcmp(n, "TCPMTUPFail") || !strcmp(n, "TCPMTUPSuccess"))
				probes += atol(v);
			n = strtok_r(NULL, "\n ", &next_n);
			v = strtok_r(NULL, "\n ", &next_v);
		}
	}
	if (f)
		fclose(f);
	free(names);
	free(values);
	return probes;
}

/* To the receiver, by the device */
static int host_route(unsigned long request, char *name)
{
	struct rtentry route = { .rt_flags = RTF_UP | RTF_HOST, .rt_dev = name };
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;
	struct sockaddr_in *in = (void *)&route.rt_dst;

	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr("192.0.2.2");
	ret = ioctl(sock, request, &route) ? errno : 0;
	close(sock);
	return ret;
}

/* TCP makes its segments by itself then. Returns 0 or an errno. */
static int disable_gso(const char *name)
{
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), ret;
	struct ethtool_value value = { .cmd = ETHTOOL_STSO };
	struct ifreq ifr = { .ifr_data = (void *)&value };

	strcpy(ifr.ifr_name, name);
	ret = ioctl(sock, SIOCETHTOOL, &ifr);
	value.cmd = ETHTOOL_SGSO;
	ret = ret ?: ioctl(sock, SIOCETHTOOL, &ifr);
	close(sock);
	return ret ? errno : 0;
}

/* How much of what the socket has sent is still somewhere */
static long wmem(int sock)
{
	uint32_t info[SK_MEMINFO_VARS] = {};
	socklen_t len = sizeof(info);

	return getsockopt(sock, SOL_SOCKET, SO_MEMINFO, info, &len) ?
	       -1 : (long)info[SK_MEMINFO_WMEM_ALLOC];
}

/* A key for the segments of that peer, or none any more. Returns 0 or an errno. */
static int set_md5_key(int sock, const char *peer, int len)
{
	struct tcp_md5sig sig = { .tcpm_keylen = len, .tcpm_key = "key" };
	struct sockaddr_in *in = (void *)&sig.tcpm_addr;

	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr(peer);
	return setsockopt(sock, IPPROTO_TCP, TCP_MD5SIG, &sig, sizeof(sig)) ? errno : 0;
}

static int add_ao_key(int sock, const char *peer)
{
	struct tcp_ao_add add = {
		.alg_name = "hmac(sha1)", .prefix = 32, .sndid = 1, .rcvid = 1,
		.keylen = 3, .key = "key",
	};
	struct sockaddr_in *in = (void *)&add.addr;

	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr(peer);
	return setsockopt(sock, IPPROTO_TCP, TCP_AO_ADD_KEY, &add, sizeof(add)) ? errno : 0;
}

static struct tcp_info tcp_info(int sock)
{
	struct tcp_info info = {};
	socklen_t len = sizeof(info);

	getsockopt(sock, IPPROTO_TCP, TCP_INFO, &info, &len);
	return info;
}

/* How much can be received at once */
static int arrived(int sock)
{
	int n = -1;

	ioctl(sock, FIONREAD, &n);
	return n;
}

FIXTURE(devmem) {
	struct buffer buf;
	struct side from, to, other;
	int tx, rx, nl, family;
	int users;
	char why[128];
	enum { NO_KEY, MD5, AO } key;
};

static int add_key(FIXTURE_DATA(devmem) *self, int sock, const char *peer)
{
	return self->key == MD5 ? set_md5_key(sock, peer, 3) :
	       self->key == AO ? add_ao_key(sock, peer) : 0;
}

/* The connection, from the namespace of the sender. Returns 0 or an errno. */
static int tcp_connect(FIXTURE_DATA(devmem) *self)
{
	struct sockaddr_in to = {
		.sin_family = AF_INET,
		.sin_port = htons(PORT),
		.sin_addr.s_addr = inet_addr("192.0.2.2"),
	};
	int one = 1, listener, ret;

	listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ret = setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) ?:
	      bind(listener, (void *)&to, sizeof(to)) ?:
	      add_key(self, listener, "192.0.2.1") ?: listen(listener, 1);
	if (!ret)
		ret = setns(self->from.net, CLONE_NEWNET);
	if (!ret) {
		self->tx = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
		ret = setsockopt(self->tx, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof(one)) ?:
		      add_key(self, self->tx, "192.0.2.2") ?:
		      connect(self->tx, (void *)&to, sizeof(to));
	}
	if (!ret) {
		self->rx = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		ret = self->rx < 0;
	}
	ret = ret ? errno : 0;
	close(listener);
	return ret;
}

/* What is still queued is not sent */
static void disconnect(FIXTURE_DATA(devmem) *self)
{
	struct linger linger = { .l_onoff = 1 };

	setsockopt(self->tx, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(self->tx);
	close(self->rx);
	self->tx = -1;
	self->rx = -1;
}

static int reconnect(FIXTURE_DATA(devmem) *self)
{
	disconnect(self);
	return setns(self->to.net, CLONE_NEWNET) ? errno : tcp_connect(self);
}

/* Returns what failed, or NULL */
static const char *set_up(FIXTURE_DATA(devmem) *self)
{
	if (!buffer_alloc(&self->buf, SIZE, O_RDWR))
		return "the heap";
	if (!buffer_derived(&self->buf))
		return "deriving";
	self->users = users(self->buf.fd);

	if (side_open(&self->from, 4 * getpid(), "192.0.2.1") ||
	    side_open(&self->to, 4 * getpid() + 1, "192.0.2.2"))
		return "a netdevsim";
	if (side_link(&self->from, &self->to))
		return "linking the netdevsims";
	if (tcp_connect(self))
		return "the connection";
	self->nl = nl_open();
	self->family = nl_family(self->nl);
	return self->family > 0 ? NULL : "netlink";
}

/* Is nothing left of the bindings? */
static bool clean_up(FIXTURE_DATA(devmem) *self)
{
	bool released;

	disconnect(self);
	close(self->nl);
	released = self->buf.fd < 0 ||
		   users_become(self->buf.fd, self->users, WAIT_MS) == self->users;
	side_close(&self->from);
	side_close(&self->to);
	side_close(&self->other);
	buffer_free(&self->buf);
	return released;
}

static int bind_tx_to(FIXTURE_DATA(devmem) *self, const struct side *side, int fd,
		      uint32_t *id)
{
	struct message msg = request(self->family, NETDEV_CMD_BIND_TX);
	uint32_t *got;
	int ret;

	put_u32(&msg, NETDEV_A_DMABUF_IFINDEX, side->ifindex);
	put_u32(&msg, NETDEV_A_DMABUF_FD, fd);
	ret = call(self->nl, &msg, self->why);
	if (ret)
		return ret;
	got = find(&msg, msg.attrs, NETDEV_A_DMABUF_ID);
	*id = got ? *got : 0;
	return *id ? 0 : EPROTO;
}

static int bind_tx(FIXTURE_DATA(devmem) *self, int fd, uint32_t *id)
{
	return bind_tx_to(self, &self->from, fd, id);
}

/* To the one receive queue that there is */
static int bind_rx(FIXTURE_DATA(devmem) *self, int fd)
{
	struct message msg = request(self->family, NETDEV_CMD_BIND_RX);
	struct nlattr *queue;

	put_u32(&msg, NETDEV_A_DMABUF_IFINDEX, self->from.ifindex);
	put_u32(&msg, NETDEV_A_DMABUF_FD, fd);
	queue = put(&msg, NETDEV_A_DMABUF_QUEUES | NLA_F_NESTED, "", 0);
	put_u32(&msg, NETDEV_A_QUEUE_ID, 0);
	put_u32(&msg, NETDEV_A_QUEUE_TYPE, NETDEV_QUEUE_TYPE_RX);
	queue->nla_len = (void *)&msg + msg.nl.nlmsg_len - (void *)queue;
	return call(self->nl, &msg, self->why);
}

/* Unbinds all of them */
static void unbind(FIXTURE_DATA(devmem) *self)
{
	close(self->nl);
	self->nl = nl_open();
}

FIXTURE_SETUP(devmem)
{
	const char *failed;
	uint32_t id;
	int ret = 0;

	*self = (FIXTURE_DATA(devmem)) {
		.buf = { .fd = -1, .r = -1, .w = -1, .rw = -1, .map = MAP_FAILED },
		.from.net = -1, .to.net = -1, .other.net = -1, .tx = -1, .rx = -1, .nl = -1,
	};
	if (access(BUS, F_OK))
		SKIP(return, "no netdevsim");
	if (access("/dev/dma_heap/system", F_OK))
		SKIP(return, "no system heap");

	failed = set_up(self);
	if (!failed) {
		ret = bind_tx(self, self->buf.fd, &id);
		unbind(self);
		if (users_become(self->buf.fd, self->users, WAIT_MS) != self->users)
			failed = "unbinding";
	}
	/* there is no teardown after this */
	if (failed || ret == EOPNOTSUPP)
		clean_up(self);
	ASSERT_EQ(NULL, failed) {
		TH_LOG("failed: %s", failed);
	}
	if (ret == EOPNOTSUPP)
		SKIP(return, "netdevsim does not send device memory");
}

FIXTURE_TEARDOWN(devmem)
{
	EXPECT_TRUE(clean_up(self));
}

/* Returns what sendmsg() does */
static ssize_t send_from(int sock, uint32_t id, size_t offset, size_t len)
{
	struct iovec iov = { (void *)offset, len };
	union {
		char buf[CMSG_SPACE(sizeof(uint32_t))];
		struct cmsghdr align;
	} control = {};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_DEVMEM_DMABUF;
	cmsg->cmsg_len = CMSG_LEN(sizeof(id));
	memcpy(CMSG_DATA(cmsg), &id, sizeof(id));
	return sendmsg(sock, &msg, MSG_ZEROCOPY | MSG_DONTWAIT);
}

/* Takes the completions that there are. Returns 0, or an errno if the data was copied. */
static int completions(int sock)
{
	struct sock_extended_err *err;
	struct cmsghdr *cmsg;
	char control[256];
	int ret = 0;

	for (;;) {
		struct msghdr msg = {
			.msg_control = control, .msg_controllen = sizeof(control),
		};

		if (recvmsg(sock, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
			return ret;
		cmsg = CMSG_FIRSTHDR(&msg);
		err = cmsg ? (void *)CMSG_DATA(cmsg) : NULL;
		if (!err || err->ee_origin != SO_EE_ORIGIN_ZEROCOPY || err->ee_errno)
			ret = EPROTO;
		else if (err->ee_code & SO_EE_CODE_ZEROCOPY_COPIED)
			ret = EALREADY;
	}
}

/* Receives len bytes, and sends them before, from offset, unless id is 0 */
static int transfer(FIXTURE_DATA(devmem) *self, uint32_t id, size_t offset, void *to,
		    size_t len)
{
	size_t sent = id ? 0 : len, got = 0;
	ssize_t n;
	int ret;

	while (got < len) {
		struct pollfd fds[] = {
			{ .fd = self->rx, .events = POLLIN },
			{ .fd = self->tx, .events = sent < len ? POLLOUT : 0 },
		};

		ret = poll(fds, 2, WAIT_MS) < 1 ? ETIMEDOUT : completions(self->tx);
		if (ret)
			return ret;
		if (sent < len) {
			n = id == MEMORY ?
			    send(self->tx, (char *)self->buf.map + offset + sent, len - sent,
				 MSG_DONTWAIT) :
			    send_from(self->tx, id, offset + sent, len - sent);
			if (n < 0 && errno != EAGAIN)
				return errno;
			sent += n < 0 ? 0 : n;
		}
		n = recv(self->rx, to + got, len - got, MSG_DONTWAIT);
		if (n < 0 && errno != EAGAIN)
			return errno;
		got += n < 0 ? 0 : n;
	}
	return 0;
}

/* Is the whole buffer, which has that content, what is sent by this binding? */
static int sends(FIXTURE_DATA(devmem) *self, uint32_t id, int seed)
{
	static uint32_t data[SIZE / 4];
	int ret;

	memset(data, 0, SIZE);
	ret = transfer(self, id, 0, data, SIZE);
	return ret ?: wrong_bytes(data, SIZE, seed) ? EILSEQ : 0;
}

/* To be called before anything is sent, which lets the window grow: what it has room for
 * goes out, and nothing is left with the sender
 */
static int limit_room(FIXTURE_DATA(devmem) *self)
{
	int room = 65536;

	if (setsockopt(self->tx, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)))
		return -1;
	room *= 2;
	return setsockopt(self->rx, SOL_SOCKET, SO_RCVBUF, &room, sizeof(room));
}

/* Sends until the receiver has no room, and the sender none either. Returns how much it
 * was, which starts at the start of the buffer, or -1.
 */
static ssize_t stall(FIXTURE_DATA(devmem) *self, uint32_t id)
{
	struct tcp_info info;
	ssize_t n, sent = 0;
	int ms = WAIT_MS;

	if (limit_room(self))
		return -1;
	while (sent < SIZE && ms > 0) {
		if (completions(self->tx))
			return -1;
		n = send_from(self->tx, id, sent, SIZE - sent);
		if (n < 0 && errno != EAGAIN)
			return -1;
		if (n > 0) {
			sent += n;
			continue;
		}
		/* it is the receiver that it waits for */
		info = tcp_info(self->tx);
		if (info.tcpi_notsent_bytes && (!info.tcpi_unacked || !info.tcpi_snd_wnd))
			return sent;
		usleep(10000);
		ms -= 10;
	}
	return -1;
}

TEST_F(devmem, bind_tx)
{
	uint32_t id;

	EXPECT_EQ(0, bind_tx(self, self->buf.fd, &id));
	EXPECT_EQ(0, bind_tx(self, self->buf.r, &id));
	EXPECT_EQ(0, bind_tx(self, self->buf.rw, &id));
	EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
	EXPECT_NE(NULL, strstr(self->why, "access"));
}

/* Where a file with full access gets as far as the queue, others are refused */
TEST_F(devmem, bind_rx)
{
	int before = users(self->buf.fd), i;

	ASSERT_LT(0, before);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		EXPECT_NE(NULL, strstr(self->why, "access"));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.w));
		EXPECT_NE(NULL, strstr(self->why, "access"));
		EXPECT_EQ(before, users(self->buf.fd));
		EXPECT_EQ(EINVAL, bind_rx(self, self->buf.fd));
		EXPECT_STREQ("tcp-data-split is disabled", self->why);
		EXPECT_EQ(EINVAL, bind_rx(self, self->buf.rw));
		EXPECT_STREQ("tcp-data-split is disabled", self->why);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	}
}

/* A file that its exporter made O_RDONLY has all access, as ever: it was not derived */
TEST_F(devmem, exported_read_only)
{
	int fd = heap_alloc("system", SIZE, O_RDONLY | O_CLOEXEC), before = users(fd);
	uint32_t id;

	ASSERT_LE(0, fd);
	EXPECT_EQ(0, bind_tx(self, fd, &id));
	EXPECT_EQ(EINVAL, bind_rx(self, fd));
	EXPECT_STREQ("tcp-data-split is disabled", self->why);
	unbind(self);
	EXPECT_EQ(before, users_become(fd, before, WAIT_MS));
	close(fd);
}

/* What is no dma-buf, as ever */
TEST_F(devmem, other_fds)
{
	int file = open("/dev/null", O_RDWR | O_CLOEXEC);
	int path = open("/proc/self/exe", O_PATH | O_CLOEXEC);
	uint32_t id;

	EXPECT_EQ(EINVAL, bind_tx(self, file, &id));
	EXPECT_EQ(EBADF, bind_tx(self, path, &id));
	EXPECT_EQ(EBADF, bind_tx(self, -1, &id));
	EXPECT_STREQ("", self->why);
	EXPECT_EQ(EINVAL, bind_rx(self, file));
	EXPECT_EQ(EBADF, bind_rx(self, path));
	close(path);
	close(file);
}

/* The device reads what is in the buffer when it sends */
TEST_F_TIMEOUT(devmem, contents, 120)
{
	uint32_t id, full;
	int seed;

	ASSERT_EQ(0, bind_tx(self, self->buf.fd, &full));
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (seed = 1; seed < 4; seed++) {
		buffer_fill(&self->buf, seed);
		EXPECT_EQ(0, sends(self, id, seed));
		EXPECT_EQ(0, sends(self, full, seed));
	}
}

TEST_F(devmem, offsets)
{
	static const struct {
		size_t offset, len;
	} parts[] = {
		{ 0, 1 }, { 1, 1 }, { PAGE - 1, 2 }, { 5 * PAGE + 100, 1024 },
		{ 2 * PAGE - 3, 9 * PAGE }, { SIZE - PAGE, PAGE }, { SIZE - 1, 1 },
	};
	char got[9 * PAGE];
	uint32_t id;
	size_t i;

	buffer_fill(&self->buf, 4);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		memset(got, 0, sizeof(got));
		ASSERT_EQ(0, transfer(self, id, parts[i].offset, got, parts[i].len));
		EXPECT_EQ(0, memcmp(got, (char *)self->buf.map + parts[i].offset,
				    parts[i].len)) {
			TH_LOG("at %zu", parts[i].offset);
		}
	}
	EXPECT_EQ(-1, send_from(self->tx, id, SIZE, 1));
	EXPECT_EQ(EFAULT, errno);
}

/* Segments that arrive together are merged, which must not lose who has sent them */
TEST_F_TIMEOUT(devmem, segments, 120)
{
	uint32_t id;

	ASSERT_EQ(0, disable_gso("eth0"));
	ASSERT_EQ(0, reconnect(self));
	buffer_fill(&self->buf, 14);
	EXPECT_EQ(0, sends(self, MEMORY, 14));
	EXPECT_TRUE(becomes(wmem(self->tx) == 0));
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	EXPECT_EQ(0, sends(self, id, 14));
	EXPECT_TRUE(becomes(wmem(self->tx) == 0));
}

/* A connection that looks for the MTU makes packets of its own from what is to be sent */
TEST_F_TIMEOUT(devmem, mtu_probe, 120)
{
	long before = mtu_probes();
	uint32_t id;
	int i;

	ASSERT_EQ(0, write_file("/proc/sys/net/ipv4/tcp_mtu_probing", "2"));
	buffer_fill(&self->buf, 10);
	ASSERT_EQ(0, reconnect(self));
	for (i = 0; i < 8 && mtu_probes() == before; i++)
		ASSERT_EQ(0, sends(self, MEMORY, 10));
	/* it does with memory */
	ASSERT_LT(before, mtu_probes());

	ASSERT_EQ(0, reconnect(self));
	before = mtu_probes();
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	for (i = 0; i < 8; i++)
		EXPECT_EQ(0, sends(self, id, 10));
	EXPECT_EQ(before, mtu_probes());
}

/* Each binding is made by the fd that is given for it */
TEST_F_TIMEOUT(devmem, alternating_fds, 120)
{
	uint32_t id;
	int i;

	buffer_fill(&self->buf, 5);
	for (i = 0; i < 3; i++) {
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(0, sends(self, id, 5));
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		ASSERT_EQ(0, bind_tx(self, self->buf.rw, &id));
		EXPECT_EQ(0, sends(self, id, 5));
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
	}
}

/* A binding is one reference, until its socket is closed; a refused fd is none */
TEST_F_TIMEOUT(devmem, references, 120)
{
	int before = users(self->buf.fd), i;
	uint32_t id;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 6);
	for (i = 0; i < 5; i++) {
		EXPECT_EQ(EACCES, bind_tx(self, self->buf.w, &id));
		EXPECT_EQ(EACCES, bind_rx(self, self->buf.r));
		EXPECT_EQ(before, users(self->buf.fd));
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(before + 1, users(self->buf.fd));
		EXPECT_EQ(0, sends(self, id, 6));
		ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
		EXPECT_EQ(before + 2, users(self->buf.fd));
		unbind(self);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
		EXPECT_EQ(-1, send_from(self->tx, id, 0, 1));
		EXPECT_EQ(EINVAL, errno);
	}
}

/* What is being sent when the binding goes keeps the buffer until it has arrived */
TEST_F_TIMEOUT(devmem, unbind_while_sending, 120)
{
	int before = users(self->buf.fd);
	static uint32_t got[SIZE / 4];
	uint32_t id;
	ssize_t sent;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 7);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	sent = stall(self, id);
	ASSERT_LT(0, sent);
	unbind(self);
	close(self->buf.r);
	self->buf.r = -1;
	self->users--;
	EXPECT_TRUE(becomes(send_from(self->tx, id, 0, 1) < 0 && errno == EINVAL));
	EXPECT_EQ(before, users(self->buf.fd));

	ASSERT_EQ(0, transfer(self, 0, 0, got, sent));
	EXPECT_EQ(0, memcmp(got, self->buf.map, sent));
	EXPECT_EQ(before - 1, users_become(self->buf.fd, before - 1, WAIT_MS));
}

/* The device can go before what is bound to it, and takes the binding with it, whatever
 * is queued
 */
TEST_F_TIMEOUT(devmem, device_goes, 120)
{
	int before = users(self->buf.fd);
	uint32_t id;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 9);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	ASSERT_EQ(0, limit_room(self));
	EXPECT_EQ(0, sends(self, id, 9));
	ASSERT_LT(0, stall(self, id));
	EXPECT_EQ(before + 1, users(self->buf.fd));
	ASSERT_EQ(0, side_delete(&self->from));
	EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	EXPECT_EQ(-1, send_from(self->tx, id, 0, 1));
	EXPECT_EQ(ENODEV, errno);
	unbind(self);
	EXPECT_TRUE(becomes(send_from(self->tx, id, 0, 1) < 0 && errno == EINVAL));
	EXPECT_EQ(before, users(self->buf.fd));
}

/* What is queued is known to belong to the device also when it was unbound before, and is
 * not sent by another one that takes its place
 */
TEST_F_TIMEOUT(devmem, unbound_device_goes, 180)
{
	int before = users(self->buf.fd), first;
	static uint32_t got[SIZE / 4];
	uint32_t id;
	long dropped;

	ASSERT_LT(0, before);
	buffer_fill(&self->buf, 11);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	ASSERT_LT(0, stall(self, id));
	unbind(self);
	EXPECT_TRUE(becomes(send_from(self->tx, id, 0, 1) < 0 && errno == EINVAL));
	EXPECT_EQ(before + 1, users(self->buf.fd));
	ASSERT_EQ(0, side_delete(&self->from));
	EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));

	ASSERT_EQ(0, side_add(&self->from, 4 * getpid() + 2, "eth0", "192.0.2.1"));
	ASSERT_EQ(0, side_link(&self->from, &self->to));
	dropped = tx_dropped("eth0");
	first = arrived(self->rx);
	ASSERT_LT(0, first);
	ASSERT_EQ(0, transfer(self, 0, 0, got, first));
	EXPECT_EQ(0, memcmp(got, self->buf.map, first));
	EXPECT_TRUE(becomes(tx_dropped("eth0") > dropped));
	EXPECT_EQ(0, arrived(self->rx));
}

/* Who unbinds holds the device, or does not find it any more */
TEST_F_TIMEOUT(devmem, goes_while_unbound, 180)
{
	int before = users(self->buf.fd), id = self->from.id, status, i, j;
	uint32_t binding;
	pid_t pid;

	ASSERT_LT(0, before);
	for (i = 0; i < 10; i++) {
		for (j = 0; j < 10; j++)
			ASSERT_EQ(0, bind_tx(self, self->buf.r, &binding));
		pid = fork();
		ASSERT_NE(-1, pid);
		if (!pid) {
			close(self->nl);
			_exit(side_delete(&self->from));
		}
		usleep(1000 * i);
		unbind(self);
		ASSERT_EQ(pid, waitpid(pid, &status, 0));
		self->from.id = 0;
		EXPECT_EQ(0, status);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
		ASSERT_EQ(0, side_add(&self->from, id, "eth0", "192.0.2.1"));
	}
}

/* Whatever cannot be allocated, nothing is left of the binding */
TEST_F_TIMEOUT(devmem, bind_fails, 600)
{
	int before = users(self->buf.fd), nth, ret;
	bool left = false;
	uint32_t id;

	ASSERT_LT(0, before);
	if (!fail_nth_setup())
		SKIP(return, "no fault injection for slabs, or no debugfs");
	for (nth = 1; !left; nth++) {
		fail_nth(nth);
		ret = bind_tx(self, self->buf.r, &id);
		left = fail_nth_left();
		unbind(self);
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	}
	EXPECT_EQ(0, ret);
	fail_nth_restore();
}

/* A device that can do less than when the connection began sends nothing, until it can again */
TEST_F_TIMEOUT(devmem, offloads, 180)
{
	static const unsigned int off[] = { ETHTOOL_SSG, ETHTOOL_STXCSUM };
	static uint32_t got[SIZE / 4];
	unsigned int which, i;
	uint32_t id;
	ssize_t sent;
	long dropped;

	buffer_fill(&self->buf, 13);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	ASSERT_EQ(0, sends(self, id, 13));
	for (which = 1; which < 4; which++) {
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, set_feature("eth0", off[i], !(which & 1 << i)));
		dropped = tx_dropped("eth0");
		sent = send_from(self->tx, id, 0, 32768);
		ASSERT_LT(0, sent);
		EXPECT_TRUE(becomes(tx_dropped("eth0") > dropped));
		EXPECT_EQ(0, arrived(self->rx));
		for (i = 0; i < 2; i++)
			ASSERT_EQ(0, set_feature("eth0", off[i], true));
		memset(got, 0, sent);
		EXPECT_EQ(0, transfer(self, 0, 0, got, sent));
		EXPECT_EQ(0, memcmp(got, self->buf.map, sent));
	}
}

/* One skb can have memory that was bound to different devices, and is sent by neither */
TEST_F_TIMEOUT(devmem, two_devices, 180)
{
	int room = SIZE, ms = WAIT_MS;
	static char got[SIZE + 200];
	uint32_t id, other_id;
	ssize_t n, sent, received = 0;
	long dropped;

	ASSERT_EQ(0, side_add(&self->other, 4 * getpid() + 2, "eth1", "198.51.100.1"));
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	ASSERT_EQ(0, bind_tx_to(self, &self->other, self->buf.r, &other_id));
	sent = stall(self, id);
	ASSERT_LT(0, sent);
	ASSERT_EQ(0, setsockopt(self->tx, SOL_SOCKET, SO_SNDBUF, &room, sizeof(room)));
	ASSERT_EQ(100, send_from(self->tx, id, 0, 100));

	/* it has the other route when it has sent something, as an acknowledgment */
	ASSERT_EQ(0, host_route(SIOCADDRT, "eth1"));
	ASSERT_EQ(1, send(self->rx, "", 1, 0));
	do {
		n = send_from(self->tx, other_id, 0, 100);
		if (n > 0 || errno != ENODEV)
			break;
		usleep(10000);
		ms -= 10;
	} while (ms > 0);
	ASSERT_EQ(100, n);
	ASSERT_EQ(0, host_route(SIOCDELRT, "eth1"));

	dropped = tx_dropped("eth0");
	EXPECT_TRUE(becomes(({
		n = recv(self->rx, got + received, sizeof(got) - received, MSG_DONTWAIT);
		received += n < 0 ? 0 : n;
		tx_dropped("eth0") > dropped || received > sent + 100;
	})));
	EXPECT_LT(dropped, tx_dropped("eth0"));
	EXPECT_GE(sent + 100, received);
}

static void test_signed(struct __test_metadata *_metadata, FIXTURE_DATA(devmem) *self)
{
	uint32_t id;

	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	EXPECT_EQ(-1, send_from(self->tx, id, 0, PAGE));
	EXPECT_EQ(EOPNOTSUPP, errno);
	/* and what the CPU can read is sent as ever */
	buffer_fill(&self->buf, 12);
	EXPECT_EQ(0, sends(self, MEMORY, 12));
}

/* A signature would be over what only the device can read */
TEST_F_TIMEOUT(devmem, md5, 120)
{
	int ret;

	self->key = MD5;
	ret = reconnect(self);
	if (ret == ENOPROTOOPT)
		SKIP(return, "no TCP-MD5");
	ASSERT_EQ(0, ret);
	test_signed(_metadata, self);
}

TEST_F_TIMEOUT(devmem, ao, 120)
{
	int ret;

	self->key = AO;
	ret = reconnect(self);
	if (ret == ENOPROTOOPT)
		SKIP(return, "no TCP-AO");
	ASSERT_EQ(0, ret);
	test_signed(_metadata, self);
}

/* With a key that comes after the data, these wait */
TEST_F_TIMEOUT(devmem, md5_after_sending, 180)
{
	static uint32_t got[SIZE / 4];
	struct tcp_info before, now;
	ssize_t sent, first;
	uint32_t id;
	int ret;

	buffer_fill(&self->buf, 13);
	ASSERT_EQ(0, bind_tx(self, self->buf.r, &id));
	sent = stall(self, id);
	ASSERT_LT(0, sent);
	ret = set_md5_key(self->rx, "192.0.2.1", 3);
	if (ret == ENOPROTOOPT)
		SKIP(return, "no TCP-MD5");
	ASSERT_EQ(0, ret);
	ASSERT_EQ(0, set_md5_key(self->tx, "192.0.2.2", 3));

	before = tcp_info(self->tx);
	first = arrived(self->rx);
	ASSERT_LT(0, first);
	ASSERT_EQ(0, transfer(self, 0, 0, got, first));
	/* it was told of the room, or has tried by itself */
	EXPECT_TRUE(becomes(({
		now = tcp_info(self->tx);
		now.tcpi_snd_wnd > before.tcpi_snd_wnd || now.tcpi_probes > before.tcpi_probes ||
		now.tcpi_retransmits > before.tcpi_retransmits;
	})));
	EXPECT_EQ(0, arrived(self->rx));

	ASSERT_EQ(0, set_md5_key(self->tx, "192.0.2.2", 0));
	ASSERT_EQ(0, set_md5_key(self->rx, "192.0.2.1", 0));
	EXPECT_TRUE(becomes(arrived(self->rx) > 0));
	ASSERT_EQ(0, transfer(self, 0, 0, (char *)got + first, sent - first));
	EXPECT_EQ(0, memcmp(got, self->buf.map, sent));
}

static int ring_open(void)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			 IORING_SETUP_CQE32,
	};

	return syscall(SYS_io_uring_setup, 8, &params);
}

/* With the buffer as what is received into by the one queue. Returns 0 or an errno. */
static int register_zcrx(FIXTURE_DATA(devmem) *self, int ring, int fd)
{
	struct io_uring_zcrx_area_reg area = {
		.len = SIZE,
		.flags = IORING_ZCRX_AREA_DMABUF,
		.dmabuf_fd = fd,
	};
	struct io_uring_region_desc region = { .size = 65536 };
	struct io_uring_zcrx_ifq_reg reg = {
		.if_idx = self->from.ifindex,
		.rq_entries = 8,
		.area_ptr = (uintptr_t)&area,
		.region_ptr = (uintptr_t)&region,
	};

	return syscall(SYS_io_uring_register, ring, IORING_REGISTER_ZCRX_IFQ, &reg, 1) ?
	       errno : 0;
}

/* As with bind_rx: the file with full access gets as far as the queue */
TEST_F(devmem, zcrx)
{
	int before = users(self->buf.fd), ring, i;

	ASSERT_LT(0, before);
	ring = ring_open();
	if (ring < 0)
		SKIP(return, "no io_uring");
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(EACCES, register_zcrx(self, ring, self->buf.r));
		EXPECT_EQ(EACCES, register_zcrx(self, ring, self->buf.w));
		EXPECT_EQ(before, users(self->buf.fd));
		/* there is no tcp-data-split */
		EXPECT_EQ(EINVAL, register_zcrx(self, ring, self->buf.fd));
		EXPECT_EQ(EINVAL, register_zcrx(self, ring, self->buf.rw));
		EXPECT_EQ(before, users_become(self->buf.fd, before, WAIT_MS));
	}
	close(ring);
}

/* Binding for TX needs no privilege, so this is all that such a sender can do */
TEST_F(devmem, unprivileged)
{
	pid_t pid;
	int status;

	buffer_fill(&self->buf, 8);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		uint32_t id;

		if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
			_exit(1);
		unbind(self);
		if (bind_rx(self, self->buf.fd) != EPERM)
			_exit(2);
		if (bind_tx(self, self->buf.w, &id) != EACCES)
			_exit(3);
		if (bind_tx(self, self->buf.r, &id))
			_exit(4);
		_exit(sends(self, id, 8) ? 5 : 0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_HARNESS_MAIN

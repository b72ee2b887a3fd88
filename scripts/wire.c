// A wire between two hosts, which are network namespaces here: a network device in each, and a
// process that carries every frame to the other device and holds it for the delay of the wire.
//
//     wire NAMESPACE NAMESPACE MICROSECONDS MTU
//
// The devices are called `wire`. They are gone when the process ends. It prints a line when they
// exist. The rate is not its business: two_hosts.sh limits it in the kernel.
//
// The kernel's own delay, netem, would do without the process, but many kernels lack it.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

// How many frames can be on their way in one direction. Further ones wait in the device.
enum { CAPACITY = 1024, ETHERNET_HEADER = 18 };

// The frames on their way in one direction, a ring.
struct direction {
  int from, to;
  char *frames;
  size_t lengths[CAPACITY];
  int64_t due[CAPACITY];
  size_t first, count;
};

static void die(const char *what) {
  fprintf(stderr, "wire: %s: %s\n", what, strerror(errno));
  exit(1);
}

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

// Makes the device in a namespace. It belongs to the namespace in which /dev/net/tun was opened.
static int device_in(const char *namespace) {
  char path[256];
  snprintf(path, sizeof path, "/run/netns/%s", namespace);
  const int of_namespace = open(path, O_RDONLY | O_CLOEXEC);
  if (of_namespace < 0 || setns(of_namespace, CLONE_NEWNET) != 0) die(path);
  close(of_namespace);
  const int device = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
  if (device < 0) die("/dev/net/tun");
  struct ifreq request = {.ifr_name = "wire"};
  request.ifr_flags = IFF_TAP | IFF_NO_PI;
  if (ioctl(device, TUNSETIFF, &request) != 0) die("TUNSETIFF");
  return device;
}

// Passes on the frames that are due. Returns when the next one will be.
static int64_t deliver(struct direction *d, size_t size) {
  while (d->count != 0 && d->due[d->first] <= now()) {
    // The other end may be down, and the frame lost, as on any wire.
    if (write(d->to, d->frames + d->first * size, d->lengths[d->first]) < 0 && errno != EIO) {
      die("write");
    }
    d->first = (d->first + 1) % CAPACITY;
    d->count -= 1;
  }
  return d->count == 0 ? INT64_MAX : d->due[d->first];
}

static void receive(struct direction *d, size_t size, int64_t delay) {
  while (d->count < CAPACITY) {
    const size_t last = (d->first + d->count) % CAPACITY;
    const ssize_t length = read(d->from, d->frames + last * size, size);
    if (length < 0) {
      // The other errors are those of a device that is not up yet.
      if (errno == EAGAIN || errno == EIO) return;
      die("read");
    }
    d->lengths[last] = (size_t)length;
    d->due[last] = now() + delay;
    d->count += 1;
  }
}

int main(int count, char **arguments) {
  if (count != 5) {
    fprintf(stderr, "usage: %s NAMESPACE NAMESPACE MICROSECONDS MTU\n", arguments[0]);
    return 2;
  }
  const int64_t delay = atoll(arguments[3]) * 1000;
  const size_t size = (size_t)atoll(arguments[4]) + ETHERNET_HEADER;
  static struct direction directions[2];
  const int devices[2] = {device_in(arguments[1]), device_in(arguments[2])};
  for (int i = 0; i < 2; ++i) {
    directions[i].from = devices[i];
    directions[i].to = devices[1 - i];
    directions[i].frames = malloc(CAPACITY * size);
    if (directions[i].frames == NULL) die("malloc");
  }
  // The ranks use all processors, as MPI polls: a frame must not wait for them.
  prctl(PR_SET_TIMERSLACK, 1UL);
  const struct sched_param priority = {.sched_priority = 1};
  if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0) perror("wire: no real-time priority");
  puts("ready");
  fflush(stdout);
  for (;;) {
    int64_t due = INT64_MAX;
    struct pollfd ready[2];
    for (int i = 0; i < 2; ++i) {
      const int64_t next = deliver(&directions[i], size);
      if (next < due) due = next;
      ready[i].fd = directions[i].from;
      ready[i].events = directions[i].count < CAPACITY ? POLLIN : 0;
    }
    int64_t left = due == INT64_MAX ? INT64_C(1000000000) : due - now();
    if (left < 0) left = 0;
    const struct timespec timeout = {left / 1000000000, left % 1000000000};
    if (ppoll(ready, 2, &timeout, NULL) < 0 && errno != EINTR) die("ppoll");
    for (int i = 0; i < 2; ++i) receive(&directions[i], size, delay);
  }
}

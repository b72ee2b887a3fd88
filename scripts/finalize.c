// Preloaded by two_hosts.sh, as MPICH 4.0.2 can wait for ever in MPI_Finalize over TCP.
//
// There each rank disconnects from the others, and then waits for the launcher, without serving UCX
// any more. But to disconnect, UCX sends a message which the other rank has to confirm. That hangs
// if the message arrives while the other rank waits for the launcher already: so it does on a wire
// with a delay. With this, a rank serves UCX while it waits for the launcher.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <unistd.h>

static void *worker;
// The thread in MPI_Finalize, from the first disconnect on.
static pthread_t finalizing;
static int is_finalizing;

static void *next(const char *name) { return dlsym(RTLD_NEXT, name); }

unsigned ucp_worker_progress(void *of) {
  static unsigned (*progress)(void *);
  if (progress == NULL) progress = (unsigned (*)(void *))next("ucp_worker_progress");
  worker = of;
  return progress(of);
}

void *ucp_disconnect_nb(void *end_point) {
  finalizing = pthread_self();
  is_finalizing = 1;
  return ((void *(*)(void *))next("ucp_disconnect_nb"))(end_point);
}

void ucp_worker_destroy(void *of) {
  is_finalizing = 0;
  ((void (*)(void *))next("ucp_worker_destroy"))(of);
}

ssize_t read(int file, void *buffer, size_t size) {
  static ssize_t (*read)(int, void *, size_t);
  if (read == NULL) read = (ssize_t (*)(int, void *, size_t))next("read");
  // The launcher's answer.
  struct pollfd answer = {.fd = file, .events = POLLIN};
  while (is_finalizing && worker != NULL && pthread_equal(finalizing, pthread_self()) &&
         poll(&answer, 1, 0) == 0) {
    if (ucp_worker_progress(worker) == 0) sched_yield();
  }
  return read(file, buffer, size);
}

// Preloaded by two_hosts.sh, as MPICH 4.0.2 can wait for ever in MPI_Finalize over TCP.
//
// There each rank disconnects from the others, and then waits for the launcher, without serving UCX
// any more. But to disconnect, UCX sends a message which the other rank has to confirm. That hangs
// if the message arrives while the other rank waits for the launcher already: so it does on a wire
// with a delay. With this, each rank serves UCX for a while after it has begun to disconnect.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdatomic.h>
#include <time.h>

static const double SECONDS = 0.1;

static void *_Atomic last_worker;

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

unsigned ucp_worker_progress(void *worker) {
  static unsigned (*_Atomic next)(void *);
  if (next == NULL) next = (unsigned (*)(void *))dlsym(RTLD_NEXT, "ucp_worker_progress");
  last_worker = worker;
  return next(worker);
}

void *ucp_disconnect_nb(void *end_point) {
  void *(*next)(void *) = (void *(*)(void *))dlsym(RTLD_NEXT, "ucp_disconnect_nb");
  void *const request = next(end_point);
  const double end = now() + SECONDS;
  while (last_worker != NULL && now() < end) {
    if (ucp_worker_progress(last_worker) == 0) sched_yield();
  }
  return request;
}

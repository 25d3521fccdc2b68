/* What a kernel launch does besides its work: it counts, it can take time, and it can fail.
 *
 * FAKECUDA_FAIL=KIND:WHEN strikes at one launch: after WHEN launches ("250"), or at the first one that finds this
 * process holding so much memory ("2GiB").
 *   illegal-address misaligned-address assert launch-timeout launch-failure ecc
 *               As on a GPU: the launch itself succeeds (fails with CUDA_LAUNCH_BLOCKING=1), the next call reports the
 *               error, and so does every later one: the context is lost. (A real one is lost on one device, here all are.)
 *   hang        the launch does not return
 *   segv, kill  the process dies of SIGSEGV, of SIGKILL
 *   exit        the process ends with status 1, without cleaning up
 * FAKECUDA_FAIL_ONCE=FILE: strike only where FILE does not exist, and make it. Of several processes, one fails.
 * FAKECUDA_LAUNCH_US=N: each launch takes N microseconds longer.
 */
#include "fakegpu.h"

#include <fcntl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { NONE, HANG = -1, SEGV = -2, KILL = -3, EXIT = -4 };
static const struct {
  const char *name;
  int code;
} kinds[] = {
    {"illegal-address", cudaErrorIllegalAddress},
    {"misaligned-address", cudaErrorMisalignedAddress},
    {"assert", cudaErrorAssert},
    {"launch-timeout", cudaErrorLaunchTimeout},
    {"launch-failure", cudaErrorLaunchFailure},
    {"ecc", cudaErrorECCUncorrectable},
    {"hang", HANG},
    {"segv", SEGV},
    {"kill", KILL},
    {"exit", EXIT},
};

static int kind, blocking, pending, poison;
static uint64_t after_launches, at_bytes, launches;
static double launch_us;
static const char *once_file;

void init_faults(void) {
  const char *s = getenv("FAKECUDA_FAIL");
  if (s && *s) {
    size_t n = strcspn(s, ":");
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
      if (strlen(kinds[i].name) == n && !strncmp(kinds[i].name, s, n)) kind = kinds[i].code;
    if (!kind) {
      fprintf(stderr, "fakecuda: FAKECUDA_FAIL: cannot understand '%s'\n", s);
      _exit(2);
    }
    const char *when = s[n] ? s + n + 1 : "0";
    if (strpbrk(when, "kKmMgGtT")) at_bytes = parse_size(when);
    else after_launches = strtoull(when, NULL, 0);
  }
  once_file = getenv("FAKECUDA_FAIL_ONCE");
  if ((s = getenv("CUDA_LAUNCH_BLOCKING"))) blocking = !strcmp(s, "1");
  if ((s = getenv("FAKECUDA_LAUNCH_US"))) launch_us = atof(s);
}

/* Waiting for a GPU takes some time, in which Python's other threads run. Without it, the autograd thread could still wait
 * for the interpreter's lock when the main thread ends the process: "terminate called without an active exception". */
static void let_others_run(void) { nanosleep(&(struct timespec){0, 50000}, NULL); }

int poisoned(void) { return poison; }

int enter(void) {
  init_cuda();
  if (!device_count) return fail(cudaErrorNoDevice);
  if (pending) {
    poison = pending;
    pending = 0;
  }
  if (poison) {
    let_others_run();
    return fail(poison);
  }
  gpu_t *g = current();
  if (!g->has_context) use_gpu(g);
  return 0;
}

static void wait_us(double us) {
  struct timespec from, now;
  clock_gettime(CLOCK_MONOTONIC, &from);
  do clock_gettime(CLOCK_MONOTONIC, &now);
  while ((double)(now.tv_sec - from.tv_sec) * 1e6 + (double)(now.tv_nsec - from.tv_nsec) * 1e-3 < us);
}

static int strike(void) {
  int what = kind;
  kind = NONE;
  if (once_file && *once_file) {
    int fd = open(once_file, O_CREAT | O_EXCL | O_WRONLY, 0666);
    if (fd < 0) return 0;
    close(fd);
  }
  trace("fault %d\n", what);
  if (trace_file) fflush(trace_file);
  switch (what) {
    case HANG:
      for (;;) pause();
    case SEGV: raise(SIGSEGV); return 0;
    case KILL: raise(SIGKILL); return 0;
    case EXIT: _exit(1);
    case cudaErrorAssert: /* the device's printf */
      fprintf(stderr, "fakecuda.cu:1: injected: block: [0,0,0], thread: [0,0,0] Assertion `false` failed.\n");
  }
  if (!blocking) {
    pending = what;
    return 0;
  }
  return poison = what;
}

int kernel_started(void) {
  forget_host_writes();
  if (launch_us > 0) wait_us(launch_us);
  if (kind == NONE) return 0;
  int now =
      at_bytes ? current()->used >= at_bytes : __atomic_fetch_add(&launches, 1, __ATOMIC_RELAXED) >= after_launches;
  return now ? fail(strike()) : 0;
}

int synchronize(void) {
  let_others_run();
  return enter();
}

/* Of cuBLAS functions that are stubs: 0, or CUBLAS_STATUS_EXECUTION_FAILED. */
EXPORT int fakecuda_library_launch(void) { return enter() || kernel_started() ? 13 : 0; }

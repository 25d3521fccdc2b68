/* libnccl: communicators between processes of this machine. The functions that are not here are stubs.
 *
 * Faithful: a collective of a communicator begins when all ranks have called the same one; a rank that does not come lets
 * the others wait for ever, and so does one that calls another collective, or of another size (which is told on stderr).
 * Two ranks on one GPU are refused. A communicator takes memory of its GPU, outside of PyTorch's pool (FAKE_NCCL_MEMORY).
 * Not faithful: values: every rank receives what it would if all had sent what it has sent itself. A rank waits on the
 * host, within the call, and not on the device. Sends and receives do not wait, and move nothing. Groups have no effect:
 * a process waits in each collective of a group in turn.
 *
 * FAKE_NCCL=alone: no rank waits for another, so that one process can be any rank of any number.
 *
 * The ranks meet on a board: shared memory without a name, which the process that made the unique id keeps open until all
 * of them have found it in its /proc/PID/fd. Nothing is left when they die.
 */
#include "fakegpu.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MAX_RANKS 64
enum { OK, CUDA_ERROR, SYSTEM_ERROR, INTERNAL_ERROR, INVALID_ARGUMENT, INVALID_USAGE, REMOTE_ERROR, N_ERRORS };

typedef struct {
  int pid, fd; /* of the process that holds it open */
} place_t;

typedef struct {
  place_t place;
  char unused[128 - sizeof(place_t)];
} unique_id_t;

typedef struct {
  uint64_t entered; /* how many collectives; written last */
  uint64_t what; /* a hash of the last one */
  int gpu; /* NVML's index */
  int color, key; /* of ncclCommSplit */
  place_t child;
} rank_t;

typedef struct {
  rank_t ranks[MAX_RANKS];
} board_t;

typedef struct {
  int count, rank;
  int aborted;
  uint64_t entered;
  board_t *board; /* NULL: alone */
  void *memory;
} comm_t;

static char last_error[256] = "";

static int error_of(int error, const char *text) {
  snprintf(last_error, sizeof last_error, "%s", text);
  return error;
}

static int is_alone(void) {
  const char *s = getenv("FAKE_NCCL");
  return s && !strcmp(s, "alone");
}

/* ---------------------------------------------------------------- the board */

static int board_make(place_t *place) {
  int fd = memfd_create("fake-nccl", MFD_CLOEXEC);
  if (fd < 0 || ftruncate(fd, sizeof(board_t))) return error_of(SYSTEM_ERROR, "memfd_create failed");
  *place = (place_t){getpid(), fd};
  return OK;
}

static int board_open(place_t place, board_t **board) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", place.pid, place.fd);
  int fd = open(path, O_RDWR | O_CLOEXEC);
  if (fd < 0) return error_of(SYSTEM_ERROR, "the process that made the unique id has ended");
  void *m = mmap(NULL, sizeof(board_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (m == MAP_FAILED) return error_of(SYSTEM_ERROR, "mmap failed");
  *board = m;
  return OK;
}

/* All have found it: no other process needs the descriptor. */
static void board_is_found(place_t place) {
  if (place.pid == getpid()) close(place.fd);
}

static uint64_t hash_of(const char *name, size_t bytes) { /* FNV-1a */
  uint64_t hash = 1469598103934665603ull;
  for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 1099511628211ull;
  return (hash ^ bytes) * 1099511628211ull;
}

/* Wait until all ranks have entered the same collective, or this process aborts the communicator. */
static int meet(comm_t *c, const char *name, size_t bytes) {
  if (!c->board) return OK;
  rank_t *ranks = c->board->ranks;
  uint64_t what = hash_of(name, bytes), number = ++c->entered;
  ranks[c->rank].what = what;
  __atomic_store_n(&ranks[c->rank].entered, number, __ATOMIC_RELEASE);
  for (int is_mismatch = 0; !__atomic_load_n(&c->aborted, __ATOMIC_RELAXED);) {
    int here = 0;
    for (int i = 0; i < c->count; i++) {
      uint64_t other = __atomic_load_n(&ranks[i].entered, __ATOMIC_ACQUIRE);
      here += other >= number;
      if (other != number || ranks[i].what == what || is_mismatch) continue;
      is_mismatch = 1;
      fprintf(stderr, "fakecuda: NCCL: rank %d calls %s of %zu bytes, rank %d something else: they wait for ever\n",
              c->rank, name, bytes, i);
    }
    if (here == c->count && !is_mismatch) return OK;
    nanosleep(&(struct timespec){0, 100000}, NULL);
  }
  return error_of(REMOTE_ERROR, "the communicator was aborted");
}

/* ---------------------------------------------------------------- communicators */

static int take_memory(comm_t *c) {
  if (!nccl_memory || device_malloc(&c->memory, nccl_memory) == cudaSuccess) return OK;
  forget_error();
  return error_of(CUDA_ERROR, "Cuda failure 2 'out of memory'");
}

static int begin(comm_t **out, board_t *board, int count, int rank) {
  comm_t *c = calloc(1, sizeof *c);
  *c = (comm_t){.count = count, .rank = rank, .board = board};
  *out = NULL;
  trace("nccl communicator rank=%d of %d\n", rank, count);
  if (board) board->ranks[rank].gpu = current()->index;
  int error = take_memory(c);
  if (!error) error = meet(c, "init", 0);
  for (int i = 0; board && !error && i < count; i++)
    if (i != rank && board->ranks[i].gpu == current()->index) {
      char text[128];
      snprintf(text, sizeof text, "Duplicate GPU detected : rank %d and rank %d both on CUDA device %x", rank, i,
               0x1000 * (current()->index + 1));
      error = error_of(INVALID_USAGE, text);
    }
  if (!error) *out = c;
  return error;
}

EXPORT int ncclGetVersion(int *v) {
  *v = FAKECUDA_NCCL_VERSION;
  return OK;
}
EXPORT const char *ncclGetErrorString(int e) {
  static const char *const texts[N_ERRORS] = {
      "no error",
      "unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
      "unhandled system error (run with NCCL_DEBUG=INFO for details)",
      "internal error - please report this issue to the NCCL developers",
      "invalid argument (run with NCCL_DEBUG=WARN for details)",
      "invalid usage (run with NCCL_DEBUG=WARN for details)",
      "remote process exited or there was a network error",
  };
  return e >= 0 && e < N_ERRORS ? texts[e] : "unknown result code";
}
EXPORT const char *ncclGetLastError(comm_t *c) { return last_error; }
EXPORT int ncclGetUniqueId(unique_id_t *id) {
  memset(id, 0, sizeof *id);
  return is_alone() ? OK : board_make(&id->place);
}
EXPORT int ncclCommInitRank(comm_t **c, int count, unique_id_t id, int rank) {
  if (count < 1 || rank < 0 || rank >= count) return error_of(INVALID_ARGUMENT, "Invalid rank requested");
  if (enter()) return error_of(CUDA_ERROR, "no usable device");
  if (is_alone()) return begin(c, NULL, count, rank);
  if (count > MAX_RANKS) return error_of(INVALID_USAGE, "the fake NCCL has 64 ranks at most");
  board_t *board;
  int error = board_open(id.place, &board);
  if (error) return error;
  error = begin(c, board, count, rank);
  if (!error) board_is_found(id.place);
  return error;
}
EXPORT int ncclCommInitRankConfig(comm_t **c, int count, unique_id_t id, int rank, void *config) {
  return ncclCommInitRank(c, count, id, rank);
}
EXPORT int ncclCommInitRankScalable(comm_t **c, int count, int rank, int ids, unique_id_t *id, void *config) {
  return ncclCommInitRank(c, count, *id, rank);
}
/* All ranks are in this process: one thread calls for each in turn. */
EXPORT int ncclCommInitAll(comm_t **c, int count, const int *devices) {
  int before = current_device, error = OK;
  for (int i = 0; i < count && !error; i++) {
    current_device = devices ? devices[i] : i;
    error = enter() ? CUDA_ERROR : begin(&c[i], NULL, count, i);
  }
  current_device = before;
  return error;
}

static int goes_before(const rank_t *ranks, int one, int other) {
  return ranks[one].key != ranks[other].key ? ranks[one].key < ranks[other].key : one < other;
}

EXPORT int ncclCommSplit(comm_t *c, int color, int key, comm_t **out, void *config) {
  *out = NULL;
  if (!c->board) return color < 0 ? OK : begin(out, NULL, c->count, c->rank); /* who else has this color is not known */
  rank_t *ranks = c->board->ranks;
  ranks[c->rank].color = color;
  ranks[c->rank].key = key;
  int error = meet(c, "split", 0), count = 0, rank = 0, first = c->rank;
  for (int i = 0; i < c->count; i++) {
    if (ranks[i].color != color) continue;
    count++;
    rank += goes_before(ranks, i, c->rank);
    if (goes_before(ranks, i, first)) first = i;
  }
  if (!error && color >= 0 && first == c->rank) error = board_make(&ranks[first].child);
  if (!error) error = meet(c, "split board", 0);
  if (error || color < 0) return error;
  board_t *board;
  place_t place = ranks[first].child;
  error = board_open(place, &board);
  if (!error) error = begin(out, board, count, rank);
  if (!error) board_is_found(place);
  return error;
}
EXPORT int ncclCommShrink(void) { return error_of(INVALID_USAGE, "the fake NCCL does not shrink communicators"); }
EXPORT int ncclCommDestroy(comm_t *c) {
  device_free(c->memory);
  if (c->board) munmap(c->board, sizeof *c->board);
  free(c);
  return OK;
}
/* The communicator itself stays: another thread may wait in it. */
EXPORT int ncclCommAbort(comm_t *c) {
  __atomic_store_n(&c->aborted, 1, __ATOMIC_RELAXED);
  device_free(c->memory);
  c->memory = NULL;
  return OK;
}
EXPORT int ncclCommCount(const comm_t *c, int *count) {
  *count = c->count;
  return OK;
}
EXPORT int ncclCommUserRank(const comm_t *c, int *rank) {
  *rank = c->rank;
  return OK;
}
EXPORT int ncclCommGetAsyncError(comm_t *c, int *error) {
  *error = OK;
  return OK;
}
EXPORT int ncclCommMemStats(comm_t *c, int which, uint64_t *value) {
  *value = 0;
  return OK;
}
EXPORT int ncclCommRegister(comm_t *c, void *buffer, size_t bytes, void **registered) {
  *registered = handle();
  return OK;
}
EXPORT int ncclCommWindowRegister(comm_t *c, void *buffer, size_t bytes, void **window, int flags) {
  *window = handle();
  return OK;
}
EXPORT int ncclMemAlloc(void **p, size_t n) { return device_malloc(p, n) ? CUDA_ERROR : OK; }
EXPORT int ncclMemFree(void *p) { return device_free(p) ? CUDA_ERROR : OK; }
EXPORT int ncclRedOpCreatePreMulSum(int *op, void *scalar, int type, int where, comm_t *c) {
  *op = 0;
  return OK;
}

/* ---------------------------------------------------------------- collectives */

static size_t size_of(int type) {
  static const int sizes[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < 12 ? sizes[type] : 4;
}

/* Wait for all ranks; then copy `bytes` to each of `parts` places. */
static int collective(comm_t *c, const char *name, const void *from, void *to, size_t bytes, int parts) {
  if (enter()) return error_of(CUDA_ERROR, "the context is lost");
  trace("nccl %s bytes=%zu rank=%d of %d\n", name, bytes, c->rank, c->count);
  int error = meet(c, name, bytes);
  for (int i = 0; i < parts && !error; i++)
    if ((char *)to + i * bytes != from) copy((char *)to + i * bytes, from, bytes);
  return error;
}

EXPORT int ncclAllGather(const void *s, void *r, size_t n, int t, comm_t *c, void *stream) {
  return collective(c, "AllGather", s, r, n * size_of(t), c->count);
}
EXPORT int ncclAllReduce(const void *s, void *r, size_t n, int t, int op, comm_t *c, void *stream) {
  return collective(c, "AllReduce", s, r, n * size_of(t), 1);
}
EXPORT int ncclReduceScatter(const void *s, void *r, size_t n, int t, int op, comm_t *c, void *stream) {
  size_t bytes = n * size_of(t);
  return collective(c, "ReduceScatter", (const char *)s + (size_t)c->rank * bytes, r, bytes, 1);
}
EXPORT int ncclBroadcast(const void *s, void *r, size_t n, int t, int root, comm_t *c, void *stream) {
  return collective(c, "Broadcast", c->rank == root ? s : r, r, n * size_of(t), 1);
}
EXPORT int ncclBcast(void *b, size_t n, int t, int root, comm_t *c, void *stream) {
  return collective(c, "Broadcast", b, b, n * size_of(t), 1);
}
EXPORT int ncclReduce(const void *s, void *r, size_t n, int t, int op, int root, comm_t *c, void *stream) {
  return collective(c, "Reduce", s, r, n * size_of(t), c->rank == root);
}
EXPORT int ncclAlltoAll(const void *s, void *r, size_t n, int t, comm_t *c, void *stream) {
  return collective(c, "AlltoAll", s, r, n * size_of(t) * (size_t)c->count, 1);
}

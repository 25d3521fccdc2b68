/* Device memory, copies between it and the host's, and pinned host memory.
 *
 * Device memory is address space that is reserved and never charged; pages appear only where a copy writes.
 * Faithful: what is allocated, where it ends (error 2), its granularity of 2 MiB. Addresses are handed out first fit,
 * lowest first, which is a guess.
 * Not faithful: values. Kernels do nothing, so that a copy to the host brings the true bytes only where the host wrote
 * them and no kernel ran since; else zeros. (Zeros matter: with stale bytes GradScaler could read found_inf != 0.)
 */
#include "fakegpu.h"

#include <errno.h>
#include <sys/mman.h>

#define ARENA_SIZE (4096ull * GIB)
static char *arena;
static segment_t *segments; /* by address */
static size_t n_segments, room_segments;

int is_device_pointer(const void *p) { return arena && (char *)p >= arena && (char *)p < arena + ARENA_SIZE; }

static int arena_init(void) {
  if (arena) return 0;
  void *m =
      mmap(NULL, ARENA_SIZE + GRANULARITY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) {
    fprintf(stderr, "fakecuda: cannot reserve address space: %s\n", strerror(errno));
    return -1;
  }
  madvise(m, ARENA_SIZE + GRANULARITY, MADV_NOHUGEPAGE);
  madvise(m, ARENA_SIZE + GRANULARITY, MADV_DONTDUMP);
  arena = (char *)(((uintptr_t)m + GRANULARITY - 1) & ~(uintptr_t)(GRANULARITY - 1));
  return 0;
}

segment_t *segment_reserve(uint64_t size, int reserved) {
  if (arena_init()) return NULL;
  size = (size + GRANULARITY - 1) & ~(GRANULARITY - 1);
  uintptr_t at = (uintptr_t)arena;
  size_t i;
  for (i = 0; i < n_segments; i++) {
    if (segments[i].start - at >= size) break;
    at = segments[i].start + segments[i].size;
  }
  if (at + size > (uintptr_t)arena + ARENA_SIZE) return NULL;
  if (n_segments == room_segments)
    segments = realloc(segments, sizeof *segments * (room_segments = room_segments ? room_segments * 2 : 1024));
  memmove(segments + i + 1, segments + i, sizeof *segments * (n_segments - i));
  n_segments++;
  segments[i] = (segment_t){at, size, 0, current_device, current(), reserved};
  return &segments[i];
}

segment_t *segment_find(const void *p) {
  size_t low = 0, high = n_segments;
  while (low < high) {
    size_t middle = (low + high) / 2;
    if (segments[middle].start <= (uintptr_t)p) low = middle + 1;
    else high = middle;
  }
  if (!low) return NULL;
  segment_t *s = &segments[low - 1];
  return (uintptr_t)p < s->start + s->size ? s : NULL;
}

void segment_free(segment_t *s) {
  madvise((void *)s->start, s->size, MADV_DONTNEED);
  size_t i = (size_t)(s - segments);
  memmove(segments + i, segments + i + 1, sizeof *segments * (n_segments - i - 1));
  n_segments--;
}

cudaError_t device_malloc(void **p, size_t size) {
  if (!p) return cudaErrorInvalidValue;
  *p = NULL;
  ENTER();
  if (!size) return cudaSuccess;
  uint64_t physical = (size + GRANULARITY - 1) & ~(GRANULARITY - 1);
  gpu_t *g = current();
  LOCK;
  segment_t *s = fits(g, physical) ? segment_reserve(size, 0) : NULL;
  cudaError_t error = s ? cudaSuccess : cudaErrorMemoryAllocation;
  if (s) {
    s->physical = physical;
    charge(g, (int64_t)physical);
    *p = (void *)s->start;
  }
  trace("malloc dev=%d size=%zu -> %p err=%d used=%llu\n", current_device, size, *p, error,
        (unsigned long long)g->used);
  UNLOCK;
  return fail(error);
}

cudaError_t device_free(void *p) {
  ENTER();
  if (!p) return cudaSuccess;
  LOCK;
  segment_t *s = segment_find(p);
  if (!s || s->start != (uintptr_t)p || s->reserved) {
    UNLOCK;
    return fail(cudaErrorInvalidValue);
  }
  charge(s->gpu, -(int64_t)s->physical);
  trace("free %p size=%llu\n", p, (unsigned long long)s->size);
  segment_free(s);
  UNLOCK;
  return cudaSuccess;
}

/* ---------------------------------------------------------------- bytes */

/* What was written since the last kernel launch, and whether the bytes are there. */
static struct {
  uintptr_t start, end;
  int valid;
} writes[1 << 16];
static size_t n_writes;

void forget_host_writes(void) { __atomic_store_n(&n_writes, 0, __ATOMIC_RELAXED); }

static void wrote(const void *p, size_t size, int valid) {
  if (n_writes == sizeof writes / sizeof *writes) n_writes = 0;
  writes[n_writes].start = (uintptr_t)p;
  writes[n_writes].end = (uintptr_t)p + size;
  writes[n_writes++].valid = valid;
}

static int is_valid(const void *p, size_t size) {
  uintptr_t start = (uintptr_t)p, end = start + size;
  for (size_t i = n_writes; i-- > 0;)
    if (writes[i].start < end && start < writes[i].end)
      return writes[i].valid && writes[i].start <= start && end <= writes[i].end;
  return 0;
}

void copy(void *to, const void *from, size_t size) {
  int to_device = is_device_pointer(to), from_device = is_device_pointer(from);
  if (!size) return;
  if (!to_device && !from_device) {
    memmove(to, from, size);
    return;
  }
  LOCK;
  if (to_device) {
    int valid = size <= copy_max && (!from_device || is_valid(from, size));
    if (valid) memmove(to, from, size);
    wrote(to, size, valid);
  } else if (d2h_mode == D2H_COPY || (d2h_mode == D2H_AUTO && is_valid(from, size))) memcpy(to, from, size);
  else memset(to, 0, size);
  UNLOCK;
}

void fill(void *p, int value, size_t size) {
  if (!is_device_pointer(p)) {
    memset(p, value, size);
    return;
  }
  LOCK;
  if (size <= copy_max) memset(p, value, size);
  wrote(p, size, size <= copy_max);
  UNLOCK;
}

/* ---------------------------------------------------------------- pinned host memory */

static struct {
  uintptr_t start;
  size_t size;
} *pinned;
static size_t n_pinned, room_pinned;

void host_register(void *p, size_t size) {
  LOCK;
  if (n_pinned == room_pinned)
    pinned = realloc(pinned, sizeof *pinned * (room_pinned = room_pinned ? room_pinned * 2 : 64));
  pinned[n_pinned].start = (uintptr_t)p;
  pinned[n_pinned++].size = size;
  UNLOCK;
}

int host_find(const void *p, int remove) {
  int found = 0;
  LOCK;
  for (size_t i = 0; i < n_pinned && !found; i++)
    if ((uintptr_t)p >= pinned[i].start && (uintptr_t)p < pinned[i].start + pinned[i].size) {
      found = 1;
      if (remove) pinned[i] = pinned[--n_pinned];
    }
  UNLOCK;
  return found;
}

cudaError_t host_malloc(void **p, size_t size) {
  if (!size) size = 1;
  void *m = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (m == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
  host_register(m, size);
  *p = m;
  return cudaSuccess;
}

void host_free(void *p) {
  LOCK;
  for (size_t i = 0; i < n_pinned; i++)
    if (pinned[i].start == (uintptr_t)p) {
      munmap(p, pinned[i].size);
      pinned[i] = pinned[--n_pinned];
      break;
    }
  UNLOCK;
}

/* libcufft, libnccl, libnvrtc, libcupti: what has outputs. The rest of them are stubs.
 *
 * Not faithful: a cuFFT plan needs no workspace; NCCL is right for one rank only; NVRTC compiles to nothing; CUPTI, the
 * profiler, records nothing.
 */
#include "fakegpu.h"

EXPORT int cufftCreate(int *p) {
  static int n;
  *p = ++n;
  return 0;
}
EXPORT int cufftXtMakePlanMany(int p, int rank, void *n, void *ie, long long is, long long id, int it, void *oe,
                               long long os, long long od, int ot, long long batch, size_t *ws, int et) {
  *ws = 0;
  return 0;
}
EXPORT int ncclGetVersion(int *v) {
  *v = 22809;
  return 0;
}
EXPORT const char *ncclGetErrorString(int e) { return e ? "fake nccl error" : "no error"; }
EXPORT const char *ncclGetLastError(void *c) { return ""; }
EXPORT int ncclGetUniqueId(void *id) {
  memset(id, 7, 128);
  return 0;
}
typedef struct {
  char b[128];
} nuid;
typedef struct {
  int n, r;
} ncomm;
static int mkcomm(void **c, int n, int r) {
  ncomm *x = calloc(1, 256);
  x->n = n;
  x->r = r;
  *c = x;
  return 0;
}
EXPORT int ncclCommInitRank(void **c, int n, nuid id, int r) { return mkcomm(c, n, r); }
EXPORT int ncclCommInitRankConfig(void **c, int n, nuid id, int r, void *cfg) { return mkcomm(c, n, r); }
EXPORT int ncclCommInitRankScalable(void **c, int n, int r, int k, nuid *id, void *cfg) { return mkcomm(c, n, r); }
EXPORT int ncclCommInitAll(void **c, int n, const int *d) {
  for (int i = 0; i < n; i++) mkcomm(&c[i], n, i);
  return 0;
}
EXPORT int ncclCommCount(ncomm *c, int *n) {
  *n = c->n;
  return 0;
}
EXPORT int ncclCommUserRank(ncomm *c, int *n) {
  *n = c->r;
  return 0;
}
EXPORT int ncclCommGetAsyncError(void *c, int *e) {
  *e = 0;
  return 0;
}
/* one rank: a collective is a copy */
static size_t nsize(int t) {
  static const int z[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return t >= 0 && t < 12 ? z[t] : 4;
}
static int ncopy(const void *s, void *r, size_t n, int t) {
  if (s != r) copy(r, s, n * nsize(t));
  return 0;
}
EXPORT int ncclAllGather(const void *s, void *r, size_t n, int t, void *c, void *st) { return ncopy(s, r, n, t); }
EXPORT int ncclAllReduce(const void *s, void *r, size_t n, int t, int op, void *c, void *st) {
  return ncopy(s, r, n, t);
}
EXPORT int ncclReduceScatter(const void *s, void *r, size_t n, int t, int op, void *c, void *st) {
  return ncopy(s, r, n, t);
}
EXPORT int ncclBroadcast(const void *s, void *r, size_t n, int t, int root, void *c, void *st) {
  return ncopy(s, r, n, t);
}
EXPORT int ncclReduce(const void *s, void *r, size_t n, int t, int op, int root, void *c, void *st) {
  return ncopy(s, r, n, t);
}
EXPORT int ncclMemAlloc(void **p, size_t n) { return device_malloc(p, n); }
EXPORT int ncclMemFree(void *p) { return device_free(p); }
EXPORT const char *nvrtcGetErrorString(int e) { return "fake nvrtc"; }
EXPORT int nvrtcVersion(int *a, int *b) {
  *a = CUDART_VERSION / 1000;
  *b = CUDART_VERSION / 10 % 100;
  return 0;
}
EXPORT int nvrtcCreateProgram(void **p, const char *s, const char *n, int k, void *h, void *i) {
  *p = handle();
  return 0;
}
EXPORT int nvrtcGetPTXSize(void *p, size_t *n) {
  *n = 1;
  return 0;
}
EXPORT int nvrtcGetPTX(void *p, char *s) {
  *s = 0;
  return 0;
}
EXPORT int nvrtcGetCUBINSize(void *p, size_t *n) {
  *n = 1;
  return 0;
}
EXPORT int nvrtcGetCUBIN(void *p, char *s) {
  *s = 0;
  return 0;
}
EXPORT int nvrtcGetProgramLogSize(void *p, size_t *n) {
  *n = 1;
  return 0;
}
EXPORT int nvrtcGetProgramLog(void *p, char *s) {
  *s = 0;
  return 0;
}
EXPORT int nvrtcGetLoweredName(void *p, const char *n, const char **o) {
  *o = n;
  return 0;
}
EXPORT int cuptiGetResultString(int e, const char **s) {
  *s = "fake cupti";
  return 0;
}
EXPORT int cuptiGetVersion(uint32_t *v) {
  *v = 28;
  return 0;
}
EXPORT int cuptiActivityGetNextRecord(void *b, size_t n, void **r) {
  *r = NULL;
  return 12;
}
EXPORT int cuptiActivityGetNumDroppedRecords(void *c, uint32_t s, size_t *n) {
  *n = 0;
  return 0;
}
EXPORT int cuptiSubscribe(void **s, void *cb, void *u) {
  *s = handle();
  return 0;
}

/* Each stub comes here at its first call. */
EXPORT void fakecuda_stub_called(const char *name) {
  init_machine();
  trace("stub %s\n", name);
}

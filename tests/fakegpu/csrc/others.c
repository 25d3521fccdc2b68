/* libcufft, libnvrtc, libcupti: what has outputs. The rest of them are stubs.
 *
 * Not faithful: a cuFFT plan needs no workspace; NVRTC compiles to nothing; CUPTI, the profiler, records nothing.
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

/* libcublas, libcublasLt: what has outputs.
 *
 * The products themselves are stubs (stubs.py) that count as kernel launches. Workspaces are PyTorch's own allocations,
 * hence true. cublasLt's heuristic always offers one algorithm with FAKE_CUBLASLT_WORKSPACE bytes: a guess (0).
 */
#include "fakegpu.h"

void *handle(void) { return calloc(1, 256); }
EXPORT int cublasCreate_v2(void **h) {
  if (enter()) return 1; /* CUBLAS_STATUS_NOT_INITIALIZED */
  *h = handle();
  return 0;
}
EXPORT int cublasDestroy_v2(void *h) {
  free(h);
  return 0;
}
EXPORT int cublasGetMathMode(void *h, int *m) {
  *m = 0;
  return 0;
}
EXPORT int cublasGetPointerMode_v2(void *h, int *m) {
  *m = ((int *)h)[0];
  return 0;
}
EXPORT int cublasSetPointerMode_v2(void *h, int m) {
  ((int *)h)[0] = m;
  return 0;
}
EXPORT int cublasGetVersion_v2(void *h, int *v) {
  *v = 130100;
  return 0;
}
EXPORT int cublasGetStream_v2(void *h, void **s) {
  *s = 0;
  return 0;
}
EXPORT const char *cublasGetStatusString(int s) {
  return s == 0 ? "CUBLAS_STATUS_SUCCESS" : s == 13 ? "CUBLAS_STATUS_EXECUTION_FAILED" : "CUBLAS_STATUS_UNKNOWN";
}
EXPORT size_t cublasLtGetVersion(void) { return 130100; }
EXPORT int cublasLtCreate(void **h) {
  *h = handle();
  return 0;
}
EXPORT int cublasLtMatmulDescCreate(void **d, int c, int s) {
  *d = handle();
  return 0;
}
EXPORT int cublasLtMatmulDescDestroy(void *d) {
  free(d);
  return 0;
}
EXPORT int cublasLtMatmulPreferenceCreate(void **d) {
  *d = handle();
  return 0;
}
EXPORT int cublasLtMatmulPreferenceDestroy(void *d) {
  free(d);
  return 0;
}
EXPORT int cublasLtMatrixLayoutCreate(void **d, int t, uint64_t r, uint64_t c, int64_t ld) {
  *d = handle();
  return 0;
}
EXPORT int cublasLtMatrixLayoutDestroy(void *d) {
  free(d);
  return 0;
}
typedef struct {
  uint64_t algo[8];
  size_t ws;
  int state;
  float waves;
  int res[4];
} lt_heur;
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *h, void *op, void *A, void *B, void *C, void *D, void *pref, int n,
                                          lt_heur *r, int *k) {
  if (n < 1) {
    *k = 0;
    return 0;
  }
  memset(r, 0, sizeof *r);
  r->ws = cublaslt_workspace;
  r->waves = 1;
  *k = 1;
  return 0;
}

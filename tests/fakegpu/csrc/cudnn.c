/* libcudnn, the part that needs a handle: normalisation, dropout, recurrent layers, the convolutions of old.
 *
 * Not faithful: the sizes of its workspaces. Batch normalisation: none; recurrent layers: a formula (their weight space is
 * right); dropout's states and CTC: guesses. Convolutions and attention do not come here, but to cudnn_plans.c.
 */
#include "fakegpu.h"

EXPORT size_t cudnnGetVersion(void) {
  init_machine();
  return cudnn_version;
}
EXPORT size_t cudnnGetCudartVersion(void) { return CUDART_VERSION; }
EXPORT int cudnnGetProperty(int t, int *v) {
  size_t version = cudnnGetVersion();
  *v = (int)(t == 0 ? version / 10000 : t == 1 ? version / 100 % 100 : version % 100);
  return 0;
}
EXPORT const char *cudnnGetErrorString(int s) {
  return s == 0 ? "CUDNN_STATUS_SUCCESS" : s == 5000 ? "CUDNN_STATUS_EXECUTION_FAILED" : "CUDNN_STATUS_FAKE_ERROR";
}
EXPORT void cudnnGetLastErrorString(char *s, size_t n) {
  if (n) snprintf(s, n, "fakecuda");
}
EXPORT int cudnnCreate(void **h) {
  if (enter()) return 1001; /* CUDNN_STATUS_NOT_INITIALIZED */
  *h = handle();
  return 0;
}
EXPORT int cudnnDestroy(void *h) {
  free(h);
  return 0;
}
EXPORT int cudnnSetStream(void *h, void *s) {
  *(void **)h = s;
  return 0;
}
EXPORT int cudnnGetStream(void *h, void **s) {
  *s = *(void **)h;
  return 0;
}
/* tensor & filter descriptors keep their shape */
typedef struct {
  int type, fmt, nd, dim[12], str[12];
} tdesc;
#define CREATE(n)                                   \
  EXPORT int cudnnCreate##n##Descriptor(void **d) { \
    *d = calloc(1, 512);                            \
    return 0;                                       \
  }
#define DESTROY(n)                                  \
  EXPORT int cudnnDestroy##n##Descriptor(void *d) { \
    free(d);                                        \
    return 0;                                       \
  }
#define DESC(n) CREATE(n) DESTROY(n)
DESC(Tensor)
DESC(Filter)
DESC(Convolution)
DESC(Pooling)
DESC(Activation)
DESC(Dropout)
DESC(RNN)
DESC(RNNData)
DESC(CTCLoss)
DESC(SpatialTransformer)
EXPORT int cudnnSetTensorNdDescriptor(tdesc *d, int t, int n, const int *dim, const int *str) {
  d->type = t;
  d->nd = n;
  for (int i = 0; i < n && i < 12; i++) {
    d->dim[i] = dim[i];
    d->str[i] = str[i];
  }
  return 0;
}
EXPORT int cudnnGetTensorNdDescriptor(tdesc *d, int req, int *t, int *n, int *dim, int *str) {
  if (t) *t = d->type;
  if (n) *n = d->nd;
  for (int i = 0; i < req && i < 12; i++) {
    if (dim) dim[i] = i < d->nd ? d->dim[i] : 1;
    if (str) str[i] = i < d->nd ? d->str[i] : 1;
  }
  return 0;
}
EXPORT int cudnnSetFilterNdDescriptor(tdesc *d, int t, int f, int n, const int *dim) {
  d->type = t;
  d->fmt = f;
  d->nd = n;
  for (int i = 0; i < n && i < 12; i++) d->dim[i] = dim[i];
  return 0;
}
EXPORT int cudnnGetFilterNdDescriptor(tdesc *d, int req, int *t, int *f, int *n, int *dim) {
  if (t) *t = d->type;
  if (f) *f = d->fmt;
  if (n) *n = d->nd;
  for (int i = 0; i < req && i < 12; i++) dim[i] = i < d->nd ? d->dim[i] : 1;
  return 0;
}
/* legacy (v7) convolution algorithms: TORCH_CUDNN_V8_API_DISABLED=1 */
typedef struct {
  int algo, status;
  float time;
  size_t memory;
  int det, math;
  int res[3];
} perf_t;
static int perf(int n, int *k, perf_t *p) {
  if (n < 1) {
    *k = 0;
    return 0;
  }
  memset(p, 0, sizeof *p);
  p->algo = 1;
  p->time = 1;
  p->memory = cudnn_workspace;
  p->det = 1;
  *k = 1;
  return 0;
}
EXPORT int cudnnGetConvolutionForwardAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int n, int *k,
                                                  perf_t *p) {
  return perf(n, k, p);
}
EXPORT int cudnnGetConvolutionBackwardDataAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int n, int *k,
                                                       perf_t *p) {
  return perf(n, k, p);
}
EXPORT int cudnnGetConvolutionBackwardFilterAlgorithm_v7(void *h, void *a, void *b, void *c, void *d, int n, int *k,
                                                         perf_t *p) {
  return perf(n, k, p);
}
#define FIND(N)                                                                                                  \
  EXPORT int cudnnFindConvolution##N##AlgorithmEx(void *h, void *a, void *x, void *b, void *y, void *c, void *d, \
                                                  void *z, int n, int *k, perf_t *p, void *ws, size_t wsn) {     \
    return perf(n, k, p);                                                                                        \
  }
FIND(Forward)
FIND(BackwardData)
FIND(BackwardFilter)
#define CWS(N)                                                                                                       \
  EXPORT int cudnnGetConvolution##N##WorkspaceSize(void *h, void *a, void *b, void *c, void *d, int al, size_t *s) { \
    *s = cudnn_workspace;                                                                                            \
    return 0;                                                                                                        \
  }
CWS(Forward)
CWS(BackwardData)
CWS(BackwardFilter)
/* batch norm */
EXPORT int cudnnGetBatchNormalizationForwardTrainingExWorkspaceSize(void *h, int m, int o, void *a, void *b, void *c,
                                                                    void *d, void *e, size_t *s) {
  *s = 0;
  return 0;
}
EXPORT int cudnnGetBatchNormalizationBackwardExWorkspaceSize(void *h, int m, int o, void *a, void *b, void *c, void *d,
                                                             void *e, void *f, void *g, size_t *s) {
  *s = 0;
  return 0;
}
EXPORT int cudnnGetBatchNormalizationTrainingExReserveSpaceSize(void *h, int m, int o, void *a, void *b, size_t *s) {
  *s = 0;
  return 0;
}
EXPORT int cudnnGetCTCLossWorkspaceSize(void *h, void *a, void *b, const int *l, const int *ll, const int *il, int al,
                                        void *d, size_t *s) {
  *s = 1024;
  return 0;
}
EXPORT int cudnnGetCTCLossWorkspaceSize_v8(void *h, int al, void *d, void *a, void *b, size_t *s) {
  *s = 1024;
  return 0;
}
/* dropout, RNN */
EXPORT int cudnnDropoutGetStatesSize(void *h, size_t *s) {
  *s = dropout_states ? dropout_states : (size_t)current()->sms * 2048 * 48 / 2;
  return 0;
}
typedef struct {
  int algo, cell, bias, dir, input, dtype, mprec, mtype, in, hid, proj, layers;
  void *drop;
  unsigned aux;
} rnn_t;
typedef struct {
  int type, layout, T, B, V;
} rdata_t;
static int esize(int t) {
  switch (t) {
    case 1: case 6: return 8;
    case 2: case 9: return 2;
    case 3: case 5: return 1;
  }
  return 4;
}
EXPORT int cudnnSetRNNDescriptor_v8(rnn_t *r, int algo, int cell, int bias, int dir, int input, int dtype, int mprec,
                                    int mtype, int in, int hid, int proj, int layers, void *drop, unsigned aux) {
  *r = (rnn_t){algo, cell, bias, dir, input, dtype, mprec, mtype, in, hid, proj, layers, drop, aux};
  return 0;
}
EXPORT int cudnnSetRNNDataDescriptor(rdata_t *d, int t, int layout, int T, int B, int V, const int *len, void *fillv) {
  *d = (rdata_t){t, layout, T, B, V};
  return 0;
}
static int gates(rnn_t *r) { return r->cell == 2 ? 4 : r->cell == 3 ? 3 : 1; }
static int hasproj(rnn_t *r) { return r->cell == 2 && r->proj && r->proj != r->hid; }
static size_t rnn_layer_w(rnn_t *r, int pl, size_t *ih, size_t *hh, size_t *pj) {
  int D = r->dir ? 2 : 1, layer = pl / D, out = hasproj(r) ? r->proj : r->hid;
  int in = layer == 0 ? r->in : out * D;
  *ih = (size_t)gates(r) * r->hid * in;
  *hh = (size_t)gates(r) * r->hid * out;
  *pj = hasproj(r) ? (size_t)r->proj * r->hid : 0;
  return *ih + *hh + *pj;
}
static size_t rnn_w(rnn_t *r, int upto) {
  size_t n = 0, a, b, c;
  for (int i = 0; i < upto; i++) n += rnn_layer_w(r, i, &a, &b, &c);
  return n;
}
EXPORT int cudnnGetRNNWeightSpaceSize(void *h, rnn_t *r, size_t *s) {
  int np = r->layers * (r->dir ? 2 : 1);
  size_t n = rnn_w(r, np);
  if (r->bias) n += (size_t)np * gates(r) * r->hid * (r->bias == 2 ? 2 : 1);
  *s = n * esize(r->dtype);
  return 0;
}
EXPORT int cudnnGetRNNWeightParams(void *h, rnn_t *r, int pl, size_t ws, const char *w, int id, tdesc *md, void **ma,
                                   tdesc *bd, void **ba) {
  int np = r->layers * (r->dir ? 2 : 1), g = gates(r), e = esize(r->dtype), out = hasproj(r) ? r->proj : r->hid;
  size_t ih, hh, pj, off = rnn_w(r, pl);
  rnn_layer_w(r, pl, &ih, &hh, &pj);
  int rows = r->hid, cols = 0;
  size_t mo = off;
  if (id < g) {
    cols = (int)(ih / g / r->hid);
    mo += (size_t)id * rows * cols;
  } else if (id < 2 * g) {
    cols = out;
    mo += ih + (size_t)(id - g) * rows * cols;
  } else {
    rows = r->proj;
    cols = r->hid;
    mo += ih + hh;
  }
  int d[3] = {1, rows, cols}, st[3] = {rows * cols, cols, 1};
  if (md) cudnnSetTensorNdDescriptor(md, r->dtype, 3, d, st);
  if (ma) *ma = (void *)(w + mo * e);
  if (id < 2 * g && r->bias) {
    size_t bo = rnn_w(r, np) + (size_t)pl * g * r->hid * 2 + (size_t)id * r->hid;
    int d2[3] = {1, r->hid, 1}, s2[3] = {r->hid, 1, 1};
    if (bd) cudnnSetTensorNdDescriptor(bd, r->dtype, 3, d2, s2);
    if (ba) *ba = (void *)(w + bo * e);
  } else {
    if (bd) bd->nd = 0;
    if (ba) *ba = NULL;
  }
  return 0;
}
/* cuDNN's sizes are not known. FAKE_CUDNN_RECURRENT gives them; without it they are bsfind's guess, which proves
 * nothing about the guess. */
EXPORT int cudnnGetRNNTempSpaceSizes(void *h, rnn_t *r, int mode, rdata_t *x, size_t *ws, size_t *rs) {
  size_t tb = (size_t)x->T * x->B, D = r->dir ? 2 : 1, e = esize(r->dtype);
  if (ws) *ws = tb * r->hid * gates(r) * D * e + 4 * MIB;
  if (rs) *rs = mode ? tb * r->hid * (gates(r) + 2) * D * r->layers * e : 0;
  if (ws && recurrent_workspace) *ws = recurrent_workspace;
  if (rs && recurrent_reserve) *rs = mode ? recurrent_reserve : 0;
  return 0;
}

/* libcudart: the runtime.
 *
 * Faithful: memory and its limit, devices and their properties, launch limits, error codes and their texts, errors that
 * come late and stay (faults.c), no kernels for a GPU older than the build ("no kernel image is available").
 * Not faithful: kernels do nothing; work is never pending, so that streams and events are always done, and an event's
 * time is the host's; a captured graph is empty; pools (cudaMallocAsync) round each allocation up to 2 MiB; managed memory
 * is device memory; there is no IPC. Occupancy is a rule of thumb.
 */
#include "fakegpu.h"

#include <dlfcn.h>
#include <time.h>

/* ---------------------------------------------------------------- kernels */

/* Names of kernels, for the trace: a hash table by the address of the host function. */
typedef struct {
  const void *function;
  const char *name;
} kernel_t;
static kernel_t *kernels;
static size_t n_kernels, room_kernels;

static kernel_t *kernel_slot(const void *function) {
  size_t h = ((uintptr_t)function * 0x9E3779B97F4A7C15ull) >> 20 & (room_kernels - 1);
  while (kernels[h].function && kernels[h].function != function) h = (h + 1) & (room_kernels - 1);
  return &kernels[h];
}
static void kernel_add(const void *function, const char *name) {
  if ((n_kernels + 1) * 2 > room_kernels) {
    kernel_t *old = kernels;
    size_t n = room_kernels;
    room_kernels = n ? n * 2 : 1 << 17;
    kernels = calloc(room_kernels, sizeof *kernels);
    for (size_t i = 0; i < n; i++)
      if (old[i].function) *kernel_slot(old[i].function) = old[i];
    free(old);
  }
  kernel_t *k = kernel_slot(function);
  n_kernels += !k->function;
  *k = (kernel_t){function, name};
}
static const char *kernel_name(const void *function) {
  const char *name = room_kernels ? kernel_slot(function)->name : NULL;
  return name ? name : "?";
}

EXPORT void **__cudaRegisterFatBinary(void *fc) {
  void **h = calloc(1, sizeof *h);
  *h = fc;
  return h;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **h) {}
EXPORT void __cudaUnregisterFatBinary(void **h) {}
EXPORT char __cudaInitModule(void **h) { return 0; }
EXPORT void __cudaRegisterFunction(void **h, const char *hf, char *df, const char *dn, int tl, void *a, void *b,
                                   void *c, void *d, int *w) {
  LOCK;
  kernel_add(hf, dn);
  UNLOCK;
}
EXPORT void __cudaRegisterVar(void **h, char *hv, char *da, const char *dn, int e, size_t s, int c, int g) {}
EXPORT void __cudaRegisterManagedVar(void **h, void **hv, char *da, const char *dn, int e, size_t s, int c, int g) {}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *k, const void *f) {
  *k = (cudaKernel_t)f;
  return cudaSuccess;
}
typedef struct {
  dim3 g, b;
  size_t s;
  cudaStream_t st;
} cfg_t;
static __thread cfg_t cfgs[32];
static __thread int ncfg;
EXPORT unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, struct CUstream_st *st) {
  if (ncfg < 32) cfgs[ncfg++] = (cfg_t){g, b, s, st};
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *g, dim3 *b, size_t *s, void *st) {
  if (!ncfg) return cudaErrorMissingConfiguration;
  cfg_t *c = &cfgs[--ncfg];
  *g = c->g;
  *b = c->b;
  *s = c->s;
  *(cudaStream_t *)st = c->st;
  return cudaSuccess;
}
/* The architectures of the kernels in this build of PyTorch, the newest first (build.py finds them in it). */
static const int built[] = {FAKECUDA_ARCHITECTURES};
int built_architecture(const gpu_t *g) {
  for (size_t i = 0; i < sizeof built / sizeof *built; i++)
    if (built[i] <= g->major * 10 + g->minor) return built[i];
  return 0;
}
cudaError_t launch(const void *kernel, dim3 g, dim3 b, size_t shared) {
  ENTER();
  if (!built_architecture(current())) return fail(cudaErrorNoKernelImageForDevice);
  if (g.x == 0 || g.y == 0 || g.z == 0 || b.x == 0 || b.y == 0 || b.z == 0 || (uint64_t)b.x * b.y * b.z > 1024 ||
      g.y > 65535 || g.z > 65535)
    return fail(cudaErrorInvalidConfiguration);
  if (shared > (size_t)current()->shared_optin) return fail(cudaErrorInvalidValue);
  if (trace_file) {
    LOCK;
    trace("launch grid=%u,%u,%u block=%u,%u,%u smem=%zu %s\n", g.x, g.y, g.z, b.x, b.y, b.z, shared, kernel_name(kernel));
    UNLOCK;
  }
  return kernel_started();
}
EXPORT cudaError_t cudaLaunchKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  return launch(f, g, b, s);
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  return launch(f, g, b, s);
}
EXPORT cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  return launch(f, g, b, s);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 g, dim3 b, void **a, size_t s, cudaStream_t st) {
  return launch(f, g, b, s);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *c, const void *f, void **a) {
  return launch(f, c->gridDim, c->blockDim, c->dynamicSmemBytes);
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *f) {
  ENTER();
  memset(a, 0, sizeof *a);
  a->maxThreadsPerBlock = 1024;
  a->numRegs = 32;
  /* the architecture a kernel was compiled for, not the device's: CUB picks its tuning by it */
  a->binaryVersion = a->ptxVersion = built_architecture(current());
  a->maxDynamicSharedSizeBytes = 49152;
  a->preferredShmemCarveout = -1;
  return a->ptxVersion ? cudaSuccess : fail(cudaErrorNoKernelImageForDevice);
}
EXPORT cudaError_t cudaFuncSetAttribute(const void *f, enum cudaFuncAttribute at, int v) {
  if (at == cudaFuncAttributeMaxDynamicSharedMemorySize && v > current()->shared_optin)
    return fail(cudaErrorInvalidValue);
  return cudaSuccess;
}
EXPORT cudaError_t cudaFuncSetCacheConfig(const void *f, enum cudaFuncCache c) { return cudaSuccess; }
int occupancy(int bs, size_t smem) {
  int n = bs > 0 ? current()->threads_per_sm / ((bs + 31) / 32 * 32) : 1;
  if (n > 32) n = 32;
  if (smem) {
    int m = (int)((size_t)current()->shared_per_sm / (smem + 1024));
    if (m < n) n = m;
  }
  return n < 1 ? (smem > (size_t)current()->shared_optin ? 0 : 1) : n;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int bs, size_t s) {
  *n = occupancy(bs, s);
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int bs, size_t s,
                                                                          unsigned fl) {
  *n = occupancy(bs, s);
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveClusters(int *n, const void *f, const cudaLaunchConfig_t *c) {
  *n = current()->sms;
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyAvailableDynamicSMemPerBlock(size_t *s, const void *f, int nb, int bs) {
  *s = current()->shared_per_sm / (nb ? nb : 1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *sym) {
  static void *blk;
  if (!blk) {
    cudaError_t e = device_malloc(&blk, MIB);
    if (e) return e;
  }
  *p = blk;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbol(const void *sym, const void *src, size_t n, size_t off, enum cudaMemcpyKind k) {
  ENTER();
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyToSymbolAsync(const void *sym, const void *src, size_t n, size_t off,
                                           enum cudaMemcpyKind k, cudaStream_t s) {
  ENTER();
  return cudaSuccess;
}

/* ---------------------------------------------------------------- devices */
EXPORT cudaError_t cudaGetDeviceCount(int *n) {
  init_cuda();
  *n = device_count;
  return device_count ? cudaSuccess : fail(cudaErrorNoDevice);
}
EXPORT cudaError_t cudaGetDevice(int *d) {
  *d = current_device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaInitDevice(int d, unsigned f, unsigned g) {
  init_cuda();
  if (!device_count) return fail(cudaErrorNoDevice);
  if (d < 0 || d >= device_count) return fail(cudaErrorInvalidDevice);
  use_gpu(device(d));
  return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int d) { /* since CUDA 12 it makes the context */
  cudaError_t error = cudaInitDevice(d, 0, 0);
  if (!error) current_device = d;
  return error;
}
EXPORT cudaError_t cudaSetDeviceFlags(unsigned f) { return cudaSuccess; }
EXPORT cudaError_t cudaGetDeviceFlags(unsigned *f) {
  *f = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceReset(void) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceSynchronize(void) { return synchronize(); }
EXPORT cudaError_t cudaDeviceSetLimit(enum cudaLimit l, size_t v) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetLimit(size_t *v, enum cudaLimit l) {
  *v = 1024;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceSetCacheConfig(enum cudaFuncCache c) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *lo, int *hi) {
  if (lo) *lo = 0;
  if (hi) *hi = -5;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *c, int a, int b) {
  *c = a != b;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceEnablePeerAccess(int p, unsigned f) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceDisablePeerAccess(int p) { return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *s, int n, int d) {
  snprintf(s, (size_t)n, "0000:%02X:00.0", device(d)->index + 1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetByPCIBusId(int *d, const char *s) {
  unsigned domain, bus;
  if (sscanf(s, "%x:%x", &domain, &bus) != 2 || (*d = device_with_bus(bus)) < 0) return fail(cudaErrorInvalidDevice);
  return cudaSuccess;
}
int device_attribute(int a, int ordinal) {
  const gpu_t *g = device(ordinal);
  switch (a) {
    case 1: return 1024;
    case 2: case 3: return 1024;
    case 4: return 64;
    case 5: return 2147483647;
    case 6:
    case 7: return 65535;
    case 8: return 49152;
    case 9: return 65536;
    case 10: return 32;
    case 11: return 2147483647;
    case 12: return 65536;
    case 13: return 1980000;
    case 14: return 512;
    case 15: return 1;
    case 16: return g->sms;
    case 17: return 0;
    case 18: return 0;
    case 19: return 1;
    case 20: return 0;
    case 21: return 131072;
    case 22: return 131072;
    case 23: return 65536;
    case 24:
    case 25:
    case 26: return 16384;
    case 30: return 512;
    case 31: return 1;
    case 32: return 1;
    case 33: return g->index + 1;
    case 34: return 0;
    case 35: return 0;
    case 36: return 2619000;
    case 37: return g->bus_bits;
    case 38: return g->l2_bytes;
    case 39: return g->threads_per_sm;
    case 40: return 3;
    case 41: return 1;
    case 50: return 0;
    case 51: return 32;
    case 69: return 268435456;
    case 75: return g->major;
    case 76: return g->minor;
    case 78: return 1;
    case 79: return 1;
    case 80: return 1;
    case 81: return g->shared_per_sm;
    case 82: return 65536;
    case 83: return 1;
    case 84: return 0;
    case 85: return 0;
    case 86: return 0;
    case 87: return 2;
    case 88: return 0;
    case 89: return 1;
    case 90: return 1;
    case 91: return 1;
    case 95: return 1;
    case 97: return g->shared_optin;
    case 98: return 0;
    case 99: return 1;
    case 100: return 0;
    case 101: return 0;
    case 102: return 1; /* CU: virtual memory management */
    case 103: return 1; /* posix fd handles */
    case 106: return g->threads_per_sm >= 2048 ? 32 : 16;
    case 108: return g->l2_bytes / 2;
    case 109: return 134213632;
    case 111: return 1024;
    case 113: return 1;
    case 114: return 1;
    case 115: return 1;
    case 119: return 1;
    case 120: return g->major >= 9;
    case 121: return 1;
    case 125: return 1;
    case 126: return g->major >= 9 ? 4 : 1;
    case 134: return -1;
  }
  return 0;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr a, int d) {
  *v = device_attribute(a, d);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  init_cuda();
  if (d < 0 || d >= device_count) return fail(cudaErrorInvalidDevice);
  const gpu_t *g = device(d);
  memset(p, 0, sizeof *p);
  snprintf(p->name, sizeof p->name, "%s", g->name);
  gpu_uuid(g, (unsigned char *)&p->uuid);
  p->totalGlobalMem = g->memory;
  p->sharedMemPerBlock = 49152;
  p->regsPerBlock = 65536;
  p->warpSize = 32;
  p->memPitch = 2147483647;
  p->maxThreadsPerBlock = 1024;
  p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
  p->maxThreadsDim[2] = 64;
  p->maxGridSize[0] = 2147483647;
  p->maxGridSize[1] = p->maxGridSize[2] = 65535;
  p->totalConstMem = 65536;
  p->major = g->major;
  p->minor = g->minor;
  p->textureAlignment = 512;
  p->texturePitchAlignment = 32;
  p->multiProcessorCount = g->sms;
  p->canMapHostMemory = 1;
  p->maxTexture1D = 131072;
  p->concurrentKernels = 1;
  p->ECCEnabled = 1;
  p->pciBusID = g->index + 1;
  p->asyncEngineCount = 3;
  p->unifiedAddressing = 1;
  p->memoryBusWidth = g->bus_bits;
  p->l2CacheSize = g->l2_bytes;
  p->maxThreadsPerMultiProcessor = g->threads_per_sm;
  p->streamPrioritiesSupported = 1;
  p->globalL1CacheSupported = p->localL1CacheSupported = 1;
  p->sharedMemPerMultiprocessor = g->shared_per_sm;
  p->regsPerMultiprocessor = 65536;
  p->managedMemory = 1;
  p->concurrentManagedAccess = 1;
  p->computePreemptionSupported = 1;
  p->canUseHostPointerForRegisteredMem = 1;
  p->cooperativeLaunch = 1;
  p->sharedMemPerBlockOptin = g->shared_optin;
  p->maxBlocksPerMultiProcessor = device_attribute(106, d);
  p->reservedSharedMemPerBlock = 1024;
  p->hostRegisterSupported = 1;
  p->memoryPoolsSupported = 1;
  p->memoryPoolSupportedHandleTypes = 1;
  p->ipcEventSupported = 1;
  p->clusterLaunch = g->major >= 9;
#if CUDART_VERSION >= 13000
  p->hostNumaId = -1;
#endif
  return cudaSuccess;
}
#ifndef cudaGetDeviceProperties /* CUDA 12's header gives it the other name, and only libraries of CUDA 11 ask for this one */
EXPORT cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp *p, int d) { return cudaGetDeviceProperties(p, d); }
#endif
EXPORT cudaError_t cudaDriverGetVersion(int *v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) {
  *v = CUDART_VERSION;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *f, size_t *t) {
  ENTER();
  LOCK;
  if (f) *f = gpu_free(current());
  if (t) *t = current()->memory;
  UNLOCK;
  return cudaSuccess;
}

/* ---------------------------------------------------------------- errors */
static const struct {
  int error;
  const char *runtime, *driver, *text;
} errors[] = {
    {0, "cudaSuccess", "CUDA_SUCCESS", "no error"},
    {1, "cudaErrorInvalidValue", "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "cudaErrorInitializationError", "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "cudaErrorCudartUnloading", "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {9, "cudaErrorInvalidConfiguration", "CUDA_ERROR_UNKNOWN", "invalid configuration argument"},
    {36, "cudaErrorCallRequiresNewerDriver", "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER",
     "API call is not supported in the installed CUDA driver"},
    {98, "cudaErrorInvalidDeviceFunction", "CUDA_ERROR_UNKNOWN", "invalid device function"},
    {100, "cudaErrorNoDevice", "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "cudaErrorInvalidDevice", "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {209, "cudaErrorNoKernelImageForDevice", "CUDA_ERROR_NO_BINARY_FOR_GPU",
     "no kernel image is available for execution on the device"},
    {214, "cudaErrorECCUncorrectable", "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "cudaErrorInvalidResourceHandle", "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "cudaErrorSymbolNotFound", "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "cudaErrorNotReady", "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "cudaErrorIllegalAddress", "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {702, "cudaErrorLaunchTimeout", "CUDA_ERROR_LAUNCH_TIMEOUT", "the launch timed out and was terminated"},
    {704, "cudaErrorPeerAccessAlreadyEnabled", "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {710, "cudaErrorAssert", "CUDA_ERROR_ASSERT", "device-side assert triggered"},
    {716, "cudaErrorMisalignedAddress", "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "cudaErrorLaunchFailure", "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {801, "cudaErrorNotSupported", "CUDA_ERROR_NOT_SUPPORTED", "operation not supported"},
    {999, "cudaErrorUnknown", "CUDA_ERROR_UNKNOWN", "unknown error"},
};
const char *error_part(int error, error_part_t part) {
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].error == error)
      return part == RUNTIME_NAME ? errors[i].runtime : part == DRIVER_NAME ? errors[i].driver : errors[i].text;
  return part == RUNTIME_NAME ? "cudaErrorUnknown" : part == DRIVER_NAME ? "CUDA_ERROR_UNKNOWN" : "unrecognized error code";
}
static __thread cudaError_t last_error;
cudaError_t fail(cudaError_t error) {
  if (error) last_error = error;
  return error;
}
void forget_error(void) { last_error = cudaSuccess; }

EXPORT const char *cudaGetErrorName(cudaError_t e) { return error_part(e, RUNTIME_NAME); }
EXPORT const char *cudaGetErrorString(cudaError_t e) { return error_part(e, TEXT); }
EXPORT cudaError_t cudaGetLastError(void) {
  cudaError_t error = cudaPeekAtLastError();
  last_error = cudaSuccess;
  return error;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return poisoned() ? (cudaError_t)poisoned() : last_error; }

/* ---------------------------------------------------------------- memory API */
EXPORT cudaError_t cudaMalloc(void **p, size_t n) { return device_malloc(p, n); }
EXPORT cudaError_t cudaMallocManaged(void **p, size_t n, unsigned f) { return device_malloc(p, n); }
EXPORT cudaError_t cudaFree(void *p) { return device_free(p); }
EXPORT cudaError_t cudaMallocPitch(void **p, size_t *pitch, size_t w, size_t h) {
  *pitch = (w + 511) & ~511ull;
  return device_malloc(p, *pitch * h);
}
EXPORT cudaError_t cudaHostAlloc(void **p, size_t n, unsigned f) {
  ENTER();
  return host_malloc(p, n);
}
EXPORT cudaError_t cudaMallocHost(void **p, size_t n) { return cudaHostAlloc(p, n, 0); }
EXPORT cudaError_t cudaFreeHost(void *p) {
  host_free(p);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void *p, size_t n, unsigned f) {
  ENTER();
  host_register(p, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void *p) {
  host_find(p, 1);
  return cudaSuccess;
}
EXPORT cudaError_t cudaHostGetDevicePointer(void **d, void *h, unsigned f) {
  *d = h;
  return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  memset(a, 0, sizeof *a);
  LOCK;
  segment_t *s = is_device_pointer(p) ? segment_find(p) : NULL;
  if (s) {
    a->type = cudaMemoryTypeDevice;
    a->device = s->device;
    a->devicePointer = (void *)p;
  } else if (host_find(p, 0)) {
    a->type = cudaMemoryTypeHost;
    a->device = current_device;
    a->devicePointer = a->hostPointer = (void *)p;
  } else {
    a->type = cudaMemoryTypeUnregistered;
    a->device = -2;
    a->hostPointer = (void *)p;
  }
  UNLOCK;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) {
  ENTER();
  copy(d, s, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t st) {
  ENTER();
  copy(d, s, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *d, int dd, const void *s, int sd, size_t n, cudaStream_t st) {
  ENTER();
  copy(d, s, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpyPeer(void *d, int dd, const void *s, int sd, size_t n) {
  ENTER();
  copy(d, s, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                     enum cudaMemcpyKind k, cudaStream_t st) {
  ENTER();
  for (size_t i = 0; i < h; i++) copy((char *)d + i * dp, (const char *)s + i * sp, w);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemcpy2D(void *d, size_t dp, const void *s, size_t sp, size_t w, size_t h,
                                enum cudaMemcpyKind k) {
  return cudaMemcpy2DAsync(d, dp, s, sp, w, h, k, 0);
}
EXPORT cudaError_t cudaMemset(void *p, int v, size_t n) {
  ENTER();
  fill(p, v, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s) {
  ENTER();
  fill(p, v, n);
  return cudaSuccess;
}
/* stream-ordered pools: backend:cudaMallocAsync */
static uint64_t pool_used, pool_high;
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *p, int d) {
  ENTER();
  *p = (cudaMemPool_t)(uintptr_t)(0x1000 + d);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetMemPool(cudaMemPool_t *p, int d) { return cudaDeviceGetDefaultMemPool(p, d); }
EXPORT cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) {
  cudaError_t e = device_malloc(p, n);
  if (!e) {
    LOCK;
    pool_used += n;
    if (pool_used > pool_high) pool_high = pool_used;
    UNLOCK;
  }
  return e;
}
EXPORT cudaError_t cudaFreeAsync(void *p, cudaStream_t s) {
  LOCK;
  segment_t *g = segment_find(p);
  if (g) pool_used = pool_used > g->size ? pool_used - g->size : 0;
  UNLOCK;
  return device_free(p);
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) {
  if (a == cudaMemPoolAttrUsedMemCurrent) *(uint64_t *)v = pool_used;
  else if (a == cudaMemPoolAttrUsedMemHigh) *(uint64_t *)v = pool_high;
  else if (a == cudaMemPoolAttrReservedMemCurrent) *(uint64_t *)v = current()->used;
  else if (a == cudaMemPoolAttrReservedMemHigh) *(uint64_t *)v = current()->used_peak;
  else if (a == cudaMemPoolAttrReleaseThreshold) *(uint64_t *)v = 0;
  else *(int *)v = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t p, enum cudaMemPoolAttr a, void *v) {
  if (a == cudaMemPoolAttrUsedMemHigh) pool_high = pool_used;
  if (a == cudaMemPoolAttrReservedMemHigh) current()->used_peak = current()->used;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolTrimTo(cudaMemPool_t p, size_t n) { return cudaSuccess; }
EXPORT cudaError_t cudaMemPoolSetAccess(cudaMemPool_t p, const struct cudaMemAccessDesc *d, size_t n) {
  return cudaSuccess;
}

/* ---------------------------------------------------------------- streams, events, graphs */
typedef struct {
  int priority, capturing;
  unsigned flags;
  unsigned long long capture;
} stream_t;
typedef struct {
  struct timespec t;
  int recorded;
} event_t;
static unsigned long long capture_id;
static stream_t *S(cudaStream_t s) { return (uintptr_t)s > 0x100 ? (stream_t *)s : NULL; }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) {
  ENTER();
  stream_t *t = calloc(1, sizeof *t);
  t->flags = f;
  t->priority = p;
  *s = (cudaStream_t)t;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { return cudaStreamCreateWithPriority(s, 0, 0); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) {
  return cudaStreamCreateWithPriority(s, f, 0);
}
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t s) { return synchronize(); }
EXPORT cudaError_t cudaStreamQuery(cudaStream_t s) { return enter(); }
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned f) { return enter(); }
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) {
  *p = S(s) ? S(s)->priority : 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetFlags(cudaStream_t s, unsigned *f) {
  *f = S(s) ? S(s)->flags : 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetDevice(cudaStream_t s, int *d) {
  *d = current_device;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t cb, void *u, unsigned f) {
  ENTER();
  cb(s, cudaSuccess, u);
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void *u) {
  ENTER();
  fn(u);
  return cudaSuccess;
}
EXPORT cudaError_t cudaThreadExchangeStreamCaptureMode(enum cudaStreamCaptureMode *m) { return cudaSuccess; }
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  ENTER();
  if (S(s)) {
    S(s)->capturing = 1;
    S(s)->capture = ++capture_id;
  }
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g) {
  ENTER();
  if (S(s)) S(s)->capturing = 0;
  *g = (cudaGraph_t)calloc(1, 64);
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *c) {
  ENTER();
  *c = S(s) && S(s)->capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
static cudaError_t capture_info(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id, cudaGraph_t *g,
                                const cudaGraphNode_t **deps, const cudaGraphEdgeData **ed, size_t *nd) {
  ENTER();
  static char fake[64];
  int on = S(s) && S(s)->capturing;
  if (c) *c = on ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  if (id) *id = on ? S(s)->capture : 0;
  if (g) *g = (cudaGraph_t)fake;
  if (deps) *deps = NULL;
  if (ed) *ed = NULL;
  if (nd) *nd = 0;
  return cudaSuccess;
}
/* Since CUDA 13 edges have data, and the functions with them the plain names. */
#if CUDART_VERSION >= 13000
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id,
                                            cudaGraph_t *g, const cudaGraphNode_t **deps, const cudaGraphEdgeData **ed,
                                            size_t *nd) {
  return capture_info(s, c, id, g, deps, ed, nd);
}
EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t n, cudaGraphNode_t *p, cudaGraphEdgeData *e,
                                                size_t *k) {
  *k = 0;
  return cudaSuccess;
}
#else
EXPORT cudaError_t cudaStreamGetCaptureInfo_v2(cudaStream_t s, enum cudaStreamCaptureStatus *c, unsigned long long *id,
                                               cudaGraph_t *g, const cudaGraphNode_t **deps, size_t *nd) {
  return capture_info(s, c, id, g, deps, NULL, nd);
}
EXPORT cudaError_t cudaGraphNodeGetDependencies(cudaGraphNode_t n, cudaGraphNode_t *p, size_t *k) {
  *k = 0;
  return cudaSuccess;
}
#endif
EXPORT cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
  ENTER();
  *e = (cudaGraphExec_t)calloc(1, 64);
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long f) {
  return cudaGraphInstantiateWithFlags(e, g, f);
}
EXPORT cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s) {
  ENTER();
  return kernel_started();
}
EXPORT cudaError_t cudaGraphDestroy(cudaGraph_t g) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) { return cudaSuccess; }
EXPORT cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *n, size_t *k) {
  *k = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGraphDebugDotPrint(cudaGraph_t g, const char *p, unsigned f) { return cudaSuccess; }

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) {
  ENTER();
  *e = (cudaEvent_t)calloc(1, sizeof(event_t));
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { return cudaEventCreateWithFlags(e, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) {
  free(e);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s) {
  ENTER();
  clock_gettime(CLOCK_MONOTONIC, &((event_t *)e)->t);
  ((event_t *)e)->recorded = 1;
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned f) { return cudaEventRecord(e, s); }
EXPORT cudaError_t cudaEventQuery(cudaEvent_t e) { return enter(); }
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t e) { return synchronize(); }
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  ENTER();
  event_t *x = (event_t *)a, *y = (event_t *)b;
  if (!x->recorded || !y->recorded) return fail(cudaErrorInvalidResourceHandle);
  *ms = (float)((y->t.tv_sec - x->t.tv_sec) * 1e3 + (y->t.tv_nsec - x->t.tv_nsec) * 1e-6);
  return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime_v2(float *ms, cudaEvent_t a, cudaEvent_t b) {
  return cudaEventElapsedTime(ms, a, b);
}
EXPORT cudaError_t cudaProfilerStart(void) { return cudaSuccess; }
EXPORT cudaError_t cudaProfilerStop(void) { return cudaSuccess; }
EXPORT cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *h, void *p) {
  memset(h, 0, sizeof *h);
  memcpy(h, &p, sizeof p);
  return cudaSuccess;
}
EXPORT cudaError_t cudaIpcGetEventHandle(cudaIpcEventHandle_t *h, cudaEvent_t p) {
  memset(h, 0, sizeof *h);
  memcpy(h, &p, sizeof p);
  return cudaSuccess;
}
EXPORT cudaError_t cudaIpcOpenMemHandle(void **p, cudaIpcMemHandle_t h, unsigned f) {
  *p = 0;
  return fail(cudaErrorNotSupported);
}
EXPORT cudaError_t cudaIpcOpenEventHandle(cudaEvent_t *p, cudaIpcEventHandle_t h) {
  *p = 0;
  return fail(cudaErrorNotSupported);
}
EXPORT cudaError_t cudaIpcCloseMemHandle(void *p) { return cudaSuccess; }

/* ---------------------------------------------------------------- the driver's functions by name */
void *driver_entry_point(const char *name) {
  static void *self;
  if (!self) {
    Dl_info i;
    dladdr((void *)driver_entry_point, &i);
    self = dlopen(i.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  }
  char newest[128];
  snprintf(newest, sizeof newest, "%s_v2", name);
  void *f = dlsym(self, newest);
  if (!f) f = dlsym(self, name);
  if (!f) trace("missing driver entry %s\n", name);
  return f;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **fp, unsigned ver, unsigned long long fl,
                                                    enum cudaDriverEntryPointQueryResult *st) {
  *fp = driver_entry_point(name);
  if (st) *st = *fp ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char *name, void **fp, unsigned long long fl,
                                           enum cudaDriverEntryPointQueryResult *st) {
  return cudaGetDriverEntryPointByVersion(name, fp, 0, fl, st);
}

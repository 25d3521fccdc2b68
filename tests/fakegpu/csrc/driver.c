/* libcuda: the driver, as far as PyTorch, Triton and the real cuDNN ask for it.
 *
 * Faithful: devices, their memory, the memory of expandable segments (reserve, create, map).
 * Not faithful: a module is an empty box whose functions do nothing; one context per device, never destroyed; no IPC.
 */
#include "fakegpu.h"

#include <sys/mman.h>

/* cuda.h gives these names to their newest versions. */
#undef cuMemAlloc
#undef cuMemFree
#undef cuMemGetInfo
#undef cuDeviceTotalMem
#undef cuCtxPushCurrent
#undef cuCtxPopCurrent
#undef cuDevicePrimaryCtxRelease
#undef cuDeviceGetUuid
#undef cuGetProcAddress

static char contexts[MAX_GPUS][64];

EXPORT CUresult cuInit(unsigned f) {
  init_cuda();
  return device_count ? CUDA_SUCCESS : CUDA_ERROR_NO_DEVICE;
}
EXPORT CUresult cuDriverGetVersion(int *v) {
  *v = CUDA_VERSION;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGet(CUdevice *d, int i) {
  init_cuda();
  if (i < 0 || i >= device_count) return CUDA_ERROR_INVALID_DEVICE;
  *d = i;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetCount(int *n) {
  init_cuda();
  *n = device_count;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetName(char *s, int n, CUdevice d) {
  snprintf(s, (size_t)n, "%s", device(d)->name);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetUuid_v2(CUuuid *u, CUdevice d) {
  gpu_uuid(device(d), (unsigned char *)u);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetUuid(CUuuid *u, CUdevice d) {
  gpu_uuid(device(d), (unsigned char *)u);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceTotalMem_v2(size_t *n, CUdevice d) {
  *n = device(d)->memory;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute a, CUdevice d) {
  *v = device_attribute(a, d);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetPCIBusId(char *s, int n, CUdevice d) {
  cudaDeviceGetPCIBusId(s, n, d);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *f, int *a) {
  if (f) *f = 0;
  if (a) *a = device(d)->has_context;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
  use_gpu(device(d));
  *c = (CUcontext)contexts[d];
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetCurrent(CUcontext *c) {
  *c = (CUcontext)contexts[current_device];
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetCurrent(CUcontext c) {
  for (int i = 0; i < MAX_GPUS; i++)
    if ((char *)c == contexts[i]) current_device = i;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxPushCurrent_v2(CUcontext c) { return cuCtxSetCurrent(c); }
EXPORT CUresult cuCtxPopCurrent_v2(CUcontext *c) {
  if (c) *c = (CUcontext)contexts[current_device];
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxGetDevice(CUdevice *d) {
  *d = current_device;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSynchronize(void) { return synchronize(); }
EXPORT CUresult cuGetErrorString(CUresult e, const char **s) {
  *s = error_part(e, TEXT);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorName(CUresult e, const char **s) {
  *s = error_part(e, DRIVER_NAME);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemGetInfo_v2(size_t *f, size_t *t) { return (CUresult)cudaMemGetInfo(f, t); }
EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  void *q;
  cudaError_t e = device_malloc(&q, n);
  forget_error();
  *p = (CUdeviceptr)q;
  return (CUresult)e;
}
EXPORT CUresult cuMemFree_v2(CUdeviceptr p) { return (CUresult)device_free((void *)p); }
EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void *s, size_t n) {
  ENTER();
  copy((void *)d, s, n);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemcpyDtoH_v2(void *d, CUdeviceptr s, size_t n) {
  ENTER();
  copy(d, (void *)s, n);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemsetD32Async(CUdeviceptr p, unsigned v, size_t n, CUstream s) {
  ENTER();
  fill((void *)p, (int)v, n * 4);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuStreamWriteValue32_v2(CUstream s, CUdeviceptr p, cuuint32_t v, unsigned f) { return CUDA_SUCCESS; }
EXPORT CUresult cuPointerGetAttribute(void *v, CUpointer_attribute a, CUdeviceptr p) {
  struct cudaPointerAttributes at;
  cudaPointerGetAttributes(&at, (void *)p);
  if (at.type == cudaMemoryTypeUnregistered) return CUDA_ERROR_INVALID_VALUE;
  switch (a) {
    case CU_POINTER_ATTRIBUTE_CONTEXT: *(void **)v = contexts[at.device < 0 ? 0 : at.device]; break;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE: *(unsigned *)v = at.type == cudaMemoryTypeDevice ? 2 : 1; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *(int *)v = at.device; break;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *(CUdeviceptr *)v = p; break;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR: {
      segment_t *s = segment_find((void *)p);
      *(void **)v = s ? (void *)s->start : NULL;
      break;
    }
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE: {
      segment_t *s = segment_find((void *)p);
      *(size_t *)v = s ? s->size : 0;
      break;
    }
    default: *(int *)v = 0;
  }
  return CUDA_SUCCESS;
}
EXPORT CUresult cuCtxSetLimit(CUlimit l, size_t v) { return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetLimit(size_t *v, CUlimit l) {
  *v = 1024;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **p, void **e) {
  return (CUresult)launch(f, (dim3){c->gridDimX, c->gridDimY, c->gridDimZ},
                          (dim3){c->blockDimX, c->blockDimY, c->blockDimZ}, c->sharedMemBytes);
}
EXPORT CUresult cuLibraryLoadData(CUlibrary *l, const void *c, CUjit_option *a, void **b, unsigned n,
                                  CUlibraryOption *d, void **e, unsigned m) {
  *l = (CUlibrary)calloc(1, 64);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuLibraryUnload(CUlibrary l) {
  free(l);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuLibraryGetKernel(CUkernel *k, CUlibrary l, const char *n) {
  *k = (CUkernel)strdup(n);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuLibraryGetModule(CUmodule *m, CUlibrary l) {
  *m = (CUmodule)l;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuKernelGetFunction(CUfunction *f, CUkernel k) {
  *f = (CUfunction)k;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuKernelGetAttribute(int *v, CUfunction_attribute a, CUkernel k, CUdevice d) {
  return cuFuncGetAttribute(v, a, (CUfunction)k);
}
EXPORT CUresult cuKernelSetAttribute(CUfunction_attribute a, int v, CUkernel k, CUdevice d) { return CUDA_SUCCESS; }
EXPORT CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute a, int v) { return CUDA_SUCCESS; }
EXPORT CUresult cuGetExportTable(const void **t, const CUuuid *id) { /* the driver's private tables */
  *t = NULL;
  return CUDA_ERROR_NOT_SUPPORTED;
}
EXPORT CUresult cuModuleGetLoadingMode(CUmoduleLoadingMode *m) {
  *m = CU_MODULE_LAZY_LOADING;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetLuid(char *l, unsigned *m, CUdevice d) {
  memset(l, 0, 8);
  *m = 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *p, CUdevice d) {
  return (CUresult)cudaDeviceGetDefaultMemPool((cudaMemPool_t *)p, d);
}
/* ---------------------------------------------------------------- virtual memory: expandable segments */
typedef struct {
  uint64_t size;
  gpu_t *gpu;
  int references;
} physical_t;
static struct {
  uintptr_t start;
  uint64_t size;
  physical_t *memory;
} *maps;
static size_t n_maps, room_maps;
static void drop(physical_t *p) {
  if (--p->references) return;
  charge(p->gpu, -(int64_t)p->size);
  free(p);
}
EXPORT CUresult cuMemGetAllocationGranularity(size_t *g, const CUmemAllocationProp *p,
                                              CUmemAllocationGranularity_flags f) {
  *g = GRANULARITY;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAddressReserve(CUdeviceptr *p, size_t n, size_t al, CUdeviceptr at, unsigned long long f) {
  ENTER();
  LOCK;
  segment_t *s = segment_reserve(n, 1);
  *p = s ? s->start : 0;
  UNLOCK;
  trace("reserve %zu -> %llx\n", n, *p);
  return s ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
EXPORT CUresult cuMemAddressFree(CUdeviceptr p, size_t n) {
  LOCK;
  segment_t *s = segment_find((void *)p);
  if (s) segment_free(s);
  UNLOCK;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *h, size_t n, const CUmemAllocationProp *p,
                            unsigned long long f) {
  ENTER();
  gpu_t *g = device(p->location.type == CU_MEM_LOCATION_TYPE_DEVICE ? p->location.id : 0);
  use_gpu(g);
  LOCK;
  int ok = fits(g, n);
  if (ok) {
    physical_t *memory = malloc(sizeof *memory);
    *memory = (physical_t){n, g, 1};
    charge(g, (int64_t)n);
    *h = (CUmemGenericAllocationHandle)memory;
  }
  trace("memcreate %zu ok=%d used=%llu\n", n, ok, (unsigned long long)g->used);
  UNLOCK;
  return ok ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle h) {
  LOCK;
  drop((physical_t *)h);
  UNLOCK;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemMap(CUdeviceptr p, size_t n, size_t off, CUmemGenericAllocationHandle h, unsigned long long f) {
  LOCK;
  if (n_maps == room_maps) maps = realloc(maps, sizeof *maps * (room_maps = room_maps ? room_maps * 2 : 256));
  maps[n_maps].start = p;
  maps[n_maps].size = n;
  maps[n_maps].memory = (physical_t *)h;
  maps[n_maps++].memory->references++;
  UNLOCK;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemUnmap(CUdeviceptr p, size_t n) {
  LOCK;
  for (size_t i = 0; i < n_maps;) {
    if (maps[i].start >= p && maps[i].start + maps[i].size <= p + n) {
      drop(maps[i].memory);
      maps[i] = maps[--n_maps];
    } else i++;
  }
  madvise((void *)p, n, MADV_DONTNEED);
  UNLOCK;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemSetAccess(CUdeviceptr p, size_t n, const CUmemAccessDesc *d, size_t c) { return CUDA_SUCCESS; }
EXPORT CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *h, void *a) {
  CUresult result = CUDA_ERROR_INVALID_VALUE;
  LOCK;
  for (size_t i = 0; i < n_maps && result; i++)
    if ((uintptr_t)a >= maps[i].start && (uintptr_t)a < maps[i].start + maps[i].size) {
      *h = (CUmemGenericAllocationHandle)maps[i].memory;
      maps[i].memory->references++;
      result = CUDA_SUCCESS;
    }
  UNLOCK;
  return result;
}
EXPORT CUresult cuMemExportToShareableHandle(void *o, CUmemGenericAllocationHandle h, CUmemAllocationHandleType t,
                                             unsigned long long f) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
EXPORT CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *h, void *o, CUmemAllocationHandleType t) {
  return CUDA_ERROR_NOT_SUPPORTED;
}
/* ---------------------------------------------------------------- modules, entry points */
EXPORT CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                               unsigned bz, unsigned sm, CUstream s, void **p, void **e) {
  return (CUresult)launch(f, (dim3){gx, gy, gz}, (dim3){bx, by, bz}, sm);
}
EXPORT CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                                          unsigned bz, unsigned sm, CUstream s, void **p) {
  return cuLaunchKernel(f, gx, gy, gz, bx, by, bz, sm, s, p, 0);
}
EXPORT CUresult cuModuleLoadData(CUmodule *m, const void *i) {
  *m = (CUmodule)calloc(1, 64);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleLoadDataEx(CUmodule *m, const void *i, unsigned n, CUjit_option *o, void **v) {
  return cuModuleLoadData(m, i);
}
EXPORT CUresult cuModuleLoad(CUmodule *m, const char *i) { return cuModuleLoadData(m, i); }
EXPORT CUresult cuModuleUnload(CUmodule m) {
  free(m);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuModuleGetFunction(CUfunction *f, CUmodule m, const char *n) {
  *f = (CUfunction)strdup(n);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction f) {
  *v = a == 0 ? 1024 : a == 4 ? 32 : a == 5 || a == 6 ? current()->major * 10 + current()->minor : 0;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int bs, size_t s) {
  *n = occupancy(bs, s);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuGetProcAddress_v2(const char *n, void **f, int v, cuuint64_t fl, CUdriverProcAddressQueryResult *r) {
  *f = driver_entry_point(n);
  if (r) *r = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
EXPORT CUresult cuGetProcAddress(const char *n, void **f, int v, cuuint64_t fl) {
  return cuGetProcAddress_v2(n, f, v, fl, NULL);
}

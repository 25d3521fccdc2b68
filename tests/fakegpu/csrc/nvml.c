/* libnvidia-ml: the driver's view, as nvidia-ml-py (the module `pynvml`), PyTorch and its allocator ask for it.
 *
 * Faithful: all of the machine's GPUs in the order of the bus, whatever CUDA_VISIBLE_DEVICES says; UUIDs equal to
 * CUDA's; memory in use and by whom, those of other processes with FAKE_GPU_STATE or of FAKE_GPU_OTHERS included.
 * Not faithful: PIDs are never hidden by a container; the total equals CUDA's, so nothing is reserved; utilisation,
 * temperature and power are constants.
 * FAKE_NVML=off: the initialisation fails with "driver not loaded". (FAKE_NVML=missing, no such library, is done where the
 * libraries are preloaded.)
 */
#include "fakegpu.h"

#include <unistd.h>

enum {
  OK = 0,
  UNINITIALIZED = 1,
  INVALID_ARGUMENT = 2,
  NOT_SUPPORTED = 3,
  NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9,
  VERSION_MISMATCH = 25,
};
#define NO_VALUE (~0u)

typedef struct {
  unsigned long long total, free, used;
} memory_v1_t;
typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} memory_v2_t;
#define MEMORY_V2 (sizeof(memory_v2_t) | 2u << 24)
typedef struct {
  unsigned pid;
  unsigned long long used;
} process_v1_t;
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
} process_v2_t;
typedef struct {
  char legacy_id[16];
  unsigned domain, bus, device, pci_device, pci_subsystem;
  char id[32];
} pci_t;

/* A handle is the GPU's index + 1. */
typedef void *gpu_handle_t;
static gpu_handle_t handle_of(int index) { return (gpu_handle_t)(uintptr_t)(index + 1); }
static int gpu_of(gpu_handle_t h, gpu_t **g) {
  uintptr_t i = (uintptr_t)h - 1;
  init_machine();
  if (nvml_off) return UNINITIALIZED;
  if (i >= (uintptr_t)gpu_count) return INVALID_ARGUMENT;
  *g = &gpus[i];
  return OK;
}
#define GPU(g, h)                  \
  gpu_t *g;                        \
  do {                             \
    int error_ = gpu_of((h), &g);  \
    if (error_) return error_;     \
  } while (0)
#define NEED_INIT()                      \
  do {                                   \
    init_machine();                      \
    if (nvml_off) return UNINITIALIZED;  \
  } while (0)

static int put(char *to, unsigned size, const char *text) {
  if (strlen(text) >= size) return INSUFFICIENT_SIZE;
  strcpy(to, text);
  return OK;
}

/* ---------------------------------------------------------------- the system */

EXPORT int nvmlInitWithFlags(unsigned flags) {
  init_machine();
  return nvml_off ? DRIVER_NOT_LOADED : OK;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlShutdown(void) {
  NEED_INIT();
  return OK;
}
EXPORT const char *nvmlErrorString(int error) {
  switch (error) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case VERSION_MISMATCH: return "Argument Version Mismatch";
  }
  return "Unknown Error";
}
EXPORT int nvmlSystemGetDriverVersion(char *s, unsigned n) {
  NEED_INIT();
  return put(s, n, "580.65.06");
}
EXPORT int nvmlSystemGetNVMLVersion(char *s, unsigned n) {
  NEED_INIT();
  return put(s, n, "13.580.65.06");
}
EXPORT int nvmlSystemGetCudaDriverVersion(int *version) {
  NEED_INIT();
  *version = CUDA_VERSION;
  return OK;
}
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return nvmlSystemGetCudaDriverVersion(version); }
EXPORT int nvmlSystemGetProcessName(unsigned pid, char *s, unsigned n) {
  NEED_INIT();
  const char *name = other_process_name(pid);
  if (name) return put(s, n, name);
  char link[32], path[4096];
  snprintf(link, sizeof link, "/proc/%u/exe", pid);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return NOT_FOUND;
  path[size] = 0;
  return put(s, n, path);
}

/* ---------------------------------------------------------------- finding a GPU */

EXPORT int nvmlDeviceGetCount_v2(unsigned *n) {
  NEED_INIT();
  *n = (unsigned)gpu_count;
  return OK;
}
EXPORT int nvmlDeviceGetCount(unsigned *n) { return nvmlDeviceGetCount_v2(n); }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned i, gpu_handle_t *h) {
  NEED_INIT();
  if (i >= (unsigned)gpu_count) return INVALID_ARGUMENT;
  *h = handle_of((int)i);
  return OK;
}
EXPORT int nvmlDeviceGetHandleByIndex(unsigned i, gpu_handle_t *h) { return nvmlDeviceGetHandleByIndex_v2(i, h); }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *id, gpu_handle_t *h) {
  unsigned domain, bus, slot;
  NEED_INIT();
  if (sscanf(id, "%x:%x:%x", &domain, &bus, &slot) != 3) return INVALID_ARGUMENT;
  if (domain || slot || bus < 1 || bus > (unsigned)gpu_count) return NOT_FOUND;
  *h = handle_of((int)bus - 1);
  return OK;
}
EXPORT int nvmlDeviceGetHandleByPciBusId(const char *id, gpu_handle_t *h) { return nvmlDeviceGetHandleByPciBusId_v2(id, h); }

static void uuid_text(const gpu_t *g, char text[48]) {
  unsigned char u[16];
  gpu_uuid(g, u);
  snprintf(text, 48, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1], u[2], u[3],
           u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, gpu_handle_t *h) {
  NEED_INIT();
  for (int i = 0; i < gpu_count; i++) {
    char text[48];
    uuid_text(&gpus[i], text);
    if (strcmp(text, uuid)) continue;
    *h = handle_of(i);
    return OK;
  }
  return NOT_FOUND;
}

/* ---------------------------------------------------------------- a GPU */

EXPORT int nvmlDeviceGetIndex(gpu_handle_t h, unsigned *i) {
  GPU(g, h);
  *i = (unsigned)g->index;
  return OK;
}
EXPORT int nvmlDeviceGetMinorNumber(gpu_handle_t h, unsigned *i) { return nvmlDeviceGetIndex(h, i); }
EXPORT int nvmlDeviceGetName(gpu_handle_t h, char *s, unsigned n) {
  GPU(g, h);
  return put(s, n, g->name);
}
EXPORT int nvmlDeviceGetUUID(gpu_handle_t h, char *s, unsigned n) {
  char text[48];
  GPU(g, h);
  uuid_text(g, text);
  return put(s, n, text);
}
EXPORT int nvmlDeviceGetPciInfo_v3(gpu_handle_t h, pci_t *p) {
  GPU(g, h);
  memset(p, 0, sizeof *p);
  p->bus = (unsigned)g->index + 1;
  snprintf(p->id, sizeof p->id, "00000000:%02X:00.0", p->bus);
  snprintf(p->legacy_id, sizeof p->legacy_id, "0000:%02X:00.0", p->bus);
  return OK;
}
EXPORT int nvmlDeviceGetCudaComputeCapability(gpu_handle_t h, int *major, int *minor) {
  GPU(g, h);
  *major = g->major;
  *minor = g->minor;
  return OK;
}
EXPORT int nvmlDeviceGetMemoryInfo(gpu_handle_t h, memory_v1_t *m) {
  GPU(g, h);
  uint64_t used = gpu_used(g);
  if (used > g->memory) used = g->memory;
  *m = (memory_v1_t){g->memory, g->memory - used, used};
  return OK;
}
EXPORT int nvmlDeviceGetMemoryInfo_v2(gpu_handle_t h, memory_v2_t *m) {
  memory_v1_t v1;
  if (m->version != MEMORY_V2) return VERSION_MISMATCH;
  int error = nvmlDeviceGetMemoryInfo(h, &v1);
  if (!error) *m = (memory_v2_t){MEMORY_V2, v1.total, 0, v1.free, v1.used};
  return error;
}

static int list_processes(gpu_handle_t h, unsigned *n, void *list, int version) {
  user_t users[512];
  GPU(g, h);
  unsigned room = *n;
  *n = (unsigned)gpu_users(g, users, 512);
  for (unsigned i = 0; list && i < *n && i < room; i++)
    if (version == 1) ((process_v1_t *)list)[i] = (process_v1_t){users[i].pid, users[i].used};
    else ((process_v2_t *)list)[i] = (process_v2_t){users[i].pid, users[i].used, NO_VALUE, NO_VALUE};
  return *n > room ? INSUFFICIENT_SIZE : OK;
}
/* The first version, which PyTorch's allocator calls, has no instances. */
EXPORT int nvmlDeviceGetComputeRunningProcesses(gpu_handle_t h, unsigned *n, void *l) { return list_processes(h, n, l, 1); }
EXPORT int nvmlDeviceGetComputeRunningProcesses_v2(gpu_handle_t h, unsigned *n, void *l) { return list_processes(h, n, l, 2); }
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(gpu_handle_t h, unsigned *n, void *l) { return list_processes(h, n, l, 2); }
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(gpu_handle_t h, unsigned *n, void *l) {
  GPU(g, h);
  *n = 0;
  return OK;
}
EXPORT int nvmlDeviceGetUtilizationRates(gpu_handle_t h, unsigned *rates) {
  GPU(g, h);
  rates[0] = rates[1] = 0;
  return OK;
}
EXPORT int nvmlDeviceGetTemperature(gpu_handle_t h, int sensor, unsigned *celsius) {
  GPU(g, h);
  *celsius = 40;
  return OK;
}
EXPORT int nvmlDeviceGetPowerUsage(gpu_handle_t h, unsigned *milliwatts) {
  GPU(g, h);
  *milliwatts = 70000;
  return OK;
}
EXPORT int nvmlDeviceGetClockInfo(gpu_handle_t h, int clock, unsigned *mhz) {
  GPU(g, h);
  *mhz = 1980;
  return OK;
}
EXPORT int nvmlDeviceGetMigMode(gpu_handle_t h, unsigned *mode, unsigned *pending) {
  GPU(g, h);
  return NOT_SUPPORTED;
}
EXPORT int nvmlDeviceGetP2PStatus(gpu_handle_t a, gpu_handle_t b, int index, int *status) {
  *status = 0;
  return OK;
}
/* The size of the struct is in its version; zeros behind that say that the GPU has no fabric. */
EXPORT int nvmlDeviceGetGpuFabricInfoV(gpu_handle_t h, unsigned *info) {
  GPU(g, h);
  unsigned size = *info & 0xffffff;
  if (size < sizeof *info || size > 1024) return VERSION_MISMATCH;
  memset(info + 1, 0, size - sizeof *info);
  return OK;
}
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(gpu_handle_t h, unsigned link, int *type) { return NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(gpu_handle_t h, unsigned link, void *pci) { return NOT_SUPPORTED; }

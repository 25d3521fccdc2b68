/* libcudnn, the backend: operation graphs, heuristics, execution plans (convolutions, attention).
 *
 * With FAKE_CUDNN=/path/libcudnn.so.9 it is the real cuDNN that builds graphs, ranks engines, makes plans and names their
 * workspaces. It needs no GPU where it is given the description of one in place of a handle, which is its documented
 * deviceless mode: we set that attribute on heuristics, engines and plans and drop the handles. Only the execution is faked.
 * The real cuDNN is opened in a link namespace of its own, where the names of the CUDA libraries are not ours.
 * FAKE_CUDNN_NVRTC=/path/libnvrtc.so is the compiler for the engines that are compiled at run time.
 *
 * Without: every graph has one engine, whose plan asks for FAKE_CUDNN_WORKSPACE bytes.
 *
 * Not faithful: the description is written by hand (the same clocks for each GPU). That plans made without a device
 * equal those made with one is assumed.
 */
#include "fakegpu.h"

#include <dlfcn.h>

/* Values of cudnnBackendDescriptorType_t, ...AttributeName_t, ...AttributeType_t. */
enum {
  TYPE_ENGINE = 2,
  TYPE_ENGINEHEUR = 4,
  TYPE_PLAN = 5,
  TYPE_DEVICEPROP = 38,
  ENGINEHEUR_RESULTS = 202,
  ENGINEHEUR_DEVICEPROP = 204,
  ENGINECFG_ENGINE = 300,
  ENGINECFG_WORKSPACE_SIZE = 303,
  PLAN_HANDLE = 400,
  PLAN_ENGINE_CONFIG = 401,
  PLAN_WORKSPACE_SIZE = 402,
  PLAN_DEVICEPROP = 407,
  GRAPH_HANDLE = 800,
  GRAPH_ENGINE_GLOBAL_COUNT = 802,
  ENGINE_GLOBAL_INDEX = 1301,
  ENGINE_DEVICEPROP = 1307,
  DEVICEPROP_JSON = 2702,
  IS_INT64 = 3,
  IS_DESCRIPTOR = 15,
  IS_INT32 = 23,
  IS_CHAR = 24,
};

static struct {
  int tried, on;
  int (*create)(int, void **);
  int (*destroy)(void *);
  int (*finalize)(void *);
  int (*set)(void *, int, int, int64_t, const void *);
  int (*get)(void *, int, int, int64_t, int64_t *, void *);
  void (*last_error)(char *, size_t);
  void (*ctype_init)(void);
} real;

static void open_real(void) {
  real.tried = 1;
  const char *path = getenv("FAKE_CUDNN"), *compiler = getenv("FAKE_CUDNN_NVRTC");
  if (!path || !*path) return;
  Lmid_t space = LM_ID_NEWLM;
  void *h = compiler && *compiler ? dlmopen(LM_ID_NEWLM, compiler, RTLD_NOW) : NULL;
  if (h) {
    char builtins[4096];
    const char *slash = strrchr(compiler, '/');
    dlinfo(h, RTLD_DI_LMID, &space);
    snprintf(builtins, sizeof builtins, "%.*s/libnvrtc-builtins.so.%d.%d", (int)(slash ? slash - compiler : 0), compiler,
             CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
    dlmopen(space, builtins, RTLD_NOW); /* NVRTC opens it by its bare name */
  }
  h = dlmopen(space, path, RTLD_NOW);
  if (!h) {
    fprintf(stderr, "fakecuda: FAKE_CUDNN: %s\n", dlerror());
    return;
  }
  *(void **)&real.create = dlsym(h, "cudnnBackendCreateDescriptor");
  *(void **)&real.destroy = dlsym(h, "cudnnBackendDestroyDescriptor");
  *(void **)&real.finalize = dlsym(h, "cudnnBackendFinalize");
  *(void **)&real.set = dlsym(h, "cudnnBackendSetAttribute");
  *(void **)&real.get = dlsym(h, "cudnnBackendGetAttribute");
  *(void **)&real.last_error = dlsym(h, "cudnnGetLastErrorString");
  *(void **)&real.ctype_init = dlsym(h, "__ctype_init");
  real.on = real.create && real.destroy && real.finalize && real.set && real.get && real.last_error;
}

/* Whether there is a real cuDNN. The namespace has a libc of its own, whose ctype tables each of our threads has to set
 * up before it calls in. */
static int use_real(void) {
  static __thread int is_set_up;
  LOCK;
  if (!real.tried) open_real();
  UNLOCK;
  if (real.on && !is_set_up) {
    is_set_up = 1;
    if (real.ctype_init) real.ctype_init();
  }
  return real.on;
}

static int checked(const char *what, int type, int status) {
  if (status && trace_file) {
    char message[600] = "";
    real.last_error(message, sizeof message);
    trace("real cuDNN: %s type=%d status=%d %s\n", what, type, status, message);
  }
  return status;
}

/* The description of the current GPU, which takes the place of a handle. */
static void *const *description(void) {
  static void *made[MAX_GPUS];
  const gpu_t *g = current();
  void **d = &made[g->index];
  if (*d) return d;
  char json[2048];
  snprintf(json, sizeof json,
           "{\"maxGridSize\":[2147483647,65535,65535],\"maxBlockSize\":[1024,1024,64],\"deviceVer\":%d,\"driverVer\":%d,"
           "\"multiProcessorCount\":%d,\"smClockRateKHz\":1980000,\"memClockRateKHz\":2619000,\"regsPerBlock\":65536,"
           "\"maxRegistersPerSM\":65536,\"l2CacheSize\":%d,\"warpSize\":32,\"maxSharedMemoryPerBlock\":49152,"
           "\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,\"pciDeviceId\":0,\"maxCtasPerSM\":%d,"
           "\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":%d,\"isTccDriver\":0,\"supportCoopLaunch\":1,"
           "\"cudaDeviceId\":0,\"totalGlobalMem\":%llu,\"deviceName\":\"%s\"}",
           g->major * 100 + g->minor * 10, CUDART_VERSION, g->sms, g->l2_bytes, g->shared_optin,
           g->threads_per_sm >= 2048 ? 32 : 16, g->threads_per_sm, (unsigned long long)g->memory, g->name);
  if (real.create(TYPE_DEVICEPROP, d) || real.set(*d, DEVICEPROP_JSON, IS_CHAR, (int64_t)strlen(json), json) ||
      real.finalize(*d)) {
    char message[600] = "";
    real.last_error(message, sizeof message);
    fprintf(stderr, "fakecuda: the real cuDNN refused the description of the GPU: %s\n", message);
    *d = NULL;
  }
  return d;
}

/* The types of the real library's descriptors. */
static struct {
  void *descriptor;
  int type;
} *known;
static size_t n_known, room_known;

static void remember(void *descriptor, int type) {
  LOCK;
  if (n_known == room_known) known = realloc(known, sizeof *known * (room_known = room_known ? room_known * 2 : 4096));
  known[n_known].descriptor = descriptor;
  known[n_known++].type = type;
  UNLOCK;
}
static int type_of(void *descriptor, int forget) {
  int type = -1;
  LOCK;
  for (size_t i = n_known; i-- > 0;)
    if (known[i].descriptor == descriptor) {
      type = known[i].type;
      if (forget) known[i] = known[--n_known];
      break;
    }
  UNLOCK;
  return type;
}

/* Without the real one, a descriptor is a box that knows its type. */
typedef struct {
  int type;
} box_t;

EXPORT int cudnnBackendCreateDescriptor(int type, void **d) {
  if (use_real()) {
    int status = real.create(type, d);
    if (!status) remember(*d, type);
    return checked("create", type, status);
  }
  box_t *box = calloc(1, 64);
  box->type = type;
  *d = box;
  return 0;
}
EXPORT int cudnnBackendDestroyDescriptor(void *d) {
  if (use_real()) {
    type_of(d, 1);
    return real.destroy(d);
  }
  free(d);
  return 0;
}
EXPORT int cudnnBackendInitialize(void *d) { return 0; }
EXPORT int cudnnBackendFinalize(void *d) {
  if (!use_real()) return 0;
  int type = type_of(d, 0), status = 0;
  int attribute = type == TYPE_ENGINEHEUR ? ENGINEHEUR_DEVICEPROP
                  : type == TYPE_PLAN     ? PLAN_DEVICEPROP
                  : type == TYPE_ENGINE   ? ENGINE_DEVICEPROP
                                          : 0;
  if (attribute) status = real.set(d, attribute, IS_DESCRIPTOR, 1, description());
  if (status) checked("set deviceprop", type, status);
  return checked("finalize", type, real.finalize(d));
}
EXPORT int cudnnBackendSetAttribute(void *d, int name, int type, int64_t n, const void *value) {
  if (!use_real() || name == GRAPH_HANDLE || name == PLAN_HANDLE) return 0;
  return checked("set", name, real.set(d, name, type, n, value));
}
static int64_t box_attribute(int name, int type, int64_t room, void *value) { /* how many values */
  switch (name) {
    case GRAPH_ENGINE_GLOBAL_COUNT:
      if (value && room) *(int64_t *)value = 1;
      return 1;
    case ENGINEHEUR_RESULTS: case ENGINECFG_ENGINE: case PLAN_ENGINE_CONFIG: return 1;
    case PLAN_WORKSPACE_SIZE: case ENGINECFG_WORKSPACE_SIZE:
      if (value) *(int64_t *)value = (int64_t)cudnn_workspace;
      return 1;
    case ENGINE_GLOBAL_INDEX:
      if (value && room) *(int64_t *)value = 0;
      return 1;
  }
  if (!value || room != 1 || (type != IS_INT64 && type != IS_INT32)) return 0;
  if (type == IS_INT64) *(int64_t *)value = 0;
  else *(int32_t *)value = 0;
  return 1;
}
EXPORT int cudnnBackendGetAttribute(void *d, int name, int type, int64_t room, int64_t *count, void *value) {
  if (use_real()) {
    int status = real.get(d, name, type, room, count, value);
    if (name == PLAN_WORKSPACE_SIZE && !status) trace("cuDNN plan workspace %lld\n", (long long)*(int64_t *)value);
    return checked("get", name, status);
  }
  trace("cudnnBackendGetAttribute type=%d attr=%d t=%d req=%lld\n", ((box_t *)d)->type, name, type, (long long)room);
  int64_t n = box_attribute(name, type, room, value);
  if (count) *count = n;
  return 0;
}
EXPORT int cudnnBackendExecute(void *h, void *plan, void *variables) {
  if (enter() || kernel_started()) return 5000; /* CUDNN_STATUS_EXECUTION_FAILED */
  trace("cudnnBackendExecute\n");
  return 0;
}

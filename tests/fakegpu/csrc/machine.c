/* The machine: its GPUs, which of them CUDA sees and in what order, and who holds their memory.
 *
 * Faithful: CUDA_VISIBLE_DEVICES (numbers, UUIDs and their prefixes; the list ends at the first entry that
 * names nothing, and is empty if one is named twice), CUDA_DEVICE_ORDER (by default the fastest GPU is CUDA's
 * first, while NVML keeps to the bus), when it is read (at the first call of CUDA). "Fastest" is "most SMs" here.
 * Figures of the profiles are data sheet figures and what these GPUs were seen to report; the memory of a
 * context is a guess. NVML's total is CUDA's; a real NVML counts some memory that CUDA does not offer.
 */
#include "fakegpu.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

static const gpu_t profiles[] = {
    {"rtx3090", "NVIDIA GeForce RTX 3090", 8, 6, 82, 1536, 101376, 102400, 25438126080ull, 300 * MIB, 6291456, 384},
    {"rtx4090", "NVIDIA GeForce RTX 4090", 8, 9, 128, 1536, 101376, 102400, 25250627584ull, 380 * MIB, 75497472, 384},
    {"h100", "NVIDIA H100 80GB HBM3", 9, 0, 132, 2048, 232448, 233472, 85017755648ull, 530 * MIB, 52428800, 5120},
    {"a100", "NVIDIA A100-SXM4-40GB", 8, 0, 108, 2048, 166912, 167936, 42297786368ull, 420 * MIB, 41943040, 5120},
    {"t4", "Tesla T4", 7, 5, 40, 1024, 65536, 65536, 15655829504ull, 110 * MIB, 4194304, 256},
    {"v100", "Tesla V100-SXM2-16GB", 7, 0, 80, 2048, 98304, 98304, 16935682048ull, 310 * MIB, 6291456, 4096},
};
#define N_PROFILES (sizeof profiles / sizeof *profiles)

int gpu_count;
gpu_t gpus[MAX_GPUS];
int device_count;
static gpu_t *devices[MAX_GPUS]; /* in CUDA's order */
__thread int current_device;
FILE *trace_file;
size_t recurrent_workspace, recurrent_reserve, dropout_states;
size_t cudnn_workspace, cublaslt_workspace, copy_max = 16 * MIB, cudnn_version = FAKECUDA_CUDNN_VERSION;
size_t nccl_memory = 544 * MIB; /* two A100s, NVIDIA/nccl#964 */
int nvml_off;
static int spills;
d2h_t d2h_mode;
pthread_mutex_t lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* Another process, of FAKE_GPU_OTHERS. */
static struct {
  unsigned pid;
  char name[128];
  uint64_t used;
  int gpu;
} others[64];
static int n_others;

/* Processes with the same FAKE_GPU_STATE; a slot is one process on one GPU. */
typedef struct {
  int32_t pid, gpu;
  uint64_t used;
} slot_t;
#define N_SLOTS 256
static slot_t *slots;
static slot_t *my_slot[MAX_GPUS];

static void bad_setting(const char *name, const char *value) {
  fprintf(stderr, "fakecuda: %s: cannot understand '%s'\n", name, value);
  _exit(2);
}

uint64_t parse_size(const char *s) {
  char *e;
  double v = strtod(s, &e);
  if (e == s || v < 0) bad_setting("a size", s);
  while (*e == ' ') e++;
  uint64_t unit = 0;
  switch (*e) {
    case 'k':
    case 'K': unit = e[1] == 'i' ? KIB : 1000; break;
    case 'm':
    case 'M': unit = e[1] == 'i' ? MIB : 1000000; break;
    case 'g':
    case 'G': unit = e[1] == 'i' ? GIB : 1000000000; break;
    case 't':
    case 'T': unit = e[1] == 'i' ? KIB * GIB : 1000000000000; break;
  }
  return unit ? (uint64_t)(v * (double)unit) : strtoull(s, NULL, 0);
}

void trace(const char *format, ...) {
  if (!trace_file) return;
  va_list ap;
  va_start(ap, format);
  LOCK;
  vfprintf(trace_file, format, ap);
  UNLOCK;
  va_end(ap);
}

/* The i-th entry of a comma-separated variable, or its last one; NULL where it is not set. */
static const char *setting(const char *variable, int i, char *buffer, size_t size) {
  const char *s = getenv(variable);
  if (!s || !*s) return NULL;
  for (const char *next; i > 0 && (next = strchr(s, ',')); i--) s = next + 1;
  snprintf(buffer, size, "%.*s", (int)strcspn(s, ","), s);
  return buffer;
}

static void init_gpu(gpu_t *g, int index) {
  char b[256];
  const char *s = setting("FAKE_GPU", index, b, sizeof b);
  const gpu_t *found = s ? NULL : &profiles[0];
  for (size_t i = 0; i < N_PROFILES && !found; i++)
    if (!strcmp(s, profiles[i].profile)) found = &profiles[i];
  if (!found) bad_setting("FAKE_GPU", s);
  *g = *found;
  g->index = index;
  if ((s = setting("FAKE_GPU_NAME", index, b, sizeof b))) snprintf(g->name, sizeof g->name, "%s", s);
  if ((s = setting("FAKE_GPU_MEMORY", index, b, sizeof b))) g->memory = parse_size(s);
  if ((s = setting("FAKE_GPU_OVERHEAD", index, b, sizeof b))) g->overhead = parse_size(s);
  if ((s = setting("FAKE_GPU_SMS", index, b, sizeof b))) g->sms = atoi(s);
  if (g->sms <= 0) bad_setting("FAKE_GPU_SMS", s);
  if ((s = setting("FAKE_GPU_CC", index, b, sizeof b))) {
    if (sscanf(s, "%d.%d", &g->major, &g->minor) != 2) bad_setting("FAKE_GPU_CC", s);
    for (size_t i = 0; i < N_PROFILES; i++)
      if (profiles[i].major == g->major && profiles[i].minor == g->minor) {
        g->threads_per_sm = profiles[i].threads_per_sm;
        g->shared_optin = profiles[i].shared_optin;
        g->shared_per_sm = profiles[i].shared_per_sm;
      }
  }
}

static void init_others(const char *list) { /* pid:name:size[@gpu],... */
  char b[256];
  for (int i = 0; list && *list && i < (int)(sizeof others / sizeof *others); i++) {
    size_t n = strcspn(list, ",");
    snprintf(b, sizeof b, "%.*s", (int)n, list);
    char *name = strchr(b, ':'), *size = strrchr(b, ':'), *at = strchr(b, '@');
    if (!name || name == size) bad_setting("FAKE_GPU_OTHERS", list);
    others[i].pid = (unsigned)strtoul(b, NULL, 10);
    snprintf(others[i].name, sizeof others[i].name, "%.*s", (int)(size - name - 1), name + 1);
    others[i].used = parse_size(size + 1);
    others[i].gpu = at ? atoi(at + 1) : 0;
    n_others = i + 1;
    list += n + (list[n] == ',');
  }
}

static void init_recurrent(const char *list) { /* workspace,reserve,states */
  size_t *sizes[] = {&recurrent_workspace, &recurrent_reserve, &dropout_states};
  char b[64];
  const char *rest = list;
  for (int i = 0; i < 3; i++) {
    size_t n = strcspn(rest, ",");
    if (!n || (rest[n] == ',') != (i < 2)) bad_setting("FAKE_CUDNN_RECURRENT", list);
    snprintf(b, sizeof b, "%.*s", (int)n, rest);
    *sizes[i] = parse_size(b);
    rest += n + (rest[n] == ',');
  }
}

static void init_state(const char *path) {
  int fd = open(path, O_RDWR | O_CREAT, 0666);
  if (fd >= 0 && ftruncate(fd, sizeof(slot_t) * N_SLOTS) == 0) {
    void *m = mmap(NULL, sizeof(slot_t) * N_SLOTS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m != MAP_FAILED) slots = m;
  }
  if (!slots) fprintf(stderr, "fakecuda: FAKE_GPU_STATE: %s: %s\n", path, strerror(errno));
  if (fd >= 0) close(fd);
}

static void read_environment(void) {
  const char *s = getenv("FAKE_GPU");
  gpu_count = 1;
  for (; s && *s; s++) gpu_count += *s == ',';
  if ((s = getenv("FAKE_GPU_COUNT")) && *s && (atoi(s) > gpu_count || atoi(s) == 0)) gpu_count = atoi(s);
  if (gpu_count < 0) gpu_count = 0;
  if (gpu_count > MAX_GPUS) gpu_count = MAX_GPUS;
  for (int i = 0; i < gpu_count; i++) init_gpu(&gpus[i], i);
  init_others(getenv("FAKE_GPU_OTHERS"));
  if ((s = getenv("FAKE_NVML"))) nvml_off = *s && strcmp(s, "on"); /* as well as "missing", where it is preloaded nevertheless */
  if ((s = getenv("FAKE_GPU_SPILL"))) spills = !strcmp(s, "1");
  if ((s = getenv("FAKE_CUDNN_VERSION")) && *s) cudnn_version = strtoull(s, NULL, 0);
  if ((s = getenv("FAKE_CUDNN_WORKSPACE"))) cudnn_workspace = parse_size(s);
  if ((s = getenv("FAKE_CUDNN_RECURRENT")) && *s) init_recurrent(s);
  if ((s = getenv("FAKE_CUBLASLT_WORKSPACE"))) cublaslt_workspace = parse_size(s);
  if ((s = getenv("FAKE_NCCL_MEMORY")) && *s) nccl_memory = parse_size(s);
  if ((s = getenv("FAKECUDA_COPY_MAX"))) copy_max = parse_size(s);
  if ((s = getenv("FAKECUDA_D2H"))) d2h_mode = !strcmp(s, "zero") ? D2H_ZERO : !strcmp(s, "copy") ? D2H_COPY : D2H_AUTO;
  if ((s = getenv("FAKECUDA_TRACE")) && *s) trace_file = strcmp(s, "stderr") ? fopen(s, "a") : stderr;
  if (trace_file) setvbuf(trace_file, NULL, _IOFBF, 1 << 16);
  if ((s = getenv("FAKE_GPU_STATE")) && *s) init_state(s);
  init_faults();
}

void init_machine(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, read_environment);
}

/* UUIDs differ in their third byte, so that a short prefix names one GPU. */
void gpu_uuid(const gpu_t *g, unsigned char uuid[16]) {
  static const unsigned char base[16] = {0xfa, 0x4e, 0, 0, 0xfa, 0x4e, 0x4a, 0x4e, 0x8a, 0x4e, 0xfa, 0x4e, 0, 0, 0, 0};
  memcpy(uuid, base, 16);
  uuid[2] = (unsigned char)g->index;
}

static int named(gpu_t *const *order, const char *entry) { /* the place in `order`, or -1 */
  int found = -1;
  if (strncmp(entry, "GPU-", 4)) {
    char *end;
    long i = strtol(entry, &end, 10);
    return end != entry && i >= 0 && i < gpu_count ? (int)i : -1;
  }
  for (int i = 0; i < gpu_count; i++) {
    unsigned char u[16];
    char text[48], *t = text + sprintf(text, "GPU-");
    gpu_uuid(order[i], u);
    for (int k = 0; k < 16; k++) t += sprintf(t, "%s%02x", k == 4 || k == 6 || k == 8 || k == 10 ? "-" : "", u[k]);
    if (strncasecmp(text, entry, strlen(entry))) continue;
    if (found >= 0) return -1; /* of two */
    found = i;
  }
  return found;
}

static void choose_devices(void) {
  gpu_t *order[MAX_GPUS];
  const char *s = getenv("CUDA_DEVICE_ORDER"), *visible = getenv("CUDA_VISIBLE_DEVICES");
  const char *lost = getenv("FAKE_GPU_LOST");
  int fastest = 0;
  if (lost && *lost && access(lost, F_OK) == 0) return; /* the processes that use them already keep them */
  if (!s || strcmp(s, "PCI_BUS_ID"))
    for (int i = 1; i < gpu_count; i++)
      if (gpus[i].sms > gpus[fastest].sms) fastest = i;
  for (int i = 0, n = 1; i < gpu_count; i++) order[i == fastest ? 0 : n++] = &gpus[i];
  if (!visible) {
    memcpy(devices, order, sizeof order);
    device_count = gpu_count;
    return;
  }
  while (*visible && device_count < gpu_count) {
    char entry[64];
    size_t n = strcspn(visible, ",");
    snprintf(entry, sizeof entry, "%.*s", (int)n, visible + strspn(visible, " "));
    int at = named(order, entry);
    if (at < 0) break;
    for (int i = 0; i < device_count; i++)
      if (devices[i] == order[at]) {
        device_count = 0;
        return;
      }
    devices[device_count++] = order[at];
    visible += n + (visible[n] == ',');
  }
}

void init_cuda(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  init_machine();
  pthread_once(&once, choose_devices);
}

gpu_t *device(int ordinal) {
  init_cuda();
  return ordinal >= 0 && ordinal < device_count ? devices[ordinal] : &gpus[0];
}
gpu_t *current(void) { return device(current_device); }

int device_with_bus(unsigned bus) {
  init_cuda();
  for (int i = 0; i < device_count; i++)
    if (devices[i]->index + 1 == (int)bus) return i;
  return -1;
}

/* ---------------------------------------------------------------- who holds memory */

static slot_t *slot_of(int gpu) {
  if (!slots) return NULL;
  if (my_slot[gpu] && my_slot[gpu]->pid == getpid()) return my_slot[gpu];
  for (int i = 0; i < N_SLOTS; i++) {
    int32_t pid = slots[i].pid;
    if (pid && kill(pid, 0) != 0 && errno == ESRCH) { /* it died */
      slots[i].used = 0;
      __sync_bool_compare_and_swap(&slots[i].pid, pid, 0);
      pid = 0;
    }
    if (pid == 0 && __sync_bool_compare_and_swap(&slots[i].pid, 0, (int32_t)getpid())) {
      slots[i].gpu = gpu;
      slots[i].used = 0;
      return my_slot[gpu] = &slots[i];
    }
  }
  return NULL;
}

static int alive(const slot_t *s) { return s->pid && (kill(s->pid, 0) == 0 || errno != ESRCH); }

__attribute__((destructor)) static void leave(void) {
  if (trace_file) fflush(trace_file);
  for (int i = 0; i < MAX_GPUS; i++)
    if (my_slot[i] && my_slot[i]->pid == getpid()) {
      my_slot[i]->used = 0;
      my_slot[i]->pid = 0;
    }
}

void use_gpu(gpu_t *g) {
  g->has_context = 1;
  slot_of(g->index);
}

void charge(gpu_t *g, int64_t bytes) {
  g->used += (uint64_t)bytes;
  if (g->used > g->used_peak) g->used_peak = g->used;
  slot_t *s = slot_of(g->index);
  if (s) s->used = g->used;
}

int gpu_users(const gpu_t *g, user_t *users, int room) {
  int n = 0;
  LOCK;
#define ADD(pid_, used_)                                \
  do {                                                  \
    if (n < room) users[n] = (user_t){(pid_), (used_)}; \
    n++;                                                \
  } while (0)
  for (int i = 0; slots && i < N_SLOTS; i++)
    if (slots[i].gpu == g->index && alive(&slots[i])) ADD((unsigned)slots[i].pid, slots[i].used + g->overhead);
  if (!slots && g->has_context) ADD((unsigned)getpid(), g->used + g->overhead);
  for (int i = 0; i < n_others; i++)
    if (others[i].gpu == g->index) ADD(others[i].pid, others[i].used);
#undef ADD
  UNLOCK;
  return n;
}

uint64_t gpu_used(const gpu_t *g) {
  user_t users[N_SLOTS + sizeof others / sizeof *others];
  uint64_t sum = 0;
  for (int n = gpu_users(g, users, (int)(sizeof users / sizeof *users)); n-- > 0;) sum += users[n].used;
  return sum;
}

uint64_t gpu_free(gpu_t *g) {
  uint64_t used = gpu_used(g);
  return used > g->memory ? 0 : g->memory - used;
}
/* Windows and WSL lend host memory where the card's is full, and still say that nothing is free. */
int fits(gpu_t *g, uint64_t bytes) { return spills || gpu_used(g) + bytes <= g->memory; }

const char *other_process_name(unsigned pid) {
  for (int i = 0; i < n_others; i++)
    if (others[i].pid == pid) return others[i].name;
  return NULL;
}

/* What the parts of libfakecuda.so share.
 *
 * machine.c  the GPUs of the pretended machine, CUDA's choice of them, who holds their memory
 * memory.c   device memory, copies, pinned host memory
 * faults.c   what a kernel launch does: count, wait, fail
 * cudart.c, driver.c, nvml.c, cublas.c, cudnn.c, nccl.c, others.c   the libraries' entry points
 *
 * All is compiled with -fvisibility=hidden: only what is marked EXPORT can be seen from outside.
 */
#ifndef FAKEGPU_H
#define FAKEGPU_H

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define KIB (1ull << 10)
#define MIB (1ull << 20)
#define GIB (1ull << 30)
#define GRANULARITY (2 * MIB) /* of physical memory */
#define MAX_GPUS 16

/* ---------------------------------------------------------------- machine.c */

typedef struct {
  const char *profile;
  char name[256];
  int major, minor; /* compute capability */
  int sms, threads_per_sm, shared_optin, shared_per_sm;
  uint64_t memory; /* totalGlobalMem, as the runtime reports it */
  uint64_t overhead; /* what a context holds besides the program's own memory */
  int l2_bytes, bus_bits;
  int index; /* NVML's, in the order of the PCI bus */
  uint64_t used, used_peak; /* by this process, without the overhead */
  int has_context; /* this process has used the GPU */
} gpu_t;

typedef struct {
  unsigned pid;
  uint64_t used; /* with the overhead */
} user_t;

extern int gpu_count; /* of the machine */
extern gpu_t gpus[MAX_GPUS];
extern int device_count; /* visible to CUDA */
extern __thread int current_device;
extern FILE *trace_file;
extern size_t cudnn_workspace, cublaslt_workspace, nccl_memory, cudnn_version, copy_max;
extern size_t recurrent_workspace, recurrent_reserve, dropout_states; /* 0: a guess */
extern int nvml_off;
typedef enum { D2H_AUTO, D2H_ZERO, D2H_COPY } d2h_t;
extern d2h_t d2h_mode;

void init_machine(void); /* reads the environment, once */
void init_cuda(void); /* and CUDA_VISIBLE_DEVICES, at the first call of CUDA: NVML does not count */
gpu_t *device(int ordinal); /* a CUDA device; the machine's first GPU where there is no such device */
gpu_t *current(void);
int device_with_bus(unsigned bus); /* the ordinal, or -1 */
void gpu_uuid(const gpu_t *g, unsigned char uuid[16]);

void use_gpu(gpu_t *g); /* this process has a context there */
void charge(gpu_t *g, int64_t bytes);
uint64_t gpu_used(const gpu_t *g); /* by everyone, overheads included */
uint64_t gpu_free(gpu_t *g);
int fits(gpu_t *g, uint64_t bytes);
int gpu_users(const gpu_t *g, user_t *users, int room); /* how many there are; fills at most `room` */
const char *other_process_name(unsigned pid); /* of FAKE_GPU_OTHERS, else NULL */

uint64_t parse_size(const char *text);
void trace(const char *format, ...) __attribute__((format(printf, 1, 2)));
extern pthread_mutex_t lock; /* recursive: over all of the state */
#define LOCK pthread_mutex_lock(&lock)
#define UNLOCK pthread_mutex_unlock(&lock)

/* ---------------------------------------------------------------- memory.c */

typedef struct {
  uintptr_t start;
  uint64_t size, physical;
  int device; /* ordinal */
  gpu_t *gpu;
  int reserved; /* 1: an address range without memory (cuMemAddressReserve) */
} segment_t;

int is_device_pointer(const void *p);
segment_t *segment_reserve(uint64_t size, int reserved);
segment_t *segment_find(const void *p);
void segment_free(segment_t *s);
cudaError_t device_malloc(void **p, size_t size);
cudaError_t device_free(void *p);
void copy(void *to, const void *from, size_t size);
void fill(void *p, int value, size_t size);
void forget_host_writes(void); /* a kernel ran: device bytes are unknown from here on */
cudaError_t host_malloc(void **p, size_t size);
void host_free(void *p);
void host_register(void *p, size_t size);
int host_find(const void *p, int remove);

/* ---------------------------------------------------------------- faults.c */

void init_faults(void);
int enter(void); /* 0, or the error that every call returns from now on */
int poisoned(void); /* the same, but not what only happened a moment ago */
int kernel_started(void); /* 0 or an error */
int synchronize(void);
/* What a call does first that needs a context. */
#define ENTER()               \
  do {                        \
    int error_ = enter();     \
    if (error_) return error_; \
  } while (0)

/* ---------------------------------------------------------------- cudart.c */

cudaError_t fail(cudaError_t error); /* for cudaGetLastError */
void forget_error(void);
typedef enum { RUNTIME_NAME, DRIVER_NAME, TEXT } error_part_t;
const char *error_part(int error, error_part_t part);
cudaError_t launch(const void *kernel, dim3 grid, dim3 block, size_t shared);
int occupancy(int block_size, size_t shared);
int device_attribute(int attribute, int ordinal);
int built_architecture(const gpu_t *g); /* that of the kernels which would run there, 0 if there are none */
void *driver_entry_point(const char *name);
void *handle(void); /* an opaque object: 256 zero bytes */

#endif

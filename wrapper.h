/* The C face of src/autograd/shim.cpp. It is included there and read by bindgen in
 * build.rs, so the two sides cannot disagree.
 *
 * A function that can fail returns an error text, which the caller frees with
 * mpi4tch_free, or NULL. No C++ exception leaves these functions, and no Rust
 * panic may leave the callbacks. */
#ifndef MPI4TCH_WRAPPER_H
#define MPI4TCH_WRAPPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* An at::Tensor *, as tch's Tensor::as_ptr gives it. */
typedef void *mpi4tch_tensor;

/* What a collective asks of a tensor, in one call instead of ten. */
typedef struct {
  const void *data;     /* first element; NULL if it has none or none that MPI could read */
  const int64_t *sizes; /* lives as long as the tensor and its shape */
  size_t dim;
  int64_t numel;
  bool defined;    /* whether there is a tensor; if not, all else is zero */
  int32_t kind;    /* c10::ScalarType */
  bool strided;    /* not sparse, quantized or otherwise without plain storage */
  bool cpu;        /* in host memory */
  bool contiguous; /* elements in memory as MPI sends them: dense, no lazy conjugate or negation */
  bool requires_grad; /* and gradients are being recorded */
} mpi4tch_metadata;

mpi4tch_metadata mpi4tch_look(const void *tensor);

/* How often it was changed in place. */
int64_t mpi4tch_version(const void *tensor);

/* The name of its device, "cuda:0", for mpi4tch_free. */
char *mpi4tch_device(const void *tensor);

/* A new contiguous CPU tensor of undefined content, below torch's dispatcher. */
char *mpi4tch_empty(const int64_t *sizes, size_t dim, int32_t kind, mpi4tch_tensor *result,
                    void **data);

/* What a pullback may read, valid during its call. `cotangents` has one tensor per output, dense,
 * and zeros where no cotangent came; the callee owns these tensors and the saved ones. Where a
 * saved tensor could not be had, `error` says why, and there are none. It writes one tensor per
 * input to `gradients`, NULL for none; the caller owns these. */
typedef struct {
  mpi4tch_tensor *cotangents;
  size_t outputs;
  mpi4tch_tensor *saved;
  size_t saved_count;
  const char *error;
  mpi4tch_tensor *gradients;
  size_t inputs;
} mpi4tch_backward;

/* A boxed Rust closure. `call` returns an error text made by mpi4tch_text, or NULL. */
typedef struct {
  void *state;
  char *(*call)(void *state, const mpi4tch_backward *backward);
  void (*drop)(void *state);
} mpi4tch_pullback;

/* Makes `outputs`, fresh tensors without history, the outputs of a new node of the autograd graph
 * over `inputs`. `saved` are kept for the pullback as torch keeps them: without reference cycles
 * and guarded by their version counters. The pullback is owned from the call on, also on error. */
char *mpi4tch_record(const char *name, mpi4tch_pullback pullback, const mpi4tch_tensor *inputs,
                     size_t input_count, const mpi4tch_tensor *outputs, size_t output_count,
                     const mpi4tch_tensor *saved, size_t saved_count);

/* Whether torch's rules allow a change of the tensor in place: an error text if not. `data` is
 * where to write, or NULL; `view` says whether it is a view, which shares its base's history. */
char *mpi4tch_check_in_place(const void *tensor, void **data, bool *view);

/* After a change of the tensor's content in place: bumps its version counter and, with a pullback,
 * lets its history go on from a new node over what it was. The pullback is owned from the call on,
 * also on error. */
char *mpi4tch_record_in_place(const char *name, const mpi4tch_pullback *pullback,
                              const void *tensor);

/* torch::autograd::grad: the gradients of `inputs`, NULL where one is unrelated to the outputs. */
char *mpi4tch_grad(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                   size_t output_count, const mpi4tch_tensor *inputs, size_t input_count,
                   bool retain_graph, bool create_graph, mpi4tch_tensor *gradients);

/* torch::autograd::backward: adds to the gradients of all leaves that the outputs depend on. */
char *mpi4tch_backward_pass(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                            size_t output_count, bool retain_graph, bool create_graph);

/* A leaf's gradient, which the leaf then has no more; NULL if it has none. */
mpi4tch_tensor mpi4tch_take_grad(const void *leaf);

/* The backward pass that the calling thread is in: a number of its own, or -1. */
int32_t mpi4tch_graph_task(void);

/* A tensor of the same memory, which nothing that is done to the other takes from it: until
 * mpi4tch_unpin, the memory cannot be resized. `storage` tells memories apart;
 * `resizable` is what it was before. */
char *mpi4tch_pin(const void *tensor, mpi4tch_tensor *result, const void **storage,
                  bool *resizable);
void mpi4tch_unpin(const void *tensor);

/* A view of all of the tensor, to be given a history of its own. */
char *mpi4tch_alias(const void *tensor, mpi4tch_tensor *result);

/* Whether both are one tensor, and not only equal or of the same memory. */
bool mpi4tch_is_same(const void *a, const void *b);

/* Whether operations are being recorded; within a pullback: whether create_graph was asked for. */
bool mpi4tch_grad_enabled(void);

/* A copy of a text that mpi4tch_free can free. */
char *mpi4tch_text(const char *text, size_t length);
void mpi4tch_free(char *text);

#ifdef __cplusplus
}
#endif

#endif

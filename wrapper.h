/* The C interface of the C++ files in src/autograd/. It is included there and read by bindgen in
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

/* A device as c10::Device has it: its type, which is 0 for the CPU, and its number. */
typedef struct {
  int8_t type;
  int8_t index;
} mpi4tch_device;

/* The properties of a tensor that every call needs, read in one call instead of ten. */
typedef struct {
  const void *data;     /* first element, in the memory of its device; NULL if it has none */
  const int64_t *sizes; /* lives as long as the tensor and its shape */
  size_t dim;
  int64_t numel;
  bool defined; /* whether the tensor is defined; if not, all else is zero */
  int32_t kind; /* c10::ScalarType */
  bool strided; /* not sparse, quantized or nested; if not, all but defined and kind is zero */
  mpi4tch_device device;
  bool contiguous; /* elements in memory as MPI sends them: dense, no lazy conjugate or negation */
  bool requires_grad; /* and operations are being recorded */
} mpi4tch_metadata;

mpi4tch_metadata mpi4tch_look(const void *tensor);

/* A view of a strided tensor with these extents and strides, whose first element is that of this
 * number of the tensor. It has no history, and a version counter of its own. */
char *mpi4tch_view(const void *tensor, int64_t start, const int64_t *sizes, const int64_t *strides,
                   size_t dim, mpi4tch_tensor *result);

/* Its version counter: how often it was changed in place; 0 if it has none. */
int64_t mpi4tch_version(const void *tensor);

/* A new contiguous CPU tensor with undefined content, made without torch's dispatcher, which would
 * take longer. A large one takes the memory of one that was freed. */
char *mpi4tch_empty(const int64_t *sizes, size_t dim, int32_t kind, mpi4tch_tensor *result,
                    void **data);

/* Whether libtorch has the interfaces of the device that the functions below need. */
bool mpi4tch_device_is_reached(mpi4tch_device device);

/* The name of the device, "cuda:0", to be freed with mpi4tch_free. */
char *mpi4tch_device_name(mpi4tch_device device);

/* A new contiguous tensor with undefined content: on the device, or near it, that is, in pinned
 * host memory, which the device can copy while the host goes on. */
char *mpi4tch_empty_on(mpi4tch_device device, const int64_t *sizes, size_t dim, int32_t kind,
                       mpi4tch_tensor *result, void **data);
char *mpi4tch_empty_near(mpi4tch_device device, const int64_t *sizes, size_t dim, int32_t kind,
                         mpi4tch_tensor *result, void **data);

/* Copies a tensor on a device to one near it, or back, on the current stream of the device. The
 * host need not wait for the copy. */
char *mpi4tch_queue_copy(const void *from, const void *to);

/* Further work that is put in the current stream of the tensors' device, and of which autograd
 * knows nothing: `from` is added to `to`, or `to` is filled with zeros. */
char *mpi4tch_queue_add(const void *from, const void *to);
char *mpi4tch_queue_zeros(const void *to);

/* Lets the current stream of its device use the tensor's memory, which is not given to another
 * tensor before the stream has done what it has been given so far. */
char *mpi4tch_record_use(const void *tensor);

/* An event that passes when all has been done that the current stream of the device has been given
 * so far; to be freed with mpi4tch_drop_event. */
char *mpi4tch_record_event(mpi4tch_device device, void **event);
char *mpi4tch_has_passed(const void *event, bool *passed);
char *mpi4tch_wait_for_event(const void *event);
void mpi4tch_drop_event(void *event);

/* Makes the current stream of the device wait for the event. */
char *mpi4tch_queue_wait(mpi4tch_device device, const void *event);

/* Makes this the current device of its type on this thread. `before` is set to the one that was it.
 */
char *mpi4tch_exchange_device(mpi4tch_device device, mpi4tch_device *before);

/* The arguments of a pullback, valid during its call. `cotangents` has one dense tensor per output,
 * zeros if libtorch has no cotangent for it. The pullback owns these tensors and the saved ones. If
 * a saved tensor could not be unpacked, `error` says why and `saved_count` is 0; otherwise `error`
 * is NULL. The pullback writes one tensor per input to `gradients`, or NULL; its caller owns
 * these. */
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

/* Makes `outputs`, new tensors without history, the outputs of a new node of the autograd graph
 * with these `inputs`. The node keeps `saved` for the pullback as torch does: without reference
 * cycles, and guarded by their version counters. The shim owns the pullback from the call on, also
 * if it fails. */
char *mpi4tch_record(const char *name, mpi4tch_pullback pullback, const mpi4tch_tensor *inputs,
                     size_t input_count, const mpi4tch_tensor *outputs, size_t output_count,
                     const mpi4tch_tensor *saved, size_t saved_count);

/* Returns an error text if torch's rules forbid a change of the tensor in place. `data` is set to
 * the first element, in the memory of its device, or to NULL if the tensor is not strided; `view`
 * tells whether the tensor is a view, which shares its base's history. */
char *mpi4tch_check_in_place(const void *tensor, void **data, bool *view);

/* To be called after a change of the tensor's content in place. Bumps its version counter and, with
 * a pullback, makes the tensor the output of a new node whose input is the tensor before the
 * change. The shim owns the pullback from the call on, also if it fails. */
char *mpi4tch_record_in_place(const char *name, const mpi4tch_pullback *pullback,
                              const void *tensor);

/* torch::autograd::grad: the gradients of `inputs`, NULL where one is unrelated to the outputs. */
char *mpi4tch_grad(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                   size_t output_count, const mpi4tch_tensor *inputs, size_t input_count,
                   bool retain_graph, bool create_graph, mpi4tch_tensor *gradients);

/* torch::autograd::backward: adds to the gradients of all leaves that the outputs depend on. */
char *mpi4tch_backward_pass(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                            size_t output_count, bool retain_graph, bool create_graph);

/* Makes backward passes add to the `grad` of a tensor that is no leaf, as torch's retain_grad does,
 * but without the gradient's own graph, which may hold the tensor. */
char *mpi4tch_retain_grad(const void *tensor);

/* Removes a leaf's gradient and returns it; NULL if it has none. */
mpi4tch_tensor mpi4tch_take_grad(const void *leaf);

/* Makes this the gradient of a leaf; NULL removes it. The tensor is of the leaf's kind and shape.
 */
void mpi4tch_set_grad(const void *leaf, const void *gradient);

/* A boxed Rust closure for a leaf's hook. `call` returns an error text made by mpi4tch_text, or
 * NULL. */
typedef struct {
  void *state;
  char *(*call)(void *state);
  void (*drop)(void *state);
} mpi4tch_hook;

/* How many references there are to a tensor object, and how many tensor objects to its storage; 0
 * if it has none. */
void mpi4tch_owners(const void *tensor, size_t *of_tensor, size_t *of_storage);

/* Has the hook called whenever libtorch has added to the leaf's gradient; its error is that of the
 * backward pass. A leaf has room for one hook: if there is another one, `occupied` is set, and
 * nothing is done. The shim owns the hook from the call on, also if it fails. */
char *mpi4tch_add_hook(const void *leaf, mpi4tch_hook hook, bool *occupied);
bool mpi4tch_has_hook(const void *leaf);

/* Removes the hook with this state from the leaf, if the leaf still has it. The hook may be running
 * on another thread; it is dropped after that. */
void mpi4tch_remove_hook(const void *leaf, const void *state);

/* The number of the backward pass that the calling thread is in (libtorch's graph task), or -1. */
int32_t mpi4tch_graph_task(void);

/* Until mpi4tch_leave_pass on the same thread, backward passes that this thread begins have this
 * number: mpi4tch_current_pass returns it in their pullbacks, on whatever thread libtorch runs
 * them, and 0 in others. */
void *mpi4tch_enter_pass(uint64_t number);
void mpi4tch_leave_pass(void *entered);
uint64_t mpi4tch_current_pass(void);

/* A number that only the calling thread has, and that of the thread which began the outermost of
 * the backward passes that the calling thread is in: 0 if it is in none, or if that was begun by
 * another function than those here. */
uintptr_t mpi4tch_this_thread(void);
uintptr_t mpi4tch_thread_of_pass(void);

/* Whether the running backward pass, with those around it, adds to the gradients of all leaves; not
 * if it computes the gradients of given tensors only. */
bool mpi4tch_accumulates(void);

/* Sets `found` to whether the graph of `outputs` has leaves that are not reached by way of `inputs`
 * only. */
char *mpi4tch_has_other_leaves(const mpi4tch_tensor *outputs, size_t output_count,
                               const mpi4tch_tensor *inputs, size_t input_count, bool *found);

/* The default generators of random numbers: that of the CPU, and after it those of the other
 * devices, if there are any. */
size_t mpi4tch_generator_count(void);

/* The state of a generator; and back to such a state. */
char *mpi4tch_generator(size_t place, mpi4tch_tensor *result);
char *mpi4tch_set_generator(size_t place, const void *state);

/* A tensor that shares the memory of this one and keeps it, whatever is done to this one: until
 * mpi4tch_unpin, the storage cannot be resized. `storage` is set to the address of the storage, and
 * `resizable` to whether it could be resized before; both are left as they are if there is none. */
char *mpi4tch_pin(const void *tensor, mpi4tch_tensor *result, const void **storage,
                  bool *resizable);
void mpi4tch_unpin(const void *tensor);

/* A view of all of the tensor, without history, so that mpi4tch_record can give it one. */
char *mpi4tch_alias(const void *tensor, mpi4tch_tensor *result);

/* Whether both are the same tensor object, and not only equal or of the same memory. */
bool mpi4tch_is_same(const void *a, const void *b);

/* Whether several elements of a dense tensor are in the same place in memory. */
bool mpi4tch_overlaps(const void *tensor);

/* Whether both have the same storage. */
bool mpi4tch_shares_memory(const void *a, const void *b);

/* Whether operations are being recorded; in a pullback: whether the pass has create_graph. */
bool mpi4tch_grad_enabled(void);

/* The type of a value that an operation of libtorch's dispatcher takes or returns. */
typedef enum {
  MPI4TCH_NONE,
  MPI4TCH_TENSOR,
  MPI4TCH_TENSORS,
  MPI4TCH_INTEGER,
  MPI4TCH_INTEGERS,
  MPI4TCH_TEXT,
} mpi4tch_type;

/* Such a value. The receiver owns the tensors; lists and texts are valid during the call. */
typedef struct {
  mpi4tch_type type;
  int64_t integer;
  mpi4tch_tensor tensor;
  const void *items; /* mpi4tch_tensor, int64_t, or char in UTF-8 */
  size_t length;
} mpi4tch_value;

/* An operation in Rust. `call` returns an error text made by mpi4tch_text, or sets the results,
 * each of which is a tensor or an integer, and returns NULL. */
typedef struct {
  const void *state;
  char *(*call)(const void *state, const mpi4tch_value *arguments, size_t argument_count,
                mpi4tch_value *results, size_t result_count);
} mpi4tch_operation;

/* Whether libtorch's dispatcher has a function for the operation of a schema as
 * "mpi4tch::rank(int? communicator) -> int". */
char *mpi4tch_is_registered(const char *schema, bool *found);

/* Registers an operation, which has no function yet. It is called as long as the program runs. */
char *mpi4tch_register(const char *schema, mpi4tch_operation operation);

/* A copy of a text, to be freed with mpi4tch_free. */
char *mpi4tch_text(const char *text, size_t length);
void mpi4tch_free(char *text);

#ifdef __cplusplus
}
#endif

#endif

// An autograd node that owns a Rust pullback, and functions of libtorch that tch does not offer.
// The Rust files in this folder call all C++ through wrapper.h.

#include "../../wrapper.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include <ATen/EmptyTensor.h>
#include <ATen/MemoryOverlap.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/functions/accumulate_grad.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/graph_task.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/headeronly/version.h>

#include "border.h"
#include "memory.h"

namespace {

using mpi4tch::give;
using mpi4tch::guarded;
using mpi4tch::take;
using mpi4tch::tensor;
using mpi4tch::tensors;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Nodes are held by std::shared_ptr, with a deleter that frees long chains of them without
// recursion; from libtorch 2.13 on by c10::intrusive_ptr, which needs no such deleter.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
template <typename Node, typename... Args>
auto make_node(Args &&...args) {
  return c10::make_intrusive<Node>(std::forward<Args>(args)...);
}
#else
template <typename Node, typename... Args>
auto make_node(Args &&...args) {
  return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...), torch::autograd::deleteNode);
}
#endif

// Calls the Rust closure, and drops it with the last reference to the node.
class Pullback {
 public:
  explicit Pullback(mpi4tch_pullback rust) : rust_(rust) {}
  Pullback(const Pullback &) = delete;
  Pullback &operator=(const Pullback &) = delete;
  ~Pullback() { rust_.drop(rust_.state); }

  // `why_not` is the error because of which there are no saved tensors, or NULL.
  variable_list operator()(variable_list cotangents, variable_list saved, const char *why_not,
                           size_t inputs) const {
    std::vector<mpi4tch_tensor> given, kept, gradients(inputs, nullptr);
    for (auto &cotangent : cotangents) given.push_back(give(std::move(cotangent)));
    for (auto &value : saved) kept.push_back(give(std::move(value)));
    const mpi4tch_backward backward{given.data(), given.size(),     kept.data(),     kept.size(),
                                    why_not,      gradients.data(), gradients.size()};
    char *error = rust_.call(rust_.state, &backward);
    variable_list result;
    for (mpi4tch_tensor gradient : gradients) result.push_back(take(gradient));
    if (error != nullptr) {
      const std::unique_ptr<char, decltype(&mpi4tch_free)> text(error, mpi4tch_free);
      throw std::runtime_error(text.get());
    }
    return result;
  }

 private:
  mpi4tch_pullback rust_;
};

class Communication final : public torch::autograd::Node {
 public:
  Communication(std::string name, std::unique_ptr<Pullback> pullback)
      : name_(std::move(name)), pullback_(std::move(pullback)) {}

  void save(const at::Tensor &value, bool is_output) { saved_.emplace_back(value, is_output); }

  std::string name() const override { return name_; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto &value : saved_) value.reset_data();
  }

  // A communication must not be skipped because this rank's cotangent is undefined or a saved
  // tensor cannot be unpacked: other ranks wait for it. So undefined cotangents become zeros, and
  // the error of a saved tensor is passed to the pullback, which tells the other ranks.
  variable_list apply(variable_list &&cotangents) override {
    variable_list saved;
    const std::unique_ptr<char, decltype(&mpi4tch_free)> error(
        guarded([&] {
          const std::lock_guard<std::mutex> lock(mutex_);
          for (auto &value : saved_) saved.push_back(value.unpack(getptr()));
        }),
        mpi4tch_free);
    if (error != nullptr) saved.clear();
    for (size_t i = 0; i < cotangents.size(); ++i) {
      if (!cotangents[i].defined()) {
        cotangents[i] = input_metadata(i).zeros_like();
      } else if (cotangents[i].layout() != at::kStrided) {
        cotangents[i] = cotangents[i].to_dense();
      }
    }
    return (*pullback_)(std::move(cotangents), std::move(saved), error.get(), num_outputs());
  }

 private:
  std::string name_;
  std::unique_ptr<Pullback> pullback_;
  std::vector<SavedVariable> saved_;
};

// A Rust closure that a leaf's hook calls, dropped with the last reference to it.
class Closure {
 public:
  explicit Closure(mpi4tch_hook rust) : rust_(rust) {}
  Closure(const Closure &) = delete;
  Closure &operator=(const Closure &) = delete;
  ~Closure() { rust_.drop(rust_.state); }

  char *operator()() const { return rust_.call(rust_.state); }
  const void *state() const { return rust_.state; }

 private:
  mpi4tch_hook rust_;
};

// Calls the Rust closure after libtorch has added to a leaf's gradient. libtorch may be in the hook
// on one thread while another removes it, so the hook itself stays with the leaf, without a
// closure.
class LeafHook final : public torch::autograd::PostAccumulateGradHook {
 public:
  void operator()(const at::Tensor & /*leaf*/) override {
    const auto closure = get();
    char *error = closure == nullptr ? nullptr : (*closure)();
    if (error == nullptr) return;
    const std::unique_ptr<char, decltype(&mpi4tch_free)> text(error, mpi4tch_free);
    throw std::runtime_error(text.get());
  }

  std::shared_ptr<const Closure> get() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return closure_;
  }

  // Returns the closure that was there, to be dropped without the lock.
  std::shared_ptr<const Closure> set(std::shared_ptr<const Closure> closure) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::swap(closure_, closure);
    return closure;
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const Closure> closure_;
};

// Something that each thread has one of, to tell it by.
uintptr_t this_thread() {
  static thread_local char own;
  return reinterpret_cast<uintptr_t>(&own);
}

// What is known of a pass, with those around it. libtorch hands a thread's debug information on to
// the threads on which it runs the thread's backward passes (at::ThreadLocalState).
struct Pass final : public c10::DebugInfoBase {
  Pass(uint64_t number, bool accumulates, uintptr_t thread)
      : number(number), accumulates(accumulates), thread(thread) {}
  const uint64_t number;
  const bool accumulates;
  // The thread that began the outermost of them; 0 if that was not begun by this crate.
  const uintptr_t thread;
};

constexpr std::string_view kPassName = "mpi4tch pass";

// The kind of debug information that a pass is: a name with libtorch 2.13, and with 2.11 one of a
// list, whose kinds for tests libtorch itself does not use.
template <typename Kind>
constexpr Kind pass_kind() {
  if constexpr (std::is_enum_v<Kind>) {
    return Kind::TEST_INFO_2;
  } else {
    return Kind(&kPassName);
  }
}

constexpr auto kPass = pass_kind<c10::DebugInfoKind>();

const Pass &current_pass() {
  static const Pass none(0, true, 0);
  const auto *pass = dynamic_cast<const Pass *>(c10::ThreadLocalDebugInfo::get(kPass));
  return pass == nullptr ? none : *pass;
}

// A pass within the current one, begun on this thread.
std::shared_ptr<Pass> begin_pass(uint64_t number, bool accumulates) {
  const bool is_outermost = torch::autograd::get_current_graph_task_id() == -1;
  const uintptr_t thread = is_outermost ? this_thread() : current_pass().thread;
  return std::make_shared<Pass>(number, accumulates, thread);
}

// The hook of a leaf, of this crate or another; NULL if it has none.
torch::autograd::PostAccumulateGradHook *hook_of(const at::Tensor &leaf) {
  const auto *meta = torch::autograd::impl::get_autograd_meta(leaf);
  return meta == nullptr ? nullptr : meta->post_acc_grad_hooks_.get();
}

}  // namespace

// Does not throw: all that only a defined, strided tensor has is read after the checks for these.
mpi4tch_metadata mpi4tch_look(const void *pointer) {
  const at::Tensor &t = tensor(pointer);
  mpi4tch_metadata metadata{};
  metadata.defined = t.defined();
  if (!metadata.defined) return metadata;
  metadata.kind = static_cast<int32_t>(t.scalar_type());
  metadata.strided = t.layout() == at::kStrided && !t.is_quantized() && !t.is_nested();
  if (!metadata.strided) return metadata;
  metadata.sizes = t.sizes().data();
  metadata.dim = t.sizes().size();
  metadata.numel = t.numel();
  const c10::Device device = t.device();
  metadata.device = {static_cast<int8_t>(device.type()),
                     device.is_cpu() ? int8_t{0} : device.index()};
  metadata.contiguous = t.is_contiguous() && !t.is_conj() && !t.is_neg() && !t._is_zerotensor();
  metadata.requires_grad = c10::GradMode::is_enabled() && t.requires_grad();
  bool has_memory = t.has_storage() && !t._is_zerotensor();
  // Tensors on the device `meta`, and fake ones, have storage without memory.
  if (has_memory && !device.is_cpu()) has_memory = t.storage().data() != nullptr;
  metadata.data = has_memory ? t.const_data_ptr() : nullptr;
  return metadata;
}

int64_t mpi4tch_version(const void *pointer) {
  const at::Tensor &t = tensor(pointer);
  return t.defined() && !t.is_inference() ? static_cast<int64_t>(t._version()) : 0;
}

char *mpi4tch_empty(const int64_t *sizes, size_t dim, int32_t kind, mpi4tch_tensor *result,
                    void **data) {
  return guarded([&] {
    const at::IntArrayRef shape(sizes, dim);
    const auto type = static_cast<at::ScalarType>(kind);
    const size_t bytes = at::detail::computeStorageNbytesContiguous(shape, c10::elementSize(type));
    at::Tensor t(bytes < mpi4tch::LARGE
                     ? at::detail::empty_cpu(shape, type)
                     : at::detail::empty_generic(shape, mpi4tch::allocator(),
                                                 c10::DispatchKeySet(c10::DispatchKey::CPU), type,
                                                 std::nullopt));
    *data = t.mutable_data_ptr();
    *result = give(std::move(t));
  });
}

char *mpi4tch_record(const char *name, mpi4tch_pullback pullback, const mpi4tch_tensor *inputs,
                     size_t input_count, const mpi4tch_tensor *outputs, size_t output_count,
                     const mpi4tch_tensor *saved, size_t saved_count) {
  return guarded([&] {
    auto owned = std::make_unique<Pullback>(pullback);
    const auto node = make_node<Communication>(name, std::move(owned));
    node->set_next_edges(torch::autograd::collect_next_edges(tensors(inputs, input_count)));
    torch::autograd::set_history(tensors(outputs, output_count), node);
    for (size_t i = 0; i < saved_count; ++i) {
      bool is_output = false;
      for (size_t j = 0; j < output_count; ++j) {
        is_output |= tensor(saved[i]).is_same(tensor(outputs[j]));
      }
      node->save(tensor(saved[i]), is_output);
    }
  });
}

char *mpi4tch_check_in_place(const void *pointer, void **data, bool *view) {
  return guarded([&] {
    const at::Tensor &t = tensor(pointer);
    TORCH_CHECK(t.defined(), "the tensor is undefined");
    // torch itself would refuse only an operation of its own on it, after the MPI call.
    TORCH_CHECK(!t._is_zerotensor(),
                "torch keeps these zeros without storage; clone the tensor to change it");
    torch::autograd::check_inplace(t, torch::autograd::compute_requires_grad(t));
    at::assert_no_internal_overlap(t);
    const bool plain = t.layout() == at::kStrided && t.has_storage() && t.storage();
    *data = plain ? t.mutable_data_ptr() : nullptr;
    *view = t.is_view();
  });
}

char *mpi4tch_record_in_place(const char *name, const mpi4tch_pullback *pullback,
                              const void *pointer) {
  return guarded([&] {
    const at::Tensor &t = tensor(pointer);
    if (pullback == nullptr) {
      torch::autograd::increment_version(t);
      return;
    }
    auto owned = std::make_unique<Pullback>(*pullback);
    const auto node = make_node<Communication>(name, std::move(owned));
    node->set_next_edges(torch::autograd::collect_next_edges(t));
    torch::autograd::increment_version(t);
    torch::autograd::rebase_history(t, node);
  });
}

char *mpi4tch_grad(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                   size_t output_count, const mpi4tch_tensor *inputs, size_t input_count,
                   bool retain_graph, bool create_graph, mpi4tch_tensor *gradients) {
  return guarded([&] {
    const c10::DebugInfoGuard pass(kPass, begin_pass(current_pass().number, false));
    auto result = torch::autograd::grad(
        tensors(outputs, output_count), tensors(inputs, input_count),
        tensors(cotangents, output_count), retain_graph, create_graph, /*allow_unused=*/true);
    for (size_t i = 0; i < input_count; ++i) gradients[i] = give(std::move(result[i]));
  });
}

char *mpi4tch_backward_pass(const mpi4tch_tensor *outputs, const mpi4tch_tensor *cotangents,
                            size_t output_count, bool retain_graph, bool create_graph) {
  return guarded([&] {
    const Pass &outer = current_pass();
    const c10::DebugInfoGuard pass(kPass, begin_pass(outer.number, outer.accumulates));
    torch::autograd::backward(tensors(outputs, output_count), tensors(cotangents, output_count),
                              retain_graph, create_graph);
  });
}

char *mpi4tch_retain_grad(const void *pointer) {
  return guarded([&] {
    const at::Tensor &t = tensor(pointer);
    const c10::weak_intrusive_ptr<c10::TensorImpl> weak(t.getIntrusivePtr());
    t.register_hook([weak](const at::Tensor &cotangent) {
      const auto strong = weak.lock();
      if (!strong || !cotangent.defined()) return;
      const at::NoGradGuard guard;
      const bool dense = cotangent.layout() == at::kStrided;
      const at::Tensor own = dense ? cotangent.detach() : cotangent.detach().to_dense();
      at::Tensor &gradient = at::Tensor(strong).mutable_grad();
      gradient = gradient.defined() ? gradient.add(own) : own.clone(at::MemoryFormat::Contiguous);
    });
  });
}

mpi4tch_tensor mpi4tch_take_grad(const void *pointer) {
  at::Tensor &gradient = tensor(pointer).mutable_grad();
  return give(std::move(gradient));
}

void mpi4tch_set_grad(const void *leaf, const void *gradient) {
  tensor(leaf).mutable_grad() = gradient == nullptr ? at::Tensor() : tensor(gradient);
}

void mpi4tch_owners(const void *pointer, size_t *of_tensor, size_t *of_storage) {
  const at::Tensor &t = tensor(pointer);
  *of_tensor = t.defined() ? t.use_count() : 0;
  *of_storage = t.defined() && t.has_storage() ? t.storage().use_count() : 0;
}

char *mpi4tch_add_hook(const void *leaf, mpi4tch_hook hook, bool *occupied) {
  return guarded([&] {
    auto closure = std::make_shared<const Closure>(hook);
    *occupied = mpi4tch_has_hook(leaf);
    if (*occupied) return;
    if (hook_of(tensor(leaf)) == nullptr) {
      torch::autograd::impl::set_post_acc_grad_hooks(tensor(leaf), std::make_unique<LeafHook>());
    }
    dynamic_cast<LeafHook &>(*hook_of(tensor(leaf))).set(std::move(closure));
  });
}

bool mpi4tch_overlaps(const void *pointer) {
  return at::has_internal_overlap(tensor(pointer)) == at::MemOverlap::Yes;
}

bool mpi4tch_has_hook(const void *leaf) {
  const auto *hook = hook_of(tensor(leaf));
  const auto *own = dynamic_cast<const LeafHook *>(hook);
  return own == nullptr ? hook != nullptr : own->get() != nullptr;
}

void mpi4tch_remove_hook(const void *leaf, const void *state) {
  auto *hook = dynamic_cast<LeafHook *>(hook_of(tensor(leaf)));
  if (hook == nullptr) return;
  const auto closure = hook->get();
  if (closure != nullptr && closure->state() == state) hook->set(nullptr);
}

int32_t mpi4tch_graph_task(void) { return torch::autograd::get_current_graph_task_id(); }

void *mpi4tch_enter_pass(uint64_t number) {
  return new c10::DebugInfoGuard(kPass, begin_pass(number, current_pass().accumulates));
}

void mpi4tch_leave_pass(void *entered) { delete static_cast<c10::DebugInfoGuard *>(entered); }

uint64_t mpi4tch_current_pass(void) { return current_pass().number; }

uintptr_t mpi4tch_this_thread(void) { return this_thread(); }

uintptr_t mpi4tch_thread_of_pass(void) { return current_pass().thread; }

bool mpi4tch_accumulates(void) {
  // libtorch knows it only on the thread that began the pass.
  return torch::autograd::Engine::get_default_engine().is_checkpoint_valid() &&
         current_pass().accumulates;
}

char *mpi4tch_has_other_leaves(const mpi4tch_tensor *outputs, size_t output_count,
                               const mpi4tch_tensor *inputs, size_t input_count, bool *found) {
  return guarded([&] {
    // A leaf does not keep its node: without this, another could be made at the same address.
    torch::autograd::edge_list kept;
    const auto node_of = [&kept](const at::Tensor &t) -> torch::autograd::Node * {
      if (!t.requires_grad()) return nullptr;
      return kept.emplace_back(torch::autograd::impl::gradient_edge(t)).function.get();
    };
    std::unordered_set<torch::autograd::Node *> seen{nullptr};
    for (const at::Tensor &input : tensors(inputs, input_count)) seen.insert(node_of(input));
    std::vector<torch::autograd::Node *> left;
    const auto reach = [&](torch::autograd::Node *node) {
      if (seen.insert(node).second) left.push_back(node);
    };
    for (const at::Tensor &output : tensors(outputs, output_count)) reach(node_of(output));
    *found = false;
    while (!left.empty() && !*found) {
      torch::autograd::Node *node = left.back();
      left.pop_back();
      *found = dynamic_cast<torch::autograd::AccumulateGrad *>(node) != nullptr;
      for (const auto &edge : node->next_edges()) reach(edge.function.get());
    }
  });
}

char *mpi4tch_pin(const void *pointer, mpi4tch_tensor *result, const void **storage,
                  bool *resizable) {
  return guarded([&] {
    at::Tensor alias = tensor(pointer).variable_data();
    if (alias.has_storage() && alias.storage()) {
      c10::StorageImpl *memory = alias.storage().unsafeGetStorageImpl();
      *storage = memory;
      *resizable = memory->resizable();
      memory->set_resizable(false);
    }
    *result = give(std::move(alias));
  });
}

void mpi4tch_unpin(const void *pointer) {
  tensor(pointer).storage().unsafeGetStorageImpl()->set_resizable(true);
}

// torch does the same for a custom function that returns one of its inputs unchanged
// (torch/csrc/autograd/custom_function.cpp).
char *mpi4tch_alias(const void *pointer, mpi4tch_tensor *result) {
  return guarded([&] {
    const at::NoGradGuard guard;
    const at::Tensor &t = tensor(pointer);
    *result = give(t.view_as(t));
  });
}

char *mpi4tch_view(const void *pointer, int64_t start, const int64_t *sizes, const int64_t *strides,
                   size_t dim, mpi4tch_tensor *result) {
  return guarded([&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    const at::Tensor &t = tensor(pointer);
    *result = give(t.as_strided(at::IntArrayRef(sizes, dim), at::IntArrayRef(strides, dim),
                                t.storage_offset() + start));
  });
}

bool mpi4tch_is_same(const void *a, const void *b) { return tensor(a).is_same(tensor(b)); }

bool mpi4tch_shares_memory(const void *a, const void *b) {
  const at::Tensor &x = tensor(a), &y = tensor(b);
  return x.has_storage() && y.has_storage() && x.is_alias_of(y);
}

bool mpi4tch_grad_enabled(void) { return c10::GradMode::is_enabled(); }

char *mpi4tch_text(const char *text, size_t length) {
  auto *copy = static_cast<char *>(std::malloc(length + 1));
  if (copy == nullptr) std::abort();
  std::memcpy(copy, text, length);
  copy[length] = '\0';
  return copy;
}

void mpi4tch_free(char *text) { std::free(text); }

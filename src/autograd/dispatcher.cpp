// Operations of libtorch's dispatcher that are carried out in Rust. TorchScript and C++ call them.

#include <algorithm>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/TensorBase.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include "border.h"

namespace {

using mpi4tch::give;
using mpi4tch::guarded;
using mpi4tch::take;

// The arguments of a call as Rust gets them. They are valid as long as this and the values of
// libtorch that they were made of.
class Arguments {
 public:
  // It delegates, so that the destructor runs if an argument cannot be added.
  explicit Arguments(c10::ArrayRef<c10::IValue> values) : Arguments(values.size()) {
    for (size_t i = 0; i < values.size(); ++i) add(values[i], tensors_[i], integers_[i]);
  }

  Arguments(const Arguments &) = delete;
  Arguments &operator=(const Arguments &) = delete;

  ~Arguments() {
    if (is_handed_over_) return;
    for (const mpi4tch_value &value : list_) take(value.tensor);
    for (const auto &list : tensors_) {
      for (mpi4tch_tensor t : list) take(t);
    }
  }

  // The receiver owns the tensors.
  const mpi4tch_value *hand_over() {
    is_handed_over_ = true;
    return list_.data();
  }

 private:
  explicit Arguments(size_t count) : tensors_(count), integers_(count) {}

  void add(const c10::IValue &value, std::vector<mpi4tch_tensor> &tensors,
           std::vector<int64_t> &integers) {
    mpi4tch_value &raw = list_.emplace_back();
    if (value.isNone()) {
      raw.type = MPI4TCH_NONE;
    } else if (value.isTensor()) {
      raw.type = MPI4TCH_TENSOR;
      raw.tensor = give(value.toTensor());
    } else if (value.isInt()) {
      raw.type = MPI4TCH_INTEGER;
      raw.integer = value.toInt();
    } else if (value.isString()) {
      raw.type = MPI4TCH_TEXT;
      raw.items = value.toStringRef().data();
      raw.length = value.toStringRef().size();
    } else if (value.isIntList()) {
      raw.type = MPI4TCH_INTEGERS;
      integers = value.toIntVector();
      raw.items = integers.data();
      raw.length = integers.size();
    } else if (value.isTensorList()) {
      raw.type = MPI4TCH_TENSORS;
      for (const at::Tensor &t : value.toTensorVector()) {
        tensors.emplace_back();
        tensors.back() = give(t);
      }
      raw.items = tensors.data();
      raw.length = tensors.size();
    } else {
      TORCH_INTERNAL_ASSERT(false, "no schema has a parameter of this type");
    }
  }

  bool is_handed_over_ = false;
  std::vector<mpi4tch_value> list_;
  std::vector<std::vector<mpi4tch_tensor>> tensors_;
  std::vector<std::vector<int64_t>> integers_;
};

// Whether it stands for other tensors, as one of Python's tracing or of vmap does.
bool is_wrapper(const at::Tensor &t) {
  constexpr c10::DispatchKeySet keys{
      c10::DispatchKey::Python, c10::DispatchKey::Functionalize, c10::DispatchKey::FuncTorchBatched,
      c10::DispatchKey::FuncTorchGradWrapper, c10::DispatchKey::Batched};
  return t.defined() && t.key_set().has_any(keys);
}

bool has_wrapper(const c10::IValue &value) {
  if (value.isTensor()) return is_wrapper(value.toTensor());
  if (!value.isTensorList()) return false;
  const std::vector<at::Tensor> list = value.toTensorVector();
  return std::any_of(list.begin(), list.end(), is_wrapper);
}

// Calls Rust with the arguments that are last on the stack, and replaces them by the results.
class Operation final : public c10::OperatorKernel {
 public:
  // `why_not` is the error of all calls, or empty.
  Operation(mpi4tch_operation rust, std::string why_not)
      : rust_(rust), why_not_(std::move(why_not)) {}

  void operator()(const c10::OperatorHandle &op, c10::DispatchKeySet /*keys*/,
                  torch::jit::Stack *stack) {
    TORCH_CHECK(why_not_.empty(), why_not_);
    // Below libtorch's autograd nothing is recorded, whatever the mode is.
    const c10::AutoGradMode mode(c10::GradMode::is_enabled() &&
                                 !at::impl::variable_excluded_from_dispatch());
    const size_t count = op.schema().arguments().size();
    for (const c10::IValue &value : torch::jit::last(*stack, count)) {
      TORCH_CHECK(!has_wrapper(value), op.schema().name(),
                  ": the tensor is of a kind that is traced or transformed; a tensor with data is "
                  "needed");
    }
    std::vector<mpi4tch_value> results(op.schema().returns().size());
    {
      Arguments arguments(torch::jit::last(*stack, count));
      char *error =
          rust_.call(rust_.state, arguments.hand_over(), count, results.data(), results.size());
      if (error != nullptr) {
        const std::unique_ptr<char, decltype(&mpi4tch_free)> text(error, mpi4tch_free);
        TORCH_CHECK(false, text.get());
      }
    }
    torch::jit::drop(*stack, count);
    for (const mpi4tch_value &result : results) {
      if (result.type == MPI4TCH_TENSOR) {
        stack->emplace_back(take(result.tensor));
      } else {
        stack->emplace_back(result.integer);
      }
    }
  }

 private:
  mpi4tch_operation rust_;
  std::string why_not_;
};

// libtorch calls the kernels of this key before its autograd: the graph node is Rust's.
constexpr auto kKey = c10::DispatchKey::CompositeImplicitAutograd;

// The operations of this copy of the crate. libtorch forgets them if the copy is unloaded.
torch::Library &library() {
  static torch::Library library(torch::Library::FRAGMENT, "mpi4tch", std::nullopt, __FILE__,
                                __LINE__);
  return library;
}

// An error text if the operation, which other code has defined, must not be called.
std::string difference(const c10::FunctionSchema &found, const c10::FunctionSchema &needed) {
  const bool conservative = found.aliasAnalysis() == c10::AliasAnalysisKind::CONSERVATIVE;
  if (found == needed && conservative) return {};
  std::ostringstream text;
  text << found.name() << ": other code has defined it, before mpi4tch::initialize, as `" << found
       << "`" << (conservative ? "" : " without alias_analysis=\"CONSERVATIVE\"")
       << "; it must be `" << needed << "` with it";
  return text.str();
}

}  // namespace

char *mpi4tch_is_registered(const char *text, bool *found) {
  return guarded([&] {
    const c10::OperatorName name = torch::schema(text).operator_name();
    const auto other = c10::Dispatcher::singleton().findSchema(name);
    *found = other && other->hasKernelForDispatchKey(kKey);
  });
}

char *mpi4tch_register(const char *text, mpi4tch_operation operation) {
  return guarded([&] {
    c10::FunctionSchema schema = torch::schema(text, c10::AliasAnalysisKind::CONSERVATIVE);
    const c10::OperatorName name = schema.operator_name();
    const auto found = c10::Dispatcher::singleton().findSchema(name);
    std::string why_not;
    if (found) {
      why_not = difference(found->schema(), schema);
    } else {
      library().def(std::move(schema));
    }
    auto kernel = torch::CppFunction::makeFromBoxedFunctor(
        std::make_unique<Operation>(operation, std::move(why_not)));
    library().impl(c10::toString(name).c_str(), torch::dispatch(kKey, std::move(kernel)));
  });
}

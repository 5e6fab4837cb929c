// The Python module: takes tensors through DLPack, chooses the instruction set and the layout, releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

#include "instruction_sets.h"
#include "parallel.h"

namespace nb = nanobind;

namespace mesascope {
namespace {

template <class T, std::size_t N>
using Array = nb::ndarray<T, nb::ndim<N>, nb::device::cpu>;
template <class T, std::size_t N>
using Optional = std::optional<Array<T, N>>;

const Table* best_table() {
  for (const InstructionSet& set : instruction_sets())
    if (set.supported) return set.table;
  throw std::logic_error("there is no build of the kernels for this processor");
}

const Table* active = best_table();

std::string instruction_set() { return InstructionSet{active, true}.name(); }

void use_instruction_set(const std::string& name) {
  for (const InstructionSet& set : instruction_sets()) {
    if (set.name() != name) continue;
    if (!set.supported) throw std::invalid_argument("instruction set: this processor does not have " + name);
    active = set.table;
    return;
  }
  throw std::invalid_argument("instruction set: " + name + " is not in this build");
}

// every instruction set of this build by its name: whether the processor has it
nb::dict known_instruction_sets() {
  nb::dict sets;
  for (const InstructionSet& set : instruction_sets()) sets[nb::str(set.name().c_str())] = set.supported;
  return sets;
}

// Heads of up to this size go one to a lane when there are enough of them to fill half a register
constexpr Index largest_in_lanes = 40;

template <class T>
const KernelSet<T>& kernels(const Sizes& size, const std::string& layout) {
  const KernelSet<T>*lanes, *columns;
  if constexpr (sizeof(T) == 4) {
    lanes = &active->float_lanes, columns = &active->float_columns;
  } else {
    lanes = &active->double_lanes, columns = &active->double_columns;
  }
  if (layout == "lanes") return *lanes;
  if (layout == "columns") return *columns;
  if (layout != "auto") throw std::invalid_argument("layout: " + layout + " is none of auto, lanes, columns");
  const bool small = size.dim <= largest_in_lanes && size.dim_v <= largest_in_lanes;
  return small && size.all_heads() >= lanes->heads_per_group / 2 ? *lanes : *columns;
}

template <class T, class U>
Operand<T> operand(const Array<U, 4>& array) {
  return {array.data(), array.stride(0), array.stride(1), array.stride(2), array.stride(3)};
}

template <class T, class U>
Operand<T> token_operand(const Optional<U, 3>& array) {
  if (!array) return {};
  return {array->data(), array->stride(0), array->stride(1), array->stride(2), 0};
}

template <class Maybe>
auto pointer(const Maybe& array) -> decltype(array->data()) {
  return array ? array->data() : nullptr;
}

template <class T>
Sizes sizes(const Array<const T, 4>& k, const Array<const T, 4>& v) {
  return {Index(k.shape(0)), Index(k.shape(1)), Index(k.shape(2)), Index(k.shape(3)), Index(v.shape(3))};
}

template <class Problem, class T>
void run(const Kernel<Problem>& kernel, const KernelSet<T>& set, const Problem& problem, int threads) {
  const Index groups = (problem.size.all_heads() + set.heads_per_group - 1) / set.heads_per_group;
  nb::gil_scoped_release released;
  run_groups(kernel, problem, groups, threads);
}

template <class T>
void linear_forward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<T, 4> o, int threads,
                    const std::string& layout) {
  LinearProblem<T> problem;
  problem.size = sizes<T>(k, v);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.o = operand<T>(o);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.linear_forward, set, problem, threads);
}

template <class T>
void linear_backward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<const T, 4> g,
                     Array<T, 4> dq, Array<T, 4> dk, Array<T, 4> dv, int threads, const std::string& layout) {
  LinearProblem<T> problem;
  problem.size = sizes<T>(k, v);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.linear_backward, set, problem, threads);
}

template <class T>
void softmax_forward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<T, 4> o,
                     Array<T, 4> normaliser, double scale, int threads) {
  SoftmaxProblem<T> problem;
  problem.size = sizes<T>(k, v), problem.scale = T(scale);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.o = operand<T>(o), problem.normaliser = operand<T>(normaliser);
  const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
  run(set.softmax_forward, set, problem, threads);
}

template <class T>
void softmax_backward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<T, 4> normaliser,
                      Array<const T, 4> g, Array<T, 4> dq, Array<T, 4> dk, Array<T, 4> dv, double scale, int threads) {
  SoftmaxProblem<T> problem;
  problem.size = sizes<T>(k, v), problem.scale = T(scale);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.normaliser = operand<T>(normaliser), problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
  run(set.softmax_backward, set, problem, threads);
}

template <class T>
MesaProblem<T> mesa_problem(const Array<const T, 4>& q, const Array<const T, 4>& k, const Array<const T, 4>& v,
                            const Array<const T, 4>& ridge, const Optional<const T, 3>& write,
                            const Optional<const T, 3>& log_forget, const Optional<const T, 4>& matrix,
                            const Optional<const T, 4>& association, bool constant, Array<T, 1>& saved) {
  MesaProblem<T> problem;
  problem.size = sizes<T>(k, v);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.ridge = operand<const T>(ridge);
  problem.write = token_operand<const T>(write), problem.log_forget = token_operand<const T>(log_forget);
  problem.constant = constant, problem.matrix = pointer(matrix), problem.association = pointer(association);
  problem.saved = saved.shape(0) > 0 ? saved.data() : nullptr;
  return problem;
}

template <class T>
void mesa_forward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<const T, 4> ridge,
                  Optional<const T, 3> write, Optional<const T, 3> log_forget, Optional<const T, 4> matrix,
                  Optional<const T, 4> association, bool constant, Array<T, 4> o, Array<T, 3> evidence,
                  Array<T, 1> saved, Optional<T, 4> final_matrix, Optional<T, 4> final_association, int threads,
                  const std::string& layout) {
  MesaProblem<T> problem = mesa_problem<T>(q, k, v, ridge, write, log_forget, matrix, association, constant, saved);
  problem.o = operand<T>(o);
  problem.evidence = {evidence.data(), evidence.stride(0), 0, evidence.stride(1), evidence.stride(2)};
  problem.final_matrix = pointer(final_matrix), problem.final_association = pointer(final_association);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.mesa_forward, set, problem, threads);
}

template <class T>
void mesa_backward(Array<const T, 4> q, Array<const T, 4> k, Array<const T, 4> v, Array<const T, 4> ridge,
                   Optional<const T, 3> write, Optional<const T, 3> log_forget, Optional<const T, 4> matrix,
                   Optional<const T, 4> association, bool constant, Array<T, 1> saved, Array<const T, 4> g, Array<T, 4> dq,
                   Array<T, 4> dk, Array<T, 4> dv, Array<T, 3> dridge, Optional<T, 3> dwrite, Optional<T, 3> penalty,
                   Optional<T, 4> dassociation, Optional<T, 4> pairs, int threads, const std::string& layout) {
  MesaProblem<T> problem = mesa_problem<T>(q, k, v, ridge, write, log_forget, matrix, association, constant, saved);
  problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  problem.dridge = dridge.data();
  problem.dwrite = token_operand<T>(dwrite), problem.penalty = token_operand<T>(penalty);
  problem.dassociation = pointer(dassociation);
  problem.pairs = pointer(pairs);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.mesa_backward, set, problem, threads);
}

template <class T>
Index mesa_saved_size(Index batch, Index time, Index heads, Index dim, Index dim_v, const std::string& layout) {
  const Sizes size{batch, time, heads, dim, dim_v};
  const KernelSet<T>& set = kernels<T>(size, layout);
  return (size.all_heads() + set.heads_per_group - 1) / set.heads_per_group * set.saved(size);
}

// A contiguous tensor of the pool, with whatever is in it
template <class T>
nb::ndarray<nb::pytorch, T> recycled(const std::vector<std::size_t>& shape) {
  std::size_t bytes = sizeof(T);
  for (const std::size_t size : shape) bytes *= size;
  auto memory = std::make_unique<Borrowed>(bytes);
  const nb::capsule owner(memory.get(), [](void* borrowed) noexcept { delete static_cast<Borrowed*>(borrowed); });
  return {memory.release()->data(), shape.size(), shape.data(), owner};
}

template <class T>
void define(nb::module_& module) {
  module.def("linear_forward", &linear_forward<T>);
  module.def("linear_backward", &linear_backward<T>);
  module.def("softmax_forward", &softmax_forward<T>);
  module.def("softmax_backward", &softmax_backward<T>);
  const auto none = nb::arg().none();
  // q, k, v, ridge, write, log_forget, matrix, association, constant, and then what is written
  module.def("mesa_forward", &mesa_forward<T>, nb::arg(), nb::arg(), nb::arg(), nb::arg(), none, none, none, none,
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), none, none, nb::arg(), nb::arg());
  module.def("mesa_backward", &mesa_backward<T>, nb::arg(), nb::arg(), nb::arg(), nb::arg(), none, none, none, none,
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), none, none, none, none,
             nb::arg(), nb::arg());
}

}  // namespace
}  // namespace mesascope

NB_MODULE(_kernels, module) {
  using namespace mesascope;
  define<float>(module);
  define<double>(module);
  module.def("mesa_saved_size_float", &mesa_saved_size<float>);
  module.def("mesa_saved_size_double", &mesa_saved_size<double>);
  module.def("instruction_sets", &known_instruction_sets);
  module.def("recycled_float", &recycled<float>);
  module.def("recycled_double", &recycled<double>);
  module.def("instruction_set", &instruction_set);
  module.def("use_instruction_set", &use_instruction_set);
}

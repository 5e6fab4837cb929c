// The Python module: takes tensors by address and strides, chooses the instruction set and the layout, releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <tuple>
#include <vector>

#include "instruction_sets.h"
#include "parallel.h"

namespace nb = nanobind;

namespace mesascope {
namespace {

// A tensor: its address and its strides in numbers, which its caller keeps alive. To take DLPack capsules for all of them
// took as long as a small problem.
template <std::size_t dimensions>
using Address = std::array<Index, 1 + dimensions>;
template <std::size_t dimensions>
using Optional = std::optional<Address<dimensions>>;
using Shape = std::array<Index, 5>;  // B, T, H, D, Dv

Sizes sizes(const Shape& shape) { return {shape[0], shape[1], shape[2], shape[3], shape[4]}; }

// of a tensor that is contiguous
template <class T, std::size_t numbers>
T* pointer(const std::array<Index, numbers>& tensor) {
  return reinterpret_cast<T*>(tensor[0]);
}

// the same, or absent
template <class T, std::size_t numbers>
T* pointer(const std::optional<std::array<Index, numbers>>& tensor) {
  return tensor ? pointer<T>(*tensor) : nullptr;
}

// [B, T, H, D]
template <class T>
Operand<T> operand(const Address<4>& tensor) {
  return {pointer<T>(tensor), tensor[1], tensor[2], tensor[3], tensor[4]};
}

// [B, T, H], or absent
template <class T>
Operand<T> token_operand(const Optional<3>& tensor) {
  if (!tensor) return {};
  return {pointer<T>(*tensor), (*tensor)[1], (*tensor)[2], (*tensor)[3], 0};
}

// [B, H, D]
template <class T>
Operand<T> head_operand(const Address<3>& tensor) {
  return {pointer<T>(tensor), tensor[1], 0, tensor[2], tensor[3]};
}

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

template <class Problem, class T>
void run(const Kernel<Problem>& kernel, const KernelSet<T>& set, const Problem& problem, int threads) {
  const Index groups = (problem.size.all_heads() + set.heads_per_group - 1) / set.heads_per_group;
  nb::gil_scoped_release released;
  run_groups(kernel, problem, groups, threads);
}

template <class T>
void linear_forward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                    const Address<4>& o, const std::string& layout, int threads) {
  LinearProblem<T> problem;
  problem.size = sizes(shape);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.o = operand<T>(o);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.linear_forward, set, problem, threads);
}

template <class T>
void linear_backward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                     const Address<4>& g, const Address<4>& dq, const Address<4>& dk, const Address<4>& dv,
                     const std::string& layout, int threads) {
  LinearProblem<T> problem;
  problem.size = sizes(shape);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.linear_backward, set, problem, threads);
}

template <class T>
void softmax_forward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                     const Address<4>& o, const Address<4>& normaliser, double scale, int threads) {
  SoftmaxProblem<T> problem;
  problem.size = sizes(shape), problem.scale = T(scale);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.o = operand<T>(o), problem.normaliser = pointer<T>(normaliser);
  const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
  run(set.softmax_forward, set, problem, threads);
}

template <class T>
void softmax_backward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                      const Address<4>& normaliser, const Address<4>& g, const Address<4>& dq, const Address<4>& dk,
                      const Address<4>& dv, double scale, int threads) {
  SoftmaxProblem<T> problem;
  problem.size = sizes(shape), problem.scale = T(scale);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.normaliser = pointer<T>(normaliser), problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
  run(set.softmax_backward, set, problem, threads);
}

template <class T>
MesaProblem<T> mesa_problem(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                            const Address<3>& ridge, const Optional<3>& write, const Optional<3>& log_forget,
                            const Optional<4>& matrix, const Optional<4>& association, bool constant,
                            const Optional<1>& saved) {
  MesaProblem<T> problem;
  problem.size = sizes(shape);
  problem.q = operand<const T>(q), problem.k = operand<const T>(k), problem.v = operand<const T>(v);
  problem.ridge = head_operand<const T>(ridge);
  problem.write = token_operand<const T>(write), problem.log_forget = token_operand<const T>(log_forget);
  problem.constant = constant;
  problem.matrix = pointer<const T>(matrix), problem.association = pointer<const T>(association);
  problem.saved = pointer<T>(saved);
  return problem;
}

// how many numbers there are along a dimension, which may be one number expanded
Index different(Index stride, Index count) { return stride == 0 ? 1 : count; }

// The smallest and the largest ridge, both NaN if one is; numbers that were only expanded are looked at once.
template <class T>
std::array<T, 2> extremes(const Operand<const T>& ridge, const Sizes& size) {
  T smallest = std::numeric_limits<T>::infinity(), largest = -smallest;
  for (Index batch = 0; batch < different(ridge.batch, size.batch); ++batch)
    for (Index head = 0; head < different(ridge.head, size.heads); ++head)
      for (Index d = 0; d < different(ridge.dim, size.dim); ++d) {
        const T value = ridge.data[batch * ridge.batch + head * ridge.head + d * ridge.dim];
        if (std::isnan(value)) return {value, value};
        smallest = std::min(smallest, value), largest = std::max(largest, value);
      }
  return {smallest, largest};
}

// The sums of `all` [B, H, D] over what is only expanded in `sums`
template <class T>
void sum_expanded(const Operand<T>& sums, const T* all, const Sizes& size) {
  const Index batches = different(sums.batch, size.batch), heads = different(sums.head, size.heads);
  const Index dim = different(sums.dim, size.dim);
  std::vector<double> totals(std::size_t(batches * heads * dim));
  for (Index batch = 0; batch < size.batch; ++batch)
    for (Index head = 0; head < size.heads; ++head) {
      double* const row = totals.data() + ((sums.batch == 0 ? 0 : batch) * heads + (sums.head == 0 ? 0 : head)) * dim;
      for (Index d = 0; d < size.dim; ++d) row[sums.dim == 0 ? 0 : d] += *all++;
    }
  const double* total = totals.data();
  for (Index batch = 0; batch < batches; ++batch)
    for (Index head = 0; head < heads; ++head)
      for (Index d = 0; d < dim; ++d)
        sums.data[batch * sums.batch + head * sums.head + d * sums.dim] = T(*total++);
}

// The largest of each kind of evidence over all heads, NaN where one is.
template <class T>
std::array<T, 3> largest_evidence(const MesaProblem<T>& problem) {
  const Sizes& size = problem.size;
  std::array<T, 3> found{0, 0, 0};
  const Operand<T>& evidence = problem.evidence;
  for (Index batch = 0; batch < size.batch; ++batch)
    for (Index head = 0; head < size.heads; ++head)
      for (Index i = 0; i < 3; ++i) {
        const T value = evidence.data[batch * evidence.batch + head * evidence.head + i * evidence.dim];
        if (value > found[i] || std::isnan(value)) found[i] = value;
      }
  return found;
}

// The largest evidence, and the smallest and the largest ridge; with a ridge that is not allowed there is nothing else.
template <class T>
std::array<T, 5> mesa_forward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                              const Address<3>& ridge, const Optional<3>& write, const Optional<3>& log_forget,
                              const Optional<4>& matrix, const Optional<4>& association, bool constant,
                              const Address<4>& o, const Address<3>& evidence, const Optional<1>& saved,
                              const Optional<4>& final_matrix, const Optional<4>& final_association,
                              const std::string& layout, int threads) {
  MesaProblem<T> problem =
      mesa_problem<T>(shape, q, k, v, ridge, write, log_forget, matrix, association, constant, saved);
  problem.o = operand<T>(o), problem.evidence = head_operand<T>(evidence);
  problem.final_matrix = pointer<T>(final_matrix), problem.final_association = pointer<T>(final_association);
  const auto [smallest, largest] = extremes(problem.ridge, problem.size);
  if (!(smallest > 0 && std::isfinite(largest))) return {0, 0, 0, smallest, largest};
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.mesa_forward, set, problem, threads);
  const auto [total, gain, zero] = largest_evidence(problem);
  return {total, gain, zero, smallest, largest};
}

template <class T>
void mesa_backward(const Shape& shape, const Address<4>& q, const Address<4>& k, const Address<4>& v,
                   const Address<3>& ridge, const Optional<3>& write, const Optional<3>& log_forget,
                   const Optional<4>& matrix, const Optional<4>& association, bool constant, const Optional<1>& saved,
                   const Address<4>& g, const Address<4>& dq, const Address<4>& dk, const Address<4>& dv,
                   const Optional<3>& dridge, const Optional<3>& dwrite, const Optional<3>& penalty,
                   const Optional<4>& dassociation, const Optional<4>& pairs, const std::string& layout, int threads) {
  MesaProblem<T> problem =
      mesa_problem<T>(shape, q, k, v, ridge, write, log_forget, matrix, association, constant, saved);
  problem.g = operand<const T>(g);
  problem.dq = operand<T>(dq), problem.dk = operand<T>(dk), problem.dv = operand<T>(dv);
  const Borrowed all_dridge(std::size_t(problem.size.all_heads() * problem.size.dim) * sizeof(T));
  problem.dridge = reinterpret_cast<T*>(all_dridge.data());
  problem.dwrite = token_operand<T>(dwrite), problem.penalty = token_operand<T>(penalty);
  problem.dassociation = pointer<T>(dassociation), problem.pairs = pointer<T>(pairs);
  const KernelSet<T>& set = kernels<T>(problem.size, layout);
  run(set.mesa_backward, set, problem, threads);
  if (dridge) sum_expanded(head_operand<T>(*dridge), problem.dridge, problem.size);
}

template <class T>
Index mesa_saved_size(const Shape& shape, const std::string& layout) {
  const Sizes size = sizes(shape);
  const KernelSet<T>& set = kernels<T>(size, layout);
  return (size.all_heads() + set.heads_per_group - 1) / set.heads_per_group * set.saved(size);
}

// Runs a backward pass of which every group of rows leaves gradients of weights, and puts the sums of these, one after the
// other, into matrices of so many numbers.
template <class Problem>
void run_summing(const Kernel<Problem>& kernel, Problem& problem, const std::vector<float*>& to,
                 const std::vector<Index>& numbers, int threads) {
  const Index groups = row_groups(problem.size.rows);
  std::vector<double> sums(std::size_t(std::accumulate(numbers.begin(), numbers.end(), Index(0))));
  const Borrowed parts(std::size_t(groups) * sums.size() * sizeof(float));
  problem.dweights = reinterpret_cast<float*>(parts.data());
  run_groups(kernel, problem, groups, threads);
  const float* part = problem.dweights;
  for (Index group = 0; group < groups; ++group)
    for (double& sum : sums) sum += *part++;
  const double* from = sums.data();
  for (std::size_t i = 0; i < to.size(); from += numbers[i++]) std::copy(from, from + numbers[i], to[i]);
}

using RowsShape = std::array<Index, 2>;  // rows, width
// a map: how many outputs, W [outputs, width] and y, or its gradient, [rows, outputs]
using Map = std::tuple<Index, Address<2>, Address<2>>;

MapsProblem maps_problem(const RowsShape& shape, const Address<2>& x, const std::vector<Map>& maps) {
  if (maps.size() > most_maps) throw std::invalid_argument("maps: there are kernels for up to 3");
  MapsProblem problem{};
  problem.size.rows = shape[0], problem.size.width = shape[1];
  problem.x = pointer<const float>(x);
  for (std::size_t m = 0; m < maps.size(); ++m) {
    const auto& [outputs, w, y] = maps[m];
    problem.size.outputs[m] = outputs, problem.w[m] = pointer<const float>(w), problem.w_rows[m] = w[1];
    problem.y[m] = pointer<float>(y), problem.g[m] = problem.y[m];
  }
  return problem;
}

void maps_forward(const RowsShape& shape, const Address<2>& x, const std::vector<Map>& maps, int threads) {
  const MapsProblem problem = maps_problem(shape, x, maps);
  nb::gil_scoped_release released;
  run_groups(active->maps_forward, problem, row_groups(problem.size.rows), threads);
}

void maps_backward(const RowsShape& shape, const Address<2>& x, const std::vector<Map>& maps, const Optional<2>& dx,
                   const std::vector<Address<2>>& dw, int threads) {
  MapsProblem problem = maps_problem(shape, x, maps);
  problem.dx = pointer<float>(dx);
  std::vector<float*> to;
  std::vector<Index> numbers;
  for (std::size_t m = 0; m < dw.size(); ++m) {
    to.push_back(pointer<float>(dw[m]));
    numbers.push_back(problem.size.width * problem.size.outputs[m]);
  }
  nb::gil_scoped_release released;
  run_summing(active->maps_backward, problem, to, numbers, threads);
}

using MlpShape = std::array<Index, 3>;  // rows, width, hidden

MlpProblem mlp_problem(const MlpShape& shape, const Address<2>& x, const Address<2>& w_1, const Address<2>& w_2) {
  MlpProblem problem;
  problem.size = {shape[0], shape[1], shape[2]};
  problem.x = pointer<const float>(x), problem.w_1 = pointer<const float>(w_1), problem.w_2 = pointer<const float>(w_2);
  return problem;
}

void mlp_forward(const MlpShape& shape, const Address<2>& x, const Address<2>& w_1, const Address<2>& w_2,
                 const Address<2>& y, int threads) {
  MlpProblem problem = mlp_problem(shape, x, w_1, w_2);
  problem.y = pointer<float>(y);
  nb::gil_scoped_release released;
  run_groups(active->mlp_forward, problem, row_groups(problem.size.rows), threads);
}

void mlp_backward(const MlpShape& shape, const Address<2>& x, const Address<2>& w_1, const Address<2>& w_2,
                  const Address<2>& g, const Address<2>& dx, const Address<2>& dw_1, const Address<2>& dw_2,
                  int threads) {
  MlpProblem problem = mlp_problem(shape, x, w_1, w_2);
  problem.g = pointer<const float>(g), problem.dx = pointer<float>(dx);
  const Index numbers = problem.size.width * problem.size.hidden;
  nb::gil_scoped_release released;
  run_summing(active->mlp_backward, problem, {pointer<float>(dw_1), pointer<float>(dw_2)}, {numbers, numbers}, threads);
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
void define(nb::module_& module, const std::string& number) {
  const auto define = [&](const std::string& name, auto function, auto... arguments) {
    module.def((name + "_" + number).c_str(), function, arguments...);
  };
  define("linear_forward", &linear_forward<T>);
  define("linear_backward", &linear_backward<T>);
  define("softmax_forward", &softmax_forward<T>);
  define("softmax_backward", &softmax_backward<T>);
  define("mesa_forward", &mesa_forward<T>);
  define("mesa_backward", &mesa_backward<T>);
  define("mesa_saved_size", &mesa_saved_size<T>);
  define("recycled", &recycled<T>);
}

}  // namespace
}  // namespace mesascope

NB_MODULE(_kernels, module) {
  using namespace mesascope;
  define<float>(module, "float32");
  define<double>(module, "float64");
  module.def("maps_forward_float32", &maps_forward);
  module.def("maps_backward_float32", &maps_backward);
  module.def("mlp_forward_float32", &mlp_forward);
  module.def("mlp_backward_float32", &mlp_backward);
  module.def("instruction_sets", &known_instruction_sets);
  module.def("instruction_set", &instruction_set);
  module.def("use_instruction_set", &use_instruction_set);
}

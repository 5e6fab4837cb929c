// The Python module: takes and returns tensors, chooses the instruction set and the layout, releases the GIL.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "instruction_sets.h"
#include "parallel.h"
#include "tensors.h"

namespace mesascope {
namespace {

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

template <class T>
Index groups_of_heads(const KernelSet<T>& set, const Sizes& size) {
  return groups_of(set.heads_per_group, size.all_heads());
}

template <class Problem, class T>
void run(const Kernel<Problem>& kernel, const KernelSet<T>& set, const Problem& problem, int threads) {
  const nb::gil_scoped_release released;
  run_groups(kernel, problem, groups_of_heads(set, problem.size), threads);
}

// Calls a function with a number of the type that a tensor holds.
template <class Function>
auto by_dtype(const Tensor& tensor, Function function) {
  return tensor.holds<double>() ? function(double()) : function(float());
}

// Whether queries, keys and values are [B, T, H, D], [B, T, H, D] with D > 0, and [B, T, H, Dv].
bool fit(const Tensor& q, const Tensor& k, const Tensor& v) {
  return k.dimensions() == 4 && v.dimensions() == 4 && k.size(3) > 0 && q.has_shape(k.shape()) &&
         v.has_shape({k.size(0), k.size(1), k.size(2), v.size(3)});
}

Sizes sizes(const Tensor& k, const Tensor& v) {
  return {k.size(0), k.size(1), k.size(2), k.size(3), v.size(3)};
}

// of a tensor [B, T, H, dim]
template <class T>
Operand<T> operand(const Tensor& tensor, const Sizes& size, Index dim) {
  tensor.require_shape({size.batch, size.time, size.heads, dim});
  return {tensor.data<T>(), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// of a tensor [B, T, H], or absent
template <class T>
Operand<const T> token_operand(const MaybeTensor& tensor, const Sizes& size) {
  if (!tensor) return {};
  tensor->require_shape({size.batch, size.time, size.heads});
  return {tensor->data<const T>(), tensor->stride(0), tensor->stride(1), tensor->stride(2), 0};
}

// Numbers of a contiguous tensor, or null
template <class T>
const T* contiguous(const MaybeTensor& tensor, const std::vector<Index>& shape) {
  if (!tensor) return nullptr;
  tensor->require_shape(shape);
  return tensor->contiguous_data<const T>();
}

// Sizes, queries, keys and values of a problem
template <class T, class Problem>
void set_operands(Problem& problem, const Tensor& q, const Tensor& k, const Tensor& v) {
  if (!fit(q, k, v)) throw std::invalid_argument("q, k, v: their shapes do not fit");
  const Sizes size = problem.size = sizes(k, v);
  problem.q = operand<const T>(q, size, size.dim), problem.k = operand<const T>(k, size, size.dim);
  problem.v = operand<const T>(v, size, size.dim_v);
}

// A new tensor [B, T, H, dim], which a problem writes
template <class T>
nb::object written(Operand<T>& operand, const Sizes& size, Index dim) {
  Result<T> made = result<T>({size.batch, size.time, size.heads, dim});
  operand = {made.data, size.time * size.heads * dim, size.heads * dim, dim, 1};
  return made.tensor;
}

// New tensors for the gradients of queries, keys and values, whose own gradient is g
template <class T, class Problem>
std::array<nb::object, 3> written_gradients(Problem& problem, const Tensor& g) {
  const Sizes& size = problem.size;
  problem.g = operand<const T>(g, size, size.dim_v);
  return {written(problem.dq, size, size.dim), written(problem.dk, size, size.dim),
          written(problem.dv, size, size.dim_v)};
}

nb::object linear_forward(const Tensor& q, const Tensor& k, const Tensor& v, const std::string& layout, int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    LinearProblem<T> problem;
    set_operands<T>(problem, q, k, v);
    nb::object o = written(problem.o, problem.size, problem.size.dim_v);
    const KernelSet<T>& set = kernels<T>(problem.size, layout);
    run(set.linear_forward, set, problem, threads);
    return o;
  });
}

nb::tuple linear_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& g,
                          const std::string& layout, int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    LinearProblem<T> problem;
    set_operands<T>(problem, q, k, v);
    const auto [dq, dk, dv] = written_gradients<T>(problem, g);
    const KernelSet<T>& set = kernels<T>(problem.size, layout);
    run(set.linear_backward, set, problem, threads);
    return nb::make_tuple(dq, dk, dv);
  });
}

template <class T>
std::vector<Index> normaliser_shape(const SoftmaxProblem<T>& problem) {
  return {problem.size.batch, problem.size.heads, problem.size.time, 2};
}

// The output and what the backward pass needs
nb::tuple softmax_forward(const Tensor& q, const Tensor& k, const Tensor& v, double scale, int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    SoftmaxProblem<T> problem;
    set_operands<T>(problem, q, k, v);
    problem.scale = T(scale);
    nb::object o = written(problem.o, problem.size, problem.size.dim_v);
    const Result<T> normaliser = result<T>(normaliser_shape(problem));
    problem.normaliser = normaliser.data;
    const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
    run(set.softmax_forward, set, problem, threads);
    return nb::make_tuple(o, normaliser.tensor);
  });
}

nb::tuple softmax_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& normaliser,
                           const Tensor& g, double scale, int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    SoftmaxProblem<T> problem;
    set_operands<T>(problem, q, k, v);
    problem.scale = T(scale);
    normaliser.require_shape(normaliser_shape(problem));
    problem.normaliser = normaliser.contiguous_data<T>();
    const auto [dq, dk, dv] = written_gradients<T>(problem, g);
    const KernelSet<T>& set = kernels<T>(problem.size, "lanes");
    run(set.softmax_backward, set, problem, threads);
    return nb::make_tuple(dq, dk, dv);
  });
}

// how many numbers there are along a dimension, which may be one number expanded
Index different(Index stride, Index count) { return stride == 0 ? 1 : count; }

// A ridge, or something of its shape, as [B, 1, H, D] with strides of 0 where one number serves all. What shapes there are
// is decided in Python, by `ridge_axes`.
template <class T>
Operand<T> ridge_operand(const Tensor& ridge, T* data, const Sizes& size) {
  const int dimensions = ridge.dimensions();
  const auto stride = [&](int dimension, Index wanted) -> Index {
    if (ridge.size(dimension) == 1) return 0;
    if (ridge.size(dimension) != wanted) throw std::invalid_argument("ridge: its shape does not fit");
    return ridge.stride(dimension);
  };
  switch (dimensions) {
    case 0: return {data};
    case 1: return {data, 0, 0, stride(0, size.heads), 0};
    case 2:
      if (ridge.has_shape({size.heads, size.dim})) return {data, 0, 0, stride(0, size.heads), stride(1, size.dim)};
      return {data, stride(0, size.batch), 0, stride(1, size.heads), 0};
    case 3: return {data, stride(0, size.batch), 0, stride(1, size.heads), stride(2, size.dim)};
    default: throw std::invalid_argument("ridge: its shape does not fit");
  }
}

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

// What both passes read but queries, keys, values and what is saved
struct MesaOptions {
  Tensor ridge;
  MaybeTensor write, log_forget, matrix, largest, association;
  bool constant;
};

template <class T>
MesaProblem<T> mesa_problem(const Tensor& q, const Tensor& k, const Tensor& v, const MesaOptions& options) {
  MesaProblem<T> problem;
  set_operands<T>(problem, q, k, v);
  const Sizes& size = problem.size;
  problem.ridge = ridge_operand(options.ridge, options.ridge.data<const T>(), size);
  problem.write = token_operand<T>(options.write, size);
  problem.log_forget = token_operand<T>(options.log_forget, size);
  problem.constant = options.constant;
  problem.matrix = contiguous<T>(options.matrix, {size.batch, size.heads, size.dim, size.dim});
  problem.largest = contiguous<T>(options.largest, {size.batch, size.heads});
  problem.association = contiguous<T>(options.association, {size.batch, size.heads, size.dim_v, size.dim});
  return problem;
}

// The output; the evidence: the largest of each kind, the smallest and the largest ridge; what is saved, the final matrix and
// the final association, or None. With a ridge that is not allowed nothing is computed.
nb::tuple mesa_forward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ridge, const MaybeTensor& write,
                       const MaybeTensor& log_forget, const MaybeTensor& matrix, const MaybeTensor& largest,
                       const MaybeTensor& association, bool constant, bool save, bool final, const std::string& layout,
                       int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    auto problem = mesa_problem<T>(q, k, v, {ridge, write, log_forget, matrix, largest, association, constant});
    const Sizes& size = problem.size;
    const KernelSet<T>& set = kernels<T>(size, layout);
    nb::object o = written(problem.o, size, size.dim_v);
    if (problem.matrix != nullptr && problem.largest == nullptr)
      throw std::invalid_argument("largest: needed with a matrix");
    std::vector<T> evidence(std::size_t(size.all_heads() * 3));
    problem.evidence = {evidence.data(), size.heads * 3, 0, 3, 1};
    Result<T> saved, final_matrix, final_association;
    if (save) saved = result<T>({groups_of_heads(set, size) * set.saved(size)});
    if (final) final_matrix = result<T>({size.batch, size.heads, size.dim, size.dim});
    if (final) final_association = result<T>({size.batch, size.heads, size.dim_v, size.dim});
    problem.saved = saved.data;
    problem.final_matrix = final_matrix.data, problem.final_association = final_association.data;
    const auto [smallest_ridge, largest_ridge] = extremes(problem.ridge, size);
    std::array<T, 3> found{0, 0, 0};
    if (smallest_ridge > 0 && std::isfinite(largest_ridge)) {
      run(set.mesa_forward, set, problem, threads);
      found = largest_evidence(problem);
    }
    const auto all_evidence = nb::make_tuple(found[0], found[1], found[2], smallest_ridge, largest_ridge);
    return nb::make_tuple(o, all_evidence, saved.tensor, final_matrix.tensor, final_association.tensor);
  });
}

// The gradients of q, k, v, ridge and write; the penalty; the gradient of the association; pairs. None what is not needed.
nb::tuple mesa_backward(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& ridge,
                        const MaybeTensor& write, const MaybeTensor& log_forget, const MaybeTensor& matrix,
                        const MaybeTensor& largest, const MaybeTensor& association, bool constant, const Tensor& saved,
                        const Tensor& g, const std::string& layout, int threads) {
  return by_dtype(q, [&](auto number) {
    using T = decltype(number);
    auto problem = mesa_problem<T>(q, k, v, {ridge, write, log_forget, matrix, largest, association, constant});
    const Sizes& size = problem.size;
    const KernelSet<T>& set = kernels<T>(size, layout);
    saved.require_shape({groups_of_heads(set, size) * set.saved(size)});
    problem.saved = saved.contiguous_data<T>();
    const auto [dq, dk, dv] = written_gradients<T>(problem, g);
    Result<T> dridge, dwrite, penalty, dassociation, pairs;
    if (!matrix || constant) dridge = result<T>(ridge.shape());
    if (write || log_forget) dwrite = result<T>({size.batch, size.time, size.heads});
    if (constant) penalty = result<T>({size.batch, size.time, size.heads});
    if (association) dassociation = result<T>(association->shape());
    if (matrix) pairs = result<T>(matrix->shape());
    const Index batch = size.time * size.heads;
    problem.dwrite = {dwrite.data, batch, size.heads, 1, 0}, problem.penalty = {penalty.data, batch, size.heads, 1, 0};
    problem.dassociation = dassociation.data, problem.pairs = pairs.data;
    const Borrowed all_dridge(std::size_t(size.all_heads() * size.dim) * sizeof(T));
    problem.dridge = reinterpret_cast<T*>(all_dridge.data());
    run(set.mesa_backward, set, problem, threads);
    if (dridge.data != nullptr) {
      Tensor sums;
      if (!sums.read(dridge.tensor)) throw std::logic_error("a result is not a tensor");
      sum_expanded(ridge_operand(sums, dridge.data, size), problem.dridge, size);
    }
    return nb::make_tuple(dq, dk, dv, dridge.tensor, dwrite.tensor, penalty.tensor, dassociation.tensor, pairs.tensor);
  });
}

template <class Problem>
void run_rows(const Kernel<Problem>& kernel, const Problem& problem, int threads) {
  const nb::gil_scoped_release released;
  run_groups(kernel, problem, row_groups(problem.size.rows), threads);
}

// Runs a backward pass of which every group of rows leaves gradients of weights, and puts the sums of these, one after the
// other, into matrices of so many numbers.
template <class Problem>
void run_summing(const Kernel<Problem>& kernel, Problem& problem, const std::vector<float*>& to,
                 const std::vector<Index>& numbers, int threads) {
  const Kernel<SumsProblem>& summing = active->sums;
  const nb::gil_scoped_release released;
  const Index groups = row_groups(problem.size.rows);
  const Index all = std::accumulate(numbers.begin(), numbers.end(), Index(0));
  const Borrowed memory(std::size_t((groups + 1) * all) * sizeof(float));
  float* const sums = reinterpret_cast<float*>(memory.data());
  problem.dweights = sums + all;
  run_groups(kernel, problem, groups, threads);
  run_groups(summing, SumsProblem{{groups, all}, problem.dweights, sums}, sums_groups(all), threads);
  const float* from = sums;
  for (std::size_t i = 0; i < to.size(); from += numbers[i++]) std::copy(from, from + numbers[i], to[i]);
}

// The rows of a contiguous tensor [..., width], and their width
std::array<Index, 2> rows_of(const Tensor& x) {
  const Index width = x.dimensions() == 0 ? 0 : x.size(x.dimensions() - 1);
  if (width == 0) throw std::invalid_argument("rows: their shape does not fit");
  return {x.numbers() / width, width};
}

// A matrix, or rows, of so many columns
const Tensor& of_width(const Tensor& x, Index width) {
  if (x.dimensions() == 0 || x.size(x.dimensions() - 1) != width) throw std::invalid_argument("rows: widths do not fit");
  return x;
}

// y_m = W_m x or, in the backward pass, the gradients of y_m
MapsProblem maps_problem(const Tensor& x, const std::vector<Tensor>& weights) {
  if (weights.size() > most_maps) throw std::invalid_argument("maps: there are kernels for up to 3");
  MapsProblem problem{};
  const auto [rows, width] = rows_of(x);
  problem.size.rows = rows, problem.size.width = width;
  problem.x = x.contiguous_data<const float>();
  for (std::size_t m = 0; m < weights.size(); ++m) {
    const Tensor& w = of_width(weights[m], width);
    if (w.dimensions() != 2) throw std::invalid_argument("weights: their shapes do not fit");
    if (w.stride(1) != 1 && width > 1) throw std::invalid_argument("weights: their rows must be contiguous");
    problem.size.outputs[m] = w.size(0), problem.w[m] = w.data<const float>(), problem.w_rows[m] = w.stride(0);
  }
  return problem;
}

nb::list maps_forward(const Tensor& x, const std::vector<Tensor>& weights, int threads) {
  MapsProblem problem = maps_problem(x, weights);
  nb::list results;
  std::vector<Index> shape = x.shape();
  for (std::size_t m = 0; m < weights.size(); ++m) {
    shape.back() = problem.size.outputs[m];
    const Result<float> y = result<float>(shape);
    problem.y[m] = y.data;
    results.append(y.tensor);
  }
  run_rows(active->maps_forward, problem, threads);
  return results;
}

// The gradients of W_m, given those of y_m, and last that of x or None
nb::list maps_backward(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& g, bool needs_dx,
                       int threads) {
  MapsProblem problem = maps_problem(x, weights);
  nb::list results;
  std::vector<float*> to;
  std::vector<Index> numbers;
  for (std::size_t m = 0; m < weights.size(); ++m) {
    const auto [outputs, width] = std::array{problem.size.outputs[m], problem.size.width};
    if (g.at(m).numbers() != problem.size.rows * outputs) throw std::invalid_argument("g: its shape does not fit");
    problem.g[m] = of_width(g[m], outputs).contiguous_data<const float>();
    const Result<float> dw = result<float>({outputs, width});
    to.push_back(dw.data), numbers.push_back(outputs * width);
    results.append(dw.tensor);
  }
  Result<float> dx;
  if (needs_dx) dx = result<float>(x.shape());
  problem.dx = dx.data;
  results.append(dx.tensor);
  run_summing(active->maps_backward, problem, to, numbers, threads);
  return results;
}

MlpProblem mlp_problem(const Tensor& x, const Tensor& w_1, const Tensor& w_2) {
  MlpProblem problem;
  const auto [rows, width] = rows_of(x);
  const Index hidden = w_1.numbers() / width;
  w_1.require_shape({hidden, width}), w_2.require_shape({width, hidden});
  problem.size = {rows, width, hidden};
  problem.x = x.contiguous_data<const float>();
  problem.w_1 = w_1.contiguous_data<const float>(), problem.w_2 = w_2.contiguous_data<const float>();
  return problem;
}

NormProblem norm_problem(const Tensor& x, const Tensor& scale, const Tensor& shift, double epsilon) {
  NormProblem problem;
  const auto [rows, width] = rows_of(x);
  scale.require_shape({width}), shift.require_shape({width});
  problem.size = {rows, width}, problem.epsilon = float(epsilon);
  problem.x = x.contiguous_data<const float>();
  problem.scale = scale.contiguous_data<const float>(), problem.shift = shift.contiguous_data<const float>();
  return problem;
}

// y, of the shape of x
template <class Problem>
nb::object forward_rows(const Kernel<Problem>& kernel, Problem problem, const Tensor& x, int threads) {
  const Result<float> y = result<float>(x.shape());
  problem.y = y.data;
  run_rows(kernel, problem, threads);
  return y.tensor;
}

// The gradients of x and of both weights
template <class Problem>
nb::tuple backward_rows(const Kernel<Problem>& kernel, Problem problem, const Tensor& x, const Tensor& first,
                        const Tensor& second, const Tensor& g, int threads) {
  g.require_shape(x.shape());
  problem.g = g.contiguous_data<const float>();
  const Result<float> dx = result<float>(x.shape());
  const Result<float> dfirst = result<float>(first.shape()), dsecond = result<float>(second.shape());
  problem.dx = dx.data;
  run_summing(kernel, problem, {dfirst.data, dsecond.data}, {first.numbers(), second.numbers()}, threads);
  return nb::make_tuple(dx.tensor, dfirst.tensor, dsecond.tensor);
}

nb::object mlp_forward(const Tensor& x, const Tensor& w_1, const Tensor& w_2, int threads) {
  return forward_rows(active->mlp_forward, mlp_problem(x, w_1, w_2), x, threads);
}

nb::tuple mlp_backward(const Tensor& x, const Tensor& w_1, const Tensor& w_2, const Tensor& g, int threads) {
  return backward_rows(active->mlp_backward, mlp_problem(x, w_1, w_2), x, w_1, w_2, g, threads);
}

nb::object norm_forward(const Tensor& x, const Tensor& scale, const Tensor& shift, double epsilon, int threads) {
  return forward_rows(active->norm_forward, norm_problem(x, scale, shift, epsilon), x, threads);
}

nb::tuple norm_backward(const Tensor& x, const Tensor& scale, const Tensor& shift, const Tensor& g, double epsilon,
                        int threads) {
  return backward_rows(active->norm_backward, norm_problem(x, scale, shift, epsilon), x, scale, shift, g, threads);
}

// A plain tensor on the CPU with numbers in memory as they are, float32 or float64; else nothing
MaybeTensor plain(nb::handle object) {
  Tensor tensor;
  const bool readable = Torch::get().plain(object) && tensor.read(object) && tensor.computable() &&
                        !nb::cast<bool>(object.attr("is_neg")());
  return readable ? MaybeTensor(tensor) : std::nullopt;
}

// Whether all of these but None are such tensors, of the same dtype.
bool takes(const nb::args& operands) {
  MaybeTensor first;
  for (const nb::handle operand : operands) {
    if (operand.is_none()) continue;
    const MaybeTensor tensor = plain(operand);
    if (!tensor || (first && !tensor->same_dtype(*first))) return false;
    if (!first) first = tensor;
  }
  return true;
}

// Whether q, k and v are such tensors of shapes that fit, with numbers in them; and a ridge that is one number, or one for
// each head, if it is not None.
bool fitting(nb::handle q_object, nb::handle k_object, nb::handle v_object, nb::handle ridge_object) {
  const MaybeTensor q = plain(q_object), k = plain(k_object), v = plain(v_object);
  if (!q || !k || !v || !q->same_dtype(*k) || !v->same_dtype(*k) || !fit(*q, *k, *v)) return false;
  if (k->numbers() == 0 || v->numbers() == 0) return false;
  if (ridge_object.is_none()) return true;
  const MaybeTensor ridge = plain(ridge_object);
  if (!ridge || !ridge->same_dtype(*k)) return false;
  return ridge->dimensions() == 0 || ridge->has_shape({1}) || ridge->has_shape({k->size(2)});
}

}  // namespace
}  // namespace mesascope

NB_MODULE(_kernels, module) {
  using namespace mesascope;
  Torch::get();
  module.def("takes", &takes);
  module.def("linear_forward", &linear_forward);
  module.def("linear_backward", &linear_backward);
  module.def("softmax_forward", &softmax_forward);
  module.def("softmax_backward", &softmax_backward);
  constexpr auto maybe = [](const char* name) { return nb::arg(name).none(); };
  module.def("fitting", &fitting, maybe("q"), maybe("k"), maybe("v"), maybe("ridge"));
  const nb::arg q("q"), k("k"), v("v"), ridge("ridge"), constant("constant");
  module.def("mesa_forward", &mesa_forward, q, k, v, ridge, maybe("write"), maybe("log_forget"), maybe("matrix"),
             maybe("largest"), maybe("association"), constant, nb::arg("save"), nb::arg("final"), nb::arg("layout"), nb::arg("threads"));
  module.def("mesa_backward", &mesa_backward, q, k, v, ridge, maybe("write"), maybe("log_forget"), maybe("matrix"),
             maybe("largest"), maybe("association"), constant, nb::arg("saved"), nb::arg("g"), nb::arg("layout"), nb::arg("threads"));
  module.def("maps_forward", &maps_forward);
  module.def("maps_backward", &maps_backward);
  module.def("mlp_forward", &mlp_forward);
  module.def("mlp_backward", &mlp_backward);
  module.def("norm_forward", &norm_forward);
  module.def("norm_backward", &norm_backward);
  module.def("instruction_sets", &known_instruction_sets);
  module.def("instruction_set", &instruction_set);
  module.def("use_instruction_set", &use_instruction_set);
}

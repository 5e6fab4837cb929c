// The kernels against loops in double: every instruction set of this processor, both number types, both layouts, with
// operands anywhere in memory and any number of threads. Prints one line for each table of kernels; fails on the first
// result that is wrong, that was not written, or that was written where it does not belong.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "instruction_sets.h"
#include "naive.h"
#include "parallel.h"
#include "pool.h"
#include "tensor.h"

using namespace mesascope;

namespace {

// the last three: rows of whole registers, used where they lie; more rows than the backward pass keeps; values, and with
// float64 keys, between whose rows the kernels leave a gap
constexpr Sizes shapes[] = {{3, 1, 5, 2, 3},    {2, 6, 2, 1, 1},    {2, 5, 3, 4, 2},    {3, 21, 7, 5, 6},
                            {1, 8, 16, 3, 9},   {1, 34, 3, 20, 20}, {1, 50, 1, 33, 17}, {1, 17, 1, 65, 50},
                            {1, 35, 2, 16, 32}, {1, 700, 1, 8, 8},  {1, 18, 1, 64, 128}};
constexpr Memory memories[] = {Memory::contiguous, Memory::heads_first, Memory::time_last, Memory::gaps,
                               Memory::shared_rows};
constexpr int thread_counts[] = {1, 2, 5};

struct Gates {
  bool write, forget;
  double deepest;  // the most negative log_forget that is drawn
  bool constant;
};
constexpr Gates all_gates[] = {{false, false, 0, false}, {true, false, 0, false},  {false, true, -0.1, false},
                               {true, true, -0.1, false}, {true, true, -0.4, false}, {false, true, -0.1, true},
                               {true, true, -0.1, true},  {true, true, -60, true}};

constexpr int not_a_number = 0xff;  // as every byte of a number

std::mt19937_64 random_numbers(0);
double normal() { return std::normal_distribution<double>()(random_numbers); }
double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_numbers); }

std::string text(const std::vector<Index>& sizes) {
  std::string result = "[";
  for (const Index value : sizes) result += std::to_string(value) + " ";
  result.back() = ']';
  return result;
}

// A block of exactly as many bytes, so that a sanitizer sees one too many; the kernels' own memory is rounded up.
class Exact {
 public:
  Exact(Index bytes, int value) : data_(::operator new(std::size_t(bytes), std::align_val_t(64))) {
    std::memset(data_, value, std::size_t(bytes));
  }
  ~Exact() { ::operator delete(data_, std::align_val_t(64)); }
  Exact(const Exact&) = delete;
  Exact& operator=(const Exact&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

// What is being tested, for the message of a failure, what errors are allowed, and the worst of them so far.
//
// Errors are relative, of a whole result. They are those of rounding, times the condition of the matrices that are
// solved with; in gradients the first keys of a sequence, which shrink the inverse by their gain, lose more digits.
// The same bound as in tests/ops/test_mesa_fuzz.py, for every build.
struct Report {
  std::string place;
  double rounding, condition = 1, gain = 0;
  double worst = 0;  // of error / allowed
  long results = 0, blind = 0;  // blind: so badly conditioned that an error of 1 % is allowed

  double allowed(bool gradient) const { return rounding * (100 + (30 + (gradient ? gain : 0)) * condition); }

  template <class T>
  void check(const char* name, const Tensor<T>& found, const Vector& expected) {
    double error = 0, size = 0;
    std::size_t index = 0;
    found.each([&](T value) {
      error += std::pow(value - expected.at(index), 2);
      size += std::pow(expected[index++], 2);
    });
    const double limit = allowed(name[0] == 'd' || name == std::string("penalty") || name == std::string("pairs"));
    // the kernels let a token keep exp(-40) of what it forgets entirely, which is nothing beside anything else
    error = std::sqrt(error / std::max(size, 1e-24 * double(index)));
    if (!(error <= limit) || index != expected.size() || found.untouched() != found.gaps()) {
      std::printf("FAILED %s: %s has a relative error of %g, %g is allowed; %ld of %ld numbers are NaN\n", place.c_str(),
                  name, error, limit, long(found.untouched()), long(found.gaps()));
      std::exit(1);
    }
    worst = std::max(worst, error / limit), ++results, blind += limit > 1e-2;
  }

  void print(const std::string& name) const {
    std::printf("%-24s %6ld results, worst error %.2f of what is allowed; 1 %% is allowed in %ld\n", name.c_str(),
                results, worst, blind);
    std::fflush(stdout);
  }
};

Memory output_memory(Memory memory) { return memory == Memory::shared_rows ? Memory::contiguous : memory; }

template <class T>
struct Operands {
  Tensor<T> q, k, v, g;  // keys of norm 1, about
  Operands(const Sizes& size, Memory memory)
      : q({size.batch, size.time, size.heads, size.dim}, memory, normal),
        k({size.batch, size.time, size.heads, size.dim}, memory, [&] { return normal() / std::sqrt(double(size.dim)); }),
        v({size.batch, size.time, size.heads, size.dim_v}, memory, normal),
        g({size.batch, size.time, size.heads, size.dim_v}, memory, normal) {}
};

template <class T>
struct Gradients {
  Tensor<T> dq, dk, dv;
  Gradients(const Sizes& size, Memory memory)
      : dq({size.batch, size.time, size.heads, size.dim}, memory),
        dk({size.batch, size.time, size.heads, size.dim}, memory),
        dv({size.batch, size.time, size.heads, size.dim_v}, memory) {}

  void check(Report& report, const Results& expected) const {
    report.check("dq", dq, expected.dq), report.check("dk", dk, expected.dk), report.check("dv", dv, expected.dv);
  }
};

template <class T, class Problem>
void run(const KernelSet<T>& set, const Kernel<Problem>& kernel, const Problem& problem, int threads) {
  const Index groups = groups_of(set.heads_per_group, problem.size.all_heads());
  if (threads > 1) return run_groups(kernel, problem, groups, threads);
  const Exact memory(kernel.workspace(problem.size), kernel.padded ? 0 : not_a_number);
  for (Index group = 0; group < groups; ++group)
    kernel.run(problem, group, group + 1 < groups ? group + 1 : no_group, memory.data());
}

template <class T>
void test_linear(const KernelSet<T>& set, const Sizes& size, Memory memory, int threads, Report& report) {
  const Operands<T> operands(size, memory);
  const Tensor<T> o({size.batch, size.time, size.heads, size.dim_v}, output_memory(memory));
  const Gradients<T> gradients(size, output_memory(memory));
  LinearProblem<T> problem;
  problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v;
  problem.o = o, problem.g = operands.g;
  problem.dq = gradients.dq, problem.dk = gradients.dk, problem.dv = gradients.dv;
  run(set, set.linear_forward, problem, threads);
  run(set, set.linear_backward, problem, threads);
  const Results expected = naive_linear(problem);
  report.check("o", o, expected.o);
  gradients.check(report, expected);
}

template <class T>
void test_softmax(const KernelSet<T>& set, const Sizes& size, Memory memory, int threads, Report& report) {
  const Operands<T> operands(size, memory);
  const Tensor<T> o({size.batch, size.time, size.heads, size.dim_v}, output_memory(memory));
  const Tensor<T> normaliser({size.batch, size.heads, size.time, 2}, Memory::contiguous);
  const Gradients<T> gradients(size, output_memory(memory));
  SoftmaxProblem<T> problem;
  problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v;
  problem.scale = T(1 / std::sqrt(double(size.dim)));
  problem.o = o, problem.normaliser = normaliser.data(), problem.g = operands.g;
  problem.dq = gradients.dq, problem.dk = gradients.dk, problem.dv = gradients.dv;
  run(set, set.softmax_forward, problem, threads);
  run(set, set.softmax_backward, problem, threads);
  const Results expected = naive_softmax(problem);
  report.check("o", o, expected.o), report.check("normaliser", normaliser, expected.normaliser);
  gradients.check(report, expected);
}

// A A^T + I / 2 for every head, [B, H, D, D]: positive definite
template <class T>
Tensor<T> definite(const Sizes& size) {
  const Index dim = size.dim;
  Tensor<T> result({size.batch, size.heads, dim, dim}, Memory::contiguous);
  for (Index head = 0; head < size.all_heads(); ++head) {
    Matrix product(dim, dim);
    for (Index d = 0; d < dim; ++d) product(d, d) = 0.5;
    for (Index d = 0; d < dim; ++d) {
      Vector column(dim);
      for (double& value : column) value = normal() / std::sqrt(double(dim));
      product.add_outer(1, column, column);
    }
    for (Index i = 0; i < dim * dim; ++i) result.data()[head * dim * dim + i] = T(product.data[i]);
  }
  return result;
}

// |C_0| or |R_0^-1| of each head, at least its largest eigenvalue
template <class T>
Tensor<T> sizes_of_states(const Tensor<T>& matrices, const Sizes& size, bool inverted) {
  Tensor<T> result({size.batch, size.heads, 1, 1}, Memory::contiguous);
  for (Index head = 0; head < size.all_heads(); ++head) {
    Matrix matrix(size.dim, size.dim);
    std::copy_n(matrices.data() + head * size.dim * size.dim, size.dim * size.dim, matrix.data.begin());
    result.data()[head] = T(norm(inverted ? inverse(matrix) : matrix));
  }
  return result;
}

// What the kernels say of every head is between what a chunk can know, and they have seen no NaN.
template <class T>
void check_evidence(const char* name, const Tensor<T>& found, const Results& expected, const Report& report) {
  if (report.rounding * report.condition > 1e-3) return;
  std::vector<double> values;
  found.each([&](T value) { values.push_back(value); });
  for (std::size_t head = 0; head < expected.gains.size(); ++head) {
    const Range gain = expected.gains[head], condition = expected.conditions[head];
    const double *const of_head = values.data() + 3 * head, slack = 1.01;
    const bool right = of_head[0] * slack >= gain.low && of_head[0] <= gain.high * slack &&
                       of_head[1] * slack >= condition.low && of_head[1] <= condition.high * slack && of_head[2] == 0;
    if (right) continue;
    std::printf("FAILED %s, %s of head %zu: gain %g (%g to %g), condition %g (%g to %g), %g\n", report.place.c_str(), name,
                head, of_head[0], gain.low, gain.high, of_head[1], condition.low, condition.high, of_head[2]);
    std::exit(1);
  }
}

template <class T>
void test_mesa(const KernelSet<T>& set, const Sizes& size, Memory memory, const Gates& gates, bool with_state,
               bool shared_ridge, int threads, Report& report) {
  const auto [batch, time, heads, dim, dim_v] = size;
  const Shape tokens{batch, time, heads, 1};
  const Operands<T> operands(size, memory);
  const Memory ridge_memory = shared_ridge ? Memory::shared_rows : Memory::contiguous;
  const Tensor<T> ridge({batch, 1, heads, dim}, ridge_memory, [] { return uniform(0.5, 2); });
  const Tensor<T> write(tokens, memory, [] { return std::max(0.0, uniform(-0.3, 2)); });
  const Tensor<T> log_forget(tokens, memory, [&] { return uniform(gates.deepest, 0); });
  const Tensor<T> matrix = definite<T>(size);
  const Tensor<T> largest = sizes_of_states(matrix, size, !gates.constant);
  const Tensor<T> association({batch, heads, dim_v, dim}, Memory::contiguous, normal);
  const bool gated = gates.write || gates.forget;

  const Memory out = output_memory(memory);
  const Tensor<T> o({batch, time, heads, dim_v}, out);
  const Tensor<T> evidence({batch, 1, heads, 3}, out), evidence_alone({batch, 1, heads, 3}, out);
  const Tensor<T> final_matrix({batch, heads, dim, dim}, Memory::contiguous);
  const Tensor<T> final_association({batch, heads, dim_v, dim}, Memory::contiguous);
  const Gradients<T> gradients(size, out);
  const Tensor<T> dridge({batch, heads, 1, dim}, Memory::contiguous), dwrite(tokens, out), penalty(tokens, out);
  const Tensor<T> dassociation({batch, heads, dim_v, dim}, Memory::contiguous);
  const Tensor<T> pairs({batch, heads, dim, dim}, Memory::contiguous);
  const Index groups = groups_of(set.heads_per_group, size.all_heads());
  const Exact saved(groups * set.saved(size) * Index(sizeof(T)), not_a_number);

  MesaProblem<T> problem;
  problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v, problem.ridge = ridge;
  if (gates.write) problem.write = write;
  if (gates.forget) problem.log_forget = log_forget;
  problem.constant = gates.constant;
  if (with_state) problem.matrix = matrix.data(), problem.association = association.data();
  if (with_state) problem.largest = largest.data();
  problem.o = o, problem.evidence = evidence_alone, problem.g = operands.g;
  const Results expected = naive_mesa(problem);
  report.condition = expected.condition, report.gain = expected.gain;

  // without anything for the backward pass, then with it
  run(set, set.mesa_forward, problem, threads);
  report.check("o alone", o, expected.o);
  check_evidence("evidence alone", evidence_alone, expected, report);
  problem.evidence = evidence;
  problem.saved = static_cast<T*>(saved.data());
  problem.final_matrix = final_matrix.data(), problem.final_association = final_association.data();
  run(set, set.mesa_forward, problem, threads);
  problem.dq = gradients.dq, problem.dk = gradients.dk, problem.dv = gradients.dv, problem.dridge = dridge.data();
  if (gated) problem.dwrite = dwrite;
  if (gates.constant) problem.penalty = penalty;
  if (with_state) problem.dassociation = dassociation.data(), problem.pairs = pairs.data();
  run(set, set.mesa_backward, problem, threads);

  report.check("o", o, expected.o);
  check_evidence("evidence", evidence, expected, report);
  report.check("final matrix", final_matrix, expected.final_matrix);
  report.check("final association", final_association, expected.final_association);
  gradients.check(report, expected);
  report.check("dridge", dridge, expected.dridge);
  if (gated) report.check("dwrite", dwrite, expected.dwrite);
  if (gates.constant) report.check("penalty", penalty, expected.penalty);
  if (with_state) {
    report.check("dassociation", dassociation, expected.dassociation);
    report.check("pairs", pairs, expected.pairs);
  }
  report.condition = 1, report.gain = 0;
}

// A value that is not finite, anywhere in q, k or v, is seen.
template <class T>
void test_evidence(const KernelSet<T>& set, Report& report) {
  const Sizes size{2, 9, 3, 5, 4};
  Operands<T> operands(size, Memory::gaps);
  const Tensor<T> ridge({2, 1, 3, 5}, Memory::contiguous, [] { return 1; });
  for (const Tensor<T>* const operand : {&operands.q, &operands.k, &operands.v}) {
    for (const T bad : {std::numeric_limits<T>::infinity(), -std::numeric_limits<T>::infinity(),
                        std::numeric_limits<T>::quiet_NaN()}) {
      const Index last = size.dim - 1 - (operand == &operands.v);
      const Operand<T> where = *operand;
      T& number = where.data[where.batch + 7 * where.time + 2 * where.head + last * where.dim];
      const T before = number;
      number = bad;
      const Tensor<T> o({2, 9, 3, 4}, Memory::contiguous), evidence({2, 1, 3, 3}, Memory::contiguous);
      MesaProblem<T> problem;
      problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v;
      problem.ridge = ridge, problem.o = o, problem.evidence = evidence;
      run(set, set.mesa_forward, problem, 1);
      number = before;
      for (Index head = 0; head < 6; ++head) {
        const bool seen = std::isnan(evidence.data()[3 * head + 2]);
        if (seen == (head == 5)) continue;
        std::printf("FAILED %s: %g in the last head, and head %ld says it is %s\n", report.place.c_str(), double(bad),
                    long(head), seen ? "not finite" : "finite");
        std::exit(1);
      }
    }
  }
}

// For keys along one line, of signs that alternate so that their sum is zero, the largest eigenvalue is found.
template <class T>
void test_keys_along_a_line(const KernelSet<T>& set, Report& report) {
  const Sizes size{1, 200, 3, 5, 4};
  const Operands<T> operands(size, Memory::contiguous);
  const double ridge = 0.1, line[] = {0.6, -0.3, 0.2, 0.1, 0.5};
  const Tensor<T> penalty({1, 1, 3, 5}, Memory::contiguous, [&] { return ridge; });
  Index number = 0;
  double square = 0;
  for (const double x : line) square += x * x;
  operands.k.each([&](T& value) {
    value = T((number / 15 % 2 == 0 ? 1 : -1) * line[number % 5]);
    ++number;
  });
  const Tensor<T> o({1, 200, 3, 4}, Memory::contiguous), evidence({1, 1, 3, 3}, Memory::contiguous);
  MesaProblem<T> problem;
  problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v;
  problem.ridge = penalty, problem.o = o, problem.evidence = evidence;
  run(set, set.mesa_forward, problem, 1);
  const double spread = std::sqrt(0.8) / ridge, condition = (ridge + 200 * square) * spread;
  evidence.each([&, i = 0](T value) mutable {
    if (i++ % 3 != 1 || (value > 0.9 * condition && value < 1.2 * condition)) return;
    std::printf("FAILED %s: a condition number of %g, where it is %g\n", report.place.c_str(), double(value), condition);
    std::exit(1);
  });
}

// Calls from several threads at once, as autograd makes them, share the memory that is kept for the next call.
template <class T>
void test_calls_at_once(const KernelSet<T>& set, Report& report) {
  const Sizes size{3, 21, 7, 5, 6};
  const Operands<T> operands(size, Memory::contiguous);
  std::vector<Tensor<T>> outputs;
  for (int caller = 0; caller < 4; ++caller) outputs.emplace_back(Shape{3, 21, 7, 6}, Memory::contiguous);
  LinearProblem<T> problem;
  problem.size = size, problem.q = operands.q, problem.k = operands.k, problem.v = operands.v, problem.g = operands.g;
  std::vector<std::thread> callers;
  for (const Tensor<T>& output : outputs) {
    callers.emplace_back([&set, &output, problem]() mutable {
      problem.o = output;
      for (int round = 0; round < 20; ++round) run(set, set.linear_forward, problem, 2);
    });
  }
  for (std::thread& caller : callers) caller.join();
  const Results expected = naive_linear(problem);
  for (const Tensor<T>& output : outputs) report.check("o", output, expected.o);
}

// [rows, columns], as the maps of rows take them
Tensor<float> drawn(Index rows, Index columns, double scale = 1) {
  return {{1, rows, 1, columns}, Memory::contiguous, [=] { return scale * normal(); }};
}

Tensor<float> unwritten(Index rows, Index columns) { return {{1, rows, 1, columns}, Memory::contiguous}; }

template <class Problem>
void run_rows(const Kernel<Problem>& kernel, const Problem& problem, int threads) {
  const Index groups = row_groups(problem.size.rows);
  if (threads > 1) return run_groups(kernel, problem, groups, threads);
  const Exact memory(kernel.workspace(problem.size), 0);
  for (Index group = 0; group < groups; ++group) kernel.run(problem, group, no_group, memory.data());
}

// The sums over all groups of rows
Tensor<float> summed(const Tensor<float>& parts, Index groups, Index numbers) {
  Tensor<float> sums = unwritten(1, numbers);
  for (Index i = 0; i < numbers; ++i) {
    double sum = 0;
    for (Index group = 0; group < groups; ++group) sum += parts.data()[group * numbers + i];
    sums.data()[i] = float(sum);
  }
  return sums;
}

void test_maps(const Table& table, const MapsSizes& size, int threads, Report& report) {
  constexpr Index gap = 3;  // numbers between the rows of the first map
  const Index groups = row_groups(size.rows), numbers = size.width * size.all_outputs();
  const Tensor<float> x = drawn(size.rows, size.width), dx = unwritten(size.rows, size.width);
  const Tensor<float> parts = unwritten(groups, numbers);
  std::vector<Tensor<float>> w, y, g;
  MapsProblem problem{};
  problem.size = size, problem.x = x.data(), problem.dx = dx.data(), problem.dweights = parts.data();
  for (int m = 0; m < most_maps; ++m) {
    if (size.outputs[m] > 0) problem.w_rows[m] = size.width + (m == 0 ? gap : 0);
    w.push_back(drawn(size.outputs[m], problem.w_rows[m])), g.push_back(drawn(size.rows, size.outputs[m]));
    y.push_back(unwritten(size.rows, size.outputs[m]));
    if (size.outputs[m] > 0) problem.w[m] = w[m].data(), problem.g[m] = g[m].data(), problem.y[m] = y[m].data();
  }
  run_rows(table.maps_forward, problem, threads);
  run_rows(table.maps_backward, problem, threads);
  Vector expected_dx(std::size_t(size.rows * size.width)), dweights;
  for (int m = 0; m < most_maps; ++m) {
    if (size.outputs[m] == 0) continue;  // there is no such map
    const DenseResults expected = naive_map(problem, m);
    report.check("y", y[m], expected.y);
    for (std::size_t i = 0; i < expected_dx.size(); ++i) expected_dx[i] += expected.dx[i];
    append(dweights, expected.dweights);
  }
  report.check("dx", dx, expected_dx), report.check("dw", summed(parts, groups, numbers), dweights);
  problem.dx = nullptr;
  run_rows(table.maps_backward, problem, threads);
  report.check("dw alone", summed(parts, groups, numbers), dweights);
}

void test_mlp(const Table& table, const MlpSizes& size, int threads, Report& report) {
  const auto [rows, width, hidden] = size;
  const Index groups = row_groups(rows), numbers = 2 * width * hidden;
  // hidden numbers from far below zero to far above
  const Tensor<float> x = drawn(rows, width), w_1 = drawn(hidden, width, 3 / std::sqrt(double(width)));
  const Tensor<float> w_2 = drawn(width, hidden), y = unwritten(rows, width), g = drawn(rows, width);
  const Tensor<float> dx = unwritten(rows, width), parts = unwritten(groups, numbers);
  MlpProblem problem{};
  problem.size = size, problem.x = x.data(), problem.w_1 = w_1.data(), problem.w_2 = w_2.data();
  problem.y = y.data(), problem.g = g.data(), problem.dx = dx.data(), problem.dweights = parts.data();
  run_rows(table.mlp_forward, problem, threads);
  run_rows(table.mlp_backward, problem, threads);
  const DenseResults expected = naive_mlp(problem);
  report.check("y", y, expected.y), report.check("dx", dx, expected.dx);
  report.check("dw", summed(parts, groups, numbers), expected.dweights);
}

void test_norm(const Table& table, const NormSizes& size, int threads, Report& report) {
  const auto [rows, width] = size;
  const Index groups = row_groups(rows), numbers = 2 * width;
  // rows that lie far from zero
  const Tensor<float> x = {{1, rows, 1, width}, Memory::contiguous, [] { return 3 + normal(); }};
  const Tensor<float> scale = drawn(1, width), shift = drawn(1, width), y = unwritten(rows, width);
  const Tensor<float> g = drawn(rows, width), dx = unwritten(rows, width), parts = unwritten(groups, numbers);
  NormProblem problem{};
  problem.size = size, problem.epsilon = 1e-5f;
  problem.x = x.data(), problem.scale = scale.data(), problem.shift = shift.data(), problem.y = y.data();
  problem.g = g.data(), problem.dx = dx.data(), problem.dweights = parts.data();
  run_rows(table.norm_forward, problem, threads);
  run_rows(table.norm_backward, problem, threads);
  const DenseResults expected = naive_norm(problem);
  report.check("y", y, expected.y);
  if (width > 1) report.check("dx", dx, expected.dx);  // of one number there is only the rounding error of zero
  report.check("dw", summed(parts, groups, numbers), expected.dweights);
}

void test_sums(const Table& table, const SumsSizes& size, int threads, Report& report) {
  // of both signs and all sizes, so that sums in float32 would be others; zero where there is no part
  const auto number = [] { return std::exp(uniform(-20, 20)) * normal(); };
  const Tensor<float> parts({1, size.parts, 1, size.numbers}, Memory::contiguous, number);
  const Tensor<float> expected = summed(parts, size.parts, size.numbers);
  // the sums, and after them the parts, which stay what they are
  std::vector<float> all(expected.data(), expected.data() + size.numbers);
  all.insert(all.end(), parts.data(), parts.data() + size.parts * size.numbers);
  std::vector<float> found = all;
  std::fill_n(found.begin(), size.numbers, std::numeric_limits<float>::quiet_NaN());
  const SumsProblem problem{size, found.data() + size.numbers, found.data()};
  run_groups(table.sums, problem, sums_groups(size.numbers), threads);
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (found[i] == all[i]) continue;
    std::printf("FAILED %s: number %zu is %g and should be %g\n", report.place.c_str(), i, double(found[i]), double(all[i]));
    std::exit(1);
  }
  ++report.results;
}

void test_dense(const Table& table, const std::string& name) {
  Report report{name, std::numeric_limits<float>::epsilon()};
  random_numbers.seed(0);
  for (const int threads : thread_counts) {
    for (const MapsSizes& size : {MapsSizes{1, 1, {1, 0, 0}}, MapsSizes{33, 7, {5, 0, 9}}, MapsSizes{50, 13, {40, 0, 0}}, MapsSizes{64, 16, {16, 32, 0}},
                                  MapsSizes{700, 40, {80, 80, 80}}, MapsSizes{1025, 24, {10, 40, 17}},
                                  MapsSizes{70, 128, {256, 120, 8}}}) {
      report.place = "maps, " + name + ", " + std::to_string(size.rows) + " rows of " + std::to_string(size.width) +
                     ", " + std::to_string(threads) + " threads";
      test_maps(table, size, threads, report);
    }
    for (const MlpSizes& size : {MlpSizes{1, 1, 1}, MlpSizes{31, 3, 5}, MlpSizes{64, 16, 32}, MlpSizes{700, 40, 160},
                                 MlpSizes{1025, 20, 33}, MlpSizes{70, 128, 256}}) {
      report.place = "MLP, " + name + ", " + text({size.rows, size.width, size.hidden}) + ", " +
                     std::to_string(threads) + " threads";
      test_mlp(table, size, threads, report);
    }
    for (const NormSizes& size : {NormSizes{1, 1}, NormSizes{31, 5}, NormSizes{64, 16}, NormSizes{700, 40},
                                  NormSizes{1025, 27}}) {
      report.place = "LayerNorm, " + name + ", " + text({size.rows, size.width}) + ", " + std::to_string(threads) +
                     " threads";
      test_norm(table, size, threads, report);
    }
    for (const SumsSizes& size : {SumsSizes{0, 3}, SumsSizes{1, 1}, SumsSizes{20, 511}, SumsSizes{3, 1024},
                                  SumsSizes{7, 1300}}) {
      report.place = "sums, " + name + ", " + text({size.parts, size.numbers}) + ", " + std::to_string(threads) +
                     " threads";
      test_sums(table, size, threads, report);
    }
  }
  report.print(name);
}

// Blocks of the pool belong to one caller at a time and lie where they should, whatever was kept or released.
void test_pool() {
  constexpr std::size_t mebibyte = std::size_t(1) << 20;
  constexpr std::size_t sizes[] = {1, 5000, 3 * mebibyte / 2, 3 * mebibyte};
  std::atomic<int> failures{0};
  const auto use = [&](int caller) {
    for (int round = 0; round < 200; ++round) {
      const std::size_t bytes = sizes[round % 4];
      const Borrowed block(bytes);
      failures += std::uintptr_t(block.data()) % (bytes > mebibyte ? 2 * mebibyte : 64) != 0;
      std::memset(block.data(), caller, std::min<std::size_t>(bytes, 100));
      block.data()[bytes - 1] = char(caller);
      std::this_thread::yield();
      failures += block.data()[0] != caller || block.data()[bytes - 1] != caller;
    }
  };
  std::vector<std::thread> callers;
  for (int caller = 1; caller <= 4; ++caller) callers.emplace_back(use, caller);
  for (std::thread& caller : callers) caller.join();
  {
    // more than is kept, of which the first to come back is released, and one block that is too large to keep
    std::vector<std::unique_ptr<Borrowed>> blocks;
    for (int i = 0; i < 40; ++i) blocks.push_back(std::make_unique<Borrowed>(2 * mebibyte));
    blocks.push_back(std::make_unique<Borrowed>(Pool::most_kept + 1));
  }
  use(5);
  if (failures == 0) return;
  std::printf("FAILED pool: %d blocks are misplaced or have two owners\n", failures.load());
  std::exit(1);
}

// Every group is taken once, by whoever comes first, and the one that is said to follow is never one that comes before.
void test_shares() {
  constexpr Index groups = 1000;
  std::vector<Share> shares(3);
  for (Index owner = 0; owner < 3; ++owner) shares[owner].set(groups * owner / 3, groups * (owner + 1) / 3);
  std::vector<std::atomic<int>> taken(groups);
  std::atomic<int> failures{0};
  const auto take = [&](Index owner) {
    for (;;) {
      const auto [group, next] = shares[owner].take_first();
      if (group == no_group) break;
      ++taken[group], failures += next != no_group && next != group + 1;
      if (owner == 0) std::this_thread::yield();
    }
    for (Index other = owner + 1; other < owner + 3; ++other)
      for (Index group; (group = shares[other % 3].take_last()) != no_group;) ++taken[group];
  };
  std::vector<std::thread> threads;
  for (Index owner = 0; owner < 2; ++owner) threads.emplace_back(take, owner);  // the third never comes
  for (std::thread& thread : threads) thread.join();
  for (const std::atomic<int>& times : taken) failures += times != 1;
  if (failures == 0) return;
  std::printf("FAILED shares: %d groups were not taken once or not in order\n", failures.load());
  std::exit(1);
}

template <class T>
void test_set(const KernelSet<T>& set, const std::string& name) {
  Report report{name, std::numeric_limits<T>::epsilon()};
  random_numbers.seed(0);
  int turn = 0;
  for (const Sizes& size : shapes) {
    for (const Memory memory : memories) {
      const int threads = thread_counts[turn++ % 3];
      const std::string place = name + ", " + text({size.batch, size.time, size.heads, size.dim, size.dim_v}) +
                                ", memory " + std::to_string(int(memory)) + ", " +
                                std::to_string(threads) + " threads";
      report.place = "linear attention, " + place;
      test_linear(set, size, memory, threads, report);
      report.place = "softmax attention, " + place;
      if (set.softmax_forward.run != nullptr) test_softmax(set, size, memory, threads, report);
      for (const Gates& gates : all_gates) {
        // where the ridge fades so fast, solves in float32 are ill-conditioned
        if (sizeof(T) == 4 && !gates.constant && gates.deepest < -0.3) continue;
        for (const bool with_state : {false, true}) {
          report.place = "mesa attention, " + place + ", gates " + std::to_string(int(&gates - all_gates)) +
                         (with_state ? ", with a state" : "");
          test_mesa(set, size, memory, gates, with_state, turn % 2 == 0, threads, report);
        }
      }
    }
  }
  report.place = name + ", calls at once";
  test_calls_at_once(set, report);
  report.place = name + ", values that are not finite";
  test_evidence(set, report);
  report.place = name + ", keys along a line";
  test_keys_along_a_line(set, report);
  report.print(name);
}

}  // namespace

int main() {
  test_pool();
  test_shares();
  for (const InstructionSet& set : instruction_sets()) {
    if (!set.supported) {
      std::printf("%s: not on this processor\n", set.name().c_str());
      continue;
    }
    test_set(set.table->float_lanes, set.name() + " float lanes");
    test_set(set.table->float_columns, set.name() + " float columns");
    test_set(set.table->double_lanes, set.name() + " double lanes");
    test_set(set.table->double_columns, set.name() + " double columns");
    test_dense(*set.table, set.name() + " dense");
  }
}

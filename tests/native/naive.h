// Attention by its definition: loops in double, dense solves, every intermediate kept. Independent of the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>
#include <vector>

#include "problem.h"

using mesascope::Index;
using mesascope::Operand;
using mesascope::Sizes;
using Vector = std::vector<double>;

template <class T>
double get(const Operand<const T>& operand, Index b, Index t, Index h, Index d = 0) {
  return operand.data[b * operand.batch + t * operand.time + h * operand.head + d * operand.dim];
}

// token t of one head
template <class T>
Vector row(const Operand<const T>& operand, Index b, Index t, Index h, Index dim) {
  Vector result(dim);
  for (Index d = 0; d < dim; ++d) result[d] = get(operand, b, t, h, d);
  return result;
}

inline double dot(const Vector& a, const Vector& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

struct Matrix {
  Index rows, columns;
  Vector data;
  Matrix(Index rows, Index columns) : rows(rows), columns(columns), data(rows * columns) {}
  double& operator()(Index i, Index j) { return data[i * columns + j]; }
  double operator()(Index i, Index j) const { return data[i * columns + j]; }
  void scale(double factor) {
    for (double& value : data) value *= factor;
  }
  // += factor a b^T
  void add_outer(double factor, const Vector& a, const Vector& b) {
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) (*this)(i, j) += factor * a[i] * b[j];
  }
  Matrix transposed() const {
    Matrix result(columns, rows);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) result(j, i) = (*this)(i, j);
    return result;
  }
  Vector times(const Vector& x) const {
    Vector result(rows);
    for (Index i = 0; i < rows; ++i)
      for (Index j = 0; j < columns; ++j) result[i] += (*this)(i, j) * x[j];
    return result;
  }
};

// A^-1 B by Gaussian elimination with partial pivoting
inline Matrix solve(Matrix a, Matrix b) {
  const Index n = a.rows;
  for (Index j = 0; j < n; ++j) {
    Index pivot = j;
    for (Index i = j + 1; i < n; ++i)
      if (std::abs(a(i, j)) > std::abs(a(pivot, j))) pivot = i;
    for (Index c = 0; c < n; ++c) std::swap(a(j, c), a(pivot, c));
    for (Index c = 0; c < b.columns; ++c) std::swap(b(j, c), b(pivot, c));
    for (Index i = j + 1; i < n; ++i) {
      const double factor = a(i, j) / a(j, j);
      for (Index c = j; c < n; ++c) a(i, c) -= factor * a(j, c);
      for (Index c = 0; c < b.columns; ++c) b(i, c) -= factor * b(j, c);
    }
  }
  for (Index i = n - 1; i >= 0; --i) {
    for (Index c = 0; c < b.columns; ++c) {
      for (Index j = i + 1; j < n; ++j) b(i, c) -= a(i, j) * b(j, c);
      b(i, c) /= a(i, i);
    }
  }
  return b;
}

inline Vector solve(const Matrix& a, const Vector& b) {
  Matrix column(a.rows, 1);
  column.data = b;
  return solve(a, std::move(column)).data;
}

inline Matrix inverse(const Matrix& a) {
  Matrix unit(a.rows, a.rows);
  for (Index j = 0; j < a.rows; ++j) unit(j, j) = 1;
  return solve(a, std::move(unit));
}

inline double norm(const Matrix& a) { return std::sqrt(dot(a.data, a.data)); }

// The largest eigenvalue of a positive definite matrix, from below
inline double largest_eigenvalue(const Matrix& a) {
  Vector x(a.rows);
  for (Index i = 0; i < a.rows; ++i) x[i] = 1 + 0.1 * double(i % 7);
  double value = 0;
  for (int round = 0; round < 30; ++round) {
    const Vector next = a.times(x);
    value = std::sqrt(dot(next, next) / dot(x, x));
    const double scale = 1 / std::sqrt(dot(next, next));
    for (Index i = 0; i < a.rows; ++i) x[i] = scale * next[i];
  }
  return value;
}

// Between what evidence must be
struct Range {
  double low = 0, high = 0;
  void include(double least, double most) { low = std::max(low, least), high = std::max(high, most); }
};

// Results in the order in which a Tensor visits its numbers: o, dq, dk, dv, dwrite and penalty [B, T, H, .], the
// others [B, H, ., .].
struct Results {
  Vector o, final_matrix, final_association, dq, dk, dv, dridge, dwrite, penalty, dassociation, pairs, normaliser;
  double condition = 1, gain = 0;  // the largest |H_t| |H_t^-1| (Frobenius), and write_t k_t . H^-1 k_t before token t
  std::vector<Range> gains, conditions;  // what the kernels may say of each head, which know no more than chunks
};

inline void put(Vector& to, const Sizes& size, Index b, Index t, Index h, const Vector& row) {
  to.resize(size.batch * size.time * size.heads * Index(row.size()));
  std::copy(row.begin(), row.end(), to.begin() + ((b * size.time + t) * size.heads + h) * Index(row.size()));
}

inline void append(Vector& to, const Vector& values) { to.insert(to.end(), values.begin(), values.end()); }

// One head of mesa attention: H_t and G_t of every token, then reverse-mode differentiation of their recursions.
template <class T>
void naive_mesa_head(const mesascope::MesaProblem<T>& problem, Index b, Index h, Results& results) {
  const auto [batch, time, heads, dim, dim_v] = problem.size;
  const Vector ridge = row(problem.ridge, b, 0, h, dim);
  const auto write = [&](Index t) { return problem.write.data ? get(problem.write, b, t, h) : 1.0; };
  const auto forget = [&](Index t) { return problem.log_forget.data ? std::exp(get(problem.log_forget, b, t, h)) : 1.0; };
  Matrix penalty(dim, dim), state(dim, dim), association(dim_v, dim);
  for (Index d = 0; d < dim; ++d) penalty(d, d) = ridge[d];
  const Index head = b * heads + h;
  if (problem.matrix) {
    std::copy_n(problem.matrix + head * dim * dim, dim * dim, state.data.begin());
    if (!problem.constant) state = inverse(state);
  } else if (!problem.constant) {
    state = penalty;
  }
  if (problem.association) std::copy_n(problem.association + head * dim_v * dim, dim_v * dim, association.data.begin());
  std::vector<Vector> solved, pulled;  // H_t^-1 q_t and H_t^-1 G_t^T g_t
  const bool gated = problem.log_forget.data;
  const auto [smallest, largest] = std::minmax_element(ridge.begin(), ridge.end());
  Range gain, condition;
  Matrix start = state;
  if (problem.constant)
    for (Index d = 0; d < dim; ++d) start(d, d) += ridge[d];
  std::vector<Matrix> inverses{inverse(start)};  // before every token
  Vector forgotten{1};                           // the product of all forget factors, up to there
  double trace = 0, rest = problem.matrix ? norm(state) : problem.constant ? 0 : *largest;
  for (Index t = 0; t < time; ++t) {
    const Vector q = row(problem.q, b, t, h, dim), k = row(problem.k, b, t, h, dim), v = row(problem.v, b, t, h, dim_v);
    state.scale(forget(t)), association.scale(forget(t));
    state.add_outer(write(t), k, k), association.add_outer(write(t), v, k);
    Matrix hessian = state;
    if (problem.constant)
      for (Index d = 0; d < dim; ++d) hessian(d, d) += ridge[d];
    const Matrix inverted = inverse(hessian);
    // with r = H_t^-1, k . H^-1 k before token t is k . r k / (1 - write k . r k)
    const double leverage = std::min(1 - 1e-12, write(t) * dot(k, inverted.times(k)));
    results.condition = std::max(results.condition, norm(hessian) * norm(inverted));
    results.gain = std::max(results.gain, leverage / (1 - leverage));
    // with the inverse before token `first` and only forgetting since
    forgotten.push_back(forgotten[t] * forget(t));
    const auto reach = [&](Index first, auto of) { return of(inverses[first]) * forgotten[first] / forgotten[t + 1]; };
    const auto spread = [&](const Matrix& matrix) { return norm(matrix) / std::sqrt(double(dim)); };
    const auto square = [&](const Matrix& matrix) { return write(t) * dot(k, matrix.times(k)); };
    const Index chunk = std::max(Index(0), t - 15), measured = gated ? chunk : std::max(Index(0), t / 2 - 16);
    trace = trace * forget(t) + write(t) * dot(k, k), rest *= forget(t);
    const double condition_now = largest_eigenvalue(hessian) * spread(inverted);
    if (problem.constant) {
      const double exact = write(t) * dot(k, k) / *smallest;
      gain.include(exact, exact), condition.include(condition_now / 10, (*largest + rest + trace) / *smallest);
    } else {
      gain.include(reach(t, square), reach(chunk, square));
      condition.include(condition_now / 5, (rest + trace) * reach(measured, spread));
    }
    inverses.push_back(inverted);
    solved.push_back(solve(hessian, q));
    put(results.o, problem.size, b, t, h, association.times(solved[t]));
    if (problem.g.data) {
      pulled.push_back(solve(hessian, association.transposed().times(row(problem.g, b, t, h, dim_v))));
      put(results.dq, problem.size, b, t, h, pulled[t]);
    }
  }
  // where nothing is forgotten they do not look closely before it matters
  if (!gated) condition.high = std::max(condition.high, 128.0);
  results.gains.push_back(gain), results.conditions.push_back(condition);
  append(results.final_matrix, problem.constant ? state.data : inverse(state).data);
  append(results.final_association, association.data);
  if (!problem.g.data) return;
  Matrix by_state(dim, dim), by_association(dim_v, dim);  // dL/dH_t and dL/dG_t
  Vector dridge(dim);
  for (Index t = time - 1; t >= 0; --t) {
    const Vector k = row(problem.k, b, t, h, dim), v = row(problem.v, b, t, h, dim_v);
    by_association.add_outer(1, row(problem.g, b, t, h, dim_v), solved[t]);
    by_state.add_outer(-1, pulled[t], solved[t]);
    Vector dk = by_association.transposed().times(v), dv = by_association.times(k);
    const Vector left = by_state.times(k), right = by_state.transposed().times(k);
    put(results.dwrite, problem.size, b, t, h, {dot(left, k) + dot(dv, v)});
    double shrunk = 0;
    for (Index d = 0; d < dim; ++d) {
      dk[d] = write(t) * (dk[d] + left[d] + right[d]);
      shrunk += ridge[d] * pulled[t][d] * solved[t][d];
      if (problem.constant) dridge[d] -= pulled[t][d] * solved[t][d];
    }
    for (double& value : dv) value *= write(t);
    put(results.penalty, problem.size, b, t, h, {shrunk});
    put(results.dk, problem.size, b, t, h, dk), put(results.dv, problem.size, b, t, h, dv);
    by_state.scale(forget(t)), by_association.scale(forget(t));
  }
  for (Index d = 0; d < dim; ++d)
    if (!problem.constant) dridge[d] = by_state(d, d);
  append(results.dridge, dridge), append(results.dassociation, by_association.data);
  const Matrix other = by_state.transposed();
  for (std::size_t i = 0; i < other.data.size(); ++i) results.pairs.push_back(-(by_state.data[i] + other.data[i]) / 2);
}

template <class T>
Results naive_mesa(const mesascope::MesaProblem<T>& problem) {
  Results results;
  for (Index b = 0; b < problem.size.batch; ++b)
    for (Index h = 0; h < problem.size.heads; ++h) naive_mesa_head(problem, b, h, results);
  return results;
}

// Linear and softmax attention: out of weights w_ti and their derivatives dw_ti / d(q_t . k_i).
template <class Problem, class Weights>
Results naive_map(const Problem& problem, Weights weigh) {
  Results results;
  const auto [batch, time, heads, dim, dim_v] = problem.size;
  for (Index b = 0; b < batch; ++b) {
    for (Index h = 0; h < heads; ++h) {
      Matrix dk(time, dim), dv(time, dim_v);
      for (Index t = 0; t < time; ++t) {
        const Vector q = row(problem.q, b, t, h, dim), g = row(problem.g, b, t, h, dim_v);
        Vector logits(t + 1), pulls(t + 1), o(dim_v), dq(dim);
        for (Index i = 0; i <= t; ++i) {
          logits[i] = dot(q, row(problem.k, b, i, h, dim));
          pulls[i] = dot(g, row(problem.v, b, i, h, dim_v));
        }
        const auto [weights, derivatives, normaliser] = weigh(logits, pulls);
        for (Index i = 0; i <= t; ++i) {
          for (Index d = 0; d < dim_v; ++d) {
            o[d] += weights[i] * get(problem.v, b, i, h, d);
            dv(i, d) += weights[i] * g[d];
          }
          for (Index d = 0; d < dim; ++d) {
            dq[d] += derivatives[i] * get(problem.k, b, i, h, d);
            dk(i, d) += derivatives[i] * q[d];
          }
        }
        put(results.o, problem.size, b, t, h, o), put(results.dq, problem.size, b, t, h, dq);
        append(results.normaliser, normaliser);
      }
      for (Index t = 0; t < time; ++t) {
        put(results.dk, problem.size, b, t, h, Vector(&dk(t, 0), &dk(t, 0) + dim));
        put(results.dv, problem.size, b, t, h, Vector(&dv(t, 0), &dv(t, 0) + dim_v));
      }
    }
  }
  return results;
}

struct Weighed {
  Vector weights, derivatives, normaliser;
};

template <class T>
Results naive_linear(const mesascope::LinearProblem<T>& problem) {
  return naive_map(problem, [](const Vector& logits, const Vector& pulls) { return Weighed{logits, pulls, {0, 0}}; });
}

template <class T>
Results naive_softmax(const mesascope::SoftmaxProblem<T>& problem) {
  return naive_map(problem, [&](const Vector& products, const Vector& pulls) {
    Vector weights = products, derivatives;
    for (double& weight : weights) weight *= problem.scale;
    const double largest = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - largest);
    for (double& weight : weights) weight /= sum;
    const double mean = dot(weights, pulls);
    for (std::size_t i = 0; i < weights.size(); ++i)
      derivatives.push_back(problem.scale * weights[i] * (pulls[i] - mean));
    return Weighed{weights, derivatives, {largest, 1 / sum}};
  });
}

// [rows, columns] that is contiguous
inline Matrix matrix(const float* data, Index rows, Index columns) {
  Matrix result(rows, columns);
  std::copy_n(data, rows * columns, result.data.begin());
  return result;
}

inline Vector row(const Matrix& a, Index i) {
  return Vector(a.data.begin() + i * a.columns, a.data.begin() + (i + 1) * a.columns);
}

// y, dx and the gradients of the weights
struct DenseResults {
  Vector y, dx, dweights;
};

// One of the maps; dx is what it adds to the gradient of x
inline DenseResults naive_map(const mesascope::MapsProblem& problem, int m) {
  const Index rows = problem.size.rows, width = problem.size.width, outputs = problem.size.outputs[m];
  const Matrix x = matrix(problem.x, rows, width), g = matrix(problem.g[m], rows, outputs);
  Matrix w(outputs, width), dw(outputs, width);
  for (Index i = 0; i < outputs; ++i)
    for (Index j = 0; j < width; ++j) w(i, j) = problem.w[m][i * problem.w_rows[m] + j];
  DenseResults results;
  for (Index i = 0; i < rows; ++i) {
    append(results.y, w.times(row(x, i)));
    append(results.dx, w.transposed().times(row(g, i)));
    dw.add_outer(1, row(g, i), row(x, i));
  }
  results.dweights = dw.data;
  return results;
}

inline DenseResults naive_mlp(const mesascope::MlpProblem& problem) {
  const auto [rows, width, hidden] = problem.size;
  const Matrix x = matrix(problem.x, rows, width), g = matrix(problem.g, rows, width);
  const Matrix w_1 = matrix(problem.w_1, hidden, width), w_2 = matrix(problem.w_2, width, hidden);
  Matrix dw_1(hidden, width), dw_2(width, hidden);
  DenseResults results;
  for (Index i = 0; i < rows; ++i) {
    Vector activation = w_1.times(row(x, i)), pull = w_2.transposed().times(row(g, i));
    for (Index j = 0; j < hidden; ++j) {
      const double h = activation[j], distribution = std::erfc(-h / std::sqrt(2.0)) / 2;
      activation[j] = h * distribution;
      pull[j] *= distribution + h * std::exp(-h * h / 2) / std::sqrt(2 * std::acos(-1.0));
    }
    append(results.y, w_2.times(activation));
    append(results.dx, w_1.transposed().times(pull));
    dw_1.add_outer(1, pull, row(x, i)), dw_2.add_outer(1, row(g, i), activation);
  }
  results.dweights = dw_1.data;
  append(results.dweights, dw_2.data);
  return results;
}

inline DenseResults naive_norm(const mesascope::NormProblem& problem) {
  const auto [rows, width] = problem.size;
  const Matrix x = matrix(problem.x, rows, width), g = matrix(problem.g, rows, width);
  DenseResults results;
  results.dweights.resize(std::size_t(2 * width));
  for (Index i = 0; i < rows; ++i) {
    double mean = 0, variance = 0, pull = 0, along = 0;
    for (Index j = 0; j < width; ++j) mean += x(i, j) / width;
    for (Index j = 0; j < width; ++j) variance += (x(i, j) - mean) * (x(i, j) - mean) / width;
    const double deviation = std::sqrt(variance + problem.epsilon);
    for (Index j = 0; j < width; ++j) {
      const double z = (x(i, j) - mean) / deviation;
      results.y.push_back(problem.scale[j] * z + problem.shift[j]);
      pull += g(i, j) * problem.scale[j] / width, along += g(i, j) * problem.scale[j] * z / width;
      results.dweights[std::size_t(j)] += g(i, j) * z, results.dweights[std::size_t(width + j)] += g(i, j);
    }
    for (Index j = 0; j < width; ++j)
      results.dx.push_back((g(i, j) * problem.scale[j] - pull - (x(i, j) - mean) / deviation * along) / deviation);
  }
  return results;
}

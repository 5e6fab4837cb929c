// Mesa attention: ridge regression solved exactly at every time step, o_t = G_t H_t^-1 q_t (arXiv 2309.05858, eqs. 4-8).
//
// The state is R = H^-1 and G, carried from chunk to chunk. Inside a chunk, with K the keys as rows, R before the chunk
// and the Cholesky factor of I + K R K^T = U^T U,
//
//     Y = U^-T K R,     H_t^-1 x = R x - sum_{i <= t} y_i (y_i . x),     R <- R - Y^T Y:
//
// y_i is the i-th gain of recursive least squares, so solving is causal linear attention with keys and values Y. Errors
// in R are contracted by later keys as R is; no step is ever run in reverse.
//
// Gates: inside a chunk everything is divided by m_t, the product of the forget factors since its beginning. Then
// H'_t = H_t / m_t has no forgetting and keys sqrt(write_i / m_i) k_i, and the outputs do not change.
#pragma once

#include "evidence.h"
#include "linear.h"

namespace MESASCOPE_ISA {

// What backward needs of one group: the rows H'_t^-1 q_t and y_t for every token, and for every chunk U and what the
// effective keys give the queries, k_i . H'_t^-1 q_t at [i, t]. A chunk may write whole rows beyond its last token, which
// the next one overwrites: those of U then meet only rows of zeros, or rows that nobody reads.
template <class Layout>
struct Saved {
  using Element = typename Layout::Element;
  using T = typename Layout::Number;

  static constexpr Index narrow = round_up(Layout::chunk, Layout::width);

  Index stride, rows;
  Element* data;

  explicit Saved(const Sizes& size, T* memory = nullptr, Index group = 0)
      : stride(row_stride<Layout>(size.dim)), rows(size.time + Layout::chunk),
        data(memory == nullptr ? nullptr : reinterpret_cast<Element*>(memory + group * count())) {}

  Index count() const { return 2 * rows * (stride + narrow) * Layout::heads; }
  View<Element> solved(Index time) const { return {data + time * stride, stride}; }
  View<Element> gains(Index time) const { return {data + (rows + time) * stride, stride}; }
  View<Element> factor(Index time) const { return {data + 2 * rows * stride + time * narrow, narrow}; }
  View<Element> scores(Index time) const { return {data + 2 * rows * stride + (rows + time) * narrow, narrow}; }
};

template <class Layout>
inline Index mesa_saved(const Sizes& size) {
  return Saved<Layout>(size).count();
}

// Rows of a chunk times the roots of their factors, with zeros up to a whole chunk like `rows_to_read`
template <class Layout, class Element>
inline View<const Element> effective_rows(View<const Element> rows, const Gates<Layout>& gates, Index n, Index columns,
                                          View<Element> buffer) {
  if (!gates.any) return rows;
  clear<Layout>(buffer, n, Layout::chunk);
  scaled_rows<Layout>(buffer, rows, n, columns, [&](Index t) { return gates.root(t); });
  return constant(buffer);
}

template <class Layout, class Element>
inline Element dot(const Element* a, const Element* b, Index count) {
  Element sum{};
  for (Index i = 0; i < count; ++i) sum += a[i] * b[i];
  return sum;
}

// R = H'^-1 before a chunk, from the incoming inverse or 1 / ridge on the diagonal.
template <class Layout>
struct Inverse {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;

  View<Element> matrix, reciprocals;
  bool diagonal;  // and then only the reciprocals of the ridge are set

  void allocate(Workspace<Layout>& space, Index dim) {
    matrix = space.matrix(dim, dim), reciprocals = space.matrix(1, dim);
  }

  void begin(const MesaProblem<T>& problem, const Group<Layout>& group) {
    const Index dim = problem.size.dim;
    diagonal = problem.matrix == nullptr;
    if (!diagonal) return load_matrix(matrix, problem.matrix, problem.size, group, dim, dim);
    load_rows(reciprocals, problem.ridge, group, 0, 1, dim);
    for (Index d = 0; d < dim; ++d) reciprocals.data[d] = T(1) / reciprocals.data[d];
  }

  // y = x R for n rows, and other summands
  template <class... Summands>
  void multiply(Ahead& ahead, View<Element> y, View<const Element> x, Index n, Index dim, Summands... summands) const {
    if (!diagonal) return product<Layout, Into::assign>(ahead, y, n, dim, summands..., plus(x, constant(matrix), dim));
    for (Index t = 0; t < n; ++t)
      for (Index d = 0; d < dim; d += Layout::width)
        store(y.data + t * y.rows + d,
              Vector(load<Vector>(x.data + t * x.rows + d) * load<Vector>(reciprocals.data + d)));
    if constexpr (sizeof...(summands) > 0) product<Layout, Into::add>(ahead, y, n, dim, summands...);
  }

  // R <- (R - Y^T Y) / m
  void update(Ahead& ahead, View<const Element> gains, const Gates<Layout>& gates, Index n, Index dim) {
    if (diagonal) spread(dim);
    symmetric_product<Layout>(ahead, matrix, dim, minus(gains.transposed(), gains, n));
    if (gates.any) scale<Layout>(matrix, Element(T(1) / gates.last_decay), dim, dim);
  }

  void spread(Index dim) {
    clear<Layout>(matrix, 0, dim);
    for (Index d = 0; d < dim; ++d) matrix.data[d * matrix.rows + d] = reciprocals.data[d];
    diagonal = false;
  }
};

// For a ridge that is not forgotten, where the tokens share no factor: H_t = C_t + diag(ridge), one Cholesky
// factorisation for each token.
template <class Layout>
struct TokenSolver {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;

  View<Element> gram, factor, ridge, solution;
  Element smallest_ridge;

  void allocate(Workspace<Layout>& space, Index dim) {
    gram = space.matrix(dim, dim), factor = space.matrix(dim, dim);
    ridge = space.matrix(1, dim), solution = space.matrix(1, dim);
  }

  void begin(const MesaProblem<T>& problem, const Group<Layout>& group) {
    const Index dim = problem.size.dim;
    clear<Layout>(gram, 0, dim);
    if (problem.matrix != nullptr) load_matrix(gram, problem.matrix, problem.size, group, dim, dim);
    load_rows(ridge, problem.ridge, group, 0, 1, dim);
    smallest_ridge = ridge.data[0];
    for (Index d = 1; d < dim; ++d)
      smallest_ridge = ridge.data[d] < smallest_ridge ? ridge.data[d] : smallest_ridge;
  }

  // C <- forget C + write k k^T, and the factor of H
  void advance(const Element* key, Element forget, Element write, Index dim) {
    for (Index i = 0; i < dim; ++i) {
      const Element weight = write * key[i];
      for (Index n = 0; n < dim; n += Layout::width) {
        const Vector sum = forget * load<Vector>(gram.data + i * gram.rows + n) + weight * load<Vector>(key + n);
        store(gram.data + i * gram.rows + n, sum);
        store(factor.data + i * factor.rows + n, sum);
      }
      factor.data[i * factor.rows + i] += ridge.data[i];
    }
    cholesky<Layout>(factor, dim, smallest_ridge);
  }

  // y = by H^-1 x
  void solve(Element* y, const Element* x, Element by, Index dim) {
    constexpr Index width = Layout::width;
    Element* z = solution.data;
    for (Index d = 0; d < dim; ++d) z[d] = by * x[d];
    for (Index j = 0; j < dim; ++j) {
      const Element* row = factor.data + j * factor.rows;
      const Element pivot = z[j] *= row[j];
      for (Index d = j + 1; d < dim && d % width != 0; ++d) z[d] -= row[d] * pivot;
      for (Index n = round_up(j + 1, width); n < dim; n += width)
        store(z + n, Vector(load<Vector>(z + n) - load<Vector>(row + n) * pivot));
    }
    for (Index j = dim - 1; j >= 0; --j) {
      const Element* row = factor.data + j * factor.rows;
      Element sum{};
      Index d = j + 1;
      for (; d < dim && d % width != 0; ++d) sum += row[d] * z[d];
      if constexpr (width == 1) {
        for (; d < dim; ++d) sum += row[d] * z[d];
      } else {
        Vector lanes{};
        for (; d < dim; d += width) lanes += load<Vector>(row + d) * load<Vector>(z + d);
        for (int lane = 0; lane < width; ++lane) sum += lanes[lane];
      }
      z[j] = (z[j] - sum) * row[j];
    }
    for (Index d = 0; d < dim; ++d) y[d] = z[d];
  }

  // rows of x to m_t H_t^-1 x_t
  void solve_chunk(View<Element> solved, View<const Element> x, View<const Element> keys, const Gates<Layout>& gates,
                   Index n, Index dim) {
    for (Index t = 0; t < n; ++t) {
      advance(keys.data + t * keys.rows, gates.at(gates.forget, t), gates.at(gates.write, t), dim);
      solve(solved.data + t * solved.rows, x.data + t * x.rows, gates.at(gates.decay, t), dim);
    }
  }
};

template <class Layout>
struct MesaForward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<const Element> q, k, v;  // of the chunk
  View<Element> q_buffer, k_buffer, v_buffer, o_buffer, key, solved, gains, factor, scores, past, scratch;
  Inverse<Layout> inverse;
  Gates<Layout> gates;
  Evidence<Layout> evidence;  // for whoever decides whether the precision was enough
  TokenSolver<Layout> tokens;
  Ahead ahead;
  Index bytes;

  MesaForward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q_buffer = space.matrix(chunk, size.dim), k_buffer = space.matrix(chunk, size.dim);
    v_buffer = space.matrix(chunk, size.dim_v), o_buffer = space.matrix(chunk, size.dim_v);
    key = space.matrix(chunk, size.dim);
    solved = space.matrix(chunk, size.dim), gains = space.matrix(chunk, size.dim);
    factor = space.matrix(chunk, chunk), scores = space.matrix(chunk, chunk);
    inverse.allocate(space, size.dim), past = space.matrix(size.dim, size.dim_v);
    scratch = space.matrix(size.dim, chunk);
    gates.allocate(space);
    evidence.allocate(space, size.dim);
    tokens.allocate(space, size.dim);
    bytes = space.bytes();
  }

  // one group of heads, and what is read first of the next
  void run(const MesaProblem<T>& problem, Index index, Index next_index) {
    const Sizes& size = problem.size;
    const Index time = size.time, dim = size.dim, dim_v = size.dim_v;
    const Group<Layout> group(size, index), next = following<Layout>(size, next_index);
    if (problem.constant) {
      tokens.begin(problem, group);
    } else {
      inverse.begin(problem, group);
    }
    load_past(problem, group);
    begin_evidence(problem, group);
    bool empty = problem.association == nullptr;
    const Saved<Layout> saved(size, problem.saved, index);
    for (Index start = 0, n; start < time; start += n) {
      n = gates.begin(problem, group, start);
      if (saved.data != nullptr) {
        solved = saved.solved(start), gains = saved.gains(start);
        factor = saved.factor(start), scores = saved.scores(start);
      }
      ahead.finish();
      q = rows_to_read(problem.q, group, start, n, dim, q_buffer);
      k = rows_to_read(problem.k, group, start, n, dim, k_buffer);
      v = rows_to_read(problem.v, group, start, n, dim_v, v_buffer);
      const View<Element> o = rows_to_write(problem.o, group, start, n, dim_v, o_buffer);
      const bool last = start + n == time;
      ask_for_rows(ahead, problem.o, group, size, start, n, dim_v);
      ask_for_operands(ahead, problem, last ? next : group, last ? 0 : start + n);
      if (!last) {
        ask_for_saved(saved, start + n);
      } else if (next.count > 0) {
        ask_for_saved(Saved<Layout>(size, problem.saved, next_index), 0);
      }
      if (problem.constant) {
        const auto keys = effective_rows<Layout>(k, gates, n, dim, key);
        evidence.add_keys(keys, transposed<Layout>(keys, chunk, dim, scratch), gates, n, dim);
        tokens.solve_chunk(solved, q, k, gates, n, dim);
        measure_tokens(dim);
      } else {
        solve_queries(n, dim);
        if (!last || problem.final_matrix != nullptr)
          inverse.update(ahead, constant(gains), gates, n, dim);
        if (!last) evidence.measure(constant(inverse.matrix), dim);
      }
      if (gates.any) {
        // the effective keys of the linear part
        scaled_rows<Layout>(key, k, n, dim, [this](Index t) { return gates.factor(t); });
        k = constant(key);
      }
      if (problem.constant) {
        const auto solved_t = transposed<Layout>(constant(solved), chunk, dim, scratch);
        product<Layout, Into::assign, Part::upper>(ahead, scores, n, n, plus(k, solved_t, dim));
      }
      product<Layout, Into::assign>(ahead, o, n, dim_v, plus<Part::lower>(constant(scores.transposed()), v, n),
                                    plus(constant(solved), constant(past), empty ? 0 : dim));
      // not finite if a query or a value is not, and where sums have overflowed
      evidence.add_outputs(constant(o), n, dim_v);
      finish_rows(problem.o, o, group, start, n, dim_v);
      if (last) evidence.finish(problem, group);
      if (last && problem.final_association == nullptr) break;
      product<Layout, Into::add>(ahead, past, dim, dim_v, plus(k.transposed(), v, n));
      if (gates.any) scale<Layout>(past, gates.last_decay, dim, dim_v);
      empty = false;
    }
    if (problem.final_matrix != nullptr)
      store_matrix<Layout, T, Element>(problem.final_matrix, constant(problem.constant ? tokens.gram : inverse.matrix),
                                       size, group, dim, dim);
    if (problem.final_association != nullptr) {
      const Operand<T> transposed_matrix{problem.final_association, size.heads * dim * dim_v, 1, dim * dim_v, dim};
      store_rows<Layout, T, Element>(transposed_matrix, constant(past), group, 0, dim, dim_v);
    }
    ahead.finish();
  }

 private:
  // where the chunk from `start` on leaves what backward needs
  void ask_for_saved(const Saved<Layout>& saved, Index start) {
    if (saved.data == nullptr) return;
    ask_for_matrix(ahead, saved.gains(start), chunk), ask_for_matrix(ahead, saved.solved(start), chunk);
    ask_for_matrix(ahead, saved.factor(start), chunk), ask_for_matrix(ahead, saved.scores(start), chunk);
  }

  void begin_evidence(const MesaProblem<T>& problem, const Group<Layout>& group) {
    const Index dim = problem.size.dim;
    const bool with_state = problem.matrix != nullptr;
    Element largest{};  // eigenvalue of H_0 or C_0
    if (with_state) {
      load_rows(key, Operand<const T>{problem.largest, problem.size.heads, 0, 1, 0}, group, 0, 1, 1);
      largest = key.data[0];
    }
    if (problem.constant) {
      Element largest_ridge = tokens.ridge.data[0];
      for (Index d = 1; d < dim; ++d)
        largest_ridge = largest_ridge > tokens.ridge.data[d] ? largest_ridge : tokens.ridge.data[d];
      evidence.begin_constant(largest_ridge, tokens.smallest_ridge, largest, dim);
      if (!with_state) return;
      clear<Layout>(key, 0, 1);
      tokens.advance(key.data, Element{} + T(1), Element{}, dim);
      return measure_tokens(dim);
    }
    const bool forgetting = problem.log_forget.data != nullptr;
    if (with_state) return evidence.begin(largest, constant(inverse.matrix), dim, dim, forgetting);
    Element smallest = inverse.reciprocals.data[0];
    for (Index d = 1; d < dim; ++d)
      smallest = smallest < inverse.reciprocals.data[d] ? smallest : inverse.reciprocals.data[d];
    evidence.begin(T(1) / smallest, constant(inverse.reciprocals), 1, dim, forgetting);
  }

  void measure_tokens(Index dim) {
    evidence.measure_by([&](Element* y, const Element* x) { tokens.solve(y, x, Element{} + T(1), dim); }, dim);
  }

  // G is kept as [D, Dv], and [B, H, Dv, D] outside
  void load_past(const MesaProblem<T>& problem, const Group<Layout>& group) {
    const Index dim = problem.size.dim, dim_v = problem.size.dim_v;
    clear<Layout>(past, 0, dim);
    if (problem.association == nullptr) return;
    load_rows(past, Operand<const T>{problem.association, problem.size.heads * dim * dim_v, 1, dim * dim_v, dim}, group,
              0, dim, dim_v);
  }

  // Y of the chunk, the rows H'_t^-1 q_t, and in `scores`, at [i, t], how they meet the effective keys i <= t.
  //
  // With s_t = Y q_t up to token t that is U^-1 s_t: solved for, it keeps the digits that subtracting
  // (k R q - k Y^T s) loses where a small ridge makes R large.
  void solve_queries(Index n, Index dim) {
    find_gains(n, dim);
    const auto q_t = transposed<Layout>(q, chunk, dim, scratch);
    product<Layout, Into::assign, Part::upper>(ahead, scores, n, n, plus(constant(gains), q_t, dim));
    clear<Layout>(scores, n, chunk);
    inverse.multiply(ahead, solved, q, n, dim, minus<Part::lower>(constant(scores.transposed()), constant(gains), n));
    solve_upper<Layout>(constant(factor), scores, n);
    if (gates.any)
      scaled_rows<Layout>(scores, constant(scores), n, n, [this](Index t) { return gates.root(t); });
  }

  void find_gains(Index n, Index dim) {
    const auto keys = effective_rows<Layout>(k, gates, n, dim, key);
    clear<Layout>(gains, n, chunk);
    inverse.multiply(ahead, gains, keys, n, dim);
    const auto keys_t = transposed<Layout>(keys, chunk, dim, scratch);
    evidence.add_keys(keys, keys_t, gates, n, dim);
    product<Layout, Into::assign, Part::upper>(ahead, factor, chunk, chunk, plus(constant(gains), keys_t, dim));
    evidence.add_gains(constant(factor), n);
    for (Index i = 0; i < chunk; ++i) factor.data[i * factor.rows + i] += T(1);
    cholesky<Layout>(factor, chunk, Element{} + T(1));
    solve_transposed<Layout>(constant(factor), gains, dim);
  }
};

// With g = dL/do: first forward in time w_t = H_t^-1 G_t^T g_t = dq_t, then backward in time with the sums over the
// future P of m g q~^T and S of m (w q~^T + q~ w^T), where q~ = H^-1 q:
//
//     dv_i = write_i P_i k_i,     dk_i = write_i [P_i^T v_i - S_i k_i]
template <class Layout>
struct MesaBackward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> key, value, innovations, out_buffer, out_v_buffer, future, pairs;
  View<Element> pulls;  // of all chunks and effective keys, at [i, t]
  View<Element> gated_scores, gated_pulls;  // of one chunk where there are gates, at [t, i]
  View<Element> scratch, scratch_v, out_v_t, w, dridge, dwrite, penalty;
  View<Element> weights;  // Phi before the chunk; or G, if the ridge is not forgotten
  BackwardRows<Layout> rows;
  Inverse<Layout> inverse;
  Gates<Layout> gates;
  TokenSolver<Layout> tokens;
  Ahead ahead;
  Index bytes;
  Index* ends;  // where the chunks of the forward pass ended

  MesaBackward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    rows.allocate(space, size);
    key = space.matrix(chunk, size.dim), value = space.matrix(chunk, size.dim_v);
    innovations = space.matrix(chunk, size.dim_v);
    out_buffer = space.matrix(chunk, size.dim), out_v_buffer = space.matrix(chunk, size.dim_v);
    gated_scores = space.matrix(chunk, chunk), gated_pulls = space.matrix(chunk, chunk);
    pulls = space.matrix(size.time + chunk, chunk);
    inverse.allocate(space, size.dim), weights = space.matrix(size.dim_v, size.dim);
    future = space.matrix(size.dim_v, size.dim), out_v_t = space.matrix(size.dim_v, chunk);
    pairs = space.matrix(size.dim, size.dim);
    scratch = space.matrix(size.dim, chunk), scratch_v = space.matrix(size.dim_v, chunk);
    w = space.matrix(size.time, size.dim), dridge = space.matrix(1, size.dim), dwrite = space.matrix(chunk, 1);
    penalty = space.matrix(chunk, 1);
    gates.allocate(space);
    tokens.allocate(space, size.dim);
    ends = reinterpret_cast<Index*>(space.take((size.time + 1) * sizeof(Index) / sizeof(Element) + 1));
    bytes = space.bytes();
  }

  // one group of heads, and what is read first of the next
  void run(const MesaProblem<T>& problem, Index index, Index next_index) {
    const Sizes& size = problem.size;
    const Group<Layout> group(size, index);
    const Saved<Layout> saved(size, problem.saved, index);
    const Index chunks = solve_forward(problem, group, saved);
    accumulate_backward(problem, group, next_index, saved, chunks);
    ahead.finish();
  }

 private:
  Index solve_forward(const MesaProblem<T>& problem, const Group<Layout>& group, const Saved<Layout>& saved) {
    const Sizes& size = problem.size;
    const Index time = size.time, dim = size.dim, dim_v = size.dim_v;
    begin(problem, group);
    bool empty = problem.association == nullptr;
    Index chunks = 0;
    for (Index start = 0, n; start < time; start += n) {
      n = gates.begin(problem, group, start);
      ahead.finish();
      rows.read(problem, group, start, n);
      const View<Element> solved = w.from_row(start);
      const bool last = start + n == time;
      ask_for_rows(ahead, problem.dq, group, size, start, n, dim);
      if (!last) {
        rows.ask_for(ahead, problem, group, start + n);
        ask_for_matrix(ahead, saved.gains(start + n), chunk);
        ask_for_matrix(ahead, saved.factor(start + n), chunk);
      } else {
        ask_for_matrix(ahead, saved.solved(start), chunk);
        ask_for_matrix(ahead, saved.scores(start), chunk);
      }
      if (problem.constant) {
        solve_tokens(solved, n, dim, dim_v, empty, last);
      } else {
        regress(solved, saved, start, n, dim, dim_v, empty, last);
      }
      store_rows(problem.dq, constant(solved), group, start, n, dim);
      ends[chunks++] = start + n;
      empty = false;
    }
    return chunks;
  }

  void begin(const MesaProblem<T>& problem, const Group<Layout>& group) {
    const Index dim = problem.size.dim, dim_v = problem.size.dim_v;
    if (problem.constant) tokens.begin(problem, group);
    if (problem.association == nullptr) return clear<Layout>(weights, 0, dim_v);
    if (problem.constant) return load_matrix(weights, problem.association, problem.size, group, dim_v, dim);
    // Phi = G_0 H_0^-1
    inverse.begin(problem, group);
    load_matrix(future, problem.association, problem.size, group, dim_v, dim);
    inverse.multiply(ahead, weights, constant(future), dim_v, dim);
  }

  // w_t = H_t^-1 G_t^T g_t where the ridge is forgotten: the regression itself is carried from chunk to chunk. With Phi
  // before the chunk, and U and Y of the forward pass,
  //
  //     E = U^-T (V - K Phi^T),     Phi_t = Phi + sum_{i <= t} e_i y_i^T,     w_t = Phi_t^T g_t:
  //
  // what is subtracted are predictions, so that w keeps the digits that solving for G_t^T g_t loses. So do the pulls
  // g_t . v_i - w_t . k_i, of effective keys and values i <= t, as U^-1 s_t with s_t = E g_t up to token t.
  void regress(View<Element> solved, const Saved<Layout>& saved, Index start, Index n, Index dim, Index dim_v,
               bool empty, bool last) {
    const auto gains = constant(saved.gains(start)), factor = constant(saved.factor(start));
    const auto keys = effective_rows<Layout>(rows.k, gates, n, dim, key);
    const auto values = effective_rows<Layout>(rows.v, gates, n, dim_v, value);
    if (empty) {
      clear<Layout>(innovations, 0, n);
    } else {
      const auto keys_t = transposed<Layout>(keys, chunk, dim, scratch);
      multiply_transposed<Layout>(ahead, innovations, keys, keys_t, constant(weights), n, dim, dim_v, out_v_t);
    }
    subtract_from(innovations, values, n, dim_v);
    solve_transposed<Layout>(factor, innovations, dim_v);
    const auto g_t = transposed<Layout>(rows.g, chunk, dim_v, scratch_v);
    const View<Element> pull = pulls.from_row(start);
    product<Layout, Into::assign, Part::upper>(ahead, pull, n, n, plus(constant(innovations), g_t, dim_v));
    product<Layout, Into::assign>(ahead, solved, n, dim, plus<Part::lower>(constant(pull.transposed()), gains, n),
                                  plus(rows.g, constant(weights), empty ? 0 : dim_v));
    if (!gates.any) {
      clear<Layout>(pull, n, chunk);
      solve_upper<Layout>(factor, pull, n);
    }
    if (last) return;
    product<Layout, Into::add>(ahead, weights, dim_v, dim, plus(constant(innovations).transposed(), gains, n));
  }

  // predictions <- values - predictions
  static void subtract_from(View<Element> predictions, View<const Element> values, Index n, Index columns) {
    using Vector = typename Layout::Vector;
    for (Index t = 0; t < n; ++t) {
      Element* to = predictions.data + t * predictions.rows;
      for (Index d = 0; d < columns; d += Layout::width)
        store(to + d, Vector(load<Vector>(values.data + t * values.rows + d) - load<Vector>(to + d)));
    }
  }

  // the same where the ridge is not forgotten, token by token for G_t^T g_t
  void solve_tokens(View<Element> solved, Index n, Index dim, Index dim_v, bool empty, bool last) {
    const auto k = rows.k, v = rows.v, g = rows.g;
    scaled_rows<Layout>(key, k, n, dim, [this](Index t) { return gates.factor(t); });
    const View<Element> out = out_buffer;
    const auto v_t = transposed<Layout>(v, chunk, dim_v, scratch_v);
    product<Layout, Into::assign, Part::lower>(ahead, gated_scores, n, n, plus(g, v_t, dim_v));
    product<Layout, Into::assign>(ahead, out, n, dim, plus<Part::lower>(constant(gated_scores), constant(key), n),
                                  plus(g, constant(weights), empty ? 0 : dim_v));
    tokens.solve_chunk(solved, constant(out), k, gates, n, dim);
    if (last) return;
    product<Layout, Into::add>(ahead, weights, dim_v, dim, plus(v.transposed(), constant(key), n));
    scale<Layout>(weights, gates.last_decay, dim_v, dim);
  }

  void accumulate_backward(const MesaProblem<T>& problem, const Group<Layout>& group, Index next_index,
                           const Saved<Layout>& saved, Index chunks) {
    const Sizes& size = problem.size;
    const Index dim = size.dim, dim_v = size.dim_v;
    clear<Layout>(future, 0, dim_v);
    clear<Layout>(pairs, 0, dim);
    clear<Layout>(dridge, 0, 1);
    for (Index index = chunks - 1; index >= 0; --index) {
      const Index start = index == 0 ? 0 : ends[index - 1];
      const Index n = gates.begin(problem, group, start);
      const bool last = index == chunks - 1;
      const auto solved = constant(saved.solved(start));
      const auto w_rows = constant(w.from_row(start));
      const Index before = index < 2 ? 0 : ends[index - 2];
      ahead.finish();
      rows.read_again(problem, group, start, n);
      ask_for_rows(ahead, problem.dv, group, size, start, n, dim_v);
      ask_for_rows(ahead, problem.dk, group, size, start, n, dim);
      if (index > 0) {
        ask_for_matrix(ahead, saved.solved(before), chunk);
        ask_for_matrix(ahead, saved.scores(before), chunk);
        ask_for_written<Layout>(ahead, w, size.time, before);
        ask_for_written<Layout>(ahead, pulls, size.time, before);
        rows.ask_for_again(ahead, problem, group, before);
      } else if (next_index != mesascope::no_group) {
        const Saved<Layout> next(size, problem.saved, next_index);
        rows.ask_for(ahead, problem, Group<Layout>(size, next_index), 0);
        ask_for_matrix(ahead, next.gains(0), chunk);
        ask_for_matrix(ahead, next.factor(0), chunk);
      }
      const auto k = rows.k, v = rows.v, g = rows.g;
      if (gates.any && !last) {
        scale<Layout>(future, gates.last_decay, dim_v, dim);
        scale<Layout>(pairs, gates.last_decay, dim, dim);
      }
      // a ridge that is forgotten reaches token t as m_t ridge
      if (gates.any && !problem.constant) scale<Layout>(dridge, gates.last_decay, 1, dim);
      const View<Element> out = rows_to_write(problem.dk, group, start, n, dim, out_buffer);
      const View<Element> out_v = rows_to_write(problem.dv, group, start, n, dim_v, out_v_buffer);
      const auto k_t = transposed<Layout>(k, chunk, dim, scratch);
      // k_i . q~_t and v_i . g_t - k_i . w_t at [i, t]
      auto score = constant(saved.scores(start)), pull = constant(pulls.from_row(start));
      if (gates.any) {
        // those that are kept are of effective keys, which may be zero
        const auto v_t = transposed<Layout>(v, chunk, dim_v, scratch_v);
        product<Layout, Into::assign, Part::lower>(ahead, gated_scores, n, n, plus(solved, k_t, dim));
        product<Layout, Into::assign, Part::lower>(ahead, gated_pulls, n, n, plus(g, v_t, dim_v),
                                                   minus(w_rows, k_t, dim));
        score = constant(gated_scores.transposed()), pull = constant(gated_pulls.transposed());
      }
      // dv = k P^T + upper(k q~^T) g
      future_values<Layout>(ahead, out_v, g, score, k, k_t, constant(future), last, n, dim, dim_v, out_v_t);
      // dk = v P - k S + upper(v g^T - k w^T) q~ - upper(k q~^T) w
      product<Layout, Into::assign>(ahead, out, n, dim, plus<Part::upper>(pull, solved, n),
                                    minus<Part::upper>(score, w_rows, n),
                                    plus(v, constant(future), last ? 0 : dim_v),
                                    minus(k, constant(pairs), last ? 0 : dim));
      // what lies before needs the sums from here on
      if (index > 0 || problem.dassociation != nullptr)
        product<Layout, Into::add>(ahead, future, dim_v, dim, plus(g.transposed(), solved, n));
      if (index > 0 || problem.pairs != nullptr)
        symmetric_product<Layout>(ahead, pairs, dim, plus(w_rows.transposed(), solved, n),
                                  plus(solved.transposed(), w_rows, n));
      add_ridge_gradient(problem, w_rows, solved, n);
      if (problem.penalty.data != nullptr) find_penalty(problem, group, w_rows, solved, start, n);
      if (gates.any) weigh(problem, group, out, out_v, start, n);
      finish_rows(problem.dv, out_v, group, start, n, dim_v);
      finish_rows(problem.dk, out, group, start, n, dim);
    }
    store_matrix<Layout, T, Element>(problem.dridge, constant(dridge), size, group, 1, dim);
    if (problem.dassociation != nullptr)
      store_matrix<Layout, T, Element>(problem.dassociation, constant(future), size, group, dim_v, dim);
    if (problem.pairs == nullptr) return;
    scale<Layout>(pairs, Element{} + T(0.5), dim, dim);
    store_matrix<Layout, T, Element>(problem.pairs, constant(pairs), size, group, dim, dim);
  }

  // dridge -= sum_t w_t q~_t, for each coordinate
  void add_ridge_gradient(const MesaProblem<T>& problem, View<const Element> w_rows, View<const Element> solved,
                          Index n) {
    using Vector = typename Layout::Vector;
    const bool grows = problem.constant && gates.any;
    for (Index d = 0; d < problem.size.dim; d += Layout::width) {
      // summed within the chunk first: thousands of small terms would lose digits one by one
      Vector sum{};
      for (Index t = 0; t < n; ++t) {
        const Vector both =
            load<Vector>(w_rows.data + t * w_rows.rows + d) * load<Vector>(solved.data + t * solved.rows + d);
        sum += grows ? Vector(gates.growth(t) * both) : both;
      }
      store(dridge.data + d, Vector(load<Vector>(dridge.data + d) - sum));
    }
  }

  // sum_d ridge_d w_d q~_d of each token, which the gradient of log_forget needs
  void find_penalty(const MesaProblem<T>& problem, const Group<Layout>& group, View<const Element> w_rows,
                    View<const Element> solved, Index start, Index n) {
    const Index dim = problem.size.dim;
    for (Index t = 0; t < n; ++t) {
      Element sum{};
      for (Index d = 0; d < dim; ++d)
        sum += tokens.ridge.data[d] * w_rows.data[t * w_rows.rows + d] * solved.data[t * solved.rows + d];
      penalty.data[t * penalty.rows] = sum * gates.growth(t);
    }
    store_rows(problem.penalty, constant(penalty), group, start, n, 1);
  }

  // The gates' own gradient, and their factor on those of keys and values: with dk and dv as they are before it,
  // dwrite_i = (dk_i . k_i + dv_i . v_i) / (2 m_i).
  void weigh(const MesaProblem<T>& problem, const Group<Layout>& group, View<Element> out, View<Element> out_v,
             Index start, Index n) {
    const Index dim = problem.size.dim, dim_v = problem.size.dim_v;
    for (Index t = 0; t < n; ++t) {
      const Element both = dot<Layout>(out.data + t * out.rows, rows.k.data + t * rows.k.rows, dim) +
                           dot<Layout>(out_v.data + t * out_v.rows, rows.v.data + t * rows.v.rows, dim_v);
      dwrite.data[t * dwrite.rows] = T(0.5) * both / gates.at(gates.decay, t);
    }
    const auto factor = [this](Index t) { return gates.factor(t); };
    scaled_rows<Layout>(out, constant(out), n, dim, factor);
    scaled_rows<Layout>(out_v, constant(out_v), n, dim_v, factor);
    if (problem.dwrite.data != nullptr) store_rows(problem.dwrite, constant(dwrite), group, start, n, 1);
  }
};

}  // namespace MESASCOPE_ISA

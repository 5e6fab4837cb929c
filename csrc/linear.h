// Causal linear attention, o_t = sum_{i <= t} v_i (k_i . q_t), in chunks of tokens. Between them is G, the sum of v k^T
// over the past.
#pragma once

#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::LinearProblem;

// One chunk, o = lower(q k^T) v + q G; then, if it is not the last one, G <- G + k^T v. G is stored as [D, Dv], so that
// whole rows are read, and not read before the first chunk.
template <class Layout, class Element>
inline void attend_chunk(Ahead& ahead, View<Element> o, View<const Element> q, View<const Element> k,
                         View<const Element> v, View<Element> past, bool first, bool last, Index n, Index dim,
                         Index dim_v, View<Element> scores, View<Element> scratch) {
  const auto k_t = transposed<Layout>(k, Layout::chunk, dim, scratch);
  product<Layout, Into::assign, Part::lower>(ahead, scores, n, n, plus(q, k_t, dim));
  product<Layout, Into::assign>(ahead, o, n, dim_v, plus<Part::lower>(constant(scores), v, n),
                                plus(q, constant(past), first ? 0 : dim));
  if (!last) product<Layout, Into::add>(ahead, past, dim, dim_v, plus(k.transposed(), v, n));
}

template <class Layout>
struct LinearForward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> q_buffer, k_buffer, v_buffer, o_buffer, scores, past, scratch;
  Ahead ahead;
  Index bytes;

  LinearForward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q_buffer = space.matrix(chunk, size.dim), k_buffer = space.matrix(chunk, size.dim);
    v_buffer = space.matrix(chunk, size.dim_v), o_buffer = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk), past = space.matrix(size.dim, size.dim_v);
    scratch = space.matrix(size.dim, chunk);
    bytes = space.bytes();
  }

  // one group of heads, and what is read first of the next
  void run(const LinearProblem<T>& problem, Index index, Index next_index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index), next = following<Layout>(problem.size, next_index);
    clear<Layout>(past, 0, dim);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = time - start < chunk ? time - start : chunk;
      const bool last = start + n == time;
      ahead.finish();
      ask_for_rows(ahead, problem.o, group, problem.size, start, n, dim_v);
      ask_for_operands(ahead, problem, last ? next : group, last ? 0 : start + n);
      const auto q = rows_to_read(problem.q, group, start, n, dim, q_buffer);
      const auto k = rows_to_read(problem.k, group, start, n, dim, k_buffer);
      const auto v = rows_to_read(problem.v, group, start, n, dim_v, v_buffer);
      const auto o = rows_to_write(problem.o, group, start, n, dim_v, o_buffer);
      attend_chunk<Layout>(ahead, o, q, k, v, past, start == 0, last, n, dim, dim_v, scores, scratch);
      finish_rows(problem.o, o, group, start, n, dim_v);
    }
    ahead.finish();
  }
};

// out = x M^T for n rows x, with M of `rows` rows, and x_t what `transposed` makes of x.
template <class Layout, class Element>
inline void multiply_transposed(Ahead& ahead, View<Element> out, View<const Element> x, View<const Element> x_t,
                                View<const Element> matrix, Index n, Index dim, Index rows, View<Element> scratch) {
  if constexpr (Layout::width == 1) {
    product<Layout, Into::assign>(ahead, out, n, rows, plus(x, matrix.transposed(), dim));
  } else {
    // transposed, because that is cheaper than transposing M
    product<Layout, Into::assign>(ahead, scratch, rows, n, plus(matrix, x_t, dim));
    transpose(out.data, out.rows, scratch.data, scratch.rows, rows, n);
  }
}

// The gradient of the values of a chunk, upper(k q^T) g + k P^T, with scores k q^T, and P = 0 if there is no future.
template <class Layout, class Element>
inline void future_values(Ahead& ahead, View<Element> out, View<const Element> g, View<const Element> scores,
                          View<const Element> k, View<const Element> k_t, View<const Element> future, bool last,
                          Index n, Index dim, Index dim_v, View<Element> scratch) {
  if (last) return product<Layout, Into::assign>(ahead, out, n, dim_v, plus<Part::upper>(scores, g, n));
  if constexpr (Layout::width == 1) {
    product<Layout, Into::assign>(ahead, out, n, dim_v, plus<Part::upper>(scores, g, n),
                                  plus(k, future.transposed(), dim));
  } else {
    multiply_transposed<Layout>(ahead, out, k, k_t, future, n, dim, dim_v, scratch);
    product<Layout, Into::add>(ahead, out, n, dim_v, plus<Part::upper>(scores, g, n));
  }
}

// First forward in time, dq_t = G_t^T g_t, which is attention with g, v, k for q, k, v; then backward with P, the sum of
// g q^T over the future: dv_i = P_i k_i, dk_i = P_i^T v_i
template <class Layout>
struct LinearBackward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> q_buffer, out_buffer, out_v_buffer, out_v_t, scores, past, future, scratch, scratch_v;
  View<Element> pulls;  // of all chunks
  BackwardRows<Layout> rows;
  Ahead ahead;
  Index bytes;

  LinearBackward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    rows.allocate(space, size);
    q_buffer = space.matrix(chunk, size.dim);
    out_buffer = space.matrix(chunk, size.dim), out_v_buffer = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk), pulls = space.matrix(size.time + chunk, chunk);
    past = space.matrix(size.dim_v, size.dim), future = space.matrix(size.dim_v, size.dim);
    scratch = space.matrix(size.dim, chunk), scratch_v = space.matrix(size.dim_v, chunk);
    out_v_t = space.matrix(size.dim_v, chunk);
    bytes = space.bytes();
  }

  // one group of heads, and what is read first of the next
  void run(const LinearProblem<T>& problem, Index index, Index next_index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index), next = following<Layout>(problem.size, next_index);
    clear<Layout>(past, 0, dim_v);
    clear<Layout>(future, 0, dim_v);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = time - start < chunk ? time - start : chunk;
      const bool last = start + n == time;
      ahead.finish();
      rows.read(problem, group, start, n);
      ask_for_rows(ahead, problem.dq, group, problem.size, start, n, dim);
      if (last) {
        ask_for_rows(ahead, problem.q, group, problem.size, start, n, dim);
      } else {
        rows.ask_for(ahead, problem, group, start + n);
      }
      const auto out = rows_to_write(problem.dq, group, start, n, dim, out_buffer);
      attend_chunk<Layout>(ahead, out, rows.g, rows.v, rows.k, past, start == 0, last, n, dim_v, dim,
                           pulls.from_row(start), scratch_v);
      finish_rows(problem.dq, out, group, start, n, dim);
    }
    for (Index start = (time - 1) / chunk * chunk; start >= 0; start -= chunk) {
      const Index n = time - start < chunk ? time - start : chunk;
      ahead.finish();
      rows.read_again(problem, group, start, n);
      const auto k = rows.k, v = rows.v, g = rows.g;
      ask_for_rows(ahead, problem.dv, group, problem.size, start, n, dim_v);
      ask_for_rows(ahead, problem.dk, group, problem.size, start, n, dim);
      if (start > 0) {
        ask_for_rows(ahead, problem.q, group, problem.size, start - chunk, chunk, dim);
        ask_for_written<Layout>(ahead, pulls, time, start - chunk);
        rows.ask_for_again(ahead, problem, group, start - chunk);
      } else {
        rows.ask_for(ahead, problem, next, 0);
      }
      const auto q = rows_to_read(problem.q, group, start, n, dim, q_buffer);
      const auto out = rows_to_write(problem.dk, group, start, n, dim, out_buffer);
      const auto out_v = rows_to_write(problem.dv, group, start, n, dim_v, out_v_buffer);
      const bool last = start + n == time;
      // scores q k^T and pulls g v^T, which the first loop has left, as [t, i]
      const auto k_t = transposed<Layout>(k, chunk, dim, scratch);
      const View<Element> pull = pulls.from_row(start);
      product<Layout, Into::assign, Part::lower>(ahead, scores, n, n, plus(q, k_t, dim));
      future_values<Layout>(ahead, out_v, g, constant(scores.transposed()), k, k_t, constant(future), last, n, dim,
                            dim_v, out_v_t);
      product<Layout, Into::assign>(ahead, out, n, dim, plus<Part::upper>(constant(pull.transposed()), q, n),
                                    plus(v, constant(future), last ? 0 : dim_v));
      if (start > 0) product<Layout, Into::add>(ahead, future, dim_v, dim, plus(g.transposed(), q, n));
      finish_rows(problem.dv, out_v, group, start, n, dim_v);
      finish_rows(problem.dk, out, group, start, n, dim);
    }
    ahead.finish();
  }
};

}  // namespace MESASCOPE_ISA

// Causal linear attention, o_t = sum_{i <= t} v_i (k_i . q_t), in chunks of tokens with the sum of the past between them.
#pragma once

#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::LinearProblem;

// G, the sum of v k^T over the past, stored as [D, Dv] so that o = q G reads whole rows
template <class Layout>
struct LinearForward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> q_buffer, k_buffer, v_buffer, o_buffer, scores, past, scratch;
  Index bytes;

  LinearForward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q_buffer = space.matrix(chunk, size.dim), k_buffer = space.matrix(chunk, size.dim);
    v_buffer = space.matrix(chunk, size.dim_v), o_buffer = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk), past = space.matrix(size.dim, size.dim_v);
    scratch = space.matrix(size.dim, chunk);
    bytes = space.bytes();
  }

  void run(const LinearProblem<T>& problem, Index index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    clear<Layout>(past, 0, dim);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = time - start < chunk ? time - start : chunk;
      prefetch_rows(problem.q, group, problem.size, start + n, chunk, dim);
      prefetch_rows(problem.k, group, problem.size, start + n, chunk, dim);
      prefetch_rows(problem.v, group, problem.size, start + n, chunk, dim_v);
      prefetch_rows<true>(problem.o, group, problem.size, start, n, dim_v);
      const auto q = rows_to_read(problem.q, group, start, n, dim, q_buffer);
      const auto k = rows_to_read(problem.k, group, start, n, dim, k_buffer);
      const auto v = rows_to_read(problem.v, group, start, n, dim_v, v_buffer);
      const auto o = rows_to_write(problem.o, group, start, n, dim_v, o_buffer);
      const auto k_t = transposed<Layout>(k, chunk, dim, scratch);
      product<Layout, Into::assign, Part::all, Part::lower>(scores, q, k_t, n, n, dim);
      keep<Layout, Part::lower>(scores, n, chunk);
      product<Layout, Into::assign, Part::lower>(o, constant(scores), v, n, dim_v, n);
      if (start > 0) product<Layout, Into::add>(o, q, constant(past), n, dim_v, dim);
      if (start + n < time) product<Layout, Into::add>(past, k.transposed(), v, dim, dim_v, n);
      finish_rows(problem.o, o, group, start, n, dim_v);
    }
  }
};

// First forward in time with G as [Dv, D], dq_t = G_t^T g_t; then backward with P, the sum of g q^T over the future:
// dv_i = P_i k_i, dk_i = P_i^T v_i
template <class Layout>
struct LinearBackward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<const Element> k, v, g;  // of the chunk
  View<Element> q_buffer, out_buffer, out_v_buffer, scores, past, future, scratch, scratch_v, future_t;
  Rows<Layout> keys, values, gradients;
  bool kept;
  Index bytes;

  LinearBackward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    kept = keep_rows<Layout>(size);
    keys.allocate(space, size.time, size.dim, kept, chunk), values.allocate(space, size.time, size.dim_v, kept, chunk);
    gradients.allocate(space, size.time, size.dim_v, kept, chunk);
    q_buffer = space.matrix(chunk, size.dim);
    out_buffer = space.matrix(chunk, size.dim), out_v_buffer = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk);
    past = space.matrix(size.dim_v, size.dim), future = space.matrix(size.dim_v, size.dim);
    scratch = space.matrix(size.dim, chunk), scratch_v = space.matrix(size.dim_v, chunk);
    future_t = space.matrix(size.dim, size.dim_v);
    bytes = space.bytes();
  }

  void run(const LinearProblem<T>& problem, Index index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    clear<Layout>(past, 0, dim_v);
    clear<Layout>(future, 0, dim_v);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = load_chunk(problem, group, start);
      prefetch_chunk(problem, group, start + n);
      prefetch_rows<true>(problem.dq, group, problem.size, start, n, dim);
      const auto out = rows_to_write(problem.dq, group, start, n, dim, out_buffer);
      const auto v_t = transposed<Layout>(v, chunk, dim_v, scratch_v);
      product<Layout, Into::assign, Part::all, Part::lower>(scores, g, v_t, n, n, dim_v);
      keep<Layout, Part::lower>(scores, n, chunk);
      product<Layout, Into::assign, Part::lower>(out, constant(scores), k, n, dim, n);
      if (start > 0) product<Layout, Into::add>(out, g, constant(past), n, dim, dim_v);
      if (start + n < time) product<Layout, Into::add>(past, v.transposed(), k, dim_v, dim, n);
      finish_rows(problem.dq, out, group, start, n, dim);
    }
    for (Index start = (time - 1) / chunk * chunk; start >= 0; start -= chunk) {
      const Index n = kept ? find_chunk(problem.size, start) : load_chunk(problem, group, start);
      if (start > 0) {
        if (!kept) prefetch_chunk(problem, group, start - chunk);
        prefetch_rows(problem.q, group, problem.size, start - chunk, chunk, dim);
      }
      prefetch_rows<true>(problem.dk, group, problem.size, start, n, dim);
      prefetch_rows<true>(problem.dv, group, problem.size, start, n, dim_v);
      const auto q = rows_to_read(problem.q, group, start, n, dim, q_buffer);
      const auto out = rows_to_write(problem.dk, group, start, n, dim, out_buffer);
      const auto out_v = rows_to_write(problem.dv, group, start, n, dim_v, out_v_buffer);
      const bool last = start + n == time;
      const auto q_t = transposed<Layout>(q, chunk, dim, scratch);
      product<Layout, Into::assign, Part::all, Part::upper>(scores, k, q_t, n, n, dim);
      keep<Layout, Part::upper>(scores, n, chunk);
      product<Layout, Into::assign, Part::upper>(out_v, constant(scores), g, n, dim_v, n);
      if (!last) {
        const auto future_view = transposed<Layout>(constant(future), dim_v, dim, future_t);
        product<Layout, Into::add>(out_v, k, future_view, n, dim_v, dim);
      }
      const auto g_t = transposed<Layout>(g, chunk, dim_v, scratch_v);
      product<Layout, Into::assign, Part::all, Part::upper>(scores, v, g_t, n, n, dim_v);
      keep<Layout, Part::upper>(scores, n, chunk);
      product<Layout, Into::assign, Part::upper>(out, constant(scores), q, n, dim, n);
      if (!last) product<Layout, Into::add>(out, v, constant(future), n, dim, dim_v);
      if (start > 0) product<Layout, Into::add>(future, g.transposed(), q, dim_v, dim, n);
      finish_rows(problem.dv, out_v, group, start, n, dim_v);
      finish_rows(problem.dk, out, group, start, n, dim);
    }
  }

 private:
  void prefetch_chunk(const LinearProblem<T>& problem, const Group<Layout>& group, Index start) {
    const Sizes& size = problem.size;
    prefetch_rows(problem.k, group, size, start, chunk, size.dim);
    prefetch_rows(problem.v, group, size, start, chunk, size.dim_v);
    prefetch_rows(problem.g, group, size, start, chunk, size.dim_v);
  }

  // points k, v and g at the chunk that begins at `start` and returns its length
  Index find_chunk(const Sizes& size, Index start) {
    k = constant(keys.at(start)), v = constant(values.at(start)), g = constant(gradients.at(start));
    return size.time - start < chunk ? size.time - start : chunk;
  }

  Index load_chunk(const LinearProblem<T>& problem, const Group<Layout>& group, Index start) {
    const Sizes& size = problem.size;
    const Index n = find_chunk(size, start);
    k = rows_to_read(problem.k, group, start, n, size.dim, keys.at(start));
    v = rows_to_read(problem.v, group, start, n, size.dim_v, values.at(start));
    g = rows_to_read(problem.g, group, start, n, size.dim_v, gradients.at(start));
    return n;
  }
};

}  // namespace MESASCOPE_ISA

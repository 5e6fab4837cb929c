// Between tensors [B, T, H, D] and matrices of elements: a group is the heads that one register holds.
#pragma once

#include "matrix.h"
#include "problem.h"

namespace MESASCOPE_ISA {

using mesascope::Operand;
using mesascope::Sizes;

constexpr Index round_up(Index value, Index multiple) { return (value + multiple - 1) / multiple * multiple; }

// Distance between the rows of a matrix with this many columns. Rows of whole multiples of 512 bytes would share an eighth
// of the sets of the nearest cache, or fewer, which then do not hold a tile's columns of a matrix: these get a line more.
// With heads in lanes nothing is gained.
template <class Layout>
inline Index row_stride(Index columns) {
  constexpr Index number = sizeof(typename Layout::Number);
  const Index stride = round_up(columns, Layout::width);
  return Layout::width > 1 && stride > 0 && stride * number % 512 == 0 ? stride + 64 / number : stride;
}

// The heads of one group; the lanes of the last group that are left over repeat its last head and are never stored.
template <class Layout>
struct Group {
  Index batch[Layout::heads], head[Layout::heads];
  int count;

  Group(const Sizes& size, Index group) {
    const Index first = group * Layout::heads, all = size.all_heads();
    count = int(all - first < Layout::heads ? all - first : Layout::heads);
    for (int lane = 0; lane < Layout::heads; ++lane) {
      const Index index = first + (lane < count ? lane : count - 1);
      batch[lane] = index / size.heads;
      head[lane] = index % size.heads;
    }
  }

  template <class T>
  T* at(const Operand<T>& operand, int lane, Index time) const {
    return operand.data + batch[lane] * operand.batch + head[lane] * operand.head + time * operand.time;
  }
};

// rows time .. time + count of an operand into a matrix; a function of its own, so that the addresses of the rows stay
// in registers
template <class Layout, class T, class Element>
[[gnu::noinline]] void load_rows(View<Element> to, const Operand<const T>& from, const Group<Layout>& group,
                                 Index time, Index count, Index dim) {
  if constexpr (Layout::heads == 1) {
    for (Index t = 0; t < count; ++t) {
      const T* row = group.at(from, 0, time + t);
      T* destination = to.data + t * to.rows;
      Index d = 0;
      if (from.dim == 1)
        for (; d + Layout::width <= dim; d += Layout::width)
          store(destination + d, load<typename Layout::Vector>(row + d));
      for (; d < dim; ++d) destination[d] = row[d * from.dim];
    }
  } else {
    constexpr int lanes = Layout::heads;
    const T* row[lanes];
    for (int lane = 0; lane < lanes; ++lane) row[lane] = group.at(from, lane, time);
    for (Index t = 0; t < count; ++t) {
      T* destination = reinterpret_cast<T*>(to.data + t * to.rows);
      const Index offset = t * from.time;
      Index d = 0;
      if constexpr (lanes % 4 == 0)
        if (from.dim == 1)
          for (; d + 4 <= dim; d += 4) {
            Element quads[4];
            gather_quads<T, lanes>(quads, row, offset + d);
            for (int i = 0; i < 4; ++i) to.data[t * to.rows + d + i] = quads[i];
          }
      for (; d < dim; ++d)
        for (int lane = 0; lane < lanes; ++lane) destination[d * lanes + lane] = row[lane][offset + d * from.dim];
    }
  }
}

template <class Layout, class T, class Element>
[[gnu::noinline]] void store_rows(const Operand<T>& to, View<const Element> from, const Group<Layout>& group,
                                  Index time, Index count, Index dim) {
  if constexpr (Layout::heads == 1) {
    for (Index t = 0; t < count; ++t) {
      T* row = group.at(to, 0, time + t);
      const T* source = from.data + t * from.rows;
      if (to.dim == 1) {
        std::memcpy(row, source, dim * sizeof(T));
      } else {
        for (Index d = 0; d < dim; ++d) row[d * to.dim] = source[d];
      }
    }
  } else {
    constexpr int lanes = Layout::heads;
    T* row[lanes];
    for (int lane = 0; lane < lanes; ++lane) row[lane] = group.at(to, lane, time);
    for (Index t = 0; t < count; ++t) {
      const T* source = reinterpret_cast<const T*>(from.data + t * from.rows);
      const Index offset = t * to.time;
      Index d = 0;
      if constexpr (lanes % 4 == 0)
        if (to.dim == 1 && group.count == lanes)
          for (; d + 4 <= dim; d += 4) scatter_quads<T, lanes>(row, offset + d, from.data + t * from.rows + d);
      for (; d < dim; ++d)
        for (int lane = 0; lane < group.count; ++lane) row[lane][offset + d * to.dim] = source[d * lanes + lane];
    }
  }
}

template <class Layout, class Element>
inline void clear(View<Element> matrix, Index first, Index rows) {
  void* const begin = matrix.data + first * matrix.rows;
  if (rows > first) std::memset(begin, 0, (rows - first) * matrix.rows * sizeof(Element));
}

// Whether a chunk of `count` rows can be written where it belongs: a copy would push other matrices out of the nearest
// cache.
template <class Layout, class T>
inline bool in_place(const Operand<T>& operand, Index count, Index dim) {
  return Layout::heads == 1 && count == Layout::chunk && operand.dim == 1 && dim % Layout::width == 0;
}

// Rows time .. time + count of an operand, to be read; with zeros up to a whole chunk. Always copied: rows of one head
// may lie so far apart that all of them share one set of the nearest cache.
template <class Layout, class T, class Element>
inline View<const Element> rows_to_read(const Operand<const T>& from, const Group<Layout>& group, Index time,
                                        Index count, Index dim, View<Element> buffer) {
  load_rows(buffer, from, group, time, count, dim);
  clear<Layout>(buffer, count, Layout::chunk);
  return constant(buffer);
}

// Where to write rows time .. time + count of an operand, which `finish_rows` then has there.
template <class Layout, class T, class Element>
inline View<Element> rows_to_write(const Operand<T>& to, const Group<Layout>& group, Index time, Index count, Index dim,
                                   View<Element> buffer) {
  if constexpr (Layout::heads == 1)
    if (in_place<Layout>(to, count, dim)) return {group.at(to, 0, time), to.time};
  return buffer;
}

template <class Layout, class T, class Element>
inline void finish_rows(const Operand<T>& to, View<Element> rows, const Group<Layout>& group, Index time, Index count,
                        Index dim) {
  if (!in_place<Layout>(to, count, dim)) store_rows(to, constant(rows), group, time, count, dim);
}

// The group whose operands are asked for while the last chunk of another is computed; without heads if there is none.
template <class Layout>
inline Group<Layout> following(const Sizes& size, Index next) {
  Group<Layout> group(size, next == mesascope::no_group ? 0 : next);
  if (next == mesascope::no_group) group.count = 0;
  return group;
}

// Asks for rows time .. time + count of an operand, as far as it has them: the rows of one head lie too far apart for
// the processor to guess.
template <class Layout, class T>
inline void ask_for_rows(Ahead& ahead, const Operand<T>& operand, const Group<Layout>& group, const Sizes& size,
                         Index time, Index count, Index dim) {
  if (time + count > size.time) count = size.time - time;
  for (int lane = 0, next; lane < group.count; lane = next) {
    const T *row = group.at(operand, lane, time), *last = row;
    // heads next to each other share lines
    for (next = lane + 1; next < group.count && group.at(operand, next, time) == last + dim; ++next) last += dim;
    ahead.add(row, (last + dim - row) * Index(sizeof(T)), operand.time * Index(sizeof(T)), count);
  }
}

template <class Element>
inline void ask_for_matrix(Ahead& ahead, View<Element> matrix, Index rows) {
  ahead.add(matrix.data, rows * matrix.rows * Index(sizeof(Element)), 0, 1);
}

// Asks for a chunk of a matrix of `rows` rows that this thread has just written: a small one is still in the cache.
template <class Layout, class Element>
inline void ask_for_written(Ahead& ahead, View<Element> matrix, Index rows, Index start) {
  if (rows * matrix.rows * Index(sizeof(Element)) > Layout::most_kept)
    ask_for_matrix(ahead, matrix.from_row(start), Layout::chunk);
}

// What the chunk of a forward pass that begins at `start` reads
template <class Layout, class Problem>
inline void ask_for_operands(Ahead& ahead, const Problem& problem, const Group<Layout>& group, Index start) {
  const Sizes& size = problem.size;
  ask_for_rows(ahead, problem.q, group, size, start, Layout::chunk, size.dim);
  ask_for_rows(ahead, problem.k, group, size, start, Layout::chunk, size.dim);
  ask_for_rows(ahead, problem.v, group, size, start, Layout::chunk, size.dim_v);
}

// a contiguous [B, H, rows, columns] tensor into a matrix, and back
template <class Layout, class T, class Element>
inline void load_matrix(View<Element> to, const T* from, const Sizes& size, const Group<Layout>& group, Index rows,
                        Index columns) {
  const Operand<const T> operand{from, size.heads * rows * columns, columns, rows * columns, 1};
  load_rows<Layout, T>(to, operand, group, 0, rows, columns);
}

template <class Layout, class T, class Element>
inline void store_matrix(T* to, View<const Element> from, const Sizes& size, const Group<Layout>& group, Index rows,
                         Index columns) {
  const Operand<T> operand{to, size.heads * rows * columns, columns, rows * columns, 1};
  store_rows<Layout, T, Element>(operand, from, group, 0, rows, columns);
}

// Hands out matrices from one block of memory; with no block it only counts. Where rows are filled up to whole registers
// the block is zero before the first use, so that what fills them up stays zero.
template <class Layout>
class Workspace {
 public:
  using Element = typename Layout::Element;

  explicit Workspace(void* block) : next_(static_cast<Element*>(block)) {}

  View<Element> matrix(Index rows, Index columns) {
    const Index stride = row_stride<Layout>(columns);
    return {take(rows * stride), stride};
  }

  Element* take(Index count) {
    count = round_up(count, 64 / Index(sizeof(typename Layout::Number)));
    Element* taken = next_ == nullptr ? nullptr : next_ + used_;
    used_ += count;
    return taken;
  }

  Index bytes() const { return used_ * Index(sizeof(Element)); }

 private:
  Element* next_;
  Index used_ = 0;
};

// Keys, values and gradients of one chunk, for a pass forward and one back in time. Those of all chunks are kept for the
// way back if they fit in the cache with room for the rest: reading them means copying or, with heads in lanes,
// transposing.
template <class Layout>
struct BackwardRows {
  using Element = typename Layout::Element;

  View<const Element> k, v, g;  // of the chunk

  void allocate(Workspace<Layout>& space, const Sizes& size) {
    const Index row = round_up(size.dim, Layout::width) + 2 * round_up(size.dim_v, Layout::width);
    kept_ = size.time * row * Index(sizeof(Element)) <= Layout::most_kept;
    const Index rows = kept_ ? size.time + Layout::chunk : Layout::chunk;
    keys_ = space.matrix(rows, size.dim), values_ = space.matrix(rows, size.dim_v);
    gradients_ = space.matrix(rows, size.dim_v);
  }

  // the chunk of `count` tokens that begins at `start`
  template <class Problem>
  void read(const Problem& problem, const Group<Layout>& group, Index start, Index count) {
    k = rows_to_read(problem.k, group, start, count, problem.size.dim, at(keys_, start));
    v = rows_to_read(problem.v, group, start, count, problem.size.dim_v, at(values_, start));
    g = rows_to_read(problem.g, group, start, count, problem.size.dim_v, at(gradients_, start));
  }

  // What `read` reads
  template <class Problem>
  void ask_for(Ahead& ahead, const Problem& problem, const Group<Layout>& group, Index start) const {
    const Sizes& size = problem.size;
    ask_for_rows(ahead, problem.k, group, size, start, Layout::chunk, size.dim);
    ask_for_rows(ahead, problem.v, group, size, start, Layout::chunk, size.dim_v);
    ask_for_rows(ahead, problem.g, group, size, start, Layout::chunk, size.dim_v);
  }

  // the same on the way back
  template <class Problem>
  void read_again(const Problem& problem, const Group<Layout>& group, Index start, Index count) {
    if (!kept_) return read(problem, group, start, count);
    k = constant(at(keys_, start)), v = constant(at(values_, start)), g = constant(at(gradients_, start));
  }

  // What `read_again` reads
  template <class Problem>
  void ask_for_again(Ahead& ahead, const Problem& problem, const Group<Layout>& group, Index start) const {
    if (!kept_) ask_for(ahead, problem, group, start);
  }

 private:
  bool kept_;
  View<Element> keys_, values_, gradients_;

  View<Element> at(View<Element> rows, Index start) const {
    return {rows.data + (kept_ ? start * rows.rows : 0), rows.rows};
  }
};

}  // namespace MESASCOPE_ISA

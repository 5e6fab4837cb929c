// LayerNorm of rows, y = scale (x - mean) / sqrt(variance + epsilon) + shift.
#pragma once

#include <cmath>

#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::group_end;
using mesascope::group_rows;
using mesascope::NormProblem;
using mesascope::NormSizes;

// Eight numbers at a time, whatever the register: widths of Transformers are not always multiples of sixteen.
inline constexpr int norm_lanes = 8;
using NormVector = Pack<float, norm_lanes>;

// Calls with a column and a zero of the type of what begins there: a vector, or one of the last numbers.
template <class Visit>
[[gnu::always_inline]] inline void each_column(Index columns, Visit visit) {
  Index n = 0;
  for (; n + norm_lanes <= columns; n += norm_lanes) visit(n, NormVector{});
  for (; n < columns; ++n) visit(n, 0.0f);
}

// Sums of two numbers for each column
struct ColumnSums {
  NormVector vectors[2] = {};
  float numbers[2] = {};
  void add(NormVector first, NormVector second) { vectors[0] += first, vectors[1] += second; }
  void add(float first, float second) { numbers[0] += first, numbers[1] += second; }
  float total(int which) const {
    return numbers[which] + sum_halves<float, norm_lanes>(vectors[which], std::make_integer_sequence<int, 4>());
  }
};

// What a row is centred and divided by. The variance is that of centred numbers: no digits are lost to the mean.
struct Moments {
  float mean, inverse;  // 1 / sqrt(variance + epsilon)

  Moments(const float* x, Index width, float epsilon) {
    ColumnSums sums, squares;
    each_column(width, [&](Index n, auto number) { sums.add(load<decltype(number)>(x + n), number); });
    mean = sums.total(0) / float(width);
    each_column(width, [&](Index n, auto number) {
      const auto centred = load<decltype(number)>(x + n) - mean;
      squares.add(centred * centred, number);
    });
    inverse = 1 / std::sqrt(squares.total(0) / float(width) + epsilon);
  }

  template <class Numbers>
  Numbers normalised(Numbers x) const {
    return (x - mean) * inverse;
  }
};

// Calls with where each row of a group begins.
template <class Visit>
inline void each_row(const NormSizes& size, Index group, Visit visit) {
  const Index end = group_end(size.rows, group);
  for (Index row = group * group_rows(size.rows); row < end; ++row) visit(row * size.width);
}

template <class Layout>
struct NormForward {
  Index bytes = 0;

  NormForward(const NormSizes&, void*) {}

  void run(const NormProblem& problem, Index group, Index) {
    each_row(problem.size, group, [&](Index row) {
      const float* const x = problem.x + row;
      const Moments moments(x, problem.size.width, problem.epsilon);
      each_column(problem.size.width, [&](Index n, auto number) {
        using Numbers = decltype(number);
        const Numbers scale = load<Numbers>(problem.scale + n), shift = load<Numbers>(problem.shift + n);
        store(problem.y + row + n, Numbers(moments.normalised(load<Numbers>(x + n)) * scale + shift));
      });
    });
  }
};

// With z = (x - mean) / sqrt(variance + epsilon) and p = scale g: dx = (p - mean(p) - z mean(p z)) / sqrt(...),
// dscale = sum of g z, dshift = sum of g over the rows
template <class Layout>
struct NormBackward {
  View<float> sums;
  Index bytes;

  NormBackward(const NormSizes& size, void* memory) {
    Workspace<Layout> space(memory);
    sums = space.matrix(2, size.width);
    bytes = space.bytes();
  }

  void run(const NormProblem& problem, Index group, Index) {
    const Index width = problem.size.width;
    float *const dscale = sums.data, *const dshift = sums.data + sums.rows;
    clear<Layout>(sums, 0, 2);
    each_row(problem.size, group, [&](Index row) {
      const float *const x = problem.x + row, *const g = problem.g + row;
      const Moments moments(x, width, problem.epsilon);
      ColumnSums pulls;  // of p and of p z
      each_column(width, [&](Index n, auto number) {
        using Numbers = decltype(number);
        const Numbers z = moments.normalised(load<Numbers>(x + n)), pulled = load<Numbers>(g + n);
        const Numbers p = pulled * load<Numbers>(problem.scale + n);
        pulls.add(p, p * z);
        store(dscale + n, Numbers(load<Numbers>(dscale + n) + pulled * z));
        store(dshift + n, Numbers(load<Numbers>(dshift + n) + pulled));
      });
      const float mean = pulls.total(0) / float(width), along = pulls.total(1) / float(width);
      each_column(width, [&](Index n, auto number) {
        using Numbers = decltype(number);
        const Numbers z = moments.normalised(load<Numbers>(x + n));
        const Numbers p = load<Numbers>(g + n) * load<Numbers>(problem.scale + n);
        store(problem.dx + row + n, Numbers((p - mean - z * along) * moments.inverse));
      });
    });
    float* const to = problem.dweights + group * 2 * width;
    std::memcpy(to, dscale, std::size_t(width) * sizeof(float));
    std::memcpy(to + width, dshift, std::size_t(width) * sizeof(float));
  }
};

}  // namespace MESASCOPE_ISA

// Operands in blocks of memory that end where the operand ends, so that a sanitizer sees one number too many.
#pragma once

#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <random>

#include "problem.h"

using mesascope::Index;
using mesascope::Operand;

using Shape = std::array<Index, 4>;

// How [B, T, H, D] lies in memory: as written; heads before time; D before heads, which leaves no dimension contiguous
// but time; every number followed by one that is not the operand's, from an address that is not aligned; one row for
// the whole batch (inputs only).
enum class Memory { contiguous, heads_first, time_last, gaps, shared_rows };

template <class T>
class Tensor {
 public:
  // filled with NaN: what is not written, or read where nothing was drawn, shows
  Tensor(const Shape& shape, Memory memory) : shape_(shape) {
    const auto [batch, time, heads, dim] = shape;
    Index size = batch * time * heads * dim, offset = 0;
    switch (memory) {
      case Memory::contiguous:
        operand_ = {nullptr, time * heads * dim, heads * dim, dim, 1};
        break;
      case Memory::heads_first:
        operand_ = {nullptr, time * heads * dim, dim, time * dim, 1};
        break;
      case Memory::time_last:
        operand_ = {nullptr, time * heads * dim, 1, time * dim, time};
        break;
      case Memory::gaps:
        operand_ = {nullptr, 2 * time * heads * dim, 2 * heads * dim, 2 * dim, 2};
        size *= 2, offset = 1;
        break;
      case Memory::shared_rows:
        operand_ = {nullptr, 0, heads * dim, dim, 1};
        size = time * heads * dim;
        break;
    }
    size_ = size;
    block_ = std::make_unique<T[]>(size);
    for (Index i = 0; i < size; ++i) block_[i] = std::numeric_limits<T>::quiet_NaN();
    operand_.data = block_.get() + offset;
  }

  template <class Draw>
  Tensor(const Shape& shape, Memory memory, Draw draw) : Tensor(shape, memory) {
    each([&](T& value) { value = T(draw()); });
  }

  operator Operand<T>() const { return operand_; }
  operator Operand<const T>() const {
    return {operand_.data, operand_.batch, operand_.time, operand_.head, operand_.dim};
  }
  T* data() const { return operand_.data; }

  // calls with every number of the tensor, in the order of [B, T, H, D]
  template <class Visit>
  void each(Visit visit) const {
    for (Index b = 0; b < shape_[0]; ++b)
      for (Index t = 0; t < shape_[1]; ++t)
        for (Index h = 0; h < shape_[2]; ++h)
          for (Index d = 0; d < shape_[3]; ++d)
            visit(operand_.data[b * operand_.batch + t * operand_.time + h * operand_.head + d * operand_.dim]);
  }

  // numbers in memory that are NaN; as many as gaps if what lies between was left alone
  Index untouched() const {
    Index count = 0;
    for (Index i = 0; i < size_; ++i) count += std::isnan(block_[i]);
    return count;
  }
  Index gaps() const { return size_ - shape_[0] * shape_[1] * shape_[2] * shape_[3]; }

 private:
  Shape shape_;
  Operand<T> operand_;
  Index size_;
  std::unique_ptr<T[]> block_;
};

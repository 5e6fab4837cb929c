// Memory that will be needed, asked for while products are computed.
#pragma once

#include <cstdint>

#include "simd.h"

namespace MESASCOPE_ISA {

// Rows of bytes, of which products ask for some lines with each tile. Asked for at once they would have to be waited
// for, since a core keeps only some twenty lines on their way.
class Ahead {
 public:
  // `rows` of so many bytes, `stride` bytes apart; what the list has no room for comes when it is read
  void add(const void* begin, Index bytes, Index stride, Index rows) {
    if (rows <= 0 || bytes <= 0 || listed_ == most_listed) return;
    if (stride == bytes) bytes *= rows, rows = 1;
    const auto first = reinterpret_cast<std::uintptr_t>(begin), length = std::uintptr_t(bytes);
    list_[listed_++] = {line_of(first), first + length, length, std::uintptr_t(stride), rows};
  }

  // inlined into the products, which call it with every tile
  [[gnu::always_inline]] void ask_for(int lines) { ask(std::uintptr_t(lines)); }

  // asks for what is left and forgets it
  [[gnu::always_inline]] void finish() {
    ask(std::uintptr_t(1) << 20);
    done_ = listed_ = 0;
  }

 private:
  struct Rows {
    std::uintptr_t next, end;  // what is left of the row that is being asked for
    std::uintptr_t bytes, stride;
    Index left;
  };

  static constexpr std::uintptr_t line = 64;
  static constexpr int most_listed = 128;

  Rows list_[most_listed];
  int listed_ = 0, done_ = 0;

  static std::uintptr_t line_of(std::uintptr_t address) { return address / line * line; }

  [[gnu::always_inline]] void ask(std::uintptr_t lines) {
    while (lines > 0 && done_ < listed_) {
      Rows& rows = list_[done_];
      const std::uintptr_t begin = rows.next, furthest = begin + lines * line;
      const std::uintptr_t end = rows.end < furthest ? rows.end : furthest;
      for (; rows.next < end; rows.next += line) __builtin_prefetch(reinterpret_cast<const void*>(rows.next), 0, 2);
      lines -= (rows.next - begin) / line;
      if (rows.next < rows.end) return;
      rows.end += rows.stride;
      rows.next = line_of(rows.end - rows.bytes);
      if (--rows.left == 0) ++done_;
    }
  }
};

}  // namespace MESASCOPE_ISA

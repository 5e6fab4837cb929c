// The builds of the kernels in this binary, the best first, and which of them this processor can run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

#define MESASCOPE_DECLARE(name)        \
  namespace name {                     \
  extern const mesascope::Table table; \
  }
#if defined(MESASCOPE_X86)
MESASCOPE_DECLARE(mesascope_avx512)
MESASCOPE_DECLARE(mesascope_avx2)
#endif
MESASCOPE_DECLARE(mesascope_baseline)
#undef MESASCOPE_DECLARE

namespace mesascope {

struct InstructionSet {
  const Table* table;
  bool supported;
  std::string name() const { return std::string(table->name).substr(sizeof("mesascope_") - 1); }
};

inline std::vector<InstructionSet> instruction_sets() {
  std::vector<InstructionSet> sets;
#if defined(MESASCOPE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
  sets.push_back({&mesascope_avx512::table, avx512});
  sets.push_back({&mesascope_avx2::table, avx2});
#endif
  sets.push_back({&mesascope_baseline::table, true});
  return sets;
}

}  // namespace mesascope

// What the kernels are asked to do: sizes, strided operands and where results go. The same for every instruction set.
#pragma once

#include <cstdint>

namespace mesascope {

using Index = std::int64_t;

// groups of so many each that `all` take, of which the last may have fewer
constexpr Index groups_of(Index each, Index all) { return (all + each - 1) / each; }

// a tensor [B, T, H, D] anywhere in memory; strides count numbers; data is null where an operand is absent
template <class T>
struct Operand {
  T* data = nullptr;
  Index batch = 0, time = 0, head = 0, dim = 0;
};

struct Sizes {
  Index batch, time, heads, dim, dim_v;
  Index all_heads() const { return batch * heads; }
};

template <class T>
struct LinearProblem {
  Sizes size;
  Operand<const T> q, k, v;
  Operand<T> o;                 // forward
  Operand<const T> g;           // backward: dL/do
  Operand<T> dq, dk, dv;
};

template <class T>
struct SoftmaxProblem {
  Sizes size;
  T scale;
  Operand<const T> q, k, v;
  Operand<T> o;
  T* normaliser = nullptr;      // [B, H, T, 2]: largest logit, 1 / sum of exp; written forward, read backward
  Operand<const T> g;
  Operand<T> dq, dk, dv;
};

// o_t = G_t H_t^-1 q_t with G_t = forget_t G_(t-1) + write_t v_t k_t^T, and
//     H_t = forget_t H_(t-1) + write_t k_t k_t^T, H_0 = diag(ridge)
//     or, if constant, H_t = C_t + diag(ridge), C_t = forget_t C_(t-1) + write_t k_t k_t^T
template <class T>
struct MesaProblem {
  Sizes size;
  Operand<const T> q, k, v;
  Operand<const T> ridge;             // [B, 1, H, D]
  Operand<const T> write, log_forget; // [B, T, H], or absent
  bool constant = false;              // with log_forget only: without it there is no difference but in time
  const T* matrix = nullptr;          // [B, H, D, D]: H_0^-1 instead of ridge, or C_0 if constant; or absent
  const T* largest = nullptr;         // the largest eigenvalue of H_0, or C_0 if constant [B, H]; with a matrix
  const T* association = nullptr;     // G_0 [B, H, Dv, D], or absent
  Operand<T> o;
  // [B, 1, H, 3]: the largest gain write_t k_t . R k_t, the largest condition number of H_t; 0, or NaN if k or o is not finite
  Operand<T> evidence;
  T* saved = nullptr;                 // what backward needs: mesa_saved() numbers for each group of heads
  T* final_matrix = nullptr;          // H_T^-1, or C_T if constant; or absent
  T* final_association = nullptr;     // G_T, or absent
  Operand<const T> g;
  Operand<T> dq, dk, dv;
  T* dridge = nullptr;                // [B, H, D]
  Operand<T> dwrite;                  // [B, T, H], or absent
  Operand<T> penalty;                 // sum_d ridge_d w_(t,d) q~_(t,d) [B, T, H], or absent
  T* dassociation = nullptr;          // [B, H, Dv, D], or absent
  T* pairs = nullptr;                 // sum_t m_t w_t q~_t^T = -dL/dH_0, its symmetric part [B, H, D, D], or absent
};

// What is computed for each row of a matrix alone. All matrices are contiguous but `w`, whose rows may lie apart.
inline constexpr Index block_rows = 32;  // treated at once

// Rows of one group, which is one thread's work from start to end: many, because every group lays out the weights and
// sums their gradients for itself, but so that there are at least eight groups, for as many threads, if there are rows
// enough.
constexpr Index group_rows(Index rows) {
  constexpr Index most = 20;
  const Index blocks = rows / (8 * block_rows);
  return (blocks < 1 ? 1 : blocks < most ? blocks : most) * block_rows;
}

// the row after the last one of a group
constexpr Index group_end(Index rows, Index group) {
  const Index end = (group + 1) * group_rows(rows);
  return end < rows ? end : rows;
}

constexpr Index row_groups(Index rows) { return groups_of(group_rows(rows), rows); }

inline constexpr int most_maps = 3;

struct MapsSizes {
  Index rows, width;
  Index outputs[most_maps];  // zero where there is no map
  Index all_outputs() const { return outputs[0] + outputs[1] + outputs[2]; }
};

// y_m = W_m x for each row x
struct MapsProblem {
  MapsSizes size;
  const float* x;                     // [rows, width]
  const float* w[most_maps];          // [outputs[m], width]
  Index w_rows[most_maps];
  float* y[most_maps];                // [rows, outputs[m]]
  const float* g[most_maps];          // backward: dL/dy
  float* dx = nullptr;                // or absent
  float* dweights = nullptr;          // of each group of rows: dW_m one after the other
};

struct MlpSizes {
  Index rows, width, hidden;
};

// y = W_2 gelu(W_1 x) for each row x
struct MlpProblem {
  MlpSizes size;
  const float *x, *w_1, *w_2;         // [rows, width], [hidden, width], [width, hidden]
  float* y = nullptr;                 // [rows, width]
  const float* g = nullptr;           // backward: dL/dy
  float* dx = nullptr;
  float* dweights = nullptr;          // of each group of rows: dW_1, then dW_2
};

struct NormSizes {
  Index rows, width;
};

// y = scale (x - mean) / sqrt(variance + epsilon) + shift for each row x
struct NormProblem {
  NormSizes size;
  float epsilon;
  const float *x, *scale, *shift;     // [rows, width], [width], [width]
  float* y = nullptr;                 // [rows, width]
  const float* g = nullptr;           // backward: dL/dy
  float* dx = nullptr;
  float* dweights = nullptr;          // of each group of rows: dscale, then dshift
};

struct SumsSizes {
  Index parts, numbers;
};

// What groups of rows have left, summed over the groups
struct SumsProblem {
  SumsSizes size;
  const float* parts;                 // [parts, numbers]
  float* sums;                        // [numbers]
};

inline constexpr Index sums_at_once = 512;  // one group, which is one thread's work

constexpr Index sums_groups(Index numbers) { return groups_of(sums_at_once, numbers); }

}  // namespace mesascope

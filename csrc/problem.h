// What the kernels are asked to do: sizes, strided operands and where results go. The same for every instruction set.
#pragma once

#include <cstdint>

namespace mesascope {

using Index = std::int64_t;

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
  const T* association = nullptr;     // G_0 [B, H, Dv, D], or absent
  Operand<T> o;
  Operand<T> evidence;                // [B, 1, H, 3]: sum and maximum of write |k|^2; 0, or NaN unless q, k, v are finite
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

}  // namespace mesascope

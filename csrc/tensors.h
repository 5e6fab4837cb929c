// Tensors of torch in a module that is not linked against it: what `torch.Tensor.__dlpack_c_exchange_api__` offers, the
// exchange table of DLPack 1.3 (https://github.com/dmlc/dlpack, include/dlpack/dlpack.h).
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "pool.h"
#include "problem.h"

namespace nb = nanobind;

namespace mesascope {

// The part of DLPack that is used, by its names there
namespace dlpack {

struct Version {
  std::uint32_t major, minor;
};

struct Tensor {
  void* data;
  struct {
    std::int32_t type, id;
  } device;
  std::int32_t ndim;
  struct {
    std::uint8_t code, bits;
    std::uint16_t lanes;
  } dtype;
  std::int64_t *shape, *strides;
  std::uint64_t byte_offset;
};

struct ManagedTensor {
  Version version;
  void* manager_ctx;
  void (*deleter)(ManagedTensor*);
  std::uint64_t flags;
  Tensor dl_tensor;
};

struct ExchangeTable {
  Version version;
  ExchangeTable* previous;  // of an older version, or null
  int (*allocate)();
  int (*managed_from_python)(void*, ManagedTensor**);
  int (*managed_to_python)(ManagedTensor*, void**);
  int (*from_python)(void*, Tensor*);
  int (*current_work_stream)(std::int32_t, std::int32_t, void**);
};

inline constexpr std::uint32_t major_version = 1;
inline constexpr std::int32_t cpu = 1;
inline constexpr std::uint8_t floating = 2;

}  // namespace dlpack

// What the module needs of torch, looked up when it is loaded.
struct Torch {
  const dlpack::ExchangeTable* exchange;
  PyTypeObject *tensor, *parameter;

  static const Torch& get() {
    static const Torch& torch = *new Torch;
    return torch;
  }

  // not of a class that changes what torch does with a tensor
  bool plain(nb::handle object) const {
    return Py_TYPE(object.ptr()) == tensor || Py_TYPE(object.ptr()) == parameter;
  }

 private:
  Torch() {
    const nb::module_ torch = nb::module_::import_("torch");
    nb::object tensors = torch.attr("Tensor"), parameters = torch.attr("nn").attr("Parameter");
    const nb::object capsule = tensors.attr("__dlpack_c_exchange_api__");
    exchange = static_cast<const dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (exchange == nullptr) throw nb::python_error();
    while (exchange != nullptr && exchange->version.major != dlpack::major_version) exchange = exchange->previous;
    if (exchange == nullptr || exchange->from_python == nullptr)
      throw std::runtime_error("torch exchanges tensors in another way than these kernels were built for");
    tensor = reinterpret_cast<PyTypeObject*>(tensors.release().ptr());
    parameter = reinterpret_cast<PyTypeObject*>(parameters.release().ptr());
  }
};

// A tensor that the caller keeps alive: where it is and how it is laid out, in numbers.
struct Tensor {
  dlpack::Tensor of{};

  bool read(nb::handle object) {
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), Torch::get().tensor)) return false;
    if (Torch::get().exchange->from_python(object.ptr(), &of) == 0) return true;
    PyErr_Clear();
    return false;
  }

  int dimensions() const { return of.ndim; }
  Index size(int dimension) const { return of.shape[dimension]; }
  Index stride(int dimension) const { return of.strides[dimension]; }
  Index numbers() const {
    Index count = 1;
    for (int i = 0; i < of.ndim; ++i) count *= of.shape[i];
    return count;
  }
  std::vector<Index> shape() const { return {of.shape, of.shape + of.ndim}; }
  bool has_shape(const std::vector<Index>& shape) const {
    return std::equal(shape.begin(), shape.end(), of.shape, of.shape + of.ndim);
  }
  void require_shape(const std::vector<Index>& shape) const {
    if (!has_shape(shape)) throw std::invalid_argument("tensors: their shapes do not fit");
  }
  bool contiguous() const {
    Index expected = 1;
    for (int i = of.ndim; i-- > 0; expected *= of.shape[i])
      if (of.shape[i] != 1 && of.strides[i] != expected) return numbers() == 0;
    return true;
  }

  template <class T>
  bool holds() const {
    return of.dtype.code == dlpack::floating && of.dtype.bits == 8 * sizeof(T) && of.dtype.lanes == 1;
  }
  bool in_memory() const { return of.device.type == dlpack::cpu && (of.data != nullptr || numbers() == 0); }
  bool computable() const { return in_memory() && (holds<float>() || holds<double>()); }
  bool same_dtype(const Tensor& other) const {
    return of.dtype.code == other.of.dtype.code && of.dtype.bits == other.of.dtype.bits;
  }

  template <class T>
  T* data() const {
    if (!in_memory() || !holds<std::remove_const_t<T>>())
      throw std::invalid_argument("tensors: all of them must be on the CPU and of one dtype, float32 or float64");
    return reinterpret_cast<T*>(static_cast<char*>(of.data) + of.byte_offset);
  }

  template <class T>
  T* contiguous_data() const {
    if (!contiguous()) throw std::invalid_argument("tensors: this one must be contiguous");
    return data<T>();
  }
};

using MaybeTensor = std::optional<Tensor>;

// A new contiguous tensor with whatever is in its memory.
template <class T>
struct Result {
  T* data = nullptr;
  nb::object tensor = nb::none();
};

// Large results live in memory that earlier ones have given back: new pages cost as much as computing what is written to
// them. Small ones the C library has without new pages.
inline constexpr std::size_t smallest_recycled = std::size_t(1) << 20;

struct alignas(64) Line {
  char bytes[64];
};

struct ResultMemory {
  dlpack::ManagedTensor managed{};
  std::vector<std::int64_t> shape, strides;
  std::unique_ptr<Borrowed> large;
  std::unique_ptr<Line[]> small;
};

template <class T>
Result<T> result(std::vector<Index> shape) {
  auto memory = std::make_unique<ResultMemory>();
  memory->strides.resize(shape.size());
  Index numbers = 1;
  for (std::size_t i = shape.size(); i-- > 0;) memory->strides[i] = numbers, numbers *= shape[i];
  memory->shape = std::move(shape);
  const std::size_t bytes = std::size_t(numbers) * sizeof(T);
  Result<T> made;
  if (bytes < smallest_recycled) {
    memory->small.reset(new Line[bytes / sizeof(Line) + 1]);
    made.data = reinterpret_cast<T*>(memory->small.get());
  } else {
    memory->large = std::make_unique<Borrowed>(bytes);
    made.data = reinterpret_cast<T*>(memory->large->data());
  }
  dlpack::ManagedTensor& managed = memory->managed;
  managed.version = {dlpack::major_version, 0};
  managed.manager_ctx = memory.get();
  managed.deleter = [](dlpack::ManagedTensor* self) { delete static_cast<ResultMemory*>(self->manager_ctx); };
  dlpack::Tensor& tensor = managed.dl_tensor;
  tensor.data = made.data;
  tensor.device.type = dlpack::cpu;
  tensor.ndim = std::int32_t(memory->shape.size());
  tensor.dtype.code = dlpack::floating, tensor.dtype.bits = 8 * sizeof(T), tensor.dtype.lanes = 1;
  tensor.shape = memory->shape.data(), tensor.strides = memory->strides.data();
  void* object = nullptr;
  memory.release();  // torch's, whatever comes of it
  if (Torch::get().exchange->managed_to_python(&managed, &object) != 0 || object == nullptr) throw nb::python_error();
  made.tensor = nb::steal(static_cast<PyObject*>(object));
  return made;
}

}  // namespace mesascope

namespace nanobind::detail {

template <>
struct type_caster<mesascope::Tensor> {
  NB_TYPE_CASTER(mesascope::Tensor, const_name("torch.Tensor"))
  bool from_python(handle source, uint8_t, cleanup_list*) noexcept { return value.read(source); }
  static handle from_cpp(const mesascope::Tensor&, rv_policy, cleanup_list*) noexcept { return {}; }
};

}  // namespace nanobind::detail

// Large results as DLPack capsules, which any tensor library takes over without a copy.
#include "cpu/output_memory.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace {

// The structures of DLPack 0.x, which are an interface between binaries (https://dmlc.github.io/dlpack).
struct DlDevice {
  int32_t type, id;
};
struct DlType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct DlTensor {
  void* data;
  DlDevice device;
  int32_t dimensions;
  DlType type;
  int64_t* shape;
  int64_t* strides;
  uint64_t offset;
};
struct DlManagedTensor {
  DlTensor tensor;
  void* owner;
  void (*deleter)(DlManagedTensor*);
};

constexpr int32_t kHostMemory = 1;
constexpr const char* kUnused = "dltensor";  // whoever takes the tensor renames the capsule

struct Output {
  DlManagedTensor managed{};
  std::vector<int64_t> shape, strides;
  fastctc::OutputMemory memory{};
};

// Called by whoever owns the tensor in the end, on any thread, with the GIL or without.
void free_output(DlManagedTensor* managed) {
  std::unique_ptr<Output> output(static_cast<Output*>(managed->owner));
  fastctc::give_back_output_memory(output->memory);
}

void free_unused(PyObject* capsule) {
  if (!PyCapsule_IsValid(capsule, kUnused)) return;
  auto* managed = static_cast<DlManagedTensor*>(PyCapsule_GetPointer(capsule, kUnused));
  managed->deleter(managed);
}

py::object empty_output(std::vector<int64_t> shape, std::vector<int64_t> strides, int code, int bits) {
  int64_t bytes = bits / 8;
  for (const int64_t size : shape) {
    // The most that there is room for stands for all that is more.
    const bool fits = size <= 0 || bytes <= std::numeric_limits<int64_t>::max() / size;
    bytes = fits ? bytes * size : std::numeric_limits<int64_t>::max();
  }
  if (bytes <= 0 || shape.size() != strides.size()) throw std::invalid_argument("no shape of a result");
  auto output = std::make_unique<Output>();
  output->shape = std::move(shape);
  output->strides = std::move(strides);
  DlTensor& tensor = output->managed.tensor;
  tensor.device = {kHostMemory, 0};
  tensor.dimensions = int32_t(output->shape.size());
  tensor.type = {uint8_t(code), uint8_t(bits), 1};
  tensor.shape = output->shape.data();
  tensor.strides = output->strides.data();
  output->managed.owner = output.get();
  output->managed.deleter = free_output;
  try {
    output->memory = fastctc::take_output_memory(bytes);
  } catch (const std::bad_alloc&) {
    const std::string sentence = "no memory for a result of " + std::to_string(bytes) + " bytes";
    PyErr_SetString(PyExc_MemoryError, sentence.c_str());
    throw py::error_already_set();
  }
  tensor.data = output->memory.data;
  Output* owned = output.release();
  PyObject* capsule = PyCapsule_New(&owned->managed, kUnused, free_unused);
  if (!capsule) {
    free_output(&owned->managed);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_output_memory(py::module_& m) {
  m.def("empty_output", &empty_output,
        "A dense result of that shape and these strides (in elements) as a DLPack capsule; its memory is kept for "
        "later results when it is freed.\n"
        "code and bits: the type, as in DLPack.",
        py::arg("shape"), py::arg("strides"), py::arg("code"), py::arg("bits"));
  m.def("set_max_kept_output_mb", &fastctc::set_max_kept_output_mb, py::arg("mb"));
  m.def("max_kept_output_mb", &fastctc::max_kept_output_mb);
  m.def("kept_output_bytes", &fastctc::kept_output_bytes, "Memory of freed results that is kept for later ones.");
}

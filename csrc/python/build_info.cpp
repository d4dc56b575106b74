#include "fastctc/build_info.h"

#include <pybind11/pybind11.h>

#include <string>

#ifdef FASTCTC_WITH_CUDA
#include "fastctc/cuda_devices.h"
#endif

namespace py = pybind11;

namespace {

py::list split(const std::string& text) {
  py::list items;
  for (std::size_t begin = 0; begin < text.size();) {
    std::size_t end = text.find(',', begin);
    if (end == std::string::npos) end = text.size();
    items.append(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return items;
}

py::dict build_info_dict() {
  const fastctc::BuildInfo& info = fastctc::build_info();
  py::dict result;
  result["version"] = info.version;
  result["compiler"] = info.compiler;
  result["build_type"] = info.build_type;
  result["platform"] = info.platform;
  result["cpu_targets"] = split(info.cpu_targets);
  result["sanitizers"] = split(info.sanitizers);
  const std::string cuda_version = info.cuda_version;
  result["cuda"] = !cuda_version.empty();
  result["cuda_version"] = cuda_version.empty() ? py::object(py::none()) : py::str(cuda_version);
  result["cuda_archs"] = split(info.cuda_archs);
  return result;
}

py::list cuda_device_list() {
  py::list devices;
#ifdef FASTCTC_WITH_CUDA
  const int count = fastctc::cuda_device_count();
  for (int index = 0; index < count; ++index) {
    fastctc::CudaDevice device;
    if (!fastctc::cuda_device(index, &device)) continue;
    py::dict entry;
    entry["index"] = index;
    entry["name"] = py::str(device.name);
    entry["capability"] = py::make_tuple(device.major, device.minor);
    entry["multiprocessors"] = device.multiprocessors;
    entry["memory"] = device.memory;
    devices.append(entry);
  }
#endif
  return devices;
}

int cuda_driver() {
#ifdef FASTCTC_WITH_CUDA
  return fastctc::cuda_driver_version();
#else
  return 0;
#endif
}

}  // namespace

void bind_build_info(py::module_& m) {
  m.def("build_info", &build_info_dict, "What this module was built from and for, as a dict.");
  m.def("cuda_devices", &cuda_device_list,
        "One dict per CUDA device: index, name, capability, multiprocessors, memory in bytes. "
        "Empty without the CUDA library, a driver or a device.");
  m.def("cuda_driver_version", &cuda_driver,
        "Newest CUDA version the driver serves, 1000 * major + 10 * minor; 0 without a driver.");
}

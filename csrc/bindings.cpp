// The one pybind11 file. Tensors arrive as addresses, sizes and a stream handle: no PyTorch headers,
// so that one build serves every torch version.
#include <pybind11/pybind11.h>

#include "common/probe.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
    m.doc() = "CUDA kernels of fastseq; pointers and stream handles are plain integers";
    m.attr("arch_list") = FASTSEQ_ARCH_LIST;
    m.def("runtime_version", &fastseq::runtime_version);
    m.def("driver_version", &fastseq::driver_version);
    m.def("device_count", &fastseq::device_count);
    m.def(
        "probe",
        [](int device, std::uintptr_t stream) {
            fastseq::Probe found{};
            {
                py::gil_scoped_release release;
                found = fastseq::probe(device, stream);
            }
            py::dict out;
            out["capability"] = found.capability;
            out["compiled_for"] = found.compiled_for;
            out["arch_specific"] = found.arch_specific != 0;
            out["binary"] = found.binary;
            return out;
        },
        py::arg("device"), py::arg("stream") = 0);
}

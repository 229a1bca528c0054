// The only pybind11 file. Tensors arrive as addresses, sizes and a stream handle, without PyTorch's
// headers, so that one build works with every torch version.
#include <pybind11/pybind11.h>

#include "common/probe.h"
#include "soft_dtw/soft_dtw.h"

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

    py::class_<fastseq::SoftDTWCall>(m, "SoftDTWCall")
        .def(py::init<>())
        .def_readwrite("device", &fastseq::SoftDTWCall::device)
        .def_readwrite("stream", &fastseq::SoftDTWCall::stream)
        .def_readwrite("is_double", &fastseq::SoftDTWCall::is_double)
        .def_readwrite("by_strip", &fastseq::SoftDTWCall::by_strip)
        .def_readwrite("patience", &fastseq::SoftDTWCall::patience)
        .def_readwrite("x", &fastseq::SoftDTWCall::x)
        .def_readwrite("y", &fastseq::SoftDTWCall::y)
        .def_readwrite("cost", &fastseq::SoftDTWCall::cost)
        .def_readwrite("bias", &fastseq::SoftDTWCall::bias)
        .def_readwrite("lengths_x", &fastseq::SoftDTWCall::lengths_x)
        .def_readwrite("lengths_y", &fastseq::SoftDTWCall::lengths_y)
        .def_readwrite("gammas", &fastseq::SoftDTWCall::gammas)
        .def_readwrite("bands", &fastseq::SoftDTWCall::bands)
        .def_readwrite("batch", &fastseq::SoftDTWCall::batch)
        .def_readwrite("rows", &fastseq::SoftDTWCall::rows)
        .def_readwrite("columns", &fastseq::SoftDTWCall::columns)
        .def_readwrite("channels", &fastseq::SoftDTWCall::channels)
        .def_readwrite("band", &fastseq::SoftDTWCall::band)
        .def_readwrite("begin_free", &fastseq::SoftDTWCall::begin_free)
        .def_readwrite("end_free", &fastseq::SoftDTWCall::end_free)
        .def_readwrite("gamma", &fastseq::SoftDTWCall::gamma)
        .def_readwrite("penalty", &fastseq::SoftDTWCall::penalty)
        .def_readwrite("h", &fastseq::SoftDTWCall::h)
        .def_readwrite("states", &fastseq::SoftDTWCall::states)
        .def_readwrite("polled", &fastseq::SoftDTWCall::polled)
        .def_readwrite("polled_bytes", &fastseq::SoftDTWCall::polled_bytes);
    const auto no_gil = py::call_guard<py::gil_scoped_release>();
    m.def("soft_dtw_forward", &fastseq::soft_dtw_forward, py::arg("call"), py::arg("value"),
          py::arg("totals"), py::arg("tickets"), no_gil);
    m.def("soft_dtw_backward", &fastseq::soft_dtw_backward, py::arg("call"), py::arg("grad"),
          py::arg("dx"), py::arg("dy"), py::arg("dcost"), py::arg("dbias"), py::arg("flux"),
          py::arg("done"), py::arg("tickets"), no_gil);
}

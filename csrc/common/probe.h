// Which machine code of this extension a GPU runs.
#pragma once

#include <cstdint>

namespace fastseq {

struct Probe {
    int capability;     // capability of the device, 90 for 9.0
    int compiled_for;   // the running code's __CUDA_ARCH__ divided by ten
    int arch_specific;  // 1 if that was an "a" architecture, with wgmma and TMA
    int binary;         // version of the machine code; differs from compiled_for if made from PTX
};

int runtime_version();  // version of the CUDA runtime in the extension, 13000 for 13.0
int driver_version();   // the newest CUDA version that the driver supports, 0 without a driver
int device_count();

// Launches one thread that reports the architecture it was compiled for, on a stream of the device.
Probe probe(int device, std::uintptr_t stream);

}  // namespace fastseq

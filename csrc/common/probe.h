// Which machine code of this extension a GPU runs.
#pragma once

#include <cstdint>

namespace fastseq {

struct Probe {
    int capability;     // of the device, 90 for 9.0
    int compiled_for;   // the __CUDA_ARCH__ that the running code was compiled for, over ten
    int arch_specific;  // 1 when that was an "a" architecture, with wgmma and TMA
    int binary;         // of the machine code; differs from compiled_for when made from PTX
};

int runtime_version();  // of the CUDA runtime inside the extension, 13000 for 13.0
int driver_version();   // the newest CUDA that the driver supports, 0 without a driver
int device_count();

// Launches one thread that reports what it was compiled for, on a stream of that device.
Probe probe(int device, std::uintptr_t stream);

}  // namespace fastseq

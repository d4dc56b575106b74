// Which frames and states a CTC target needs; the same on every device.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace fastctc {

// A path needs one frame per label and a blank between two equal neighbours.
FASTCTC_HOST_DEVICE inline int64_t frames_needed(const int64_t* labels, int64_t S) {
  int64_t frames = S;
  for (int64_t i = 1; i < S; ++i) frames += labels[i] == labels[i - 1];
  return frames;
}

}  // namespace fastctc

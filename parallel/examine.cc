// SPDX-License-Identifier: Apache-2.0
#include "parallel/examine.h"

namespace annulus::parallel {

const char* name(Figure figure) {
  switch (figure) {
    case Figure::kGemm: return "gemm_gflops";
    case Figure::kRead: return "read_gbytes";
    case Figure::kCopy: return "copy_gbytes";
    case Figure::kCpBandwidth: return "cp_hop_gbytes";
    case Figure::kCpLatency: return "cp_hop_us";
    case Figure::kTpBandwidth: return "tp_hop_gbytes";
    case Figure::kTpLatency: return "tp_hop_us";
  }
  return "?";
}

}  // namespace annulus::parallel

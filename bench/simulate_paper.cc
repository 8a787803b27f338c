#include "bench/simulate_paper.h"
namespace annulus::bench {
absl::Status print_paper(const Machine&) {
  return absl::OkStatus();
}
}  // namespace annulus::bench

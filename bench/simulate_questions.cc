#include "bench/simulate_questions.h"
namespace annulus::bench {
void Questions::add_to(CLI::App&, SimFlags&) {}
absl::Status Questions::answer(const SimFlags&) const {
  return absl::OkStatus();
}
}  // namespace annulus::bench

// SPDX-License-Identifier: Apache-2.0
#include "kernels/core/check.h"

#include <cstdio>
#include <cstdlib>
#include <utility>

namespace annulus::kernels {
namespace {
thread_local std::string context;
}

void set_check_context(std::string text) {
  context = std::move(text);
}

void check_failed(const char* expression, const char* file, int line, const std::string& values) {
  std::fprintf(stderr, "%s%scheck failed: %s (%s) at %s:%d\n", context.c_str(),
               context.empty() ? "" : ": ", expression, values.c_str(), file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace annulus::kernels

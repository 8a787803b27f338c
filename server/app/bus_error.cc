// SPDX-License-Identifier: Apache-2.0
#include "server/app/bus_error.h"

#include <unistd.h>

#include <csignal>

#include "absl/strings/str_cat.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

std::string* last_words = nullptr;  // made beforehand: a handler may not allocate

}  // namespace

void explain_bus_errors(const std::string& model) {
  last_words = new std::string(
      absl::StrCat("annulus: bus error: ", one_line(model),
                   " was cut short or became unreadable while it was in use, or /dev/shm is full; "
                   "put the whole file back (copy beside it, then rename) and start again\n"));
  struct sigaction action = {};
  action.sa_handler = [](int) {
    [[maybe_unused]] const ssize_t written =
        write(STDERR_FILENO, last_words->data(), last_words->size());
    std::signal(SIGBUS, SIG_DFL);  // the access that failed fails again, and ends the process
  };
  sigaction(SIGBUS, &action, nullptr);
}

}  // namespace annulus::server

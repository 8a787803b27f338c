// SPDX-License-Identifier: Apache-2.0
// `annulus doctor`: a front end without a model. Its ranks attach as those of `annulus serve` do
// (same program, same control plane, same transports), measure instead of loading weights, report,
// and are told to end. Call from main() before any thread exists. Exit codes: 0 healthy, 1 findings
// or ranks that did not report, 2 the operator can mend the call (one line says what).
#pragma once

#include <string>

#include "server/app/config.h"

namespace annulus::server {

struct DoctorConfig {
  ServeConfig ranks;      // without a model
  std::string json;       // "": no such file
  double timeout_s = 60;  // for ranks to attach; later 60 s without news are too many
};

int run_doctor(DoctorConfig config);

}  // namespace annulus::server

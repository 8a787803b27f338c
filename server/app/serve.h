// SPDX-License-Identifier: Apache-2.0
// `annulus serve`: the front end's life: model, control plane, engine, public server, local
// workers, and the way out. SIGTERM and SIGINT drain: NOT_SERVING, new requests UNAVAILABLE,
// streams run on until the drain time-out, workers end, exit 0; a second signal ends at once. Call
// from main() before any thread exists: signals are blocked in all of them. Exit codes: 0 drained,
// 1 the workers cannot be kept alive, 2 the operator can mend it (one line says what).
#pragma once

#include "server/app/config.h"

namespace annulus::server {

int run_serve(ServeConfig config);

}  // namespace annulus::server

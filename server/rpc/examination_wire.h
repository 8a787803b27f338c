// SPDX-License-Identifier: Apache-2.0
// RankExamination as it travels in Ready. Pure.
#pragma once

#include "absl/status/statusor.h"
#include "annulus/v1/worker.pb.h"
#include "server/examination.h"

namespace annulus::server {

v1::Examination to_proto(const RankExamination& examination);
// InvalidArgument: an unknown figure, a value that is not finite and positive, more of anything
// than a rank has to say. Facts become printable lines.
absl::StatusOr<RankExamination> from_proto(const v1::Examination& proto);

}  // namespace annulus::server

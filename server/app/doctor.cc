// SPDX-License-Identifier: Apache-2.0
#include "server/app/doctor.h"

#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <mutex>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/app/build.h"
#include "server/app/doctor_report.h"
#include "server/app/local_workers.h"
#include "server/app/worker_commands.h"
#include "server/one_line.h"
#include "server/rpc/control_service.h"

namespace annulus::server {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLook{100};
constexpr std::chrono::seconds kWorkersEnd{3};
constexpr std::chrono::seconds kPlainLine{10};  // between lines of a log

// What it does at the moment, on stderr: a line that is drawn again on a terminal, else one when
// the work changes and one every ten seconds.
class ProgressLine {
 public:
  ~ProgressLine() { clear(); }
  void show(const std::string& what, const std::string& how_far) {
    const auto now = Clock::now();
    if (!terminal_ && what == shown_ && now - at_ < kPlainLine) return;
    shown_ = what;
    at_ = now;
    std::fprintf(stderr, terminal_ ? "\r%s%s\x1b[K" : "%s%s\n", what.c_str(), how_far.c_str());
    std::fflush(stderr);
  }
  void clear() {
    if (terminal_ && !shown_.empty()) std::fputs("\r\x1b[K", stderr);
    shown_.clear();
  }

 private:
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  std::string shown_;
  Clock::time_point at_;
};

int failed(int code, std::string_view line) {
  std::fprintf(stderr, "annulus doctor: %s\n", one_line(line).c_str());
  return code;
}

// The ranks' reports, handed from a thread of the control plane to the main one.
class Mailbox {
 public:
  void put(Examined examined) {
    const std::lock_guard lock(mutex_);
    examined_ = std::move(examined);
    there_.notify_all();
  }
  std::optional<Examined> wait(std::chrono::milliseconds time) {
    std::unique_lock lock(mutex_);
    there_.wait_for(lock, time, [this] { return examined_.has_value(); });
    return std::exchange(examined_, std::nullopt);
  }

 private:
  std::mutex mutex_;
  std::condition_variable there_;
  std::optional<Examined> examined_;
};

// Until all have reported; Unavailable where that will not be.
absl::StatusOr<Examined> wait_for_reports(const DoctorConfig& config, const ControlService& control,
                                          const LocalWorkers* workers, Mailbox& mailbox) {
  ProgressLine progress;
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(config.timeout_s));
  for (;;) {
    if (auto examined = mailbox.wait(kLook)) return *std::move(examined);
    const EpochCoordinator::Status status = control.status();
    if (workers != nullptr) {
      if (std::string why = workers->gave_up(); !why.empty()) return absl::UnavailableError(why);
    }
    // Who was lost is the diagnosis; another try would hide it.
    if (status.failed_starts > 0) return absl::UnavailableError(status.last_end);
    if (status.epoch == 0 && Clock::now() > until) {
      return absl::UnavailableError(absl::StrFormat(
          "after %g s still waiting for %s: their own lines say why, or their host cannot reach "
          "this one",
          config.timeout_s, status.waiting_for));
    }
    if (status.epoch == 0) {
      progress.show(absl::StrCat("annulus doctor: waiting for ", status.waiting_for), "");
    } else {
      progress.show("annulus doctor: measuring",
                    absl::StrFormat(" %3.0f %%", 100 * status.examined));
    }
  }
}

}  // namespace

int run_doctor(DoctorConfig config) {
  std::signal(SIGPIPE, SIG_IGN);
  ServeConfig& ranks = config.ranks;
  if (ranks.secret.empty()) ranks.secret = draw_secret();
  std::ofstream json;
  if (!config.json.empty()) {
    json.open(config.json);
    if (!json) return failed(2, absl::StrCat("--json ", config.json, " cannot be written"));
  }
  Mailbox mailbox;
  ControlOptions options;
  options.host = ranks.control_host;
  options.port = ranks.control_port;
  options.epoch.topology = ranks.topology;
  options.epoch.build = kBuild;
  options.epoch.secret = ranks.secret;
  options.epoch.examine = true;
  options.on_examined = [&mailbox](Examined examined) { mailbox.put(std::move(examined)); };
  auto control = ControlService::create(std::move(options));
  if (!control.ok()) {
    const absl::string_view why = control.status().message();
    return failed(2, {why.data(), why.size()});
  }
  (*control)->start([](const LinkEvent&) {});  // there is no engine to tell
  std::optional<LocalWorkers> workers;
  if (ranks.local_workers) {
    workers.emplace(local_workers(ranks, (*control)->port()));
    workers->start();
  } else {
    print_external_commands(ranks, (*control)->port());
  }
  const auto examined = wait_for_reports(config, **control, workers ? &*workers : nullptr, mailbox);
  // The link says goodbye to the workers; the supervisor must not start them again.
  std::thread goodbye([&] { control->reset(); });
  if (workers) workers->stop(kWorkersEnd);
  goodbye.join();
  if (!examined.ok()) {
    const absl::string_view why = examined.status().message();
    return failed(1, {why.data(), why.size()});
  }
  const DoctorReport report{ranks.topology, *examined,
                            diagnose(ranks.topology, examined->ranks, examined->examinations)};
  std::fputs(report_text(report).c_str(), stdout);
  if (!config.json.empty()) {
    json << report_json(report) << "\n";
    json.close();
    if (!json)
      return failed(1,
                    absl::StrCat("--json ", config.json, " cannot be written: is the disk full?"));
  }
  return report.diagnosis.findings.empty() ? 0 : 1;
}

}  // namespace annulus::server

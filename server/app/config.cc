// SPDX-License-Identifier: Apache-2.0
#include "server/app/config.h"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <random>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"

namespace annulus::server {

std::string default_model_path() {
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  const std::string base = cache != nullptr && *cache != '\0'
                               ? std::string(cache)
                               : absl::StrCat(home != nullptr ? home : "", "/.cache");
  return absl::StrCat(base, "/annulus/models/SmolLM2-135M-Instruct.Q4_1.gguf");
}

absl::StatusOr<kernels::Precision> parse_precision(const std::string& text) {
  if (text == "default") return kernels::Precision::kDefault;
  if (text == "fp32") return kernels::Precision::kF32;
  return absl::InvalidArgumentError(absl::StrCat("--precision is \"", text, "\": default or fp32"));
}

const char* name(kernels::Precision precision) {
  return precision == kernels::Precision::kF32 ? "fp32" : "default";
}

absl::StatusOr<std::optional<parallel::Variant>> parse_attention(const std::string& text) {
  if (text == "auto") return std::optional<parallel::Variant>();
  const auto variant = parallel::parse_variant(text);
  if (variant.ok()) return std::optional(*variant);
  return absl::InvalidArgumentError(
      absl::StrCat("--attention is \"", text, "\": auto, pass-kv, pass-q or gather-q"));
}

absl::Status check_gpu_flags(const ServeConfig& config) {
  const bool cudnn = config.gpu_attention == "cudnn";
  if (config.device != "cuda") {
    const char* const flag = cudnn                 ? "--gpu-attention cudnn"
                             : config.tune_gemm    ? "--tune-gemm"
                             : !config.cuda_graphs ? "--cuda-graphs off"
                                                   : nullptr;
    if (flag == nullptr) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat(flag, " is for GPUs: give --device cuda, or leave it out"));
  }
  if (cudnn && config.precision == kernels::Precision::kF32) {
    return absl::InvalidArgumentError(
        "--gpu-attention cudnn multiplies bf16, not what --precision fp32 holds: leave one out");
  }
  return absl::OkStatus();
}

absl::StatusOr<HostPort> parse_metrics(const std::string& text) {
  const size_t colon = text.rfind(':');
  HostPort out{colon == std::string::npos ? "127.0.0.1" : text.substr(0, colon)};
  const bool named = std::all_of(out.host.begin(), out.host.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' || c == '-';
  });
  const std::string port = colon == std::string::npos ? text : text.substr(colon + 1);
  const bool digits = port.find_first_not_of("0123456789") == std::string::npos;
  if (out.host.empty() || !named || !digits || !absl::SimpleAtoi(port, &out.port) ||
      out.port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("--metrics ", text, ": give HOST:PORT, or PORT for 127.0.0.1 (no IPv6)"));
  }
  return out;
}

std::vector<std::string> worker_flags(const ServeConfig& config) {
  std::vector<std::string> flags = {
      "--threads",
      absl::StrCat(config.threads),
      "--device",
      config.device,
      "--cpu-isa",
      config.isa < kernels::detect_cpu_isa() ? kernels::name(config.isa) : "auto",
      "--max-message-mib",
      absl::StrCat(config.max_message_mib),
      "--orphan-timeout",
      absl::StrCat(config.orphan_timeout_s),
      "--log-level",
      config.log_level};
  if (config.model.empty()) {
    flags.insert(flags.begin(), "--doctor");
  } else {
    flags.insert(flags.begin(), {"--model", config.model});
  }
  if (config.overrides.context) {
    flags.insert(flags.end(), {"--context", absl::StrCat(*config.overrides.context)});
  }
  if (config.overrides.rope_theta) {
    char theta[64];  // every digit: the fingerprint must agree
    std::snprintf(theta, sizeof(theta), "%.17g", *config.overrides.rope_theta);
    flags.insert(flags.end(), {"--rope-theta", theta});
  }
  if (!config.overrides.rope_scaling.empty()) {
    flags.insert(flags.end(), {"--rope-scaling", config.overrides.rope_scaling});
  }
  return flags;
}

std::string shell_command(const std::vector<std::string>& arguments) {
  constexpr const char* kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=,+@%";
  return absl::StrJoin(arguments, " ", [&](std::string* out, const std::string& argument) {
    if (!argument.empty() && argument.find_first_not_of(kPlain) == std::string::npos) {
      out->append(argument);
    } else {
      absl::StrAppend(out, "'", absl::StrReplaceAll(argument, {{"'", "'\\''"}}), "'");
    }
  });
}

std::string draw_secret() {
  std::random_device device;
  std::string secret;
  for (int i = 0; i < 4; ++i) {
    absl::StrAppend(&secret, absl::Hex(uint32_t{device()}, absl::kZeroPad8));
  }
  return secret;
}

bool set_up_logging(const std::string& who, const std::string& level) {
  const spdlog::level::level_enum parsed = spdlog::level::from_str(level);
  if (parsed == spdlog::level::off && level != "off") return false;
  auto logger = std::make_shared<spdlog::logger>("annulus",
                                                 std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_pattern(absl::StrCat("%H:%M:%S.%e %l [", who, "] %v"));
  logger->set_level(parsed);
  logger->flush_on(spdlog::level::trace);
  spdlog::set_default_logger(std::move(logger));
  return true;
}

}  // namespace annulus::server

// SPDX-License-Identifier: Apache-2.0
// Machine files and layouts: what is wrong is refused in one line that names file and key.
#include <gtest/gtest.h>

#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/simulate.h"
#include "bench/simulate_engine.h"
#include "bench/simulate_machine.h"

namespace annulus::bench {
namespace {

using Json = nlohmann::json;

Json gtt() {
  return Json::parse(machine_files().at("gtt"));
}

std::string refused(const Json& json) {
  const absl::StatusOr<Machine> machine = parse_machine(json.dump(), "m.json");
  EXPECT_FALSE(machine.ok());
  const std::string text(machine.status().message());
  EXPECT_EQ(text.find('\n'), std::string::npos);
  EXPECT_TRUE(text.starts_with("m.json: ")) << text;
  return text;
}

TEST(MachineFile, BuiltInOnesAreWhole) {
  for (const std::string& name : built_in_machines()) {
    const absl::StatusOr<Machine> machine = load_machine(name);
    ASSERT_TRUE(machine.ok()) << machine.status();
    EXPECT_EQ(machine->source.size(), machine_constants().size());
  }
  EXPECT_EQ(load_machine("gtt")->nics_per_node, 8);
}

TEST(MachineFile, WhatIsWrongIsNamed) {
  Json json = gtt();
  json["constants"]["net_gbs"] = {{"value", 1}, {"source", "x"}};
  EXPECT_NE(refused(json).find("unknown key \"net_gbs\""), std::string::npos);
  json = gtt();
  json["speed"] = 1;
  EXPECT_NE(refused(json).find("unknown key \"speed\""), std::string::npos);
  json = gtt();
  json["constants"].erase("hop_us");
  EXPECT_NE(refused(json).find("\"hop_us\" is missing"), std::string::npos);
  json = gtt();
  json["constants"]["hop_us"]["value"] = -1;
  EXPECT_NE(refused(json).find("\"hop_us\" is -1"), std::string::npos);
  json = gtt();
  json["constants"]["net_gb_s"]["value"] = 0;
  EXPECT_NE(refused(json).find("\"net_gb_s\" is 0, must be above 0"), std::string::npos);
  json = gtt();
  json["constants"]["hop_us"]["value"] = "fast";
  EXPECT_NE(refused(json).find("\"hop_us\" must be"), std::string::npos);
  json = gtt();
  json["constants"]["hop_us"].erase("source");
  EXPECT_NE(refused(json).find("\"hop_us\" must be"), std::string::npos);
  json = gtt();
  json["constants"]["gpus_per_node"]["value"] = 7.5;
  EXPECT_NE(refused(json).find("\"gpus_per_node\" is 7.5"), std::string::npos);
  json = gtt();
  json["constants"]["overlap"]["value"] = 1.5;
  EXPECT_NE(refused(json).find("\"overlap\" is 1.5"), std::string::npos);
  json = gtt();
  json.erase("name");
  EXPECT_NE(refused(json).find("\"name\""), std::string::npos);
  EXPECT_NE(refused(Json::array()).find("not a JSON object"), std::string::npos);
  EXPECT_FALSE(parse_machine("{", "m.json").ok());
}

TEST(Layout, ImpossibleOnesAreRefused) {
  const SimModel model = sim_model("llama-405b").value();
  const Machine machine = load_machine("gtt").value();
  EXPECT_TRUE(check_layout(model, machine, {8, 512}).ok());
  for (const parallel::Topology t :
       {parallel::Topology{0, 1}, parallel::Topology{8, 0}, parallel::Topology{8, 513},
        parallel::Topology{3, 1}, parallel::Topology{16, 1}}) {
    const absl::Status status = check_layout(model, machine, t);
    EXPECT_FALSE(status.ok()) << t.tp << " x " << t.cp;
    EXPECT_EQ(status.message().find('\n'), std::string_view::npos);
  }
  Machine small = machine;
  small.gpus_per_node = 6;
  EXPECT_NE(check_layout(model, small, {8, 1}).message().find("gpus_per_node of GTT"),
            std::string_view::npos);
  EXPECT_NE(check_layout(model, small, {4, 1}).message().find("across nodes"),
            std::string_view::npos);
}

TEST(Command, BadInputEndsWithTwoAndOneLine) {
  const auto run = [](std::vector<std::string> args) {
    args.insert(args.begin(), "simulate");
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    ::testing::internal::CaptureStderr();
    const int code = bench_simulate(static_cast<int>(argv.size()), argv.data());
    const std::string text = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
    return code == 2 ? text : "exit " + std::to_string(code) + ": " + text;
  };
  EXPECT_NE(run({"run", "--machine", "no.json", "--prompt", "9"}).find("simulate: no.json: "),
            std::string::npos);
  EXPECT_NE(run({"run", "--model", "gpt", "--prompt", "9"}).find("simulate: gpt: "),
            std::string::npos);
  EXPECT_NE(run({"run", "--tp", "3", "--prompt", "9"}).find("simulate: tensor parallelism 3"),
            std::string::npos);
  EXPECT_NE(run({"run", "--cp", "5000", "--prompt", "9"}).find("more than 4096 ranks"),
            std::string::npos);
  EXPECT_NE(run({"run", "--prompt", "-4"}).find("not cached 0, prompt -4"), std::string::npos);
  EXPECT_NE(run({"run", "--prompt", "9000000000000000000"}).find("that are simulated"),
            std::string::npos);
  EXPECT_NE(run({"run", "--prompt", "9", "--batch", "2000000000"}).find("that are simulated"),
            std::string::npos);
  EXPECT_NE(run({"run", "--prompt", "9000", "--cp", "512", "--answer", "300"})
                .find("ask for longer steps or fewer answer tokens"),
            std::string::npos);
  EXPECT_NE(run({"run", "--prompt", "9", "--attention", "ring"}).find("ring"), std::string::npos);
}

TEST(Command, EveryQuestionIsAnswered) {
  for (const char* const question :
       {"run --prompt 500 --answer 3 --cp 3", "best --prompt 600 --ttft-ms 50 --gpus 8",
        "passq --tp 1 --cp 3 --total 900", "links --tp 1 --cp 3 --prompt 900",
        "learn --tp 1 --cp 3 --totals 700 --miss 5,50 --epochs 3",
        "decode --tp 1 --cp 1,3 --context 300 --batch 1,2", "scale --tp 1 --prompt 300 --gpus 4"}) {
    std::istringstream words(std::string("simulate ") + question +
                             (question[0] == 'r' ? " --tp 1" : "") + " --model smollm2-135m");
    std::vector<std::string> args{std::istream_iterator<std::string>(words), {}};
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    ::testing::internal::CaptureStdout();
    const int code = bench_simulate(static_cast<int>(argv.size()), argv.data());
    const std::string text = ::testing::internal::GetCapturedStdout();
    EXPECT_EQ(code, 0) << question;
    EXPECT_TRUE(text.starts_with("# smollm2-135m on H100-NDR")) << text;
    EXPECT_EQ(text.find("nan"), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace annulus::bench

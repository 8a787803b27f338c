// SPDX-License-Identifier: Apache-2.0
// The rules of the tree: which folder may include which, no circles, file lengths, formatting,
// forbidden flags and paths.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace annulus {
namespace {

namespace fs = std::filesystem;

const fs::path kRoot = ANNULUS_SOURCE_DIR;

bool is_code(const fs::path& path) {
  const std::string e = path.extension();
  return e == ".h" || e == ".cc" || e == ".cu" || e == ".cuh";
}

std::vector<fs::path> files(const std::function<bool(const fs::path&)>& keep) {
  std::vector<fs::path> found;
  for (const char* top : {"kernels", "parallel", "server", "proto", "bench", "tests", "deploy"}) {
    for (const auto& entry : fs::recursive_directory_iterator(kRoot / top)) {
      if (entry.is_regular_file() && keep(entry.path()))
        found.push_back(fs::relative(entry.path(), kRoot));
    }
  }
  return found;
}

std::string text_of(const fs::path& path) {
  std::ifstream in(kRoot / path);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Files of the project that a file includes, as it writes them.
std::vector<std::string> includes_of(const fs::path& path) {
  static const std::regex pattern("#include \"([^\"]+)\"");
  const std::string text = text_of(path);
  std::vector<std::string> out;
  for (std::sregex_iterator it(text.begin(), text.end(), pattern), end; it != end; ++it) {
    if (fs::exists(kRoot / (*it)[1].str())) out.push_back((*it)[1]);
  }
  return out;
}

// The first cycle in a directed graph, empty when there is none.
std::vector<std::string> cycle_in(const std::map<std::string, std::set<std::string>>& graph) {
  std::map<std::string, int> state;
  std::vector<std::string> path;
  std::function<bool(const std::string&)> visit = [&](const std::string& node) {
    state[node] = 1;
    path.push_back(node);
    if (const auto it = graph.find(node); it != graph.end()) {
      for (const std::string& next : it->second) {
        if (state[next] == 1) {
          path.push_back(next);
          return true;
        }
        if (state[next] == 0 && visit(next)) return true;
      }
    }
    state[node] = 2;
    path.pop_back();
    return false;
  };
  for (const auto& [node, edges] : graph) {
    if (state[node] == 0 && visit(node)) return path;
  }
  return {};
}

std::string joined(const std::vector<std::string>& parts) {
  std::string out;
  for (const std::string& p : parts) {
    if (!out.empty()) out.append(" -> ");
    out.append(p);
  }
  return out;
}

TEST(HouseTest, ArrowPointsFromServerToParallelToKernels) {
  const std::map<std::string, std::set<std::string>> allowed = {
      {"kernels", {"kernels"}},
      {"parallel", {"parallel", "kernels"}},
      {"server", {"server", "parallel", "kernels", "proto"}},
      {"bench", {"bench", "server", "parallel", "kernels", "proto"}},
  };
  for (const fs::path& file : files(is_code)) {
    const auto it = allowed.find(*file.begin());
    if (it == allowed.end()) continue;
    for (const std::string& included : includes_of(file)) {
      EXPECT_TRUE(it->second.contains(*fs::path(included).begin()))
          << file << " includes " << included;
    }
  }
}

TEST(HouseTest, GrpcAndGeneratedHeadersStayInRpcWorkerAndClients) {
  const std::regex grpc("#include [<\"](grpcpp|grpc|annulus/v1)/");
  for (const fs::path& file : files(is_code)) {
    const std::string name = file;
    if (!std::regex_search(text_of(file), grpc)) continue;
    EXPECT_TRUE(name.starts_with("server/rpc/") || name.starts_with("server/app/") ||
                name.starts_with("tests/") || name.starts_with("bench/"))
        << name;
  }
}

TEST(HouseTest, NoCircleBetweenFiles) {
  std::map<std::string, std::set<std::string>> graph;
  for (const fs::path& file : files(is_code)) {
    for (const std::string& included : includes_of(file)) graph[file].insert(included);
  }
  EXPECT_EQ(joined(cycle_in(graph)), "");
}

TEST(HouseTest, NoCircleBetweenFolders) {
  std::map<std::string, std::set<std::string>> graph;
  for (const fs::path& file : files(is_code)) {
    for (const std::string& included : includes_of(file)) {
      const std::string from = file.parent_path(), to = fs::path(included).parent_path();
      if (from != to) graph[from].insert(to);
    }
  }
  EXPECT_EQ(joined(cycle_in(graph)), "");
}

TEST(HouseTest, NoFileIsTooLong) {
  for (const fs::path& file : files(is_code)) {
    const std::string text = text_of(file);
    EXPECT_LE(std::count(text.begin(), text.end(), '\n'), 800) << file;
    EXPECT_TRUE(text.starts_with("// SPDX-License-Identifier: Apache-2.0\n")) << file;
  }
}

// So that compiling x.cc proves that x.h compiles alone. Sources compiled once per instruction set
// and parts of one header have other names.
TEST(HouseTest, SourceIncludesItsOwnHeaderFirst) {
  for (const fs::path& file : files(is_code)) {
    if (file.extension() == ".h") {
      EXPECT_NE(text_of(file).find("\n#pragma once\n"), std::string::npos) << file;
      continue;
    }
    const std::string header = fs::path(file).replace_extension(".h");
    if (!fs::exists(kRoot / header)) continue;
    const std::string text = text_of(file);
    const size_t first = text.find("\n#include ");
    EXPECT_EQ(text.compare(first, header.size() + 12, "\n#include \"" + header + "\""), 0) << file;
  }
}

TEST(HouseTest, NoForbiddenFlags) {
  const auto build_file = [](const fs::path& path) {
    return path.filename() == "CMakeLists.txt" || path.extension() == ".cmake";
  };
  for (const fs::path& file : files(build_file)) {
    const std::string text = text_of(file);
    EXPECT_EQ(text.find("-ffast"
                        "-math"),
              std::string::npos)
        << file;
    EXPECT_EQ(text.find("-march"
                        "=native"),
              std::string::npos)
        << file;
  }
}

TEST(HouseTest, CodeIsFormatted) {
  std::string command("cd '");
  command.append(kRoot.string()).append("' && clang-format --dry-run -Werror");
  for (const fs::path& file : files(is_code)) command.append(" ").append(file.string());
  EXPECT_EQ(std::system(command.append(" 1>&2").c_str()), 0)
      << "run clang-format -i on the files above";
}

}  // namespace
}  // namespace annulus

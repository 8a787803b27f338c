// SPDX-License-Identifier: Apache-2.0
// The program `annulus`: one subcommand is parsed and run.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <string>

#include "parallel/comm_ucx.h"
#include "server/app/build.h"
#include "server/app/cli_commands.h"
#include "server/one_line.h"
#include "server/rpc/grpc_log.h"

namespace {

constexpr const char* kExamples = R"(Examples:
  annulus serve --cp 2                          serve the default model with two ranks
  annulus chat                                  talk to it
  annulus generate --chat "Why is the sky blue?"
  annulus status                                ranks, KV use, what the ring chose
  annulus plan --model synthetic:70B --tokens 1000000 --gpu H100-80G      which layouts hold it
  annulus doctor --cp 2                         what each rank's host and links give, before serving
Every subcommand has --help with examples.)";

int run(int argc, char** argv) {
  annulus::server::tame_grpc_log();
  CLI::App app("Annulus: exact long-context inference over tensor- and context-parallel ranks",
               "annulus");
  app.footer(kExamples);
  app.set_version_flag("--version", std::string("annulus ") + annulus::server::kBuild);
  app.require_subcommand(1);
  annulus::server::Command command;
  annulus::server::add_serve(app, command);
  annulus::server::add_worker(app, command);
  annulus::server::add_generate(app, command);
  annulus::server::add_chat(app, command);
  annulus::server::add_status(app, command);
  annulus::server::add_plan(app, command);
  annulus::server::add_doctor(app, command);
  annulus::server::add_hosts(app, command);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& wanted) {  // --help, --version
    return app.exit(wanted);
  } catch (const CLI::ParseError& error) {
    const std::string name =
        app.get_subcommands().empty() ? "" : " " + app.get_subcommands().front()->get_name();
    std::fprintf(stderr, "annulus%s: %s (annulus%s --help shows how)\n", name.c_str(),
                 annulus::server::one_line(error.what()).c_str(), name.c_str());
    return 2;
  }
  return command();
}

// An answer that could not be written is no answer.
int flushed(int code) {
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return code;
  std::fprintf(stderr, "annulus: stdout cannot be written: is the disk full?\n");
  return code == 0 ? 1 : code;
}

}  // namespace

int main(int argc, char** argv) {
  annulus::parallel::tame_ucx();
  try {
    return flushed(run(argc, argv));
  } catch (const std::exception& error) {  // of memory, threads: what nobody below could mend
    std::fprintf(stderr, "annulus: %s\n", error.what());
    return 1;
  }
}

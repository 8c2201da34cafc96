// reprise: the operator's command line. Parsing and exit codes; the commands are in commands_*.cc.

#include <CLI/CLI.hpp>

#include <csignal>
#include <functional>
#include <iostream>

#include "tools/cli/commands.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

// Everything the command line can say.
struct CommandLine {
  GlobalOptions global;
  std::string job;
  bool all = false;
  bool tensors = false;
  VerifyOptions verify;
  RestoreOptions restore;
  ForgetOptions forget;
  PinOptions pin;
  std::function<Status()> run;
};

void AddGlobal(CLI::App& app, GlobalOptions& global) {
  app.add_option("--store", global.store,
                 "Control address of the store (default: REPRISE_STORE, else 127.0.0.1:7700)");
  app.add_option("--dir", global.directory, "Directory of a file:// job instead of a store");
  app.add_option("-o,--output", global.output, "table or json")
      ->check(CLI::IsMember({"table", "json"}));
  app.add_option("--timeout", global.timeout_s, "Seconds any single wait may take")
      ->check(CLI::Range(0.1, 86400.0));
}

void AddLook(CLI::App& app, CommandLine& line) {
  CLI::App* ls = app.add_subcommand("ls", "Jobs, or the checkpoints of one job, newest first");
  ls->add_option("JOB", line.job, "[TENANT/]JOB");
  ls->add_flag("--all", line.all, "Include saves in progress, superseded and damaged ones");
  ls->callback([&] { line.run = [&] { return RunList(line.global, line.job, line.all); }; });

  CLI::App* show = app.add_subcommand("show", "One checkpoint: identity, size, metadata, items");
  show->add_option("REF", line.job, "[TENANT/]JOB[@STEP[~RUN]|@latest]")->required();
  show->add_flag("--tensors", line.tensors, "List every item");
  show->callback([&] { line.run = [&] { return RunShow(line.global, line.job, line.tensors); }; });

  CLI::App* status = app.add_subcommand("status", "Ranks and saves in progress of a job");
  status->add_option("JOB", line.job, "[TENANT/]JOB");
  status->callback([&] { line.run = [&] { return RunStatus(line.global, line.job); }; });
}

void AddAct(CLI::App& app, CommandLine& line) {
  CLI::App* verify = app.add_subcommand("verify", "Read every byte back and check its digest");
  verify->add_option("REF", line.verify.reference, "[TENANT/]JOB[@STEP[~RUN]|@latest]")->required();
  verify->add_flag("!--manifests-only", line.verify.read_data, "Do not read the data itself");
  verify->callback([&] { line.run = [&] { return RunVerify(line.global, line.verify); }; });

  CLI::App* restore =
      app.add_subcommand("restore", "Write a checkpoint as plain .safetensors files");
  restore->add_option("REF", line.restore.reference, "[TENANT/]JOB[@STEP[~RUN]|@latest]")
      ->required();
  restore->add_option("--to", line.restore.to, "Directory to write into (made when missing)");
  restore->add_flag("--plan", line.restore.plan, "Say what would be read from where, and stop");
  restore->callback([&] { line.run = [&] { return RunRestore(line.global, line.restore); }; });

  CLI::App* doctor =
      app.add_subcommand("doctor", "Check this host and the store; say what to mend");
  doctor->callback([&] { line.run = [&] { return RunDoctor(line.global); }; });
  CLI::App* version = app.add_subcommand("version", "Version of this program");
  version->callback([&] { line.run = [&] { return RunVersion(line.global); }; });
}

void AddKeep(CLI::App& app, CommandLine& line) {
  CLI::App* forget = app.add_subcommand("forget", "Delete one checkpoint for good");
  forget->add_option("REF", line.forget.reference, "[TENANT/]JOB@STEP[~RUN]")->required();
  forget->add_flag("--yes", line.forget.yes, "Do not ask (needed without a terminal)");
  forget->callback([&] { line.run = [&] { return RunForget(line.global, line.forget); }; });

  CLI::App* pin = app.add_subcommand("pin", "Keep a checkpoint: nothing deletes it until unpin");
  pin->add_option("REF", line.pin.reference, "[TENANT/]JOB@STEP[~RUN]")->required();
  pin->add_option("--reason", line.pin.reason, "Shown by ls, and to whoever tries to delete it");
  pin->callback([&] { line.run = [&] { return RunPin(line.global, line.pin); }; });

  CLI::App* unpin = app.add_subcommand("unpin", "Let a pinned checkpoint be deleted again");
  unpin->add_option("REF", line.pin.reference, "[TENANT/]JOB@STEP[~RUN]")->required();
  unpin->callback([&] {
    line.pin.pinned = false;
    line.run = [&] { return RunPin(line.global, line.pin); };
  });
}

int Main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  CommandLine line;
  CLI::App app{"reprise: look at, verify and restore checkpoints of training jobs"};
  app.set_version_flag("--version", "reprise " REPRISE_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // global options may follow the command
  AddGlobal(app, line.global);
  AddLook(app, line);
  AddAct(app, line);
  AddKeep(app, line);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  Status status = line.run();
  if (!status.ok()) PrintError(status, line.global.json());
  return ExitCodeOf(status.code());
}

}  // namespace
}  // namespace reprise::cli

int main(int argc, char** argv) { return reprise::cli::Main(argc, argv); }

// The commands of `reprise`: each takes what the command line said and returns an exit code's Status.
//
// Data to stdout, messages to stderr; -o json prints one document (schema 1). Documented with examples
// in docs/cli.md.
//
// Thread rule: one thread. Blocking, each wait bounded by --timeout.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "reprise/client.h"
#include "reprise/status.h"
#include "tools/cli/control.h"
#include "tools/cli/reference.h"

namespace reprise::cli {

struct GlobalOptions {
  std::string store;      // control address; "": REPRISE_STORE, else 127.0.0.1:7700
  std::string directory;  // embedded mode: the directory of a file:// job
  std::string output = "table";
  double timeout_s = 30;

  bool json() const { return output == "json"; }
  std::chrono::milliseconds timeout() const {
    return std::chrono::milliseconds(static_cast<int64_t>(timeout_s * 1000));
  }
};

// The way to the store that the options name. Holds the embedded daemon of --dir in use meanwhile.
struct Connection {
  std::unique_ptr<Client> embedded;
  std::unique_ptr<Control> control;
};
Result<Connection> Connect(const GlobalOptions& options);

// --- look (commands_look.cc)
Status RunList(const GlobalOptions& options, const std::string& job, bool all);
Status RunShow(const GlobalOptions& options, const std::string& reference, bool tensors);
Status RunStatus(const GlobalOptions& options, const std::string& job);

// --- trust (commands_verify.cc): reads every byte back; exit 5 when anything fails its digest.
struct VerifyOptions {
  std::string reference;
  bool read_data = true;
};
Status RunVerify(const GlobalOptions& options, const VerifyOptions& verify);

// --- act (commands_restore.cc)
struct RestoreOptions {
  std::string reference;
  std::string to;     // directory to write .safetensors files into
  bool plan = false;  // print what would be read from where, and stop
};
Status RunRestore(const GlobalOptions& options, const RestoreOptions& restore);

// --- keep (commands_keep.cc): what retention may and may not take away. forget deletes one checkpoint
// for good, and without a terminal only when `yes`; exit 1 when it is pinned, the last good one or being
// read. A pinned checkpoint stays until it is unpinned. All need a step; without an epoch the lineage
// decides which run is meant.
struct ForgetOptions {
  std::string reference;
  bool yes = false;
};
Status RunForget(const GlobalOptions& options, const ForgetOptions& forget);
struct PinOptions {
  std::string reference;
  bool pinned = true;
  std::string reason;
};
Status RunPin(const GlobalOptions& options, const PinOptions& pin);

// --- operate (commands_operate.cc)
Status RunDoctor(const GlobalOptions& options);
Status RunVersion(const GlobalOptions& options);

}  // namespace reprise::cli

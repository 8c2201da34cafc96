#include <fmt/format.h>
#include <unistd.h>

#include <iostream>

#include "core/base/check.h"
#include "core/base/log.h"
#include "tools/cli/commands.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

// A checkpoint named down to its epoch, and the way to its store.
struct Named {
  Connection connection;
  Reference reference;
  v1::CheckpointQuery query;
};

// Looks up the epoch that JOB@STEP means. With an epoch nothing is looked up, so that damaged and
// superseded checkpoints can be named as well.
Result<Named> NameCheckpoint(const GlobalOptions& options, const std::string& text) {
  Named named;
  REPRISE_ASSIGN(named.reference, ParseReference(text));
  Reference& reference = named.reference;
  if (!reference.step.has_value()) {
    return Fail(Code::kInvalidArgument, "'{}' names no step: write JOB@STEP or JOB@STEP~EPOCH",
                text);
  }
  REPRISE_ASSIGN(named.connection, Connect(options));
  named.query.set_tenant(reference.tenant);
  named.query.set_job(reference.job);
  named.query.set_step(*reference.step);
  if (!reference.epoch.has_value()) {
    REPRISE_ASSIGN(v1::CheckpointInfo info, named.connection.control->Resolve(named.query));
    reference.epoch = info.key().epoch();
  }
  named.query.set_epoch(*reference.epoch);
  return named;
}

// Asks on a terminal; without one only --yes agrees.
Status Agree(const std::string& what) {
  if (isatty(STDIN_FILENO) == 0) {
    return FailStatus(Code::kInvalidArgument,
                      "forget deletes {} for good: repeat with --yes to agree", what);
  }
  std::cerr << fmt::format("Delete {} for good? [y/N] ", what);
  std::string answer;
  std::getline(std::cin, answer);
  if (answer == "y" || answer == "yes") return OkStatus();
  return FailStatus(Code::kAborted, "{} was kept", what);
}

void Report(const GlobalOptions& options, const Named& named, std::string_view done) {
  if (options.json()) {
    PrintJson({{"done", done},
               {"tenant", named.reference.tenant},
               {"job", named.reference.job},
               {"step", *named.reference.step},
               {"epoch", *named.reference.epoch}});
  } else {
    std::cout << fmt::format("{} {}\n", named.reference.ToString(), done);
  }
}

}  // namespace

Status RunForget(const GlobalOptions& options, const ForgetOptions& forget) {
  REPRISE_ASSIGN_STATUS(Named named, NameCheckpoint(options, forget.reference));
  if (!forget.yes) REPRISE_RETURN_IF_ERROR(Agree(named.reference.ToString()));
  REPRISE_RETURN_IF_ERROR(named.connection.control->Delete(named.query));
  Report(options, named, "deleted");
  return OkStatus();
}

Status RunPin(const GlobalOptions& options, const PinOptions& pin) {
  REPRISE_ASSIGN_STATUS(Named named, NameCheckpoint(options, pin.reference));
  v1::PinRequest request;
  *request.mutable_checkpoint() = named.query;
  request.set_pinned(pin.pinned);
  request.set_reason(pin.reason);
  REPRISE_RETURN_IF_ERROR(named.connection.control->Pin(request));
  Report(options, named, pin.pinned ? "pinned" : "unpinned");
  return OkStatus();
}

}  // namespace reprise::cli

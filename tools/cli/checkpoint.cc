#include "tools/cli/checkpoint.h"

#include <cstring>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::cli {

Result<OpenedCheckpoint> OpenCheckpoint(const GlobalOptions& options, const Reference& reference) {
  OpenedCheckpoint opened;
  REPRISE_ASSIGN(opened.connection, Connect(options));
  Control& control = *opened.connection.control;
  v1::CheckpointQuery query;
  query.set_tenant(reference.tenant);
  query.set_job(reference.job);
  if (reference.step.has_value()) query.set_step(*reference.step);
  if (reference.epoch.has_value()) query.set_epoch(*reference.epoch);
  REPRISE_ASSIGN(opened.info, control.Resolve(query));
  REPRISE_ASSIGN(v1::JobInfo job, control.GetJob(reference.tenant, reference.job));
  REPRISE_ASSIGN(v1::StoreInfo store, control.GetStore());
  Id id;
  if (job.job().size() != id.bytes.size()) {
    return Error(Code::kInternal, "the store answered with a malformed job id");
  }
  std::memcpy(id.bytes.data(), job.job().data(), id.bytes.size());
  REPRISE_ASSIGN(
      opened.reader,
      DataReader::Open(store.data_address(), id,
                       {opened.info.key().epoch(), opened.info.key().step()}, options.timeout()));
  return opened;
}

Result<std::map<Digest, format::Layout>> ReadLayouts(DataReader& reader) {
  std::map<Digest, format::Layout> layouts;
  for (const auto& [digest, object] : reader.manifest().layouts) {
    REPRISE_ASSIGN(format::Layout layout, reader.ReadLayout(digest));
    layouts.emplace(digest, std::move(layout));
  }
  return layouts;
}

std::string_view StateName(uint32_t state) {
  static constexpr std::string_view kNames[] = {"saving",   "committed",  "damaged",
                                                "poisoned", "superseded", "recovered"};
  return state >= 1 && state <= std::size(kNames) ? kNames[state - 1] : "unknown";
}

}  // namespace reprise::cli

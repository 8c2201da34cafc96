#include <fmt/format.h>

#include <iostream>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "tools/cli/checkpoint.h"
#include "tools/cli/commands.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

// Reads one shard and counts chunks that fail their digest.
Status VerifyShard(DataReader& reader, uint32_t rank, bool read_data, Progress& progress,
                   nlohmann::json& damage) {
  Result<format::ShardManifest> shard = reader.ReadShardManifest(rank);
  if (!shard.has_value()) {
    if (shard.error().code() != Code::kDataLoss) return shard.error();
    damage.push_back({{"rank", rank}, {"what", shard.error().message()}});
    return OkStatus();
  }
  if (!read_data) return OkStatus();
  return reader.ReadShard(*shard, [&](uint64_t index, ByteView bytes, const Status& status) {
    progress.Add(bytes.size());
    if (!status.ok()) {
      damage.push_back({{"rank", rank}, {"chunk", index}, {"what", status.message()}});
    }
    return OkStatus();
  });
}

}  // namespace

Status RunVerify(const GlobalOptions& options, const VerifyOptions& verify) {
  REPRISE_ASSIGN_STATUS(Reference reference, ParseReference(verify.reference));
  REPRISE_ASSIGN_STATUS(OpenedCheckpoint opened, OpenCheckpoint(options, reference));
  DataReader& reader = *opened.reader;
  REPRISE_RETURN_IF_ERROR(StatusOf(ReadLayouts(reader)));
  nlohmann::json damage = nlohmann::json::array();
  double seconds = 0;
  {
    Progress progress("verify", opened.info.length(), options.json());
    for (const format::CheckpointShard& shard : reader.manifest().shards) {
      REPRISE_RETURN_IF_ERROR(VerifyShard(reader, shard.rank, verify.read_data, progress, damage));
    }
    seconds = progress.seconds();
  }
  if (options.json()) {
    PrintJson({{"step", opened.info.key().step()},
               {"epoch", opened.info.key().epoch()},
               {"bytes", verify.read_data ? opened.info.length() : 0},
               {"seconds", seconds},
               {"intact", damage.empty()},
               {"damage", damage}});
  }
  if (damage.empty()) {
    if (!options.json()) {
      std::cout << fmt::format("{}: {} in {} shards, all digests match\n", reference.ToString(),
                               HumanBytes(opened.info.length()), reader.manifest().shards.size());
    }
    return OkStatus();
  }
  v1::MarkRequest mark;
  v1::CheckpointQuery* query = mark.mutable_checkpoint();
  query->set_tenant(reference.tenant);
  query->set_job(reference.job);
  query->set_step(opened.info.key().step());
  query->set_epoch(opened.info.key().epoch());
  mark.set_mark(1);  // damaged
  mark.set_reason("verify: " + damage.front()["what"].get<std::string>());
  REPRISE_RETURN_IF_ERROR(opened.connection.control->SetMark(mark));
  return FailStatus(Code::kDataLoss,
                    "{}: {} damaged part(s), first: {}. Marked as damaged: the next run resumes "
                    "from an older checkpoint (`reprise ls {}/{}`)",
                    reference.ToString(), damage.size(), damage.front()["what"].get<std::string>(),
                    reference.tenant, reference.job);
}

}  // namespace reprise::cli

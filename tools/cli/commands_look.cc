#include <fmt/format.h>

#include <iostream>
#include <map>
#include <optional>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "tools/cli/checkpoint.h"
#include "tools/cli/commands.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

using nlohmann::json;

std::string KeyText(const v1::Key& key) { return fmt::format("{}~{}", key.step(), key.epoch()); }

json JsonOf(const v1::CheckpointInfo& info) {
  return {{"step", info.key().step()},
          {"epoch", info.key().epoch()},
          {"state", StateName(info.state())},
          {"durability", DurabilityName(static_cast<Durability>(info.level()))},
          {"bytes", info.length()},
          {"world", info.world()},
          {"saved_at_unix_us", info.wall_micros()},
          {"pinned", info.pinned()},
          {"adopted", info.adopted()},
          {"root", HexOf(ViewOf(info.root()))},
          {"note", info.note()}};
}

json JsonOf(const v1::JobInfo& job) {
  json ranks = json::array();
  for (const v1::RankInfo& rank : job.ranks()) {
    ranks.push_back({{"rank", rank.rank()},
                     {"host", rank.host()},
                     {"pid", rank.pid()},
                     {"alive", rank.alive()},
                     {"last_step", rank.last_step()}});
  }
  json out = {{"tenant", job.tenant()},      {"job", job.name()},
              {"epoch", job.epoch()},        {"world", job.world()},
              {"alive", job.alive()},        {"checkpoints", job.checkpoint_count()},
              {"bytes", job.stored_bytes()}, {"ranks", ranks}};
  if (job.has_latest()) out["latest_step"] = job.latest().step();
  if (job.has_resume()) out["resume_step"] = job.resume().step();
  return out;
}

Status ListJobs(Control& control, const GlobalOptions& options) {
  REPRISE_ASSIGN_STATUS(v1::JobList list, control.ListJobs(""));
  if (options.json()) {
    json jobs = json::array();
    for (const v1::JobInfo& job : list.jobs()) jobs.push_back(JsonOf(job));
    PrintJson({{"jobs", jobs}});
    return OkStatus();
  }
  Table table({"JOB", "LATEST", "CHECKPOINTS", "SIZE", "WORLD", "RUN", "ALIVE"});
  for (const v1::JobInfo& job : list.jobs()) {
    table.Add({job.tenant() + "/" + job.name(), job.has_latest() ? KeyText(job.latest()) : "-",
               fmt::format("{}", job.checkpoint_count()), HumanBytes(job.stored_bytes()),
               fmt::format("{}", job.world()), fmt::format("{}", job.epoch()),
               job.alive() ? "yes" : "no"});
  }
  table.Print();
  return OkStatus();
}

}  // namespace

Status RunList(const GlobalOptions& options, const std::string& job, bool all) {
  REPRISE_ASSIGN_STATUS(Connection connection, Connect(options));
  if (job.empty()) return ListJobs(*connection.control, options);
  REPRISE_ASSIGN_STATUS(Reference reference, ParseReference(job));
  REPRISE_ASSIGN_STATUS(v1::CheckpointList list,
                        connection.control->ListCheckpoints(reference.tenant, reference.job, all));
  if (options.json()) {
    json checkpoints = json::array();
    for (const v1::CheckpointInfo& info : list.checkpoints()) checkpoints.push_back(JsonOf(info));
    PrintJson({{"tenant", reference.tenant}, {"job", reference.job}, {"checkpoints", checkpoints}});
    return OkStatus();
  }
  Table table(
      {"JOB", "STEP", "RUN", "STATE", "DURABILITY", "SIZE", "AGE", "WORLD", "PINNED", "NOTE"});
  for (const v1::CheckpointInfo& info : list.checkpoints()) {
    std::string note = info.note();
    if (info.adopted()) note += note.empty() ? "adopted at run start" : "; adopted at run start";
    table.Add({reference.tenant + "/" + reference.job, fmt::format("{}", info.key().step()),
               fmt::format("{}", info.key().epoch()), std::string(StateName(info.state())),
               std::string(DurabilityName(static_cast<Durability>(info.level()))),
               HumanBytes(info.length()), AgeOf(info.wall_micros()),
               fmt::format("{}", info.world()), info.pinned() ? "yes" : "no", note});
  }
  table.Print();
  return OkStatus();
}

Status RunShow(const GlobalOptions& options, const std::string& text, bool tensors) {
  REPRISE_ASSIGN_STATUS(Reference reference, ParseReference(text));
  REPRISE_ASSIGN_STATUS(OpenedCheckpoint opened, OpenCheckpoint(options, reference));
  const format::CheckpointManifest& manifest = opened.reader->manifest();
  REPRISE_ASSIGN_STATUS(auto layouts, ReadLayouts(*opened.reader));
  json document = JsonOf(opened.info);
  document["tenant"] = reference.tenant;
  document["job"] = reference.job;
  json metadata = json::parse(manifest.metadata, nullptr, false);
  document["metadata"] = metadata.is_discarded() ? json() : std::move(metadata);  // none: null
  std::map<std::string, const format::Piece*> items;
  for (const auto& [digest, layout] : layouts) {
    for (const format::Piece& piece : layout.pieces) items.emplace(piece.name, &piece);
  }
  if (options.json()) {
    for (const auto& [name, piece] : items) {
      document["items"].push_back({{"name", name},
                                   {"dtype", DtypeName(piece->dtype)},
                                   {"shape", piece->global_shape},
                                   {"auxiliary", piece->auxiliary}});
    }
    PrintJson(document);
    return OkStatus();
  }
  for (const auto& [key, value] : document.items()) std::cout << key << ": " << value << "\n";
  std::cout << "items: " << items.size() << " in " << layouts.size() << " layout(s), "
            << manifest.shards.size() << " shard(s)\n";
  if (!tensors) return OkStatus();
  Table table({"NAME", "DTYPE", "SHAPE"});
  for (const auto& [name, piece] : items) {
    table.Add({name, std::string(DtypeName(piece->dtype)),
               piece->auxiliary ? "auxiliary"
                                : fmt::format("[{}]", fmt::join(piece->global_shape, ", "))});
  }
  table.Print();
  return OkStatus();
}

Status RunStatus(const GlobalOptions& options, const std::string& job) {
  REPRISE_ASSIGN_STATUS(Connection connection, Connect(options));
  if (job.empty()) return ListJobs(*connection.control, options);
  REPRISE_ASSIGN_STATUS(Reference reference, ParseReference(job));
  REPRISE_ASSIGN_STATUS(v1::JobInfo info,
                        connection.control->GetJob(reference.tenant, reference.job));
  REPRISE_ASSIGN_STATUS(v1::CheckpointList list,
                        connection.control->ListCheckpoints(reference.tenant, reference.job, true));
  if (options.json()) {
    json document = JsonOf(info);
    for (const v1::CheckpointInfo& item : list.checkpoints()) {
      if (StateName(item.state()) == "saving") document["saving"].push_back(JsonOf(item));
    }
    PrintJson(document);
    return OkStatus();
  }
  std::cout << fmt::format("{}/{}: run {}, world {}, {}\n", info.tenant(), info.name(),
                           info.epoch(), info.world(), info.alive() ? "alive" : "not running");
  std::cout << "latest: " << (info.has_latest() ? KeyText(info.latest()) : "none") << "\n";
  for (const v1::CheckpointInfo& item : list.checkpoints()) {
    if (StateName(item.state()) != "saving") continue;
    std::cout << fmt::format("saving step {}: {}\n", item.key().step(), item.note());
  }
  Table table({"RANK", "HOST", "PID", "ALIVE", "LAST STEP"});
  for (const v1::RankInfo& rank : info.ranks()) {
    table.Add({fmt::format("{}", rank.rank()), rank.host(), fmt::format("{}", rank.pid()),
               rank.alive() ? "yes" : "no", fmt::format("{}", rank.last_step())});
  }
  table.Print();
  return OkStatus();
}

}  // namespace reprise::cli

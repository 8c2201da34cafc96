#include <fmt/format.h>

#include <filesystem>
#include <iostream>
#include <map>
#include <set>

#include "core/base/bytes.h"
#include "core/base/check.h"
#include "core/base/log.h"
#include "tools/cli/checkpoint.h"
#include "tools/cli/commands.h"
#include "tools/cli/gather.h"
#include "tools/cli/output.h"

namespace reprise::cli {
namespace {

using Layouts = std::map<Digest, format::Layout>;

bool BelongsToRank(const format::Piece& piece) {
  return piece.auxiliary || piece.scope == Scope::kRank;
}

format::SafetensorsItem ItemOf(const format::Piece& piece) {
  return {piece.name, piece.dtype, piece.global_shape, 0, 0};
}

std::map<std::string, std::string> MetadataOf(const Reference& reference,
                                              const format::CheckpointManifest& manifest) {
  return {{"format", "pt"},
          {"reprise.job", reference.tenant + "/" + reference.job},
          {"reprise.step", fmt::format("{}", manifest.key.step)},
          {"reprise.epoch", fmt::format("{}", manifest.key.epoch)},
          {"reprise.metadata", manifest.metadata}};
}

// The files that a restore writes: one for everybody's tensors, one per rank with its own.
struct Files {
  std::unique_ptr<TensorFile> shared;
  std::map<uint32_t, std::unique_ptr<TensorFile>> of_rank;
};

Result<Files> CreateFiles(const std::string& directory, const Reference& reference,
                          const format::CheckpointManifest& manifest, const Layouts& layouts) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) return Fail(Code::kUnavailable, "make {}: {}", directory, error.message());
  Files files;
  auto metadata = MetadataOf(reference, manifest);
  std::map<std::string, format::SafetensorsItem> shared;
  for (const format::CheckpointShard& shard : manifest.shards) {
    std::vector<format::SafetensorsItem> own;
    for (const format::Piece& piece : layouts.at(shard.layout).pieces) {
      if (BelongsToRank(piece)) {
        own.push_back(ItemOf(piece));
      } else {
        shared.emplace(piece.name, ItemOf(piece));
      }
    }
    if (own.empty()) continue;
    std::string path = fmt::format("{}/rank-{:05}.safetensors", directory, shard.rank);
    REPRISE_ASSIGN(files.of_rank[shard.rank], TensorFile::Create(path, std::move(own), metadata));
  }
  std::vector<format::SafetensorsItem> items;
  for (auto& [name, item] : shared) items.push_back(std::move(item));
  REPRISE_ASSIGN(files.shared, TensorFile::Create(directory + "/checkpoint.safetensors",
                                                  std::move(items), metadata));
  return files;
}

// Reads one shard and scatters it. `written` holds (name, boxes) already taken from another rank.
Status RestoreShard(DataReader& reader, const format::CheckpointShard& entry,
                    const Layouts& layouts, Files& files, std::set<Bytes>& written,
                    Progress& progress) {
  REPRISE_ASSIGN_STATUS(format::ShardManifest shard, reader.ReadShardManifest(entry.rank));
  const format::Layout& layout = layouts.at(entry.layout);
  ShardScatter scatter(layout, [&](const format::Piece& piece) -> TensorFile* {
    if (BelongsToRank(piece)) return files.of_rank.at(entry.rank).get();
    // Copies of a part (replicas) are written once; which part it is, the piece itself says.
    format::Layout one{{piece}, layout.chunk_bytes, 0};
    one.pieces[0].position = 0;
    return written.insert(format::EncodeLayout(one)).second ? files.shared.get() : nullptr;
  });
  return reader.ReadShard(shard, [&](uint64_t index, ByteView bytes, const Status& status) {
    REPRISE_RETURN_IF_ERROR(status);
    progress.Add(bytes.size());
    return scatter.Write(index * shard.chunk_bytes, bytes);
  });
}

Status PrintPlan(const GlobalOptions& options, const Reference& reference,
                 const OpenedCheckpoint& opened) {
  const format::CheckpointManifest& manifest = opened.reader->manifest();
  if (options.json()) {
    nlohmann::json shards = nlohmann::json::array();
    for (const format::CheckpointShard& shard : manifest.shards) {
      shards.push_back({{"rank", shard.rank}, {"bytes", shard.length}, {"source", "nvme"}});
    }
    PrintJson({{"job", reference.tenant + "/" + reference.job},
               {"step", manifest.key.step},
               {"epoch", manifest.key.epoch},
               {"bytes", opened.info.length()},
               {"shards", shards}});
    return OkStatus();
  }
  std::cout << fmt::format("{}/{}@{}~{}: {} from {} shard(s)\n", reference.tenant, reference.job,
                           manifest.key.step, manifest.key.epoch, HumanBytes(opened.info.length()),
                           manifest.shards.size());
  Table table({"RANK", "SIZE", "SOURCE"});
  for (const format::CheckpointShard& shard : manifest.shards) {
    table.Add({fmt::format("{}", shard.rank), HumanBytes(shard.length), "nvme"});
  }
  table.Print();
  return OkStatus();
}

}  // namespace

Status RunRestore(const GlobalOptions& options, const RestoreOptions& restore) {
  if (restore.to.empty() && !restore.plan) {
    return Status(Code::kInvalidArgument, "say where to write with --to DIR, or ask for --plan");
  }
  REPRISE_ASSIGN_STATUS(Reference reference, ParseReference(restore.reference));
  REPRISE_ASSIGN_STATUS(OpenedCheckpoint opened, OpenCheckpoint(options, reference));
  if (restore.plan) return PrintPlan(options, reference, opened);
  DataReader& reader = *opened.reader;
  const format::CheckpointManifest& manifest = reader.manifest();
  REPRISE_ASSIGN_STATUS(Layouts layouts, ReadLayouts(reader));
  REPRISE_ASSIGN_STATUS(Files files, CreateFiles(restore.to, reference, manifest, layouts));
  double seconds = 0;
  {
    Progress progress("restore", opened.info.length(), options.json());
    std::set<Bytes> written;
    for (const format::CheckpointShard& shard : manifest.shards) {
      REPRISE_RETURN_IF_ERROR(RestoreShard(reader, shard, layouts, files, written, progress));
    }
    seconds = progress.seconds();
  }
  std::vector<std::string> paths;
  for (auto& [rank, file] : files.of_rank) {
    REPRISE_RETURN_IF_ERROR(file->Finish());
    paths.push_back(file->path());
  }
  // Last, so that its presence says that everything is there.
  REPRISE_RETURN_IF_ERROR(files.shared->Finish());
  paths.push_back(files.shared->path());
  if (options.json()) {
    PrintJson({{"type", "summary"},
               {"step", manifest.key.step},
               {"epoch", manifest.key.epoch},
               {"bytes", opened.info.length()},
               {"seconds", seconds},
               {"files", paths}});
  } else {
    for (const std::string& path : paths) std::cout << path << "\n";
    std::cerr << fmt::format("restored step {} ({}), every chunk verified\n", manifest.key.step,
                             HumanBytes(opened.info.length()));
  }
  return OkStatus();
}

}  // namespace reprise::cli

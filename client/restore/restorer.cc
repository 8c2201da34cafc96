#include "client/restore/restorer.h"

#include <algorithm>
#include <string>

#include "core/base/log.h"

namespace reprise::client {
namespace {

// No buffer of the ring: the chunk lay in a slot.
constexpr uint32_t kNoRingIndex = UINT32_MAX;

}  // namespace

Restorer::Restorer(Session& session, CopyEngine& engine, RestoreRing& ring, const RestorePlan& plan,
                   std::span<const format::ShardManifest> manifests,
                   std::span<const PieceView> targets)
    : session_(session),
      engine_(engine),
      ring_(ring),
      plan_(plan),
      manifests_(manifests),
      targets_(targets),
      pool_(engine.threads()) {
  for (uint32_t s = 0; s < plan.shards.size(); ++s) {
    const auto& uses = plan.shards[s].uses;
    for (size_t i = 0; i < uses.size();) {
      size_t end = i;
      while (end < uses.size() && uses[end].chunk == uses[i].chunk) ++end;
      items_.push_back({.shard = s, .chunk = uses[i].chunk, .first_use = i, .use_count = end - i});
      i = end;
    }
  }
}

Status Restorer::Run(const Connection& connection, Deadline deadline) {
  connection_ = connection;
  deadline_ = deadline;
  status_ = OkStatus();
  if (connection.map_slots) REPRISE_RETURN_IF_ERROR(RunSlots(connection, deadline));
  REPRISE_RETURN_IF_ERROR(RunRing(connection, deadline));
  return engine_.Flush();
}

// ---- chunks, wherever they lie

uint64_t Restorer::LengthOf(const Item& item) const {
  const ShardPlan& shard = plan_.shards[item.shard];
  return format::ChunkLength(shard.length, shard.chunk_bytes, item.chunk);
}

bool Restorer::Verify(const Item& item, ByteView chunk) const {
  return chunk.size() == LengthOf(item) &&
         DigestOf(chunk) == manifests_[item.shard].chunk_digests[item.chunk];
}

void Restorer::Scatter(const Item& item, ByteView chunk) {
  const ShardPlan& shard = plan_.shards[item.shard];
  uint64_t begin = item.chunk * shard.chunk_bytes;
  for (size_t i = 0; i < item.use_count; ++i) {
    const StridedCopy& copy = shard.copies[shard.uses[item.first_use + i].copy];
    auto* target = static_cast<uint8_t*>(targets_[copy.target].data);
    ForEachRun(copy, begin, begin + chunk.size(), [&](uint64_t from, uint64_t to, uint64_t bytes) {
      Status delivered = engine_.Deliver(target + to, chunk.data() + (from - begin), bytes);
      if (!delivered.ok()) End(delivered);
    });
  }
}

void Restorer::Count(wire::Source source, uint64_t bytes) {
  switch (source) {
    case wire::Source::kPeer: stats_.bytes_peer += bytes; break;
    case wire::Source::kStoreRam: stats_.bytes_ram += bytes; break;
    case wire::Source::kNvme: stats_.bytes_nvme += bytes; break;
    case wire::Source::kObject: stats_.bytes_object += bytes; break;
    default: stats_.bytes_slab += bytes;
  }
}

void Restorer::End(const Status& status) {
  status.IgnoreError();  // the first is kept: Run returns it
  std::lock_guard lock(mutex_);
  ended_ = true;
  if (status_.ok()) status_ = status;
  if (inbox_ != nullptr) inbox_->Close();
}

// ---- straight from sealed slots

Status Restorer::RunSlots(const Connection& connection, Deadline deadline) {
  for (uint32_t s = 0; s < plan_.shards.size(); ++s) {
    wire::SlotOf question{.rank = plan_.shards[s].rank};
    Result<Reply> reply =
        session_.Call(question, wire::Opcode::kSlot, deadline, "a slot of this node to read from",
                      connection.generation, connection.stream);
    if (!reply.has_value()) {
      if (reply.error().code() == Code::kUnavailable) return reply.error();
      continue;
    }
    REPRISE_ASSIGN_STATUS(auto info, wire::Decode<wire::SlotInfo>(reply->body));
    uint64_t bytes = info.data_offset + plan_.shards[s].length;
    if (!reply->descriptor.valid() || bytes > info.file_bytes) continue;
    auto [first, last] = std::ranges::equal_range(items_, s, {}, &Item::shard);
    std::span<Item> items(first, last);
    Result<Mapping> mapping = Mapping::Map(reply->descriptor, bytes, Mapping::Access::kReadSparse);
    // The ring gets the same bytes without a mapping of the slot.
    if (!mapping.has_value()) continue;
    ByteView shard_bytes = mapping->view().subspan(info.data_offset);
    std::atomic<size_t> next{0};
    pool_.Run(pool_.threads(), [&](uint32_t) {
      for (size_t i = next++; i < items.size() && !deadline.expired(); i = next++) {
        if (!items[i].done) ReadSlotItem(items[i], shard_bytes);
      }
    });
  }
  std::lock_guard lock(mutex_);
  return status_;
}

void Restorer::ReadSlotItem(Item& item, ByteView shard_bytes) {
  const ShardPlan& shard = plan_.shards[item.shard];
  ByteView chunk = shard_bytes.subspan(item.chunk * shard.chunk_bytes, LengthOf(item));
  Mapping::Populate(chunk);
  if (!Verify(item, chunk)) {
    // The ring phase asks for another copy.
    item.damaged_in_slot = true;
    return;
  }
  Scatter(item, chunk);
  item.done = true;
  std::lock_guard lock(mutex_);
  Count(wire::Source::kLocalSlab, chunk.size());
}

// ---- through the ring

std::vector<Restorer::FetchRun> Restorer::PlanFetches() const {
  std::vector<FetchRun> fetches;
  for (size_t i = 0; i < items_.size(); ++i) {
    const Item& item = items_[i];
    if (item.done || item.damaged_in_slot) continue;
    bool joins = !fetches.empty() && fetches.back().count < kFetchChunks &&
                 fetches.back().first_item + fetches.back().count == i &&
                 items_[i - 1].shard == item.shard && items_[i - 1].chunk + 1 == item.chunk;
    if (joins) {
      ++fetches.back().count;
    } else {
      fetches.push_back({.first_item = i, .count = 1});
    }
  }
  return fetches;
}

Status Restorer::RunRing(const Connection& connection, Deadline deadline) {
  left_ = std::ranges::count(items_, false, &Item::done);
  if (left_ == 0) return OkStatus();
  REPRISE_ASSIGN_STATUS(view_, ring_.Ensure(connection.generation, deadline));
  fetches_ = PlanFetches();
  next_fetch_ = 0;
  in_flight_ = 0;
  ended_ = false;
  requests_.clear();
  inbox_ = std::make_shared<Inbox>();
  Status started;
  {
    std::lock_guard lock(mutex_);
    for (Item& item : items_) {
      if (item.done || !item.damaged_in_slot) continue;
      item.damaged_in_slot = false;
      ++in_flight_;
      started = ReportCorrupt(item, kNoRingIndex, wire::Source::kLocalSlab);
      if (!started.ok()) break;
    }
    if (started.ok()) started = TopUpLocked();
  }
  if (started.ok()) {
    pool_.Run(pool_.threads(), [&](uint32_t) { RingWorker(); });
  } else {
    End(started);
  }
  for (uint64_t request : requests_) session_.Forget(request);
  for (const Reply& rest : inbox_->TakeRest()) {
    if (rest.header.opcode == wire::Opcode::kChunkAt) {
      session_.GiveBack(rest, connection.generation);
    }
  }
  inbox_.reset();
  std::lock_guard lock(mutex_);
  return status_;
}

Status Restorer::TopUpLocked() {
  // Half of the ring is being filled while the other half is read.
  uint64_t ahead = std::max<uint64_t>(view_.chunks, kFetchChunks);
  while (next_fetch_ < fetches_.size() && in_flight_ + fetches_[next_fetch_].count <= ahead) {
    const FetchRun& run = fetches_[next_fetch_++];
    const Item& first = items_[run.first_item];
    wire::Fetch fetch{
        .rank = plan_.shards[first.shard].rank, .first = first.chunk, .count = run.count};
    REPRISE_ASSIGN_STATUS(uint64_t request, session_.Start(fetch, inbox_, connection_.generation,
                                                           connection_.stream));
    requests_.push_back(request);
    in_flight_ += run.count;
  }
  return OkStatus();
}

void Restorer::RingWorker() {
  while (true) {
    {
      std::lock_guard lock(mutex_);
      if (ended_ || left_ == 0) return;
    }
    Deadline silence = Deadline::After(kSilenceMax);
    Result<Reply> reply = inbox_->Next(deadline_.Earlier(silence), "the next chunk of a restore");
    Status status = reply.has_value() ? OnChunk(*reply) : reply.error();
    // Withdrawn: another worker has ended the phase.
    if (status.code() == Code::kCancelled && !reply.has_value()) return;
    if (!status.ok()) {
      End(status);
      return;
    }
  }
}

Restorer::Item* Restorer::FindItem(uint32_t rank, uint64_t chunk) {
  auto shard = std::ranges::find(plan_.shards, rank, &ShardPlan::rank);
  if (shard == plan_.shards.end()) return nullptr;
  auto index = static_cast<uint32_t>(shard - plan_.shards.begin());
  auto key = [](const Item& item) { return std::pair(item.shard, item.chunk); };
  auto found = std::ranges::lower_bound(items_, std::pair(index, chunk), {}, key);
  return found != items_.end() && key(*found) == std::pair(index, chunk) ? &*found : nullptr;
}

Status Restorer::OnChunk(const Reply& reply) {
  if (reply.header.opcode != wire::Opcode::kChunkAt) {
    return FailStatus(Code::kInternal, "the node daemon sent {} during a restore",
                      wire::OpcodeName(reply.header.opcode));
  }
  REPRISE_ASSIGN_STATUS(auto at, wire::Decode<wire::ChunkAt>(reply.body));
  Item* item = FindItem(at.rank, at.index);
  ByteView chunk = view_.Buffer(at.ring_index, at.length);
  if (item == nullptr || item->done || chunk.size() != at.length) {
    return FailStatus(Code::kInternal,
                      "the node daemon sent chunk {} of rank {}, which was not asked "
                      "for",
                      at.index, at.rank);
  }
  if (!Verify(*item, chunk)) {
    std::lock_guard lock(mutex_);
    return ReportCorrupt(*item, at.ring_index, at.source);
  }
  Scatter(*item, chunk);
  std::lock_guard lock(mutex_);
  item->done = true;
  Count(at.source, chunk.size());
  --in_flight_;
  --left_;
  REPRISE_RETURN_IF_ERROR(
      session_.Send(wire::RingFree{.ring_indices = {at.ring_index}}, connection_.generation));
  if (left_ == 0) {
    ended_ = true;
    inbox_->Close();
    return OkStatus();
  }
  return TopUpLocked();
}

Status Restorer::ReportCorrupt(Item& item, uint32_t ring_index, wire::Source source) {
  ++stats_.chunks_corrupt;
  uint32_t rank = plan_.shards[item.shard].rank;
  ++item.failures;
  LogWarn("chunk {} of rank {}'s shard, from {}, fails its digest; asking for another copy",
          item.chunk, rank, wire::SourceName(source));
  if (item.failures > kCorruptMax) {
    return FailStatus(
        Code::kDataLoss,
        "chunk {} of rank {}'s shard failed its digest {} times, last from {}: no intact "
        "copy reached this process; see `reprise verify`",
        item.chunk, rank, item.failures, wire::SourceName(source));
  }
  wire::Corrupt report{
      .rank = rank, .index = item.chunk, .ring_index = ring_index, .source = source};
  REPRISE_ASSIGN_STATUS(uint64_t request,
                        session_.Start(report, inbox_, connection_.generation, connection_.stream));
  requests_.push_back(request);
  return OkStatus();
}

}  // namespace reprise::client

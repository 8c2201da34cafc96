#include "server/lifecycle/store.h"

#include <utility>

#include "core/base/log.h"
#include "server/lifecycle/coordinator.h"
#include "server/lifecycle/recovery.h"
#include "server/lifecycle/store_log.h"

namespace reprise::lifecycle {
namespace {

// Cursors of one start of the coordinator lie above those of every earlier one.
uint64_t CursorBaseOf(uint64_t incarnation) { return incarnation << 32; }

class StoreImpl final : public Store {
 public:
  StoreImpl(Io& io, Rng& rng, StoreOptions options, std::unique_ptr<RecoveredParts> parts)
      : loop_(io.loop()),
        options_(std::move(options)),
        parts_(std::move(parts)),
        log_(loop_,
             {parts_->state, *parts_->journal, *parts_->catalog, *parts_->tier,
              parts_->geometry.journal_slots},
             [this](Status) { OnLogFailure(); }),
        events_(loop_, CursorBaseOf(parts_->superblock.incarnation),
                options_.coordinator.node_timeout),
        gate_(loop_),
        core_{loop_,
              rng,
              options_.coordinator,
              options_.mutations,
              parts_->geometry,
              parts_->state,
              log_,
              *parts_->tier,
              events_,
              gate_,
              parts_->superblock.store},
        coordinator_(core_) {}

  // R7: what needs the running parts.
  Task<Status> Start();

  Task<void> Close() override;
  const RecoveryReport& recovery() const override { return parts_->report; }
  tier::TierUsage usage() const override { return parts_->tier->usage(); }
  const Geometry& geometry() const override { return parts_->geometry; }
  const Id& id() const override { return parts_->superblock.store; }
  const StoreState& state() const override { return parts_->state; }
  bool failed() const override { return log_.failed(); }

  Task<Result<RegisterAnswer>> Register(RegisterRequest request, TimePoint deadline) override {
    return Held(coordinator_.Register(std::move(request), deadline));
  }
  Task<Result<BeginAnswer>> Begin(BeginRequest request) override {
    return Held(coordinator_.Begin(std::move(request)));
  }
  Task<Status> Skip(SkipRequest request) override {
    return Held(coordinator_.Skip(std::move(request)));
  }
  Task<Status> ReportInventory(InventoryReport report) override {
    return Held(coordinator_.ReportInventory(std::move(report)));
  }
  Task<Status> ReportRankGone(RankGone gone) override {
    return Held(coordinator_.ReportRankGone(std::move(gone)));
  }
  Task<Result<PollAnswer>> PollEvents(PollRequest request, TimePoint deadline) override {
    return Held(coordinator_.PollEvents(std::move(request), deadline));
  }
  Task<Result<std::vector<JobInfo>>> ListJobs(std::string tenant) override {
    return Held(coordinator_.ListJobs(std::move(tenant)));
  }
  Task<Result<JobInfo>> GetJob(std::string tenant, std::string job) override {
    return Held(coordinator_.GetJob(std::move(tenant), std::move(job)));
  }
  Task<Result<std::vector<CheckpointInfo>>> ListCheckpoints(std::string tenant, std::string job,
                                                            bool all) override {
    return Held(coordinator_.ListCheckpoints(std::move(tenant), std::move(job), all));
  }
  Task<Result<CheckpointInfo>> Resolve(std::string tenant, std::string job,
                                       Selector selector) override {
    return Held(coordinator_.Resolve(std::move(tenant), std::move(job), selector));
  }
  Task<Status> Delete(std::string tenant, std::string job, CheckpointKey key) override {
    return Held(coordinator_.Delete(std::move(tenant), std::move(job), key));
  }
  Task<Status> Pin(std::string tenant, std::string job, CheckpointKey key, bool pinned,
                   std::string reason) override {
    return Held(
        coordinator_.Pin(std::move(tenant), std::move(job), key, pinned, std::move(reason)));
  }
  Task<Status> SetMark(std::string tenant, std::string job, CheckpointKey key, format::Mark mark,
                       std::string reason) override {
    return Held(
        coordinator_.SetMark(std::move(tenant), std::move(job), key, mark, std::move(reason)));
  }
  Task<Result<std::unique_ptr<PutSession>>> OpenPut(PutRequest request,
                                                    Digest root_if_sealed) override {
    return Held(coordinator_.OpenPut(std::move(request), root_if_sealed));
  }
  Task<Result<std::unique_ptr<ReadSession>>> OpenRead(Id job, CheckpointKey key) override {
    return Held(coordinator_.OpenRead(job, key));
  }
  uint32_t chunk_bytes() const override { return parts_->geometry.chunk_bytes; }

 private:
  // Runs `call` unless the store is closing; Close waits for it.
  template <typename T>
  Task<T> Held(Task<T> call) {
    Gate::Hold hold = gate_.Enter();
    if (!hold) co_return ClosedAs<T>();
    co_return co_await std::move(call);
  }
  template <typename T>
  static T ClosedAs() {
    Status closed(Code::kUnavailable, "the store is going down: try again");
    if constexpr (std::is_same_v<T, Status>) {
      return closed;
    } else {
      return Error(std::move(closed));
    }
  }
  Task<Status> VerifyCheckpoint(CheckpointRow row);
  Task<bool> IsCertified(format::CommitEntry commit);
  void OnLogFailure() { coordinator_.Close(); }

  Loop& loop_;
  const StoreOptions options_;
  std::unique_ptr<RecoveredParts> parts_;
  StoreLog log_;
  EventBus events_;
  Gate gate_;
  Core core_;
  Coordinator coordinator_;
};

Task<Status> StoreImpl::Start() {
  log_.Start();
  std::vector<CheckpointRow> rows;
  for (const auto& [id, job] : parts_->state.jobs()) {
    for (const auto& [key, row] : job.checkpoints) {
      if (row.commit.level >= Durability::kServer) rows.push_back(row);
    }
  }
  for (const CheckpointRow& row : rows) {
    REPRISE_CO_RETURN_IF_ERROR(co_await VerifyCheckpoint(row));
  }
  coordinator_.ReviveAttempts();
  co_return OkStatus();
}

Task<Status> StoreImpl::VerifyCheckpoint(CheckpointRow row) {
  if (options_.mutations.skip_manifest_verify) co_return OkStatus();
  Result<format::CheckpointManifest> manifest =
      co_await coordinator_.reads().ReadManifest(row.commit);
  if (!manifest.has_value()) {
    if (row.mark == format::Mark::kDamaged) co_return OkStatus();
    // Only damage is recorded as damage; what this start could not read, the next may.
    if (manifest.error().code() == Code::kUnimplemented) co_return manifest.error();
    if (manifest.error().code() != Code::kDataLoss || row.mark != format::Mark::kIntact) {
      parts_->report.repairs.push_back(fmt::format(
          "{} could not be checked: {}", NameOf(row.commit.key), manifest.error().ToString()));
      co_return OkStatus();
    }
    parts_->report.repairs.push_back(
        fmt::format("{} marked damaged: {}", NameOf(row.commit.key), manifest.error().ToString()));
    co_return co_await coordinator_.committer().SetMark(
        row.commit.job, row.commit.key, format::Mark::kDamaged, manifest.error().message());
  }
  if (co_await IsCertified(row.commit)) co_return OkStatus();
  Status certified = co_await coordinator_.committer().WriteCertificate(row.commit);
  if (!certified.ok()) {
    parts_->report.repairs.push_back(fmt::format("certificate of {} could not be written: {}",
                                                 NameOf(row.commit.key), certified.ToString()));
  }
  co_return OkStatus();
}

Task<bool> StoreImpl::IsCertified(format::CommitEntry commit) {
  Result<format::CommitEntry> found = co_await coordinator_.committer().ReadCertificate(commit);
  co_return found.has_value() && found->attempt == commit.attempt && found->key == commit.key;
}

Task<void> StoreImpl::Close() {
  coordinator_.Close();
  co_await gate_.Close();
  Status indexed = co_await log_.Close();
  if (!indexed.ok()) LogWarn("index not flushed ({}): the journal replays it", indexed.ToString());
  co_await parts_->CloseAll();
}

}  // namespace

Task<Result<std::unique_ptr<Store>>> Store::Open(Io& io, Rng& rng, StoreOptions options,
                                                 CatalogFactory make_catalog) {
  Recovery recovery(io, rng, options, std::move(make_catalog));
  REPRISE_CO_ASSIGN(std::unique_ptr<RecoveredParts> parts, co_await recovery.Run());
  auto store = std::make_unique<StoreImpl>(io, rng, std::move(options), std::move(parts));
  Status started = co_await store->Start();
  if (!started.ok()) {
    co_await store->Close();
    co_return Error(std::move(started));
  }
  for (const std::string& repair : store->recovery().repairs) LogWarn("recovery: {}", repair);
  co_return std::move(store);
}

}  // namespace reprise::lifecycle

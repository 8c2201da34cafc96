// Saver: takes snapshots. The caller's thread records and clones; one copy thread does the rest.
//
//   Start (caller)  1 layout from the cache   2 clone volatile pieces   3 queue, return
//   copy thread     4 daemon there, slots large enough   5 kSaveBegin, wait for the grant
//                   6 copy chunk by chunk, kSaveChunks as the prefix grows   7 kSaveSeal
//   I/O thread      8 kSaveState: sealed here, everywhere, committed, or failed
// A failure before 7 sends kSaveSkip, so that the step is aborted for all ranks at once; the caller's
// memory is never read after the ticket says so. What a crash after each step leaves behind is the
// daemon's to clean up: it sees this process die.
//
// Thread rule: Start and Skip from any thread, one after the other. Blocking rule: Start only clones;
// volatile pieces beyond staging_bytes_max are waited for (bounded by the stall budget) instead.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <thread>
#include <vector>

#include "client/device/copy_engine.h"
#include "client/session/session.h"
#include "client/snapshot/layout_cache.h"
#include "client/snapshot/save.h"
#include "client/snapshot/slots.h"

namespace reprise::client {

class Saver final : public SessionListener {
 public:
  struct Options {
    Slots::Options slots;
    Nanos stall_budget = std::chrono::seconds(10);
    uint64_t staging_bytes_max = 256 * limits::kMiB;
    // How long a daemon's successor, once it answers, may neither hold a save nor have committed it.
    Nanos orphan_patience = std::chrono::seconds(5);
    // Finished chunks are announced in runs of this many.
    uint64_t announce_bytes = 8 * limits::kMiB;
  };
  // Listens to `session`; both outlive the saver.
  Saver(Session& session, CopyEngine& engine, Options options);
  // Gives up what is not copied, ends the copy thread.
  ~Saver() override;

  // The run whose checkpoints this saver makes: for asking about saves whose connection is gone.
  struct ReaderTarget {
    std::string tenant;
    std::string job;
    uint64_t epoch = 0;
  };
  void SetRun(ReaderTarget target);

  // Codes of Client::Snapshot.
  Result<std::shared_ptr<Save>> Start(uint64_t step, std::span<const PieceView> pieces,
                                      SaveOptions options);
  Status Skip(uint64_t step, std::string_view reason);
  // Waits until every save in flight reached the durability it asked for. The first failure, or that
  // of the newest save when nobody has seen it.
  Status WaitAll(Deadline deadline);

  void OnSaveState(const wire::SaveState& state) override;
  void OnDisconnected(uint64_t generation, const Status& why) override;

  uint64_t layout_builds() const { return layouts_.builds(); }

 private:
  Status Admit(uint64_t step);
  void ListParts(Save& save, std::span<const PieceView> pieces);
  Result<bool> CloneVolatile(Save& save, std::span<const PieceView> pieces);
  void Run();
  void Process(Save& save);
  Status Transfer(Save& save, uint64_t& generation, std::optional<uint64_t>& id);
  Result<wire::SaveGrant> Begin(Save& save, uint64_t& generation, Deadline patience);
  Result<wire::SaveGrant> AskLeave(Save& save, const wire::SaveBegin& begin, uint64_t generation);
  Status CopyInto(Save& save, const wire::SaveGrant& grant, uint64_t generation);
  // A sealed save whose connection ended before it was committed: the daemon that finishes it does not
  // know whom to tell, so it is asked whether the checkpoint exists.
  std::shared_ptr<Save> OrphanLocked() const;
  void AskAbout(Save& save);
  void GiveUpOrphan(Save& save);
  void Recycle(std::unique_ptr<Staging> staging);

  Session& session_;
  CopyEngine& engine_;
  const Options options_;
  const uint64_t fork_generation_;
  const std::shared_ptr<std::atomic<uint64_t>> progress_ =
      std::make_shared<std::atomic<uint64_t>>(0);

  std::mutex start_mutex_;  // one Start at a time
  LayoutCache layouts_;     // guarded by start_mutex_

  // Copy thread only.
  Slots slots_;
  uint64_t questions_ = 0;    // asked about orphans
  uint64_t asked_about_ = 0;  // the step of the last one: each has its turn
  uint64_t layouts_generation_ = 0;
  std::set<Digest> layouts_sent_;  // on that connection

  std::mutex mutex_;
  std::condition_variable wake_;
  // Guarded by mutex_.
  std::deque<std::shared_ptr<Save>> queue_;
  std::vector<std::shared_ptr<Save>> live_;  // not over yet, and the newest
  std::vector<std::unique_ptr<Staging>> staging_;
  std::optional<Status> fenced_;
  std::optional<ReaderTarget> target_;
  uint64_t ended_ = 0;  // a connection whose slots are to be unmapped
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace reprise::client

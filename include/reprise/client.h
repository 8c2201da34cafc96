// client.h: the C++ API of libreprise, for training programs.
//
//   auto client = reprise::Client::Open({.uri = "reprise://team-a/llm-7b", .rank = r, .world = w});
//   auto run = (*client)->Register(60.0);             // waits until all ranks are there
//   if (run->resume) (*client)->Restore({.pieces = pieces});
//   auto ticket = (*client)->Snapshot(step, pieces);  // returns at once
//   ticket->WaitCopied(-1);                           // before the memory is changed
//   ticket->Wait(reprise::Durability::kServer, 120);  // committed for the whole job
//
// Thread rule: a Client may be used from any thread; a Ticket and a Checkpoint from one at a time.
// Blocking rule: only calls with `timeout_s` wait (negative: without limit), and Snapshot for as long
// as it copies volatile pieces. Nothing calls back into user code. No call throws.
// fork(): in a child every call returns FAILED_PRECONDITION and destructors do nothing.
// The ABI-stable surface is c.h; this header may change between versions.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "reprise/export.h"
#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise {

// What a rank contributes of one tensor, or wants of it. Nothing here is owned: names, shapes and
// boxes must live until the call returns, `data` as long as the call's contract says.
//
// `data` holds the piece's bytes without gaps: box after box, each in row-major order; or, when
// `flat`, elements [flat_begin, flat_end) of the row-major tensor.
struct PieceView {
  std::string_view name;  // fully qualified, unique within a rank, UTF-8
  Dtype dtype = Dtype::kU8;
  Scope scope = Scope::kGlobal;
  WorldPolicy world_policy = WorldPolicy::kSameWorld;
  bool auxiliary = false;    // an encoded value: kU8 with one axis
  bool is_volatile = false;  // copied before Snapshot returns
  bool flat = false;
  std::span<const uint64_t> global_shape;  // of the whole tensor
  std::span<const uint64_t> boxes;  // for each box: one offset per axis, then one extent per axis
  uint64_t box_count = 0;           // a scalar's box has no axes, so the count is not implied
  uint64_t flat_begin = 0;
  uint64_t flat_end = 0;
  void* data = nullptr;
  uint64_t data_bytes = 0;
  int32_t source_rank = -1;  // reading: of whose shard (-1: chosen)
};

struct ClientOptions {
  // "reprise://TENANT/JOB": a node daemon serves this host. "file:///DIR": the first process of this
  // host and directory starts a private daemon; the job's name is DIR's last component.
  std::string uri;
  uint32_t rank = 0;
  uint32_t world = 1;
  std::string launcher;       // equal in all ranks of one launch; "": derived from the environment
  std::string socket;         // "": REPRISE_SOCKET, else /run/reprise/node.sock
  std::string daemon;         // path of `reprised`, embedded mode; "": beside libreprise, then PATH
  bool takeover = false;      // fence a live run of this job under another launcher
  uint32_t copy_threads = 0;  // 0: two, or one on a single core
  double connect_timeout_s = 10;
  // Training never waits longer than this for a daemon that makes no progress: the save is given up.
  double stall_budget_s = 10;
};

// The answer every rank of a run gets.
struct RunInfo {
  Id job;
  uint64_t epoch = 0;
  std::optional<CheckpointKey> resume;  // none: the job never committed anything
  std::string skipped;                  // newer checkpoints that could not be used, and why
};

struct SaveOptions {
  std::string metadata;                         // a JSON object, or ""
  Durability durability = Durability::kServer;  // what Close waits for
  Keep keep;                                    // applied when this save commits; rank 0's counts
};

struct SaveProgress {
  uint8_t phase =
      0;          // 0 starting, 1 transferring, 2 sealed here, 3 everywhere, 4 committed, 5 failed
  Status status;  // why it failed
  uint64_t step = 0;
  uint64_t bytes = 0;
  double start_ms = 0;       // time inside Snapshot
  double copied_ms = -1;     // from the call to the end of copying; negative: not yet
  double local_ms = -1;      // ... to the local seal of all ranks
  double committed_ms = -1;  // ... to commit
};

namespace client {
class Save;
class Reader;
}  // namespace client

// One save on its way. Copies name the same save; dropping all of them does not stop it.
class REPRISE_EXPORT Ticket {
 public:
  // Waits until the caller's memory is not read any more. After any failure (DEADLINE_EXCEEDED too)
  // the save is aborted for all ranks and the memory is free as well: training may go on.
  Status WaitCopied(double timeout_s);
  // Waits until the whole job reached `durability`. ABORTED and others: it never will.
  // DEADLINE_EXCEEDED leaves the save going on. UNIMPLEMENTED: no such level here.
  Status Wait(Durability durability, double timeout_s);
  // Aborts the save for all ranks, unless it is committed already. Does not wait.
  void Abort(std::string_view reason);
  SaveProgress progress() const;

 private:
  friend class Client;
  explicit Ticket(std::shared_ptr<client::Save> save) : save_(std::move(save)) {}
  std::shared_ptr<client::Save> save_;
};

struct ReadStats {
  uint64_t bytes_slab = 0, bytes_peer = 0, bytes_ram = 0, bytes_nvme = 0, bytes_object = 0;
  uint64_t chunks_corrupt = 0;  // found damaged here and fetched again
  double plan_ms = 0;
  double read_ms = 0;
};

// A checkpoint open for reading. Must be destroyed before its client.
class REPRISE_EXPORT Checkpoint {
 public:
  ~Checkpoint();
  CheckpointKey key() const;
  uint32_t world() const;
  const std::string& metadata() const;
  // What is in it, as the JSON of reprise_reader_items (c.h).
  const std::string& items_json();
  // Fills the memory of `pieces` from the saved pieces, whatever world saved them; every chunk is
  // verified. NOT_FOUND and INVALID_ARGUMENT list what is missing or does not match, before any byte
  // moves. DATA_LOSS: no intact copy. After a failure other than those two the targets are undefined.
  Status Read(std::span<const PieceView> pieces, double timeout_s);
  // Sums over all reads so far.
  ReadStats stats() const;

 private:
  friend class Client;
  struct Impl;
  Checkpoint(std::unique_ptr<client::Reader> reader, const std::atomic<bool>& saves);
  std::unique_ptr<Impl> impl_;
};

struct RestoreRequest {
  std::optional<uint64_t> step;   // none: the run's resume point when registered, else the latest
  std::optional<uint64_t> epoch;  // none: along the lineage
  std::span<const PieceView> pieces;
  double timeout_s = -1;
};
struct RestoreResult {
  CheckpointKey key;
  ReadStats stats;
};

class REPRISE_EXPORT Client {
 public:
  // Connects to the daemon. Does not register a run: a client that only reads fences nobody.
  // UNAVAILABLE says what was tried and what to start.
  static Result<std::unique_ptr<Client>> Open(const ClientOptions& options);
  // Closes without waiting for saves; the daemon goes on draining what is sealed.
  ~Client();

  // Registers this rank in a new run and waits until all ranks have. ALREADY_EXISTS: the job is alive
  // under another launcher. DEADLINE_EXCEEDED names the missing ranks.
  Result<RunInfo> Register(double timeout_s);
  // Takes a snapshot of `pieces` as step `step`. RESOURCE_EXHAUSTED: earlier saves still occupy every
  // slot; the step is skipped job-wide. FENCED: a newer run exists. INVALID_ARGUMENT names the piece.
  // Later failures are the ticket's.
  Result<Ticket> Snapshot(uint64_t step, std::span<const PieceView> pieces,
                          const SaveOptions& options = {});
  // This rank cannot take part in `step`: aborts it for all ranks.
  Status Skip(uint64_t step, std::string_view reason);

  // Opens a checkpoint; see RestoreRequest for step and epoch. NOT_FOUND, DATA_LOSS.
  Result<std::unique_ptr<Checkpoint>> OpenCheckpoint(std::optional<uint64_t> step,
                                                     std::optional<uint64_t> epoch,
                                                     double timeout_s);
  // OpenCheckpoint and Read.
  Result<RestoreResult> Restore(const RestoreRequest& request);

  // Waits for saves in flight to reach the durability they asked for; the first failure otherwise.
  // After it only the destructor may be called.
  Status Close(double timeout_s);

 private:
  struct Impl;
  explicit Client(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace reprise

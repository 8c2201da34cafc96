// CrashWorkload: the reference scenario of the crash enumeration, against a real Store.
//
//   epoch 1: save 1 (one shard arrives damaged first and is sent again), save 2; delete 1 while 3
//      is
//   being saved into the space that 1 leaves; delete 2; the ranks seal 4 in their nodes' memory and
//      die
//   epoch 2: settle adopts 4 from the node's inventory, the node uploads it; RESUME from 4; save 5
//
// The volume has one segment of 16 cells: 3 fits only where 1 lay, 4 only where 2 lay.
//
// At once (CrashShape): the ranks of a save upload side by side, 3 and 4 are saved at the same time while
// 1 is deleted, so that journal groups hold entries of several shards, commits and the delete; every
// rank is on a node of its own, each of which holds and reports its own shard only.
#pragma once

#include "tests/sim/crash_oracle.h"

namespace reprise::lifecycle {

struct CrashShape {
  bool at_once = false;
  uint32_t nodes = 1;
};

class CrashWorkload {
 public:
  CrashWorkload(StoreHost& host, CrashOracle& oracle, CrashShape shape = {})
      : host_(host), oracle_(oracle), shape_(shape) {
    run_.world = oracle.world;
  }

  // Runs all of it. A failure to do what it must be able to do is reported as a violation.
  std::optional<std::string> Run() {
    for (uint32_t node = 0; node < shape_.nodes; ++node) StartNode(node);
    if (Status up = run_.Start(host_); !up.ok()) return "register: " + up.ToString();
    oracle_.job = run_.answer.job;
    oracle_.resumed[1] = run_.answer.resume;
    for (uint64_t step : {1, 2}) {
      if (Status saved = Save(step, /*damage_first=*/step == 1); !saved.ok()) {
        return "save: " + saved.ToString();
      }
    }
    if (auto failed = DeleteWhileSaving(); failed.has_value()) return failed;
    if (shape_.at_once && !Step(4).committed) return "4 was not saved beside 3";
    if (Status gone = Delete(2); !gone.ok()) return "delete 2: " + gone.ToString();
    return CrashAndResume();
  }

 private:
  CheckpointKey Key(uint64_t step) const { return {run_.answer.epoch, step}; }
  CrashOracle::Step& Step(uint64_t step) { return oracle_.steps[Key(step)]; }

  // A node daemon that listens: commits count as acknowledged when it hears of them.
  void StartNode(uint32_t node) {
    host_.loop().Spawn([](CrashWorkload& self, uint32_t node) -> Task<void> {
      PollRequest poll{IdOf(900000 + node), IdOf(77 + node), 0};
      while (true) {
        auto answer = co_await self.host_.store().PollEvents(poll, self.host_.In(600s));
        if (!answer.has_value()) co_return;
        poll.after = answer->cursor;
        for (const NodeEvent& event : answer->events) self.OnEvent(event);
      }
    }(*this, node));
  }
  void OnEvent(const NodeEvent& event) {
    if (event.kind == NodeEvent::Kind::kCommitted) oracle_.steps[event.key].committed = true;
    if (event.kind == NodeEvent::Kind::kSettle) settle_token_ = event.token;
    if (event.kind == NodeEvent::Kind::kLocalSealed) adopted_ = true;
  }
  template <typename Predicate>
  bool Until(Predicate done) {
    TimePoint limit = host_.In(300s);
    host_.loop().RunUntil(
        [&] { return done() || host_.store().failed() || host_.loop().Now() > limit; });
    return done();
  }

  Task<Status> Seal(uint32_t rank, CheckpointKey key, bool damage) {
    CrashOracle::Step& step = oracle_.steps[key];
    format::ShardIdentity identity{oracle_.job, key, step.attempt, rank, oracle_.world};
    ShardContent content = MakeContent(rank, oracle_.world, step.seed, oracle_.length);
    format::ShardManifest manifest = ManifestOf(identity, content);
    PutRequest request{identity, manifest.length, kTestChunk, manifest.layout};
    REPRISE_CO_ASSIGN_STATUS(auto session, co_await host_.store().OpenPut(request, manifest.root));
    AlignedBuffer buffer = AlignedBuffer::CopyOf(content.bytes);
    if (damage) buffer.data()[7] ^= 1;
    for (uint64_t i = 0; i < manifest.chunk_digests.size(); ++i) {
      ByteView chunk = buffer.view().subspan(i * kTestChunk, kTestChunk);
      // The receiver's digest: of what arrived.
      REPRISE_CO_RETURN_IF_ERROR(co_await session->WriteChunk(i, chunk, DigestOf(chunk)));
    }
    if (!damage) oracle_.steps[key].seal_requested.insert(rank);
    Bytes layout = session->needs_layout() ? content.encoded_layout : Bytes();
    Status sealed = co_await session->Seal(content.piece_digests, std::move(layout), manifest.root);
    if (sealed.ok() && !damage) oracle_.steps[key].seal_answered.insert(rank);
    co_return sealed;
  }

  Status BeginStep(uint64_t step) {
    Step(step).seed = 100 * run_.answer.epoch + step;
    for (uint32_t rank = 0; rank < run_.world; ++rank) {
      auto begun = host_.Run(host_.store().Begin(run_.BeginOf(rank, step)));
      if (!begun.has_value()) return begun.error();
      Step(step).attempt = begun->attempt;
    }
    return OkStatus();
  }
  Status Save(uint64_t step, bool damage_first) {
    REPRISE_RETURN_IF_ERROR(BeginStep(step));
    if (damage_first) {
      Status refused = host_.Run(Seal(0, Key(step), true));
      if (refused.ok()) Step(step).seal_requested.insert(0);
      if (refused.ok()) return Finish(step, 1);
    }
    return Finish(step, 0);
  }
  // Every rank of every one of these steps in a coroutine of its own.
  Status SealAtOnce(const std::vector<CheckpointKey>& keys) {
    auto left = std::make_shared<size_t>(keys.size() * oracle_.world);
    auto failure = std::make_shared<Status>();
    for (const CheckpointKey& key : keys) {
      for (uint32_t rank = 0; rank < oracle_.world; ++rank) {
        host_.loop().Spawn([](CrashWorkload& self, CheckpointKey key, uint32_t rank,
                              std::shared_ptr<size_t> left,
                              std::shared_ptr<Status> failure) -> Task<void> {
          Status sealed = co_await self.Seal(rank, key, false);
          if (failure->ok()) *failure = std::move(sealed);
          --*left;
        }(*this, key, rank, left, failure));
      }
    }
    if (!Until([&] { return *left == 0; })) return {Code::kInternal, "an upload never ended"};
    return *failure;
  }
  Status Finish(uint64_t step, uint32_t first_rank) {
    if (shape_.at_once && first_rank == 0) {
      REPRISE_RETURN_IF_ERROR(SealAtOnce({Key(step)}));
      first_rank = run_.world;
    }
    for (uint32_t rank = first_rank; rank < run_.world; ++rank) {
      REPRISE_RETURN_IF_ERROR(host_.Run(Seal(rank, Key(step), false)));
    }
    if (!Until([&] { return Step(step).committed; })) return {Code::kInternal, "never committed"};
    return OkStatus();
  }
  Status Delete(uint64_t step) {
    Step(step).delete_requested = true;
    Status status = host_.Run(host_.store().Delete("team", "gpt", Key(step)));
    if (status.ok()) Step(step).deleted = true;
    return status;
  }

  Status SaveThird() {
    if (!shape_.at_once) return Save(3, false);
    REPRISE_RETURN_IF_ERROR(BeginStep(3));
    REPRISE_RETURN_IF_ERROR(BeginStep(4));
    REPRISE_RETURN_IF_ERROR(SealAtOnce({Key(3), Key(4)}));
    bool both = Until([&] { return Step(3).committed && Step(4).committed; });
    return both ? OkStatus() : Status(Code::kInternal, "3 and 4 never committed");
  }

  std::optional<std::string> DeleteWhileSaving() {
    uint64_t used = host_.store().usage().used_bytes;
    Step(1).delete_requested = true;
    std::optional<Status> deleted;
    host_.loop().Spawn([](CrashWorkload& self, std::optional<Status>& out) -> Task<void> {
      out = co_await self.host_.store().Delete("team", "gpt", self.Key(1));
      if (out->ok()) self.Step(1).deleted = true;
    }(*this, deleted));
    if (!shape_.at_once) Until([&] { return host_.store().usage().used_bytes < used; });
    if (Status saved = SaveThird(); !saved.ok()) return "save 3: " + saved.ToString();
    if (!Until([&] { return deleted.has_value(); })) return "delete 1 never ended";
    if (!deleted->ok()) return "delete 1: " + deleted->ToString();
    return std::nullopt;
  }

  // All ranks seal the next step in their node's memory, then die; a new run registers.
  std::optional<std::string> CrashAndResume() {
    uint64_t saved = shape_.at_once ? 4 : 3;
    if (Status begun = BeginStep(saved + 1); !begun.ok()) return "begin: " + begun.ToString();
    CheckpointKey key = Key(saved + 1);
    oracle_.steps[key].local_everywhere = true;
    TestRun next = run_;
    next.launch = 2;
    std::optional<Status> started;
    host_.loop().Spawn(
        [](CrashWorkload& self, TestRun& next, std::optional<Status>& out) -> Task<void> {
          std::vector<std::optional<Result<RegisterAnswer>>> answers(next.world);
          for (uint32_t rank = 1; rank < next.world; ++rank) {
            RegisterRequest request = next.RequestOf(rank);
            request.takeover = true;
            self.host_.loop().Spawn([](CrashWorkload& self, RegisterRequest request,
                                       std::optional<Result<RegisterAnswer>>& out) -> Task<void> {
              out = co_await self.host_.store().Register(std::move(request), self.host_.In(200s));
            }(self, request, answers[rank]));
          }
          RegisterRequest first = next.RequestOf(0);
          first.takeover = true;
          auto answer = co_await self.host_.store().Register(first, self.host_.In(200s));
          if (answer.has_value()) {
            next.answer = *answer;
            self.oracle_.resumed[answer->epoch] = answer->resume;
          }
          out = StatusOf(answer);
          while (!answers.back().has_value()) co_await self.host_.loop().Sleep(1ms);
        }(*this, next, started));
    if (!Until([&] { return settle_token_ != 0 || started.has_value(); })) return "no settle";
    for (uint32_t node = 0; node < shape_.nodes; ++node) ReportSealed(key, node);
    Until([&] { return adopted_ || started.has_value(); });
    if (adopted_ && shape_.at_once) {
      Status sealed = SealAtOnce({key});
      if (!sealed.ok()) return "upload of adopted shards: " + sealed.ToString();
    }
    for (uint32_t rank = 0; rank < run_.world && adopted_ && !shape_.at_once; ++rank) {
      Status sealed = host_.Run(Seal(rank, key, false));
      if (!sealed.ok()) return "upload of an adopted shard: " + sealed.ToString();
    }
    if (!Until([&] { return started.has_value(); })) return "epoch 2 never opened";
    if (!started->ok()) return "epoch 2: " + started->ToString();
    if (next.answer.resume != key) return "a snapshot sealed by every rank was lost to the fence";
    run_ = next;
    if (Status gone = DeleteOld(saved); !gone.ok()) return "delete the last: " + gone.ToString();
    if (Status more = Save(saved + 2, false); !more.ok())
      return "save once more: " + more.ToString();
    return std::nullopt;
  }
  Status DeleteOld(uint64_t step) {
    CheckpointKey key{1, step};
    oracle_.steps[key].delete_requested = true;
    Status status = host_.Run(host_.store().Delete("team", "gpt", key));
    if (status.ok()) oracle_.steps[key].deleted = true;
    return status;
  }
  void ReportSealed(CheckpointKey key, uint32_t node) {
    InventoryReport report;
    report.node = IdOf(900000 + node);
    report.incarnation = IdOf(77 + node);
    report.settle_token = settle_token_;
    const CrashOracle::Step& step = oracle_.steps[key];
    for (uint32_t rank = node; rank < oracle_.world; rank += shape_.nodes) {
      format::ShardIdentity identity{oracle_.job, key, step.attempt, rank, oracle_.world};
      ShardContent content = MakeContent(rank, oracle_.world, step.seed, oracle_.length);
      report.items.push_back({identity, ManifestOf(identity, content).root, oracle_.length});
    }
    Status reported = host_.Run(host_.store().ReportInventory(report));
    EXPECT_EQ(reported, OkStatus());
  }

  StoreHost& host_;
  CrashOracle& oracle_;
  const CrashShape shape_;
  TestRun run_;
  uint64_t settle_token_ = 0;
  bool adopted_ = false;
};

}  // namespace reprise::lifecycle

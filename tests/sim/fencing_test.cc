// Fencing: a zombie run (epoch 1) against its replacement (epoch 2), over every order of messages.
//
// The zombie's last messages (Begin, OpenPut + Seal of each rank of step 10) and the new run's
// (Register, then its own save of step 10) are delivered to the real coordinator in every order
// that keeps each sender's own order; zombie messages may also be delivered twice. Because a
// delivery may also meet another half done, each order is run with several amounts of simulated
// time between deliveries, from none (all in flight at once) to ample.
//
// Judged from outside: nothing of epoch 1 is committed after epoch 2 was granted unless it was
// adopted by settle before epoch 2's answer; every checkpoint holds the bytes of one attempt; the
// ranks of epoch 2 get one answer; the coordinator does not fail.
#include <gtest/gtest.h>

#include <cstdio>

#include "core/base/log.h"
#include "tests/unit/lifecycle/harness.h"

namespace reprise::lifecycle {
namespace {

constexpr uint64_t kZombieSeed = 11;
constexpr uint64_t kNewSeed = 22;
constexpr uint64_t kLength = kTestChunk;

enum class Message : uint8_t {
  kZombieBegin,
  kZombieSeal0,
  kZombieSeal1,
  kGrant,
  kBegin,
  kSeal0,
  kSeal1
};

struct Found {
  uint64_t orders = 0;
  uint64_t runs = 0;
  uint64_t violations = 0;
  std::string first;
};

// One delivery order against one fresh coordinator.
class Interleaving {
 public:
  explicit Interleaving(const Mutations& mutations) {
    StoreOptions options = TinyOptions();
    options.mutations = mutations;
    options.coordinator.settle_timeout = 10ms;
    options.coordinator.inventory_grace = 0ms;
    options.coordinator.node_timeout = 1ms;
    EXPECT_EQ(host_.Open(options), OkStatus());
    old_.world = 2;
    EXPECT_EQ(old_.Start(host_), OkStatus());
    // A node that listens but does not answer settle: the fence is up well before settle judges.
    host_.loop().Spawn([](Interleaving& self) -> Task<void> {
      PollRequest poll{IdOf(5), IdOf(6), 0};
      while (true) {
        auto answer = co_await self.host_.store().PollEvents(poll, self.host_.In(60s));
        if (!answer.has_value()) co_return;
        poll.after = answer->cursor;
      }
    }(*this));
    host_.RunFor(1us);
    new_ = old_;
    new_.launch = 2;
  }

  ~Interleaving() { host_.Kill(); }

  std::string Run(const std::vector<Message>& order, Nanos gap) {
    for (Message message : order) {
      Deliver(message);
      if (gap > Nanos(0)) host_.RunFor(gap);
      CheckCommits();
    }
    host_.RunFor(5s);
    CheckCommits();
    if (host_.store().failed())
      Note("the coordinator failed: its journal holds an impossible entry");
    if (violation_.empty()) CheckContents();
    return violation_;
  }

 private:
  void Note(std::string what) {
    if (violation_.empty()) violation_ = std::move(what);
  }
  void Deliver(Message message) {
    switch (message) {
      case Message::kZombieBegin: return Begin(old_, 0, old_attempt_);
      case Message::kZombieSeal0: return Seal(old_, 0, old_attempt_, kZombieSeed);
      case Message::kZombieSeal1: return Seal(old_, 1, old_attempt_, kZombieSeed);
      case Message::kGrant: return Grant();
      case Message::kBegin: return Begin(new_, 0, new_attempt_);
      case Message::kSeal0: return Seal(new_, 0, new_attempt_, kNewSeed);
      case Message::kSeal1: return Seal(new_, 1, new_attempt_, kNewSeed);
    }
  }
  void Begin(TestRun& run, uint32_t rank, Id& attempt) {
    if (&run == &new_ && !granted_) return;
    BeginRequest request = run.BeginOf(rank, 10);
    host_.loop().Spawn([](Interleaving& self, BeginRequest request, Id& out) -> Task<void> {
      auto begun = co_await self.host_.store().Begin(request);
      if (begun.has_value()) out = begun->attempt;
    }(*this, request, attempt));
  }
  void Seal(TestRun& run, uint32_t rank, const Id& attempt, uint64_t seed) {
    if (attempt.IsZero()) return;
    host_.loop().Spawn(
        [](Interleaving& self, format::ShardIdentity identity, uint64_t seed) -> Task<void> {
          Status sealed = co_await Upload(self.host_.store(), identity,
                                          MakeContent(identity.rank, 2, seed, kLength));
          (void)sealed.ok();  // a refusal is an allowed answer
        }(*this, run.Identity(rank, 10, attempt), seed));
  }
  void Grant() {
    for (uint32_t rank = 0; rank < 2; ++rank) {
      host_.loop().Spawn([](Interleaving& self, uint32_t rank) -> Task<void> {
        auto answer =
            co_await self.host_.store().Register(self.new_.RequestOf(rank), self.host_.In(60s));
        if (!answer.has_value()) {
          self.Note("a rank was not let in: " + answer.error().ToString());
          co_return;
        }
        if (self.granted_ && answer->resume != self.new_.answer.resume) {
          self.Note("two ranks got different answers");
        }
        self.new_.answer = *answer;
        self.granted_ = true;
      }(*this, rank));
    }
  }

  // After every delivery: what has been committed since, and was it allowed?
  void CheckCommits() {
    const JobState* job = host_.store().state().FindJob(old_.answer.job);
    for (const auto& [key, row] : job->checkpoints) {
      if (key.epoch != 1) continue;
      bool fenced = epoch_seen_ >= 2 && known_.insert(key).second;
      if (fenced && !row.commit.adopted) Note("a fenced run committed after the grant");
      // Newer than what the new run was told: it was committed behind its back.
      bool told = granted_ && (!new_.answer.resume.has_value() || key > *new_.answer.resume);
      if (told) Note("a fenced run committed after the new one was told where to resume");
    }
    if (epoch_seen_ < 2) {
      for (const auto& [key, row] : job->checkpoints) known_.insert(key);
    }
    epoch_seen_ = job->epoch();
  }
  void CheckContents() {
    const JobState* job = host_.store().state().FindJob(old_.answer.job);
    for (const auto& [key, row] : job->checkpoints) {
      uint64_t seed = key.epoch == 1 ? kZombieSeed : kNewSeed;
      Status bytes = CheckBytes(host_, old_.answer.job, key, 2, seed, kLength);
      if (!bytes.ok()) Note("a checkpoint mixes attempts: " + bytes.ToString());
    }
  }

  StoreHost host_;
  TestRun old_;
  TestRun new_;
  Id old_attempt_;
  Id new_attempt_;
  bool granted_ = false;
  uint64_t epoch_seen_ = 1;
  std::set<CheckpointKey> known_;
  std::string violation_;
};

// Every merge of the two senders' messages, each zombie Seal possibly once more at any later place.
class Orders {
 public:
  template <typename Visit>
  void ForEach(Visit visit) {
    const std::vector<Message> zombie = {Message::kZombieBegin, Message::kZombieSeal0,
                                         Message::kZombieSeal1};
    const std::vector<Message> fresh = {Message::kGrant, Message::kBegin, Message::kSeal0,
                                        Message::kSeal1};
    Merge(zombie, fresh, {}, visit);
    for (Message duplicate : {Message::kZombieSeal0, Message::kZombieSeal1}) {
      std::vector<Message> more = zombie;
      more.push_back(duplicate);
      Merge(more, fresh, {}, visit);
    }
  }

 private:
  template <typename Visit>
  void Merge(std::vector<Message> left, std::vector<Message> right, std::vector<Message> done,
             Visit& visit) {
    if (left.empty() && right.empty()) return visit(done);
    for (std::vector<Message>* side : {&left, &right}) {
      if (side->empty()) continue;
      std::vector<Message> next = done;
      next.push_back(side->front());
      Message taken = side->front();
      side->erase(side->begin());
      Merge(left, right, next, visit);
      side->insert(side->begin(), taken);
    }
  }
};

Found Explore(const Mutations& mutations, bool stop_at_first) {
  Found found;
  // Micro-steps (a disk operation takes 50 us) meet operations half done; the last two let each
  // end.
  std::vector<Nanos> gaps = {1ms, 50ms};
  for (Nanos gap = 0us; gap <= 600us; gap += 25us) gaps.push_back(gap);
  Orders().ForEach([&](const std::vector<Message>& order) {
    ++found.orders;
    for (Nanos gap : gaps) {
      if (stop_at_first && found.violations > 0) return;
      ++found.runs;
      std::string violation = Interleaving(mutations).Run(order, gap);
      if (violation.empty()) continue;
      if (found.violations++ == 0) found.first = violation;
    }
  });
  return found;
}

TEST(Fencing, NoOrderOfMessagesLetsAZombieThrough) {
  SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  Found found = Explore(Mutations(), false);
  std::printf("orders: %llu, interleavings: %llu, violations: %llu\n",
              static_cast<unsigned long long>(found.orders),
              static_cast<unsigned long long>(found.runs),
              static_cast<unsigned long long>(found.violations));
  EXPECT_EQ(found.violations, 0u) << found.first;
  EXPECT_GE(found.runs, 1000u);
}

TEST(Fencing, EveryRemovedCheckIsCaught) {
  SetLogLevel(static_cast<LogLevel>(static_cast<int>(LogLevel::kError) + 1));
  struct Removed {
    const char* name;
    bool Mutations::* flag;
  };
  const Removed kRemoved[] = {{"skip_epoch_check", &Mutations::skip_epoch_check},
                              {"epoch_check_outside_lock", &Mutations::epoch_check_outside_lock},
                              {"shards_keyed_by_step", &Mutations::shards_keyed_by_step},
                              {"fence_at_first_save", &Mutations::fence_at_first_save}};
  for (const Removed& removed : kRemoved) {
    Mutations mutations;
    mutations.*removed.flag = true;
    Found found = Explore(mutations, true);
    std::printf("%-28s %-8s after %6llu interleavings  %s\n", removed.name,
                found.violations > 0 ? "caught" : "MISSED",
                static_cast<unsigned long long>(found.runs), found.first.substr(0, 90).c_str());
    std::fflush(stdout);
    EXPECT_GT(found.violations, 0u) << removed.name << " is not caught";
  }
}

}  // namespace
}  // namespace reprise::lifecycle

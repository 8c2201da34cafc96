#include "tests/fuzz/store_base.h"

#include "core/base/check.h"
#include "core/base/log.h"

namespace reprise::fuzz {
namespace {

using lifecycle::StoreHost;
using lifecycle::TestRun;

void Save(StoreBase& base, StoreHost& host, uint64_t step) {
  uint64_t seed = base.run.launch * 1000 + step;
  Status saved = base.run.Save(host, step, seed);
  REPRISE_CHECK(saved.ok(), saved.message());
  base.seeds[{base.run.answer.epoch, step}] = seed;
}

StoreBase Make() {
  StoreBase base;
  StoreHost host(1);
  REPRISE_CHECK(host.Open().ok());
  base.run.world = 2;
  REPRISE_CHECK(base.run.Start(host).ok());
  Save(base, host, 1);
  Save(base, host, 2);
  REPRISE_CHECK(
      host.Run(host.store().Delete("team", base.run.job, {base.run.answer.epoch, 1})).ok());
  base.seeds.erase({base.run.answer.epoch, 1});
  base.run.launch = 2;
  REPRISE_CHECK(base.run.Start(host).ok());
  Save(base, host, 3);
  TestRun other{.job = "vae", .world = 1, .launch = 3};
  REPRISE_CHECK(other.Start(host).ok());
  // Rank 0 has sealed step 4, rank 1 has not.
  auto begun = host.Run(host.store().Begin(base.run.BeginOf(0, 4)));
  REPRISE_CHECK(begun.has_value());
  base.attempt = begun->attempt;
  auto content = lifecycle::MakeContent(0, 2, 4, 3 * lifecycle::kTestChunk);
  REPRISE_CHECK(
      host.Run(lifecycle::Upload(host.store(), base.run.Identity(0, 4, begun->attempt), content))
          .ok());
  host.Kill();
  host.disk().Crash(LoseUnflushed);
  host.index().Crash(0);
  base.disk = host.disk();
  base.index = host.index();
  return base;
}

}  // namespace

const StoreBase& BaseOfStore() {
  static const StoreBase* base = [] {
    SetLogLevel(LogLevel::kError);
    return new StoreBase(Make());
  }();
  return *base;
}

}  // namespace reprise::fuzz

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/unit/node/node_fixture.h"

namespace reprise::node {
namespace {

using ::testing::HasSubstr;
using Kind = lifecycle::NodeEvent::Kind;

class SaveTest : public NodeFixture {};

TEST_F(SaveTest, ASavedShardReachesTheStoreByteForByteAndIsAcknowledgedAtEachLevel) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    EXPECT_EQ(client->hello.chunk_bytes, 4096u);
    format::Layout layout = TestLayout(16);
    auto grant = co_await client->Save(40, layout);
    EXPECT_TRUE(grant.has_value()) << StatusOf(grant);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed) << state.message;
    CheckpointKey key{1, 40};
    Id attempt = coordinator_.attempt_of(key);
    co_await Until([&] { return store_.Find(attempt, 0) != nullptr; });
    co_await Until([&] { return !coordinator_.reports.back().items.empty(); });
    coordinator_.PushFor(Kind::kLocalSealed, key);
    state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalAll);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalAll);
    coordinator_.PushFor(Kind::kCommitted, key);
    state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.phase, wire::SavePhase::kCommitted);

    const FakeStore::Shard* shard = store_.Find(attempt, 0);
    Bytes stored;
    for (const Bytes& chunk : shard->chunks) {
      stored.insert(stored.end(), chunk.begin(), chunk.end());
    }
    Bytes expected = TestShard(layout.shard_bytes, 40, 0);
    EXPECT_EQ(stored, expected);
    // Replicated pieces have their digest, others none.
    for (size_t i = 0; i < layout.pieces.size(); ++i) {
      const format::Piece& piece = layout.pieces[i];
      Digest digest = DigestOf(ByteView(expected).subspan(piece.position, BytesOf(piece)));
      Digest wanted = piece.scope == Scope::kReplicated ? digest : Digest{};
      EXPECT_EQ(shard->manifest.piece_digests[i], wanted) << piece.name;
    }
    EXPECT_EQ(coordinator_.reports.back().items[0].root, shard->manifest.root);
  });
}

TEST_F(SaveTest, ChunksTravelToTheStoreWhileLaterOnesAreStillBeingCopied) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(16);
    auto grant = co_await client->Begin(40, layout);
    co_await client->Copy(*grant, 40, layout, 0, 5);
    co_await Until([&] { return store_.sends == 5; });
    EXPECT_EQ(store_.sealed_count(), 0u);
    // The rest in reverse order.
    for (uint64_t chunk = 15; chunk >= 5; --chunk) {
      co_await client->Copy(*grant, 40, layout, chunk, 1);
    }
    co_await client->Seal(*grant);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed) << state.message;
    co_await Until([&] { return store_.sealed_count() == 1; });
    EXPECT_EQ(store_.sends, 16u);
  });
}

TEST_F(SaveTest, TheGrantDoesNotWaitForTheCoordinator) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    coordinator_.HoldBegin(true);
    format::Layout layout = TestLayout(8);
    auto grant = co_await client->Save(40, layout);
    EXPECT_TRUE(grant.has_value());
    co_await Until([&] { return node_->stats().bytes_hashed == layout.shard_bytes; });
    EXPECT_EQ(store_.opens, 0u);
    coordinator_.HoldBegin(false);
    co_await Until([&] { return store_.sealed_count() == 1; });
  });
}

TEST_F(SaveTest, AThirdSaveIsRefusedWithTheStepsThatHoldTheSlotsAndSkippedForAllRanks) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    EXPECT_TRUE((co_await client->Save(40, layout)).has_value());
    EXPECT_TRUE((co_await client->Save(50, layout)).has_value());
    auto third = co_await client->Save(60, layout);
    EXPECT_FALSE(third.has_value());
    if (third.has_value()) co_return;
    EXPECT_EQ(third.error().code(), Code::kResourceExhausted);
    EXPECT_THAT(third.error().message(), HasSubstr("not yet committed (steps 40, 50)"));
    EXPECT_THAT(third.error().message(), HasSubstr("the store drains at"));
    co_await Until([&] { return !coordinator_.skips.empty(); });
    EXPECT_EQ(coordinator_.skips[0].step, 60u);
    EXPECT_THAT(coordinator_.skips[0].reason, HasSubstr("rank 0 on node7"));
  });
}

TEST_F(SaveTest, TheNewestCommittedCopyStaysUntilANewerOneIsCommitted) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    co_await SaveAndCommit(*client, 40, layout);
    EXPECT_TRUE((co_await client->Save(50, layout)).has_value());
    auto refused = co_await client->Save(60, layout);
    EXPECT_FALSE(refused.has_value());
    // Once 50 is a checkpoint, the slot of 40 may go.
    co_await Until([&] { return store_.sealed_count() == 2; });
    coordinator_.PushFor(Kind::kCommitted, {1, 50});
    wire::SaveState state;
    do {
      state = (co_await client->Await(wire::Opcode::kSaveState)).As<wire::SaveState>();
    } while (state.phase != wire::SavePhase::kCommitted);
    EXPECT_EQ(state.step, 50u);
    auto accepted = co_await client->Save(70, layout);
    EXPECT_TRUE(accepted.has_value()) << StatusOf(accepted);
  });
}

TEST_F(SaveTest, AnAbortElsewhereEndsTheSaveWithItsReasonAndFreesTheSlot) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    for (uint64_t step : {40, 50, 60, 70}) {
      auto grant = co_await client->Begin(step, layout);
      EXPECT_TRUE(grant.has_value()) << StatusOf(grant);
      if (!grant.has_value()) co_return;
      co_await client->Copy(*grant, step, layout, 0, 3);
      co_await Until([&] { return !coordinator_.attempt_of({1, step}).IsZero(); });
      coordinator_.PushFor(Kind::kAborted, {1, step}, "rank 3 on node9 has no slot");
      auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
      EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
      EXPECT_EQ(state.code, Code::kAborted);
      EXPECT_EQ(state.message, "rank 3 on node9 has no slot");
      co_await Until([&] { return node_->stats().uploads_pending == 0; });
    }
    EXPECT_TRUE(coordinator_.skips.empty());
  });
}

TEST_F(SaveTest, ASealWithMissingChunksAbortsTheAttemptForAllRanks) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    auto grant = co_await client->Begin(40, layout);
    co_await client->Copy(*grant, 40, layout, 0, 3);
    co_await client->Seal(*grant);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
    EXPECT_THAT(state.message, HasSubstr("3 of 8 chunks"));
    co_await Until([&] { return !coordinator_.skips.empty(); });
  });
}

TEST_F(SaveTest, AStoreThatIsAwayDelaysTheUploadButNeverTheTrainer) {
  options_.upload_retry_max = std::chrono::seconds(60);
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.SetAway(true);
    format::Layout layout = TestLayout(8);
    auto grant = co_await client->Save(40, layout);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed);
    co_await Until([&] { return store_.opens >= 2; });
    EXPECT_EQ(node_->stats().uploads_pending, 1u);
    auto second = co_await client->Save(50, layout);
    EXPECT_TRUE(second.has_value());
    store_.SetAway(false);
    co_await Until([&] { return store_.sealed_count() == 2; });
    EXPECT_TRUE(coordinator_.skips.empty());
  });
}

TEST_F(SaveTest, AStoreThatHangsKeepsTheLocalSocketResponsive) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.Hold(true);
    format::Layout layout = TestLayout(8);
    auto grant = co_await client->Save(40, layout);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed);
    auto other = co_await Trainer(1, 2);
    EXPECT_TRUE((co_await other->Save(40, layout)).has_value());
    store_.Hold(false);
    co_await Until([&] { return store_.sealed_count() == 2; });
  });
}

TEST_F(SaveTest, AnUploadThatMakesNoProgressForTooLongEndsTheSaveWithTheReason) {
  options_.upload_retry_max = std::chrono::milliseconds(150);
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.SetAway(true);
    format::Layout layout = TestLayout(8);
    auto grant = co_await client->Save(40, layout);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
    EXPECT_EQ(state.code, Code::kUnavailable);
    EXPECT_THAT(state.message, HasSubstr("node.upload_retry"));
    co_await Until([&] { return !coordinator_.skips.empty(); });
  });
}

TEST_F(SaveTest, AFullStoreEndsTheSaveAtOnce) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    store_.open_failure = Code::kResourceExhausted;
    auto grant = co_await client->Save(40, TestLayout(8));
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.code, Code::kResourceExhausted);
    co_await Until([&] { return !coordinator_.skips.empty(); });
    EXPECT_EQ(store_.opens, 1u);
  });
}

TEST_F(SaveTest, AnUploadDamagedOnTheWayIsRepeatedAndASlabThatChangedIsNot) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    store_.seal_failure = Code::kDataLoss;
    store_.seal_failures = 1;
    EXPECT_TRUE((co_await client->Save(40, layout)).has_value());
    co_await Until([&] { return store_.sealed_count() == 1; });

    store_.Hold(true);
    auto grant = co_await client->Save(50, layout);
    auto sealed = co_await client->AwaitPhase(grant->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(sealed.phase, wire::SavePhase::kLocalSealed);
    client->slot_data(grant->slot)[5 * 4096] ^= 1;  // a zombie's late write
    store_.Hold(false);
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.code, Code::kDataLoss);
    EXPECT_THAT(state.message, HasSubstr("changed in the slab"));
    co_await Until([&] { return !coordinator_.skips.empty(); });
    EXPECT_EQ(store_.sealed_count(), 1u);
  });
}

TEST_F(SaveTest, AFencedRunCannotBeginButWhatItHadSealedIsStillUploaded) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    store_.Hold(true);
    auto sealed = co_await client->Save(40, layout);
    EXPECT_EQ((co_await client->AwaitPhase(sealed->save, wire::SavePhase::kLocalSealed)).phase,
              wire::SavePhase::kLocalSealed);
    auto filling = co_await client->Begin(50, layout);
    coordinator_.PushFor(Kind::kFenced, {1, 0});
    auto state = co_await client->AwaitPhase(filling->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.code, Code::kFenced);
    auto refused = co_await client->Begin(60, layout);
    EXPECT_EQ(StatusOf(refused).code(), Code::kFenced);
    store_.Hold(false);
    co_await Until([&] { return store_.sealed_count() == 1; });
  });
}

TEST_F(SaveTest, ARefusalByTheCoordinatorIsTheSavesEnd) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    coordinator_.begin_failure = Code::kAlreadyExists;
    auto grant = co_await client->Save(40, TestLayout(8));
    auto state = co_await client->AwaitPhase(grant->save, wire::SavePhase::kCommitted);
    EXPECT_EQ(state.phase, wire::SavePhase::kFailed);
    EXPECT_EQ(state.code, Code::kAlreadyExists);
  });
}

TEST_F(SaveTest, SlotsBeyondTheBudgetAreRefusedWithTheArithmetic) {
  Run([this]() -> Task<void> {
    auto first = co_await Trainer(0, 2, 4 * kMiB);
    LocalClient second(*io_, 1, 2);
    EXPECT_TRUE((co_await second.Connect(options_.socket_path)).ok());
    EXPECT_TRUE((co_await second.Register()).has_value());
    Status refused = co_await second.Attach(5 * kMiB);
    EXPECT_EQ(refused.code(), Code::kResourceExhausted);
    EXPECT_THAT(refused.message(), HasSubstr("needs 2 x 5.00 MiB for rank 1"));
    EXPECT_THAT(refused.message(), HasSubstr("slab budget 16.00 MiB"));
    EXPECT_THAT(refused.message(), HasSubstr("8.01 MiB in use"));
    EXPECT_TRUE((co_await second.Attach(3 * kMiB)).ok());
  });
}

TEST_F(SaveTest, SavingBeforeRegistrationAndAnUnknownLayoutAreRefused) {
  Run([this]() -> Task<void> {
    LocalClient client(*io_, 0, 1);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    auto early = co_await client.Begin(40, TestLayout(8));
    EXPECT_EQ(StatusOf(early).code(), Code::kFailedPrecondition);
    EXPECT_TRUE((co_await client.Register()).has_value());
    EXPECT_TRUE((co_await client.Attach(kMiB)).ok());
    // The client believes it has sent the layout already.
    auto unknown = co_await client.Begin(40, TestLayout(8));
    EXPECT_EQ(StatusOf(unknown).code(), Code::kNotFound);
    EXPECT_TRUE(coordinator_.skips.empty());
  });
}

TEST_F(SaveTest, ALayoutUnderAForeignDigestAndOneOfAnotherLengthAreRefused) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    format::Layout layout = TestLayout(8);
    wire::SaveBegin begin;
    begin.step = 40;
    begin.length = layout.shard_bytes;
    begin.layout = DigestOf(Bytes{1, 2, 3});
    begin.layout_bytes = format::EncodeLayout(layout);
    begin.metadata = "{}";
    co_await client->Send(begin, 7);
    Status foreign = (co_await client->Await(wire::Opcode::kSaveGrant)).error();
    EXPECT_EQ(foreign.code(), Code::kInvalidArgument) << foreign;
    EXPECT_THAT(foreign.message(), HasSubstr("digest"));
    begin.layout = format::LayoutDigest(layout);
    begin.length = layout.shard_bytes + 4096;
    co_await client->Send(begin, 8);
    Status longer = (co_await client->Await(wire::Opcode::kSaveGrant)).error();
    EXPECT_EQ(longer.code(), Code::kInvalidArgument) << longer;
    EXPECT_THAT(longer.message(), HasSubstr("the save for"));
    // Nothing of either is left, and an honest save works.
    co_await SaveAndCommit(*client, 41, layout);
  });
}

TEST_F(SaveTest, ARankOutsideItsWorldIsRefusedBeforeAnythingElse) {
  Run([this]() -> Task<void> {
    LocalClient client(*io_, 3, 2);
    EXPECT_TRUE((co_await client.Connect(options_.socket_path)).ok());
    auto registered = co_await client.Register();
    EXPECT_EQ(StatusOf(registered).code(), Code::kInvalidArgument);
    EXPECT_TRUE(coordinator_.registered.empty());
  });
}

TEST_F(SaveTest, ACoordinatorThatIsAwayIsToldLaterWhatWasSkipped) {
  Run([this]() -> Task<void> {
    auto client = co_await Trainer();
    coordinator_.SetAway(true);
    co_await client->Send(wire::SaveSkip{40, {}, "out of memory"}, 77);
    EXPECT_EQ((co_await client->Await(wire::Opcode::kDone)).header.request, 77u);
    EXPECT_TRUE(coordinator_.skips.empty());
    coordinator_.SetAway(false);
    co_await Until([&] { return !coordinator_.skips.empty(); });
    EXPECT_THAT(coordinator_.skips[0].reason, HasSubstr("out of memory"));
  });
}

TEST_F(SaveTest, AProcessThatCutsItsSlotShortLosesItsSaveAndNobodyElses) {
  Run([this]() -> Task<void> {
    auto bad = co_await Trainer(0, 2);
    format::Layout layout = TestLayout(8);
    auto grant = co_await bad->Begin(10, layout);
    co_await bad->Copy(*grant, 10, layout, 0, 3);
    for (const auto& entry : std::filesystem::directory_iterator(options_.slab_directory)) {
      if (entry.path().extension() == ".slot") std::filesystem::resize_file(entry.path(), 8192);
    }
    // Announced without being touched: the test's own mapping is cut short as well.
    co_await bad->Send(wire::SaveChunks{grant->save, 3, 5});
    co_await bad->Seal(*grant);
    auto state = co_await bad->AwaitPhase(grant->save, wire::SavePhase::kFailed);
    EXPECT_EQ(state.code, Code::kDataLoss);
    EXPECT_THAT(state.message, HasSubstr("truncated"));
    co_await Until([&] { return coordinator_.skips.size() == 1; });
    // The daemon lives and serves. The process is sent away, because it has a slot less, and comes back.
    co_await Until([&] { return node_->stats().clients == 0; });
    auto again = co_await Trainer(0, 2);
    auto repeated = co_await again->Save(15, layout);
    EXPECT_TRUE(repeated.has_value()) << StatusOf(repeated);
    state = co_await again->AwaitPhase(repeated->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed);
    auto good = co_await Trainer(1, 2);
    auto saved = co_await good->Save(20, layout);
    EXPECT_TRUE(saved.has_value()) << StatusOf(saved);
    state = co_await good->AwaitPhase(saved->save, wire::SavePhase::kLocalSealed);
    EXPECT_EQ(state.phase, wire::SavePhase::kLocalSealed);
  });
}

TEST_F(SaveTest, ASettleEventIsAnsweredWithItsToken) {
  Run([this]() -> Task<void> {
    lifecycle::NodeEvent settle;
    settle.kind = Kind::kSettle;
    settle.token = 4711;
    coordinator_.Push(settle);
    co_await Until([&] {
      return !coordinator_.reports.empty() && coordinator_.reports.back().settle_token == 4711;
    });
  });
}

}  // namespace
}  // namespace reprise::node

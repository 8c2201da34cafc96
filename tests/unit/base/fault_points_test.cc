#include "core/base/fault_points.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>

namespace reprise {
namespace {

TEST(FaultPlan, AsksForNothingWhenTheEnvironmentDoesNot) {
  std::optional<FaultPlan> plan = FaultPlan::Parse(nullptr, "");
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->crash_at, 0u);
  EXPECT_EQ(plan->fail_at, 0u);
}

TEST(FaultPlan, ReadsAMomentAndAFailure) {
  std::optional<FaultPlan> plan = FaultPlan::Parse("17:after", "3:space:ENOSPC:on");
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->crash_at, 17u);
  EXPECT_TRUE(plan->crash_after);
  EXPECT_EQ(plan->fail_at, 3u);
  EXPECT_EQ(plan->fail_kind, FaultPlan::Kind::kSpace);
  EXPECT_EQ(plan->fail_errno, ENOSPC);
  EXPECT_TRUE(plan->fail_on);
  EXPECT_FALSE(FaultPlan::Parse("17", nullptr)->crash_after);
}

TEST(FaultPlan, RefusesWhatItDoesNotUnderstand) {
  for (const char* text : {"x", "1:later", "-1", "1:before:2", ":after"}) {
    EXPECT_FALSE(FaultPlan::Parse(text, nullptr).has_value()) << text;
  }
  for (const char* text : {"1", "1:write", "1:paint:EIO", "1:write:EPERM", "1:write:EIO:off"}) {
    EXPECT_FALSE(FaultPlan::Parse(nullptr, text).has_value()) << text;
  }
}

TEST(FaultPoints, CountsWhatChangesADisk) {
  FaultPoints points{FaultPlan()};
  EXPECT_EQ(points.Begin(DiskOperation::kWrite).number, 1u);
  EXPECT_EQ(points.Begin(DiskOperation::kRead).number, 0u);
  EXPECT_EQ(points.Begin(DiskOperation::kSyncDirectory).number, 2u);
  EXPECT_EQ(points.changes(), 2u);
}

TEST(FaultPoints, FailsTheOneOperationOfItsKind) {
  FaultPoints points(*FaultPlan::Parse(nullptr, "2:flush:EIO"));
  EXPECT_EQ(points.Begin(DiskOperation::kFlush).error, 0);
  EXPECT_EQ(points.Begin(DiskOperation::kWrite).error, 0);
  EXPECT_EQ(points.Begin(DiskOperation::kFlush).error, EIO);
  EXPECT_EQ(points.Begin(DiskOperation::kFlush).error, 0);
}

TEST(FaultPoints, FailsEveryLaterOneToo) {
  FaultPoints points(*FaultPlan::Parse(nullptr, "2:space:ENOSPC:on"));
  EXPECT_EQ(points.Begin(DiskOperation::kAllocate).error, 0);
  EXPECT_EQ(points.Begin(DiskOperation::kWrite).error, ENOSPC);
  EXPECT_EQ(points.Begin(DiskOperation::kCreate).error, ENOSPC);
}

TEST(FaultPointsDeathTest, KillsBeforeOrAfterTheChosenOperation) {
  auto reach = [](const char* at) {
    FaultPoints points(*FaultPlan::Parse(at, nullptr));
    points.End(points.Begin(DiskOperation::kWrite));
    FaultPoints::Point second = points.Begin(DiskOperation::kFlush);
    std::fprintf(stderr, "begun;");
    points.End(second);
  };
  EXPECT_EXIT(reach("2:before"), testing::KilledBySignal(SIGKILL), "^[^;]*$");
  EXPECT_EXIT(reach("2:after"), testing::KilledBySignal(SIGKILL), "begun;");
}

}  // namespace
}  // namespace reprise

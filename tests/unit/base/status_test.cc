// Status and Result, and the macros that hand failures up.
#include "reprise/status.h"

#include <gtest/gtest.h>

#include "core/base/check.h"

namespace reprise {
namespace {

Status FailIf(bool fail) { return fail ? Status(Code::kUnavailable, "away") : OkStatus(); }
Result<int> HalfOf(int value) {
  if (value % 2 != 0) return Error(Code::kInvalidArgument, "odd");
  return value / 2;
}
Result<int> QuarterOf(int value) {
  REPRISE_TRY(FailIf(value < 0));
  REPRISE_ASSIGN(int half, HalfOf(value));
  return HalfOf(half);
}
Status CheckQuarter(int value, int& quarter) {
  REPRISE_RETURN_IF_ERROR(FailIf(value < 0));
  REPRISE_ASSIGN_STATUS(quarter, QuarterOf(value));
  return OkStatus();
}

TEST(Status, PrintsItsCodeAndMessage) {
  EXPECT_EQ(OkStatus().ToString(), "OK");
  EXPECT_EQ(Status(Code::kDataLoss, "chunk 3").ToString(), "DATA_LOSS: chunk 3");
  EXPECT_EQ(CodeName(Code::kFenced), "FENCED");
}

TEST(Status, AnAnnotationGoesInFrontOfAFailureOnly) {
  EXPECT_EQ(Status(Code::kNotFound, "no file").Annotate("shard 3").message(), "shard 3: no file");
  EXPECT_EQ(OkStatus().Annotate("shard 3"), OkStatus());
}

TEST(Status, CodesCarryTheNumbersOfGrpc) {
  EXPECT_EQ(static_cast<int>(Code::kCancelled), 1);
  EXPECT_EQ(static_cast<int>(Code::kResourceExhausted), 8);
  EXPECT_EQ(static_cast<int>(Code::kUnauthenticated), 16);
}

TEST(Result, FailuresTravelUpThroughTheMacros) {
  EXPECT_EQ(QuarterOf(8), 2);
  EXPECT_EQ(StatusOf(QuarterOf(6)).message(), "odd");
  EXPECT_EQ(StatusOf(QuarterOf(-4)).code(), Code::kUnavailable);
  int quarter = 0;
  EXPECT_EQ(CheckQuarter(12, quarter), OkStatus());
  EXPECT_EQ(quarter, 3);
  EXPECT_EQ(CheckQuarter(3, quarter).code(), Code::kInvalidArgument);
  EXPECT_EQ(CheckQuarter(-1, quarter).code(), Code::kUnavailable);
}

TEST(Check, ABrokenInvariantStopsTheProcessWithItsPlace) {
  EXPECT_DEATH(REPRISE_CHECK(1 + 1 == 3, "arithmetic"), "status_test.*1 \\+ 1 == 3.*arithmetic");
}

}  // namespace
}  // namespace reprise
